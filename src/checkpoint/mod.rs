//! A checkpoint: memory and files of one instant, committed together or not at all.
//!
//! ```text
//! discover → preflight → pre-copy (the container runs) → the runtime's CRIU is at the door
//!   → FREEZE → external files, snapshot ∥ dump → post-dump: join the snapshot, commit
//!   → CRIU ends the container, or lets go of it → THAW → table, pack, digests, manifest
//! ```
//!
//! Whoever fails in between leaves the container as it was. Up to the answer to CRIU's post-dump
//! script the dump can still be made to fail, and that is what ends the container; from the
//! freeze on, the [guardian](crate::guardian) thaws it if we die.

mod connections;
mod directory;
mod finish;
mod parts;
pub mod preflight;
mod timeline;
mod volatile;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};

use crate::container::{Container, Volumes};
use crate::criu::config::Configuration;
use crate::criu::door::{Action, Criu, Door, Visitor, Work};
use crate::criu::{action, failure};
use crate::fault;
use crate::files::unreachable;
use crate::freezer::{Frozen, FrozenBy, State as FreezerState};
use crate::guardian::{Ended, Guardian};
use crate::runtime::Runtime;
use crate::snapshot::{self, Progress, RootIdentity};
use crate::store::lock::Lock;
use crate::store::manifest::{External, Freeze, Left, Manifest};
use crate::sys::process::wait_readable;

pub use directory::ImageDirectory;
pub use finish::complete;
use timeline::Timeline;

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// The real runtime, with the global flags of the call.
    pub runtime: Runtime,
    /// The container.
    pub id: String,
    /// Where the checkpoint goes.
    pub images: PathBuf,
    /// Where CRIU's log goes; the runtime's choice if unsaid.
    pub work: Option<PathBuf>,
    /// The runtime's own flags, but for the two directories.
    pub flags: Vec<OsString>,
    /// Whether the container goes on.
    pub leave_running: bool,
    /// How long it may take to freeze.
    pub freeze_limit: Duration,
    /// The largest deleted file that is kept, as CRIU writes sizes.
    pub ghost_limit: String,
    /// Whether the whole image directory is removed when the checkpoint fails.
    pub disposable: bool,
    /// Which volumes belong to it, whatever else says so.
    pub volumes: Option<Volumes>,
    /// Which belong to it when neither that nor the container's annotation says so.
    pub default_volumes: Volumes,
    /// The checkpoint before, to share with it what has not changed.
    pub base: Option<PathBuf>,
}

/// Makes a checkpoint.
///
/// # Errors
/// The container is then as it was before, running or frozen by the caller, and the image
/// directory holds nothing that looks like a checkpoint.
pub fn checkpoint(request: &Request, held: &Lock, progress: &dyn Progress) -> Result<Manifest> {
    let timeline = Timeline::start();
    let container = Container::discover(&request.runtime, &request.id)?;
    preflight::check(&container)?;
    let root = snapshot::probe(&container.bundle.rootfs)?;
    container.ensure_root_is(root.path())?;
    let manifest = Manifest::begin(request, &container, root.identity())?;

    let guardian = Guardian::start()?;
    let directory = ImageDirectory::prepare(&request.images, request.disposable, &guardian, held)?;
    let staged = timeline.time("pre-copy", || {
        let volatile = volatile::files_of(&container.freezer.processes()?);
        let planned = parts::plan(&container, root, request)?;
        let parts = parts::stage(planned, request.base.as_deref(), &directory)?;
        anyhow::Ok(Staged { parts, volatile })
    })?;
    fault::point("pre-copied");
    directory.ensure_space(&container.freezer.processes()?)?;

    let dump = Dump::begin(request, &container, guardian, &directory, timeline)?;
    let (manifest, parts) = dump.run(manifest, staged)?;
    parts::seal(parts)?;
    let manifest = finish::complete(&request.images, manifest, Some(&dump.timeline), progress)?;
    dump.guardian.dismiss()?;
    Ok(manifest)
}

/// Parts that were copied once, and the files that could not be trusted then.
struct Staged {
    parts: Vec<parts::Staged>,
    volatile: volatile::Files,
}

/// A dump under way.
struct Dump<'a> {
    request: &'a Request,
    container: &'a Container,
    directory: &'a ImageDirectory,
    // Dropped in this order: nobody answers at the door any more, so that CRIU fails, and the
    // guardian waits for that.
    door: Door,
    guardian: Guardian,
    errors: File,
    since: SystemTime,
    timeline: Timeline,
}

impl<'a> Dump<'a> {
    /// Starts the runtime's `checkpoint`.
    fn begin(
        request: &'a Request,
        container: &'a Container,
        guardian: Guardian,
        directory: &'a ImageDirectory,
        timeline: Timeline,
    ) -> Result<Self> {
        let door = Door::open()?;
        guardian.remove_if_we_die(door.directory())?;
        let errors = tempfile::tempfile().context("making a file for the runtime's errors")?;
        guardian.run(&command_line(request), &door.environment()?, &errors)?;
        Ok(Self {
            request,
            container,
            directory,
            door,
            guardian,
            errors,
            since: SystemTime::now(),
            timeline,
        })
    }

    /// From the freeze to the thaw.
    fn run(
        &self,
        mut manifest: Manifest,
        staged: Staged,
    ) -> Result<(Manifest, Vec<parts::Staged>)> {
        manifest.parts = parts::records(&staged.parts);
        let asked = Instant::now();
        let criu = self.await_dump()?;
        self.timeline.mark("runtime", asked, Instant::now());
        fault::point("at-the-door");

        let frozen = freeze(self.request, self.container, &self.guardian)?;
        self.timeline.mark("freeze", frozen.requested(), frozen.reached());
        manifest.external = external_files(self.container, &frozen)?;
        let dumping = Instant::now();
        let process = criu.process()?;
        criu.admit_with(&self.configuration(&manifest, &frozen)?, &[])?;
        fault::point("dumping");
        let (parts, committed) = self.dump_and_snapshot(&frozen, staged, &mut manifest)?;
        let ended = if self.request.leave_running {
            // How the dump went is not known yet; either way the container goes on.
            self.await_criu(process.as_ref())?;
            self.timeline.mark("dump", dumping, Instant::now());
            self.thaw(frozen, &mut manifest)?;
            self.await_end()?
        } else {
            let ended = self.await_end()?;
            self.timeline.mark("dump", dumping, Instant::now());
            self.thaw(frozen, &mut manifest)?;
            ended
        };
        self.judge(&ended, committed)?;
        Ok((manifest, parts))
    }

    fn thaw(&self, frozen: Frozen<'_>, manifest: &mut Manifest) -> Result<()> {
        fault::point("dumped");
        manifest.freeze.milliseconds = Timeline::milliseconds(frozen.requested().elapsed());
        let thawing = Instant::now();
        frozen.thaw()?;
        self.timeline.mark("thaw", thawing, Instant::now());
        fault::point("thawed");
        self.guardian.thaw_no_more()
    }

    /// What CRIU is told beside what the runtime tells it.
    fn configuration(&self, manifest: &Manifest, frozen: &Frozen<'_>) -> Result<Configuration> {
        Ok(Configuration {
            action_script: Some(self.door.action_script()),
            external: manifest.external.iter().map(|file| file.key.clone()).collect(),
            ghost_limit: Some(self.request.ghost_limit.clone()),
            no_network_lock: !connections::need_lock(&frozen.processes()?),
            ..Configuration::default()
        })
    }

    /// CRIU writes the images while the snapshot is taken; its post-dump script joins the two.
    fn dump_and_snapshot(
        &self,
        frozen: &Frozen<'_>,
        staged: Staged,
        manifest: &mut Manifest,
    ) -> Result<(Vec<parts::Staged>, bool)> {
        manifest.freeze.by = frozen.by();
        thread::scope(|scope| {
            let snapshot = scope.spawn(|| take(frozen, staged));
            let hook = self.await_post_dump();
            let snapshot = snapshot.join().map_err(|_| anyhow!("the snapshot panicked"))?;
            let Some(hook) = hook? else {
                // Both may have met the same full disk, on which CRIU's log found no room either.
                snapshot.context("taking the snapshot")?;
                return Ok((Vec::new(), false));
            };
            fault::point("post-dump");
            let (parts, begin, end) = match snapshot {
                Ok(taken) => taken,
                Err(error) => {
                    hook.answer(&Err(anyhow!("{error:#}")))?;
                    return Err(error.context("taking the snapshot"));
                }
            };
            self.timeline.mark("snapshot", begin, end);
            let committing = Instant::now();
            let (parts, outcome) = self.commit(parts, manifest);
            fault::point("committed");
            hook.answer(&outcome)?;
            outcome.context("committing")?;
            self.timeline.mark("commit", committing, Instant::now());
            Ok((parts, true))
        })
    }

    /// Makes everything durable that a restore needs, before CRIU ends the container. One that
    /// goes on needs nothing: without a manifest, written at the very end, there is no checkpoint.
    fn commit(
        &self,
        parts: Vec<parts::Staged>,
        manifest: &Manifest,
    ) -> (Vec<parts::Staged>, Result<()>) {
        if self.request.leave_running {
            return (parts, Ok(()));
        }
        let committed = parts::seal(parts).and_then(|()| self.directory.commit_staged(manifest));
        (Vec::new(), committed)
    }

    /// Lets CRIU in for whatever the runtime asks first, until it comes with the dump.
    fn await_dump(&self) -> Result<Criu<'_>> {
        loop {
            match self.next()? {
                Some(Visitor::Criu(criu)) if criu.work == Work::Dump => return Ok(criu),
                Some(Visitor::Criu(criu)) => criu.admit()?,
                Some(Visitor::Action(action)) => action.answer(&Ok(()))?,
                None => {
                    let ended = self.guardian.ended()?;
                    return Err(self.explain(&ended));
                }
            }
        }
    }

    /// `None` when CRIU failed before it came that far.
    fn await_post_dump(&self) -> Result<Option<Action>> {
        loop {
            match self.next()? {
                Some(Visitor::Action(action)) if action.point == action::POST_DUMP => {
                    return Ok(Some(action));
                }
                Some(Visitor::Action(action)) => action.answer(&Ok(()))?,
                Some(Visitor::Criu(criu)) => criu.admit()?,
                None => return Ok(None),
            }
        }
    }

    /// Waits until CRIU has ended, as then nothing holds the processes but the freezer; the runtime
    /// may take as long again to end.
    fn await_criu(&self, process: Option<&OwnedFd>) -> Result<()> {
        let Some(process) = process else { return Ok(()) };
        loop {
            let fds = [self.door.as_fd(), process.as_fd(), self.guardian.as_fd()];
            let ready = wait_readable(&fds, None)?;
            if ready[0] {
                match self.door.accept() {
                    Ok(Visitor::Action(action)) => action.answer(&Ok(()))?,
                    Ok(Visitor::Criu(criu)) => criu.admit()?,
                    Err(error) => tracing::debug!("at the door: {error:#}"),
                }
            } else if ready[1] || ready[2] {
                return Ok(());
            }
        }
    }

    fn await_end(&self) -> Result<Ended> {
        while let Some(visitor) = self.next()? {
            match visitor {
                Visitor::Action(action) => action.answer(&Ok(()))?,
                Visitor::Criu(criu) => criu.admit()?,
            }
        }
        self.guardian.ended()
    }

    /// The next at the door; `None` when the runtime has ended.
    fn next(&self) -> Result<Option<Visitor<'_>>> {
        loop {
            let ready = wait_readable(&[self.door.as_fd(), self.guardian.as_fd()], None)?;
            if ready[0] {
                // Who comes and goes without a word is of no concern.
                match self.door.accept() {
                    Ok(visitor) => return Ok(Some(visitor)),
                    Err(error) => tracing::debug!("at the door: {error:#}"),
                }
            } else if ready[1] {
                return Ok(None);
            }
        }
    }

    /// A runtime that failed after the commit may have left the container alive: then what was
    /// committed is taken back.
    fn judge(&self, ended: &Ended, committed: bool) -> Result<()> {
        if ended.success() && committed {
            return Ok(());
        }
        self.directory.withdraw()?;
        if ended.success() {
            bail!(
                "{} made a dump without CRIU's post-dump script: is another criu configured?",
                self.request.runtime.name()
            );
        }
        Err(self.explain(ended))
    }

    fn explain(&self, ended: &Ended) -> anyhow::Error {
        let mut logs = failure::Logs::of(
            &self.request.runtime,
            &self.request.id,
            &self.request.images,
            self.since,
        );
        logs.look_in(self.request.work.as_deref());
        failure::explain("checkpoint", &self.request.runtime, ended, Some(&self.errors), &logs)
    }
}

/// Freezes the container.
fn freeze<'a>(
    request: &Request,
    container: &'a Container,
    guardian: &Guardian,
) -> Result<Frozen<'a>> {
    if container.freezer.state()? == Some(FreezerState::Thawed) {
        guardian.thaw_if_we_die(&container.freezer)?;
    }
    let frozen = container.freezer.freeze(request.freeze_limit).context("freezing it")?;
    fault::point("frozen");
    Ok(frozen)
}

/// The files that CRIU could not find by their paths.
fn external_files(container: &Container, _frozen: &Frozen<'_>) -> Result<Vec<External>> {
    let unreachable = unreachable(&container.dumped_processes()?, true)
        .context("looking for files out of CRIU's reach")?;
    let mut external: Vec<External> = unreachable
        .into_iter()
        .map(|file| External { key: file.external_key(), path: file.path })
        .collect();
    external.sort_by(|one, other| one.key.cmp(&other.key));
    external.dedup_by(|one, other| one.key == other.key);
    Ok(external)
}

type Taken = (Vec<parts::Staged>, Instant, Instant);

fn take(frozen: &Frozen<'_>, staged: Staged) -> Result<Taken> {
    let begin = Instant::now();
    let Staged { parts, mut volatile } = staged;
    volatile.extend(volatile::files_of(&frozen.processes()?));
    let parts = parts::take(parts, &volatile, frozen)?;
    fault::point("snapshot-taken");
    Ok((parts, begin, Instant::now()))
}

fn command_line(request: &Request) -> Vec<OsString> {
    let mut rest: Vec<OsString> =
        vec!["checkpoint".into(), "--image-path".into(), request.images.clone().into()];
    if let Some(work) = &request.work {
        rest.extend(["--work-path".into(), work.clone().into()]);
    }
    rest.extend(request.flags.iter().cloned());
    rest.push(request.id.clone().into());
    request.runtime.command_line(&rest)
}

impl Manifest {
    /// What is known before the freeze.
    fn begin(request: &Request, container: &Container, identity: &RootIdentity) -> Result<Self> {
        use crate::store::manifest::{self, Container as Record, Features, Programs, SCHEMA};
        let frozen = container.freezer.state()? == Some(FreezerState::Frozen);
        let left = match (request.leave_running, frozen) {
            (false, _) => Left::Stopped,
            (true, true) => Left::Frozen,
            (true, false) => Left::Running,
        };
        Ok(Self {
            schema: SCHEMA,
            features: Features::default(),
            ocicle: env!("CARGO_PKG_VERSION").to_owned(),
            state: manifest::State::Staged,
            created: jiff::Timestamp::now(),
            container: Record {
                id: container.id.clone(),
                bundle: container.bundle.directory.clone(),
                rootfs: container.bundle.rootfs.clone(),
            },
            left,
            freeze: Freeze {
                by: FrozenBy::Ocicle,
                cgroup: container.freezer.version(),
                milliseconds: 0.0,
            },
            timeline: Vec::new(),
            programs: Programs {
                runtime: request.runtime.version()?,
                criu: preflight::criu_version()?.to_string(),
                kernel: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
            },
            flags: restore_flags(&request.flags),
            root: identity.clone(),
            parts: Vec::new(),
            files: Vec::new(),
            seen: std::collections::BTreeMap::new(),
            external: Vec::new(),
            must_substitute: Vec::new(),
        })
    }
}

/// What `checkpoint` was told and `restore` has to be told too.
fn restore_flags(flags: &[OsString]) -> Vec<String> {
    const BOTH: [&str; 4] = ["--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks"];
    flags
        .iter()
        .filter_map(|flag| flag.to_str())
        .filter(|flag| BOTH.contains(flag))
        .map(str::to_owned)
        .collect()
}

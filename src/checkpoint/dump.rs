//! The dump: from the start of the runtime's `checkpoint` to the thaw.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Instant, SystemTime};

use anyhow::{Context, Result, anyhow, bail};

use super::parts::{self, Copied};
use super::timeline::Timeline;
use super::{ImageDirectory, Request, connections, volatile};
use crate::container::Container;
use crate::criu::config::Configuration;
use crate::criu::door::{Action, Criu, Door, Visitor, Work};
use crate::criu::{action, failure};
use crate::fault;
use crate::files::unreachable;
use crate::freezer::{Frozen, State as FreezerState};
use crate::guardian::{Ended, Guardian};
use crate::store::manifest::{External, Manifest};
use crate::sys::process::wait_readable;

/// A dump under way.
pub(super) struct Dump<'a> {
    request: &'a Request,
    container: &'a Container,
    directory: &'a ImageDirectory,
    // Dropped in this order: nobody answers at the door any more, so that CRIU fails, and the
    // guardian waits for that.
    door: Door,
    pub(super) guardian: Guardian,
    errors: File,
    since: SystemTime,
    pub(super) timeline: Timeline,
}

impl<'a> Dump<'a> {
    /// Starts the runtime's `checkpoint`.
    pub(super) fn begin(
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
    pub(super) fn run(
        &self,
        mut manifest: Manifest,
        staged: Copied,
    ) -> Result<(Manifest, Vec<parts::Staged>)> {
        manifest.parts = parts::records(&staged.parts);
        let asked = Instant::now();
        let criu = self.await_dump()?;
        self.timeline.mark("runtime", asked, Instant::now());
        fault::point("at-the-door");

        let frozen = freeze(self.request, self.container, &self.guardian)?;
        manifest.created = jiff::Timestamp::now();
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
        staged: Copied,
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
                Some(visitor) => visitor.wave_through()?,
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
                Some(visitor) => visitor.wave_through()?,
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
                    Ok(visitor) => visitor.wave_through()?,
                    Err(error) => tracing::debug!("at the door: {error:#}"),
                }
            } else if ready[1] || ready[2] {
                return Ok(());
            }
        }
    }

    fn await_end(&self) -> Result<Ended> {
        while let Some(visitor) = self.next()? {
            visitor.wave_through()?;
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

fn take(frozen: &Frozen<'_>, staged: Copied) -> Result<Taken> {
    let begin = Instant::now();
    let Copied { parts, mut volatile } = staged;
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

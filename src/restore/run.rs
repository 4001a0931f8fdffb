//! Running the runtime's `restore`, and letting its CRIU in.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, anyhow};

use super::console::Console;
use super::place::ViewPlace;
use super::{RestoreRequest, crun};
use crate::container::Bundle;
use crate::criu::configuration::Configuration;
use crate::criu::door::{Door, Visitor};
use crate::criu::failure::{self, Logs};
use crate::criu::images::entries::FileLock;
use crate::criu::images::{ImageDir, LOCKS, cgroups};
use crate::criu::plugin::{self, Failure};
use crate::criu::protocol::{FIRST_FD, Work};
use crate::files::Table;
use crate::hint::WithHint;
use crate::runtime::Family;
use crate::runtime::arguments::{CGROUPS_MODE, value_of};
use crate::runtime::exit::Ended;
use crate::runtime::log::Diverted;
use crate::store::manifest::Manifest;
use crate::substitute::{self, Replacement, Treatment};
use crate::sys::pid::{Pid, signal};
use crate::sys::process::{pidfd, wait_readable};
use crate::sys::signals::{FORWARDED, Signals};
use crate::sys::spawn;

/// What CRIU is to read, and what it is told beside that.
pub(super) struct ImageView {
    images: PathBuf,
    configuration: Configuration,
    /// What the runtime is told beside its caller's flags.
    flags: Vec<String>,
    /// Removes the view in the end.
    _directory: Option<ViewPlace>,
}

impl ImageView {
    /// The originals, or a view of them in which the replaced files are looked up by name, and
    /// control groups can be renamed.
    ///
    /// # Errors
    /// When CRIU could not restore the rest without one of them.
    pub(super) fn make(
        door: &Door,
        request: &RestoreRequest,
        (manifest, bundle): (&Manifest, &Bundle),
        images: &Path,
        treatments: &[Treatment],
    ) -> Result<Self> {
        let dir = ImageDir::open(images)?;
        let (groups, flags) = if leaves_groups(request, manifest, &dir)? {
            (None, [CGROUPS_MODE, "ignore"].map(str::to_owned).into())
        } else {
            (cgroups::relocatable(&dir)?, Vec::new())
        };
        let external = crun::mounts(&request.runtime, images)?;
        let has_loopback = manifest.loopback && bundle.has_own_network();
        let action_script = has_loopback.then(|| door.action_script());
        let mut configuration =
            Configuration { action_script, external, ..Configuration::default() };
        if treatments.is_empty() && groups.is_none() {
            configuration.plugin.locks = locks_to_take_again(&dir)?;
            return Ok(Self { images: images.to_owned(), configuration, flags, _directory: None });
        }
        let directory = ViewPlace::make(images, door.directory())?;
        let view = directory.path().join("images");
        let others = groups.map(|bytes| (cgroups::NAME.to_owned(), bytes)).into_iter().collect();
        let keys = substitute::rewrite_with(images, &view, treatments, others)?;
        let inherit = (FIRST_FD..).zip(keys).map(|(number, key)| (number, key.key)).collect();
        configuration.inherit = inherit;
        configuration.plugin.locks = locks_to_take_again(&changed_or(dir, &view)?)?;
        Ok(Self { images: view, configuration, flags, _directory: Some(directory) })
    }
}

/// Where the view's locks are: with the originals if they are the same.
fn changed_or(originals: ImageDir, view: &Path) -> Result<ImageDir> {
    let is_changed = std::fs::symlink_metadata(view.join(LOCKS)).is_ok_and(|locks| locks.is_file());
    if is_changed { ImageDir::open(view) } else { Ok(originals) }
}

/// Those of ranges: CRIU loses some of them, and to take one that is held is to keep it.
fn locks_to_take_again(images: &ImageDir) -> Result<Vec<FileLock>> {
    let mut locks = images.locks()?;
    locks.retain(FileLock::is_of_process);
    Ok(locks)
}

/// Whether CRIU shall leave the processes in the control groups that the runtime starts it in, those
/// of the new container: nobody has said otherwise, and they have no others.
fn leaves_groups(request: &RestoreRequest, manifest: &Manifest, images: &ImageDir) -> Result<bool> {
    let is_said = value_of(&request.flags, CGROUPS_MODE).is_some()
        || manifest.flags.iter().any(|flag| flag.starts_with(CGROUPS_MODE));
    Ok(request.runtime.family() == Family::Runc && !is_said && cgroups::are_one(images)?)
}

/// Runs the runtime and waits for its end.
///
/// # Errors
/// When CRIU did not restore the container: its cause. The runtime's own message has gone to
/// standard error, which may be the container's and is therefore not ours to capture.
pub(super) fn run(
    request: &RestoreRequest,
    manifest: &Manifest,
    door: &Door,
    view: &ImageView,
    replacements: &[Replacement],
    console: Option<&Console>,
) -> Result<Ended> {
    let since = SystemTime::now();
    let signals = Signals::catch(FORWARDED)?;
    let diverted = Diverted::to(door.directory(), &request.runtime);
    let rest = arguments(request, manifest, view, console);
    let fds: Vec<BorrowedFd<'_>> =
        replacements.iter().map(|replacement| replacement.fd.as_fd()).collect();
    // CRIU that is told nothing need not come to the door, which costs a start of this program for
    // each of the runtime's calls of it.
    let comes = !(view.configuration.is_empty() && fds.is_empty());
    let environment = if comes { door.environment()? } else { door.environment_outside()? };
    let command = diverted.runtime.command_line(&rest);
    let runtime = spawn::with_signals(&command, &environment)
        .with_context(|| format!("executing {}", Path::new(&command[0]).display()))?;
    let ended = attend(runtime, door, &view.configuration, &fds, &signals)?;

    let mut logs = Logs::of(&request.runtime, &request.id, &request.images, since);
    logs.look_in(request.work.as_deref());
    if ended.success() || logs.say_restored() {
        if let Err(error) = diverted.hand_on() {
            tracing::warn!("handing on the runtime's log: {error:#}");
        }
        if let Some(console) = console {
            console.pass_on()?;
        }
        return Ok(ended);
    }
    crun::forget(&request.runtime, &request.id);
    if let Some(failed) = plugin::failure(door.directory()) {
        return Err(lock_not_taken(&failed, &request.images));
    }
    Err(failure::explain("restore", &request.runtime, &ended, diverted.log().as_ref(), &logs))
}

/// CRIU's log would say that a process was killed: by its library, which could not go on.
fn lock_not_taken(failed: &Failure, images: &Path) -> anyhow::Error {
    let Failure::Lock { holder, errno } = failed;
    let whose = holder.map_or_else(String::new, |holder| {
        let table = Table::read(images).ok();
        let file = table.as_ref().and_then(|table| table.held_by(holder));
        let name = file.map_or_else(String::new, |file| format!(" on {}", file.name));
        format!("fd {} of pid {}: its lock{name}: ", holder.fd, holder.pid)
    });
    let error = anyhow!("{whose}{}", std::io::Error::from_raw_os_error(*errno));
    let error = error.context("taking the locks of processes again");
    if [libc::EAGAIN, libc::EACCES].contains(errno) {
        return error.hint("somebody outside the container has locked the file: end that first");
    }
    error
}

fn arguments(
    request: &RestoreRequest,
    manifest: &Manifest,
    view: &ImageView,
    console: Option<&Console>,
) -> Vec<OsString> {
    let flags = match console {
        Some(console) => console.flags(&request.flags),
        None => request.flags.clone(),
    };
    let flags = crun::known(&request.runtime, flags);
    let mut rest: Vec<OsString> =
        vec!["restore".into(), "--image-path".into(), (&view.images).into()];
    if let Some(work) = &request.work {
        rest.extend(["--work-path".into(), work.into()]);
    }
    rest.extend(["--bundle".into(), request.bundle.clone().into()]);
    rest.extend(flags.iter().cloned());
    let known = |flag: &&String| !flags.iter().any(|given| given == flag.as_str());
    rest.extend(manifest.flags.iter().filter(known).map(OsString::from));
    rest.extend(view.flags.iter().map(OsString::from));
    rest.push(request.id.clone().into());
    rest
}

/// Answers at the door and hands on signals until the runtime ends.
fn attend(
    runtime: Pid,
    door: &Door,
    configuration: &Configuration,
    fds: &[BorrowedFd<'_>],
    signals: &Signals,
) -> Result<Ended> {
    while let Some(end) = pidfd(runtime)? {
        let ready = wait_readable(&[door.as_fd(), signals.as_fd(), end.as_fd()], None)?;
        if ready[0] {
            attend_visitor(door, configuration, fds)?;
        }
        if ready[1] {
            forward(signals, runtime)?;
        }
        if ready[2] {
            break;
        }
    }
    Ok(spawn::wait(runtime).context("waiting for the runtime")?.into())
}

fn attend_visitor(
    door: &Door,
    configuration: &Configuration,
    fds: &[BorrowedFd<'_>],
) -> Result<()> {
    match door.accept() {
        Ok(Visitor::Criu(criu)) if criu.work == Work::Restore => {
            criu.admit_with(configuration, fds)
        }
        Ok(visitor) => visitor.wave_through(),
        Err(error) => {
            tracing::debug!("at the door: {error:#}");
            Ok(())
        }
    }
}

/// Hands on what has come.
fn forward(signals: &Signals, runtime: Pid) -> Result<()> {
    while let Some(came) = signals.next()? {
        // It may just have ended.
        let _ = signal(runtime, came.signal);
    }
    Ok(())
}

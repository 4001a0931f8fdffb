//! A restore: the files put back, some open files replaced, then the processes.
//!
//! ```text
//! manifest and digests → rules and their files → root file system's identity and plan
//!   → preflight of every file CRIU will open, and policies   (up to here nothing is changed)
//!   → reconcile the root file system → a view of the images → the runtime's restore,
//!     whose CRIU gets the replacements at the door
//! ```

mod bounds;
pub mod compare;
mod console;
mod crun;
mod dry_run;
mod in_place;
mod links;
mod not_held;
mod place;
mod plan;
mod preflight;
mod reconcile;
mod remedies;
mod rules;
mod run;
mod sites;
mod verify;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use crate::choice::Choice;
use crate::container::Holder;
use crate::container::Volumes;
use crate::criu::images::Images;
use crate::files::{self};
use crate::hint::WithHint;
use crate::lend::Handed;
use crate::machine;
use crate::policy::FilePolicy;
use crate::runtime::Runtime;
use crate::runtime::exit::Ended;
use crate::snapshot::{self, Progress};
use crate::store::STAGING;
use crate::store::lock::ContainerLock;
use crate::store::manifest::{self, Trust};
use crate::substitute::{Allow, Substitution};
use crate::sys::process::InheritedFds;

pub use dry_run::{FileFate, Forecast, PartChanges, Said, Substitute};
pub use in_place::InPlace;
pub use plan::{Examined, RestorePlan};

/// What is asked for.
#[derive(Debug)]
pub struct RestoreRequest {
    /// The real runtime, with the global flags of the call.
    pub runtime: Runtime,
    /// The container to make.
    pub id: String,
    /// The checkpoint.
    pub images: PathBuf,
    /// Where CRIU's log goes; the runtime's choice if unsaid.
    pub work: Option<PathBuf>,
    /// The bundle of the new container.
    pub bundle: PathBuf,
    /// The runtime's own flags, but for the three directories.
    pub flags: Vec<OsString>,
    /// Rules of the command line.
    pub rules: Vec<String>,
    /// Rules of the configuration.
    pub configured: Vec<Substitution>,
    /// Policies of the command line.
    pub policies: Vec<String>,
    /// Policies of the configuration.
    pub configured_policies: Vec<FilePolicy>,
    /// Which volumes are put back.
    pub volumes: Choice<Volumes>,
    /// What rules of annotations and checkpoints may use.
    pub allow: Allow,
    /// The descriptors that this process was started with.
    pub inherited: InheritedFds,
    /// Those that were handed over as such.
    pub handed: Handed,
    /// How much of the checkpoint is read to know that it is whole.
    pub trust: Trust,
    /// How snapshots are put back.
    pub drivers: snapshot::DriverSettings,
    /// Whether a stopped container of that name makes room.
    pub replace_stopped: bool,
}

/// Whether a directory holds a checkpoint of ocicle's.
///
/// # Errors
/// When it holds what an interrupted checkpoint left: CRIU's images are there, the files that
/// belong to them are not.
pub fn is_ours(images: &Path) -> Result<bool> {
    if manifest::is_there(images) {
        return Ok(true);
    }
    if fs::symlink_metadata(images.join(STAGING)).is_err() {
        return Ok(false);
    }
    Err(anyhow!("{} holds a checkpoint that was interrupted, not a whole one", images.display())
        .hint("make it again: its memory has no files that belong to it"))
}

/// Restores a container, and returns how the runtime's `restore` ended.
///
/// # Errors
/// Whatever can be known before is checked before: until the files are put back nothing has been
/// changed. An error behind that leaves the files as they were at the checkpoint, and no container.
pub fn restore(
    request: &RestoreRequest,
    _held: &ContainerLock,
    progress: &dyn Progress,
) -> Result<Ended> {
    machine::ensure_capable()?;
    machine::ensure_criu()?;
    let examined = Examined::of(request, progress)?;
    examined.plan()?.carry_out(progress)
}

/// Finds out what [`restore()`] would do. The container of that name may be running; then its files
/// are those of this moment.
///
/// # Errors
/// What would be refused before anything is changed. No socket is connected and no program is run,
/// so those may still refuse.
pub fn dry_run(request: &RestoreRequest, _held: &ContainerLock) -> Result<Forecast> {
    let examined = Examined::unchanged(request)?;
    examined.plan()?.forecast()
}

/// Puts the files of a checkpoint back for a runtime that restores the processes by itself. Rules
/// of substitution have no place there: its CRIU has begun.
///
/// # Errors
/// As of [`restore()`]: until the files are put back nothing has been changed.
pub fn put_back(request: &RestoreRequest, _held: &ContainerLock) -> Result<()> {
    machine::ensure_capable()?;
    let examined = Examined::without_rules(request)?;
    warn_of_lost_locks(&request.images)?;
    examined.plan()?.put_back_in_place()
}

/// This CRIU has not come to ocicle's door: so nobody takes them again.
fn warn_of_lost_locks(images: &Path) -> Result<()> {
    for (Holder { pid, fd }, path) in files::lost_locks(&Images::load(images)?) {
        tracing::warn!("fd {fd} of pid {pid}: CRIU loses its lock on {path}, which is mapped too");
    }
    Ok(())
}

/// Refuses to touch the files of a container that lives.
fn ensure_not_alive(request: &RestoreRequest) -> Result<()> {
    if !request.runtime.may_know(&request.id) {
        return Ok(());
    }
    let alive = |status: &str| matches!(status, "creating" | "created" | "running" | "paused");
    match request.runtime.state(&request.id) {
        Ok(state) if alive(&state.status) => Err(anyhow!(
            "a container of that name is {}",
            state.status
        )
        .hint(format!("end it first: {} kill {} KILL", request.runtime.name(), request.id))),
        // Stopped, or unknown to the runtime.
        _ => Ok(()),
    }
}

/// Removes what the runtime still keeps of a container that stopped: else it refuses the name.
fn make_room(runtime: &Runtime, id: &str) -> Result<()> {
    match runtime.state(id) {
        Ok(state) if state.status == "stopped" => runtime.delete(id),
        _ => Ok(()),
    }
}

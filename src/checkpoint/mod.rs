//! A checkpoint: memory and files of one instant, committed together or not at all.
//!
//! ```text
//! discover → preflight → pre-copy (the container runs) → the runtime's CRIU has started
//!   → FREEZE → is it as CRIU was told? → snapshot ∥ dump → post-dump: join the snapshot, commit
//!   → CRIU ends the container, or lets go of it → THAW → table, pack, digests, manifest
//! ```
//!
//! Whoever fails in between leaves the container as it was. Up to the answer to CRIU's post-dump
//! script the dump can still be made to fail, and that is what ends the container; from the
//! freeze on, the [guardian](crate::guardian) thaws it if we die.

mod comeback;
mod complete;
mod connections;
mod directory;
mod dump;
mod foresight;
mod freeze;
mod images_in_memory;
mod links;
mod locks;
mod needed;
mod outside;
mod parts;
mod record;
mod room;
mod sharing;
mod timers;
mod under_dump;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use crate::choice::Choice;
use crate::container::{Container, Shared, Volumes};
use crate::cover::{self, Cover};
use crate::fault::{self, Point};
use crate::files::{DumpSettings, Finder, Suspects, bytes_of};
use crate::guardian::Guardian;
use crate::machine;
use crate::restorable::Restorable;
use crate::runtime::Runtime;
use crate::runtime::arguments::value_of;
use crate::runtime::ended::Notice;
use crate::snapshot::{self, Compression, Progress, Root};
use crate::store::choices::{self, Filesystem};
use crate::store::lock::ContainerLock;
use crate::store::manifest::Manifest;
use crate::store::{self, Timeline};
use crate::substitute::{OnUnsupported, Substitution};

use comeback::Comeback;
pub use directory::ImageDirectory;
use dump::{Ahead, Dump, Dumped};
pub use images_in_memory::ImagesIn;
use needed::needed;
use outside::not_held;
use parts::CopiedAhead;
use record::Begun;
use sharing::Sharing;
pub use under_dump::under_dump;

/// What is asked for.
#[derive(Debug)]
pub struct CheckpointRequest {
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
    /// How long it may stay frozen beyond the dump's own progress.
    pub max_freeze: Duration,
    /// Where CRIU writes its images first.
    pub stage: ImagesIn,
    /// The largest deleted file that is kept, as CRIU writes sizes.
    pub ghost_limit: String,
    /// Rules of the command line: of files that CRIU cannot dump, they say what will take the place.
    pub rules: Vec<String>,
    /// Rules of the configuration.
    pub configured: Vec<Substitution>,
    /// What becomes of such files that no rule covers.
    pub on_unsupported: OnUnsupported,
    /// Whether the whole image directory is removed when the checkpoint fails.
    pub disposable: bool,
    /// Which volumes belong to it.
    pub volumes: Choice<Volumes>,
    /// What it does about files.
    pub filesystem: Choice<Filesystem>,
    /// How the snapshots of files are compressed.
    pub compression: Compression,
    /// The checkpoint before, to share with it what has not changed.
    pub base: Option<PathBuf>,
    /// What is done about volumes that others write too.
    pub shared: Shared,
    /// Whether the container may end although a restore in place would be refused.
    pub unrestorable_ok: Choice<bool>,
    /// How snapshots are taken.
    pub drivers: snapshot::DriverSettings,
}

impl CheckpointRequest {
    /// What is done about the files of a container.
    fn filesystem_of(&self, container: &Container) -> Result<Filesystem> {
        let annotated = choices::annotated(&container.bundle)?;
        Ok(self.filesystem.or_annotated(annotated))
    }

    /// The volumes that are taken: where they are mounted, and where they are on the host.
    fn volumes_of(
        &self,
        container: &Container,
        filesystem: Filesystem,
    ) -> Result<Vec<(PathBuf, PathBuf)>> {
        match filesystem {
            Filesystem::Snapshot => container.bundle.volumes(&self.volumes),
            Filesystem::Verify | Filesystem::None => Ok(Vec::new()),
        }
    }

    /// Whether the runtime is given a flag, alone or with a value.
    fn has_flag(&self, flag: &str) -> bool {
        self.flags.iter().any(|given| given == flag) || value_of(&self.flags, flag).is_some()
    }
}

/// Makes a checkpoint of a container. One that is to end with it has to be `restorable`.
///
/// # Errors
/// The container is then as it was before, running or frozen by the caller, and the image
/// directory holds nothing that looks like a checkpoint.
pub fn checkpoint(
    request: &CheckpointRequest,
    container: &Container,
    restorable: &dyn Restorable,
    held: &ContainerLock,
    progress: &dyn Progress,
) -> Result<Manifest> {
    let timeline = Timeline::start();
    machine::check(container)?;
    let cover = cover(request, container)?;
    let root = snapshot::probe(&container.bundle.rootfs)?.described()?;
    container.ensure_root_is(root.path())?;
    let filesystem = request.filesystem_of(container)?;
    let comeback = Comeback::of(request, container, restorable)?;
    let volumes = request.volumes_of(container, filesystem)?;
    comeback.ensure_foreseen(&volumes)?;
    let not_held = not_held(container, filesystem, &volumes);
    let begun = Begun::of(request, container, root.identity(), filesystem, not_held)?;

    let guardian = Guardian::start(held, request.max_freeze)?;
    let directory = ImageDirectory::prepare(&request.images, request.disposable, &guardian, held)?;
    directory.let_in(&container.bundle)?;
    let staged = timeline.time("pre-copy", || {
        copy_first(container, root, request, filesystem, &directory, &guardian)
    })?;
    fault::point(Point::PreCopied);
    let needed = needed(container)?;
    directory.ensure_space(needed)?;

    let notice =
        if request.leave_running { None } else { Notice::give(&request.runtime, &request.id)? };
    let ahead = Ahead { cover, comeback, needed };
    let mut dump = Dump::begin(request, container, ahead, guardian, &directory, timeline)?;
    let room = dump.timeline.time("room", || dump.make_room(needed));
    let Dumped { manifest, facts, parts, locks } = dump.run(&begun, staged, room)?;
    notice.into_iter().for_each(Notice::keep);
    dump.move_images()?;
    if request.leave_running {
        complete::complete(&request.images, &locks)?;
    }
    let _leases = parts::seal(parts)?;
    let (images, made) = (&request.images, Some((&dump.timeline, facts)));
    let manifest = store::complete(images, manifest, made, progress, directory.alone())?;
    dump.guardian.dismiss()?;
    outside::say(&manifest.not_held);
    Ok(manifest)
}

/// Makes sure that no open file will stop the dump.
fn cover(request: &CheckpointRequest, container: &Container) -> Result<Cover> {
    let rules = cover::rules(container, &request.id, &request.configured, &request.rules)?;
    let settings = settings(request).with_standing(&request.runtime)?;
    let finder = Finder::of(container.init, &request.runtime)?;
    Cover::of(rules, request.on_unsupported, settings, finder, container)
}

/// What CRIU is told, as far as it decides over open files.
fn settings(request: &CheckpointRequest) -> DumpSettings {
    let has = |flag: &str| request.flags.iter().any(|given| given == flag);
    DumpSettings {
        tcp_established: has("--tcp-established"),
        tcp_skip_in_flight: has("--tcp-skip-in-flight"),
        file_locks: has("--file-locks"),
        ext_unix_sk: has("--ext-unix-sk"),
        shell_job: has("--shell-job"),
        bpf_maps: false,
        ghost_limit: bytes_of(&request.ghost_limit),
    }
}

/// Copies what belongs to the checkpoint for the first time; what changes after that is found by
/// looking again.
fn copy_first(
    container: &Container,
    root: Root,
    request: &CheckpointRequest,
    filesystem: Filesystem,
    directory: &ImageDirectory,
    guardian: &Guardian,
) -> Result<CopiedAhead> {
    let suspects = Suspects::of(&container.freezer.processes()?);
    let (planned, sharing) = match filesystem {
        Filesystem::Snapshot => parts::plan(container, root, request)?,
        Filesystem::Verify | Filesystem::None => (Vec::new(), Sharing::default()),
    };
    let parts = parts::stage(planned, request, directory, guardian, &suspects)?;
    let digests = match filesystem {
        Filesystem::Verify => Some(parts::digest_held(container)?),
        Filesystem::Snapshot | Filesystem::None => None,
    };
    Ok(CopiedAhead { parts, suspects, sharing, digests })
}

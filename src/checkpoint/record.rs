//! What a manifest says from the beginning.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use jiff::Timestamp;

use super::CheckpointRequest;
use crate::container::Container;
use crate::files::verify::HeldFile;
use crate::freezer::{CgroupVersion, FreezerState, FrozenBy};
use crate::machine;
use crate::proc::Proc;
use crate::snapshot::{Compression, RootIdentity};
use crate::store::choices::Filesystem;
use crate::store::manifest::{
    self, ContainerRecord, External, Features, Freeze, Left, LinkRemap, LostEvents, Manifest,
    NotHeld, Owner, PartRecord, Programs, SCHEMA, State, Unsupported,
};
use crate::sys::loopback;

/// What is known before the freeze.
#[derive(Clone)]
pub(super) struct Begun {
    container: ContainerRecord,
    left: Left,
    cgroup: CgroupVersion,
    programs: Programs,
    flags: Vec<String>,
    filesystem: Filesystem,
    compression: Compression,
    root: RootIdentity,
    not_held: Vec<NotHeld>,
    loopback: bool,
}

/// What is known as soon as the container stands still.
pub(super) struct FreezeFacts {
    /// When that was.
    pub created: Timestamp,
    pub by: FrozenBy,
    /// The control groups of others that stand still too.
    pub others: Vec<PathBuf>,
    pub external: Vec<External>,
    pub unsupported: Vec<Unsupported>,
    pub owners: Vec<Owner>,
    pub lost_events: Vec<LostEvents>,
    pub link_remaps: Vec<LinkRemap>,
}

impl Begun {
    pub(super) fn of(
        request: &CheckpointRequest,
        container: &Container,
        root: &RootIdentity,
        filesystem: Filesystem,
        not_held: Vec<NotHeld>,
    ) -> Result<Self> {
        let frozen = container.freezer.state()? == Some(FreezerState::Frozen);
        let left = match (request.leave_running, frozen) {
            (false, _) => Left::Stopped,
            (true, true) => Left::Frozen,
            (true, false) => Left::Running,
        };
        Ok(Self {
            container: ContainerRecord {
                id: container.id.clone(),
                bundle: container.bundle.directory.clone(),
                rootfs: container.bundle.rootfs.clone(),
            },
            left,
            cgroup: container.freezer.version(),
            programs: Programs {
                runtime: request.runtime.version()?,
                criu: machine::criu_version()?.to_string(),
                kernel: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
            },
            flags: restore_flags(&request.flags),
            filesystem,
            compression: request.compression,
            root: root.clone(),
            not_held,
            loopback: container.bundle.has_own_network() && has_loopback(container),
        })
    }

    /// The manifest of what is taken and not packed, after so many milliseconds of the freeze.
    pub(super) fn staged(
        self,
        freeze: FreezeFacts,
        parts: Vec<PartRecord>,
        held: Vec<HeldFile>,
        milliseconds: f64,
    ) -> Manifest {
        let FreezeFacts {
            created,
            by,
            others,
            external,
            unsupported,
            owners,
            lost_events,
            link_remaps,
        } = freeze;
        Manifest {
            schema: SCHEMA,
            features: features(self.filesystem, &held),
            ocicle: env!("CARGO_PKG_VERSION").to_owned(),
            state: State::Staged,
            created,
            container: self.container,
            left: self.left,
            freeze: Freeze { by, cgroup: self.cgroup, milliseconds, others },
            timeline: Vec::new(),
            criu: None,
            programs: self.programs,
            flags: self.flags,
            filesystem: self.filesystem,
            compression: self.compression,
            held,
            root: self.root,
            parts,
            files: Vec::new(),
            seen: BTreeMap::new(),
            external,
            unsupported,
            owners,
            lost_events,
            link_remaps,
            not_held: self.not_held,
            loopback: self.loopback,
            must_substitute: Vec::new(),
        }
    }
}

/// Whether programs of the container reach each other by it. What cannot be seen is as ever.
fn has_loopback(container: &Container) -> bool {
    loopback::is_up(&Proc::of(container.init).at("ns/net")).unwrap_or_default()
}

/// What is refused by who does not know how to compare the files, or to read the indexes.
fn features(filesystem: Filesystem, held: &[HeldFile]) -> Features {
    let mut features = Features::default();
    match filesystem {
        Filesystem::Verify => features.need(manifest::HELD_FILES),
        Filesystem::Snapshot => features.need(manifest::INDEX_LINES),
        Filesystem::None => {}
    }
    if held.iter().any(|file| file.sparse) {
        features.need(manifest::SPARSE_DIGESTS);
    }
    features
}

/// What a restore has to be told too.
fn restore_flags(flags: &[OsString]) -> Vec<String> {
    flags
        .iter()
        .filter_map(|flag| flag.to_str())
        .filter(|flag| manifest::FLAGS.contains(flag))
        .map(str::to_owned)
        .collect()
}

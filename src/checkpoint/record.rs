//! What a manifest says from the beginning.

use std::collections::BTreeMap;
use std::ffi::OsString;

use anyhow::Result;

use super::CheckpointRequest;
use crate::container::Container;
use crate::freezer::{FreezerState, FrozenBy};
use crate::machine;
use crate::snapshot::RootIdentity;
use crate::store::choices::Filesystem;
use crate::store::manifest::{
    self, ContainerRecord, Features, Freeze, Left, Manifest, Programs, SCHEMA,
};

impl Manifest {
    /// What is known before the freeze.
    pub(super) fn begin(
        request: &CheckpointRequest,
        container: &Container,
        identity: &RootIdentity,
        filesystem: Filesystem,
    ) -> Result<Self> {
        let frozen = container.freezer.state()? == Some(FreezerState::Frozen);
        let left = match (request.leave_running, frozen) {
            (false, _) => Left::Stopped,
            (true, true) => Left::Frozen,
            (true, false) => Left::Running,
        };
        Ok(Self {
            schema: SCHEMA,
            features: features(filesystem),
            ocicle: env!("CARGO_PKG_VERSION").to_owned(),
            state: manifest::State::Staged,
            created: jiff::Timestamp::now(),
            container: ContainerRecord {
                id: container.id.clone(),
                bundle: container.bundle.directory.clone(),
                rootfs: container.bundle.rootfs.clone(),
            },
            left,
            freeze: Freeze {
                by: FrozenBy::Ocicle,
                cgroup: container.freezer.version(),
                milliseconds: 0.0,
                others: Vec::new(),
            },
            timeline: Vec::new(),
            criu: None,
            programs: Programs {
                runtime: request.runtime.version()?,
                criu: machine::criu_version()?.to_string(),
                kernel: nix::sys::utsname::uname()?.release().to_string_lossy().into_owned(),
            },
            flags: restore_flags(&request.flags),
            filesystem,
            compression: request.compression,
            held: Vec::new(),
            root: identity.clone(),
            parts: Vec::new(),
            files: Vec::new(),
            seen: BTreeMap::new(),
            external: Vec::new(),
            unsupported: Vec::new(),
            owners: Vec::new(),
            must_substitute: Vec::new(),
        })
    }
}

/// What is refused by who does not know how to compare the files, or to read the indexes.
fn features(filesystem: Filesystem) -> Features {
    let mut features = Features::default();
    match filesystem {
        Filesystem::Verify => features.need(manifest::HELD_FILES),
        Filesystem::Snapshot => features.need(manifest::INDEX_LINES),
        Filesystem::None => {}
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

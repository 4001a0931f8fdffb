//! Where the content of an open file would be kept.

use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::{CheckRequest, DumpOutlook};
use crate::bytes::ByteString;
use crate::container::{Bind, Container};
use crate::files::FileKind;
use crate::files::dumpable::Place;
use crate::files::facts::Known;

/// A volume: where the container sees it, and what it is on the host.
pub type Volume = (PathBuf, PathBuf);

/// Where the content of an open file would be kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "by", content = "part")]
pub enum KeptBy {
    /// In CRIU's images, as far as there is any.
    Criu,
    /// In the snapshot, in the part that is mounted there.
    Snapshot(ByteString),
    /// Nowhere: it has to be there at a restore.
    Nothing,
}

impl fmt::Display for KeptBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Criu => f.write_str("CRIU"),
            Self::Snapshot(part) => write!(f, "snapshot of {part}"),
            Self::Nothing => f.write_str("nothing"),
        }
    }
}

/// The parts that a checkpoint would have, and what is mounted beside them.
pub struct Parts {
    root: Option<PathBuf>,
    volumes: Vec<Volume>,
    binds: Vec<Bind>,
}

impl Parts {
    pub(super) fn of(container: &Container, request: &CheckRequest) -> Result<Self> {
        let bundle = &container.bundle;
        Ok(Self {
            root: (!bundle.is_read_only()).then(|| bundle.rootfs.clone()),
            volumes: super::volumes(container, request)?,
            binds: bundle.binds(),
        })
    }

    /// The volumes among them.
    pub(super) fn volumes(&self) -> &[Volume] {
        &self.volumes
    }

    /// What other mount namespaces may share: where the container sees it, what it is on the host,
    /// and whether it is in the snapshot.
    pub(super) fn shareable(&self) -> impl Iterator<Item = (PathBuf, PathBuf, bool)> + '_ {
        let root = self.root.iter().map(|root| (PathBuf::from("/"), root.clone(), true));
        let binds = self.binds.iter().filter(|bind| !bind.read_only).map(|bind| {
            let held = self.volumes.iter().any(|(point, _)| *point == bind.destination);
            (bind.destination.clone(), bind.source.clone(), held)
        });
        root.chain(binds)
    }

    /// Where the content of an open file would be kept.
    pub(super) fn holder_of(&self, known: &Known, dump: DumpOutlook) -> KeptBy {
        let by_path = matches!(
            known.file.kind,
            FileKind::Reg | FileKind::Dir | FileKind::Symlink | FileKind::Fifo | FileKind::Device
        );
        if dump == DumpOutlook::LeftOut {
            return KeptBy::Nothing;
        }
        match (&known.mount, &known.described.place) {
            (
                Some(mount),
                Place::There
                | Place::OtherName
                | Place::Unlinked
                | Place::Overmounted
                | Place::Taken,
            ) if by_path => self.holder_at(&mount.point),
            _ => KeptBy::Criu,
        }
    }

    fn holder_at(&self, point: &ByteString) -> KeptBy {
        let path = point.as_path();
        let is_volume = self.volumes.iter().any(|(destination, _)| destination == path);
        let is_bind = self.binds.iter().any(|bind| bind.destination == path);
        match path.to_str() {
            Some("/") if self.root.is_some() => KeptBy::Snapshot(point.clone()),
            Some("/") => KeptBy::Nothing,
            _ if is_volume => KeptBy::Snapshot(point.clone()),
            _ if is_bind => KeptBy::Nothing,
            // A file system of the container's own, which CRIU fills again.
            _ => KeptBy::Criu,
        }
    }
}

//! What a driver holds outside of the checkpoint's directory.

use std::collections::{BTreeSet, HashMap};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::pool::Pool;
use super::{Claim, DriverName, DriverSettings, Program, program};
use crate::bytes::ByteString;
use crate::files::Suspects;
use crate::proc::Proc;
use crate::proc::mountinfo::Mount;
use crate::snapshot::attributes::is_racy;
use crate::snapshot::identity::RootIdentity;
use crate::snapshot::index::Index;
use crate::snapshot::packed::PackedFiles;
use crate::snapshot::probe::Root;
use crate::snapshot::staging::{
    Base, StagedContent, as_paths, content_of, known_content, read_json, write_json,
};
use crate::snapshot::walk::{Earlier, Walking, walk};
use crate::sys::directory::Directory;
use crate::sys::fs::check_name;
use crate::sys::inode::Device;
use crate::sys::time::Time;

const STAGED_HELD: &str = "held.json";

/// A snapshot that is held outside of the staging directory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct DriverSnapshot {
    pub(super) claim: Claim,
    pub(super) place: SnapshotPlace,
    root: RootIdentity,
    /// Inode numbers of files whose times prove nothing.
    suspects: BTreeSet<u64>,
    taken: Time,
}

/// Where it is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum SnapshotPlace {
    /// In the btrfs on this device.
    Btrfs { device: ByteString },
    /// Where this program has it; the records are in the directory.
    Program { program: Program, path: PathBuf, keeps: bool, records: PathBuf },
}

impl DriverSnapshot {
    pub(super) fn new(claim: Claim, place: SnapshotPlace, root: &Root) -> Self {
        let root = root.identity().clone();
        Self { claim, place, root, suspects: BTreeSet::new(), taken: Time::default() }
    }

    /// Notes that it is taken now.
    pub(super) fn note_taken(&mut self, suspects: &Suspects) {
        self.taken = Time::coarse_now();
        self.suspects = suspects.on(Device::from_stat(self.root.device)).collect();
    }

    pub(super) fn driver(&self) -> DriverName {
        match &self.place {
            SnapshotPlace::Btrfs { .. } => DriverName::Btrfs,
            SnapshotPlace::Program { program, .. } => DriverName::Program(program.program.clone()),
        }
    }

    pub(super) fn write(&self, staging: &Path) -> Result<()> {
        write_json(staging, STAGED_HELD, self)
    }

    /// What is held for a staging directory; none where everything is in it.
    pub fn read(staging: &Directory) -> Result<Option<Self>> {
        read_json(staging, STAGED_HELD)
    }

    /// Makes sure that it was held here, and that what reaches it is of the administrator's choice:
    /// the staging directory may be of an archive that anybody made.
    pub fn ensure_recorded(&self, settings: &DriverSettings) -> Result<()> {
        let name = &self.claim.name;
        check_name(name.as_bytes())?;
        let is_recorded = match &self.place {
            SnapshotPlace::Btrfs { device } => {
                let mounts = Proc::own_thread().mounts()?;
                let is_it = |mount: &Mount| mount.kind == "btrfs" && mount.source == *device;
                ensure!(mounts.iter().any(is_it), "no btrfs is mounted from {device}");
                Pool::open(device)?.has(&self.claim)
            }
            SnapshotPlace::Program { program, path, records, .. } => {
                let is_it = |known: &Program| known.program == program.program;
                ensure!(
                    settings.programs.iter().any(is_it),
                    "{} is no driver of the configuration",
                    ByteString::from(program.program.as_path())
                );
                *records == settings.records
                    && *path == self.claim.path
                    && program.took(&self.claim)
                    && program::records(records)?.has(&self.claim)
            }
        };
        ensure!(is_recorded, "the snapshot {} was not taken here", ByteString::from(name.as_str()));
        Ok(())
    }

    /// Whether it is what was recorded under that name.
    pub fn is(&self, claim: &Claim) -> bool {
        self.claim.name == claim.name
    }

    /// Opens the content as a root, and what it is reached through.
    fn open(&self) -> Result<(Root, Option<Pool>)> {
        let name = &self.claim.name;
        let (path, top, pool) = match &self.place {
            SnapshotPlace::Btrfs { device } => {
                let pool = Pool::open(device)?;
                (PathBuf::from(name), pool.snapshot(name)?, Some(pool))
            }
            SnapshotPlace::Program { program, path, .. } => {
                let (path, top) = program.commit(path, name)?;
                (path, top, None)
            }
        };
        Ok((Root::of_snapshot(path, top, self.root.clone())?, pool))
    }

    /// Lists what it holds, and opens it.
    pub(in crate::snapshot) fn index(
        &self,
        base: Option<&Base>,
    ) -> Result<(Index<StagedContent>, HeldContent)> {
        let (root, pool) =
            self.open().with_context(|| format!("opening the snapshot {}", self.claim.name))?;
        let all = walk(&root, Walking::Kept, Earlier::default(), &Suspects::default())?;
        let known = base.map_or_else(HashMap::new, |base| known_content(&base.index));
        let entries = as_paths(&all.tree, |found| {
            let identity = &found.identity;
            let is_trusted =
                !self.suspects.contains(&identity.ino) && !is_racy(identity.ctime, self.taken);
            let same = || content_of(&base?.index, &known, identity);
            let content = match same() {
                _ if identity.size == 0 => StagedContent::Empty,
                Some(content) => StagedContent::Base(Box::new(content.clone())),
                None => StagedContent::Held,
            };
            Ok((content, is_trusted.then(|| identity.clone())))
        })?;
        let index = Index { driver: root.form(), root: self.root.clone(), entries };
        Ok((index, HeldContent { top: root.into_top(), _pool: pool }))
    }

    /// Removes it; there may be nothing.
    pub fn discard(&self) -> Result<()> {
        let name = &self.claim.name;
        let discard = || match &self.place {
            SnapshotPlace::Btrfs { device } => Pool::open(device)?.discard(name),
            SnapshotPlace::Program { program, path, records, .. } => {
                program.discard(path, name, false)?;
                program::records(records)?.forget(name)
            }
        };
        discard().with_context(|| format!("removing the snapshot {name}"))
    }

    /// Its content is packed, in a checkpoint that is complete: it is kept for a restore, if it can
    /// be, or removed.
    pub fn release(&self, packed: &PackedFiles) -> Result<()> {
        let (name, index) = (&self.claim.name, &packed.index.blake3);
        match &self.place {
            SnapshotPlace::Btrfs { device } => Pool::open(device)?.keep(name, index),
            SnapshotPlace::Program { program, path, keeps: true, records } => {
                program.discard(path, name, true)?;
                program::records(records)?.keep(name, name, index)
            }
            SnapshotPlace::Program { .. } => self.discard(),
        }
    }
}

/// The files of a snapshot, as long as this is there.
pub(in crate::snapshot) struct HeldContent {
    pub top: OwnedFd,
    _pool: Option<Pool>,
}

/// What this machine still holds of a packed part.
pub struct HeldLocally(Holder);

enum Holder {
    Btrfs { pool: Pool, name: String },
    Program { program: Program, claim: Claim },
}

impl HeldLocally {
    /// Looks for what was held of a part, for a root that is to become equal to it. Nothing in an
    /// archive names it: it is found by the digest of the index.
    pub fn find(
        root: &Root,
        packed: &PackedFiles,
        settings: &DriverSettings,
    ) -> Result<Option<Self>> {
        let index = &packed.index.blake3;
        if let Some(pool) = Pool::of(root)?
            && let Some(name) = pool.find(index)
        {
            return Ok(Some(Self(Holder::Btrfs { pool, name })));
        }
        let Some(program) = settings.programs.iter().find(|program| program.is_for(root.path()))
        else {
            return Ok(None);
        };
        let found = program::records(&settings.records)?.find(index)?;
        let found = found.filter(|claim| program.took(claim));
        Ok(found.map(|claim| Self(Holder::Program { program: program.clone(), claim })))
    }

    /// Puts all of it in the place of a root; or does nothing, where that cannot be done. The root
    /// that was open is another one then.
    pub fn put_back(&self, root: &Root) -> Result<bool> {
        let (name, done) = match &self.0 {
            Holder::Btrfs { pool, name } => (name, pool.put_back(root, name)),
            Holder::Program { program, claim } => {
                (&claim.name, program.restore(root.path(), claim))
            }
        };
        done.with_context(|| format!("putting back the snapshot {name}"))
    }

    /// The directory that files can be cloned from.
    pub(in crate::snapshot) fn directory(&self) -> Option<OwnedFd> {
        match &self.0 {
            Holder::Btrfs { pool, name } => pool.snapshot(name).ok(),
            Holder::Program { .. } => None,
        }
    }
}

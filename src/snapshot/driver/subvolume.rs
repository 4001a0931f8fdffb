//! A btrfs subvolume: a read-only snapshot of it in the freeze.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::copying::CopyDriver;
use super::held::{DriverSnapshot, SnapshotPlace};
use super::pool::{Pool, device_of};
use super::registry::{Claim, Lease, new_name};
use super::{CopyStats, Driver, DriverName, SnapshotOwner};
use crate::fault::{self, Point};
use crate::files::Suspects;
use crate::freezer::Frozen;
use crate::snapshot::part::PackedPart;
use crate::snapshot::probe::Root;
use crate::snapshot::shows::{ShownAt, Shows, shown_below};
use crate::snapshot::staging::write_base;
use crate::sys::btrfs;
use crate::sys::fs;
use crate::sys::inode::DevIno;

/// A subvolume of which a snapshot is taken.
pub(super) struct SubvolumeDriver {
    staging: PathBuf,
    root: Option<Root>,
    pool: Pool,
    held: DriverSnapshot,
    /// What is done instead, should there be a subvolume inside by then.
    instead: Option<CopyDriver>,
    lease: Lease,
}

impl SubvolumeDriver {
    /// `None` for what is no subvolume.
    pub(super) fn begin(
        staging: &Path,
        root: &Root,
        base: Option<&PackedPart>,
        purpose: &SnapshotOwner<'_>,
    ) -> Result<Option<Self>> {
        if root.overlay().is_some() || !btrfs::is_subvolume(root.top())? {
            return Ok(None);
        }
        // A snapshot holds none of them.
        ensure!(!btrfs::holds_others(root.top())?, "there are other subvolumes in it");
        let device = device_of(root)?.context("it is on no mounted btrfs")?;
        let pool = Pool::open(&device)?;
        ensure!(
            DevIno::of(&pool.top)? != DevIno::of(root.top())?,
            "it is the one that holds all others"
        );
        pool.sweep(purpose.is_alive)?;
        let claim = Claim {
            schema: 1,
            owner: Some(purpose.owner.to_owned()),
            part: purpose.part.to_owned(),
            name: new_name(),
            path: root.path().to_owned(),
            program: None,
            index: None,
        };
        let lease = pool.registry.record(&claim)?;
        write_base(staging, base)?;
        let held = DriverSnapshot::new(claim, SnapshotPlace::Btrfs { device }, root);
        Ok(Some(Self { staging: staging.to_owned(), root: None, pool, held, instead: None, lease }))
    }

    /// Takes the root over.
    pub(super) fn with(self, root: Root) -> Self {
        Self { root: Some(root), ..self }
    }

    fn root(&self) -> Result<&Root> {
        self.root.as_ref().context("the root was handed on")
    }
}

impl Shows for SubvolumeDriver {
    fn shows(&self, path: &[u8]) -> ShownAt {
        match &self.instead {
            Some(stage) => stage.shows(path),
            None => match self.pool.snapshot(&self.held.claim.name) {
                Ok(top) => shown_below(top, path),
                Err(_) => ShownAt::Absent,
            },
        }
    }
}

impl Driver for SubvolumeDriver {
    fn name(&self) -> DriverName {
        self.instead.as_ref().map_or(DriverName::Btrfs, Driver::name)
    }

    fn held(&self) -> Option<&DriverSnapshot> {
        Some(&self.held)
    }

    /// A snapshot begins by writing what is dirty: the less, the shorter the freeze.
    fn prepare(&mut self, _suspects: &Suspects) -> Result<CopyStats> {
        let directory = fs::open_dir(self.root()?.top(), b"")?;
        rustix::fs::syncfs(directory).context("writing the file system's dirty pages")?;
        Ok(CopyStats::default())
    }

    fn take(&mut self, frozen: &Frozen<'_>, suspects: &Suspects) -> Result<CopyStats> {
        if let Some(stage) = &mut self.instead {
            return stage.take(frozen, suspects);
        }
        let top = self.root()?.top();
        if btrfs::holds_others(top)? {
            tracing::warn!(
                "a subvolume was made in {} just now: all of it is copied under the freeze",
                self.root()?.path().display()
            );
            let root = self.root.take().context("the root was handed on")?;
            let stage = self.instead.insert(CopyDriver::copying(&self.staging, root)?);
            return stage.take(frozen, suspects);
        }
        btrfs::snapshot(top, self.pool.registry.directory(), &self.held.claim.name, true)
            .context("making a btrfs snapshot")?;
        fault::point(Point::SubvolumeTaken);
        self.held.note_taken(suspects);
        Ok(CopyStats::default())
    }

    fn take_back(&mut self) -> Result<()> {
        match self.instead {
            Some(_) => Ok(()),
            None => self.pool.clear(&self.held.claim.name),
        }
    }

    fn seal(mut self: Box<Self>) -> Result<Option<Lease>> {
        match self.instead.take() {
            Some(stage) => {
                self.pool.discard(&self.held.claim.name)?;
                Box::new(stage).seal()
            }
            None => {
                self.held.write(&self.staging)?;
                Ok(Some(self.lease))
            }
        }
    }
}

//! A part of which a program of the administrator's takes the snapshot.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde_json::json;

use super::held::{DriverSnapshot, SnapshotPlace};
use super::program::{Done, Program, records};
use super::registry::{Claim, Lease, new_name};
use super::{CopyStats, Driver, DriverName, DriverSettings, SnapshotOwner};
use crate::fault::{self, Point};
use crate::files::Suspects;
use crate::freezer::Frozen;
use crate::snapshot::part::PackedPart;
use crate::snapshot::probe::Root;
use crate::snapshot::shows::{ShownAt, Shows, shown_below};
use crate::snapshot::staging::write_base;
use crate::sys::fs::open_host_dir;

/// A part of which a program takes a snapshot.
pub(super) struct ProgramDriver {
    staging: PathBuf,
    program: Program,
    path: PathBuf,
    held: DriverSnapshot,
    lease: Lease,
}

impl ProgramDriver {
    pub(super) fn begin(
        staging: &Path,
        root: &Root,
        base: Option<&PackedPart>,
        program: &Program,
        settings: &DriverSettings,
        purpose: &SnapshotOwner<'_>,
    ) -> Result<Self> {
        ensure!(root.overlay().is_none(), "what is merged by an overlay is no one's file system");
        let path = root.path().to_owned();
        let probed = program.probe(&path)?;
        let registry = records(&settings.records)?;
        let place = SnapshotPlace::Program {
            program: program.clone(),
            path: path.clone(),
            keeps: probed.keeps,
            records: settings.records.clone(),
        };
        for claim in registry.abandoned(purpose.is_alive)? {
            if program.took(&claim) {
                tracing::debug!("removing the snapshot {}, left behind", claim.name);
                program.discard(&claim.path, &claim.name, false)?;
                registry.forget(&claim.name)?;
            }
        }
        let claim = Claim {
            schema: 1,
            owner: Some(purpose.owner.to_owned()),
            part: purpose.part.to_owned(),
            name: new_name(),
            path: path.clone(),
            program: Some(program.program.clone()),
            index: None,
        };
        let lease = registry.record(&claim)?;
        write_base(staging, base)?;
        let held = DriverSnapshot::new(claim, place, root);
        let staging = staging.to_owned();
        Ok(Self { staging, program: program.clone(), path, held, lease })
    }

    /// Lets go of the root, which the program reaches by its path.
    pub(super) fn with(self, _root: Root) -> Self {
        self
    }

    fn name_of_snapshot(&self) -> &str {
        &self.held.claim.name
    }
}

/// The program shows its snapshot after `commit` only, which is for later: until the thaw, what was
/// taken is what is there.
impl Shows for ProgramDriver {
    fn shows(&self, path: &[u8]) -> ShownAt {
        match open_host_dir(&self.path) {
            Ok(top) => shown_below(top, path),
            Err(_) => ShownAt::Absent,
        }
    }
}

impl Driver for ProgramDriver {
    fn name(&self) -> DriverName {
        self.held.driver()
    }

    fn held(&self) -> Option<&DriverSnapshot> {
        Some(&self.held)
    }

    fn prepare(&mut self, _suspects: &Suspects) -> Result<CopyStats> {
        let name = json!({ "name": self.name_of_snapshot() });
        let Done {} = self.program.ask("prepare", &self.path, name)?;
        Ok(CopyStats::default())
    }

    fn take(&mut self, _frozen: &Frozen<'_>, suspects: &Suspects) -> Result<CopyStats> {
        let name = json!({ "name": self.name_of_snapshot() });
        let Done {} = self.program.ask("take", &self.path, name)?;
        fault::point(Point::ProgramTaken);
        self.held.note_taken(suspects);
        Ok(CopyStats::default())
    }

    fn take_back(&mut self) -> Result<()> {
        self.program.discard(&self.path, self.name_of_snapshot(), false)?;
        self.prepare(&Suspects::default()).map(drop)
    }

    fn seal(self: Box<Self>) -> Result<Option<Lease>> {
        self.held.write(&self.staging)?;
        Ok(Some(self.lease))
    }
}

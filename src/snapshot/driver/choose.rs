//! The driver for a root.

use std::path::Path;

use anyhow::Result;

use super::by_program::ProgramDriver;
use super::copying::CopyDriver;
use super::subvolume::SubvolumeDriver;
use super::{Driver, DriverSettings, SnapshotOwner};
use crate::snapshot::part::PackedPart;
use crate::snapshot::probe::Root;

/// Finds the driver for a root, and says why better ones were not taken. `staging` must be there,
/// empty, and readable by its owner only; `base` is the snapshot before of the same root.
pub fn choose(
    staging: &Path,
    root: Root,
    base: Option<&PackedPart>,
    settings: &DriverSettings,
    purpose: &SnapshotOwner<'_>,
) -> Result<(Box<dyn Driver>, Vec<String>)> {
    let mut notes = Vec::new();
    for program in settings.programs.iter().filter(|program| program.is_for(root.path())) {
        match ProgramDriver::begin(staging, &root, base, program, settings, purpose) {
            Ok(holding) => return Ok((Box::new(holding.with(root)), notes)),
            Err(error) => notes.push(format!("{}: {error:#}", program.program.display())),
        }
    }
    match SubvolumeDriver::begin(staging, &root, base, purpose) {
        Ok(Some(holding)) => return Ok((Box::new(holding.with(root)), notes)),
        Ok(None) => {}
        Err(error) => notes.push(format!("no btrfs snapshot: {error:#}")),
    }
    Ok((Box::new(CopyDriver::create(staging, root, base)?), notes))
}

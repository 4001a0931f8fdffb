//! What CRIU's images lack for everything to go on.

use std::path::Path;

use anyhow::Result;

use super::locks::Locks;
use super::timers;

/// Writes it down.
pub(super) fn complete(images: &Path, locks: &Locks) -> Result<()> {
    locks.complete(images)?;
    timers::complete(images)
}

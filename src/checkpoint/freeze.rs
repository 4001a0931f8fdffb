//! Freezing a control group that somebody thaws if we die.

use anyhow::{Context, Result};

use super::CheckpointRequest;
use crate::fault::{self, Point};
use crate::freezer::{Freezer, FreezerState, Frozen};
use crate::guardian::Guardian;

/// Freezes the container.
pub(super) fn freeze<'a>(
    request: &CheckpointRequest,
    freezer: &'a Freezer,
    guardian: &Guardian,
) -> Result<Frozen<'a>> {
    guard_and_freeze(request, freezer, guardian)
        .context("freezing it")
        .inspect(|_| fault::point(Point::Frozen))
}

/// Freezes a control group that somebody thaws if we die.
pub(super) fn guard_and_freeze<'a>(
    request: &CheckpointRequest,
    freezer: &'a Freezer,
    guardian: &Guardian,
) -> Result<Frozen<'a>> {
    if freezer.state()? == Some(FreezerState::Thawed) {
        guardian.thaw_if_we_die(freezer)?;
    }
    freezer.freeze(request.freeze_limit)
}

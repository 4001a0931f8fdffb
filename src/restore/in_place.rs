//! What a restore would say of a container that has not ended yet.

use std::path::PathBuf;

use anyhow::Result;

use super::RestoreRequest;
use super::plan::Examined;
use super::reconcile::ensure_volume_is_unused;
use crate::container::Container;
use crate::restorable::{JustTaken, Restorable};

/// A restore of the container where it is, by the rules that stand somewhere.
#[derive(Debug)]
pub struct InPlace {
    request: RestoreRequest,
    /// Whether it is ours, and obeys rules and policies.
    with_rules: bool,
}

impl InPlace {
    /// A restore by ocicle.
    pub fn of(request: RestoreRequest) -> Self {
        Self { request, with_rules: true }
    }

    /// A restore by the runtime alone, which has the files put back.
    pub fn by_runtime(request: RestoreRequest) -> Self {
        Self { request, with_rules: false }
    }
}

impl Restorable for InPlace {
    fn ahead(&self, container: &Container, volumes: &[(PathBuf, PathBuf)]) -> Result<()> {
        container.bundle.ensure_mounts_last()?;
        let own = container.freezer.processes()?;
        volumes.iter().try_for_each(|(destination, source)| {
            ensure_volume_is_unused(destination, source, &own)
        })
    }

    fn of_taken(&self, taken: &JustTaken<'_>) -> Result<()> {
        Examined::just_taken(&self.request, taken, self.with_rules)?.plan().map(drop)
    }
}

//! Making the root file system what it was.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::container::Bundle;
use crate::hint::WithHint;
use crate::snapshot::{self, Part, Plan, Progress, Root};
use crate::store::manifest::Manifest;

/// What has to be done to the root file system of a bundle. Nothing is changed by making it.
pub struct Reconciliation {
    part: Option<Part>,
    plan: Option<Plan>,
}

impl Reconciliation {
    /// Compares the root file system with the snapshot.
    ///
    /// # Errors
    /// When it is not the one the snapshot was taken of: other lower layers.
    pub fn plan(manifest: &Manifest, images: &Path, bundle: &Bundle) -> Result<Self> {
        let root = snapshot::probe(&bundle.rootfs)?;
        manifest
            .root
            .ensure_same(&root.identity())
            .with_context(|| format!("the root file system {}", bundle.rootfs.display()))
            .hint("give with --bundle one that is made of the same image")?;
        ensure!(manifest.parts.len() <= 1, "it has {} parts", manifest.parts.len());
        let Some(record) = manifest.parts.first() else { return Ok(Self { part: None, plan: None }) };
        let part = Part::open(images, record)?;
        let plan = Self::compare(&root, &part).with_context(|| format!("comparing {}", bundle.rootfs.display()))?;
        Ok(Self { part: Some(part), plan: Some(plan) })
    }

    fn compare(root: &Root, part: &Part) -> Result<Plan> {
        snapshot::plan(root, part)
    }

    /// The snapshot.
    pub fn part(&self) -> Option<&Part> {
        self.part.as_ref()
    }

    /// What will be done.
    pub fn actions(&self) -> Option<&Plan> {
        self.plan.as_ref()
    }

    /// Does it.
    pub fn execute(self, progress: &dyn Progress) -> Result<()> {
        match self.plan {
            Some(plan) => plan.execute(progress).context("putting the root file system back").map(drop),
            None => Ok(()),
        }
    }
}

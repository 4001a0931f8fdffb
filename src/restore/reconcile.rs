//! The root file system that is to become what it was.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

use crate::container::Bundle;
use crate::hint::WithHint;
use crate::snapshot::{self, Part, Root};
use crate::store::manifest::Manifest;

/// The root file system of a bundle.
///
/// # Errors
/// When it is not made of the image that the snapshot lies on: other lower layers.
pub(super) fn root_of(bundle: &Bundle, manifest: &Manifest) -> Result<Root> {
    let root = snapshot::probe(&bundle.rootfs)?;
    let differences = manifest.root.differences(root.identity());
    if !differences.is_empty() {
        let refused: Result<Root> = (|| {
            bail!(
                "the root file system {} is another: {}",
                bundle.rootfs.display(),
                differences.join("; ")
            )
        })();
        return refused.hint("name with --bundle one that is made of the same image");
    }
    Ok(root)
}

/// The snapshot of the root file system; a container that could not write its own has none.
pub(super) fn part_of(manifest: &Manifest, images: &Path) -> Result<Option<Part>> {
    ensure!(manifest.parts.len() <= 1, "it has {} parts", manifest.parts.len());
    let open =
        |record| Part::open(images, record).context("opening the snapshot of the root file system");
    manifest.parts.first().map(open).transpose()
}

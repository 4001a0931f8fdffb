//! The files of a checkpoint against those of another one, or of now, in the terms of a restore.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::reconcile;
use crate::container::Bundle;
use crate::snapshot::{self, Difference, PackedPart};
use crate::store::manifest::{Manifest, PartRecord, Trust};

/// What differs on one file system.
#[derive(Debug)]
pub struct Compared {
    /// Where the container sees it.
    pub destination: PathBuf,
    /// What differs.
    pub difference: Difference,
}

/// Compares a checkpoint with the files of a bundle as they are now. The container may run; then
/// its files are those of this moment.
pub fn since(images: &Path, manifest: &Manifest, bundle: &Bundle) -> Result<Vec<Compared>> {
    manifest.verify(images, Trust::Unwritten)?;
    reconcile::root_of_same_image(manifest, bundle)?;
    manifest.parts.iter().map(|part| part_since(part, images, bundle)).collect()
}

fn part_since(part: &PartRecord, images: &Path, bundle: &Bundle) -> Result<Compared> {
    let root = snapshot::probe(&reconcile::target_of(part, bundle)?)?;
    let difference = snapshot::since(&root, &open(part, images)?)?;
    Ok(Compared { destination: part.destination.as_path().to_owned(), difference })
}

/// Compares two checkpoints, each a directory and its manifest.
///
/// # Errors
/// When a file system belongs to one of them only.
pub fn between(before: (&Path, &Manifest), after: (&Path, &Manifest)) -> Result<Vec<Compared>> {
    for (images, manifest) in [before, after] {
        manifest.verify(images, Trust::Unwritten)?;
    }
    let mut compared = Vec::new();
    for part in &before.1.parts {
        let same = |other: &&PartRecord| other.destination == part.destination;
        let other =
            after.1.parts.iter().find(same).with_context(|| {
                format!("{} belongs to the first of them only", part.destination)
            })?;
        let difference = parts_between((before.0, part), (after.0, other))?;
        compared.push(Compared { destination: part.destination.as_path().to_owned(), difference });
    }
    let known =
        |part: &&PartRecord| before.1.parts.iter().any(|one| one.destination == part.destination);
    match after.1.parts.iter().find(|part| !known(part)) {
        Some(part) => anyhow::bail!("{} belongs to the second of them only", part.destination),
        None => Ok(compared),
    }
}

fn parts_between(before: (&Path, &PartRecord), after: (&Path, &PartRecord)) -> Result<Difference> {
    let (was, is) = (open(before.1, before.0)?, open(after.1, after.0)?);
    // What the image has under a path can be asked only while the same root is mounted.
    let image = snapshot::probe(&after.1.source)
        .and_then(|root| root.compared_with(&was.index().root))
        .ok()
        .filter(|(_, differences)| differences.is_empty());
    let lower = image.and_then(|(root, _)| root.lower_layers().ok().flatten());
    let mut difference = snapshot::between(&was, &is, lower.as_ref())?;
    let others = was.index().root.differences(&is.index().root);
    difference.notes.extend(others.iter().map(|what| format!("another root: {what}")));
    Ok(difference)
}

fn open(part: &PartRecord, images: &Path) -> Result<PackedPart> {
    let files = part.files.as_ref().with_context(|| format!("{} is not packed", part.name))?;
    PackedPart::open(images, files)
        .with_context(|| format!("opening the snapshot of {}", part.destination))
}

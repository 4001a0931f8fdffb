//! The files that the container held, where a checkpoint took no copy of them.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};

use crate::container::Bundle;
use crate::files::held::{HeldFile, on_host, open_below};
use crate::hint::WithHint;
use crate::store::manifest::Manifest;
use crate::substitute::Resolved;

/// Makes sure that every file which the container had open or mapped is what it was, but for those
/// that something else takes the place of.
pub(super) fn ensure_same(
    manifest: &Manifest,
    bundle: &Bundle,
    resolved: &[Resolved],
) -> Result<()> {
    let is_replaced = |held: &&HeldFile| resolved.iter().any(|one| one.file.name == held.path);
    let mut text = String::new();
    for held in manifest.held.iter().filter(|held| !is_replaced(held)) {
        let differences = differences(held, bundle)?;
        if !differences.is_empty() {
            let _ = write!(text, "\n  {}: {}", held.path, differences.join("; "));
        }
    }
    if text.is_empty() {
        return Ok(());
    }
    Err(anyhow!("some files are not what they were at the checkpoint:{text}")
        .hint("bring them back as they were, or let something take their places with -s"))
}

fn differences(held: &HeldFile, bundle: &Bundle) -> Result<Vec<String>> {
    let found = on_host(bundle, held.path.as_path());
    match found.and_then(|(directory, below)| open_below(&directory, &below)) {
        Some(file) => held.differences(&file),
        None => Ok(vec!["it is missing".to_owned()]),
    }
}

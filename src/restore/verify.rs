//! The files that the container held, where a checkpoint took no copy of them.

use std::fmt::Write as _;

use anyhow::{Result, anyhow};

use crate::container::Bundle;
use crate::files::verify::{HeldFile, HowMuch, on_host, open_below};
use crate::hint::WithHint;
use crate::store::manifest::Manifest;
use crate::substitute::Resolved;

use super::remedies::{Remedy, What};

/// Makes sure that every file which the container had open or mapped is what it was, but for those
/// that something else takes the place of, and as far as a policy does not know better.
pub(super) fn ensure_same(
    manifest: &Manifest,
    bundle: &Bundle,
    resolved: &[Resolved],
    remedies: &[Remedy],
) -> Result<()> {
    let is_replaced = |held: &&HeldFile| resolved.iter().any(|one| one.file.name == held.path);
    let mut text = String::new();
    for held in manifest.held.iter().filter(|held| !is_replaced(held)) {
        let remedy = remedies.iter().find(|remedy| remedy.path == held.path);
        let Some(much) = how_much(held, remedy) else { continue };
        let differences = differences(held, bundle, much)?;
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

/// How much of a file is compared, after what a policy does about it: nothing of one that is made
/// again. To grow is not to change what was there.
fn how_much(held: &HeldFile, remedy: Option<&Remedy>) -> Option<HowMuch> {
    Some(match remedy.map(|remedy| remedy.what) {
        None => HowMuch::All,
        Some(What::Recreate { .. }) => return None,
        Some(What::Accept { size }) if size < held.size => HowMuch::Nothing,
        Some(What::Accept { .. } | What::Truncate { .. }) => HowMuch::Beginning,
    })
}

fn differences(held: &HeldFile, bundle: &Bundle, much: HowMuch) -> Result<Vec<String>> {
    let found = on_host(bundle, held.path.as_path());
    match found.and_then(|(directory, below)| open_below(&directory, &below)) {
        Some(file) => held.differences(&file, much),
        None => Ok(vec!["it is missing".to_owned()]),
    }
}

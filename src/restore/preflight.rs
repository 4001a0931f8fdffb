//! Looking at every file that CRIU will open by its path, before anything is changed.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use super::remedies::{self, Remedy};
use super::sites::FutureMounts;
use crate::criu::images::Images;
use crate::criu::images::entries::FileBody;
use crate::files::{FileId, preflight};
use crate::hint::WithHint;
use crate::policy::Policies;
use crate::store::manifest::Manifest;

/// Makes sure that CRIU will find every file as it was, but for those that are `replaced`, or that a
/// policy knows better.
pub(super) fn check(
    policies: &Policies,
    manifest: &Manifest,
    images: &Path,
    view: &FutureMounts<'_>,
    replaced: &[FileId],
) -> Result<Vec<Remedy>> {
    let mut images = Images::load(images).context("reading CRIU's images")?;
    compare_all_sizes(&mut images, manifest);
    // What CRIU has its own names for gets them when all else is put back.
    let named = |link: &Path| manifest.link_remaps.iter().find(|one| one.link.as_path() == link);
    let look = |path: &Path| view.look(named(path).map_or(path, |one| one.name.as_path()));
    let problems = preflight(&images, replaced, &look);
    let plan = remedies::plan(problems, policies, &images, manifest, view);
    let Some(first) = plan.left.first() else { return Ok(plan.remedies) };
    let mut text = String::from(if manifest.held.is_empty() {
        "some files are not as CRIU needs them:"
    } else {
        "some files are not what they were at the checkpoint:"
    });
    for problem in &plan.left {
        let _ = write!(text, "\n  {problem}");
    }
    for refused in &plan.refused {
        let _ = write!(text, "\n  a policy cannot help {refused}");
    }
    Err(anyhow!(text).hint(first.hint()))
}

/// CRIU does not look at the size of what was open for appending only; a checkpoint that recorded
/// the files does.
fn compare_all_sizes(images: &mut Images, manifest: &Manifest) {
    let sizes: HashMap<_, _> = manifest.held.iter().map(|held| (&held.path, held.size)).collect();
    for entry in &mut images.files {
        if let FileBody::Reg(reg) = &mut entry.body
            && let Some(size) = sizes.get(&reg.name)
        {
            reg.size = Some(*size);
        }
    }
}

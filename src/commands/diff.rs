//! `ocicle diff`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Format;
use super::naming::find;
use crate::bytes::ByteString;
use crate::container::Bundle;
use crate::hint::WithHint;
use crate::output;
use crate::restore::compare::{Compared, between, since};
use crate::snapshot::Change;
use crate::store::manifest::Manifest;
use crate::store::reference::Reference;
use crate::store::shelf::StoredVersion;
use crate::store::versions::{Store, Whose};

/// What can be asked of a diff.
#[derive(Debug, clap::Args)]
pub struct DiffOptions {
    /// A version of a container: web@v1
    #[arg(value_name = "CHECKPOINT")]
    before: Reference,
    /// Another one to compare it with; the files as they are now if unsaid
    #[arg(value_name = "CHECKPOINT")]
    after: Option<Reference>,
    /// The bundle that has the files of now; that of the checkpoint if unsaid
    #[arg(short, long, value_name = "DIR", conflicts_with = "after")]
    bundle: Option<PathBuf>,
    /// Exit with 1 if there are differences
    #[arg(long)]
    exit_code: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Lists what was added, changed and removed.
pub fn run(store: &Store, whose: Whose<'_>, options: &DiffOptions) -> Result<ExitCode> {
    let context = || format!("comparing {}", options.before);
    let (before, manifest) = open(store, &options.before, whose).with_context(context)?;
    let (compared, after) = match &options.after {
        Some(after) => {
            let (entry, other) =
                open(store, after, whose).with_context(|| format!("reading {after}"))?;
            let compared = between((&before.directory, &manifest), (&entry.directory, &other));
            (compared.with_context(context)?, name_of(&entry))
        }
        None => {
            let bundle = bundle_of(options.bundle.as_deref(), &manifest.container.bundle);
            let compared = bundle.and_then(|bundle| since(&before.directory, &manifest, &bundle));
            (compared.with_context(context)?, "now".to_owned())
        }
    };
    match options.format {
        Format::Table => print(&compared),
        Format::Json => output::json(&to_json(&compared, &name_of(&before), &after))?,
    }
    let differs = compared.iter().any(|part| !part.difference.changes.is_empty());
    Ok(if options.exit_code && differs { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The bundle that has the files of now. One that only the checkpoint names may be anybody's, and says
/// which files of the host are compared and listed.
fn bundle_of(said: Option<&Path>, recorded: &Path) -> Result<Bundle> {
    if let Some(said) = said {
        return Bundle::read(said);
    }
    Bundle::ensure_roots_alone(recorded)?;
    Bundle::read(recorded)
}

fn open(
    store: &Store,
    reference: &Reference,
    whose: Whose<'_>,
) -> Result<(StoredVersion, Manifest)> {
    let entry = find(store, whose, reference)?;
    let manifest = Manifest::read(&entry.directory)?;
    ensure!(manifest.is_complete(), "it was interrupted before its end");
    let takes = format!("it was made with --filesystem {}", manifest.filesystem);
    ensure_some(!manifest.parts.is_empty(), &takes)?;
    Ok((entry, manifest))
}

fn ensure_some(holds_files: bool, why: &str) -> Result<()> {
    let refuse = || -> Result<()> {
        ensure!(holds_files, "it holds no files: {why}");
        Ok(())
    };
    refuse().hint("compare with a checkpoint that was made with --filesystem snapshot")
}

fn name_of(entry: &StoredVersion) -> String {
    format!("{}@{}", entry.id, entry.version)
}

fn print(compared: &[Compared]) {
    for part in compared {
        for change in &part.difference.changes {
            let path = path_of(part, change);
            let what: Vec<String> = change.what.iter().map(ToString::to_string).collect();
            let what =
                if what.is_empty() { String::new() } else { format!("  ({})", what.join(", ")) };
            output::line(&format!("{} {path}{what}", change.fate.letter()));
        }
        part.difference.notes.iter().for_each(|note| output::remark(note));
    }
}

/// The path as the container sees it.
fn path_of(part: &Compared, change: &Change) -> ByteString {
    let path: &Path = change.path.as_path();
    if path.as_os_str().is_empty() {
        return part.destination.as_path().into();
    }
    part.destination.join(path).as_path().into()
}

fn to_json(compared: &[Compared], before: &str, after: &str) -> Value {
    let change = |part: &Compared, change: &Change| {
        json!({
            "path": path_of(part, change),
            "change": change.fate,
            "what": change.what,
        })
    };
    let changes: Vec<Value> = compared
        .iter()
        .flat_map(|part| part.difference.changes.iter().map(move |one| change(part, one)))
        .collect();
    let notes: Vec<&String> = compared.iter().flat_map(|part| &part.difference.notes).collect();
    json!({ "schema": 1, "before": before, "after": after, "changes": changes, "notes": notes })
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_of_a_bundle_that_is_not_roots_alone_are_not_compared() {
        let made = tempfile::tempdir().unwrap();
        let spec = r#"{ "ociVersion": "1.0.2", "root": { "path": "rootfs" } }"#;
        fs::create_dir(made.path().join("rootfs")).unwrap();
        fs::write(made.path().join("config.json"), spec).unwrap();
        let nobodys = Path::new("/nobody/named/this");
        fs::set_permissions(made.path(), Permissions::from_mode(0o777)).unwrap();
        let refused = format!("{:#}", bundle_of(None, made.path()).unwrap_err());
        assert!(refused.contains("is not root's alone"), "{refused}");
        bundle_of(Some(made.path()), nobodys).unwrap();
    }
}

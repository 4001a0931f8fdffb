//! `ocicle list`.

use anyhow::Result;
use serde_json::json;

use super::Format;
use crate::output::{self, TextTable};
use crate::store::manifest::{Manifest, PartRecord};
use crate::store::versions::{Store, StoredVersion};

/// What can be asked of a list.
#[derive(Debug, clap::Args)]
pub struct ListOptions {
    /// Only this container's
    #[arg(value_name = "CONTAINER")]
    id: Option<String>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

/// Prints the checkpoints of the store.
pub fn run(store: &Store, options: &ListOptions) -> Result<()> {
    let mut found = store.list()?;
    found.retain(|(entry, _)| options.id.as_ref().is_none_or(|id| entry.id == *id));
    if options.quiet {
        found.iter().for_each(|(entry, _)| output::line(&name_of(entry)));
    } else if options.format == Format::Json {
        let all: Vec<_> = found.iter().map(to_json).collect();
        output::json(&json!({ "schema": 1, "checkpoints": all }))?;
    } else {
        let mut table =
            TextTable::new(&["CHECKPOINT", "CREATED", "SIZE", "FROZEN", "LEFT", "RUNTIME"]);
        found.iter().for_each(|listed| table.row(row(listed)));
        table.print();
    }
    Ok(())
}

fn name_of(entry: &StoredVersion) -> String {
    format!("{}@{}", entry.id, entry.version)
}

fn row((entry, manifest): &(StoredVersion, Result<Manifest>)) -> Vec<String> {
    let name = name_of(entry);
    match manifest {
        Ok(manifest) => vec![
            name,
            output::local_time(manifest.created),
            output::bytes(size_of(manifest)),
            format!("{:.0} ms", manifest.freeze.milliseconds),
            manifest.left.as_str().to_owned(),
            manifest.programs.runtime.clone(),
        ],
        Err(error) => vec![name, format!("damaged: {error:#}")],
    }
}

fn to_json((entry, manifest): &(StoredVersion, Result<Manifest>)) -> serde_json::Value {
    let mut value = json!({
        "container": entry.id,
        "version": entry.version.to_string(),
        "directory": entry.directory,
    });
    match manifest {
        Ok(manifest) => {
            value["created"] = json!(manifest.created);
            value["size"] = json!(size_of(manifest));
            value["frozen_ms"] = json!(manifest.freeze.milliseconds);
            value["left"] = json!(manifest.left);
            value["runtime"] = json!(manifest.programs.runtime);
            value["criu"] = json!(manifest.programs.criu);
            value["parts"] = manifest.parts.iter().map(part).collect();
        }
        Err(error) => value["damaged"] = json!(format!("{error:#}")),
    }
    value
}

fn part(part: &PartRecord) -> serde_json::Value {
    json!({
        "destination": part.destination,
        "source": part.source,
        "taken": part.taken,
        "how": part.taken.as_ref().map(ToString::to_string),
    })
}

fn size_of(manifest: &Manifest) -> u64 {
    manifest.all_files().map(|record| record.size).sum()
}

//! `ocicle list`.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::json;

use super::Format;
use crate::bytes::ByteString;
use crate::output::{self, TextTable};
use crate::store::manifest::{Manifest, PartRecord};
use crate::store::versions::{Listing, Store};

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
    found.retain(|listed| options.id.as_ref().is_none_or(|id| listed.entry.id == *id));
    if options.quiet {
        found.iter().for_each(|listed| output::line(&name_of(listed)));
    } else if options.format == Format::Json {
        let all: Vec<_> = found.iter().map(to_json).collect();
        output::json(&json!({ "schema": 1, "checkpoints": all }))?;
    } else {
        print(&found);
    }
    Ok(())
}

/// Where their runtimes keep the containers is said as soon as that is more than one place.
fn print(found: &[Listing]) {
    let roots: BTreeSet<_> = found.iter().map(|listed| listed.shelf.root()).collect();
    let mut headings = vec!["CHECKPOINT", "CREATED", "SIZE", "FROZEN", "LEFT", "RUNTIME"];
    if roots.len() > 1 {
        headings.insert(1, "ROOT");
    }
    let mut table = TextTable::new(&headings);
    for listed in found {
        let mut cells = row(listed);
        if roots.len() > 1 {
            let root = listed.shelf.root().map(|root| ByteString::from(root).to_string());
            cells.insert(1, root.unwrap_or_else(|| "-".to_owned()));
        }
        table.row(cells);
    }
    table.print();
}

fn name_of(Listing { entry, .. }: &Listing) -> String {
    format!("{}@{}", entry.id, entry.version)
}

fn row(listed: &Listing) -> Vec<String> {
    let name = name_of(listed);
    match &listed.manifest {
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

fn to_json(Listing { shelf, entry, manifest }: &Listing) -> serde_json::Value {
    let mut value = json!({
        "container": entry.id,
        "root": shelf.root(),
        "names": shelf.names(),
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

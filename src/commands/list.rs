//! `ocicle list`.

use std::collections::BTreeSet;

use anyhow::Result;
use serde_json::json;

use super::Format;
use super::naming::find;
use crate::bytes::ByteString;
use crate::output::{self, TextTable};
use crate::store::manifest::{Manifest, PartRecord};
use crate::store::reference::Reference;
use crate::store::versions::{Listing, Store, Whose};

/// What can be asked of a list.
#[derive(Debug, clap::Args)]
pub struct ListOptions {
    /// Only this container's, or only this version: web, web@v1
    #[arg(value_name = "CONTAINER[@VERSION]")]
    reference: Option<Reference>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Show identifiers whole
    #[arg(long)]
    no_trunc: bool,
    /// Print names only
    #[arg(short, long)]
    quiet: bool,
}

/// Prints the checkpoints of the store.
pub fn run(store: &Store, options: &ListOptions) -> Result<()> {
    let mut found = store.list()?;
    if let Some(reference) = &options.reference {
        choose(&mut found, store, reference)?;
    }
    if options.quiet {
        found.iter().for_each(|listed| output::line(&name_of(listed)));
    } else if options.format == Format::Json {
        let all: Vec<_> = found.iter().map(to_json).collect();
        output::json(&json!({ "schema": 1, "checkpoints": all }))?;
    } else {
        print(&found, options.no_trunc);
    }
    Ok(())
}

/// Leaves those that are meant.
///
/// # Errors
/// When there is none.
fn choose(found: &mut Vec<Listing>, store: &Store, reference: &Reference) -> Result<()> {
    if store.has(&reference.id)? && !reference.has_version() {
        found.retain(|listed| listed.entry.id == reference.id);
        return Ok(());
    }
    let meant = find(store, Whose::Anyone, reference)?;
    let is_meant = |listed: &Listing| match reference.has_version() {
        true => listed.entry.directory == meant.directory,
        false => listed.entry.directory.parent() == meant.directory.parent(),
    };
    found.retain(is_meant);
    Ok(())
}

/// Where their runtimes keep the containers is said as soon as that is more than one place.
fn print(found: &[Listing], whole: bool) {
    let roots: BTreeSet<_> = found.iter().map(|listed| listed.shelf.root()).collect();
    let mut headings = vec!["CHECKPOINT", "CREATED", "SIZE", "PAUSE", "AFTER", "RUNTIME"];
    if roots.len() > 1 {
        headings.insert(1, "ROOT");
    }
    let mut table = TextTable::new(&headings);
    for listed in found {
        let mut cells = row(listed, whole);
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

fn row(listed: &Listing, whole: bool) -> Vec<String> {
    let Listing { shelf, entry, .. } = listed;
    let id = if whole { &entry.id } else { output::short_id(&entry.id) };
    let called = shelf.names().first().filter(|_| !whole);
    let called = called.map(|name| format!(" {}", ByteString::from(name.as_str())));
    let name = format!("{id}@{}{}", entry.version, called.unwrap_or_default());
    match &listed.manifest {
        Ok(manifest) => vec![
            name,
            output::local_time(manifest.created),
            output::bytes(size_of(manifest)),
            format!("{:.0} ms", manifest.freeze.milliseconds),
            manifest.left.as_str().to_owned(),
            short_version(&manifest.programs.runtime),
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

/// `runc version 1.3.6+ds1` as `runc 1.3.6`: what a distribution adds is in the JSON.
fn short_version(runtime: &str) -> String {
    let plain = ByteString::from(runtime).to_string().replace(" version ", " ");
    plain.split('+').next().unwrap_or_default().to_owned()
}

fn size_of(manifest: &Manifest) -> u64 {
    manifest.all_files().map(|record| record.size).sum()
}

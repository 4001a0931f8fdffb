//! `ocicle ps`.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::json;

use super::Format;
use crate::bytes::ByteString;
use crate::engines::{self, ContainerStatus, Listed};
use crate::output::{self, TextTable, Tone, toned};
use crate::store::versions::Store;

/// What can be asked of a list of containers.
#[derive(Debug, clap::Args)]
pub struct PsOptions {
    /// Show identifiers whole
    #[arg(long)]
    no_trunc: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Prints the containers of every engine.
pub fn run(store: &Store, root: Option<&Path>, options: &PsOptions) -> Result<()> {
    let found = engines::list(store, root).context("listing the containers")?;
    if options.format == Format::Json {
        return output::json(&json!({ "schema": 1, "containers": found }));
    }
    let headings = ["ENGINE", "ID", "NAME", "STATUS", "FROZEN", "RUNTIME", "CHECKPOINTS"];
    let mut table = TextTable::new(&headings);
    found.iter().for_each(|listed| table.row(row(listed, options.no_trunc)));
    table.print();
    Ok(())
}

fn row(listed: &Listed, whole: bool) -> Vec<String> {
    let id = if whole { &listed.id } else { output::short_id(&listed.id) };
    let user = listed.user.map_or(String::new(), |user| format!(" (user {user})"));
    vec![
        format!("{}{user}", listed.engine.as_str()),
        if id.is_empty() { "-".to_owned() } else { id.to_owned() },
        name_of(listed),
        status_of(listed),
        if listed.frozen { toned(Tone::Warning, "frozen") } else { "-".to_owned() },
        listed.runtime.unwrap_or("-").to_owned(),
        checkpoints_of(listed),
    ]
}

/// The names of its checkpoints; of more than three, the first, the last and how many.
fn checkpoints_of(listed: &Listed) -> String {
    let names: Vec<String> = listed
        .checkpoints
        .iter()
        .map(|checkpoint| ByteString::from(&*checkpoint.name).to_string())
        .collect();
    match &names[..] {
        [] => "-".to_owned(),
        [first, .., last] if names.len() > 3 => format!("{first} … {last} ({})", names.len()),
        few => few.join(","),
    }
}

/// The name with what it belongs to: a pod, or a namespace of containerd's.
fn name_of(listed: &Listed) -> String {
    let name = listed.name.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string);
    match (&listed.pod, &listed.namespace) {
        (Some(pod), _) => format!("{pod}/{name}"),
        (None, Some(namespace)) if listed.name.is_none() => format!("{namespace}/{}", listed.id),
        _ => name,
    }
}

/// Whether it runs, and what of it cannot be read.
fn status_of(listed: &Listed) -> String {
    let (status, between) = (
        status(listed.status),
        match listed.status {
            ContainerStatus::Unreadable => ": ",
            _ => "; ",
        },
    );
    match &listed.problem {
        Some(problem) => format!("{status}{between}{}", ByteString::from(&**problem)),
        None => status,
    }
}

fn status(status: ContainerStatus) -> String {
    match status {
        ContainerStatus::Created => toned(Tone::Warning, "created"),
        ContainerStatus::Running => toned(Tone::Good, "running"),
        ContainerStatus::Paused => toned(Tone::Warning, "paused"),
        ContainerStatus::Stopped => toned(Tone::Faint, "stopped"),
        ContainerStatus::Unreadable => toned(Tone::Warning, "unreadable"),
    }
}

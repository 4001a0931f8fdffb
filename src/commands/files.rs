//! `ocicle files`.

use anyhow::{Context, Result};

use super::Machine;
use super::naming::{Named, find};
use crate::files::by_process::{self, Branch, HeldHere};
use crate::files::{OpenFile, Table, write_user_info};
use crate::freezer::Still;
use crate::hint::WithHint;
use crate::output::{self, tree::Node};
use crate::store::manifest::Manifest;
use crate::store::reference::Reference;
use crate::store::versions::{Store, Whose};

/// What can be asked of the open files.
#[derive(Debug, clap::Args)]
pub struct FilesOptions {
    /// A container that runs, or a checkpoint: web, web@v2
    #[arg(value_name = "CONTAINER[@VERSION]")]
    reference: Reference,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    pub format: FilesFormat,
    /// Draw the processes with what they have open, and what they share
    #[arg(long, conflicts_with = "format")]
    tree: bool,
}

/// How open files are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum FilesFormat {
    /// Columns
    #[default]
    Table,
    /// JSON
    Json,
    /// A line for each open file: type|identifier|name|pid:fd,pid:fd
    UserInfo,
}

/// Prints the open files of a running container or of a checkpoint.
pub fn run(
    options: &FilesOptions,
    store: &Store,
    whose: Whose<'_>,
    machine: impl FnOnce() -> Result<Machine>,
) -> Result<()> {
    let reference = &options.reference;
    if options.tree {
        return draw(reference, store, whose, machine)
            .with_context(|| format!("drawing the open files of {}", reference.id));
    }
    let table = if reference.has_version() {
        of_checkpoint(store, reference, whose)
    } else {
        let Named { machine, id } = machine()?.named(&reference.id)?;
        of_container(&machine, &id).map_err(|error| naming_a_version(store, reference, error))
    };
    let table = table.with_context(|| format!("listing the open files of {}", reference.id))?;
    match options.format {
        FilesFormat::Json => output::json(&serde_json::to_value(&table)?)?,
        FilesFormat::UserInfo => output::text(&write_user_info(&table)),
        FilesFormat::Table => {
            if !reference.has_version() {
                output::note(
                    "the identifiers that `ocicle restore -s` takes are a checkpoint's, not these",
                );
            }
            let mut columns = output::TextTable::new(&OpenFile::HEADINGS);
            table.files.iter().for_each(|file| columns.row(file.row().to_vec()));
            columns.print();
        }
    }
    Ok(())
}

fn draw(
    reference: &Reference,
    store: &Store,
    whose: Whose<'_>,
    machine: impl FnOnce() -> Result<Machine>,
) -> Result<()> {
    let (tasks, table) = if reference.has_version() {
        let tasks = by_process::tasks_of_images(&find(store, whose, reference)?.directory)?;
        (tasks, of_checkpoint(store, reference, whose)?)
    } else {
        let Named { machine, id } = machine()?.named(&reference.id)?;
        let container =
            machine.discover(&id).map_err(|error| naming_a_version(store, reference, error))?;
        let processes = container.dumped_processes()?;
        (by_process::tasks_of(&processes), Table::from_processes(&processes, Still::Running)?)
    };
    by_process::arrange(&tasks, &table).into_iter().for_each(|branch| node(branch).print());
    Ok(())
}

/// A process, its descriptors with their open files, and its children.
fn node(branch: Branch) -> Node {
    let files = branch.files.iter().map(|held| Node::leaf(leaf(held)));
    let below = files.chain(branch.children.into_iter().map(node)).collect();
    Node { text: format!("{} {}", branch.task.pid, branch.task.name), below }
}

/// `3 → [7] reg /data/log O_WRONLY, shared with 6:3`.
fn leaf(held: &HeldHere) -> String {
    let list = |all: Vec<String>| all.join(",");
    let fds = list(held.fds.iter().map(ToString::to_string).collect());
    let id = format!("[{}]", held.file);
    let id = if held.is_shared() { output::strong(&id) } else { id };
    let others = list(held.others.iter().map(ToString::to_string).collect());
    let shared = if others.is_empty() { others } else { format!(", shared with {others}") };
    format!("{fds} → {id} {}{shared}", held.text)
}

/// Advises to name a version of a container that does not run, if it has one.
fn naming_a_version(store: &Store, reference: &Reference, error: anyhow::Error) -> anyhow::Error {
    let id = &reference.id;
    match find(store, Whose::Anyone, reference) {
        Ok(_) => {
            error.hint(format!("for its checkpoint, name a version: ocicle files {id}@latest"))
        }
        Err(_) => error,
    }
}

fn of_container(machine: &Machine, id: &str) -> Result<Table> {
    let container = machine.discover(id)?;
    Table::from_processes(&container.dumped_processes()?, Still::Running)
}

fn of_checkpoint(store: &Store, reference: &Reference, whose: Whose<'_>) -> Result<Table> {
    let directory = find(store, whose, reference)?.directory;
    let manifest = Manifest::read(&directory)?;
    match manifest.files.iter().find(|record| record.name == crate::files::TABLE) {
        Some(record) => {
            record.verify(&directory)?;
            Table::read(&directory)
        }
        // It is not packed yet.
        None => Table::from_images(&directory),
    }
}

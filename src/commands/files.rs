//! `ocicle files`.

use anyhow::{Context, Result};

use super::Machine;
use crate::container::Container;
use crate::files::{OpenFile, Table, write_user_info};
use crate::hint::WithHint;
use crate::output;
use crate::store::manifest::Manifest;
use crate::store::versions::{Reference, Store};

/// What can be asked of the open files.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// A container that runs, or a checkpoint: web, web@v2
    #[arg(value_name = "CONTAINER[@VERSION]")]
    reference: Reference,
    /// How to print them
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
enum Format {
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
    options: &Options,
    store: &Store,
    machine: impl FnOnce() -> Result<Machine>,
) -> Result<()> {
    let reference = &options.reference;
    let table = if reference.version.is_some() {
        of_checkpoint(store, reference)
    } else {
        of_container(&machine()?, &reference.id)
            .hint(format!("for a checkpoint, name its version: ocicle files {}@v1", reference.id))
    };
    let table = table.with_context(|| format!("listing the open files of {}", reference.id))?;
    match options.format {
        Format::Json => output::json(&serde_json::to_value(&table)?)?,
        Format::UserInfo => output::text(&write_user_info(&table)),
        Format::Table => {
            if reference.version.is_none() {
                output::note(
                    "the identifiers that `ocicle restore -s` takes are a checkpoint's, not these",
                );
            }
            let mut columns = output::Table::new(&OpenFile::HEADINGS);
            table.files.iter().for_each(|file| columns.row(file.row().to_vec()));
            columns.print();
        }
    }
    Ok(())
}

fn of_container(machine: &Machine, id: &str) -> Result<Table> {
    let container = Container::discover(&machine.runtime, id)?;
    Table::from_processes(&container.dumped_processes()?, false)
}

fn of_checkpoint(store: &Store, reference: &Reference) -> Result<Table> {
    let directory = store.find(reference)?.directory;
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

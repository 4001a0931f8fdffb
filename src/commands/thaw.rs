//! `ocicle thaw`.

use anyhow::{Context, Result};

use super::Machine;
use crate::container::Container;
use crate::output;
use crate::store::lock::heal;

/// What can be asked of a thaw.
#[derive(Debug, clap::Args)]
pub struct ThawOptions {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: String,
}

/// Lets a container run, whoever froze it.
pub fn run(machine: &Machine, options: &ThawOptions) -> Result<()> {
    let id = &options.id;
    // What is noted of it would be thawed once more, behind the back of who freezes it next.
    heal(id)?;
    let thaw = || Container::discover(&machine.runtime, id)?.freezer.thaw();
    thaw().with_context(|| format!("thawing {id}"))?;
    output::line(id);
    Ok(())
}

//! `ocicle thaw`.

use anyhow::{Context, Result};

use super::Machine;
use super::naming::Named;
use crate::freezer::FreezerState;
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
    let Named { machine, id } = machine.named(&options.id)?;
    let id = &id;
    // What is noted of it would be thawed once more, behind the back of who freezes it next.
    heal(id)?;
    let thaw = || -> Result<bool> {
        let freezer = machine.discover(id)?.freezer;
        let was_frozen = freezer.state()? != Some(FreezerState::Thawed);
        freezer.thaw()?;
        Ok(was_frozen)
    };
    if !thaw().with_context(|| format!("thawing {id}"))? {
        output::remark(&format!("{id} was not frozen"));
    }
    output::line(id);
    Ok(())
}

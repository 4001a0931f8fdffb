//! The commands of `ocicle`, one module each: options, work, what is printed.

pub mod check;
pub mod checkpoint;
pub mod diff;
pub mod doctor;
pub mod files;
pub mod generate;
pub mod inspect;
pub mod list;
mod managed;
pub mod naming;
pub mod ps;
pub mod restore;
pub mod thaw;
pub mod with;

use crate::config::Config;
use crate::runtime::Runtime;
use crate::store::versions::Store;

/// What commands that touch containers work with.
#[derive(Clone, Debug)]
pub struct Machine {
    /// The real runtime.
    pub runtime: Runtime,
    /// Whether it is the one that the command line names.
    pub runtime_is_chosen: bool,
    /// The administrator's configuration.
    pub config: Config,
    /// Where checkpoints are.
    pub store: Store,
}

/// How a list is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns
    #[default]
    Table,
    /// JSON
    Json,
}

//! What can be typed.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::commands::{
    check, checkpoint, diff, doctor, files, generate, inspect, list, ps, restore, thaw, with,
};

/// Checkpoint and restore containers of runc and crun: memory and files of one instant.
#[derive(Debug, Parser)]
#[command(name = "ocicle", version, max_term_width = 100)]
pub(super) struct Arguments {
    /// The runtime's state directory, as its own --root
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// The real runtime: a path, or a name on PATH
    #[arg(long, global = true, value_name = "RUNTIME")]
    pub runtime: Option<PathBuf>,

    /// Where checkpoints are kept [default: /var/lib/ocicle]
    #[arg(long, global = true, value_name = "DIR")]
    pub store: Option<PathBuf>,

    /// Say what is being done
    #[arg(long, global = true)]
    pub debug: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say whether a checkpoint would work, and what would become of every open file
    Check(check::CheckOptions),
    /// Keep a container's memory and files as its next version
    Checkpoint(checkpoint::CheckpointOptions),
    /// Put a container's files back and let it go on from a checkpoint
    Restore(restore::RestoreOptions),
    /// Lend descriptors, a terminal and rules to the restore that another command causes
    With(with::WithOptions),
    /// List the open files of a container or of a checkpoint
    Files(files::FilesOptions),
    /// List what was added, changed and removed since a checkpoint, or between two
    Diff(diff::DiffOptions),
    /// Show what is in a checkpoint, an archive of one, or an image of one
    Inspect(inspect::InspectOptions),
    /// List the containers of every engine on this machine
    Ps(ps::PsOptions),
    /// List checkpoints
    #[command(visible_alias = "ls")]
    List(list::ListOptions),
    /// Let a frozen container run
    Thaw(thaw::ThawOptions),
    /// Tell whether this machine has what ocicle needs
    Doctor(doctor::DoctorOptions),
    /// Write man pages or completions
    #[command(hide = true)]
    Generate(generate::GenerateOptions),
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        super::Arguments::command().debug_assert();
    }
}

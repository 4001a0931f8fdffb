//! What can be typed.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::commands::files::FilesFormat;
use crate::commands::{
    Format, check, checkpoint, diff, doctor, files, generate, inspect, list, ps, restore, thaw,
    with,
};

/// The heading of the options that every command has.
const GLOBAL: &str = "Global options";

/// Checkpoint and restore containers of runc and crun: memory and files of one instant.
#[derive(Debug, Parser)]
#[command(name = "ocicle", version, max_term_width = 100)]
pub(super) struct Arguments {
    /// The runtime's state directory, as its own --root
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DIR")]
    pub root: Option<PathBuf>,

    /// The real runtime: a path, or a name on PATH
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "RUNTIME")]
    pub runtime: Option<PathBuf>,

    /// Where checkpoints are kept [default: /var/lib/ocicle]
    #[arg(long, global = true, help_heading = GLOBAL, value_name = "DIR")]
    pub store: Option<PathBuf>,

    /// Say on standard error what is being done, and how long the steps took
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub debug: bool,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Say whether a checkpoint would work, and what would become of every open file
    #[command(
        after_help = "Examples:\n  ocicle check web\n  ocicle check web --tcp-established --format json"
    )]
    Check(check::CheckOptions),
    /// Keep a container's memory and files as its next version
    #[command(
        after_help = "Examples:\n  ocicle checkpoint web --leave-running\n  ocicle checkpoint web --volumes all --keep 3"
    )]
    Checkpoint(checkpoint::CheckpointOptions),
    /// Put a container's files back and let it go on from a checkpoint
    #[command(
        after_help = "Examples:\n  ocicle restore web@v1\n  ocicle restore web -s /data/log=file:/var/log/web.log,append --dry-run"
    )]
    Restore(restore::RestoreOptions),
    /// Lend descriptors, a terminal and rules to the restore that another command causes
    #[command(
        after_help = "Examples:\n  ocicle with -t -- podman container restore web\n  ocicle with --container web -s /data/log=null -- docker start --checkpoint c1 web"
    )]
    With(with::WithOptions),
    /// List the open files of a container or of a checkpoint
    #[command(
        after_help = "Examples:\n  ocicle files web --tree\n  ocicle files web@latest --format user-info"
    )]
    Files(files::FilesOptions),
    /// List what was added, changed and removed since a checkpoint, or between two
    #[command(
        after_help = "Examples:\n  ocicle diff web@v1\n  ocicle diff web@v1 web@v2 --exit-code"
    )]
    Diff(diff::DiffOptions),
    /// Show what is in a checkpoint, an archive of one, or an image of one
    #[command(
        after_help = "Examples:\n  ocicle inspect web@v1 --timeline\n  ocicle inspect web.tar.zst --format json"
    )]
    Inspect(inspect::InspectOptions),
    /// List the containers of every engine on this machine
    #[command(after_help = "Examples:\n  ocicle ps\n  ocicle ps --no-trunc --format json")]
    Ps(ps::PsOptions),
    /// List checkpoints
    #[command(visible_alias = "ls")]
    #[command(after_help = "Examples:\n  ocicle list\n  ocicle list web --quiet")]
    List(list::ListOptions),
    /// Let a frozen container run
    #[command(
        after_help = "Examples:\n  ocicle thaw web\n  ocicle thaw --root /run/containerd/runc/default web"
    )]
    Thaw(thaw::ThawOptions),
    /// Tell whether this machine has what ocicle needs
    #[command(after_help = "Examples:\n  ocicle doctor\n  ocicle doctor --quiet")]
    Doctor(doctor::DoctorOptions),
    /// Write man pages or completions
    #[command(hide = true)]
    Generate(generate::GenerateOptions),
}

impl Command {
    /// Whether what it prints is read by a program, and so its errors are.
    pub(super) fn is_for_programs(&self) -> bool {
        match self {
            Self::Check(options) => options.format == Format::Json,
            Self::Checkpoint(options) => options.format == Format::Json,
            Self::Restore(options) => options.format == Format::Json,
            Self::Files(options) => options.format == FilesFormat::Json,
            Self::Diff(options) => options.format == Format::Json,
            Self::Inspect(options) => options.format == Format::Json,
            Self::Ps(options) => options.format == Format::Json,
            Self::List(options) => options.format == Format::Json,
            Self::Doctor(options) => options.format == Format::Json,
            Self::With(_) | Self::Thaw(_) | Self::Generate(_) => false,
        }
    }

    /// Looks at what the command line alone shows.
    pub(super) fn check(&self) -> Result<()> {
        match self {
            Self::Check(options) => options.check(),
            Self::Checkpoint(options) => options.check(),
            Self::Restore(options) => options.check(),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    #[test]
    fn every_example_is_a_command_line() {
        let program = super::Arguments::command();
        for command in program.get_subcommands().filter(|command| !command.is_hide_set()) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let examples: Vec<&str> =
                help.lines().map(str::trim).filter(|line| line.starts_with("ocicle ")).collect();
            assert_eq!(examples.len(), 2, "{}", command.get_name());
            for example in examples {
                let parsed = super::Arguments::try_parse_from(example.split(' '));
                let parsed = parsed.unwrap_or_else(|error| panic!("{example}: {error}"));
                parsed.command.check().unwrap();
            }
        }
    }

    #[test]
    fn the_command_line_is_sound() {
        super::Arguments::command().debug_assert();
    }
}

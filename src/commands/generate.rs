//! `ocicle generate`: what a package holds beside the programs, made of the command line itself.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::Shell;

/// What is to be made.
#[derive(Debug, clap::Args)]
pub struct GenerateOptions {
    /// Man pages or completions
    #[arg(value_enum)]
    what: What,
    /// The directory that gets them
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum What {
    /// A page for `ocicle`, one for each of its commands, one for `ocicle-runtime`
    Man,
    /// A directory for each shell
    Completions,
}

/// The page of the program that has no command line of its own.
const RUNTIME_PAGE: &str = include_str!("../../docs/ocicle-runtime.8");

/// Writes them.
pub fn run<A: CommandFactory>(options: &GenerateOptions) -> Result<()> {
    let directory = &options.directory;
    fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    match options.what {
        What::Man => write_pages(A::command(), directory).context("writing the man pages"),
        What::Completions => {
            write_completions(A::command(), directory).context("writing the completions")
        }
    }
}

fn write_pages(command: clap::Command, directory: &Path) -> Result<()> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let visible: Vec<clap::Command> =
        command.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect();
    write_page(command, directory)?;
    visible.into_iter().try_for_each(|subcommand| write_page(subcommand, directory))?;
    fs::write(directory.join("ocicle-runtime.8"), RUNTIME_PAGE)?;
    Ok(())
}

fn write_page(command: clap::Command, directory: &Path) -> Result<()> {
    // `ocicle-files` of a subcommand that was built.
    let name = command.get_display_name().unwrap_or(command.get_name()).to_owned();
    let page = clap_mangen::Man::new(command).title(name.to_uppercase()).section("8");
    let mut file = fs::File::create(directory.join(format!("{name}.8")))?;
    page.render(&mut file)?;
    Ok(())
}

/// In the directories where each shell looks for them, below its own share.
fn write_completions(mut command: clap::Command, directory: &Path) -> Result<()> {
    for (shell, below) in [
        (Shell::Bash, "bash-completion/completions/ocicle"),
        (Shell::Zsh, "zsh/site-functions/_ocicle"),
        (Shell::Fish, "fish/vendor_completions.d/ocicle.fish"),
    ] {
        let path = directory.join(below);
        fs::create_dir_all(path.parent().unwrap_or(directory))?;
        let mut file = fs::File::create(&path)?;
        clap_complete::generate(shell, &mut command, "ocicle", &mut file);
    }
    Ok(())
}

//! The command line of `ocicle`.

mod arguments;
#[cfg(test)]
mod hints;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;

use crate::commands::{self, Machine};
use crate::config::Config;
use crate::locations;
use crate::output;
use crate::runtime::{Runtime, resolved};
use crate::store::versions::{Store, Whose};
use crate::sys::process::InheritedFds;
use arguments::{Arguments, Command};

/// The exit status for a command line that means nothing, as clap has it.
const MISUSE: u8 = 2;

/// The operator's program.
pub fn main() -> ExitCode {
    let inherited = InheritedFds::capture();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    output::start_log(arguments.debug);
    // What the command line alone shows is wrong before anything is looked at.
    let tell = match arguments.command.is_for_programs() {
        true => output::error_as_json,
        false => output::error,
    };
    if let Err(error) = arguments.command.check() {
        tell(&error);
        return MISUSE.into();
    }
    let done = inherited.and_then(|inherited| run(arguments, inherited));
    match done.and_then(|status| output::finish().map(|()| status)) {
        Ok(status) => status,
        Err(error) => {
            tell(&error);
            ExitCode::FAILURE
        }
    }
}

/// Prints what clap has to say: help and the version to standard output, mistakes to standard error.
fn usage(said: &clap::Error) -> ExitCode {
    let printed = said.print();
    let is_wanted = |error: &std::io::Error| error.kind() != std::io::ErrorKind::BrokenPipe;
    match printed {
        Err(error) if !said.use_stderr() && is_wanted(&error) => {
            output::error(&anyhow::Error::new(error).context("writing to standard output"));
            ExitCode::FAILURE
        }
        _ => u8::try_from(said.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from),
    }
}

fn run(arguments: Arguments, inherited: InheritedFds) -> Result<ExitCode> {
    let config = Config::load();
    if let Command::Doctor(options) = &arguments.command {
        let store =
            config.as_ref().map_or(locations::STORE.as_ref(), |config| config.store.as_path());
        let store = arguments.store.as_deref().unwrap_or(store);
        return commands::doctor::run(&config, store, options);
    }
    let config = config?;
    let store = arguments.store.as_deref().unwrap_or(&config.store);
    // The runtime changes its directory, and CRIU does.
    let store = Store::at(&std::path::absolute(store).context("finding the store")?);
    let machine = || -> Result<Machine> {
        let mut globals = Vec::new();
        if let Some(root) = &arguments.root {
            globals.extend(["--root".into(), root.clone().into_os_string()]);
        }
        let runtime = match &arguments.runtime {
            Some(name) => {
                Runtime::at(Runtime::named(name.as_os_str()).context("the runtime of --runtime")?)
            }
            None => Runtime::find(config.runtime.as_deref())?,
        };
        Ok(Machine {
            runtime: runtime.with_globals(globals),
            runtime_is_chosen: arguments.runtime.is_some(),
            config: config.clone(),
            store: store.clone(),
        })
    };
    let root = arguments.root.as_deref().map(resolved);
    let whose = root.as_deref().map_or(Whose::Anyone, Whose::Of);
    match arguments.command {
        Command::Check(options) => return commands::check::run(&machine()?, &options),
        Command::With(options) => return commands::with::run(&options, &inherited),
        Command::Diff(options) => return commands::diff::run(&store, whose, &options),
        Command::Checkpoint(options) => commands::checkpoint::run(&machine()?, &options),
        Command::Restore(options) => commands::restore::run(&machine()?, &options, inherited),
        Command::Files(options) => commands::files::run(&options, &store, whose, machine),
        Command::Inspect(options) => commands::inspect::run(&store, whose, &options),
        Command::Ps(options) => commands::ps::run(&store, arguments.root.as_deref(), &options),
        Command::List(options) => commands::list::run(&store, &options),
        Command::Thaw(options) => commands::thaw::run(&machine()?, &options),
        Command::Generate(options) => commands::generate::run::<Arguments>(&options),
        Command::Doctor(_) => Ok(()),
    }?;
    Ok(ExitCode::SUCCESS)
}

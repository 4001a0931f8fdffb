//! `ocicle restore`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::checkpoint::CriuOptions;
use super::naming::find as find_in;
use super::{Format, Machine, managed};
use crate::container::{Bundle, Volumes};
use crate::lend::{Handed, Lent};
use crate::machine;
use crate::output;
use crate::output::progress::{Bar, Shown};
use crate::policy::parse_typed;
use crate::restore::{self, Forecast};
use crate::store::lock::ContainerLock;
use crate::store::manifest::{self, Manifest, Trust};
use crate::store::reference::{Reference, Version, Which};
use crate::store::shelf::StoredVersion;
use crate::store::versions::Whose;
use crate::substitute::{Origin, parse_each};
use crate::sys::named::Names;
use crate::sys::process::InheritedFds;

/// What can be asked of a restore.
#[derive(Debug, clap::Args)]
pub struct RestoreOptions {
    /// The container, or one of its versions: web, web@v2
    #[arg(value_name = "CONTAINER")]
    reference: Reference,
    /// The version; the newest if unsaid
    #[arg(id = "which", value_name = "VERSION")]
    version: Option<Version>,
    /// Replace an open file: SELECTOR=SOURCE or IDENTIFIER,FD, such as 7=fd:3, 1:3=null,
    /// /var/log/x=file:/tmp/x,append, remote:*:5432=reset (docs/substitution.md has all forms)
    #[arg(short, long, value_name = "RULE")]
    substitute: Vec<String>,
    /// What to do about files that are missing, have grown or have shrunk, where the snapshot does
    /// not put them back: missing=recreate,grown=truncate,shrunk=accept:/var/log/** (docs/policies.md)
    #[arg(long, value_name = "POLICY[:PATH]")]
    policy: Vec<String>,
    /// Give the container this terminal in place of each of its own
    #[arg(short, long)]
    terminal: bool,
    /// Hand over descriptors to the container's own rules: those of its annotations may name no others
    #[arg(long, value_name = "FD[,FD]")]
    lend: Vec<Lent>,
    /// Show what would be done, which rule wins for each open file and why, and do nothing
    #[arg(long)]
    dry_run: bool,
    /// How the result is printed, or what would be done
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// The bundle of the new container; that of the old one if unsaid and if nobody but root can have
    /// written it
    #[arg(short, long, value_name = "DIR")]
    bundle: Option<PathBuf>,
    /// The volumes that are put back, and no others: named, all, none, or paths in the container,
    /// separated by commas
    #[arg(long, value_name = "WHICH")]
    volumes: Option<Volumes>,
    /// Read all of the checkpoint to know that it is whole, even what was not written since
    #[arg(long)]
    verify: bool,
    /// Where to write the number of the container's first process
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// A socket that gets the master of the container's terminal
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "HOW")]
    progress: Shown,
    /// Start the container although an engine looks after it, which will not know that it runs
    #[arg(long, conflicts_with = "dry_run")]
    force: bool,
    #[command(flatten)]
    criu: CriuOptions,
}

impl RestoreOptions {
    /// Looks at what the command line alone shows.
    pub fn check(&self) -> Result<()> {
        let context = || format!("restoring {}", self.reference.id);
        parse_each(&self.substitute, &Origin::CommandLine).with_context(context)?;
        let mut policies = self.policy.iter();
        policies.try_for_each(|text| parse_typed(text).map(drop)).with_context(context)
    }
}

/// Restores a container in the background, and prints its name.
pub fn run(machine: &Machine, options: &RestoreOptions, inherited: InheritedFds) -> Result<()> {
    let context = || format!("restoring {}", options.reference.id);
    machine::ensure_capable().with_context(context)?;
    let (machine, entry) = find(machine, options).with_context(context)?;
    let (machine, id) = (&machine, &entry.id);
    let held = ContainerLock::take(id).with_context(context)?;
    ensure!(manifest::is_there(&entry.directory), "restoring {id}: {} is gone", entry.version);
    let bundle = match &options.bundle {
        Some(bundle) => bundle.clone(),
        None => bundle_of(&entry).with_context(context)?,
    };
    if !options.force && !options.dry_run {
        managed::ensure_may_start(id, &Bundle::read(&bundle).with_context(context)?)
            .with_context(context)?;
    }
    let config = &machine.config;
    let images = entry.directory.clone();
    let configured = config.restore(machine.runtime.clone(), id, images, bundle);
    let request = restore::RestoreRequest {
        work: if options.dry_run { None } else { Some(entry.work()?) },
        flags: config.criu.complete(flags(options)),
        rules: rules(options),
        policies: options.policy.clone(),
        volumes: configured.volumes.asked(options.volumes.clone()),
        handed: Handed::new(&inherited, &options.lend, &Names::of_environment(), 0)
            .with_context(context)?,
        inherited,
        trust: if options.verify { Trust::Nothing } else { Trust::Unwritten },
        drivers: config.drivers(machine.store.root()),
        replace_stopped: true,
        ..configured
    };
    if options.dry_run {
        let forecast = restore::dry_run(&request, &held).with_context(context)?;
        return print(&forecast, options.format);
    }
    let ended = restore::restore(&request, &held, &Bar::new("restoring", options.progress))
        .with_context(context)?;
    if !ended.success() {
        bail!("restoring {id}: {} restore ended with {ended}", machine.runtime.name());
    }
    let name = format!("{id}@{}", entry.version);
    match options.format {
        Format::Table => output::line(&name),
        Format::Json => output::json(&json!({
            "schema": 1,
            "restored": name,
            "container": id,
            "version": entry.version.to_string(),
            "pid": machine.runtime.state(id).ok().map(|state| state.pid),
        }))?,
    }
    Ok(())
}

/// The version that is asked for: of this container, or, with a bundle for it, of another one.
fn find(machine: &Machine, options: &RestoreOptions) -> Result<(Machine, StoredVersion)> {
    let Reference { id, version } = options.reference.clone();
    let reference = Reference { id, version: options.version.map_or(version, Which::Numbered) };
    let own = machine.stored(&reference);
    match &options.bundle {
        Some(_) if own.is_err() => {
            let entry = find_in(&machine.store, Whose::Anyone, &reference)?;
            Ok((machine.clone(), entry))
        }
        _ => own,
    }
}

/// The bundle that a checkpoint names. It may have been made elsewhere, by anybody, and a bundle has
/// hooks, which root runs.
fn bundle_of(entry: &StoredVersion) -> Result<PathBuf> {
    let bundle = Manifest::read(&entry.directory)?.container.bundle;
    Bundle::ensure_roots_alone(&bundle)?;
    Ok(bundle)
}

fn rules(options: &RestoreOptions) -> Vec<String> {
    let terminal = options.terminal.then(|| "tty=tty".to_owned());
    options.substitute.iter().cloned().chain(terminal).collect()
}

fn print(forecast: &Forecast, format: Format) -> Result<()> {
    if format == Format::Json {
        return output::json(&serde_json::to_value(forecast)?);
    }
    let mut table = output::TextTable::new(&Forecast::HEADINGS);
    forecast.rows().for_each(|row| table.row(row.to_vec()));
    table.print();
    forecast.lines().for_each(|line| output::line(&line));
    Ok(())
}

fn flags(options: &RestoreOptions) -> Vec<std::ffi::OsString> {
    let mut flags = options.criu.flags();
    flags.push("--detach".into());
    for (flag, value) in
        [("--pid-file", &options.pid_file), ("--console-socket", &options.console_socket)]
    {
        if let Some(value) = value {
            flags.extend([flag.into(), value.into()]);
        }
    }
    flags
}

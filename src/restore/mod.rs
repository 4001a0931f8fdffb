//! A restore: the files put back, some open files replaced, then the processes.
//!
//! ```text
//! manifest and digests → rules and their files → root file system's identity and plan
//!   → preflight of every file CRIU will open, and policies   (up to here nothing is changed)
//!   → reconcile the root file system → a view of the images → the runtime's restore,
//!     whose CRIU gets the replacements at the door
//! ```

mod bounds;
pub mod compare;
mod console;
mod crun;
mod dry_run;
mod held;
mod policies;
mod preflight;
mod reconcile;
mod rules;
mod run;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::container::{Bundle, Identity, Volumes};
use crate::criu::door::Door;
use crate::files::{FileId, FileKind, OpenFile, Table};
use crate::hint::WithHint;
use crate::machine;
use crate::policy::FilePolicy;
use crate::runtime::exit::Ended;
use crate::runtime::{Runtime, ended};
use crate::snapshot::{self, Progress};
use crate::store::lock::Lock;
use crate::store::manifest::{self, Manifest, State, Trust};
use crate::store::{STAGING, finish};
use crate::substitute::{
    self, Allow, Around, Callers, Prepared, Resolved, Site, Substitution, ensure_allowed,
};
use crate::sys::process::InheritedFds;

pub use dry_run::{Changes, Fate, Forecast, Said, Substitute, dry_run};

use console::Console;
use policies::Remedy;
use reconcile::{Part, Policy};
use run::View;

/// What is asked for.
#[derive(Debug)]
pub struct Request {
    /// The real runtime, with the global flags of the call.
    pub runtime: Runtime,
    /// The container to make.
    pub id: String,
    /// The checkpoint.
    pub images: PathBuf,
    /// Where CRIU's log goes; the runtime's choice if unsaid.
    pub work: Option<PathBuf>,
    /// The bundle of the new container.
    pub bundle: PathBuf,
    /// The runtime's own flags, but for the three directories.
    pub flags: Vec<OsString>,
    /// Rules of the command line.
    pub rules: Vec<String>,
    /// Rules of the configuration.
    pub configured: Vec<Substitution>,
    /// Policies of the command line.
    pub policies: Vec<String>,
    /// Policies of the configuration.
    pub configured_policies: Vec<FilePolicy>,
    /// Which volumes are put back, whatever else says so.
    pub volumes: Option<Volumes>,
    /// Which are when neither that nor the container's annotation says so.
    pub default_volumes: Volumes,
    /// What rules of annotations and checkpoints may use.
    pub allow: Allow,
    /// The descriptors that this process was started with.
    pub inherited: InheritedFds,
    /// How much of the checkpoint is read to know that it is whole.
    pub trust: Trust,
    /// How snapshots are put back.
    pub drivers: snapshot::Settings,
    /// Whether a stopped container of that name makes room.
    pub replace_stopped: bool,
}

const FITTING: &str = "give something that can be used as the original was: opened in the same \
                       mode, and of a type that fits";

/// Whether a directory holds a checkpoint of ocicle's.
///
/// # Errors
/// When it holds what an interrupted checkpoint left: CRIU's images are there, the files that
/// belong to them are not.
pub fn is_ours(images: &Path) -> Result<bool> {
    if manifest::is_there(images) {
        return Ok(true);
    }
    if fs::symlink_metadata(images.join(STAGING)).is_err() {
        return Ok(false);
    }
    Err(anyhow!("{} holds a checkpoint that was interrupted, not a whole one", images.display())
        .hint("make it again: its memory has no files that belong to it"))
}

/// Restores a container, and returns how the runtime's `restore` ended.
///
/// # Errors
/// Whatever can be known before is checked before: until the files are put back nothing has been
/// changed. An error behind that leaves the files as they were at the checkpoint, and no container.
pub fn restore(request: &Request, _held: &Lock, progress: &dyn Progress) -> Result<Ended> {
    machine::ensure_capable()?;
    machine::ensure_criu()?;
    let images = fs::canonicalize(&request.images)
        .with_context(|| format!("opening the checkpoint {}", request.images.display()))?;
    let manifest = read(&images, request.trust, &request.drivers, progress)
        .with_context(|| format!("reading the checkpoint {}", images.display()))?;
    let bundle = Bundle::read(&request.bundle)?;
    ensure_not_alive(request)?;
    let examined = examine(request, &manifest, &bundle, &images)?;
    let Examined { resolved, parts, .. } = &examined;
    let plans = parts.iter().map(Part::plan).collect::<Result<Vec<_>>>()?;
    bounds::ensure_within(parts, &plans, &bundle, &request.allow)?;
    if parts.iter().zip(&plans).any(|(part, plan)| part.is_root() && !plan.is_empty()) {
        reconcile::ensure_root_is_unused(&bundle)?;
    }
    let files = preflight::View::of(parts, &plans, &bundle)?;
    let remedies = preflight::check(request, &manifest, &bundle, &images, &files, resolved)?;
    held::ensure_same(&manifest, &bundle, resolved, &remedies)?;
    let site = |path: &Path| files.site(path);
    let around = examined.around(&request.id, &site);
    let mut prepared = substitute::prepare(resolved, &around).hint(FITTING)?;
    let relaxed = remedies.iter().filter_map(Remedy::treatment);
    let treatments: Vec<_> = prepared.iter().map(Prepared::treatment).chain(relaxed).collect();
    let door = Door::open()?;
    let view = View::make(&door, request, &manifest, &images, &treatments)?;
    let replacements = substitute::open(&mut prepared, &around).hint(FITTING)?;

    if request.replace_stopped {
        make_room(&request.runtime, &request.id)?;
    }
    for (plan, part) in plans.into_iter().zip(parts) {
        part.put_back(plan, progress).with_context(|| context(part))?;
    }
    policies::carry_out(&remedies).context("obeying the policies")?;
    substitute::settle(&prepared).context("changing files of the container")?;
    let console = if gives_up_terminal(&bundle, resolved) {
        Some(Console::between(&request.flags, door.directory())?)
    } else {
        None
    };
    ended::withdraw(&request.id);
    run::run(request, &manifest, &door, &view, &replacements, console.as_ref())
}

/// What the administrator has set for a restore that nobody gives flags to.
#[derive(Debug)]
pub struct Settings {
    /// Which volumes are put back, where the container's annotation does not say so.
    pub volumes: Volumes,
    /// What checkpoints may use.
    pub allow: Allow,
    /// How snapshots are put back.
    pub drivers: snapshot::Settings,
    /// How much of the checkpoint is read to know that it is whole.
    pub trust: Trust,
}

/// Puts the files of a checkpoint back for a runtime that restores the processes by itself. Rules
/// of substitution have no place there: its CRIU has begun.
///
/// # Errors
/// As of [`restore()`]: until the files are put back nothing has been changed.
pub fn put_back(images: &Path, bundle: &Path, settings: &Settings, _held: &Lock) -> Result<()> {
    machine::ensure_capable()?;
    let Settings { volumes, allow, drivers, trust } = settings;
    let manifest = read(images, *trust, drivers, &())
        .with_context(|| format!("reading the checkpoint {}", images.display()))?;
    let bundle = Bundle::read(bundle)?;
    let policy = Policy::of(&bundle, None, volumes)?;
    let parts = reconcile::open_parts(&manifest, images, &bundle, &policy, drivers)?;
    let plans = parts.iter().map(Part::plan).collect::<Result<Vec<_>>>()?;
    bounds::ensure_within(&parts, &plans, &bundle, allow)?;
    preflight::check_plainly(images, &preflight::View::of(&parts, &plans, &bundle)?)?;
    held::ensure_same(&manifest, &bundle, &[], &[])?;
    // The runtime has mounted them already.
    for (plan, part) in plans.into_iter().zip(&parts) {
        part.put_back_in_place(plan, &()).with_context(|| context(part))?;
    }
    Ok(())
}

fn context(part: &Part) -> String {
    format!("putting {} back", part.destination.display())
}

/// What was found out before anything is opened for a rule.
struct Examined {
    resolved: Vec<Resolved>,
    callers: Callers,
    /// Locked files that no rule replaces.
    locked: Vec<OpenFile>,
    parts: Vec<Part>,
}

impl Examined {
    fn around<'a>(&'a self, container: &'a str, site: &'a dyn Fn(&Path) -> Site) -> Around<'a> {
        Around { container, callers: &self.callers, site, locked: &self.locked }
    }
}

/// Finds what the rules mean, and the file systems that are to be put back.
fn examine(
    request: &Request,
    manifest: &Manifest,
    bundle: &Bundle,
    images: &Path,
) -> Result<Examined> {
    let table = Table::read(images)?;
    let (resolved, callers) = resolve(request, bundle, &table)?;
    let replaced = substituted(&resolved);
    ensure_interfaces(request, bundle, &table, &replaced)?;
    let mut locked = table.files;
    locked.retain(|file| !file.locks.is_empty() && !replaced.contains(&file.id));
    let policy = Policy::of(bundle, request.volumes.as_ref(), &request.default_volumes)?;
    let parts = reconcile::open_parts(manifest, images, bundle, &policy, &request.drivers)?;
    Ok(Examined { resolved, callers, locked, parts })
}

/// Refuses to keep tun devices whose interfaces are not restored: CRIU would look for them in vain
/// (`tunfile_open` in criu/tun.c).
fn ensure_interfaces(
    request: &Request,
    bundle: &Bundle,
    table: &Table,
    replaced: &[FileId],
) -> Result<()> {
    let is_kept = |file: &&OpenFile| file.has_interface() && !replaced.contains(&file.id);
    match table.files.iter().find(is_kept) {
        Some(file) if !bundle.restores_interfaces(&request.runtime) => {
            let OpenFile { id, name, .. } = file;
            Err(anyhow!(
                "open file {id} ({name}) needs a replacement: its interface is not restored, as the \
                 network is the engine's"
            )
            .hint(format!("such as -s {id}=null")))
        }
        _ => Ok(()),
    }
}

/// Whether a terminal is replaced of which the caller, or the runtime, may expect the other side.
fn gives_up_terminal(bundle: &Bundle, resolved: &[Resolved]) -> bool {
    let process = bundle.spec.process().as_ref();
    process.and_then(oci_spec::runtime::Process::terminal).unwrap_or(false)
        && resolved.iter().any(|one| one.file.kind == FileKind::Tty)
}

fn substituted(resolved: &[Resolved]) -> Vec<FileId> {
    resolved.iter().map(|resolved| resolved.file.id).collect()
}

/// Checks that what the rules name can take the open files' places, and that CRIU can do without
/// what is replaced.
fn check_substitutions(
    request: &Request,
    examined: &Examined,
    files: &preflight::View<'_>,
    images: &Path,
) -> Result<()> {
    let site = |path: &Path| files.site(path);
    let around = examined.around(&request.id, &site);
    let prepared = substitute::prepare(&examined.resolved, &around).hint(FITTING)?;
    let treatments: Vec<_> = prepared.iter().map(Prepared::treatment).collect();
    substitute::check(images, &treatments)
}

/// Refuses to touch the files of a container that lives.
fn ensure_not_alive(request: &Request) -> Result<()> {
    if !request.runtime.may_know(&request.id) {
        return Ok(());
    }
    let alive = |status: &str| matches!(status, "creating" | "created" | "running" | "paused");
    match request.runtime.state(&request.id) {
        Ok(state) if alive(&state.status) => Err(anyhow!(
            "a container of that name is {}",
            state.status
        )
        .hint(format!("end it first: {} kill {} KILL", request.runtime.name(), request.id))),
        // Stopped, or unknown to the runtime.
        _ => Ok(()),
    }
}

/// Reads the manifest and makes sure that everything is as it was written.
fn read(
    images: &Path,
    trust: Trust,
    drivers: &snapshot::Settings,
    progress: &dyn Progress,
) -> Result<Manifest> {
    let manifest = Manifest::read(images)?;
    let manifest = match manifest.state {
        State::Complete => manifest,
        State::Staged => finish(images, manifest, drivers, progress)
            .context("finishing the interrupted checkpoint")?,
    };
    manifest.verify(images, trust)?;
    Ok(manifest)
}

/// Removes what the runtime still keeps of a container that stopped: else it refuses the name.
fn make_room(runtime: &Runtime, id: &str) -> Result<()> {
    match runtime.state(id) {
        Ok(state) if state.status == "stopped" => runtime.delete(id),
        _ => Ok(()),
    }
}

/// Finds the open file of every rule, and makes sure that the rule may be obeyed.
fn resolve(request: &Request, bundle: &Bundle, table: &Table) -> Result<(Vec<Resolved>, Callers)> {
    let identity = Identity::of(&request.id, bundle);
    let mut callers = rules::callers(request, &identity)?;
    let rules = rules::gather(request, bundle, &identity, &callers)?;
    let resolved = substitute::resolve(&rules, table)
        .hint("`ocicle files` lists the open files with their identifiers")?;
    ensure_allowed(&resolved, &request.allow)?;
    callers.fetch(&resolved)?;
    Ok((resolved, callers))
}

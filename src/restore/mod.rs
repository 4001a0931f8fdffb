//! A restore: the files put back, some open files replaced, then the processes.
//!
//! ```text
//! manifest and digests → rules and their files → root file system's identity and plan
//!   → preflight of every file CRIU will open   (up to here nothing is changed)
//!   → reconcile the root file system → a view of the images → the runtime's restore,
//!     whose CRIU gets the replacements at the door
//! ```

mod preflight;
mod reconcile;
mod rules;
mod run;

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::checkpoint::{complete, preflight as machine};
use crate::config::Allow;
use crate::container::Bundle;
use crate::files::{self, Table};
use crate::guardian::Ended;
use crate::hint::WithHint;
use crate::runtime::Runtime;
use crate::snapshot::Progress;
use crate::store::STAGING;
use crate::store::lock::Lock;
use crate::store::manifest::{self, Manifest, State};
use crate::substitute::{self, Replacement};
use crate::sys::process::InheritedFds;

pub use reconcile::Reconciliation;

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
    /// What rules of annotations may use.
    pub allow: Allow,
    /// The descriptors that this process was started with.
    pub inherited: InheritedFds,
}

/// Whether a directory holds a checkpoint of ocicle's.
///
/// # Errors
/// When it holds what an interrupted checkpoint left: CRIU's images are there, the files that
/// belong to them are not.
pub fn is_ours(images: &Path) -> Result<bool> {
    if manifest::is_there(images) {
        return Ok(true);
    }
    ensure!(
        fs::symlink_metadata(images.join(STAGING)).is_err(),
        "{} holds a checkpoint that was interrupted, not a whole one",
        images.display()
    );
    Ok(false)
}

/// A restore of which everything is known, and nothing is done yet.
pub struct Prepared<'a> {
    request: &'a Request,
    manifest: Manifest,
    images: PathBuf,
    replacements: Vec<Replacement>,
    reconciliation: Reconciliation,
}

impl<'a> Prepared<'a> {
    /// Checks everything that can be checked, and opens what replaces open files.
    ///
    /// # Errors
    /// Nothing has been changed.
    pub fn new(request: &'a Request, progress: &dyn Progress) -> Result<Self> {
        machine::ensure_capable()?;
        machine::ensure_criu()?;
        let images = fs::canonicalize(&request.images).with_context(|| format!("opening the checkpoint {}", request.images.display()))?;
        let manifest = read(&images, progress).with_context(|| format!("reading the checkpoint {}", images.display()))?;
        let bundle = Bundle::read(&request.bundle)?;
        let table = read_table(&images)?;
        let replacements = replacements(request, &bundle, &table, &images)?;
        ensure_not_alive(request)?;
        let reconciliation = Reconciliation::plan(&manifest, &images, &bundle)?;
        preflight::check(&images, &reconciliation, &bundle, &replacements)?;
        Ok(Self { request, manifest, images, replacements, reconciliation })
    }

    /// Puts the files back and runs the runtime's `restore`; returns how that ended.
    ///
    /// # Errors
    /// The files may then be as they were at the checkpoint, and there is no container.
    pub fn run(self, _held: &Lock, progress: &dyn Progress) -> Result<Ended> {
        self.reconciliation.execute(progress)?;
        run::run(self.request, &self.manifest, &self.images, &self.replacements)
    }
}

/// Refuses to touch the files of a container that lives.
fn ensure_not_alive(request: &Request) -> Result<()> {
    let alive = |status: &str| matches!(status, "creating" | "created" | "running" | "paused");
    match request.runtime.state(&request.id) {
        Ok(state) if alive(&state.status) => {
            let refused: Result<()> = (|| bail!("a container of that name is {}", state.status))();
            refused.hint(format!("end it first: {} kill {} KILL", request.runtime.name(), request.id))
        }
        // Stopped, or unknown to the runtime.
        _ => Ok(()),
    }
}

/// Reads the manifest and makes sure that everything is as it was written.
fn read(images: &Path, progress: &dyn Progress) -> Result<Manifest> {
    let manifest = Manifest::read(images)?;
    let manifest = match manifest.state {
        State::Complete => manifest,
        State::Staged => complete(images, manifest, None, progress).context("finishing the interrupted checkpoint")?,
    };
    manifest.verify(images)?;
    Ok(manifest)
}

fn read_table(images: &Path) -> Result<Table> {
    let path = images.join(files::TABLE);
    let text = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
}

/// Matches every rule and opens what it names.
fn replacements(request: &Request, bundle: &Bundle, table: &Table, images: &Path) -> Result<Vec<Replacement>> {
    let rules = rules::gather(request, bundle)?;
    let resolved = substitute::resolve(&rules, table)
        .hint("`ocicle files` lists the open files with their identifiers")?;
    rules::ensure_allowed(&resolved, &request.allow)?;
    substitute::ensure_replaceable(&resolved, images)?;
    substitute::open(&resolved, &|number| request.inherited.contains(number))
}

//! The containers of every engine on the machine.
//!
//! No engine is asked: what they and their runtimes keep on disk is read. The [states] of the
//! runtimes say what runs; the engines' [catalogs](catalog) give names, and what does not run.

mod catalog;
mod images;
mod states;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;

use crate::bytes::ByteString;
use crate::container::Engine;
use crate::foreign::{Reader, Unreadable};
use crate::runtime::resolved;
use crate::store::versions::{Listing, Store};
use crate::sys::pid::Pid;

pub use images::{StoredImage, stored_image};
pub use states::ContainerStatus;

/// A container, as `ocicle ps` shows it.
#[derive(Clone, Debug, Serialize)]
pub struct Listed {
    /// Who looks after it.
    pub engine: Engine,
    /// Its identifier, by which its runtime knows it.
    pub id: String,
    /// Its name, where the engine has one.
    pub name: Option<ByteString>,
    /// containerd's namespace.
    pub namespace: Option<ByteString>,
    /// The pod it belongs to.
    pub pod: Option<ByteString>,
    /// The user who runs it; root if unsaid.
    pub user: Option<u32>,
    /// The image it was made of.
    pub image: Option<ByteString>,
    /// The runtime that keeps its state: `runc` or `crun`.
    pub runtime: Option<&'static str>,
    /// Where that state is: the runtime's `--root`.
    pub root: Option<PathBuf>,
    /// Its bundle.
    pub bundle: Option<PathBuf>,
    /// Whether it runs.
    pub status: ContainerStatus,
    /// Whether its control group is frozen, by whomever.
    pub frozen: bool,
    /// Its first process.
    pub pid: Option<Pid>,
    /// The checkpoints that it has.
    pub checkpoints: Vec<Checkpoint>,
    /// What of it cannot be read, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// What was seen in files, some of which may be somebody's who would have us stop there.
#[derive(Debug)]
struct Seen<T> {
    found: Vec<T>,
    /// A line for each place that could not be read.
    unreadable: Vec<Listed>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self { found: Vec::new(), unreadable: Vec::new() }
    }
}

impl<T> Seen<T> {
    fn extend(&mut self, other: Self) {
        self.found.extend(other.found);
        self.unreadable.extend(other.unreadable);
    }

    /// What was read; a line is made of what could not be.
    fn or_row<R>(
        &mut self,
        reader: &Reader,
        path: &Path,
        read: Result<R, Unreadable>,
    ) -> Option<R> {
        read.map_err(|why| self.unreadable.push(Listed::unreadable(reader, path, &why))).ok()
    }
}

/// A checkpoint of a container on this machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checkpoint {
    /// Its name: a version of ocicle's store, docker's name of it, or `in place`.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
}

/// Lists every container: those of the usual state directories, and of `root` if it is named.
pub fn list(store: &Store, root: Option<&Path>) -> Result<Vec<Listed>> {
    let states = states::read(root);
    // `--root` may name one of the usual directories; the containers of two are never the same.
    let mut all: BTreeMap<(Option<u32>, String, Option<PathBuf>), Listed> = BTreeMap::new();
    for listed in states.found {
        let root = listed.root.as_deref().map(resolved);
        all.insert((listed.user, listed.id.clone(), root), listed);
    }
    let mut found: Vec<Listed> = all.into_values().collect();
    let catalog = catalog::read();
    for entry in catalog.found {
        let is_it = |listed: &&mut Listed| listed.user == entry.user && listed.id == entry.id;
        if let Some(listed) = found.iter_mut().find(is_it) {
            entry.complete(listed);
            continue;
        }
        let mut listed = Listed::without_state(entry.id.clone(), entry.bundle.clone());
        entry.complete(&mut listed);
        found.push(listed);
    }
    add_versions(&mut found, store)?;
    found.extend(states.unreadable.into_iter().chain(catalog.unreadable));
    found.sort_by(|one, other| {
        (one.engine, &one.name, &one.id).cmp(&(other.engine, &other.name, &other.id))
    });
    Ok(found)
}

/// A container that was checkpointed to its end is forgotten by its runtime, and can be restored all
/// the same.
fn add_versions(found: &mut Vec<Listed>, store: &Store) -> Result<()> {
    for Listing { shelf, entry, manifest } in store.list()? {
        let is_its = |listed: &Listed| listed.id == entry.id && listed.is_kept_in(shelf.root());
        if !found.iter().any(is_its) {
            let bundle = manifest.ok().map(|manifest| manifest.container.bundle);
            let name = shelf.names().first().map(|name| ByteString::from(name.as_str()));
            let root = shelf.root().map(Path::to_owned);
            found.push(Listed { name, root, ..Listed::without_state(entry.id.clone(), bundle) });
        }
        for listed in found.iter_mut().filter(|listed| is_its(listed)) {
            let name = entry.version.to_string();
            listed.checkpoints.push(Checkpoint { name, path: entry.directory.clone() });
        }
    }
    Ok(())
}

impl Listed {
    /// A container that no runtime knows: it does not run.
    fn without_state(id: String, bundle: Option<PathBuf>) -> Self {
        Self {
            engine: bundle.as_deref().map_or(Engine::Runtime, Engine::of_bundle),
            id,
            name: None,
            namespace: bundle.as_deref().and_then(Engine::namespace_of).map(ByteString::from),
            pod: None,
            user: None,
            image: None,
            runtime: None,
            root: None,
            bundle,
            status: ContainerStatus::Stopped,
            frozen: false,
            pid: None,
            checkpoints: Vec::new(),
            problem: None,
        }
    }

    /// Whether its runtime may have that state directory; unless both are known, nothing speaks
    /// against it.
    fn is_kept_in(&self, root: Option<&Path>) -> bool {
        match (&self.root, root) {
            (Some(own), Some(root)) => resolved(own) == root,
            _ => true,
        }
    }

    /// A container of which its runtime keeps a state.
    fn of_runtime(id: String, runtime: &'static str, reader: &Reader) -> Self {
        Self { user: reader.user(), runtime: Some(runtime), ..Self::without_state(id, None) }
    }

    /// A place where containers may be, and that cannot be read: its path is the name.
    fn unreadable(reader: &Reader, path: &Path, why: &Unreadable) -> Self {
        Self {
            engine: Engine::of_bundle(path),
            name: Some(path.into()),
            user: reader.user(),
            status: ContainerStatus::Unreadable,
            problem: Some(why.to_string()),
            ..Self::without_state(String::new(), None)
        }
    }
}

/// Where those directories are that users have while they are logged in.
const USERS: &str = "/run/user";

/// The users that have one.
fn users() -> Vec<u32> {
    let number = |path: &PathBuf| path.file_name()?.to_str()?.parse().ok();
    directories_in(Path::new(USERS)).iter().filter_map(number).collect()
}

/// The directory of a user.
fn user_directory(user: u32) -> PathBuf {
    Path::new(USERS).join(user.to_string())
}

/// The directories in a directory; none where it cannot be read.
fn directories_in(path: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect();
    found.sort();
    found
}

//! The directory that holds the versions of one container.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::lock::ContainerLock;
use super::manifest::{self, Manifest};
use super::reference::Version;
use crate::digest::digest;
use crate::sys::directory::Directory;

/// The file that says whose the versions are.
pub const LABEL: &str = "container.json";
const SCHEMA: u32 = 1;
/// More than that no label has.
const LABEL_LIMIT: u64 = 64 << 10;

/// Which container it is: two of one identifier are two containers if their runtimes keep them in
/// different directories.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerKey {
    /// Its identifier.
    pub id: String,
    /// The state directory of its runtime.
    pub root: PathBuf,
}

/// Whose the versions in a directory are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    schema: u32,
    /// The state directory of the container's runtime.
    pub root: PathBuf,
    /// What its engine calls it.
    #[serde(default)]
    pub names: Vec<String>,
}

/// The versions of one container.
#[derive(Clone, Debug)]
pub struct Shelf {
    /// The container.
    pub id: String,
    /// Whose they are; nothing where an ocicle made them that did not say it.
    pub label: Option<Label>,
    /// Where they are.
    pub directory: PathBuf,
}

/// One version of a container.
#[derive(Clone, Debug)]
pub struct StoredVersion {
    /// The container.
    pub id: String,
    /// Its number.
    pub version: Version,
    /// Its directory.
    pub directory: PathBuf,
}

impl StoredVersion {
    /// Where CRIU's logs of this container go, one for each kind of command. Not in the version's
    /// directory: that goes when a checkpoint fails, and then its log is wanted.
    pub fn work(&self) -> Result<PathBuf> {
        let work = self.directory.with_file_name("work");
        make(&work)?;
        Ok(work)
    }

    /// Removes what a checkpoint that failed left of its directory, as far as that can be done:
    /// the next one removes the rest.
    pub fn discard_unless_complete(&self, _held: &ContainerLock) {
        if self.is_complete() {
            return;
        }
        if let Err(error) = self.remove() {
            tracing::warn!("{error:#}");
        }
    }

    fn remove(&self) -> Result<()> {
        let removing = || format!("removing {}", self.directory.display());
        let (shelf, _) = Directory::above(&self.directory).with_context(removing)?;
        shelf.remove_tree(&self.version.to_string()).with_context(removing)
    }

    fn is_complete(&self) -> bool {
        manifest::is_there(&self.directory)
    }
}

impl Shelf {
    /// What a directory of the store holds.
    pub(super) fn of(id: &str, directory: PathBuf) -> Self {
        let label = read_label(&directory).unwrap_or_else(|error| {
            tracing::warn!("reading {}: {error}", directory.join(LABEL).display());
            None
        });
        Self { id: id.to_owned(), label, directory }
    }

    /// One for that container, which is made if need be: in the directory of that name, or where
    /// another container has it, beside it.
    pub(super) fn make(store: &Path, key: &ContainerKey, names: Vec<String>) -> Result<Self> {
        let plain = store.join(&key.id);
        let directory = match fs::symlink_metadata(&plain) {
            Ok(_) => store.join(beside(key)),
            Err(_) => plain,
        };
        make(&directory)?;
        Self { id: key.id.clone(), label: None, directory }.labelled(key, names)
    }

    /// The same for that container.
    pub(super) fn labelled(self, key: &ContainerKey, names: Vec<String>) -> Result<Self> {
        let label = Label { schema: SCHEMA, root: key.root.clone(), names };
        if self.label.as_ref() == Some(&label) {
            return Ok(self);
        }
        let write = || -> Result<()> {
            let directory = Directory::open(&self.directory)?;
            directory.replace(LABEL, &serde_json::to_vec_pretty(&label)?)?;
            Ok(directory.sync()?)
        };
        write().with_context(|| format!("writing {}", self.directory.join(LABEL).display()))?;
        Ok(Self { label: Some(label), ..self })
    }

    /// The state directory of the container's runtime, where that is known.
    pub fn root(&self) -> Option<&Path> {
        self.label.as_ref().map(|label| label.root.as_path())
    }

    /// What the container's engine called it.
    pub fn names(&self) -> &[String] {
        self.label.as_ref().map_or(&[], |label| &label.names)
    }

    /// Whether its versions are of a container of that bundle; also when there are none.
    pub(super) fn is_of_bundle(&self, bundle: &Path) -> Result<bool> {
        let Some(newest) = self.newest()? else { return Ok(true) };
        Ok(Manifest::read(&newest.directory).is_ok_and(|found| found.container.bundle == bundle))
    }

    /// Its complete versions, in their order.
    pub fn versions(&self) -> Result<Vec<StoredVersion>> {
        let mut entries = self.entries()?;
        entries.retain(StoredVersion::is_complete);
        Ok(entries)
    }

    /// The newest of them.
    pub fn newest(&self) -> Result<Option<StoredVersion>> {
        Ok(self.versions()?.pop())
    }

    /// Makes the directory of the next version. What an interrupted one left is removed.
    pub fn claim(&self, held: &ContainerLock) -> Result<StoredVersion> {
        self.sweep(held)?;
        let last = self.entries()?.last().map_or(0, |entry| entry.version.0);
        let version = Version(last.checked_add(1).context("there are too many versions")?);
        let directory = self.directory.join(version.to_string());
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        Ok(StoredVersion { id: self.id.clone(), version, directory })
    }

    /// Removes what interrupted checkpoints left.
    pub(super) fn sweep(&self, _held: &ContainerLock) -> Result<()> {
        for entry in self.entries()?.into_iter().filter(|entry| !entry.is_complete()) {
            entry.remove().context("removing what an interrupted checkpoint left")?;
        }
        Ok(())
    }

    /// Removes the oldest versions until `keep` are left, and says which; 0 keeps all. The newest
    /// always stays, and whoever restores one holds the lock.
    pub fn prune(&self, keep: u32, _held: &ContainerLock) -> Result<Vec<Version>> {
        if keep == 0 {
            return Ok(Vec::new());
        }
        let mut versions = self.versions()?;
        let old = versions.len().saturating_sub(keep as usize);
        versions.truncate(old);
        for entry in &versions {
            // Without a manifest it is no version: the next checkpoint removes what is left of it.
            manifest::withdraw(&entry.directory)?;
            entry.remove()?;
        }
        Ok(versions.into_iter().map(|entry| entry.version).collect())
    }

    /// The directories of its versions, complete or not, in their order.
    fn entries(&self) -> Result<Vec<StoredVersion>> {
        let mut entries: Vec<StoredVersion> = names_in(&self.directory)?
            .into_iter()
            .filter(|name| name.starts_with('v'))
            .filter_map(|name| {
                let version = name.parse().ok()?;
                let directory = self.directory.join(name);
                Some(StoredVersion { id: self.id.clone(), version, directory })
            })
            .collect();
        entries.sort_by_key(|entry| entry.version);
        Ok(entries)
    }
}

/// The name of a directory beside the one that another container of that identifier has. No
/// identifier has an `@`.
fn beside(key: &ContainerKey) -> String {
    let root = digest(key.root.as_os_str().as_encoded_bytes());
    format!("{}@{}", key.id, &root[..12])
}

fn read_label(directory: &Path) -> io::Result<Option<Label>> {
    let Some(text) = Directory::open(directory)?.read(LABEL, LABEL_LIMIT)? else {
        return Ok(None);
    };
    let label: Label = serde_json::from_slice(&text)?;
    if label.schema != SCHEMA {
        return Err(io::Error::other(format!("its schema is {}", label.schema)));
    }
    Ok(Some(label))
}

fn make(directory: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("making {}", directory.display()))
}

/// The names in a directory of the store, sorted; none where it is not there.
pub(super) fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        // A file in the store is none of ours.
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => {
            return Err(error).with_context(|| format!("reading {}", directory.display()));
        }
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", directory.display()))?;
        if let Ok(name) = entry.file_name().into_string() {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

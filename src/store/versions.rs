//! The versions of containers below the store.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

use super::lock::ContainerLock;
use super::manifest::{self, Manifest};
use crate::container::ensure_name;
use crate::hint::WithHint;

/// The number of a version, written `vN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(u32);

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = text.strip_prefix('v').unwrap_or(text);
        match number.parse() {
            Ok(number) if number > 0 => Ok(Self(number)),
            _ => bail!("{text:?} is no version: versions are v1, v2, …"),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("v{}", self.0))
    }
}

/// A container's name, and perhaps a version: `web` or `web@v2`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The container.
    pub id: String,
    /// Its version; the newest where there is none.
    pub version: Option<Version>,
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (id, version) = match text.split_once('@') {
            Some((id, version)) => (id, Some(version.parse()?)),
            None => (text, None),
        };
        ensure_name(id)?;
        Ok(Self { id: id.to_owned(), version })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Some(version) => write!(f, "{}@{version}", self.id),
            None => f.write_str(&self.id),
        }
    }
}

/// The directory that holds all versions of all containers.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
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
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&work)
            .with_context(|| format!("making {}", work.display()))?;
        Ok(work)
    }
}

impl StoredVersion {
    /// Removes what a checkpoint that failed left of its directory, as far as that can be done:
    /// the next one removes the rest.
    pub fn discard_unless_complete(&self, _held: &ContainerLock) {
        if manifest::is_there(&self.directory) {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.directory)
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!("removing {}: {error}", self.directory.display());
        }
    }
}

impl Store {
    /// The store at that path, which need not exist yet.
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Where it is.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes the directory of the next version. What an interrupted one left is removed.
    pub fn claim(&self, id: &str, held: &ContainerLock) -> Result<StoredVersion> {
        ensure_name(id)?;
        let container = self.root.join(id);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&container)
            .with_context(|| format!("making {}", container.display()))?;
        self.sweep(id, held)?;
        let last = self.entries(id)?.last().map_or(0, |entry| entry.version.0);
        let version = Version(last.checked_add(1).context("there are too many versions")?);
        let directory = container.join(version.to_string());
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .with_context(|| format!("making {}", directory.display()))?;
        Ok(StoredVersion { id: id.to_owned(), version, directory })
    }

    /// Removes what interrupted checkpoints of a container left.
    pub fn sweep(&self, id: &str, _held: &ContainerLock) -> Result<()> {
        let half_made = |entry: &StoredVersion| !manifest::is_there(&entry.directory);
        for entry in self.entries(id)?.into_iter().filter(half_made) {
            fs::remove_dir_all(&entry.directory).with_context(|| {
                format!(
                    "removing what an interrupted checkpoint left at {}",
                    entry.directory.display()
                )
            })?;
        }
        Ok(())
    }

    /// Finds a version, the newest where none is named.
    pub fn find(&self, reference: &Reference) -> Result<StoredVersion> {
        let id = &reference.id;
        let complete = || -> Result<Vec<StoredVersion>> {
            Ok(self
                .entries(id)?
                .into_iter()
                .filter(|entry| manifest::is_there(&entry.directory))
                .collect())
        };
        let mut versions = complete()?;
        if versions.is_empty() {
            return Err(anyhow!("{} holds no checkpoint of {id}", self.root.display()).hint(
                "`ocicle list` shows the checkpoints there are; --store names another directory",
            ));
        }
        match reference.version {
            None => Ok(versions.remove(versions.len() - 1)),
            Some(wanted) => {
                let names: Vec<String> =
                    versions.iter().map(|entry| entry.version.to_string()).collect();
                versions
                    .into_iter()
                    .find(|entry| entry.version == wanted)
                    .with_context(|| format!("{id} has no version {wanted}"))
                    .hint(format!("there is {}", names.join(", ")))
            }
        }
    }

    /// Removes the oldest versions of a container until `keep` are left, and says which; 0 keeps
    /// all. The newest always stays, and whoever restores one holds the lock.
    pub fn prune(&self, id: &str, keep: u32, _held: &ContainerLock) -> Result<Vec<Version>> {
        if keep == 0 {
            return Ok(Vec::new());
        }
        let mut versions = self.entries(id)?;
        versions.retain(|entry| manifest::is_there(&entry.directory));
        let old = versions.len().saturating_sub(keep as usize);
        versions.truncate(old);
        for entry in &versions {
            // Without a manifest it is no version: the next checkpoint removes what is left of it.
            manifest::withdraw(&entry.directory)?;
            fs::remove_dir_all(&entry.directory)
                .with_context(|| format!("removing {}", entry.directory.display()))?;
        }
        Ok(versions.into_iter().map(|entry| entry.version).collect())
    }

    /// Every version of every container, with its manifest.
    pub fn list(&self) -> Result<Vec<(StoredVersion, Result<Manifest>)>> {
        let mut found = Vec::new();
        for id in names_in(&self.root)? {
            for entry in self.entries(&id)? {
                if manifest::is_there(&entry.directory) {
                    let manifest = Manifest::read(&entry.directory);
                    found.push((entry, manifest));
                }
            }
        }
        Ok(found)
    }

    /// The directories of a container's versions, complete or not, in their order.
    fn entries(&self, id: &str) -> Result<Vec<StoredVersion>> {
        let container = self.root.join(id);
        let mut entries: Vec<StoredVersion> = names_in(&container)?
            .into_iter()
            .filter(|name| name.starts_with('v'))
            .filter_map(|name| {
                let version = name.parse().ok()?;
                Some(StoredVersion { id: id.to_owned(), version, directory: container.join(name) })
            })
            .collect();
        entries.sort_by_key(|entry| entry.version);
        Ok(entries)
    }
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_and_versions() {
        let reference: Reference = "web@v12".parse().unwrap();
        assert_eq!((reference.id.as_str(), reference.version), ("web", Some(Version(12))));
        assert_eq!("web@3".parse::<Reference>().unwrap().version, Some(Version(3)));
        assert_eq!("web".parse::<Reference>().unwrap().version, None);
        for bad in ["web@", "web@v0", "web@x", "@v1", "a/b", "web@v-1", "web@v99999999999"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_half_made_is_no_version() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path());
        let web = Reference { id: "web".into(), version: None };
        assert!(format!("{:#}", store.find(&web).unwrap_err()).contains("no checkpoint of web"));
        for (version, is_whole) in [("v1", true), ("v2", false), ("v10", true), ("junk", true)] {
            let version = directory.path().join("web").join(version);
            fs::create_dir_all(&version).unwrap();
            if is_whole {
                fs::write(version.join(manifest::NAME), "{}").unwrap();
            }
        }
        assert_eq!(store.find(&web).unwrap().version, Version(10));
        let second = Reference { version: Some(Version(2)), ..web };
        let error = store.find(&second).unwrap_err();
        assert_eq!(format!("{error:#}"), "web has no version v2");
        assert_eq!(crate::hint::hint_of(&error), Some("there is v1, v10"));
        fs::write(directory.path().join("README"), "of the administrator's").unwrap();
        let listed = store.list().unwrap();
        let names: Vec<String> =
            listed.iter().map(|(entry, _)| entry.version.to_string()).collect();
        assert_eq!(names, ["v1", "v10"]);
        assert!(listed.iter().all(|(_, manifest)| manifest.is_err()), "{{}} is no manifest");
    }
}

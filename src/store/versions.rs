//! The versions of containers below the store.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::lock::ContainerLock;
use super::manifest::Manifest;
use super::reference::{Reference, Which};
use super::shelf::{ContainerKey, Shelf, StoredVersion, names_in};
use crate::container::ensure_name;
use crate::hint::WithHint;

/// The directory that holds all versions of all containers.
#[derive(Clone, Debug)]
pub struct Store {
    root: PathBuf,
}

/// Whose checkpoints are meant, where several containers have one identifier.
#[derive(Clone, Copy, Debug)]
pub enum Whose<'a> {
    /// Those of the container whose runtime has that state directory.
    Of(&'a Path),
    /// Those of the only one.
    Anyone,
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

    /// Where the versions of a container go that has that bundle and is called so. Those that an older
    /// ocicle made, which did not say whose they are, are its own if they are of that bundle.
    pub fn shelf_for(
        &self,
        key: &ContainerKey,
        bundle: &Path,
        names: Vec<String>,
        _held: &ContainerLock,
    ) -> Result<Shelf> {
        ensure_name(&key.id)?;
        let shelves = self.shelves_of(&key.id)?;
        if let Some(own) = shelves.iter().find(|shelf| shelf.root() == Some(&key.root)) {
            return own.clone().labelled(key, names);
        }
        for old in shelves.into_iter().filter(|shelf| shelf.label.is_none()) {
            if old.is_of_bundle(bundle)? {
                return old.labelled(key, names);
            }
        }
        Shelf::make(&self.root, key, names)
    }

    /// Removes what interrupted checkpoints of containers of that identifier left.
    pub fn sweep(&self, id: &str, held: &ContainerLock) -> Result<()> {
        self.shelves_of(id)?.iter().try_for_each(|shelf| shelf.sweep(held))
    }

    /// Finds a version, the newest where none is named.
    ///
    /// # Errors
    /// Also when only another container of that identifier has one, or several have.
    pub fn find(&self, reference: &Reference, whose: Whose<'_>) -> Result<StoredVersion> {
        let id = &reference.id;
        let shelf = self.shelf_of(id, whose)?;
        let mut versions = shelf.versions()?;
        let Which::Numbered(wanted) = reference.version else {
            let newest = versions.pop();
            return newest.with_context(|| format!("{id} has no version any more"));
        };
        let names: Vec<String> = versions.iter().map(|entry| entry.version.to_string()).collect();
        versions
            .into_iter()
            .find(|entry| entry.version == wanted)
            .with_context(|| format!("{id} has no version {wanted}"))
            .hint(format!("there is {}", names.join(", ")))
    }

    /// The directory with the versions of a container that has some.
    fn shelf_of(&self, id: &str, whose: Whose<'_>) -> Result<Shelf> {
        let mut shelves = Vec::new();
        for shelf in self.shelves_of(id)? {
            if shelf.newest()?.is_some() {
                shelves.push(shelf);
            }
        }
        if shelves.is_empty() {
            return Err(anyhow!("{} holds no checkpoint of {id}", self.root.display()).hint(
                "`ocicle list` shows the checkpoints there are; --store names another directory",
            ));
        }
        let position = match whose {
            Whose::Of(root) => {
                let own = shelves.iter().position(|shelf| shelf.root() == Some(root));
                own.or_else(|| shelves.iter().position(|shelf| shelf.label.is_none()))
            }
            Whose::Anyone => Some(0).filter(|_| shelves.len() == 1),
        };
        match position {
            Some(position) => Ok(shelves.swap_remove(position)),
            None => Err(another(id, &shelves, whose)),
        }
    }

    /// Whether it has a checkpoint of a container of that identifier.
    pub fn has(&self, id: &str) -> Result<bool> {
        for shelf in self.shelves_of(id)? {
            if shelf.newest()?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Every container of the store.
    pub fn shelves(&self) -> Result<Vec<Shelf>> {
        let names = names_in(&self.root)?.into_iter();
        let shelves = names.filter_map(|name| {
            let id = name.split('@').next().filter(|id| ensure_name(id).is_ok())?;
            let directory = self.root.join(&name);
            let is_directory = fs::symlink_metadata(&directory).is_ok_and(|found| found.is_dir());
            is_directory.then(|| Shelf::of(id, directory))
        });
        Ok(shelves.collect())
    }

    fn shelves_of(&self, id: &str) -> Result<Vec<Shelf>> {
        let mut shelves = self.shelves()?;
        shelves.retain(|shelf| shelf.id == id);
        Ok(shelves)
    }

    /// Every version of every container, with its manifest.
    pub fn list(&self) -> Result<Vec<Listing>> {
        let mut found = Vec::new();
        for shelf in self.shelves()? {
            for entry in shelf.versions()? {
                let manifest = Manifest::read(&entry.directory);
                found.push(Listing { shelf: shelf.clone(), entry, manifest });
            }
        }
        Ok(found)
    }
}

/// A version, whose it is, and what it says of itself.
#[derive(Debug)]
pub struct Listing {
    /// The container.
    pub shelf: Shelf,
    /// The version.
    pub entry: StoredVersion,
    /// Its manifest, unless that is damaged.
    pub manifest: Result<Manifest>,
}

/// Says that the checkpoints of that identifier are another container's, or several's.
fn another(id: &str, shelves: &[Shelf], whose: Whose<'_>) -> anyhow::Error {
    let roots: Vec<String> = shelves
        .iter()
        .map(|shelf| shelf.root().map_or("?".to_owned(), |root| root.display().to_string()))
        .collect();
    let all = roots.join(", ");
    match whose {
        Whose::Of(root) => anyhow!(
            "the checkpoints of {id} are of another container: of {id} in {all}, not in {}",
            root.display()
        )
        .hint(format!(
            "--root {} means that one; a restore with --bundle DIR makes a container of it here",
            roots[0]
        )),
        Whose::Anyone => anyhow!("{id} is {} containers: in {all}", roots.len())
            .hint(format!("say which one: --root {}", roots[0])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hint::hint_of;
    use crate::store::manifest;
    use crate::store::shelf::LABEL;

    fn reference(text: &str) -> Reference {
        text.parse().unwrap()
    }

    fn version(store: &Path, directory: &str, version: &str) {
        let version = store.join(directory).join(version);
        fs::create_dir_all(&version).unwrap();
        fs::write(version.join(manifest::NAME), "{}").unwrap();
    }

    fn label(store: &Path, directory: &str, root: &str) {
        let text = format!("{{\"schema\": 1, \"root\": {root:?}}}");
        fs::write(store.join(directory).join(LABEL), text).unwrap();
    }

    #[test]
    fn what_is_half_made_is_no_version() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::at(directory.path());
        let find = |text: &str| store.find(&reference(text), Whose::Anyone);
        assert!(format!("{:#}", find("web").unwrap_err()).contains("no checkpoint of web"));
        for name in ["v1", "v10", "junk"] {
            version(directory.path(), "web", name);
        }
        fs::create_dir_all(directory.path().join("web/v2")).unwrap();
        for newest in ["web", "web@latest"] {
            assert_eq!(find(newest).unwrap().version.to_string(), "v10");
        }
        let error = find("web@v2").unwrap_err();
        assert_eq!(format!("{error:#}"), "web has no version v2");
        assert_eq!(hint_of(&error), Some("there is v1, v10"));
        fs::write(directory.path().join("README"), "of the administrator's").unwrap();
        let listed = store.list().unwrap();
        let names: Vec<String> = listed.iter().map(|one| one.entry.version.to_string()).collect();
        assert_eq!(names, ["v1", "v10"]);
        assert!(listed.iter().all(|one| one.manifest.is_err()), "{{}} is no manifest");
    }

    #[test]
    fn two_containers_of_one_identifier_are_two() {
        let directory = tempfile::tempdir().unwrap();
        let (store, top) = (Store::at(directory.path()), directory.path());
        let find = |whose| store.find(&reference("web"), whose);
        let (one, other) = (Path::new("/run/runc"), Path::new("/tmp/r2"));
        version(top, "web", "v1");
        // Of an ocicle that did not say whose it is.
        assert_eq!(find(Whose::Of(other)).unwrap().version.to_string(), "v1");
        label(top, "web", "/run/runc");
        assert!(find(Whose::Of(one)).is_ok() && find(Whose::Anyone).is_ok());
        let error = find(Whose::Of(other)).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "the checkpoints of web are of another container: of web in /run/runc, not in /tmp/r2"
        );
        assert_eq!(
            hint_of(&error),
            Some(
                "--root /run/runc means that one; a restore with --bundle DIR makes a container of \
                 it here"
            )
        );
        version(top, "web@2", "v7");
        label(top, "web@2", "/tmp/r2");
        assert_eq!(find(Whose::Of(other)).unwrap().version.to_string(), "v7");
        assert_eq!(find(Whose::Of(one)).unwrap().version.to_string(), "v1");
        let error = find(Whose::Anyone).unwrap_err();
        assert_eq!(format!("{error:#}"), "web is 2 containers: in /run/runc, /tmp/r2");
    }
}

//! What the names on a command line mean.
//!
//! A container is named by its identifier, by the beginning of it, or as its engine calls it; a
//! checkpoint by its container's name and a version, or by where it lies. Nearer meanings win: what a name
//! is, before what begins with it.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use super::Machine;
use crate::container::Container;
use crate::engines::{self, ContainerStatus, Listed};
use crate::hint::WithHint;
use crate::runtime::{Family, Runtime, resolved};
use crate::store::reference::Reference;
use crate::store::shelf::{Shelf, StoredVersion};
use crate::store::versions::{Store, Whose};

/// To how many letters of a name there is a mistake at most.
const PER_MISTAKE: usize = 4;

/// A container that is meant, and what works on it.
#[derive(Debug)]
pub struct Named {
    /// The machine with the container's own runtime.
    pub machine: Machine,
    /// The container's identifier.
    pub id: String,
}

impl Machine {
    /// The container that is called so. One that nobody knows is left to the runtime to refuse.
    ///
    /// # Errors
    /// When the name could mean several containers.
    pub fn named(&self, name: &str) -> Result<Named> {
        if self.knows(name) {
            return Ok(Named { machine: self.clone(), id: name.to_owned() });
        }
        let all = self.listed()?;
        match &nearest(&all, name, Listed::calls)[..] {
            [] => Ok(Named { machine: self.clone(), id: name.to_owned() }),
            [one] => self.at(one),
            several => Err(ambiguous(name, several.iter().map(|one| described(one)))),
        }
    }

    /// A checkpoint of the store, by any name of its container.
    ///
    /// # Errors
    /// When the name could mean several containers, or the store has no such version.
    pub fn stored(&self, reference: &Reference) -> Result<(Self, StoredVersion)> {
        let root = self.runtime.state_root();
        let exact = self.store.find(reference, Whose::Of(&root));
        if exact.is_ok() || self.store.has(&reference.id)? {
            return exact.map(|entry| (self.clone(), entry));
        }
        let Some(shelf) = shelf_called(&self.store, &reference.id)? else {
            return exact
                .map(|entry| (self.clone(), entry))
                .map_err(|error| near_checkpoint(&self.store, &reference.id, error));
        };
        let own = Reference { id: shelf.id.clone(), version: reference.version };
        let root = shelf.root().map_or(root, Path::to_owned);
        let entry = self.store.find(&own, Whose::Of(&root))?;
        Ok((Self { runtime: self.runtime.clone().with_root(&root), ..self.clone() }, entry))
    }

    /// Whether the runtime itself has a container of that identifier.
    fn knows(&self, id: &str) -> bool {
        match self.runtime.family() {
            Family::Other => self.runtime.state(id).is_ok(),
            _ => {
                crate::container::ensure_name(id).is_ok()
                    && self.runtime.state_root().join(id).symlink_metadata().is_ok()
            }
        }
    }

    /// The containers that may be meant: of root's runtimes, below `--root` where that was given.
    fn listed(&self) -> Result<Vec<Listed>> {
        let root = self.runtime.root();
        let mut all = engines::list(&self.store, root.as_deref())?;
        all.retain(|one| one.user.is_none() && one.status != ContainerStatus::Unreadable);
        if let Some(root) = root.as_deref().map(resolved) {
            all.retain(|one| one.root.as_deref().map(resolved).as_ref() == Some(&root));
        }
        Ok(all)
    }

    /// The container that was listed, with the runtime that keeps it, unless `--runtime` chose one.
    fn at(&self, listed: &Listed) -> Result<Named> {
        let runtime = match listed.runtime {
            Some(name) if !self.runtime_is_chosen && name != self.runtime.name() => {
                Runtime::at(Runtime::named(name.as_ref())?)
            }
            _ => self.runtime.clone(),
        };
        let runtime = match &listed.root {
            Some(root) => runtime.with_root(root),
            None => runtime,
        };
        Ok(Named { machine: Self { runtime, ..self.clone() }, id: listed.id.clone() })
    }

    /// Finds a container that runs or is paused.
    ///
    /// # Errors
    /// As of [`Container::discover`]; one that nobody knows may have been meant to be another.
    pub fn discover(&self, id: &str) -> Result<Container> {
        Container::discover(&self.runtime, id).map_err(|error| self.did_you_mean(id, error))
    }

    /// Adds to an error about a container that nobody knows which one may have been meant.
    fn did_you_mean(&self, name: &str, error: anyhow::Error) -> anyhow::Error {
        if self.knows(name) {
            return error;
        }
        let all = self.listed().unwrap_or_default();
        if all.iter().any(|one| one.id == name) {
            return anyhow!(
                "it is stopped: only a running or paused container has a state to keep"
            )
            .hint("start it, or go on from a checkpoint: `ocicle list` shows those there are");
        }
        let names = all.iter().flat_map(|one| {
            std::iter::once(one.id.clone()).chain(one.name.as_ref().map(ToString::to_string))
        });
        match like(name, names) {
            Some(near) => error.hint(format!("did you mean {near}? `ocicle ps` lists them all")),
            None => error,
        }
    }
}

/// Where a checkpoint lies that a command line names.
#[derive(Debug)]
pub enum Located {
    /// In the store.
    Stored(StoredVersion),
    /// At a path: a directory, an archive, or an image that was saved.
    Path(PathBuf),
}

/// Finds a checkpoint: in the store, or at a path. What has a slash is a path.
///
/// # Errors
/// When there is none, or the name could mean several.
pub fn locate(store: &Store, whose: Whose<'_>, text: &str) -> Result<Located> {
    let path = Path::new(text);
    let reference = match text.parse::<Reference>() {
        Ok(reference) if !text.contains('/') => reference,
        _ if path.exists() => return Ok(Located::Path(path.to_owned())),
        Ok(reference) => reference,
        Err(error) => return Err(error),
    };
    match find(store, whose, &reference) {
        Err(_) if path.exists() => Ok(Located::Path(path.to_owned())),
        found => found.map(Located::Stored),
    }
}

/// Finds a checkpoint in the store by any name of its container.
pub fn find(store: &Store, whose: Whose<'_>, reference: &Reference) -> Result<StoredVersion> {
    let exact = store.find(reference, whose);
    if exact.is_ok() || store.has(&reference.id)? {
        return exact;
    }
    match shelf_called(store, &reference.id)? {
        None => exact.map_err(|error| near_checkpoint(store, &reference.id, error)),
        Some(shelf) => {
            let own = Reference { id: shelf.id.clone(), version: reference.version };
            store.find(&own, shelf.root().map_or(whose, Whose::Of))
        }
    }
}

fn near_checkpoint(store: &Store, name: &str, error: anyhow::Error) -> anyhow::Error {
    let shelves = store.shelves().unwrap_or_default();
    let names =
        shelves.iter().flat_map(|shelf| shelf.names().iter().cloned().chain([shelf.id.clone()]));
    match like(name, names) {
        Some(near) => error.hint(format!("did you mean {near}? `ocicle list` shows all there are")),
        None => error,
    }
}

/// The container of the store that is called so by its engine, or whose identifier begins so.
fn shelf_called(store: &Store, name: &str) -> Result<Option<Shelf>> {
    let calls = |shelf: &Shelf, name: &str| shelf.names().iter().any(|known| known == name);
    let shelves: Vec<Shelf> = store.shelves()?;
    let mut with_versions = Vec::new();
    for shelf in shelves {
        if shelf.newest()?.is_some() {
            with_versions.push(shelf);
        }
    }
    match &nearest(&with_versions, name, calls)[..] {
        [] => Ok(None),
        [one] => Ok(Some((*one).clone())),
        several => Err(ambiguous(name, several.iter().map(|shelf| shelf.id.clone()))),
    }
}

/// What has an identifier.
trait HasId {
    fn id(&self) -> &str;
}

impl HasId for Listed {
    fn id(&self) -> &str {
        &self.id
    }
}

impl HasId for Shelf {
    fn id(&self) -> &str {
        &self.id
    }
}

/// Those that are meant by a name: the ones of that identifier; else the ones that are called so; else
/// the ones whose identifier begins so.
fn nearest<'a, T: HasId>(all: &'a [T], name: &str, calls: impl Fn(&T, &str) -> bool) -> Vec<&'a T> {
    let by = |means: &dyn Fn(&T) -> bool| -> Vec<&'a T> {
        all.iter().filter(|one| means(one)).collect()
    };
    let ways: [&dyn Fn(&T) -> bool; 3] =
        [&|one| one.id() == name, &|one| calls(one, name), &|one| {
            !name.is_empty() && one.id().starts_with(name)
        }];
    ways.iter().map(|means| by(means)).find(|found| !found.is_empty()).unwrap_or_default()
}

impl Listed {
    /// Whether its engine calls it so: by its name, or with its pod or namespace.
    fn calls(&self, name: &str) -> bool {
        let Some(own) = &self.name else { return false };
        let own = own.to_string();
        let above = self.pod.as_ref().or(self.namespace.as_ref());
        own == name || above.is_some_and(|above| format!("{above}/{own}") == name)
    }
}

/// A container in a list of those that a name could mean.
fn described(listed: &Listed) -> String {
    let name = listed.name.as_ref().map(|name| format!(" ({name})")).unwrap_or_default();
    let root = listed.root.as_ref().map(|root| format!(" in {}", root.display()));
    format!("{}{name}{}", listed.id, root.unwrap_or_default())
}

fn ambiguous(name: &str, all: impl Iterator<Item = String>) -> anyhow::Error {
    let all: Vec<String> = all.collect();
    anyhow!("{name} could be {}", all.join(", or "))
        .hint("say more of the identifier, or which runtime's directory is meant: --root DIR")
}

/// The name that is nearest to one that means nothing: by letters that are wrong, missing, too many or
/// the wrong way round.
fn like(name: &str, all: impl Iterator<Item = String>) -> Option<String> {
    let most = (name.len() / PER_MISTAKE).max(1);
    let near = all.map(|one| (strsim::osa_distance(name, &one), one));
    let best = near.filter(|(wrong, _)| *wrong <= most).min_by_key(|(wrong, _)| *wrong);
    best.map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(&'static str, &'static str);

    impl HasId for One {
        fn id(&self) -> &str {
            self.0
        }
    }

    #[test]
    fn nearer_meanings_win() {
        let all = [One("web", "x"), One("web2", "web"), One("abc1", "shop"), One("abc2", "shop2")];
        let means = |name: &str| -> Vec<&str> {
            nearest(&all, name, |one, name| one.1 == name).iter().map(|one| one.0).collect()
        };
        assert_eq!(means("web"), ["web"], "its identifier, although another is called so");
        assert_eq!(means("shop"), ["abc1"]);
        assert_eq!(means("web2"), ["web2"]);
        assert_eq!(means("abc"), ["abc1", "abc2"]);
        assert_eq!(means("w"), ["web", "web2"]);
        assert!(means("").is_empty() && means("nobody").is_empty());
    }

    #[test]
    fn what_was_meant() {
        let names = || ["web", "database"].map(str::to_owned).into_iter();
        assert_eq!(like("wbe", names()).as_deref(), Some("web"));
        assert_eq!(like("databse", names()).as_deref(), Some("database"));
        assert_eq!(like("nobody", names()), None);
    }
}

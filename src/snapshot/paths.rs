//! A map from paths to values that holds each name once, however deep it lies: what a container
//! can make with an inode costs no more than its name here.

use anyhow::{Result, ensure};

use crate::limits::{self, Weight};
use crate::sys::fs::check_name;

/// A path in a map.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(transparent)]
pub struct Id(u32);

impl Id {
    /// The path without a name.
    pub const ROOT: Self = Self(0);

    fn at(self) -> usize {
        self.0 as usize
    }

    /// The path that was put in as the `number`th of a map from which none was removed.
    pub(super) fn nth(number: usize) -> Self {
        Self(u32::try_from(number).unwrap_or(u32::MAX))
    }
}

/// A map from paths to values.
#[derive(Clone, Debug)]
pub struct Paths<T> {
    nodes: Vec<Node<T>>,
    /// All names, one after the other.
    names: Vec<u8>,
    /// Nodes that can be used again.
    free: Vec<Id>,
    weight: u64,
    is_limited: bool,
}

#[derive(Clone, Debug)]
struct Node<T> {
    /// None for one that is free.
    value: Option<T>,
    #[expect(clippy::box_collection, reason = "most nodes are no directories, and have none")]
    below: Option<Box<Vec<Id>>>,
    parent: Id,
    name: u32,
    length: u8,
}

/// What an entry of a map takes beside its name and what [`Weigh`] tells, at most.
const NODE: u64 = 256;

/// How many bytes a value takes beside itself.
pub trait Weigh {
    /// Attributes, targets of links.
    fn weight(&self) -> u64 {
        0
    }
}

impl Weigh for () {}

impl<T: Weigh> Paths<T> {
    /// A map with a root.
    pub fn new(root: T) -> Self {
        let weight = NODE + root.weight();
        let value = Some(root);
        let top = Node { value, below: None, parent: Id::ROOT, name: 0, length: 0 };
        let (nodes, names, free) = (vec![top], Vec::new(), Vec::new());
        Self { nodes, names, free, weight, is_limited: true }
    }

    /// The same without a limit: for what is on disk and has to be named, whatever it takes.
    pub fn without_limit(root: T) -> Self {
        Self { is_limited: false, ..Self::new(root) }
    }

    /// How many paths there are.
    pub fn count(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// What it takes, in bytes, and is limited by [`limits`].
    pub fn weight(&self) -> Weight {
        Weight(self.weight)
    }

    /// The same in the order of a walk: the `n`th is [`Id::nth`]. `moved` is told of each value, and where
    /// paths are now.
    pub fn ordered(mut self, moved: impl Fn(&mut T, &dyn Fn(Id) -> Id)) -> Result<Self> {
        let order: Vec<Id> = self.walk().map(|(id, _)| id).collect();
        let mut places = vec![Id::ROOT; self.nodes.len()];
        for (number, id) in order.iter().enumerate() {
            places[id.at()] = Id::nth(number);
        }
        let mut ordered: Option<Self> = None;
        for id in order {
            let Some(mut value) = self.nodes[id.at()].value.take() else { continue };
            moved(&mut value, &|id| places[id.at()]);
            match &mut ordered {
                None => ordered = Some(Self::new(value)),
                Some(ordered) => {
                    ordered.push(places[self.parent(id).at()], self.name(id), value)?;
                }
            }
        }
        Ok(ordered.unwrap_or(self))
    }

    /// Puts something in behind all that is in its directory already.
    pub fn push(&mut self, dir: Id, name: &[u8], value: T) -> Result<Id> {
        check_name(name)?;
        if let Some(last) = self.below(dir).last() {
            ensure!(self.name(*last) < name, "its name is not behind the one before");
        }
        let id = self.add(dir, name, value)?;
        self.nodes[dir.at()].below.get_or_insert_default().push(id);
        Ok(id)
    }

    /// Changes what is in a directory: `gone` goes, and `seen` takes the place of what has its name.
    /// Returns where that is now.
    pub fn update(&mut self, dir: Id, mut seen: Vec<(Vec<u8>, T)>, gone: &[Id]) -> Result<Vec<Id>> {
        for id in gone {
            self.remove(*id);
        }
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        let old = self.nodes[dir.at()].below.take().map(|below| *below).unwrap_or_default();
        let mut old = old.into_iter().filter(|id| self.nodes[id.at()].value.is_some());
        // The nodes that are gone may be used again at once, so that the rest is found first.
        let rest: Vec<Id> = old.by_ref().collect();
        let mut rest = rest.into_iter().peekable();
        let mut below = Vec::with_capacity(rest.len() + seen.len());
        let mut places = Vec::with_capacity(seen.len());
        for (name, value) in seen {
            check_name(&name)?;
            while let Some(id) = rest.next_if(|id| self.name(*id) < &name[..]) {
                below.push(id);
            }
            let id = match rest.next_if(|id| self.name(*id) == name) {
                Some(id) => self.replace(id, value)?,
                None => self.add(dir, &name, value)?,
            };
            below.push(id);
            places.push(id);
        }
        below.extend(rest);
        self.nodes[dir.at()].below = (!below.is_empty()).then(|| Box::new(below));
        Ok(places)
    }

    fn add(&mut self, parent: Id, name: &[u8], value: T) -> Result<Id> {
        self.charge(NODE + name.len() as u64 + value.weight())?;
        let start = u32::try_from(self.names.len())?;
        self.names.extend_from_slice(name);
        let length = name.len() as u8;
        let node = Node { value: Some(value), below: None, parent, name: start, length };
        if let Some(id) = self.free.pop() {
            self.nodes[id.at()] = node;
            return Ok(id);
        }
        self.nodes.push(node);
        Ok(Id(u32::try_from(self.nodes.len() - 1)?))
    }

    fn charge(&mut self, bytes: u64) -> Result<()> {
        self.weight += bytes;
        if self.is_limited { limits::ensure_weight(Weight(self.weight)) } else { Ok(()) }
    }

    /// Puts another value in the place of one.
    pub fn replace(&mut self, id: Id, value: T) -> Result<Id> {
        self.weight -= self.nodes[id.at()].value.as_ref().map_or(0, T::weight);
        self.charge(value.weight())?;
        self.nodes[id.at()].value = Some(value);
        Ok(id)
    }

    /// Removes all that is in a directory.
    pub fn clear(&mut self, dir: Id) {
        let below = self.nodes[dir.at()].below.take();
        below.into_iter().flat_map(|below| *below).for_each(|id| self.remove(id));
    }

    /// Removes a path and all below; its directory still names it.
    fn remove(&mut self, id: Id) {
        let mut todo = vec![id];
        while let Some(id) = todo.pop() {
            let node = &mut self.nodes[id.at()];
            let Some(value) = node.value.take() else { continue };
            self.weight -= NODE + u64::from(node.length) + value.weight();
            todo.extend(node.below.take().into_iter().flat_map(|below| *below));
            self.free.push(id);
        }
    }
}

impl<T> Paths<T> {
    /// The last name of a path.
    pub fn name(&self, id: Id) -> &[u8] {
        let node = &self.nodes[id.at()];
        &self.names[node.name as usize..][..usize::from(node.length)]
    }

    /// The directory that a path is in; the root's is the root.
    pub fn parent(&self, id: Id) -> Id {
        self.nodes[id.at()].parent
    }

    /// What is directly in a directory, sorted by name.
    pub fn below(&self, dir: Id) -> &[Id] {
        self.nodes[dir.at()].below.as_ref().map_or(&[], |below| below.as_slice())
    }

    /// What has that name in a directory.
    pub fn child(&self, dir: Id, name: &[u8]) -> Option<Id> {
        let below = self.below(dir);
        let at = below.binary_search_by(|id| self.name(*id).cmp(name)).ok()?;
        Some(below[at])
    }

    /// What is at a path.
    pub fn find(&self, path: &[u8]) -> Option<Id> {
        if path.is_empty() {
            return Some(Id::ROOT);
        }
        path.split(|byte| *byte == b'/').try_fold(Id::ROOT, |dir, name| self.child(dir, name))
    }

    /// The value of a path, if it is in the map.
    pub fn get(&self, path: &[u8]) -> Option<&T> {
        self.value(self.find(path)?)
    }

    /// A value.
    pub fn value(&self, id: Id) -> Option<&T> {
        self.nodes.get(id.at())?.value.as_ref()
    }

    /// A path, spelt out.
    pub fn path(&self, id: Id) -> Vec<u8> {
        self.path_from(Id::ROOT, id)
    }

    /// The same, from one that is above it.
    pub fn path_from(&self, above: Id, id: Id) -> Vec<u8> {
        let names: Vec<Id> = self.up(id).take_while(|id| *id != above).collect();
        let mut path = Vec::new();
        for id in names.into_iter().rev() {
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(self.name(id));
        }
        path
    }

    /// A path and all that are above it, but the root.
    pub fn up(&self, id: Id) -> impl Iterator<Item = Id> + '_ {
        let next = |id: &Id| Some(self.parent(*id)).filter(|id| *id != Id::ROOT);
        std::iter::successors(Some(id).filter(|id| *id != Id::ROOT), next)
    }

    /// How many bytes a path has.
    #[cfg(test)]
    pub fn path_length(&self, id: Id) -> usize {
        self.up(id).map(|id| self.name(id).len() + 1).sum::<usize>().saturating_sub(1)
    }

    /// All values, in no order.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.nodes.iter().filter_map(|node| node.value.as_ref())
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.nodes.iter_mut().filter_map(|node| node.value.as_mut())
    }

    /// All paths: each before what is in it, and that sorted by name.
    pub fn walk(&self) -> Walk<'_, T> {
        Walk { paths: self, stack: Vec::new(), path: Vec::new(), begun: false }
    }
}

/// Steps over all paths.
pub struct Walk<'a, T> {
    paths: &'a Paths<T>,
    /// What is still to come of each directory on the way, and where its own path ends.
    stack: Vec<(std::slice::Iter<'a, Id>, usize)>,
    path: Vec<u8>,
    begun: bool,
}

impl<'a, T> Walk<'a, T> {
    /// The path of the last step.
    pub fn path(&self) -> &[u8] {
        &self.path
    }

    /// How many names that has.
    pub fn depth(&self) -> usize {
        self.stack.len() - 1
    }

    fn enter(&mut self, id: Id) -> (Id, &'a T) {
        self.stack.push((self.paths.below(id).iter(), self.path.len()));
        let value = self.paths.nodes[id.at()].value.as_ref();
        (id, value.expect("what a directory names is there"))
    }
}

impl<'a, T> Iterator for Walk<'a, T> {
    type Item = (Id, &'a T);

    fn next(&mut self) -> Option<Self::Item> {
        if !std::mem::replace(&mut self.begun, true) {
            return Some(self.enter(Id::ROOT));
        }
        loop {
            let (below, length) = self.stack.last_mut()?;
            self.path.truncate(*length);
            let Some(id) = below.next() else {
                self.stack.pop();
                continue;
            };
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(self.paths.name(*id));
            return Some(self.enter(*id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    impl Weigh for u32 {}

    fn names(paths: &Paths<u32>) -> Vec<String> {
        let mut walk = paths.walk();
        let mut names = Vec::new();
        while let Some((id, value)) = walk.next() {
            assert_eq!(paths.find(walk.path()), Some(id));
            assert_eq!(paths.path(id), walk.path());
            assert_eq!(paths.path_length(id), walk.path().len());
            names.push(format!("{} {value}", String::from_utf8_lossy(walk.path())));
        }
        names
    }

    #[test]
    fn what_changes_in_a_directory_is_merged() {
        let mut paths = Paths::new(0);
        let seen = |list: &[(&str, u32)]| -> Vec<(Vec<u8>, u32)> {
            list.iter().map(|(name, value)| (name.as_bytes().to_vec(), *value)).collect()
        };
        let first = paths.update(Id::ROOT, seen(&[("d", 2), ("a", 1), ("x", 3)]), &[]).unwrap();
        paths.update(first[1], seen(&[("in", 4), ("deeper", 5)]), &[]).unwrap();
        assert_eq!(names(&paths), [" 0", "a 1", "d 2", "d/deeper 5", "d/in 4", "x 3"]);
        paths.update(Id::ROOT, seen(&[("b", 6), ("x", 7), ("z", 8)]), &[first[1]]).unwrap();
        assert_eq!(names(&paths), [" 0", "a 1", "b 6", "x 7", "z 8"]);
        assert_eq!(paths.count(), 5);
        paths.clear(Id::ROOT);
        assert_eq!((names(&paths), paths.weight().0), (vec![" 0".to_owned()], NODE));
    }

    #[test]
    fn names_come_in_their_order() {
        let mut paths = Paths::new(0);
        let dir = paths.push(Id::ROOT, b"b", 1).unwrap();
        assert!(paths.push(Id::ROOT, b"b", 2).is_err());
        assert!(paths.push(Id::ROOT, b"a", 2).is_err());
        assert!(paths.push(dir, b"..", 2).is_err());
        paths.push(dir, b"a", 3).unwrap();
        assert_eq!(names(&paths), [" 0", "b 1", "b/a 3"]);
    }

    #[test]
    fn what_lies_deep_costs_no_more() {
        let mut paths = Paths::new(0);
        let deep = (0..127).fold(Id::ROOT, |dir, _| paths.push(dir, &[b'd'; 255], 0).unwrap());
        let before = paths.weight().0;
        for number in 0..1000_u32 {
            paths.push(deep, format!("{number:04}").as_bytes(), number).unwrap();
        }
        assert!(paths.weight().0 - before <= 1000 * 260);
        let found: BTreeMap<_, _> =
            paths.below(deep).iter().map(|id| (paths.name(*id), paths.value(*id))).collect();
        assert_eq!(found.len(), 1000);
        assert_eq!(paths.path(paths.below(deep)[7]).len(), 127 * 256 + 4);
    }
}

//! What a plan would give to a root: asked before it is carried out, by who has to allow it.

use std::collections::BTreeMap;

use anyhow::Result;

use super::attributes::Found;
use super::index::{Entry, Meta};
use super::plan::{Plan, Verb};
use super::split;
use crate::sys::fs;

/// An inode of the snapshot that would be made, or the attributes of one that would be set.
#[derive(Clone, Copy, Debug)]
pub struct Gain<'a> {
    /// Its first path, relative to the root.
    pub path: &'a [u8],
    /// [`Create`](Verb::Create), [`Replace`](Verb::Replace) or [`Attributes`](Verb::Attributes).
    pub verb: Verb,
    /// What it is to be.
    pub entry: &'a Entry,
}

impl Plan<'_> {
    /// All of them, in the order of paths. The directories in which something is done are among
    /// them, since their attributes are set in the end. What the layers below show is none: the
    /// snapshot does not bring it.
    pub fn gains(&self) -> Vec<Gain<'_>> {
        let mut touched = BTreeMap::new();
        for action in self.actions() {
            let path = action.path.as_bytes();
            if let Some((parent, _)) = split(path) {
                touched.entry(parent).or_insert(Verb::Attributes);
            }
            if !matches!(action.verb, Verb::Remove | Verb::Link) {
                touched.insert(path, action.verb);
            }
        }
        let index = self.part.index();
        let gain = |(path, verb)| Some(Gain { path, verb, entry: index.inode(path)?.1 });
        touched.into_iter().filter_map(gain).collect()
    }

    /// The attributes of what is at a path now; `None` where nothing is.
    pub fn present(&self, path: &[u8]) -> Result<Option<Meta>> {
        let Some((parent, name)) = split(path) else {
            return Ok(Some(Found::look(self.root.top())?.meta));
        };
        let dir = match fs::open_dir(self.root.top(), parent) {
            Ok(dir) => dir,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let entry = fs::open_entry(dir, name)?;
        Ok(entry.map(Found::look).transpose()?.map(|found| found.meta))
    }
}

//! What a plan would give to a root: asked before it is carried out, by who has to allow it.

use std::collections::HashMap;

use anyhow::Result;

use super::attributes::Found;
use super::index::{Entry, Meta};
use super::paths::Id;
use super::plan::{Plan, Verb};
use super::split;
use crate::bytes::ByteString;
use crate::sys::fs;

/// An inode of the snapshot that would be made, or the attributes of one that would be set.
#[derive(Clone, Copy, Debug)]
pub struct Gain<'a> {
    /// Its path, which [`Plan::path`] spells out.
    pub path: Id,
    /// [`Create`](Verb::Create), [`Replace`](Verb::Replace) or [`Attributes`](Verb::Attributes).
    pub verb: Verb,
    /// What it is to be.
    pub entry: &'a Entry,
}

impl Plan<'_> {
    /// All of them, in the order of paths. The directories in which something is done are among
    /// them, since their attributes are set in the end. What the layers below show is none: the
    /// snapshot does not bring it.
    pub fn gains(&self) -> impl Iterator<Item = Gain<'_>> {
        let mut touched = HashMap::new();
        for (id, step) in self.steps.walk() {
            if (step.remove || step.verb.is_some()) && id != Id::ROOT {
                touched.entry(self.steps.parent(id)).or_insert(Verb::Attributes);
            }
            if let Some(verb) = step.verb.filter(|verb| *verb != Verb::Link) {
                touched.insert(id, verb);
            }
        }
        let index = self.part.index();
        self.steps.walk().filter_map(move |(path, step)| {
            let verb = *touched.get(&path)?;
            Some(Gain { path, verb, entry: index.inode(step.entry?)?.1 })
        })
    }

    /// A path, spelt out.
    pub fn path(&self, id: Id) -> ByteString {
        self.steps.path(id).into()
    }

    /// The attributes of what is at a path now; `None` where nothing is.
    pub fn present(&self, id: Id) -> Result<Option<Meta>> {
        let path = self.steps.path(id);
        let Some((parent, name)) = split(&path) else {
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

//! What differs between a snapshot and its root as it is now, or between two snapshots.
//!
//! The first is read off the [plan](super::plan()) of a restore: what would be removed was added,
//! what would be made was removed. The second compares two indexes in the same terms; what neither
//! of them has is the image's, and the same in both.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::attributes::Found;
use super::index::{Content, Entry, Kind, Meta};
use super::inode::InodeKind;
use super::part::{Lookup, PackedPart};
use super::plan::{self, Action, Verb, is_stored, look_lower};
use super::probe::Root;
use super::walk::open_existing;
use super::{join, shown, split};
use crate::bytes::ByteString;
use crate::limits::PATH_LIMIT;
use crate::sys::fs;

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Fate {
    /// It was not there before.
    Added,
    /// It is not what it was.
    Changed,
    /// It is gone.
    Removed,
}

impl Fate {
    /// Its letter, as engines print it.
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Removed => 'D',
        }
    }
}

/// In what a path differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Aspect {
    /// A file has become a directory, or the like.
    Type,
    /// The bytes of a file.
    Content,
    /// Where a symbolic link points.
    Target,
    /// The numbers of a device.
    Device,
    /// Permissions.
    Mode,
    /// Owner or group.
    Owner,
    /// Time of modification.
    Time,
    /// Extended attributes and ACLs.
    Xattrs,
    /// Which names are names of one file.
    Links,
}

impl fmt::Display for Aspect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Type => "type",
            Self::Content => "content",
            Self::Target => "target",
            Self::Device => "device",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Time => "time",
            Self::Xattrs => "xattrs",
            Self::Links => "links",
        })
    }
}

/// A path that differs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Change {
    /// The path, relative to the root of the part; the root itself is empty.
    pub path: ByteString,
    /// What became of it.
    pub fate: Fate,
    /// In what it differs, if it has changed.
    pub what: Vec<Aspect>,
}

/// Everything that differs.
#[derive(Debug, Default)]
pub struct Difference {
    /// The paths, sorted.
    pub changes: Vec<Change>,
    /// What could not be known.
    pub notes: Vec<String>,
}

/// Compares a snapshot with its root as it is now.
pub fn since(root: &Root, part: &PackedPart) -> Result<Difference> {
    let plan = plan::plan(root, part)?;
    let now = Now { root, part, lower: plan.lower.as_ref().map(AsFd::as_fd) };
    let mut changes = Vec::new();
    let mut actions = plan.actions().peekable();
    while let Some(action) = actions.next() {
        let path = action.path.as_bytes();
        // A path that changes its type has two steps.
        let is_replaced = actions.next_if(|next| next.path == action.path).is_some();
        now.tell(&action, is_replaced, &mut changes)
            .with_context(|| format!("comparing {}", shown(path)))?;
    }
    changes.sort();
    changes.dedup();
    Ok(Difference { changes, notes: plan.notes().to_vec() })
}

/// A root that is compared with an earlier snapshot of it.
struct Now<'a> {
    root: &'a Root,
    part: &'a PackedPart,
    lower: Option<BorrowedFd<'a>>,
}

impl Now<'_> {
    fn tell(&self, action: &Action, is_replaced: bool, changes: &mut Vec<Change>) -> Result<()> {
        let path = action.path.as_bytes();
        match action.verb {
            Verb::Remove if !is_replaced => return self.tell_added(path, changes),
            Verb::Create if !is_replaced => changes.push(Change::of(path, Fate::Removed, vec![])),
            Verb::Remove | Verb::Create => {
                changes.extend(self.compare(path, false)?);
                if self.look(path)?.is_some_and(|(found, _)| found.kind.is_dir()) {
                    self.tell_inside(path, changes)?;
                }
            }
            // The name of a link is gone, or another inode's.
            Verb::Link | Verb::Replace => changes.extend(self.compare(path, true)?),
            Verb::Attributes => changes.extend(self.compare(path, false)?),
        }
        Ok(())
    }

    /// What a path was, and what it is now.
    fn compare(&self, path: &[u8], other_links: bool) -> Result<Option<Change>> {
        let was = State::of(self.part, self.lower, path)?;
        let is = self.look(path)?;
        let is = is.map_or(State::Absent, |(found, entry)| State::Found(found, entry));
        compare(path, &was, &is, other_links)
    }

    /// A plan removes a tree in one step; all of it was added.
    fn tell_added(&self, path: &[u8], changes: &mut Vec<Change>) -> Result<()> {
        changes.push(Change::of(path, Fate::Added, vec![]));
        match self.look(path)? {
            Some((found, _)) if self.is_to_be_read(&found) => self.tell_inside(path, changes),
            _ => Ok(()),
        }
    }

    fn is_to_be_read(&self, found: &Found) -> bool {
        found.kind.is_dir() && self.root.holds(found.device)
    }

    fn tell_inside(&self, path: &[u8], changes: &mut Vec<Change>) -> Result<()> {
        let mut todo = vec![path.to_vec()];
        while let Some(path) = todo.pop() {
            ensure!(path.len() <= PATH_LIMIT, "a path is longer than {PATH_LIMIT} bytes");
            let Some(dir) = open_existing(self.root.top(), &path)? else { continue };
            for name in fs::names(&dir)? {
                let child = join(&path, &name);
                changes.push(Change::of(&child, Fate::Added, vec![]));
                let entry = fs::open_entry(&dir, &name)?;
                if entry.map(Found::look).transpose()?.is_some_and(|it| self.is_to_be_read(&it)) {
                    todo.push(child);
                }
            }
        }
        Ok(())
    }

    fn look(&self, path: &[u8]) -> Result<Option<(Found, OwnedFd)>> {
        let Some((parent, name)) = split(path) else {
            let top = self.root.top().try_clone_to_owned()?;
            return Ok(Some((Found::look(&top)?, top)));
        };
        let Some(dir) = open_existing(self.root.top(), parent)? else { return Ok(None) };
        let Some(entry) = fs::open_entry(dir, name)? else { return Ok(None) };
        Ok(Some((Found::look(&entry)?, entry)))
    }
}

/// Compares two snapshots of one part. `lower` is what the layers below show, where that can be
/// seen.
pub fn between(
    before: &PackedPart,
    after: &PackedPart,
    lower: Option<&OwnedFd>,
) -> Result<Difference> {
    let lower = lower.map(AsFd::as_fd);
    let mut difference = Difference::default();
    for path in candidates(before, after, lower)? {
        let compare = || -> Result<Option<Change>> {
            let was = State::of(before, lower, &path)?;
            let is = State::of(after, lower, &path)?;
            compare(&path, &was, &is, links_of(before, &path) != links_of(after, &path))
        };
        let change = compare().with_context(|| format!("comparing {}", shown(&path)))?;
        difference.changes.extend(change);
    }
    if lower.is_none() && before.index().driver == super::Form::Overlay {
        difference.notes.push(
            "the image's layers are not mounted here: of some paths it is not known whether they \
             were there before, and they count as changed"
                .to_owned(),
        );
    }
    Ok(difference)
}

fn links_of(part: &PackedPart, path: &[u8]) -> Vec<u8> {
    let index = part.index();
    let first = index.entries.find(path).and_then(|id| index.inode(id));
    first.map_or(path.to_vec(), |(first, _)| index.entries.path(first))
}

/// The paths that may differ: all that either of the two has, and what is below a directory of the
/// image that only one of them hides.
fn candidates(
    before: &PackedPart,
    after: &PackedPart,
    lower: Option<BorrowedFd<'_>>,
) -> Result<BTreeSet<Vec<u8>>> {
    let mut paths: BTreeSet<Vec<u8>> = BTreeSet::new();
    for entries in [&before.index().entries, &after.index().entries] {
        paths.extend(entries.walk().map(|(id, _)| entries.path(id)));
    }
    let Some(lower) = lower else { return Ok(paths) };
    let hidden_once: Vec<_> =
        paths.iter().filter(|path| hides(before, path) != hides(after, path)).cloned().collect();
    for path in hidden_once {
        add_all_below(lower, &path, &mut paths)?;
    }
    Ok(paths)
}

/// Whether nothing of the image is seen below a path.
fn hides(part: &PackedPart, path: &[u8]) -> bool {
    let kind = part.index().get(path).map(|entry| &entry.kind);
    !matches!(kind, None | Some(Kind::Dir { opaque: false }))
}

fn add_all_below(root: BorrowedFd<'_>, path: &[u8], to: &mut BTreeSet<Vec<u8>>) -> Result<()> {
    let mut todo = vec![path.to_vec()];
    while let Some(path) = todo.pop() {
        let Some(dir) = open_existing(root, &path)? else { continue };
        for name in fs::names(&dir)? {
            let child = join(&path, &name);
            if let Some((found, _)) = look_lower(&dir, &name)?
                && found.kind.is_dir()
            {
                todo.push(child.clone());
            }
            to.insert(child);
        }
    }
    Ok(())
}

/// What a path was or is.
enum State<'a> {
    Absent,
    Entry(&'a PackedPart, &'a Entry),
    Found(Found, OwnedFd),
    /// What the image has, which cannot be seen.
    Unknown,
}

impl<'a> State<'a> {
    fn of(part: &'a PackedPart, lower: Option<BorrowedFd<'_>>, path: &[u8]) -> Result<Self> {
        Ok(match part.lookup(path) {
            Lookup::Present(entry) => Self::Entry(part, entry),
            Lookup::Absent => Self::Absent,
            Lookup::Below => match lower {
                Some(lower) => Self::in_image(lower, path)?,
                None => Self::Unknown,
            },
        })
    }

    fn in_image(lower: BorrowedFd<'_>, path: &[u8]) -> Result<Self> {
        let Some((parent, name)) = split(path) else { return Ok(Self::Unknown) };
        let Some(dir) = open_existing(lower, parent)? else { return Ok(Self::Absent) };
        Ok(look_lower(&dir, name)?.map_or(Self::Absent, |(found, entry)| Self::Found(found, entry)))
    }

    fn meta(&self) -> Option<&Meta> {
        match self {
            Self::Entry(_, entry) => Some(&entry.meta),
            Self::Found(found, _) => Some(&found.meta),
            Self::Absent | Self::Unknown => None,
        }
    }
}

/// `None` where both are the same.
fn compare(
    path: &[u8],
    was: &State<'_>,
    is: &State<'_>,
    other_links: bool,
) -> Result<Option<Change>> {
    let fate = match (was, is) {
        (State::Absent, State::Absent) | (State::Unknown, State::Unknown) => return Ok(None),
        (State::Absent, _) => Fate::Added,
        (_, State::Absent) => Fate::Removed,
        _ => Fate::Changed,
    };
    if fate != Fate::Changed {
        return Ok(Some(Change::of(path, fate, vec![])));
    }
    let (Some(was_meta), Some(is_meta)) = (was.meta(), is.meta()) else {
        return Ok(Some(Change::of(path, fate, vec![])));
    };
    let mut what: Vec<Aspect> = differing_kind(was, is)?.into_iter().collect();
    what.extend(differing_attributes(was_meta, is_meta));
    // What has changed in a directory is told for itself.
    if what == [Aspect::Time] && kind_of(is).is_some_and(|kind| kind.is_dir()) {
        what.clear();
    }
    if what.is_empty() && other_links {
        what.push(Aspect::Links);
    }
    Ok((!what.is_empty()).then(|| Change::of(path, fate, what)))
}

fn differing_attributes(was: &Meta, is: &Meta) -> impl Iterator<Item = Aspect> {
    [
        (was.mode != is.mode, Aspect::Mode),
        ((was.uid, was.gid) != (is.uid, is.gid), Aspect::Owner),
        (was.mtime != is.mtime, Aspect::Time),
        (was.xattrs != is.xattrs, Aspect::Xattrs),
    ]
    .into_iter()
    .filter_map(|(differs, aspect)| differs.then_some(aspect))
}

/// In what two things differ that both are there, but for their attributes.
fn differing_kind(was: &State<'_>, is: &State<'_>) -> Result<Option<Aspect>> {
    let kinds = (kind_of(was), kind_of(is));
    Ok(match &kinds {
        (Some(InodeKind::File(was_size)), Some(InodeKind::File(is_size))) => {
            (was_size != is_size || !is_same_content(was, is)?).then_some(Aspect::Content)
        }
        (was, is) if was == is => None,
        (Some(InodeKind::Symlink(_)), Some(InodeKind::Symlink(_))) => Some(Aspect::Target),
        (Some(InodeKind::Char(_)), Some(InodeKind::Char(_)))
        | (Some(InodeKind::Block(_)), Some(InodeKind::Block(_))) => Some(Aspect::Device),
        _ => Some(Aspect::Type),
    })
}

/// What a state is, wherever that is known from; a regular file with its length. `None` for nothing.
fn kind_of<'a>(state: &'a State<'_>) -> Option<InodeKind<u64, &'a [u8]>> {
    match state {
        State::Entry(_, entry) => entry.kind.inode(),
        State::Found(found, _) => Some(found.kind.by_ref().map_file(|()| found.identity.size)),
        State::Absent | State::Unknown => None,
    }
}

/// Whether two regular files of one length have the same bytes.
fn is_same_content(was: &State<'_>, is: &State<'_>) -> Result<bool> {
    let content = |state: &State<'_>| -> Option<(Content, u64)> {
        let State::Entry(_, Entry { kind: Kind::File { size, content }, .. }) = state else {
            return None;
        };
        Some((content.clone(), *size))
    };
    match (was, is) {
        (State::Entry(before, _), State::Entry(after, _)) => {
            let (Some((was, size)), Some((is, _))) = (content(was), content(is)) else {
                return Ok(false);
            };
            if was.extents() == is.extents() {
                return Ok(was.digest == is.digest);
            }
            Ok(before.digest_with_holes(&was, size)? == after.digest_with_holes(&is, size)?)
        }
        (State::Entry(part, _), State::Found(_, entry))
        | (State::Found(_, entry), State::Entry(part, _)) => {
            let Some((stored, size)) = content(was).or_else(|| content(is)) else {
                return Ok(false);
            };
            let file: File = fs::open_for_reading(entry)?.into();
            is_stored(part, &stored, size, &file)
        }
        // Both are the image's.
        _ => Ok(true),
    }
}

impl Change {
    fn of(path: &[u8], fate: Fate, what: Vec<Aspect>) -> Self {
        Self { path: path.into(), fate, what }
    }
}

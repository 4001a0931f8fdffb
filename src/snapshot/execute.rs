//! Carries out a plan, through the root as the container sees it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use rustix::fs::{AtFlags, Mode};
use serde::Serialize;

use super::attributes::{Found, Shape, apply};
use super::copy::{Way, copy_file};
use super::index::{Content, Entry, Kind, Meta};
use super::node::make_node;
use super::plan::{Action, Plan, Verb, look_lower};
use super::{Progress, remove, shown, split};
use crate::bytes::ByteString;
use crate::sys::fs;

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Paths that were removed, a tree counting once.
    pub removed: u64,
    /// Paths that were made anew.
    pub created: u64,
    /// Files whose content was put back.
    pub replaced: u64,
    /// Names that were linked to their inode again.
    pub linked: u64,
    /// Paths of which only attributes were set.
    pub attributes: u64,
    /// Bytes of content written.
    pub bytes: u64,
    /// What could not be known.
    pub notes: Vec<String>,
}

/// What a path is made from.
enum Made<'a> {
    Entry(&'a Entry),
    Lower(Found, OwnedFd),
}

impl Made<'_> {
    fn meta(&self) -> &Meta {
        match self {
            Self::Entry(entry) => &entry.meta,
            Self::Lower(found, _) => &found.meta,
        }
    }

    fn is_dir(&self) -> bool {
        match self {
            Self::Entry(entry) => matches!(entry.kind, Kind::Dir { .. }),
            Self::Lower(found, _) => found.shape == Shape::Dir,
        }
    }
}

impl Plan<'_> {
    /// Makes the root equal to the snapshot. After an error, a new plan goes on from there: each
    /// file is the old one or the new one, whole.
    pub fn execute(self, progress: &dyn Progress) -> Result<Report> {
        let mut report = Report { notes: self.notes().to_vec(), ..Report::default() };
        progress.expect(self.bytes_to_write());
        self.remove_all(&mut report)?;
        self.make_all(&mut report, progress)?;
        self.link_all(&mut report)?;
        self.finish_dirs()?;
        Ok(report)
    }

    fn of(&self, verb: Verb) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.actions().iter().filter(move |a| a.verb == verb).map(|a| a.path.as_bytes())
    }

    fn bytes_to_write(&self) -> u64 {
        let size = |path: &ByteString| match self.part.index().get(path.as_bytes()) {
            Some(Entry { kind: Kind::File { content, .. }, .. }) => content.length,
            _ => 0,
        };
        let makes = |verb| matches!(verb, Verb::Create | Verb::Replace);
        self.actions().iter().filter(|a| makes(a.verb)).map(|a| size(&a.path)).sum()
    }

    /// First, which also gives room back.
    fn remove_all(&self, report: &mut Report) -> Result<()> {
        for path in self.of(Verb::Remove).rev() {
            remove::tree(self.root.top(), path)
                .with_context(|| format!("removing {}", shown(path)))?;
            report.removed += 1;
        }
        Ok(())
    }

    fn make_all(&self, report: &mut Report, progress: &dyn Progress) -> Result<()> {
        let mut rest = Vec::new();
        for action in self.actions() {
            match action.verb {
                Verb::Create => report.created += 1,
                Verb::Replace => report.replaced += 1,
                Verb::Attributes => report.attributes += 1,
                Verb::Remove | Verb::Link => continue,
            }
            // Directories one after the other, as each may be in another; then there is room for all
            // that is in them.
            if action.verb == Verb::Create && self.is_dir(&action.path) {
                self.carry_out(action, progress)?;
            } else {
                rest.push(action);
            }
        }
        let carry_out = |action: &&Action| self.carry_out(action, progress);
        let bytes = if rest.len() < 2 {
            rest.iter().map(carry_out).collect::<Result<Vec<_>>>()
        } else {
            rest.par_iter().map(carry_out).collect()
        };
        report.bytes += bytes?.iter().sum::<u64>();
        Ok(())
    }

    fn is_dir(&self, path: &ByteString) -> bool {
        self.made(path.as_bytes()).is_ok_and(|made| made.is_dir())
    }

    /// Makes something, and returns how many bytes of content were written.
    fn carry_out(&self, action: &Action, progress: &dyn Progress) -> Result<u64> {
        let path = action.path.as_bytes();
        match action.verb {
            Verb::Create | Verb::Replace => self.make(path, progress),
            Verb::Attributes => self.set_attributes(path).map(|()| 0),
            Verb::Remove | Verb::Link => Ok(0),
        }
        .with_context(|| format!("restoring {}", shown(path)))
    }

    /// What a path that is to be there is made from.
    fn made(&self, path: &[u8]) -> Result<Made<'_>> {
        if let Some(entry) = self.part.index().get(path) {
            return Ok(Made::Entry(entry));
        }
        let lower = self.lower.as_ref().context("it is neither in the snapshot nor below")?;
        let (parent, name) = split(path).context("the root is in every snapshot")?;
        let dir = fs::open_dir(lower, parent).context("opening the lower directory")?;
        let (found, entry) = look_lower(&dir, name)?.context("it is gone from the lower layers")?;
        Ok(Made::Lower(found, entry))
    }

    /// Sets the attributes of anything but a directory; those come last.
    fn set_attributes(&self, path: &[u8]) -> Result<()> {
        let made = self.made(path)?;
        if made.is_dir() {
            return Ok(());
        }
        let (parent, name) = split(path).context("the root is a directory")?;
        let dir = fs::open_dir(self.root.top(), parent)?;
        apply(fs::open_entry(dir, name)?.context("it is gone")?, made.meta())
    }

    fn make(&self, path: &[u8], progress: &dyn Progress) -> Result<u64> {
        let made = self.made(path)?;
        let (parent, name) = split(path).context("the root is always there")?;
        let dir = fs::open_dir(self.root.top(), parent)?;
        if made.is_dir() {
            // Attributes come last: meanwhile nobody else gets in.
            rustix::fs::mkdirat(&dir, name, Mode::RWXU).context("making the directory")?;
            return Ok(0);
        }
        let mut bytes = 0;
        take_name(&dir, name, |dir, temporary| {
            bytes = self.make_node(dir, temporary, &made, path, progress)?;
            let entry = fs::open_entry(dir, temporary)?.context("it is gone")?;
            apply(entry, made.meta())
        })?;
        Ok(bytes)
    }

    /// Makes a new inode without attributes.
    fn make_node(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        made: &Made<'_>,
        path: &[u8],
        progress: &dyn Progress,
    ) -> Result<u64> {
        match made {
            Made::Entry(Entry { kind: Kind::File { size, content }, .. }) => {
                let file = fs::create_file(dir, name)?;
                if self.clone_held(path, *size, &file).unwrap_or(false) {
                    progress.advance(content.length);
                    return Ok(0);
                }
                return self.write(&file.into(), *size, content, progress);
            }
            Made::Lower(Found { shape: Shape::File, .. }, entry) => {
                let target = fs::create_file(dir, name)?;
                return Ok(copy_file(&fs::open_for_reading(entry)?, &target, Way::Cache)?.moved());
            }
            Made::Entry(entry) => make_node(dir, name, &shape(&entry.kind)?)?,
            Made::Lower(found, _) => make_node(dir, name, &found.shape)?,
        }
        Ok(0)
    }

    /// Shares the bytes of the same file in a snapshot that is held on this file system, if there is
    /// one: it is read-only, and of this very index.
    fn clone_held(&self, path: &[u8], size: u64, file: &OwnedFd) -> Result<bool> {
        let (Some(held), Some((parent, name))) = (&self.held, split(path)) else {
            return Ok(false);
        };
        let entry = fs::open_entry(fs::open_dir(held, parent)?, name)?.context("it is gone")?;
        let source = fs::open_for_reading(entry)?;
        rustix::fs::ioctl_ficlone(file, &source)?;
        Ok(fs::stat(file)?.st_size as u64 == size)
    }

    fn write(
        &self,
        file: &File,
        size: u64,
        content: &Content,
        progress: &dyn Progress,
    ) -> Result<u64> {
        file.set_len(size).context("setting its length")?;
        self.part.stored(content, |at, bytes| {
            file.write_all_at(bytes, at).context("writing its content")?;
            progress.advance(bytes.len() as u64);
            Ok(())
        })?;
        Ok(content.length)
    }

    fn link_all(&self, report: &mut Report) -> Result<()> {
        for path in self.of(Verb::Link) {
            self.link(path).with_context(|| format!("linking {}", shown(path)))?;
            report.linked += 1;
        }
        Ok(())
    }

    fn link(&self, path: &[u8]) -> Result<()> {
        let (first, _) = self.part.index().inode(path).context("it is not in the index")?;
        let (from, first) = split(first).context("the root has one name")?;
        let from = fs::open_dir(self.root.top(), from)?;
        let (parent, name) = split(path).context("the root has one name")?;
        let dir = fs::open_dir(self.root.top(), parent)?;
        let temporary = take_name(&dir, name, |dir, temporary| {
            Ok(rustix::fs::linkat(&from, first, dir, temporary, AtFlags::empty())?)
        })?;
        // Two names of one inode: rename(2) then does nothing, and the temporary one stays.
        let _ = rustix::fs::unlinkat(&dir, temporary, AtFlags::empty());
        Ok(())
    }

    /// Sets the attributes of the directories that were made or in which something was done: last,
    /// since each change in a directory sets its time, and the deepest first.
    fn finish_dirs(&self) -> Result<()> {
        let mut dirs = BTreeSet::new();
        for action in self.actions() {
            let path = action.path.as_bytes();
            if let Some((parent, _)) = split(path) {
                dirs.insert(parent);
            }
            if action.verb != Verb::Remove && self.made(path).is_ok_and(|made| made.is_dir()) {
                dirs.insert(path);
            }
        }
        for path in dirs.into_iter().rev() {
            self.finish_dir(path)
                .with_context(|| format!("setting the attributes of {}", shown(path)))?;
        }
        Ok(())
    }

    fn finish_dir(&self, path: &[u8]) -> Result<()> {
        let made = self.made(path)?;
        let Some((parent, name)) = split(path) else {
            return apply(self.root.top(), made.meta());
        };
        let dir = fs::open_dir(self.root.top(), parent)?;
        apply(fs::open_entry(dir, name)?.context("it is gone")?, made.meta())
    }
}

/// What an inode without bytes is.
fn shape(kind: &Kind) -> Result<Shape> {
    Ok(match kind {
        Kind::Symlink { target } => Shape::Symlink(target.as_bytes().to_vec()),
        Kind::Char { major, minor } => Shape::Char(*major, *minor),
        Kind::Block { major, minor } => Shape::Block(*major, *minor),
        Kind::Fifo => Shape::Fifo,
        Kind::Socket => Shape::Socket,
        Kind::File { .. } | Kind::Dir { .. } | Kind::Link { .. } | Kind::Whiteout => {
            bail!("it is no inode without bytes")
        }
    })
}

/// Lets `make` make something under a temporary name, then gives it `name`: whoever dies in between
/// leaves the old file as it was. Returns the temporary name.
fn take_name(
    dir: &OwnedFd,
    name: &[u8],
    mut make: impl FnMut(&OwnedFd, &[u8]) -> Result<()>,
) -> Result<String> {
    // Several are made side by side.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    for _ in 0..1000 {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let temporary = format!(".ocicle-{}-{number}", std::process::id());
        let made = make(dir, temporary.as_bytes()).and_then(|()| {
            rustix::fs::renameat(dir, &temporary, dir, name).context("giving it its name")
        });
        match made {
            Ok(()) => return Ok(temporary),
            Err(error) if is_taken(&error) => {}
            Err(error) => {
                let _ = rustix::fs::unlinkat(dir, &temporary, AtFlags::empty());
                return Err(error);
            }
        }
    }
    bail!("every temporary name beside it is taken")
}

fn is_taken(error: &anyhow::Error) -> bool {
    let exists = rustix::io::Errno::EXIST;
    error.downcast_ref::<rustix::io::Errno>() == Some(&exists)
        || error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.raw_os_error() == Some(exists.raw_os_error()))
}

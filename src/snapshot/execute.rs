//! Carries out a plan, through the root as the container sees it.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use serde::Serialize;

use super::attributes::{Found, apply};
use super::copy::{Way, copy_file};
use super::index::{Content, Entry, Kind, Meta};
use super::inode::InodeKind;
use super::node::make_node;
use super::opened::Opened;
use super::paths::Id;
use super::plan::{Plan, PlanStep, Verb, look_lower};
use super::{Progress, shown};
use crate::sys::inode::DevIno;
use crate::sys::{fs, remove};

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PutBack {
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
            Self::Lower(found, _) => found.kind.is_dir(),
        }
    }
}

impl Plan<'_> {
    /// Makes the root equal to the snapshot. After an error, a new plan goes on from there: each
    /// file is the old one or the new one, whole.
    ///
    /// Whoever owns a directory of the root may rename and link in it all the time. So everything is
    /// made in a [`Workshop`], attributes go to the inode that was made or that the plan has seen, and
    /// whatever has another inode by then is an error.
    pub fn execute(self, progress: &dyn Progress) -> Result<PutBack> {
        let mut report = PutBack { notes: self.notes().to_vec(), ..PutBack::default() };
        progress.expect(self.bytes_to_write());
        self.remove_all(&mut report)?;
        let workshop = Workshop::make(self.root.top())?;
        let work = Work {
            plan: &self,
            workshop: Some(workshop),
            progress,
            made: Mutex::default(),
            top: Opened::below(self.root.top()),
            lower: self.lower.as_ref().map(|lower| Opened::below(lower.as_fd())),
            held: self.held.as_ref().map(|held| Opened::below(held.as_fd())),
        };
        work.make_all(&mut report)?;
        work.link_all(&mut report)?;
        work.finish()?;
        Ok(report)
    }

    fn bytes_to_write(&self) -> u64 {
        let size = |step: &PlanStep| match (step.verb, self.entry(step).map(|entry| &entry.kind)) {
            (Some(Verb::Create | Verb::Replace), Some(Kind::File { content, .. })) => {
                content.length
            }
            _ => 0,
        };
        self.steps.values().map(size).sum()
    }

    fn entry(&self, step: &PlanStep) -> Option<&Entry> {
        self.part.index().entries.value(step.entry?)
    }

    /// First, which also gives room back.
    fn remove_all(&self, report: &mut PutBack) -> Result<()> {
        let mut walk = self.steps.walk();
        while let Some((_, step)) = walk.next() {
            if step.remove {
                let path = walk.path();
                remove::tree(self.root.top(), path)
                    .with_context(|| format!("removing {}", shown(path)))?;
                report.removed += 1;
            }
        }
        Ok(())
    }
}

/// A plan that is being carried out.
struct Work<'a> {
    plan: &'a Plan<'a>,
    /// There until directories get their attributes: it is in the root itself.
    workshop: Option<Workshop>,
    progress: &'a dyn Progress,
    /// The directories that were made, to know them again.
    made: Mutex<HashMap<Id, DevIno>>,
    /// The root, the layers below it, and what content can be cloned from.
    top: Opened<'a>,
    lower: Option<Opened<'a>>,
    held: Option<Opened<'a>>,
}

impl Work<'_> {
    fn make_all(&self, report: &mut PutBack) -> Result<()> {
        let mut rest = Vec::new();
        for (id, step) in self.plan.steps.walk() {
            match step.verb {
                Some(Verb::Create) => report.created += 1,
                Some(Verb::Replace) => report.replaced += 1,
                Some(Verb::Attributes) => report.attributes += 1,
                None | Some(Verb::Remove | Verb::Link) => continue,
            }
            // Directories one after the other, as each may be in another; then there is room for all
            // that is in them.
            if step.verb == Some(Verb::Create) && self.is_dir(id, step) {
                self.carry_out(id, step)?;
            } else {
                rest.push((id, step));
            }
        }
        let carry_out = |(id, step): &(Id, &PlanStep)| self.carry_out(*id, step);
        let bytes = if rest.len() < 2 {
            rest.iter().map(carry_out).collect::<Result<Vec<_>>>()
        } else {
            rest.par_iter().map(carry_out).collect()
        };
        report.bytes += bytes?.iter().sum::<u64>();
        Ok(())
    }

    /// Makes something, and returns how many bytes of content were written.
    fn carry_out(&self, id: Id, step: &PlanStep) -> Result<u64> {
        match step.verb {
            Some(Verb::Create | Verb::Replace) => self.make(id, step),
            Some(Verb::Attributes) => self.set_attributes(id, step).map(|()| 0),
            None | Some(Verb::Remove | Verb::Link) => Ok(0),
        }
        .with_context(|| format!("restoring {}", self.shown(id)))
    }

    fn shown(&self, id: Id) -> String {
        shown(&self.plan.steps.path(id))
    }

    /// The directory that a path is in, and its name there.
    fn split(&self, id: Id) -> Result<(Id, &[u8])> {
        ensure!(id != Id::ROOT, "the root is always there");
        Ok((self.plan.steps.parent(id), self.plan.steps.name(id)))
    }

    fn open(&self, dirs: &Opened<'_>, dir: Id) -> io::Result<Arc<OwnedFd>> {
        dirs.dir(&self.plan.steps, dir)
    }

    /// What a path that is to be there is made from.
    fn made_from(&self, id: Id, step: &PlanStep) -> Result<Made<'_>> {
        if let Some(entry) = step.entry.and_then(|id| self.plan.part.index().entries.value(id)) {
            return Ok(Made::Entry(entry));
        }
        let lower = self.lower.as_ref().context("it is neither in the snapshot nor below")?;
        let (parent, name) = self.split(id)?;
        let dir = self.open(lower, parent).context("opening the lower directory")?;
        let (found, entry) = look_lower(&dir, name)?.context("it is gone from the lower layers")?;
        Ok(Made::Lower(found, entry))
    }

    fn is_dir(&self, id: Id, step: &PlanStep) -> bool {
        self.made_from(id, step).is_ok_and(|made| made.is_dir())
    }

    /// Sets the attributes of anything but a directory; those come last.
    fn set_attributes(&self, id: Id, step: &PlanStep) -> Result<()> {
        let made = self.made_from(id, step)?;
        if made.is_dir() {
            return Ok(());
        }
        apply(self.open_seen(id, step.seen)?, made.meta())
    }

    /// Opens what has a path, if it is still the inode that was seen or made.
    fn open_seen(&self, id: Id, seen: Option<DevIno>) -> Result<OwnedFd> {
        let (parent, name) = self.split(id)?;
        let entry = fs::open_entry(self.open(&self.top, parent)?, name)?.context("it is gone")?;
        ensure!(Some(DevIno::of(&entry)?) == seen, "another was put in its place meanwhile");
        Ok(entry)
    }

    fn make(&self, id: Id, step: &PlanStep) -> Result<u64> {
        let made = self.made_from(id, step)?;
        let (parent, name) = self.split(id)?;
        let dir = self.open(&self.top, parent)?;
        if made.is_dir() {
            let inode = make_dir(&dir, name).context("making the directory")?;
            self.made.lock().expect("nobody panics with it").insert(id, inode);
            return Ok(0);
        }
        let mut bytes = 0;
        self.workshop.as_ref().context("the work is done")?.give(
            &dir,
            name,
            |desk, temporary| {
                let (entry, written) = self.make_node(desk, temporary, &made, id)?;
                bytes = written;
                apply(entry, made.meta())
            },
        )?;
        Ok(bytes)
    }

    /// Makes a new inode without attributes, opens it, and says how many bytes were written.
    fn make_node(
        &self,
        desk: &OwnedFd,
        name: &[u8],
        made: &Made<'_>,
        id: Id,
    ) -> Result<(OwnedFd, u64)> {
        match made {
            Made::Entry(Entry { kind: Kind::File { size, content }, .. }) => {
                let file = fs::create_file(desk, name)?;
                if self.clone_held(id, *size, &file).unwrap_or(false) {
                    self.progress.advance(content.length);
                    return Ok((file, 0));
                }
                let file = File::from(file);
                let written = self.write(&file, *size, content)?;
                Ok((file.into(), written))
            }
            Made::Lower(Found { kind: InodeKind::File(()), .. }, entry) => {
                let target = fs::create_file(desk, name)?;
                let source = fs::open_for_reading(entry)?;
                let copied = copy_file(&source, &target, Way::Cache)?.moved();
                Ok((target, copied))
            }
            Made::Entry(entry) => node(desk, name, &without_bytes(&entry.kind)?),
            Made::Lower(found, _) => node(desk, name, &found.kind),
        }
    }

    /// Shares the bytes of the same file in a snapshot that is held on this file system, if there is
    /// one: it is read-only, and of this very index.
    fn clone_held(&self, id: Id, size: u64, file: &OwnedFd) -> Result<bool> {
        let Some(held) = &self.held else { return Ok(false) };
        let (parent, name) = self.split(id)?;
        let entry = fs::open_entry(self.open(held, parent)?, name)?.context("it is gone")?;
        let source = fs::open_for_reading(entry)?;
        rustix::fs::ioctl_ficlone(file, &source)?;
        Ok(fs::stat(file)?.st_size as u64 == size)
    }

    fn write(&self, file: &File, size: u64, content: &Content) -> Result<u64> {
        file.set_len(size).context("setting its length")?;
        self.plan.part.stored(content, |at, bytes| {
            file.write_all_at(bytes, at).context("writing its content")?;
            self.progress.advance(bytes.len() as u64);
            Ok(())
        })?;
        Ok(content.length)
    }

    fn link_all(&self, report: &mut PutBack) -> Result<()> {
        for (id, step) in self.plan.steps.walk().filter(|(_, step)| step.verb == Some(Verb::Link)) {
            self.link(id, step).with_context(|| format!("linking {}", self.shown(id)))?;
            report.linked += 1;
        }
        Ok(())
    }

    fn link(&self, id: Id, step: &PlanStep) -> Result<()> {
        let entries = &self.plan.part.index().entries;
        let first = step.first.context("it is not in the index")?;
        let from = fs::open_dir(self.plan.root.top(), &entries.path(entries.parent(first)))?;
        let (parent, name) = self.split(id)?;
        let dir = self.open(&self.top, parent)?;
        self.workshop.as_ref().context("the work is done")?.give(&dir, name, |desk, temporary| {
            let first = entries.name(first);
            Ok(rustix::fs::linkat(&from, first, desk, temporary, AtFlags::empty())?)
        })
    }

    /// Sets the attributes of the directories that were made or in which something was done: last,
    /// since each change in a directory sets its time, and the deepest first.
    fn finish(mut self) -> Result<()> {
        drop(self.workshop.take());
        let mut dirs: Vec<Id> = vec![Id::ROOT];
        let steps = &self.plan.steps;
        for (id, step) in steps.walk().filter(|(_, step)| step.remove || step.verb.is_some()) {
            dirs.push(steps.parent(id));
            if step.verb.is_some() && self.is_dir(id, step) {
                dirs.push(id);
            }
        }
        // A directory got its place before what is in it.
        dirs.sort_unstable();
        dirs.dedup();
        let mut last = None;
        for id in dirs.into_iter().rev() {
            let done = self.finish_dir(id, last.take());
            let context = || format!("setting the attributes of {}", self.shown(id));
            last = Some((id, done.with_context(context)?));
        }
        Ok(())
    }

    /// Sets the attributes of a directory that was made or seen, and returns it. Of the parents of what
    /// was removed or made the time alone is another. `last` may be in it.
    fn finish_dir(&self, id: Id, last: Option<(Id, Arc<OwnedFd>)>) -> Result<Arc<OwnedFd>> {
        let step = self.plan.steps.value(id).context("it is not in the plan")?;
        let made = self.made_from(id, step)?;
        let was_made = self.made.lock().expect("nobody panics with it").get(&id).copied();
        let inode = was_made.or(step.seen);
        let above = match (last, inode) {
            (Some((below, last)), Some(inode)) if self.plan.steps.parent(below) == id => {
                fs::open_parent(&last, inode)?
            }
            _ => None,
        };
        let dir = match above {
            Some(dir) => Arc::new(dir),
            None => self.open(&self.top, id)?,
        };
        match inode {
            None => fs::set_mtime(&dir, made.meta().mtime)?,
            Some(inode) => {
                ensure!(DevIno::of(&dir)? == inode, "another was put in its place meanwhile");
                apply(&dir, made.meta())?;
            }
        }
        Ok(dir)
    }
}

/// What an inode without bytes is.
fn without_bytes(kind: &Kind) -> Result<InodeKind> {
    match kind.inode() {
        None | Some(InodeKind::File(_) | InodeKind::Dir) => bail!("it is no inode without bytes"),
        Some(kind) => Ok(kind.map_file(drop).into_owned()),
    }
}

/// Makes an inode without bytes, and opens it.
fn node(desk: &OwnedFd, name: &[u8], kind: &InodeKind) -> Result<(OwnedFd, u64)> {
    make_node(desk, name, kind)?;
    Ok((fs::open_entry(desk, name)?.context("it is gone")?, 0))
}

/// Makes a directory for root alone; attributes come last, and meanwhile nobody else gets in.
fn make_dir(dir: &OwnedFd, name: &[u8]) -> Result<DevIno> {
    rustix::fs::mkdirat(dir, name, Mode::RWXU)?;
    let made = fs::open_dir(dir, name)?;
    ensure!(is_private(&made)?, "another was put in its place meanwhile");
    ensure!(fs::names(&made)?.is_empty(), "something was put into it meanwhile");
    Ok(DevIno::of(made)?)
}

/// Whether a directory is the caller's, and nobody else's can enter it.
fn is_private(dir: &OwnedFd) -> io::Result<bool> {
    let stat = fs::stat(dir)?;
    Ok(stat.st_uid == rustix::process::geteuid().as_raw() && stat.st_mode & 0o077 == 0)
}

/// A directory of the root in which inodes are made before they get their names: nobody else can enter
/// it, so that what is in there is what was made there, whoever owns the directories around it.
struct Workshop {
    parent: OwnedFd,
    name: String,
    desk: OwnedFd,
    next: AtomicU64,
}

impl Workshop {
    fn make(parent: impl AsFd) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        for _ in 0..1000 {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!(".ocicle-{}-{number}", std::process::id());
            match rustix::fs::mkdirat(&parent, &name, Mode::RWXU) {
                Err(Errno::EXIST) => continue,
                made => made.context("making a directory to work in")?,
            }
            let desk = fs::open_dir(&parent, name.as_bytes())?;
            ensure!(is_private(&desk)?, "{name} is not the directory that was made");
            let parent = fs::open_dir(parent, b"")?;
            return Ok(Self { parent, name, desk, next: AtomicU64::new(0) });
        }
        bail!("every temporary name is taken")
    }

    /// Lets `make` make something, then gives it a name in `dir`: whoever dies in between leaves the
    /// old file as it was.
    fn give(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        mut make: impl FnMut(&OwnedFd, &[u8]) -> Result<()>,
    ) -> Result<()> {
        match self.try_give(dir, name, &mut make) {
            // A subvolume, or a quota's project: nothing is moved or linked into it.
            Err(error) if is_elsewhere(&error) => {
                Workshop::make(dir)?.try_give(dir, name, &mut make)
            }
            other => other,
        }
    }

    fn try_give(
        &self,
        dir: &OwnedFd,
        name: &[u8],
        make: &mut impl FnMut(&OwnedFd, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let temporary = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        let given = make(&self.desk, temporary.as_bytes()).and_then(|()| {
            rustix::fs::renameat(&self.desk, &temporary, dir, name).context("giving it its name")
        });
        // Two names of one inode: rename(2) then does nothing, and the temporary one stays.
        let _ = rustix::fs::unlinkat(&self.desk, temporary, AtFlags::empty());
        given
    }
}

impl Drop for Workshop {
    fn drop(&mut self) {
        let _ = rustix::fs::unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

fn is_elsewhere(error: &anyhow::Error) -> bool {
    let elsewhere = Errno::XDEV;
    error.downcast_ref::<Errno>() == Some(&elsewhere)
        || error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.raw_os_error() == Some(elsewhere.raw_os_error()))
}

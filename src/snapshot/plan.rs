//! Compares a root with a snapshot, and says what would make it equal. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use rustix::fs::AtFlags;

use super::attributes::{Found, Shape, identity};
use super::copy::BUFFER;
use super::driver::HeldLocally;
use super::identity::Form;
use super::index::{Content, Entry, Index, Kind, Meta, PATH_LIMIT};
use super::layer::FRAME;
use super::part::PackedPart;
use super::probe::Root;
use super::walk::{open_existing, upper_state};
use super::{join, shown};
use crate::bytes::ByteString;
use crate::sys::fs;

/// What is to be done with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// It was not there: it goes, with all that is in it.
    Remove,
    /// It is gone, or was something else: it is made anew.
    Create,
    /// Its content differs: a new inode takes its name.
    Replace,
    /// It was another name of an inode, and is so again.
    Link,
    /// Only owner, mode, times or extended attributes differ.
    Attributes,
}

/// One step of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// What is to be done.
    pub verb: Verb,
    /// With which path, relative to the root; the root itself is empty.
    pub path: ByteString,
    /// The inode whose attributes are to be set: no other that gets its path meanwhile.
    pub(super) seen: Option<Inode>,
}

/// Device and inode number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Inode(u64, u64);

impl Inode {
    /// Of what a descriptor refers to.
    pub(super) fn of(entry: impl AsFd) -> Result<Self> {
        let stat = fs::stat(entry)?;
        Ok(Self(stat.st_dev, stat.st_ino))
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.verb {
            Verb::Remove => "remove",
            Verb::Create => "create",
            Verb::Replace => "replace",
            Verb::Link => "link",
            Verb::Attributes => "attributes",
        };
        write!(f, "{verb} /{}", self.path)
    }
}

/// What would make a root equal to a snapshot.
pub struct Plan<'a> {
    pub(super) root: &'a Root,
    pub(super) part: &'a PackedPart,
    /// What the layers below the root show.
    pub(super) lower: Option<OwnedFd>,
    /// The same content on the same file system, which files can be cloned from.
    pub(super) held: Option<OwnedFd>,
    actions: Vec<Action>,
    notes: Vec<String>,
}

impl Plan<'_> {
    /// The steps, in the order of paths; a path that changes its type has two.
    pub fn actions(&self) -> &[Action] {
        &self.actions
    }

    /// What could not be compared, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether the root is as it was.
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// Takes content from what this machine still holds, where that can be cloned.
    pub fn cloning(self, local: Option<&HeldLocally>) -> Self {
        Self { held: local.and_then(HeldLocally::directory), ..self }
    }

    /// How many steps of each kind.
    pub fn summary(&self) -> BTreeMap<Verb, usize> {
        let mut counts = BTreeMap::new();
        for action in &self.actions {
            *counts.entry(action.verb).or_default() += 1;
        }
        counts
    }
}

/// Compares the root as it is now with the snapshot.
pub fn plan<'a>(root: &'a Root, part: &'a PackedPart) -> Result<Plan<'a>> {
    let lower = root.overlay().map(super::probe::Overlay::lower_view).transpose()?;
    let mut notes = Vec::new();
    if part.index().driver == Form::Overlay && lower.is_none() {
        notes.push(
            "the snapshot is of an overlay and the root is none: what was created since, and what \
             the image had, cannot be known"
                .to_owned(),
        );
    }
    let comparison = Comparison { root, part, lower: lower.as_ref().map(AsFd::as_fd) };
    let verdicts = comparison
        .run()
        .with_context(|| format!("comparing {} with the snapshot", root.path().display()))?;
    let actions = settle(verdicts, root.overlay().is_some());
    Ok(Plan { root, part, lower, held: None, actions, notes })
}

/// So many names are compared in one go, by one thread.
const FEW: usize = 16;

/// Whether a snapshot holds so little that to compare it takes no longer than to start threads.
fn is_little(index: &Index) -> bool {
    let bytes = |entry: &Entry| match &entry.kind {
        Kind::File { content, .. } => content.length,
        _ => 0,
    };
    index.entries.len() <= 4 * FEW
        && index.entries.values().map(bytes).sum::<u64>() <= 4 * BUFFER as u64
}

struct Comparison<'a> {
    root: &'a Root,
    part: &'a PackedPart,
    lower: Option<BorrowedFd<'a>>,
}

/// A directory of the snapshot that is to be compared.
struct Job {
    path: Vec<u8>,
    /// Whether nothing below the snapshot shows through here.
    covered: bool,
    /// The directory is there now; if so, whether all that is seen counts, because it was renamed.
    present: Option<bool>,
}

/// What a path is to be.
enum Wanted<'a> {
    Absent,
    /// The entry of its inode, and the first path of that.
    Entry(&'a [u8], &'a Entry),
    Lower(Found, OwnedFd),
}

/// The outcome for one path.
struct Verdict {
    path: Vec<u8>,
    /// The first path of the inode that it is to be.
    first: Vec<u8>,
    remove: bool,
    verb: Option<Verb>,
    /// The inode that stays, for what can have several names.
    kept: Option<(u64, u64)>,
    /// The inode that was compared.
    seen: Option<Inode>,
}

impl<'a> Comparison<'a> {
    fn run(&self) -> Result<Vec<Verdict>> {
        let index = self.part.index();
        let entry = index.get(b"").context("the index has no root")?;
        let found = Found::look(self.root.top())?;
        let mut verdicts = Vec::new();
        verdicts.extend((found.meta != entry.meta).then(|| Verdict {
            path: Vec::new(),
            first: Vec::new(),
            remove: false,
            verb: Some(Verb::Attributes),
            kept: None,
            seen: Some(Inode(found.device, found.identity.ino)),
        }));
        let covered =
            index.driver == Form::Directory || matches!(entry.kind, Kind::Dir { opaque: true });
        let mut jobs = vec![Job { path: Vec::new(), covered, present: Some(false) }];
        while !jobs.is_empty() {
            let compare = |job: &Job| {
                self.compare_dir(job).with_context(|| format!("comparing {}", shown(&job.path)))
            };
            let compared = if is_little(index) {
                jobs.iter().map(compare).collect::<Result<Vec<_>>>()
            } else {
                jobs.par_iter().map(compare).collect()
            };
            jobs.clear();
            for (outcome, dirs) in compared? {
                verdicts.extend(outcome);
                jobs.extend(dirs);
            }
        }
        verdicts.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(verdicts)
    }

    fn compare_dir(&self, job: &Job) -> Result<(Vec<Verdict>, Vec<Job>)> {
        ensure!(job.path.len() <= PATH_LIMIT, "the path is longer than {PATH_LIMIT} bytes");
        let view = View::open(self, job)?;
        let names: Vec<_> = view.candidates(self, job)?.into_iter().collect();
        let compare = |name: &Vec<u8>| {
            let path = join(&job.path, name);
            self.compare_name(&view, job, &path, name)
                .with_context(|| format!("comparing {}", shown(&path)))
        };
        let compared = if names.len() <= FEW {
            names.iter().map(compare).collect::<Result<Vec<_>>>()
        } else {
            // In small pieces: those that have changed take longest, and lie side by side.
            names.par_iter().with_min_len(FEW).with_max_len(FEW).map(compare).collect()
        };
        let (verdicts, jobs): (Vec<_>, Vec<_>) = compared?.into_iter().unzip();
        Ok((verdicts, jobs.into_iter().flatten().collect()))
    }

    fn compare_name(
        &self,
        view: &View,
        job: &Job,
        path: &[u8],
        name: &[u8],
    ) -> Result<(Verdict, Option<Job>)> {
        if let Some(verdict) = self.recognize(view, path, name) {
            return Ok((verdict, None));
        }
        let wanted = self.wanted(view, job, path, name)?;
        let present = view.look(name)?;
        let verdict = self.judge(path, &wanted, present.as_ref())?;
        let child = self.child(view, job, path, name, &wanted, present.as_ref())?;
        Ok((verdict, child))
    }

    /// A file that has not changed since: stat(2) says so, and it need not be opened.
    fn recognize(&self, view: &View, path: &[u8], name: &[u8]) -> Option<Verdict> {
        let (first, entry) = self.part.index().inode(path)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let now = rustix::fs::statat(view.merged.as_ref()?, name, flags).ok()?;
        let same = entry.identity.as_ref() == Some(&identity(&now));
        let kept = Some((now.st_dev, now.st_ino));
        same.then(|| Verdict {
            path: path.into(),
            first: first.into(),
            remove: false,
            verb: None,
            kept,
            seen: None,
        })
    }

    fn wanted<'b>(
        &'b self,
        view: &View,
        job: &Job,
        path: &'b [u8],
        name: &[u8],
    ) -> Result<Wanted<'b>> {
        match self.part.index().inode(path) {
            Some((_, Entry { kind: Kind::Whiteout, .. })) => Ok(Wanted::Absent),
            Some((first, entry)) => Ok(Wanted::Entry(first, entry)),
            None if job.covered => Ok(Wanted::Absent),
            None => match &view.lower {
                Some(lower) => Ok(look_lower(lower, name)?
                    .map_or(Wanted::Absent, |(found, entry)| Wanted::Lower(found, entry))),
                None => Ok(Wanted::Absent),
            },
        }
    }

    /// Compares one path.
    fn judge(
        &self,
        path: &[u8],
        wanted: &Wanted<'_>,
        present: Option<&(Found, OwnedFd)>,
    ) -> Result<Verdict> {
        let first = match wanted {
            Wanted::Entry(first, _) => first,
            _ => path,
        };
        let mut verdict = Verdict {
            path: path.to_vec(),
            first: first.to_vec(),
            remove: false,
            verb: None,
            kept: None,
            seen: present.map(|(found, _)| Inode(found.device, found.identity.ino)),
        };
        let is_dir = match wanted {
            Wanted::Absent => {
                verdict.remove = present.is_some();
                return Ok(verdict);
            }
            Wanted::Entry(_, entry) => matches!(entry.kind, Kind::Dir { .. }),
            Wanted::Lower(found, _) => found.shape == Shape::Dir,
        };
        let Some((found, entry)) = present else {
            verdict.verb = Some(Verb::Create);
            return Ok(verdict);
        };
        if is_dir != (found.shape == Shape::Dir) {
            verdict.remove = true;
            verdict.verb = Some(Verb::Create);
            return Ok(verdict);
        }
        verdict.verb = self.compare(wanted, found, entry)?;
        let stays = matches!(verdict.verb, None | Some(Verb::Attributes));
        verdict.kept = (!is_dir && stays).then(|| found.inode());
        Ok(verdict)
    }

    /// What is needed to make a present inode equal to what is wanted.
    fn compare(&self, wanted: &Wanted<'_>, found: &Found, entry: &OwnedFd) -> Result<Option<Verb>> {
        let (meta, same) = match wanted {
            Wanted::Absent => return Ok(None),
            Wanted::Entry(_, want) => {
                if want.identity.as_ref() == Some(&found.identity) {
                    return Ok(None);
                }
                (&want.meta, self.is_same_entry(&want.kind, found, entry)?)
            }
            Wanted::Lower(want, lower) => (&want.meta, is_same_lower(want, lower, found, entry)?),
        };
        Ok(match (same, *meta == found.meta) {
            (false, _) => Some(Verb::Replace),
            (true, false) if gains_rights(&found.shape, &found.meta, meta) => Some(Verb::Replace),
            (true, false) => Some(Verb::Attributes),
            (true, true) => None,
        })
    }

    fn is_same_entry(&self, kind: &Kind, found: &Found, entry: &OwnedFd) -> Result<bool> {
        Ok(match (kind, &found.shape) {
            (Kind::Dir { .. }, Shape::Dir)
            | (Kind::Fifo, Shape::Fifo)
            | (Kind::Socket, Shape::Socket) => true,
            (Kind::Symlink { target }, Shape::Symlink(is)) => target.as_bytes() == is,
            (Kind::Char { major, minor }, Shape::Char(a, b))
            | (Kind::Block { major, minor }, Shape::Block(a, b)) => (major, minor) == (a, b),
            (Kind::File { size, content }, Shape::File) => {
                *size == found.identity.size
                    && is_stored(self.part, content, *size, &fs::open_for_reading(entry)?.into())?
            }
            _ => false,
        })
    }

    /// The job for a directory that is to be there.
    fn child(
        &self,
        view: &View,
        job: &Job,
        path: &[u8],
        name: &[u8],
        wanted: &Wanted<'_>,
        present: Option<&(Found, OwnedFd)>,
    ) -> Result<Option<Job>> {
        let opaque = match wanted {
            Wanted::Entry(_, Entry { kind: Kind::Dir { opaque }, .. }) => *opaque,
            Wanted::Lower(found, _) if found.shape == Shape::Dir => false,
            _ => return Ok(None),
        };
        let present = match present {
            Some((found, _)) if found.shape == Shape::Dir => {
                // What is mounted there is not the part's.
                if !self.root.holds(found.device) {
                    return Ok(None);
                }
                Some(job.present == Some(true) || view.is_renamed(self.root, name)?)
            }
            _ => None,
        };
        Ok(Some(Job { path: path.to_vec(), covered: job.covered || opaque, present }))
    }
}

/// The same directory, as it is seen now, in the upper layer and in the lower ones.
struct View {
    merged: Option<OwnedFd>,
    upper: Option<OwnedFd>,
    lower: Option<OwnedFd>,
}

impl View {
    fn open(of: &Comparison<'_>, job: &Job) -> Result<Self> {
        let merged = match job.present {
            Some(_) => Some(fs::open_dir(of.root.top(), &job.path)?),
            None => None,
        };
        let upper = match (of.root.overlay(), &merged) {
            (Some(overlay), Some(_)) => open_existing(&overlay.upper, &job.path)?,
            _ => None,
        };
        let lower = match of.lower {
            Some(lower) if !job.covered => open_existing(lower, &job.path)?,
            _ => None,
        };
        Ok(Self { merged, upper, lower })
    }

    /// The names that may have to change: those of the index, of the upper layer, and where what
    /// is seen and the lower layers differ. The rest is the lower layers' own, and untouched.
    fn candidates(&self, of: &Comparison<'_>, job: &Job) -> Result<BTreeSet<Vec<u8>>> {
        let list = |dir: &Option<OwnedFd>| -> Result<BTreeSet<Vec<u8>>> {
            Ok(match dir {
                Some(dir) => fs::names(dir)?.into_iter().collect(),
                None => BTreeSet::new(),
            })
        };
        let mut names: BTreeSet<Vec<u8>> =
            of.part.index().children(&job.path).map(|(name, _)| name.to_vec()).collect();
        if job.covered {
            names.append(&mut list(&self.merged)?);
        } else if of.lower.is_some() {
            let (merged, lower) = (list(&self.merged)?, list(&self.lower)?);
            let whole = job.present == Some(true);
            names.extend(merged.symmetric_difference(&lower).cloned());
            names.extend(list(&self.upper)?);
            if whole {
                names.extend(merged);
            }
        }
        Ok(names)
    }

    fn look(&self, name: &[u8]) -> Result<Option<(Found, OwnedFd)>> {
        let Some(merged) = &self.merged else { return Ok(None) };
        let Some(entry) = fs::open_entry(merged, name)? else { return Ok(None) };
        Ok(Some((Found::look(&entry)?, entry)))
    }

    fn is_renamed(&self, root: &Root, name: &[u8]) -> Result<bool> {
        let (Some(overlay), Some(upper)) = (root.overlay(), &self.upper) else { return Ok(false) };
        match fs::open_entry(upper, name)? {
            Some(entry) => Ok(upper_state(overlay, entry)?.1),
            None => Ok(false),
        }
    }
}

/// Whether a file of one owner is to get another's rights with its attributes: its owner may have it
/// open, and write it until then.
fn gains_rights(shape: &Shape, is: &Meta, was: &Meta) -> bool {
    let has_rights = was.mode & 0o6000 != 0
        || was.xattrs.keys().any(|name| name.as_bytes().starts_with(b"security.capability"));
    *shape == Shape::File && has_rights && (is.uid, is.gid) != (was.uid, was.gid)
}

/// What the lower layers show under a name. A single layer is looked at as it lies there, so that a
/// whiteout in it, which hides nothing, must be passed over here.
pub(super) fn look_lower(dir: &OwnedFd, name: &[u8]) -> Result<Option<(Found, OwnedFd)>> {
    let Some(entry) = fs::open_entry(dir, name)? else { return Ok(None) };
    let found = Found::look(&entry)?;
    Ok((found.shape != Shape::Char(0, 0)).then_some((found, entry)))
}

fn is_same_lower(want: &Found, lower: &OwnedFd, found: &Found, entry: &OwnedFd) -> Result<bool> {
    if want.shape != found.shape {
        return Ok(false);
    }
    if want.shape != Shape::File || want.inode() == found.inode() && want.identity == found.identity
    {
        return Ok(true);
    }
    let size = want.identity.size;
    if size != found.identity.size {
        return Ok(false);
    }
    is_same_data(&fs::open_for_reading(lower)?.into(), &fs::open_for_reading(entry)?.into(), size)
}

/// Whether a file has the stored content, reading no hole of it. What is stored need not be read to
/// know that: its digest says it.
pub(super) fn is_stored(
    part: &PackedPart,
    content: &Content,
    size: u64,
    file: &File,
) -> Result<bool> {
    if content.length > FRAME as u64 && !begins_as_stored(part, content, file)? {
        return Ok(false);
    }
    let mut hash = blake3::Hasher::new();
    let mut buffer = vec![0; BUFFER.min(content.length as usize)];
    let mut at = 0;
    for (start, length) in content.stretches() {
        if !is_zero(file, at, start)? {
            return Ok(false);
        }
        at = start;
        while at < start + length {
            let piece = BUFFER.min((start + length - at) as usize);
            let piece = &mut buffer[..piece];
            if !read_full(file, piece, at)? {
                return Ok(false);
            }
            hash.update(piece);
            at += piece.len() as u64;
        }
    }
    Ok(*hash.finalize().to_hex() == *content.digest && is_zero(file, at, size)?)
}

/// Compares the first bytes of a large file, of which there would be more to read than a frame.
fn begins_as_stored(part: &PackedPart, content: &Content, file: &File) -> Result<bool> {
    let Some((start, length)) = content.stretches().first().copied() else { return Ok(true) };
    let (mut is, mut was) = ([0; 4096], [0; 4096]);
    let want = is.len().min(length as usize);
    part.read_stored(content, content.offset, &mut was[..want])?;
    Ok(read_full(file, &mut is[..want], start)? && is[..want] == was[..want])
}

/// Whether a range of a file is a hole or zeros.
fn is_zero(file: &File, start: u64, end: u64) -> Result<bool> {
    let mut at = start;
    let mut buffer = vec![0; BUFFER.min((end - start) as usize)];
    while at < end {
        let Some((from, to)) = fs::next_data(file, at, end)? else { return Ok(true) };
        at = from;
        while at < to {
            let want = buffer.len().min((to - at) as usize);
            if !read_full(file, &mut buffer[..want], at)? || buffer[..want].iter().any(|b| *b != 0)
            {
                return Ok(false);
            }
            at += want as u64;
        }
    }
    Ok(true)
}

/// Compares two files of one length where either has data.
fn is_same_data(a: &File, b: &File, size: u64) -> Result<bool> {
    let (mut left, mut right) = (vec![0; BUFFER], vec![0; BUFFER]);
    let mut at = 0;
    while at < size {
        let next = [fs::next_data(a, at, size)?, fs::next_data(b, at, size)?];
        let Some(start) = next.into_iter().flatten().map(|(start, _)| start).min() else {
            return Ok(true);
        };
        let want = BUFFER.min((size - start) as usize);
        let (left, right) = (&mut left[..want], &mut right[..want]);
        if !read_full(a, left, start)? || !read_full(b, right, start)? || left != right {
            return Ok(false);
        }
        at = start + want as u64;
    }
    Ok(true)
}

fn read_full(file: &File, buffer: &mut [u8], at: u64) -> Result<bool> {
    match file.read_exact_at(buffer, at) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Turns verdicts, in the order of paths, into actions: an inode stays for the names of one group
/// only, and the names of a group are names of one inode.
fn settle(mut verdicts: Vec<Verdict>, is_overlay: bool) -> Vec<Action> {
    let grouped: BTreeSet<Vec<u8>> =
        verdicts.iter().filter(|v| v.path != v.first).map(|v| v.first.clone()).collect();
    let mut owners: HashMap<(u64, u64), Vec<u8>> = HashMap::new();
    let mut firsts: HashMap<Vec<u8>, Option<(u64, u64)>> = HashMap::new();
    for verdict in verdicts.iter_mut().filter(|verdict| verdict.path == verdict.first) {
        let Some(inode) = verdict.kept else { continue };
        let is_taken = owners.contains_key(&inode);
        // Changing attributes copies the inode up, which separates it from its lower names.
        let separates = is_overlay && verdict.verb.is_some() && grouped.contains(&verdict.path);
        if is_taken || separates {
            verdict.verb = Some(Verb::Replace);
            verdict.kept = None;
        } else {
            owners.insert(inode, verdict.path.clone());
        }
        firsts.insert(verdict.path.clone(), verdict.kept);
    }
    let mut actions = Vec::new();
    for verdict in verdicts {
        let mut verb = verdict.verb;
        if verdict.path != verdict.first {
            let first = firsts.get(&verdict.first).copied().flatten();
            verb = if first.is_some() && verdict.kept == first { None } else { Some(Verb::Link) };
        }
        let path = ByteString::from(verdict.path);
        if verdict.remove {
            actions.push(Action { verb: Verb::Remove, path: path.clone(), seen: None });
        }
        if let Some(verb) = verb {
            let seen = verdict.seen.filter(|_| verb == Verb::Attributes);
            actions.push(Action { verb, path, seen });
        }
    }
    actions
}

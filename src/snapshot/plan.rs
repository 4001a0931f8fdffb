//! Compares a root with a snapshot, and says what would make it equal. Nothing is changed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use rustix::fs::AtFlags;

use super::BUFFER;
use super::attributes::{Found, identity};
use super::driver::HeldLocally;
use super::identity::Form;
use super::index::{Content, Digest, Entry, Index, Kind, Meta};
use super::inode::InodeKind;
use super::layer::FRAME;
use super::opened::Opened;
use super::part::PackedPart;
use super::paths::{Id, Paths, Weigh};
use super::probe::Root;
use super::walk::upper_state;
use super::{join, shown};
use crate::bytes::ByteString;
use crate::limits::PATH_LIMIT;
use crate::sys::extent::next_data;
use crate::sys::fs;
use crate::sys::inode::{DevIno, Device};

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
    pub(super) steps: Arc<Paths<PlanStep>>,
    notes: Vec<String>,
}

/// What is to be done with a path.
#[derive(Clone, Debug, Default)]
pub(super) struct PlanStep {
    pub remove: bool,
    pub verb: Option<Verb>,
    /// The path in the index, and the first of the inode that it is to be; of what the layers below
    /// show, neither.
    pub entry: Option<Id>,
    pub first: Option<Id>,
    /// The inode whose attributes are to be set.
    pub seen: Option<DevIno>,
    /// The inode that stays, for what can have several names.
    kept: Option<DevIno>,
}

impl Weigh for PlanStep {}

impl PlanStep {
    fn is_other_name(&self) -> bool {
        self.first != self.entry
    }

    /// What becomes of the path.
    fn change(&self) -> Option<Verb> {
        match (self.remove, self.verb) {
            // What is removed and then made anew has changed.
            (true, Some(_)) => Some(Verb::Replace),
            (true, None) => Some(Verb::Remove),
            (false, verb) => verb,
        }
    }
}

/// What a plan changes, to be asked while it is carried out.
pub struct PlannedChanges(Arc<Paths<PlanStep>>);

impl PlannedChanges {
    /// What will be done to a path, or to what it is in.
    pub fn of(&self, path: &[u8]) -> Option<Verb> {
        let (mut at, mut above) = (Id::ROOT, None);
        let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
        let change = |id: Id| self.0.value(id).and_then(PlanStep::change);
        for name in names {
            let deep = change(at).filter(|verb| at != Id::ROOT && *verb != Verb::Attributes);
            above = deep.or(above);
            match self.0.child(at, name) {
                Some(child) => at = child,
                None => return above,
            }
        }
        change(at).or(above)
    }
}

impl Plan<'_> {
    /// The steps, in the order of a walk; a path that changes its type has two.
    pub fn actions(&self) -> impl Iterator<Item = Action> + '_ {
        self.steps.walk().flat_map(move |(id, step)| {
            let verbs = [step.remove.then_some(Verb::Remove), step.verb];
            let action = move |verb| Action { verb, path: self.steps.path(id).into() };
            verbs.into_iter().flatten().map(action)
        })
    }

    /// What is changed.
    pub fn changes(&self) -> PlannedChanges {
        PlannedChanges(self.steps.clone())
    }

    /// What could not be compared, and why.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Whether the root is as it was.
    pub fn is_empty(&self) -> bool {
        self.steps.values().all(|step| step.change().is_none())
    }

    /// Takes content from what this machine still holds, where that can be cloned.
    pub fn cloning(self, local: Option<&HeldLocally>) -> Self {
        Self { held: local.and_then(HeldLocally::directory), ..self }
    }

    /// How many steps of each kind.
    pub fn summary(&self) -> BTreeMap<Verb, usize> {
        let mut counts = BTreeMap::new();
        for step in self.steps.values() {
            let verbs = [step.remove.then_some(Verb::Remove), step.verb];
            verbs.into_iter().flatten().for_each(|verb| *counts.entry(verb).or_default() += 1);
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
    let groups: HashSet<Id> = part.index().links().into_keys().collect();
    let comparison = Comparison {
        root,
        part,
        groups: &groups,
        merged: Opened::below(root.top()),
        upper: root.overlay().map(|overlay| Opened::below(overlay.upper.as_fd())),
        lower: lower.as_ref().map(|lower| Opened::below(lower.as_fd())),
    };
    let mut steps = comparison
        .run()
        .with_context(|| format!("comparing {} with the snapshot", root.path().display()))?;
    drop(comparison);
    settle(&mut steps, &groups, root.overlay().is_some());
    Ok(Plan { root, part, lower, held: None, steps: Arc::new(steps), notes })
}

/// So many names are compared in one go, by one thread.
const FEW: usize = 16;

/// Whether a snapshot holds so little that to compare it takes no longer than to start threads.
fn is_little(index: &Index) -> bool {
    let bytes = |entry: &Entry| match &entry.kind {
        Kind::File { content, .. } => content.length,
        _ => 0,
    };
    index.entries.count() <= 4 * FEW
        && index.entries.values().map(bytes).sum::<u64>() <= 4 * BUFFER as u64
}

struct Comparison<'a> {
    root: &'a Root,
    part: &'a PackedPart,
    /// The inodes of the snapshot that have several names, by the first.
    groups: &'a HashSet<Id>,
    merged: Opened<'a>,
    upper: Option<Opened<'a>>,
    lower: Option<Opened<'a>>,
}

/// A directory of the snapshot that is to be compared.
struct Job {
    dir: Id,
    /// The bytes of its path.
    length: usize,
    what: Child,
}

/// What is known of a directory before it is compared.
struct Child {
    /// The directory in the index.
    entry: Option<Id>,
    /// Whether nothing below the snapshot shows through here.
    covered: bool,
    /// The directory is there now; if so, whether all that is seen counts, because it was renamed.
    present: Option<bool>,
}

/// So many directories are compared side by side.
const AT_ONCE: usize = 256;

/// What a path is to be.
enum Wanted<'a> {
    Absent,
    /// The entry of its inode, and the first path of that.
    Entry(Id, &'a Entry),
    Lower(Found, OwnedFd),
}

/// The outcome for one path.
struct Verdict {
    name: Vec<u8>,
    step: PlanStep,
    child: Option<Child>,
}

impl<'a> Comparison<'a> {
    fn run(&self) -> Result<Paths<PlanStep>> {
        let index = self.part.index();
        let entry = index.get(b"").context("the index has no root")?;
        let found = Found::look(self.root.top())?;
        let differs = found.meta != entry.meta;
        let mut steps = Paths::without_limit(PlanStep {
            verb: differs.then_some(Verb::Attributes),
            entry: Some(Id::ROOT),
            first: Some(Id::ROOT),
            seen: Some(found.inode()),
            ..PlanStep::default()
        });
        let covered =
            index.driver == Form::Directory || matches!(entry.kind, Kind::Dir { opaque: true });
        let what = Child { entry: Some(Id::ROOT), covered, present: Some(false) };
        let mut jobs = vec![Job { dir: Id::ROOT, length: 0, what }];
        while !jobs.is_empty() {
            let now = jobs.split_off(jobs.len().saturating_sub(AT_ONCE));
            let compare = |job: &Job| {
                let context = || format!("comparing {}", shown(&steps.path(job.dir)));
                self.compare_dir(&steps, job).with_context(context)
            };
            let compared = if is_little(index) {
                now.iter().map(compare).collect::<Result<Vec<_>>>()
            } else {
                now.par_iter().map(compare).collect()
            };
            for (job, verdicts) in now.iter().zip(compared?) {
                note(&mut steps, job, verdicts, &mut jobs)?;
            }
        }
        Ok(steps)
    }

    fn compare_dir(&self, steps: &Paths<PlanStep>, job: &Job) -> Result<Vec<Verdict>> {
        ensure!(job.length <= PATH_LIMIT, "the path is longer than {PATH_LIMIT} bytes");
        let view = View::open(self, steps, job)?;
        let names: Vec<_> = view.candidates(self, job)?.into_iter().collect();
        let compare = |name: &Vec<u8>| {
            self.compare_name(&view, job, name)
                .with_context(|| format!("comparing {}", shown(&join(&steps.path(job.dir), name))))
        };
        let compared = if names.len() <= FEW {
            names.iter().map(compare).collect::<Result<Vec<_>>>()
        } else {
            // In small pieces: those that have changed take longest, and lie side by side.
            names.par_iter().with_min_len(FEW).with_max_len(FEW).map(compare).collect()
        };
        Ok(compared?.into_iter().flatten().collect())
    }

    /// Compares one path; nothing is said of one that is as it was.
    fn compare_name(&self, view: &View, job: &Job, name: &[u8]) -> Result<Option<Verdict>> {
        let entry = job.what.entry.and_then(|dir| self.part.index().entries.child(dir, name));
        if let Some(step) = self.recognize(view, entry, name) {
            let verdict = |step| Verdict { name: name.to_vec(), step, child: None };
            return Ok(step.map(verdict));
        }
        let wanted = self.wanted(view, job, entry, name)?;
        let present = view.look(name)?;
        let names = present.as_ref().map_or(0, |(found, _)| found.names);
        let step = self.judge(entry, &wanted, present.as_ref())?;
        let child = self.child(view, job, entry, name, &wanted, present.as_ref())?;
        let matters = child.is_some() || step.change().is_some() || self.has_others(&step, names);
        Ok(matters.then(|| Verdict { name: name.to_vec(), step, child }))
    }

    /// Whether a path has to be known to tell which names are of one inode.
    fn has_others(&self, step: &PlanStep, names: u64) -> bool {
        names > 1
            || step.is_other_name()
            || step.entry.is_some_and(|entry| self.groups.contains(&entry))
    }

    /// A file that has not changed since: stat(2) says so, and it need not be opened.
    fn recognize(&self, view: &View, path: Option<Id>, name: &[u8]) -> Option<Option<PlanStep>> {
        let path = path?;
        let (first, entry) = self.part.index().inode(path)?;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let now = rustix::fs::statat(view.merged.as_ref()?, name, flags).ok()?;
        if entry.identity.as_ref() != Some(&identity(&now)) {
            return None;
        }
        let kept = Some(DevIno::from(&now));
        let step = PlanStep { entry: Some(path), first: Some(first), kept, ..PlanStep::default() };
        Some(Some(step).filter(|step| self.has_others(step, now.st_nlink)))
    }

    fn wanted(&self, view: &View, job: &Job, entry: Option<Id>, name: &[u8]) -> Result<Wanted<'_>> {
        match entry.and_then(|entry| self.part.index().inode(entry)) {
            Some((_, Entry { kind: Kind::Whiteout, .. })) => Ok(Wanted::Absent),
            Some((first, entry)) => Ok(Wanted::Entry(first, entry)),
            None if job.what.covered => Ok(Wanted::Absent),
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
        entry: Option<Id>,
        wanted: &Wanted<'_>,
        present: Option<&(Found, OwnedFd)>,
    ) -> Result<PlanStep> {
        let first = match wanted {
            Wanted::Entry(first, _) => Some(*first),
            _ => entry,
        };
        let seen = present.map(|(found, _)| found.inode());
        let mut step = PlanStep { entry, first, seen, ..PlanStep::default() };
        let is_dir = match wanted {
            Wanted::Absent => {
                step.remove = present.is_some();
                return Ok(step);
            }
            Wanted::Entry(_, entry) => matches!(entry.kind, Kind::Dir { .. }),
            Wanted::Lower(found, _) => found.kind.is_dir(),
        };
        let Some((found, opened)) = present else {
            step.verb = Some(Verb::Create);
            return Ok(step);
        };
        if is_dir != (found.kind.is_dir()) {
            step.remove = true;
            step.verb = Some(Verb::Create);
            return Ok(step);
        }
        step.verb = self.compare(wanted, found, opened)?;
        let stays = matches!(step.verb, None | Some(Verb::Attributes));
        step.kept = (!is_dir && stays).then(|| found.inode());
        Ok(step)
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
            (true, false) if gains_rights(&found.kind, &found.meta, meta) => Some(Verb::Replace),
            (true, false) => Some(Verb::Attributes),
            (true, true) => None,
        })
    }

    fn is_same_entry(&self, kind: &Kind, found: &Found, entry: &OwnedFd) -> Result<bool> {
        Ok(match (kind, &found.kind) {
            (Kind::File { size, content }, InodeKind::File(())) => {
                *size == found.identity.size
                    && is_stored(self.part, content, *size, &fs::open_for_reading(entry)?.into())?
            }
            (kind, found) => kind.inode().map(|kind| kind.map_file(drop)) == Some(found.by_ref()),
        })
    }

    /// The job for a directory that is to be there.
    fn child(
        &self,
        view: &View,
        job: &Job,
        entry: Option<Id>,
        name: &[u8],
        wanted: &Wanted<'_>,
        present: Option<&(Found, OwnedFd)>,
    ) -> Result<Option<Child>> {
        let opaque = match wanted {
            Wanted::Entry(_, Entry { kind: Kind::Dir { opaque }, .. }) => *opaque,
            Wanted::Lower(found, _) if found.kind.is_dir() => false,
            _ => return Ok(None),
        };
        let present = match present {
            Some((found, _)) if found.kind.is_dir() => {
                // What is mounted there is not the part's.
                if !self.root.holds(found.device) {
                    return Ok(None);
                }
                Some(job.what.present == Some(true) || view.is_renamed(self.root, name)?)
            }
            _ => None,
        };
        Ok(Some(Child { entry, covered: job.what.covered || opaque, present }))
    }
}

/// Puts verdicts in their place, and asks for the directories among them.
fn note(
    steps: &mut Paths<PlanStep>,
    job: &Job,
    verdicts: Vec<Verdict>,
    jobs: &mut Vec<Job>,
) -> Result<()> {
    // They come sorted by name.
    for Verdict { name, step, child } in verdicts {
        let dir = steps.push(job.dir, &name, step)?;
        let length = job.length + 1 + name.len();
        jobs.extend(child.map(|what| Job { dir, length, what }));
    }
    Ok(())
}

/// The same directory, as it is seen now, in the upper layer and in the lower ones.
struct View {
    merged: Option<Arc<OwnedFd>>,
    upper: Option<Arc<OwnedFd>>,
    lower: Option<Arc<OwnedFd>>,
}

impl View {
    fn open(of: &Comparison<'_>, steps: &Paths<PlanStep>, job: &Job) -> Result<Self> {
        let merged = match job.what.present {
            Some(_) => Some(of.merged.dir(steps, job.dir)?),
            None => None,
        };
        let upper = match (&of.upper, &merged) {
            (Some(upper), Some(_)) => upper.existing(steps, job.dir)?,
            _ => None,
        };
        let lower = match &of.lower {
            Some(lower) if !job.what.covered => lower.existing(steps, job.dir)?,
            _ => None,
        };
        Ok(Self { merged, upper, lower })
    }

    /// The names that may have to change: those of the index, of the upper layer, and where what
    /// is seen and the lower layers differ. The rest is the lower layers' own, and untouched.
    fn candidates(&self, of: &Comparison<'_>, job: &Job) -> Result<BTreeSet<Vec<u8>>> {
        let list = |dir: &Option<Arc<OwnedFd>>| -> Result<BTreeSet<Vec<u8>>> {
            Ok(match dir {
                Some(dir) => fs::names(dir)?.into_iter().collect(),
                None => BTreeSet::new(),
            })
        };
        let entries = &of.part.index().entries;
        let known = job.what.entry.map_or(&[][..], |dir| entries.below(dir));
        let mut names: BTreeSet<Vec<u8>> =
            known.iter().map(|id| entries.name(*id).to_vec()).collect();
        if job.what.covered {
            names.append(&mut list(&self.merged)?);
        } else if of.lower.is_some() {
            let (merged, lower) = (list(&self.merged)?, list(&self.lower)?);
            let whole = job.what.present == Some(true);
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
fn gains_rights(kind: &InodeKind, is: &Meta, was: &Meta) -> bool {
    let has_rights = was.mode & 0o6000 != 0
        || was.xattrs.keys().any(|name| name.as_bytes().starts_with(b"security.capability"));
    kind.is_file() && has_rights && (is.uid, is.gid) != (was.uid, was.gid)
}

/// The number of the character device that hides a name of the layers below (overlayfs).
const WHITEOUT: Device = Device::new(0, 0);

/// What the lower layers show under a name. A single layer is looked at as it lies there, so that a
/// whiteout in it, which hides nothing, must be passed over here.
pub(super) fn look_lower(dir: impl AsFd, name: &[u8]) -> Result<Option<(Found, OwnedFd)>> {
    let Some(entry) = fs::open_entry(dir, name)? else { return Ok(None) };
    let found = Found::look(&entry)?;
    Ok((found.kind != InodeKind::Char(WHITEOUT)).then_some((found, entry)))
}

fn is_same_lower(want: &Found, lower: &OwnedFd, found: &Found, entry: &OwnedFd) -> Result<bool> {
    if want.kind != found.kind {
        return Ok(false);
    }
    if !want.kind.is_file() || want.inode() == found.inode() && want.identity == found.identity {
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
    for extent in content.extents() {
        if !is_zero(file, at, extent.offset)? {
            return Ok(false);
        }
        at = extent.offset;
        while at < extent.end() {
            let piece = BUFFER.min((extent.end() - at) as usize);
            let piece = &mut buffer[..piece];
            if !read_full(file, piece, at)? {
                return Ok(false);
            }
            hash.update(piece);
            at += piece.len() as u64;
        }
    }
    Ok(Digest::of(&hash) == content.digest && is_zero(file, at, size)?)
}

/// Compares the first bytes of a large file, of which there would be more to read than a frame.
fn begins_as_stored(part: &PackedPart, content: &Content, file: &File) -> Result<bool> {
    let Some(first) = content.extents().first().copied() else { return Ok(true) };
    let (mut is, mut was) = ([0; 4096], [0; 4096]);
    let want = is.len().min(first.length as usize);
    part.read_stored(content, content.offset, &mut was[..want])?;
    Ok(read_full(file, &mut is[..want], first.offset)? && is[..want] == was[..want])
}

/// Whether a range of a file is a hole or zeros.
fn is_zero(file: &File, start: u64, end: u64) -> Result<bool> {
    let mut at = start;
    let mut buffer = vec![0; BUFFER.min((end - start) as usize)];
    while at < end {
        let Some(data) = next_data(file, at, end)? else { return Ok(true) };
        at = data.offset;
        while at < data.end() {
            let want = buffer.len().min((data.end() - at) as usize);
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
        let next = [next_data(a, at, size)?, next_data(b, at, size)?];
        let Some(start) = next.into_iter().flatten().map(|data| data.offset).min() else {
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

/// Decides about names: an inode stays for the names of one group only, and the names of a group are
/// names of one inode.
fn settle(steps: &mut Paths<PlanStep>, groups: &HashSet<Id>, is_overlay: bool) {
    let mut owned: HashSet<DevIno> = HashSet::new();
    let mut firsts: HashMap<Id, DevIno> = HashMap::new();
    for step in steps.values_mut().filter(|step| !step.is_other_name()) {
        let Some(inode) = step.kept else { continue };
        let is_grouped = step.entry.is_some_and(|entry| groups.contains(&entry));
        // Changing attributes copies the inode up, which separates it from its lower names.
        let separates = is_overlay && step.verb.is_some() && is_grouped;
        if separates || !owned.insert(inode) {
            step.verb = Some(Verb::Replace);
        } else if let Some(entry) = step.entry {
            firsts.insert(entry, inode);
        }
    }
    for step in steps.values_mut().filter(|step| step.is_other_name()) {
        let first = step.first.and_then(|first| firsts.get(&first).copied());
        let is_it = first.is_some() && step.kept == first;
        step.verb = if is_it { None } else { Some(Verb::Link) };
    }
    for step in steps.values_mut() {
        step.seen = step.seen.filter(|_| step.verb == Some(Verb::Attributes));
    }
}

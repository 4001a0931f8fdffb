//! Walks what a root holds: the whole tree of a directory, the deviations of an overlay.

use std::collections::HashSet;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use rustix::fs::{AtFlags, Stat};

use super::attributes::{Found, identity, is_racy};
use super::index::Fingerprint;
use super::inode::InodeKind;
use super::opened::{Opened, as_fd, is_absent};
use super::paths::{Id, Paths, Weigh};
use super::probe::{Overlay, Root};
use super::{join, shown};
use crate::criu::remaps;
use crate::files::Suspects;
use crate::freezer::Still;
use crate::limits::Limit;
use crate::sys::fs;
use crate::sys::inode::{DevIno, Device};
use crate::sys::time::Time;

/// What a walk found at a path.
pub(super) enum Seen {
    /// An inode; `opaque` of a directory says that nothing below shows through, `copied` of a regular
    /// file that its content was, when it was seen.
    Inode { found: Found, opaque: bool, upper: Option<Box<Stamp>>, copied: bool },
    /// The upper layer hides a name.
    Whiteout,
}

impl Weigh for Seen {
    fn weight(&self) -> u64 {
        let Self::Inode { found, .. } = self else { return 0 };
        let target = match &found.kind {
            InodeKind::Symlink(target) => target.len(),
            _ => 0,
        };
        found.meta.weight() + target as u64
    }
}

/// All that a walk found.
pub(super) type Tree = Paths<Seen>;

/// What is walked.
#[derive(Clone, Copy)]
pub(super) enum Walking<'a> {
    /// What a container has. While it runs, what vanishes is no error.
    Live(Still<'a>),
    /// A snapshot, which nobody changes.
    Kept,
}

/// What a walk found, and where it has to be looked for content.
pub(super) struct Walked {
    pub tree: Tree,
    /// What is new or not as the walk before found it, and what was not copied then.
    pub fresh: Vec<Id>,
    /// How many names of files with content are neither.
    pub kept: u64,
    /// Directories of which not all was seen, since the container changed them meanwhile.
    missed: HashSet<Id>,
}

/// What stat(2) says of an inode as long as nothing changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: Device,
    names: u64,
    identity: Fingerprint,
}

impl Stamp {
    fn new(stat: &Stat) -> Self {
        Self {
            device: Device::from_stat(stat.st_dev),
            names: stat.st_nlink,
            identity: identity(stat),
        }
    }

    fn of(found: &Found) -> Self {
        let Found { device, names, identity, .. } = found;
        Self { device: *device, names: *names, identity: identity.clone() }
    }

    /// That of a directory, if it proves that nothing was made or removed in it; of an overlay, in
    /// the upper layer.
    fn of_dir(seen: &Seen, begun: Time) -> Option<Self> {
        let Seen::Inode { found, upper, .. } = seen else { return None };
        let stamp = upper.as_ref().map_or_else(|| Self::of(found), |upper| (**upper).clone());
        let proves = found.kind.is_dir() && !is_racy(stamp.identity.ctime, begun);
        proves.then_some(stamp)
    }

    /// Which inode it is.
    pub(super) fn inode(&self) -> DevIno {
        DevIno { device: self.device, ino: self.identity.ino }
    }
}

/// What an earlier walk found. What is no directory need not be opened again where stat(2) says
/// that it is the same, as every change of an inode changes its ctime; and a directory of which
/// it says so still has the same names.
#[derive(Default)]
pub(super) struct Earlier {
    tree: Option<Tree>,
    begun: Time,
    missed: HashSet<Id>,
}

/// A name that was found before.
struct Known {
    /// What it was, if that proves something.
    stamp: Option<Stamp>,
    /// Whether that is what the upper layer of an overlay has: the kernel then has half as much to
    /// look at.
    in_upper: bool,
    /// The inode that is seen.
    inode: DevIno,
    /// Of a regular file, whether its content was copied.
    copied: Option<bool>,
}

impl Earlier {
    /// Keeps what a walk found that began at `begun`, and of what the content `is_copied`.
    pub(super) fn of(
        root: &Root,
        Walked { mut tree, missed, .. }: Walked,
        begun: Time,
        is_copied: impl Fn(&Found) -> bool,
    ) -> Self {
        if !keeps_ctime(root) {
            // Who knows what else keeps of times.
            return Self::default();
        }
        for seen in tree.values_mut() {
            if let Seen::Inode { found, copied, .. } = seen {
                *copied = is_copied(found);
            }
        }
        Self { tree: Some(tree), begun, missed }
    }
}

impl Known {
    fn of(seen: &Seen, begun: Time) -> Option<Self> {
        let Seen::Inode { found, upper, copied, .. } = seen else { return None };
        let times = |of: &Fingerprint| (of.size, of.mtime, of.ctime);
        // Both were looked at one after the other, while somebody may have written.
        let is_one = |upper: &&Stamp| times(&upper.identity) == times(&found.identity);
        let (stamp, in_upper) = match upper {
            Some(upper) => (Some(&**upper).filter(is_one).cloned(), true),
            None => (Some(Stamp::of(found)), false),
        };
        let proves = |stamp: &Stamp| !found.kind.is_dir() && !is_racy(stamp.identity.ctime, begun);
        let copied = (found.kind.is_file()).then_some(*copied);
        Some(Self { stamp: stamp.filter(proves), in_upper, inode: found.inode(), copied })
    }

    /// What it was and still is.
    fn unchanged(
        &self,
        merged: BorrowedFd<'_>,
        upper: Option<BorrowedFd<'_>>,
        name: &[u8],
    ) -> Option<&Stamp> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let stamp = self.stamp.as_ref()?;
        let dir = if self.in_upper { upper? } else { merged };
        let now = rustix::fs::statat(dir, name, flags).ok()?;
        (Stamp::new(&now) == *stamp).then_some(stamp)
    }
}

/// ext4, xfs, btrfs, f2fs, tmpfs and overlays of them.
fn keeps_ctime(root: &Root) -> bool {
    const KNOWN: [u64; 6] =
        [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010, 0x0102_1994, 0x794c_7630];
    rustix::fs::fstatfs(root.top())
        .is_ok_and(|found| KNOWN.contains(&(found.f_type as u64 & 0xffff_ffff)))
}

/// A directory that is still to be read.
struct Pending {
    dir: Id,
    /// The bytes of its path.
    length: usize,
    /// Whether all that is seen counts, not only what the upper layer has.
    whole: bool,
    /// What it was before, if that proves something.
    before: Option<Stamp>,
}

/// So many directories are read side by side; what waits is what is beside the way to them.
const AT_ONCE: usize = 256;

/// Walks a root. Of what is as `earlier` says only `suspects` count as changed.
pub(super) fn walk(
    root: &Root,
    walking: Walking<'_>,
    earlier: Earlier,
    suspects: &Suspects,
) -> Result<Walked> {
    let Earlier { tree, begun, missed: doubtful } = earlier;
    let top = Found::look(root.top()).context("reading the attributes of the root")?;
    let ((opaque, renamed), upper) = match root.overlay() {
        Some(overlay) => {
            (upper_state(overlay, &overlay.upper)?, Some(Stamp::new(&fs::stat(&overlay.upper)?)))
        }
        None => ((false, false), None),
    };
    let upper = upper.map(Box::new);
    let top = Seen::Inode { found: top, opaque, upper, copied: false };
    let (mut tree, before) = match tree {
        Some(mut tree) => {
            let before = tree.value(Id::ROOT).and_then(|seen| Stamp::of_dir(seen, begun));
            tree.replace(Id::ROOT, top)?;
            (tree, before.filter(|_| !doubtful.contains(&Id::ROOT)))
        }
        None => (Paths::new(top), None),
    };
    let walk = Walk {
        root,
        walking,
        begun,
        doubtful: &doubtful,
        suspects,
        merged: Opened::below(root.top()),
        upper: root.overlay().map(|overlay| Opened::below(overlay.upper.as_fd())),
    };
    let (mut fresh, mut kept, mut missed) = (Vec::new(), 0, HashSet::new());
    let whole = root.overlay().is_none() || renamed;
    let mut pending = vec![Pending { dir: Id::ROOT, length: 0, whole, before }];
    while !pending.is_empty() {
        let now = pending.split_off(pending.len().saturating_sub(AT_ONCE));
        let read = |dir: &Pending| walk.read_dir(&tree, dir);
        let read = now.par_iter().map(read).collect::<Result<Vec<_>>>()?;
        for (dir, read) in now.iter().zip(read) {
            kept += read.kept;
            missed.extend(read.missed.then_some(dir.dir));
            fresh.extend(&read.doubtful);
            let merged = read.merge(&mut tree, dir, &mut pending);
            let context = || format!("reading {}", shown(&tree.path(dir.dir)));
            fresh.extend(merged.with_context(context)?);
        }
    }
    Ok(Walked { tree, fresh, kept, missed })
}

/// Whether an error only says that the running container was faster.
fn is_race(walking: Walking<'_>, error: &io::Error) -> bool {
    // ELOOP: a directory has become a link; ESTALE: an inode has gone below an overlay.
    let code = error.raw_os_error();
    matches!(walking, Walking::Live(Still::Running))
        && (matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
            || code == Some(libc::ELOOP)
            || code == Some(libc::ESTALE))
}

/// What is in a directory, but for what is known and has not changed.
#[derive(Default)]
struct Read {
    seen: Vec<(Vec<u8>, Looked)>,
    /// What was there before.
    gone: Vec<Id>,
    /// What has not changed, but may have other content than was copied.
    doubtful: Vec<Id>,
    kept: u64,
    /// Something vanished while it was looked at.
    missed: bool,
}

/// One name of a directory.
enum Name {
    Doubtful(Id),
    Looked(Vec<u8>, Looked),
    Gone(Option<Id>),
}

/// A walk under way.
struct Walk<'a> {
    root: &'a Root,
    walking: Walking<'a>,
    /// When the walk before began, and the directories of which it has not seen all.
    begun: Time,
    doubtful: &'a HashSet<Id>,
    suspects: &'a Suspects,
    merged: Opened<'a>,
    upper: Option<Opened<'a>>,
}

impl Walk<'_> {
    fn read_dir(&self, tree: &Tree, dir: &Pending) -> Result<Read> {
        match self.try_read_dir(tree, dir) {
            Ok(read) => Ok(read),
            Err(error) => match error.downcast_ref::<io::Error>() {
                Some(io) if is_race(self.walking, io) => {
                    Ok(Read { missed: true, ..Read::default() })
                }
                _ => Err(error).with_context(|| format!("reading {}", shown(&tree.path(dir.dir)))),
            },
        }
    }

    fn try_read_dir(&self, tree: &Tree, dir: &Pending) -> Result<Read> {
        let merged = self.merged.dir(tree, dir.dir)?;
        let upper = match &self.upper {
            Some(upper) => upper.existing(tree, dir.dir)?,
            None => None,
        };
        let view = View { merged: as_fd(&merged), upper: upper.as_ref().map(as_fd) };
        let listed = match view.upper {
            _ if self.has_same_names(dir, view)? => None,
            Some(upper) if !dir.whole => Some(fs::names(upper)?),
            None if !dir.whole => Some(Vec::new()),
            _ => Some(fs::names(view.merged)?),
        };
        let before = tree.below(dir.dir);
        let names: Vec<&[u8]> = match &listed {
            Some(listed) => listed.iter().map(Vec::as_slice).collect(),
            None => before.iter().map(|id| tree.name(*id)).collect(),
        };
        let (hits, kept) = (AtomicUsize::new(0), AtomicU64::new(0));
        let look = |name: &&[u8]| -> Option<Result<Name>> {
            let id = tree.child(dir.dir, name);
            hits.fetch_add(usize::from(id.is_some()), Ordering::Relaxed);
            let seen = id.and_then(|id| tree.value(id));
            if let (Some(id), Some(known)) = (id, seen.and_then(|seen| Known::of(seen, self.begun)))
                && let Some(stamp) = known.unchanged(view.merged, view.upper, name)
            {
                let is_suspect = [known.inode, stamp.inode()]
                    .into_iter()
                    .any(|inode| self.suspects.contains(inode));
                let doubtful = known.copied == Some(false) || is_suspect;
                let is_kept = !doubtful && known.copied.is_some() && stamp.identity.size > 0;
                kept.fetch_add(u64::from(is_kept), Ordering::Relaxed);
                return doubtful.then_some(Ok(Name::Doubtful(id)));
            }
            let before = id.filter(|id| !self.doubtful.contains(id)).and(seen);
            Some(self.look(tree, dir, view, name, id).map(|name| name.known(before, self.begun)))
        };
        // A directory of many files is shared among the processors.
        let looked =
            names.par_iter().with_min_len(64).filter_map(look).collect::<Result<Vec<_>>>()?;
        let mut read = Read { kept: kept.into_inner(), ..Read::of(looked) };
        if hits.into_inner() < before.len() {
            let names: HashSet<&[u8]> = names.into_iter().collect();
            read.gone.extend(before.iter().filter(|id| !names.contains(tree.name(**id))));
        }
        Ok(read)
    }

    /// Whether nothing was made or removed in a directory.
    fn has_same_names(&self, dir: &Pending, view: View<'_>) -> io::Result<bool> {
        // What an overlay shows of its lower layers in a renamed directory is not in that stamp.
        let listed = match (self.root.overlay(), view.upper) {
            (None, _) => view.merged,
            (Some(_), Some(upper)) if !dir.whole => upper,
            _ => return Ok(false),
        };
        Ok(dir.before.is_some() && dir.before == Some(Stamp::new(&fs::stat(listed)?)))
    }

    fn look(
        &self,
        tree: &Tree,
        dir: &Pending,
        view: View<'_>,
        name: &[u8],
        known: Option<Id>,
    ) -> Result<Name> {
        if is_crius_own(tree, dir.dir, name) {
            return Ok(Name::Gone(known));
        }
        let (length, most) = (dir.length + 1 + name.len(), Limit::Path.value());
        if length as u64 > most {
            bail!("a path in it is longer than {most} bytes: remove it, or leave it out");
        }
        let path = || shown(&join(&tree.path(dir.dir), name));
        let looked = look(self.root, dir, view, name, self.walking)
            .with_context(|| format!("reading the attributes of {}", path()))?;
        Ok(match looked {
            Some(looked) => Name::Looked(name.to_vec(), looked),
            None => Name::Gone(known),
        })
    }
}

impl Name {
    /// Notes what a directory was before.
    fn known(mut self, before: Option<&Seen>, begun: Time) -> Self {
        if let Self::Looked(_, Looked { descend: Some(descend), .. }) = &mut self {
            descend.before = before.and_then(|seen| Stamp::of_dir(seen, begun)).map(Box::new);
        }
        self
    }
}

impl Read {
    fn of(names: Vec<Name>) -> Self {
        let mut read = Self::default();
        for name in names {
            match name {
                Name::Doubtful(path) => read.doubtful.push(path),
                Name::Gone(path) => {
                    read.missed = true;
                    read.gone.extend(path);
                }
                Name::Looked(name, looked) => read.seen.push((name, looked)),
            }
        }
        read
    }

    /// Puts what was found in its place, and returns where that is.
    fn merge(self, tree: &mut Tree, dir: &Pending, pending: &mut Vec<Pending>) -> Result<Vec<Id>> {
        let mut seen = self.seen;
        seen.sort_by(|a, b| a.0.cmp(&b.0));
        let (mut descents, mut values) = (Vec::new(), Vec::with_capacity(seen.len()));
        for (name, Looked { seen, descend }) in seen {
            descents.push(descend);
            values.push((name, seen));
        }
        let places = tree.update(dir.dir, values, &self.gone)?;
        for (place, descend) in places.iter().zip(descents) {
            let Some(Descent { whole, before }) = descend else {
                tree.clear(*place);
                continue;
            };
            let length = dir.length + 1 + tree.name(*place).len();
            let before = before.map(|before| *before);
            pending.push(Pending { dir: *place, length, whole, before });
        }
        Ok(places)
    }
}

/// A directory as the container sees it, and in the upper layer of an overlay.
#[derive(Clone, Copy)]
struct View<'a> {
    merged: BorrowedFd<'a>,
    upper: Option<BorrowedFd<'a>>,
}

/// Whether CRIU makes a directory of that name in the container, and removes it: where it mounts
/// a tmpfs to read what lies below other mounts (`get_clean_mnt` in criu/mount.c). It does so while
/// this walks.
fn is_crius_own<T>(tree: &Paths<T>, dir: Id, name: &[u8]) -> bool {
    let is_tmp = || tree.parent(dir) == Id::ROOT && tree.name(dir) == b"tmp";
    let is_it = |rest: &[u8]| rest.len() == 6 && rest.iter().all(u8::is_ascii_alphanumeric);
    name.strip_prefix(b"cr-tmpfs.").is_some_and(is_it) && (dir == Id::ROOT || is_tmp())
}

/// Whether it is a further name that CRIU gives a file of the container, and takes again while this
/// walks.
fn is_crius_link(found: &Found, name: &[u8]) -> bool {
    remaps::is_link(name) && !found.kind.is_dir() && found.names > 1
}

struct Looked {
    seen: Seen,
    /// For a directory to read.
    descend: Option<Descent>,
}

struct Descent {
    /// Whether all that is seen counts there.
    whole: bool,
    /// What it was before, if that proves something.
    before: Option<Box<Stamp>>,
}

fn look(
    root: &Root,
    dir: &Pending,
    view: View<'_>,
    name: &[u8],
    walking: Walking<'_>,
) -> Result<Option<Looked>> {
    let Some(entry) = fs::open_entry(view.merged, name)? else {
        // What the upper layer names and the overlay does not show is a whiteout, whichever of its
        // forms the kernel knows (device 0:0, `overlay.whiteout`).
        let is_whiteout = !dir.whole && root.overlay().is_some();
        let whiteout = Looked { seen: Seen::Whiteout, descend: None };
        return Ok(is_whiteout.then_some(whiteout));
    };
    let found = match Found::look(&entry) {
        Err(error) if is_race(walking, &error) => return Ok(None),
        other => other?,
    };
    if is_crius_link(&found, name) {
        return Ok(None);
    }
    let below = match view.upper {
        Some(upper) => fs::open_entry(upper, name)?,
        None => None,
    };
    let is_dir = found.kind.is_dir();
    let (mut opaque, mut whole) = (false, dir.whole);
    if let (true, Some(overlay), Some(below)) = (is_dir, root.overlay(), &below) {
        let (is_opaque, renamed) = upper_state(overlay, below)?;
        opaque = is_opaque;
        whole |= renamed;
    }
    let upper = below.map(fs::stat).transpose()?.as_ref().map(Stamp::new).map(Box::new);
    let descend = (is_dir && root.holds(found.device)).then_some(Descent { whole, before: None });
    Ok(Some(Looked { seen: Seen::Inode { found, opaque, upper, copied: false }, descend }))
}

/// Whether an upper directory is opaque, and whether it was renamed: then it shows a lower
/// directory of another path, and stands in the index with all that it shows, as if opaque.
pub(super) fn upper_state(overlay: &Overlay, dir: impl AsFd) -> io::Result<(bool, bool)> {
    let renamed = overlay.xattr(&dir, "redirect")?.is_some();
    let opaque = overlay.xattr(&dir, "opaque")?.is_some_and(|value| value == b"y");
    Ok((opaque || renamed, renamed))
}

/// Opens a directory that may not be there, or be something else.
pub(super) fn open_existing(root: impl AsFd, path: &[u8]) -> io::Result<Option<OwnedFd>> {
    match fs::open_dir(root, path) {
        Ok(dir) => Ok(Some(dir)),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::snapshot::probe;

    /// Later than every ctime: then stat(2) alone decides.
    const LATER: Time = Time::new(i64::MAX / 2, 1);

    fn found<'a>(tree: &'a Tree, path: &str) -> Option<&'a Found> {
        match tree.get(path.as_bytes()) {
            Some(Seen::Inode { found, .. }) => Some(found),
            _ => None,
        }
    }

    #[test]
    fn what_is_the_same_is_not_opened_again() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        for name in ["stays", "uncopied", "grows", "goes", "replaced", "linked", "becomes"] {
            fs::write(path(name), name).unwrap();
        }
        let root = probe(top.path()).unwrap();
        let nobody = Suspects::default();
        let walk = |earlier| super::walk(&root, Walking::Kept, earlier, &nobody).unwrap();
        let mut first = walk(Earlier::default());
        // What comes through from the first walk is known by this.
        for seen in first.tree.values_mut() {
            if let Seen::Inode { found, .. } = seen {
                found.meta.uid = 4711;
            }
        }
        fs::write(path("grows"), "larger than before").unwrap();
        fs::remove_file(path("goes")).unwrap();
        fs::write(path("new"), "replaced").unwrap();
        fs::rename(path("new"), path("replaced")).unwrap();
        fs::hard_link(path("linked"), path("other")).unwrap();
        fs::remove_file(path("becomes")).unwrap();
        fs::create_dir(path("becomes")).unwrap();
        let Walked { tree: again, fresh, kept, .. } =
            walk(Earlier::of(&root, first, LATER, |found| found.identity.size != 8));
        let mut fresh: Vec<_> = fresh.iter().map(|id| again.path(*id)).collect();
        assert_eq!(found(&again, "stays").unwrap().meta.uid, 4711);
        fresh.sort();
        let names = ["becomes", "grows", "linked", "other", "replaced", "uncopied"];
        assert_eq!(fresh, names.map(|name| name.as_bytes().to_vec()));
        assert_eq!(kept, 1);
        for name in ["grows", "replaced", "linked", "other", "becomes", ""] {
            assert_ne!(found(&again, name).unwrap().meta.uid, 4711, "{name}");
        }
        assert!(found(&again, "goes").is_none());
        assert_eq!(found(&again, "becomes").unwrap().kind, InodeKind::Dir);
    }

    #[test]
    fn a_ctime_of_the_tick_in_which_the_walk_began_proves_nothing() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("file"), "").unwrap();
        let root = probe(top.path()).unwrap();
        let nobody = Suspects::default();
        let walk = |earlier| super::walk(&root, Walking::Kept, earlier, &nobody).unwrap();
        let first = walk(Earlier::default());
        let begun = found(&first.tree, "file").unwrap().identity.ctime;
        let again = walk(Earlier::of(&root, first, begun, |_| true));
        let fresh: Vec<_> = again.fresh.iter().map(|id| again.tree.path(*id)).collect();
        assert_eq!(fresh, [b"file"]);
    }

    #[test]
    fn a_directory_that_was_not_seen_whole_is_read_again() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("file"), "").unwrap();
        let root = probe(top.path()).unwrap();
        let nobody = Suspects::default();
        let walk = |earlier| super::walk(&root, Walking::Kept, earlier, &nobody).unwrap();
        let names = |missed: bool| {
            let mut first = walk(Earlier::default());
            first.tree.clear(Id::ROOT);
            first.missed.extend(missed.then_some(Id::ROOT));
            walk(Earlier::of(&root, first, LATER, |_| true)).tree.count()
        };
        assert_eq!([names(true), names(false)], [2, 1]);
    }

    #[test]
    fn what_was_in_a_directory_goes_with_it() {
        let top = tempfile::tempdir().unwrap();
        let path = |name: &str| top.path().join(name);
        for dir in ["stays", "goes/below", "becomes"] {
            fs::create_dir_all(path(dir)).unwrap();
            fs::write(path(dir).join("file"), "").unwrap();
        }
        let root = probe(top.path()).unwrap();
        let nobody = Suspects::default();
        let walk = |earlier| super::walk(&root, Walking::Kept, earlier, &nobody).unwrap();
        let first = walk(Earlier::default());
        for dir in ["goes", "becomes"] {
            fs::remove_dir_all(path(dir)).unwrap();
        }
        fs::write(path("becomes"), "").unwrap();
        let again = walk(Earlier::of(&root, first, LATER, |_| true));
        let paths: Vec<_> = again.tree.walk().map(|(id, _)| again.tree.path(id)).collect();
        let expected = ["", "becomes", "stays", "stays/file"];
        assert_eq!(paths, expected.map(|path| path.as_bytes().to_vec()));
    }

    #[test]
    fn what_criu_makes_meanwhile_is_no_part() {
        let mut tree = Paths::new(());
        let [tmp, var] =
            ["tmp", "var"].map(|name| tree.push(Id::ROOT, name.as_bytes(), ()).unwrap());
        let deeper = tree.push(var, b"tmp", ()).unwrap();
        assert!(is_crius_own(&tree, tmp, b"cr-tmpfs.xIz6kn"));
        assert!(is_crius_own(&tree, Id::ROOT, b"cr-tmpfs.a1b2c3"));
        assert!(!is_crius_own(&tree, tmp, b"cr-tmpfs.xIz6k"));
        assert!(!is_crius_own(&tree, deeper, b"cr-tmpfs.xIz6kn"));
    }
}

//! Walks what a root holds: the whole tree of a directory, the deviations of an overlay.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use rustix::fs::{AtFlags, Stat};

use super::attributes::{Found, Shape, identity, is_racy};
use super::index::{Fingerprint, PATH_LIMIT, Time};
use super::probe::{Overlay, Root};
use super::{join, shown, split};
use crate::bytes::ByteString;
use crate::files::Suspects;
use crate::sys::fs;

/// What a walk found at a path.
#[expect(clippy::large_enum_variant, reason = "nearly all of them are inodes")]
pub(super) enum Seen {
    /// An inode; `opaque` of a directory says that nothing below shows through.
    Inode { found: Found, opaque: bool, upper: Option<Stamp> },
    /// The upper layer hides a name.
    Whiteout,
}

/// All that a walk found.
pub(super) type Tree = BTreeMap<ByteString, Seen>;

/// Whether the container runs meanwhile: then what vanishes is no error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Still {
    Frozen,
    Running,
}

/// What a walk found, and where it has to be looked for content.
pub(super) struct Walked {
    pub tree: Tree,
    /// What is new or not as the walk before found it, and what was not copied then.
    pub fresh: Vec<ByteString>,
    /// How many names of files with content are neither.
    pub kept: u64,
    /// Directories of which not all was seen, since the container changed them meanwhile.
    missed: HashSet<Vec<u8>>,
}

/// What stat(2) says of an inode as long as nothing changes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    device: u64,
    names: u64,
    identity: Fingerprint,
}

impl Stamp {
    fn new(stat: &Stat) -> Self {
        Self { device: stat.st_dev, names: stat.st_nlink, identity: identity(stat) }
    }

    fn of(found: &Found) -> Self {
        let Found { device, names, identity, .. } = found;
        Self { device: *device, names: *names, identity: identity.clone() }
    }

    /// That of a directory, if it proves that nothing was made or removed in it; of an overlay, in
    /// the upper layer.
    fn of_dir(seen: &Seen, begun: Time) -> Option<Self> {
        let Seen::Inode { found, upper, .. } = seen else { return None };
        let stamp = upper.clone().unwrap_or_else(|| Self::of(found));
        let proves = found.shape == Shape::Dir && !is_racy(stamp.identity.ctime, begun);
        proves.then_some(stamp)
    }

    /// Device and inode number.
    pub(super) fn inode(&self) -> (u64, u64) {
        (self.device, self.identity.ino)
    }
}

/// What an earlier walk found. What is no directory need not be opened again where stat(2) says
/// that it is the same, as every change of an inode changes its ctime; and a directory of which
/// it says so still has the same names.
#[derive(Default)]
pub(super) struct Earlier {
    tree: Tree,
    dirs: HashMap<Vec<u8>, Before>,
}

/// A directory that was found before.
#[derive(Default)]
struct Before {
    /// What it was, if that proves something.
    stamp: Option<Stamp>,
    names: HashMap<Vec<u8>, Known>,
}

/// A name that was found before.
#[derive(Default)]
struct Known {
    /// What it was, if that proves something.
    stamp: Option<Stamp>,
    /// Whether that is what the upper layer of an overlay has: the kernel then has half as much to
    /// look at.
    in_upper: bool,
    /// The inode that is seen.
    inode: (u64, u64),
    /// Of a regular file, whether its content was copied.
    copied: Option<bool>,
}

impl Earlier {
    /// Keeps what a walk found that began at `begun`, and of what the content `is_copied`.
    pub(super) fn of(
        root: &Root,
        Walked { tree, missed, .. }: Walked,
        begun: Time,
        is_copied: impl Fn(&Found) -> bool,
    ) -> Self {
        if !keeps_ctime(root) {
            // Who knows what else keeps of times.
            return Self::default();
        }
        let mut dirs: HashMap<Vec<u8>, Before> = HashMap::new();
        for (path, seen) in &tree {
            let path = path.as_bytes();
            if let Some(dir) = Stamp::of_dir(seen, begun)
                && !missed.contains(path)
            {
                dirs.entry(path.to_vec()).or_default().stamp = Some(dir);
            }
            if let Some((parent, name)) = split(path) {
                let known = Known::of(seen, begun, &is_copied);
                dirs.entry(parent.to_vec()).or_default().names.insert(name.to_vec(), known);
            }
        }
        Self { tree, dirs }
    }
}

impl Known {
    fn of(seen: &Seen, begun: Time, is_copied: impl Fn(&Found) -> bool) -> Self {
        let Seen::Inode { found, upper, .. } = seen else { return Self::default() };
        let times = |of: &Fingerprint| (of.size, of.mtime, of.ctime);
        // Both were looked at one after the other, while somebody may have written.
        let is_one = |upper: &&Stamp| times(&upper.identity) == times(&found.identity);
        let (stamp, in_upper) = match upper {
            Some(upper) => (Some(upper).filter(is_one).cloned(), true),
            None => (Some(Stamp::of(found)), false),
        };
        let proves =
            |stamp: &Stamp| found.shape != Shape::Dir && !is_racy(stamp.identity.ctime, begun);
        let copied = (found.shape == Shape::File).then(|| is_copied(found));
        Self { stamp: stamp.filter(proves), in_upper, inode: found.inode(), copied }
    }

    /// What it was and still is.
    fn unchanged(&self, merged: &OwnedFd, upper: Option<&OwnedFd>, name: &[u8]) -> Option<&Stamp> {
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
    path: Vec<u8>,
    /// Whether all that is seen counts, not only what the upper layer has.
    whole: bool,
}

/// Walks a root. Of what is as `earlier` says only `suspects` count as changed.
pub(super) fn walk(
    root: &Root,
    still: Still,
    earlier: Earlier,
    suspects: &Suspects,
) -> Result<Walked> {
    let Earlier { mut tree, dirs } = earlier;
    let walk = Walk { root, still, dirs: &dirs, suspects };
    let top = Found::look(root.top()).context("reading the attributes of the root")?;
    let ((opaque, renamed), upper) = match root.overlay() {
        Some(overlay) => {
            (upper_state(overlay, &overlay.upper)?, Some(Stamp::new(&fs::stat(&overlay.upper)?)))
        }
        None => ((false, false), None),
    };
    tree.insert(ByteString::default(), Seen::Inode { found: top, opaque, upper });
    let (mut fresh, mut kept, mut missed) = (Vec::new(), 0, HashSet::new());
    let mut visited = HashSet::new();
    let mut pending =
        vec![Pending { path: Vec::new(), whole: root.overlay().is_none() || renamed }];
    while !pending.is_empty() {
        let read = pending.par_iter().map(|dir| walk.read_dir(dir)).collect::<Result<Vec<_>>>()?;
        for (dir, read) in pending.drain(..).zip(&read) {
            if read.missed {
                missed.insert(dir.path.clone());
            }
            visited.insert(dir.path);
        }
        for Read { seen, dirs, gone, doubtful, kept: more, .. } in read {
            kept += more;
            fresh.extend(doubtful);
            fresh.extend(seen.iter().map(|(path, _)| path.clone()));
            tree.extend(seen);
            for path in gone {
                tree.remove(&path);
            }
            pending.extend(dirs);
        }
    }
    for (dir, before) in dirs.iter().filter(|(dir, _)| !visited.contains(*dir)) {
        for name in before.names.keys() {
            tree.remove(&ByteString::from(join(dir, name)));
        }
    }
    Ok(Walked { tree, fresh, kept, missed })
}

/// Whether an error only says that the running container was faster.
fn is_race(still: Still, error: &io::Error) -> bool {
    // ELOOP: a directory has become a link; ESTALE: an inode has gone below an overlay.
    let code = error.raw_os_error();
    still == Still::Running
        && (matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
            || code == Some(libc::ELOOP)
            || code == Some(libc::ESTALE))
}

/// What is in a directory, but for what is known and has not changed.
#[derive(Default)]
struct Read {
    seen: Vec<(ByteString, Seen)>,
    dirs: Vec<Pending>,
    /// What was there before.
    gone: Vec<ByteString>,
    /// What has not changed, but may have other content than was copied.
    doubtful: Vec<ByteString>,
    kept: u64,
    /// Something vanished while it was looked at.
    missed: bool,
}

/// One name of a directory.
#[expect(clippy::large_enum_variant, reason = "nearly all of them are looked at")]
enum Name {
    Doubtful(Vec<u8>),
    Looked(Vec<u8>, Looked),
    Gone(Vec<u8>),
}

/// A walk under way.
struct Walk<'a> {
    root: &'a Root,
    still: Still,
    dirs: &'a HashMap<Vec<u8>, Before>,
    suspects: &'a Suspects,
}

impl Walk<'_> {
    fn read_dir(&self, dir: &Pending) -> Result<Read> {
        match self.try_read_dir(dir) {
            Ok(read) => Ok(read),
            Err(error) => match error.downcast_ref::<io::Error>() {
                Some(io) if is_race(self.still, io) => Ok(Read { missed: true, ..Read::default() }),
                _ => Err(error).with_context(|| format!("reading {}", shown(&dir.path))),
            },
        }
    }

    fn try_read_dir(&self, dir: &Pending) -> Result<Read> {
        let merged = fs::open_dir(self.root.top(), &dir.path)?;
        let upper = match self.root.overlay() {
            Some(overlay) => open_existing(&overlay.upper, &dir.path)?,
            None => None,
        };
        let unknown = Before::default();
        let before = self.dirs.get(&dir.path).unwrap_or(&unknown);
        let listed = match &upper {
            upper if self.has_same_names(dir, before, &merged, upper.as_ref())? => None,
            Some(upper) if !dir.whole => Some(fs::names(upper)?),
            None if !dir.whole => Some(Vec::new()),
            _ => Some(fs::names(&merged)?),
        };
        let names: Vec<&[u8]> = match &listed {
            Some(listed) => listed.iter().map(Vec::as_slice).collect(),
            None => before.names.keys().map(Vec::as_slice).collect(),
        };
        let (hits, kept) = (AtomicUsize::new(0), AtomicU64::new(0));
        let look = |name: &&[u8]| -> Option<Result<Name>> {
            let known = before.names.get(*name);
            hits.fetch_add(usize::from(known.is_some()), Ordering::Relaxed);
            if let Some(known) = known
                && let Some(stamp) = known.unchanged(&merged, upper.as_ref(), name)
            {
                let is_suspect = [known.inode, stamp.inode()]
                    .into_iter()
                    .any(|inode| self.suspects.contains(inode));
                let doubtful = known.copied == Some(false) || is_suspect;
                let is_kept = !doubtful && known.copied.is_some() && stamp.identity.size > 0;
                kept.fetch_add(u64::from(is_kept), Ordering::Relaxed);
                return doubtful.then(|| Ok(Name::Doubtful(join(&dir.path, name))));
            }
            Some(self.look(dir, &merged, upper.as_ref(), name))
        };
        // A directory of many files is shared among the processors.
        let looked =
            names.par_iter().with_min_len(64).filter_map(look).collect::<Result<Vec<_>>>()?;
        let mut read = Read { kept: kept.into_inner(), ..Read::of(looked) };
        if hits.into_inner() < before.names.len() {
            let names: HashSet<&[u8]> = names.into_iter().collect();
            let gone = before.names.keys().filter(|name| !names.contains(name.as_slice()));
            read.gone.extend(gone.map(|name| ByteString::from(join(&dir.path, name))));
        }
        Ok(read)
    }

    /// Whether nothing was made or removed in a directory.
    fn has_same_names(
        &self,
        dir: &Pending,
        before: &Before,
        merged: &OwnedFd,
        upper: Option<&OwnedFd>,
    ) -> io::Result<bool> {
        // What an overlay shows of its lower layers in a renamed directory is not in that stamp.
        let listed = match (self.root.overlay(), upper) {
            (None, _) => merged,
            (Some(_), Some(upper)) if !dir.whole => upper,
            _ => return Ok(false),
        };
        Ok(before.stamp.is_some() && before.stamp == Some(Stamp::new(&fs::stat(listed)?)))
    }

    fn look(
        &self,
        dir: &Pending,
        merged: &OwnedFd,
        upper: Option<&OwnedFd>,
        name: &[u8],
    ) -> Result<Name> {
        let path = join(&dir.path, name);
        if is_crius_own(&path) {
            return Ok(Name::Gone(path));
        }
        if path.len() > PATH_LIMIT {
            bail!("a path in it is longer than {PATH_LIMIT} bytes: remove it, or leave it out");
        }
        let looked = look(self.root, dir, merged, upper, name, self.still)
            .with_context(|| format!("reading the attributes of {}", shown(&path)))?;
        Ok(match looked {
            Some(looked) => Name::Looked(path, looked),
            None => Name::Gone(path),
        })
    }
}

impl Read {
    fn of(names: Vec<Name>) -> Self {
        let mut read = Self::default();
        for name in names {
            match name {
                Name::Doubtful(path) => read.doubtful.push(path.into()),
                Name::Gone(path) => {
                    read.missed = true;
                    read.gone.push(path.into());
                }
                Name::Looked(path, Looked { seen, descend }) => {
                    if let Some(whole) = descend {
                        read.dirs.push(Pending { path: path.clone(), whole });
                    }
                    read.seen.push((path.into(), seen));
                }
            }
        }
        read
    }
}

/// Whether CRIU makes a directory of that name in the container, and removes it: where it mounts
/// a tmpfs to read what lies below other mounts (`get_clean_mnt` in criu/mount.c). It does so while
/// this walks.
fn is_crius_own(path: &[u8]) -> bool {
    let name = path.strip_prefix(b"tmp/").unwrap_or(path);
    name.strip_prefix(b"cr-tmpfs.")
        .is_some_and(|rest| rest.len() == 6 && rest.iter().all(u8::is_ascii_alphanumeric))
}

struct Looked {
    seen: Seen,
    /// For a directory to read: whether all that is seen counts there.
    descend: Option<bool>,
}

fn look(
    root: &Root,
    dir: &Pending,
    merged: &OwnedFd,
    upper: Option<&OwnedFd>,
    name: &[u8],
    still: Still,
) -> Result<Option<Looked>> {
    let Some(entry) = fs::open_entry(merged, name)? else {
        // What the upper layer names and the overlay does not show is a whiteout, whichever of its
        // forms the kernel knows (device 0:0, `overlay.whiteout`).
        let is_whiteout = !dir.whole && root.overlay().is_some();
        let whiteout = Looked { seen: Seen::Whiteout, descend: None };
        return Ok(is_whiteout.then_some(whiteout));
    };
    let found = match Found::look(&entry) {
        Err(error) if is_race(still, &error) => return Ok(None),
        other => other?,
    };
    let below = match upper {
        Some(upper) => fs::open_entry(upper, name)?,
        None => None,
    };
    let is_dir = found.shape == Shape::Dir;
    let (mut opaque, mut whole) = (false, dir.whole);
    if let (true, Some(overlay), Some(below)) = (is_dir, root.overlay(), &below) {
        let (is_opaque, renamed) = upper_state(overlay, below)?;
        opaque = is_opaque;
        whole |= renamed;
    }
    let upper = below.map(fs::stat).transpose()?.as_ref().map(Stamp::new);
    let descend = (is_dir && root.holds(found.device)).then_some(whole);
    Ok(Some(Looked { seen: Seen::Inode { found, opaque, upper }, descend }))
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
        Err(error)
            if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
                || error.raw_os_error() == Some(libc::ELOOP) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::snapshot::probe;

    /// Later than every ctime: then stat(2) alone decides.
    const LATER: Time = Time(i64::MAX / 2, 1);

    fn found<'a>(tree: &'a Tree, path: &str) -> Option<&'a Found> {
        match tree.get(&ByteString::from(path)) {
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
        let walk = |earlier| super::walk(&root, Still::Frozen, earlier, &nobody).unwrap();
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
        let Walked { tree: again, mut fresh, kept, .. } =
            walk(Earlier::of(&root, first, LATER, |found| found.identity.size != 8));
        assert_eq!(found(&again, "stays").unwrap().meta.uid, 4711);
        fresh.sort();
        let names = ["becomes", "grows", "linked", "other", "replaced", "uncopied"];
        assert_eq!(fresh, names.map(ByteString::from));
        assert_eq!(kept, 1);
        for name in ["grows", "replaced", "linked", "other", "becomes", ""] {
            assert_ne!(found(&again, name).unwrap().meta.uid, 4711, "{name}");
        }
        assert!(found(&again, "goes").is_none());
        assert_eq!(found(&again, "becomes").unwrap().shape, Shape::Dir);
    }

    #[test]
    fn a_ctime_of_the_tick_in_which_the_walk_began_proves_nothing() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("file"), "").unwrap();
        let root = probe(top.path()).unwrap();
        let nobody = Suspects::default();
        let walk = |earlier| super::walk(&root, Still::Frozen, earlier, &nobody).unwrap();
        let first = walk(Earlier::default());
        let begun = found(&first.tree, "file").unwrap().identity.ctime;
        assert_eq!(
            walk(Earlier::of(&root, first, begun, |_| true)).fresh,
            [ByteString::from("file")]
        );
    }

    #[test]
    fn a_directory_that_was_not_seen_whole_is_read_again() {
        let top = tempfile::tempdir().unwrap();
        fs::write(top.path().join("file"), "").unwrap();
        let root = probe(top.path()).unwrap();
        let nobody = Suspects::default();
        let walk = |earlier| super::walk(&root, Still::Frozen, earlier, &nobody).unwrap();
        let names = |missed: bool| {
            let mut first = walk(Earlier::default());
            first.tree.remove(&ByteString::from("file"));
            first.missed.extend(missed.then(Vec::new));
            walk(Earlier::of(&root, first, LATER, |_| true)).tree.len()
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
        let walk = |earlier| super::walk(&root, Still::Frozen, earlier, &nobody).unwrap();
        let first = walk(Earlier::default());
        for dir in ["goes", "becomes"] {
            fs::remove_dir_all(path(dir)).unwrap();
        }
        fs::write(path("becomes"), "").unwrap();
        let again = walk(Earlier::of(&root, first, LATER, |_| true));
        let paths: Vec<_> = again.tree.keys().map(ToString::to_string).collect();
        assert_eq!(paths, ["", "becomes", "stays", "stays/file"]);
    }

    #[test]
    fn what_criu_makes_meanwhile_is_no_part() {
        assert!(is_crius_own(b"tmp/cr-tmpfs.xIz6kn") && is_crius_own(b"cr-tmpfs.a1b2c3"));
        for other in ["tmp/cr-tmpfs.xIz6k", "tmp/cr-tmpfs.xIz6kn/x", "var/tmp/cr-tmpfs.xIz6kn"] {
            assert!(!is_crius_own(other.as_bytes()), "{other}");
        }
    }
}

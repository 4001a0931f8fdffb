//! Walks what a root holds: the whole tree of a directory, the deviations of an overlay.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use rustix::fs::AtFlags;

use super::attributes::{Found, Shape, identity};
use super::index::{PATH_LIMIT, Time};
use super::probe::{Overlay, Root};
use super::stage::is_racy;
use super::{join, shown};
use crate::bytes::ByteString;
use crate::sys::fs;

/// What a walk found at a path.
pub(super) enum Seen {
    /// An inode; `opaque` of a directory says that nothing below shows through.
    Inode { found: Found, opaque: bool, upper: Option<(u64, u64)> },
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

/// What an earlier walk found. What is no directory need not be opened again where stat(2) says
/// that it is the same, as every change of an inode changes its ctime.
#[derive(Default)]
pub(super) struct Earlier {
    tree: Tree,
    begun: Time,
}

impl Earlier {
    /// Keeps what a walk found that began at `begun`.
    pub(super) fn of(root: &Root, tree: Tree, begun: Time) -> Self {
        // Who knows what else keeps of times.
        let tree = if keeps_ctime(root) { tree } else { Tree::new() };
        Self { tree, begun }
    }

    fn unchanged(&self, dir: &OwnedFd, path: &[u8], name: &[u8]) -> Option<Seen> {
        let Seen::Inode { found, upper, opaque } = self.tree.get(&ByteString::from(path))? else {
            return None;
        };
        if found.shape == Shape::Dir || is_racy(found.identity.ctime, self.begun) {
            return None;
        }
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let now = rustix::fs::statat(dir, name, flags).ok()?;
        let same = (now.st_dev, now.st_nlink) == (found.device, found.names)
            && identity(&now) == found.identity;
        same.then(|| Seen::Inode { found: found.clone(), opaque: *opaque, upper: *upper })
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

/// Walks a root.
pub(super) fn walk(root: &Root, still: Still, earlier: &Earlier) -> Result<Tree> {
    let mut tree = Tree::new();
    let top = Found::look(root.top()).context("reading the attributes of the root")?;
    let (opaque, renamed) = match root.overlay() {
        Some(overlay) => upper_state(overlay, &overlay.upper)?,
        None => (false, false),
    };
    tree.insert(ByteString::default(), Seen::Inode { found: top, opaque, upper: None });
    let mut pending =
        vec![Pending { path: Vec::new(), whole: root.overlay().is_none() || renamed }];
    while !pending.is_empty() {
        let read = pending
            .par_iter()
            .map(|dir| read_dir(root, dir, still, earlier))
            .collect::<Result<Vec<_>>>()?;
        pending.clear();
        for (seen, dirs) in read {
            tree.extend(seen);
            pending.extend(dirs);
        }
    }
    Ok(tree)
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

type Read = (Vec<(ByteString, Seen)>, Vec<Pending>);

fn read_dir(root: &Root, dir: &Pending, still: Still, earlier: &Earlier) -> Result<Read> {
    match try_read_dir(root, dir, still, earlier) {
        Ok(read) => Ok(read),
        Err(error) => match error.downcast_ref::<io::Error>() {
            Some(io) if is_race(still, io) => Ok((Vec::new(), Vec::new())),
            _ => Err(error).with_context(|| format!("reading {}", shown(&dir.path))),
        },
    }
}

fn try_read_dir(root: &Root, dir: &Pending, still: Still, earlier: &Earlier) -> Result<Read> {
    let merged = fs::open_dir(root.top(), &dir.path)?;
    let upper = match root.overlay() {
        Some(overlay) => open_existing(&overlay.upper, &dir.path)?,
        None => None,
    };
    let names = match &upper {
        Some(upper) if !dir.whole => fs::names(upper)?,
        None if !dir.whole => Vec::new(),
        _ => fs::names(&merged)?,
    };
    let look = |name: &Vec<u8>| -> Result<Option<(Vec<u8>, Looked)>> {
        let path = join(&dir.path, name);
        if is_crius_own(&path) {
            return Ok(None);
        }
        if path.len() > PATH_LIMIT {
            bail!("a path in it is longer than {PATH_LIMIT} bytes: remove it, or leave it out");
        }
        if let Some(seen) = earlier.unchanged(&merged, &path, name) {
            return Ok(Some((path, Looked { seen, descend: None })));
        }
        let looked = look(root, dir, &merged, upper.as_ref(), name, still)
            .with_context(|| format!("reading the attributes of {}", shown(&path)))?;
        Ok(looked.map(|looked| (path, looked)))
    };
    // A directory of many files is shared among the processors.
    let looked = names.par_iter().with_min_len(64).map(look).collect::<Result<Vec<_>>>()?;
    let mut seen = Vec::with_capacity(looked.len());
    let mut dirs = Vec::new();
    for (path, this) in looked.into_iter().flatten() {
        if let Some(whole) = this.descend {
            dirs.push(Pending { path: path.clone(), whole });
        }
        seen.push((path.into(), this.seen));
    }
    Ok((seen, dirs))
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
    let upper = match &below {
        Some(below) => {
            let stat = fs::stat(below)?;
            Some((stat.st_dev, stat.st_ino))
        }
        None => None,
    };
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
        for name in ["stays", "grows", "goes", "replaced", "linked", "becomes"] {
            fs::write(path(name), name).unwrap();
        }
        let root = probe(top.path()).unwrap();
        let mut first = walk(&root, Still::Running, &Earlier::default()).unwrap();
        // What comes through from the first walk is known by this.
        for seen in first.values_mut() {
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
        let earlier = Earlier::of(&root, first, LATER);
        let again = walk(&root, Still::Frozen, &earlier).unwrap();
        assert_eq!(found(&again, "stays").unwrap().meta.uid, 4711);
        for name in ["grows", "replaced", "linked", "other", "becomes", ""] {
            assert_ne!(found(&again, name).unwrap().meta.uid, 4711, "{name}");
        }
        assert!(found(&again, "goes").is_none());
        assert_eq!(found(&again, "becomes").unwrap().shape, Shape::Dir);
        // A ctime of the tick in which the first walk began proves nothing.
        let racy = Earlier { begun: found(&again, "stays").unwrap().identity.ctime, ..earlier };
        let fresh = walk(&root, Still::Frozen, &racy).unwrap();
        assert_ne!(found(&fresh, "stays").unwrap().meta.uid, 4711);
    }

    #[test]
    fn what_criu_makes_meanwhile_is_no_part() {
        assert!(is_crius_own(b"tmp/cr-tmpfs.xIz6kn") && is_crius_own(b"cr-tmpfs.a1b2c3"));
        for other in ["tmp/cr-tmpfs.xIz6k", "tmp/cr-tmpfs.xIz6kn/x", "var/tmp/cr-tmpfs.xIz6kn"] {
            assert!(!is_crius_own(other.as_bytes()), "{other}");
        }
    }
}

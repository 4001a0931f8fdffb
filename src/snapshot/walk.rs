//! Walks what a root holds: the whole tree of a directory, the deviations of an overlay.

use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;

use super::attributes::{Found, Shape};
use super::index::PATH_LIMIT;
use super::probe::{Overlay, Root};
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

/// A directory that is still to be read.
struct Pending {
    path: Vec<u8>,
    /// Whether all that is seen counts, not only what the upper layer has.
    whole: bool,
}

/// Walks a root.
pub(super) fn walk(root: &Root, still: Still) -> Result<Tree> {
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
        let read =
            pending.par_iter().map(|dir| read_dir(root, dir, still)).collect::<Result<Vec<_>>>()?;
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

fn read_dir(root: &Root, dir: &Pending, still: Still) -> Result<Read> {
    match try_read_dir(root, dir, still) {
        Ok(read) => Ok(read),
        Err(error) => match error.downcast_ref::<io::Error>() {
            Some(io) if is_race(still, io) => Ok((Vec::new(), Vec::new())),
            _ => Err(error).with_context(|| format!("reading {}", shown(&dir.path))),
        },
    }
}

fn try_read_dir(root: &Root, dir: &Pending, still: Still) -> Result<Read> {
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
    let mut seen = Vec::with_capacity(names.len());
    let mut dirs = Vec::new();
    for name in names {
        let path = join(&dir.path, &name);
        if is_crius_own(&path) {
            continue;
        }
        if path.len() > PATH_LIMIT {
            bail!("a path in it is longer than {PATH_LIMIT} bytes: remove it, or leave it out");
        }
        let Some(this) = look(root, dir, &merged, upper.as_ref(), &name, still)
            .with_context(|| format!("reading the attributes of {}", shown(&path)))?
        else {
            continue;
        };
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
    let same_file_system = found.device == root.device();
    let upper = match &below {
        Some(below) => {
            let stat = fs::stat(below)?;
            Some((stat.st_dev, stat.st_ino))
        }
        None => None,
    };
    let descend = (is_dir && same_file_system).then_some(whole);
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
    use super::*;

    #[test]
    fn what_criu_makes_meanwhile_is_no_part() {
        assert!(is_crius_own(b"tmp/cr-tmpfs.xIz6kn") && is_crius_own(b"cr-tmpfs.a1b2c3"));
        for other in ["tmp/cr-tmpfs.xIz6k", "tmp/cr-tmpfs.xIz6kn/x", "var/tmp/cr-tmpfs.xIz6kn"] {
            assert!(!is_crius_own(other.as_bytes()), "{other}");
        }
    }
}

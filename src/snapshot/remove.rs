//! Removes trees that somebody else has made.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::{join, shown, split};
use crate::sys::{btrfs, fs};

/// Removes a path below a root with all that is in it, and holds no more than one directory open at
/// a time. Nothing is done where there is none.
pub(super) fn tree(root: impl AsFd, path: &[u8]) -> Result<()> {
    let mut todo = vec![path.to_vec()];
    while let Some(path) = todo.last().cloned() {
        let (parent, name) = split(&path).context("the root cannot be removed")?;
        let dir = fs::open_dir(&root, parent)?;
        let context = || format!("removing {}", shown(&path));
        if remove(&dir, name).with_context(context)? {
            todo.pop();
        } else {
            files(&root, &path, &mut todo)?;
        }
    }
    Ok(())
}

/// Removes one name, and says whether it is gone: a directory that is not empty stays.
fn remove(dir: &OwnedFd, name: &[u8]) -> Result<bool> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR) => {}
        Err(errno) => return Err(errno.into()),
    }
    if is_destroyed(dir, name)? {
        return Ok(true);
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) => Ok(true),
        Err(Errno::NOTEMPTY) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Destroys a subvolume at once, if that can be done; else makes sure that it can be emptied.
fn is_destroyed(dir: &OwnedFd, name: &[u8]) -> Result<bool> {
    let subvolume = fs::open_dir(dir, name)?;
    if !btrfs::is_subvolume(&subvolume)? {
        return Ok(false);
    }
    if btrfs::destroy(dir, name).is_ok() {
        return Ok(true);
    }
    // There are others in it.
    if btrfs::is_read_only(&subvolume)? {
        btrfs::set_writable(&subvolume)?;
    }
    Ok(false)
}

/// Empties a directory of all that is no directory; those are left to the caller.
fn files(root: impl AsFd, path: &[u8], todo: &mut Vec<Vec<u8>>) -> Result<()> {
    let dir = fs::open_dir(root, path)?;
    for name in fs::names(&dir)? {
        match rustix::fs::unlinkat(&dir, &name[..], AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR) => todo.push(join(path, &name)),
            Err(errno) => {
                let path = join(path, &name);
                return Err(errno).with_context(|| format!("removing {}", shown(&path)));
            }
        }
    }
    Ok(())
}

//! Removes trees that somebody else has made, however deep and wide they are.
//!
//! One directory is open at a time. The way down is by name and the way up by `..`, where that is the
//! directory that was left; so each level costs the same, and a chain of directories takes as long as
//! as many beside each other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::{Context, Result, bail};
use rustix::fs::{AtFlags, Dir};
use rustix::io::Errno;

use super::fs::{join, shown, split};
use super::inode::DevIno;
use super::{btrfs, fs};

/// Names of directories that are remembered at once, those of all levels; of each level one is, at
/// least.
const WAITING: usize = 16 << 10;
/// Of one level.
const BATCH: usize = 1 << 10;

/// Removes a path below a root with all that is in it. Nothing is done where there is none.
pub fn tree(root: impl AsFd, path: &[u8]) -> Result<()> {
    let (parent, name) = split(path).context("the root cannot be removed")?;
    let at = fs::open_dir(&root, parent)?;
    let level = Level { inode: DevIno::of(&at)?, waiting: vec![name.into()] };
    let root = root.as_fd();
    let mut removal = Removal { root, parent, at, levels: vec![level], waiting: 1 };
    removal.run().with_context(|| format!("removing {}", shown(&removal.path())))
}

/// A removal under way.
struct Removal<'a> {
    root: BorrowedFd<'a>,
    /// The directory that the tree is in.
    parent: &'a [u8],
    /// The directory of the last level.
    at: OwnedFd,
    /// The directories on the way, the outermost first.
    levels: Vec<Level>,
    /// How many names they remember.
    waiting: usize,
}

/// A directory in which something is to be removed.
struct Level {
    inode: DevIno,
    /// Names in it; the last is where the next level is.
    waiting: Vec<Box<[u8]>>,
}

impl Removal<'_> {
    fn run(&mut self) -> Result<()> {
        while let Some(level) = self.levels.last_mut() {
            match level.waiting.last() {
                None => self.ascend()?,
                Some(name) if remove(&self.at, name)? => {
                    level.waiting.pop();
                    self.waiting -= 1;
                }
                Some(_) => self.descend()?,
            }
        }
        Ok(())
    }

    /// Enters the directory that is not empty, and removes what is none in there.
    fn descend(&mut self) -> Result<()> {
        let Some(name) = self.levels.last().and_then(|level| level.waiting.last()) else {
            return Ok(());
        };
        let below = fs::open_dir(&self.at, name)?;
        let most = WAITING.saturating_sub(self.waiting).clamp(1, BATCH);
        let (removed, waiting) = files(&below, most)?;
        if removed == 0 && waiting.is_empty() && !remove(&self.at, name)? {
            bail!("it is not empty, and shows nothing that is in it");
        }
        self.waiting += waiting.len();
        self.levels.push(Level { inode: DevIno::of(&below)?, waiting });
        self.at = below;
        Ok(())
    }

    /// Goes back to the directory above, which then tries again to remove this one.
    fn ascend(&mut self) -> Result<()> {
        self.levels.pop();
        let Some(above) = self.levels.last() else { return Ok(()) };
        self.at = match fs::open_parent(&self.at, above.inode)? {
            Some(parent) => parent,
            // Somebody has moved the directory.
            None => fs::open_dir(self.root, &self.path_of(self.levels.len() - 1))?,
        };
        Ok(())
    }

    /// What is being removed.
    fn path(&self) -> Vec<u8> {
        self.path_of(self.levels.len())
    }

    fn path_of(&self, depth: usize) -> Vec<u8> {
        let names = self.levels[..depth].iter().filter_map(|level| level.waiting.last());
        names.fold(self.parent.to_vec(), |path, name| join(&path, name))
    }
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

/// Removes what is no directory from one; returns how much that was, and the names of the first so
/// many directories.
fn files(dir: &OwnedFd, most: usize) -> Result<(u64, Vec<Box<[u8]>>)> {
    let (mut removed, mut dirs) = (0, Vec::new());
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = match entry.file_name().to_bytes() {
            b"." | b".." => continue,
            name => name,
        };
        match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) => removed += 1,
            Err(Errno::NOENT) => {}
            Err(Errno::ISDIR) => dirs.push(name.into()),
            Err(errno) => return Err(errno).with_context(|| format!("removing {}", shown(name))),
        }
        if dirs.len() == most {
            break;
        }
    }
    Ok((removed, dirs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::open_host_dir;
    use rustix::fs::Mode;
    use rustix::time::{ClockId, clock_gettime};

    /// Makes a chain of directories in one, each with a file.
    fn chain(top: &OwnedFd, length: usize) {
        let mut dir = top.try_clone().unwrap();
        for _ in 0..length {
            fs::create_file(&dir, b"file").unwrap();
            rustix::fs::mkdirat(&dir, "d", Mode::RWXU).unwrap();
            dir = fs::open_dir(&dir, b"d").unwrap();
        }
    }

    #[test]
    fn a_chain_takes_as_long_as_it_is() {
        // In memory: a disk would be what takes long.
        let made = tempfile::tempdir_in("/dev/shm").unwrap();
        let top = open_host_dir(made.path()).unwrap();
        // The way from the top to each of them would be some 200 million names.
        chain(&top, 20_000);
        let begin = clock_gettime(ClockId::ThreadCPUTime);
        tree(&top, b"d").unwrap();
        let taken = clock_gettime(ClockId::ThreadCPUTime).tv_sec - begin.tv_sec;
        assert!(taken < 5, "{taken} s");
        assert_eq!(fs::names(fs::open_dir(&top, b"").unwrap()).unwrap(), [b"file"]);
    }

    #[test]
    fn more_directories_than_are_remembered_go_too() {
        let made = tempfile::tempdir_in("/dev/shm").unwrap();
        let top = open_host_dir(made.path()).unwrap();
        for name in 0..BATCH + 10 {
            let name = format!("many/{name}/below");
            std::fs::create_dir_all(made.path().join(name)).unwrap();
        }
        tree(&top, b"many").unwrap();
        tree(&top, b"many").unwrap();
        assert_eq!(std::fs::read_dir(made.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_way_up_is_the_way_down() {
        let made = tempfile::tempdir().unwrap();
        let top = open_host_dir(made.path()).unwrap();
        std::fs::create_dir_all(made.path().join("here/below")).unwrap();
        std::fs::create_dir_all(made.path().join("elsewhere")).unwrap();
        let above = DevIno::of(fs::open_dir(&top, b"here").unwrap()).unwrap();
        let below = fs::open_dir(&top, b"here/below").unwrap();
        assert!(fs::open_parent(&below, above).unwrap().is_some());
        std::fs::rename(made.path().join("here/below"), made.path().join("elsewhere/x")).unwrap();
        assert!(fs::open_parent(&below, above).unwrap().is_none());
    }
}

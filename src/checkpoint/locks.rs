//! Locks that CRIU leaves out of its images, and that belong there.
//!
//! CRIU reads the locks of each file descriptor from `/proc`, and forgets those of one whose open
//! file it has met before (`do_dump_gen_file` in criu/files.c, `discard_dup_locks_tail` in
//! criu/file-lock.c), on the ground that it has seen them there. It has not, of a lock of a range that
//! belongs to another process which shares the open file; nor, of any lock, when what it met was a
//! message that carries the file, whose locks are nobody's (`dump_my_file`, `dump_file_locks`). At a
//! restore each process sets the locks that `filelocks.img` says are its own: so an entry more is a
//! lock more.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, anyhow};

use crate::container::Holder;
use crate::criu::images::entries::FileLock;
use crate::criu::images::image::{Image, ImageKind};
use crate::criu::images::{ImageDir, Images, InTable, LOCKS};
use crate::files::{Lock, LockKind};
use crate::hint::WithHint;
use crate::sys::directory::Directory;

/// The locks that were held under the freeze, and through which file descriptors.
#[derive(Debug, Default)]
pub(super) struct Locks(pub(super) Vec<(Holder, Lock)>);

impl Locks {
    /// Makes sure that CRIU has not overlooked all of them, which it would refuse if it had seen one.
    pub(super) fn ensure_asked_for(&self, images: &Path, file_locks: bool) -> Result<()> {
        let Some((holder, _)) = self.0.first() else { return Ok(()) };
        if file_locks || images.join(LOCKS).exists() {
            return Ok(());
        }
        let error = anyhow!("fd {} of pid {} holds a lock", holder.fd, holder.pid);
        Err(error.hint("--file-locks keeps it"))
    }

    /// Writes down those that CRIU has not.
    pub(super) fn complete(&self, images: &Path) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        self.add_to(images).context("writing down the locks that CRIU left out")
    }

    fn add_to(&self, path: &Path) -> Result<()> {
        let dir = ImageDir::open(path)?;
        let missing = missing(&Images::read(&dir)?, &self.0);
        if missing.is_empty() {
            return Ok(());
        }
        let image = dir.find(ImageKind::FileLocks, LOCKS)?;
        let image = image.unwrap_or_else(|| Image::empty(ImageKind::FileLocks));
        let entries = missing.iter().map(FileLock::encode);
        let directory = Directory::open(path)?;
        directory
            .replace(LOCKS, &image.with(entries))
            .with_context(|| format!("writing {}", path.join(LOCKS).display()))
    }
}

/// What makes two entries one lock: the open file; and of a lock of a range the table of file
/// descriptors as well, since that is what the kernel has for its owner.
#[derive(PartialEq, Eq, Hash)]
struct LockKey {
    file: u32,
    table: Option<u32>,
    flag: u32,
    access: u32,
    start: i64,
    length: i64,
}

/// Those that no entry of the images is, one of each. A file descriptor that is in no table was not
/// dumped, and has no lock to restore.
fn missing(images: &Images, held: &[(Holder, Lock)]) -> Vec<FileLock> {
    let descriptors = images.descriptors();
    let known = images.locks.iter().filter_map(|lock| identity(&descriptors, lock));
    let mut known: HashSet<LockKey> = known.collect();
    let held = held.iter().map(|(holder, lock)| entry(*holder, lock));
    held.filter(|lock| identity(&descriptors, lock).is_some_and(|one| known.insert(one))).collect()
}

fn entry(holder: Holder, lock: &Lock) -> FileLock {
    FileLock {
        flag: match lock.kind {
            LockKind::Posix => FileLock::POSIX,
            LockKind::Flock => FileLock::FLOCK,
            LockKind::Ofd => FileLock::OFD,
            LockKind::Lease => FileLock::LEASE,
        },
        access: if lock.exclusive { libc::F_WRLCK } else { libc::F_RDLCK } as u32,
        pid: holder.pid,
        fd: holder.fd,
        start: lock.start,
        length: lock.length,
    }
}

fn identity(descriptors: &HashMap<Holder, InTable>, lock: &FileLock) -> Option<LockKey> {
    let FileLock { flag, access, pid, fd, start, length } = *lock;
    let InTable { table, file } = *descriptors.get(&Holder { pid, fd })?;
    let table = (flag == FileLock::POSIX).then_some(table);
    Some(LockKey { file, table, flag, access, start, length })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pid::InnerPid;
    use std::fs;

    /// Images of three processes that share their open files, in one of which is a lock.
    fn images() -> tempfile::TempDir {
        let copy = tempfile::tempdir().unwrap();
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
        for entry in fs::read_dir(kept).unwrap().map(Result::unwrap) {
            fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
        }
        copy
    }

    fn locks(directory: &Path) -> Vec<FileLock> {
        Images::load(directory).unwrap().locks
    }

    #[test]
    fn what_is_missing_is_added_once() {
        let directory = images();
        let known = locks(directory.path());
        let [flock] = known[..] else { panic!("{known:?}") };
        assert_eq!(flock.flag, FileLock::FLOCK);
        let lock = |pid, kind, start| {
            let pid = InnerPid(pid);
            let lock = Lock { kind, exclusive: flock.access == 1, start, length: 0, pid };
            (Holder { pid, fd: flock.fd }, lock)
        };
        let seen = Locks(vec![
            // The same, by whoever has the open file.
            lock(1, LockKind::Flock, 0),
            lock(6, LockKind::Flock, 0),
            lock(6, LockKind::Posix, 2),
            lock(7, LockKind::Posix, 9),
            // Of the same process, by another descriptor of the open file or by none.
            lock(7, LockKind::Posix, 9),
            (Holder { pid: InnerPid(7), fd: 4711 }, lock(7, LockKind::Posix, 9).1),
        ]);
        seen.complete(directory.path()).unwrap();
        let now = locks(directory.path());
        let added: Vec<_> =
            now[1..].iter().map(|lock| (lock.pid.0, lock.flag, lock.start)).collect();
        assert_eq!(now[0], flock);
        assert_eq!(added, [(6, FileLock::POSIX, 2), (7, FileLock::POSIX, 9)]);
        seen.complete(directory.path()).unwrap();
        assert_eq!(locks(directory.path()), now);
        fs::remove_file(directory.path().join(LOCKS)).unwrap();
        seen.complete(directory.path()).unwrap();
        assert_eq!(locks(directory.path()).len(), now.len());
    }

    #[test]
    fn locks_have_to_be_asked_for() {
        let directory = images();
        let lock =
            Lock { kind: LockKind::Posix, exclusive: true, start: 0, length: 0, pid: InnerPid(6) };
        let seen = Locks(vec![(Holder { pid: InnerPid(6), fd: 3 }, lock)]);
        seen.ensure_asked_for(directory.path(), false).unwrap();
        fs::remove_file(directory.path().join(LOCKS)).unwrap();
        seen.ensure_asked_for(directory.path(), true).unwrap();
        Locks::default().ensure_asked_for(directory.path(), false).unwrap();
        let refused = seen.ensure_asked_for(directory.path(), false).unwrap_err();
        assert_eq!(refused.to_string(), "fd 3 of pid 6 holds a lock");
    }
}

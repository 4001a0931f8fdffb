//! Locks on an open file, which pass on to what takes its place.
//!
//! CRIU sets them anew through the file descriptors, and waits until it gets them
//! (`restore_file_lock` in criu/file-lock.c). So that it never waits, they are tried before.

use std::os::fd::OwnedFd;

use nix::fcntl::{FcntlArg, fcntl};
use rustix::fs::{FileType, FlockOperation};
use rustix::io::Errno;

use super::file::Pending;
use super::{Work, file_type};
use crate::files::{Lock, LockKind, OpenFile};

pub(super) const DROP: &str = "with `,drop` behind the rule it goes";

/// Makes sure that the locks on the original can be set on what takes its place.
pub(super) fn check(work: &Work, file: &OpenFile) -> Result<(), String> {
    if file.locks.is_empty() || matches!(work, Work::Close) {
        return Ok(());
    }
    if file.locks.iter().any(|lock| lock.kind == LockKind::Lease) {
        return Err(format!("the original has a lease, which cannot pass on: {DROP}"));
    }
    match work {
        Work::Ready(fd) | Work::File(Pending::Open { fd, .. }) => check_opened(fd, file),
        Work::Socket(_) => Err(no_file()),
        // A file of the container, or a new one; what a program returns is looked at then.
        Work::Container(_)
        | Work::File(Pending::New { .. })
        | Work::Program(_)
        | Work::Close
        | Work::Done => Ok(()),
    }
}

fn check_opened(fd: &OwnedFd, file: &OpenFile) -> Result<(), String> {
    if file.locks.is_empty() {
        return Ok(());
    }
    // The null device, say, is one for the whole machine: a lock on it would be everyone's.
    if !matches!(file_type(fd)?, FileType::RegularFile | FileType::Directory) {
        return Err(no_file());
    }
    file.locks.iter().try_for_each(|lock| try_lock(fd, lock))
}

fn no_file() -> String {
    format!("the original is locked, and only a file or directory can be: {DROP}")
}

/// Takes the lock of an open file, which is to have it anyway; of others only asks whether
/// somebody has one that stands against it.
fn try_lock(fd: &OwnedFd, lock: &Lock) -> Result<(), String> {
    let is_free = match lock.kind {
        LockKind::Flock => try_flock(fd, lock.exclusive),
        LockKind::Posix | LockKind::Ofd => is_range_free(fd, lock),
        LockKind::Lease => Ok(false),
    };
    match is_free {
        Ok(true) => Ok(()),
        Ok(false) => {
            Err(format!("the original is locked, and this is locked by somebody else: {DROP}"))
        }
        Err(error) => Err(format!("trying the original's lock: {error}")),
    }
}

fn try_flock(fd: &OwnedFd, exclusive: bool) -> std::io::Result<bool> {
    let operation = match exclusive {
        true => FlockOperation::NonBlockingLockExclusive,
        false => FlockOperation::NonBlockingLockShared,
    };
    match rustix::fs::flock(fd, operation) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn is_range_free(fd: &OwnedFd, lock: &Lock) -> std::io::Result<bool> {
    let kind = if lock.exclusive { libc::F_WRLCK } else { libc::F_RDLCK };
    let mut range = libc::flock {
        l_type: kind as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: lock.start,
        l_len: lock.length,
        l_pid: 0,
    };
    fcntl(fd, FcntlArg::F_OFD_GETLK(&mut range))?;
    Ok(range.l_type == libc::F_UNLCK as i16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pid::InnerPid;
    use nix::fcntl::{Flock, FlockArg};
    use std::fs::File;

    fn locked(kind: LockKind) -> OpenFile {
        let lock = Lock { kind, exclusive: true, start: 0, length: 0, pid: InnerPid(1) };
        OpenFile { locks: vec![lock], ..super::super::tests::original(libc::O_RDWR, None) }
    }

    fn open(path: &std::path::Path) -> File {
        File::options().read(true).write(true).open(path).unwrap()
    }

    #[test]
    fn a_lock_passes_on_to_a_file_that_nobody_locks() {
        let other = tempfile::NamedTempFile::new().unwrap();
        let work = || Work::Ready(open(other.path()).into());
        for kind in [LockKind::Flock, LockKind::Posix, LockKind::Ofd] {
            check(&work(), &locked(kind)).unwrap();
        }
        let held = Flock::lock(open(other.path()), FlockArg::LockShared).unwrap();
        let range = libc::flock {
            l_type: libc::F_RDLCK as i16,
            l_whence: 0,
            l_start: 5,
            l_len: 1,
            l_pid: 0,
        };
        fcntl(&*held, FcntlArg::F_OFD_SETLK(&range)).unwrap();
        for kind in [LockKind::Flock, LockKind::Posix, LockKind::Ofd] {
            let error = check(&work(), &locked(kind)).unwrap_err();
            assert!(error.contains("locked by somebody else"), "{error}");
        }
    }

    #[test]
    fn what_is_no_file_gets_no_lock() {
        let null = || Work::Ready(open(std::path::Path::new("/dev/null")).into());
        assert!(check(&null(), &locked(LockKind::Flock)).unwrap_err().contains("only a file"));
        assert!(check(&null(), &locked(LockKind::Lease)).unwrap_err().contains("a lease"));
        check(&Work::Close, &locked(LockKind::Lease)).unwrap();
    }
}

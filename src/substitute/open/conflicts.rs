//! Locks that would stand against each other on one file.
//!
//! CRIU sets the locks of a checkpoint one after the other, and waits for each
//! (`restore_file_lock` in criu/file-lock.c): of two that cannot be held at once it would wait for
//! the second for ever. In the checkpoint there are none such; rules that lead two locked files to
//! one, or one to a file that the container has locked itself, could make them.

use std::cmp::Ordering;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};

use super::{Around, Prepared, Refusal, Work, file::Pending};
use crate::files::{FileKind, Lock, LockKind, OpenFile};
use crate::sys::inode::DevIno;
use crate::sys::kcmp::compare_files;
use crate::sys::pid::ProcessFd;

/// Refuses rules by which two locks would be on one file that cannot be held at once.
pub(super) fn check(prepared: &[Prepared], around: &Around<'_>) -> Vec<Refusal> {
    let locked = prepared.iter().filter(|one| !one.file.locks.is_empty());
    let moved: Vec<_> = locked.filter_map(|one| Some((one, Claim::of(one)?))).collect();
    if moved.is_empty() {
        return Vec::new();
    }
    let staying = around.locked.iter().filter_map(|file| Claim::staying(file, around));
    let mut claims: Vec<Claim<'_>> = staying.collect();
    let mut refused = Vec::new();
    for (one, claim) in moved {
        match claims.iter().find(|other| claim.stands_against(other)) {
            Some(other) => refused.push(*one.refusal(other.said())),
            None => claims.push(claim),
        }
    }
    refused
}

/// The locks of an open file, and on what they will be.
struct Claim<'a> {
    file: &'a OpenFile,
    place: Place,
    /// What takes the file's place, where that is open already.
    opening: Option<BorrowedFd<'a>>,
}

/// One file of the machine.
#[derive(PartialEq, Eq)]
enum Place {
    /// One that is there.
    There(DevIno),
    /// One that will be made, or put back.
    ToBe(PathBuf),
}

impl<'a> Claim<'a> {
    /// That of what a rule replaces; `None` where there will be no lock, or nothing is known yet.
    fn of(one: &'a Prepared) -> Option<Self> {
        let file = &one.file;
        let (place, opening) = match &one.work {
            Work::Ready(fd) | Work::File(Pending::Open { fd, .. }) => {
                (Place::of_opening(fd.as_fd())?, Some(fd.as_fd()))
            }
            Work::File(Pending::New { path, .. }) => (Place::at(path)?, None),
            Work::Container(reopen) => (Place::at(reopen.host_path()?)?, None),
            Work::Socket(_) | Work::Program(_) | Work::Close | Work::Done => return None,
        };
        Some(Self { file, place, opening })
    }

    /// That of a file that nothing replaces.
    fn staying(file: &'a OpenFile, around: &Around<'_>) -> Option<Self> {
        if file.deleted || !matches!(file.kind, FileKind::Reg | FileKind::Dir) {
            return None;
        }
        let site = (around.site)(file.name.as_path());
        let place = Place::at(&site.directory?.join(site.relative))?;
        Some(Self { file, place, opening: None })
    }

    fn stands_against(&self, other: &Self) -> bool {
        let pairs = self
            .file
            .locks
            .iter()
            .flat_map(|lock| other.file.locks.iter().map(move |other| (lock, other)));
        self.place == other.place
            && !self.is_one_with(other)
            && pairs.into_iter().any(|(lock, other)| stand_against(lock, other))
    }

    /// Whether it is one opening, which has its locks once.
    fn is_one_with(&self, other: &Self) -> bool {
        let (Some(one), Some(other)) = (self.opening, other.opening) else { return false };
        let [one, other] = [one, other].map(|fd| ProcessFd::own(fd.as_raw_fd()));
        compare_files(one, other).is_ok_and(|order| order == Ordering::Equal)
    }

    fn said(&self) -> String {
        let OpenFile { id, name, .. } = self.file;
        format!(
            "the original is locked, and so is open file {id} ({name}), which will be the same \
             file: both locks cannot be held at once; {}",
            super::locks::DROP
        )
    }
}

/// Whether two locks, of two openings of one file, cannot be held at once. Locks of flock(2) and of
/// ranges do not see each other; of the ranges of one process the later one changes the other.
fn stand_against(one: &Lock, other: &Lock) -> bool {
    use LockKind::{Flock, Lease, Ofd, Posix};
    let meet = match (one.kind, other.kind) {
        (Lease, _) | (_, Lease) => return true,
        (Flock, Flock) => true,
        (Posix, Posix) => one.pid != other.pid && overlap(one, other),
        (Posix | Ofd, Posix | Ofd) => overlap(one, other),
        _ => false,
    };
    meet && (one.exclusive || other.exclusive)
}

fn overlap(one: &Lock, other: &Lock) -> bool {
    let end = |lock: &Lock| match lock.length {
        0 => i64::MAX,
        length => lock.start.saturating_add(length),
    };
    one.start < end(other) && other.start < end(one)
}

impl Place {
    fn of_opening(fd: BorrowedFd<'_>) -> Option<Self> {
        DevIno::of(fd).ok().map(Self::There)
    }

    /// What is at a path, of which no link is a part, or will be.
    fn at(path: &Path) -> Option<Self> {
        if let Ok(metadata) = path.symlink_metadata() {
            return Some(Self::There(DevIno::from(&metadata)));
        }
        let directory = path.parent()?.canonicalize().ok();
        Some(Self::ToBe(match directory {
            Some(directory) => directory.join(path.file_name()?),
            None => path.to_owned(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pid::InnerPid;

    fn lock(kind: LockKind, pid: i32, exclusive: bool, start: i64, length: i64) -> Lock {
        Lock { kind, exclusive, start, length, pid: InnerPid(pid) }
    }

    #[test]
    fn locks_that_cannot_be_held_at_once() {
        use LockKind::{Flock, Lease, Ofd, Posix};
        let whole = |kind, pid, exclusive| lock(kind, pid, exclusive, 0, 0);
        for (one, other, expected) in [
            (whole(Flock, 1, true), whole(Flock, 1, true), true),
            (whole(Flock, 1, true), whole(Flock, 2, false), true),
            (whole(Flock, 1, false), whole(Flock, 2, false), false),
            (whole(Flock, 1, true), whole(Posix, 2, true), false),
            (whole(Posix, 1, true), whole(Posix, 1, true), false),
            (whole(Posix, 1, true), whole(Posix, 2, false), true),
            (whole(Posix, 1, true), whole(Ofd, 1, true), true),
            (whole(Ofd, 1, false), whole(Ofd, 1, false), false),
            (lock(Ofd, 1, true, 0, 10), lock(Ofd, 1, true, 10, 0), false),
            (lock(Ofd, 1, true, 0, 11), lock(Ofd, 1, true, 10, 0), true),
            (lock(Posix, 1, true, i64::MAX - 1, 0), lock(Posix, 2, true, 0, 0), true),
            (whole(Lease, 1, false), whole(Flock, 1, false), true),
        ] {
            assert_eq!(stand_against(&one, &other), expected, "{one:?} {other:?}");
            assert_eq!(stand_against(&other, &one), expected, "{other:?} {one:?}");
        }
    }

    #[test]
    fn one_file_by_two_ways() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let to_be = Place::at(&path).unwrap();
        assert!(
            to_be
                == Place::at(
                    &directory
                        .path()
                        .join("../")
                        .join(directory.path().file_name().unwrap())
                        .join("file")
                )
                .unwrap()
        );
        std::fs::write(&path, "").unwrap();
        let file = std::fs::File::open(&path).unwrap();
        assert!(Place::at(&path) == Place::of_opening(file.as_fd()));
        assert!(Place::at(&path) != Some(to_be));
    }
}

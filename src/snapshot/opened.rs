//! Directories below a root, of which those that were opened last stay open: what lies deep is
//! reached from what is above it, not from the top.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::paths::{Id, Paths};
use crate::sys::fs;

/// So many stay open.
const KEPT: usize = 64;

/// Directories below a root.
pub(super) struct Opened<'a> {
    top: BorrowedFd<'a>,
    recent: Mutex<Recent>,
}

#[derive(Default)]
struct Recent {
    /// Each with the time of its last use.
    dirs: HashMap<Id, (Arc<OwnedFd>, u64)>,
    now: u64,
}

impl<'a> Opened<'a> {
    pub(super) fn below(top: BorrowedFd<'a>) -> Self {
        Self { top, recent: Mutex::default() }
    }

    /// Opens a directory. What its path leads to must not become another one meanwhile.
    pub(super) fn dir<T>(&self, paths: &Paths<T>, dir: Id) -> io::Result<Arc<OwnedFd>> {
        let mut found = None;
        let mut above = dir;
        while above != Id::ROOT {
            found = self.recent(above);
            if found.is_some() {
                break;
            }
            above = paths.parent(above);
        }
        let opened = match found {
            Some(found) if above == dir => return Ok(found),
            Some(found) => fs::open_dir(found, &paths.path_from(above, dir))?,
            None => fs::open_dir(self.top, &paths.path(dir))?,
        };
        Ok(self.keep(dir, opened))
    }

    /// The same for one that may not be there, or be something else.
    pub(super) fn existing<T>(
        &self,
        paths: &Paths<T>,
        dir: Id,
    ) -> io::Result<Option<Arc<OwnedFd>>> {
        match self.dir(paths, dir) {
            Err(error) if is_absent(&error) => Ok(None),
            other => other.map(Some),
        }
    }

    fn recent(&self, dir: Id) -> Option<Arc<OwnedFd>> {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.now += 1;
        let now = recent.now;
        let (opened, used) = recent.dirs.get_mut(&dir)?;
        *used = now;
        Some(opened.clone())
    }

    fn keep(&self, dir: Id, opened: OwnedFd) -> Arc<OwnedFd> {
        let opened = Arc::new(opened);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.dirs.len() >= KEPT {
            let oldest = recent.dirs.iter().min_by_key(|(_, (_, used))| *used).map(|(id, _)| *id);
            oldest.and_then(|id| recent.dirs.remove(&id));
        }
        recent.now += 1;
        let now = recent.now;
        recent.dirs.insert(dir, (opened.clone(), now));
        opened
    }
}

/// A directory that is open, as system calls want it.
pub(super) fn as_fd(dir: &Arc<OwnedFd>) -> BorrowedFd<'_> {
    dir.as_ref().as_fd()
}

/// Whether an error says that there is no such directory.
pub(super) fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(libc::ELOOP)
}

//! One checkpoint or restore of a container at a time, and one change of an image directory.
//!
//! In the file of a lock stands what its holder has frozen. Whoever finds something there has taken
//! the lock of somebody who was killed, and so was everybody who would have thawed it; so it is
//! thawed first. Not even a runtime's other calls pass by that ([`heal`]).

use std::fs::{self, DirBuilder, File};
use std::io::ErrorKind;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::freezer::Freezer;
use crate::hint::WithHint;

const LOCKS: &str = "/run/ocicle/locks";

/// Held while a container is checkpointed or restored; the kernel releases it with the process.
/// Whoever holds it removes its file in the end.
#[derive(Debug)]
pub struct ContainerLock {
    file: Flock<File>,
    path: PathBuf,
}

impl ContainerLock {
    /// Takes the lock of a container.
    ///
    /// # Errors
    /// At once, when another process holds it.
    pub fn take(id: &str) -> Result<Self> {
        Self::take_if_free(id)?.ok_or_else(|| {
            anyhow!("another checkpoint or restore of it is under way")
                .hint("wait for its end, then try again")
        })
    }

    /// What is noted in it.
    pub fn ledger(&self) -> Result<Ledger> {
        Ok(Ledger(self.file.try_clone().context("copying the lock's descriptor")?))
    }

    /// Takes the lock of a container, unless another process holds it.
    pub fn take_if_free(id: &str) -> Result<Option<Self>> {
        Self::take_at(Path::new(LOCKS), id)
    }

    fn take_at(locks: &Path, id: &str) -> Result<Option<Self>> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(locks)
            .with_context(|| format!("making {}", locks.display()))?;
        let path = locks.join(id);
        loop {
            let file = File::options()
                .create(true)
                .read(true)
                .append(true)
                .open(&path)
                .with_context(|| format!("opening {}", path.display()))?;
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                // Else its last holder has removed it since we opened it.
                Ok(file) if is_at(&file, &path)? => {
                    let lock = Self { file, path };
                    lock.ledger()?.carry_out();
                    return Ok(Some(lock));
                }
                Ok(_) => {}
                Err((_, Errno::EWOULDBLOCK)) => return Ok(None),
                Err((_, error)) => {
                    return Err(error).with_context(|| format!("locking {}", path.display()));
                }
            }
        }
    }
}

/// Where the locks of image directories are: for root alone, so that nobody else can hold one.
const IMAGES: &str = "/run/ocicle/images";

/// Held while what ocicle keeps in an image directory is made or removed. Several containers may be
/// restored from one at once, and each has its own [`ContainerLock`].
#[derive(Debug)]
pub struct ImagesLock {
    /// Released with the value, when the name is gone.
    _file: Flock<File>,
    path: PathBuf,
}

impl ImagesLock {
    /// Takes the lock of an image directory; waits for whoever has it.
    pub fn take(images: &Path) -> Result<Self> {
        Self::take_at(Path::new(IMAGES), images)
    }

    fn take_at(locks: &Path, images: &Path) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(locks)
            .with_context(|| format!("making {}", locks.display()))?;
        let found =
            fs::metadata(images).with_context(|| format!("looking at {}", images.display()))?;
        let path = locks.join(format!("{:x}-{}", found.dev(), found.ino()));
        loop {
            let file = File::options()
                .create(true)
                .append(true)
                .open(&path)
                .with_context(|| format!("opening {}", path.display()))?;
            let file = Flock::lock(file, FlockArg::LockExclusive)
                .map_err(|(_, error)| error)
                .with_context(|| format!("locking {}", path.display()))?;
            // Else its last holder has removed it since we opened it.
            if is_at(&file, &path)? {
                return Ok(Self { _file: file, path });
            }
        }
    }
}

impl Drop for ImagesLock {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Thaws a container that was frozen by somebody who was killed, with all who would have thawed it.
pub fn heal(id: &str) -> Result<()> {
    let left = fs::metadata(Path::new(LOCKS).join(id)).is_ok_and(|file| file.len() > 0);
    if left { ContainerLock::take_if_free(id).map(drop) } else { Ok(()) }
}

/// What stands in the file of a lock: the control groups that have to be thawed, one a line. It may
/// outlive the lock.
#[derive(Debug)]
pub struct Ledger(File);

impl From<OwnedFd> for Ledger {
    fn from(lock: OwnedFd) -> Self {
        Self(lock.into())
    }
}

impl Ledger {
    /// Notes that a control group is about to be frozen.
    pub fn note(&self, freezer: &Freezer) -> Result<()> {
        let line = serde_json::to_string(freezer)? + "\n";
        (&self.0).write_all(line.as_bytes()).context("noting what is frozen")
    }

    /// Notes that none is frozen any more.
    pub fn clear(&self) {
        if let Err(error) = self.0.set_len(0) {
            tracing::warn!("noting that nothing is frozen any more: {error}");
        }
    }

    /// Thaws what stands here.
    fn carry_out(&self) {
        let mut text = Vec::new();
        // More than a few lines are nothing that was written here.
        if let Err(error) = (&self.0).take(64 << 10).read_to_end(&mut text) {
            tracing::warn!("reading what was left frozen: {error}");
        }
        for line in text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice::<Freezer>(line).map(|freezer| freezer.thaw()) {
                Ok(Ok(())) => tracing::warn!("what was left frozen by a killed ocicle is thawed"),
                Ok(Err(error)) => tracing::error!("thawing what was left frozen: {error:#}"),
                // A line that was cut: nothing was frozen yet.
                Err(error) => tracing::debug!("reading what was left frozen: {error}"),
            }
        }
        self.clear();
    }
}

impl AsFd for ContainerLock {
    /// Whoever has a copy of it holds the lock, too, after this process was killed.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for ContainerLock {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!("removing {}: {error}", self.path.display());
        }
    }
}

/// Whether a path still leads to an open file.
fn is_at(file: &File, path: &Path) -> Result<bool> {
    let looking = || format!("looking at {}", path.display());
    let ours = file.metadata().with_context(looking)?;
    match fs::symlink_metadata(path) {
        Ok(found) => Ok((found.dev(), found.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error).with_context(looking),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering;

    use super::*;

    #[test]
    fn one_holds_it_and_nothing_stays() {
        let locks = tempfile::tempdir().unwrap();
        let held = ContainerLock::take_at(locks.path(), "web").unwrap().unwrap();
        assert!(ContainerLock::take_at(locks.path(), "web").unwrap().is_none());
        assert!(ContainerLock::take_at(locks.path(), "other").unwrap().is_some());
        drop(held);
        assert_eq!(fs::read_dir(locks.path()).unwrap().count(), 0);
        let again = ContainerLock::take_at(locks.path(), "web").unwrap().unwrap();
        // A file that is not at its path any more locks nobody out.
        fs::rename(&again.path, locks.path().join("moved")).unwrap();
        assert!(ContainerLock::take_at(locks.path(), "web").unwrap().is_some());
        fs::rename(locks.path().join("moved"), &again.path).unwrap();
    }

    #[test]
    fn many_at_once_hold_it_one_after_the_other() {
        let locks = tempfile::tempdir().unwrap();
        let holders = std::sync::atomic::AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut times = 0;
                    while times < 200 {
                        let Some(held) = ContainerLock::take_at(locks.path(), "web").unwrap()
                        else {
                            continue;
                        };
                        assert_eq!(holders.fetch_add(1, Ordering::SeqCst), 0);
                        holders.fetch_sub(1, Ordering::SeqCst);
                        drop(held);
                        times += 1;
                    }
                });
            }
        });
    }
}

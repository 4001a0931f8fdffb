//! One checkpoint or restore of a container at a time.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::hint::WithHint;

const LOCKS: &str = "/run/ocicle/locks";

/// Held while a container is checkpointed or restored; the kernel releases it with the process.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<File>,
}

impl Lock {
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

    /// Takes the lock of a container, unless another process holds it.
    pub fn take_if_free(id: &str) -> Result<Option<Self>> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(LOCKS)
            .with_context(|| format!("making {LOCKS}"))?;
        let path = std::path::Path::new(LOCKS).join(id);
        let file = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => Ok(Some(Self { _file: file })),
            Err((_, Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, error)) => Err(error).with_context(|| format!("locking {}", path.display())),
        }
    }
}

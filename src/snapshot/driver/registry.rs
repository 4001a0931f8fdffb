//! Records of what is held outside of checkpoints' directories.
//!
//! A record is a file `NAME.json` in a directory that only root can read. It is there before what
//! it is of, and locked as long as the process lives that made it: a record that is not locked, of a
//! checkpoint that is none, is of something that was left behind.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};

use crate::sys::fs;

const SUFFIX: &str = ".json";

/// What is held, and for whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claim {
    /// The version of this form: 1.
    pub schema: u32,
    /// The image directory; none of what a restore is putting in place.
    pub owner: Option<PathBuf>,
    /// The part's name.
    pub part: String,
    /// What it is called.
    pub name: String,
    /// What on the host it is of.
    pub path: PathBuf,
    /// The program that took it; none of what ocicle took itself.
    #[serde(default)]
    pub program: Option<PathBuf>,
    /// The digest of the part's index, once that is packed.
    #[serde(default)]
    pub index: Option<String>,
}

/// A directory of records.
pub(super) struct Registry {
    directory: OwnedFd,
}

/// Keeps others from taking what is recorded for something left behind.
#[must_use]
pub struct Lease(#[expect(dead_code, reason = "what it does is being open")] File);

impl Registry {
    /// The records in a directory.
    pub(super) fn at(directory: OwnedFd) -> Self {
        Self { directory }
    }

    /// The directory itself.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Records what is to be made.
    pub(super) fn record(&self, claim: &Claim) -> Result<Lease> {
        let _alone = self.lock()?;
        let file = File::from(fs::create_file(&self.directory, file_name(&claim.name).as_bytes())?);
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        serde_json::to_writer(&file, claim)?;
        file.sync_all()?;
        rustix::fs::fsync(&self.directory)?;
        Ok(Lease(file))
    }

    /// Records that what is held belongs to a packed part, and is called `kept` from now on.
    pub(super) fn keep(&self, name: &str, kept: &str, index: &str) -> Result<()> {
        let _alone = self.lock()?;
        let mut claim = self.read(name)?;
        claim.index = Some(index.to_owned());
        kept.clone_into(&mut claim.name);
        let partial = format!("{kept}.partial");
        let _ = rustix::fs::unlinkat(&self.directory, &partial, AtFlags::empty());
        let file = File::from(fs::create_file(&self.directory, partial.as_bytes())?);
        serde_json::to_writer(&file, &claim)?;
        file.sync_all()?;
        rustix::fs::renameat(&self.directory, &partial, &self.directory, file_name(kept))?;
        Ok(rustix::fs::fsync(&self.directory)?)
    }

    /// Removes a record: what it was of is gone.
    pub(super) fn forget(&self, name: &str) -> Result<()> {
        match rustix::fs::unlinkat(&self.directory, file_name(name), AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno).with_context(|| format!("removing the record of {name}")),
        }
    }

    /// What is held for the packed part whose index has that digest.
    pub(super) fn find(&self, index: &str) -> Result<Option<Claim>> {
        let is_it = |claim: &Claim| claim.index.as_deref() == Some(index);
        Ok(self.claims()?.into_iter().find(is_it))
    }

    /// Whether there is just that record.
    pub(super) fn has(&self, claim: &Claim) -> bool {
        self.read(&claim.name).is_ok_and(|known| known == *claim)
    }

    /// Everything that was left behind, by what nobody works on and who is not alive.
    pub(super) fn abandoned(&self, is_alive: &dyn Fn(&Claim) -> bool) -> Result<Vec<Claim>> {
        let _alone = self.lock()?;
        self.clear()?;
        let mut found = self.claims()?;
        found.retain(|claim| !self.is_leased(&claim.name) && !is_alive(claim));
        Ok(found)
    }

    /// Removes records that were cut short: what they were to be of was not made.
    fn clear(&self) -> Result<()> {
        for name in fs::names(&self.directory)? {
            let name = String::from_utf8_lossy(&name);
            let Some(name) = name.strip_suffix(SUFFIX) else { continue };
            if self.read(name).is_err() && !self.is_leased(name) {
                self.forget(name)?;
            }
        }
        Ok(())
    }

    fn claims(&self) -> Result<Vec<Claim>> {
        let names = fs::names(&self.directory)?;
        let names = names.iter().filter_map(|name| std::str::from_utf8(name).ok());
        Ok(names
            .filter_map(|name| name.strip_suffix(SUFFIX))
            .filter_map(|name| self.read(name).ok().filter(|claim| claim.name == name))
            .collect())
    }

    fn read(&self, name: &str) -> Result<Claim> {
        Ok(serde_json::from_reader(self.open(name)?)?)
    }

    fn open(&self, name: &str) -> Result<File> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.directory, file_name(name), flags, Mode::empty())?.into())
    }

    fn is_leased(&self, name: &str) -> bool {
        let take = |file| flock(&file, FlockOperation::NonBlockingLockExclusive);
        self.open(name).is_ok_and(|file| take(file).is_err())
    }

    /// Records are made and looked for by one process at a time.
    fn lock(&self) -> Result<OwnedFd> {
        let directory = fs::open_dir(self.directory.as_fd(), b"")?;
        flock(&directory, FlockOperation::LockExclusive)?;
        Ok(directory)
    }
}

fn file_name(name: &str) -> String {
    format!("{name}{SUFFIX}")
}

/// A name that nothing else has.
pub(super) fn new_name() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    format!("ocicle-{:x}-{:x}-{:x}", now.tv_sec, now.tv_nsec, std::process::id())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_works_on_and_nobody_owns_is_abandoned() {
        let top = tempfile::tempdir().unwrap();
        let registry = Registry::at(File::open(top.path()).unwrap().into());
        let claim = |name: &str| Claim {
            schema: 1,
            owner: Some("/images".into()),
            part: "rootfs".into(),
            name: name.into(),
            path: "/srv".into(),
            program: None,
            index: None,
        };
        let lease = registry.record(&claim("a")).unwrap();
        drop(registry.record(&claim("b")).unwrap());
        let abandoned = |alive: &str| {
            let found = registry.abandoned(&|claim| claim.name == alive).unwrap();
            found.into_iter().map(|claim| claim.name).collect::<Vec<_>>()
        };
        assert_eq!(abandoned(""), ["b"]);
        assert_eq!(abandoned("b"), Vec::<String>::new());
        registry.keep("b", "c", "digest").unwrap();
        registry.forget("b").unwrap();
        assert_eq!(registry.find("digest").unwrap().unwrap().name, "c");
        assert!(registry.find("other").unwrap().is_none());
        drop(lease);
        registry.forget("c").unwrap();
        registry.forget("c").unwrap();
        assert_eq!(abandoned(""), ["a"]);
        assert!(registry.record(&claim("a")).is_err(), "it is there");
    }
}

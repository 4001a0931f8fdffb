//! The snapshots that are held in a btrfs.
//!
//! They are in the directory `.ocicle` of the subvolume that holds all others of the file
//! system. That is mounted attached nowhere: so it is reached whatever is mounted where, and by
//! nobody else who has but some subvolume. A snapshot stays as long as the checkpoint that it
//! belongs to, whatever removed that: who comes next looks.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, RenameFlags};
use rustix::io::Errno;

use super::registry::{Claim, Registry, new_name};
use crate::bytes::ByteString;
use crate::fault::{self, Point};
use crate::proc::Proc;
use crate::proc::mountinfo::mount_of;
use crate::snapshot::probe::Root;
use crate::snapshot::split;
use crate::sys::inode::DevIno;
use crate::sys::{btrfs, fs, remove};

/// Where snapshots are.
const DIRECTORY: &str = ".ocicle";

/// A btrfs, and the snapshots in it.
pub(super) struct Pool {
    pub(super) top: OwnedFd,
    pub(super) registry: Registry,
}

impl Pool {
    /// The one on a device.
    pub(super) fn open(device: &ByteString) -> Result<Self> {
        let top = btrfs::top_level(device.as_bytes())
            .with_context(|| format!("mounting the btrfs on {device}"))?;
        match rustix::fs::mkdirat(&top, DIRECTORY, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno).with_context(|| format!("making {DIRECTORY} in it")),
        }
        let directory = fs::open_dir(&top, DIRECTORY.as_bytes())?;
        let stat = fs::stat(&directory)?;
        ensure!(
            stat.st_uid == 0 && stat.st_mode & 0o7777 == 0o700,
            "{DIRECTORY} in the btrfs on {device} can be read by others than root"
        );
        Ok(Self { top, registry: Registry::at(directory) })
    }

    /// The one that a root is on, if it is on a btrfs.
    pub(super) fn of(root: &Root) -> Result<Option<Self>> {
        Ok(match device_of(root)? {
            Some(device) => Some(Self::open(&device)?),
            None => None,
        })
    }

    /// Whether that is on record here.
    pub(super) fn has(&self, claim: &Claim) -> bool {
        self.registry.has(claim)
    }

    pub(super) fn snapshot(&self, name: &str) -> Result<OwnedFd> {
        Ok(fs::open_dir(self.registry.directory(), name.as_bytes())?)
    }

    /// The name of what is held of a packed part: taken here, or received from another file system.
    pub(super) fn find(&self, index: &str) -> Option<String> {
        if !index.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let name = kept_name(index);
        let is_subvolume = |snapshot: &OwnedFd| btrfs::is_subvolume(snapshot).unwrap_or(false);
        // Somebody may have written to it.
        let is_read_only = |snapshot: OwnedFd| btrfs::is_read_only(snapshot).unwrap_or(false);
        let snapshot = self.snapshot(&name).ok().filter(is_subvolume)?;
        is_read_only(snapshot).then_some(name)
    }

    /// Names a snapshot after the part that it belongs to: so it is found, and keeps the name where
    /// it is received.
    pub(super) fn keep(&self, name: &str, index: &str) -> Result<()> {
        let kept = kept_name(index);
        // Another checkpoint of just the same may be gone before this one.
        self.discard(&kept)?;
        self.registry.keep(name, &kept, index)?;
        let directory = self.registry.directory();
        rustix::fs::renameat(directory, name, directory, &kept)?;
        self.registry.forget(name)
    }

    /// Removes a snapshot, which is made again under that name; there may be none.
    pub(super) fn clear(&self, name: &str) -> Result<()> {
        remove::tree(self.registry.directory(), name.as_bytes())
    }

    /// Removes a snapshot and its record.
    pub(super) fn discard(&self, name: &str) -> Result<()> {
        self.clear(name)?;
        self.registry.forget(name)
    }

    pub(super) fn sweep(&self, is_alive: &dyn Fn(&Claim) -> bool) -> Result<()> {
        for claim in self.registry.abandoned(is_alive)? {
            tracing::debug!("removing the snapshot {}, left behind", claim.name);
            self.discard(&claim.name)?;
        }
        Ok(())
    }

    /// Puts a writable snapshot of a snapshot in the place of a subvolume, where its name is what the
    /// runtime will look up: what is mounted already stays what it is.
    pub(super) fn put_back(&self, root: &Root, name: &str) -> Result<bool> {
        let Some(path) = place_of(root)? else { return Ok(false) };
        let Some((parent, last)) = split(&path) else { return Ok(false) };
        let parent = fs::open_dir(&self.top, parent)?;
        let there = fs::open_entry(&parent, last)?.context("its name is gone")?;
        if !btrfs::is_subvolume(root.top())? || DevIno::of(&there)? != DevIno::of(root.top())? {
            return Ok(false);
        }
        let new = new_name();
        let claim = Claim {
            schema: 1,
            owner: None,
            part: String::new(),
            name: new.clone(),
            path: root.path().to_owned(),
            program: None,
            index: None,
        };
        let _lease = self.registry.record(&claim)?;
        let directory = self.registry.directory();
        btrfs::snapshot(self.snapshot(name)?, directory, &new, false)
            .context("making a writable snapshot")?;
        fault::point(Point::SnapshotMade);
        let exchange = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(directory, &new, &parent, last, exchange)
            .context("exchanging the subvolume and its snapshot")?;
        fault::point(Point::SnapshotExchanged);
        self.discard(&new)?;
        Ok(true)
    }
}

/// The device of the btrfs that a root is on.
pub(super) fn device_of(root: &Root) -> Result<Option<ByteString>> {
    let mounts = Proc::own_thread().mounts()?;
    let mount = mount_of(&mounts, root.path()).context("finding the mount of the root")?;
    Ok((mount.kind == "btrfs").then(|| mount.source.clone()))
}

/// The path of a root in its file system, if no mount holds on to it, or to what is in it.
fn place_of(root: &Root) -> Result<Option<Vec<u8>>> {
    let mounts = Proc::own_thread().mounts()?;
    if mounts.iter().any(|mount| mount.point.as_path().starts_with(root.path())) {
        return Ok(None);
    }
    let mount = mount_of(&mounts, root.path()).context("finding the mount of the root")?;
    let below = root.path().strip_prefix(mount.point.as_path())?;
    let path = mount.root.as_path().join(below);
    let path = path.strip_prefix("/").unwrap_or(&path);
    Ok(Some(ByteString::from(path).as_bytes().to_vec()))
}

/// The name of a snapshot that a packed part is left with.
fn kept_name(index: &str) -> String {
    format!("ocicle-{index}")
}

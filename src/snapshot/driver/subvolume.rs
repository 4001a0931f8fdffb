//! A btrfs subvolume: a read-only snapshot of it in the freeze.
//!
//! Snapshots are in the directory `.ocicle` of the subvolume that holds all others of the file
//! system. That is mounted attached nowhere: so it is reached whatever is mounted where, and by
//! nobody else who has but some subvolume. A snapshot stays as long as the checkpoint that it
//! belongs to, whatever removed that: who comes next looks.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rustix::fs::{Mode, RenameFlags};
use rustix::io::Errno;

use super::held::{Held, Place};
use super::registry::{Claim, Lease, Registry};
use super::{Driver, Name, Purpose};
use crate::bytes::ByteString;
use crate::files::Suspects;
use crate::snapshot::part::Part;
use crate::snapshot::probe::Root;
use crate::snapshot::stage::{CopyStats, Stage, write_base};
use crate::snapshot::{remove, split};
use crate::sys::btrfs;
use crate::sys::fs;
use crate::sys::mountinfo::{mount_of, mounts_of};

/// Where snapshots are.
const DIRECTORY: &str = ".ocicle";

/// A btrfs, and the snapshots in it.
pub(super) struct Pool {
    top: OwnedFd,
    registry: Registry,
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

    /// Removes a snapshot and its record.
    pub(super) fn discard(&self, name: &str) -> Result<()> {
        remove::tree(self.registry.directory(), name.as_bytes())?;
        self.registry.forget(name)
    }

    fn sweep(&self, is_alive: &dyn Fn(&Claim) -> bool) -> Result<()> {
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
        let inode = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        if !btrfs::is_subvolume(root.top())?
            || inode(fs::stat(&there)?) != inode(fs::stat(root.top())?)
        {
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
        crate::fault::point("snapshot-made");
        let exchange = RenameFlags::EXCHANGE;
        rustix::fs::renameat_with(directory, &new, &parent, last, exchange)
            .context("exchanging the subvolume and its snapshot")?;
        crate::fault::point("snapshot-exchanged");
        self.discard(&new)?;
        Ok(true)
    }
}

/// The device of the btrfs that a root is on.
fn device_of(root: &Root) -> Result<Option<ByteString>> {
    let mounts = mounts_of("thread-self")?;
    let mount = mount_of(&mounts, root.path()).context("finding the mount of the root")?;
    Ok((mount.kind == "btrfs").then(|| mount.source.clone()))
}

/// The path of a root in its file system, if no mount holds on to it, or to what is in it.
fn place_of(root: &Root) -> Result<Option<Vec<u8>>> {
    let mounts = mounts_of("thread-self")?;
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

/// A name that nothing else has.
pub(super) fn new_name() -> String {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    format!("ocicle-{:x}-{:x}-{:x}", now.tv_sec, now.tv_nsec, std::process::id())
}

/// A subvolume of which a snapshot is taken.
pub(super) struct Holding {
    staging: PathBuf,
    root: Option<Root>,
    pool: Pool,
    held: Held,
    /// What is done instead, should there be a subvolume inside by then.
    instead: Option<Stage>,
    lease: Lease,
}

impl Holding {
    /// `None` for what is no subvolume.
    pub(super) fn begin(
        staging: &Path,
        root: &Root,
        base: Option<&Part>,
        purpose: &Purpose<'_>,
    ) -> Result<Option<Self>> {
        if root.overlay().is_some() || !btrfs::is_subvolume(root.top())? {
            return Ok(None);
        }
        // A snapshot holds none of them.
        ensure!(!btrfs::holds_others(root.top())?, "there are other subvolumes in it");
        let device = device_of(root)?.context("it is on no mounted btrfs")?;
        let pool = Pool::open(&device)?;
        let inode = |fd: &OwnedFd| fs::stat(fd).map(|stat| (stat.st_dev, stat.st_ino));
        ensure!(
            inode(&pool.top)? != inode(&root.top().try_clone_to_owned()?)?,
            "it is the one that holds all others"
        );
        pool.sweep(purpose.is_alive)?;
        let claim = Claim {
            schema: 1,
            owner: Some(purpose.owner.to_owned()),
            part: purpose.part.to_owned(),
            name: new_name(),
            path: root.path().to_owned(),
            program: None,
            index: None,
        };
        let lease = pool.registry.record(&claim)?;
        write_base(staging, base)?;
        let held = Held::new(claim, Place::Btrfs { device }, root);
        Ok(Some(Self { staging: staging.to_owned(), root: None, pool, held, instead: None, lease }))
    }

    /// Takes the root over.
    pub(super) fn with(self, root: Root) -> Self {
        Self { root: Some(root), ..self }
    }

    fn root(&self) -> Result<&Root> {
        self.root.as_ref().context("the root was handed on")
    }
}

impl Driver for Holding {
    fn name(&self) -> Name {
        self.instead.as_ref().map_or(Name::Btrfs, Driver::name)
    }

    fn held(&self) -> Option<&Held> {
        Some(&self.held)
    }

    /// A snapshot begins by writing what is dirty: the less, the shorter the freeze.
    fn prepare(&mut self, _suspects: &Suspects) -> Result<CopyStats> {
        let directory = fs::open_dir(self.root()?.top(), b"")?;
        rustix::fs::syncfs(directory).context("writing the file system's dirty pages")?;
        Ok(CopyStats::default())
    }

    fn take(&mut self, suspects: &Suspects) -> Result<CopyStats> {
        let top = self.root()?.top();
        if btrfs::holds_others(top)? {
            tracing::warn!(
                "a subvolume was made in {} just now: all of it is copied under the freeze",
                self.root()?.path().display()
            );
            let root = self.root.take().context("the root was handed on")?;
            let stage = self.instead.insert(Stage::copying(&self.staging, root)?);
            return stage.take(suspects);
        }
        btrfs::snapshot(top, self.pool.registry.directory(), &self.held.claim.name, true)
            .context("making a btrfs snapshot")?;
        crate::fault::point("subvolume-taken");
        self.held.note_taken(suspects);
        Ok(CopyStats::default())
    }

    fn seal(mut self: Box<Self>) -> Result<Option<Lease>> {
        match self.instead.take() {
            Some(stage) => {
                self.pool.discard(&self.held.claim.name)?;
                Box::new(stage).seal()
            }
            None => {
                self.held.write(&self.staging)?;
                Ok(Some(self.lease))
            }
        }
    }
}

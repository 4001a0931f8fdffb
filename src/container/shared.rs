//! Who else has a directory mounted.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{AtFlags, StatxFlags};
use serde::{Deserialize, Serialize};

use super::cgroup::freezer_of_all;
use crate::bytes::ByteString;
use crate::freezer::Freezer;
use crate::proc::mountinfo::{Mount, mount_of};
use crate::proc::{self, Proc};
use crate::sys::inode::{DevIno, Device};
use crate::sys::pid::Pid;

/// What is done about a volume that another container can write too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Shared {
    /// Make no checkpoint
    Error,
    /// Say so
    #[default]
    Warn,
    /// Freeze that container too, until the snapshot is taken
    Freeze,
}

/// What can be done about somebody who writes a volume too.
pub const ADVICE: &str =
    "end it, leave the volume out (--volumes), or have it frozen as well (--shared freeze)";

/// A process in another mount namespace that can write a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeUser {
    /// The first process found there, by its number on the host.
    pub pid: Pid,
    /// Its name.
    pub name: ByteString,
    namespace: u64,
    processes: Vec<Pid>,
}

/// The processes, one for each mount namespace but ours and those of `beside`, that have mounted just
/// this directory, and can write it.
pub fn users_of(directory: &Path, beside: &[Pid]) -> Result<Vec<VolumeUser>> {
    let (device, root) = place_of(directory)?;
    users(beside, |_, mount| mount.device == device && mount.root.as_path() == root)
}

/// Whether a process has mounted just this directory.
pub(super) fn has_mounted(pid: Pid, directory: &Path) -> Result<bool> {
    let (device, root) = place_of(directory)?;
    let mounts = Proc::of(pid).mounts().context("reading what it has mounted")?;
    Ok(mounts.iter().any(|mount| mount.device == device && mount.root.as_path() == root))
}

/// A process that has this directory for its root, wherever it is mounted, and is in no mount
/// namespace of `beside`.
pub fn process_in(root: &Path, beside: &[Pid]) -> Result<Option<VolumeUser>> {
    let ours = inode_of(root).with_context(|| format!("looking at {}", root.display()))?;
    let lives_there = |(_, processes): &(u64, Vec<Pid>)| {
        processes.iter().any(|pid| inode_of(&Proc::of(*pid).root().join(".")) == Ok(ours))
    };
    Ok(namespaces_but(beside)?.into_iter().find(lives_there).map(VolumeUser::of))
}

/// The inode of a directory, without asking a server that may not answer.
fn inode_of(path: &Path) -> rustix::io::Result<DevIno> {
    let flags = AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(rustix::fs::CWD, path, flags, StatxFlags::INO)?;
    let device = Device::new(found.stx_dev_major, found.stx_dev_minor);
    Ok(DevIno { device, ino: found.stx_ino })
}

/// As [`users_of`], but for those beside `except`; and containers count that have mounted a directory
/// above or below it.
pub fn writers_of(directory: &Path, except: Pid) -> Result<Vec<VolumeUser>> {
    let (device, root) = place_of(directory)?;
    users(&[except], |pid, mount| {
        let other = mount.root.as_path();
        mount.device == device
            && (other == root
                || (other.starts_with(&root) || root.starts_with(other)) && is_elsewhere(pid))
    })
}

fn users(except: &[Pid], reaches: impl Fn(Pid, &Mount) -> bool) -> Result<Vec<VolumeUser>> {
    let own = Pid::own();
    let namespaces = namespaces_but(&[except, &[own]].concat())?;
    let has_it = |(_, processes): &(u64, Vec<Pid>)| {
        let pid = processes[0];
        let mounts = Proc::of(pid).mounts().unwrap_or_default();
        mounts.iter().any(|mount| !mount.is_read_only() && reaches(pid, mount))
    };
    Ok(namespaces.into_iter().filter(has_it).map(VolumeUser::of).collect())
}

/// Whether a process has another root directory than we have. A service of the host with a mount
/// namespace of its own sees every directory as we do; that is no container.
fn is_elsewhere(pid: Pid) -> bool {
    let root = |path: &Path| fs::metadata(path).map(|found| DevIno::from(&found)).ok();
    root(&Proc::of(pid).root().join(".")) != root(Path::new("/"))
}

/// The device of the file system that holds a directory, and the directory's path in it.
pub(crate) fn place_of(directory: &Path) -> Result<(Device, PathBuf)> {
    let mounts = Proc::own_thread().mounts()?;
    let directory =
        directory.canonicalize().with_context(|| format!("opening {}", directory.display()))?;
    let mount = mount_of(&mounts, &directory).context("it is on no mount")?;
    let below = directory.strip_prefix(mount.point.as_path()).unwrap_or(Path::new(""));
    let path = mount.root.as_path().join(below);
    Ok((mount.device, path.components().collect()))
}

/// The processes of each mount namespace, by the namespace's number. One that ends has none.
fn namespaces() -> Result<BTreeMap<u64, Vec<Pid>>> {
    let mut found: BTreeMap<u64, Vec<Pid>> = BTreeMap::new();
    for pid in proc::all()? {
        if let Some(namespace) = namespace_of(pid) {
            found.entry(namespace).or_default().push(pid);
        }
    }
    Ok(found)
}

/// The same, without the namespaces of these processes.
fn namespaces_but(except: &[Pid]) -> Result<BTreeMap<u64, Vec<Pid>>> {
    let mut namespaces = namespaces()?;
    for namespace in except.iter().filter_map(|pid| namespace_of(*pid)) {
        namespaces.remove(&namespace);
    }
    Ok(namespaces)
}

fn namespace_of(pid: Pid) -> Option<u64> {
    fs::metadata(Proc::of(pid).at("ns/mnt")).ok().map(|namespace| namespace.ino())
}

impl VolumeUser {
    fn of((namespace, processes): (u64, Vec<Pid>)) -> Self {
        let pid = processes[0];
        Self { pid, name: Proc::of(pid).name(), namespace, processes }
    }

    /// Whether both are one mount namespace.
    pub fn is(&self, other: &Self) -> bool {
        self.namespace == other.namespace
    }

    /// The control group that stops it, and nothing of `beside`.
    pub fn freezer(&self, beside: &Freezer) -> Result<Freezer> {
        freezer_of_all(&self.processes, beside)
            .with_context(|| format!("finding the control group of {self}"))
    }
}

impl std::fmt::Display for VolumeUser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.name)
    }
}

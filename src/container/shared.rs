//! Who else has a directory mounted.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bytes::ByteString;
use crate::sys::mountinfo::{Mount, mount_of, mounts_of};

/// A process in another mount namespace that can write a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// The first process found there, by its number on the host.
    pub pid: i32,
    /// Its name.
    pub name: ByteString,
}

/// The processes, one for each mount namespace but ours and that of `except`, that have mounted
/// just this directory, and can write it.
pub fn writers_of(directory: &Path, except: Option<i32>) -> Result<Vec<User>> {
    let (device, root) = place_of(directory)?;
    let is_it = |mount: &Mount| {
        mount.device == device && mount.root.as_path() == root && !mount.is_read_only()
    };
    let mut namespaces = namespaces()?;
    for known in [Some(std::process::id().cast_signed()), except].into_iter().flatten() {
        if let Some(namespace) = namespace_of(known) {
            namespaces.remove(&namespace);
        }
    }
    let has_it =
        |pid: &i32| mounts_of(&pid.to_string()).is_ok_and(|mounts| mounts.iter().any(is_it));
    Ok(namespaces.into_values().filter(has_it).map(User::of).collect())
}

/// The device of the file system that holds a directory, and the directory's path in it.
pub(crate) fn place_of(directory: &Path) -> Result<((u32, u32), PathBuf)> {
    let mounts = mounts_of("thread-self")?;
    let directory =
        directory.canonicalize().with_context(|| format!("opening {}", directory.display()))?;
    let mount = mount_of(&mounts, &directory).context("it is on no mount")?;
    let below = directory.strip_prefix(mount.point.as_path()).unwrap_or(Path::new(""));
    let path = mount.root.as_path().join(below);
    Ok((mount.device, path.components().collect()))
}

/// A process of each mount namespace, by the namespace's number. One that ends has none.
fn namespaces() -> Result<BTreeMap<u64, i32>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").context("reading /proc")? {
        let name = entry?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        if let Some((pid, namespace)) = pid.and_then(|pid| Some((pid, namespace_of(pid)?))) {
            found.entry(namespace).or_insert(pid);
        }
    }
    Ok(found)
}

fn namespace_of(pid: i32) -> Option<u64> {
    fs::metadata(format!("/proc/{pid}/ns/mnt")).ok().map(|namespace| namespace.ino())
}

impl User {
    fn of(pid: i32) -> Self {
        let name = fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
        Self { pid, name: name.trim_ascii_end().into() }
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pid {} ({})", self.pid, self.name)
    }
}

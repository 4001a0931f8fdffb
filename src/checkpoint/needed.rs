//! How much CRIU will write: the memory of the processes, and what is on their tmpfs.

use std::collections::BTreeMap;

use anyhow::{Context, Result};

use crate::container::Container;
use crate::proc::Proc;
use crate::proc::mountinfo::Mount;
use crate::sys::fs::{open_dir, open_host_dir};
use crate::sys::inode::DevIno;
use crate::sys::pid::Pid;

/// What a member of an archive takes beside its bytes: headers, with records of its times.
const MEMBER: u64 = 2048;

/// What a dump of a container will have, in bytes, or somewhat more: memory that is also a file is
/// counted twice.
pub(super) fn needed(container: &Container) -> Result<u64> {
    let memory = resident(&container.freezer.processes()?);
    let files = on_tmpfs(container).unwrap_or_else(|error| {
        tracing::debug!("looking at the tmpfs of the container: {error:#}");
        0
    });
    Ok(memory + files)
}

/// The memory that the processes have in use, in bytes. One that ended has none.
fn resident(processes: &[Pid]) -> u64 {
    let page = nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096);
    let pages = |pid: &Pid| Proc::of(*pid).resident_pages();
    processes.iter().filter_map(pages).sum::<u64>() * page
}

/// What the archives of the tmpfs will have that were mounted for the container alone. Those of the host
/// are none of CRIU's business, but parts, or nobody's. In a user namespace CRIU has them compressed, who
/// knows how much.
fn on_tmpfs(container: &Container) -> Result<u64> {
    let init = Proc::of(container.init);
    if init.namespace("user")? != Proc::own().namespace("user")? {
        return Ok(0);
    }
    let binds = container.bundle.binds();
    let ours = Proc::own_thread().mounts()?;
    let theirs = init.mounts()?;
    let root = open_host_dir(&init.root()).context("opening the root of the container")?;
    let is_own = |mount: &&Mount| {
        mount.kind == "tmpfs"
            && !binds.iter().any(|bind| bind.destination == mount.point.as_path())
            && !ours.iter().any(|other| other.device == mount.device)
    };
    let mut used = BTreeMap::new();
    for mount in theirs.iter().filter(is_own) {
        let point = mount.point.as_bytes();
        let dir = open_dir(&root, point.strip_prefix(b"/").unwrap_or(point));
        let Ok(dir) = dir else { continue };
        let device = DevIno::of(&dir)?.device;
        // Another mount may lie over it.
        if device == mount.device {
            let space = rustix::fs::fstatvfs(&dir)?;
            let blocks = space.f_blocks.saturating_sub(space.f_bfree);
            let inodes = space.f_files.saturating_sub(space.f_ffree);
            let archive = blocks.saturating_mul(space.f_frsize) + inodes.saturating_mul(MEMBER);
            used.insert(device, archive);
        }
    }
    Ok(used.values().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory() {
        let ourselves = Pid::own();
        assert!(resident(&[ourselves]) > 100 << 10);
        assert_eq!(resident(&[]), 0);
    }
}

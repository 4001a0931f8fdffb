//! Mounts that CRIU cannot save (`validate_mounts` in criu/mount.c).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};

use super::Finding;
use crate::container::{Bundle, Container, Process};
use crate::proc::Proc;
use crate::proc::mountinfo::Mount;

/// File systems that CRIU makes again when the container has mounted them itself (`fstypes` in
/// criu/filesystems.c); it knows fuse, and refuses it.
const KNOWN: [&str; 20] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "binfmt_misc",
    "tmpfs",
    "devpts",
    "simfs",
    "btrfs",
    "pstore",
    "mqueue",
    "securityfs",
    "fusectl",
    "debugfs",
    "tracefs",
    "cgroup",
    "cgroup2",
    "aufs",
    "overlay",
    "autofs",
    "configfs",
];

/// Over which mounts CRIU would fail.
pub(super) fn problems(container: &Container, dumped: &[Process]) -> Result<Vec<Finding>> {
    let mut found = Vec::new();
    for process in of_each_namespace(dumped) {
        let Ok(mounts) = Proc::of(process.host).mounts() else { continue };
        let own: Vec<_> = mounts.iter().filter(|mount| !is_given(mount, container)).collect();
        found.extend(own.iter().filter_map(|mount| problem(mount, &mounts, container)));
    }
    found.sort();
    found.dedup();
    let ours = Proc::own().namespace("mnt").context("reading our mount namespace")?;
    let shared = Proc::of(container.init).namespace("mnt");
    // Without a mount namespace of its own, none of the mounts is the container's.
    Ok(if shared.is_ok_and(|its| its == ours) { Vec::new() } else { found })
}

/// A process of each mount namespace.
fn of_each_namespace(dumped: &[Process]) -> Vec<Process> {
    let mut found = BTreeMap::new();
    for process in dumped {
        if let Ok(namespace) = Proc::of(process.host).namespace("mnt") {
            found.entry(namespace).or_insert(*process);
        }
    }
    found.into_values().collect()
}

/// Whether the runtime names the mount to CRIU as coming from outside: the root file system, what
/// `config.json` binds, its control groups, and what it hides or makes read-only.
fn is_given(mount: &Mount, container: &Container) -> bool {
    let bundle = &container.bundle;
    let point = mount.point.as_path();
    let linux = bundle.spec.linux().as_ref();
    let hidden = linux.and_then(|linux| linux.masked_paths().clone()).unwrap_or_default();
    let fixed = linux.and_then(|linux| linux.readonly_paths().clone()).unwrap_or_default();
    point == Path::new("/")
        || is_control_group(mount, bundle)
        || bundle.binds().iter().any(|bind| bind.destination == point)
        || hidden.iter().chain(&fixed).any(|path| Path::new(path) == point)
}

/// Whether it shows control groups because `config.json` says so: those of version 1 runc names to CRIU
/// (`Checkpoint` in libcontainer/criu_linux.go), and what a namespace of control groups shows CRIU takes
/// for whole (`cgroup_parse` in criu/filesystems.c).
fn is_control_group(mount: &Mount, bundle: &Bundle) -> bool {
    const KINDS: [&str; 2] = ["cgroup", "cgroup2"];
    let asked = bundle
        .spec
        .mounts()
        .iter()
        .flatten()
        .filter(|asked| asked.typ().as_deref().is_some_and(|kind| KINDS.contains(&kind)));
    KINDS.contains(&mount.kind.as_str())
        && asked.into_iter().any(|asked| mount.point.as_path().starts_with(asked.destination()))
}

fn problem(mount: &Mount, mounts: &[Mount], container: &Container) -> Option<Finding> {
    let point = &mount.point;
    let whole = mount.root.as_bytes() == b"/";
    let is_known = KNOWN.contains(&mount.kind.as_str());
    if whole && !is_known {
        return Some(Finding::with_help(
            format!("a {} file system is mounted at {point}, which CRIU cannot save", mount.kind),
            "unmount it, or have it mounted from outside, by config.json",
        ));
    }
    if !whole && !is_part_of_another(mount, mounts, container) {
        return Some(Finding::with_help(
            format!(
                "what is mounted at {point} is part of a file system that is mounted nowhere else"
            ),
            "unmount it, or have it mounted from outside, by config.json",
        ));
    }
    let twins = |other: &&Mount| other.parent == mount.parent && other.point == mount.point;
    (mounts.iter().filter(twins).count() > 1).then(|| {
        let what = format!("two file systems are mounted side by side at {point}");
        Finding::with_help(what, "unmount one of them")
    })
}

/// Whether the mount can be made by binding a part of another: of the whole file system, or of
/// what the runtime gives (`find_fsroot_mount_for` and `mnt_is_external_bind` in criu/mount.c).
fn is_part_of_another(mount: &Mount, mounts: &[Mount], container: &Container) -> bool {
    mounts.iter().any(|other| {
        let whole = other.root.as_bytes() == b"/";
        other.id != mount.id
            && other.device == mount.device
            && (whole || is_given(other, container))
            && mount.root.as_path().starts_with(other.root.as_path())
    })
}

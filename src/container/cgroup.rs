//! Finding a container's control group.
//!
//! The runtime's own record comes first: a container that manages control groups itself (an
//! init system, say) moves its processes into groups below the container's. Without a record it
//! is the group of the first process.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::records::read_json;
use crate::foreign::Reader;
use crate::freezer::{CgroupVersion, Freezer};
use crate::proc::Proc;
use crate::proc::cgroup::Membership;
use crate::proc::mountinfo::Mount;
use crate::runtime::Runtime;
use crate::sys::pid::Pid;

/// The version of the hierarchy that can freeze.
pub fn cgroup_version() -> Result<CgroupVersion> {
    Hierarchy::mounted().map(|hierarchy| hierarchy.version)
}

/// The freezer of the control group that a process is in.
pub fn freezer_of_process(pid: Pid) -> Result<Freezer> {
    let hierarchy = Hierarchy::mounted()?;
    Ok(Freezer::new(hierarchy.version, hierarchy.group_of(&Proc::of(pid))?))
}

pub(super) fn freezer_of(runtime: &Runtime, id: &str, init: Pid) -> Result<Freezer> {
    let hierarchy = Hierarchy::mounted()?;
    let group_of_init = hierarchy.group_of(&Proc::of(init))?;
    let directory = recorded(runtime, id, &hierarchy)
        .filter(|recorded| group_of_init.starts_with(recorded))
        .unwrap_or(group_of_init);
    ensure!(directory != hierarchy.mount_point(), "it is the root group");
    ensure!(
        !hierarchy.group_of(&Proc::own())?.starts_with(&directory),
        "{} holds this very process, which would freeze itself",
        directory.display()
    );
    Ok(Freezer::new(hierarchy.version, directory))
}

/// The control group that holds these processes, and nothing of `beside`, to be frozen with it.
pub(super) fn freezer_of_all(processes: &[Pid], beside: &Freezer) -> Result<Freezer> {
    let hierarchy = Hierarchy::mounted()?;
    // One that has ended belongs to none.
    let groups = processes.iter().filter_map(|pid| hierarchy.group_of(&Proc::of(*pid)).ok());
    let directory = groups.reduce(|one, other| common(&one, &other));
    let directory = directory.context("its processes have ended")?;
    ensure!(
        directory != hierarchy.mount_point(),
        "its processes have no control group of their own"
    );
    let others = [hierarchy.group_of(&Proc::own())?, beside.directory().to_owned()];
    ensure!(
        !others.iter().any(|other| other.starts_with(&directory)),
        "{} holds more than it",
        directory.display()
    );
    Ok(Freezer::new(hierarchy.version, directory))
}

/// How much more memory this process may take, by the limits of its control group and of those
/// above it; `None` where there are none.
pub fn memory_left() -> Result<Option<u64>> {
    let Some(hierarchy) = Hierarchy::among(&Proc::own().mounts()?, "memory") else {
        return Ok(None);
    };
    let group = hierarchy.group_of(&Proc::own())?;
    let groups = group.ancestors().take_while(|group| group.starts_with(hierarchy.mount_point()));
    Ok(groups.filter_map(|group| left_of(group, hierarchy.version)).min())
}

/// By the limit of one group.
fn left_of(group: &Path, version: CgroupVersion) -> Option<u64> {
    let [limit, usage] = match version {
        CgroupVersion::V1 => ["memory.limit_in_bytes", "memory.usage_in_bytes"],
        CgroupVersion::V2 => ["memory.max", "memory.current"],
    };
    let number = |name| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
    Some(number(limit)?.saturating_sub(number(usage)?))
}

/// The deepest directory above two.
fn common(one: &Path, other: &Path) -> PathBuf {
    let both = one.components().zip(other.components());
    both.take_while(|(one, other)| one == other).map(|(one, _)| one).collect()
}

/// The mounted hierarchy that has a controller: version 1 where the controller is mounted, as there
/// a runtime uses no other.
struct Hierarchy {
    controller: &'static str,
    version: CgroupVersion,
    mount: Mount,
}

impl Hierarchy {
    fn mounted() -> Result<Self> {
        Self::among(&Proc::own().mounts()?, "freezer")
            .context("no freezer is mounted: neither cgroup v2 nor the freezer of v1")
    }

    fn among(mounts: &[Mount], controller: &'static str) -> Option<Self> {
        let has_it = |mount: &&Mount| mount.has_controller(controller);
        let v1 = mounts.iter().rfind(has_it).map(|mount| (CgroupVersion::V1, mount));
        let v2 = mounts
            .iter()
            .rfind(|mount| mount.kind == "cgroup2")
            .map(|mount| (CgroupVersion::V2, mount));
        v1.or(v2).map(|(version, mount)| Self { controller, version, mount: mount.clone() })
    }

    /// The group of a process.
    fn group_of(&self, process: &Proc) -> Result<PathBuf> {
        let groups = process.cgroups()?;
        self.locate(Path::new(group_in(&groups, self.version, self.controller)?))
    }

    fn mount_point(&self) -> &Path {
        self.mount.point.as_path()
    }

    /// Where the group of that path, as `/proc/PID/cgroup` names it, is in the file system.
    fn locate(&self, group: &Path) -> Result<PathBuf> {
        let below = group.strip_prefix(self.mount.root.as_path()).with_context(|| {
            format!(
                "the group {} is not below what is mounted at {}",
                group.display(),
                self.mount.point
            )
        })?;
        Ok(self.mount_point().join(below).components().collect())
    }
}

/// The name of a process's group in the hierarchy that freezes; `None` for the root group.
pub fn group_name(pid: Pid, version: CgroupVersion) -> Option<String> {
    let groups = Proc::of(pid).cgroups().ok()?;
    let name = Path::new(group_in(&groups, version, "freezer").ok()?).file_name()?;
    Some(name.to_string_lossy().into_owned())
}

/// The path of the group in the hierarchy of a version that has a controller.
fn group_in<'a>(
    groups: &'a [Membership],
    version: CgroupVersion,
    controller: &str,
) -> Result<&'a str> {
    let is_it = |group: &&Membership| match version {
        CgroupVersion::V1 => group.has(controller),
        CgroupVersion::V2 => group.is_unified(),
    };
    let group = groups.iter().find(is_it);
    let group = group
        .with_context(|| format!("a process is in no group of the {controller}'s hierarchy"))?;
    Ok(&group.path)
}

/// What runc writes in `state.json` and crun in `status`, as far as we need it.
#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    cgroup_paths: std::collections::BTreeMap<String, PathBuf>,
    #[serde(default, rename = "cgroup-path")]
    cgroup_path: Option<PathBuf>,
}

fn recorded(runtime: &Runtime, id: &str, hierarchy: &Hierarchy) -> Option<PathBuf> {
    let root = runtime.root().unwrap_or_else(|| Path::new("/run").join(runtime.name()));
    let record = ["state.json", "status"].iter().find_map(|name| {
        read_json::<Record>(&Reader::of_root(), &root.join(id).join(name)).ok()?
    })?;
    let controller = match hierarchy.version {
        CgroupVersion::V1 => "freezer",
        CgroupVersion::V2 => "",
    };
    let of_crun = || {
        let path = record.cgroup_path.as_deref().filter(|path| !path.as_os_str().is_empty())?;
        hierarchy.locate(&Path::new("/").join(path)).ok()
    };
    record.cgroup_paths.get(controller).cloned().or_else(of_crun).filter(|path| path.is_absolute())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::cgroup::parse_cgroup;
    use crate::proc::mountinfo::parse_mountinfo;

    const HYBRID: &[u8] = b"30 1 0:26 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
        31 1 0:27 /box /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn version_1_comes_first_where_both_are_mounted() {
        let mounts = parse_mountinfo(HYBRID).unwrap();
        let hierarchy = Hierarchy::among(&mounts, "freezer").unwrap();
        assert_eq!(hierarchy.version, CgroupVersion::V1);
        assert_eq!(Hierarchy::among(&mounts[1..], "freezer").unwrap().version, CgroupVersion::V2);
    }

    #[test]
    fn a_group_is_found_below_what_is_mounted() {
        let mounts = parse_mountinfo(HYBRID).unwrap();
        let hierarchy = Hierarchy::among(&mounts[1..], "freezer").unwrap();
        let found = hierarchy.locate(Path::new("/box/web")).unwrap();
        assert_eq!(found.to_str(), Some("/sys/fs/cgroup/unified/web"));
        assert!(hierarchy.locate(Path::new("/other/web")).is_err());
    }

    #[test]
    fn the_least_that_is_left_counts() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        assert_eq!(left_of(group.path(), CgroupVersion::V2), None, "the root group has no limit");
        write("memory.max", "max\n");
        write("memory.current", "300\n");
        assert_eq!(left_of(group.path(), CgroupVersion::V2), None);
        write("memory.max", "1000\n");
        assert_eq!(left_of(group.path(), CgroupVersion::V2), Some(700));
        write("memory.limit_in_bytes", "200\n");
        write("memory.usage_in_bytes", "300\n");
        assert_eq!(left_of(group.path(), CgroupVersion::V1), Some(0));
    }

    #[test]
    fn membership_of_each_version() {
        let text = "4:cpu,cpuacct:/c\n3:freezer:/f:x\n0::/unified\n";
        let groups = parse_cgroup(text).unwrap();
        assert_eq!(group_in(&groups, CgroupVersion::V1, "freezer").unwrap(), "/f:x");
        assert_eq!(group_in(&groups, CgroupVersion::V1, "cpu").unwrap(), "/c");
        assert_eq!(group_in(&groups, CgroupVersion::V2, "freezer").unwrap(), "/unified");
        let first = parse_cgroup("4:cpu:/c\n").unwrap();
        assert!(group_in(&first, CgroupVersion::V2, "freezer").is_err());
    }
}

//! What CRIU is told of a container before the container is frozen.
//!
//! CRIU reads its configuration when it starts, and its start takes longer than many a dump. So it
//! starts while the container still runs, with what is found out then; and under the freeze the
//! same is found out again. Only if the one covers the other, the dump goes on.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::locks::Locks;
use super::{CheckpointRequest, connections};
use crate::container::{Container, Identity};
use crate::cover::{Aside, Cover};
use crate::files::{Owned, Unreachable, WaitingEvents, by_path};
use crate::freezer::Still;
use crate::hint::WithHint;
use crate::proc::Proc;
use crate::proc::cgroup::Membership;
use crate::proc::mountinfo::Mount;
use crate::runtime::Family;
use crate::runtime::arguments::CGROUPS_MODE;
use crate::store::manifest::External;
use crate::sys::inode::DevIno;
use crate::sys::pid::Pid;

/// What CRIU is told because the container is so.
pub(super) struct Foreseen {
    /// The files that CRIU could not find by their paths, by their keys.
    pub external: Vec<External>,
    /// The open files that CRIU is kept from, and what they are.
    pub aside: Aside,
    /// Whose the other open files are.
    pub owned: Vec<Owned>,
    /// The locks that are held.
    pub locks: Locks,
    /// Where the watched files are that CRIU does not find by itself.
    pub watched: HashMap<DevIno, PathBuf>,
    /// What it drops of what waits to be read.
    pub events: Vec<WaitingEvents>,
    /// Whether there are connections that the network lock must keep in order.
    pub needs_lock: bool,
    /// Whether CRIU shall look at no control group.
    plain_cgroups: bool,
}

impl Foreseen {
    /// Looks at the container. While it is not frozen, what vanishes meanwhile is no error.
    pub(super) fn by_looking(
        container: &Container,
        cover: &Cover,
        still: Still<'_>,
        plain_cgroups: bool,
    ) -> Result<Self> {
        cover.finder().limit(still);
        let seen = by_path(&container.dumped_processes()?, still)
            .context("looking for files out of CRIU's reach")?;
        if let Some(served) = seen.served {
            return Err(anyhow!("a process of the container serves the file system at {served}").hint(
                "CRIU cannot save a FUSE file system, and would wait for its server, which is frozen: \
                 unmount it, and close its files, before the checkpoint",
            ));
        }
        // Remembered until CRIU has made other names of them.
        seen.unnamed.found(cover.finder());
        Ok(Self {
            external: external(seen.unreachable),
            owned: seen.owned,
            locks: Locks(seen.locks),
            watched: seen.watched.found(cover.finder()),
            events: seen.events,
            aside: cover.choose(container)?,
            needs_lock: connections::need_lock(&container.freezer.processes()?),
            plain_cgroups: plain_cgroups && are_plain(container),
        })
    }

    /// Whether what was told does for what is so: telling of a file that is not there any more, or
    /// locking without need, does no harm. A file that CRIU was kept from has to be written down.
    pub(super) fn covers(&self, now: &Self) -> bool {
        now.external.iter().all(|file| self.external.iter().any(|told| told.key == file.key))
            && self.aside.chosen == now.aside.chosen
            && (self.needs_lock || !now.needs_lock)
            && (now.plain_cgroups || !self.plain_cgroups)
    }
}

fn external(unreachable: Vec<Unreachable>) -> Vec<External> {
    let mut external: Vec<External> = unreachable
        .into_iter()
        .map(|file| External { key: file.external_key(), path: file.path })
        .collect();
    external.sort_by(|one, other| one.key.cmp(&other.key));
    external.dedup_by(|one, other| one.key == other.key);
    external
}

/// Processes whose control groups are compared under the freeze; with more of them that would take
/// longer than what it saves.
const MANY: usize = 200;

/// Whether CRIU need not look at control groups: the caller leaves that to the runtime, and every
/// process is in the container's own groups, which have no groups below.
///
/// CRIU reads every setting of every group, for which it mounts the hierarchies, and that takes
/// longer than all else that it does with a small container. At a restore it goes by that only for
/// groups that it makes itself (`--manage-cgroups=soft` in criu(8)); and the container's own are
/// made by the runtime, which starts CRIU in them. But without them in the images, CRIU looks for
/// the groups at their old paths (`move_in_cgroup`, `prepare_cgns`), whatever new root the runtime
/// names (`rewrite_cgroup_roots`): so an engine's container, which may come back under another
/// name, has them read.
pub(super) fn has_plain_cgroups(request: &CheckpointRequest, container: &Container) -> bool {
    let knows_the_mode = request.runtime.family() != Family::Other;
    knows_the_mode
        && !request.has_flag(CGROUPS_MODE)
        && !belongs_to_an_engine(container)
        && are_plain(container)
}

/// Whether it is a container of podman's, docker's, containerd's or CRI-O's.
fn belongs_to_an_engine(container: &Container) -> bool {
    let directory = &container.bundle.directory;
    directory.iter().any(|name| name == "io.containerd.runtime.v2.task")
        || !Identity::of(&container.id, &container.bundle).names.is_empty()
}

/// What cannot be read is not plain.
fn are_plain(container: &Container) -> bool {
    let plain = || -> Result<bool> {
        let processes = container.freezer.processes()?;
        let groups = Proc::of(container.init).cgroups()?;
        let mounts = Proc::own().mounts()?;
        let alone = groups.iter().all(|group| is_childless(group, &mounts) == Some(true));
        let is_there_too = |pid: &Pid| Proc::of(*pid).cgroups().is_ok_and(|other| other == groups);
        Ok(alone && processes.len() <= MANY && processes.iter().all(is_there_too))
    };
    plain().unwrap_or(false)
}

/// Whether a group has no groups below it; `None` where its hierarchy is not mounted.
fn is_childless(group: &Membership, mounts: &[Mount]) -> Option<bool> {
    let mount = mounts.iter().rfind(|mount| mount.shows(group))?;
    let below = Path::new(&group.path).strip_prefix(mount.root.as_path()).ok()?;
    let directory: PathBuf = mount.point.as_path().join(below);
    let mut entries = fs::read_dir(directory).ok()?;
    Some(!entries.any(|entry| entry.is_ok_and(|entry| entry.path().is_dir())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::plugin::SetAside;
    use crate::proc::cgroup::parse_cgroup;
    use crate::sys::pid::ProcessFd;

    fn foreseen(keys: &[&str], needs_lock: bool, plain_cgroups: bool) -> Foreseen {
        let file = |key: &&str| External { key: (*key).to_owned(), path: "/x".into() };
        let external = keys.iter().map(file).collect();
        let (aside, owned) = (Aside::default(), Vec::new());
        let locks = Locks::default();
        let (watched, events) = (HashMap::new(), Vec::new());
        Foreseen { external, owned, locks, aside, watched, events, needs_lock, plain_cgroups }
    }

    #[test]
    fn what_was_told_covers_less_and_not_more() {
        let told = foreseen(&["file[1:2]"], false, true);
        assert!(told.covers(&foreseen(&["file[1:2]"], false, true)));
        assert!(told.covers(&foreseen(&[], false, true)));
        assert!(!told.covers(&foreseen(&["file[1:2]", "file[1:3]"], false, true)), "a file");
        let mut now = foreseen(&[], false, true);
        now.aside.chosen.push(SetAside::of(ProcessFd::own(0)).unwrap());
        assert!(!told.covers(&now), "a file that CRIU cannot dump");
        assert!(!told.covers(&foreseen(&[], true, true)), "a connection");
        assert!(!told.covers(&foreseen(&[], false, false)), "a control group");
        assert!(foreseen(&[], true, false).covers(&foreseen(&[], false, true)));
    }

    #[test]
    fn a_hierarchy_is_found_by_its_controllers() {
        let mounts = Proc::own().mounts().unwrap();
        let group = |line| parse_cgroup(line).unwrap().remove(0);
        assert_eq!(is_childless(&group("7:no-such-controller:/"), &mounts), None);
        let has_cgroup2 = mounts.iter().any(|mount| mount.kind == "cgroup2");
        assert_eq!(is_childless(&group("0::/no/such/group"), &mounts), None);
        assert_eq!(mounts.iter().any(|mount| mount.shows(&group("0::/"))), has_cgroup2);
    }
}

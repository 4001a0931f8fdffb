//! A place out of the reach of whoever ends ocicle together with all that it has started.
//!
//! A session of its own does not help against who ends a control group: `KillMode=control-group` of
//! systemd.kill(5), `cgroup.kill` of cgroups(7). So who has to outlive that leaves for a group at the top
//! of the hierarchies by which services are told apart:
//!
//! - the guardian's deputy, which thaws the container then;
//! - CRIU, while it dumps. Ended in the middle of that it leaves processes where it has led them, at an
//!   instruction that is not theirs, and they end too, or go on with calls that fail. Left alone it
//!   finds out that its script is not answered, and puts everything back.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::proc::Proc;
use crate::proc::mountinfo::Mount;

/// The group, which stays, empty.
const GROUP: &str = "ocicle";

/// Leaves the caller's control groups. Where that cannot be, it is told, and this process stays.
pub fn leave_groups() {
    let mounts = Proc::own().mounts().unwrap_or_else(|error| {
        tracing::debug!("{error:#}");
        Vec::new()
    });
    for mount in mounts.iter().filter(|mount| tells_services_apart(mount)) {
        if let Err(error) = move_to(&mount.point.as_path().join(GROUP)) {
            tracing::debug!("{error:#}");
        }
    }
}

/// The unified hierarchy, and of version 1 the one that systemd has for itself.
fn tells_services_apart(mount: &Mount) -> bool {
    let mut options = mount.super_options.as_bytes().split(|byte| *byte == b',');
    mount.kind == "cgroup2"
        || mount.kind == "cgroup" && options.any(|option| option == b"name=systemd")
}

fn move_to(group: &Path) -> Result<()> {
    let context = || format!("moving to the control group {}", group.display());
    match fs::create_dir(group) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(context);
        }
        _ => {}
    }
    // 0 is who writes it (cgroups(7)).
    fs::write(group.join("cgroup.procs"), "0").with_context(context)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::mountinfo::parse_mountinfo;

    #[test]
    fn the_hierarchies_of_services() {
        let text = b"31 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
            32 24 0:28 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd\n\
            33 24 0:29 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
            34 24 0:30 / /systemd rw - tmpfs name=systemd rw\n";
        let mounts = parse_mountinfo(text).unwrap();
        let told = mounts.iter().filter(|mount| tells_services_apart(mount));
        assert_eq!(told.map(|mount| mount.id).collect::<Vec<_>>(), [31, 32]);
    }
}

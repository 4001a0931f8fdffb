//! Who is no part of the checkpoint, and may write what is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Finding;
use super::kept::Parts;
use crate::bytes::ByteString;
use crate::container::{Container, Process, Shared, group_name, shared};
use crate::freezer::CgroupVersion;
use crate::proc::fdinfo::FdInfo;
use crate::proc::mountinfo::Mount;
use crate::proc::{self, Proc};
use crate::sys::inode::Device;
use crate::sys::pid::Pid;

/// Sessions that came in by `exec`, and who else has files in parts of the container open for
/// writing.
pub(super) fn remarks(
    container: &Container,
    dumped: &[Process],
    parts: &Parts,
) -> Result<Vec<Finding>> {
    let dumped: BTreeSet<Pid> = dumped.iter().map(|process| process.host).collect();
    let mut found = Vec::new();
    let inside: BTreeSet<Pid> = container.freezer.processes()?.into_iter().collect();
    found.extend(inside.difference(&dumped).filter_map(|host| session(*host)));
    let outside = writers_outside(&inside)?;
    for (point, source, _) in parts.shareable() {
        found.extend(writers(&point, &source, &outside, container.freezer.version()));
    }
    Ok(found)
}

/// A process that is frozen with the others, and is not dumped.
fn session(host: Pid) -> Option<Finding> {
    let status = Proc::of(host).stat().ok().filter(|status| status.state != 'Z')?;
    let name = ByteString::from(status.name.as_str());
    Some(Finding::with_help(
        format!(
            "pid {host} of the host ({name}) came into the container by exec: it is frozen with \
             it, is no part of the checkpoint, and ends when the container is stopped"
        ),
        "end it first if it must not write in between",
    ))
}

/// Who else has parts of the container mounted, and can write them: what makes a checkpoint fail by
/// the rule, and what should be known.
pub(super) fn sharing(
    container: &Container,
    parts: &Parts,
    rule: Shared,
) -> (Vec<Finding>, Vec<Finding>) {
    let (mut problems, mut remarks) = (Vec::new(), Vec::new());
    for (point, source, held) in parts.shareable() {
        for user in shared::writers_of(&source, container.init).unwrap_or_default() {
            let place = of_container(user.pid, container.freezer.version());
            let is = if held { "is" } else { "is not" };
            let point = point.display();
            let said =
                format!("{point} {is} part of the snapshot, and {user}{place} can write it too");
            match rule {
                Shared::Error if held => {
                    problems.push(Finding::with_help(said, shared::ADVICE));
                }
                Shared::Freeze if held => match user.freezer(&container.freezer) {
                    Ok(_) => remarks.push(Finding::new(format!("{said}: it is frozen with it"))),
                    Err(error) => problems.push(Finding::new(format!("{said}: {error:#}"))),
                },
                _ => remarks.push(Finding::new(format!("{said} and is not frozen"))),
            }
        }
    }
    (problems, remarks)
}

/// ` in NAME`, by its control group, which engines and runtimes name after the container.
fn of_container(pid: Pid, version: CgroupVersion) -> String {
    let name = group_name(pid, version);
    name.map_or_else(String::new, |name| format!(" in {}", ByteString::from(name.as_str())))
}

/// A file that a process outside the container has open for writing.
struct Writer {
    pid: Pid,
    fd: i32,
    device: Device,
    /// Its path on its file system, whoever mounted that where.
    path: PathBuf,
}

/// Every file that any process outside has open for writing. What goes away meanwhile is left out.
fn writers_outside(inside: &BTreeSet<Pid>) -> Result<Vec<Writer>> {
    let mut found = Vec::new();
    let mut mounts = BTreeMap::new();
    let own = Pid::own();
    for pid in proc::all()?.into_iter().filter(|pid| *pid != own && !inside.contains(pid)) {
        found.extend(open_for_writing(pid, &mut mounts).unwrap_or_default());
    }
    Ok(found)
}

/// The mounts of each mount namespace, read once.
type Mounts = BTreeMap<PathBuf, Vec<Mount>>;

fn open_for_writing(pid: Pid, mounts: &mut Mounts) -> Result<Vec<Writer>> {
    let process = Proc::of(pid);
    let known = mounts
        .entry(process.namespace("mnt")?)
        .or_insert_with(|| process.mounts().unwrap_or_default());
    let mut found = Vec::new();
    for fd in process.descriptors()? {
        let link = process.descriptor(fd);
        if let (Ok(info), Ok(path), Ok(stat)) =
            (process.fdinfo(fd), fs::read_link(&link), rustix::fs::stat(&link))
            && let Some(mount) = writable_on(&info, known)
            && stat.st_mode & libc::S_IFMT == libc::S_IFREG
        {
            let below = path.strip_prefix(mount.point.as_path()).unwrap_or(&path);
            let path = mount.root.as_path().join(below);
            found.push(Writer { pid, fd, device: Device::from_stat(stat.st_dev), path });
        }
    }
    Ok(found)
}

/// The mount of a file, by its fdinfo, if it is open for writing.
fn writable_on<'a>(info: &FdInfo, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let mount = u32::try_from(info.mount).ok()?;
    let writes = info.flags.cast_signed() & libc::O_ACCMODE != libc::O_RDONLY;
    mounts.iter().find(|known| writes && known.id == mount)
}

fn writers(
    point: &Path,
    source: &Path,
    outside: &[Writer],
    version: CgroupVersion,
) -> Vec<Finding> {
    let Ok((device, root)) = shared::place_of(source) else { return Vec::new() };
    let is_below = |writer: &&Writer| writer.device == device && writer.path.starts_with(&root);
    let said = |writer: &Writer| {
        let below = writer.path.strip_prefix(&root).unwrap_or(&writer.path);
        let path = point.join(below);
        let name = Proc::of(writer.pid).name();
        Finding::new(format!(
            "{}: pid {} of the host ({}){} has it open for writing as fd {}, and is not frozen",
            ByteString::from(path.as_path()),
            writer.pid,
            name,
            of_container(writer.pid, version),
            writer.fd,
        ))
    };
    outside.iter().filter(is_below).map(said).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::fdinfo::parse_fdinfo;

    #[test]
    fn only_writers_count() {
        let text = b"7 1 0:1 /sub /data rw - ext4 a rw\n";
        let mounts = crate::proc::mountinfo::parse_mountinfo(text).unwrap();
        let writable = |info: &str, mounts| writable_on(&parse_fdinfo(info), mounts).is_some();
        assert!(writable("pos:\t0\nflags:\t0100001\nmnt_id:\t7\n", &mounts));
        assert!(!writable("pos:\t0\nflags:\t0100000\nmnt_id:\t7\n", &mounts));
        assert!(!writable("pos:\t0\nflags:\t0100001\nmnt_id:\t8\n", &mounts));
        assert!(!writable("", &mounts));
    }
}

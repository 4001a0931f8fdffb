//! Who is no part of the checkpoint, and may write what is.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Finding;
use super::kept::Parts;
use crate::bytes::ByteString;
use crate::container::{Container, Process, Shared, group_name, shared};
use crate::freezer::CgroupVersion;
use crate::sys::mountinfo::{Mount, mounts_of};
use crate::sys::process::Status;

/// Sessions that came in by `exec`, and who else has files in parts of the container open for
/// writing.
pub(super) fn remarks(
    container: &Container,
    dumped: &[Process],
    parts: &Parts,
) -> Result<Vec<Finding>> {
    let dumped: BTreeSet<i32> = dumped.iter().map(|process| process.host).collect();
    let mut found = Vec::new();
    let inside: BTreeSet<i32> = container.freezer.processes()?.into_iter().collect();
    found.extend(inside.difference(&dumped).filter_map(|host| session(*host)));
    let outside = writers_outside(&inside)?;
    for (point, source, _) in parts.shareable() {
        found.extend(writers(&point, &source, &outside, container.freezer.version()));
    }
    Ok(found)
}

/// A process that is frozen with the others, and is not dumped.
fn session(host: i32) -> Option<Finding> {
    let status = Status::of(host).ok().filter(|status| status.state != 'Z')?;
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
fn of_container(pid: i32, version: CgroupVersion) -> String {
    let name = group_name(pid, version);
    name.map_or_else(String::new, |name| format!(" in {}", ByteString::from(name.as_str())))
}

/// A file that a process outside the container has open for writing.
struct Writer {
    pid: i32,
    fd: String,
    device: u64,
    /// Its path on its file system, whoever mounted that where.
    path: PathBuf,
}

/// Every file that any process outside has open for writing. What goes away meanwhile is left out.
fn writers_outside(inside: &BTreeSet<i32>) -> Result<Vec<Writer>> {
    let mut found = Vec::new();
    let mut mounts = BTreeMap::new();
    let own = std::process::id().cast_signed();
    for entry in fs::read_dir("/proc").context("reading /proc")?.flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let Some(pid) = pid.filter(|pid| *pid != own && !inside.contains(pid)) else { continue };
        found.extend(open_for_writing(pid, &mut mounts).unwrap_or_default());
    }
    Ok(found)
}

/// The mounts of each mount namespace, read once.
type Mounts = BTreeMap<PathBuf, Vec<Mount>>;

fn open_for_writing(pid: i32, mounts: &mut Mounts) -> Result<Vec<Writer>> {
    let process = Path::new("/proc").join(pid.to_string());
    let namespace = fs::read_link(process.join("ns/mnt"))?;
    let known =
        mounts.entry(namespace).or_insert_with(|| mounts_of(&pid.to_string()).unwrap_or_default());
    let mut found = Vec::new();
    for entry in fs::read_dir(process.join("fd"))?.flatten() {
        let fd = entry.file_name().to_string_lossy().into_owned();
        let info = fs::read_to_string(process.join("fdinfo").join(&fd)).unwrap_or_default();
        if let (Some(mount), Ok(link), Ok(stat)) =
            (writable_on(&info, known), fs::read_link(entry.path()), rustix::fs::stat(entry.path()))
            && stat.st_mode & libc::S_IFMT == libc::S_IFREG
        {
            let below = link.strip_prefix(mount.point.as_path()).unwrap_or(&link);
            let path = mount.root.as_path().join(below);
            found.push(Writer { pid, fd, device: stat.st_dev, path });
        }
    }
    Ok(found)
}

/// The mount of a file, by its fdinfo, if it is open for writing.
fn writable_on<'a>(info: &str, mounts: &'a [Mount]) -> Option<&'a Mount> {
    let value = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let flags = i32::from_str_radix(value("flags:")?, 8).ok()?;
    let mount: u32 = value("mnt_id:")?.parse().ok()?;
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY;
    mounts.iter().find(|known| writes && known.id == mount)
}

fn writers(
    point: &Path,
    source: &Path,
    outside: &[Writer],
    version: CgroupVersion,
) -> Vec<Finding> {
    let Ok((device, root)) = shared::place_of(source) else { return Vec::new() };
    let device = rustix::fs::makedev(device.0, device.1);
    let is_below = |writer: &&Writer| writer.device == device && writer.path.starts_with(&root);
    let said = |writer: &Writer| {
        let below = writer.path.strip_prefix(&root).unwrap_or(&writer.path);
        let path = point.join(below);
        let name = fs::read(format!("/proc/{}/comm", writer.pid)).unwrap_or_default();
        Finding::new(format!(
            "{}: pid {} of the host ({}){} has it open for writing as fd {}, and is not frozen",
            ByteString::from(path.as_path()),
            writer.pid,
            ByteString::from(name.trim_ascii_end()),
            of_container(writer.pid, version),
            writer.fd,
        ))
    };
    outside.iter().filter(is_below).map(said).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_writers_count() {
        let text = b"7 1 0:1 /sub /data rw - ext4 a rw\n";
        let mounts = crate::sys::mountinfo::parse_mountinfo(text).unwrap();
        assert!(writable_on("pos:\t0\nflags:\t0100001\nmnt_id:\t7\n", &mounts).is_some());
        assert!(writable_on("pos:\t0\nflags:\t0100000\nmnt_id:\t7\n", &mounts).is_none());
        assert!(writable_on("pos:\t0\nflags:\t0100001\nmnt_id:\t8\n", &mounts).is_none());
        assert!(writable_on("", &mounts).is_none());
    }
}

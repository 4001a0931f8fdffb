//! What processes use beside open files: namespaces, mappings, their programs and directories.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::Finding;
use crate::bytes::ByteString;
use crate::container::{Container, Process};
use crate::files::DumpSettings;
use crate::files::dumpable::{Place, place_obstacle};
use crate::files::facts::Facts;
use crate::runtime::Family;
use crate::sys::process::{Status, namespaced_pids};

/// Over what CRIU would fail.
pub(super) fn problems(
    container: &Container,
    dumped: &[Process],
    facts: &Facts,
    settings: &DumpSettings,
    runtime: Family,
) -> Result<Vec<Finding>> {
    let level = namespaced_pids(container.init)?.len();
    // Several threads, and several mappings of one file, have the same problem.
    let mut found = BTreeSet::new();
    for process in dumped {
        found.extend(namespaces(container.init, *process, runtime));
        found.extend(tracer(*process));
        found.extend(session(*process, level, settings));
        found.extend(dead_leader(*process));
        found.extend(program_and_directories(*process, facts, settings));
        found.extend(mappings(*process, facts, settings));
    }
    Ok(found.into_iter().collect())
}

/// What may keep the container from freezing.
pub(super) fn remarks(dumped: &[Process]) -> Vec<Finding> {
    let waits = |process: &&Process| Status::of(process.host).is_ok_and(|it| it.state == 'D');
    let said = |process: &Process| {
        Finding::with_help(
            format!("{} waits in the kernel just now, and may not freeze", name(*process)),
            "if it lasts: end what it waits for, such as a frozen or remote file system",
        )
    };
    dumped.iter().filter(waits).map(said).collect()
}

/// `pid 7 (sh)`.
fn name(process: Process) -> String {
    let name = fs::read(format!("/proc/{}/comm", process.host)).unwrap_or_default();
    format!("pid {} ({})", process.inner, ByteString::from(name.trim_ascii_end()))
}

/// Namespaces within the container's that CRIU does not dump: all but those of mounts
/// (`generate_ns_id` in criu/namespaces.c), and below crun of the network: runc has CRIU leave
/// networks alone (`setEmptyNsMask` in its checkpoint.go), which it can do for one only
/// (`dump_net_ns` in criu/net.c).
fn namespaces(init: i32, process: Process, runtime: Family) -> Vec<Finding> {
    const SINGLE: [(&str, &str); 7] = [
        ("pid", "process"),
        ("user", "user"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("time", "time"),
        ("cgroup", "control group"),
        ("net", "network"),
    ];
    let of = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let own = |(kind, _): &(&str, &str)| {
        let its = of(&process.host.to_string(), kind);
        let is_dumped = *kind == "net" && runtime == Family::Crun;
        its.is_some() && !is_dumped && its != of(&init.to_string(), kind) && its != of("self", kind)
    };
    let said = |(_, name_of_it): (&str, &str)| {
        let name = name(process);
        Finding::with_help(
            format!("{name} is in a {name_of_it} namespace of its own, within the container's"),
            "end it before the checkpoint",
        )
    };
    SINGLE.into_iter().filter(own).map(said).collect()
}

/// A task that is traced already cannot be seized (`compel_interrupt_task` in compel).
fn tracer(process: Process) -> Option<Finding> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.host)).ok()?;
    let tracer = tasks.flatten().find_map(|task| {
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        field(&status, "TracerPid:")?.parse::<i32>().ok().filter(|pid| *pid > 0)
    })?;
    let who = fs::read(format!("/proc/{tracer}/comm")).unwrap_or_default();
    let who = ByteString::from(who.trim_ascii_end());
    let what = format!("{} is traced, by pid {tracer} of the host ({who})", name(process));
    Some(Finding::with_help(what, "end the tracing, by a debugger say"))
}

/// A session that began outside the process namespace (`dump_one_task` in criu/cr-dump.c), and a
/// first process that leads none (`dump_pstree` in criu/pstree.c).
fn session(process: Process, level: usize, settings: &DumpSettings) -> Option<Finding> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.host)).ok()?;
    let session: i32 =
        field(&status, "NSsid:")?.split_ascii_whitespace().nth(level - 1)?.parse().ok()?;
    if session == 0 {
        let what = format!("the session of {} began outside the container", name(process));
        return Some(Finding::with_help(what, "start it with setsid"));
    }
    (process.inner == 1 && session != 1 && !settings.shell_job).then(|| Finding {
        what: format!("{} leads no session", name(process)),
        help: Some("--shell-job".to_owned()),
        option: Some("--shell-job"),
    })
}

fn field<'a>(status: &'a str, name: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// A process whose first thread has ended and others have not (criu/seize.c).
fn dead_leader(process: Process) -> Option<Finding> {
    let threads = fs::read_dir(format!("/proc/{}/task", process.host)).ok()?.count();
    let ended = Status::of(process.host).is_ok_and(|status| status.state == 'Z');
    (ended && threads > 1).then(|| {
        let what = format!("the first thread of {} has ended, and others go on", name(process));
        Finding::with_help(what, "end it before the checkpoint")
    })
}

fn program_and_directories(
    process: Process,
    facts: &Facts,
    settings: &DumpSettings,
) -> Vec<Finding> {
    const LINKS: [(&str, &str); 3] =
        [("exe", "the program"), ("cwd", "the working directory"), ("root", "the root directory")];
    let problem = |(link, what): &(&str, &str)| {
        let (path, place) = facts.place_of(&proc(process, link))?;
        let subject = format!("{what} of {} ({})", name(process), ByteString::from(path.as_path()));
        unplaced(&place, &subject, settings)
    };
    LINKS.iter().filter_map(problem).collect()
}

fn proc(process: Process, below: &str) -> PathBuf {
    Path::new("/proc").join(process.host.to_string()).join(below)
}

/// Why CRIU cannot save what is no file descriptor by its path: it cannot be left out.
fn unplaced(place: &Place, subject: &str, settings: &DumpSettings) -> Option<Finding> {
    match place {
        Place::Foreign(_) => Some(Finding::new(format!(
            "{subject}: it comes from outside the container, and cannot be replaced"
        ))),
        _ => place_obstacle(place, settings).map(|obstacle| Finding::of(&obstacle, subject)),
    }
}

/// Mappings of what is no regular file (`handle_vma` in criu/proc_parse.c), or of one that CRIU
/// does not find.
fn mappings(process: Process, facts: &Facts, settings: &DumpSettings) -> Vec<Finding> {
    let maps = fs::read(proc(process, "maps")).unwrap_or_default();
    let maps = String::from_utf8_lossy(&maps);
    let mut seen = BTreeSet::new();
    let new = |mapping: &Mapping<'_>| seen.insert((mapping.device.to_owned(), mapping.inode));
    let problem = |mapping: Mapping<'_>| mapping_problem(process, &mapping, facts, settings);
    maps.lines().filter_map(Mapping::parse).filter(new).filter_map(problem).collect()
}

/// A line of proc_pid_maps(5) that has a file.
struct Mapping<'a> {
    range: &'a str,
    device: &'a str,
    inode: u64,
    path: &'a str,
}

impl<'a> Mapping<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut fields = line.splitn(6, ' ');
        let range = fields.next()?;
        let device = fields.nth(2)?;
        let inode = fields.next()?.parse().ok().filter(|inode| *inode > 0)?;
        Some(Self { range, device, inode, path: fields.next().unwrap_or_default().trim_start() })
    }

    /// Memory that is shared without a name, or by one that is no path.
    fn is_memory(&self) -> bool {
        const NAMES: [&str; 4] = ["/memfd:", "/dev/zero (deleted)", "/SYSV", "/anon_hugepage"];
        NAMES.iter().any(|name| self.path.starts_with(name)) || self.path.starts_with("/[aio]")
    }
}

fn mapping_problem(
    process: Process,
    mapping: &Mapping<'_>,
    facts: &Facts,
    settings: &DumpSettings,
) -> Option<Finding> {
    if mapping.is_memory() {
        return None;
    }
    let link = proc(process, "map_files").join(mapping.range);
    let stat = rustix::fs::stat(&link).ok()?;
    let path = ByteString::from(mapping.path);
    let is_zero = stat.st_rdev == rustix::fs::makedev(1, 5);
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => {
            let (_, place) = facts.place_of(&link)?;
            let subject = format!("the mapping of {path} by {}", name(process));
            unplaced(&place, &subject, settings)
        }
        libc::S_IFCHR if is_zero => None,
        // Rings of packet sockets.
        libc::S_IFSOCK => None,
        _ => Some(Finding::with_help(
            format!("{} has mapped {path}, which CRIU cannot save", name(process)),
            "end the mapping before the checkpoint",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mappings() {
        let line = "7f0000000000-7f0000001000 rw-s 00000000 fe:00 42                 /a b";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.range, mapping.inode), ("7f0000000000-7f0000001000", 42));
        assert_eq!((mapping.device, mapping.path), ("fe:00", "/a b"));
        assert!(!mapping.is_memory());
        assert!(Mapping::parse("7f00-7f10 rw-p 00000000 00:00 0 [heap]").is_none());
        assert!(Mapping::parse("7f00-7f10").is_none());
        let shared = "7f00-7f10 rw-s 00000000 00:01 7 /dev/zero (deleted)";
        assert!(Mapping::parse(shared).unwrap().is_memory());
    }

    #[test]
    fn lines_of_a_status() {
        assert_eq!(field("Name:\tx\nTracerPid:\t12\n", "TracerPid:"), Some("12"));
        assert_eq!(field("Name:\tx\n", "TracerPid:"), None);
    }
}

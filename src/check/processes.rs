//! What processes use beside open files: namespaces, mappings, their programs and directories.

use std::collections::BTreeSet;

use anyhow::Result;

use super::Finding;
use crate::bytes::ByteString;
use crate::container::{Container, Process};
use crate::files::DumpSettings;
use crate::files::dumpable::{Place, place_obstacle};
use crate::files::facts::Facts;
use crate::proc::Proc;
use crate::proc::maps::Mapping;
use crate::proc::status::{field, parse_pids};
use crate::runtime::Family;
use crate::sys::pid::{InnerPid, Pid};

/// Over what CRIU would fail.
pub(super) fn problems(
    container: &Container,
    dumped: &[Process],
    facts: &Facts,
    settings: &DumpSettings,
    runtime: Family,
) -> Result<Vec<Finding>> {
    let depth = Proc::of(container.init).namespaced_pids()?.depth();
    // Several threads, and several mappings of one file, have the same problem.
    let mut found = BTreeSet::new();
    for process in dumped {
        found.extend(namespaces(container.init, *process, runtime));
        found.extend(tracer(*process));
        found.extend(session(*process, depth, settings));
        found.extend(dead_leader(*process));
        found.extend(program_and_directories(*process, facts, settings));
        found.extend(mappings(*process, facts, settings));
    }
    Ok(found.into_iter().collect())
}

/// What may keep the container from freezing.
pub(super) fn remarks(dumped: &[Process]) -> Vec<Finding> {
    let waits = |process: &&Process| Proc::of(process.host).stat().is_ok_and(|it| it.state == 'D');
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
    format!("pid {} ({})", process.inner, Proc::of(process.host).name())
}

/// Namespaces within the container's that CRIU does not dump: all but those of mounts
/// (`generate_ns_id` in criu/namespaces.c), and below crun of the network: runc has CRIU leave
/// networks alone (`setEmptyNsMask` in its checkpoint.go), which it can do for one only
/// (`dump_net_ns` in criu/net.c).
fn namespaces(init: Pid, process: Process, runtime: Family) -> Vec<Finding> {
    const SINGLE: [(&str, &str); 7] = [
        ("pid", "process"),
        ("user", "user"),
        ("ipc", "ipc"),
        ("uts", "uts"),
        ("time", "time"),
        ("cgroup", "control group"),
        ("net", "network"),
    ];
    let of = |process: &Proc, kind: &str| process.namespace(kind).ok();
    let (ours, first) = (Proc::own(), Proc::of(init));
    let own = |(kind, _): &(&str, &str)| {
        let its = of(&Proc::of(process.host), kind);
        let is_dumped = *kind == "net" && runtime == Family::Crun;
        its.is_some() && !is_dumped && its != of(&first, kind) && its != of(&ours, kind)
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
    let tasks = Proc::of(process.host).tasks().ok()?;
    let tracer = tasks
        .iter()
        .find_map(|task| field(&task.status().ok()?, "TracerPid")?.parse::<Pid>().ok()?.exists())?;
    let who = Proc::of(tracer).name();
    let what = format!("{} is traced, by pid {tracer} of the host ({who})", name(process));
    Some(Finding::with_help(what, "end the tracing, by a debugger say"))
}

/// A session that began outside the process namespace (`dump_one_task` in criu/cr-dump.c), and a
/// first process that leads none (`dump_pstree` in criu/pstree.c).
fn session(process: Process, depth: usize, settings: &DumpSettings) -> Option<Finding> {
    let status = Proc::of(process.host).status().ok()?;
    let session = parse_pids(&status, "NSsid").ok()?.at(depth)?;
    if session == InnerPid(0) {
        let what = format!("the session of {} began outside the container", name(process));
        return Some(Finding::with_help(what, "start it with setsid"));
    }
    (process.inner == InnerPid(1) && session != InnerPid(1) && !settings.shell_job).then(|| {
        Finding {
            what: format!("{} leads no session", name(process)),
            help: Some("--shell-job".to_owned()),
            option: Some("--shell-job"),
        }
    })
}

/// A process whose first thread has ended and others have not (criu/seize.c).
fn dead_leader(process: Process) -> Option<Finding> {
    let process_here = Proc::of(process.host);
    let threads = process_here.tasks().ok()?.len();
    let ended = process_here.stat().is_ok_and(|stat| stat.state == 'Z');
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
        let (path, place) = facts.place_of(&Proc::of(process.host).at(link))?;
        let subject = format!("{what} of {} ({})", name(process), ByteString::from(path.as_path()));
        unplaced(&place, &subject, settings)
    };
    LINKS.iter().filter_map(problem).collect()
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
    let mut seen = BTreeSet::new();
    let maps = Proc::of(process.host).maps();
    let files = maps.into_iter().filter(|mapping| mapping.inode > 0);
    let new = |mapping: &Mapping| seen.insert((mapping.device.clone(), mapping.inode));
    let problem = |mapping: Mapping| mapping_problem(process, &mapping, facts, settings);
    files.filter(new).filter_map(problem).collect()
}

/// Memory that is shared without a name, or by one that is no path.
fn is_memory(mapping: &Mapping) -> bool {
    const NAMES: [&str; 4] = ["/memfd:", "/dev/zero (deleted)", "/SYSV", "/anon_hugepage"];
    let path = &mapping.path;
    NAMES.iter().any(|name| path.starts_with(name)) || path.starts_with("/[aio]")
}

fn mapping_problem(
    process: Process,
    mapping: &Mapping,
    facts: &Facts,
    settings: &DumpSettings,
) -> Option<Finding> {
    if is_memory(mapping) {
        return None;
    }
    let link = Proc::of(process.host).at("map_files").join(&mapping.range);
    let stat = rustix::fs::stat(&link).ok()?;
    let path = ByteString::from(mapping.path.as_str());
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
    fn memory_has_a_name_that_is_no_path() {
        let of = |path: &str| {
            let line = format!("7f00-7f10 rw-s 00000000 00:01 7                 {path}");
            is_memory(&crate::proc::maps::parse_maps(&line)[0])
        };
        assert!(of("/dev/zero (deleted)") && of("/memfd:x") && of("/[aio] (deleted)"));
        assert!(!of("/a b"));
    }

    #[test]
    fn lines_of_a_status() {
        assert_eq!(field("Name:\tx\nTracerPid:\t12\n", "TracerPid"), Some("12"));
        assert_eq!(field("Name:\tx\n", "TracerPid:"), None);
    }
}

//! Finding a process that was frozen while it waits for what it started by `vfork`.
//!
//! Such a thread counts as frozen (`wait_for_vfork_done` in the kernel's kernel/fork.c), and yet
//! cannot be stopped by a tracer before its child has called `exec`. Which that one never does, as
//! CRIU has stopped it: so CRIU would wait for the parent for ever. `posix_spawn`, Python's
//! `subprocess`, Go and busybox start programs this way, and are done within a millisecond.

use std::time::{Duration, Instant};

use super::Freezer;
use crate::proc::Proc;

/// The function that the kernel names; which, depends on what its compiler has inlined.
const PLACES: [&str; 3] = ["kernel_clone", "wait_for_vfork_done", "_do_fork"];

/// The first process of a group that waits so, in words.
pub(super) fn waiting(freezer: &Freezer) -> anyhow::Result<Option<String>> {
    Ok(freezer.processes()?.into_iter().find_map(|pid| {
        let mut waits = Proc::of(pid).tasks().ok()?.into_iter().filter(|task| {
            settle(task);
            PLACES.contains(&task.waits_in().as_str())
        });
        Some(format!("process {pid} ({})", waits.next()?.name()))
    }))
}

/// Waits until a thread of a frozen group is where it waits.
///
/// A thaw wakes the parent of a vfork, which looks whether that is over and waits on: all the while
/// it counts as frozen again as soon as the next freeze is asked for, and the kernel names no place
/// of a thread that runs. On a busy machine that takes as long as others have the processor.
fn settle(task: &Proc) {
    const LIMIT: Duration = Duration::from_secs(5);
    let begin = Instant::now();
    while runs(task) && begin.elapsed() < LIMIT {
        // The kernel raises no event for it.
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Whether a thread runs or could run.
fn runs(task: &Proc) -> bool {
    task.stat().is_ok_and(|stat| stat.state == 'R')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freezer::CgroupVersion;
    use crate::sys::pid::{Pid, signal};
    use std::fs;
    use std::process::{Command, Stdio};

    /// A group of one process, as a directory that looks like one.
    fn group_of(directory: &std::path::Path, pid: u32) -> Freezer {
        fs::write(directory.join("cgroup.procs"), format!("{pid}\n")).unwrap();
        Freezer::new(CgroupVersion::V2, directory.to_owned())
    }

    #[test]
    fn who_runs_is_waited_for() {
        let mut child = Command::new("sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        let task = Proc::of(Pid::of(&child));
        let begin = Instant::now();
        // Its shell has to be read first.
        while !runs(&task) {
            assert!(begin.elapsed() < Duration::from_secs(30), "it does not run");
        }
        signal(Pid::of(&child), nix::sys::signal::Signal::SIGSTOP).unwrap();
        settle(&task);
        assert!(!runs(&task));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn who_waits_for_something_else_is_not_meant() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let freezer = group_of(directory.path(), child.id());
        assert_eq!(waiting(&freezer).unwrap(), None);
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!(waiting(&freezer).unwrap(), None, "it has ended");
    }
}

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
        let mut waits = Proc::of(pid)
            .tasks()
            .ok()?
            .into_iter()
            .filter(|task| !settle(task) || PLACES.contains(&task.waits_in().as_str()));
        Some(format!("process {pid} ({})", waits.next()?.name()))
    }))
}

/// Waits until a thread of a frozen group is where it waits.
///
/// It may count as frozen before, as a `vfork` does so ahead of its wait. And a thaw wakes the parent of
/// one, which looks whether that is over and waits on: all the while it counts as frozen again as soon
/// as the next freeze is asked for. On a busy machine both take as long as others have the processor.
/// Whether it has come there: of one that never does, it cannot be said that a tracer stops it.
fn settle(task: &Proc) -> bool {
    const LIMIT: Duration = Duration::from_secs(5);
    let begin = Instant::now();
    while task.runs() {
        if begin.elapsed() >= LIMIT {
            return false;
        }
        // The kernel raises no event for it.
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freezer::CgroupVersion;
    use crate::sys::pid::{Pid, signal};
    use nix::sched::{CpuSet, sched_setaffinity};
    use std::fs;
    use std::io::{Read, Write};
    use std::process::{Child, Command, Stdio};

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
        while !task.runs() {
            assert!(begin.elapsed() < Duration::from_secs(30), "it does not run");
        }
        signal(Pid::of(&child), nix::sys::signal::Signal::SIGSTOP).unwrap();
        assert!(settle(&task) && !task.runs());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// A shell on the processor that all of them contend for.
    struct Shell(Child);

    impl Shell {
        fn run(script: &str) -> Self {
            let mut command = Command::new("sh");
            command.args(["-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
            let child = command.spawn().unwrap();
            let mut one = CpuSet::new();
            one.set(0).unwrap();
            sched_setaffinity(nix::unistd::Pid::from_raw(child.id().cast_signed()), &one).unwrap();
            Self(child)
        }
    }

    impl Drop for Shell {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn who_falls_asleep_under_contention_is_waited_for() {
        let _other = Shell::run("while :; do :; done");
        // It gets more than its share, and sleeps then.
        let mut shell = Shell::run(
            "echo ready; while read -r word; do i=0; while [ $i -lt 3000 ]; do i=$((i + 1)); done; done",
        );
        shell.0.stdout.as_mut().unwrap().read_exact(&mut [0; 6]).unwrap();
        let task = Proc::of(Pid::of(&shell.0));
        let stat = || task.stat().unwrap();
        for round in 0..50 {
            let worked = stat().worked;
            shell.0.stdin.as_ref().unwrap().write_all(b"work\n").unwrap();
            // Its time is counted by the tick: where none came by, there was nothing to be seen.
            let begin = Instant::now();
            while stat().worked == worked && begin.elapsed() < Duration::from_millis(20) {}
            while stat().state == 'R' {}
            assert!(settle(&task), "round {round}");
            assert_ne!(task.waits_in(), "0", "round {round}");
        }
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

//! What processes do: whether one that somebody waits for still gets on.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use super::{Proc, all};
use crate::sys::pid::Pid;

/// These processes, and all that descend from them.
pub fn with_descendants(of: &[Pid]) -> BTreeSet<Pid> {
    let parents = parents();
    let is_of = |mut pid: Pid| {
        // No line of descent is longer than there are processes.
        for _ in 0..=parents.len() {
            if of.contains(&pid) {
                return true;
            }
            match parents.get(&pid) {
                Some(parent) => pid = *parent,
                None => return false,
            }
        }
        false
    };
    of.iter().copied().chain(parents.keys().copied().filter(|pid| is_of(*pid))).collect()
}

fn parents() -> HashMap<Pid, Pid> {
    let parent = |pid: Pid| Some((pid, Proc::of(pid).stat().ok()?.parent));
    all().unwrap_or_default().into_iter().filter_map(parent).collect()
}

/// How much a process has done so far: processor time, and bytes that it read and wrote
/// (proc_pid_io(5)). Who waits in the kernel, or for somebody else, does not get on. 0 for one
/// that has ended.
pub fn done_by(pid: Pid) -> u64 {
    let process = Proc::of(pid);
    let io = fs::read_to_string(process.at("io")).unwrap_or_default();
    parse_io(&io).wrapping_add(process.stat().map_or(0, |stat| stat.worked))
}

/// The sum of all that `io` counts; it has no meaning of its own, but grows with each of them. Lines of
/// another form are skipped.
pub fn parse_io(text: &str) -> u64 {
    let numbers = text.lines().filter_map(|line| line.split_once(": ")?.1.parse::<u64>().ok());
    numbers.fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn whatever_io_counts() {
        for (text, sum) in [
            ("rchar: 5\nwchar: 7\nsyscr: 1\ncancelled_write_bytes: 0\n", 13),
            ("rchar: 5\nwchar 7\nsyscr: x\n: 2\nsyscw:3", 7),
            ("rchar: 18446744073709551615\nwchar: 2\n", 1),
            ("", 0),
        ] {
            assert_eq!(parse_io(text), sum, "{text:?}");
        }
    }

    /// The kernel raises no event for what stands in /proc.
    fn poll_until(is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < end, "not in 30 seconds");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn who_waits_does_not_get_on() {
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; read word; while :; do :; done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = Pid::of(&child);
        assert!(with_descendants(&[Pid::own()]).contains(&pid));
        child.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        // Until it is in its read.
        poll_until(|| Proc::of(pid).stat().unwrap().state == 'S');
        let before = done_by(pid);
        assert_eq!(done_by(pid), before);
        drop(child.stdin.take());
        poll_until(|| done_by(pid) != before);
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(done_by(pid), 0);
    }
}

//! What processes do: whether one that somebody waits for still gets on.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use super::process::Status;

/// These processes, and all that descend from them.
pub fn with_descendants(of: &[i32]) -> BTreeSet<i32> {
    let parents = parents();
    let is_of = |mut pid: i32| {
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

fn parents() -> HashMap<i32, i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    numbers.filter_map(|pid| Some((pid, Status::of(pid).ok()?.parent))).collect()
}

/// How much a process has done so far: processor time, and bytes that it read and wrote
/// (proc_pid_io(5)). Who waits in the kernel, or for somebody else, does not get on. 0 for one
/// that has ended.
pub fn done_by(pid: i32) -> u64 {
    let stat = fs::read(format!("/proc/{pid}/stat")).unwrap_or_default();
    let io = fs::read_to_string(format!("/proc/{pid}/io")).unwrap_or_default();
    let numbers = io.lines().filter_map(|line| line.split_once(": ")?.1.parse::<u64>().ok());
    numbers.fold(processor_time(&String::from_utf8_lossy(&stat)), u64::wrapping_add)
}

/// Fields 14 and 15 of proc_pid_stat(5).
fn processor_time(stat: &str) -> u64 {
    let Some((_, rest)) = stat.rsplit_once(')') else { return 0 };
    rest.split_ascii_whitespace().skip(11).take(2).filter_map(|time| time.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::process::{Command, Stdio};

    #[test]
    fn processor_time_of_a_process_with_a_strange_name() {
        assert_eq!(processor_time("7 (a) b) S 1 2 3 4 5 6 7 8 9 10 30 12 0 0"), 42);
        assert_eq!(processor_time(""), 0);
    }

    #[test]
    fn who_waits_does_not_get_on() {
        let mut child = Command::new("sh")
            .args(["-c", "echo ready; read word; while :; do :; done"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let pid = child.id().cast_signed();
        assert!(with_descendants(&[std::process::id().cast_signed()]).contains(&pid));
        child.stdout.take().unwrap().read_exact(&mut [0; 6]).unwrap();
        // Until it is in its read.
        while Status::of(pid).unwrap().state != 'S' {}
        let before = done_by(pid);
        assert_eq!(done_by(pid), before);
        drop(child.stdin.take());
        while done_by(pid) == before {}
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(done_by(pid), 0);
    }
}

//! Naming the processes that did not freeze.

use super::Freezer;
use crate::proc::Proc;
use crate::sys::pid::Pid;

/// How many are named; the rest is counted.
const NAMED: usize = 5;

/// The processes of a group that are not stopped by its freezer, in words.
pub(super) fn describe(freezer: &Freezer) -> String {
    let Ok(processes) = freezer.processes() else { return "its processes cannot be read".into() };
    let stuck: Vec<String> = processes.into_iter().filter_map(running_thread).collect();
    match stuck.len() {
        0 => "every process looks frozen, the kernel does not say so".to_owned(),
        many if many > NAMED => format!("{} and {} more", stuck[..NAMED].join(", "), many - NAMED),
        _ => stuck.join(", "),
    }
}

/// The first thread of a process that is neither frozen nor stopped by a tracer.
fn running_thread(pid: Pid) -> Option<String> {
    Proc::of(pid).tasks().ok()?.into_iter().find_map(|task| {
        let waits_in = task.waits_in();
        if is_stopped(&waits_in) {
            return None;
        }
        let place = if waits_in.is_empty() || waits_in == "0" {
            "running".into()
        } else {
            format!("in {waits_in}")
        };
        Some(format!("process {pid} ({}) is {place}", task.name()))
    })
}

/// Where a thread that is frozen waits: `__refrigerator` under version 1,
/// `do_freezer_trap` under version 2, `ptrace_stop` and `do_signal_stop` count as frozen there.
fn is_stopped(waits_in: &str) -> bool {
    ["__refrigerator", "do_freezer_trap", "ptrace_stop", "do_signal_stop", "get_signal"]
        .iter()
        .any(|place| waits_in.starts_with(place))
}

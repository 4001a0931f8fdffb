//! Naming the processes that did not freeze.
//!
//! Where a thread waits does not tell by itself. The freezer of version 1 leaves a thread that sleeps
//! where it sleeps (`TASK_FROZEN` in the kernel's include/linux/sched.h), and stat(5) shows one that it
//! holds as `D`, as it shows one that waits for a device. Which of the two it was is seen when the group
//! is thawed: who still waits as before was never frozen. That of version 2 brings every thread to its
//! own place, and wakes whoever waits when it thaws.

use super::Freezer;
use crate::bytes::ByteString;
use crate::proc::Proc;
use crate::sys::pid::Pid;

/// How many are named; the rest is counted.
const NAMED: usize = 5;

/// A thread that the freezer has not brought to its own place.
#[derive(Debug)]
struct Suspect {
    pid: Pid,
    task: Proc,
    name: ByteString,
    /// The function of the kernel in which it waits; nothing if it runs.
    waits_in: Option<String>,
    /// `D`: it may be frozen where it sleeps.
    may_be_frozen: bool,
}

/// The threads of a group that may not have been stopped by its freezer, one for each process.
#[derive(Debug)]
pub(super) struct Unstopped(Option<Vec<Suspect>>);

/// What kept a group from freezing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Stuck {
    /// In words.
    pub text: String,
    /// Whether any of it waits for something outside, which a signal does not end.
    pub waits: bool,
}

/// Looks at a group that does not freeze, as long as that has been asked of it.
pub(super) fn look(freezer: &Freezer) -> Unstopped {
    let processes = freezer.processes().ok();
    Unstopped(processes.map(|all| all.into_iter().filter_map(suspect).collect()))
}

impl Unstopped {
    /// Those that were not frozen: where the group has been `thawed` since by the freezer that leaves
    /// threads where they sleep, without those that have gone on.
    pub(super) fn stuck(self, thawed: bool) -> Stuck {
        let Some(suspects) = self.0 else {
            return Stuck { text: "its processes cannot be read".to_owned(), waits: false };
        };
        let stuck: Vec<Suspect> =
            suspects.into_iter().filter(|one| !thawed || one.is_stuck()).collect();
        let waits = stuck.iter().any(|one| one.may_be_frozen);
        let names: Vec<String> = stuck.iter().map(ToString::to_string).collect();
        let text = match names.len() {
            0 => "every process looks frozen, the kernel does not say so".to_owned(),
            many if many > NAMED => {
                format!("{} and {} more", names[..NAMED].join(", "), many - NAMED)
            }
            _ => names.join(", "),
        };
        Stuck { text, waits }
    }
}

impl Suspect {
    /// Whether it was not frozen: it was seen at something else, or waits there still.
    fn is_stuck(&self) -> bool {
        let still = || self.task.stat().is_ok_and(|stat| stat.state == 'D');
        !self.may_be_frozen || (still() && Some(self.task.waits_in()) == self.waits_in)
    }
}

impl std::fmt::Display for Suspect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { pid, name, .. } = self;
        match &self.waits_in {
            Some(place) => write!(f, "process {pid} ({name}) is in {place}"),
            None => write!(f, "process {pid} ({name}) is running"),
        }
    }
}

/// The first thread of a process that is neither frozen nor stopped by a tracer.
fn suspect(pid: Pid) -> Option<Suspect> {
    Proc::of(pid).tasks().ok()?.into_iter().find_map(|task| {
        let waits_in = task.waits_in();
        let stat = task.stat().ok().filter(|stat| !stat.has_ended())?;
        (!is_stopped(&waits_in)).then(|| Suspect {
            pid,
            name: task.name(),
            waits_in: Some(waits_in).filter(|place| !place.is_empty() && place != "0"),
            may_be_frozen: stat.state == 'D',
            task,
        })
    })
}

/// Where a thread that is frozen waits: `__refrigerator` under version 1,
/// `do_freezer_trap` under version 2, `ptrace_stop` and `do_signal_stop` count as frozen there.
fn is_stopped(waits_in: &str) -> bool {
    ["__refrigerator", "do_freezer_trap", "ptrace_stop", "do_signal_stop", "get_signal"]
        .iter()
        .any(|place| waits_in.starts_with(place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_not_where_it_was_was_frozen() {
        let own = Proc::own();
        let suspect = |waits_in: &str, may_be_frozen| Suspect {
            pid: Pid(7),
            task: own.tasks().unwrap().remove(0),
            name: "sleep".into(),
            waits_in: Some(waits_in.to_owned()),
            may_be_frozen,
        };
        let stuck = |suspects, thawed| Unstopped(Some(suspects)).stuck(thawed);
        // This thread sleeps nowhere: what waited there has gone on.
        let all = stuck(vec![suspect("hrtimer_nanosleep", true)], true);
        assert_eq!(all.text, "every process looks frozen, the kernel does not say so");
        assert!(!all.waits);
        let named = "process 7 (sleep) is in hrtimer_nanosleep";
        assert_eq!(stuck(vec![suspect("hrtimer_nanosleep", true)], false).text, named);
        let running = stuck(vec![suspect("hrtimer_nanosleep", false)], true);
        assert_eq!((running.text.as_str(), running.waits), (named, false));
    }
}

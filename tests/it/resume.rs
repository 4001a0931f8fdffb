//! What comes back goes on as if nothing had been: locks, timers, and calls that sleep.

use std::collections::BTreeMap;
use std::time::Instant;

use serde_json::Value;

use crate::support::{Bundle, Control, DEADLINE, Machine, outcome, restore_command, run};

/// Waits until every writer has noted so many rows.
fn wait_for_rows(control: &Control, wanted: u64) {
    let end = Instant::now() + DEADLINE;
    while control.ask("noted").parse::<u64>().unwrap() < wanted {
        assert!(Instant::now() < end, "the writers have not come to {wanted}");
    }
}

/// Stops three writers of one database in the middle, again and again, and brings them back.
fn no_row_is_lost(machine: &Machine, rounds: u64) {
    const MORE: u64 = 150;
    let bundle = machine.bundle("writers").args(["workload", "writers", "/data", "3"]).make();
    let mut container = bundle.run();
    container.wait_for("/data/ready");
    let control = container.control("/data");
    for round in 1..=rounds {
        wait_for_rows(&control, round * MORE);
        let mut checkpoint = machine.ocicle();
        checkpoint.args(["checkpoint", bundle.id(), "--file-locks"]);
        run(checkpoint.args(machine.variant().criu_flags()));
        container.kill();
        run(restore_command(&bundle, machine, &[""; 0]).args(["--file-locks"]));
        container = bundle.adopt();
        wait_for_rows(&control, (round + 1) * MORE);
        let compared: Value = serde_json::from_str(&control.ask("compare")).unwrap();
        let whole = serde_json::json!({ "missing": [], "check": "ok", "died": [] });
        assert_eq!(compared, whole, "round {round}");
    }
}

on_each_runtime!(writers_of_a_database_lose_no_row, |machine| {
    // A hundred, say, by hand.
    let rounds = std::env::var("OCICLE_ROUNDS").map_or(6, |rounds| rounds.parse().unwrap());
    no_row_is_lost(machine, rounds);
});

/// `ocicle checkpoint`, without asking how it ended.
fn checkpoint(bundle: &Bundle<'_>, machine: &Machine) -> std::process::Command {
    let mut command = machine.ocicle();
    command.args(["checkpoint", bundle.id()]).args(machine.variant().criu_flags());
    command
}

// One of timerfd that has expired, and that nobody has read since, does not.
on_each_runtime!(timers_go_on, |machine| {
    const REPEATING: [&str; 4] = ["timerfd", "timerfd-absolute", "timer", "interval"];
    let bundle = machine.bundle("timers").args(["workload", "timers", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let control = container.control("/data");
    let tick = |when: &str| {
        for timer in REPEATING {
            assert_eq!(control.ask(&format!("ticks {timer}")), "yes", "{timer} {when}");
        }
    };
    run(checkpoint(&bundle, machine).arg("--leave-running"));
    tick("goes on");
    assert_eq!(control.ask("alarm"), "yes");
    run(&mut checkpoint(&bundle, machine));
    container.kill();
    for version in ["v1", "v2"] {
        run(restore_command(&bundle, machine, &[""; 0]).arg(version));
        tick("is restored");
        if version == "v2" {
            assert_eq!(control.ask("rung"), "yes", "the alarm");
        }
        bundle.end();
    }
});

/// Calls that sleep: what they return when their time is over, and whether the kernel keeps what is
/// left of it.
const CALLS: [(&str, &str, bool); 11] = [
    ("nanosleep", "UnknownErrno", true),
    ("nanosleep-same", "UnknownErrno", true),
    ("clock-nanosleep", "UnknownErrno", true),
    ("poll", "UnknownErrno", true),
    ("ppoll", "UnknownErrno", false),
    ("select", "UnknownErrno", false),
    ("futex", "ETIMEDOUT", true),
    ("epoll-wait", "UnknownErrno", false),
    ("semtimedop", "EAGAIN", false),
    ("sigtimedwait", "EAGAIN", false),
    ("io-getevents", "UnknownErrno", false),
];
/// For how many seconds they are made.
const SECONDS: u64 = 3;

/// Waits for the end of every call, and returns for how long each was made.
fn slept(bundle: &Bundle<'_>, seconds: u64, when: &str) -> BTreeMap<String, u64> {
    let container = bundle.adopt();
    let mut took = BTreeMap::new();
    for (call, expected, _) in CALLS {
        for who in ["process", "thread"] {
            let name = format!("{call}.{who}");
            container.wait_for(&format!("/data/{name}"));
            let text = std::fs::read_to_string(bundle.path("/data").join(&name)).unwrap();
            let (error, time) = text.split_once(' ').unwrap();
            assert_eq!(error, expected, "{name} {when}");
            let time = time.parse().unwrap();
            assert!(time >= seconds * 1000, "{name} {when}: {time}");
            took.insert(name, time);
        }
    }
    std::mem::forget(container);
    took
}

/// A container in which every call has been made for half of its time.
fn sleeping(machine: &Machine, seconds: u64) -> Bundle<'_> {
    let seconds = seconds.to_string();
    let bundle =
        machine.bundle("sleepers").args(["workload", "sleepers", "/data", &seconds]).make();
    let container = bundle.run();
    container.wait_for("/data/half");
    std::mem::forget(container);
    bundle
}

/// Nothing has begun anew of which the kernel keeps what is left.
fn assert_in_time(took: &BTreeMap<String, u64>, when: &str) {
    for (call, _, is_kept) in CALLS {
        for who in ["process", "thread"] {
            let time = took[&format!("{call}.{who}")];
            assert!(!is_kept || time < SECONDS * 1400, "{call}.{who} {when}: {time}");
        }
    }
}

on_each_runtime!(calls_that_sleep_go_on_serial, |machine| {
    let bundle = sleeping(machine, SECONDS);
    run(checkpoint(&bundle, machine).arg("--leave-running"));
    let took = slept(&bundle, SECONDS, "in the container that goes on");
    assert_in_time(&took, "in the container that goes on");
    bundle.end();
    run(&mut restore_command(&bundle, machine, &[""; 0]));
    slept(&bundle, SECONDS, "restored");
    bundle.end();
});

on_each_runtime!(calls_that_sleep_are_dumped_again_serial, |machine| {
    // Time for two checkpoints.
    const LONGER: u64 = 5;
    let bundle = sleeping(machine, LONGER);
    let container = bundle.adopt();
    run(checkpoint(&bundle, machine).arg("--leave-running"));
    // By now the kernel goes on with those of which it keeps the rest under another number.
    run(checkpoint(&bundle, machine).arg("--leave-running"));
    let has_ended = |call: &str| bundle.path("/data").join(format!("{call}.process")).exists();
    assert!(!CALLS.iter().any(|(call, ..)| has_ended(call)), "it was too slow");
    slept(&bundle, LONGER, "in the container that goes on");
    container.kill();
    run(restore_command(&bundle, machine, &[""; 0]).arg("v2"));
    slept(&bundle, LONGER, "restored");
    bundle.end();
});

on_each_runtime!(calls_that_sleep_go_on_when_a_dump_fails_serial, |machine| {
    let bundle = sleeping(machine, SECONDS);
    let (made, ..) = outcome(checkpoint(&bundle, machine).env("OCICLE_FAULT", "post-dump"));
    assert!(!made, "it was killed");
    let took = slept(&bundle, SECONDS, "after a dump that has failed");
    assert_in_time(&took, "after a dump that has failed");
    bundle.end();
});

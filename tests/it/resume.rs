//! What comes back goes on as if nothing had been: locks, timers, and calls that sleep.

use std::time::Instant;

use serde_json::Value;

use crate::support::{Control, DEADLINE, Machine, Variant, on_machine, restore_command, run};

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

on_each_runtime!(writers_of_a_database_lose_no_row, |machine| no_row_is_lost(machine, 6));

/// The same for a long time; by hand.
#[test]
#[ignore = "takes minutes"]
fn writers_of_a_database_lose_no_row_in_a_hundred_rounds() {
    on_machine(Variant::RuncV2, |machine| no_row_is_lost(machine, 100));
}

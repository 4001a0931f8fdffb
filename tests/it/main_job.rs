//! The main job, through the shim as an engine calls it.

use std::fs;
use std::process::Stdio;

use crate::support::{self, Shim};
use serde_json::Value;

/// The last number in the journal's log.
fn last_line(log: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(log);
    let line = text.lines().last().expect("the log has a line");
    line.split(' ').nth(1).and_then(|number| number.parse().ok()).expect("the line has a number")
}

fn counter(status: &Value) -> u64 {
    status["counter"].as_u64().expect("a counter")
}

on_each_runtime!(a_live_checkpoint_is_restored_as_of_the_freeze, |machine| {
    let bundle =
        machine.bundle("journal").shim(Shim::Ocicle).args(["workload", "journal", "/data"]).make();
    let images = bundle.images("images");
    fs::write(bundle.path("/data/removed-later"), "content\n").unwrap();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let control = container.control("/data");
    let before = control.status();
    container.checkpoint(&images, &["--leave-running", "--file-locks"]).unwrap();
    assert!(!container.is_frozen());
    let after = control.status();
    assert!(counter(&after) >= counter(&before));
    assert_eq!(control.ask("lock"), "ok");
    assert_eq!(control.ask("remove removed-later"), "ok");
    fs::write(bundle.path("/etc/motd"), "changed since\n").unwrap();
    drop(container);
    assert!(bundle.path("/data/lock").exists());

    let restored = bundle.restore(&images, &["--file-locks"]).unwrap();
    let status = restored.control("/data").status();
    println!("before {before}\nafter {after}\nrestored {status}");
    assert!(counter(&status) >= counter(&before));
    assert!(!bundle.path("/data/lock").exists());
    assert_eq!(fs::read_to_string(bundle.path("/data/removed-later")).unwrap(), "content\n");
    assert_eq!(status["counter"], status["db_max"]);
    assert_eq!(status["log_size"], status["log_position"]);
    assert_eq!(status["second_position"], 10);
    assert_eq!(status["deleted_content"], before["deleted_content"]);
    assert_eq!(status["image_file"], before["image_file"]);
    assert_eq!(status["db_check"], "ok");
    let log = fs::read(bundle.path("/data/log")).unwrap();
    assert!(last_line(&log) >= counter(&status));
});

on_each_runtime!(a_stopped_container_is_restored_twice, |machine| {
    let bundle =
        machine.bundle("journal").shim(Shim::Ocicle).args(["workload", "journal", "/data"]).make();
    let images = bundle.images("images");
    let container = bundle.run();
    container.wait_for("/data/ready");
    let before = container.control("/data").status();
    container.checkpoint(&images, &["--file-locks"]).unwrap();
    assert!(!container.freezer().exists(), "the container is gone");
    drop(container);
    let log = fs::read(bundle.path("/data/log")).unwrap();

    let mut counters = Vec::new();
    for _ in 0..2 {
        fs::write(bundle.path("/data/log"), "nothing of it is left\n").unwrap();
        let restored = bundle.restore(&images, &["--file-locks"]).unwrap();
        let status = restored.control("/data").status();
        assert_eq!(status["counter"], status["db_max"]);
        assert!(counter(&status) >= counter(&before));
        counters.push(counter(&status));
        drop(restored);
        assert!(fs::read(bundle.path("/data/log")).unwrap().starts_with(&log));
    }
});

on_each_runtime!(what_the_caller_froze_stays_frozen, |machine| {
    let bundle =
        machine.bundle("journal").shim(Shim::Ocicle).args(["workload", "journal", "/data"]).make();
    let images = bundle.images("images");
    let container = bundle.run();
    container.wait_for("/data/ready");
    container.freeze();
    container.checkpoint(&images, &["--leave-running", "--file-locks"]).unwrap();
    assert!(container.is_frozen());
    let manifest: Value =
        serde_json::from_slice(&fs::read(images.join("ocicle-manifest.json")).unwrap()).unwrap();
    assert_eq!(manifest["left"], "frozen");
    assert_eq!(manifest["freeze"]["by"], "caller");
    container.thaw();
    assert_eq!(container.control("/data").status()["db_check"], "ok");
});

on_each_runtime!(the_operator_keeps_and_restores_versions, |machine| {
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let id = bundle.id();
    let flags = machine.variant().criu_flags();
    for version in ["v1", "v2"] {
        let made = support::run(
            machine
                .ocicle()
                .args(["checkpoint", id, "--leave-running", "--file-locks"])
                .args(flags),
        );
        assert_eq!(made.trim(), format!("{id}@{version}"));
    }
    let listed = support::run(machine.ocicle().args(["list", "--quiet"]));
    assert_eq!(listed, format!("{id}@v1\n{id}@v2\n"));
    println!("{}", support::run(machine.ocicle().args(["list"])));
    println!("{}", support::run(machine.ocicle().args(["files", id])));
    println!("{}", support::run(machine.ocicle().args(["files", &format!("{id}@v1")])));
    let manifest = fs::read_to_string(machine.store().join(id).join("v2/ocicle-manifest.json"));
    println!("{}", manifest.unwrap());
    println!(
        "{}",
        support::run(std::process::Command::new("ls").arg("-la").arg(machine.version(id, "v2")))
    );
});

on_each_runtime!(a_failing_criu_gives_its_cause, |machine| {
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    // SQLite holds locks, and nobody allows them.
    let mut command = machine.checkpoint(&[bundle.id()]);
    let output = command.output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("file locks") && said.contains("log: "), "{said}");
    let log = said.split("log: ").nth(1).and_then(|rest| rest.split(')').next()).unwrap();
    assert!(fs::read_to_string(log).unwrap().contains("Error"), "{said}");
    assert!(said.contains("hint: ") && said.contains("--file-locks"), "{said}");
    assert_eq!(container.control("/data").status()["db_check"], "ok");
    assert!(!container.is_frozen());
    assert_eq!(support::run(machine.ocicle().args(["list", "--quiet"])), "");
});

on_each_runtime!(volumes_belong_to_the_checkpoint, |machine| {
    let volume = machine.state_root().join("volume");
    fs::create_dir(&volume).unwrap();
    let bundle = machine
        .bundle("journal")
        .args(["workload", "journal", "/volume"])
        .bind(&volume, "/volume")
        .make();
    let container = bundle.run();
    support::wait_for_file(&volume.join("ready"), container.pid());
    let control = support::Control::at(volume.join("control"));
    let flags = machine.variant().criu_flags();
    let before = control.status();
    let mut command = machine.ocicle();
    command.args(["checkpoint", bundle.id(), "--leave-running", "--file-locks"]);
    support::run(command.args(["--volumes", "/vol*"]).args(flags));
    assert_eq!(control.ask("lock"), "ok");
    container.kill();

    let mut command = machine.ocicle();
    command.args(["restore", bundle.id(), "--volumes", "/vol*"]).args(flags);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(command.status().unwrap().success());
    let status = control.status();
    assert!(counter(&status) >= counter(&before));
    assert_eq!(status["counter"], status["db_max"]);
    assert_eq!(status["log_size"], status["log_position"]);
    assert!(!volume.join("lock").exists());
    bundle.end();
    fs::remove_dir_all(volume).unwrap();
});

//! The main job, through the shim as an engine calls it.

#[macro_use]
mod support;

use std::fs;

use serde_json::Value;
use support::Shim;

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

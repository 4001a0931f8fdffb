//! What is around a container and not in its checkpoint: its network, and directories of the host.

use std::fs;

use crate::support::{Machine, outcome, run};
use serde_json::{Value, json};

fn is_up(said: &str) -> bool {
    said.contains("127.0.0.1")
}

// Without it nothing could be bound to 127.0.0.1 again, nor a connection there go on.
on_each_runtime!(the_loopback_of_a_network_of_its_own_is_up_again, |machine| {
    let bundle = machine.bundle("own-network").args(["workload", "probe", "/data"]).make();
    bundle.reconfigure(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != "network");
        namespaces.push(json!({ "type": "network" }));
    });
    let mut container = bundle.run();
    container.wait_for("/data/ready");
    let fds = fs::read(bundle.path("/data/fds.json")).unwrap();
    let fds: Value = serde_json::from_slice(&fds).unwrap();
    for round in 0..3 {
        assert!(is_up(&container.exec(&["cat", "/proc/net/fib_trie"])), "{round}");
        let control = container.control("/data");
        assert_eq!(control.ask(&format!("write {} {round}", fds["tcp-client"])), "1");
        assert_eq!(control.ask(&format!("read {}", fds["tcp-server"])), format!("\"{round}\""));
        run(&mut machine.checkpoint(&[bundle.id(), "--tcp-established", "--file-locks"]));
        container.kill();
        run(&mut machine.restore(&[bundle.id()]));
        container = bundle.adopt();
    }
    container.kill();
});

/// What a restore says, to which nobody objects.
fn said(machine: &Machine, words: &[&str]) -> String {
    let (success, _, said) = outcome(&mut machine.call(words[0], &words[1..]));
    assert!(success, "{said}");
    said
}

on_each_runtime!(what_a_checkpoint_does_not_hold_is_said, |machine| {
    let (volume, other) = (machine.scratch().join("volume"), machine.scratch().join("other"));
    fs::create_dir_all(volume.join("deep")).unwrap();
    fs::create_dir(&other).unwrap();
    fs::write(machine.scratch().join("name"), "a name\n").unwrap();
    let bundle = machine.bundle("outside").args(["workload", "probe", "/data"]);
    let bundle = bundle.bind(&volume, "/volume").bind(&other, "/other");
    let bundle = bundle.bind(&machine.scratch().join("name"), "/etc/name").make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let flags = ["--volumes", "/other", "--tcp-established", "--file-locks"];
    let words = [&["checkpoint", bundle.id()][..], &flags].concat();
    let warned = said(machine, &words);
    assert!(warned.contains("does not hold /volume"), "{warned}");
    assert!(warned.contains("--volumes /volume"), "{warned}");
    assert!(!warned.contains("/other") && !warned.contains("/etc/name"), "{warned}");
    container.kill();
    let shown = run(machine.ocicle().args(["inspect", bundle.id(), "--format", "json"]));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert!(shown["warnings"].to_string().contains("does not hold /volume"), "{shown}");

    let words = ["restore", bundle.id(), "--volumes", "/other"];
    let warned = said(machine, &words);
    assert!(warned.contains("nothing there has changed since"), "{warned}");
    bundle.adopt().kill();
    fs::write(volume.join("deep/new"), "").unwrap();
    let warned = said(machine, &words);
    assert!(warned.contains("2 files there have changed since, such as deep"), "{warned}");
    bundle.adopt().kill();
    for directory in [volume, other] {
        fs::remove_dir_all(directory).unwrap();
    }
    fs::remove_file(machine.scratch().join("name")).unwrap();
});

//! What CRIU has to find by a name that nothing tells it.

use std::fs;

use crate::support::{self, Bundle, BundleBuilder, Machine, Shim, outcome, restore_command, run};
use serde_json::{Value, json};

/// A container that holds a kind of the workload's in a directory.
fn holding<'m>(machine: &'m Machine, name: &str, kind: &str, place: &str) -> BundleBuilder<'m> {
    let builder = machine.bundle(name).shim(Shim::Ocicle);
    let builder = builder.args(["workload", "named", kind, "/data", place]);
    builder.configure(|config| {
        let capabilities = ["CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_KILL", "CAP_SYS_ADMIN"];
        config["process"]["capabilities"] = json!({
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        });
    })
}

fn ask(bundle: &Bundle<'_>, request: &str) -> String {
    support::Control::at(bundle.path("/data/control")).ask(request)
}

/// Makes a checkpoint in ocicle's store, and returns what was said.
fn checkpoint(machine: &Machine, bundle: &Bundle<'_>, options: &[&str]) -> String {
    let mut command = machine.ocicle();
    command.arg("checkpoint").arg(bundle.id()).args(machine.variant().criu_flags()).args(options);
    let (success, _, said) = outcome(&mut command);
    assert!(success, "{said}");
    said
}

fn restored<'b>(machine: &Machine, bundle: &'b Bundle<'_>) -> support::Container<'b> {
    let (success, _, said) = outcome(&mut restore_command(bundle, machine, &[] as &[&str]));
    assert!(success, "{said}");
    bundle.adopt()
}

on_each_runtime!(watches_on_an_overlay_go_on, |machine| {
    let bundle = holding(machine, "watches", "inotify", "/data").make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    ask(&bundle, "touch /early");
    assert_eq!(ask(&bundle, "look"), r#"["early", "early"]"#);
    ask(&bundle, "touch /data/watched/unread");
    let said = checkpoint(machine, &bundle, &[]);
    assert!(said.contains("a restore loses") && said.contains("inotify"), "{said}");
    container.kill();
    for round in 0..2 {
        let container = restored(machine, &bundle);
        assert_eq!(ask(&bundle, "look"), "[]", "what waited is lost");
        for path in ["/late", "/bin/late", "/data/watched/late", "/data/watched/deep/file"] {
            ask(&bundle, &format!("touch {path}"));
            let seen = ask(&bundle, "look");
            let name = if path.ends_with("file") { "" } else { "late" };
            assert!(seen.contains(&format!("{name:?}")), "{round} {path}: {seen}");
        }
        container.kill();
    }
    let shown = run(machine.ocicle().args(["inspect", bundle.id(), "--format", "json"]));
    let shown: Value = serde_json::from_str(&shown).unwrap();
    let warnings = shown["warnings"].to_string();
    assert!(warnings.contains("a restore loses"), "{warnings}");
});

on_each_runtime!(a_fanotify_mark_on_an_overlay_goes_on, |machine| {
    let bundle = holding(machine, "marks", "fanotify", "/data").make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let images = bundle.images("live");
    container.checkpoint(&images, &["--leave-running"]).unwrap();
    let left = fs::read_dir(bundle.work()).into_iter().chain(fs::read_dir(&images));
    let left: Vec<_> = left.flatten().flatten().map(|entry| entry.file_name()).collect();
    assert!(!left.iter().any(|name| name == "irmap-cache"), "{left:?}");
    assert_eq!(ask(&bundle, "touch /data/file"), "done");
    assert_ne!(ask(&bundle, "look"), "0 events");
    container.kill();
    let container = bundle.restore(&images, &[]).unwrap();
    assert_eq!(ask(&bundle, "look"), "0 events");
    ask(&bundle, "touch /data/file");
    assert_ne!(ask(&bundle, "look"), "0 events");
    container.kill();
});

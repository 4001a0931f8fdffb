//! What CRIU has to find by a name that nothing tells it.

use std::fs;
use std::path::{Path, PathBuf};

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

/// What there is of names that CRIU makes for itself.
fn of_criu(place: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(place).unwrap().flatten();
    let is_link = |path: &PathBuf| path.to_string_lossy().contains("link_remap");
    entries.map(|entry| entry.path()).filter(is_link).collect()
}

/// Files of which one name was removed and another was not, one open and one mapped, in `place`: after
/// each checkpoint and restore what is written to them is in the files of the other names. `outside` is
/// where that place is on the host, if it can be seen from there.
fn what_has_another_name_goes_on(
    machine: &Machine,
    bundle: &Bundle<'_>,
    outside: Option<&Path>,
    volumes: &str,
) {
    let look = |expected: &str, what: &str| {
        assert_eq!(ask(bundle, "look"), expected, "{what}");
        if let Some(place) = outside {
            assert_eq!(of_criu(place), [] as [PathBuf; 0], "{what}");
        }
    };
    let restored = |version: &str| {
        let reference = format!("{}@{version}", bundle.id());
        run(&mut machine.restore(&[&reference, "--volumes", volumes]));
        bundle.adopt()
    };
    let container = bundle.run();
    container.wait_for("/data/ready");
    look("1", "it runs");
    for (version, next) in [("v1", "2"), ("v2", "3")] {
        checkpoint(machine, bundle, &["--leave-running", "--volumes", volumes]);
        look(next, "it goes on");
        let version = machine.version(bundle.id(), version);
        let links = support::manifest(&version)["link_remaps"].clone();
        assert_eq!(links.as_array().map_or(0, Vec::len), outside.map_or(0, |_| 2), "{links}");
        for entry in fs::read_dir(&version).unwrap().flatten() {
            if entry.file_name().to_string_lossy().ends_with(".index.json") {
                let index = fs::read_to_string(entry.path()).unwrap();
                assert!(!index.contains("link_remap"), "{}", entry.path().display());
            }
        }
    }
    container.kill();
    let is_held = volumes != "none";
    for (version, held, not) in [("v1", "2", "4"), ("v2", "3", "5"), ("v1", "2", "6")] {
        if let Some(place) = outside.filter(|_| is_held) {
            fs::remove_file(place.join("kept")).unwrap();
            fs::write(place.join("sem.kept"), "of another").unwrap();
        }
        let container = restored(version);
        look(if is_held { held } else { not }, version);
        container.kill();
    }
    let container = restored("v2");
    look(if is_held { "3" } else { "7" }, "once more");
    checkpoint(machine, bundle, &["--volumes", volumes]);
    run(machine.runtime(Shim::Bare, &bundle.log()).args(["delete", "--force", bundle.id()]));
    std::mem::forget(container);
    let left = outside.map(of_criu).unwrap_or_default();
    assert!(left.is_empty(), "a stop leaves {left:?}");
    let broken = machine.scratch().join("broken.conf");
    fs::write(&broken, "no-such-option\n").unwrap();
    let reference = format!("{}@v3", bundle.id());
    let mut failing = machine.restore(&[&reference, "--volumes", volumes]);
    assert!(!outcome(failing.env("CRIU_CONFIG_FILE", &broken)).0);
    let left = outside.map(of_criu).unwrap_or_default();
    assert!(left.is_empty(), "a restore that failed leaves {left:?}");
    fs::remove_file(broken).unwrap();
    let container = restored("v3");
    look(if is_held { "4" } else { "8" }, "after a stop");
    container.kill();
}

on_each_runtime!(what_has_another_name_on_an_overlay_goes_on, |machine| {
    let bundle = holding(machine, "links", "link", "/data").make();
    what_has_another_name_goes_on(machine, &bundle, Some(&bundle.path("/data")), "all");
});

on_each_runtime!(what_has_another_name_in_a_volume_goes_on, |machine| {
    for volumes in ["all", "none"] {
        let volume = machine.scratch().join("volume");
        fs::create_dir(&volume).unwrap();
        let bundle = holding(machine, "links", "link", "/volume");
        let bundle = bundle.bind(&volume, "/volume").make();
        what_has_another_name_goes_on(machine, &bundle, Some(&volume), volumes);
        fs::remove_dir_all(&volume).unwrap();
    }
});

on_each_runtime!(what_has_another_name_on_a_tmpfs_goes_on, |machine| {
    let bundle = holding(machine, "links", "link", "/dev/shm").make();
    what_has_another_name_goes_on(machine, &bundle, None, "all");
});

on_each_runtime!(what_has_no_other_name_in_the_container_is_refused, |machine| {
    let volume = machine.scratch().join("volume");
    fs::create_dir(&volume).unwrap();
    let bundle = holding(machine, "links", "link", "/volume").bind(&volume, "/volume").make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    fs::rename(volume.join("kept"), machine.scratch().join("kept")).unwrap();
    let mut command = machine.checkpoint(&[bundle.id()]);
    let (success, _, said) = outcome(&mut command);
    assert!(!success && said.contains("its others are not in the container"), "{said}");
    fs::rename(machine.scratch().join("kept"), volume.join("kept")).unwrap();
    assert_eq!(ask(&bundle, "look"), "1");
    container.kill();
    fs::remove_dir_all(&volume).unwrap();
});

//! What a checkpoint does about files, which versions are kept, and what has changed since one.

use std::fs;
use std::os::unix::fs::symlink;

use crate::support::{Bundle, Container, Machine, Rootfs, Shim, manifest, outcome};
use serde_json::Value;

/// Holds a file open, and another not.
const HOLD: [&str; 3] = ["sh", "-c", "exec 7</data/held; : >/data/ready; exec tail -f /dev/null"];
const WAIT: [&str; 3] = ["sh", "-c", ": >/data/ready; exec tail -f /dev/null"];

/// Runs a command that has to succeed: its output and its errors.
#[track_caller]
fn said(machine: &Machine, command: &str, words: &[&str]) -> (String, String) {
    let (success, output, errors) = outcome(&mut machine.call(command, words));
    assert!(success, "{command} {words:?}: {errors}");
    (output, errors)
}

fn hold<'b>(bundle: &'b Bundle<'_>) -> Container<'b> {
    fs::write(bundle.path("/data/held"), "as it was").unwrap();
    fs::write(bundle.path("/data/other"), "as it was").unwrap();
    let container = bundle.run();
    container.wait_for("/data/ready");
    container
}

on_each_runtime!(held_files_are_verified_and_not_copied, |machine| {
    let bundle = machine.bundle("held").args(HOLD).make();
    let container = hold(&bundle);
    said(machine, "checkpoint", &["--filesystem", "verify", bundle.id()]);
    drop(container);
    let images = machine.version(bundle.id(), "v1");
    let manifest = manifest(&images);
    assert_eq!(manifest["filesystem"], "verify");
    assert_eq!(manifest["parts"], serde_json::json!([]));
    assert_eq!(manifest["features"]["incompatible"], serde_json::json!(["held-files"]));
    let held: Vec<&str> = manifest["held"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file["path"].as_str().unwrap())
        .collect();
    assert!(held.contains(&"/data/held") && !held.contains(&"/data/other"), "{held:?}");
    assert!(held.iter().any(|path| path.ends_with("busybox")), "mapped: {held:?}");

    // What nobody held may be anything.
    fs::write(bundle.path("/data/other"), "changed since").unwrap();
    said(machine, "restore", &[bundle.id()]);
    drop(bundle.adopt());
    assert_eq!(fs::read_to_string(bundle.path("/data/other")).unwrap(), "changed since");

    // As long as before: only the content tells.
    fs::write(bundle.path("/data/held"), "AS IT WAS").unwrap();
    let (success, _, errors) = outcome(&mut machine.call("restore", &[bundle.id()]));
    assert!(!success && errors.contains("/data/held: its content is another"), "{errors}");
    assert!(errors.contains("\nhint: "), "{errors}");
    let dry = ["--dry-run", bundle.id()];
    let (success, _, errors) = outcome(&mut machine.call("restore", &dry));
    assert!(!success && errors.contains("/data/held"), "{errors}");
    // Unless something takes its place.
    said(machine, "restore", &["-s", "path:/data/held=null", bundle.id()]);
    drop(bundle.adopt());
    fs::remove_file(bundle.path("/data/held")).unwrap();
    let (success, _, errors) = outcome(&mut machine.call("restore", &[bundle.id()]));
    assert!(!success && errors.contains("/data/held"), "{errors}");
});

on_each_runtime!(files_are_left_alone, |machine| {
    let bundle = machine
        .bundle("alone")
        .shim(Shim::Ocicle)
        .annotation("org.ocicle.filesystem", "none")
        .args(HOLD)
        .make();
    let container = hold(&bundle);
    let (none, snapshot) = (bundle.images("none"), bundle.images("snapshot"));
    container.checkpoint(&none, &["--leave-running"]).unwrap();
    container.checkpoint(&snapshot, &["--filesystem", "snapshot", "--leave-running"]).unwrap();
    let refused = container.checkpoint(&none, &["--filesystem=some", "--leave-running"]);
    assert!(refused.unwrap_err().contains("`snapshot`, `verify` or `none`"));
    drop(container);
    assert_eq!(manifest(&none)["filesystem"], "none");
    assert_eq!(manifest(&snapshot)["parts"].as_array().unwrap().len(), 1);
    fs::write(bundle.path("/data/other"), "changed since").unwrap();
    drop(bundle.restore(&none, &[]).unwrap());
    assert_eq!(fs::read_to_string(bundle.path("/data/other")).unwrap(), "changed since");
    drop(bundle.restore(&snapshot, &[]).unwrap());
    assert_eq!(fs::read_to_string(bundle.path("/data/other")).unwrap(), "as it was");
});

on_each_runtime!(old_versions_go_and_it_is_said, |machine| {
    let bundle = machine.bundle("kept").rootfs(Rootfs::Directory).args(WAIT).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let id = bundle.id();
    let mut last = String::new();
    for number in 1..=3 {
        fs::write(bundle.path("/data/number"), number.to_string()).unwrap();
        let words = ["--leave-running", "--purpose", "recover", id];
        let (made, errors) = said(machine, "checkpoint", &words);
        assert_eq!(made.trim(), format!("{id}@v{number}"));
        assert!(errors.contains("purpose recover: --filesystem snapshot --keep 2\n"), "{errors}");
        last = errors;
    }
    assert!(last.contains(&format!("removed {id}@v1: 2 versions are kept\n")), "{last}");
    let listed = || said(machine, "list", &["--quiet"]).0;
    assert_eq!(listed(), format!("{id}@v2\n{id}@v3\n"));
    let (_, errors) = said(machine, "checkpoint", &["--keep", "1", id]);
    assert!(errors.contains("@v2") && errors.contains("@v3"), "{errors}");
    assert_eq!(listed(), format!("{id}@v4\n"));
    drop(container);
    // It has layers that the first version made.
    fs::write(bundle.path("/data/number"), "another").unwrap();
    fs::remove_file(bundle.path("/etc/motd")).unwrap();
    said(machine, "restore", &["--verify", id]);
    drop(bundle.adopt());
    assert_eq!(fs::read_to_string(bundle.path("/data/number")).unwrap(), "3");
    assert!(bundle.path("/etc/motd").exists());
});

/// The lines of a diff.
fn diff(machine: &Machine, words: &[&str]) -> Vec<String> {
    let (output, _) = said(machine, "diff", words);
    output.lines().map(str::to_owned).collect()
}

fn what_has_changed_is_listed(machine: &Machine, kind: Rootfs) {
    let bundle = machine.bundle("changes").rootfs(kind).args(WAIT).make();
    let data = bundle.path("/data");
    for name in ["stays", "grows", "goes", "open", "linked"] {
        fs::write(data.join(name), name).unwrap();
    }
    fs::create_dir(data.join("tree")).unwrap();
    fs::write(data.join("tree/leaf"), "green").unwrap();
    symlink("here", data.join("link")).unwrap();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let id = bundle.id();
    let (first, second) = (format!("{id}@v1"), format!("{id}@v2"));
    said(machine, "checkpoint", &["--leave-running", id]);
    assert_eq!(diff(machine, &["--exit-code", &first]), [""; 0]);

    container.exec(&[
        "sh",
        "-c",
        "cd /data; echo more >>grows; rm goes; chmod 600 open; chown 5:6 linked; rm -r tree; \
         echo now >tree; ln -sf there link; mkdir -p new/er; echo x >new/er/file; \
         echo text >>/etc/motd; rm /etc/passwd; mv /etc/group /etc/groups",
    ]);
    let expected = [
        "C /data/grows  (content, time)",
        "D /data/goes",
        "C /data/open  (mode)",
        "C /data/linked  (owner)",
        "C /data/tree  (type",
        "D /data/tree/leaf",
        "C /data/link  (target, time)",
        "A /data/new",
        "A /data/new/er",
        "A /data/new/er/file",
        "C /etc/motd  (content, time)",
        "D /etc/passwd",
        "D /etc/group",
        "A /etc/groups",
    ];
    let assert_listed = |words: &[&str]| {
        let lines = diff(machine, words);
        for wanted in expected {
            let matches = lines.iter().filter(|line| {
                // A type differs with all else.
                if wanted.ends_with("(type") { line.starts_with(wanted) } else { *line == wanted }
            });
            assert_eq!(matches.count(), 1, "{wanted}: {words:?}: {lines:#?}");
        }
        assert_eq!(lines.len(), expected.len(), "{words:?}: {lines:#?}");
    };
    assert_listed(&[&first]);
    said(machine, "checkpoint", &["--leave-running", id]);
    assert_listed(&[&first, &second]);
    let status = machine.call("diff", &["--exit-code", &first, &second]).output().unwrap();
    assert_eq!(status.status.code(), Some(1));

    // The other way round, and as JSON.
    let (json, _) = said(machine, "diff", &["--format", "json", &second, &first]);
    let json: Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["schema"], json["after"].as_str()), (&1.into(), Some(first.as_str())));
    let changes = json["changes"].as_array().unwrap();
    let of = |path: &str| changes.iter().find(|change| change["path"] == path).unwrap();
    assert_eq!(of("/data/goes")["change"], "added");
    assert_eq!(of("/etc/passwd")["change"], "added");
    assert_eq!(of("/data/new/er/file")["change"], "removed");
    assert_eq!(of("/data/open")["what"], serde_json::json!(["mode"]));
    assert!(!changes.iter().any(|change| change["path"] == "/data/stays"));
    drop(container);
}

on_each_runtime!(changes_on_an_overlay_are_listed, |machine| what_has_changed_is_listed(
    machine,
    Rootfs::Overlay
));

on_each_runtime!(changes_in_a_directory_are_listed, |machine| what_has_changed_is_listed(
    machine,
    Rootfs::Directory
));

//! Files that are not as they were, and that nothing puts back or replaces: refused by default,
//! or dealt with as a policy says.

use std::fs::{self, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Bundle, Control, Machine, Shim, Told, outcome, run, wait_for_file};
use serde_json::Value;

/// A volume that no checkpoint holds, and a container that has files open there.
struct Case<'m> {
    machine: &'m Machine,
    bundle: Bundle<'m>,
    volume: PathBuf,
}

const TEXT: &str = "0123456789";

impl<'m> Case<'m> {
    fn new(machine: &'m Machine, annotation: &str) -> Self {
        Self::with(machine, annotation, &[])
    }

    fn with(machine: &'m Machine, annotation: &str, flags: &[&str]) -> Self {
        let volume = machine.scratch().join("volume");
        fs::create_dir(&volume).unwrap();
        let bundle = machine
            .bundle("probe")
            .args(["workload", "probe", "/volume"])
            .bind(&volume, "/volume")
            .annotation("org.ocicle.policy", annotation)
            .make();
        let container = bundle.run();
        wait_for_file(&volume.join("ready"), container.pid());
        let file = volume.join("file");
        fs::set_permissions(&file, Permissions::from_mode(0o640)).unwrap();
        chown(&file, Some(12), Some(34)).unwrap();
        let words = [bundle.id(), "--volumes", "none", "--file-locks", "--tcp-established"];
        run(machine.checkpoint(&words).args(flags));
        drop(container);
        Self { machine, bundle, volume }
    }

    fn file(&self) -> PathBuf {
        self.volume.join("file")
    }

    fn restore(&self, options: &[&str]) -> Command {
        let mut command = self.machine.restore(&[self.bundle.id()]);
        command.args(options);
        command
    }

    /// Restores, asks the file descriptor of the file, and ends the container.
    #[track_caller]
    fn restored(&self, options: &[&str], requests: &[&str]) -> Vec<String> {
        let (works, _, errors) = outcome(&mut self.restore(options));
        assert!(works, "{options:?}: {errors}");
        let fds = fs::read(self.volume.join("fds.json")).unwrap();
        let fds: Value = serde_json::from_slice(&fds).unwrap();
        let ask = |request: &&str| {
            let (word, text) = request.split_once(' ').unwrap_or((request, ""));
            let request = format!("{word} {} {text}", fds["file"]);
            Control::at(self.volume.join("control")).ask(request.trim_end())
        };
        let answers = requests.iter().map(ask).collect();
        self.bundle.end();
        answers
    }

    /// Puts the file back as it was, whatever a test has done to it.
    fn reset(&self) {
        fs::write(self.file(), TEXT).unwrap();
        fs::set_permissions(self.file(), Permissions::from_mode(0o640)).unwrap();
        chown(self.file(), Some(12), Some(34)).unwrap();
    }

    fn dry_run(&self, options: &[&str]) -> Value {
        let options = [options, &["--dry-run", "--format", "json"]].concat();
        serde_json::from_str(&run(&mut self.restore(&options))).unwrap()
    }

    fn end(self) {
        drop(self.bundle);
        fs::remove_dir_all(&self.volume).unwrap();
    }
}

fn grow(path: &Path) {
    OpenOptions::new().append(true).open(path).unwrap().write_all(b"XYZ").unwrap();
}

on_each_runtime!(what_policies_allow, |machine| {
    let case = Case::new(machine, "");
    let mut told = Told::new(machine);

    fs::remove_file(case.file()).unwrap();
    told.refused("missing", &mut case.restore(&[]));
    let policy = "missing=recreate:/volume/*";
    let remedy = case.dry_run(&["--policy", policy])["policies"][0].clone();
    assert_eq!((&remedy["path"], &remedy["done"]), (&"/volume/file".into(), &"recreate".into()));
    assert!(!case.file().exists(), "a dry run does nothing");
    let answers = case.restored(&["--policy", policy], &["position", "read", "write new"]);
    assert_eq!(answers, ["0", "\"\"", "3"]);
    assert_eq!(fs::read_to_string(case.file()).unwrap(), "new");
    let made = fs::metadata(case.file()).unwrap();
    assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o640, 12, 34));

    case.reset();
    grow(&case.file());
    told.refused("grown", &mut case.restore(&[]));
    let answers = case.restored(&["--policy", "grown=accept:/volume/file"], &["position", "read"]);
    assert_eq!(answers, ["4", "\"456789XYZ\""]);
    let answers = case.restored(&["--policy", "grown=truncate"], &["position", "read"]);
    assert_eq!(answers, ["4", "\"456789\""]);
    assert_eq!(fs::read_to_string(case.file()).unwrap(), TEXT);

    fs::write(case.file(), "01").unwrap();
    told.refused("shrunk", &mut case.restore(&[]));
    let (_, said, _) = outcome(&mut case.restore(&["--policy", "shrunk=accept", "--dry-run"]));
    told.add("what a dry run says", said.lines().find(|line| line.contains("accepted")).unwrap());
    let answers = case.restored(&["--policy", "shrunk=accept"], &["position", "read", "write z"]);
    assert_eq!(answers, ["2", "\"\"", "1"]);
    assert_eq!(fs::read_to_string(case.file()).unwrap(), "01z");

    case.reset();
    let answers = case.restored(&[], &["read"]);
    assert_eq!(answers, ["\"456789\""], "the images are what they were");

    told.refused("a policy that is none", &mut case.restore(&["--policy", "grown=shrink"]));
    told.refused("a path that is none", &mut case.restore(&["--policy", "grown=accept:data"]));
    told.compare("policies");
    case.end();
});

on_each_runtime!(policies_of_annotations_and_the_configuration, |machine| {
    let case = Case::new(machine, "grown=truncate:/volume/locked; grown=truncate:/volume/file");
    grow(&case.file());
    assert_eq!(case.restored(&[], &["read"]), ["\"456789\""]);
    let mut told = Told::new(machine);

    // It was open for reading only: who wrote the annotation need not be able to write it.
    fs::write(case.volume.join("locked"), "more").unwrap();
    told.refused("an annotation that goes too far", &mut case.restore(&[]));
    fs::write(case.volume.join("locked"), "").unwrap();

    let configuration = machine.scratch().join("ocicle.toml");
    let policy = "[[policy]]\ncontainer = '*-probe'\npath = '/volume/**'\nshrunk = 'accept'\n";
    fs::write(&configuration, policy).unwrap();
    fs::write(case.file(), "01").unwrap();
    told.refused("without the configuration", &mut case.restore(&[]));
    let mut restore = case.restore(&["--policy", "shrunk=error:/volume/file"]);
    told.refused("the command line goes first", restore.env("OCICLE_CONFIG", &configuration));
    run(case.restore(&[]).env("OCICLE_CONFIG", &configuration).stdout(std::process::Stdio::null()));
    case.bundle.end();
    fs::remove_file(configuration).unwrap();
    told.compare("policies-standing");
    case.end();
});

on_each_runtime!(what_no_policy_changes, |machine| {
    let volume = machine.scratch().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("input"), TEXT).unwrap();
    let bundle = machine
        .bundle("reader")
        .args(["sh", "-c", "exec 5</volume/input; touch /data/ready; exec tail -f /dev/null"])
        .configure(|config| {
            let mount = serde_json::json!({ "destination": "/volume", "type": "bind",
                "source": volume, "options": ["rbind", "ro"] });
            config["mounts"].as_array_mut().unwrap().push(mount);
        })
        .shim(Shim::Ocicle)
        .make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let images = bundle.images("images");
    container.checkpoint(&images, &[]).unwrap();
    drop(container);
    grow(&volume.join("input"));
    // A mount that the container cannot write is not written for it.
    let error = bundle.restore(&images, &["--policy", "grown=truncate"]).map(drop).unwrap_err();
    assert!(error.contains("the container cannot write where it is"), "{error}");
    assert_eq!(fs::read_to_string(volume.join("input")).unwrap(), "0123456789XYZ");
    let restored = bundle.restore(&images, &["--policy=grown=accept:/volume/**"]).unwrap();
    assert_eq!(restored.status(), "running");
    drop(restored);
    drop(bundle);
    fs::remove_dir_all(&volume).unwrap();
});

on_each_runtime!(policies_for_files_that_were_verified, |machine| {
    let case = Case::with(machine, "", &["--filesystem", "verify"]);
    let refused = |options: &[&str], words: &str| {
        let (works, _, errors) = outcome(&mut case.restore(options));
        assert!(!works && errors.contains(words), "{options:?}: {errors}");
    };
    grow(&case.file());
    refused(&[], "it has 13 bytes, it had 10 at the checkpoint");
    let answers = case.restored(&["--policy", "grown=accept"], &["position", "read"]);
    assert_eq!(answers, ["4", "\"456789XYZ\""]);
    // To grow is not to change what was there.
    fs::write(case.file(), "rotated, and longer").unwrap();
    for policy in ["--policy=grown=accept", "--policy=grown=truncate"] {
        refused(&[policy], "/volume/file: its first 10 bytes are others");
        refused(&[policy, "--dry-run"], "/volume/file: its first 10 bytes are others");
        assert_eq!(fs::read_to_string(case.file()).unwrap(), "rotated, and longer");
    }
    case.reset();
    grow(&case.file());
    assert_eq!(case.restored(&["--policy", "grown=truncate"], &["read"]), ["\"456789\""]);
    assert_eq!(fs::read_to_string(case.file()).unwrap(), TEXT);

    fs::write(case.file(), "98").unwrap();
    refused(&["--policy", "grown=accept"], "it has 2 bytes");
    assert_eq!(case.restored(&["--policy", "shrunk=accept"], &["position"]), ["2"]);
    fs::remove_file(case.file()).unwrap();
    assert_eq!(case.restored(&["--policy", "missing=recreate"], &["position"]), ["0"]);
    assert_eq!(fs::read_to_string(case.file()).unwrap(), "");

    // Of the same size: no policy speaks of that.
    case.reset();
    fs::write(case.file(), "abcdefghij").unwrap();
    let all = "--policy=missing=recreate,grown=accept,shrunk=accept";
    refused(&[all], "/volume/file: its content is another");
    case.end();
});

on_each_runtime!(a_verified_file_that_was_open_for_appending, |machine| {
    let script = "exec 5>>/data/log; echo line >&5; touch /data/ready; exec tail -f /dev/null";
    let bundle = machine.bundle("appender").args(["sh", "-c", script]).shim(Shim::Ocicle).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let images = bundle.images("images");
    container.checkpoint(&images, &["--filesystem=verify"]).unwrap();
    drop(container);
    let log = bundle.path("/data/log");
    OpenOptions::new().append(true).open(&log).unwrap().write_all(b"more\n").unwrap();
    let restore = |policy: &str| bundle.restore(&images, &[policy]).map(drop);
    // CRIU would not look at its size.
    let error = restore("--policy=missing=recreate").unwrap_err();
    assert!(error.contains("(/data/log): it has 10 bytes, it had 5"), "{error}");
    restore("--policy=grown=accept").unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "line\nmore\n");
    restore("--policy=grown=truncate:/data/log").unwrap();
    assert_eq!(fs::read_to_string(&log).unwrap(), "line\n");
    // On the root file system, of which there is no snapshot.
    fs::remove_file(&log).unwrap();
    restore("--policy=missing=recreate:/data/log").unwrap();
    assert_eq!(fs::metadata(&log).unwrap().len(), 0);
});

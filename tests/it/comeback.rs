//! A checkpoint that ends its container: what a restore in place would refuse stops it first.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Bundle, BundleBuilder, Container, Machine, outcome, run};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

const WAIT: [&str; 3] = ["sh", "-c", ": >/data/ready; exec tail -f /dev/null"];

fn start<'b>(bundle: &'b Bundle<'_>) -> Container<'b> {
    let container = bundle.run();
    container.wait_for("/data/ready");
    container
}

fn ocicle(machine: &Machine, command: &str, bundle: &Bundle<'_>, flags: &[&str]) -> Command {
    let mut ocicle = machine.ocicle();
    ocicle.args([command, bundle.id()]).args(machine.variant().criu_flags()).args(flags);
    ocicle
}

#[track_caller]
fn succeeds(mut command: Command) -> String {
    let (success, _, errors) = outcome(&mut command);
    assert!(success, "{command:?}: {errors}");
    errors
}

#[track_caller]
fn fails(mut command: Command) -> String {
    let (success, _, errors) = outcome(&mut command);
    assert!(!success, "{command:?} did not fail");
    errors
}

/// The problems that `ocicle check` finds.
#[track_caller]
fn problems(machine: &Machine, bundle: &Bundle<'_>, flags: &[&str]) -> Vec<Value> {
    let mut check = machine.ocicle();
    let flags = [&["check", bundle.id(), "--format", "json"], flags].concat();
    let (_, report, errors) = outcome(check.args(flags).args(machine.variant().criu_flags()));
    let report: Value =
        serde_json::from_str(&report).unwrap_or_else(|error| panic!("{error}: {errors}"));
    let of_files = report["files"].as_array().unwrap().iter();
    let of_files = of_files.filter_map(|file| file["problems"].as_array()).flatten();
    of_files.chain(report["problems"].as_array().unwrap()).cloned().collect()
}

/// A directory of the host that is gone with the test, and what is mounted in it.
struct Place(PathBuf);

impl Place {
    fn new(machine: &Machine) -> Self {
        let path = machine.scratch().join("place");
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn tmpfs(&self, name: &str) -> PathBuf {
        let path = self.directory(name);
        mount(Some("tmpfs"), &path, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for mounted in ["userdata/shm", "volume/inside"] {
            let _ = umount2(&self.0.join(mounted), MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The same words, from the checkpoint and from the look at the container before.
fn is_refused(machine: &Machine, container: &Container<'_>, why: &str, flags: &[&str]) {
    let bundle = container.bundle();
    let said = fails(ocicle(machine, "checkpoint", bundle, flags));
    assert!(said.contains(why), "{said}");
    assert!(said.contains("a restore in place would be refused"), "{said}");
    assert!(said.contains("--unrestorable-ok"), "{said}");
    assert_eq!(container.status(), "running");
    assert!(!container.is_frozen());
    let listed = run(machine.ocicle().args(["list", "--format", "json"]));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["checkpoints"], json!([]), "it is none");
}

on_each_runtime!(a_volume_that_another_container_uses, |machine| {
    let place = Place::new(machine);
    let volume = place.directory("volume");
    let make = |name| machine.bundle(name).bind(&volume, "/volume").args(WAIT).make();
    let (bundle, beside) = (make("producer"), make("consumer"));
    let (container, other) = (start(&bundle), start(&beside));
    container.exec(&["mkfifo", "/volume/fifo"]);
    let all = ["--volumes", "all"];

    let why = format!("the volume /volume is in use: pid {} (tail) has it mounted", other.pid());
    is_refused(machine, &container, &why, &all);
    let found = problems(machine, &bundle, &all);
    let is_it = |one: &&Value| one["what"].as_str().unwrap().ends_with(&why);
    let one = found.iter().find(is_it).unwrap_or_else(|| panic!("{found:?}"));
    assert_eq!(one["option"], "--unrestorable-ok");
    // One that goes on needs nothing of the kind.
    succeeds(ocicle(machine, "checkpoint", &bundle, &["--volumes", "all", "--leave-running"]));

    let said = ["--volumes", "all", "--unrestorable-ok"];
    let said = succeeds(ocicle(machine, "checkpoint", &bundle, &said));
    assert!(said.contains(&why), "it is told all the same: {said}");
    drop(container);
    let said = fails(ocicle(machine, "restore", &bundle, &all));
    assert!(said.contains(&why), "the same words: {said}");
    drop(other);
    succeeds(ocicle(machine, "restore", &bundle, &all));
    assert_eq!(bundle.adopt().status(), "running");
});

on_each_runtime!(an_annotation_says_that_it_may_end, |machine| {
    let place = Place::new(machine);
    let volume = place.directory("volume");
    let make = |name| machine.bundle(name).bind(&volume, "/volume").args(WAIT);
    let bundle = make("one").annotation("org.ocicle.unrestorable-ok", "true").make();
    let beside = make("other").make();
    let (container, _other) = (start(&bundle), start(&beside));
    succeeds(ocicle(machine, "checkpoint", &bundle, &["--volumes", "all"]));
    drop(container);
});

/// A bundle that shares the shared memory of another container, as a pod's containers do.
fn joined<'m>(machine: &'m Machine, of: &Container<'_>, shm: &Path) -> BundleBuilder<'m> {
    let ipc = format!("/proc/{}/ns/ipc", of.pid());
    with_shm(machine.bundle("joined"), shm).configure(|config| {
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|one| one["type"] != "ipc");
        namespaces.push(json!({ "type": "ipc", "path": ipc }));
    })
}

/// The bundle's /dev/shm is a directory of the host, as podman has it.
fn with_shm<'m>(builder: BundleBuilder<'m>, shm: &Path) -> BundleBuilder<'m> {
    let without = builder.configure(|config| {
        let mounts = config["mounts"].as_array_mut().unwrap();
        mounts.retain(|mount| mount["destination"] != "/dev/shm");
    });
    without.bind(shm, "/dev/shm")
}

on_each_runtime!(shared_memory_of_another_container, |machine| {
    let place = Place::new(machine);
    let shm = place.tmpfs("userdata/shm");
    let owner = with_shm(machine.bundle("owner"), &shm).args(WAIT).make();
    let owner = start(&owner);
    let bundle = joined(machine, &owner, &shm).args(WAIT).make();
    let container = start(&bundle);
    container.exec(&["sh", "-c", "echo before >/dev/shm/note"]);

    assert_eq!(problems(machine, &bundle, &[]), Vec::<Value>::new());
    succeeds(ocicle(machine, "checkpoint", &bundle, &[]));
    drop(container);
    owner.exec(&["sh", "-c", "echo since >/dev/shm/note"]);
    succeeds(ocicle(machine, "restore", &bundle, &[]));
    let container = bundle.adopt();
    assert_eq!(container.exec(&["cat", "/dev/shm/note"]), "since\n", "it is the owner's");
});

on_each_runtime!(a_volume_that_was_unmounted_on_the_host, |machine| {
    let place = Place::new(machine);
    let shm = place.tmpfs("userdata/shm");
    let bundle = with_shm(machine.bundle("memory"), &shm).args(WAIT).make();
    let container = start(&bundle);
    container.exec(&["sh", "-c", "echo kept >/dev/shm/note"]);
    umount2(&shm, MntFlags::MNT_DETACH).unwrap();

    let why = format!("its volume /dev/shm is not what is at {} now", shm.display());
    for flags in [&[][..], &["--leave-running"]] {
        let said = fails(ocicle(machine, "checkpoint", &bundle, flags));
        assert!(said.contains(&why), "{said}");
        assert_eq!(container.exec(&["cat", "/dev/shm/note"]), "kept\n");
    }
    let found = problems(machine, &bundle, &[]);
    assert!(found.iter().any(|one| one["what"].as_str().unwrap().contains(&why)), "{found:?}");
});

on_each_runtime!(a_file_that_no_snapshot_holds, |machine| {
    let place = Place::new(machine);
    let volume = place.directory("volume");
    let inside = place.tmpfs("volume/inside");
    fs::write(inside.join("log"), "line\n").unwrap();
    let script = "exec 7>>/volume/inside/log; : >/data/ready; exec tail -f /dev/null";
    let bundle = machine.bundle("nested").bind(&volume, "/volume").args(["sh", "-c", script]);
    let bundle = bundle.make();
    let container = start(&bundle);
    let why = "fd 7 of pid 1 (/volume/inside/log): it is missing";
    is_refused(machine, &container, why, &["--volumes", "all"]);
});

on_each_runtime!(a_rule_that_stands_and_means_nothing, |machine| {
    let bundle = machine.bundle("rule").args(WAIT);
    let bundle = bundle.annotation("org.ocicle.substitute", "/nowhere=null").make();
    let container = start(&bundle);
    is_refused(machine, &container, "no open file matches /nowhere", &[]);
});

on_each_runtime!(a_directory_of_its_control_group, |machine| {
    let hierarchy = match machine.variant().has_cgroup2() {
        true => "/sys/fs/cgroup",
        false => "/sys/fs/cgroup/freezer",
    };
    let bundle = machine.bundle("group").bind(Path::new(hierarchy), "/groups").make();
    let own = format!("/groups/{}", bundle.id());
    let script = format!("exec 7<{own}; : >/data/ready; exec tail -f /dev/null");
    bundle.reconfigure(|config| config["process"]["args"] = json!(["sh", "-c", script]));
    let container = start(&bundle);
    succeeds(ocicle(machine, "checkpoint", &bundle, &[]));
    drop(container);
    succeeds(ocicle(machine, "restore", &bundle, &[]));
    let restored = bundle.adopt();
    let target = fs::read_link(format!("/proc/{}/fd/7", restored.pid())).unwrap();
    assert_eq!(target, Path::new(&own));
});

on_each_runtime!(a_message_queue, |machine| {
    let bundle = machine.bundle("queue").args(["workload", "odd", "/data", "queue"]).make();
    fs::create_dir_all(bundle.path("/data")).unwrap();
    let container = start(&bundle);
    for flags in [&[][..], &["--leave-running"], &["--on-unsupported", "substitute"]] {
        let said = fails(ocicle(machine, "checkpoint", &bundle, flags));
        assert!(said.contains("a POSIX message queue cannot be saved"), "{said}");
        assert_eq!(container.control("/data").ask("works queue"), "yes");
    }
    let found = problems(machine, &bundle, &[]);
    let what = found.iter().map(|one| one["what"].as_str().unwrap());
    assert!(what.into_iter().any(|what| what.contains("message queue")), "{found:?}");
});

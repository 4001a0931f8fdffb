//! What is done inside the freeze and what is not, and that the manifest tells.

use std::fs::{self, File};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::thread;

use crate::support::{self, Bundle, Machine, Shim, manifest, outcome, run};
use nix::sched::{CloneFlags, setns};
use serde_json::Value;

const WAIT: [&str; 3] = ["sh", "-c", ": >/data/ready; exec tail -f /dev/null"];

/// The steps of a name, as begin and end.
fn steps(manifest: &Value, within: Option<&str>, name: &str) -> Vec<(f64, f64)> {
    let steps = manifest["timeline"].as_array().expect("a timeline").iter();
    steps
        .filter(|step| step["within"].as_str() == within && step["name"] == name)
        .map(|step| (step["begin"].as_f64().unwrap(), step["end"].as_f64().unwrap()))
        .collect()
}

#[track_caller]
fn step(manifest: &Value, within: Option<&str>, name: &str) -> (f64, f64) {
    match steps(manifest, within, name)[..] {
        [step] => step,
        ref other => panic!("{name}: {other:?} in {:#}", manifest["timeline"]),
    }
}

on_each_runtime!(images_are_in_memory_first_and_then_on_disk, |machine| {
    let bundle = machine.bundle("memory").args(WAIT).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let checkpoint = |flags: &[&str]| {
        let mut command = machine.checkpoint(&[bundle.id()]);
        command.args(flags);
        outcome(&mut command)
    };
    let (success, _, errors) = checkpoint(&["--stage", "memory"]);
    assert!(!success && errors.contains("--leave-running"), "{errors}");
    for (version, stage) in [(1, "disk"), (2, "memory"), (3, "auto")] {
        let (success, _, errors) = checkpoint(&["--leave-running", "--stage", stage]);
        assert!(success, "{errors}");
        let images = machine.version(bundle.id(), &format!("v{version}"));
        let manifest = manifest(&images);
        // So small a container gains nothing.
        let moved = steps(&manifest, None, "move");
        assert_eq!(moved.len(), usize::from(stage == "memory"), "{stage}");
        if let [(begin, _)] = moved[..] {
            assert!(step(&manifest, None, "thaw").1 <= begin, "while the container runs");
        }
        assert!(images.join("pages-1.img").exists(), "{stage}");
        assert_eq!(container.status(), "running");
    }
    drop(container);
    run(machine
        .ocicle()
        .args(["restore", "--verify", &format!("{}@v2", bundle.id())])
        .args(machine.variant().criu_flags()));
    assert_eq!(bundle.adopt().status(), "running");
});

on_each_runtime!(the_timeline_tells_each_step, |machine| {
    let bundle = machine.bundle("steps").shim(Shim::Ocicle).args(WAIT).make();
    let images = bundle.images("images");
    let container = bundle.run();
    container.wait_for("/data/ready");
    container.checkpoint(&images, &["--leave-running"]).unwrap();
    let manifest = manifest(&images);
    let at = |name| step(&manifest, None, name);
    let in_order = ["pre-copy", "runtime", "freeze", "dump", "thaw", "table", "pack"];
    for pair in in_order.windows(2) {
        assert!(at(pair[0]).1 <= at(pair[1]).0, "{pair:?} in {:#}", manifest["timeline"]);
    }
    assert!(at("table").1 <= at("digest").0, "beside the packing");
    let (freeze, thaw) = (at("freeze"), at("thaw"));
    for name in ["snapshot", "commit"] {
        assert!(freeze.1 <= at(name).0 && at(name).1 <= thaw.0, "{name} is in the freeze");
    }
    // CRIU's clock is set by the moment at which its script comes to the door, which is later than
    // the line in its log: no step can seem to begin before the freeze.
    let mut last = freeze.0;
    for name in [
        "seizing",
        "network lock",
        "mounts and sockets",
        "tasks",
        "file systems",
        "process tree",
        "namespaces",
        "cgroups",
        "waiting for the snapshot",
        "network unlock",
        "letting go",
    ] {
        let (begin, end) = step(&manifest, Some("dump"), name);
        assert!(last <= begin && begin <= end, "{name} in {:#}", manifest["timeline"]);
        last = end;
    }
    let criu = &manifest["criu"];
    assert!(criu["frozen_time"].as_u64().unwrap() > 0, "{criu}");
    assert!(criu["pages_written"].as_u64().unwrap() > 0, "{criu}");
    assert!(steps(&manifest, None, "attempt").is_empty());
});

/// A connection of somebody else's in the container's network, made by a program.
fn connecting_program(bundle: &Bundle<'_>) -> (TcpListener, PathBuf) {
    let network = File::open(bundle.network()).unwrap();
    let listener = thread::spawn(move || {
        setns(network, CloneFlags::CLONE_NEWNET).unwrap();
        TcpListener::bind("127.0.0.1:7000").unwrap()
    });
    let program = bundle.dir().join("connect");
    let network = bundle.network();
    let text = format!(
        "#!/bin/sh\nexec nsenter --net={} bash -c 'exec 3<>/dev/tcp/127.0.0.1/7000'\n",
        network.display()
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    (listener.join().unwrap(), program)
}

fn checkpoint(machine: &Machine, bundle: &Bundle<'_>, run_at: Option<(&str, &Path)>) -> Value {
    let mut command = machine.checkpoint(&["--leave-running", bundle.id()]);
    if let Some((point, program)) = run_at {
        command.env("OCICLE_FAULT_RUN", format!("{point}:{}", program.display()));
    }
    let made = run(&mut command);
    let version = made.trim().split_once('@').unwrap().1;
    manifest(&machine.store().join(bundle.id()).join(version))
}

on_each_runtime!(what_changes_while_criu_starts_is_noticed, |machine| {
    let bundle = machine.bundle("changing").args(WAIT).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let (listener, program) = connecting_program(&bundle);
    // CRIU was told that there is no connection. Then there is one.
    let noticed = checkpoint(machine, &bundle, Some(("admitted", &program)));
    assert_eq!(steps(&noticed, None, "attempt").len(), 1, "{:#}", noticed["timeline"]);
    assert!(step(&noticed, None, "attempt").1 <= step(&noticed, None, "freeze").0);
    assert!(!container.is_frozen());
    // Now it is there from the beginning.
    let told = checkpoint(machine, &bundle, None);
    assert!(steps(&told, None, "attempt").is_empty());
    drop(listener);
    drop(container);
    for version in ["@v1", "@v2"] {
        let reference = format!("{}{version}", bundle.id());
        let mut restore = machine.restore(&[&reference]);
        let (restored, _, errors) = support::outcome(&mut restore);
        assert!(restored, "{errors}");
        let container = bundle.adopt();
        assert!(container.processes().contains(&container.pid()), "in its own control group");
        drop(container);
    }
});

on_each_runtime!(groups_below_the_containers_own_are_kept, |machine| {
    let bundle = machine.bundle("groups").shim(Shim::Ocicle).args(WAIT).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let size =
        |images: &Path| fs::metadata(images.join("cgroup.img")).map_or(0, |image| image.len());
    let (plain, nested) = (bundle.images("plain"), bundle.images("nested"));
    container.checkpoint(&plain, &["--leave-running"]).unwrap();
    let below = container.freezer().join("below");
    fs::create_dir(&below).unwrap();
    container.checkpoint(&nested, &["--leave-running"]).unwrap();
    fs::remove_dir(below).unwrap();
    println!("cgroup.img: {} and {} bytes", size(&plain), size(&nested));
    // Only where every hierarchy is mounted can it be known that there is nothing below.
    if machine.variant().criu_flags().is_empty() && !machine.variant().has_cgroup2() {
        assert!(size(&plain) < 1000 && size(&nested) > 2000);
    } else {
        assert!(size(&plain) <= size(&nested));
    }
    drop(container);
    let restored = bundle.restore(&plain, &[]).unwrap();
    assert!(restored.processes().contains(&restored.pid()));
});

fn into_the_groups_of_the_new_container(machine: &Machine) {
    let bundle = machine.bundle("renamed").shim(Shim::Ocicle).args(WAIT).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let images = bundle.images("images");
    container.checkpoint(&images, &[]).unwrap();
    drop(container);
    let other = format!("/{}-other", bundle.id());
    bundle
        .reconfigure(|configuration| configuration["linux"]["cgroupsPath"] = other.clone().into());
    let restored = bundle.restore(&images, &[]).unwrap();
    let pid = restored.pid();
    // It is in none of the groups that an adopted container is looked for in.
    std::mem::forget(restored);
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let inside = fs::read_to_string(machine.freezer(&other).join("cgroup.procs")).unwrap();
    bundle.end();
    let old = format!("/{}", bundle.id());
    assert!(!groups.lines().any(|group| group.ends_with(&old)), "{groups}");
    assert!(inside.lines().any(|line| line == pid.to_string()), "{groups}");
    machine.remove_cgroups(&other);
}

// crun 1.28 cannot be told to leave the groups alone.

#[test]
fn processes_come_back_into_the_groups_of_the_new_container_runc_v1() {
    support::on_machine(support::Variant::RuncV1, into_the_groups_of_the_new_container);
}

#[test]
fn processes_come_back_into_the_groups_of_the_new_container_runc_v2() {
    support::on_machine(support::Variant::RuncV2, into_the_groups_of_the_new_container);
}

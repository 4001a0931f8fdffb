//! ocicle is killed at every step of a checkpoint: the container lives, and the store is whole.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::support::{
    Container, Control, DEADLINE, Machine, doors, outcome, poll_for, run, status_of, try_run,
    wait_for_guardians,
};
use ocicle::fault::{POINTS, STOPPING};
use serde_json::Value;

/// Kills a checkpoint at a point, and waits until what cleans up behind it is done.
fn kill_at(point: &str, machine: &Machine, container: &Container<'_>, flags: &[&str]) -> Instant {
    let mut command = machine.checkpoint(&[container.bundle().id(), "--file-locks"]);
    command.args(flags).env("OCICLE_FAULT", point);
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let killed = Instant::now();
    assert_eq!(status.unwrap().signal(), Some(9), "the point {point} was not reached");
    wait_for_guardians();
    killed
}

/// The journal answers between two turns, so that asking is waiting.
fn wait_for_progress(control: &Control, before: &Value) {
    let begin = Instant::now();
    while control.status()["counter"].as_u64() <= before["counter"].as_u64() {
        assert!(begin.elapsed() < DEADLINE, "it does not go on");
    }
}

fn checkpoint(machine: &Machine, container: &Container<'_>, flags: &[&str]) -> String {
    let mut command = machine.checkpoint(&[container.bundle().id(), "--file-locks"]);
    run(command.args(flags)).trim().to_owned()
}

fn listed(machine: &Machine) -> Vec<String> {
    run(machine.ocicle().args(["list", "--quiet"])).lines().map(str::to_owned).collect()
}

/// Whatever is below the store is a version with a manifest, or no version.
fn assert_store_is_whole(machine: &Machine, id: &str) {
    for entry in fs::read_dir(machine.store().join(id)).into_iter().flatten().flatten() {
        let path = entry.path();
        if ["work", "container.json"].iter().any(|name| path.ends_with(name)) {
            continue;
        }
        assert!(path.join("ocicle-manifest.json").exists(), "{} is half-made", path.display());
    }
}

fn restore(machine: &Machine, reference: &str) {
    // A file, for the container inherits it: a pipe would stay open.
    let errors = machine.scratch().join("state/restore-errors");
    let mut command = machine.restore(&[reference]);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(File::create(&errors).unwrap());
    let status = command.status().unwrap();
    let said = fs::read_to_string(&errors).unwrap();
    fs::remove_file(errors).unwrap();
    assert!(status.success(), "{said}");
}

fn delete(machine: &Machine, id: &str) {
    let mut command = Command::new(machine.variant().runtime());
    let _ =
        try_run(command.arg("--root").arg(machine.state_root()).args(["delete", "--force", id]));
}

on_each_runtime!(killed_at_any_step_the_container_goes_on, |machine| {
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let control = container.control("/data");
    let mut versions = Vec::new();
    let in_memory = ["--leave-running", "--stage", "memory"];
    let of =
        |points: &[&'static str], flags| points.iter().map(move |point| (*point, flags)).collect();
    let mut kills: Vec<(&str, &[&str])> = of(&POINTS, &in_memory[..1]);
    kills.extend::<Vec<_>>(of(&["dumping", "dumped", "thawed"], &in_memory));
    for (point, flags) in kills {
        let before = control.status();
        let killed = kill_at(point, machine, &container, flags);
        control.status();
        println!("{point}: answers {:?} after the kill", killed.elapsed());
        wait_for_progress(&control, &before);
        assert!(!container.is_frozen(), "{point}");
        assert_eq!(container.status(), "running", "{point}");
        assert_eq!(doors(), Vec::<String>::new(), "{point}");
        assert_store_is_whole(machine, bundle.id());
        // Once the manifest is written, there is a checkpoint.
        if point == "manifest-written" {
            versions.push(format!("{}@v{}", bundle.id(), versions.len() + 1));
        }
        assert_eq!(listed(machine), versions, "{point}");
        versions.push(checkpoint(machine, &container, &["--leave-running"]));
    }
    let last = versions.pop().unwrap();
    drop(container);
    restore(machine, &last);
    assert_eq!(control.status()["db_check"], "ok");
    delete(machine, bundle.id());
    assert_eq!(doors(), Vec::<String>::new());
});

on_each_runtime!(killed_while_it_stops_a_container, |machine| {
    for point in POINTS.into_iter().chain(STOPPING) {
        let name = format!("journal-{point}");
        let bundle = machine.bundle(&name).args(["workload", "journal", "/data"]).make();
        let container = bundle.run();
        container.wait_for("/data/ready");
        let control = container.control("/data");
        let before = control.status();
        kill_at(point, machine, &container, &[]);
        let at = |point| POINTS.iter().position(|known| *known == point).unwrap_or(POINTS.len());
        // Its first manifest is written at the commit, before CRIU ends the container.
        let committed = at(point) >= at("committed") && point != "digest-written";
        assert_store_is_whole(machine, bundle.id());
        // Up to the commit the container goes on. At the commit it is either: CRIU asks whether to
        // end it, and nobody answers any more.
        if !committed || (point == "committed" && container.freezer().exists()) {
            wait_for_progress(&control, &before);
            assert!(!container.is_frozen(), "{point}");
            drop(container);
            continue;
        }
        drop(container);
        let reference = format!("{}@v1", bundle.id());
        assert!(listed(machine).contains(&reference), "{point}");
        restore(machine, &reference);
        let after = control.status();
        assert!(after["counter"].as_u64() >= before["counter"].as_u64(), "{point}");
        assert_eq!(after["db_check"], "ok", "{point}");
        delete(machine, bundle.id());
    }
});

/// The runtime, which does something more when its checkpoint is made.
fn runtime_that(machine: &Machine, then: &str) -> PathBuf {
    let name = machine.variant().runtime();
    let directory = machine.state_root().with_file_name("wrapped");
    fs::create_dir(&directory).unwrap();
    let text = format!(
        "#!/bin/sh\n{name} \"$@\"\nstatus=$?\ncase \" $* \" in *' checkpoint '*) {then};; esac\n\
         exit $status\n"
    );
    fs::write(directory.join(name), text).unwrap();
    fs::set_permissions(directory.join(name), fs::Permissions::from_mode(0o755)).unwrap();
    directory.join(name)
}

on_each_runtime!(a_runtime_that_fails_when_the_container_has_ended, |machine| {
    let failing = runtime_that(machine, "exit 7");
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let control = container.control("/data");
    let checkpoint = |flags: &[&str]| {
        let mut command = machine.checkpoint(&[bundle.id(), "--file-locks"]);
        outcome(command.args(flags).env("OCICLE_RUNTIME", &failing))
    };
    // As long as it lives, nothing is lost.
    let before = control.status();
    let (made, _, errors) = checkpoint(&["--leave-running"]);
    assert!(!made && errors.contains("exit status 7"), "{errors}");
    wait_for_progress(&control, &before);
    assert!(!container.is_frozen() && listed(machine).is_empty());
    let (made, said, errors) = checkpoint(&[]);
    assert!(made && errors.contains("the checkpoint is whole"), "{errors}");
    drop(container);
    restore(machine, said.trim());
    assert_eq!(control.status()["db_check"], "ok");
    delete(machine, bundle.id());
    fs::remove_dir_all(failing.parent().unwrap()).unwrap();
});

on_each_runtime!(what_cleans_up_holds_others_off, |machine| {
    let fifo = machine.state_root().with_file_name("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let slow = runtime_that(machine, &format!("read -r word <{}", fifo.display()));
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let mut command = machine.checkpoint(&[bundle.id(), "--file-locks", "--leave-running"]);
    command.env("OCICLE_RUNTIME", &slow);
    assert_eq!(status_of(command.env("OCICLE_FAULT", "thawed")).0, 128 + 9);
    // The guardian waits for the runtime, and thaws then.
    let mut command = machine.checkpoint(&[bundle.id(), "--file-locks", "--leave-running"]);
    let refused = outcome(&mut command).2;
    assert!(refused.contains("another checkpoint or restore of it is under way"), "{refused}");
    fs::write(&fifo, "go on\n").unwrap();
    wait_for_guardians();
    checkpoint(machine, &container, &["--leave-running"]);
    drop(container);
    fs::remove_file(fifo).unwrap();
    fs::remove_dir_all(slow.parent().unwrap()).unwrap();
});

on_each_runtime!(a_vfork_is_waited_for, |machine| {
    let bundle = machine.bundle("spawn").args(["workload", "spawn", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let parent = container.pid();
    let waits = || fs::read_to_string(format!("/proc/{parent}/wchan")).unwrap();
    poll_for("it does not wait for what it starts", || {
        let place = waits();
        (place.contains("clone") || place.contains("vfork")).then_some(())
    });
    let config = machine.state_root().join("ocicle.toml");
    fs::write(&config, "freeze-timeout = 0.5\n").unwrap();
    let mut command = machine.checkpoint(&[bundle.id()]);
    let refused = try_run(command.env("OCICLE_CONFIG", &config)).unwrap_err();
    fs::remove_file(config).unwrap();
    assert!(refused.contains("waits for a program that it starts by vfork"), "{refused}");
    assert!(refused.contains("hint: let the container run for a moment"), "{refused}");
    assert!(!container.is_frozen() && listed(machine).is_empty());

    // Somebody who froze it is not thawed behind his back.
    container.freeze();
    let mut command = machine.checkpoint(&[bundle.id()]);
    let refused = try_run(&mut command).unwrap_err();
    assert!(refused.contains("by vfork"), "{refused}");
    assert!(container.is_frozen());
    container.thaw();

    // Its end comes while ocicle waits for it.
    let mut command = machine.checkpoint(&[bundle.id(), "--leave-running"]);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut checkpoint = command.spawn().unwrap();
    File::options().write(true).open(bundle.path("/data/fifo")).unwrap();
    assert!(checkpoint.wait().unwrap().success());
    container.wait_for("/data/spawned");
    assert_eq!(listed(machine).len(), 1);
});

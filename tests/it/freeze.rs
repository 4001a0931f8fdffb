//! A container is frozen as long as somebody gets on with its dump, and no longer: whoever is
//! killed, and whatever hangs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{
    Bundle, Container, Control, DEADLINE, Machine, Shim, outcome, run, wait_for_exit,
    wait_for_guardians,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ocicle::fault::POINTS;
use serde_json::json;

/// A checkpoint that has come to a point, and stands there.
struct Halted<'a> {
    machine: &'a Machine,
    point: &'a str,
    checkpoint: Child,
    /// What it waits for.
    program: i32,
    place: PathBuf,
}

impl<'a> Halted<'a> {
    /// Begins one, and waits until it is there.
    fn at(point: &'a str, machine: &'a Machine, command: &mut Command) -> Self {
        let place = machine.state_root().with_file_name(format!("halted-{point}"));
        fs::create_dir(&place).unwrap();
        let (fifo, program) = (place.join("fifo"), place.join("program"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let text = format!(
            "#!/bin/sh\necho $$ >{0}/new; mv {0}/new {0}/pid; read -r word <{0}/fifo\n",
            place.display()
        );
        fs::write(&program, text).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        command.env("OCICLE_FAULT_RUN", format!("{point}:{}", program.display()));
        let errors = fs::File::create(place.join("errors")).unwrap();
        let checkpoint = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let checkpoint = checkpoint.spawn().unwrap();
        crate::support::wait_for_file(&place.join("pid"), checkpoint.id().cast_signed());
        let program = fs::read_to_string(place.join("pid")).unwrap().trim().parse().unwrap();
        Self { machine, point, checkpoint, program, place }
    }

    fn pid(&self) -> i32 {
        self.checkpoint.id().cast_signed()
    }

    /// Its guardian, or the guardian's deputy.
    fn child(&self, name: &str) -> i32 {
        children(self.pid()).into_iter().find(|pid| is_called(*pid, name)).unwrap_or_else(|| {
            panic!("{}: there is no {name}", self.point);
        })
    }

    /// Waits for its end, and for that of what cleans up behind it; what it has said.
    fn end(mut self) -> String {
        let _ = kill(Pid::from_raw(self.program), Signal::SIGKILL);
        self.checkpoint.wait().unwrap();
        wait_for_guardians();
        let said = fs::read_to_string(self.place.join("errors")).unwrap();
        fs::remove_dir_all(&self.place).unwrap();
        let doors = fs::read_dir("/run/ocicle").unwrap().flatten();
        let doors =
            doors.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"door-"));
        assert_eq!(doors.count(), 0, "{}: {}", self.point, self.machine.store().display());
        said
    }
}

fn children(of: i32) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let numbers = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let parent = |pid: &i32| {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let rest = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        rest.split_whitespace().nth(1).and_then(|parent| parent.parse::<i32>().ok())
    };
    numbers.filter(|pid| parent(pid) == Some(of)).collect()
}

fn is_called(pid: i32, name: &str) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).next() == Some(name.as_bytes())
}

fn end(pid: i32) {
    kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    wait_for_exit(pid);
}

fn checkpoint(bundle: &Bundle<'_>, machine: &Machine, flags: &[&str]) -> Command {
    let mut command = machine.ocicle();
    command.args(["checkpoint", bundle.id(), "--file-locks"]).args(flags);
    command.args(machine.variant().criu_flags());
    command
}

/// The journal answers between two turns, so that asking is waiting.
fn assert_goes_on(point: &str, control: &Control, container: &Container<'_>) {
    let before = control.status();
    let begin = Instant::now();
    while control.status()["counter"].as_u64() <= before["counter"].as_u64() {
        assert!(begin.elapsed() < DEADLINE, "{point}: it does not go on");
    }
    assert!(!container.is_frozen(), "{point}");
    assert_eq!(container.status(), "running", "{point}");
}

fn journal<'m>(machine: &'m Machine, name: &str) -> Bundle<'m> {
    machine.bundle(name).args(["workload", "journal", "/data"]).make()
}

/// Whatever is in the store is a version with a manifest.
fn assert_store_is_whole(point: &str, machine: &Machine, bundle: &Bundle<'_>) {
    for entry in fs::read_dir(machine.store().join(bundle.id())).into_iter().flatten().flatten() {
        let path = entry.path();
        let is_whole = ["work", "container.json"].iter().any(|name| path.ends_with(name))
            || path.join("ocicle-manifest.json").exists();
        assert!(is_whole, "{point}: {} is half-made", path.display());
    }
}

on_each_runtime!(ocicle_and_its_guardian_are_killed, |machine| {
    let bundle = journal(machine, "journal");
    let container = bundle.run();
    container.wait_for("/data/ready");
    let control = container.control("/data");
    for point in POINTS {
        let mut command = checkpoint(&bundle, machine, &["--leave-running"]);
        let halted = Halted::at(point, machine, &mut command);
        // Only then: it would take the guardian's end for an error, and say farewell.
        let (guardian, ocicle) = (halted.child("ocicle-guardian"), halted.pid());
        kill(Pid::from_raw(ocicle), Signal::SIGSTOP).unwrap();
        end(guardian);
        end(ocicle);
        halted.end();
        assert_goes_on(point, &control, &container);
        assert_store_is_whole(point, machine, &bundle);
        // Nobody holds the lock, and nothing is in the way.
        run(&mut checkpoint(&bundle, machine, &["--leave-running"]));
    }
});

on_each_runtime!(they_are_killed_while_a_container_is_stopped, |machine| {
    // Behind the commit it ends; up to there it goes on.
    for point in &POINTS[..POINTS.iter().position(|point| *point == "committed").unwrap()] {
        let bundle = journal(machine, &format!("journal-{point}"));
        let container = bundle.run();
        container.wait_for("/data/ready");
        let control = container.control("/data");
        let halted = Halted::at(point, machine, &mut checkpoint(&bundle, machine, &[]));
        let (guardian, ocicle) = (halted.child("ocicle-guardian"), halted.pid());
        kill(Pid::from_raw(ocicle), Signal::SIGSTOP).unwrap();
        end(guardian);
        end(ocicle);
        halted.end();
        assert_goes_on(point, &control, &container);
        assert_store_is_whole(point, machine, &bundle);
    }
});

/// A control group as systemd has one for a service, which ends by `KillMode=control-group`.
struct Service(PathBuf);

impl Service {
    fn new(machine: &Machine) -> Self {
        let unified = Path::new("/sys/fs/cgroup/unified");
        let top = if machine.variant().has_cgroup2() { unified.parent().unwrap() } else { unified };
        let group = top.join(machine.unique("service"));
        fs::create_dir(&group).unwrap();
        Self(group)
    }

    /// Has a program begin in it.
    fn holds(&self, command: &Command) -> Command {
        let mut inside = Command::new("sh");
        inside.args(["-c", "echo $$ >\"$0\"/cgroup.procs; exec \"$@\""]).arg(&self.0);
        inside.arg(command.get_program()).args(command.get_args());
        inside.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        inside
    }

    fn has(&self, pid: i32) -> bool {
        let processes = fs::read_to_string(self.0.join("cgroup.procs")).unwrap();
        processes.lines().any(|line| line == pid.to_string())
    }

    fn end(&self) {
        fs::write(self.0.join("cgroup.kill"), "1").unwrap();
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

on_each_runtime!(the_whole_service_is_killed, |machine| {
    let service = Service::new(machine);
    for point in ["at-the-door", "admitted", "frozen", "dumping", "snapshot-taken", "post-dump"] {
        let bundle = journal(machine, &format!("journal-{point}"));
        let container = bundle.run();
        container.wait_for("/data/ready");
        let control = container.control("/data");
        let mut command = service.holds(&checkpoint(&bundle, machine, &["--leave-running"]));
        let halted = Halted::at(point, machine, &mut command);
        // Killed at its work it would take processes with it, or not: a matter of luck.
        let criu = find_criu(halted.child("ocicle-guardian"));
        assert!(!service.has(criu), "{point}");
        service.end();
        halted.end();
        assert_goes_on(point, &control, &container);
        assert_store_is_whole(point, machine, &bundle);
    }
});

fn kill_all<'m>(machine: &'m Machine, bundle: &Bundle<'_>) -> Halted<'m> {
    let mut command = checkpoint(bundle, machine, &["--leave-running"]);
    let halted = Halted::at("frozen", machine, &mut command);
    let names = ["ocicle-guardian-deputy", "ocicle-guardian"];
    let [deputy, guardian] = names.map(|name| halted.child(name));
    kill(Pid::from_raw(halted.pid()), Signal::SIGSTOP).unwrap();
    [deputy, guardian, halted.pid()].into_iter().for_each(end);
    halted
}

on_each_runtime!(all_three_are_killed, |machine| {
    let bundle = machine.bundle("journal").shim(Shim::Ocicle);
    let bundle = bundle.args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let control = container.control("/data");
    let halted = kill_all(machine, &bundle);
    assert!(container.is_frozen());
    // The next call of the runtime, whatever it is.
    assert_eq!(container.status(), "running");
    halted_end(halted);
    assert_goes_on("frozen", &control, &container);
    // Whoever freezes it now is not thawed by what was noted then.
    container.freeze();
    assert_eq!(container.status(), "paused");
    assert!(container.is_frozen());
    container.thaw();

    // Or the next checkpoint.
    let halted = kill_all(machine, &bundle);
    assert!(container.is_frozen());
    halted_end(halted);
    run(&mut checkpoint(&bundle, machine, &["--leave-running"]));
    assert_goes_on("frozen", &control, &container);
});

/// Its door stays until the next one is opened.
fn halted_end(mut halted: Halted<'_>) {
    let _ = kill(Pid::from_raw(halted.program), Signal::SIGKILL);
    halted.checkpoint.wait().unwrap();
    fs::remove_dir_all(&halted.place).unwrap();
    ocicle::criu::door::remove_dead().unwrap();
}

on_each_runtime!(the_oom_killer_takes_the_guardian_last, |machine| {
    let bundle = journal(machine, "journal");
    let container = bundle.run();
    container.wait_for("/data/ready");
    let score = |pid: i32| -> i32 {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    let before = score(std::process::id().cast_signed());
    let mut command = Command::new("sh");
    let made = checkpoint(&bundle, machine, &["--leave-running"]);
    command.args(["-c", "echo 500 >/proc/self/oom_score_adj; exec \"$0\" \"$@\""]);
    command.arg(made.get_program()).args(made.get_args());
    command.envs(made.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let halted = Halted::at("frozen", machine, &mut command);
    for name in ["ocicle-guardian", "ocicle-guardian-deputy"] {
        assert!(score(halted.child(name)) <= before, "{name}");
    }
    // But not the runtime, and what it starts.
    for runtime in children(halted.child("ocicle-guardian")) {
        assert_eq!(score(runtime), 500);
        assert!(children(runtime).into_iter().all(|criu| score(criu) == 500));
    }
    fs::write(halted.place.join("fifo"), "go on\n").unwrap();
    halted.end();
});

/// A configuration by which a freeze may stand still for a moment only.
fn impatient(machine: &Machine) -> PathBuf {
    let config = machine.state_root().join("ocicle.toml");
    fs::write(&config, "max-freeze = 1.0\n").unwrap();
    config
}

on_each_runtime!(whatever_hangs_the_container_runs_again, |machine| {
    let config = impatient(machine);
    // ocicle hangs, while CRIU waits for it before the dump, works, or waits for it after that.
    for point in ["frozen", "dumping", "snapshot-taken", "post-dump"] {
        for flags in [&["--leave-running"][..], &[]] {
            let bundle = journal(machine, &format!("journal-{point}-{}", flags.len()));
            let container = bundle.run();
            container.wait_for("/data/ready");
            let control = container.control("/data");
            let mut command = checkpoint(&bundle, machine, flags);
            let halted = Halted::at(point, machine, command.env("OCICLE_CONFIG", &config));
            // It answers, though ocicle still waits.
            assert_goes_on(point, &control, &container);
            wait_for_exit(halted.pid());
            let said = halted.end();
            assert!(said.contains("the container was frozen for 1 s in which nothing"), "{said}");
            assert_goes_on(point, &control, &container);
            assert_store_is_whole(point, machine, &bundle);
        }
    }
    fs::remove_file(config).unwrap();
});

on_each_runtime!(criu_hangs, |machine| {
    let config = impatient(machine);
    let bundle = journal(machine, "journal");
    let container = bundle.run();
    container.wait_for("/data/ready");
    let control = container.control("/data");
    // It comes to its script, holds every process, and stops there.
    let mut command = checkpoint(&bundle, machine, &["--leave-running"]);
    let halted = Halted::at("post-dump", machine, command.env("OCICLE_CONFIG", &config));
    let guardian = halted.child("ocicle-guardian");
    let criu = find_criu(guardian);
    kill(Pid::from_raw(criu), Signal::SIGSTOP).unwrap();
    fs::write(halted.place.join("fifo"), "go on\n").unwrap();
    wait_for_exit(criu);
    let said = halted.end();
    assert!(said.contains("max-freeze in the configuration"), "{said}");
    assert_goes_on("post-dump", &control, &container);
    assert_store_is_whole("post-dump", machine, &bundle);
    run(&mut checkpoint(&bundle, machine, &["--leave-running"]));
    fs::remove_file(config).unwrap();
});

fn find_criu(above: i32) -> i32 {
    let mut todo = vec![above];
    while let Some(pid) = todo.pop() {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        if name.trim() == "criu" {
            return pid;
        }
        todo.extend(children(pid));
    }
    panic!("there is no CRIU");
}

on_each_runtime!(who_gets_on_is_not_disturbed, |machine| {
    let config = machine.state_root().join("ocicle.toml");
    fs::write(&config, "max-freeze = 0.5\n").unwrap();
    let bundle = journal(machine, "journal");
    let container = bundle.run();
    container.wait_for("/data/ready");
    // It uses a processor for three times as long.
    let program = bundle.dir().join("busy");
    let text = "#!/bin/bash\nend=$((SECONDS + 2)); while ((SECONDS < end)); do :; done\n";
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = checkpoint(&bundle, machine, &["--leave-running"]);
    command.env("OCICLE_CONFIG", &config);
    command.env("OCICLE_FAULT_RUN", format!("dumping:{}", program.display()));
    let begin = Instant::now();
    let (made, _, errors) = outcome(&mut command);
    assert!(made && begin.elapsed() > Duration::from_secs(1), "{errors}");
    fs::remove_file(config).unwrap();
});

/// Twenty checkpoints of a container that does this all the time, of which none may fail.
fn assert_all_pass(machine: &Machine, name: &str, script: &str) {
    let bundle = machine.bundle(name).args(["sh", "-c", script]).make();
    let container = bundle.run();
    container.wait_for("/data/started");
    for round in 0..20 {
        let (made, _, errors) = outcome(&mut checkpoint(&bundle, machine, &["--leave-running"]));
        assert!(made, "{name}, round {round}: {errors}");
        assert!(!container.is_frozen() && container.status() == "running");
    }
}

on_each_runtime!(names_that_are_removed_all_the_time, |machine| {
    // Each file has, for a while, no name by which it is open, and another one.
    let script = ": >/data/started; while :; do : >/data/one; exec 3</data/one; \
        ln /data/one /data/two; rm /data/one; exec 3<&-; rm /data/two; done";
    assert_all_pass(machine, "names", script);
});

on_each_runtime!(connections_that_come_all_the_time, |machine| {
    let script = "workload journal /data & while [ ! -e /data/ready ]; do :; done; \
        : >/data/started; for i in 1 2; do while :; do \
        workload ask /data/control status >/dev/null; done & done; wait";
    assert_all_pass(machine, "connections", script);
});

/// A container that may mount a FUSE file system, and does.
fn serving<'m>(machine: &'m Machine, way: &str) -> Bundle<'m> {
    let bundle = machine.bundle(way).args(["workload", "fuse", "/data", way]);
    let bundle = bundle.configure(|config| {
        let fuse = json!({ "path": "/dev/fuse", "type": "c", "major": 10, "minor": 229,
            "fileMode": 0o666, "uid": 0, "gid": 0 });
        config["linux"]["devices"] = json!([fuse]);
        let rule =
            json!({ "allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm" });
        config["linux"]["resources"] = json!({ "devices": [rule] });
        for set in ["bounding", "effective", "permitted"] {
            let set = config["process"]["capabilities"][set].as_array_mut().unwrap();
            set.push("CAP_SYS_ADMIN".into());
        }
    });
    bundle.make()
}

on_each_runtime!(nothing_waits_for_a_file_system_of_the_container, |machine| {
    for way in ["healthy", "silent", "detached"] {
        let bundle = serving(machine, way);
        let container = bundle.run();
        container.wait_for("/data/ready");
        for flags in [&[][..], &["--leave-running", "--on-unsupported", "substitute"]] {
            let begin = Instant::now();
            let mut command = machine.ocicle();
            command.args(["checkpoint", bundle.id()]).args(flags);
            let (made, _, errors) = outcome(command.args(machine.variant().criu_flags()));
            assert!(!made && begin.elapsed() < DEADLINE, "{way}: {errors}");
            // Without them `/dev/fuse` is named, as a file that CRIU cannot dump.
            let cause = "a process of the container serves the file system at /";
            assert!(errors.contains(cause) || flags.is_empty(), "{way}: {errors}");
            assert!(!container.is_frozen() && container.status() == "running", "{way}");
        }
        // Nor does who only looks.
        for command in ["files", "check"] {
            let begin = Instant::now();
            let (_, said, errors) = outcome(machine.ocicle().args([command, bundle.id()]));
            assert!(begin.elapsed() < DEADLINE, "{way}: {said}{errors}");
        }
    }
});

//! Seeing: what `ocicle inspect`, `ps` and `doctor` tell of real containers and checkpoints.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::{
    self, Machine, Refused, Shim, Variant, on_machine, outcome, poll_for, run, wait_for_program,
};
use nix::errno::Errno;
use serde_json::Value;

fn json(command: &mut Command) -> Value {
    let text = run(command);
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command:?}: {error}: {text}"))
}

fn inspect(machine: &Machine, what: impl AsRef<std::ffi::OsStr>) -> Value {
    json(machine.ocicle().arg("inspect").arg(what).args(["--format", "json"]))
}

/// The command lines, each joined with blanks, sorted.
fn commands(report: &Value) -> Vec<String> {
    let words = |process: &Value| -> String {
        let words = process["command"].as_array().expect("a command line");
        let words: Vec<&str> = words.iter().map(|word| word.as_str().unwrap()).collect();
        words.join(" ")
    };
    let mut found: Vec<String> =
        report["processes"].as_array().unwrap().iter().map(words).collect();
    found.sort();
    found
}

/// Packs a checkpoint as podman does: the images in `checkpoint/`.
fn pack(images: &Path, archive: &Path, how: &str) {
    let transform = "s,^\\.,checkpoint,";
    run(Command::new("tar")
        .arg("-C")
        .arg(images)
        .args([how, "--sort=name", "--transform", transform, "-cf"])
        .arg(archive)
        .arg("."));
}

on_each_runtime!(a_checkpoint_is_told_wherever_it_lies, |machine: &Machine| {
    let script = "sleep 1000 & exec sleep 2000";
    let bundle = machine.bundle("seen").args(["sh", "-c", script]).shim(Shim::Ocicle).make();
    let container = bundle.run();
    poll_for("it starts nothing", || (container.processes().len() > 1).then_some(()));
    container.processes().into_iter().for_each(|pid| wait_for_program(pid, "sleep"));
    let id = bundle.id().to_owned();
    run(machine
        .ocicle()
        .args(["checkpoint", "--leave-running"])
        .args(machine.variant().criu_flags())
        .arg(&id));
    let version = machine.store().join(&id).join("v1");

    // In the store, and by the path of its directory.
    let stored = inspect(machine, format!("{id}@v1"));
    assert_eq!(stored["schema"], 1);
    assert_eq!(stored["form"], "directory");
    assert_eq!(stored["container"], id.as_str());
    assert_eq!(stored["engine"], "runtime");
    assert_eq!(stored["ocicle"]["left"], "running");
    assert_eq!(stored["warnings"], serde_json::json!([]));
    let seen = commands(&stored);
    assert!(seen.contains(&"sleep 1000".to_owned()), "{seen:?}");
    assert!(seen.iter().any(|line| line.ends_with("sleep 2000")), "{seen:?}");
    assert!(stored["parts"][0]["bytes"].as_u64().unwrap() > 0);
    assert!(stored["timeline"].as_array().unwrap().iter().any(|step| step["name"] == "dump"));
    assert_eq!(inspect(machine, &version), stored);

    // The memory of the processes is all of the memory.
    let memory: u64 = stored["processes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|process| process["memory"].as_u64().unwrap())
        .sum();
    let pages: u64 = fs::read_dir(&version)
        .unwrap()
        .map(Result::unwrap)
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("pages-"))
        .map(|entry| entry.metadata().unwrap().len())
        .sum();
    assert_eq!((memory, &stored["sizes"]["memory"]), (pages, &Value::from(pages)));

    // In archives; in one of which the memory comes before what describes it.
    for (name, how) in [
        ("plain.tar", "--format=gnu"),
        ("gz.tar.gz", "--gzip"),
        ("zst.tar.zst", "--zstd"),
        ("pax.tar", "--format=pax"),
    ] {
        let archive = machine.scratch().join(name);
        pack(&version, &archive, how);
        let report = inspect(machine, &archive);
        assert_eq!(report["form"], "archive", "{name}");
        assert_eq!(commands(&report), seen, "{name}");
        assert_eq!(report["files"], stored["files"], "{name}");
        assert_eq!(report["warnings"], serde_json::json!([]), "{name}");
        fs::remove_file(&archive).unwrap();
    }
    let reversed = machine.scratch().join("reversed.tar");
    let mut names: Vec<_> =
        fs::read_dir(&version).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    names.reverse();
    run(Command::new("tar").arg("-C").arg(&version).arg("-cf").arg(&reversed).args(&names));
    assert_eq!(commands(&inspect(machine, &reversed)), seen);

    // What is missing or damaged is a warning; a person reads it, without colours on no terminal.
    run(Command::new("tar")
        .args(["--delete", "-f"])
        .arg(&reversed)
        .args(["ocicle-rootfs.0.tar.zst", "ocicle-files.json"]));
    let told = run(machine.ocicle().arg("inspect").arg(&reversed));
    assert!(told.contains("ocicle-rootfs.0.tar.zst is missing"), "{told}");
    assert!(told.contains("\nPROCESSES\n1 "), "{told}");
    assert!(told.contains("─ ") && told.contains("sleep 1000"), "{told}");
    assert!(!told.contains('\x1b'), "{told}");
    fs::remove_file(&reversed).unwrap();

    let drawn = run(machine.ocicle().args(["inspect", "--timeline"]).arg(format!("{id}@v1")));
    assert!(drawn.contains("\nTIMELINE\n") && drawn.contains('█'), "{drawn}");
});

on_each_runtime!(containers_are_listed_with_what_they_are, |machine: &Machine| {
    let bundle = machine.bundle("listed").args(["sleep", "1000"]).shim(Shim::Ocicle).make();
    let container = bundle.run();
    let id = bundle.id().to_owned();
    let listed = || {
        let all = json(machine.ocicle().args(["ps", "--format", "json"]));
        assert_eq!(all["schema"], 1);
        let found =
            all["containers"].as_array().unwrap().iter().find(|one| one["id"] == id.as_str());
        found.unwrap_or_else(|| panic!("{id} is not among {all}")).clone()
    };
    let found = listed();
    assert_eq!(found["engine"], "runtime");
    assert_eq!(found["runtime"], machine.variant().runtime());
    assert_eq!((&found["status"], &found["frozen"]), (&"running".into(), &false.into()));
    assert_eq!(found["pid"], container.pid());
    assert_eq!(found["bundle"], bundle.dir().to_str().unwrap());
    assert_eq!(found["checkpoints"], serde_json::json!([]));

    container.freeze();
    let found = listed();
    assert_eq!((&found["status"], &found["frozen"]), (&"paused".into(), &true.into()));
    container.thaw();

    let mut checkpoint = machine.ocicle();
    run(checkpoint.arg("checkpoint").args(machine.variant().criu_flags()).arg(&id));
    let found = listed();
    assert_eq!(found["checkpoints"][0]["name"], "v1");
    assert_eq!((&found["status"], &found["frozen"]), (&"stopped".into(), &false.into()));
    let table = run(machine.ocicle().arg("ps"));
    let row = table.lines().find(|line| line.contains(&id)).unwrap();
    assert!(row.starts_with("runtime") && row.contains("stopped"), "{row}");
});

/// What a command prints on a terminal.
fn on_terminal(command: &Command, no_colour: Option<&str>) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let line: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    let mut script = Command::new("script");
    script.args(["--quiet", "--return", "--command", &line.join(" "), "/dev/null"]);
    script.env_remove("NO_COLOR").env("TERM", "xterm");
    script.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    script.envs(no_colour.map(|value| ("NO_COLOR", value)));
    run(&mut script)
}

on_each_runtime!(long_work_is_shown_on_a_terminal, |machine: &Machine| {
    let fill =
        "head -c 50000000 /dev/urandom >/data/big; touch /data/ready; exec tail -f /dev/null";
    let bundle = machine.bundle("big").args(["sh", "-c", fill]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let flags = machine.variant().criu_flags();
    let checkpoint = |more: &[&str]| {
        let mut command = machine.ocicle();
        command.arg("checkpoint").args(flags).args(more).arg(bundle.id());
        command
    };
    // It takes longer than what needs no bar.
    let slow = bundle.dir().join("slow");
    fs::write(&slow, "#!/bin/sh\nexec timeout 0.6 tail -f /dev/null\n").unwrap();
    fs::set_permissions(&slow, fs::Permissions::from_mode(0o755)).unwrap();
    let slowed = |command: &mut Command, point: &str| {
        command.env("OCICLE_FAULT_RUN", format!("{point}:{}", slow.display()));
        on_terminal(command, None)
    };
    let shown = slowed(&mut checkpoint(&["--leave-running"]), "thawed");
    assert!(shown.contains("packing ") && shown.contains("MiB"), "{shown}");
    assert!(shown.contains(&format!("{}@v1", bundle.id())), "{shown}");
    fs::remove_file(bundle.path("data/big")).unwrap();
    let (done, output, errors) = outcome(&mut checkpoint(&[]));
    assert!(done && output == format!("{}@v2\n", bundle.id()), "{output}{errors}");
    assert!(!errors.contains("packing") && !errors.contains('\r'), "{errors}");
    drop(container);
    let mut restore = machine.ocicle();
    restore.arg("restore").args(flags).arg(format!("{}@v1", bundle.id()));
    let shown = slowed(&mut restore, "planned");
    assert!(shown.contains("restoring "), "{shown}");
    let inspected = on_terminal(machine.ocicle().args(["inspect", bundle.id()]), None);
    assert!(inspected.contains("\x1b[") && inspected.contains("PROCESSES"), "{inspected}");
    bundle.end();
});

on_each_runtime!(a_doctor_finds_what_is_missing, |machine: &Machine| {
    let (healthy, report, errors) = outcome(machine.ocicle().args(["doctor", "--format", "json"]));
    let report: Value = serde_json::from_str(&report).unwrap_or_else(|_| panic!("{errors}"));
    assert!(healthy, "{report}");
    assert_eq!((&report["schema"], &report["healthy"]), (&1.into(), &true.into()));
    let finding = |report: &Value, what: &str| {
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|finding| finding["what"] == what);
        found.unwrap_or_else(|| panic!("nothing of {what}: {report}")).clone()
    };
    for what in ["kernel", "capabilities", "criu", "criu check", "real runtime", "store"] {
        assert_eq!(finding(&report, what)["verdict"], "good", "{what}");
    }
    let version = if machine.variant().has_cgroup2() { "version 2" } else { "version 1" };
    assert!(finding(&report, "cgroups")["found"].as_str().unwrap().starts_with(version));
    for engine in ["podman", "dockerd", "containerd", "runc", "crun"] {
        finding(&report, engine);
    }

    // With nothing on PATH, what is missing is named, with advice, and the status says so.
    let (healthy, told, _) = outcome(
        machine.ocicle().env("PATH", "/nonexistent").env_remove("OCICLE_RUNTIME").arg("doctor"),
    );
    assert!(!healthy);
    let line = |what: &str| {
        let has = |line: &&str| line.split_whitespace().nth(1) == Some(what);
        told.lines().find(has).unwrap_or_else(|| panic!("{told}"))
    };
    assert!(line("criu").starts_with("missing") && line("criu").contains("install CRIU"), "{told}");
    assert!(line("real").starts_with("missing"), "{told}");

    // Colours are for a terminal, and for one that wants them.
    for command in ["doctor", "ps"] {
        let shown = |no_colour| on_terminal(machine.ocicle().arg(command), no_colour);
        assert!(shown(None).contains("\x1b["), "{command}");
        assert!(!shown(Some("1")).contains('\x1b'), "{command}");
    }

    // A configuration that cannot be read is a finding, not the end.
    let broken = machine.scratch().join("broken.toml");
    fs::write(&broken, "colour = 1\n").unwrap();
    let (healthy, told, _) = outcome(machine.ocicle().env("OCICLE_CONFIG", &broken).arg("doctor"));
    assert!(!healthy && told.starts_with("missing  configuration"), "{told}");
    fs::remove_file(&broken).unwrap();
});

/// What cannot be read is refused at once, with advice.
#[test]
fn what_is_no_checkpoint_is_refused() {
    support::on_machine(support::Variant::RuncV1, |machine| {
        let file = machine.scratch().join("file");
        fs::write(&file, "no archive").unwrap();
        // A zstd frame that says it needs a window of 2 GiB.
        let window = machine.scratch().join("window");
        fs::write(&window, [&[0x28, 0xb5, 0x2f, 0xfd, 0, 0xa8][..], &[0; 64]].concat()).unwrap();
        // A member that says it has an extension of 8 GiB.
        let long = machine.scratch().join("long");
        let mut header = [0u8; 512];
        header[..4].copy_from_slice(b"name");
        header[124..135].copy_from_slice(b"77777777777");
        header[156] = b'x';
        header[257..263].copy_from_slice(b"ustar\0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..154].copy_from_slice(format!("{sum:06o}").as_bytes());
        fs::write(&long, header).unwrap();
        for path in [&file, &window, &long] {
            let (ended_well, output, errors) = outcome(machine.ocicle().arg("inspect").arg(path));
            assert!(!ended_well && output.is_empty(), "{}: {output}", path.display());
            assert!(errors.starts_with("error: inspecting "), "{errors}");
            fs::remove_file(path).unwrap();
        }
    });
}

/// Nothing else tells which descriptors are one open file.
#[test]
fn a_kernel_without_kcmp_is_found_by_the_doctor() {
    on_machine(Variant::RuncV2, |machine| {
        let told = || outcome(machine.ocicle().args(["doctor", "--format", "json"])).1;
        let advice = "a kernel with CONFIG_CHECKPOINT_RESTORE is needed";
        assert!(!told().contains(advice), "{}", told());
        Refused::new(libc::SYS_kcmp, Errno::ENOSYS).install();
        assert!(told().contains(advice), "{}", told());
    });
}

//! `ocicle check` tells the truth: what it foretells is what a checkpoint then does.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use crate::support::{self, Bundle, Container, Machine, Shim, Told, outcome};
use serde_json::{Value, json};

/// A bundle in which a workload may get into any trouble.
fn bundle<'m>(machine: &'m Machine, name: &str, kind: &str) -> support::BundleBuilder<'m> {
    let capabilities = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_ADMIN",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SYS_ADMIN",
        "CAP_SYS_PTRACE",
    ];
    machine.bundle(name).args(["workload", "trouble", kind, "/data"]).configure(|config| {
        config["process"]["capabilities"] = json!({
            "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
        });
        config["linux"]["resources"] = json!({ "devices": [{ "allow": true, "access": "rwm" }] });
    })
}

/// A configuration with CRIU's own limit for deleted files.
fn configuration(machine: &Machine) -> PathBuf {
    let path = machine.state_root().with_extension("toml");
    fs::write(&path, "[criu]\nghost-limit = \"1M\"\n").unwrap();
    path
}

fn ocicle(machine: &Machine, command: &str, id: &str, options: &[&str]) -> Command {
    let mut ocicle = machine.call(command, &[id]);
    ocicle.env("OCICLE_CONFIG", configuration(machine)).args(options).arg("--leave-running");
    ocicle
}

/// What `ocicle check` says.
fn check(machine: &Machine, id: &str, options: &[&str]) -> Value {
    let output = ocicle(machine, "check", id, options).args(["--format", "json"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{said}"));
    let status = if report["works"] == true { 0 } else { 3 };
    assert_eq!(output.status.code(), Some(status), "{report:#}");
    report
}

/// Every problem of a report.
fn problems(report: &Value) -> Vec<String> {
    let files = report["files"].as_array().unwrap().iter();
    let of_files = files.filter_map(|file| file["problems"].as_array()).flatten();
    let all = of_files.chain(report["problems"].as_array().unwrap());
    all.map(|one| one["what"].as_str().unwrap().to_owned()).collect()
}

/// Compares what is foretold with what happens, and returns the report.
#[track_caller]
fn assert_true(
    container: &Container<'_>,
    machine: &Machine,
    what: &str,
    options: &[&str],
) -> Value {
    let id = container.bundle().id();
    let report = check(machine, id, options);
    let (works, _, errors) = outcome(&mut ocicle(machine, "checkpoint", id, options));
    assert_eq!(
        report["works"] == true,
        works,
        "{what} {options:?}: foretold {:#?}, and then:\n{errors}",
        problems(&report)
    );
    assert_eq!(container.status(), "running", "{what}");
    report
}

/// A trouble: its name, what is foretold (nothing if it is none), and the option that helps.
type Trouble = (&'static str, Option<&'static str>, Option<&'static str>);

/// Makes each trouble, in a container of its own, and compares.
fn assert_all_true(machine: &Machine, troubles: &[Trouble]) {
    for (kind, foretold, option) in troubles {
        let bundle = bundle(machine, kind, kind).make();
        let container = bundle.run();
        container.wait_for("/data/ready");
        let report = assert_true(&container, machine, kind, &[]);
        let problems = problems(&report);
        match foretold {
            None => assert_eq!(problems, [""; 0], "{kind}"),
            Some(words) => {
                assert!(problems.iter().all(|one| one.contains(words)), "{kind}: {problems:#?}");
                assert!(!problems.is_empty(), "{kind}");
            }
        }
        if let Some(option) = option {
            let report = assert_true(&container, machine, kind, &[option]);
            assert_eq!(report["works"], true, "{kind} {option}: {report:#}");
        }
    }
    remove_configuration(machine);
}

fn remove_configuration(machine: &Machine) {
    let _ = fs::remove_file(configuration(machine));
}

on_each_runtime!(what_is_said_of_sockets, |machine| {
    assert_all_true(
        machine,
        &[
            ("connected", Some("is connected"), Some("--tcp-established")),
            ("backlog", Some("connect"), None),
            ("time-wait", None, None),
            ("corked", Some("put together"), None),
            ("raw", None, None),
            ("packet", None, None),
            ("vsock", Some("vsock"), None),
            ("mptcp", Some("mptcp"), None),
            ("netlink", None, None),
            ("netlink-unread", Some("not been read"), None),
            ("unix-pending", None, None),
            ("unix-pending-closed", Some("not been accepted"), None),
            ("unix-half", None, None),
        ],
    );
});

on_each_runtime!(what_is_said_of_files_by_their_paths, |machine| {
    assert_all_true(
        machine,
        &[
            ("none", None, None),
            ("lock", Some("holds a lock"), Some("--file-locks")),
            ("posix-lock", Some("holds a lock"), Some("--file-locks")),
            ("ghost", Some("is deleted"), None),
            ("ghost-mapped", Some("is deleted"), None),
            ("sparse-ghost", None, None),
            ("unlinked", None, None),
            ("lower-removed", None, None),
            ("directory-removed", None, None),
            ("covered", Some("name was removed"), None),
            ("overmounted", Some("mounted over"), None),
            ("taken", Some("another file"), None),
        ],
    );
});

on_each_runtime!(what_is_said_of_other_kinds_of_files, |machine| {
    assert_all_true(
        machine,
        &[
            ("inotify-overlay", None, None),
            ("inotify-etc", None, None),
            ("inotify-tmpfs", None, None),
            ("packet-pipe", Some("pipe of packets"), None),
            ("pidfd", None, None),
            ("pidfd-thread", Some("thread"), None),
            ("io-uring", Some("io_uring"), None),
            ("io-uring-mapped", Some("io_uring"), None),
            ("userfaultfd", Some("userfaultfd"), None),
            ("device", Some("character device 10:229"), None),
            ("block-device", Some("block device 7:0"), None),
            ("tun", None, None),
            ("terminal", None, None),
            ("other-namespace", Some("namespace"), None),
        ],
    );
});

on_each_runtime!(files_that_are_left_out, |machine| {
    for kind in ["userfaultfd", "packet-pipe", "io-uring"] {
        let bundle = bundle(machine, kind, kind).make();
        let container = bundle.run();
        container.wait_for("/data/ready");
        let report = assert_true(&container, machine, kind, &["--on-unsupported", "substitute"]);
        let can_be = kind != "io-uring";
        assert_eq!(report["works"] == true, can_be, "{kind}: {report:#}");
        let mut files = report["files"].as_array().unwrap().iter();
        assert_eq!(files.any(|file| file["dump"] == "left-out"), can_be, "{kind}: {report:#}");
        if kind == "userfaultfd" {
            let report = assert_true(&container, machine, kind, &["-s", "1:3=null"]);
            assert_eq!(report["works"], true, "{report:#}");
        }
    }
    remove_configuration(machine);
});

// As `runc spec`, `crun spec` and podman write it, without a namespace of control groups and with one.
on_each_runtime!(control_groups_that_the_bundle_mounts, |machine| {
    for namespaced in [false, true] {
        let name = if namespaced { "namespaced" } else { "plain" };
        let bundle = machine.bundle(name).args(["tail", "-f", "/dev/null"]).configure(|config| {
            let options = ["nosuid", "noexec", "nodev", "relatime", "ro"];
            config["mounts"].as_array_mut().unwrap().push(json!({
                "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
                "options": options,
            }));
            if namespaced {
                let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.push(json!({ "type": "cgroup" }));
            }
        });
        let bundle = bundle.make();
        let container = bundle.run();
        let report = assert_true(&container, machine, name, &[]);
        assert_eq!(problems(&report), [""; 0], "{name}");
    }
    remove_configuration(machine);
});

on_each_runtime!(processes_and_mounts, |machine| {
    assert_all_true(
        machine,
        &[
            ("ramfs", Some("ramfs"), None),
            ("tmpfs", None, None),
            ("bind", None, None),
            ("nested-pid", Some("process namespace"), None),
            ("nested-uts", Some("uts namespace"), None),
            ("nested-user", Some("user namespace"), None),
            ("nested-ipc", Some("ipc namespace"), None),
            ("nested-mount", None, None),
            // crun does not have CRIU leave networks alone.
            (
                "nested-net",
                (machine.variant().runtime() == "runc").then_some("network namespace"),
                None,
            ),
            ("traced", Some("is traced"), None),
            ("zombie", None, None),
        ],
    );
});

/// Makes sockets in the network namespace of a bundle, outside the container.
fn in_network<T: Send + 'static>(
    bundle: &Bundle<'_>,
    make: impl FnOnce() -> T + Send + 'static,
) -> T {
    let namespace = File::open(bundle.network()).unwrap();
    let inside = std::thread::spawn(move || {
        nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        make()
    });
    inside.join().unwrap()
}

on_each_runtime!(connections_to_the_outside, |machine| {
    for (kind, option) in [("unix-stream", false), ("unix-dgram", true)] {
        let outside = machine.scratch().join("outside");
        fs::create_dir(&outside).unwrap();
        let bundle = bundle(machine, kind, kind).bind(&outside, "/data/host").make();
        let at = outside.clone();
        let (stream, _dgram) = in_network(&bundle, move || {
            let dgram = UnixDatagram::bind(at.join("dgram")).unwrap();
            (UnixListener::bind(at.join("stream")).unwrap(), dgram)
        });
        let container = bundle.run();
        container.wait_for("/data/ready");
        let _accepted = (kind == "unix-stream").then(|| stream.accept().unwrap());
        let report = assert_true(&container, machine, kind, &[]);
        assert!(problems(&report)[0].contains("outside the container"), "{report:#}");
        let report = assert_true(&container, machine, kind, &["--ext-unix-sk"]);
        assert_eq!(report["works"] == true, option, "{kind}: {report:#}");
        drop(container);
        fs::remove_dir_all(&outside).unwrap();
    }
    remove_configuration(machine);
});

/// The open file of a report with that name.
fn file<'r>(report: &'r Value, name: &str) -> &'r Value {
    let files = report["files"].as_array().unwrap();
    let named = |file: &&Value| file["name"].as_str().is_some_and(|is| is.ends_with(name));
    files.iter().find(named).unwrap_or_else(|| panic!("no {name}: {report:#}"))
}

fn remarks(report: &Value) -> Vec<&str> {
    let all = report["remarks"].as_array().unwrap();
    all.iter().map(|one| one["what"].as_str().unwrap()).collect()
}

on_each_runtime!(who_keeps_and_who_replaces, |machine| {
    let shared = machine.scratch().join("shared");
    fs::create_dir(&shared).unwrap();
    let log = machine.scratch().join("host.log");
    let bundle = machine
        .bundle("hold")
        .args(["sh", "-c", "exec 7>/shared/x 8>/dev/shm/y; exec workload hold /data"])
        .bind(&shared, "/shared")
        .annotation("org.ocicle.substitute", "/shared/x=null; /data/log=file:/etc/log")
        .make();
    let container = bundle.run_into(File::create(&log).unwrap());
    container.wait_for("/data/ready");
    let report = assert_true(&container, machine, "hold", &[]);
    assert_eq!(file(&report, "/data/data")["held"], json!({"by": "snapshot", "part": "/"}));
    assert_eq!(file(&report, "/shared/x")["held"], json!({"by": "nothing"}));
    assert_eq!(file(&report, "/dev/shm/y")["held"], json!({"by": "criu"}));
    assert_eq!(file(&report, "/data/deleted")["held"], json!({"by": "criu"}));
    assert_eq!(file(&report, "host.log")["dump"], "left-out");
    let rule = json!({"rule": "/shared/x=null", "from": "annotation org.ocicle.substitute"});
    assert_eq!(file(&report, "/shared/x")["rule"], rule);
    let remarks = remarks(&report);
    let has = |words: &str| remarks.iter().any(|one| one.contains(words));
    assert!(has("needs something in its place"), "{remarks:#?}");
    assert!(has("needs the administrator's leave"), "{remarks:#?}");
    let all = check(machine, bundle.id(), &["--volumes", "all"]);
    let held = json!({"by": "snapshot", "part": "/shared"});
    assert_eq!(file(&all, "/shared/x")["held"], held);
    drop(container);
    fs::remove_file(&log).unwrap();
    fs::remove_dir_all(&shared).unwrap();
    remove_configuration(machine);
});

on_each_runtime!(who_else_writes, |machine| {
    let shared = machine.scratch().join("shared");
    fs::create_dir(&shared).unwrap();
    let other = bundle(machine, "other", "none").bind(&shared, "/elsewhere").make();
    let other = other.run();
    other.wait_for("/data/ready");
    let bundle = bundle(machine, "one", "none").bind(&shared, "/shared").make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let script = "exec 3>\"$1/by-us\" 4>>\"$2\"; echo; exec cat >/dev/null";
    let mut writer = Command::new("sh");
    writer.args(["-c", script, "sh"]).arg(&shared).arg(bundle.path("/data/ready"));
    let mut writer = Process(writer.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap());
    writer.0.stdout.take().unwrap().read_exact(&mut [0]).unwrap();

    let volumes = |rule| ["--volumes=all", rule];
    let report = assert_true(&container, machine, "shared", &volumes("--shared=warn"));
    let remarks = remarks(&report);
    let has = |words: &[&str]| {
        assert!(
            remarks.iter().any(|one| words.iter().all(|words| one.contains(words))),
            "{words:?} in {remarks:#?}"
        );
    };
    has(&["/shared is part of the snapshot", "workload", "-other", "can write it too"]);
    let pid = format!("pid {} of the host", writer.0.id());
    has(&["/shared/by-us: ", &pid, "fd 3", "open for writing"]);
    has(&["/data/ready: ", &pid, "fd 4", "open for writing"]);
    drop(writer);
    let report = assert_true(&container, machine, "shared", &volumes("--shared=freeze"));
    assert_eq!(report["works"], true, "{report:#}");
    assert!(report["remarks"].to_string().contains("it is frozen with it"), "{report:#}");
    let report = assert_true(&container, machine, "shared", &volumes("--shared=error"));
    assert_eq!(report["works"], false, "{report:#}");
    assert!(problems(&report)[0].contains("can write it too"), "{report:#}");
    drop((other, container));
    fs::remove_dir_all(&shared).unwrap();
    remove_configuration(machine);
});

/// A process that ends when it is dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn session(machine: &Machine, bundle: &Bundle<'_>, script: &str) -> Process {
    let mut command = machine.runtime(Shim::Bare, &bundle.log());
    command.args(["exec", bundle.id(), "sh", "-c", script]);
    Process(command.stdin(Stdio::null()).spawn().unwrap())
}

on_each_runtime!(sessions_that_came_by_exec, |machine| {
    let bundle = bundle(machine, "one", "none").make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let _session = session(machine, &bundle, "touch /data/session; exec tail -f /dev/null");
    container.wait_for("/data/session");
    let report = assert_true(&container, machine, "session", &[]);
    let remarks = remarks(&report);
    assert!(
        remarks.iter().any(|one| one.contains("came into the container by exec")),
        "{remarks:?}"
    );
    drop(container);
    remove_configuration(machine);
});

on_each_runtime!(what_a_user_reads, |machine| {
    let mut told = Told::new(machine);
    let port = regex::Regex::new(r"127.0.0.1:[3-6]\d{4}").unwrap();
    for kind in ["none", "connected", "ghost"] {
        let bundle = bundle(machine, kind, kind).make();
        let container = bundle.run();
        container.wait_for("/data/ready");
        let (works, output, errors) = outcome(&mut ocicle(machine, "check", bundle.id(), &[]));
        assert_eq!((works, errors.as_str()), (kind == "none", ""));
        let output = port.replace_all(&output, "127.0.0.1:PORT");
        told.add(&format!("check of {kind}"), &output);
    }
    remove_configuration(machine);
    told.compare("check");
});

on_each_runtime!(what_is_shared_can_be_seen, |machine| {
    let bundle = machine.bundle("hold").args(["workload", "hold", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let mut told = Told::new(machine);
    let (_, output, errors) = outcome(machine.ocicle().args(["files", "--tree", bundle.id()]));
    assert_eq!(errors, "");
    // Numbers that differ from run to run, and from runtime to runtime.
    let replaced = |text: &str, pattern: &str, by: &str| {
        regex::Regex::new(pattern).unwrap().replace_all(text, by).into_owned()
    };
    let plain = replaced(&output, r"─ \d+ workload", "─ P workload");
    let plain = replaced(&plain, r"(unix \w+) \[\d+\]", "$1 [N]");
    let plain = replaced(&plain, r"127.0.0.1:\d+", "127.0.0.1:PORT");
    told.add("a running container", &plain);
    let mut checkpoint = machine.checkpoint(&[bundle.id()]);
    assert!(outcome(&mut checkpoint).0);
    drop(container);
    let reference = format!("{}@v1", bundle.id());
    let (_, output, errors) = outcome(machine.ocicle().args(["files", "--tree", &reference]));
    assert_eq!(errors, "");
    // CRIU's identifiers, and those of sockets, differ from run to run.
    let shared = output.lines().filter(|line| line.contains("reg /data/data O_RDWR")).count();
    assert_eq!(shared, 2, "both processes have it: {output}");
    assert!(output.contains("/data/data O_RDWR, shared with "), "{output}");
    told.compare("files-tree");
});

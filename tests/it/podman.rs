//! Below podman: its own commands, unchanged, with the bare runtime and with ocicle.
//!
//! What podman itself gets wrong is shown with the bare runtime, in the same test.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::support::{
    self, IMAGE, Machine, Podman, Shim, Terminal, first_number, holders, in_shell, lending,
    outcome, run,
};
use regex::Regex;

const NONE: [&str; 2] = ["--network", "none"];

/// Counts in memory and in a file that stays open, as fast as it can.
const LOG: &str = "i=0; while :; do i=$((i+1)); echo $i >&3; done";

/// Counts in memory and in a file of a volume, which is opened for each line.
const VOLUME: &str = "i=0; while :; do i=$((i+1)); echo $i >>/vol/log; done";

/// Changes a file of the image, then waits without a file of its own.
const CONF: &str = "echo changed >/etc/conf; touch /done; while :; do read line; done";

/// Makes a test for podman with each runtime that it is used with.
macro_rules! with_podman {
    ($name:ident, $body:expr) => {
        with_podman!($name, $body, runc_v1 RuncV1, crun_v2 CrunV2);
    };
    ($name:ident, $body:expr, $($case:ident $variant:ident),*) => {
        mod $name {
            use super::*;

            $(
                #[test]
                fn $case() {
                    support::on_machine(support::Variant::$variant, $body);
                }
            )*
        }
    };
}

/// Both runtimes, one after the other: podman's store is one.
fn compare(machine: &Machine, body: impl Fn(&Podman<'_>) -> bool) {
    assert!(body(&Podman::new(machine, Shim::Ocicle)), "with ocicle");
    assert!(
        !body(&Podman::new(machine, Shim::Bare)),
        "the bare runtime has learnt it: this test and the README can go"
    );
}

fn start(podman: &Podman<'_>, name: &str, options: &[&str], program: &str) {
    podman.start(name, &[&NONE[..], options, &[IMAGE, "sh", "-c", program]].concat());
}

/// Makes an archive of a container that goes on, and removes the container and its volume.
fn export_live(podman: &Podman<'_>, archive: &str) {
    podman.run(&["container", "checkpoint", "--leave-running", "-e", archive, "web"]);
    podman.remove("web");
    podman.run(&["volume", "rm", "--force", "data"]);
}

with_podman!(a_log_that_grows_while_it_is_exported, |machine| {
    compare(machine, |podman| {
        start(podman, "web", &[], &format!("exec 3>/log; {LOG}"));
        podman.wait_for_lines("web", "/log", 100);
        let archive = podman.file("web.tar.zst");
        export_live(podman, &archive);
        if podman.call(&["container", "restore", "-i", &archive]).is_err() {
            return false;
        }
        let before = podman.lines("web", "/log");
        podman.wait_for_lines("web", "/log", before + 1);
        podman.counts("web", "/log")
    });
});

with_podman!(a_changed_file_of_the_image_is_changed_again, |machine| {
    compare(machine, |podman| {
        start(podman, "web", &[], CONF);
        while podman.call(&["exec", "web", "ls", "/done"]).is_err() {}
        let archive = podman.file("web.tar.zst");
        podman.run(&["container", "checkpoint", "-e", &archive, "web"]);
        podman.remove("web");
        podman.run(&["container", "restore", "-i", &archive]);
        podman.exec("web", &["cat", "/etc/conf"]) == "changed\n"
    });
});

with_podman!(a_volume_and_memory_agree, |machine| {
    compare(machine, |podman| {
        start(podman, "web", &["--volume", "data:/vol"], VOLUME);
        podman.wait_for_lines("web", "/vol/log", 100);
        let archive = podman.file("web.tar.zst");
        export_live(podman, &archive);
        podman.run(&["container", "restore", "-i", &archive]);
        let before = podman.lines("web", "/vol/log");
        podman.wait_for_lines("web", "/vol/log", before + 1);
        podman.counts("web", "/vol/log")
    });
});

with_podman!(what_came_since_is_gone_after_a_restore_in_place, |machine| {
    compare(machine, |podman| {
        start(podman, "web", &[], &format!("exec 3>/log; {LOG}"));
        podman.wait_for_lines("web", "/log", 100);
        podman.run(&["container", "checkpoint", "web"]);
        let root = podman.run(&["mount", "web"]);
        let since = Path::new(root.trim()).join("since");
        fs::write(&since, "").unwrap();
        podman.run(&["container", "restore", "web"]);
        let gone = !since.exists();
        podman.run(&["umount", "web"]);
        gone && podman.counts("web", "/log")
    });
});

/// Without what is another in another life: identifiers, numbers, times, the name of the runtime.
fn plain(text: &str) -> String {
    let text = text.replace("ocicle-runtime", "RUNTIME");
    let runtime = Regex::new(r#"[^ "]*/(bare|bin)/(RUNTIME|crun|runc)|\b(crun|runc)\b"#).unwrap();
    let text = runtime.replace_all(&text, "RUNTIME");
    let id = Regex::new(r"[0-9a-f]{12,64}").unwrap().replace_all(&text, "ID").into_owned();
    let number = Regex::new(r"[0-9][0-9.,:]*").unwrap().replace_all(&id, "N").into_owned();
    let unit = Regex::new(r"N *(seconds?|[kMG]i?B|B|m?s|%)").unwrap();
    let text = unit.replace_all(&number, "N").replace("Less than a second", "N");
    Regex::new(r"[ \t-]+").unwrap().replace_all(&text, " ").into_owned()
}

fn sorted(text: &str) -> String {
    let mut lines: Vec<&str> = text.lines().map(|line| line.trim_end_matches(',')).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The life of a container, call by call, correct and incorrect ones.
fn life(podman: &Podman<'_>, limits: bool) -> Vec<(String, i32, String, String)> {
    start(podman, "web", &["--tty=false"], "echo hello; echo oops >&2; exec tail -f /dev/null");
    let mut calls: Vec<&[&str]> = vec![
        &["ps"],
        &["ps", "--all", "--size", "--format", "json"],
        &["inspect", "web"],
        &["exec", "web", "sh", "-c", "echo inside; echo outside >&2; exit 7"],
        &["exec", "web", "/no/such/program"],
        &["exec", "--user", "nobody-here", "web", "true"],
        &["logs", "web"],
        &["top", "web", "args"],
        &["stats", "--no-stream", "web"],
        &["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "web"],
        &["start", "web"],
        &["restart", "--time", "0", "web"],
        &["pause", "web"],
        &["ps", "--format", "{{.Status}}"],
        &["inspect", "web"],
        &["exec", "web", "true"],
        &["container", "checkpoint", "web"],
        &["unpause", "web"],
        &["unpause", "web"],
        &["kill", "--signal", "FROBNICATE", "web"],
        &["kill", "--signal", "USR1", "nobody"],
        &["rm", "web"],
        &["container", "restore", "web"],
        &["container", "restore", "--import", "/no/such/archive"],
        &["container", "checkpoint", "--export", "/no/such/place/web.tar", "nobody"],
        &["stop", "--time", "0", "web"],
        &["wait", "web"],
        &["inspect", "web"],
        &["ps", "--all"],
        &["logs", "--timestamps", "web"],
        &["container", "checkpoint", "web"],
        &["start", "web"],
        &["kill", "web"],
        &["wait", "web"],
        &["rm", "web"],
        &["rm", "web"],
        &["run", "--rm", "--network", "none", "--pids-limit=0", IMAGE, "/no/such/program"],
        &["run", "--rm", "--network", "none", "--pids-limit=0", IMAGE, "sh", "-c", "exit 9"],
    ];
    if limits {
        let updated: [&[&str]; 4] = [
            &["update", "--memory", "64m", "--cpu-shares", "512", "web"],
            &["exec", "web", "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"],
            &["update", "--memory", "frobnicate", "web"],
            &["inspect", "web"],
        ];
        calls.splice(8..8, updated);
    }
    let mut answers = Vec::new();
    for call in calls {
        let (status, output, errors) = podman.outcome(call);
        let mut output = plain(&output);
        if call[0] == "inspect" {
            // podman makes the order of the environment anew each time.
            output = sorted(&output);
        }
        answers.push((call.join(" "), status, output, plain(&errors)));
    }
    answers
}

fn lives_are_equal(machine: &Machine) {
    // In the second view there is no controller that could limit anything.
    let limits = !machine.variant().has_cgroup2();
    let bare = life(&Podman::new(machine, Shim::Bare), limits);
    let shimmed = life(&Podman::new(machine, Shim::Ocicle), limits);
    assert_eq!(bare.len(), shimmed.len());
    for (bare, shimmed) in bare.iter().zip(&shimmed) {
        assert_eq!(bare, shimmed);
    }
    let status = |call: &str| bare.iter().find(|answer| answer.0.starts_with(call)).unwrap().1;
    assert_eq!(status("exec web sh -c"), 7);
    assert_eq!((status("rm web"), status("stop")), (2, 0));
    if limits {
        let limit = bare.iter().find(|answer| answer.0.contains("limit_in_bytes")).unwrap();
        assert_eq!((status("update --memory 64m"), limit.1), (0, 0));
    }
}

with_podman!(
    ordinary_commands_are_the_real_runtimes,
    lives_are_equal,
    runc_v1 RuncV1,
    crun_v1 CrunV1,
    crun_v2 CrunV2
);

/// Has a lock held and both ends of a TCP connection, and writes to a log.
const HOLDER: &str = "exec 3>/log; flock /lock tail -f /dev/null & \
    nc -l -p 7777 -e tail -f /dev/null & \
    while ! nc 127.0.0.1 7777 -e tail -f /dev/null; do :; done & \
    while ! grep -q ':1E61 01 ' /proc/net/tcp || flock -n /lock true; do :; done; \
    i=0; while :; do i=$((i+1)); echo $i >&3; done";

with_podman!(what_needs_an_option_is_refused_without_it, |machine| {
    support::private_network();
    let podman = Podman::new(machine, Shim::Ocicle);
    // busybox has no flock; the libraries that this one needs are in the image.
    let flock = ["--network", "host", "--volume", "/usr/bin/flock:/bin/flock:ro"];
    podman.start("web", &[&flock[..], &[IMAGE, "sh", "-c", HOLDER]].concat());
    podman.wait_for_lines("web", "/log", 100);
    let archive = podman.file("web.tar.zst");
    for (option, cause) in
        [("--file-locks", "--tcp-established"), ("--tcp-established", "--file-locks")]
    {
        let refused =
            podman.call(&["container", "checkpoint", "-e", &archive, option, "web"]).unwrap_err();
        assert!(refused.contains(cause), "{refused}");
        let before = podman.lines("web", "/log");
        podman.wait_for_lines("web", "/log", before + 1);
    }
    let both = ["--file-locks", "--tcp-established"];
    podman.run(&[&["container", "checkpoint", "-e", &archive], &both[..], &["web"]].concat());
    podman.remove("web");
    podman.run(&[&["container", "restore", "-i", &archive], &both[..]].concat());
    assert!(podman.counts("web", "/log"));
    assert!(podman.call(&["exec", "web", "flock", "-n", "/lock", "true"]).is_err());
    let connected = "cat /proc/net/tcp /proc/net/tcp6 | grep -c ' 01 [0-9A-F]*:'";
    assert_eq!(podman.exec("web", &["sh", "-c", connected]), "2\n", "both ends are connected");
});

with_podman!(every_option_of_an_export, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    let archive = podman.file("web.tar");
    for (checkpoint, restore) in [
        (&["--compress", "none"][..], &[][..]),
        (&["--compress", "gzip"], &[]),
        (&["--compress", "zstd"], &["--print-stats"]),
        (&["--ignore-rootfs"], &["--ignore-rootfs"]),
        (&["--ignore-volumes"], &["--ignore-volumes"]),
        (&["--print-stats"], &[]),
    ] {
        start(
            &podman,
            "web",
            &["--volume", "data:/vol"],
            &format!("echo changed >/etc/motd; exec 3>/vol/log; {LOG}"),
        );
        podman.wait_for_lines("web", "/vol/log", 100);
        let call = [&["container", "checkpoint", "-e", &archive], checkpoint, &["web"]].concat();
        let said = podman.run(&call);
        assert!(!checkpoint.contains(&"--print-stats") || said.contains("\"frozen_time\""));
        podman.remove("web");
        podman.run(&["volume", "rm", "--force", "data"]);
        let said = podman.run(&[&["container", "restore", "-i", &archive], restore].concat());
        assert!(!restore.contains(&"--print-stats") || said.contains("\"restore_time\""));
        assert_eq!(podman.exec("web", &["cat", "/etc/motd"]), "changed\n", "{checkpoint:?}");
        assert!(podman.counts("web", "/vol/log"), "{checkpoint:?}");
        podman.remove("web");
        podman.run(&["volume", "rm", "--force", "data"]);
    }
});

with_podman!(what_is_kept_is_restored_in_place_again_and_again, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    start(&podman, "web", &[], &format!("exec 3>/log; {LOG}"));
    podman.wait_for_lines("web", "/log", 100);
    podman.run(&["container", "checkpoint", "--keep", "web"]);
    podman.run(&["container", "restore", "--keep", "web"]);
    let later = podman.lines("web", "/log") + 10_000;
    podman.wait_for_lines("web", "/log", later);
    podman.run(&["stop", "-t", "0", "web"]);
    podman.run(&["container", "restore", "web"]);
    assert!(podman.counts("web", "/log"));
});

with_podman!(a_previous_checkpoint_needs_a_kernel_that_tracks_memory, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    start(&podman, "web", &[], &format!("exec 3>/log; {LOG}"));
    podman.wait_for_lines("web", "/log", 100);
    let (before, archive) = (podman.file("before.tar"), podman.file("web.tar"));
    let first = podman.call(&["container", "checkpoint", "--pre-checkpoint", "-e", &before, "web"]);
    let second =
        podman.call(&["container", "checkpoint", "--with-previous", "-e", &archive, "web"]);
    let mut criu = Command::new("criu");
    if outcome(criu.args(["check", "--feature", "mem_dirty_track"])).0 {
        first.and(second).unwrap();
        return;
    }
    // podman's pre-checkpoint is the real runtime's alone.
    assert!(
        Regex::new("(?i)criu.*(MemTrack|memory tracking)").unwrap().is_match(&first.unwrap_err())
    );
    let refused = second.unwrap_err();
    assert!(refused.contains("(hint: this kernel cannot tell which memory"), "{refused}");
    let before = podman.lines("web", "/log");
    podman.wait_for_lines("web", "/log", before + 1);
    assert!(podman.counts("web", "/log"));
});

with_podman!(one_archive_makes_many_containers, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    start(&podman, "web", &[], &format!("echo changed >/etc/motd; exec 3>/log; {LOG}"));
    podman.wait_for_lines("web", "/log", 100);
    let archive = podman.file("web.tar.zst");
    podman.run(&["container", "checkpoint", "-e", &archive, "web"]);
    for name in ["one", "two", "three"] {
        podman.run(&["container", "restore", "-i", &archive, "-n", name]);
    }
    for name in ["one", "two", "three"] {
        assert_eq!(podman.exec(name, &["cat", "/etc/motd"]), "changed\n");
        assert!(podman.counts(name, "/log"), "{name}");
        podman.remove(name);
    }
});

with_podman!(an_image_makes_many_containers, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    start(&podman, "web", &[], &format!("echo changed >/etc/motd; exec 3>/log; {LOG}"));
    podman.wait_for_lines("web", "/log", 100);
    let create =
        ["container", "checkpoint", "--leave-running", "--create-image", "localhost/web:1"];
    podman.run(&[&create[..], &["web"]].concat());
    for name in ["one", "two"] {
        podman.run(&["container", "restore", "-n", name, "localhost/web:1"]);
    }
    for name in ["one", "two", "web"] {
        assert_eq!(podman.exec(name, &["cat", "/etc/motd"]), "changed\n");
        assert!(podman.counts(name, "/log"), "{name}");
        podman.remove(name);
    }
});

with_podman!(a_volume_that_is_in_use_is_left_alone, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    start(&podman, "web", &["--volume", "data:/vol"], VOLUME);
    podman.wait_for_lines("web", "/vol/log", 100);
    let archive = podman.file("web.tar.zst");
    podman.run(&["container", "checkpoint", "--leave-running", "-e", &archive, "web"]);
    let second = ["container", "restore", "-i", &archive, "-n", "two", "--ignore-volumes"];
    let refused = podman.call(&second).unwrap_err();
    assert!(refused.contains("/vol is in use"), "{refused}");
    assert!(podman.counts("web", "/vol/log"));
});

with_podman!(a_port_is_published_elsewhere, |machine| {
    support::private_network();
    let podman = Podman::new(machine, Shim::Ocicle);
    let serve = "printf '#!/bin/sh\\nhead -n 1 >/dev/null; cat /etc/motd\\n' >/serve; \
        chmod +x /serve; echo changed >/etc/motd; touch /done; exec nc -ll -p 80 -e /serve";
    podman.start("web", &["--publish", "8080:80", IMAGE, "sh", "-c", serve]);
    while podman.call(&["exec", "web", "ls", "/done"]).is_err() {}
    let archive = podman.file("web.tar.zst");
    podman.run(&["container", "checkpoint", "-e", &archive, "web"]);
    podman.remove("web");
    let restore = ["container", "restore", "-i", &archive, "-n", "two"];
    podman.run(&[&restore[..], &["--publish", "9090:80"]].concat());
    assert_eq!(support::ask("127.0.0.1:9090", "hello"), "changed\n");
});

/// What podman says of its own behind what the runtime said.
fn first_and_last(errors: &str) -> (&str, &str) {
    let mut lines = errors.lines().filter(|line| !line.contains("cgroups-v1"));
    let first = lines.next().unwrap_or_default();
    (first, lines.next_back().unwrap_or(first))
}

with_podman!(the_cause_is_what_podman_shows_first, |machine| {
    support::private_network();
    let podman = Podman::new(machine, Shim::Ocicle);
    let serve = "exec 3>/log; nc -l -p 7777 -e true & echo ready >&3; exec tail -f /dev/null";
    podman.start("web", &["--network", "host", IMAGE, "sh", "-c", serve]);
    podman.wait_for_lines("web", "/log", 1);

    // ocicle refuses a checkpoint: another is under way.
    let id = podman.run(&["inspect", "--format", "{{.Id}}", "web"]);
    fs::create_dir_all("/run/ocicle/locks").unwrap();
    let lock = fs::File::create(Path::new("/run/ocicle/locks").join(id.trim())).unwrap();
    lock.lock().unwrap();
    let refused = podman.call(&["container", "checkpoint", "web"]).unwrap_err();
    drop(lock);
    let (first, last) = first_and_last(&refused);
    let cause = "another checkpoint or restore of it is under way";
    assert!(first.starts_with("ocicle-runtime: ") && first.contains(cause), "{refused}");
    assert!(last.starts_with("Error: "), "{refused}");

    // CRIU fails at a restore: somebody else listens now where the container did.
    let archive = podman.file("web.tar.zst");
    podman.run(&["container", "checkpoint", "-e", &archive, "web"]);
    podman.remove("web");
    let other = std::net::TcpListener::bind("[::]:7777").unwrap();
    let failed = podman.call(&["container", "restore", "-i", &archive]).unwrap_err();
    drop(other);
    let _ = podman.call(&["rm", "--force", "web"]);
    let (first, last) = first_and_last(&failed);
    assert_eq!(first, last, "one line: {failed}");
    let cause = "Error: OCI runtime error: ocicle-runtime: restoring ";
    assert!(first.starts_with(cause) && first.contains("ind inet socket"), "{failed}");
    podman.run(&["container", "restore", "-i", &archive]);

    // ocicle refuses a restore.
    podman.run(&["container", "checkpoint", "-e", &archive, "web"]);
    podman.remove("web");
    let settings = fs::read_to_string("/etc/ocicle/ocicle.toml").unwrap();
    let rule = "[[substitute]]\ncontainer = 'web'\nrule = '/log=file:/nonexistent/log'\n";
    fs::write("/etc/ocicle/ocicle.toml", format!("{settings}{rule}")).unwrap();
    let refused = podman.call(&["container", "restore", "-i", &archive]).unwrap_err();
    fs::write("/etc/ocicle/ocicle.toml", settings).unwrap();
    let (first, last) = first_and_last(&refused);
    assert_eq!(first, last, "one line: {refused}");
    assert!(first.starts_with(cause) && first.contains("/nonexistent/log"), "{refused}");
});

/// `ocicle inspect`, which may write to no file.
fn inspect(machine: &Machine, what: &str) -> serde_json::Value {
    let ocicle = machine.ocicle();
    let mut limited = Command::new("prlimit");
    limited.args(["--fsize=0", "--"]).arg(ocicle.get_program()).args(ocicle.get_args());
    let text = support::run(limited.args(["inspect", "--format", "json", what]));
    serde_json::from_str(&text).unwrap()
}

/// Whether tar reads podman's own copy of the files in an archive to its end.
fn is_copy_whole(archive: &str) -> bool {
    let read = "tar -xOf \"$0\" rootfs-diff.tar | tar -tf - >/dev/null 2>&1";
    Command::new("sh").args(["-c", read, archive]).status().unwrap().success()
}

with_podman!(every_form_of_a_checkpoint_is_told, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    start(&podman, "web", &[], &format!("exec 3>/log; {LOG}"));
    podman.wait_for_lines("web", "/log", 100);
    let listed = || {
        let all = support::listed(machine);
        all.into_iter().find(|one| one["name"] == "web").expect("web is listed")
    };
    let web = listed();
    assert_eq!((&web["engine"], &web["status"]), (&"podman".into(), &"running".into()));
    assert_eq!(web["runtime"], machine.variant().runtime());
    assert!(web["image"].as_str().unwrap().starts_with(IMAGE), "{web}");

    let live = ["container", "checkpoint", "--leave-running"];
    let mut forms = Vec::new();
    for (compression, told) in [("none", None), ("gzip", Some("gzip")), ("zstd", Some("zstd"))] {
        let archive = podman.file(compression);
        let export = ["--compress", compression, "-e", &archive, "web"];
        podman.run(&[&live[..], &export].concat());
        forms.push((archive, "archive", told));
    }
    podman.run(&[&live[..], &["--create-image", "localhost/seen:1", "web"]].concat());
    forms.push(("localhost/seen:1".to_owned(), "image", None));
    for format in ["oci-archive", "docker-archive", "oci-dir", "docker-dir"] {
        let saved = podman.file(format);
        let save = ["save", "--quiet", "--format", format, "--output", &saved];
        podman.run(&[&save[..], &["localhost/seen:1"]].concat());
        forms.push((saved, "image", None));
    }
    podman.run(&["container", "checkpoint", "--keep", "web"]);
    let web = listed();
    assert_eq!(
        (&web["status"], &web["checkpoints"][0]["name"]),
        (&"stopped".into(), &"in place".into())
    );
    let directory = web["checkpoints"][0]["path"].as_str().unwrap().to_owned();
    forms.push((directory, "directory", None));

    for (what, form, _) in &forms {
        let report = inspect(machine, what);
        assert_eq!(report["form"], *form, "{what}");
        assert_eq!(report["engine"], "podman", "{what}");
        let words =
            report["processes"][0]["command"].as_array().unwrap_or_else(|| panic!("{what}"));
        assert_eq!(words[..2], ["sh", "-c"], "{what}");
        assert!(report["files"].as_array().unwrap().iter().any(|file| file["name"] == "/log"));
        // The container writes while podman copies: podman's own copy may be cut then.
        let (cut, others): (Vec<&str>, Vec<&str>) = report["warnings"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|warning| warning.as_str())
            .partition(|warning| warning.starts_with("rootfs-diff.tar, "));
        assert_eq!(others, [""; 0], "{what}");
        if *form == "archive" {
            assert_eq!(!cut.is_empty(), !is_copy_whole(what), "{what}: {cut:?}");
        }
        assert!(report["parts"][0]["bytes"].as_u64().unwrap() > 0, "{what}");
        if *form != "directory" {
            assert_eq!(report["container"], "web", "{what}");
            assert!(report["image"].as_str().unwrap().starts_with(IMAGE), "{what}");
        }
        // A directory of docker's form has no place for a name.
        if *form == "image" && !what.ends_with("docker-dir") {
            assert_eq!(report["reference"], "localhost/seen:1", "{what}");
        }
    }
    for (what, _, told) in forms.into_iter().filter(|(_, form, _)| *form == "archive") {
        let compression = inspect(machine, &what)["compression"].clone();
        assert_eq!(compression.as_str(), told, "{what}");
        let show = support::run(Command::new("checkpointctl").args(["show", &what]));
        assert!(show.lines().any(|line| line.starts_with("web ")), "{show}");
        let tree = support::run(Command::new("checkpointctl").args(["inspect", "--all", &what]));
        assert!(tree.contains("Engine: Podman") && tree.contains("/log"), "{tree}");
    }
});

with_podman!(stock_runtimes_need_only_the_action_script, |machine| {
    support::private_criu_settings();
    let script = machine.state_root().join("criu-action");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_ocicle"), &script).unwrap();
    let settings = format!("action-script {}\n", script.display());
    fs::write("/etc/criu/runc.conf", settings).unwrap();
    let podman = Podman::new(machine, Shim::Bare);
    start(&podman, "web", &[], &format!("echo changed >/etc/conf; exec 3>/log; {LOG}"));
    podman.wait_for_lines("web", "/log", 100);
    let archive = podman.file("web.tar.zst");
    export_live(&podman, &archive);
    podman.run(&["container", "restore", "-i", &archive]);
    assert!(podman.counts("web", "/log"));
    assert_eq!(podman.exec("web", &["cat", "/etc/conf"]), "changed\n");
    drop(podman);
    fs::remove_file(script).unwrap();
});

/// A container with a terminal, which answers what is typed there; checkpointed by podman, to an
/// archive.
fn checkpoint_one_with_a_terminal(podman: &Podman<'_>, archive: &str) {
    let text = "exec 3>/log; echo $$ >&3; while read -r line; do echo got $line; done";
    start(podman, "answers", &["--tty"], text);
    podman.wait_for_lines("answers", "/log", 1);
    podman.run(&["container", "checkpoint", "-e", archive, "answers"]);
}

/// What a descriptor of the container's first process is.
fn descriptor(podman: &Podman<'_>, number: u32) -> String {
    let pid = podman.run(&["inspect", "--format", "{{.State.Pid}}", "answers"]);
    let link = fs::read_link(format!("/proc/{}/fd/{number}", pid.trim())).unwrap();
    link.display().to_string()
}

with_podman!(the_callers_terminal_reaches_a_container, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    checkpoint_one_with_a_terminal(&podman, &podman.file("answers.tar"));
    let restore = podman.command(&["container", "restore", "answers"]);
    let (status, mut terminal) = Terminal::run(&lending(&["-t"], &restore));
    terminal.type_in("hello\n");
    terminal.shows("got hello");
    assert!(status.success());
    assert_eq!(descriptor(&podman, 1), "/dev/tty");
    assert!(podman.run(&["ps"]).contains("answers"));
});

with_podman!(a_descriptor_reaches_a_container, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    start(&podman, "answers", &[], &format!("exec 3>/log; {LOG}"));
    podman.wait_for_lines("answers", "/log", 100);
    podman.run(&["container", "checkpoint", "answers"]);
    let lent = podman.file("lent");
    let restore = podman.command(&["container", "restore", "answers"]);
    let with = lending(&["-s", "/log=fd:9"], &restore);
    let (restored, _, said) = outcome(&mut in_shell(&with, &format!("exec \"$@\" 9<>{lent}")));
    assert!(restored, "{said}");
    assert_eq!(descriptor(&podman, 3), lent);
    let holders = holders(Path::new(&lent));
    assert_eq!(holders.len(), 1, "only the container has it: {holders:?}");
    assert!(first_number(Path::new(&lent)) > 100, "it goes on where it was");
});

with_podman!(what_is_configured_for_a_name_or_an_image_holds, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    let archive = podman.file("answers.tar");
    checkpoint_one_with_a_terminal(&podman, &archive);
    let installed = fs::read_to_string("/etc/ocicle/ocicle.toml").unwrap();
    for (whom, becomes) in [
        ("container = 'answers'", "/dev/null"),
        ("image = 'counter'", "/dev/null"),
        ("container = 'counter'", "/log"),
        ("container = 'ans*'\nimage = '**/other'", "/log"),
    ] {
        let rule = format!("[[substitute]]\n{whom}\nrule = '/log=null'\n");
        fs::write("/etc/ocicle/ocicle.toml", format!("{installed}{rule}")).unwrap();
        podman.remove("answers");
        podman.run(&["container", "restore", "-i", &archive]);
        assert_eq!(descriptor(&podman, 3), becomes, "{whom}");
    }
    podman.remove("answers");
    fs::write("/etc/ocicle/ocicle.toml", installed).unwrap();
    // A name that podman knows, for a restore that is not below the command.
    let pipes = ["go", "done"].map(|name| podman.file(name));
    for pipe in &pipes {
        assert!(Command::new("mkfifo").arg(pipe).status().unwrap().success());
    }
    let [go, done] = &pipes;
    let podmans = "podman --runtime ocicle-runtime container restore -i";
    let text = format!("read _ <{go}; {podmans} {archive} >/dev/null; echo $? >{done}");
    let mut daemon = Command::new("bash").args(["-c", &text]).spawn().unwrap();
    let mut with = Command::new(env!("CARGO_BIN_EXE_ocicle"));
    with.args(["with", "--container", "answers", "-s", "/log=null", "--", "bash", "-c"]);
    let status = with.arg(format!("echo >{go}; exit $(cat {done})")).status().unwrap();
    assert!(daemon.wait().unwrap().success() && status.success());
    assert_eq!(descriptor(&podman, 3), "/dev/null");
});

with_podman!(what_podman_makes_for_one_run_alone, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    let directory = podman.file("thrown-away");
    fs::create_dir(&directory).unwrap();
    let overlay = format!("{directory}:/over:O");
    let image = format!("type=image,source={IMAGE},destination=/over,rw=true");
    for options in [["-v", &overlay], ["--mount", &image]] {
        start(
            &podman,
            "web",
            &options,
            "echo kept >/over/note; touch /done; exec tail -f /dev/null",
        );
        podman.wait_for_lines("web", "/over/note", 1);
        let said = podman.call(&["container", "checkpoint", "--keep", "web"]).unwrap_err();
        assert!(said.contains("what is mounted at /over for this run"), "{said}");
        assert_eq!(podman.exec("web", &["cat", "/over/note"]), "kept\n", "it goes on");
        podman.remove("web");
    }
});

with_podman!(shared_memory_of_another_container, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    let wait = "exec tail -f /dev/null";
    start(&podman, "owner", &["--ipc", "shareable"], wait);
    podman.exec("owner", &["sh", "-c", "echo before >/dev/shm/note"]);
    start(&podman, "web", &["--ipc", "container:owner"], wait);
    podman.run(&["container", "checkpoint", "--keep", "web"]);
    podman.run(&["container", "restore", "--keep", "web"]);
    podman.exec("owner", &["sh", "-c", "echo since >/dev/shm/note"]);
    assert_eq!(podman.exec("web", &["cat", "/dev/shm/note"]), "since\n", "it is the owner's");
    podman.remove("web");
    podman.remove("owner");
});

/// `ocicle` as somebody calls it who knows no more than the container's name.
fn by_hand(machine: &Machine, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ocicle"));
    command.env("OCICLE_RUNTIME", machine.variant().runtime());
    command.arg("--store").arg(machine.store()).args(words);
    command
}

with_podman!(a_container_of_podmans_is_not_ended_behind_its_back, |machine| {
    let podman = Podman::new(machine, Shim::Ocicle);
    start(&podman, "web", &[], "while :; do read line; done");
    let id = podman.run(&["inspect", "--format", "{{.Id}}", "web"]).trim().to_owned();
    let flags = machine.variant().criu_flags();
    // By the engine's name, the first digits of its identifier, and the whole of it.
    for name in ["web", &id[..12], &id] {
        let mut command = by_hand(machine, &["checkpoint", name]);
        let (ended, _, said) = outcome(command.args(flags));
        assert!(!ended && said.contains("it is podman's container web"), "{said}");
        assert!(said.contains("hint: `podman container checkpoint web`"), "{said}");
        run(&mut by_hand(machine, &["files", name]));
    }
    assert_eq!(podman.run(&["inspect", "--format", "{{.State.Status}}", "web"]), "running\n");

    let made = run(by_hand(machine, &["checkpoint", "-R", "web"]).args(flags));
    assert_eq!(made, format!("{id}@v1\n"));
    for name in ["web@v1", "web@latest", &format!("{}@v1", &id[..12])] {
        run(&mut by_hand(machine, &["inspect", name]));
    }
    let table = run(&mut by_hand(machine, &["list"]));
    assert!(table.contains(&format!("{}@v1 web", &id[..12])), "{table}");
    podman.run(&["stop", "--time", "0", "web"]);
    let (ended, _, said) = outcome(by_hand(machine, &["checkpoint", "web"]).args(flags));
    assert!(!ended && said.contains("hint: "), "{said}");
    for name in ["web", &id] {
        let (ended, _, said) = outcome(by_hand(machine, &["restore", name]).args(flags));
        assert!(!ended && said.contains("podman would start it a second time"), "{said}");
        let mut command = by_hand(machine, &["restore", "--force", name]);
        let (ended, _, said) = outcome(command.args(flags));
        assert!(!ended && said.contains("is not mounted"), "{said}");
        assert!(said.contains("hint: `podman mount "), "{said}");
    }
});

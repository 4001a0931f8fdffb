//! Below containerd: ctr, unchanged, with the bare runtime and with ocicle.

use std::fs;
use std::process::Command;
use std::time::Instant;

use crate::support::{
    self, Containerd, DEADLINE, Machine, Shim, WRONG_LINE, first_number, holders, in_shell,
    lending, status_of,
};
use serde_json::Value;

/// Counts in memory and in a log.
const COUNT: &str = "echo changed >/etc/motd; exec 3>/log; i=0; \
    while :; do i=$((i+1)); echo $i >&3; done";

fn lines(containerd: &Containerd<'_>) -> u64 {
    let program = "[ -e /log ] && wc -l </log || echo 0";
    let begin = Instant::now();
    loop {
        let printed = containerd.exec("web", &["sh", "-c", program]).unwrap();
        if let Ok(count) = printed.trim().parse() {
            return count;
        }
        // ctr now and then ends before what the command printed has come through its pipe.
        assert!(begin.elapsed() < DEADLINE, "{printed:?}");
    }
}

fn start_counting(containerd: &Containerd<'_>) {
    containerd.start("web", &["sh", "-c", COUNT]);
    while lines(containerd) < 100 {}
}

fn goes_on(containerd: &Containerd<'_>) {
    let before = lines(containerd);
    while lines(containerd) == before {}
}

/// Whether a restored container goes on, and its files are of the instant of its memory.
fn is_whole(containerd: &Containerd<'_>) -> bool {
    goes_on(containerd);
    containerd.exec("web", &["awk", WRONG_LINE, "/log"]).unwrap().is_empty()
        && containerd.exec("web", &["cat", "/etc/motd"]).unwrap() == "changed\n"
}

/// Makes an image of a container, removes the container, and makes it again of the image.
fn comes_back(containerd: &Containerd<'_>, rw: &[&str]) -> bool {
    start_counting(containerd);
    let image = ["web", "localhost/web:1"];
    let checkpoint = ["container", "checkpoint", "--task", "--image"];
    containerd.run(&[&checkpoint[..], rw, &image].concat());
    assert_eq!(containerd.task("web").unwrap().1, "RUNNING");
    goes_on(containerd);
    containerd.remove("web");
    let restore = ["container", "restore", "--live"];
    containerd.call(&[&restore[..], rw, &image].concat()).is_ok() && is_whole(containerd)
}

on_each_runtime!(a_container_comes_back, |machine: &Machine| {
    assert!(comes_back(&Containerd::new(machine, Shim::Ocicle), &["--rw"]));
    assert!(
        comes_back(&Containerd::new(machine, Shim::Ocicle), &[]),
        "without containerd's own diff"
    );
    assert!(!comes_back(&Containerd::new(machine, Shim::Bare), &[]), "containerd has learnt it");
});

on_each_runtime!(the_daemon_restores_with_what_is_lent, |machine: &Machine| {
    let containerd = Containerd::new(machine, Shim::Ocicle);
    start_counting(&containerd);
    let image = ["web", "localhost/web:1"];
    containerd.run(&[&["container", "checkpoint", "--task", "--image"], &image[..]].concat());
    let lent = machine.state_root().join("lent");
    let mut restore = Command::new("ctr");
    restore.args(["container", "restore", "--live"]).args(image);
    let rule = ["-s", "/log=fd:9"];
    for (name, status) in [("another", 125), ("web", 0)] {
        containerd.remove("web");
        let with = lending(&[&["--container", name], &rule[..]].concat(), &restore);
        let mut with = in_shell(&with, &format!("exec \"$@\" 9<>{}", lent.display()));
        let (ended, _, said) = status_of(&mut with);
        assert_eq!(ended, status, "{said}");
        assert_eq!(said.contains("no restore of another asked"), name == "another", "{said}");
        let pid = containerd.task("web").unwrap().0;
        let log = fs::read_link(format!("/proc/{pid}/fd/3")).unwrap();
        assert_eq!(log == lent, name == "web", "{}", log.display());
    }
    assert_eq!(holders(&lent).len(), 1, "only the container has it: {:?}", holders(&lent));
    assert!(first_number(&lent) > 100, "it goes on where it was");
    containerd.remove("web");
    fs::remove_file(lent).unwrap();
});

on_each_runtime!(a_task_is_frozen_by_containerd, |machine: &Machine| {
    let containerd = Containerd::new(machine, Shim::Ocicle);
    start_counting(&containerd);
    for (flags, status) in [(&[][..], "RUNNING"), (&["--exit"], "STOPPED")] {
        let directory = machine.state_root().join("images");
        let images = ["--image-path", directory.to_str().unwrap()];
        let ended = containerd.task("web").unwrap().0;
        containerd.run(&[&["task", "checkpoint"], &images[..], flags, &["web"]].concat());
        if status == "STOPPED" {
            support::wait_for_exit(ended);
        } else {
            goes_on(&containerd);
        }
        let manifest = fs::read(directory.join("ocicle-manifest.json")).unwrap();
        let manifest: Value = serde_json::from_slice(&manifest).unwrap();
        assert_eq!(manifest["freeze"]["by"], "caller");
        assert_eq!(manifest["state"], "complete");
        assert_eq!(containerd.task("web").unwrap().1, status);
        fs::remove_dir_all(directory).unwrap();
    }
});

on_each_runtime!(containers_are_listed, |machine: &Machine| {
    let containerd = Containerd::new(machine, Shim::Ocicle);
    start_counting(&containerd);
    let listed = support::listed(machine);
    let web = listed.iter().find(|one| one["id"] == "web").expect("web is listed");
    assert_eq!((&web["engine"], &web["namespace"]), (&"containerd".into(), &"default".into()));
    assert_eq!((&web["status"], &web["frozen"]), (&"running".into(), &false.into()));
    assert_eq!(web["pid"], containerd.task("web").unwrap().0);
    assert_eq!(web["runtime"], machine.variant().runtime());
});

/// containerd reads the drop-in with its own parser, from where its documentation puts it.
#[test]
fn containerd_reads_the_drop_in() {
    support::on_machine(support::Variant::RuncV1, |machine| {
        let directory = machine.state_root().join("conf.d");
        fs::create_dir(&directory).unwrap();
        fs::copy("config/containerd/ocicle.toml", directory.join("ocicle.toml")).unwrap();
        let config = directory.join("config");
        fs::write(
            &config,
            format!("version = 3\nimports = [\"{}/*.toml\"]\n", directory.display()),
        )
        .unwrap();
        let mut dump = Command::new("containerd");
        let dump = support::run(dump.arg("--config").arg(&config).args(["config", "dump"]));
        let config: toml::Table = toml::from_str(&dump).unwrap();
        let plugin = &config["plugins"]["io.containerd.cri.v1.runtime"]["containerd"];
        let ocicle = &plugin["runtimes"]["ocicle"];
        assert_eq!(ocicle["runtime_type"].as_str(), Some("io.containerd.runc.v2"));
        assert_eq!(ocicle["options"]["BinaryName"].as_str(), Some("ocicle-runtime"));
        fs::remove_dir_all(directory).unwrap();
    });
}

/// CRI-O and Kubernetes are not in the testbed: what they are given agrees with the rest, at least.
#[test]
fn drop_ins_name_one_handler() {
    let read = |path: &str| fs::read_to_string(path).unwrap();
    let crio: toml::Table = toml::from_str(&read("config/crio/ocicle.conf")).unwrap();
    let runtime = &crio["crio"]["runtime"]["runtimes"]["ocicle"];
    assert_eq!(runtime["runtime_type"].as_str(), Some("oci"));
    assert_eq!(runtime["runtime_path"].as_str(), Some("/usr/bin/ocicle-runtime"));
    assert_eq!(crio["crio"]["runtime"]["enable_criu_support"].as_bool(), Some(true));
    assert!(read("config/kubernetes/runtimeclass.yaml").contains("\nhandler: ocicle\n"));
}

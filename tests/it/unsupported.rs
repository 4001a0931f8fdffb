//! Open files that CRIU cannot dump: when a rule covers them they stop no checkpoint, the container
//! goes on with them, and at a restore something has to take their place.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use crate::support::{
    Bundle, BundleBuilder, Container, Control, Machine, Shim, Told, find, held, in_shell, outcome,
    restore_command, run, table,
};
use nix::fcntl::{Flock, FlockArg};
use serde_json::{Value, json};

/// What the workload can hold and CRIU cannot dump, and one that the container's mounts do not have.
const KINDS: [&str; 15] = [
    "fuse",
    "mptcp",
    "vsock",
    "perf",
    "unix",
    "overmounted",
    "taken",
    "kvm",
    "block",
    "xdp",
    "userfaultfd",
    "bpf-hash",
    "bpf-ring",
    "bpf-program",
    "private",
];

/// A bundle whose container has the devices, and may mount.
fn bundle<'m>(machine: &'m Machine, kinds: &[&str]) -> BundleBuilder<'m> {
    let args: Vec<_> = ["workload", "odd", "/data"].iter().chain(kinds).collect();
    machine.bundle("odd").configure(|config| {
        config["process"]["args"] = json!(args);
        let devices = [
            ("/dev/fuse", "c", 10, 229),
            ("/dev/net/tun", "c", 10, 200),
            ("/dev/kvm", "c", 10, 232),
            ("/dev/block", "b", 7, 0),
        ];
        let device = |(path, kind, major, minor)| {
            let mode = 0o666;
            json!({ "path": path, "type": kind, "major": major, "minor": minor, "fileMode": mode })
        };
        let allowed = |(_, kind, major, minor)| {
            let access = "rwm";
            json!({ "allow": true, "type": kind, "major": major, "minor": minor, "access": access })
        };
        config["linux"]["devices"] = devices.map(device).to_vec().into();
        config["linux"]["resources"]["devices"] = devices.map(allowed).to_vec().into();
        for set in ["bounding", "effective", "permitted"] {
            let set = config["process"]["capabilities"][set].as_array_mut().unwrap();
            set.extend(["CAP_SYS_ADMIN", "CAP_NET_ADMIN", "CAP_NET_RAW"].map(|name| json!(name)));
        }
    })
}

/// A running workload.
struct Odd<'b> {
    container: Container<'b>,
    fds: BTreeMap<String, i64>,
    /// The other end of its socket.
    outside: Option<UnixStream>,
}

impl<'b> Odd<'b> {
    fn run(bundle: &'b Bundle<'b>) -> Self {
        fs::create_dir_all(bundle.path("/data")).unwrap();
        let listener = UnixListener::bind(bundle.path("/data/outside")).unwrap();
        let container = bundle.run();
        container.wait_for("/data/ready");
        let fds = fs::read(bundle.path("/data/fds.json")).unwrap();
        let fds: BTreeMap<String, i64> = serde_json::from_slice(&fds).unwrap();
        let outside = fds.contains_key("unix").then(|| listener.accept().unwrap().0);
        Self { container, fds, outside }
    }

    /// Uses every open file for what it is.
    fn works(&mut self) {
        let control = self.container.control("/data");
        for (kind, fd) in &self.fds {
            match &mut self.outside {
                Some(outside) if kind == "unix" => talk(&control, *fd, outside),
                _ => assert_eq!(control.ask(&format!("works {kind}")), "yes", "{kind}"),
            }
        }
    }
}

fn talk(control: &Control, fd: i64, peer: &mut UnixStream) {
    assert_eq!(control.ask(&format!("write {fd} there")), "5");
    let mut said = [0; 5];
    peer.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"there");
    peer.write_all(b"back").unwrap();
    assert_eq!(control.ask(&format!("read {fd}")), "\"back\"");
}

fn checkpoint(machine: &Machine, bundle: &Bundle<'_>, more: &[&str]) -> Command {
    let mut command = machine.checkpoint(&[bundle.id()]);
    command.args(more);
    command
}

on_each_runtime!(uncovered_they_are_named_all_at_once, |machine| {
    let bundle = bundle(machine, &KINDS).make();
    let mut odd = Odd::run(&bundle);
    let mut told = Told::new(machine);
    told.refused("no rule", &mut checkpoint(machine, &bundle, &[]));
    let rule = ["-s", "/dev/fuse=null", "--leave-running"];
    told.refused("a rule for one of them", &mut checkpoint(machine, &bundle, &rule));
    let rule = ["-s", "4=null"];
    told.refused("an identifier", &mut checkpoint(machine, &bundle, &rule));
    let mut check = machine.ocicle();
    told.refused("an identifier for a check", check.args(["check", bundle.id()]).args(rule));
    assert_eq!(odd.container.status(), "running");
    odd.works();

    let config = machine.scratch().join("ocicle.toml");
    fs::write(&config, "on-unsupported = \"substitute\"\n").unwrap();
    let mut command = checkpoint(machine, &bundle, &["--leave-running"]);
    run(command.env("OCICLE_CONFIG", &config));
    fs::remove_file(config).unwrap();
    odd.works();
    odd.container.kill();
    told.refused(
        "a restore without replacements",
        &mut restore_command(&bundle, machine, &[""; 0]),
    );
    told.compare("unsupported");
});

on_each_runtime!(without_ocicle_the_runtime_refuses_each_of_them, |machine| {
    for kind in KINDS {
        let bundle = bundle(machine, &[kind]).make();
        let odd = Odd::run(&bundle);
        let refused = odd.container.checkpoint(&bundle.images("images"), &["--leave-running"]);
        assert!(refused.is_err(), "{kind}");
    }
});

on_each_runtime!(covered_they_are_left_out_and_replaced, |machine| {
    let scratch = machine.scratch().display().to_string();
    let bundle = bundle(machine, &KINDS)
        .annotation("org.ocicle.substitute", "/dev/fuse=null; local:127.0.0.1:7300=reset")
        .make();
    let mut odd = Odd::run(&bundle);
    let fds = odd.fds.clone();
    let config = machine.scratch().join("ocicle.toml");
    let rule = "path:**/taken* = empty";
    fs::write(&config, format!("[[substitute]]\ncontainer = \"*\"\nrule = \"{rule}\"\n")).unwrap();
    let rules = [
        format!("1:{}=fd:9", fds["vsock"]),
        format!("1:{}=closed", fds["perf"]),
        format!("1:{}=unix:{scratch}/peer", fds["unix"]),
        format!("path:/data/mount/file=file:{scratch}/other"),
        "/dev/kvm=null".to_owned(),
        format!("/dev/block=file:{scratch}/other,pos=start"),
        format!("1:{}=null", fds["xdp"]),
        format!("1:{}=closed", fds["userfaultfd"]),
        format!("1:{}=null", fds["bpf-hash"]),
        format!("1:{}=null", fds["bpf-ring"]),
        format!("1:{}=empty", fds["bpf-program"]),
    ];
    let mut command = checkpoint(machine, &bundle, &["--leave-running"]);
    rules.iter().for_each(|rule| {
        command.args(["-s", rule]);
    });
    run(command.env("OCICLE_CONFIG", &config));
    odd.works();
    odd.container.kill();
    drop(odd.outside);

    // What is known of them is what they were.
    let reference = format!("{}@v1", bundle.id());
    let files = table(machine, &reference);
    for (kind, fd) in fds.iter().filter(|(kind, _)| *kind != "private") {
        let file = held(&files, *fd);
        assert!(
            file["unsupported"].is_string() && file["must_substitute"] == true,
            "{kind}: {file}"
        );
        assert_eq!(file["holders"].as_array().unwrap().len(), 2, "{kind}: {file}");
    }
    assert_eq!(held(&files, fds["fuse"])["name"], "/dev/fuse");
    assert_eq!(held(&files, fds["mptcp"])["name"], "tcp 127.0.0.1:7300 listen");
    let manifest = fs::read(machine.store().join(bundle.id()).join("v1/ocicle-manifest.json"));
    let manifest: Value = serde_json::from_slice(&manifest.unwrap()).unwrap();
    let recorded = manifest["unsupported"].as_array().unwrap();
    assert_eq!(
        (recorded.len(), manifest["external"].as_array().unwrap().len()),
        (KINDS.len() - 1, 1)
    );
    assert_eq!(recorded[0]["rule"], "/dev/fuse=null");

    fs::write(machine.scratch().join("other"), "another\n").unwrap();
    fs::write(machine.scratch().join("ninth"), "").unwrap();
    let peer = UnixListener::bind(machine.scratch().join("peer")).unwrap();
    let rules = [&rules[..], &[format!("1:{}=null", fds["private"])]].concat();
    let restore = restore_command(&bundle, machine, &rules);
    let ninth = machine.scratch().join("ninth");
    let mut shell = in_shell(&restore, &format!("exec \"$@\" 9<>{}", ninth.display()));
    shell.env("OCICLE_CONFIG", &config);
    let (restored, _, said) = outcome(&mut shell);
    assert!(restored, "{said}");

    let control = Control::at(bundle.path("/data/control"));
    let now = table(machine, bundle.id());
    let closed = ["perf", "userfaultfd"];
    for (kind, fd) in fds.iter().filter(|(kind, _)| !closed.contains(&kind.as_str())) {
        let file = held(&now, *fd);
        assert_eq!(file["holders"].as_array().unwrap().len(), 2, "{kind} is shared: {file}");
    }
    for kind in closed {
        assert!(find(&now, fds[kind]).is_none(), "{now:#?}");
    }
    for kind in ["fuse", "private", "kvm", "xdp", "bpf-hash", "bpf-ring", "bpf-program"] {
        assert_eq!(held(&now, fds[kind])["name"], "/dev/null", "{kind}");
    }
    assert_eq!(control.ask(&format!("read {}", fds["block"])), "\"another\\n\"");
    talk(&control, fds["unix"], &mut peer.accept().unwrap().0);
    assert_eq!(control.ask(&format!("write {} ninth", fds["vsock"])), "5");
    assert_eq!(fs::read_to_string(machine.scratch().join("ninth")).unwrap(), "ninth");
    assert_eq!(control.ask(&format!("read {}", fds["overmounted"])), "\"another\\n\"");
    assert_eq!(control.ask(&format!("read {}", fds["taken"])), "\"\"");
    assert_eq!(control.ask(&format!("read {}", fds["mptcp"])), "ECONNRESET");
    bundle.end();
    for file in ["ocicle.toml", "other", "ninth", "peer"] {
        fs::remove_file(machine.scratch().join(file)).unwrap();
    }
});

on_each_runtime!(through_the_shim_by_annotation, |machine| {
    let bundle = bundle(machine, &["fuse", "taken"])
        .shim(Shim::Ocicle)
        .annotation("org.ocicle.substitute.fuse", "/dev/fuse=null")
        .annotation("org.ocicle.substitute.taken", "fd:5=empty")
        .make();
    let odd = Odd::run(&bundle);
    let fds = odd.fds.clone();
    assert_eq!(fds["taken"], 5);
    let images = bundle.images("images");
    odd.container.checkpoint(&images, &[]).unwrap();
    odd.container.kill();
    let container = bundle.restore(&images, &[]).unwrap();
    let control = container.control("/data");
    assert_eq!(control.ask(&format!("write {} x", fds["fuse"])), "1");
    assert_eq!(control.ask(&format!("read {}", fds["taken"])), "\"\"");
});

on_each_runtime!(a_tun_device_in_the_network_of_the_host, |machine| {
    let bundle = bundle(machine, &["tun"]).make();
    bundle.leave_network();
    let mut odd = Odd::run(&bundle);
    odd.works();
    let refused = outcome(&mut checkpoint(machine, &bundle, &[])).2;
    assert!(refused.contains("CRIU cannot save tun devices"), "{refused}");
    odd.works();
    let rule = "type:tun=null";
    run(&mut checkpoint(machine, &bundle, &["-s", rule, "--leave-running"]));
    odd.works();
    let fd = odd.fds["tun"];
    odd.container.kill();
    let (restored, _, said) = outcome(&mut restore_command(&bundle, machine, &[rule]));
    assert!(restored, "{said}");
    assert_eq!(held(&table(machine, bundle.id()), fd)["name"], "/dev/null");
    bundle.end();
});

on_each_runtime!(a_lock_on_what_is_left_out, |machine| {
    let bundle = bundle(machine, &["locked"]).make();
    let mut odd = Odd::run(&bundle);
    let fd = odd.fds["locked"];
    let rule = |source: &str| format!("1:{fd}={source}");
    let all = ["--on-unsupported", "substitute", "--leave-running"];
    let refused = outcome(&mut checkpoint(machine, &bundle, &all)).2;
    assert!(refused.contains("--file-locks"), "{refused}");
    run(&mut checkpoint(machine, &bundle, &[&all[..], &["--file-locks"]].concat()));
    odd.works();
    odd.container.kill();
    let files = table(machine, &format!("{}@v1", bundle.id()));
    let locked = held(&files, fd);
    assert_eq!(
        (&locked["name"], &locked["must_substitute"]),
        (&json!("/data/locked/file"), &json!(true))
    );
    let lock = &locked["locks"][0];
    assert_eq!((&lock["kind"], &lock["exclusive"]), (&json!("flock"), &json!(true)));

    let (restored, _, said) = outcome(&mut restore_command(&bundle, machine, &[rule("null")]));
    assert!(!restored && said.contains("the original is locked"), "{said}");
    let other = machine.state_root().with_file_name("other");
    fs::write(&other, "another").unwrap();
    for (end, is_locked) in [("", true), (",drop", false)] {
        let rule = rule(&format!("file:{},pos=start{end}", other.display()));
        let (restored, _, said) = outcome(&mut restore_command(&bundle, machine, &[rule]));
        assert!(restored, "{said}");
        let file = fs::File::open(&other).unwrap();
        assert_eq!(Flock::lock(file, FlockArg::LockSharedNonblock).is_err(), is_locked, "{end}");
        assert_eq!(
            Control::at(bundle.path("/data/control")).ask(&format!("read {fd}")),
            "\"another\""
        );
        bundle.end();
    }
    fs::remove_file(other).unwrap();
});

on_each_runtime!(what_criu_cannot_even_be_kept_from, |machine| {
    let bundle = bundle(machine, &["io-uring", "mapped"]).make();
    let mut odd = Odd::run(&bundle);
    let mut told = Told::new(machine);
    let all = ["--on-unsupported", "substitute"];
    told.refused("all are covered", &mut checkpoint(machine, &bundle, &all));
    assert_eq!(odd.container.status(), "running");
    odd.works();
    told.compare("no-rule-helps");
});

//! Open files that CRIU cannot dump: when a rule covers them they stop no checkpoint, the container
//! goes on with them, and at a restore something has to take their place.

#[macro_use]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;

use serde_json::{Value, json};
use support::{Bundle, BundleBuilder, Container, Control, Machine, Shim, Told, outcome, run};

/// What the workload can hold and CRIU cannot dump, and one that the container's mounts do not have.
const KINDS: [&str; 9] =
    ["fuse", "mptcp", "vsock", "perf", "unix", "overmounted", "taken", "unlinked", "private"];

/// A bundle whose container has the devices, and may mount.
fn bundle<'m>(machine: &'m Machine, kinds: &[&str]) -> BundleBuilder<'m> {
    let args: Vec<_> = ["workload", "odd", "/data"].iter().chain(kinds).collect();
    machine.bundle("odd").configure(|config| {
        config["process"]["args"] = json!(args);
        let devices = [("/dev/fuse", 229), ("/dev/net/tun", 200)];
        let device = |(path, minor)| {
            json!({ "path": path, "type": "c", "major": 10, "minor": minor, "fileMode": 0o666 })
        };
        let allowed = |(_, minor)| {
            json!({ "allow": true, "type": "c", "major": 10, "minor": minor, "access": "rwm" })
        };
        config["linux"]["devices"] = devices.map(device).to_vec().into();
        config["linux"]["resources"]["devices"] = devices.map(allowed).to_vec().into();
        for set in ["bounding", "effective", "permitted"] {
            let set = config["process"]["capabilities"][set].as_array_mut().unwrap();
            set.extend([json!("CAP_SYS_ADMIN"), json!("CAP_NET_ADMIN")]);
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
    let mut command = machine.ocicle();
    command.args(["checkpoint", bundle.id()]);
    command.args(machine.variant().criu_flags()).args(more);
    command
}

fn restore(machine: &Machine, bundle: &Bundle<'_>, rules: &[String]) -> Command {
    let mut command = machine.ocicle();
    command.args(["restore", bundle.id()]).args(machine.variant().criu_flags());
    rules.iter().for_each(|rule| {
        command.args(["-s", rule]);
    });
    command
}

fn table(machine: &Machine, reference: &str) -> Vec<Value> {
    let text = run(machine.ocicle().args(["files", "--format", "json", reference]));
    let table: Value = serde_json::from_str(&text).unwrap();
    table["files"].as_array().unwrap().clone()
}

/// The open file behind a descriptor of the first process.
fn held(table: &[Value], fd: i64) -> &Value {
    find(table, fd).unwrap_or_else(|| panic!("fd {fd} in {table:#?}"))
}

fn find(table: &[Value], fd: i64) -> Option<&Value> {
    let holds = |file: &&Value| {
        file["holders"].as_array().unwrap().iter().any(|one| one["pid"] == 1 && one["fd"] == fd)
    };
    table.iter().find(holds)
}

on_each_runtime!(uncovered_they_are_named_all_at_once, |machine| {
    let bundle = bundle(machine, &KINDS).make();
    let mut odd = Odd::run(&bundle);
    let mut told = Told::new(machine);
    told.refused("no rule", &mut checkpoint(machine, &bundle, &[]));
    let rule = ["-s", "/dev/fuse=null", "--leave-running"];
    told.refused("a rule for one of them", &mut checkpoint(machine, &bundle, &rule));
    assert_eq!(odd.container.status(), "running");
    odd.works();

    let config = machine.scratch().join("ocicle.toml");
    fs::write(&config, "on-unsupported = \"substitute\"\n").unwrap();
    let mut command = checkpoint(machine, &bundle, &["--leave-running"]);
    run(command.env("OCICLE_CONFIG", &config));
    fs::remove_file(config).unwrap();
    odd.works();
    odd.container.kill();
    told.refused("a restore without replacements", &mut restore(machine, &bundle, &[]));
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
    let unlinked = fds["unlinked"];
    let rule = format!("1:{unlinked} = container:/data/linked; path:**/taken* = empty");
    fs::write(&config, format!("[[substitute]]\ncontainer = \"*\"\nrule = \"{rule}\"\n")).unwrap();
    let rules = [
        format!("1:{}=fd:9", fds["vsock"]),
        format!("1:{}=closed", fds["perf"]),
        format!("1:{}=unix:{scratch}/peer", fds["unix"]),
        format!("path:/data/mount/file=file:{scratch}/other"),
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
    assert_eq!((recorded.len(), manifest["external"].as_array().unwrap().len()), (8, 1));
    assert_eq!(recorded[0]["rule"], "/dev/fuse=null");

    fs::write(machine.scratch().join("other"), "another\n").unwrap();
    fs::write(machine.scratch().join("ninth"), "").unwrap();
    let peer = UnixListener::bind(machine.scratch().join("peer")).unwrap();
    let rules = [&rules[..], &[format!("1:{}=null", fds["private"])]].concat();
    let restore = restore(machine, &bundle, &rules);
    let mut shell = Command::new("bash");
    shell.args(["-c", "exec \"$@\" 9<>$NINTH", "bash"]).arg(restore.get_program());
    shell.args(restore.get_args()).env("NINTH", machine.scratch().join("ninth"));
    shell.env("OCICLE_RUNTIME", machine.variant().runtime()).env("OCICLE_CONFIG", &config);
    let (restored, _, said) = outcome(&mut shell);
    assert!(restored, "{said}");

    let control = Control::at(bundle.path("/data/control"));
    let now = table(machine, bundle.id());
    for (kind, fd) in fds.iter().filter(|(kind, _)| *kind != "perf") {
        let file = held(&now, *fd);
        assert_eq!(file["holders"].as_array().unwrap().len(), 2, "{kind} is shared: {file}");
    }
    assert!(find(&now, fds["perf"]).is_none(), "{now:#?}");
    for kind in ["fuse", "private"] {
        assert_eq!(held(&now, fds[kind])["name"], "/dev/null", "{kind}");
    }
    talk(&control, fds["unix"], &mut peer.accept().unwrap().0);
    assert_eq!(control.ask(&format!("write {} ninth", fds["vsock"])), "5");
    assert_eq!(fs::read_to_string(machine.scratch().join("ninth")).unwrap(), "ninth");
    assert_eq!(control.ask(&format!("read {}", fds["overmounted"])), "\"another\\n\"");
    assert_eq!(control.ask(&format!("read {}", fds["taken"])), "\"\"");
    assert_eq!(control.ask(&format!("read {unlinked}")), "\"0123456789\"");
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
    leave_network(&bundle);
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
    let (restored, _, said) = outcome(&mut restore(machine, &bundle, &[rule.to_owned()]));
    assert!(restored, "{said}");
    assert_eq!(held(&table(machine, bundle.id()), fd)["name"], "/dev/null");
    bundle.end();
});

/// Has the container run in the network of this machine.
fn leave_network(bundle: &Bundle<'_>) {
    let path = bundle.dir().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

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

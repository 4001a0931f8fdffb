//! Below Kubernetes' interface: containerd's CRI, with the runtime of the project's drop-in, called
//! as kubelet does.

mod client;

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::support::{self, Containerd, DEADLINE, IMAGE, Machine, WRONG_LINE};
use client::{Cri, Pod};

/// Counts in memory and in a log.
const COUNT: &str = "echo changed >/etc/motd; exec 3>/log; i=0; \
    while :; do i=$((i+1)); echo $i >&3; done";

/// The name under which a node has pulled its image: a restore looks it up at its registry.
const PULLED: &str = "127.0.0.1:5000/counter:latest";

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < DEADLINE, "waited in vain until {what}");
    }
}

/// Debian's registry.
struct Registry {
    process: Child,
    directory: PathBuf,
}

impl Registry {
    fn start(machine: &Machine) -> Self {
        let directory = machine.scratch().join("registry");
        fs::create_dir(&directory).unwrap();
        let settings = directory.join("config.yml");
        let text = format!(
            "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\n\
             http:\n  addr: 127.0.0.1:5000\n",
            directory.display()
        );
        fs::write(&settings, text).unwrap();
        let mut serve = Command::new("docker-registry");
        serve.arg("serve").arg(&settings).stdout(Stdio::null()).stderr(Stdio::null());
        let registry = Self { process: serve.spawn().unwrap(), directory };
        until("the registry answers", || TcpStream::connect("127.0.0.1:5000").is_ok());
        registry
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// A pod whose runtime is ocicle, in a containerd that has read the drop-in.
struct Node<'m> {
    cri: Cri,
    _registry: Registry,
    _containerd: Containerd<'m>,
    pod: (String, Pod),
    machine: &'m Machine,
}

impl<'m> Node<'m> {
    fn new(machine: &'m Machine) -> Self {
        support::private_network();
        let containerd = Containerd::with_cri(machine);
        let cri = Cri::new();
        let image = format!("{IMAGE}:latest");
        until("containerd sees the image", || cri.has_image(&image));
        let registry = Registry::start(machine);
        let containerd_has = |arguments: &[&str]| {
            containerd.run(&[&["--namespace", "k8s.io", "image"], arguments].concat())
        };
        containerd_has(&["tag", &image, PULLED]);
        containerd_has(&["push", "--plain-http", PULLED]);
        containerd_has(&["remove", PULLED]);
        cri.pull(PULLED);
        let pod = cri.run_pod("pod", &format!("/{}", machine.unique("cri")), "ocicle");
        Self { cri, _registry: registry, _containerd: containerd, pod, machine }
    }

    fn exec(&self, id: &str, program: &str) -> String {
        self.cri.exec(id, &["sh", "-c", program]).unwrap()
    }

    fn lines(&self, id: &str) -> u64 {
        self.exec(id, "[ -e /log ] && wc -l </log || echo 0").trim().parse().unwrap()
    }

    fn wait_for_lines(&self, id: &str, count: u64) {
        until("the log has its lines", || self.lines(id) >= count);
    }

    /// Whether a container goes on, and its files are of the instant of its memory.
    fn is_whole(&self, id: &str) -> bool {
        self.wait_for_lines(id, self.lines(id) + 1);
        let wrong = self.exec(id, &format!("awk '{WRONG_LINE}' /log"));
        wrong.is_empty() && self.exec(id, "cat /etc/motd") == "changed\n"
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        self.cri.remove("PodSandbox", &self.pod.0);
        self.machine.remove_cgroups(&format!("/{}", self.machine.unique("cri")));
    }
}

fn a_container_comes_back(machine: &Machine) {
    let node = Node::new(machine);
    let web = node.cri.start(&node.pod, "web", PULLED, &["sh", "-c", COUNT]).unwrap();
    node.wait_for_lines(&web, 100);
    let listed = support::listed(machine);
    let found = listed.iter().find(|one| one["id"] == web.as_str()).expect("web is listed");
    assert_eq!((&found["engine"], &found["namespace"]), (&"containerd".into(), &"k8s.io".into()));
    assert_eq!(found["runtime"], machine.variant().runtime());

    let archive = machine.state_root().join("web.tar").display().to_string();
    node.cri.checkpoint(&web, &archive).unwrap();
    assert!(node.is_whole(&web), "kubelet's checkpoints leave it running");
    let members = support::run(Command::new("tar").args(["-tf", &archive]));
    assert!(members.lines().any(|name| name.ends_with("checkpoint/ocicle-manifest.json")));
    let inspected = support::run(machine.ocicle().args(["inspect", &archive]));
    assert!(inspected.contains("sh -c"), "{inspected}");
    let shown = support::run(Command::new("checkpointctl").args(["show", &archive]));
    assert!(shown.contains("web"), "{shown}");

    node.cri.remove("Container", &web);
    for name in ["one", "two"] {
        let restored = node.cri.start(&node.pod, name, &archive, &[]).unwrap();
        assert!(node.is_whole(&restored), "{name}");
        node.cri.remove("Container", &restored);
    }
    fs::remove_file(Path::new(&archive)).unwrap();
    drop(node);
}

#[test]
fn a_container_of_a_pod_comes_back_runc_v1() {
    support::on_machine(support::Variant::RuncV1, a_container_comes_back);
}

#[test]
fn a_container_of_a_pod_comes_back_crun_v1() {
    support::on_machine(support::Variant::CrunV1, a_container_comes_back);
}

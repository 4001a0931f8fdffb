//! Every kind of open file is replaced, and everything that was tied to it follows or goes.

mod locks;
mod mappings;
mod messages;
mod replacement;
mod rows;

use std::cmp::Ordering;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use ocicle::files::FileKind;
use ocicle::sys::pid::{Pid, ProcessFd};
use serde_json::{Value, json};

use crate::support::{
    Bundle, Control, Machine, Shim, Terminal, holds, in_shell, restore, restore_command, run, table,
};

/// Requests, and what is answered.
type Answers = &'static [(&'static str, &'static str)];

/// A kind of open file: a row of the table in docs/substitution.md, and a test.
struct Row {
    /// What it is; the workload knows it by this name.
    name: &'static str,
    /// The same in words.
    what: &'static str,
    /// Its type in listings.
    listed: FileKind,
    /// What takes its place in the test.
    sources: &'static [&'static str],
    /// What becomes of that which was tied to it.
    follows: &'static str,
    /// Where that is seen.
    seen: Seen,
    /// A request, and the answer for one that nobody replaced.
    kept: (&'static str, &'static str),
}

/// How it is seen what becomes of that which was tied to a replaced file.
#[derive(Clone, Copy)]
enum Seen {
    /// There was nothing.
    Nothing,
    /// By looking around the one of this name, which the null device has replaced.
    Around(fn(&Held<'_>, &str)),
    /// With containers of their own.
    Apart(fn(&Machine)),
}

/// What the host has for the sources.
struct Host {
    dir: PathBuf,
    tcp: TcpListener,
    /// Where nobody listens yet.
    free: SocketAddr,
    unix: Services,
}

/// A unix socket of each type to connect to.
struct Services {
    stream: UnixListener,
    dgram: UnixDatagram,
    seqpacket: OwnedFd,
}

impl Host {
    fn new(bundle: &Bundle<'_>) -> Self {
        let dir = bundle.dir().join("host");
        fs::create_dir(&dir).unwrap();
        for name in ["lent", "file", "exec"] {
            fs::write(dir.join(name), name).unwrap();
            fs::create_dir(dir.join(format!("{name}.d"))).unwrap();
            fs::write(dir.join(format!("{name}.d/name")), name).unwrap();
        }
        let workload = bundle.path("/bin/workload").display().to_string();
        for (script, what) in [("program", "exec"), ("program.d", "exec.d")] {
            let text = format!("#!/bin/sh\nexec {workload} lend {}\n", dir.join(what).display());
            let script = dir.join(script);
            fs::write(&script, text).unwrap();
            fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        }
        let unix = Services {
            stream: UnixListener::bind(dir.join("stream")).unwrap(),
            dgram: UnixDatagram::bind(dir.join("dgram")).unwrap(),
            seqpacket: seqpacket(&dir.join("seqpacket")),
        };
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        Self { tcp: TcpListener::bind("127.0.0.1:0").unwrap(), free, unix, dir }
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

fn seqpacket(path: &Path) -> OwnedFd {
    use nix::sys::socket::{bind, listen, socket};
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).unwrap();
    bind(socket.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
    listen(&socket, Backlog::new(5).unwrap()).unwrap();
    socket
}

/// A checkpoint of a container that holds several of one kind.
struct Held<'m> {
    machine: &'m Machine,
    bundle: Bundle<'m>,
    numbers: Value,
}

impl<'m> Held<'m> {
    fn checkpointed(machine: &'m Machine, kind: &str, count: usize) -> Self {
        let held = Self::running(machine, kind, count);
        let container = held.bundle.adopt();
        run(&mut held.checkpoint());
        container.kill();
        held
    }

    /// The container, before its checkpoint.
    fn running(machine: &'m Machine, kind: &str, count: usize) -> Self {
        let builder = machine.bundle("kinds").configure(|config| {
            for set in ["bounding", "effective", "permitted"] {
                let set = &mut config["process"]["capabilities"][set];
                let set = set.as_array_mut().unwrap();
                let more = ["CAP_NET_RAW", "CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_LEASE"];
                set.extend(more.map(|name| json!(name)));
            }
            let (path, major, minor) = ("/dev/net/tun", 10, 200);
            let device = json!({ "path": path, "type": "c", "major": major, "minor": minor });
            let rule = json!({ "allow": true, "type": "c", "major": major, "minor": minor,
                "access": "rwm" });
            config["linux"]["devices"] = json!([device]);
            config["linux"]["resources"]["devices"] = json!([rule]);
        });
        let count = count.to_string();
        let bundle = builder.args(["workload", "kinds", "/data", kind, &count]).make();
        if kind.starts_with("tun") {
            // A network of its own, with its interfaces, is part of the checkpoint: not one by a path.
            bundle.leave_network();
            bundle.reconfigure(|config| {
                let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.push(json!({ "type": "network" }));
            });
        }
        fs::write(bundle.path("/data/inside"), "inside").unwrap();
        fs::create_dir(bundle.path("/data/inside.d")).unwrap();
        fs::write(bundle.path("/data/inside.d/name"), "inside").unwrap();
        let container = bundle.run();
        container.wait_for("/data/ready");
        // The next who adopts it ends it.
        std::mem::forget(container);
        let numbers =
            serde_json::from_slice(&fs::read(bundle.path("/data/fds.json")).unwrap()).unwrap();
        Self { machine, bundle, numbers }
    }

    fn checkpoint(&self) -> Command {
        self.machine.checkpoint(&[self.bundle.id(), "--tcp-established", "--file-locks"])
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.numbers.as_object().unwrap().keys().map(String::as_str)
    }

    fn fd(&self, name: &str) -> i64 {
        self.numbers[name].as_i64().unwrap_or_else(|| panic!("{name}"))
    }

    fn rule(&self, name: &str, source: &str) -> String {
        format!("1:{}={source}", self.fd(name))
    }

    fn restore(&self, rules: &[String], fd: &str) -> Result<(), String> {
        restore(&self.bundle, self.machine, rules, fd)
    }

    /// The same at a terminal.
    fn restore_at_a_terminal(&self, rules: &[String], fd: &str) -> Terminal {
        let said = self.machine.state_root().join("said");
        let command = restore_command(&self.bundle, self.machine, rules);
        let how = format!("exec \"$@\" {fd} 2>{}", said.display());
        let (status, terminal) = Terminal::run(&in_shell(&command, &how));
        assert!(status.success(), "{}", fs::read_to_string(&said).unwrap());
        fs::remove_file(said).unwrap();
        terminal
    }

    fn ask_at(&self, socket: &str, request: &str, name: &str) -> String {
        let (verb, rest) = request.split_once(' ').unwrap_or((request, ""));
        let request = format!("{verb} {} {rest}", self.fd(name));
        Control::at(self.bundle.path("/data").join(socket)).ask(&request)
    }

    fn ask(&self, request: &str, name: &str) -> String {
        self.ask_at("control", request, name)
    }

    fn ask_child(&self, request: &str, name: &str) -> String {
        self.ask_at("control-child", request, name)
    }

    /// Asks the file of this name with an ending, one after the other.
    #[track_caller]
    fn says(&self, name: &str, ending: &str, answers: &[(&str, &str)]) {
        let name = format!("{name}{ending}");
        for (request, answer) in answers {
            assert_eq!(self.ask(request, &name), *answer, "{name}: {request}");
        }
    }

    fn before(&self) -> Vec<Value> {
        table(self.machine, &format!("{}@v1", self.bundle.id()))
    }

    /// Makes sure that both processes have every open file as one, but for the closed ones, and
    /// that those which nobody replaced are what they were.
    fn assert_shared(&self, replaced: &[String], closed: &[String]) {
        let (parent, child) = self.processes();
        let (before, now) = (self.before(), table(self.machine, self.bundle.id()));
        for name in self.names() {
            let fd = self.fd(name);
            let find = |files: &[Value]| files.iter().find(|f| holds(f, 1, fd)).cloned();
            let (was, is) = (find(&before).unwrap(), find(&now));
            if closed.iter().any(|closed| closed == name) {
                assert_eq!(is, None, "{name} is closed");
                continue;
            }
            let is = is.unwrap_or_else(|| panic!("{name} is gone"));
            assert_eq!(was["holders"], is["holders"], "{name}: who shared it shares it");
            let [ours, theirs] = [parent, child].map(|pid| process_fd(pid, fd));
            let order = ocicle::sys::kcmp::compare_files(ours, theirs).unwrap();
            assert_eq!(order, Ordering::Equal, "{name} is one open file");
            if !replaced.iter().any(|replaced| replaced == name) {
                // A terminal that CRIU opens gets O_LARGEFILE, which means nothing on 64 bits.
                let flags = |file: &Value| file["flags"].as_i64().unwrap() & !0o100000;
                let form =
                    |file: &Value| (file["type"].clone(), flags(file), file["position"].clone());
                assert_eq!(form(&was), form(&is), "{name} is what it was");
            }
        }
        let (were, are) = (before.len() - closed.len(), now.len());
        assert_eq!(were, are, "{before:#?}\n{now:#?}");
        assert_eq!(self.ask("read", "witness"), "\"456789\"");
        assert_eq!(self.ask_child("read", "witness"), "\"\"", "one position");
        assert_eq!(self.ask_child("read", "witness-read"), "\"in the pipe\"");
    }

    /// The container's two processes, as seen from here.
    fn processes(&self) -> (i32, i32) {
        let text = run(self
            .machine
            .runtime(Shim::Bare, &self.bundle.log())
            .args(["state", self.bundle.id()]));
        let state: Value = serde_json::from_str(&text).unwrap();
        let parent = i32::try_from(state["pid"].as_i64().unwrap()).unwrap();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        (parent, children.unwrap().trim().parse().unwrap())
    }
}

/// A file descriptor of a process, as seen from here.
fn process_fd(pid: i32, fd: i64) -> ProcessFd {
    ProcessFd { pid: Pid(pid), fd: i32::try_from(fd).unwrap() }
}

//! Every kind of open file is replaced, and everything that was tied to it follows or goes.

use std::cmp::Ordering;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    self, Bundle, Control, Machine, Terminal, Told, by_shell, holds, in_shell, owner_of_lock,
    restore, restore_command, run, table,
};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr};
use ocicle::files::FileKind;
use serde_json::{Value, json};

/// Requests, and what is answered.
type Answers = &'static [(&'static str, &'static str)];

/// What is read behind a pipe that nobody writes to any more.
const LAST_WORDS: Answers = &[("read", r#""queued""#), ("read", "\"\"")];
/// The same of a peer, which cannot be written to either.
const LAST_WORDS_OF_A_PEER: Answers =
    &[("read", r#""queued""#), ("read", "\"\""), ("write x", "EPIPE")];
/// What becomes of a connection whose peer is gone without a word.
const RESET: Answers = &[("read", "ECONNRESET"), ("write x", "EPIPE")];

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

/// What can take the place of anything but a directory.
const ANY: &[&str] =
    &["fd", "file", "container", "null", "empty", "tty", "unix", "tcp", "exec", "closed"];
/// The same for a connection.
const CONNECTION: &[&str] =
    &["fd", "file", "container", "null", "empty", "tty", "unix", "tcp", "exec", "closed", "reset"];
/// The same for a socket that listens.
const LISTENING: &[&str] = &[
    "fd",
    "file",
    "container",
    "null",
    "empty",
    "tty",
    "unix",
    "tcp",
    "exec",
    "unix,listen",
    "tcp,listen",
    "closed",
];
const DIRECTORY: &[&str] = &["fd", "file", "container", "exec", "closed"];

macro_rules! kinds {
    ($($test:ident: $row:expr;)*) => {
        const ROWS: &[Row] = &[$($row),*];
        $(on_each_runtime!($test, |machine| replaced_by_each_source(machine, &$row));)*
    };
}

kinds! {
    regular_file: Row {
        name: "file",
        what: "regular file",
        listed: FileKind::Reg,
        sources: ANY,
        follows: "locks pass on",
        seen: Seen::Apart(|machine| locks(machine, "locked-flock")),
        kept: ("read", r#""456789""#),
    };
    deleted_file: Row {
        name: "deleted",
        what: "regular file whose name is gone",
        listed: FileKind::Reg,
        sources: ANY,
        follows: "locks pass on; its content goes",
        seen: Seen::Apart(|machine| locks(machine, "locked-deleted")),
        kept: ("read", r#""456789""#),
    };
    directory: Row {
        name: "directory",
        what: "directory",
        listed: FileKind::Dir,
        sources: DIRECTORY,
        follows: "locks pass on",
        seen: Seen::Apart(|machine| locks(machine, "locked-directory")),
        kept: ("at", r#""original""#),
    };
    character_device: Row {
        name: "device",
        what: "character device",
        listed: FileKind::Device,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("write", "1"),
    };
    reading_end_of_a_pipe: Row {
        name: "pipe-read",
        what: "pipe, reading end",
        listed: FileKind::Pipe,
        sources: ANY,
        follows: "what waits in the pipe goes; the writing end has no reader",
        seen: Seen::Around(|held, name| held.says(name, ".other", &[("write x", "EPIPE")])),
        kept: ("read", r#""queued""#),
    };
    writing_end_of_a_pipe: Row {
        name: "pipe-write",
        what: "pipe, writing end",
        listed: FileKind::Pipe,
        sources: ANY,
        follows: "what waits in the pipe stays; after it the reading end is at its end",
        seen: Seen::Around(|held, name| held.says(name, ".other", LAST_WORDS)),
        kept: ("write", "1"),
    };
    reading_end_of_a_fifo: Row {
        name: "fifo-read",
        what: "fifo, reading end",
        listed: FileKind::Fifo,
        sources: ANY,
        follows: "what waits in the fifo stays for who opens it; the writing end has no reader",
        seen: Seen::Around(it_waits_in_the_fifo),
        kept: ("read", r#""queued""#),
    };
    writing_end_of_a_fifo: Row {
        name: "fifo-write",
        what: "fifo, writing end",
        listed: FileKind::Fifo,
        sources: ANY,
        follows: "what waits in the fifo stays",
        seen: Seen::Around(|held, name| held.says(name, ".other", LAST_WORDS)),
        kept: ("write", "1"),
    };
    slave_of_a_pseudoterminal: Row {
        name: "tty-slave",
        what: "pseudoterminal, slave",
        listed: FileKind::Tty,
        sources: ANY,
        follows: "what was typed and not read goes; the master stays, and nothing comes to it",
        seen: Seen::Around(|held, name| held.says(name, ".other", &[("read", "nothing"), ("write x", "1")])),
        kept: ("read", r#""typed\n""#),
    };
    master_of_a_pseudoterminal: Row {
        name: "tty-master",
        what: "pseudoterminal, master",
        listed: FileKind::Tty,
        sources: ANY,
        follows: "the slave is hung up",
        seen: Seen::Around(|held, name| held.says(name, ".other", &[("read", "\"\""), ("write x", "EIO")])),
        kept: ("write", "1"),
    };
    unix_pair: Row {
        name: "unix-pair",
        what: "unix stream, of a pair",
        listed: FileKind::Unix,
        sources: CONNECTION,
        follows: "what waits in it goes; its peer reads what waits there, and then the end",
        seen: Seen::Around(|held, name| held.says(name, ".other", LAST_WORDS_OF_A_PEER)),
        kept: ("read", r#""queued""#),
    };
    unix_connected: Row {
        name: "unix-connected",
        what: "unix stream, connected",
        listed: FileKind::Unix,
        sources: CONNECTION,
        follows: "its peer reads what waits there, and then the end",
        seen: Seen::Around(|held, name| held.says(name, ".other", LAST_WORDS_OF_A_PEER)),
        kept: ("write", "1"),
    };
    unix_listening: Row {
        name: "unix-listen",
        what: "unix stream, listening",
        listed: FileKind::Unix,
        sources: LISTENING,
        follows: "the name stays in the file system, or goes if there are accepted connections; who \
                  waited to be accepted reads the end",
        seen: Seen::Around(who_waited_is_at_the_end),
        kept: ("ready", "yes"),
    };
    unix_datagram_pair: Row {
        name: "unix-dgram-pair",
        what: "unix datagram, of a pair",
        listed: FileKind::Unix,
        sources: ANY,
        follows: "what waits in it goes; its peer reads what waits there, and is connected to nobody",
        seen: Seen::Around(|held, name| held.says(name, ".other", &[("read", "\"queued\""), ("read", "nothing"), ("write x", "ENOTCONN")])),
        kept: ("read", r#""queued""#),
    };
    unix_datagram_bound: Row {
        name: "unix-dgram",
        what: "unix datagram, bound",
        listed: FileKind::Unix,
        sources: ANY,
        follows: "who is connected to it is connected to nobody",
        seen: Seen::Around(|held, name| held.says(name, ".other", &[("write x", "ENOTCONN")])),
        kept: ("read", "nothing"),
    };
    unix_seqpacket_pair: Row {
        name: "unix-seqpacket-pair",
        what: "unix seqpacket, of a pair",
        listed: FileKind::Unix,
        sources: CONNECTION,
        follows: "as of a stream",
        seen: Seen::Around(|held, name| held.says(name, ".other", LAST_WORDS_OF_A_PEER)),
        kept: ("read", r#""queued""#),
    };
    unix_seqpacket_listening: Row {
        name: "unix-seqpacket-listen",
        what: "unix seqpacket, listening",
        listed: FileKind::Unix,
        sources: LISTENING,
        follows: "as of a stream",
        seen: Seen::Around(who_waited_is_at_the_end),
        kept: ("ready", "yes"),
    };
    tcp_listening: Row {
        name: "tcp-listen",
        what: "TCP, listening",
        listed: FileKind::Inet,
        sources: LISTENING,
        follows: "",
        seen: Seen::Nothing,
        kept: ("read", "nothing"),
    };
    tcp_listening_by_ipv6: Row {
        name: "tcp6-listen",
        what: "TCP over IPv6, listening",
        listed: FileKind::Inet,
        sources: LISTENING,
        follows: "",
        seen: Seen::Nothing,
        kept: ("read", "nothing"),
    };
    tcp_connected: Row {
        name: "tcp",
        what: "TCP, connected",
        listed: FileKind::Inet,
        sources: CONNECTION,
        follows: "a peer in the container finds its connection reset",
        seen: Seen::Around(|held, name| held.says(name, ".other", RESET)),
        kept: ("write", "1"),
    };
    tcp_connected_by_ipv6: Row {
        name: "tcp6",
        what: "TCP over IPv6, connected",
        listed: FileKind::Inet,
        sources: CONNECTION,
        follows: "a peer in the container finds its connection reset",
        seen: Seen::Around(|held, name| held.says(name, ".other", RESET)),
        kept: ("write", "1"),
    };
    udp: Row {
        name: "udp",
        what: "UDP",
        listed: FileKind::Inet,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("write", "EDESTADDRREQ"),
    };
    udp_by_ipv6: Row {
        name: "udp6",
        what: "UDP over IPv6",
        listed: FileKind::Inet,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("write", "EDESTADDRREQ"),
    };
    udp_connected: Row {
        name: "udp-connected",
        what: "UDP, connected",
        listed: FileKind::Inet,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("write", "1"),
    };
    raw_socket: Row {
        name: "raw",
        what: "raw socket",
        listed: FileKind::Inet,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("read", "nothing"),
    };
    packet_socket: Row {
        name: "packet",
        what: "packet socket",
        listed: FileKind::Packet,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("read", "nothing"),
    };
    netlink_socket: Row {
        name: "netlink",
        what: "netlink socket",
        listed: FileKind::Netlink,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("read", "nothing"),
    };
    eventfd: Row {
        name: "eventfd",
        what: "eventfd",
        listed: FileKind::Eventfd,
        sources: ANY,
        follows: "the counter goes",
        seen: Seen::Around(one_is_left),
        kept: ("read", r#""\u{3}\0\0\0\0\0\0\0""#),
    };
    epoll: Row {
        name: "epoll",
        what: "epoll instance",
        listed: FileKind::Epoll,
        sources: ANY,
        follows: "what it watches stays what it was",
        seen: Seen::Around(|held, name| held.says(name, ".watched", &[("read", "\"queued\"")])),
        kept: ("wait", "[7]"),
    };
    timerfd: Row {
        name: "timerfd",
        what: "timerfd",
        listed: FileKind::Timerfd,
        sources: ANY,
        follows: "the timer goes",
        seen: Seen::Around(one_is_left),
        kept: ("read", "nothing"),
    };
    signalfd: Row {
        name: "signalfd",
        what: "signalfd",
        listed: FileKind::Signalfd,
        sources: ANY,
        follows: "the signals stay blocked, and pending",
        seen: Seen::Around(the_signal_waits),
        kept: ("ready", "yes"),
    };
    inotify: Row {
        name: "inotify",
        what: "inotify instance",
        listed: FileKind::Inotify,
        sources: ANY,
        follows: "the watches go",
        seen: Seen::Around(one_is_left),
        kept: ("read", "nothing"),
    };
    fanotify: Row {
        name: "fanotify",
        what: "fanotify group",
        listed: FileKind::Fanotify,
        sources: ANY,
        follows: "the marks go",
        seen: Seen::Around(one_is_left),
        kept: ("read", "nothing"),
    };
    memfd: Row {
        name: "memfd",
        what: "memfd",
        listed: FileKind::Memfd,
        sources: ANY,
        follows: "mappings of it stay",
        seen: Seen::Apart(|machine| mappings(machine, "mapped-memfd", "memfd:mapped")),
        kept: ("position", "9"),
    };
    symbolic_link: Row {
        name: "symlink",
        what: "symbolic link itself",
        listed: FileKind::Symlink,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("read", "EBADF"),
    };
    tun_device: Row {
        name: "tun",
        what: "tun device",
        listed: FileKind::Tun,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("read", "EBADFD"),
    };
    namespace: Row {
        name: "namespace",
        what: "namespace",
        listed: FileKind::Namespace,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("read", "EINVAL"),
    };
    pidfd: Row {
        name: "pidfd",
        what: "pidfd",
        listed: FileKind::Pidfd,
        sources: ANY,
        follows: "",
        seen: Seen::Nothing,
        kept: ("read", "nothing"),
    };
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
        let mut command = self.machine.ocicle();
        command.args(["checkpoint", self.bundle.id(), "--tcp-established", "--file-locks"]);
        command.args(self.machine.variant().criu_flags());
        command
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
            let number = i32::try_from(fd).unwrap();
            let order =
                ocicle::sys::kcmp::compare_files((parent, number), (child, number)).unwrap();
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
            .runtime(support::Shim::Bare, &self.bundle.log())
            .args(["state", self.bundle.id()]));
        let state: Value = serde_json::from_str(&text).unwrap();
        let parent = i32::try_from(state["pid"].as_i64().unwrap()).unwrap();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        (parent, children.unwrap().trim().parse().unwrap())
    }
}

/// The rule's source, as it is written.
fn written(source: &str, row: &Row, host: &Host) -> String {
    let directory = if row.listed == FileKind::Dir { ".d" } else { "" };
    let options = if directory.is_empty() { ",rw,pos=start" } else { "" };
    match source {
        "fd" => "fd:7".to_owned(),
        "file" => format!("file:{}{directory}{options}", host.path("file")),
        "container" => format!("container:/data/inside{directory}{options}"),
        "unix" => format!("unix:{}", host.path(unix_type(row))),
        "unix,listen" => format!("unix:{},listen", host.path("listening")),
        "tcp" => format!("tcp:{}", host.tcp.local_addr().unwrap()),
        "tcp,listen" => format!("tcp:{},listen", host.free),
        "exec" => format!("exec:{}{directory}", host.path("program")),
        simple => simple.to_owned(),
    }
}

fn unix_type(row: &Row) -> &'static str {
    match row.name {
        name if name.starts_with("unix-dgram") => "dgram",
        name if name.starts_with("unix-seqpacket") => "seqpacket",
        _ => "stream",
    }
}

/// Replaces as many of a kind as there are sources, each by another, and leaves one.
fn replaced_by_each_source(machine: &Machine, row: &Row) {
    let held = Held::checkpointed(machine, row.name, row.sources.len() + 1);
    let host = Host::new(&held.bundle);
    let name = |number: usize| format!("{}.{number}", row.name);
    let before = held.before();
    let fd = held.fd(&name(0));
    let original = before.iter().find(|file| holds(file, 1, fd)).unwrap();
    assert_eq!(original["type"], row.listed.as_str());
    let access = original["flags"].as_i64().unwrap() & 3;

    let numbered = || row.sources.iter().enumerate();
    let rules: Vec<_> =
        numbered().map(|(at, source)| held.rule(&name(at), &written(source, row, &host))).collect();
    let lent = host.path(if row.listed == FileKind::Dir { "lent.d" } else { "lent" });
    let redirection = if row.listed == FileKind::Dir { "7<" } else { "7<>" };
    let mut terminal = held.restore_at_a_terminal(&rules, &format!("{redirection}{lent}"));

    let replaced: Vec<_> = numbered().map(|(at, _)| name(at)).collect();
    let closed: Vec<_> =
        numbered().filter(|(_, source)| **source == "closed").map(|(at, _)| name(at)).collect();
    held.assert_shared(&replaced, &closed);
    for (at, source) in numbered() {
        if *source == "tty" {
            assert_types(&held, &name(at), &mut terminal, access);
        } else {
            assert_effect(&held, &name(at), source, row, &host, access);
        }
    }
    if let (Seen::Around(look), Some(at)) =
        (row.seen, row.sources.iter().position(|source| *source == "null"))
    {
        look(&held, &name(at));
    }
    let (request, answer) = row.kept;
    let request = match request {
        "write" => "write x".to_owned(),
        "at" => "at name".to_owned(),
        other => other.to_owned(),
    };
    assert_eq!(held.ask(&request, &name(row.sources.len())), answer, "the one that stays");
    held.bundle.end();
    if let Seen::Apart(look) = row.seen {
        // In the place of this container and its checkpoint.
        fs::remove_dir_all(machine.store()).unwrap();
        drop((host, held));
        look(machine);
    }
}

/// Nobody reads a fifo any more, and what was in it is there for who comes.
fn it_waits_in_the_fifo(held: &Held<'_>, name: &str) {
    held.says(name, ".other", &[("write x", "EPIPE")]);
    let path = held.bundle.path("/data").join(name);
    let flags = libc::O_NONBLOCK;
    let mut fifo = fs::File::options().read(true).custom_flags(flags).open(path).unwrap();
    let mut bytes = [0; 16];
    let count = fifo.read(&mut bytes).unwrap();
    assert_eq!(&bytes[..count], b"queued", "{name}");
}

/// A socket that listened is gone, and who waited for it is at the end. CRIU removes the name of every
/// socket that it will bind anew (`unlink_sk` in criu/sk-unix.c), and who was accepted has the same.
fn who_waited_is_at_the_end(held: &Held<'_>, name: &str) {
    held.says(name, ".other", &[("read", "\"\""), ("write x", "EPIPE")]);
    let has_accepted = held.names().any(|other| *other == format!("{name}.server"));
    let found = fs::symlink_metadata(held.bundle.path("/data").join(name));
    assert_eq!(found.is_ok(), !has_accepted, "{name}");
}

/// The container has one of the kind, which nobody replaced.
fn one_is_left(held: &Held<'_>, name: &str) {
    let before = held.before();
    let original = before.iter().find(|file| holds(file, 1, held.fd(name))).unwrap();
    let now = table(held.machine, held.bundle.id());
    assert_eq!(now.iter().filter(|file| file["type"] == original["type"]).count(), 1, "{now:#?}");
}

/// The signal that was to be read is blocked, and pending.
fn the_signal_waits(held: &Held<'_>, _: &str) {
    let status = fs::read_to_string(format!("/proc/{}/status", held.processes().0)).unwrap();
    let mask = |field: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap() & 1 << (libc::SIGUSR2 - 1)
    };
    assert!(mask("SigBlk:") != 0 && mask("SigPnd:") != 0, "{status}");
}

/// What is written is shown at the caller's terminal, and what is typed there is read.
fn assert_types(held: &Held<'_>, name: &str, terminal: &mut Terminal, access: i64) {
    if access != i64::from(libc::O_RDONLY) {
        let text = format!("through-{name}");
        let written = held.ask_child(&format!("write {text}"), name);
        assert_eq!(written, text.len().to_string(), "{name}");
        terminal.shows(&text);
    }
    if access != i64::from(libc::O_WRONLY) {
        terminal.type_in("typed\n");
        assert_eq!(held.ask("read", name), "\"typed\\n\"", "{name}");
    }
}

/// What the processes read and write through what took a file's place.
fn assert_effect(held: &Held<'_>, name: &str, source: &str, row: &Row, host: &Host, access: i64) {
    let says = |request: &str, answer: &str| {
        assert_eq!(held.ask(request, name), answer, "{name} ({source}): {request}");
    };
    let (reads, writes) = (access != i64::from(libc::O_WRONLY), access != 0);
    if row.listed == FileKind::Dir {
        let content = match source {
            "closed" => return says("at name", "EBADF"),
            "fd" => "\"lent\"",
            "container" => "\"inside\"",
            other => &format!("{other:?}"),
        };
        return says("at name", content);
    }
    match source {
        "closed" => says("read", "EBADF"),
        "reset" => says("read", "ECONNRESET"),
        "null" | "empty" => {
            if reads {
                says("read", "\"\"");
            }
            if writes {
                says("write x", "1");
            }
        }
        "fd" | "file" | "container" | "exec" => {
            let (path, content) = match source {
                "fd" => (host.dir.join("lent"), "lent"),
                "container" => (held.bundle.path("/data/inside"), "inside"),
                other => (host.dir.join(other), other),
            };
            // Half by the one process and the rest by the other: there is one position.
            says("read", &format!("{content:?}"));
            assert_eq!(held.ask_child("write more", name), "4", "{name} ({source})");
            assert_eq!(fs::read_to_string(path).unwrap(), format!("{content}more"));
        }
        "tcp" => {
            let (peer, _) = host.tcp.accept().unwrap();
            assert_talks(held, name, peer);
        }
        "unix" => match unix_type(row) {
            "dgram" => {
                says("write x", "1");
                let mut bytes = [0; 8];
                assert_eq!(host.unix.dgram.recv(&mut bytes).unwrap(), 1);
            }
            "seqpacket" => assert_talks(held, name, accepted(&host.unix.seqpacket)),
            _ => assert_talks(held, name, host.unix.stream.accept().unwrap().0),
        },
        "unix,listen" => {
            let address = UnixAddr::new(&host.dir.join("listening")).unwrap();
            let kind = match unix_type(row) {
                "seqpacket" => SockType::SeqPacket,
                _ => SockType::Stream,
            };
            let flags = SockFlag::SOCK_CLOEXEC;
            let client = nix::sys::socket::socket(AddressFamily::Unix, kind, flags, None).unwrap();
            nix::sys::socket::connect(client.as_raw_fd(), &address).unwrap();
        }
        "tcp,listen" => drop(TcpStream::connect(host.free).unwrap()),
        other => panic!("{other}"),
    }
}

fn accepted(listener: &OwnedFd) -> fs::File {
    let fd = nix::sys::socket::accept(listener.as_raw_fd()).unwrap();
    // SAFETY: accept has just returned it.
    #[expect(unsafe_code, reason = "nix returns a number")]
    unsafe {
        fs::File::from_raw_fd(fd)
    }
}

fn assert_talks(held: &Held<'_>, name: &str, mut peer: impl Read + Write) {
    peer.write_all(b"hello").unwrap();
    assert_eq!(held.ask("read", name), "\"hello\"", "{name}");
    assert_eq!(held.ask_child("write x", name), "1", "{name}");
    let mut byte = [0];
    peer.read_exact(&mut byte).unwrap();
    assert_eq!(&byte, b"x", "{name}");
}

/// Whether somebody holds the lock that the workload took, of the same kind.
fn is_locked(path: &Path, kind: &str) -> bool {
    use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
    if ["locked-flock", "locked-deleted", "locked-directory"].contains(&kind) {
        let file = fs::File::open(path).unwrap();
        return Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err();
    }
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let range = |start| libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    };
    let (mut inside, mut behind) = (range(4), range(5));
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut inside)).unwrap();
    fcntl(&file, FcntlArg::F_OFD_GETLK(&mut behind)).unwrap();
    assert_eq!(i32::from(behind.l_type), libc::F_UNLCK, "as far as it was locked");
    i32::from(inside.l_type) != libc::F_UNLCK
}

/// A lock is held on what takes the file's place, or on nothing if the rule drops it.
fn locks(machine: &Machine, kind: &str) {
    let held = Held::checkpointed(machine, kind, 4);
    let dir = held.bundle.dir().to_owned();
    let [passed, dropped] = ["passed", "dropped"].map(|name| dir.join(name));
    let is_directory = kind == "locked-directory";
    for path in [&passed, &dropped] {
        match is_directory {
            true => fs::create_dir(path).unwrap(),
            false => fs::write(path, "a file of the host").unwrap(),
        }
    }
    let inside = if is_directory { "/data/inside.d" } else { "/data/inside" };
    let name = |number: usize| format!("{kind}.{number}");
    let rules = [
        held.rule(&name(0), &format!("file:{}", passed.display())),
        held.rule(&name(1), &format!("file:{},drop", dropped.display())),
        held.rule(&name(2), &format!("container:{inside}")),
    ];
    held.restore(&rules, "").unwrap();
    held.assert_shared(&[name(0), name(1), name(2)], &[]);
    assert!(is_locked(&passed, kind), "it passes on to a file of the host");
    assert!(!is_locked(&dropped, kind), "it is dropped");
    assert!(is_locked(&held.bundle.path(inside), kind), "it passes on in the container");
    if kind != "locked-deleted" {
        let original = |number| held.bundle.path("/data").join(name(number));
        assert!(is_locked(&original(3), kind), "another stays");
        assert!(!is_locked(&original(0), kind), "the original is not locked any more");
    }
    held.bundle.end();
}

on_each_runtime!(locks_of_ranges, |machine| locks(machine, "locked-posix"));
on_each_runtime!(locks_of_open_files, |machine| locks(machine, "locked-ofd"));

// CRIU would wait for ever for the second of two such locks.
on_each_runtime!(locks_of_two_processes, |machine| {
    let kind = "locked-by-turns";
    let held = Held::checkpointed(machine, kind, 4);
    let name = |number: usize| format!("{kind}.{number}");
    let before = held.before();
    // Of each file the one process has the lock, and its own opening.
    let owner = |number: usize| {
        let named = format!("/data/{}", name(number));
        let locked = |file: &&Value| file["name"] == *named && file["locks"].is_array();
        let file = before.iter().find(locked).unwrap_or_else(|| panic!("{named}: {before:#?}"));
        file["locks"][0]["pid"].as_i64().unwrap()
    };
    assert_eq!([owner(0), owner(2)], [1, 1]);
    let child = owner(1);
    assert!(child > 1 && owner(3) == child);
    let of = |number: usize, source: &str| {
        let process = if number.is_multiple_of(2) { 1 } else { child };
        format!("{process}:{}={source}", held.fd(&name(number)))
    };
    let dir = held.bundle.dir().to_owned();
    for file in ["one", "other"] {
        fs::write(dir.join(file), "a file of the host").unwrap();
    }
    fs::write(held.bundle.path("/data/since"), "").unwrap();
    let rule = |number, file: &str| of(number, &format!("file:{}", dir.join(file).display()));
    let mut told = Told::new(machine);
    for (what, rules) in [
        ("of two processes on one file of the host", vec![rule(0, "one"), rule(1, "one")]),
        (
            "of two processes on one file of the container",
            [0, 1].map(|at| of(at, "container:/data/inside")).into(),
        ),
        (
            "on a file that the other process has locked",
            vec![of(0, "container:/data/locked-by-turns.1")],
        ),
    ] {
        told.refused(what, &mut restore_command(&held.bundle, machine, &rules));
        assert!(held.bundle.path("/data/since").exists(), "{what}: nothing was changed");
    }
    told.compare("locks-of-two-processes");
    // Of one process they are one lock, and each process may have its own file.
    held.restore(&[rule(0, "one"), rule(2, "one"), rule(1, "other")], "").unwrap();
    for file in ["one", "other"] {
        assert!(is_locked(&dir.join(file), "locked-posix"), "{file}");
    }
    assert!(is_locked(&held.bundle.path("/data/locked-by-turns.3"), "locked-posix"));
    held.bundle.end();
});

// A lease does not pass on: it is dropped with the rule's leave, and others stay.
on_each_runtime!(leases_to_read, |machine| {
    let held = Held::checkpointed(machine, "leased-read", 4);
    let name = |number: usize| format!("leased-read.{number}");
    let before = held.before();
    let first = before.iter().find(|file| holds(file, 1, held.fd(&name(0)))).unwrap();
    assert_eq!(first["locks"][0]["kind"], "lease");
    let host = held.bundle.dir().join("host");
    fs::write(&host, "a file of the host").unwrap();
    let rule = held.rule(&name(0), &format!("file:{},pos=start", host.display()));
    fs::write(held.bundle.path("/data/since"), "").unwrap();
    let mut told = Told::new(machine);
    let mut refuse = |what: &str, rule: &String| {
        told.refused(what, &mut restore_command(&held.bundle, machine, std::slice::from_ref(rule)));
        assert!(held.bundle.path("/data/since").exists(), "{what}: nothing was changed");
    };
    refuse("a lease to read, on a file of the host", &rule);
    refuse("the same in the container", &held.rule(&name(2), "container:/data/inside"));
    refuse("the same on the null device", &held.rule(&name(2), "null"));
    told.compare("lease-to-read");
    let rules = [
        format!("{rule},drop"),
        held.rule(&name(1), "closed"),
        held.rule(&name(2), "container:/data/inside,pos=start,drop"),
    ];
    held.restore(&rules, "").unwrap();
    held.assert_shared(&[name(0), name(1), name(2)], &[name(1)]);
    assert_eq!(held.ask("read", &name(0)), "\"a file of the host\"");
    assert_eq!(held.ask("read", &name(2)), "\"inside\"");
    assert_eq!(held.ask("lease", &name(0)), "none");
    assert_eq!(held.ask("lease", &name(2)), "none");
    assert_eq!(held.ask_child("lease", &name(3)), "to read");
    assert_eq!(held.ask("read", &name(3)), "\"456789\"");
    held.bundle.end();
});

// Who opens a file with such a lease breaks it, and the signal may end its holder.
on_each_runtime!(leases_to_write, |machine| {
    let held = Held::running(machine, "leased-write", 2);
    let container = held.bundle.adopt();
    let mut told = Told::new(machine);
    told.refused("a lease to write", &mut held.checkpoint());
    told.compare("lease");
    assert_eq!(held.ask("lease", "leased-write.0"), "to write", "nobody has broken it");
    container.kill();
});

/// The nine ways that follow, each by a file of its own: what the rule says behind the path, what
/// is asked, and what the file holds then. The originals are opened to read, to write and for both,
/// by turns, and were at the fourth byte.
const OPTIONS: [(&str, Answers, &str); 9] = [
    (",ro", &[("read", "\"456789\""), ("write x", "EBADF")], "0123456789"),
    (",wo,append", &[("write x", "1"), ("read", "EBADF")], "0123456789x"),
    (",rw,pos=start", &[("read", "\"0123456789\"")], "0123456789"),
    (",rw,pos=keep", &[("read", "\"456789\""), ("write x", "1")], "0123456789x"),
    (",truncate", &[("write x", "1"), ("position", "1"), ("read", "EBADF")], "x"),
    (",create,pos=start", &[("write x", "1")], "x"),
    (",ro,pos=end", &[("read", "\"\"")], "0123456789"),
    ("", &[("write x", "1"), ("position", "5")], "0123x56789"),
    (",create,truncate,rw", &[("write xy", "2"), ("position", "2")], "xy"),
];

on_each_runtime!(every_option_of_files, |machine| {
    let held = Held::checkpointed(machine, "opened", 2 * OPTIONS.len() + 1);
    let host = held.bundle.dir().join("options");
    fs::create_dir(&host).unwrap();
    // The files of the container are in its snapshot, but for the one that is made.
    let inside = |at: usize| format!("/data/opened.{}", at + OPTIONS.len());
    let mut cases = Vec::new();
    for (at, (options, answers, content)) in OPTIONS.iter().enumerate() {
        let path = host.join(at.to_string());
        if !options.contains("create,pos") {
            fs::write(&path, "0123456789").unwrap();
        }
        let made = format!("/data/made.{at}");
        let inner = if options.contains("create,pos") { made } else { inside(at) };
        let name = |at: usize| format!("opened.{at}");
        let of_host = held.rule(&name(at), &format!("file:{}{options}", path.display()));
        let of_container =
            held.rule(&name(at + OPTIONS.len()), &format!("container:{inner}{options}"));
        cases.push((name(at), of_host, path, answers, content));
        let path = held.bundle.path(&inner);
        cases.push((name(at + OPTIONS.len()), of_container, path, answers, content));
    }
    let rules: Vec<String> = cases.iter().map(|(_, rule, ..)| rule.clone()).collect();
    held.restore(&rules, "").unwrap();
    let names: Vec<String> = cases.iter().map(|(name, ..)| name.clone()).collect();
    held.assert_shared(&names, &[]);
    for (name, rule, path, answers, content) in &cases {
        for (request, answer) in answers.iter() {
            assert_eq!(held.ask(request, name), *answer, "{rule}: {request}");
        }
        assert_eq!(fs::read_to_string(path).unwrap(), **content, "{rule}");
    }
    let last = format!("opened.{}", 2 * OPTIONS.len());
    assert_eq!(held.ask("read", &last), "\"456789\"", "what nobody replaced");
    held.bundle.end();
});

on_each_runtime!(a_tun_device_with_its_interface, |machine| {
    let held = Held::checkpointed(machine, "tun-interface", 1);
    held.restore(&[held.rule("tun-interface.0", "null")], "").unwrap();
    held.assert_shared(&["tun-interface.0".to_owned()], &[]);
    assert_eq!(held.ask("write x", "tun-interface.0"), "1");
    held.bundle.end();
});

// Stock runc restores none such either: the network is the engine's, and its interfaces are in no
// image. That is said before anything is changed.
on_each_runtime!(a_tun_device_that_is_kept_with_its_interface, |machine| {
    let held = Held::running(machine, "tun-interface", 1);
    let is_saved = machine.variant().runtime() == "crun";
    let remarks = run(machine.ocicle().args(["check", "--format", "json", held.bundle.id()]));
    assert_eq!(remarks.contains("its interface is left to the engine"), !is_saved, "{remarks}");
    let container = held.bundle.adopt();
    let images = held.bundle.images("bare");
    container.checkpoint(&images, &["--leave-running"]).unwrap();
    run(&mut held.checkpoint());
    container.kill();

    let restored = held.bundle.restore(&images, &[]).map(drop);
    let log = fs::read_to_string(held.bundle.work().join("restore.log")).unwrap();
    assert_eq!(restored.is_ok(), is_saved, "{restored:?}");
    assert_eq!(log.contains("No tun device for file tun0"), !is_saved, "{log}");

    fs::write(held.bundle.path("/data/since"), "").unwrap();
    if is_saved {
        held.restore(&[], "").unwrap();
        held.assert_shared(&[], &[]);
        let table = table(machine, held.bundle.id());
        let tun = table.iter().find(|file| holds(file, 1, held.fd("tun-interface.0"))).unwrap();
        assert_eq!(tun["name"], "tun tun0");
        held.bundle.end();
    } else {
        let mut told = Told::new(machine);
        let mut command = restore_command(&held.bundle, machine, &[""; 0]);
        told.refused("a tun device whose interface is not there", &mut command);
        told.compare("tun");
        assert!(held.bundle.path("/data/since").exists(), "nothing was changed");
    }
});

/// Waits for a lock of a byte; it goes with the file.
fn lock_of_byte(path: &Path, byte: i64) -> fs::File {
    use nix::fcntl::{FcntlArg, fcntl};
    let file = fs::File::options().write(true).open(path).unwrap();
    let range = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: byte,
        l_len: 1,
        l_pid: 0,
    };
    fcntl(&file, FcntlArg::F_SETLKW(&range)).unwrap();
    file
}

/// Who has which byte, of the container's first process and its child.
fn owners(held: &Held<'_>, name: &str) -> Vec<(i64, &'static str)> {
    let (parent, child) = held.processes();
    let path = held.bundle.path("/data").join(name);
    let locked = (0..12).filter_map(|byte| Some((byte, owner_of_lock(&path, byte)?)));
    let named = locked.map(|(byte, owner)| match owner {
        owner if owner == parent => (byte, "parent"),
        owner if owner == child => (byte, "child"),
        owner => panic!("{name}: process {owner} has byte {byte}"),
    });
    named.collect()
}

// CRIU leaves them out of its images.
on_each_runtime!(locks_on_what_another_process_shares, |machine| {
    const CHILDS: [(i64, &str); 3] = [(2, "child"), (3, "child"), (4, "child")];
    for (kind, owned) in [
        ("locked-by-child", CHILDS.to_vec()),
        ("locked-by-both", [&CHILDS[..], &[(7, "parent"), (8, "parent"), (9, "parent")]].concat()),
    ] {
        let held = Held::running(machine, kind, 2);
        let names = [0, 1].map(|number| format!("{kind}.{number}"));
        let locked = || names.iter().map(|name| owners(&held, name)).collect::<Vec<_>>();
        assert_eq!(locked(), [owned.clone(), owned.clone()], "{kind}");
        let container = held.bundle.adopt();
        run(held.checkpoint().arg("--leave-running"));
        assert_eq!(locked(), [owned.clone(), owned.clone()], "{kind}: it goes on with them");
        run(&mut held.checkpoint());
        container.kill();
        for version in ["v1", "v2"] {
            run(restore_command(&held.bundle, machine, &[""; 0]).arg(version));
            assert_eq!(locked(), [owned.clone(), owned.clone()], "{kind}: restored from {version}");
            held.bundle.end();
        }
        let host = held.bundle.dir().join("host");
        fs::write(&host, "a file of the host").unwrap();
        let rules = [held.rule(&names[0], &format!("file:{}", host.display()))];
        held.restore(&rules, "").unwrap();
        assert!(is_locked(&host, "locked-posix"), "{kind}: it passes on");
        assert_eq!(locked(), [Vec::new(), owned], "{kind}: and the other stays");
        held.bundle.end();
        fs::remove_dir_all(machine.store()).unwrap();
    }
});

on_each_runtime!(a_lock_of_a_table_that_two_processes_have, |machine| {
    let held = Held::running(machine, "locked-by-table", 1);
    let path = held.bundle.path("/data/locked-by-table.0");
    let locked = || [1, 2, 4, 5].map(|byte| owner_of_lock(&path, byte).is_some());
    assert_eq!(locked(), [false, true, true, false]);
    let container = held.bundle.adopt();
    run(&mut held.checkpoint());
    container.kill();
    held.restore(&[], "").unwrap();
    assert_eq!(locked(), [false, true, true, false]);
    held.bundle.end();
});

on_each_runtime!(a_lock_on_what_a_message_carries, |machine| {
    let held = Held::checkpointed(machine, "locked-in-flight", 1);
    let path = held.bundle.path("/data/locked-in-flight.0");
    assert!(!is_locked(&path, "locked-flock"), "nobody has it");
    held.restore(&[], "").unwrap();
    assert!(is_locked(&path, "locked-flock"));
    assert_eq!(held.ask_child("receive", "locked-in-flight.0"), "\"queued\" \"456789\"");
    held.bundle.end();
});

// CRIU sets it, and closes the file again that it has mapped.
on_each_runtime!(a_lock_on_what_is_mapped_too, |machine| {
    let held = Held::running(machine, "locked-mapped", 1);
    let path = held.bundle.path("/data/locked-mapped.0");
    let owned = [2, 3, 4].map(|byte| (byte, "parent"));
    assert_eq!(owners(&held, "locked-mapped.0"), owned);
    let container = held.bundle.adopt();
    run(&mut held.checkpoint());
    container.kill();
    held.restore(&[], "").unwrap();
    assert_eq!(owners(&held, "locked-mapped.0"), owned);
    held.bundle.end();
    // Who waits for it gets it when CRIU closes that file, unless he has come too late.
    let (refused, taken) = loop {
        let waiting = std::thread::spawn({
            let path = path.clone();
            move || {
                while owner_of_lock(&path, 2).is_none() {}
                lock_of_byte(&path, 2)
            }
        });
        let restored = held.restore(&[], "");
        if restored.is_ok() {
            held.bundle.end();
        }
        let locked = waiting.join().unwrap();
        if let Err(refused) = restored {
            break (refused, locked);
        }
    };
    let fd = held.fd("locked-mapped.0");
    let cause = format!(
        "taking the locks of processes again: fd {fd} of pid 1: its lock on /data/locked-mapped.0: \
         Resource temporarily unavailable (os error 11)\n\
         hint: somebody outside the container has locked the file: end that first"
    );
    assert!(refused.contains(&cause), "{refused}");
    drop(taken);
    held.restore(&[], "").unwrap();
    assert_eq!(owners(&held, "locked-mapped.0"), owned);
    held.bundle.end();
});

// CRIU sees no lock there, and would go on without.
on_each_runtime!(locks_that_nobody_asked_for, |machine| {
    let held = Held::running(machine, "locked-by-child", 1);
    let container = held.bundle.adopt();
    let mut told = Told::new(machine);
    for more in [&["--leave-running"][..], &[]] {
        let mut command = machine.ocicle();
        command.args(["checkpoint", held.bundle.id()]).args(more);
        command.args(machine.variant().criu_flags());
        told.refused(&["checkpoint", &more.join(" ")].concat(), &mut command);
        assert_eq!(owners(&held, "locked-by-child.0").len(), 3, "it goes on");
    }
    told.compare("lock-not-asked-for");
    container.kill();
});

on_each_runtime!(locks_that_cannot_be_held_at_once, |machine| {
    let mut told = Told::new(machine);
    for kind in ["locked-flock", "locked-ofd"] {
        let held = Held::checkpointed(machine, kind, 3);
        let host = Host::new(&held.bundle);
        fs::write(held.bundle.path("/data/since"), "").unwrap();
        let both = |source: &str| [0, 1].map(|at| held.rule(&format!("{kind}.{at}"), source));
        let anew = held.bundle.dir().join("anew");
        for (what, source) in [
            ("the same file of the container", "container:/data/inside".to_owned()),
            ("the same new file of it", "container:/data/anew,create".to_owned()),
            ("the same file of the host", format!("file:{}", host.path("file"))),
            ("the same new file of it", format!("file:{},create", anew.display())),
            ("what a program returns twice", format!("exec:{}", host.path("program"))),
        ] {
            let mut command = restore_command(&held.bundle, machine, &both(&source));
            told.refused(&format!("{kind} for two: {what}"), &mut command);
        }
        let own = held.rule(&format!("{kind}.0"), &format!("container:/data/{kind}.2"));
        let mut command = restore_command(&held.bundle, machine, &[own]);
        told.refused(&format!("{kind} for one: a file that is locked"), &mut command);
        assert!(held.bundle.path("/data/since").exists() && !anew.exists(), "nothing was changed");
        // One open file has its lock once.
        let lent = held.bundle.dir().join("lent");
        held.restore(&both("fd:7"), &format!("7<>{}", lent.display())).unwrap();
        assert!(is_locked(&lent, kind));
        held.bundle.end();
    }
    told.compare("lock-conflicts");
});

on_each_runtime!(an_epoll_instance_watches_what_takes_the_place, |machine| {
    let held = Held::checkpointed(machine, "watched", 5);
    let dir = held.bundle.dir().to_owned();
    fs::write(dir.join("file"), "cannot be polled").unwrap();
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::from_bits_truncate(0o600))
        .unwrap();
    let fifo = dir.join("fifo");
    let mut fifo = fs::File::options().read(true).write(true).open(fifo).unwrap();
    let rules = [
        held.rule("watched.0", "fd:7"),
        held.rule("watched.1", &format!("file:{}/file,drop", dir.display())),
        held.rule("watched.2", "closed"),
        held.rule("watched.3", "empty,drop"),
    ];
    held.restore(&rules, &format!("7<>{}/fifo", dir.display())).unwrap();
    let names = [0, 1, 2, 3].map(|number| format!("watched.{number}"));
    held.assert_shared(&names, &names[2..3]);
    assert_eq!(held.ask("wait", "watched.0.epoll"), "[]", "nothing is in the fifo yet");
    fifo.write_all(b"x").unwrap();
    assert_eq!(held.ask("wait", "watched.0.epoll"), "[7]", "it is watched as the original was");
    for name in ["watched.1.epoll", "watched.2.epoll", "watched.3.epoll"] {
        assert_eq!(held.ask("wait", name), "[]", "{name} watches nothing");
    }
    assert_eq!(held.ask("read", "watched.1"), "\"cannot be polled\"");
    assert_eq!(held.ask("wait", "watched.4.epoll"), "[7]", "the others watch what they did");
    held.bundle.end();
});

on_each_runtime!(a_message_carries_what_takes_the_place, |machine| {
    let held = Held::checkpointed(machine, "in-flight", 5);
    let dir = held.bundle.dir().to_owned();
    fs::write(dir.join("file"), "a file of the host").unwrap();
    let before = held.before();
    let carried = before.iter().find(|file| file["name"] == "/data/carried.0").unwrap();
    assert_eq!((&carried["in_flight"], &carried["holders"]), (&json!(true), &json!([])));
    let rules = [
        format!("/data/carried.0=file:{}/file,pos=start", dir.display()),
        "/data/carried.1=closed,drop".to_owned(),
        "/data/carried.2=container:/data/inside,pos=start".to_owned(),
        held.rule("in-flight.3", "reset"),
    ];
    held.restore(&rules, "").unwrap();
    for (name, answer) in [
        ("in-flight.0", "\"queued\" \"a file of the host\""),
        ("in-flight.1", "\"queued\""),
        ("in-flight.2", "\"queued\" \"inside\""),
        ("in-flight.4", "\"queued\" \"456789\""),
    ] {
        assert_eq!(held.ask_child("receive", name), answer, "{name}");
    }
    assert_eq!(held.ask("read", "in-flight.3"), "ECONNRESET");
    assert_eq!(held.ask("read", "in-flight.3.other"), "\"\"", "its peer is at the end");
    held.bundle.end();
});

/// The first byte of each mapping of a file that has this in its path, in order.
fn mapped(process: i32, path: &str) -> Vec<u8> {
    use std::os::unix::fs::FileExt;
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{process}/mem")).unwrap();
    let first = |line: &str| {
        let start = u64::from_str_radix(line.split('-').next().unwrap(), 16).unwrap();
        let mut byte = [0];
        memory.read_exact_at(&mut byte, start).unwrap();
        byte[0]
    };
    let mut bytes: Vec<_> = maps.lines().filter(|line| line.contains(path)).map(first).collect();
    bytes.sort_unstable();
    bytes
}

/// Mappings stay what they were when file descriptors of the same open file are replaced.
fn mappings(machine: &Machine, kind: &str, path: &str) {
    let held = Held::checkpointed(machine, kind, 4);
    let host = held.bundle.dir().join("file");
    fs::write(&host, "a file of the host").unwrap();
    let name = |number: usize| format!("{kind}.{number}");
    let rules = [
        held.rule(&name(0), &format!("file:{}", host.display())),
        held.rule(&name(1), "closed"),
        held.rule(&name(2), "container:/data/inside"),
    ];
    held.restore(&rules, "").unwrap();
    held.assert_shared(&[name(0), name(1), name(2)], &[name(1)]);
    let (parent, child) = held.processes();
    assert_eq!(mapped(parent, path), [1, 2, 3, 4]);
    assert_eq!(mapped(child, path), [1, 2, 3, 4]);
    assert_eq!(held.ask("read", &name(0)), "\"a file of the host\"");
    assert_eq!(held.ask("read", &name(1)), "EBADF");
    assert_eq!(held.ask("read", &name(2)), "\"inside\"");
    assert!(held.ask("read", &name(3)).starts_with("\"\\u{4}\\0"));
    held.bundle.end();
}

on_each_runtime!(a_mapped_file, |machine| mappings(machine, "mapped-file", "/data/mapped-file"));

on_each_runtime!(what_is_left_of_a_connection, |machine| {
    let held = Held::checkpointed(machine, "unix-pair", 2);
    held.restore(&[held.rule("unix-pair.0", "null")], "").unwrap();
    assert_eq!(held.ask("read", "unix-pair.0.other"), "\"queued\"", "what waited stays");
    assert_eq!(held.ask("read", "unix-pair.0.other"), "\"\"", "and then it is at its end");
    assert_eq!(held.ask("write x", "unix-pair.0.other"), "EPIPE");
    assert_eq!(held.ask("write x", "unix-pair.1.other"), "1");
    assert_eq!(held.ask("read", "unix-pair.1"), "\"queuedx\"", "another pair talks");
    held.bundle.end();
});

on_each_runtime!(what_is_left_of_a_datagram_socket, |machine| {
    let held = Held::checkpointed(machine, "unix-dgram-pair", 2);
    held.restore(&[held.rule("unix-dgram-pair.0", "null")], "").unwrap();
    assert_eq!(held.ask("read", "unix-dgram-pair.0.other"), "\"queued\"", "what waited stays");
    assert_eq!(held.ask("read", "unix-dgram-pair.0.other"), "nothing");
    assert_eq!(held.ask("write x", "unix-dgram-pair.0.other"), "ENOTCONN");
    assert_eq!(held.ask("read", "unix-dgram-pair.1"), "\"queued\"");
    held.bundle.end();
});

on_each_runtime!(what_is_left_of_pipes, |machine| {
    let held = Held::checkpointed(machine, "pipe-write", 2);
    held.restore(&[held.rule("pipe-write.0", "null")], "").unwrap();
    assert_eq!(held.ask("read", "pipe-write.0.other"), "\"queued\"");
    assert_eq!(held.ask("read", "pipe-write.0.other"), "\"\"");
    assert_eq!(held.ask("write x", "pipe-write.1"), "1");
    assert_eq!(held.ask("read", "pipe-write.1.other"), "\"queuedx\"");
    held.bundle.end();
});

on_each_runtime!(what_is_left_of_a_pseudoterminal, |machine| {
    let held = Held::checkpointed(machine, "tty-master", 2);
    held.restore(&[held.rule("tty-master.0", "null")], "").unwrap();
    assert_eq!(held.ask("read", "tty-master.0.other"), "\"\"", "it is hung up");
    assert_eq!(held.ask("write x", "tty-master.0.other"), "EIO");
    assert_eq!(held.ask("write x", "tty-master.1.other"), "1");
    assert_eq!(held.ask("read", "tty-master.1"), "\"x\"", "another one talks");
    held.bundle.end();
});

on_each_runtime!(the_terminal_of_a_session, |machine| {
    let held = Held::checkpointed(machine, "console", 1);
    held.restore(&[held.rule("console.0", "null")], "").unwrap();
    assert_eq!(held.ask("terminal", "witness"), "a terminal", "nobody has it open, it stays");
    held.bundle.end();
    let rules = [held.rule("console.0", "null"), held.rule("console.0.other", "null")];
    held.restore(&rules, "").unwrap();
    assert_eq!(held.ask("terminal", "witness"), "ENXIO", "it has gone with both sides");
    held.bundle.end();
});

on_each_runtime!(files_of_the_container_are_made_and_truncated, |machine| {
    let held = Held::checkpointed(machine, "file", 3);
    let made = held.bundle.path("/data/made");
    let sources = ["container:/data/made,create,pos=start", "container:/data/inside,truncate"];
    let rules = [held.rule("file.0", sources[0]), held.rule("file.1", sources[1])];
    let refused = held.restore(&[rules.as_slice(), &["99=null".to_owned()]].concat(), "");
    assert!(refused.unwrap_err().contains("99"));
    let inside = || fs::read_to_string(held.bundle.path("/data/inside")).unwrap();
    assert!(!made.exists() && inside() == "inside", "nothing is made before all is accepted");
    held.restore(&rules, "").unwrap();
    held.assert_shared(&["file.0".to_owned(), "file.1".to_owned()], &[]);
    assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o7777, 0o600);
    for name in ["file.0", "file.1"] {
        assert_eq!(held.ask("write one", name), "3");
        assert_eq!(held.ask_child("write two", name), "3");
    }
    assert_eq!((fs::read_to_string(&made).unwrap(), inside()), ("onetwo".into(), "onetwo".into()));
    held.bundle.end();
    // The snapshot has neither: they are made and truncated anew.
    held.restore(&rules, "").unwrap();
    assert_eq!((fs::read_to_string(&made).unwrap(), inside()), (String::new(), String::new()));
    held.bundle.end();
});

on_each_runtime!(all_of_a_kind, |machine| {
    let held = Held::checkpointed(machine, "eventfd", 3);
    let names = [0, 1, 2].map(|number| format!("eventfd.{number}"));
    let order = |first: &str, second: &str| {
        let (process, _) = held.processes();
        let fd = |name: &str| i32::try_from(held.fd(name)).unwrap();
        let (first, second) = ((process, fd(first)), (process, fd(second)));
        ocicle::sys::kcmp::compare_files(first, second).unwrap()
    };
    let host = held.bundle.dir().join("host");
    fs::write(&host, "0123456789").unwrap();
    for source in [format!("file:{},rw", host.display()), "fd:7".to_owned()] {
        held.restore(&[format!("all type:eventfd={source}")], &format!("7<>{}", host.display()))
            .unwrap();
        let is_one = order("eventfd.0", "eventfd.1") == Ordering::Equal;
        assert_eq!(is_one, source == "fd:7", "each its own opening, but for fd:");
        if !is_one {
            held.assert_shared(&names, &[]);
        }
        assert_eq!(held.ask("read", "eventfd.0"), "\"0123456789\"");
        let rest = if is_one { "\"\"" } else { "\"0123456789\"" };
        assert_eq!(held.ask("read", "eventfd.1"), rest);
        held.bundle.end();
    }
});

// As many as there is room for: CRIU inherits them all.
on_each_runtime!(a_thousand_files, |machine| {
    let held = Held::checkpointed(machine, "eventfd", 1000);
    let host = held.bundle.dir().join("host");
    fs::write(&host, "0123456789").unwrap();
    let rule = format!("all type:eventfd=file:{},rw", host.display());
    held.restore(&[rule], "").unwrap();
    let names: Vec<_> = (0..1000).map(|number| format!("eventfd.{number}")).collect();
    held.assert_shared(&names, &[]);
    for name in &names {
        assert_eq!(held.ask("read", name), "\"0123456789\"", "{name} has a position of its own");
    }
    held.bundle.end();
    let command = restore_command(&held.bundle, machine, &["all type:eventfd=null"]);
    let with_limit = |limit: u32| format!("ulimit -Sn 512; ulimit -Hn {limit}; exec \"$@\"");
    let mut told = Told::new(machine);
    told.refused("one less", &mut in_shell(&command, &with_limit(656 + 999)));
    told.compare("descriptors");
    assert_eq!(by_shell(&command, &with_limit(656 + 1000)), Ok(()));
    held.assert_shared(&names, &[]);
    held.bundle.end();
});

on_each_runtime!(rules_that_make_no_sense_of_the_kind, |machine| {
    let mut told = Told::new(machine);
    let mut refuse = |held: &Held<'_>, what: &str, rules: &[String]| {
        let mut command = restore_command(&held.bundle, machine, rules);
        fs::write(held.bundle.path("/data/since"), "").unwrap();
        told.refused(what, &mut command);
        assert!(held.bundle.path("/data/since").exists(), "{what}: nothing was changed");
    };
    let one = |held: &Held<'_>, name: &str, source: &str| vec![held.rule(name, source)];

    let held = Held::checkpointed(machine, "locked-flock", 1);
    let name = "locked-flock.0";
    refuse(&held, "a lock on the null device", &one(&held, name, "null"));
    refuse(&held, "a lock on a socket", &one(&held, name, "tcp:127.0.0.1:1"));
    let host = held.bundle.dir().join("host");
    fs::write(&host, "").unwrap();
    let other = fs::File::open(&host).unwrap();
    let other = nix::fcntl::Flock::lock(other, nix::fcntl::FlockArg::LockShared).unwrap();
    let rule = one(&held, name, &format!("file:{}", host.display()));
    refuse(&held, "a lock that somebody else has", &rule);
    drop(other);
    refuse(&held, "a file cannot be reset", &one(&held, "witness", "reset"));
    drop(held);

    let held = Held::checkpointed(machine, "in-flight", 1);
    let rule = "/data/carried.0=closed".to_owned();
    refuse(&held, "a closed file in a message", &[rule]);
    drop(held);

    let held = Held::checkpointed(machine, "watched", 1);
    refuse(&held, "the null device in an epoll set", &one(&held, "watched.0", "null"));
    let rule = one(&held, "watched.0", "container:/data/inside");
    refuse(&held, "a file of the container in an epoll set", &rule);
    drop(held);

    let held = Held::checkpointed(machine, "console-current", 1);
    let rules: Vec<_> =
        ["console-current.0", "console-current.0.other"].map(|name| held.rule(name, "null")).into();
    refuse(&held, "/dev/tty without its terminal", &rules);
    drop(held);

    let held = Held::checkpointed(machine, "udp", 1);
    refuse(&held, "a datagram socket has nothing to lose", &one(&held, "udp.0", "reset"));
    told.compare("kinds");
});

/// The cells of a row, without what is markup.
fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|').split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect()
}

#[test]
fn the_table_in_the_documentation_says_what_is_tested() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/substitution.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, table) =
        text.split_once("<!-- kinds: tests/it/kinds.rs -->").expect("the table's mark");
    let written: Vec<_> = table
        .lines()
        .skip_while(|line| !line.starts_with("|---"))
        .skip(1)
        .take_while(|line| line.starts_with('|'))
        .map(cells)
        .collect();
    let tested: Vec<_> = ROWS
        .iter()
        .map(|row| {
            let (what, listed) = (row.what.to_owned(), row.listed.as_str().to_owned());
            vec![what, listed, sources_in_words(row.sources), row.follows.to_owned()]
        })
        .collect();
    for row in ROWS {
        let says_nothing = matches!(row.seen, Seen::Nothing);
        assert_eq!(row.follows.is_empty(), says_nothing, "{}: what is said is seen", row.what);
    }
    assert_eq!(written, tested, "one row for each kind that is tested:\n{}", as_table());
    let untested: Vec<_> =
        FileKind::ALL.iter().filter(|kind| ROWS.iter().all(|row| row.listed != **kind)).collect();
    let (_, rest) = table.split_once("No row, no test: ").expect("the kinds without a row");
    let said = rest.split_once('.').unwrap().0;
    let named: Vec<_> = untested.iter().map(|kind| format!("`{kind}`")).collect();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>().join(" "), named.join(", "));
}

fn sources_in_words(sources: &[&str]) -> String {
    let named = [
        (ANY, "any"),
        (CONNECTION, "any, reset"),
        (LISTENING, "any, listen"),
        (DIRECTORY, "directory"),
    ];
    named
        .iter()
        .find(|(list, _)| *list == sources)
        .map_or_else(|| sources.join(", "), |(_, word)| (*word).to_owned())
}

/// The rows, to be pasted.
fn as_table() -> String {
    let line = |row: &Row| {
        let sources = sources_in_words(row.sources);
        format!("| {} | `{}` | {} | {} |", row.what, row.listed, sources, row.follows)
    };
    ROWS.iter().map(line).collect::<Vec<_>>().join("\n")
}

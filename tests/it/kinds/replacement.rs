//! What takes a place: from each source, with each option, of many files at once.

use std::cmp::Ordering;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr};
use ocicle::files::FileKind;

use super::{Answers, Held, Host, Row, Seen, process_fd};
use crate::support::{
    Machine, Terminal, Told, by_shell, holds, in_shell, restore_command, run, table,
};

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
pub(super) fn replaced_by_each_source(machine: &Machine, row: &Row) {
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

/// The nine ways that follow, each by a file of its own: what the rule says behind the path, what
/// is asked, and what the file holds then. The originals are opened to read, to write and for both,
/// by turns, and were at the fourth byte.
const OPTIONS: [(&str, Answers, &str); 9] = [
    (",ro", &[("read", "\"456789\""), ("write x", "EBADF")], "0123456789"),
    (",wo,append", &[("write x", "1"), ("read", "EBADF")], "0123456789x"),
    (",rw,pos=start", &[("read", "\"0123456789\"")], "0123456789"),
    (",rw,pos=keep", &[("read", "\"456789\""), ("write x", "1")], "0123456789x"),
    (",truncate", &[("write x", "1"), ("position", "1"), ("read", "EBADF")], "x"),
    // One that is made has nothing before its beginning.
    (",create", &[("write x", "1"), ("position", "1")], "x"),
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
        if *options != ",create" {
            fs::write(&path, "0123456789").unwrap();
        }
        let made = format!("/data/made.{at}");
        let inner = if *options == ",create" { made } else { inside(at) };
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
        let [first, second] = [first, second].map(|name| process_fd(process, held.fd(name)));
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

//! The kinds, one by one: a row of the table in docs/substitution.md is a test.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ocicle::files::FileKind;

use super::replacement::replaced_by_each_source;
use super::{Answers, Held, Row, Seen, locks, mappings};
use crate::support::{holds, table};

/// What is read behind a pipe that nobody writes to any more.
const LAST_WORDS: Answers = &[("read", r#""queued""#), ("read", "\"\"")];
/// The same of a peer, which cannot be written to either.
const LAST_WORDS_OF_A_PEER: Answers =
    &[("read", r#""queued""#), ("read", "\"\""), ("write x", "EPIPE")];
/// What becomes of a connection whose peer is gone without a word.
const RESET: Answers = &[("read", "ECONNRESET"), ("write x", "EPIPE")];

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
        seen: Seen::Apart(|machine| locks::pass_on(machine, "locked-flock")),
        kept: ("read", r#""456789""#),
    };
    deleted_file: Row {
        name: "deleted",
        what: "regular file whose name is gone",
        listed: FileKind::Reg,
        sources: ANY,
        follows: "locks pass on; its content goes",
        seen: Seen::Apart(|machine| locks::pass_on(machine, "locked-deleted")),
        kept: ("read", r#""456789""#),
    };
    directory: Row {
        name: "directory",
        what: "directory",
        listed: FileKind::Dir,
        sources: DIRECTORY,
        follows: "locks pass on",
        seen: Seen::Apart(|machine| locks::pass_on(machine, "locked-directory")),
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
        seen: Seen::Apart(|machine| mappings::stay(machine, "mapped-memfd", "memfd:mapped")),
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

/// The cells of a row, without what is markup.
fn cells(line: &str) -> Vec<String> {
    line.trim_matches('|').split('|').map(|cell| cell.replace('`', "").trim().to_owned()).collect()
}

#[test]
fn the_table_in_the_documentation_says_what_is_tested() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/substitution.md");
    let text = fs::read_to_string(path).unwrap();
    let (_, table) =
        text.split_once("<!-- kinds: tests/it/kinds/rows.rs -->").expect("the table's mark");
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

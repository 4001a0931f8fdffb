//! Whether CRIU can dump an open file: a verdict from what is known of it.
//!
//! The rules are those of `dump_one_file` in criu/files.c and of what it calls (4.2); each
//! [`Obstacle`] names the function that refuses. Nothing here looks at the machine: what is known
//! of a live file is gathered elsewhere, and what CRIU is told is [`DumpSettings`].

use std::fmt;

use super::settings::DumpSettings;
use super::table::ExternalFile;
use crate::bytes::ByteString;
use crate::container::FileKind;
use crate::sys::inode::Device;

/// Where a file is that CRIU saves by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At its path, or it needs none.
    There,
    /// On a mount that the container does not have.
    Foreign(ExternalFile),
    /// On a mount with another mounted over it.
    Overmounted,
    /// Nowhere: the last name was removed. So many bytes are on disk.
    Deleted {
        /// Bytes on disk.
        stored: u64,
    },
    /// Its name was removed, and the container has it by another.
    OtherName,
    /// Its name was removed, and it has others that are not in the container.
    Unlinked,
    /// Another file has its path.
    Taken,
}

/// What else decides, by what a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Nothing.
    Plain,
    /// A character device that is no terminal, or a block device: its number.
    Device {
        /// Whether it is a character device.
        character: bool,
        /// Its number.
        device: Device,
    },
    /// A tun device: whether its network is the host's.
    Tun {
        /// Whether it is.
        of_host: bool,
    },
    /// A terminal.
    Terminal {
        /// Its number.
        device: Device,
        /// Whether the session that it controls is led from outside the container.
        session_outside: bool,
    },
    /// A socket.
    Socket(Socket),
    /// An anonymous inode, as `/proc/PID/fd` links to it.
    Anonymous(ByteString),
    /// A pidfd.
    Pidfd {
        /// Whether its process is not dumped.
        outside: bool,
        /// Whether it refers to a thread, `PIDFD_THREAD`.
        thread: bool,
    },
    /// An inotify instance or fanotify group: how many of the files that it watches CRIU will not
    /// find.
    Watches {
        /// Files without a handle that can be opened.
        lost: usize,
    },
    /// A BPF map of this type (`enum bpf_map_type`).
    BpfMap(u32),
    /// A POSIX message queue, whose file system only the kernel mounts.
    MessageQueue,
    /// A namespace: whether a process that is dumped is in it.
    Namespace {
        /// Whether one is.
        known: bool,
    },
}

/// What is known of a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Socket {
    /// `AF_…`.
    pub family: i32,
    /// `SOCK_…`.
    pub kind: i32,
    /// `IPPROTO_…`, `NETLINK_…`.
    pub protocol: i32,
    /// `TCP_…`, of a unix socket as well.
    pub state: u8,
    /// Connections that nobody has accepted.
    pub backlog: u32,
    /// Whether a datagram is being put together (`UDP_CORK`).
    pub corked: bool,
    /// Whether there is something to read.
    pub unread: bool,
    /// The other end of a unix socket.
    pub peer: Peer,
}

/// The other end of a unix socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Peer {
    /// There is none, or it is held by a process that is dumped.
    #[default]
    Inside,
    /// It is held by others only.
    Outside {
        /// Whether it is bound to a name.
        named: bool,
    },
    /// It was closed, and the socket was not shut down both ways.
    Dangling,
}

/// An open file, as far as that decides over its dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Described {
    /// What it is.
    pub kind: FileKind,
    /// Its `O_…` flags.
    pub flags: u32,
    /// Where it is.
    pub place: Place,
    /// What else decides.
    pub detail: Detail,
    /// Whether a process holds a lock or lease through it.
    pub locked: bool,
    /// Whether that is a lease to write.
    pub leased: bool,
}

/// What will become of an open file at a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// CRIU saves it.
    Dumps,
    /// CRIU is told to leave it out: something has to take its place at a restore.
    LeftOut(ExternalFile),
    /// CRIU fails over it, for each of these reasons.
    Fails(Vec<Obstacle>),
}

/// Why CRIU fails over an open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// There is no code for its type (`dump_unsupp_fd` in criu/files-ext.c).
    Type(String),
    /// An io_uring instance, which is one of them.
    IoUring,
    /// No terminal driver that CRIU knows (`get_tty_driver` in criu/tty.c).
    TerminalDriver,
    /// A terminal from outside (`dump_one_reg_file` in criu/files-reg.c).
    TerminalOutside,
    /// A terminal of a session from outside (`dump_verify_tty_sids` in criu/tty.c).
    SessionOutside,
    /// A family, type or protocol that CRIU does not know (`dump_socket` in criu/sockets.c,
    /// `can_dump_ipproto` in criu/sk-inet.c).
    Protocol(String),
    /// A TCP connection (`can_dump_inet_sk` in criu/sk-inet.c).
    Connected,
    /// Connections that nobody has accepted (the same).
    Backlog(u32),
    /// A datagram that is being put together (the same).
    Corked,
    /// A unix socket with its peer outside (`__dump_external_socket` in criu/sk-unix.c).
    PeerOutside {
        /// Whether `--ext-unix-sk` is enough.
        allowable: bool,
    },
    /// A unix socket whose peer went away in the middle (`dump_one_unix_fd` in criu/sk-unix.c).
    Dangling,
    /// A netlink socket with something to read (`can_dump_netlink_sk` in criu/sk-netlink.c).
    Unread,
    /// A pidfd of a process that is not dumped (`dump_one_pidfd` in criu/pidfd.c).
    PidfdOutside,
    /// A pidfd of a thread (the same).
    PidfdThread,
    /// Watched files without a handle that can be opened (`check_open_handle` in
    /// criu/fsnotify.c).
    Watches(usize),
    /// A pipe of packets (`dump_one_pipe` in criu/pipes.c).
    PacketPipe,
    /// A BPF map of another type than hash and array (`dump_one_bpfmap_data` in criu/bpfmap.c).
    BpfMap(u32),
    /// A POSIX message queue: it is on no mount of the container (`lookup_nsid_by_mnt_id` in
    /// criu/mount.c), and its messages are in no image (`mqueue_dump` in criu/filesystems.c).
    MessageQueue,
    /// A namespace that no process is in (`dump_one_ns_file` in criu/namespaces.c).
    Namespace,
    /// A large deleted file (`dump_ghost_remap` in criu/files-reg.c).
    Ghost {
        /// Its bytes on disk.
        stored: u64,
        /// The most that are allowed.
        limit: u64,
    },
    /// A removed name of a file that has others, none of which a restore would find: CRIU makes one for
    /// the time of the dump (`create_link_remap` in criu/files-reg.c), and wants it back.
    Unlinked,
    /// Another file at its path (`check_path_remap` in criu/files-reg.c).
    Taken,
    /// A mount with another over it (`dump_one_reg_file` in criu/files-reg.c).
    Overmounted,
    /// A lock (`dump_file_locks` in criu/file-lock.c).
    Locked,
    /// A lease to write: CRIU opens the file (`store_validation_data_build_id` in
    /// criu/files-reg.c), as a snapshot does; that breaks the lease, and its holder gets a signal
    /// (fcntl(2)), while CRIU waits until it has ended the lease.
    Leased,
}

/// What CRIU will do about an open file.
pub fn verdict(file: &Described, settings: &DumpSettings) -> Verdict {
    let locked = file.locked && !settings.file_locks;
    let obstacles: Vec<_> = type_obstacle(file, settings)
        .into_iter()
        .chain(place_obstacle(&file.place, settings))
        .chain(locked.then_some(Obstacle::Locked))
        .chain(file.leased.then_some(Obstacle::Leased))
        .collect();
    match file.place {
        _ if !obstacles.is_empty() => Verdict::Fails(obstacles),
        Place::Foreign(external) if is_left_out(file) => Verdict::LeftOut(external),
        _ => Verdict::Dumps,
    }
}

/// Whether ocicle has CRIU leave the file out when it is on a mount from outside: what is saved by
/// its path (`dump_one_file` in criu/files.c), but no terminal.
fn is_left_out(file: &Described) -> bool {
    match file.kind {
        FileKind::Reg | FileKind::Dir | FileKind::Symlink | FileKind::Fifo => true,
        FileKind::Device => device_is_saved_by_path(&file.detail),
        _ => false,
    }
}

/// Memory devices (`/dev/null` and its like), and of the miscellaneous ones autofs
/// (`dump_chrdev` in criu/files.c).
fn device_is_saved_by_path(detail: &Detail) -> bool {
    matches!(
        detail,
        Detail::Device {
            character: true,
            device: Device { major: 1, .. } | Device { major: 10, minor: 235 },
        }
    )
}

/// What its type alone makes impossible.
fn type_obstacle(file: &Described, settings: &DumpSettings) -> Option<Obstacle> {
    match &file.detail {
        Detail::Plain if file.kind == FileKind::Pipe => {
            let packets = file.flags & libc::O_DIRECT as u32 != 0;
            packets.then_some(Obstacle::PacketPipe)
        }
        Detail::Plain => None,
        Detail::Device { character, device } => {
            let kind = if *character { "character" } else { "block" };
            (!device_is_saved_by_path(&file.detail))
                .then(|| Obstacle::Type(format!("the {kind} device {device}")))
        }
        // "Net namespace is required to dump tun link" of `dump_tunfile` in criu/tun.c.
        Detail::Tun { of_host } => {
            of_host.then(|| Obstacle::Type("tun devices in the network of the host".to_owned()))
        }
        Detail::Terminal { device, session_outside } => {
            if !has_driver(*device) {
                return Some(Obstacle::TerminalDriver);
            }
            let outside = matches!(file.place, Place::Foreign(_));
            match settings.shell_job {
                true => None,
                false if outside => Some(Obstacle::TerminalOutside),
                false => session_outside.then_some(Obstacle::SessionOutside),
            }
        }
        Detail::Socket(socket) => socket_obstacle(socket, settings),
        Detail::Anonymous(link) => {
            (file.kind == FileKind::Unknown).then(|| anonymous_obstacle(link))
        }
        Detail::Pidfd { thread: true, .. } => Some(Obstacle::PidfdThread),
        Detail::Pidfd { outside, .. } => outside.then_some(Obstacle::PidfdOutside),
        Detail::Watches { lost } => (*lost > 0).then_some(Obstacle::Watches(*lost)),
        Detail::BpfMap(_) if !settings.bpf_maps => Some(Obstacle::Type("BPF maps".to_owned())),
        // BPF_MAP_TYPE_HASH and BPF_MAP_TYPE_ARRAY.
        Detail::BpfMap(kind) => (!matches!(kind, 1 | 2)).then_some(Obstacle::BpfMap(*kind)),
        Detail::MessageQueue => Some(Obstacle::MessageQueue),
        Detail::Namespace { known } => (!known).then_some(Obstacle::Namespace),
    }
}

/// Terminals that `get_tty_driver` of criu/tty.c knows: pseudoterminals, the controlling one, the
/// console, virtual consoles, and serial lines on USB or with dense numbers.
fn has_driver(device: Device) -> bool {
    match device.major {
        4 => (1..=63).contains(&device.minor),
        5 => device.minor <= 2,
        128..=135 | 136..=143 | 188 | 204 => true,
        _ => false,
    }
}

/// What the link of an anonymous file says of it, as `anon_inode:[perf_event]`.
fn anonymous_obstacle(link: &ByteString) -> Obstacle {
    let name = link.to_string();
    let name = name.strip_prefix("anon_inode:").unwrap_or(&name);
    match name.trim_start_matches('[').trim_end_matches(']') {
        IO_URING => Obstacle::IoUring,
        other => Obstacle::Type(format!("files of type {other}")),
    }
}

const IO_URING: &str = "io_uring";

fn socket_obstacle(socket: &Socket, settings: &DumpSettings) -> Option<Obstacle> {
    match socket.family {
        libc::AF_INET | libc::AF_INET6 => inet_obstacle(socket, settings),
        libc::AF_UNIX => unix_obstacle(socket, settings),
        libc::AF_NETLINK => socket.unread.then_some(Obstacle::Unread),
        libc::AF_PACKET => None,
        family => Some(Obstacle::Protocol(family_name(family))),
    }
}

/// States of include/net/tcp_states.h.
pub const TCP_CLOSE: u8 = 7;
const TCP_LISTEN: u8 = 10;

fn inet_obstacle(socket: &Socket, settings: &DumpSettings) -> Option<Obstacle> {
    const KNOWN: [i32; 6] = [
        libc::IPPROTO_IP,
        libc::IPPROTO_TCP,
        libc::IPPROTO_UDP,
        libc::IPPROTO_UDPLITE,
        libc::IPPROTO_ICMP,
        libc::IPPROTO_ICMPV6,
    ];
    if socket.kind == libc::SOCK_RAW {
        return None;
    }
    if !KNOWN.contains(&socket.protocol) {
        return Some(Obstacle::Protocol(protocol_name(socket.protocol)));
    }
    match (socket.kind, socket.state) {
        (libc::SOCK_DGRAM, _) => socket.corked.then_some(Obstacle::Corked),
        (_, TCP_LISTEN) if socket.backlog > 0 && !settings.tcp_skip_in_flight => {
            Some(Obstacle::Backlog(socket.backlog))
        }
        (_, TCP_LISTEN | TCP_CLOSE) => None,
        _ => (!settings.tcp_established).then_some(Obstacle::Connected),
    }
}

fn unix_obstacle(socket: &Socket, settings: &DumpSettings) -> Option<Obstacle> {
    match socket.peer {
        Peer::Inside => (socket.backlog > 0).then_some(Obstacle::Backlog(socket.backlog)),
        Peer::Dangling => Some(Obstacle::Dangling),
        Peer::Outside { named } => {
            let allowable = named && socket.kind == libc::SOCK_DGRAM;
            let allowed = allowable && settings.ext_unix_sk;
            (!allowed).then_some(Obstacle::PeerOutside { allowable })
        }
    }
}

fn family_name(family: i32) -> String {
    match family {
        libc::AF_VSOCK => "vsock".to_owned(),
        libc::AF_ALG => "alg".to_owned(),
        libc::AF_CAN => "can".to_owned(),
        libc::AF_BLUETOOTH => "bluetooth".to_owned(),
        libc::AF_XDP => "xdp".to_owned(),
        libc::AF_KEY => "key".to_owned(),
        libc::AF_TIPC => "tipc".to_owned(),
        other => format!("address family {other}"),
    }
}

fn protocol_name(protocol: i32) -> String {
    match protocol {
        libc::IPPROTO_MPTCP => "mptcp".to_owned(),
        libc::IPPROTO_SCTP => "sctp".to_owned(),
        libc::IPPROTO_DCCP => "dccp".to_owned(),
        other => format!("IP protocol {other}"),
    }
}

/// What its place makes impossible, for a file that CRIU may leave out. It may leave out no
/// mapping, program or directory that a process stands in: there [`Place::Foreign`] is an
/// obstacle too.
pub fn place_obstacle(place: &Place, settings: &DumpSettings) -> Option<Obstacle> {
    match place {
        Place::There | Place::OtherName | Place::Foreign(_) => None,
        Place::Overmounted => Some(Obstacle::Overmounted),
        Place::Deleted { stored } => {
            let (stored, limit) = (*stored, settings.ghost_limit);
            (stored > limit).then_some(Obstacle::Ghost { stored, limit })
        }
        Place::Unlinked => Some(Obstacle::Unlinked),
        Place::Taken => Some(Obstacle::Taken),
    }
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Type(what) => write!(f, "CRIU cannot save {what}"),
            Self::IoUring => write!(f, "CRIU cannot save files of type {IO_URING}"),
            Self::TerminalDriver => f.write_str("CRIU does not know terminals of this kind"),
            Self::TerminalOutside => f.write_str("the terminal comes from outside the container"),
            Self::SessionOutside => {
                f.write_str("the session of the terminal began outside the container")
            }
            Self::Protocol(what) => write!(f, "CRIU cannot save {what} sockets"),
            Self::Connected => f.write_str("it is connected"),
            Self::Backlog(1) => f.write_str("a connection has not been accepted yet"),
            Self::Backlog(count) => write!(f, "{count} connections have not been accepted yet"),
            Self::Corked => f.write_str("a datagram is being put together on it"),
            Self::PeerOutside { .. } => {
                f.write_str("it is connected to a process outside the container")
            }
            Self::Dangling => f.write_str("its peer is gone and it is not shut down"),
            Self::Unread => f.write_str("a message has not been read from it yet"),
            Self::PidfdOutside => f.write_str("its process is not part of the container"),
            Self::PidfdThread => f.write_str("CRIU cannot save the pidfd of a thread"),
            Self::Watches(1) => f.write_str("CRIU cannot find the file that it watches"),
            Self::Watches(lost) => write!(f, "CRIU cannot find {lost} files that it watches"),
            Self::PacketPipe => f.write_str("CRIU cannot save a pipe of packets"),
            Self::BpfMap(kind) => write!(f, "CRIU cannot save BPF maps of type {kind}"),
            Self::MessageQueue => f.write_str("a POSIX message queue cannot be saved"),
            Self::Namespace => f.write_str("no process of the container is in this namespace"),
            Self::Ghost { stored, limit } => {
                write!(f, "it is deleted, and its {stored} bytes are more than {limit}")
            }
            Self::Unlinked => {
                f.write_str("its name was removed, and its others are not in the container")
            }
            Self::Taken => f.write_str("another file has its path"),
            Self::Overmounted => f.write_str("something is mounted over it"),
            Self::Locked => f.write_str("a process holds a lock on it"),
            Self::Leased => f.write_str(
                "a process holds a lease to write on it, which CRIU breaks by opening it",
            ),
        }
    }
}

impl Obstacle {
    /// The option of `ocicle checkpoint` with which it is none.
    pub fn option(&self) -> Option<&'static str> {
        match self {
            Self::TerminalOutside | Self::SessionOutside => Some("--shell-job"),
            Self::Connected => Some("--tcp-established"),
            Self::PeerOutside { allowable: true } => Some("--ext-unix-sk"),
            Self::Locked => Some("--file-locks"),
            _ => None,
        }
    }

    /// Whether it stays as long as the program does what it does: a file that is in this state for
    /// the moment, or that an option allows, is left to CRIU.
    pub fn is_lasting(&self) -> bool {
        let passing = matches!(
            self,
            Self::Backlog(_) | Self::Corked | Self::Unread | Self::Dangling | Self::Ghost { .. }
        );
        !passing && self.option().is_none()
    }

    /// Whether it may be over in a moment, with the program doing what it does: seen while that runs it
    /// decides nothing.
    pub fn can_pass(&self) -> bool {
        let by_others = matches!(self, Self::Unlinked | Self::Taken | Self::PeerOutside { .. });
        by_others || matches!(self, Self::Connected | Self::Locked) || !self.is_lasting()
    }

    /// Whether it is of what changes all the time in one and the same file.
    pub fn is_of_content(&self) -> bool {
        matches!(self, Self::Backlog(_) | Self::Corked | Self::Unread)
    }

    /// Whether it is none if CRIU does not look at the file. A lock is saved apart from it. An
    /// io_uring instance is nothing that a process can hand to another (`io_is_uring_fops` in
    /// net/core/scm.c of the kernel), and so CRIU gets to none.
    pub fn can_be_set_aside(&self) -> bool {
        !matches!(self, Self::Locked | Self::Leased | Self::IoUring | Self::MessageQueue)
    }

    /// What would help, but for a rule.
    pub fn help(&self) -> String {
        if let Some(option) = self.option() {
            return option.to_owned();
        }
        match self {
            Self::Ghost { stored, .. } => {
                return format!("criu.ghost-limit = \"{}M\" or more", stored.div_ceil(1 << 20));
            }
            Self::IoUring => {
                "have the program work without io_uring, by a setting of its own or a seccomp profile \
                 that refuses io_uring_setup"
            }
            Self::Backlog(_) | Self::Corked | Self::Unread => "try again a little later",
            Self::PeerOutside { .. } | Self::Dangling => {
                "close the connection before the checkpoint"
            }
            Self::Watches(_) => "end the watch before the checkpoint",
            Self::Overmounted => "unmount what is over it",
            Self::Leased => "end the lease before the checkpoint",
            _ => "close it before the checkpoint",
        }
        .to_owned()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn strict() -> DumpSettings {
        DumpSettings {
            tcp_established: false,
            tcp_skip_in_flight: false,
            file_locks: false,
            ext_unix_sk: false,
            shell_job: false,
            bpf_maps: true,
            ghost_limit: 1 << 20,
        }
    }

    fn lenient() -> DumpSettings {
        DumpSettings {
            tcp_established: true,
            tcp_skip_in_flight: true,
            file_locks: true,
            ext_unix_sk: true,
            shell_job: true,
            bpf_maps: true,
            ghost_limit: 1 << 30,
        }
    }

    pub(crate) fn file(kind: FileKind, detail: Detail) -> Described {
        Described { kind, flags: 0, place: Place::There, detail, locked: false, leased: false }
    }

    fn at(place: Place) -> Described {
        Described { place, ..file(FileKind::Reg, Detail::Plain) }
    }

    fn socket(family: i32, kind: i32, protocol: i32) -> Socket {
        Socket { family, kind, protocol, state: TCP_CLOSE, ..Socket::default() }
    }

    fn of_socket(socket: Socket) -> Described {
        file(FileKind::Unknown, Detail::Socket(socket))
    }

    fn tcp(state: u8) -> Socket {
        Socket { state, ..socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_TCP) }
    }

    fn unix(kind: i32, peer: Peer) -> Described {
        of_socket(Socket { peer, ..socket(libc::AF_UNIX, kind, 0) })
    }

    fn device(character: bool, major: u32, minor: u32) -> Described {
        file(FileKind::Device, Detail::Device { character, device: Device { major, minor } })
    }

    fn terminal(major: u32, minor: u32, session_outside: bool) -> Described {
        file(FileKind::Tty, Detail::Terminal { device: Device { major, minor }, session_outside })
    }

    fn anonymous(kind: FileKind, link: &str) -> Described {
        file(kind, Detail::Anonymous(link.into()))
    }

    fn external() -> ExternalFile {
        ExternalFile { mount: 5, inode: 6 }
    }

    fn obstacles(file: &Described, settings: &DumpSettings) -> Vec<Obstacle> {
        match verdict(file, settings) {
            Verdict::Fails(obstacles) => obstacles,
            _ => Vec::new(),
        }
    }

    #[test]
    fn what_is_dumped() {
        let outside = Peer::Outside { named: true };
        for dumped in [
            file(FileKind::Reg, Detail::Plain),
            at(Place::Deleted { stored: 1 << 20 }),
            device(true, 1, 3),
            device(true, 10, 235),
            file(FileKind::Tun, Detail::Tun { of_host: false }),
            terminal(136, 4, false),
            terminal(5, 0, false),
            anonymous(FileKind::Eventfd, "anon_inode:[eventfd]"),
            file(FileKind::Pidfd, Detail::Pidfd { outside: false, thread: false }),
            file(FileKind::Inotify, Detail::Watches { lost: 0 }),
            file(FileKind::Bpfmap, Detail::BpfMap(2)),
            file(FileKind::Namespace, Detail::Namespace { known: true }),
            of_socket(tcp(TCP_LISTEN)),
            of_socket(socket(libc::AF_INET6, libc::SOCK_DGRAM, libc::IPPROTO_UDP)),
            of_socket(socket(libc::AF_INET, libc::SOCK_RAW, 89)),
            of_socket(socket(libc::AF_PACKET, libc::SOCK_RAW, 0)),
            of_socket(socket(libc::AF_NETLINK, libc::SOCK_RAW, 0)),
            unix(libc::SOCK_STREAM, Peer::Inside),
        ] {
            assert_eq!(verdict(&dumped, &strict()), Verdict::Dumps, "{dumped:?}");
        }
        assert_eq!(verdict(&unix(libc::SOCK_DGRAM, outside), &lenient()), Verdict::Dumps);
    }

    #[test]
    fn what_is_left_out() {
        let foreign = || at(Place::Foreign(external()));
        assert_eq!(verdict(&foreign(), &strict()), Verdict::LeftOut(external()));
        let null = Described { place: Place::Foreign(external()), ..device(true, 1, 3) };
        assert_eq!(verdict(&null, &strict()), Verdict::LeftOut(external()));
        let locked = Described { locked: true, ..foreign() };
        assert_eq!(obstacles(&locked, &strict()), [Obstacle::Locked]);
    }

    #[test]
    fn what_an_option_allows() {
        let foreign = Described { place: Place::Foreign(external()), ..terminal(136, 4, false) };
        let backlog = Socket { backlog: 2, ..tcp(TCP_LISTEN) };
        let ghost = Obstacle::Ghost { stored: (1 << 20) + 4096, limit: 1 << 20 };
        let allowable = Obstacle::PeerOutside { allowable: true };
        for (file, obstacle) in [
            (of_socket(tcp(1)), Obstacle::Connected),
            (of_socket(tcp(2)), Obstacle::Connected),
            (of_socket(backlog), Obstacle::Backlog(2)),
            (unix(libc::SOCK_DGRAM, Peer::Outside { named: true }), allowable),
            (terminal(136, 4, true), Obstacle::SessionOutside),
            (foreign, Obstacle::TerminalOutside),
            (at(Place::Deleted { stored: (1 << 20) + 4096 }), ghost),
            (Described { locked: true, ..at(Place::There) }, Obstacle::Locked),
        ] {
            assert_eq!(obstacles(&file, &strict()), [obstacle], "{file:?}");
            assert_eq!(verdict(&file, &lenient()), Verdict::Dumps, "{file:?}");
        }
    }

    #[test]
    fn what_nothing_allows() {
        let corked =
            Socket { corked: true, ..socket(libc::AF_INET, libc::SOCK_DGRAM, libc::IPPROTO_UDP) };
        let unread = Socket { unread: true, ..socket(libc::AF_NETLINK, libc::SOCK_RAW, 0) };
        let mut packets = file(FileKind::Pipe, Detail::Plain);
        packets.flags = libc::O_DIRECT as u32;
        let refused = [
            device(true, 10, 229),
            device(false, 7, 0),
            file(FileKind::Tun, Detail::Tun { of_host: true }),
            terminal(4, 64, false),
            anonymous(FileKind::Unknown, "anon_inode:[io_uring]"),
            file(FileKind::Pidfd, Detail::Pidfd { outside: true, thread: false }),
            file(FileKind::Pidfd, Detail::Pidfd { outside: false, thread: true }),
            file(FileKind::Inotify, Detail::Watches { lost: 1 }),
            file(FileKind::Bpfmap, Detail::BpfMap(27)),
            file(FileKind::Namespace, Detail::Namespace { known: false }),
            of_socket(socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)),
            of_socket(socket(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP)),
            of_socket(corked),
            of_socket(unread),
            unix(libc::SOCK_STREAM, Peer::Outside { named: true }),
            unix(libc::SOCK_DGRAM, Peer::Outside { named: false }),
            unix(libc::SOCK_STREAM, Peer::Dangling),
            packets,
            at(Place::Overmounted),
            at(Place::Taken),
            Described { leased: true, ..at(Place::There) },
        ];
        let mut said = Vec::new();
        for file in &refused {
            let obstacles = obstacles(file, &lenient());
            assert_eq!(obstacles.len(), 1, "{file:?}");
            assert_eq!(obstacles[0].option(), None);
            said.push(format!("{}: {}", obstacles[0], obstacles[0].help()));
        }
        insta::assert_snapshot!(said.join("\n"));
    }

    #[test]
    fn a_criu_without_libbpf() {
        let without = DumpSettings { bpf_maps: false, ..lenient() };
        let obstacles = obstacles(&file(FileKind::Bpfmap, Detail::BpfMap(1)), &without);
        assert_eq!(obstacles[0].to_string(), "CRIU cannot save BPF maps");
        assert!(obstacles[0].can_be_set_aside() && obstacles[0].is_lasting());
    }

    #[test]
    fn every_reason_is_given() {
        let file = Described { locked: true, ..at(Place::Deleted { stored: 3 << 20 }) };
        let obstacles = obstacles(&file, &strict());
        assert_eq!(obstacles.len(), 2);
        assert_eq!(obstacles[0].help(), "criu.ghost-limit = \"3M\" or more");
        assert_eq!(obstacles[1].help(), "--file-locks");
    }
}

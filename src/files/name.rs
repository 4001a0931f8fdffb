//! The symbolic names of open files that have no path.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::bytes::ByteString;
use crate::criu::images::entries::{InetSocket, UnixSocketEntry};

/// A word before bytes.
pub(super) fn join(word: &str, bytes: &ByteString) -> ByteString {
    [word.as_bytes(), bytes.as_bytes()].concat().into()
}

/// An IP socket: protocol, own address, the peer's, state.
pub(super) fn inet(socket: &InetSocket) -> String {
    let protocol = protocol(socket.protocol, socket.kind);
    let source = address(socket.family, &socket.source.0, socket.source.1);
    let peer = address(socket.family, &socket.peer.0, socket.peer.1);
    socket_name(&protocol, source, peer, socket.state)
}

/// The name of an IP socket, from images or from `/proc/net`.
pub(super) fn socket_name(
    protocol: &str,
    source: Option<SocketAddr>,
    peer: Option<SocketAddr>,
    state: u32,
) -> String {
    let mut name = protocol.to_owned();
    if let Some(source) = source {
        name.push_str(&format!(" {source}"));
    }
    if let Some(peer) = peer.filter(|peer| peer.port() != 0) {
        name.push_str(&format!(" -> {peer}"));
    }
    if protocol == "tcp" {
        name.push_str(&format!(" {}", tcp_state(state)));
    }
    name
}

/// An address of one or four words whose bytes are in the order of the network.
pub(super) fn address(family: u32, words: &[u32], port: u32) -> Option<SocketAddr> {
    let ip = match (family as i32, words) {
        (libc::AF_INET, [word, ..]) => IpAddr::V4(Ipv4Addr::from(word.to_ne_bytes())),
        (libc::AF_INET6, [a, b, c, d, ..]) => {
            let mut octets = [0; 16];
            for (octets, word) in octets.chunks_exact_mut(4).zip([a, b, c, d]) {
                octets.copy_from_slice(&word.to_ne_bytes());
            }
            IpAddr::V6(Ipv6Addr::from(octets))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::try_from(port).ok()?))
}

fn protocol(number: u32, kind: u32) -> String {
    match number as i32 {
        libc::IPPROTO_TCP => "tcp".to_owned(),
        libc::IPPROTO_UDP => "udp".to_owned(),
        libc::IPPROTO_UDPLITE => "udplite".to_owned(),
        libc::IPPROTO_ICMP | libc::IPPROTO_ICMPV6 if kind as i32 == libc::SOCK_DGRAM => {
            "icmp".to_owned()
        }
        number if kind as i32 == libc::SOCK_RAW => format!("raw {number}"),
        number => format!("ip {number}"),
    }
}

/// The states of TCP, in the kernel's numbers (include/net/tcp_states.h).
pub(super) fn tcp_state(number: u32) -> &'static str {
    match number {
        1 => "established",
        2 => "syn-sent",
        3 => "syn-received",
        4 => "fin-wait-1",
        5 => "fin-wait-2",
        6 => "time-wait",
        7 => "closed",
        8 => "close-wait",
        9 => "last-ack",
        10 => "listen",
        11 => "closing",
        _ => "unknown",
    }
}

/// A unix socket: type, state if it listens, and its name or else its inode number.
pub(super) fn unix(socket: &UnixSocketEntry) -> ByteString {
    const LISTEN: u32 = 10;
    unix_name(socket.kind, socket.state == LISTEN, socket.name.as_bytes(), socket.inode.into())
}

/// The name of a unix socket, from images or from `/proc/net/unix`.
pub(super) fn unix_name(kind: u32, listens: bool, name: &[u8], inode: u64) -> ByteString {
    let kind = match kind as i32 {
        libc::SOCK_STREAM => "unix stream",
        libc::SOCK_DGRAM => "unix dgram",
        libc::SOCK_SEQPACKET => "unix seqpacket",
        _ => "unix",
    };
    let mut text = kind.as_bytes().to_vec();
    if listens {
        text.extend(b" listen");
    }
    text.push(b' ');
    match name {
        [] => text.extend(format!("[{inode}]").bytes()),
        [0, abstracted @ ..] => {
            text.push(b'@');
            text.extend(abstracted);
        }
        path => text.extend(path.strip_suffix(b"\0").unwrap_or(path)),
    }
    text.into()
}

/// A netlink socket by its protocol (linux/netlink.h).
pub(super) fn netlink(protocol: u32) -> String {
    let name = match protocol {
        0 => "route",
        4 => "sock-diag",
        6 => "xfrm",
        9 => "audit",
        12 => "netfilter",
        15 => "kobject-uevent",
        16 => "generic",
        20 => "rdma",
        number => return format!("netlink {number}"),
    };
    format!("netlink {name}")
}

/// A namespace's type, by its `CLONE_NEW…` flag, as `/proc/PID/ns` calls it.
pub(super) fn namespace(flag: u32) -> &'static str {
    match flag as i32 {
        libc::CLONE_NEWNS => "mnt",
        libc::CLONE_NEWNET => "net",
        libc::CLONE_NEWPID => "pid",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWUTS => "uts",
        libc::CLONE_NEWIPC => "ipc",
        libc::CLONE_NEWCGROUP => "cgroup",
        0x80 => "time",
        _ => "namespace",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ip_sockets() {
        let mut socket = InetSocket {
            inode: 7,
            family: 2,
            kind: 1,
            protocol: 6,
            state: 10,
            source: (vec![u32::from_ne_bytes([127, 0, 0, 1])], 8080),
            peer: (vec![0], 0),
        };
        assert_eq!(inet(&socket), "tcp 127.0.0.1:8080 listen");
        socket.state = 1;
        socket.peer = (vec![u32::from_ne_bytes([10, 0, 0, 2])], 5);
        assert_eq!(inet(&socket), "tcp 127.0.0.1:8080 -> 10.0.0.2:5 established");
        socket = InetSocket {
            family: 10,
            protocol: 17,
            kind: 2,
            source: (vec![0, 0, 0, u32::from_ne_bytes([0, 0, 0, 1])], 53),
            peer: (vec![0; 4], 0),
            ..socket
        };
        assert_eq!(inet(&socket), "udp [::1]:53");
        socket.source.0.clear();
        assert_eq!(inet(&socket), "udp");
    }

    #[test]
    fn unix_sockets() {
        let name = |kind, listens, name: &[u8]| unix_name(kind, listens, name, 9).to_string();
        assert_eq!(name(1, true, b"/run/x\0"), "unix stream listen /run/x");
        assert_eq!(name(2, false, b"\0bus"), "unix dgram @bus");
        assert_eq!(name(1, false, b""), "unix stream [9]");
    }

    #[test]
    fn namespaces_have_the_names_of_proc() {
        assert_eq!(namespace(0x4000_0000), "net");
        assert_eq!(namespace(0x80), "time");
    }
}

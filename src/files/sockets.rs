//! The names of sockets, from `/proc/PID/net` of each network namespace.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use super::descriptors::Observed;
use super::name;
use crate::bytes::ByteString;
use crate::container::FileKind;
use crate::proc::Proc;
use crate::sys::pid::Pid;

/// What is known of sockets, by their inode numbers.
type Known = HashMap<u64, (FileKind, ByteString)>;

/// The sockets of the namespaces met so far.
#[derive(Default)]
pub(super) struct Sockets {
    namespaces: HashMap<PathBuf, Known>,
}

impl Sockets {
    /// Kind and name of the socket behind a file descriptor. One of another namespace, or one
    /// that was never bound, is known by its protocol only.
    pub(super) fn name(&mut self, fd: &Observed) -> (FileKind, ByteString) {
        let host = fd.process.host;
        let namespace = Proc::of(host).namespace("net").unwrap_or_default();
        let known = self.namespaces.entry(namespace).or_insert_with(|| read(host));
        known.get(&fd.stat.inode.ino).cloned().unwrap_or_else(|| by_protocol(fd))
    }
}

fn by_protocol(fd: &Observed) -> (FileKind, ByteString) {
    let mut value = [0; 64];
    let path = Proc::of(fd.process.host).descriptor(fd.fd);
    let length = rustix::fs::getxattr(path, "system.sockprotoname", &mut value).unwrap_or(0);
    let protocol = String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_lowercase();
    let kind = match protocol.as_str() {
        name if name.starts_with("unix") => FileKind::Unix,
        name if name.starts_with("tcp") || name.starts_with("udp") => FileKind::Inet,
        name if name.starts_with("raw") || name.starts_with("ping") => FileKind::Inet,
        "netlink" => FileKind::Netlink,
        "packet" => FileKind::Packet,
        _ => FileKind::Unknown,
    };
    let protocol = if protocol.is_empty() { "socket" } else { &protocol };
    (kind, format!("{protocol} [{}]", fd.stat.inode.ino).into())
}

fn read(host: Pid) -> Known {
    let mut known = Known::new();
    let net = Proc::of(host).at("net");
    let table = |name: &str| std::fs::read(net.join(name)).unwrap_or_default();
    for (file, protocol) in [
        ("tcp", "tcp"),
        ("tcp6", "tcp"),
        ("udp", "udp"),
        ("udp6", "udp"),
        ("udplite", "udplite"),
        ("udplite6", "udplite"),
        ("icmp", "icmp"),
        ("icmp6", "icmp"),
        ("raw", "raw"),
        ("raw6", "raw"),
    ] {
        known.extend(lines(&table(file)).filter_map(|line| inet(line, protocol)));
    }
    known.extend(lines(&table("unix")).filter_map(unix));
    known.extend(lines(&table("netlink")).filter_map(netlink));
    known.extend(lines(&table("packet")).filter_map(packet));
    known
}

/// The lines after the heading.
fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n').skip(1).filter(|line| !line.is_empty())
}

type Named = (u64, (FileKind, ByteString));

/// `sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …`
fn inet(line: &[u8], protocol: &str) -> Option<Named> {
    let fields: Vec<_> = std::str::from_utf8(line).ok()?.split_whitespace().collect();
    let (source, peer) = (address(fields.get(1)?)?, address(fields.get(2)?)?);
    let state = u32::from_str_radix(fields.get(3)?, 16).ok()?;
    let name = name::socket_name(protocol, Some(source), Some(peer), state);
    Some((fields.get(9)?.parse().ok()?, (FileKind::Inet, name.into())))
}

/// Eight or 32 hexadecimal digits, words as the machine has them, and a port.
fn address(text: &str) -> Option<SocketAddr> {
    let (digits, port) = text.split_once(':')?;
    let words: Vec<_> = digits
        .as_bytes()
        .chunks(8)
        .map(|word| u32::from_str_radix(std::str::from_utf8(word).ok()?, 16).ok())
        .collect::<Option<_>>()?;
    let family = if words.len() == 1 { libc::AF_INET } else { libc::AF_INET6 };
    name::address(family as u32, &words, u32::from_str_radix(port, 16).ok()?)
}

/// `Num RefCount Protocol Flags Type St Inode Path`; the path may have blanks.
fn unix(line: &[u8]) -> Option<Named> {
    const LISTENS: u32 = 1 << 16;
    let mut rest = line;
    let mut fields = Vec::new();
    while fields.len() < 7 {
        let start = rest.iter().position(|byte| *byte != b' ')?;
        rest = &rest[start..];
        let end = rest.iter().position(|byte| *byte == b' ').unwrap_or(rest.len());
        fields.push(std::str::from_utf8(&rest[..end]).ok()?);
        rest = &rest[end..];
    }
    let flags = u32::from_str_radix(fields[3], 16).ok()?;
    let kind = u32::from_str_radix(fields[4], 16).ok()?;
    let inode = fields[6].parse().ok()?;
    let mut path = rest.strip_prefix(b" ").unwrap_or(rest).to_vec();
    if let Some(first @ b'@') = path.first_mut() {
        *first = 0;
    }
    let name = name::unix_name(kind, flags & LISTENS != 0, &path, inode);
    Some((inode, (FileKind::Unix, name)))
}

/// `sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode`
fn netlink(line: &[u8]) -> Option<Named> {
    let fields: Vec<_> = std::str::from_utf8(line).ok()?.split_whitespace().collect();
    let name = name::netlink(fields.get(1)?.parse().ok()?);
    Some((fields.get(9)?.parse().ok()?, (FileKind::Netlink, name.into())))
}

/// `sk RefCnt Type Proto Iface R Rmem User Inode`
fn packet(line: &[u8]) -> Option<Named> {
    let fields: Vec<_> = std::str::from_utf8(line).ok()?.split_whitespace().collect();
    let name = format!("packet {}", fields.get(3)?);
    Some((fields.get(8)?.parse().ok()?, (FileKind::Packet, name.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(named: Option<Named>) -> String {
        let (inode, (kind, name)) = named.unwrap();
        format!("{inode} {kind} {name}")
    }

    #[test]
    fn inet_lines() {
        let line = b"   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0";
        assert_eq!(shown(inet(line, "tcp")), "4711 inet tcp 127.0.0.1:8080 listen");
        let line = b"   1: 00000000000000000000000001000000:0035 00000000000000000000000000000000:0000 07 0:0 00:0 0 0 0 12 2";
        assert_eq!(shown(inet(line, "udp")), "12 inet udp [::1]:53");
        assert!(inet(b"   1: zz:0035", "udp").is_none());
    }

    #[test]
    fn unix_lines() {
        let line = b"0000000000000000: 00000002 00000000 00010000 0001 01 23 /run/a b";
        assert_eq!(shown(unix(line)), "23 unix unix stream listen /run/a b");
        let line = b"0000000000000000: 00000002 00000000 00000000 0002 01    24 @x";
        assert_eq!(shown(unix(line)), "24 unix unix dgram @x");
        let line = b"0000000000000000: 00000002 00000000 00000000 0001 03 25";
        assert_eq!(shown(unix(line)), "25 unix unix stream [25]");
        assert!(unix(b"0000: 1 2").is_none());
    }

    #[test]
    fn other_lines() {
        let line = b"0000000000000000 0   1234   00000111 0 0 0 2 0 88";
        assert_eq!(shown(netlink(line)), "88 netlink netlink route");
        let line = b"0000000000000000 3      3    0003   2     1 0      0      99";
        assert_eq!(shown(packet(line)), "99 packet packet 0003");
    }
}

//! Unix sockets and their peers, sock_diag(7).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::net::netlink::SOCK_DIAG;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A unix socket.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// Its inode number.
    pub inode: u32,
    /// `SOCK_…`.
    pub kind: u8,
    /// `TCP_…` of include/net/tcp_states.h.
    pub state: u8,
    /// The inode number of its peer; 0 if there is none, or nobody has accepted it yet.
    pub peer: u32,
    /// Whether it is bound to a name.
    pub named: bool,
    /// Of a socket that listens: the inode numbers of those that connected and have not been
    /// accepted; 0 for one that is closed already.
    pub pending: Vec<u32>,
    /// The directions in which it was shut down, as bits.
    pub shutdown: u8,
}

impl UnixSocket {
    /// Whether it says that it is connected, and has not been shut down both ways.
    pub fn is_half_open(&self) -> bool {
        const ESTABLISHED: u8 = 1;
        const BOTH: u8 = 3;
        let is_stream = i32::from(self.kind) != libc::SOCK_DGRAM;
        is_stream && self.state == ESTABLISHED && self.shutdown != BOTH
    }

    /// How many connections wait to be accepted whose other end is closed.
    pub fn lost_connections(&self) -> u32 {
        u32::try_from(self.pending.iter().filter(|inode| **inode == 0).count()).unwrap_or(u32::MAX)
    }
}

/// Lists the unix sockets of a network namespace, such as `/proc/PID/ns/net`.
pub fn unix_sockets(namespace: &Path) -> io::Result<Vec<UnixSocket>> {
    let namespace = File::open(namespace)?;
    // A thread of its own enters the namespace, and ends in it.
    let socket = std::thread::scope(|scope| {
        let entered = scope.spawn(|| diag_socket(&namespace));
        entered.join().map_err(|_| io::Error::other("the thread panicked"))?
    })?;
    list(&socket)
}

fn diag_socket(namespace: &File) -> io::Result<OwnedFd> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let flags = SocketFlags::CLOEXEC;
    Ok(rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(SOCK_DIAG))?)
}

/// `struct nlmsghdr` is of 16 bytes, `struct unix_diag_msg` too; both, and every attribute, are
/// multiples of 4 (netlink(7), sock_diag(7)).
const HEADER: usize = 16;

fn list(socket: &OwnedFd) -> io::Result<Vec<UnixSocket>> {
    rustix::net::send(socket, &request(), SendFlags::empty())?;
    let mut sockets = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let (length, _) = rustix::net::recv(socket, &mut buffer[..], RecvFlags::empty())?;
        if !parse(&buffer[..length], &mut sockets)? {
            return Ok(sockets);
        }
    }
}

/// A request for every unix socket with its name, peer, pending connections and shutdown.
fn request() -> Vec<u8> {
    const SOCK_DIAG_BY_FAMILY: u16 = 20;
    const NLM_F_REQUEST_DUMP: u16 = 0x1 | 0x300;
    /// UDIAG_SHOW_NAME, UDIAG_SHOW_PEER, UDIAG_SHOW_ICONS.
    const SHOW: u32 = 0x1 | 0x4 | 0x8;
    let mut request = Vec::new();
    request.extend(40_u32.to_ne_bytes());
    request.extend(SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    request.extend(NLM_F_REQUEST_DUMP.to_ne_bytes());
    request.extend([0; 8]);
    request.extend([libc::AF_UNIX as u8, 0, 0, 0]);
    // Any state, any inode.
    request.extend(u32::MAX.to_ne_bytes());
    request.extend(0_u32.to_ne_bytes());
    request.extend(SHOW.to_ne_bytes());
    request.extend([0xff; 8]);
    request
}

/// Reads one datagram of messages; whether there are more.
fn parse(mut datagram: &[u8], sockets: &mut Vec<UnixSocket>) -> io::Result<bool> {
    const NLMSG_ERROR: u16 = 2;
    const NLMSG_DONE: u16 = 3;
    while datagram.len() >= HEADER {
        let length = number(datagram, 0) as usize;
        let message = datagram.get(HEADER..length).ok_or(io::ErrorKind::InvalidData)?;
        match u16::from_ne_bytes([datagram[4], datagram[5]]) {
            NLMSG_DONE => return Ok(false),
            NLMSG_ERROR => {
                let errno = number(message, 0).cast_signed().saturating_neg();
                return Err(io::Error::from_raw_os_error(errno));
            }
            _ => sockets.extend(parse_socket(message)),
        }
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(true)
}

/// `struct unix_diag_msg` and its attributes.
fn parse_socket(message: &[u8]) -> Option<UnixSocket> {
    let (head, mut rest) = message.split_at_checked(16)?;
    let (kind, state, inode) = (head[1], head[2], number(head, 4));
    let mut socket = UnixSocket { inode, kind, state, ..UnixSocket::default() };
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let value = rest.get(4..length)?;
        // UNIX_DIAG_NAME, UNIX_DIAG_PEER, UNIX_DIAG_ICONS, UNIX_DIAG_SHUTDOWN.
        match u16::from_ne_bytes([rest[2], rest[3]]) {
            0 => socket.named = true,
            2 => socket.peer = number(value, 0),
            3 => socket.pending = value.chunks_exact(4).map(|one| number(one, 0)).collect(),
            6 => socket.shutdown = value.first().copied().unwrap_or_default(),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Some(socket)
}

/// The number at a place, 0 if there is none.
fn number(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map_or(0, u32::from_ne_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    fn inode(file: &impl AsRawFd) -> u32 {
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        u32::try_from(rustix::fs::stat(path).unwrap().st_ino).unwrap()
    }

    fn found(file: &impl AsRawFd) -> UnixSocket {
        let all = unix_sockets(Path::new("/proc/thread-self/ns/net")).unwrap();
        all.into_iter().find(|socket| socket.inode == inode(file)).unwrap()
    }

    #[test]
    fn peers_and_names() {
        let (one, other) = UnixStream::pair().unwrap();
        assert_eq!(found(&one).peer, inode(&other));
        assert!(!found(&one).named && !found(&one).is_half_open() || found(&one).peer != 0);
        drop(other);
        assert_eq!(found(&one).peer, 0);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let bound = UnixDatagram::bind(&path).unwrap();
        let sender = UnixDatagram::unbound().unwrap();
        sender.connect(&path).unwrap();
        assert_eq!(found(&sender).peer, inode(&bound));
        assert!(found(&bound).named);
    }

    #[test]
    fn connections_that_wait() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let client = UnixStream::connect(&path).unwrap();
        let listening = found(&listener);
        assert_eq!(listening.pending, [inode(&client)]);
        assert_eq!(listening.lost_connections(), 0);
        drop(client);
        assert_eq!(found(&listener).lost_connections(), 1);
    }

    #[test]
    fn what_is_cut_is_no_socket() {
        assert!(parse(&[255; 16], &mut Vec::new()).is_err());
        assert!(parse_socket(&[0; 15]).is_none());
        let mut message = vec![0; 16];
        message.extend([9, 0, 2, 0, 1]);
        assert!(parse_socket(&message).is_none());
    }
}

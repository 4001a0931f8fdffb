//! What a socket says of itself, getsockopt(2).
#![expect(unsafe_code, reason = "getsockopt and ioctl write into memory that the caller names")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt::{socket_domain, socket_protocol, socket_type};

/// A socket, by its own words.
#[derive(Clone, Copy, Debug)]
pub struct SocketFacts {
    /// `AF_…`.
    pub family: i32,
    /// `SOCK_…`.
    pub kind: i32,
    /// `IPPROTO_…`, `NETLINK_…`.
    pub protocol: i32,
    /// Of a TCP socket only.
    pub connection: Option<Connection>,
    /// Whether a UDP datagram is being put together.
    pub corked: bool,
    /// Whether there is something to read.
    pub unread: bool,
}

/// The state of a TCP socket.
#[derive(Clone, Copy, Debug)]
pub struct Connection {
    /// `TCP_…` of include/net/tcp_states.h.
    pub state: u8,
    /// If it listens, how many connections wait to be accepted.
    pub backlog: u32,
}

/// Asks a socket.
pub fn facts(socket: impl AsFd) -> io::Result<SocketFacts> {
    let socket = socket.as_fd();
    let kind = socket_type(socket)?.as_raw().cast_signed();
    let protocol = socket_protocol(socket)?.map_or(0, |protocol| protocol.as_raw().get());
    Ok(SocketFacts {
        family: i32::from(socket_domain(socket)?.as_raw()),
        kind,
        protocol: protocol.cast_signed(),
        connection: connection(socket),
        corked: is_corked(socket),
        unread: is_readable(socket),
    })
}

/// `struct tcp_info` as far as it is needed; no other socket has it.
fn connection(socket: BorrowedFd<'_>) -> Option<Connection> {
    const BACKLOG: std::ops::Range<usize> = 24..28;
    let mut info = [0; 32];
    option(socket, libc::SOL_TCP, libc::TCP_INFO, &mut info).ok()?;
    // Of a socket that listens, the kernel says it in tcpi_unacked (tcp_get_info).
    let backlog = u32::from_ne_bytes(info[BACKLOG].try_into().ok()?);
    Some(Connection { state: info[0], backlog })
}

fn is_corked(socket: BorrowedFd<'_>) -> bool {
    const UDP_CORK: i32 = 1;
    let mut corked = [0; 4];
    let has_option = option(socket, libc::IPPROTO_UDP, UDP_CORK, &mut corked).is_ok();
    has_option && corked != [0; 4] && unsent(socket) > 0
}

/// How many bytes have not been sent yet.
fn unsent(socket: BorrowedFd<'_>) -> i32 {
    let mut bytes = 0_i32;
    // SAFETY: TIOCOUTQ writes an int, and leaves it alone when it fails.
    unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    bytes
}

fn is_readable(socket: BorrowedFd<'_>) -> bool {
    let mut polled = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut polled, Some(&now)).is_ok_and(|count| count > 0)
}

fn option(socket: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<()> {
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the kernel writes at most as many bytes as `length` says the slice has.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            value.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{TcpListener, TcpStream, UdpSocket};

    #[test]
    fn tcp_sockets() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let said = facts(&listener).unwrap();
        assert_eq!((said.family, said.kind), (libc::AF_INET, libc::SOCK_STREAM));
        assert_eq!(said.protocol, libc::IPPROTO_TCP);
        let connection = said.connection.unwrap();
        assert_eq!((connection.state, connection.backlog), (10, 0));
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        assert_eq!(facts(&client).unwrap().connection.unwrap().state, 1);
        assert_eq!(facts(&listener).unwrap().connection.unwrap().backlog, 1);
    }

    #[test]
    fn other_sockets() {
        let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
        let said = facts(&udp).unwrap();
        assert!(said.connection.is_none() && !said.corked && !said.unread);
        udp.send_to(b"x", udp.local_addr().unwrap()).unwrap();
        assert!(facts(&udp).unwrap().unread);
        let (one, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert_eq!(facts(&one).unwrap().family, libc::AF_UNIX);
    }
}

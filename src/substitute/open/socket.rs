//! Sockets, and the empty pipe.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, sockopt};

use super::file::{LINK, resolve};
use super::{check_access, check_directory, set_nonblocking};
use crate::files::{FileKind, OpenFile};
use crate::substitute::rule::Origin;
use crate::substitute::selector::addresses;
use crate::substitute::source::{Access, TcpSource, UnixSource};
use crate::sys::fs::proc_path;
use crate::sys::process::wait_readable;

/// How long a peer may take to accept a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How many connections may wait to be accepted, as std::net has it.
const BACKLOG: i32 = 128;

/// A socket to be made.
#[derive(Debug)]
pub(super) enum Endpoint {
    Peer { found: OwnedFd, kind: SocketType },
    Path { address: SocketAddrUnix, kind: SocketType },
    Tcp { addresses: Vec<SocketAddr>, listen: bool },
}

/// Checks what can be seen of a unix socket without touching it.
pub(super) fn unix(
    source: &UnixSource,
    origin: &Origin,
    file: &OpenFile,
) -> Result<Endpoint, String> {
    check_is_no_directory(file)?;
    let path = source.path.as_path();
    let address = SocketAddrUnix::new(path).map_err(|_| "the path is too long for a socket")?;
    let is_there = std::fs::symlink_metadata(path).is_ok();
    if source.listen && is_there {
        return Err("it is there already: remove it before listening there".to_owned());
    }
    let directory = path.parent().unwrap_or(path);
    if source.listen && !directory.is_dir() {
        return Err("the directory to listen in is missing".to_owned());
    }
    if !source.listen && !is_there {
        return Err("connecting: there is no such socket".to_owned());
    }
    let found = find(if source.listen { directory } else { path }, origin)?;
    let kind = unix_type(file);
    Ok(match source.listen {
        true => Endpoint::Path { address, kind },
        false => Endpoint::Peer { found, kind },
    })
}

/// Holds on to what is at a path: who can make links on the way could lead it elsewhere later.
fn find(path: &Path, origin: &Origin) -> Result<OwnedFd, String> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve(origin)).map_err(|error| {
        match error {
            Errno::LOOP if origin.is_annotation() => LINK.to_owned(),
            error => error.to_string(),
        }
    })
}

/// Looks the host up.
pub(super) fn tcp(source: &TcpSource, file: &OpenFile) -> Result<Endpoint, String> {
    check_is_no_directory(file)?;
    let found = (source.host.as_str(), source.port).to_socket_addrs();
    let addresses: Vec<_> = found.map_err(|error| format!("looking it up: {error}"))?.collect();
    if addresses.is_empty() {
        return Err("looking it up: it has no address".to_owned());
    }
    Ok(Endpoint::Tcp { addresses, listen: source.listen })
}

fn check_is_no_directory(file: &OpenFile) -> Result<(), String> {
    check_access(Access::Both, file)?;
    check_directory(false, file)
}

/// The type of the original, if that is a unix socket.
fn unix_type(file: &OpenFile) -> SocketType {
    let is = |prefix: &[u8]| file.name.as_bytes().starts_with(prefix);
    match file.kind {
        FileKind::Unix if is(b"unix dgram") => SocketType::DGRAM,
        FileKind::Unix if is(b"unix seqpacket") => SocketType::SEQPACKET,
        _ => SocketType::STREAM,
    }
}

impl Endpoint {
    /// Connects, or listens at a port. To listen at a path makes a file, and comes later.
    pub(super) fn contact(&mut self, file: &OpenFile) -> Result<Option<OwnedFd>, String> {
        let fd = match self {
            Self::Path { .. } => return Ok(None),
            Self::Peer { found, kind } => {
                connect_unix(found, *kind).map_err(|error| format!("connecting: {error}"))?
            }
            Self::Tcp { addresses, listen: true } => TcpListener::bind(&addresses[..])
                .map_err(|error| format!("listening: {error}"))?
                .into(),
            Self::Tcp { addresses, .. } => connect_tcp(addresses)?.into(),
        };
        set_nonblocking(&fd, file)?;
        Ok(Some(fd))
    }

    /// Listens at a path.
    pub(super) fn listen_at_path(&self, file: &OpenFile) -> Result<OwnedFd, String> {
        let Self::Path { address, kind } = self else {
            return Err("it listens at no path".to_owned());
        };
        let bind = || -> rustix::io::Result<OwnedFd> {
            let socket = unix_socket(*kind, SocketFlags::empty())?;
            rustix::net::bind(&socket, address)?;
            if *kind != SocketType::DGRAM {
                rustix::net::listen(&socket, BACKLOG)?;
            }
            Ok(socket)
        };
        let fd = bind().map_err(|error| format!("listening: {error}"))?;
        set_nonblocking(&fd, file)?;
        Ok(fd)
    }
}

/// Connects at once or not at all: with a full queue the kernel would wait without end.
fn connect_unix(found: &OwnedFd, kind: SocketType) -> rustix::io::Result<OwnedFd> {
    let socket = unix_socket(kind, SocketFlags::NONBLOCK)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(proc_path(found))?)?;
    Ok(socket)
}

fn unix_socket(kind: SocketType, flags: SocketFlags) -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(AddressFamily::UNIX, kind, flags | SocketFlags::CLOEXEC, None)
}

fn connect_tcp(addresses: &[SocketAddr]) -> Result<TcpStream, String> {
    let mut last = String::new();
    for address in addresses {
        match TcpStream::connect_timeout(address, CONNECT_LIMIT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = format!("connecting to {address}: {error}"),
        }
    }
    Err(last)
}

/// A pipe that nobody writes to, where the original is only read from and is neither a regular
/// file nor a device: those can be moved in, and have the null device in their place.
pub(super) fn empty(file: &OpenFile) -> Result<Option<OwnedFd>, String> {
    check_directory(false, file)?;
    let can_seek = matches!(file.kind, FileKind::Reg | FileKind::Device);
    if can_seek || Access::of(file.flags) != Access::Read {
        return Ok(None);
    }
    let (reader, _) = std::io::pipe().map_err(|error| error.to_string())?;
    let reader = OwnedFd::from(reader);
    set_nonblocking(&reader, file)?;
    Ok(Some(reader))
}

/// A connected socket of the original's family whose peer has gone without a word.
pub(super) fn reset(file: &OpenFile) -> Result<OwnedFd, String> {
    let is_tcp = file.kind == FileKind::Inet && file.name.as_bytes().starts_with(b"tcp");
    let kind = unix_type(file);
    let fd = match file.kind {
        FileKind::Inet if is_tcp => {
            reset_tcp(file).map_err(|error| format!("making a lost connection: {error}"))?
        }
        FileKind::Unix if kind != SocketType::DGRAM => {
            reset_unix(kind).map_err(|error| format!("making a lost connection: {error}"))?
        }
        _ => {
            return Err("the original has no connection to lose: `reset` is for TCP and for unix \
                         sockets that connect"
                .to_owned());
        }
    };
    set_nonblocking(&fd, file)?;
    Ok(fd)
}

/// A connection over the loopback, which the peer aborts (`SO_LINGER` of zero, socket(7)).
fn reset_tcp(file: &OpenFile) -> std::io::Result<OwnedFd> {
    let is_v6 = addresses(file).0.is_some_and(|own| own.is_ipv6());
    let loopback: IpAddr =
        if is_v6 { Ipv6Addr::LOCALHOST.into() } else { Ipv4Addr::LOCALHOST.into() };
    let listener = TcpListener::bind((loopback, 0))?;
    let ours = TcpStream::connect_timeout(&listener.local_addr()?, CONNECT_LIMIT)?;
    let (peer, _) = listener.accept()?;
    sockopt::set_socket_linger(&peer, Some(Duration::ZERO))?;
    drop(peer);
    let ended =
        wait_readable(&[ours.as_fd()], Some(CONNECT_LIMIT)).map_err(std::io::Error::other)?;
    if ended != [true] {
        return Err(std::io::ErrorKind::TimedOut.into());
    }
    Ok(ours.into())
}

/// The peer goes with something unread, which resets the connection (unix_release_sock in
/// net/unix/af_unix.c).
fn reset_unix(kind: SocketType) -> std::io::Result<OwnedFd> {
    let (ours, peer) =
        rustix::net::socketpair(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::send(&ours, b"\0", SendFlags::NOSIGNAL)?;
    drop(peer);
    Ok(ours)
}

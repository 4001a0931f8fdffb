//! Messages over `SOCK_SEQPACKET` unix sockets: one JSON value each, with file descriptors.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use serde::{Serialize, de::DeserializeOwned};

use super::pid::Pid;
use super::process::pidfd;

/// The largest message; all of ours fit many times.
const MESSAGE_LIMIT: usize = 64 << 10;

/// The most descriptors in one message: `SCM_MAX_FD` of the kernel (include/net/scm.h).
pub const FD_LIMIT: usize = 253;

/// One end of a connection.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<OwnedFd> for Channel {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl From<Channel> for OwnedFd {
    fn from(channel: Channel) -> Self {
        channel.0
    }
}

impl Channel {
    /// Two connected ends, both closed on exec.
    pub fn pair() -> Result<(Self, Self)> {
        let (one, other) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .context("making a socket pair")?;
        Ok((Self(one), Self(other)))
    }

    /// Connects to the listener at `path`.
    pub fn connect(path: &Path) -> Result<Self> {
        let connect = || -> Result<Self> {
            let address = SocketAddrUnix::new(path)?;
            let socket = seqpacket()?;
            rustix::net::connect(&socket, &address)?;
            Ok(Self(socket))
        };
        connect().with_context(|| format!("connecting to {}", path.display()))
    }

    /// As [`connect`](Self::connect), without waiting for a listener whom too many others wait for.
    pub fn connect_at_once(path: &Path) -> Result<Self, rustix::io::Errno> {
        let socket = seqpacket()?;
        rustix::io::ioctl_fionbio(&socket, true)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        rustix::io::ioctl_fionbio(&socket, false)?;
        Ok(Self(socket))
    }

    /// The number of the process that connected to us, as [`peer`](Self::peer).
    pub fn peer_number(&self) -> Result<Pid> {
        let peer = rustix::net::sockopt::socket_peercred(&self.0).context("asking who connects")?;
        Ok(Pid(peer.pid.as_raw_pid()))
    }

    /// The process at the other end; `None` when it has ended. Who waits for an answer has not,
    /// and a program that it becomes then has the same number.
    pub fn peer(&self) -> Result<Option<OwnedFd>> {
        pidfd(self.peer_number()?)
    }

    /// Sends one message, and a copy of each descriptor with it.
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<()> {
        ensure!(fds.len() <= FD_LIMIT, "{} descriptors do not fit one message", fds.len());
        let bytes = serde_json::to_vec(message)?;
        ensure!(bytes.len() <= MESSAGE_LIMIT, "a message of {} bytes is too long", bytes.len());
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FD_LIMIT))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        rustix::io::retry_on_intr(|| {
            rustix::net::sendmsg(
                &self.0,
                &[IoSlice::new(&bytes)],
                &mut ancillary,
                SendFlags::NOSIGNAL,
            )
        })
        .context("sending a message")?;
        Ok(())
    }

    /// Waits for one message; `None` when the other end is gone.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        let mut bytes = vec![0; MESSAGE_LIMIT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FD_LIMIT))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            rustix::net::recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let received = match received {
            Err(rustix::io::Errno::CONNRESET) => return Ok(None),
            other => other.context("receiving a message")?,
        };
        let fds = received_fds(&mut ancillary);
        if received.bytes == 0 {
            return Ok(None);
        }
        if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
            bail!("a message was cut");
        }
        let message =
            serde_json::from_slice(&bytes[..received.bytes]).context("reading a message")?;
        Ok(Some((message, fds)))
    }
}

/// Sends some bytes, and one descriptor with them, as a runtime sends a terminal.
pub fn send_one(stream: &impl AsFd, bytes: &[u8], fd: &impl AsFd) -> Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [fd.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let send = || {
        rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)
    };
    rustix::io::retry_on_intr(send).context("sending a descriptor")?;
    Ok(())
}

/// Waits for some bytes with one descriptor; `None` when the other end is gone without.
pub fn receive_one(stream: &impl AsFd) -> Result<Option<(Vec<u8>, OwnedFd)>> {
    let mut bytes = vec![0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        rustix::net::recvmsg(stream, &mut buffers, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })
    .context("receiving a descriptor")?;
    bytes.truncate(received.bytes);
    Ok(received_fds(&mut ancillary).pop().map(|fd| (bytes, fd)))
}

fn received_fds(ancillary: &mut RecvAncillaryBuffer<'_>) -> Vec<OwnedFd> {
    let rights = |message| match message {
        RecvAncillaryMessage::ScmRights(fds) => Some(fds),
        _ => None,
    };
    ancillary.drain().filter_map(rights).flatten().collect()
}

/// A socket that accepts connections from our own user only.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Listener {
    /// Listens at `path`, which must not exist.
    pub fn bind(path: &Path) -> Result<Self> {
        let bind = || -> Result<Self> {
            let address = SocketAddrUnix::new(path)?;
            let socket = seqpacket()?;
            rustix::net::bind(&socket, &address)?;
            rustix::net::listen(&socket, 16)?;
            Ok(Self(socket))
        };
        bind().with_context(|| format!("listening on {}", path.display()))
    }

    /// Takes the next connection; one from another user is refused.
    pub fn accept(&self) -> Result<Channel> {
        let socket =
            rustix::io::retry_on_intr(|| rustix::net::accept_with(&self.0, SocketFlags::CLOEXEC))
                .context("accepting a connection")?;
        let peer = rustix::net::sockopt::socket_peercred(&socket).context("asking who connects")?;
        ensure!(peer.uid == rustix::process::geteuid(), "user {} connects", peer.uid.as_raw());
        Ok(Channel(socket))
    }
}

fn seqpacket() -> Result<OwnedFd, rustix::io::Errno> {
    let (family, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};

    #[test]
    fn a_message_carries_descriptors() {
        let (one, other) = Channel::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        one.send(&"hello", &[writer.as_fd()]).unwrap();
        drop(writer);
        let (text, fds): (String, _) = other.receive().unwrap().unwrap();
        assert_eq!((text.as_str(), fds.len()), ("hello", 1));
        let mut sent = std::fs::File::from(fds.into_iter().next().unwrap());
        sent.write_all(b"through").unwrap();
        drop(sent);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "through");
    }

    #[test]
    fn the_peer_is_a_process() {
        let (one, _other) = Channel::pair().unwrap();
        let peer = one.peer().unwrap().expect("it is this process");
        let now = Some(std::time::Duration::ZERO);
        let ended = crate::sys::process::wait_readable(&[peer.as_fd()], now).unwrap();
        assert_eq!(ended, [false]);
    }

    #[test]
    fn the_end_of_a_connection_is_not_an_error() {
        let (one, other) = Channel::pair().unwrap();
        drop(one);
        assert!(other.receive::<String>().unwrap().is_none());
    }
}

//! The socket at which the caller waits for the master of the container's terminal.
//!
//! The runtime sends what CRIU made for the container's terminal. If that was replaced there is none,
//! and the runtime sends nothing; but callers wait for it: conmon gives up (*Runtime did not set up
//! terminal*), containerd's shim waits for ever. So when a terminal is replaced, the runtime gets a
//! socket of ours, and the caller what comes there; or else the master of a terminal that nobody
//! has opened, from which nothing will ever be read. A caller who names no socket, because the
//! container has no terminal of its own any more, is spared the runtime's wish for one.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::OFlag;
use nix::pty::{posix_openpt, ptsname_r};

use crate::runtime::arguments::{value_of, without};
use crate::sys::socket::{receive_one, send_one};

/// The flag that names the socket.
const FLAG: &str = "--console-socket";

/// A socket between the runtime and the caller.
#[derive(Debug)]
pub(super) struct Console {
    callers: Option<PathBuf>,
    ours: PathBuf,
    listener: UnixListener,
}

impl Console {
    /// Listens in a directory.
    pub(super) fn between(flags: &[OsString], directory: &Path) -> Result<Self> {
        let ours = directory.join("console");
        let listen = || -> std::io::Result<UnixListener> {
            let listener = UnixListener::bind(&ours)?;
            listener.set_nonblocking(true)?;
            Ok(listener)
        };
        let listener = listen().with_context(|| format!("listening at {}", ours.display()))?;
        Ok(Self { callers: value_of(flags, FLAG).map(PathBuf::from), ours, listener })
    }

    /// The flags with our socket in the place of the caller's.
    pub(super) fn flags(&self, flags: &[OsString]) -> Vec<OsString> {
        let mut flags = without(flags, FLAG);
        flags.extend([FLAG.into(), self.ours.clone().into()]);
        flags
    }

    /// Gives the caller, if one waits, what the runtime, which has ended, has sent; or what nobody
    /// uses.
    pub(super) fn pass_on(&self) -> Result<()> {
        let Some(callers) = &self.callers else { return Ok(()) };
        let (name, master) = match self.sent()? {
            Some(sent) => sent,
            None => unused().context("making a terminal")?,
        };
        let send = || -> Result<()> {
            let stream = UnixStream::connect(callers)?;
            send_one(&stream, &name, &master)
        };
        send().with_context(|| format!("sending a terminal to {}", callers.display()))
    }

    /// The terminal that the runtime has sent, and what it calls it.
    fn sent(&self) -> Result<Option<(Vec<u8>, OwnedFd)>> {
        match self.listener.accept() {
            Ok((stream, _)) => receive_one(&stream),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("asking whether the runtime has a terminal"),
        }
    }
}

/// A master whose other side nobody has ever opened does not hang up: who reads it waits.
fn unused() -> Result<(Vec<u8>, OwnedFd)> {
    let master = posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
    let name = ptsname_r(&master)?;
    Ok((name.into_bytes(), master.into()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::termios::isatty;
    use std::os::fd::AsFd;

    #[test]
    fn the_caller_gets_what_the_runtime_sends_or_something_else() {
        for sends in [true, false] {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("callers");
            let callers = UnixListener::bind(&path).unwrap();
            let flags = ["--detach".into(), FLAG.into(), path.into()];
            let console = Console::between(&flags, directory.path()).unwrap();
            let changed = console.flags(&flags);
            let ours = value_of(&changed, FLAG).unwrap();
            let runtime = UnixStream::connect(ours).unwrap();
            if sends {
                let (_reader, writer) = std::io::pipe().unwrap();
                send_one(&runtime, b"sent", &writer).unwrap();
            }
            drop(runtime);
            console.pass_on().unwrap();
            let (name, fd) = receive_one(&callers.accept().unwrap().0).unwrap().unwrap();
            assert_eq!((name == b"sent", isatty(fd.as_fd())), (sends, !sends));
        }
        let directory = tempfile::tempdir().unwrap();
        let console = Console::between(&["--detach".into()], directory.path()).unwrap();
        assert_eq!(console.flags(&[]).len(), 2, "nobody waits, but the runtime wants one");
        console.pass_on().unwrap();
    }
}

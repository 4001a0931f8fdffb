//! The other side of `exec:`: returns a file descriptor for an open file.

use std::fs::OpenOptions;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

/// Sends FILE, opened for reading and, unless it is a directory, writing, on the socket that ocicle gives.
pub fn run(file: &Path) -> Result<()> {
    let description = std::io::read_to_string(std::io::stdin())?;
    std::fs::write(file.with_extension("json"), description)?;
    let socket: RawFd =
        std::env::var("OCICLE_FD_SOCKET").context("OCICLE_FD_SOCKET is not set")?.parse()?;
    let lent = OpenOptions::new().read(true).write(!file.is_dir()).open(file)?;
    let fds = [lent.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&fds)];
    sendmsg::<()>(socket, &[IoSlice::new(b"{}")], &message, MsgFlags::empty(), None)?;
    Ok(())
}

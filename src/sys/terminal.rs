//! The terminal that a command was started at.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// Opens the controlling terminal of this process.
///
/// # Errors
/// When it has none (`ENXIO`).
pub fn open() -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::fs::open("/dev/tty", flags, Mode::empty()))
}

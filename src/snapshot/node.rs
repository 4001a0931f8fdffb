//! Makes inodes that have no bytes of their own.

use std::io;
use std::os::fd::AsFd;

use super::inode::InodeKind;
use rustix::fs::Mode;

/// Makes a symbolic link, a device, a fifo or a socket, for root alone as long as nothing else is
/// said. Anything else is invalid.
pub(super) fn make_node(dir: impl AsFd, name: &[u8], kind: &InodeKind) -> io::Result<()> {
    let device = match kind {
        InodeKind::Symlink(target) => return Ok(rustix::fs::symlinkat(target, dir, name)?),
        InodeKind::Char(device) | InodeKind::Block(device) => device.as_stat(),
        InodeKind::Fifo | InodeKind::Socket => 0,
        InodeKind::Dir | InodeKind::File(()) => return Err(io::ErrorKind::InvalidInput.into()),
    };
    Ok(rustix::fs::mknodat(dir, name, kind.file_type(), Mode::RUSR | Mode::WUSR, device)?)
}

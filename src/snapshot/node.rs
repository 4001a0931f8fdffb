//! Makes inodes that have no bytes of their own.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode};

use super::attributes::Shape;

/// Makes a symbolic link, a device, a fifo or a socket, for root alone as long as nothing else is
/// said. Anything else is invalid.
pub(super) fn make_node(dir: impl AsFd, name: &[u8], shape: &Shape) -> io::Result<()> {
    let (kind, device) = match shape {
        Shape::Symlink(target) => return Ok(rustix::fs::symlinkat(target, dir, name)?),
        Shape::Char(device) => (FileType::CharacterDevice, device.as_stat()),
        Shape::Block(device) => (FileType::BlockDevice, device.as_stat()),
        Shape::Fifo => (FileType::Fifo, 0),
        Shape::Socket => (FileType::Socket, 0),
        Shape::Dir | Shape::File => return Err(io::ErrorKind::InvalidInput.into()),
    };
    Ok(rustix::fs::mknodat(dir, name, kind, Mode::RUSR | Mode::WUSR, device)?)
}

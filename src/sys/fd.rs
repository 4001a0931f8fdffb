//! File descriptors that a caller names by number.
#![expect(unsafe_code, reason = "a number from the command line is no owned file descriptor")]

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, OFlags, StatxFlags};

/// Takes a duplicate of an inherited file descriptor, closed on exec. A number that is not open
/// is the error `EBADF`.
pub fn duplicate(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: F_DUPFD_CLOEXEC takes a number and touches no memory; a bad one is an error.
    let fd = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this number, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What an open file is to somebody who gets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nature {
    /// A file, a socket, a pipe and the like: it leads nowhere else.
    Plain,
    /// A directory.
    Directory,
    /// Opened with `O_PATH`: it can be opened otherwise, and leads on if it is a directory.
    Place,
    /// Either side of a terminal.
    Terminal,
}

/// Looks at an open file, without asking a server that may not answer.
pub fn nature(fd: impl AsFd) -> io::Result<Nature> {
    if rustix::fs::fcntl_getfl(&fd)?.contains(OFlags::PATH) {
        return Ok(Nature::Place);
    }
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(&fd, "", flags, StatxFlags::TYPE)?;
    Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
        FileType::Directory => Nature::Directory,
        FileType::CharacterDevice if rustix::termios::isatty(&fd) => Nature::Terminal,
        _ => Nature::Plain,
    })
}

/// The path of an open file, as the kernel knows it.
pub fn path(fd: impl AsFd) -> io::Result<OsString> {
    let path = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    std::fs::read_link(path).map(PathBuf::into_os_string)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_duplicate_shares_the_open_file() {
        let file = tempfile::tempfile().unwrap();
        let copy = duplicate(file.as_raw_fd()).unwrap();
        rustix::fs::seek(&copy, rustix::fs::SeekFrom::Start(7)).unwrap();
        assert_eq!(rustix::fs::tell(&file).unwrap(), 7);
    }

    #[test]
    fn natures() {
        let place =
            |path: &str, flags| rustix::fs::open(path, flags, rustix::fs::Mode::empty()).unwrap();
        assert_eq!(nature(place("/", OFlags::RDONLY)).unwrap(), Nature::Directory);
        assert_eq!(nature(place("/", OFlags::PATH)).unwrap(), Nature::Place);
        assert_eq!(nature(place("/etc/passwd", OFlags::PATH)).unwrap(), Nature::Place);
        assert_eq!(nature(place("/dev/null", OFlags::RDWR)).unwrap(), Nature::Plain);
        let pair = nix::pty::openpty(None, None).unwrap();
        assert_eq!(nature(&pair.slave).unwrap(), Nature::Terminal);
        assert_eq!(nature(&pair.master).unwrap(), Nature::Terminal);
        assert_eq!(path(place("/etc/passwd", OFlags::PATH)).unwrap(), "/etc/passwd");
    }

    #[test]
    fn a_number_that_is_not_open() {
        assert_eq!(duplicate(1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(duplicate(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}

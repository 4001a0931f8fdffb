//! File descriptors that a caller names by number.
#![expect(unsafe_code, reason = "a number from the command line is no owned file descriptor")]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

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
    fn a_number_that_is_not_open() {
        assert_eq!(duplicate(1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
        assert_eq!(duplicate(-1).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}

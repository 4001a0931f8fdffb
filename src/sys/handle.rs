//! Files by their handles, name_to_handle_at(2).
#![expect(unsafe_code, reason = "open_by_handle_at takes a structure of a length of its own")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// The longest handle, `MAX_HANDLE_SZ`.
const LONGEST: usize = 128;

/// `struct file_handle` with room for any handle.
#[repr(C)]
struct Handle {
    length: u32,
    kind: i32,
    bytes: [u8; LONGEST],
}

/// Opens a file (`O_PATH`) by its handle through any directory of its file system.
pub fn open_handle(mount: BorrowedFd<'_>, kind: i32, handle: &[u8]) -> io::Result<OwnedFd> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut whole = Handle { length: 0, kind, bytes: [0; LONGEST] };
    let place = whole.bytes.get_mut(..handle.len()).ok_or(()).map_err(too_long)?;
    place.copy_from_slice(handle);
    whole.length = u32::try_from(handle.len()).unwrap_or_default();
    let flags = libc::O_PATH | libc::O_CLOEXEC;
    // SAFETY: the structure is laid out as the kernel's, and holds as many bytes as it says.
    let fd = unsafe {
        libc::open_by_handle_at(mount.as_raw_fd(), std::ptr::from_mut(&mut whole).cast(), flags)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this number, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn handles_that_are_none() {
        let directory = std::fs::File::open("/").unwrap();
        assert!(open_handle(directory.as_fd(), 1, &[0; 200]).is_err());
        assert!(open_handle(directory.as_fd(), 0x7fff, b"nothing").is_err());
    }
}

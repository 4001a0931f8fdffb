//! Descriptors that a caller left open for us, known by their numbers alone.
#![expect(unsafe_code, reason = "a number is made a descriptor here, and nowhere else")]

use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::{FdFlags, fcntl_getfd};

/// Keeps the descriptor of that number, if it is none of the standard streams, from programs that
/// are started from now on.
pub fn keep_from_children(number: RawFd) -> std::io::Result<()> {
    match inherited(number) {
        Some(fd) if number > 2 => Ok(rustix::io::fcntl_setfd(fd, FdFlags::CLOEXEC)?),
        _ => Ok(()),
    }
}

/// The open descriptor of that number.
pub fn inherited(number: RawFd) -> Option<BorrowedFd<'static>> {
    if number < 0 {
        return None;
    }
    // SAFETY: it is not -1; whether it is open is asked before it is handed out. Nothing in this
    // program closes a descriptor that it has not opened, so it stays open.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(fd).ok().map(|_: FdFlags| fd)
}

//! POSIX message queues: mq_overview(7).
#![expect(
    unsafe_code,
    reason = "neither nix nor rustix asks a descriptor that somebody else opened"
)]

use std::os::fd::{AsRawFd, OwnedFd};

/// Whether a descriptor is one of a message queue. It waits for nothing: `do_mq_getsetattr` in the
/// kernel's ipc/mqueue.c looks at the open file's operations first.
pub fn is_queue(fd: &OwnedFd) -> bool {
    // SAFETY: zeroes are an `mq_attr`.
    let mut attributes = unsafe { std::mem::zeroed::<libc::mq_attr>() };
    // SAFETY: the descriptor is open, and the library writes an `mq_attr` to what is one.
    unsafe { libc::mq_getattr(fd.as_raw_fd(), &raw mut attributes) == 0 }
}

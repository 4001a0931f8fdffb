//! kcmp(2): whether two processes share a kernel object, and an order over such objects.
#![expect(unsafe_code, reason = "the C library has no function for kcmp")]

use std::cmp::Ordering;
use std::io;

use super::pid::ProcessFd;

/// What to compare (linux/kcmp.h).
const KCMP_FILE: libc::c_int = 0;

/// Compares the open file descriptions behind two file descriptors of two processes.
///
/// The order is the kernel's, arbitrary but total, and stays until the system is started anew.
pub fn compare_files(a: ProcessFd, b: ProcessFd) -> io::Result<Ordering> {
    let (first, second) = (a.fd as libc::c_ulong, b.fd as libc::c_ulong);
    // SAFETY: for this type kcmp takes five numbers by value and touches no memory of ours.
    match unsafe { libc::syscall(libc::SYS_kcmp, a.pid.0, b.pid.0, KCMP_FILE, first, second) } {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        -1 => Err(io::Error::last_os_error()),
        // 3 is documented for objects that have no order; no object compared here is such.
        other => Err(io::Error::other(format!("kcmp answered {other}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_duplicate_is_equal_and_a_second_opening_is_not() {
        let first = std::fs::File::open("/proc/self/exe").unwrap();
        let copy = first.try_clone().unwrap();
        let second = std::fs::File::open("/proc/self/exe").unwrap();
        let compare = |a: &std::fs::File, b: &std::fs::File| {
            compare_files(ProcessFd::own(a.as_raw_fd()), ProcessFd::own(b.as_raw_fd())).unwrap()
        };
        assert_eq!(compare(&first, &copy), Ordering::Equal);
        assert_ne!(compare(&first, &second), Ordering::Equal);
        assert_eq!(compare(&first, &second), compare(&second, &first).reverse());
    }

    #[test]
    fn a_closed_descriptor_is_an_error() {
        let error = compare_files(ProcessFd::own(0), ProcessFd::own(1 << 20)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
    }
}

//! The open files that CRIU cannot dump, and is kept from looking at.
//!
//! CRIU asks its plugins for files of unknown kinds only, and refuses many of the kinds it knows
//! (`dump_one_file` in criu/files.c). So of an open file that was set aside `fstat` says that it is a
//! block device, a kind that CRIU does not know, and `fstatfs` that it is on no file system it knows.
//! Of everything else they say the truth. Each is known by its device and inode, and by a file
//! descriptor of a process, with which the kernel compares it (kcmp(2)).

use std::ffi::c_int;

use libc::{stat, statfs};

use crate::hidden::{Hidden, missing};
use crate::told::{Aside, told};

/// Whether a descriptor of ours is for an open file that is set aside.
fn is_chosen(fd: c_int, found: &stat) -> bool {
    let mut alike =
        told().aside.iter().filter(|one| (one.device, one.inode) == (found.st_dev, found.st_ino));
    alike.any(|one| is_same(fd, one))
}

fn is_same(fd: c_int, other: &Aside) -> bool {
    /// linux/kcmp.h
    const KCMP_FILE: c_int = 0;
    // SAFETY: kcmp(2) and getpid(2) read and write no memory of ours.
    unsafe {
        libc::syscall(libc::SYS_kcmp, libc::getpid(), other.pid, KCMP_FILE, fd, other.fd) == 0
    }
}

type Fstat = unsafe extern "C" fn(c_int, *mut stat) -> c_int;
type Fstatfs = unsafe extern "C" fn(c_int, *mut statfs) -> c_int;
static FSTAT: Hidden<Fstat> = Hidden::new(c"fstat");
static FSTATFS: Hidden<Fstatfs> = Hidden::new(c"fstatfs");

/// What the C library says of a descriptor, or that it cannot.
///
/// # Safety
/// `into` is what fstat(2) may write to.
unsafe fn real_fstat(fd: c_int, into: *mut stat) -> c_int {
    // SAFETY: this is its type on every 64-bit Linux, where both names mean the same.
    match unsafe { FSTAT.get() } {
        // SAFETY: as the caller promises.
        Some(fstat) => unsafe { fstat(fd, into) },
        None => missing(),
    }
}

/// # Safety
/// `into` is what fstatfs(2) may write to.
unsafe fn real_fstatfs(fd: c_int, into: *mut statfs) -> c_int {
    // SAFETY: as for fstat.
    match unsafe { FSTATFS.get() } {
        // SAFETY: as the caller promises.
        Some(fstatfs) => unsafe { fstatfs(fd, into) },
        None => missing(),
    }
}

/// fstat(2), in which a file that is set aside is a block device.
///
/// # Safety
/// As of fstat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstat64(fd: c_int, into: *mut stat) -> c_int {
    // SAFETY: as the caller promises.
    let done = unsafe { real_fstat(fd, into) };
    // SAFETY: fstat(2) has filled it, and returned 0.
    if let Some(found) = unsafe { into.as_mut() }.filter(|_| done == 0)
        && is_chosen(fd, found)
    {
        found.st_mode = libc::S_IFBLK | (found.st_mode & !libc::S_IFMT);
    }
    done
}

/// fstat(2) under its other name.
///
/// # Safety
/// As of fstat(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstat(fd: c_int, into: *mut stat) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { fstat64(fd, into) }
}

/// fstatfs(2), in which a file that is set aside is on no file system in particular.
///
/// # Safety
/// As of fstatfs(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatfs64(fd: c_int, into: *mut statfs) -> c_int {
    // SAFETY: as the caller promises.
    let done = unsafe { real_fstatfs(fd, into) };
    // SAFETY: fstatfs(2) has filled it, and returned 0.
    if let Some(found) = unsafe { into.as_mut() }.filter(|_| done == 0)
        && is_set_aside(fd)
    {
        found.f_type = 0;
    }
    done
}

/// fstatfs(2) under its other name.
///
/// # Safety
/// As of fstatfs(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn fstatfs(fd: c_int, into: *mut statfs) -> c_int {
    // SAFETY: as the caller promises.
    unsafe { fstatfs64(fd, into) }
}

pub fn is_set_aside(fd: c_int) -> bool {
    // SAFETY: of a `stat`, which is numbers only, zeroes are a value.
    let mut found = unsafe { std::mem::zeroed::<stat>() };
    // SAFETY: it lives to the end of this function.
    unsafe { real_fstat(fd, &raw mut found) == 0 && is_chosen(fd, &found) }
}

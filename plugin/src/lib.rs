//! What ocicle loads into CRIU for a dump: it sets aside the open files that CRIU cannot dump.
//!
//! One library in two roles, which CRIU's own build offers to anybody:
//!
//! - A *plugin* (criu-plugin.h), in the directory that `libdir` names. Its one hook,
//!   `DUMP_EXT_FILE`, says yes to an open file that was set aside, and CRIU writes it down as one
//!   of type EXT: an identifier, who holds it as what, and no more.
//! - *Preloaded*, since CRIU asks the hook for files of unknown kinds only, and refuses many of the
//!   kinds it knows (`dump_one_file` in criu/files.c). So of an open file that was set aside `fstat`
//!   says that it is a block device, a kind that CRIU does not know, and `fstatfs` that it is on no
//!   file system it knows. Of everything else they say the truth.
//!
//! Which open files, the environment tells ([`LIST`]): each by its device and inode, and by a file
//! descriptor of a process, with which the kernel compares it (kcmp(2)).
//!
//! This runs inside CRIU while a container is frozen: it allocates at the start only, and cannot
//! panic behind that.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::ptr;
use std::sync::OnceLock;

use libc::{stat, statfs};

/// The environment variable that lists the files: `DEVICE:INODE:PID:FD`, hexadecimal but for the
/// last two, separated by blanks.
const LIST: &CStr = c"OCICLE_SET_ASIDE";

/// A file that is set aside.
struct Chosen {
    device: u64,
    inode: u64,
    pid: c_int,
    fd: c_int,
}

static CHOSEN: OnceLock<Vec<Chosen>> = OnceLock::new();

/// Runs when the library is loaded, before CRIU's `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static BEGIN: extern "C" fn() = begin;

/// Takes the list out of the environment, and this library: neither is for what CRIU starts.
extern "C" fn begin() {
    CHOSEN.get_or_init(|| {
        // SAFETY: both names end in a zero byte; nothing else runs yet that could use the
        // environment, and the value is copied before it changes.
        unsafe {
            let list = libc::getenv(LIST.as_ptr());
            let list = if list.is_null() { c"" } else { CStr::from_ptr(list) };
            let chosen = list.to_str().unwrap_or_default().split(' ').filter_map(parse).collect();
            libc::unsetenv(LIST.as_ptr());
            libc::unsetenv(c"LD_PRELOAD".as_ptr());
            chosen
        }
    });
}

fn parse(text: &str) -> Option<Chosen> {
    let mut fields = text.split(':');
    Some(Chosen {
        device: u64::from_str_radix(fields.next()?, 16).ok()?,
        inode: u64::from_str_radix(fields.next()?, 16).ok()?,
        pid: fields.next()?.parse().ok()?,
        fd: fields.next()?.parse().ok()?,
    })
}

/// Whether a descriptor of ours is for an open file that is set aside.
fn is_chosen(fd: c_int, found: &stat) -> bool {
    let chosen = CHOSEN.get().map_or(&[][..], Vec::as_slice);
    let mut alike =
        chosen.iter().filter(|one| (one.device, one.inode) == (found.st_dev, found.st_ino));
    alike.any(|one| is_same(fd, one))
}

fn is_same(fd: c_int, other: &Chosen) -> bool {
    /// linux/kcmp.h
    const KCMP_FILE: c_int = 0;
    // SAFETY: kcmp(2) and getpid(2) read and write no memory of ours.
    unsafe {
        libc::syscall(libc::SYS_kcmp, libc::getpid(), other.pid, KCMP_FILE, fd, other.fd) == 0
    }
}

/// The function of that name which this library's hides.
///
/// # Safety
/// `F` is the type of a pointer to it.
unsafe fn hidden<F: Copy>(name: &CStr) -> Option<F> {
    // SAFETY: the name ends in a zero byte.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) };
    // SAFETY: a pointer to a function is as large as one to data (POSIX, dlsym), and the caller
    // knows its type.
    (!found.is_null()).then(|| unsafe { ptr::read((&raw const found).cast::<F>()) })
}

type Fstat = unsafe extern "C" fn(c_int, *mut stat) -> c_int;
type Fstatfs = unsafe extern "C" fn(c_int, *mut statfs) -> c_int;

/// What the C library says of a descriptor, or that it cannot.
///
/// # Safety
/// `into` is what fstat(2) may write to.
unsafe fn real_fstat(fd: c_int, into: *mut stat) -> c_int {
    // SAFETY: this is its type on every 64-bit Linux, where both names mean the same.
    match unsafe { hidden::<Fstat>(c"fstat") } {
        // SAFETY: as the caller promises.
        Some(fstat) => unsafe { fstat(fd, into) },
        None => missing(),
    }
}

/// # Safety
/// `into` is what fstatfs(2) may write to.
unsafe fn real_fstatfs(fd: c_int, into: *mut statfs) -> c_int {
    // SAFETY: as for fstat.
    match unsafe { hidden::<Fstatfs>(c"fstatfs") } {
        // SAFETY: as the caller promises.
        Some(fstatfs) => unsafe { fstatfs(fd, into) },
        None => missing(),
    }
}

fn missing() -> c_int {
    // SAFETY: the C library's errno of this thread.
    unsafe { *libc::__errno_location() = libc::ENOSYS };
    -1
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

fn is_set_aside(fd: c_int) -> bool {
    // SAFETY: of a `stat`, which is numbers only, zeroes are a value.
    let mut found = unsafe { std::mem::zeroed::<stat>() };
    // SAFETY: it lives to the end of this function.
    unsafe { real_fstat(fd, &raw mut found) == 0 && is_chosen(fd, &found) }
}

/// `cr_plugin_desc_t` of criu-plugin.h, for a plugin that knows the first three hooks only.
#[repr(C)]
pub struct Description {
    name: *const c_char,
    init: Option<extern "C" fn(c_int) -> c_int>,
    exit: Option<extern "C" fn(c_int, c_int)>,
    version: c_uint,
    max_hooks: c_uint,
    hooks: [Option<extern "C" fn(c_int, c_int) -> c_int>; HOOKS],
}

/// How many of `CR_PLUGIN_HOOK__…` are told of: up to `DUMP_EXT_FILE`, which is the number 2.
const HOOKS: usize = 3;

// SAFETY: nobody writes to it, and the name it points to is a constant.
unsafe impl Sync for Description {}

/// What CRIU looks for in a plugin.
#[unsafe(no_mangle)]
pub static CR_PLUGIN_DESC: Description = Description {
    name: c"ocicle".as_ptr(),
    init: None,
    exit: None,
    // CRIU_PLUGIN_GEN_VERSION(0, 2, 0)
    version: 2 << 8,
    max_hooks: HOOKS as c_uint,
    hooks: [None, None, Some(dump_file)],
};

/// Says yes to a file that is set aside, and to no other: -ENOTSUP leaves those to whoever else
/// there is.
extern "C" fn dump_file(fd: c_int, _id: c_int) -> c_int {
    if is_set_aside(fd) { 0 } else { -libc::ENOTSUP }
}

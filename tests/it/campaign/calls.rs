//! System calls of x86-64, and what can go wrong with each.

use std::fmt;

use nix::errno::Errno;
use nix::libc;

use super::tracer::Fault;

/// A system call by its number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Call(pub u64);

/// Those that write, or make names: a disk can be full.
const WRITES: &[libc::c_long] = &[
    libc::SYS_write,
    libc::SYS_pwrite64,
    libc::SYS_writev,
    libc::SYS_pwritev,
    libc::SYS_mkdirat,
    libc::SYS_mkdir,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_symlink,
    libc::SYS_renameat,
    libc::SYS_rename,
    libc::SYS_fallocate,
    libc::SYS_ftruncate,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_syncfs,
    libc::SYS_copy_file_range,
    libc::SYS_setxattr,
    libc::SYS_mknodat,
    libc::SYS_sendfile,
];

/// Those that read, look or remove: a disk can be broken.
const READS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_statfs,
    libc::SYS_readlinkat,
    libc::SYS_readlink,
    libc::SYS_unlinkat,
    libc::SYS_unlink,
    libc::SYS_rmdir,
    libc::SYS_lseek,
    libc::SYS_getxattr,
    libc::SYS_listxattr,
    libc::SYS_fchownat,
    libc::SYS_chmod,
    libc::SYS_utimensat,
    libc::SYS_flock,
];

/// Those that make a descriptor.
const OPENS: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_open,
    libc::SYS_dup,
    libc::SYS_pipe2,
    libc::SYS_socket,
    libc::SYS_socketpair,
    libc::SYS_accept4,
    libc::SYS_memfd_create,
    libc::SYS_epoll_create1,
    libc::SYS_eventfd2,
    libc::SYS_pidfd_open,
    libc::SYS_inotify_init1,
    libc::SYS_timerfd_create,
    libc::SYS_signalfd4,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_fsmount,
];

/// Those that want memory.
const MEMORY: &[libc::c_long] = &[
    libc::SYS_mmap,
    libc::SYS_brk,
    libc::SYS_clone,
    libc::SYS_clone3,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_execve,
];

/// Those that a signal interrupts.
const WAITS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_epoll_wait,
    libc::SYS_epoll_pwait,
    libc::SYS_accept4,
    libc::SYS_connect,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_flock,
    libc::SYS_openat,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
];

/// Those that give an amount of bytes in their third argument.
const AMOUNTS: &[libc::c_long] = &[libc::SYS_write, libc::SYS_pwrite64];

impl Call {
    /// Whether a fault can happen to it: what no kernel ever answers proves nothing.
    pub fn can(self, fault: Fault) -> bool {
        let is_in = |list: &[libc::c_long]| list.contains(&(self.0 as libc::c_long));
        match fault {
            Fault::Kill | Fault::Stop(_) => true,
            Fault::ShortWrite => is_in(AMOUNTS),
            Fault::Fail(Errno::ENOSPC) => is_in(WRITES),
            Fault::Fail(Errno::EIO) => is_in(WRITES) || is_in(READS),
            Fault::Fail(Errno::EMFILE) => is_in(OPENS),
            Fault::Fail(Errno::ENOMEM) => is_in(OPENS) || is_in(MEMORY),
            Fault::Fail(Errno::EINTR) => is_in(WAITS),
            Fault::Fail(_) => false,
        }
    }
}

impl fmt::Debug for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "call {}", self.0)
    }
}

//! File descriptors of live processes, as `/proc` shows them.

use std::io;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use crate::container::Process;
use crate::container::{FileKind, Holder};
use crate::freezer::Still;
use crate::proc::fdinfo::FdInfo;
use crate::proc::{Proc, is_zombie};
use crate::sys::at_once::{self, Stat};
use crate::sys::fs::proc_path;
use crate::sys::inode::{DevIno, Device};
use crate::sys::kcmp;
use crate::sys::pid::ProcessFd;

/// A file descriptor, as `/proc` shows it.
#[derive(Debug)]
pub(super) struct Observed {
    pub(super) process: Process,
    pub(super) fd: i32,
    /// What `/proc/PID/fd/N` links to.
    pub(super) link: Vec<u8>,
    pub(super) stat: Stat,
    pub(super) info: FdInfo,
}

/// Whether a process or one of its file descriptors went away.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EBADF))
}

/// Reads every file descriptor of every process.
pub(super) fn observe(processes: &[Process], still: Still<'_>) -> Result<Vec<Observed>> {
    let mut fds = Vec::new();
    for process in processes.iter().filter(|process| !is_zombie(process.host)) {
        match Proc::of(process.host).descriptors() {
            Ok(numbers) => {
                for fd in numbers {
                    let seen = tolerate(Observed::read(*process, fd), still)
                        .with_context(|| format!("reading fd {fd} of pid {}", process.inner))?;
                    fds.extend(seen);
                }
            }
            Err(error) if !still.is_frozen() && is_gone(&error) => {}
            Err(error) => {
                let context = format!("reading the file descriptors of pid {}", process.inner);
                return Err(error).context(context);
            }
        }
    }
    Ok(fds)
}

/// Makes nothing of what went away, unless nothing can have.
pub(super) fn tolerate<T>(result: io::Result<T>, still: Still<'_>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if !still.is_frozen() && is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

impl Observed {
    fn read(process: Process, fd: i32) -> io::Result<Self> {
        // A process that runs may put another file there between two looks, as every shell does for
        // a redirection: name and type are read of one that stays.
        let observed = Proc::of(process.host);
        let held = rustix::fs::open(
            observed.descriptor(fd),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let link = rustix::fs::readlink(proc_path(&held), Vec::new())?.into_bytes();
        let stat = at_once::stat(&held)?;
        let info = observed.fdinfo(fd)?;
        Ok(Self { process, fd, link, stat, info })
    }

    pub(super) fn holder(&self) -> Holder {
        Holder { pid: self.process.inner, fd: self.fd }
    }

    /// The same, by the number that the process has here.
    pub(super) fn here(&self) -> ProcessFd {
        ProcessFd { pid: self.process.host, fd: self.fd }
    }

    pub(super) fn is_there(&self) -> bool {
        kcmp::compare_files(self.here(), self.here()).is_ok()
    }

    /// Files that differ in this cannot be the same open file. All anonymous inodes may share one
    /// number; of those the link says the type.
    pub(super) fn key(&self) -> (DevIno, &[u8]) {
        let link = if self.link.starts_with(b"/") { &[][..] } else { &self.link };
        (self.stat.inode, link)
    }

    pub(super) fn kind(&self) -> FileKind {
        if let Some(kind) = kind_of_link(&self.link) {
            return kind;
        }
        let mode = self.stat.st_mode;
        match mode & libc::S_IFMT {
            libc::S_IFSOCK => FileKind::Unknown,
            libc::S_IFIFO if self.link.starts_with(b"pipe:") => FileKind::Pipe,
            libc::S_IFCHR => kind_of_device(self.stat.st_rdev),
            libc::S_IFREG if self.link.starts_with(b"/memfd:") && self.stat.st_nlink == 0 => {
                FileKind::Memfd
            }
            libc::S_IFREG if !self.link.starts_with(b"/") => FileKind::Namespace,
            _ => FileKind::of_mode(mode),
        }
    }
}

fn kind_of_link(link: &[u8]) -> Option<FileKind> {
    if link.starts_with(b"pidfd:") {
        return Some(FileKind::Pidfd);
    }
    Some(match link.strip_prefix(b"anon_inode:")? {
        b"[eventfd]" => FileKind::Eventfd,
        b"[eventpoll]" => FileKind::Epoll,
        b"[signalfd]" => FileKind::Signalfd,
        b"[timerfd]" => FileKind::Timerfd,
        b"[pidfd]" => FileKind::Pidfd,
        b"[fanotify]" => FileKind::Fanotify,
        b"inotify" => FileKind::Inotify,
        b"bpf-map" => FileKind::Bpfmap,
        _ => FileKind::Unknown,
    })
}

/// Character devices by Documentation/admin-guide/devices.txt of the kernel.
fn kind_of_device(device: Device) -> FileKind {
    match (device.major, device.minor) {
        (4 | 136..=143 | 204, _) | (5, 0..=2) => FileKind::Tty,
        (10, 200) => FileKind::Tun,
        _ => FileKind::Device,
    }
}

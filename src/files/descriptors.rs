//! File descriptors of live processes, as `/proc` shows them.

use std::io;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};

use super::images::kind_of_mode;
use super::table::{FileKind, Holder, LockKind};
use crate::container::Process;
use crate::sys::at_once::{self, Stat};
use crate::sys::fs::proc_path;
use crate::sys::kcmp;

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

/// What `/proc/PID/fdinfo/N` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    pub(super) position: u64,
    pub(super) flags: u32,
    pub(super) mount: i32,
    /// The file descriptors that an epoll instance watches.
    pub(super) watched: Vec<i32>,
    /// The process of a pidfd, as its own namespace numbers it.
    pub(super) pid: Option<i32>,
    /// The interface of a tun device.
    pub(super) interface: Option<String>,
    /// The process of a pidfd, as ours numbers it; none any more if it has ended.
    pub(super) target: Option<i32>,
    /// Whether a lock or lease is held through it.
    pub(super) locked: bool,
    /// Whether that is a lease to write.
    pub(super) leased: bool,
    /// The locks that are held through it.
    pub(super) locks: Vec<HeldLock>,
    /// The files that an inotify instance or fanotify group watches.
    pub(super) watches: Vec<Watch>,
    /// The type of a BPF map.
    pub(super) map_type: Option<u32>,
    /// The number of the FUSE connection that is served through it (Linux 6.14).
    pub(super) serves: Option<u32>,
}

/// A lock that the kernel shows with a file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeldLock {
    pub(super) kind: LockKind,
    /// Whether nobody else may have one.
    pub(super) exclusive: bool,
    /// Where it begins.
    pub(super) start: i64,
    /// How long it is, 0 for ever.
    pub(super) length: i64,
}

/// A file that an inotify instance or fanotify group watches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Watch {
    /// The major and minor number of its file system's device.
    pub(super) device: (u32, u32),
    /// Its inode number.
    pub(super) inode: u64,
    /// The type of its handle (name_to_handle_at(2)).
    pub(super) handle_type: i32,
    /// Its handle.
    pub(super) handle: Vec<u8>,
}

/// Whether a process or one of its file descriptors went away.
pub(super) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH | libc::EBADF))
}

/// Reads every file descriptor of every process.
pub(super) fn observe(processes: &[Process], frozen: bool) -> Result<Vec<Observed>> {
    let mut fds = Vec::new();
    for process in processes.iter().filter(|process| !is_zombie(process.host)) {
        match numbers(process.host) {
            Ok(numbers) => {
                for fd in numbers {
                    let seen = tolerate(Observed::read(*process, fd), frozen)
                        .with_context(|| format!("reading fd {fd} of pid {}", process.inner))?;
                    fds.extend(seen);
                }
            }
            Err(error) if !frozen && is_gone(&error) => {}
            Err(error) => {
                let context = format!("reading the file descriptors of pid {}", process.inner);
                return Err(error).context(context);
            }
        }
    }
    Ok(fds)
}

/// Whether a process has ended and waits for its parent: it holds nothing any more.
pub(super) fn is_zombie(host: i32) -> bool {
    let stat = std::fs::read(format!("/proc/{host}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold any byte (proc_pid_stat(5)).
    let name_end = stat.iter().rposition(|byte| *byte == b')');
    name_end.is_some_and(|end| matches!(stat.get(end + 2), Some(b'Z' | b'X')))
}

/// Makes nothing of what went away, unless nothing can have.
pub(super) fn tolerate<T>(result: io::Result<T>, frozen: bool) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if !frozen && is_gone(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn numbers(host: i32) -> io::Result<Vec<i32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{host}/fd"))? {
        numbers.extend(entry?.file_name().to_str().and_then(|name| name.parse::<i32>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

impl Observed {
    fn read(process: Process, fd: i32) -> io::Result<Self> {
        // A process that runs may put another file there between two looks, as every shell does for
        // a redirection: name and type are read of one that stays.
        let path = format!("/proc/{}/fd/{fd}", process.host);
        let held = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let link = rustix::fs::readlink(proc_path(&held), Vec::new())?.into_bytes();
        let stat = at_once::stat(&held)?;
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", process.host))?;
        Ok(Self { process, fd, link, stat, info: parse_fdinfo(&info) })
    }

    pub(super) fn holder(&self) -> Holder {
        Holder { pid: self.process.inner, fd: self.fd }
    }

    pub(super) fn for_kcmp(&self) -> (i32, i32) {
        (self.process.host, self.fd)
    }

    pub(super) fn is_there(&self) -> bool {
        kcmp::compare_files(self.for_kcmp(), self.for_kcmp()).is_ok()
    }

    /// Files that differ in this cannot be the same open file. All anonymous inodes may share one
    /// number; of those the link says the type.
    pub(super) fn key(&self) -> (u64, u64, &[u8]) {
        let link = if self.link.starts_with(b"/") { &[][..] } else { &self.link };
        (self.stat.st_dev, self.stat.st_ino, link)
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
            _ => kind_of_mode(mode),
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
fn kind_of_device(device: u64) -> FileKind {
    match (rustix::fs::major(device), rustix::fs::minor(device)) {
        (4 | 136..=143 | 204, _) | (5, 0..=2) => FileKind::Tty,
        (10, 200) => FileKind::Tun,
        _ => FileKind::Device,
    }
}

/// Parses what proc_pid_fdinfo(5) describes; lines it does not know are skipped.
pub fn parse_fdinfo(text: &str) -> FdInfo {
    let mut info = FdInfo { mount: -1, ..FdInfo::default() };
    for (name, value) in text.lines().filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        match name {
            "pos" => info.position = value.parse().unwrap_or_default(),
            "flags" => info.flags = u32::from_str_radix(value, 8).unwrap_or_default(),
            "mnt_id" => info.mount = value.parse().unwrap_or(-1),
            "tfd" => {
                let number = value.split_whitespace().next().and_then(|fd| fd.parse::<i32>().ok());
                info.watched.extend(number);
            }
            "NSpid" => {
                info.pid = value.split_whitespace().last().and_then(|pid| pid.parse().ok());
            }
            "iff" => info.interface = Some(value.to_owned()),
            "Pid" => info.target = value.parse().ok().filter(|pid| *pid > 0),
            // A waiter for the lock has an arrow before it (lock_get_status in fs/locks.c).
            "lock" if !value.contains("->") => {
                info.locked = true;
                info.leased |= value.contains("LEASE ") && value.contains(" WRITE ");
                info.locks.extend(parse_lock(value));
            }
            "fuse_connection" => info.serves = value.parse().ok(),
            "map_type" => info.map_type = value.parse().ok(),
            name if name.starts_with("inotify ") || name.starts_with("fanotify ") => {
                info.watches.extend(parse_watch(name, value));
            }
            _ => {}
        }
    }
    info.flags &= !(libc::O_CLOEXEC as u32);
    info
}

/// `1: POSIX  ADVISORY  WRITE 812 00:2f:5 2 EOF`: kind, a word on how it is enforced, for what, whose,
/// the file, the first byte and the last one (lock_get_status in fs/locks.c).
fn parse_lock(value: &str) -> Option<HeldLock> {
    let words: Vec<_> = value.split_whitespace().collect();
    let [_, kind, _, access, _, _, start, end] = words[..] else { return None };
    let start = start.parse().ok()?;
    Some(HeldLock {
        kind: match kind {
            "POSIX" => LockKind::Posix,
            "FLOCK" => LockKind::Flock,
            "OFDLCK" => LockKind::Ofd,
            "LEASE" => LockKind::Lease,
            _ => return None,
        },
        exclusive: access == "WRITE",
        start,
        length: match end {
            "EOF" => 0,
            last => last.parse::<i64>().ok()?.checked_sub(start)?.checked_add(1)?,
        },
    })
}

/// `inotify wd:1 ino:2 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:8 fhandle-type:1
/// f_handle:0011`, cut at its first colon: numbers in hexadecimal, the device as the kernel has it
/// (fs/notify/fdinfo.c). What has no handle, such as a mount, is no watch of a file.
fn parse_watch(before: &str, after: &str) -> Option<Watch> {
    const MINOR_BITS: u32 = 20;
    let line = format!("{before}:{after}");
    let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
    let device = u32::from_str_radix(field("sdev:")?, 16).ok()?;
    let digits = field("f_handle:")?;
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    Some(Watch {
        device: (device >> MINOR_BITS, device & ((1 << MINOR_BITS) - 1)),
        inode: u64::from_str_radix(field("ino:")?, 16).ok()?,
        handle_type: u32::from_str_radix(field("fhandle-type:")?, 16).ok()?.cast_signed(),
        handle: (0..digits.len()).step_by(2).map(byte).collect::<Option<_>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo() {
        let text = "pos:\t5\nflags:\t02100002\nmnt_id:\t-1\ntfd:       7 events: 19 data: 7\n\
                    NSpid:\t9 1\niff:\ttun0\nother\n";
        let info = parse_fdinfo(text);
        assert_eq!(info.flags, 0o100002);
        assert_eq!((info.position, info.mount), (5, -1));
        assert_eq!((info.watched, info.pid), (vec![7], Some(1)));
        assert_eq!(info.interface.as_deref(), Some("tun0"));
        assert!(!info.locked && info.watches.is_empty());
    }

    #[test]
    fn fdinfo_of_locks_pidfds_and_watches() {
        let waits = parse_fdinfo("lock:\t1: -> FLOCK  ADVISORY  WRITE 7 00:2f:5 0 EOF\n");
        assert!(!waits.locked);
        let lease =
            |kind| parse_fdinfo(&format!("lock:\t1: LEASE  ACTIVE    {kind} 7 00:2f:5 0 EOF\n"));
        assert!(lease("WRITE").leased && lease("READ").locked && !lease("READ").leased);
        let text = "lock:\t1: POSIX  ADVISORY  WRITE 7 00:2f:5 2 4\n\
                    lock:\t2: FLOCK  ADVISORY  READ 7 00:2f:5 0 EOF\n\
                    lock:\t3: NEW  ADVISORY  READ 7 00:2f:5 0 EOF\n";
        let locks = parse_fdinfo(text).locks;
        let posix = HeldLock { kind: LockKind::Posix, exclusive: true, start: 2, length: 3 };
        let flock = HeldLock { kind: LockKind::Flock, exclusive: false, start: 0, length: 0 };
        assert_eq!(locks, [posix, flock]);
        assert_eq!(parse_fdinfo("Pid:\t812\nNSpid:\t812\t7\n").target, Some(812));
        assert_eq!(parse_fdinfo("Pid:\t-1\n").target, None);
        let line = "inotify wd:1 ino:2a sdev:fe00001 mask:100 ignored_mask:0 fhandle-bytes:4 \
                    fhandle-type:81 f_handle:00ff10ab \n";
        let expected = Watch {
            device: (254, 1),
            inode: 42,
            handle_type: 129,
            handle: vec![0, 0xff, 0x10, 0xab],
        };
        assert_eq!(parse_fdinfo(line).watches, [expected]);
        let mount = "fanotify flags:0 event-flags:8000\nfanotify mnt_id:1f mflags:0 mask:1\n";
        assert!(parse_fdinfo(mount).watches.is_empty());
    }
}

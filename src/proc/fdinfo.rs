//! `/proc/PID/fdinfo/N`, as proc_pid_fdinfo(5) describes it.

use serde::{Deserialize, Serialize};

use crate::sys::inode::{DevIno, Device};
use crate::sys::pid::{InnerPid, Pid};

/// The kinds of locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LockKind {
    /// Of `F_SETLK` (fcntl(2)): the process has it.
    Posix,
    /// Of flock(2).
    Flock,
    /// Of `F_OFD_SETLK`: the open file has it.
    Ofd,
    /// A lease.
    Lease,
}

/// What `/proc/PID/fdinfo/N` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// Where the next read begins.
    pub position: u64,
    /// Its `O_…` flags, without `O_CLOEXEC`, which belongs to a file descriptor.
    pub flags: u32,
    /// The number of the mount that it is on; -1 if that is unknown.
    pub mount: i32,
    /// The file descriptors that an epoll instance watches.
    pub watched: Vec<i32>,
    /// The process of a pidfd, as its own namespace numbers it.
    pub pid: Option<InnerPid>,
    /// The interface of a tun device.
    pub interface: Option<String>,
    /// The process of a pidfd, as ours numbers it; none any more if it has ended.
    pub target: Option<Pid>,
    /// Whether a lock or lease is held through it.
    pub locked: bool,
    /// Whether that is a lease to write.
    pub leased: bool,
    /// The locks that are held through it.
    pub locks: Vec<HeldLock>,
    /// The files that an inotify instance or fanotify group watches.
    pub watches: Vec<Watch>,
    /// The type of a BPF map.
    pub map_type: Option<u32>,
    /// The number of the FUSE connection that is served through it (Linux 6.14).
    pub serves: Option<u32>,
}

/// A lock that the kernel shows with a file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLock {
    /// What kind it is.
    pub kind: LockKind,
    /// Whether nobody else may have one.
    pub exclusive: bool,
    /// Where it begins.
    pub start: i64,
    /// How long it is, 0 for ever.
    pub length: i64,
}

/// A file that an inotify instance or fanotify group watches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    /// Its inode.
    pub inode: DevIno,
    /// The type of its handle (name_to_handle_at(2)).
    pub handle_type: i32,
    /// Its handle.
    pub handle: Vec<u8>,
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
            "Pid" => info.target = value.parse().ok().and_then(Pid::exists),
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
    let line = format!("{before}:{after}");
    let field = |name: &str| line.split(' ').find_map(|word| word.strip_prefix(name));
    let device = u32::from_str_radix(field("sdev:")?, 16).ok()?;
    let digits = field("f_handle:")?;
    let byte = |at: usize| u8::from_str_radix(digits.get(at..at + 2)?, 16).ok();
    Some(Watch {
        inode: DevIno {
            device: Device::from_kernel(device),
            ino: u64::from_str_radix(field("ino:")?, 16).ok()?,
        },
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
        assert_eq!((info.watched, info.pid), (vec![7], Some(InnerPid(1))));
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
        assert_eq!(parse_fdinfo("Pid:\t812\nNSpid:\t812\t7\n").target, Some(Pid(812)));
        assert_eq!(parse_fdinfo("Pid:\t-1\n").target, None);
        let line = "inotify wd:1 ino:2a sdev:fe00001 mask:100 ignored_mask:0 fhandle-bytes:4 \
                    fhandle-type:81 f_handle:00ff10ab \n";
        let expected = Watch {
            inode: DevIno { device: Device::new(254, 1), ino: 42 },
            handle_type: 129,
            handle: vec![0, 0xff, 0x10, 0xab],
        };
        assert_eq!(parse_fdinfo(line).watches, [expected]);
        let mount = "fanotify flags:0 event-flags:8000\nfanotify mnt_id:1f mflags:0 mask:1\n";
        assert!(parse_fdinfo(mount).watches.is_empty());
    }

    #[test]
    fn locks_of_each_form() {
        let posix =
            |start, length| HeldLock { kind: LockKind::Posix, exclusive: true, start, length };
        for (range, lock) in [
            ("0 EOF", Some(posix(0, 0))),
            ("2 EOF", Some(posix(2, 0))),
            ("2 2", Some(posix(2, 1))),
            // The kernel's last byte.
            ("0 9223372036854775806", Some(posix(0, i64::MAX))),
            ("0 9223372036854775807", None),
            ("-9223372036854775808 5", None),
            ("x EOF", None),
            ("2 x", None),
            ("2", None),
            ("2 4 5", None),
        ] {
            let text = format!("1: POSIX  ADVISORY  WRITE 7 00:2f:5 {range}");
            assert_eq!(parse_lock(&text), lock, "{range}");
        }
        let kinds = [
            ("POSIX", LockKind::Posix),
            ("FLOCK", LockKind::Flock),
            ("OFDLCK", LockKind::Ofd),
            ("LEASE", LockKind::Lease),
        ];
        for (word, kind) in kinds {
            let lock = parse_lock(&format!("1: {word} ADVISORY READ 7 00:2f:5 0 EOF")).unwrap();
            assert_eq!((lock.kind, lock.exclusive), (kind, false));
        }
    }

    #[test]
    fn watches_of_each_form() {
        for (line, inode) in [
            (
                "inotify wd:1 ino:2a sdev:1 mask:1 fhandle-bytes:1 fhandle-type:1 f_handle:00",
                Some(42),
            ),
            ("inotify wd:1 ino:2a sdev:1 fhandle-type:1 f_handle:", Some(42)),
            ("fanotify ino:2a sdev:1 fhandle-type:1 f_handle:00", Some(42)),
            // Half a byte, no digit, no handle, and a number that is too large.
            ("inotify ino:2a sdev:1 fhandle-type:1 f_handle:000", None),
            ("inotify ino:2a sdev:1 fhandle-type:1 f_handle:0g", None),
            ("inotify ino:2a sdev:1 fhandle-type:1 f_handle:\u{e9}1", None),
            ("inotify ino:2a sdev:1", None),
            ("inotify ino:2a sdev:fffffffff fhandle-type:1 f_handle:00", None),
            ("notify ino:2a sdev:1 fhandle-type:1 f_handle:00", None),
        ] {
            let watches = parse_fdinfo(line).watches;
            assert_eq!(watches.first().map(|watch| watch.inode.ino), inode, "{line}");
        }
    }

    #[test]
    fn what_each_kind_of_file_says() {
        let of = |text: &str| parse_fdinfo(text);
        assert_eq!(of("").mount, -1);
        assert_eq!(of("pos:\tx\nflags:\t9\nmnt_id:\tx\n"), of(""));
        assert_eq!(of("map_type:\t2\n").map_type, Some(2));
        assert_eq!(of("fuse_connection:\t44\n").serves, Some(44));
        let epoll = "tfd: 7 events: 19\ntfd: 9 events: 19\ntfd: x\n";
        assert_eq!(of(epoll).watched, [7, 9]);
        assert_eq!(of("Pid:\t0\n").target, None, "it is not in our namespace");
        assert_eq!(of("NSpid:\t0\n").pid, Some(InnerPid(0)));
    }
}

//! The table from live processes.

use std::collections::BTreeMap;
use std::io;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, Stat};

use super::images::kind_of_mode;
use super::name;
use super::sockets::Sockets;
use super::table::{FileId, FileKind, Holder, LockKind, OpenFile, Table};
use super::unreachable::Reach;
use crate::bytes::ByteString;
use crate::container::Process;
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
pub(super) struct FdInfo {
    pub(super) position: u64,
    pub(super) flags: u32,
    pub(super) mount: i32,
    /// The file descriptors that an epoll instance watches.
    watched: Vec<i32>,
    /// The process of a pidfd, as its own namespace numbers it.
    pid: Option<i32>,
    /// The interface of a tun device.
    interface: Option<String>,
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

/// Open files, and the file descriptors that were read for them.
pub(super) struct Survey {
    pub(super) table: Table,
    pub(super) fds: Vec<Observed>,
    pub(super) reach: Reach,
}

impl Table {
    /// The open files of processes, numbered from 1.
    ///
    /// With `frozen`, whatever vanishes while this reads is an error; without, it is left out.
    pub fn from_processes(processes: &[Process], frozen: bool) -> Result<Self> {
        Ok(survey(processes, frozen)?.table)
    }
}

/// Reads the open files of processes.
pub(super) fn survey(processes: &[Process], frozen: bool) -> Result<Survey> {
    let fds = observe(processes, frozen)?;
    let classes = classify(&fds, frozen)?;
    let reach = Reach::of(processes, frozen)?;
    let mut sockets = Sockets::default();
    let mut files: Vec<_> =
        classes.iter().map(|class| describe(&fds, class, &mut sockets, &reach)).collect();
    files.sort_by_key(|file| file.holders.first().copied());
    for (file, id) in files.iter_mut().zip(1..) {
        file.id = FileId(id);
    }
    mark_watched(&mut files, &fds);
    Ok(Survey { table: Table::new(files), fds, reach })
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
        let stat = rustix::fs::fstat(&held)?;
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/{fd}", process.host))?;
        Ok(Self { process, fd, link, stat, info: parse_fdinfo(&info) })
    }

    pub(super) fn holder(&self) -> Holder {
        Holder { pid: self.process.inner, fd: self.fd }
    }

    fn for_kcmp(&self) -> (i32, i32) {
        (self.process.host, self.fd)
    }

    fn is_there(&self) -> bool {
        kcmp::compare_files(self.for_kcmp(), self.for_kcmp()).is_ok()
    }

    /// Files that differ in this cannot be the same open file. All anonymous inodes may share one
    /// number; of those the link says the type.
    fn key(&self) -> (u64, u64, &[u8]) {
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
pub(super) fn parse_fdinfo(text: &str) -> FdInfo {
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

/// File descriptors (by index) of one open file description.
type Class = Vec<usize>;

/// Tells equal open files from different ones: by cheap identity first, by the kernel's order
/// among those that have the same.
fn classify(fds: &[Observed], frozen: bool) -> Result<Vec<Class>> {
    let mut groups: BTreeMap<_, Vec<Class>> = BTreeMap::new();
    for (index, fd) in fds.iter().enumerate() {
        let classes = groups.entry(fd.key()).or_default();
        place(fds, classes, index, frozen).with_context(|| {
            format!("comparing fd {} of pid {} with others", fd.fd, fd.process.inner)
        })?;
    }
    Ok(groups.into_values().flatten().collect())
}

/// Puts a file descriptor into its class, or into a new one at the place that keeps the order.
fn place(fds: &[Observed], classes: &mut Vec<Class>, new: usize, frozen: bool) -> io::Result<()> {
    loop {
        match search(fds, classes, new) {
            Ok(Ok(class)) => {
                classes[class].push(new);
                return Ok(());
            }
            Ok(Err(at)) => {
                classes.insert(at, vec![new]);
                return Ok(());
            }
            Err((_, error)) if frozen || !is_gone(&error) => return Err(error),
            Err(_) if !fds[new].is_there() => return Ok(()),
            Err((class, _)) => forget_gone(fds, classes, class),
        }
    }
}

/// Leaves out of a class what went away. The first of it did, or it would have been comparable.
fn forget_gone(fds: &[Observed], classes: &mut Vec<Class>, class: usize) {
    classes[class].remove(0);
    classes[class].retain(|member| fds[*member].is_there());
    if classes[class].is_empty() {
        classes.remove(class);
    }
}

/// A binary search: the class, or where a new one belongs; with an error, the class it came from.
fn search(
    fds: &[Observed],
    classes: &[Class],
    new: usize,
) -> Result<Result<usize, usize>, (usize, io::Error)> {
    let (mut low, mut high) = (0, classes.len());
    while low < high {
        let middle = low + (high - low) / 2;
        let first = &fds[classes[middle][0]];
        match kcmp::compare_files(first.for_kcmp(), fds[new].for_kcmp()) {
            Ok(std::cmp::Ordering::Equal) => return Ok(Ok(middle)),
            Ok(std::cmp::Ordering::Less) => low = middle + 1,
            Ok(std::cmp::Ordering::Greater) => high = middle,
            Err(error) => return Err((middle, error)),
        }
    }
    Ok(Err(low))
}

fn describe(fds: &[Observed], class: &Class, sockets: &mut Sockets, reach: &Reach) -> OpenFile {
    let fd = &fds[class[0]];
    let mut holders: Vec<_> = class.iter().map(|member| fds[*member].holder()).collect();
    holders.sort_unstable();
    let (kind, text) = name_of(fd, sockets);
    let (text, deleted) = strip_deleted(fd, text);
    let external = class.iter().find_map(|member| reach.unreachable(&fds[*member]));
    let mode = fd.stat.st_mode;
    let has_path = kind_of_mode(mode) == kind && kind != FileKind::Unknown;
    let has_position = (has_path && kind != FileKind::Fifo) || kind == FileKind::Memfd;
    OpenFile {
        id: FileId(0),
        kind,
        name: text,
        flags: fd.info.flags,
        position: has_position.then_some(fd.info.position),
        size: matches!(kind, FileKind::Reg | FileKind::Memfd).then_some(fd.stat.st_size as u64),
        mode: has_path.then_some(mode),
        deleted,
        holders,
        external,
        watched: false,
        locks: Vec::new(),
        in_flight: false,
        must_substitute: external.is_some(),
        unsupported: None,
    }
}

/// Kind and name of an open file.
fn name_of(fd: &Observed, sockets: &mut Sockets) -> (FileKind, ByteString) {
    if fd.stat.st_mode & libc::S_IFMT == libc::S_IFSOCK {
        return sockets.name(fd);
    }
    let kind = fd.kind();
    let name = match kind {
        FileKind::Memfd => {
            let name = fd.link.strip_prefix(b"/").unwrap_or(&fd.link);
            name.strip_suffix(b" (deleted)").unwrap_or(name).into()
        }
        FileKind::Pidfd => fd.info.pid.map_or("pidfd".into(), |pid| format!("pidfd {pid}").into()),
        FileKind::Tun => match &fd.info.interface {
            Some(interface) => name::join("tun ", &interface.as_str().into()),
            None => "tun".into(),
        },
        FileKind::Unknown => fd.link.as_slice().into(),
        _ if fd.link.starts_with(b"anon_inode:") => kind.as_str().into(),
        _ => fd.link.as_slice().into(),
    };
    (kind, name)
}

/// Takes away what the kernel appends to the path of a file whose name is gone.
fn strip_deleted(fd: &Observed, name: ByteString) -> (ByteString, bool) {
    let has_path = fd.link.starts_with(b"/") && fd.link == name.as_bytes();
    let Some(stripped) = name.as_bytes().strip_suffix(b" (deleted)").filter(|_| has_path) else {
        return (name, false);
    };
    if fd.stat.st_nlink > 0 && is_named_so(fd, &name) {
        return (name, false);
    }
    (stripped.into(), true)
}

/// Whether a file in the container really ends in ` (deleted)`.
fn is_named_so(fd: &Observed, name: &ByteString) -> bool {
    use rustix::fs::{Mode, OFlags, ResolveFlags};
    let path = OFlags::PATH | OFlags::CLOEXEC;
    let root = format!("/proc/{}/root", fd.process.host);
    let found = rustix::fs::open(root, path | OFlags::DIRECTORY, Mode::empty()).and_then(|root| {
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let path = path | OFlags::NOFOLLOW;
        let file = rustix::fs::openat2(root, name.as_path(), path, Mode::empty(), resolve)?;
        rustix::fs::fstat(file)
    });
    found.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (fd.stat.st_dev, fd.stat.st_ino))
}

/// Marks the files that epoll instances watch, by the numbers that each holder has for them.
fn mark_watched(files: &mut [OpenFile], fds: &[Observed]) {
    let watched: std::collections::HashSet<_> = fds
        .iter()
        .flat_map(|fd| {
            fd.info.watched.iter().map(|number| Holder { pid: fd.process.inner, fd: *number })
        })
        .collect();
    for file in files {
        file.watched = file.holders.iter().any(|holder| watched.contains(holder));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn own() -> Process {
        Process { host: std::process::id() as i32, inner: 1 }
    }

    fn held(table: &Table, file: &impl AsRawFd) -> OpenFile {
        let holder = Holder { pid: 1, fd: file.as_raw_fd() };
        table.held_by(holder).unwrap_or_else(|| panic!("{holder}")).clone()
    }

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

    #[test]
    fn our_own_open_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("data (deleted)");
        std::fs::write(&path, "12345").unwrap();
        let first = std::fs::File::open(&path).unwrap();
        rustix::fs::seek(&first, rustix::fs::SeekFrom::Start(3)).unwrap();
        let copy = first.try_clone().unwrap();
        let second = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let gone = tempfile::tempfile_in(dir.path()).unwrap();

        let table = Table::from_processes(&[own()], false).unwrap();
        let file = held(&table, &first);
        assert_eq!(file.name, path.as_path().into());
        assert_eq!((file.kind, file.position, file.size), (FileKind::Reg, Some(3), Some(5)));
        assert!(!file.deleted);
        assert_eq!(held(&table, &copy).id, file.id);
        assert_ne!(held(&table, &second).id, file.id);
        assert_eq!(held(&table, &second).flags_text(), "O_WRONLY|O_APPEND");
        assert_ne!(held(&table, &reader).id, held(&table, &writer).id);
        assert_eq!(held(&table, &reader).name, held(&table, &writer).name);
        let name = format!("tcp {} listen", socket.local_addr().unwrap());
        assert_eq!(held(&table, &socket).name.to_string(), name);
        assert!(held(&table, &gone).deleted);
        assert!(table.files.iter().zip(1..).all(|(file, id)| file.id == FileId(id)));
    }

    #[test]
    fn what_an_epoll_instance_watches() {
        use rustix::event::epoll;
        let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC).unwrap();
        let data = epoll::EventData::new_u64(1);
        epoll::add(&poll, &event, data, epoll::EventFlags::IN).unwrap();
        let table = Table::from_processes(&[own()], false).unwrap();
        assert!(held(&table, &event).watched);
        assert!(!held(&table, &poll).watched);
        assert_eq!(held(&table, &poll).kind, FileKind::Epoll);
        assert_eq!(held(&table, &event).name.to_string(), "eventfd");
    }

    #[test]
    fn a_process_that_has_ended_holds_nothing() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let host = child.id() as i32;
        let pid = rustix::process::Pid::from_child(&child);
        let options =
            rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
        rustix::process::waitid(rustix::process::WaitId::Pid(pid), options).unwrap();
        assert!(is_zombie(host));
        let zombie = Process { host, inner: 2 };
        assert!(Table::from_processes(&[zombie], true).unwrap().files.is_empty());
        child.wait().unwrap();
    }

    #[test]
    fn a_process_that_is_gone() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let gone = Process { host: child.id() as i32, inner: 2 };
        assert!(Table::from_processes(&[gone], false).unwrap().files.is_empty());
        let error = Table::from_processes(&[gone], true).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.starts_with("reading the file descriptors of pid 2"), "{text}");
    }
}

//! Files that CRIU cannot find by a path in the container.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::descriptors::{self, Observed};
use super::finder::Finder;
use super::table::{ExternalFile, Lock};
use crate::bytes::ByteString;
use crate::container::Process;
use crate::container::{FileKind, Holder};
use crate::freezer::Still;
use crate::proc::fdinfo::{HeldLock, LockKind, Watch};
use crate::proc::mountinfo::{self, Mount};
use crate::proc::{Proc, is_ending, is_zombie};
use crate::sys::at_once::{self, Stat};
use crate::sys::handle::open_handle;
use crate::sys::inode::{DevIno, Device};
use crate::sys::kcmp;
use crate::sys::pid::{InnerPid, Pid};
use crate::sys::process::descriptor_of;

/// A file descriptor for a file on a mount that the container does not have.
///
/// CRIU ends the dump at such a file with *Can't lookup mount*, unless it is told
/// `external file[<mount>:<inode>]`; at restore something must take its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unreachable {
    /// The process, as the container sees it.
    pub pid: InnerPid,
    /// The file descriptor.
    pub fd: i32,
    /// What it is.
    pub kind: FileKind,
    /// Its mount and inode number; shown as CRIU wants it.
    pub file: ExternalFile,
    /// Its path on the host, as far as the kernel can say.
    pub path: ByteString,
}

impl Unreachable {
    /// What CRIU is told, as `external KEY`: `file[<mount>:<inode>]`. File descriptors of one open
    /// file, and several openings of one file through one mount, have the same.
    pub fn external_key(&self) -> String {
        self.file.to_string()
    }
}

/// An open file or directory at a path, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owned {
    /// Where the file system is mounted that it is on.
    pub mount: ByteString,
    /// Its path.
    pub path: ByteString,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// What is to be known of file descriptors before a dump.
#[derive(Debug, Default)]
pub struct SeenByPath {
    /// Those whose files CRIU could not find.
    pub unreachable: Vec<Unreachable>,
    /// The owners of the others' files.
    pub owned: Vec<Owned>,
    /// The locks that are held, leases aside, and through which file descriptors.
    pub locks: Vec<(Holder, Lock)>,
    /// Where a file system is that one of the processes serves: CRIU would wait for it for ever.
    pub served: Option<ByteString>,
    /// The watched files to which CRIU must be led.
    pub watched: Watched,
    /// The mapped files whose names were removed, and that have others; looked at while it runs.
    pub unnamed: Watched,
    /// What waits to be read from inotify instances and fanotify groups; looked at when frozen.
    pub events: Vec<WaitingEvents>,
}

/// Files of which CRIU, or a restore, needs a name, and the kernel tells none: watched ones that no
/// handle opens (`check_open_handle` in criu/fsnotify.c), and those whose name was removed.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    inodes: HashSet<DevIno>,
    /// Where the file systems are mounted that they are on.
    tops: Vec<PathBuf>,
}

impl Watched {
    /// Where they are, as far as they are found.
    pub fn found(&self, finder: &Finder) -> HashMap<DevIno, PathBuf> {
        match self.inodes.is_empty() {
            true => HashMap::new(),
            false => finder.find(&self.inodes, &self.tops),
        }
    }

    /// Those that are not found.
    pub(super) fn not_found(self, finder: &Finder) -> HashSet<DevIno> {
        let found = self.found(finder);
        self.inodes.into_iter().filter(|inode| !found.contains_key(inode)).collect()
    }
}

/// Events that CRIU drops (`dump_one_inotify` and `dump_one_fanotify` in criu/fsnotify.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitingEvents {
    /// One who holds the inotify instance or fanotify group.
    pub holder: Holder,
    /// Which of the two it is.
    pub kind: FileKind,
    /// How many bytes wait to be read.
    pub bytes: u64,
}

/// Lists the file descriptors whose files CRIU could not find, the owners of the others, and locks.
///
/// Those that CRIU saves by their path (`dump_one_file` in criu/files.c): regular files,
/// directories, links, named pipes and memory devices. Terminals, sockets and anonymous files
/// have ways of their own. When they are frozen, whatever vanishes while this reads is an error.
pub fn by_path(processes: &[Process], still: Still<'_>) -> Result<SeenByPath> {
    let reach = Reach::of(processes, still)?;
    let fds = descriptors::observe(processes, still)?;
    let unreachable = fds.iter().filter_map(|fd| {
        let file = reach.unreachable(fd)?;
        let path = fd.link.as_slice().into();
        Some(Unreachable { pid: fd.process.inner, fd: fd.fd, kind: fd.kind(), file, path })
    });
    Ok(SeenByPath {
        unreachable: unreachable.collect(),
        owned: fds.iter().filter_map(|fd| reach.owned(fd)).collect(),
        locks: fds.iter().flat_map(locks).collect(),
        served: reach.served(&fds),
        watched: reach.watched(&fds),
        unnamed: match still {
            Still::Running => reach.unnamed(processes),
            Still::Frozen(_) => Watched::default(),
        },
        events: if still.is_frozen() { lost_events(&fds) } else { Vec::new() },
    })
}

/// What waits in each queue, however many hold it.
fn lost_events(fds: &[Observed]) -> Vec<WaitingEvents> {
    let mut queues: Vec<&Observed> = Vec::new();
    for fd in fds.iter().filter(|fd| is_queue(fd)) {
        let same = |other: &&Observed| {
            kcmp::compare_files(other.here(), fd.here()).is_ok_and(std::cmp::Ordering::is_eq)
        };
        if !queues.iter().any(same) {
            queues.push(fd);
        }
    }
    let waiting = |fd: &Observed| {
        let copy = descriptor_of(fd.here()).ok()?;
        let bytes = rustix::io::ioctl_fionread(copy).ok().filter(|bytes| *bytes > 0)?;
        Some(WaitingEvents { holder: fd.holder(), kind: fd.kind(), bytes })
    };
    queues.into_iter().filter_map(waiting).collect()
}

fn is_queue(fd: &Observed) -> bool {
    matches!(fd.kind(), FileKind::Inotify | FileKind::Fanotify)
}

fn locks(fd: &Observed) -> impl Iterator<Item = (Holder, Lock)> + '_ {
    let holder = fd.holder();
    let kept = fd.info.locks.iter().filter(|held| held.kind != LockKind::Lease);
    kept.map(move |held| {
        let HeldLock { kind, exclusive, start, length } = *held;
        (holder, Lock { kind, exclusive, start, length, pid: holder.pid })
    })
}

/// The mounts that CRIU will know of: those of every mount namespace of the container.
#[derive(Debug, Default)]
pub(super) struct Reach {
    mounts: BTreeMap<i32, Reached>,
}

/// A mount that CRIU will know of.
#[derive(Clone, Debug)]
pub(super) struct Reached {
    /// A process that sees it, as ours numbers it.
    pub(super) host: Pid,
    /// The mount.
    pub(super) mount: Mount,
    /// Whether another is mounted over it.
    pub(super) covered: bool,
}

impl Reach {
    pub(super) fn of(processes: &[Process], still: Still<'_>) -> Result<Self> {
        let mut reach = Self::default();
        let mut seen = HashSet::new();
        for process in processes.iter().filter(|process| !is_zombie(process.host)) {
            let read = reach.add(process.host, &mut seen);
            // Of one that is ending the kernel hides its mounts before it is a zombie: EACCES, EINVAL.
            if read.is_err() && is_ending(process.host) {
                continue;
            }
            descriptors::tolerate(read, still)
                .with_context(|| format!("reading the mounts of pid {}", process.inner))?;
        }
        Ok(reach)
    }

    /// That of one process.
    pub(super) fn seen_by(host: Pid) -> io::Result<Self> {
        let mut reach = Self::default();
        reach.add(host, &mut HashSet::new())?;
        Ok(reach)
    }

    fn add(&mut self, host: Pid, seen: &mut HashSet<PathBuf>) -> io::Result<()> {
        let process = Proc::of(host);
        if !seen.insert(process.namespace("mnt")?) {
            return Ok(());
        }
        let text = std::fs::read(process.at("mountinfo"))?;
        let mounts = mountinfo::parse_mountinfo(&text).map_err(io::Error::other)?;
        for mount in &mounts {
            let covered = mountinfo::is_covered(mount, &mounts);
            let reached = Reached { host, mount: mount.clone(), covered };
            self.mounts.extend(i32::try_from(mount.id).ok().map(|id| (id, reached)));
        }
        Ok(())
    }

    /// The mount of that number.
    pub(super) fn find(&self, id: i32) -> Option<&Reached> {
        self.mounts.get(&id)
    }

    /// All of them.
    fn mounts(&self) -> impl Iterator<Item = &Reached> {
        self.mounts.values()
    }

    /// The watched files that no handle opens.
    pub(super) fn watched(&self, fds: &[Observed]) -> Watched {
        let mut points: HashMap<Device, Vec<OwnedFd>> = HashMap::new();
        let mut opens = |watch: &&Watch| {
            let device = watch.inode.device;
            // Opening one asks its server, as CRIU will.
            if self.is_remote(device) {
                return true;
            }
            let points = points.entry(device).or_insert_with(|| self.points_on(device));
            let open =
                |point: &OwnedFd| open_handle(point.as_fd(), watch.handle_type, &watch.handle);
            points.iter().any(|point| open(point).is_ok())
        };
        let watches = fds.iter().flat_map(|fd| &fd.info.watches);
        let lost: HashSet<DevIno> =
            watches.filter(|watch| !opens(watch)).map(|watch| watch.inode).collect();
        self.to_be_found(lost)
    }

    /// The mapped files whose names were removed, and that have others.
    fn unnamed(&self, processes: &[Process]) -> Watched {
        let removed = |process: &Process| {
            let process = Proc::of(process.host);
            let maps = process.maps().into_iter();
            let gone = maps.filter(|one| one.inode > 0 && one.path.ends_with(" (deleted)"));
            let links = gone.map(|one| process.at("map_files").join(one.range));
            links.collect::<Vec<_>>()
        };
        let links = processes.iter().flat_map(removed);
        let found = links.filter_map(|link| at_once::stat_behind(&link).ok());
        self.to_be_found(found.filter(|file| file.st_nlink > 0).map(|file| file.inode).collect())
    }

    /// Files, and where the file systems are mounted that they are on.
    fn to_be_found(&self, inodes: HashSet<DevIno>) -> Watched {
        let devices: HashSet<_> = inodes.iter().map(|inode| inode.device).collect();
        let on = self.mounts.values().filter(|reached| devices.contains(&reached.mount.device));
        let asks = |reached: &Reached| self.asks_somebody(reached.mount.point.as_bytes());
        let tops = on.filter(|reached| !reached.covered && !asks(reached));
        let tops = tops.map(|reached| reached.mount.point.as_path().to_owned()).collect();
        Watched { inodes, tops }
    }

    fn is_remote(&self, device: Device) -> bool {
        let mut on = self.mounts.values().filter(|reached| reached.mount.device == device);
        on.any(|reached| reached.mount.is_remote())
    }

    /// The directories where a file system is mounted.
    fn points_on(&self, device: Device) -> Vec<OwnedFd> {
        let on = self.mounts.values().filter(|reached| reached.mount.device == device);
        on.filter_map(|reached| directory_of(reached).ok()).collect()
    }

    /// What has a path in a process's root.
    ///
    /// # Errors
    /// `EREMOTE` where somebody would have to be asked who may not answer.
    pub(super) fn stat_at(&self, host: Pid, path: &[u8]) -> rustix::io::Result<Stat> {
        if self.asks_somebody(path) {
            return Err(Errno::REMOTE);
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root =
            rustix::fs::open(Proc::of(host).root(), flags | OFlags::DIRECTORY, Mode::empty())?;
        let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        if self.has_remote() {
            // A link could lead there. The kernel's paths have none, unless one came since.
            resolve |= ResolveFlags::NO_SYMLINKS;
        }
        let nofollow = flags | OFlags::NOFOLLOW;
        let file = rustix::fs::openat2(root, path, nofollow, Mode::empty(), resolve)?;
        at_once::stat(file)
    }

    /// Whether looking up a path in one of the roots comes to a file system whose server is asked.
    pub(super) fn asks_somebody(&self, path: &[u8]) -> bool {
        let path = Path::new(OsStr::from_bytes(path));
        let mut remote = self.mounts().filter(|reached| reached.mount.is_remote());
        remote.any(|reached| path.starts_with(reached.mount.point.as_path()))
    }

    /// Whether there is such a file system.
    pub(super) fn has_remote(&self) -> bool {
        self.mounts().any(|reached| reached.mount.is_remote())
    }

    /// Where a FUSE file system is whose server has one of these descriptors: the minor number of its
    /// device is that of its connection. Older kernels do not tell that; there, who has `/dev/fuse`
    /// open counts as the server of all.
    fn served(&self, fds: &[Observed]) -> Option<ByteString> {
        const FUSE: Device = Device::new(10, 229);
        let servers: Vec<_> =
            fds.iter().filter(|fd| is_device(fd) && fd.stat.st_rdev == FUSE).collect();
        let is_served = |device: Device| {
            device.major == 0 && servers.iter().any(|fd| fd.info.serves == Some(device.minor))
        };
        let tells = servers.iter().any(|fd| fd.info.serves.is_some());
        let guess = !servers.is_empty() && !tells;
        let mount = self
            .mounts()
            .map(|reached| &reached.mount)
            .find(|mount| mount.is_fuse() && (guess || is_served(mount.device)));
        let open = || fds.iter().find(|fd| is_served(fd.stat.inode.device));
        mount
            .map(|mount| mount.point.clone())
            .or_else(|| open().map(|fd| fd.link.as_slice().into()))
    }

    /// Whose the file is, if it is one that has a path.
    fn owned(&self, fd: &Observed) -> Option<Owned> {
        let reached = self.find(fd.info.mount)?;
        let has_path = matches!(fd.kind(), FileKind::Reg | FileKind::Dir);
        (has_path && fd.stat.st_nlink > 0).then(|| Owned {
            mount: reached.mount.point.clone(),
            path: fd.link.as_slice().into(),
            uid: fd.stat.st_uid,
            gid: fd.stat.st_gid,
        })
    }

    /// How CRIU names the file, if it could not find it.
    pub(super) fn unreachable(&self, fd: &Observed) -> Option<ExternalFile> {
        if !is_saved_by_path(fd) || self.mounts.contains_key(&fd.info.mount) {
            return None;
        }
        Some(ExternalFile { mount: fd.info.mount, inode: fd.stat.inode.ino })
    }
}

fn is_device(fd: &Observed) -> bool {
    fd.stat.st_mode & libc::S_IFMT == libc::S_IFCHR
}

fn directory_of(reached: &Reached) -> rustix::io::Result<OwnedFd> {
    let below = reached.mount.point.as_path().strip_prefix("/").unwrap_or(Path::new(""));
    let path = Proc::of(reached.host).root().join(below);
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn is_saved_by_path(fd: &Observed) -> bool {
    /// Memory devices (`/dev/null` and its like), and of the miscellaneous ones autofs.
    const AUTOFS: Device = Device::new(10, 235);
    match fd.kind() {
        FileKind::Reg | FileKind::Dir | FileKind::Symlink | FileKind::Fifo => true,
        FileKind::Device => {
            let device = fd.stat.st_rdev;
            is_device(fd) && (device.major == 1 || device == AUTOFS)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freezer::Frozen;

    #[test]
    fn a_process_that_does_not_move() {
        let mut child = std::process::Command::new("cat");
        child.stdin(std::process::Stdio::piped()).stdout(std::fs::File::open("/dev/null").unwrap());
        let mut child = child.stderr(std::process::Stdio::null()).spawn().unwrap();
        let host = Pid::of(&child);
        let frozen = Frozen::of_nobody();
        let still = Still::Frozen(&frozen);
        let found = by_path(&[Process { host, inner: InnerPid(1) }], still).unwrap().unreachable;
        assert!(found.iter().all(|file| file.fd > 2), "{found:?}");
        drop(child.stdin.take());
        child.wait().unwrap();
    }

    #[test]
    fn a_mount_that_is_not_among_them() {
        let own = Process { host: Pid::own(), inner: InnerPid(1) };
        let file = std::fs::File::open("/dev/null").unwrap();
        use std::os::fd::AsRawFd;
        let fds = descriptors::observe(&[own], Still::Running).unwrap();
        let fd = fds.iter().find(|fd| fd.fd == file.as_raw_fd()).unwrap();
        let external = Reach::default().unreachable(fd).unwrap();
        assert_eq!(external.inode, fd.stat.inode.ino);
        assert_eq!(external.mount, fd.info.mount);
        let (pipe, _writer) = std::io::pipe().unwrap();
        let fds = descriptors::observe(&[own], Still::Running).unwrap();
        let fd = fds.iter().find(|fd| fd.fd == pipe.as_raw_fd()).unwrap();
        assert_eq!(Reach::default().unreachable(fd), None);
    }
}

//! What decides over the dump of each open file, read from live processes.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::descriptors::Observed;
use super::dumpable::{Described, Detail, Peer, Place, Socket, TCP_CLOSE};
use super::finder::Finder;
use super::live::{Survey, survey};
use super::settings::DumpSettings;
use super::table::{ExternalFile, OpenFile, Table};
use super::unreachable::{Reach, Reached};
use crate::container::Process;
use crate::container::{FileKind, Holder};
use crate::criu::door::real_criu;
use crate::freezer::Still;
use crate::proc::Proc;
use crate::proc::mountinfo::Mount;
use crate::sys::at_once::{self, Stat};
use crate::sys::diag::{UnixSocket, unix_sockets};
use crate::sys::inode::{DevIno, Device};
use crate::sys::mqueue;
use crate::sys::pid::Pid;
use crate::sys::process::descriptor_of;
use crate::sys::sockopt;

/// An open file of a running container, and what decides over its dump.
#[derive(Clone, Debug)]
pub struct Known {
    /// The open file.
    pub file: OpenFile,
    /// What decides.
    pub described: Described,
    /// The mount that it is on, for a file that has one which the container knows.
    pub mount: Option<Mount>,
}

/// What a dump will find: every open file, and where else files are used.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The open files, numbered from 1.
    pub files: Vec<Known>,
    reach: Reach,
    finder: &'a Finder,
}

impl<'a> Facts<'a> {
    /// The settings with what has to be looked up, if one of the open files makes it matter.
    pub fn settle(&self, settings: &DumpSettings) -> Result<DumpSettings> {
        settled_by(settings, self.files.iter().map(|known| &known.described), saves_bpf_maps)
    }

    /// Reads them from processes that may be running: what goes away is left out. The finder finds
    /// files that have no other name.
    pub fn of(processes: &[Process], finder: &'a Finder) -> Result<Self> {
        let Survey { table, fds, reach } = survey(processes, Still::Running)?;
        let files = {
            let lost = reach.watched(&fds).not_found(finder);
            let mut observer =
                Observer::new(processes, &fds, Sight { reach: &reach, finder }, lost);
            table.files.iter().filter_map(|file| observer.know(file)).collect()
        };
        Ok(Self { files, reach, finder })
    }

    /// The open files alone.
    pub fn table(&self) -> Table {
        Table::new(self.files.iter().map(|known| known.file.clone()).collect())
    }

    /// Where the file is that a link of `/proc` leads to: a program, a mapped file or a directory
    /// that a process stands in. `None` if it is gone meanwhile.
    pub fn place_of(&self, link: &Path) -> Option<(PathBuf, Place)> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = rustix::fs::open(link, flags, Mode::empty()).ok()?;
        let stat = at_once::stat(&file).ok()?;
        let path = rustix::fs::readlink(link, Vec::new()).ok()?.into_bytes();
        let own = std::os::fd::AsRawFd::as_raw_fd(&file);
        let mount = Proc::own_thread().fdinfo(own).ok()?.mount;
        let place = Sight { reach: &self.reach, finder: self.finder }.place(&path, &stat, mount);
        Some((crate::bytes::ByteString::from(path).as_path().to_owned(), place))
    }
}

/// Looks at open files.
struct Observer<'a> {
    fds: HashMap<Holder, &'a Observed>,
    sight: Sight<'a>,
    /// Watched files that CRIU cannot be led to.
    lost: HashSet<DevIno>,
    /// The processes that are dumped, by their numbers here.
    dumped: HashSet<Pid>,
    /// Every namespace that one of them is in, as its link says it.
    namespaces: HashSet<Vec<u8>>,
    /// The sockets that they hold.
    held: HashSet<u64>,
    unix: UnixSockets,
    /// The leaders of the sessions that have a terminal, by its number.
    sessions: HashMap<Device, Pid>,
}

impl<'a> Observer<'a> {
    fn new(
        processes: &[Process],
        fds: &'a [Observed],
        sight: Sight<'a>,
        lost: HashSet<DevIno>,
    ) -> Self {
        let is_socket = |fd: &&Observed| fd.stat.st_mode & libc::S_IFMT == libc::S_IFSOCK;
        let statuses = processes.iter().filter_map(|process| Proc::of(process.host).stat().ok());
        Self {
            fds: fds.iter().map(|fd| (fd.holder(), fd)).collect(),
            sight,
            lost,
            dumped: processes.iter().map(|process| process.host).collect(),
            namespaces: processes.iter().flat_map(|process| namespaces(process.host)).collect(),
            held: fds.iter().filter(is_socket).map(|fd| fd.stat.inode.ino).collect(),
            unix: UnixSockets::default(),
            sessions: statuses
                .filter_map(|status| Some((status.terminal?, status.session)))
                .collect(),
        }
    }

    fn know(&mut self, file: &OpenFile) -> Option<Known> {
        let observed: Vec<&Observed> =
            file.holders.iter().filter_map(|holder| self.fds.get(holder).copied()).collect();
        let fd = *observed.first()?;
        let described = Described {
            kind: file.kind,
            flags: file.flags,
            place: self.place(file, fd),
            detail: self.detail(file, fd),
            locked: observed.iter().any(|fd| fd.info.locked),
            leased: observed.iter().any(|fd| fd.info.leased),
        };
        let mount = self.sight.reach.find(fd.info.mount).map(|reached| reached.mount.clone());
        Some(Known { file: file.clone(), described, mount })
    }

    fn place(&self, file: &OpenFile, fd: &Observed) -> Place {
        let has_path = matches!(
            file.kind,
            FileKind::Reg
                | FileKind::Dir
                | FileKind::Symlink
                | FileKind::Fifo
                | FileKind::Device
                | FileKind::Tty
        );
        match has_path && fd.link.starts_with(b"/") {
            true => self.sight.place(&fd.link, &fd.stat, fd.info.mount),
            false => Place::There,
        }
    }

    fn detail(&mut self, file: &OpenFile, fd: &Observed) -> Detail {
        if fd.stat.st_mode & libc::S_IFMT == libc::S_IFSOCK {
            return self.socket(fd).map_or(Detail::Plain, Detail::Socket);
        }
        let device = fd.stat.st_rdev;
        match file.kind {
            FileKind::Tty => {
                let leader = self.sessions.get(&device);
                let session_outside = leader.is_some_and(|leader| !self.dumped.contains(leader));
                Detail::Terminal { device, session_outside }
            }
            FileKind::Reg if self.is_message_queue(fd) => Detail::MessageQueue,
            FileKind::Tun => Detail::Tun { of_host: is_in_network_of_host(fd.process.host) },
            FileKind::Device => {
                let character = fd.stat.st_mode & libc::S_IFMT == libc::S_IFCHR;
                Detail::Device { character, device }
            }
            FileKind::Pidfd => Detail::Pidfd {
                outside: fd.info.target.is_some_and(|target| !self.dumped.contains(&target)),
                thread: fd.info.flags & libc::PIDFD_THREAD != 0,
            },
            FileKind::Inotify | FileKind::Fanotify => {
                let watched = fd.info.watches.iter().map(|watch| watch.inode);
                Detail::Watches { lost: watched.filter(|inode| self.lost.contains(inode)).count() }
            }
            FileKind::Bpfmap => Detail::BpfMap(fd.info.map_type.unwrap_or_default()),
            FileKind::Namespace => Detail::Namespace { known: self.namespaces.contains(&fd.link) },
            _ if fd.link.starts_with(b"anon_inode:") => {
                Detail::Anonymous(fd.link.as_slice().into())
            }
            FileKind::Unknown => Detail::Anonymous(fd.link.as_slice().into()),
            _ => Detail::Plain,
        }
    }

    /// Whether it is a POSIX message queue, which is on a mount of the kernel's own. The queue itself
    /// says so: to ask for the file system may be to wait for a server of the container's.
    fn is_message_queue(&self, fd: &Observed) -> bool {
        self.sight.reach.find(fd.info.mount).is_none()
            && descriptor_of(fd.here()).is_ok_and(|fd| mqueue::is_queue(&fd))
    }

    /// What the socket itself says, asked through a copy of the descriptor.
    fn socket(&mut self, fd: &Observed) -> Option<Socket> {
        let copy = descriptor_of(fd.here()).ok()?;
        let facts = sockopt::facts(&copy).ok()?;
        let mut socket = Socket {
            family: facts.family,
            kind: facts.kind,
            protocol: facts.protocol,
            state: TCP_CLOSE,
            backlog: 0,
            corked: facts.corked,
            unread: facts.unread,
            peer: Peer::Inside,
        };
        if let Some(connection) = facts.connection {
            socket.state = connection.state;
            socket.backlog = connection.backlog;
        }
        if socket.family == libc::AF_UNIX {
            let inode = fd.stat.inode.ino;
            self.unix.read(fd.process.host);
            socket.peer = self.unix.peer(inode, &self.held);
            socket.backlog = self.unix.find(inode).map_or(0, UnixSocket::lost_connections);
        }
        Some(socket)
    }
}

/// Whether a process is in the network namespace that CRIU will be in: ours.
fn is_in_network_of_host(process: Pid) -> bool {
    Proc::of(process).namespace("net").ok() == Proc::own().namespace("net").ok()
}

/// The names of the namespaces that a process is in.
fn namespaces(host: Pid) -> Vec<Vec<u8>> {
    let entries = std::fs::read_dir(Proc::of(host).at("ns")).into_iter().flatten().flatten();
    let name = |entry: std::fs::DirEntry| rustix::fs::readlink(entry.path(), Vec::new()).ok();
    entries.filter_map(name).map(std::ffi::CString::into_bytes).collect()
}

/// The unix sockets of the network namespaces met so far.
#[derive(Default)]
struct UnixSockets {
    seen: HashSet<PathBuf>,
    sockets: HashMap<u64, UnixSocket>,
}

impl UnixSockets {
    fn read(&mut self, host: Pid) {
        let process = Proc::of(host);
        let Ok(namespace) = process.namespace("net") else { return };
        if self.seen.insert(namespace) {
            let sockets = unix_sockets(&process.at("ns/net")).unwrap_or_default();
            self.sockets.extend(sockets.into_iter().map(|one| (u64::from(one.inode), one)));
        }
    }

    fn find(&self, inode: u64) -> Option<&UnixSocket> {
        self.sockets.get(&inode)
    }

    fn peer(&self, inode: u64, held: &HashSet<u64>) -> Peer {
        let Some(socket) = self.find(inode) else { return Peer::Inside };
        match socket.peer {
            0 if socket.is_half_open() && !self.is_pending(inode) => Peer::Dangling,
            0 => Peer::Inside,
            peer if held.contains(&u64::from(peer)) => Peer::Inside,
            peer => {
                let named = self.find(u64::from(peer)).is_some_and(|peer| peer.named);
                Peer::Outside { named }
            }
        }
    }

    /// Whether it is a connection that nobody has accepted.
    fn is_pending(&self, inode: u64) -> bool {
        self.sockets.values().any(|other| other.pending.iter().any(|one| u64::from(*one) == inode))
    }
}

/// What is seen of the file systems of a container.
#[derive(Clone, Copy)]
struct Sight<'a> {
    reach: &'a Reach,
    finder: &'a Finder,
}

impl Sight<'_> {
    /// Where a file is, by the rules of `dump_one_reg_file` and `check_path_remap` of
    /// criu/files-reg.c.
    fn place(self, link: &[u8], stat: &Stat, mount: i32) -> Place {
        let Some(reached) = self.reach.find(mount) else {
            return Place::Foreign(ExternalFile { mount, inode: stat.inode.ino });
        };
        if reached.covered {
            return Place::Overmounted;
        }
        // What is there has no file that could be missing.
        if matches!(reached.mount.kind.as_str(), "proc" | "devpts") {
            return Place::There;
        }
        // In units of 512 bytes (stat(2)).
        let stored = stat.st_blocks * 512;
        if stat.st_nlink == 0 {
            return Place::Deleted { stored };
        }
        match self.reach.stat_at(reached.host, link) {
            Ok(found) if found.inode == stat.inode => Place::There,
            Ok(_) => Place::Taken,
            Err(Errno::NOENT) if !self.can_be_linked_at(link, reached) => Place::Unlinked,
            Err(Errno::NOENT) if self.has_another_name(stat, &reached.mount) => Place::OtherName,
            // What is removed of a lower layer says that it has its names still. No link can be made of it,
            // and then it is deleted for CRIU as well (`check_overlayfs_fallback`).
            Err(Errno::NOENT) if reached.mount.kind == "overlay" => Place::Deleted { stored },
            Err(Errno::NOENT) => Place::Unlinked,
            Err(_) => Place::There,
        }
    }

    /// Whether nothing is mounted over the directory in which CRIU would name the file anew.
    fn can_be_linked_at(self, link: &[u8], reached: &Reached) -> bool {
        let path = Path::new(OsStr::from_bytes(link));
        let directory = path
            .ancestors()
            .skip(1)
            .find_map(|above| self.reach.stat_at(reached.host, above.as_os_str().as_bytes()).ok());
        directory.is_some_and(|found| found.inode.device == reached.mount.device)
    }

    /// Whether the container has the file by another name on the same mount.
    fn has_another_name(self, stat: &Stat, mount: &Mount) -> bool {
        let wanted = HashSet::from([stat.inode]);
        !self.finder.find(&wanted, &[mount.point.as_path().to_owned()]).is_empty()
    }
}

fn settled_by<'a>(
    settings: &DumpSettings,
    mut files: impl Iterator<Item = &'a Described>,
    saves_bpf_maps: impl FnOnce() -> Result<bool>,
) -> Result<DumpSettings> {
    let mut settings = settings.clone();
    if files.any(|file| matches!(file.detail, Detail::BpfMap(_))) {
        settings.bpf_maps = saves_bpf_maps()?;
    }
    Ok(settings)
}

/// Whether CRIU needs libbpf: without it it does not know BPF maps (`dump_one_file` in
/// criu/files.c), and no feature check tells. The whole program is read for that, once.
fn saves_bpf_maps() -> Result<bool> {
    const LIBRARY: &[u8] = b"libbpf.so";
    static SAVES: OnceLock<bool> = OnceLock::new();
    if let Some(known) = SAVES.get() {
        return Ok(*known);
    }
    let path = real_criu()?;
    let program = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let saves = program.windows(LIBRARY.len()).any(|bytes| bytes == LIBRARY);
    Ok(*SAVES.get_or_init(|| saves))
}

#[cfg(test)]
mod tests {
    use super::super::dumpable::tests::{file, strict};
    use super::*;
    use crate::files::FileKind;

    #[test]
    fn criu_is_looked_at_only_for_the_sake_of_a_bpf_map() {
        let plain = file(FileKind::Reg, Detail::Plain);
        let map = file(FileKind::Bpfmap, Detail::BpfMap(1));
        let settings = DumpSettings { bpf_maps: false, ..strict() };
        let never = || panic!("there is no BPF map");
        assert!(!settled_by(&settings, [&plain].into_iter(), never).unwrap().bpf_maps);
        let saves = || Ok(true);
        assert!(settled_by(&settings, [&plain, &map].into_iter(), saves).unwrap().bpf_maps);
    }
}

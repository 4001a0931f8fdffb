//! The table from CRIU's images.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result};

use super::name;
use super::table::{ExternalFile, FileId, Lock, OpenFile, Table};
use crate::container::{FileKind, Holder};
use crate::criu::images::Images;
use crate::criu::images::entries::{
    FdType, FileBody, FileEntry, FileLock, MemfdInode, RegFile, RemapKind, TtyInfo,
};
use crate::proc::fdinfo::LockKind;

impl Table {
    /// The open files of a checkpoint, each under CRIU's identifier, which is the one that
    /// substitution uses.
    pub fn from_images(dir: &Path) -> Result<Self> {
        Images::load(dir).map(|images| Self::of(&images)).context("listing the open files")
    }

    /// The open files of images that are read already. What no file descriptor refers to, such
    /// as a program file, is not among them, unless a message carries it.
    pub fn of(images: &Images) -> Self {
        let context = Lookup::new(images);
        let mut holders = holders(images);
        let watched = watched(images, &holders);
        let locks = locks(images);
        let flying: HashSet<_> =
            images.packets.iter().flat_map(|packet| packet.rights.iter().copied()).collect();
        let tuns = images.tun_devices();
        let is_half = |entry: &&FileEntry| entry.kind == FdType::REG && tuns.contains(&entry.id);
        let files = images.files.iter().filter(|entry| !is_half(entry)).filter_map(|entry| {
            let in_flight = flying.contains(&entry.id);
            let holders = holders.remove(&entry.id).or(in_flight.then(Vec::new))?;
            let mut file = context.describe(entry);
            if entry.kind == FdType::TUN {
                file.flags = context.reg_half(entry.id).unwrap_or(file.flags);
            }
            file.watched = holders.iter().any(|holder| watched.contains(holder));
            file.locks = holders.iter().filter_map(|h| locks.get(h)).flatten().copied().collect();
            file.in_flight = in_flight;
            file.holders = holders;
            Some(file)
        });
        Self::new(files.collect())
    }
}

fn holders(images: &Images) -> HashMap<u32, Vec<Holder>> {
    let mut holders: HashMap<u32, Vec<Holder>> = HashMap::new();
    for (pid, fd) in images.fds() {
        holders.entry(fd.file).or_default().push(Holder { pid, fd: fd.fd });
    }
    holders.values_mut().for_each(|holders| holders.sort_unstable());
    holders
}

/// The file descriptors that epoll instances will be told to watch: CRIU does so in the process
/// with the lowest number of those that hold the instance (`file_master` in criu/files.c).
fn watched(images: &Images, holders: &HashMap<u32, Vec<Holder>>) -> HashSet<Holder> {
    let mut watched = HashSet::new();
    for file in &images.files {
        let FileBody::Epoll { watched: fds } = &file.body else { continue };
        if let Some(master) = holders.get(&file.id).and_then(|holders| holders.first()) {
            watched.extend(fds.iter().map(|fd| Holder { pid: master.pid, fd: *fd }));
        }
    }
    watched
}

/// The locks that CRIU will set, by the file descriptor it sets them through.
fn locks(images: &Images) -> HashMap<Holder, Vec<Lock>> {
    let mut locks: HashMap<Holder, Vec<Lock>> = HashMap::new();
    for lock in &images.locks {
        let holder = Holder { pid: lock.pid, fd: lock.fd };
        locks.entry(holder).or_default().push(Lock {
            kind: match lock.flag {
                flag if flag & FileLock::POSIX != 0 => LockKind::Posix,
                flag if flag & FileLock::FLOCK != 0 => LockKind::Flock,
                flag if flag & FileLock::OFD != 0 => LockKind::Ofd,
                _ => LockKind::Lease,
            },
            exclusive: lock.access != libc::F_RDLCK as u32,
            start: lock.start,
            length: lock.length,
            pid: lock.pid,
        });
    }
    locks
}

/// What is looked up in other images to describe a file.
struct Lookup<'a> {
    files: HashMap<u32, &'a FileEntry>,
    /// The flags of those that a second entry has as well.
    halves: HashMap<u32, u32>,
    deleted: HashSet<u32>,
    memfds: HashMap<u64, &'a MemfdInode>,
    ttys: HashMap<u32, &'a TtyInfo>,
}

impl<'a> Lookup<'a> {
    fn new(images: &'a Images) -> Self {
        let tuns = images.tun_devices();
        let gone = |kind| matches!(kind, RemapKind::Linked | RemapKind::Ghost);
        Self {
            files: images.files.iter().map(|file| (file.id, file)).collect(),
            halves: images
                .files
                .iter()
                .filter(|file| file.kind == FdType::REG && tuns.contains(&file.id))
                .filter_map(|file| Some((file.id, file.flags?)))
                .collect(),
            deleted: images.remaps.iter().filter(|r| gone(r.kind)).map(|r| r.file).collect(),
            memfds: images.memfds.iter().map(|memfd| (memfd.id, memfd)).collect(),
            ttys: images.ttys.iter().map(|tty| (tty.id, tty)).collect(),
        }
    }

    /// The flags of a tun device, which its entry of type REG has.
    fn reg_half(&self, id: u32) -> Option<u32> {
        self.halves.get(&id).copied()
    }

    fn reg(&self, id: Option<u32>) -> Option<&RegFile> {
        match &self.files.get(&id?)?.body {
            FileBody::Reg(reg) => Some(reg),
            _ => None,
        }
    }

    fn describe(&self, entry: &FileEntry) -> OpenFile {
        let mut file = OpenFile {
            id: FileId(entry.id),
            kind: entry.kind.kind(),
            name: entry.kind_name().into(),
            flags: entry.flags.unwrap_or_default(),
            position: None,
            size: None,
            mode: None,
            deleted: self.deleted.contains(&entry.id),
            holders: Vec::new(),
            external: None,
            watched: false,
            locks: Vec::new(),
            in_flight: false,
            must_substitute: false,
            unsupported: None,
        };
        match &entry.body {
            FileBody::Reg(reg) => describe_reg(&mut file, reg),
            FileBody::Pipe { pipe } => file.name = format!("pipe:[{pipe}]").into(),
            FileBody::Fifo { path } => self.describe_path(&mut file, *path),
            FileBody::Tty { info, path } => self.describe_tty(&mut file, *info, *path),
            FileBody::Inet(socket) => file.name = name::inet(socket).into(),
            FileBody::Unix(socket) => {
                file.name = name::unix(socket);
                file.deleted = socket.deleted;
            }
            FileBody::Netlink { protocol } => file.name = name::netlink(*protocol).into(),
            FileBody::Memfd { position, inode } => {
                self.describe_memfd(&mut file, *position, *inode);
            }
            FileBody::Pidfd { pid } => {
                file.name = format!("pidfd {pid}").into();
                // CRIU takes out what every pidfd has (`dump_one_pidfd` in criu/pidfd.c).
                file.flags |= libc::O_RDWR as u32;
            }
            FileBody::Tun { device: Some(device) } => file.name = name::join("tun ", device),
            FileBody::Namespace { id, flag } => {
                file.name = format!("{}:[criu {id}]", name::namespace(*flag)).into();
            }
            FileBody::Epoll { .. }
            | FileBody::Eventfd { .. }
            | FileBody::Tun { device: None }
            | FileBody::Other => {}
        }
        file
    }

    /// A file with an entry of its own for its path, which also has its flags.
    fn describe_path(&self, file: &mut OpenFile, path: Option<u32>) {
        let Some(reg) = self.reg(path) else { return };
        file.name = reg.name.clone();
        file.mode = reg.mode;
        let entry = path.and_then(|id| self.files.get(&id));
        file.flags = entry.and_then(|entry| entry.flags).unwrap_or(file.flags);
    }

    fn describe_tty(&self, file: &mut OpenFile, info: u32, path: Option<u32>) {
        let flags = file.flags;
        self.describe_path(file, path);
        file.flags = flags;
        if self.reg(path).is_none() {
            let index = self.ttys.get(&info).and_then(|tty| tty.index);
            file.name = index.map_or("tty".into(), |index| format!("/dev/pts/{index}").into());
        }
    }

    fn describe_memfd(&self, file: &mut OpenFile, position: u64, inode: u32) {
        file.position = Some(position);
        if let Some(memfd) = self.memfds.get(&u64::from(inode)) {
            file.name = name::join("memfd:", &memfd.name);
            file.size = Some(memfd.size);
        }
    }
}

fn describe_reg(file: &mut OpenFile, reg: &RegFile) {
    file.kind = reg.mode.map_or(FileKind::Reg, FileKind::of_mode);
    file.name.clone_from(&reg.name);
    file.position = (reg.position != u64::MAX).then_some(reg.position);
    file.size = reg.size;
    file.mode = reg.mode;
    if reg.external {
        file.external = ExternalFile::parse(reg.name.as_bytes());
        file.must_substitute = true;
    }
}

impl FileEntry {
    /// The name of an open file of which no more than the type is known.
    fn kind_name(&self) -> String {
        match self.kind.kind() {
            FileKind::Unknown => format!("type {}", self.kind.0),
            kind => kind.as_str().to_owned(),
        }
    }
}

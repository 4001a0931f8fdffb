//! What the messages of the images mean: the fields that ocicle uses.
//!
//! Field numbers are those of CRIU's `images/*.proto` (4.2); texts are bytes, since paths need
//! not be UTF-8.

use std::ops::Range;

use super::image::{BadImage, Image};
use super::wire::{BadMessage, Message};
use crate::bytes::ByteString;
use crate::container::FileKind;
use crate::sys::pid::InnerPid;

type Result<T> = std::result::Result<T, BadMessage>;

/// The one entry of `inventory.img`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inventory {
    /// The version of the format: 1, or 2 since images begin with a common magic number.
    pub version: u32,
    /// What the root task shares with the host, by CRIU's identifiers.
    pub root: Option<Ids>,
    /// A name of the CRIU run that wrote the images.
    pub run: Option<ByteString>,
}

impl Inventory {
    /// Reads the entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        Ok(Self {
            version: message.need_u32(1, "img_version")?,
            root: message.message(3)?.as_ref().map(Ids::read).transpose()?,
            run: message.bytes(13).map(ByteString::from),
        })
    }
}

/// The key by which CRIU was told of an external mount, in an entry of `mountpoints-<id>.img`.
pub fn mount_key(message: &Message<'_>) -> Result<Option<ByteString>> {
    Ok(message.bytes(18).map(ByteString::from))
}

/// Identifiers of what tasks share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// The address space.
    pub vm: u32,
    /// The table of file descriptors: the number of its `fdinfo-<id>.img`.
    pub files: u32,
    /// Root and working directory.
    pub fs: u32,
    /// The network namespace.
    pub net: Option<u32>,
    /// The mount namespace.
    pub mount: Option<u32>,
}

impl Ids {
    /// Reads the entry of `ids-<pid>.img`, or the part of `core-<pid>.img`.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        Ok(Self {
            vm: message.need_u32(1, "vm_id")?,
            files: message.need_u32(2, "files_id")?,
            fs: message.need_u32(3, "fs_id")?,
            net: message.u32(6, "net_ns_id")?,
            mount: message.u32(9, "mnt_ns_id")?,
        })
    }
}

/// A process of `pstree.img`, with numbers as the container sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeEntry {
    /// The process.
    pub pid: InnerPid,
    /// Its parent.
    pub ppid: InnerPid,
    /// Its process group.
    pub pgid: InnerPid,
    /// Its session.
    pub sid: InnerPid,
    /// Its threads.
    pub threads: Vec<InnerPid>,
}

impl TreeEntry {
    /// Reads an entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        let threads = message.numbers(5)?;
        Ok(Self {
            pid: pid(message, 1, "pid")?,
            ppid: pid(message, 2, "ppid")?,
            pgid: pid(message, 3, "pgid")?,
            sid: pid(message, 4, "sid")?,
            threads: threads.iter().map(|tid| InnerPid(*tid as i32)).collect(),
        })
    }
}

fn pid(message: &Message<'_>, number: u32, name: &'static str) -> Result<InnerPid> {
    positive(message, number, name).map(InnerPid)
}

fn positive(message: &Message<'_>, number: u32, name: &'static str) -> Result<i32> {
    i32::try_from(message.need_u32(number, name)?)
        .map_err(|_| BadMessage::OutOfRange { number, name })
}

/// The entry of `core-<pid>.img`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Core {
    /// The task's name.
    pub name: ByteString,
    /// Its user.
    pub uid: Option<u32>,
    /// What it shares; CRIU keeps it here or in `ids-<pid>.img`.
    pub ids: Option<Ids>,
}

impl Core {
    /// Reads the entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        let task = message.message(3)?;
        let name = task.as_ref().and_then(|task| task.bytes(6)).unwrap_or_default();
        let ids = message.message(4)?;
        let thread = message.message(5)?;
        let creds = thread.as_ref().map(|thread| thread.message(10)).transpose()?.flatten();
        let uid = creds.map(|creds| creds.need_u32(1, "uid")).transpose()?;
        Ok(Self { name: name.into(), uid, ids: ids.as_ref().map(Ids::read).transpose()? })
    }
}

/// CRIU's number for what an open file is (`fd_types` of fdinfo.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdType(pub u32);

impl FdType {
    /// A file that is reopened by its path.
    pub const REG: Self = Self(1);
    /// A tun or tap device.
    pub const TUN: Self = Self(15);

    /// What the numbers mean, from 1.
    const KINDS: [FileKind; 20] = [
        FileKind::Reg,
        FileKind::Pipe,
        FileKind::Fifo,
        FileKind::Inet,
        FileKind::Unix,
        FileKind::Eventfd,
        FileKind::Epoll,
        FileKind::Inotify,
        FileKind::Signalfd,
        FileKind::Packet,
        FileKind::Tty,
        FileKind::Fanotify,
        FileKind::Netlink,
        FileKind::Namespace,
        FileKind::Tun,
        FileKind::External,
        FileKind::Timerfd,
        FileKind::Memfd,
        FileKind::Bpfmap,
        FileKind::Pidfd,
    ];

    /// What it means; [`FileKind::Unknown`] for a number that this version of ocicle does not know. Of
    /// a file that is reopened by its path, only the mode says whether it is a regular one.
    pub fn kind(self) -> FileKind {
        let known = (self.0 as usize).checked_sub(1).and_then(|at| Self::KINDS.get(at));
        known.copied().unwrap_or(FileKind::Unknown)
    }

    /// The field of `file_entry` that describes such a file, and in it those of its identifier,
    /// its flags and its owner for signals, as far as there are such.
    fn body(self) -> Option<u32> {
        Some(match self.kind() {
            FileKind::Reg => 3,
            FileKind::Inet => 4,
            FileKind::Namespace => 5,
            FileKind::Packet => 6,
            FileKind::Netlink => 7,
            FileKind::Eventfd => 8,
            FileKind::Epoll => 9,
            FileKind::Signalfd => 10,
            FileKind::Tun => 11,
            FileKind::Timerfd => 12,
            FileKind::Inotify => 13,
            FileKind::Fanotify => 14,
            FileKind::External => 15,
            FileKind::Unix => 16,
            FileKind::Fifo => 17,
            FileKind::Pipe => 18,
            FileKind::Tty => 19,
            FileKind::Memfd => 20,
            FileKind::Bpfmap => 21,
            FileKind::Pidfd => 22,
            _ => return None,
        })
    }

    /// Where the body has its flags (`O_…`).
    fn flags(self) -> Option<u32> {
        match self.kind() {
            FileKind::Inet => Some(9),
            FileKind::Unix => Some(5),
            FileKind::Netlink => Some(6),
            FileKind::Namespace | FileKind::Packet => Some(4),
            FileKind::Tty | FileKind::Pipe | FileKind::Pidfd => Some(3),
            FileKind::Reg
            | FileKind::Eventfd
            | FileKind::Epoll
            | FileKind::Signalfd
            | FileKind::Timerfd
            | FileKind::Inotify
            | FileKind::Fanotify
            | FileKind::Memfd
            | FileKind::Bpfmap => Some(2),
            _ => None,
        }
    }
}

/// An entry of `fdinfo-<id>.img`: a file descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FdEntry {
    /// The open file.
    pub file: u32,
    /// Its type.
    pub kind: FdType,
    /// The number in the process.
    pub fd: i32,
}

impl FdEntry {
    /// The field that holds the open file's identifier.
    pub const FILE: u32 = 1;
    /// The field that holds its type.
    pub const TYPE: u32 = 3;

    /// Reads an entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        Ok(Self {
            file: message.need_u32(Self::FILE, "id")?,
            kind: FdType(message.need_u32(Self::TYPE, "type")?),
            fd: positive(message, 4, "fd")?,
        })
    }
}

/// An entry of `files.img`: an open file description.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    /// The identifier that file descriptors refer to.
    pub id: u32,
    /// The type.
    pub kind: FdType,
    /// Its `O_…` flags, where the image has them.
    pub flags: Option<u32>,
    /// What else is known of it.
    pub body: FileBody,
}

impl FileEntry {
    /// The field that holds the identifier.
    pub const ID: u32 = 2;

    /// Reads an entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        let kind = FdType(message.need_u32(1, "type")?);
        let id = message.need_u32(Self::ID, "id")?;
        let Some(number) = kind.body() else {
            return Ok(Self { id, kind, flags: None, body: FileBody::Other });
        };
        let body = message.need_message(number, "the body of its type")?;
        let flags = kind.flags().map(|field| body.u32(field, "flags")).transpose()?.flatten();
        Ok(Self { id, kind, flags, body: FileBody::read(kind, &body)? })
    }
}

/// What is known of an open file beyond its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileBody {
    /// A file that is reopened by its path.
    Reg(RegFile),
    /// A pipe; its two ends have the same number.
    Pipe {
        /// The inode number of the pipe.
        pipe: u32,
    },
    /// A named pipe.
    Fifo {
        /// The entry of type REG with its path.
        path: Option<u32>,
    },
    /// An IP socket.
    Inet(InetSocket),
    /// A unix socket.
    Unix(UnixSocketEntry),
    /// A netlink socket.
    Netlink {
        /// The protocol, `NETLINK_…`.
        protocol: u32,
    },
    /// A terminal.
    Tty {
        /// Its entry in `tty-info.img`.
        info: u32,
        /// The entry of type REG with its path.
        path: Option<u32>,
    },
    /// An epoll instance.
    Epoll {
        /// The file descriptors it watches, as numbers of the process that holds it.
        watched: Vec<i32>,
    },
    /// An eventfd.
    Eventfd {
        /// Its counter.
        counter: u64,
    },
    /// A memfd.
    Memfd {
        /// Its position.
        position: u64,
        /// Its entry in `memfd.img`.
        inode: u32,
    },
    /// A pidfd.
    Pidfd {
        /// The process, as the container sees it; -1 when it is gone.
        pid: InnerPid,
    },
    /// A tun or tap device.
    Tun {
        /// The name of its interface.
        device: Option<ByteString>,
    },
    /// A namespace.
    Namespace {
        /// CRIU's identifier of it.
        id: u32,
        /// Its type, `CLONE_NEW…`.
        flag: u32,
    },
    /// Nothing that ocicle uses.
    Other,
}

impl FileBody {
    fn read(kind: FdType, body: &Message<'_>) -> Result<Self> {
        Ok(match kind.kind() {
            FileKind::Reg => Self::Reg(RegFile::read(body)?),
            FileKind::Pipe => Self::Pipe { pipe: body.need_u32(2, "pipe_id")? },
            FileKind::Fifo => Self::Fifo { path: body.u32(3, "regf_id")? },
            FileKind::Inet => Self::Inet(InetSocket::read(body)?),
            FileKind::Unix => Self::Unix(UnixSocketEntry::read(body)?),
            FileKind::Netlink => Self::Netlink { protocol: body.need_u32(3, "protocol")? },
            FileKind::Tty => {
                Self::Tty { info: body.need_u32(2, "tty_info_id")?, path: body.u32(6, "regf_id")? }
            }
            FileKind::Epoll => Self::Epoll { watched: read_watched(body)? },
            FileKind::Eventfd => Self::Eventfd { counter: body.need_u64(4, "counter")? },
            FileKind::Memfd => Self::Memfd {
                position: body.need_u64(3, "pos")?,
                inode: body.need_u32(5, "inode_id")?,
            },
            FileKind::Pidfd => Self::Pidfd { pid: InnerPid(body.need_i32(4, "nspid")?) },
            FileKind::Tun => Self::Tun { device: body.bytes(2).map(ByteString::from) },
            FileKind::Namespace => Self::Namespace {
                id: body.need_u32(2, "ns_id")?,
                flag: body.need_u32(3, "ns_cflag")?,
            },
            _ => Self::Other,
        })
    }
}

fn read_watched(body: &Message<'_>) -> Result<Vec<i32>> {
    body.messages(4).map(|watched| positive(&watched?, 2, "tfd")).collect()
}

/// A file that CRIU reopens by its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegFile {
    /// The position; all ones where there is none.
    pub position: u64,
    /// The path in the container; `file[…]` for one from outside it.
    pub name: ByteString,
    /// The mount it is on.
    pub mount: Option<i32>,
    /// The size that CRIU will insist on.
    pub size: Option<u64>,
    /// Whether it comes from outside the container's mounts.
    pub external: bool,
    /// Type and permissions that CRIU will insist on.
    pub mode: Option<u32>,
}

impl RegFile {
    fn read(body: &Message<'_>) -> Result<Self> {
        Ok(Self {
            position: body.need_u64(3, "pos")?,
            name: body.need_bytes(6, "name")?.into(),
            mount: body.sint32(7, "mnt_id")?,
            size: body.number(8),
            external: body.flag(9),
            mode: body.u32(10, "mode")?,
        })
    }
}

/// An IP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InetSocket {
    /// Its inode number.
    pub inode: u32,
    /// `AF_INET` or `AF_INET6`.
    pub family: u32,
    /// `SOCK_…`.
    pub kind: u32,
    /// `IPPROTO_…`.
    pub protocol: u32,
    /// The state of a TCP connection, which other protocols borrow.
    pub state: u32,
    /// Its own address: one or four words, in network byte order in memory.
    pub source: (Vec<u32>, u32),
    /// The peer's address.
    pub peer: (Vec<u32>, u32),
}

impl InetSocket {
    fn read(body: &Message<'_>) -> Result<Self> {
        let address = |number| -> Result<Vec<u32>> {
            let words = body.numbers(number)?;
            Ok(words.iter().take(4).map(|word| *word as u32).collect())
        };
        Ok(Self {
            inode: body.need_u32(2, "ino")?,
            family: body.need_u32(3, "family")?,
            kind: body.need_u32(4, "type")?,
            protocol: body.need_u32(5, "proto")?,
            state: body.need_u32(6, "state")?,
            source: (address(11)?, body.need_u32(7, "src_port")?),
            peer: (address(12)?, body.need_u32(8, "dst_port")?),
        })
    }
}

/// A unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSocketEntry {
    /// Its inode number.
    pub inode: u32,
    /// `SOCK_…`.
    pub kind: u32,
    /// The state, in the numbers of TCP.
    pub state: u32,
    /// CRIU's own flags.
    pub flags: u32,
    /// The inode number of its peer, 0 for none.
    pub peer: u32,
    /// Its name; an abstract one begins with a zero byte.
    pub name: ByteString,
    /// Whether its name is gone from the file system.
    pub deleted: bool,
}

impl UnixSocketEntry {
    fn read(body: &Message<'_>) -> Result<Self> {
        Ok(Self {
            inode: body.need_u32(2, "ino")?,
            kind: body.need_u32(3, "type")?,
            state: body.need_u32(4, "state")?,
            flags: body.need_u32(6, "uflags")?,
            peer: body.need_u32(8, "peer")?,
            name: body.need_bytes(11, "name")?.into(),
            deleted: body.flag(15),
        })
    }
}

/// What ocicle reads of `mm-<pid>.img`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mm {
    /// The entry of the program file.
    pub exe: u32,
    /// The entries of mapped files, each once, sorted.
    pub mapped: Vec<u32>,
    /// Where its arguments are.
    pub arguments: Range<u64>,
}

impl Mm {
    /// The bits of a mapping's status for which its `shmid` is the identifier of an open file: a
    /// file mapped private or shared, a packet socket, a memfd (criu/include/image.h).
    const OF_A_FILE: u32 = 1 << 6 | 1 << 7 | 1 << 11 | 1 << 14;

    /// Reads the entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        let mut mapped = Vec::new();
        for vma in message.messages(14) {
            let vma = vma?;
            let status = vma.need_u32(7, "status")?;
            let file = vma.need_u64(4, "shmid")?;
            if let (true, Ok(file)) = (status & Self::OF_A_FILE != 0, u32::try_from(file)) {
                mapped.push(file);
            }
        }
        mapped.sort_unstable();
        mapped.dedup();
        let arguments = message.need_u64(8, "mm_arg_start")?..message.need_u64(9, "mm_arg_end")?;
        Ok(Self { exe: message.need_u32(12, "exe_file_id")?, mapped, arguments })
    }
}

/// What `pagemap-<pid>.img` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pagemap {
    /// The number of the `pages-<id>.img` that has the pages.
    pub pages: u32,
    /// Runs of memory, in the order of that file.
    pub entries: Vec<PagemapEntry>,
}

/// A run of a process' memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagemapEntry {
    /// Its address.
    pub address: u64,
    /// How many pages it has.
    pub pages: u64,
    /// Whether they are in this checkpoint, and not in the one before or still in a process.
    pub present: bool,
}

impl Pagemap {
    /// Reads the image: a head, and an entry for each run.
    pub fn read(image: &Image) -> std::result::Result<Self, BadImage> {
        let mut head = None;
        let entries = image.read(|message| {
            if head.is_none() {
                head = Some(message.need_u32(1, "pages_id")?);
                return Ok(None);
            }
            PagemapEntry::read(message).map(Some)
        })?;
        let pages = head.ok_or(BadImage::NotOne(0))?;
        Ok(Self { pages, entries: entries.into_iter().flatten().collect() })
    }
}

impl PagemapEntry {
    /// `PE_PRESENT` of criu/include/pagemap.h. Images of old have a mark on the others instead.
    const PRESENT: u32 = 1 << 2;

    fn read(message: &Message<'_>) -> Result<Self> {
        let pages = message
            .number(5)
            .map_or_else(|| message.need_u32(2, "compat_nr_pages").map(u64::from), Ok)?;
        let flags = message.u32(4, "flags")?;
        Ok(Self {
            address: message.need_u64(1, "vaddr")?,
            pages,
            present: flags.map_or(!message.flag(3), |flags| flags & Self::PRESENT != 0),
        })
    }
}

/// The entry of `fs-<pid>.img`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fs {
    /// The entry of the working directory.
    pub cwd: u32,
    /// The entry of the root directory.
    pub root: u32,
}

impl Fs {
    /// Reads the entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        Ok(Self { cwd: message.need_u32(1, "cwd_id")?, root: message.need_u32(2, "root_id")? })
    }
}

/// How CRIU keeps a file whose name was gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemapKind {
    /// Under another name in the same file system.
    Linked,
    /// With its content, in `ghost-file-<id>.img`.
    Ghost,
    /// A file below `/proc` of a process that has ended.
    DeadProcess,
    /// A way that this version of ocicle does not know.
    Other(u32),
}

/// An entry of `remap-fpath.img`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remap {
    /// The entry of the open file.
    pub file: u32,
    /// The other name's entry, the ghost file's number or the process.
    pub target: u32,
    /// What the target is.
    pub kind: RemapKind,
}

impl Remap {
    /// Reads an entry. Images of old have no type but a bit in the target.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        const OLD_GHOST: u32 = 1 << 31;
        let target = message.need_u32(2, "remap_id")?;
        let (target, kind) = match message.u32(3, "remap_type")? {
            Some(0) => (target, RemapKind::Linked),
            Some(1) => (target, RemapKind::Ghost),
            Some(2) => (target, RemapKind::DeadProcess),
            Some(other) => (target, RemapKind::Other(other)),
            None if target & OLD_GHOST != 0 => (target & !OLD_GHOST, RemapKind::Ghost),
            None => (target, RemapKind::Linked),
        };
        Ok(Self { file: message.need_u32(1, "orig_id")?, target, kind })
    }
}

/// An entry of `tty-info.img`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TtyInfo {
    /// The identifier that open terminals refer to.
    pub id: u32,
    /// Whether it comes from outside the container and must be given again.
    pub external: bool,
    /// Whether it is the master side of a pseudoterminal.
    pub master: bool,
    /// Whether it is `/dev/tty`: whatever terminal controls the session.
    pub current: bool,
    /// The number below `/dev/pts`.
    pub index: Option<u32>,
    /// The session it controls, 0 for none.
    pub sid: u32,
}

impl TtyInfo {
    /// Reads an entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        /// `TtyType` of tty.proto: a terminal from outside.
        const EXTERNAL: u32 = 5;
        /// The same for `/dev/tty`.
        const CURRENT: u32 = 4;
        /// Device 5:2, `/dev/ptmx`, in the kernel's and in CRIU's encoding alike.
        const PTMX: u32 = 0x502;
        let pty = message.message(12)?;
        Ok(Self {
            id: message.need_u32(1, "id")?,
            external: message.need_u32(2, "type")? == EXTERNAL,
            current: message.need_u32(2, "type")? == CURRENT,
            master: message.need_u32(8, "rdev")? == PTMX,
            index: pty.map(|pty| pty.need_u32(1, "index")).transpose()?,
            sid: message.need_u32(6, "sid")?,
        })
    }
}

/// An entry of `memfd.img`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemfdInode {
    /// The identifier that open memfds refer to.
    pub id: u64,
    /// Its name.
    pub name: ByteString,
    /// Its size in bytes.
    pub size: u64,
}

impl MemfdInode {
    /// Reads an entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        Ok(Self {
            id: message.need_u64(7, "inode_id")?,
            name: message.need_bytes(1, "name")?.into(),
            size: message.need_u64(4, "size")?,
        })
    }
}

/// An entry of `filelocks.img`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileLock {
    /// What kind of lock, in the numbers of criu/include/file-lock.h.
    pub flag: u32,
    /// What it is for: `F_RDLCK`, `F_WRLCK`.
    pub access: u32,
    /// The process that holds it, as the container sees it.
    pub pid: InnerPid,
    /// Through which file descriptor.
    pub fd: i32,
    /// Where it begins.
    pub start: i64,
    /// How long it is, 0 for ever.
    pub length: i64,
}

impl FileLock {
    /// The flag of a lock of `fcntl`'s `F_SETLK`, which belongs to the process.
    pub const POSIX: u32 = 1;
    /// That of `flock`.
    pub const FLOCK: u32 = 2;
    /// That of `F_OFD_SETLK`, which belongs to the open file.
    pub const OFD: u32 = 4;
    /// That of a lease.
    pub const LEASE: u32 = 8;

    /// Reads an entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        Ok(Self {
            flag: message.need_u32(1, "flag")?,
            access: message.need_u32(2, "type")?,
            pid: InnerPid(message.need_i32(3, "pid")?),
            fd: message.need_i32(4, "fd")?,
            start: message.need_u64(5, "start")? as i64,
            length: message.need_u64(6, "len")? as i64,
        })
    }

    /// Whether it is one of a range, which belongs to a process and not to an open file.
    pub fn is_of_process(&self) -> bool {
        self.flag & Self::POSIX != 0
    }

    /// The entry, with all its fields.
    pub fn encode(&self) -> Vec<u8> {
        let signed = |number: i32| i64::from(number) as u64;
        let fields = [
            self.flag.into(),
            self.access.into(),
            signed(self.pid.0),
            signed(self.fd),
            self.start as u64,
            self.length as u64,
        ];
        let mut message = Message::default();
        (1..).zip(fields).for_each(|(field, value)| message.set_number(field, value));
        message.encode()
    }
}

/// An entry of `sk-queues.img`: a message that waits in a unix socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// The open file of the socket that it can be read from.
    pub socket: u32,
    /// Open files that it carries (`SCM_RIGHTS`).
    pub rights: Vec<u32>,
}

impl Packet {
    /// The field of what goes along with the message, and in that the one of open files.
    pub const CONTROL: u32 = 4;
    /// See [`Packet::CONTROL`].
    pub const RIGHTS: u32 = 2;

    /// Reads an entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        let mut rights = Vec::new();
        for control in message.messages(Self::CONTROL) {
            for right in control?.numbers(Self::RIGHTS)? {
                rights.push(u32::try_from(right).map_err(|_| BadMessage::OutOfRange {
                    number: Self::RIGHTS,
                    name: "rights",
                })?);
            }
        }
        Ok(Self { socket: message.need_u32(1, "id_for")?, rights })
    }
}

/// How long a dump took: the part of `stats-dump` that matters. Times are microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DumpStats {
    /// Until every task was stopped.
    pub freezing_time: u32,
    /// For how long they were.
    pub frozen_time: u32,
    /// Of that, reading memory.
    pub memdump_time: u32,
    /// Of that, writing memory.
    pub memwrite_time: u32,
    /// Pages looked at.
    pub pages_scanned: u64,
    /// Pages written.
    pub pages_written: u64,
}

impl DumpStats {
    /// Reads the entry.
    pub fn read(message: &Message<'_>) -> Result<Self> {
        let dump = message.need_message(1, "dump")?;
        Ok(Self {
            freezing_time: dump.need_u32(1, "freezing_time")?,
            frozen_time: dump.need_u32(2, "frozen_time")?,
            memdump_time: dump.need_u32(3, "memdump_time")?,
            memwrite_time: dump.need_u32(4, "memwrite_time")?,
            pages_scanned: dump.need_u64(5, "pages_scanned")?,
            pages_written: dump.need_u64(7, "pages_written")?,
        })
    }
}

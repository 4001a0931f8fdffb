//! The images of a checkpoint, read with suspicion.
//!
//! An image directory may come from an archive that anyone made: every length is checked, files
//! are opened without following links, and nothing is allocated on the word of a number in a
//! file. [`wire`] splits messages, [`image`] files, [`entries`] says what fields mean,
//! [`Images`] is what a checkpoint says of its open files, and [`cgroups`] of its control groups.

pub mod cgroups;
pub mod entries;
pub mod image;
pub mod wire;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::container::Holder;
use crate::sys::directory::Directory;
use crate::sys::pid::InnerPid;
use entries::{
    Core, FdEntry, FdType, FileEntry, FileLock, Fs, Ids, Inventory, MemfdInode, Mm, Packet, Remap,
    TreeEntry, TtyInfo, mount_key,
};
use image::{Image, ImageKind, MAX_IMAGE};

pub use entries::DumpStats;

/// The image of locks.
pub const LOCKS: &str = "filelocks.img";

/// An image directory, or what was read of one inside an archive.
#[derive(Debug)]
pub struct ImageDir {
    place: Place,
    path: PathBuf,
}

#[derive(Debug)]
enum Place {
    Directory(Directory),
    Memory(BTreeMap<String, Vec<u8>>),
}

impl ImageDir {
    /// Opens a directory, which may be reached by a link.
    pub fn open(path: &Path) -> Result<Self> {
        let dir = Directory::open(path)
            .with_context(|| format!("opening the image directory {}", path.display()))?;
        Ok(Self { place: Place::Directory(dir), path: path.to_owned() })
    }

    /// Images that have been read already, by their names.
    pub fn of_memory(path: &Path, images: BTreeMap<String, Vec<u8>>) -> Self {
        Self { place: Place::Memory(images), path: path.to_owned() }
    }

    /// The directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads an image, if it is there.
    pub fn find(&self, kind: ImageKind, name: &str) -> Result<Option<Image>> {
        let Some(bytes) = self.read(name).with_context(|| self.reading(name))? else {
            return Ok(None);
        };
        Ok(Some(Image::parse(kind, bytes).with_context(|| self.reading(name))?))
    }

    /// Reads an image that has to be there.
    pub fn need(&self, kind: ImageKind, name: &str) -> Result<Image> {
        self.find(kind, name)?.with_context(|| format!("{}: it is missing", self.reading(name)))
    }

    fn reading(&self, name: &str) -> String {
        format!("reading {}", self.path.join(name).display())
    }

    fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match &self.place {
            Place::Directory(dir) => read_regular(dir, name),
            Place::Memory(images) => Ok(images.get(name).cloned()),
        }
    }

    /// Every entry of an image; none if there is no such image, as CRIU has it.
    pub(super) fn all<T>(
        &self,
        kind: ImageKind,
        name: &str,
        read: impl FnMut(&wire::Message<'_>) -> Result<T, wire::BadMessage>,
    ) -> Result<Vec<T>> {
        let Some(image) = self.find(kind, name)? else { return Ok(Vec::new()) };
        image.read(read).with_context(|| self.reading(name))
    }

    /// The entry of an image with one, if there is such an image.
    fn one<T>(
        &self,
        kind: ImageKind,
        name: &str,
        read: impl FnMut(&wire::Message<'_>) -> Result<T, wire::BadMessage>,
    ) -> Result<Option<T>> {
        let Some(image) = self.find(kind, name)? else { return Ok(None) };
        image.read_one(read).map(Some).with_context(|| self.reading(name))
    }

    /// The locks.
    pub fn locks(&self) -> Result<Vec<FileLock>> {
        self.all(ImageKind::FileLocks, LOCKS, FileLock::read)
    }

    /// How long the dump took, if CRIU has written it here.
    pub fn dump_stats(&self) -> Result<Option<DumpStats>> {
        self.one(ImageKind::Stats, "stats-dump", DumpStats::read)
    }
}

/// The bytes of a regular file, of which no more than the limit is read.
fn read_regular(dir: &Directory, name: &str) -> Result<Option<Vec<u8>>> {
    dir.read(name, MAX_IMAGE).map_err(|error| match error.kind() {
        ErrorKind::InvalidInput => anyhow!("it is no regular file"),
        ErrorKind::FileTooLarge => anyhow!("it is larger than {MAX_IMAGE} bytes"),
        _ if error.raw_os_error() == Some(libc::ELOOP) => anyhow!("it is a symbolic link"),
        _ => error.into(),
    })
}

/// A process of a checkpoint.
#[derive(Clone, Debug)]
pub struct TaskImages {
    /// Its numbers.
    pub tree: TreeEntry,
    /// Its name.
    pub name: crate::bytes::ByteString,
    /// Its user, as the container sees it.
    pub uid: Option<u32>,
    /// What it shares with others; nothing for a process that has ended.
    pub ids: Option<Ids>,
    /// Its program and mapped files.
    pub mm: Option<Mm>,
    /// Its working directory and root.
    pub fs: Option<Fs>,
}

impl TaskImages {
    /// Its table of file descriptors; none for a process that has ended.
    pub fn table(&self) -> Option<u32> {
        self.ids.map(|ids| ids.files)
    }
}

/// What a checkpoint says of its open files.
#[derive(Clone, Debug)]
pub struct Images {
    /// The inventory.
    pub inventory: Inventory,
    /// The processes, in the order of `pstree.img`.
    pub tasks: Vec<TaskImages>,
    /// The open files, in the order of `files.img`.
    pub files: Vec<FileEntry>,
    /// The tables of file descriptors, by their identifiers.
    pub tables: BTreeMap<u32, Vec<FdEntry>>,
    /// Files whose name was gone.
    pub remaps: Vec<Remap>,
    /// Terminals.
    pub ttys: Vec<TtyInfo>,
    /// Terminals with unread input, by the identifiers of `ttys`.
    pub tty_data: Vec<u32>,
    /// Memory files.
    pub memfds: Vec<MemfdInode>,
    /// Locks.
    pub locks: Vec<FileLock>,
    /// Messages that wait in unix sockets.
    pub packets: Vec<Packet>,
}

impl Images {
    /// Reads them from a directory.
    pub fn load(path: &Path) -> Result<Self> {
        Self::read(&ImageDir::open(path)?)
    }

    /// Reads them.
    pub fn read(dir: &ImageDir) -> Result<Self> {
        let inventory = dir
            .one(ImageKind::Inventory, "inventory.img", Inventory::read)?
            .with_context(|| format!("{}: it has no inventory.img", dir.path.display()))?;
        let tree = dir
            .need(ImageKind::ProcessTree, "pstree.img")?
            .read(TreeEntry::read)
            .with_context(|| dir.reading("pstree.img"))?;
        let tasks: Vec<_> =
            tree.into_iter().map(|tree| read_task(dir, tree)).collect::<Result<_>>()?;
        let tables = read_tables(dir, &tasks)?;
        let files = dir
            .need(ImageKind::Files, "files.img")?
            .read(FileEntry::read)
            .with_context(|| dir.reading("files.img"))?;
        Ok(Self {
            inventory,
            tasks,
            files,
            tables,
            remaps: dir.all(ImageKind::RemapPath, "remap-fpath.img", Remap::read)?,
            ttys: dir.all(ImageKind::TtyInfo, "tty-info.img", TtyInfo::read)?,
            tty_data: dir.all(ImageKind::TtyData, "tty-data.img", |m| m.need_u32(1, "tty_id"))?,
            memfds: dir.all(ImageKind::MemfdInode, "memfd.img", MemfdInode::read)?,
            locks: dir.locks()?,
            packets: dir.all(ImageKind::SocketQueues, "sk-queues.img", Packet::read)?,
        })
    }

    /// Every file descriptor: the process, and the entry in its table. Processes that share a
    /// table have each of its entries.
    pub fn fds(&self) -> impl Iterator<Item = (InnerPid, FdEntry)> + '_ {
        self.tasks.iter().flat_map(|task| {
            let table = task.table().and_then(|table| self.tables.get(&table));
            table.into_iter().flatten().map(|fd| (task.tree.pid, *fd))
        })
    }

    /// Every file descriptor: the table that it is in, and its open file.
    pub fn descriptors(&self) -> HashMap<Holder, InTable> {
        let of_task = |task: &TaskImages| {
            let (pid, table) = (task.tree.pid, task.table()?);
            let fds = self.tables.get(&table)?;
            let entry =
                move |fd: &FdEntry| (Holder { pid, fd: fd.fd }, InTable { table, file: fd.file });
            Some(fds.iter().map(entry))
        };
        self.tasks.iter().filter_map(of_task).flatten().collect()
    }

    /// The identifiers of tun devices. Each has an entry of type REG before its own, with the same
    /// identifier (`dump_tunfile` in criu/tun.c).
    pub fn tun_devices(&self) -> HashSet<u32> {
        self.files.iter().filter(|file| file.kind == FdType::TUN).map(|file| file.id).collect()
    }

    /// The open file with that identifier.
    pub fn file(&self, id: u32) -> Option<&FileEntry> {
        self.files.iter().find(|file| file.id == id)
    }
}

/// An open file in a table of file descriptors, which processes may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InTable {
    /// The table, by CRIU's identifier.
    pub table: u32,
    /// The open file, by CRIU's identifier.
    pub file: u32,
}

fn read_task(dir: &ImageDir, tree: TreeEntry) -> Result<TaskImages> {
    let pid = tree.pid;
    let core = dir.one(ImageKind::Core, &format!("core-{pid}.img"), Core::read)?;
    let own = dir.one(ImageKind::Ids, &format!("ids-{pid}.img"), Ids::read)?;
    Ok(TaskImages {
        ids: own.or(core.as_ref().and_then(|core| core.ids)),
        uid: core.as_ref().and_then(|core| core.uid),
        name: core.map(|core| core.name).unwrap_or_default(),
        mm: dir.one(ImageKind::Mm, &format!("mm-{pid}.img"), Mm::read)?,
        fs: dir.one(ImageKind::Fs, &format!("fs-{pid}.img"), Fs::read)?,
        tree,
    })
}

/// The keys by which external mounts of the first process's namespace were named to CRIU.
pub fn mount_keys(dir: &ImageDir) -> Result<Vec<crate::bytes::ByteString>> {
    let tree = dir.all(ImageKind::ProcessTree, "pstree.img", TreeEntry::read)?;
    let Some(init) = tree.into_iter().next() else { return Ok(Vec::new()) };
    let Some(namespace) = read_task(dir, init)?.ids.and_then(|ids| ids.mount) else {
        return Ok(Vec::new());
    };
    let keys = dir.all(ImageKind::Mounts, &format!("mountpoints-{namespace}.img"), mount_key)?;
    Ok(keys.into_iter().flatten().collect())
}

fn read_tables(dir: &ImageDir, tasks: &[TaskImages]) -> Result<BTreeMap<u32, Vec<FdEntry>>> {
    let mut tables = BTreeMap::new();
    for id in tasks.iter().filter_map(TaskImages::table) {
        if let Entry::Vacant(table) = tables.entry(id) {
            table.insert(dir.all(ImageKind::FdInfo, &format!("fdinfo-{id}.img"), FdEntry::read)?);
        }
    }
    Ok(tables)
}

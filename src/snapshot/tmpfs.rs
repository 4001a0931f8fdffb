//! A directory tree as one tar below gzip: the form in which CRIU keeps a tmpfs.
//!
//! GNU tar can unpack what is packed here. What is too much here is an error, and for GNU tar to do:
//! files with more holes than [`EXTENT_LIMIT`], or with 8 GiB between their holes; and of its own
//! archives those that it does not make for CRIU, as with owners by name.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt};

use anyhow::{Context, Result, bail, ensure};
use flate2::read::MultiGzDecoder;
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;
use tar_core::parse::ParsedEntry;
use tar_core::{EntryType, PaxExtensions, SparseEntry};

use super::attributes::Found;
use super::copy::extents;
use super::index::{Meta, is_overlay_xattr};
use super::inode::InodeKind;
use super::node::make_node;
use super::stored::StoredBlocks;
use super::tar::{
    Headers, Limits, Member, SparseFile, TarWriter, is_sparse, padding, parse_time, xattr_name,
};
use super::{join, shown, split};
use crate::limits::{EXTENT_LIMIT, PATH_LIMIT};
use crate::sys::extent::Extent;
use crate::sys::fs;
use crate::sys::inode::{DevIno, Device};
use crate::sys::time::Time;

/// Bytes read or written at once.
const BUFFER: usize = 256 << 10;
/// What a header can say of a length; above it, no reader but GNU tar knows a file with holes.
const HEADER_LIMIT: u64 = 8 << 30;
/// What directories may take until the end with their paths and attributes, in bytes.
const DIRS_LIMIT: u64 = 64 << 20;
/// What one takes beside them.
const DIR: u64 = 256;
/// So many attributes are named that were left out.
const NAMED: usize = 100;

/// Packs all that is in a directory, and on its file system, with its attributes. Sockets are left
/// out, as tar does. Nothing is compressed: somebody may stand still for it.
///
/// # Errors
/// When something cannot be read, or not be written.
pub fn pack_tree(top: &OwnedFd, to: impl Write) -> Result<()> {
    let gzip = StoredBlocks::new(BufWriter::with_capacity(BUFFER, to))?;
    let mut packer = Packer {
        tar: TarWriter::new(gzip),
        buffer: vec![0; BUFFER],
        first: HashMap::new(),
        taken: 0,
    };
    packer.pack(top)?;
    packer.tar.finish()?.finish()?.flush().context("writing the archive")
}

struct Packer<W: Write> {
    tar: TarWriter<StoredBlocks<BufWriter<W>>>,
    buffer: Vec<u8>,
    /// The first name of each inode that has several.
    first: HashMap<DevIno, Vec<u8>>,
    /// What directories, and those names, take.
    taken: u64,
}

impl<W: Write> Packer<W> {
    /// Packs each directory with all that is below it in one go: tar sets the attributes of one
    /// as soon as a member comes that is elsewhere.
    fn pack(&mut self, top: &OwnedFd) -> Result<()> {
        let root = look(top).context("reading the attributes of the root")?;
        let device = root.device;
        let mut pending = vec![(Vec::new(), root)];
        while let Some((path, found)) = pending.pop() {
            let dirs = self.pack_dir(top, &path, &found, found.device == device);
            pending.extend(dirs.with_context(|| format!("packing {}", shown(&path)))?);
        }
        Ok(())
    }

    /// Packs a directory and what is in it, but the directories there, which it returns.
    fn pack_dir(
        &mut self,
        top: &OwnedFd,
        path: &[u8],
        found: &Found,
        with_content: bool,
    ) -> Result<Vec<(Vec<u8>, Found)>> {
        let name = if path.is_empty() { b".".to_vec() } else { join(b".", path) };
        charge(&mut self.taken, path, &found.meta)?;
        self.tar.header(&name, &found.meta, &Member::Dir)?;
        let mut dirs = Vec::new();
        if !with_content {
            return Ok(dirs);
        }
        let dir = fs::open_dir(top, path)?;
        for name in fs::names(&dir)? {
            let entry = fs::open_entry(&dir, &name)?.context("a name in it is gone")?;
            let found = look(&entry)?;
            let path = join(path, &name);
            if found.kind.is_dir() {
                dirs.push((path, found));
            } else {
                self.pack_entry(&path, &entry, &found)
                    .with_context(|| format!("packing {}", shown(&path)))?;
            }
        }
        Ok(dirs)
    }

    fn pack_entry(&mut self, path: &[u8], entry: &OwnedFd, found: &Found) -> Result<()> {
        if found.kind == InodeKind::Socket {
            return Ok(());
        }
        let name = join(b".", path);
        if found.names > 1 {
            if let Some(first) = self.first.get(&found.inode()) {
                return Ok(self.tar.header(&name, &found.meta, &Member::Link(first))?);
            }
            charge(&mut self.taken, &name, &Meta::default())?;
            self.first.insert(found.inode(), name.clone());
        }
        let member = match &found.kind {
            InodeKind::File(()) => return self.pack_file(&name, entry, found),
            InodeKind::Socket | InodeKind::Dir => return Ok(()),
            InodeKind::Symlink(target) => Member::Symlink(target),
            InodeKind::Char(device) => Member::Char(*device),
            InodeKind::Block(device) => Member::Block(*device),
            InodeKind::Fifo => Member::Fifo,
        };
        Ok(self.tar.header(&name, &found.meta, &member)?)
    }

    fn pack_file(&mut self, name: &[u8], entry: &OwnedFd, found: &Found) -> Result<()> {
        let size = found.identity.size;
        let file = File::from(fs::open_for_reading(entry)?);
        let extents = extents(&file, size)?;
        ensure_packable(&file, size, &extents)?;
        self.tar.header(name, &found.meta, &Member::File(size, &extents))?;
        for extent in extents {
            let mut at = extent.offset;
            while at < extent.end() {
                let wanted = self.buffer.len().min((extent.end() - at) as usize);
                file.read_exact_at(&mut self.buffer[..wanted], at)?;
                self.tar.data(&self.buffer[..wanted])?;
                at += wanted as u64;
            }
        }
        Ok(self.tar.pad()?)
    }
}

/// Makes sure that no hole has been closed, which could be larger than all data, and that the file can
/// be read again.
fn ensure_packable(file: &File, size: u64, extents: &[Extent]) -> Result<()> {
    let stored = extents.iter().map(|extent| extent.length).sum::<u64>();
    ensure!(stored <= file.metadata()?.blocks() * 512, "it has too many holes");
    ensure!(!is_sparse(size, extents) || stored < HEADER_LIMIT, "it has holes, and much data");
    Ok(())
}

fn look(entry: &OwnedFd) -> io::Result<Found> {
    let mut found = Found::look(entry)?;
    found.meta.xattrs.retain(|name, _| is_content(name.as_bytes()));
    Ok(found)
}

/// Whether an attribute belongs to a file, and can be a key. Labels of security modules do not: they
/// say to which container it belongs, and the next one has others.
fn is_content(attribute: &[u8]) -> bool {
    let is_label = attribute.starts_with(b"security.") && attribute != b"security.capability";
    !is_label && !is_overlay_xattr(attribute) && std::str::from_utf8(attribute).is_ok()
}

/// A path of an archive leads out of the directory that it is unpacked into.
#[derive(Debug, thiserror::Error)]
#[error("it leads out of the directory")]
pub struct LeadsOut;

/// Unpacks an archive of a tree into a directory. What is there already is replaced, but a directory.
/// Attributes that the file system does not take are left out, but owner, mode and time. Returns
/// which those were, and why.
///
/// # Errors
/// When it is no such archive; [`LeadsOut`] if it was made to do harm. When something cannot be made.
pub fn unpack_tree(from: impl Read, top: &OwnedFd) -> Result<Vec<String>> {
    let mut from = MultiGzDecoder::new(BufReader::with_capacity(BUFFER, from));
    let limits = Limits {
        max_path_len: Some(PATH_LIMIT as u32),
        // And an empty one at the end.
        max_sparse_entries: EXTENT_LIMIT + 1,
        ..Limits::default()
    };
    let mut headers = Headers::of_any_time(limits);
    let mut unpacker = Unpacker {
        top,
        buffer: vec![0; BUFFER],
        dirs: BTreeMap::new(),
        taken: 0,
        left_out: Vec::new(),
        others: 0,
    };
    while let Some(packed) = headers.next(&mut from, Packed::of)? {
        let packed = packed?;
        unpacker
            .unpack(&packed, &mut from)
            .with_context(|| format!("unpacking {}", shown(&packed.path)))?;
    }
    // The checksum is behind all.
    io::copy(&mut from, &mut io::sink()).context("reading the end of the archive")?;
    ensure!(unpacker.dirs.contains_key(&b""[..]), "there is no root in it");
    unpacker.finish_dirs()
}

/// A member of an archive, to be unpacked.
struct Packed {
    path: Vec<u8>,
    what: What,
    meta: Meta,
    /// How many bytes follow the header.
    stored: u64,
}

enum What {
    /// Its length, and the extents that are stored.
    File(u64, Vec<Extent>),
    /// Another name of what is at this path.
    Link(Vec<u8>),
    /// Anything without bytes.
    Node(InodeKind),
}

impl Packed {
    fn of(entry: &ParsedEntry<'_>, sparse: Option<SparseFile<'_>>) -> Result<Self> {
        let path = relative(&entry.path)?;
        let by_name = [&entry.uname, &entry.gname].into_iter().flatten().any(|n| !n.is_empty());
        ensure!(!by_name, "the owner of {} has a name", shown(&path));
        let target = || entry.link_target.as_deref().context("a link has no target");
        let device = || {
            let numbers = entry.dev_major.zip(entry.dev_minor).context("a device has no number");
            numbers.map(|(major, minor)| Device { major, minor })
        };
        let what = match (entry.entry_type, sparse) {
            (kind, Some(SparseFile { length, stored })) => {
                // Older headers have each extent begin in a block of its own.
                let fills = |one: &SparseEntry| one.length.is_multiple_of(512);
                let inner = stored.split_last().map_or(stored, |(_, inner)| inner);
                ensure!(kind != EntryType::GnuSparse || inner.iter().all(fills), "a gap in data");
                let extents = stored.iter().map(|one| Extent::new(one.offset, one.length));
                What::File(length, extents.collect())
            }
            (EntryType::Regular | EntryType::Continuous, None) => {
                What::File(entry.size, vec![Extent::new(0, entry.size)])
            }
            (EntryType::Link, None) => What::Link(relative(target()?)?),
            (EntryType::Symlink, None) => What::Node(InodeKind::Symlink(target()?.to_vec())),
            (EntryType::Char, None) => {
                device().map(|device| What::Node(InodeKind::Char(device)))?
            }
            (EntryType::Block, None) => {
                device().map(|device| What::Node(InodeKind::Block(device)))?
            }
            (EntryType::Directory, None) => What::Node(InodeKind::Dir),
            (EntryType::Fifo, None) => What::Node(InodeKind::Fifo),
            (other, None) => bail!("{} is a member of type {other:?}", shown(&path)),
        };
        let is_file = matches!(what, What::File(..));
        ensure!(is_file || entry.size == 0, "{} has bytes and is no file", shown(&path));
        Ok(Self { path, what, meta: meta(entry)?, stored: entry.size })
    }
}

/// A path of an archive as one below a root.
fn relative(path: &[u8]) -> Result<Vec<u8>> {
    let mut path = path.strip_suffix(b"/").unwrap_or(path);
    while let Some(rest) = path.strip_prefix(b"./") {
        path = rest;
    }
    let path = if path == b"." { b"" } else { path };
    fs::check_path(path).context(LeadsOut).with_context(|| shown(path))?;
    Ok(path.to_vec())
}

fn meta(entry: &ParsedEntry<'_>) -> Result<Meta> {
    let mut time = Time::new(entry.mtime.cast_signed(), 0);
    for record in PaxExtensions::new(entry.pax.unwrap_or_default()) {
        let record = record?;
        match record.key_bytes() {
            b"mtime" => time = parse_time(record.value()?).context("a time is no number")?,
            b"uid" | b"gid" | b"size" => drop(record.value()?.parse::<u64>()?),
            _ => {}
        }
    }
    let xattrs = entry.xattrs.iter().map(|(name, value)| (xattr_name(name), value));
    let xattrs = xattrs.filter(|(name, _)| is_content(name));
    Ok(Meta {
        mode: entry.mode & 0o7777,
        uid: u32::try_from(entry.uid)?,
        gid: u32::try_from(entry.gid)?,
        mtime: time,
        xattrs: xattrs.map(|(name, value)| (name.into(), (**value).into())).collect(),
    })
}

struct Unpacker<'a> {
    top: &'a OwnedFd,
    buffer: Vec<u8>,
    /// What directories are to be in the end: until then things are made in them.
    dirs: BTreeMap<Vec<u8>, Meta>,
    /// What they take, in bytes.
    taken: u64,
    left_out: Vec<String>,
    /// How many more were left out.
    others: u64,
}

impl Unpacker<'_> {
    fn unpack(&mut self, packed: &Packed, from: &mut impl Read) -> Result<()> {
        let Some((parent, name)) = split(&packed.path) else {
            ensure!(matches!(packed.what, What::Node(InodeKind::Dir)), "the root is no directory");
            return self.keep(Vec::new(), &packed.meta);
        };
        let dir = self.open_dir(parent)?;
        match &packed.what {
            What::Node(InodeKind::Dir) => {
                make_dir(&dir, name)?;
                return self.keep(packed.path.clone(), &packed.meta);
            }
            What::Node(kind) => replacing(&dir, name, || make_node(&dir, name, kind))?,
            What::Link(first) => return self.link(first, &dir, name),
            What::File(length, extents) => {
                let file = replacing(&dir, name, || fs::create_file(&dir, name))?;
                self.write(&file.into(), *length, extents, packed.stored, from)?;
            }
        }
        let entry = fs::open_entry(&dir, name)?.context("it is gone")?;
        self.set_attributes(&entry, &packed.meta, &packed.path)
    }

    /// Keeps what a directory is to be.
    fn keep(&mut self, path: Vec<u8>, meta: &Meta) -> Result<()> {
        charge(&mut self.taken, &path, meta)?;
        self.dirs.insert(path, meta.clone());
        Ok(())
    }

    /// A directory that the archive has made before, and nothing that leads elsewhere.
    fn open_dir(&self, path: &[u8]) -> Result<OwnedFd> {
        let elsewhere = [Errno::LOOP, Errno::NOTDIR].map(|errno| Some(errno.raw_os_error()));
        fs::open_dir(self.top, path).map_err(|error| {
            match elsewhere.contains(&error.raw_os_error()) {
                true => anyhow::Error::new(error).context(LeadsOut),
                false => error.into(),
            }
        })
    }

    fn link(&self, first: &[u8], dir: &OwnedFd, name: &[u8]) -> Result<()> {
        let (from, first) = split(first).context("it is a link to the root")?;
        let from = self.open_dir(from)?;
        let link = || Ok(rustix::fs::linkat(&from, first, dir, name, AtFlags::empty())?);
        Ok(replacing(dir, name, link)?)
    }

    fn write(
        &mut self,
        file: &File,
        length: u64,
        extents: &[Extent],
        stored: u64,
        from: &mut impl Read,
    ) -> Result<()> {
        let mut total = 0u64;
        let ends = |extent: &Extent| -> Option<u64> {
            total = total.checked_add(extent.length)?;
            extent.checked_end().filter(|end| *end <= length)
        };
        let fits = extents.iter().map(ends).collect::<Option<Vec<_>>>();
        ensure!(fits.is_some() && total == stored, "its extents are not those of its bytes");
        file.set_len(length)?;
        for extent in extents {
            let mut at = extent.offset;
            while at < extent.end() {
                let wanted = self.buffer.len().min((extent.end() - at) as usize);
                from.read_exact(&mut self.buffer[..wanted])?;
                file.write_all_at(&self.buffer[..wanted], at)?;
                at += wanted as u64;
            }
        }
        Ok(from.read_exact(&mut self.buffer[..padding(stored) as usize])?)
    }

    /// The deepest first, since each change in a directory sets its time.
    fn finish_dirs(mut self) -> Result<Vec<String>> {
        for (path, meta) in std::mem::take(&mut self.dirs).iter().rev() {
            self.open_dir(path)
                .and_then(|dir| self.set_attributes(&dir, meta, path))
                .with_context(|| format!("setting the attributes of {}", shown(path)))?;
        }
        let more = (self.others > 0).then(|| format!("and {} more", self.others));
        self.left_out.extend(more);
        Ok(self.left_out)
    }

    /// In this order: chown(2) clears setuid and capabilities, chmod(2) changes an ACL's mask. What is
    /// made here has no other attributes but labels, which stay.
    fn set_attributes(&mut self, entry: &OwnedFd, meta: &Meta, path: &[u8]) -> Result<()> {
        fs::set_owner(entry, meta.uid, meta.gid).context("setting its owner")?;
        if FileType::from_raw_mode(fs::stat(entry)?.st_mode) != FileType::Symlink {
            fs::set_mode(entry, meta.mode).context("setting its mode")?;
        }
        for (name, value) in &meta.xattrs {
            let Err(error) = fs::set_xattr(entry, name.as_bytes(), value.as_bytes()) else {
                continue;
            };
            if self.left_out.len() == NAMED {
                self.others += 1;
            } else {
                self.left_out.push(format!("{name} of {}: {error}", shown(path)));
            }
        }
        fs::set_mtime(entry, meta.mtime).context("setting its time")
    }
}

/// Adds what a directory takes to what is taken: who packs refuses what who unpacks refuses.
fn charge(taken: &mut u64, path: &[u8], meta: &Meta) -> Result<()> {
    *taken += DIR + path.len() as u64 + meta.weight();
    ensure!(*taken <= DIRS_LIMIT, "its directories have too many names and attributes");
    Ok(())
}

fn make_dir(dir: &OwnedFd, name: &[u8]) -> Result<()> {
    let mode = Mode::RWXU;
    match rustix::fs::mkdirat(dir, name, mode) {
        Err(Errno::EXIST) if fs::open_dir(dir, name).is_ok() => Ok(()),
        Err(Errno::EXIST) => {
            replacing(dir, name, || Ok(rustix::fs::mkdirat(dir, name, mode)?)).map_err(Into::into)
        }
        other => other.context("making the directory"),
    }
}

/// Makes something in the place of what is there.
fn replacing<T>(dir: &OwnedFd, name: &[u8], make: impl Fn() -> io::Result<T>) -> io::Result<T> {
    match make() {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
            make()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::fs::open_host_dir;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Command, Stdio};
    use tempfile::TempDir;

    /// What CRIU gives to tar, but for the directory.
    const PACK: &str = "--create --gzip --no-unquote --no-wildcards --one-file-system --check-links \
                        --preserve-permissions --sparse --numeric-owner";

    fn deep() -> String {
        format!("{0}/{0}/{0}", "d".repeat(120))
    }

    /// A tree of everything that needs no privilege.
    fn tree() -> TempDir {
        let made = tempfile::tempdir().unwrap();
        let at = |name: &str| made.path().join(name);
        std::fs::create_dir_all(at(&deep())).unwrap();
        std::fs::write(at(&format!("{}/far down", deep())), "x").unwrap();
        std::fs::write(at("empty"), "").unwrap();
        std::fs::write(at("block"), [7; 512]).unwrap();
        std::fs::write(at("big"), vec![9; 3 * BUFFER + 1]).unwrap();
        std::fs::set_permissions(at("big"), PermissionsExt::from_mode(0o4751)).unwrap();
        std::fs::hard_link(at("big"), at("zbig too")).unwrap();
        for (name, length, data) in
            [("hole at the end", 1 << 20, Some(0)), ("hole first", 1 << 20, Some((1 << 20) - 4096))]
        {
            let file = File::create(at(name)).unwrap();
            file.set_len(length).unwrap();
            file.write_all_at(&[5; 4096], data.unwrap()).unwrap();
        }
        File::create(at("nothing but a hole")).unwrap().set_len(1 << 20).unwrap();
        std::os::unix::fs::symlink("/nowhere", at("link")).unwrap();
        std::os::unix::fs::symlink("n".repeat(300), at("long link")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("fifo"), Mode::RUSR).unwrap();
        let (epoch, span) = (std::time::SystemTime::UNIX_EPOCH, std::time::Duration::new);
        let old = epoch + span(1_000_000, 5000);
        File::open(at("empty")).unwrap().set_modified(epoch - span(5, 5000)).unwrap();
        File::open(at("big")).unwrap().set_modified(old).unwrap();
        std::fs::set_permissions(at(&"d".repeat(120)), PermissionsExt::from_mode(0o2500)).unwrap();
        File::open(made.path()).unwrap().set_modified(old).unwrap();
        made
    }

    /// Each path with all that can be seen of it; times in seconds, which is what tar keeps.
    fn seen(top: &Path) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut pending = vec![top.to_owned()];
        while let Some(path) = pending.pop() {
            let found = std::fs::symlink_metadata(&path).unwrap();
            let what = if found.is_dir() {
                pending
                    .extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                "directory".into()
            } else if found.is_symlink() {
                std::fs::read_link(&path).unwrap().display().to_string()
            } else if found.is_file() {
                let digest = blake3::hash(&std::fs::read(&path).unwrap());
                let is_sparse = found.blocks() * 512 < found.len();
                format!("{} {digest} {is_sparse} {}", found.len(), found.nlink())
            } else {
                "fifo".into()
            };
            let (mode, owner) = (found.mode(), (found.uid(), found.gid()));
            let name = path.strip_prefix(top).unwrap().display().to_string();
            all.insert(name, format!("{mode:o} {owner:?} {} {what}", found.mtime()));
        }
        all
    }

    fn top(of: &TempDir) -> OwnedFd {
        open_host_dir(of.path()).unwrap()
    }

    fn packed(tree: &TempDir) -> Vec<u8> {
        let mut archive = Vec::new();
        pack_tree(&top(tree), &mut archive).unwrap();
        archive
    }

    fn packed_by_tar(tree: &Path, options: &str) -> Vec<u8> {
        let mut tar = Command::new("tar");
        tar.args(options.split_whitespace()).arg("--directory").arg(tree).arg(".");
        let done = tar.stderr(Stdio::inherit()).output().unwrap();
        assert!(done.status.success());
        done.stdout
    }

    fn unpacked(archive: &[u8]) -> Result<TempDir> {
        let into = tempfile::tempdir().unwrap();
        let left_out = unpack_tree(archive, &top(&into))?;
        assert!(left_out.is_empty(), "{left_out:?}");
        Ok(into)
    }

    #[test]
    fn what_is_packed_is_unpacked_as_it_was() {
        let tree = tree();
        let again = unpacked(&packed(&tree)).unwrap();
        assert_eq!(seen(again.path()), seen(tree.path()));
        let time = |of: &TempDir| std::fs::metadata(of.path().join("big")).unwrap().mtime_nsec();
        assert_eq!((time(&again), time(&tree)), (5000, 5000));
    }

    #[test]
    fn tar_unpacks_what_is_packed() {
        let tree = tree();
        let into = tempfile::tempdir().unwrap();
        let mut tar = Command::new("tar");
        tar.args(["--extract", "--gzip", "--no-unquote", "--no-wildcards", "--directory"]);
        let mut tar = tar.arg(into.path()).stdin(Stdio::piped()).spawn().unwrap();
        tar.stdin.take().unwrap().write_all(&packed(&tree)).unwrap();
        assert!(tar.wait().unwrap().success());
        assert_eq!(seen(into.path()), seen(tree.path()));
    }

    #[test]
    fn what_tar_packs_is_unpacked() {
        let tree = tree();
        for format in ["", " --format=gnu", " --format=pax"] {
            let again = unpacked(&packed_by_tar(tree.path(), &format!("{PACK}{format}"))).unwrap();
            assert_eq!(seen(again.path()), seen(tree.path()), "{format}");
        }
    }

    #[test]
    fn what_is_there_is_replaced() {
        let (tree, into) = (tree(), tempfile::tempdir().unwrap());
        std::fs::write(into.path().join("d".repeat(120)), "a file").unwrap();
        std::fs::write(into.path().join("link"), "a file").unwrap();
        std::fs::write(into.path().join("big"), "another").unwrap();
        unpack_tree(&packed(&tree)[..], &top(&into)).unwrap();
        assert_eq!(seen(into.path()), seen(tree.path()));
    }

    #[test]
    fn nothing_leads_out() {
        let outside = tempfile::tempdir().unwrap();
        let (inside, victim) = (outside.path().join("inside"), outside.path().join("victim"));
        std::fs::create_dir(&inside).unwrap();
        let member = |path: &[u8], member: &Member<'_>, to: &mut TarWriter<Vec<u8>>| {
            to.header(path, &Meta { mode: 0o755, ..Meta::default() }, member).unwrap();
        };
        let attempts: [&[(&[u8], Member<'_>)]; 4] = [
            &[(b"./../victim", Member::File(0, &[]))],
            &[(b"/victim", Member::File(0, &[]))],
            &[(b"./out", Member::Symlink(b"..")), (b"./out/victim", Member::File(0, &[]))],
            &[(b"./out", Member::Symlink(b"..")), (b"./victim", Member::Link(b"./out/secret"))],
        ];
        std::fs::write(outside.path().join("secret"), "").unwrap();
        for members in attempts {
            let mut tar = TarWriter::new(Vec::new());
            for (path, what) in members {
                member(path, what, &mut tar);
            }
            let archive = gzip(&tar.finish().unwrap());
            let inside = open_host_dir(&inside).unwrap();
            let error = unpack_tree(&archive[..], &inside).unwrap_err();
            assert!(error.is::<LeadsOut>(), "{error:#}");
            let _ = rustix::fs::unlinkat(&inside, "out", AtFlags::empty());
        }
        assert!(!victim.exists());
        assert_eq!(std::fs::read_dir(&inside).unwrap().count(), 0);
    }

    #[test]
    fn an_archive_that_is_cut_off_is_an_error() {
        let archive = packed(&tree());
        for length in (0..archive.len()).step_by(archive.len() / 50) {
            assert!(unpacked(&archive[..length]).is_err(), "{length}");
        }
    }

    /// tar's bytes in the form of CRIU's.
    fn gzip(tar: &[u8]) -> Vec<u8> {
        let mut gzip = StoredBlocks::new(Vec::new()).unwrap();
        gzip.write_all(tar).unwrap();
        gzip.finish().unwrap()
    }

    fn plain(archive: &[u8]) -> Vec<u8> {
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(archive).read_to_end(&mut tar).unwrap();
        tar
    }

    #[test]
    fn a_map_of_extents_without_an_end_is_an_error() {
        let tree = tempfile::tempdir().unwrap();
        let file = File::create(tree.path().join("sparse")).unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[b'5'; 64 << 10], 0).unwrap();
        let mut tar = plain(&packed(&tree));
        let map = tar.windows(4).position(|bytes| bytes == b"2\n0\n").unwrap();
        for byte in &mut tar[map + 2..map + 512] {
            *byte = b'5';
        }
        assert!(unpacked(&gzip(&tar)).is_err());
        tar[map] = b'9';
        assert!(unpacked(&gzip(&tar)).is_err());
    }

    #[test]
    fn no_hole_is_filled() {
        let tree = tempfile::tempdir().unwrap();
        let file = File::create(tree.path().join("many holes")).unwrap();
        for n in 0..EXTENT_LIMIT as u64 + 1 {
            file.write_all_at(b"x", n * 8192).unwrap();
        }
        let error = pack_tree(&top(&tree), io::sink()).unwrap_err();
        assert!(format!("{error:#}").ends_with("it has too many holes"), "{error:#}");
    }

    #[test]
    fn directories_that_lie_deep_have_a_limit() {
        let mut tar = TarWriter::new(Vec::new());
        let meta = Meta { mode: 0o755, ..Meta::default() };
        let mut path = b".".to_vec();
        tar.header(&path, &meta, &Member::Dir).unwrap();
        for _ in 0..127 {
            path = join(&path, &[b'd'; 255]);
            tar.header(&path, &meta, &Member::Dir).unwrap();
        }
        for number in 0..DIRS_LIMIT / path.len() as u64 {
            let name = number.to_string();
            tar.header(&join(&path, name.as_bytes()), &meta, &Member::Dir).unwrap();
        }
        let top = tempfile::tempdir_in("/dev/shm").unwrap();
        let archive = gzip(&tar.finish().unwrap());
        let error = unpack_tree(&archive[..], &open_host_dir(top.path()).unwrap()).unwrap_err();
        assert!(format!("{error:#}").contains("too many names"), "{error:#}");
    }

    #[test]
    fn nothing_is_no_archive() {
        assert!(unpacked(&gzip(&[])).is_err());
        assert!(unpacked(&gzip(&[0; 10240])).is_err());
    }

    #[test]
    fn labels_are_not_the_files() {
        let kept = ["user.a", "system.posix_acl_access", "security.capability", "trusted.x"];
        assert!(kept.iter().all(|name| is_content(name.as_bytes())));
        let others = ["security.selinux", "security.SMACK64", "trusted.overlay.opaque"];
        assert!(!others.iter().any(|name| is_content(name.as_bytes())));
        assert!(!is_content(b"user.\xff"), "it cannot be a key");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn damage_is_no_panic(at in 0usize..16384, byte: u8) {
            let tree = tree();
            std::fs::remove_file(tree.path().join("big")).unwrap();
            std::fs::remove_file(tree.path().join("zbig too")).unwrap();
            let mut tar = plain(&packed(&tree));
            let at = at % tar.len();
            tar[at] = byte;
            let _ = unpacked(&gzip(&tar));
        }
    }
}

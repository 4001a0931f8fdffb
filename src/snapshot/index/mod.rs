//! The index: everything about a part but the bytes of its files.
//!
//! On disk it is a line of JSON for itself and one for each entry, in the order of a walk: how deep it
//! lies, its last name, and what it is. It is read and written a line at a time. Version 1, which is
//! read too, was one object with the whole path of each entry.

mod old;

pub(super) use old::Old;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};

use anyhow::{Context, Result, bail, ensure};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::identity::{Form, RootIdentity};
use super::inode::InodeKind;
use super::paths::{Id, Paths, Weigh};
use super::shown;
use crate::bytes::ByteString;
use crate::limits::{self, EXTENT_LIMIT, Limit};
use crate::sys::extent::Extent;
use crate::sys::inode::Device;
use crate::sys::time::Time;

/// The version of the index that this program writes.
pub(super) const SCHEMA: u32 = 2;
/// Linux's XATTR_SIZE_MAX and XATTR_NAME_MAX.
const XATTR_LIMIT: usize = 64 << 10;
const XATTR_NAME_LIMIT: usize = 255;
/// The bytes of a line: attributes of [`Limit::Attributes`], each byte escaped, and the rest.
const LINE_LIMIT: u64 = 8 << 20;

/// Everything about a part at the instant of its snapshot. `C` says where content is.
#[derive(Clone, Debug)]
pub struct Index<C = Content> {
    /// What the entries are relative to.
    pub driver: Form,
    /// The root that the snapshot was taken of.
    pub root: RootIdentity,
    /// Every path relative to the root, in the order of a walk: the first has the first [`Id`].
    pub entries: Paths<Entry<C>>,
}

/// One path. `L` is how another one is named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<C = Content, L = Id> {
    /// What it is.
    pub kind: Kind<C, L>,
    /// Its attributes; nothing for a link to another path and for a whiteout.
    #[serde(default, skip_serializing_if = "Meta::is_nothing")]
    pub meta: Meta,
    /// What stat(2) said, if the same answer later proves the file unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Fingerprint>,
}

impl<C> Weigh for Entry<C> {
    fn weight(&self) -> u64 {
        let target = match &self.kind {
            Kind::Symlink { target } => target.as_bytes().len(),
            _ => 0,
        };
        self.meta.weight() + target as u64
    }
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind<C = Content, L = Id> {
    /// A directory.
    Dir {
        /// Whether nothing of the layers below shows through.
        opaque: bool,
    },
    /// A regular file.
    File {
        /// Its length in bytes.
        size: u64,
        /// Where its bytes are.
        content: C,
    },
    /// A symbolic link.
    Symlink {
        /// Where it points.
        target: ByteString,
    },
    /// A further name of the inode that another path names first.
    Link {
        /// That path.
        to: L,
    },
    /// A character device.
    Char(Device),
    /// A block device.
    Block(Device),
    /// A named pipe.
    Fifo,
    /// The name of a socket.
    Socket,
    /// Nothing, where a lower layer has something.
    Whiteout,
}

impl<C, L> Kind<C, L> {
    /// The same, with content and links of another kind.
    ///
    /// # Errors
    /// Those of finding these.
    pub(super) fn try_map<D, M>(
        self,
        content: impl FnOnce(C) -> Result<D>,
        link: impl FnOnce(L) -> Result<M>,
    ) -> Result<Kind<D, M>> {
        Ok(match self {
            Self::Dir { opaque } => Kind::Dir { opaque },
            Self::File { size, content: bytes } => Kind::File { size, content: content(bytes)? },
            Self::Symlink { target } => Kind::Symlink { target },
            Self::Link { to } => Kind::Link { to: link(to)? },
            Self::Char(device) => Kind::Char(device),
            Self::Block(device) => Kind::Block(device),
            Self::Fifo => Kind::Fifo,
            Self::Socket => Kind::Socket,
            Self::Whiteout => Kind::Whiteout,
        })
    }

    /// What an inode is in an index; of a regular file `kind` has the length and the content, and of
    /// a directory `opaque` says whether nothing of the layers below shows through.
    pub(super) fn of_inode(kind: InodeKind<(u64, C)>, opaque: bool) -> Self {
        match kind {
            InodeKind::Dir => Self::Dir { opaque },
            InodeKind::File((size, content)) => Self::File { size, content },
            InodeKind::Symlink(target) => Self::Symlink { target: target.into() },
            InodeKind::Char(device) => Self::Char(device),
            InodeKind::Block(device) => Self::Block(device),
            InodeKind::Fifo => Self::Fifo,
            InodeKind::Socket => Self::Socket,
        }
    }

    /// What inode it is; a regular file with its length. `None` for another name of one, and for
    /// nothing.
    pub(super) fn inode(&self) -> Option<InodeKind<u64, &[u8]>> {
        Some(match self {
            Self::Dir { .. } => InodeKind::Dir,
            Self::File { size, .. } => InodeKind::File(*size),
            Self::Symlink { target } => InodeKind::Symlink(target.as_bytes()),
            Self::Char(device) => InodeKind::Char(*device),
            Self::Block(device) => InodeKind::Block(*device),
            Self::Fifo => InodeKind::Fifo,
            Self::Socket => InodeKind::Socket,
            Self::Link { .. } | Self::Whiteout => return None,
        })
    }
}

/// The bytes of a regular file in a part: a run of a layer's bytes, and where they belong.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Which layer, from 0.
    pub layer: u32,
    /// The first byte in the layer.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
    /// Offset and length in the file of each extent, one after the other in the layer; the rest is
    /// zeros. Empty: one extent, the whole file.
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "old::extents")]
    pub map: Vec<Extent>,
    /// BLAKE3 of the stored bytes.
    pub digest: Digest,
}

/// A BLAKE3 digest, written in hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digest([u8; blake3::OUT_LEN]);

impl Digest {
    /// The digest of what was hashed.
    pub fn of(hasher: &blake3::Hasher) -> Self {
        Self(hasher.finalize().into())
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let hash = blake3::Hash::from_hex(text.as_bytes());
        hash.map(|hash| Self(hash.into())).map_err(|_| serde::de::Error::custom("no digest"))
    }
}

impl Content {
    /// The extents, spelt out.
    pub fn extents(&self) -> Vec<Extent> {
        match (self.map.is_empty(), self.length) {
            (true, 0) => Vec::new(),
            (true, length) => vec![Extent::new(0, length)],
            _ => self.map.clone(),
        }
    }
}

/// Attributes of an inode.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of modification.
    pub mtime: Time,
    /// Extended attributes but the overlay's own; POSIX ACLs are among them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "old::xattrs")]
    pub xattrs: BTreeMap<ByteString, ByteString>,
}

impl Meta {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// What its attributes take.
    pub(super) fn weight(&self) -> u64 {
        /// Of the map, and of each pair beside its bytes.
        const MAP: u64 = 640;
        const PAIR: u64 = 64;
        if self.xattrs.is_empty() {
            return 0;
        }
        let bytes = |(name, value): (&ByteString, &ByteString)| {
            (name.as_bytes().len() + value.as_bytes().len()) as u64 + PAIR
        };
        MAP + self.xattrs.iter().map(bytes).sum::<u64>()
    }
}

/// What tells that an inode has not been touched: only the kernel sets ctime.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Inode number, as stat(2) through the root tells it.
    pub ino: u64,
    /// Length in bytes.
    pub size: u64,
    /// Time of modification.
    pub mtime: Time,
    /// Time of the last change of the inode.
    pub ctime: Time,
}

impl<C> Index<C> {
    /// The entry of a path.
    pub fn get(&self, path: &[u8]) -> Option<&Entry<C>> {
        self.entries.get(path)
    }

    /// The entry that has the attributes and content of a path: the first name of a hard link.
    pub fn inode(&self, path: Id) -> Option<(Id, &Entry<C>)> {
        match self.entries.value(path)? {
            Entry { kind: Kind::Link { to }, .. } => Some((*to, self.entries.value(*to)?)),
            entry => Some((path, entry)),
        }
    }

    /// The paths that are further names of others, by these.
    pub(super) fn links(&self) -> BTreeMap<Id, Vec<Id>> {
        let mut links: BTreeMap<Id, Vec<Id>> = BTreeMap::new();
        for (path, entry) in self.entries.walk() {
            if let Kind::Link { to } = entry.kind {
                links.entry(to).or_default().push(path);
            }
        }
        links
    }
}

/// The first line of an index.
#[derive(Serialize)]
struct Head<'a> {
    schema: u32,
    driver: Form,
    root: &'a RootIdentity,
}

/// The same, as it is read.
#[derive(Deserialize)]
struct ReadHead {
    driver: Form,
    root: RootIdentity,
}

/// Writes an index line by line.
pub(super) struct Lines<W: Write>(W);

impl<W: Write> Lines<W> {
    /// Begins one.
    pub(super) fn begin(to: W, driver: Form, root: &RootIdentity) -> Result<Self> {
        let mut lines = Self(to);
        lines.line(&Head { schema: SCHEMA, driver, root })?;
        Ok(lines)
    }

    /// Writes the next entry of a walk; a link to another names that by its place in the walk.
    pub(super) fn entry<C: Serialize>(
        &mut self,
        depth: usize,
        name: &[u8],
        entry: &Entry<C>,
    ) -> Result<()> {
        self.line(&(depth, ByteString::from(name), entry))
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        serde_json::to_writer(&mut self.0, line)?;
        Ok(self.0.write_all(b"\n")?)
    }

    /// Gives back what it was written to.
    pub(super) fn finish(self) -> W {
        self.0
    }
}

impl<C: Serialize> Index<C> {
    /// Writes all of it.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self, to: impl Write) -> Result<()> {
        let mut lines = Lines::begin(to, self.driver, &self.root)?;
        let mut walk = self.entries.walk();
        while let Some((path, entry)) = walk.next() {
            lines.entry(walk.depth(), self.entries.name(path), entry)?;
        }
        Ok(lines.finish().flush()?)
    }
}

impl<C: DeserializeOwned> Index<C> {
    /// Reads one. What it says is not checked.
    pub(super) fn read(from: impl Read) -> Result<Self> {
        let mut from = BufReader::with_capacity(super::BUFFER, from);
        match version(from.fill_buf()?) {
            Some(SCHEMA) => {}
            Some(newer) if newer > SCHEMA => {
                bail!("the index has version {newer}, this program reads versions up to {SCHEMA}")
            }
            _ => return old::read(from),
        }
        let mut line = Vec::new();
        next_line(&mut from, &mut line)?;
        let ReadHead { driver, root } =
            serde_json::from_slice(&line).context("reading its head")?;
        let mut entries: Option<Paths<Entry<C>>> = None;
        let mut way: Vec<(Id, usize)> = Vec::new();
        while next_line(&mut from, &mut line)? {
            let (depth, name, entry): (usize, ByteString, Entry<C>) =
                serde_json::from_slice(&line).context("reading an entry")?;
            let Some(entries) = &mut entries else {
                ensure!(depth == 0 && name.is_empty(), "the index has no root");
                entries = Some(Paths::new(entry));
                way.push((Id::ROOT, 0));
                continue;
            };
            ensure!((1..=way.len()).contains(&depth), "an entry lies deeper than its directory");
            way.truncate(depth);
            let (dir, length) = way[depth - 1];
            let length = length + name.as_bytes().len() + usize::from(depth > 1);
            limits::ensure(Limit::Path, length as u64, "the bytes of a path are")?;
            let path = entries
                .push(dir, name.as_bytes(), entry)
                .with_context(|| format!("reading an entry {name} of {}", way.len()))?;
            way.push((path, length));
        }
        Ok(Self { driver, root, entries: entries.context("the index has no root")? })
    }
}

/// The version of an index, if it begins as this program begins one.
fn version(beginning: &[u8]) -> Option<u32> {
    let digits = beginning.strip_prefix(b"{\"schema\":")?;
    let length = digits.iter().position(|byte| !byte.is_ascii_digit())?;
    std::str::from_utf8(&digits[..length]).ok()?.parse().ok()
}

/// Reads a line, if there is another.
fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> Result<bool> {
    line.clear();
    from.take(LINE_LIMIT).read_until(b'\n', line)?;
    ensure!(line.is_empty() || line.ends_with(b"\n"), "a line of it has no end");
    Ok(!line.is_empty())
}

/// Whether an extended attribute is the overlay's own, and neither kept nor set.
pub(super) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

impl<C> Index<C> {
    /// Checks everything that does not depend on where content is. Who wrote the index is not
    /// trusted: what passes can be walked, joined to paths and looked up without another thought.
    pub(super) fn check(&self) -> Result<()> {
        let mut walk = self.entries.walk();
        while let Some((path, entry)) = walk.next() {
            let checked = match path {
                Id::ROOT if matches!(entry.kind, Kind::Dir { .. }) => entry.meta.check(),
                Id::ROOT => bail!("the root in the index is no directory"),
                path => self.check_entry(path, entry),
            };
            checked.with_context(|| format!("checking {} in the index", shown(walk.path())))?;
        }
        Ok(())
    }

    fn check_entry(&self, path: Id, entry: &Entry<C>) -> Result<()> {
        let parent = self.entries.value(self.entries.parent(path));
        let in_dir = parent.is_some_and(|parent| matches!(parent.kind, Kind::Dir { .. }));
        ensure!(in_dir, "what holds it is no directory");
        match &entry.kind {
            Kind::Link { to } => {
                let first = self.entries.value(*to).context("it links to nothing")?;
                if matches!(first.kind, Kind::Dir { .. } | Kind::Link { .. } | Kind::Whiteout) {
                    bail!("it links to what cannot have two names");
                }
            }
            Kind::Symlink { target } => {
                let target = target.as_bytes();
                ensure!(!target.is_empty() && target.len() < 4096, "its target has a bad length");
                ensure!(!target.contains(&0), "its target has a NUL byte");
            }
            Kind::Char(device) | Kind::Block(device) => {
                let is_one = device.major < 1 << 12 && device.minor < 1 << 20;
                ensure!(is_one, "it is no device of Linux");
            }
            Kind::File { size, .. } => ensure!(*size <= i64::MAX as u64, "it is too large"),
            Kind::Dir { .. } | Kind::Fifo | Kind::Socket | Kind::Whiteout => {}
        }
        entry.meta.check()
    }
}

impl Meta {
    fn check(&self) -> Result<()> {
        ensure!(self.mode & !0o7777 == 0, "its mode has more than permissions");
        ensure!(self.uid != u32::MAX && self.gid != u32::MAX, "its owner is no owner");
        ensure!(
            self.mtime.nanoseconds < 1_000_000_000,
            "its time has more than a second of nanoseconds"
        );
        let all = self.xattrs.iter().map(|(n, v)| n.as_bytes().len() + v.as_bytes().len());
        limits::ensure(Limit::Attributes, all.sum::<usize>() as u64, "its attributes take")?;
        for (name, value) in &self.xattrs {
            let (name, value) = (name.as_bytes(), value.as_bytes());
            ensure!(!is_overlay_xattr(name), "it has an attribute of the overlay");
            ensure!(
                (1..=XATTR_NAME_LIMIT).contains(&name.len()) && !name.contains(&0),
                "the name of an attribute is no name"
            );
            ensure!(value.len() <= XATTR_LIMIT, "an attribute is longer than {XATTR_LIMIT} bytes");
        }
        Ok(())
    }
}

impl Index<Content> {
    /// Reads an index that anybody may have made, of layers with these lengths.
    ///
    /// # Errors
    /// When it is none, or says what no index of ours can say.
    pub fn checked(from: impl Read, layers: &[u64]) -> Result<Self> {
        let index = Self::read(from)?;
        index.check_all(layers)?;
        Ok(index)
    }

    /// Checks everything in it.
    pub(super) fn check_all(&self, layers: &[u64]) -> Result<()> {
        self.check()?;
        self.check_content(layers)
    }

    /// Checks where content is against the lengths of the layers.
    pub(super) fn check_content(&self, layers: &[u64]) -> Result<()> {
        for (path, entry) in self.entries.walk() {
            if let Kind::File { size, content } = &entry.kind {
                let context =
                    || format!("checking {} in the index", shown(&self.entries.path(path)));
                check_content(*size, content, layers).with_context(context)?;
            }
        }
        Ok(())
    }
}

/// Checks where the content of a file is against the lengths of the layers.
pub(super) fn check_content(size: u64, content: &Content, layers: &[u64]) -> Result<()> {
    if content.length == 0 {
        ensure!(content.map.is_empty(), "it maps bytes that it has not");
        return Ok(());
    }
    let layer = layers.get(content.layer as usize).context("its layer is not there")?;
    let end = content.offset.checked_add(content.length);
    ensure!(end.is_some_and(|end| end <= *layer), "its bytes lie beyond the end of the layer");
    if content.map.is_empty() {
        ensure!(content.length == size, "its bytes are not as many as its length");
        return Ok(());
    }
    ensure!(content.map.len() <= EXTENT_LIMIT, "it has too many holes");
    let (mut at, mut stored) = (0_u64, 0_u64);
    for extent in &content.map {
        let end = extent.checked_end().context("an extent has no end")?;
        let is_next = extent.offset >= at && extent.length > 0 && end <= size;
        ensure!(is_next, "its extents are out of order");
        (at, stored) = (end, stored + extent.length);
    }
    ensure!(stored == content.length, "its extents are not as long as its bytes");
    Ok(())
}

//! The index: everything about a part but the bytes of its files.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::identity::{Form, RootIdentity};
use super::{shown, split};
use crate::bytes::ByteString;
use crate::sys::fs::check_path;

/// The version of the index that this program writes and reads.
pub(super) const SCHEMA: u32 = 1;
/// More bytes than this no path may have: a chain of directories costs the square of its depth.
pub(super) const PATH_LIMIT: usize = 32 << 10;
/// Stretches of data that one file may be cut into by its holes.
pub(super) const STRETCH_LIMIT: usize = 1 << 14;
/// Linux's XATTR_SIZE_MAX and XATTR_NAME_MAX.
const XATTR_LIMIT: usize = 64 << 10;
const XATTR_NAME_LIMIT: usize = 255;
/// Layers of one part; whoever comes near starts again with a full one.
pub(super) const LAYER_LIMIT: usize = 1000;

/// Everything about a part at the instant of its snapshot. `C` says where content is.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Index<C = Content> {
    /// The version of this format.
    pub schema: u32,
    /// What the entries are relative to.
    pub driver: Form,
    /// The root that the snapshot was taken of.
    pub root: RootIdentity,
    /// Every path, relative to the root, in the order of its bytes; the root itself is empty.
    pub entries: BTreeMap<ByteString, Entry<C>>,
}

/// One path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry<C = Content> {
    /// What it is.
    pub kind: Kind<C>,
    /// Its attributes; nothing for a link to another path and for a whiteout.
    #[serde(default, skip_serializing_if = "Meta::is_nothing")]
    pub meta: Meta,
    /// What stat(2) said, if the same answer later proves the file unchanged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<Fingerprint>,
}

/// What a path is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind<C = Content> {
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
    /// A further name of the inode that an earlier path names first.
    Link {
        /// That path.
        to: ByteString,
    },
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    Block {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// The name of a socket.
    Socket,
    /// Nothing, where a lower layer has something.
    Whiteout,
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
    /// Offset and length in the file of each stretch, one after the other in the layer; the rest is
    /// zeros. Empty: one stretch, the whole file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub map: Vec<(u64, u64)>,
    /// BLAKE3 of the stored bytes.
    pub digest: String,
}

impl Content {
    /// The stretches, spelt out.
    pub fn stretches(&self) -> Vec<(u64, u64)> {
        match (self.map.is_empty(), self.length) {
            (true, 0) => Vec::new(),
            (true, length) => vec![(0, length)],
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
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub xattrs: BTreeMap<ByteString, ByteString>,
}

impl Meta {
    fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// A point in time: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time(pub i64, pub u32);

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
    /// The paths directly in directory `path`, with their last names.
    pub fn children<'a>(
        &'a self,
        path: &'a [u8],
    ) -> impl Iterator<Item = (&'a [u8], &'a Entry<C>)> + 'a {
        Children { index: self, parent: path, after: None }
    }

    /// The entry of a path.
    pub fn get(&self, path: &[u8]) -> Option<&Entry<C>> {
        self.entries.get(&ByteString::from(path))
    }

    /// The entry that has the attributes and content of `path`: the first name of a hard link.
    pub fn inode<'a>(&'a self, path: &'a [u8]) -> Option<(&'a [u8], &'a Entry<C>)> {
        match self.get(path)? {
            Entry { kind: Kind::Link { to }, .. } => {
                Some((to.as_bytes(), self.get(to.as_bytes())?))
            }
            entry => Some((path, entry)),
        }
    }
}

/// Steps over the children of a directory in the ordered map, jumping over their subtrees.
struct Children<'a, C> {
    index: &'a Index<C>,
    parent: &'a [u8],
    after: Option<Vec<u8>>,
}

impl<'a, C> Iterator for Children<'a, C> {
    type Item = (&'a [u8], &'a Entry<C>);

    fn next(&mut self) -> Option<Self::Item> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let prefix = if self.parent.is_empty() { 0 } else { self.parent.len() + 1 };
        loop {
            let from = match self.after.take() {
                Some(after) => Included(ByteString::from(after)),
                None if prefix == 0 => Excluded(ByteString::default()),
                None => Included(ByteString::from([self.parent, b"/"].concat())),
            };
            let (path, entry) = self.index.entries.range((from, Unbounded)).next()?;
            let path = path.as_bytes();
            if prefix > 0 && !(path.starts_with(self.parent) && path.get(prefix - 1) == Some(&b'/'))
            {
                return None;
            }
            let name = &path[prefix..];
            if let Some(slash) = name.iter().position(|byte| *byte == b'/') {
                // Below a child already seen: `child0` is the first path after all `child/…`.
                self.after = Some([&path[..prefix + slash], b"0"].concat());
                continue;
            }
            self.after = Some([path, b"\0"].concat());
            return Some((name, entry));
        }
    }
}

/// Whether an extended attribute is the overlay's own, and neither kept nor set.
pub(super) fn is_overlay_xattr(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

impl<C> Index<C> {
    /// Checks everything that does not depend on where content is. Who wrote the index is not
    /// trusted: what passes can be walked, joined to paths and looked up without another thought.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            self.schema == SCHEMA,
            "the index has version {}, this program reads version {SCHEMA}",
            self.schema
        );
        let root = self.get(b"").context("the index has no root")?;
        ensure!(matches!(root.kind, Kind::Dir { .. }), "the root in the index is no directory");
        for (path, entry) in &self.entries {
            self.check_entry(path.as_bytes(), entry)
                .with_context(|| format!("checking {} in the index", shown(path.as_bytes())))?;
        }
        Ok(())
    }

    fn check_entry(&self, path: &[u8], entry: &Entry<C>) -> Result<()> {
        check_path(path)?;
        ensure!(path.len() <= PATH_LIMIT, "the path is longer than {PATH_LIMIT} bytes");
        if let Some((parent, _)) = split(path) {
            let parent = self.get(parent).context("its directory is not in the index")?;
            ensure!(matches!(parent.kind, Kind::Dir { .. }), "what holds it is no directory");
        }
        match &entry.kind {
            Kind::Link { to } => {
                let first = self.get(to.as_bytes()).context("it links to nothing")?;
                if matches!(first.kind, Kind::Dir { .. } | Kind::Link { .. } | Kind::Whiteout) {
                    bail!("it links to what cannot have two names");
                }
                ensure!(to.as_bytes() < path, "it links to a later path");
            }
            Kind::Symlink { target } => {
                let target = target.as_bytes();
                ensure!(!target.is_empty() && target.len() < 4096, "its target has a bad length");
                ensure!(!target.contains(&0), "its target has a NUL byte");
            }
            Kind::Char { major, minor } | Kind::Block { major, minor } => {
                ensure!(*major < 1 << 12 && *minor < 1 << 20, "it is no device of Linux");
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
        ensure!(self.mtime.1 < 1_000_000_000, "its time has more than a second of nanoseconds");
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
    /// Checks where content is against the lengths of the layers.
    pub(super) fn check_content(&self, layers: &[u64]) -> Result<()> {
        for (path, entry) in &self.entries {
            if let Kind::File { size, content } = &entry.kind {
                check_content(*size, content, layers)
                    .with_context(|| format!("checking {} in the index", shown(path.as_bytes())))?;
            }
        }
        Ok(())
    }
}

/// Checks where the content of a file is against the lengths of the layers.
pub(super) fn check_content(size: u64, content: &Content, layers: &[u64]) -> Result<()> {
    let digest = &content.digest;
    ensure!(digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()), "no digest");
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
    ensure!(content.map.len() <= STRETCH_LIMIT, "it has too many holes");
    let (mut at, mut stored) = (0_u64, 0_u64);
    for (start, length) in &content.map {
        let end = start.checked_add(*length).context("a stretch has no end")?;
        ensure!(*start >= at && *length > 0 && end <= size, "its stretches are out of order");
        (at, stored) = (end, stored + length);
    }
    ensure!(stored == content.length, "its stretches are not as long as its bytes");
    Ok(())
}

//! The staging directory of a part: what is on disk between a snapshot and its pack.

use std::collections::{BTreeMap, HashMap};
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::attributes::{Found, Shape};
use super::copy::BUFFER;
use super::index::{Content, Entry, Fingerprint, Index, Kind, Meta};
use super::part::PackedPart;
use super::shown;
use super::walk::{Seen, Tree};
use crate::bytes::ByteString;
use crate::digest::FileRecord;
use crate::sys::directory::Directory;

pub(super) const STAGED_INDEX: &str = "index.json";
pub(super) const STAGED_BASE: &str = "base.json";
pub(super) const BLOBS: &str = "blobs";

/// Where the content of a file is while it is staged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum StagedContent {
    /// There is none.
    Empty,
    /// In the blob of this number.
    Blob(u64),
    /// Unchanged in the part that this one is based on.
    Base(Content),
    /// Under the file's own name in the snapshot that a driver holds.
    Held,
}

/// What staging keeps of the part that this one is based on.
#[derive(Serialize, Deserialize)]
pub(super) struct Base {
    pub layers: Vec<FileRecord>,
    pub index: Index,
}

/// Turns a walk into index entries: names of one inode become links to the first. `content` says where
/// the content of a file is, and what proves that it is unchanged later.
pub(super) fn entries(
    tree: Tree,
    content: impl Fn(&Found) -> Result<(StagedContent, Option<Fingerprint>)>,
) -> Result<BTreeMap<ByteString, Entry<StagedContent>>> {
    let mut first: HashMap<(u64, u64), ByteString> = HashMap::new();
    let mut entries = BTreeMap::new();
    for (path, seen) in tree {
        let Seen::Inode { found, opaque, .. } = seen else {
            let entry = Entry { kind: Kind::Whiteout, meta: Meta::default(), identity: None };
            entries.insert(path, entry);
            continue;
        };
        let shares = found.shape != Shape::Dir && found.names > 1;
        if let (true, Some(to)) = (shares, first.get(&found.inode())) {
            let kind = Kind::Link { to: to.clone() };
            entries.insert(path, Entry { kind, meta: Meta::default(), identity: None });
            continue;
        }
        if shares {
            first.insert(found.inode(), path.clone());
        }
        let entry = entry(found, opaque, &content)
            .with_context(|| format!("recording {}", shown(path.as_bytes())))?;
        entries.insert(path, entry);
    }
    Ok(entries)
}

fn entry(
    found: Found,
    opaque: bool,
    content: impl Fn(&Found) -> Result<(StagedContent, Option<Fingerprint>)>,
) -> Result<Entry<StagedContent>> {
    let mut trusted = None;
    let kind = match &found.shape {
        Shape::Dir => Kind::Dir { opaque },
        Shape::Symlink(target) => Kind::Symlink { target: target.clone().into() },
        Shape::Char(major, minor) => Kind::Char { major: *major, minor: *minor },
        Shape::Block(major, minor) => Kind::Block { major: *major, minor: *minor },
        Shape::Fifo => Kind::Fifo,
        Shape::Socket => Kind::Socket,
        Shape::File => {
            let (content, identity) = content(&found)?;
            trusted = identity;
            Kind::File { size: found.identity.size, content }
        }
    };
    Ok(Entry { kind, meta: found.meta, identity: trusted })
}

/// Files of a snapshot whose identity counts, by inode number.
pub(super) fn known_content(index: &Index) -> HashMap<u64, (Fingerprint, Content)> {
    let known = |entry: &Entry| match (&entry.kind, &entry.identity) {
        (Kind::File { content, .. }, Some(id)) => Some((id.ino, (id.clone(), content.clone()))),
        _ => None,
    };
    index.entries.values().filter_map(known).collect()
}

/// Notes in a staging directory what the snapshot in it is based on.
pub(super) fn write_base(staging: &Path, base: Option<&PackedPart>) -> Result<()> {
    let Some(base) = base else { return Ok(()) };
    let base = Base { layers: base.record().layers.clone(), index: base.index().clone() };
    write_json(staging, STAGED_BASE, &base)
}

/// Writes a JSON file whole, or not at all.
pub(super) fn write_json<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<()> {
    let write = || -> Result<()> {
        let directory = Directory::open(dir)?;
        let (file, new) = directory.begin(name)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        serde_json::to_writer(&mut file, value)?;
        file.flush()?;
        Ok(new.finish()?)
    };
    write().with_context(|| format!("writing {}", dir.join(name).display()))
}

/// Reads a JSON file that [`write_json`] wrote, or somebody in its name; `None` if there is none.
pub(super) fn read_json<T: for<'de> Deserialize<'de>>(
    dir: &Directory,
    name: &str,
) -> Result<Option<T>> {
    let read = || -> Result<Option<T>> {
        let Some(file) = dir.file(name)? else { return Ok(None) };
        Ok(Some(serde_json::from_reader(BufReader::with_capacity(BUFFER, file))?))
    };
    read().with_context(|| format!("reading {}", dir.path().join(name).display()))
}

//! The staging directory of a part: what is on disk between a snapshot and its pack.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, Result};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::BUFFER;
use super::attributes::Found;
use super::index::Old;
use super::index::{Content, Entry, Fingerprint, Index, Kind, Meta};
use super::part::PackedPart;
use super::paths::{Id, Paths};
use super::shown;
use super::walk::{Seen, Tree};
use crate::digest::FileRecord;
use crate::limits::{self, Limit};
use crate::sys::directory::Directory;
use crate::sys::inode::DevIno;

pub(super) const STAGED_INDEX: &str = "index.json";
pub(super) const STAGED_BASE: &str = "base.json";
const STAGED_BASE_INDEX: &str = "base-index.json";
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
    Base(Box<Content>),
    /// Under the file's own name in the snapshot that a driver holds.
    Held,
}

/// What staging keeps of the part that this one is based on.
pub(super) struct Base {
    pub layers: Vec<FileRecord>,
    pub index: Index,
}

#[derive(Serialize)]
struct BaseRecord<'a> {
    layers: &'a [FileRecord],
}

/// The same, as it is read: formerly the index was in it.
#[derive(Deserialize)]
struct ReadBaseRecord {
    layers: Vec<FileRecord>,
    #[serde(default)]
    index: Option<Old<Content>>,
}

/// Turns a walk into index entries: names of one inode become links to the first. `content` says where
/// the content of a file is, and what proves that it is unchanged later; `take` gets each with its
/// depth and name.
pub(super) fn entries(
    tree: &Tree,
    content: impl Fn(&Found) -> Result<(StagedContent, Option<Fingerprint>)>,
    mut take: impl FnMut(usize, &[u8], Entry<StagedContent>) -> Result<()>,
) -> Result<()> {
    let mut first: HashMap<DevIno, Id> = HashMap::new();
    let mut walk = tree.walk();
    let mut number = 0;
    while let Some((path, seen)) = walk.next() {
        let entry = match seen {
            Seen::Whiteout => nothing_but(Kind::Whiteout),
            Seen::Inode { found, opaque, .. } => {
                let shares = !found.kind.is_dir() && found.names > 1;
                match first.get(&found.inode()) {
                    Some(to) if shares => nothing_but(Kind::Link { to: *to }),
                    _ => {
                        if shares {
                            first.insert(found.inode(), Id::nth(number));
                        }
                        entry(found, *opaque, &content)
                            .with_context(|| format!("recording {}", shown(walk.path())))?
                    }
                }
            }
        };
        take(walk.depth(), tree.name(path), entry)?;
        number += 1;
    }
    Ok(())
}

/// An entry without attributes.
fn nothing_but(kind: Kind<StagedContent>) -> Entry<StagedContent> {
    Entry { kind, meta: Meta::default(), identity: None }
}

/// The same entries as a map.
pub(super) fn as_paths(
    tree: &Tree,
    content: impl Fn(&Found) -> Result<(StagedContent, Option<Fingerprint>)>,
) -> Result<Paths<Entry<StagedContent>>> {
    let mut paths: Option<Paths<Entry<StagedContent>>> = None;
    let mut way = vec![Id::ROOT];
    entries(tree, content, |depth, name, entry| {
        let Some(paths) = &mut paths else {
            paths = Some(Paths::new(entry));
            return Ok(());
        };
        way.truncate(depth);
        way.push(paths.push(way[depth - 1], name, entry)?);
        Ok(())
    })?;
    paths.context("a walk has no root")
}

fn entry(
    found: &Found,
    opaque: bool,
    content: impl Fn(&Found) -> Result<(StagedContent, Option<Fingerprint>)>,
) -> Result<Entry<StagedContent>> {
    let (content, trusted) = match found.kind.is_file() {
        true => content(found)?,
        false => (StagedContent::Empty, None),
    };
    let kind = found.kind.clone().map_file(|()| (found.identity.size, content));
    let kind = Kind::of_inode(kind, opaque);
    Ok(Entry { kind, meta: found.meta.clone(), identity: trusted })
}

/// Files of a snapshot whose identity counts, by inode number.
pub(super) fn known_content(index: &Index) -> HashMap<u64, Id> {
    let known = |(path, entry): (Id, &Entry)| match (&entry.kind, &entry.identity) {
        (Kind::File { .. }, Some(identity)) => Some((identity.ino, path)),
        _ => None,
    };
    index.entries.walk().filter_map(known).collect()
}

/// What an inode has, if a snapshot has it.
pub(super) fn content_of<'a>(
    index: &'a Index,
    known: &HashMap<u64, Id>,
    identity: &Fingerprint,
) -> Option<&'a Content> {
    let entry = index.entries.value(*known.get(&identity.ino)?)?;
    match &entry.kind {
        Kind::File { content, .. } if entry.identity.as_ref() == Some(identity) => Some(content),
        _ => None,
    }
}

/// Notes in a staging directory what the snapshot in it is based on.
pub(super) fn write_base(staging: &Path, base: Option<&PackedPart>) -> Result<()> {
    let layers = base.map_or(0, |base| base.record().layers.len());
    limits::ensure(Limit::Layers, layers as u64 + 1, "its layers would be")?;
    let Some(base) = base else { return Ok(()) };
    let layers = &base.record().layers;
    write_json(staging, STAGED_BASE, &BaseRecord { layers })?;
    write_whole(staging, STAGED_BASE_INDEX, |file| base.index().write(file))
}

/// Reads what is noted there.
pub(super) fn read_base(staging: &Directory) -> Result<Option<Base>> {
    let Some(record) = read_json::<ReadBaseRecord>(staging, STAGED_BASE)? else { return Ok(None) };
    let index = match record.index {
        Some(index) => index.into_index()?,
        None => read_index(staging, STAGED_BASE_INDEX)?.context("the index of the base is gone")?,
    };
    Ok(Some(Base { layers: record.layers, index }))
}

/// Writes a JSON file whole, or not at all.
pub(super) fn write_json<T: Serialize>(dir: &Path, name: &str, value: &T) -> Result<()> {
    write_whole(dir, name, |file| Ok(serde_json::to_writer(file, value)?))
}

/// Writes a file whole, or not at all.
pub(super) fn write_whole(
    dir: &Path,
    name: &str,
    content: impl FnOnce(&mut BufWriter<File>) -> Result<()>,
) -> Result<()> {
    let write = || -> Result<()> {
        let directory = Directory::open(dir)?;
        let (file, new) = directory.begin(name)?;
        let mut file = BufWriter::with_capacity(BUFFER, file);
        content(&mut file)?;
        file.flush()?;
        Ok(new.finish()?)
    };
    write().with_context(|| format!("writing {}", dir.join(name).display()))
}

/// Reads an index from staging; `None` if there is none.
pub(super) fn read_index<C: DeserializeOwned>(
    dir: &Directory,
    name: &str,
) -> Result<Option<Index<C>>> {
    let read = || dir.file(name)?.map(Index::read).transpose();
    read().with_context(|| format!("reading {}", dir.path().join(name).display()))
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

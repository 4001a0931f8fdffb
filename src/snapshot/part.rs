//! A packed part, opened for reading. Everything in it is checked first.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};

use super::BUFFER;
use super::identity::Form;
use super::index::{Content, Digest, Entry, Index, Kind};
use super::layer::LayerReader;
use super::packed::PackedFiles;
use super::paths::Id;
use super::{Progress, shown};
use crate::digest::FileRecord;
use crate::limits::{self, Limit};
use crate::sys::directory::Directory;

/// An index larger than this is refused.
const INDEX_LIMIT: u64 = 2 << 30;

/// A packed part.
pub struct PackedPart {
    record: PackedFiles,
    index: Arc<Index>,
    layers: Vec<LayerReader>,
}

/// The longest chain of layers that a new version is added to.
const CHAIN_LIMIT: usize = 64;

/// What a path takes in a layer beside its content: headers and padding, about.
const MEMBER: u64 = 2 << 10;

/// Bytes of layers that are of no account.
const SLACK: u64 = 1 << 20;

fn is_worth(layers: usize, stored: u64, present: u64) -> bool {
    layers < CHAIN_LIMIT && stored <= present.saturating_mul(2).saturating_add(SLACK)
}

/// What a part knows about a path.
#[derive(Debug)]
pub enum Lookup<'a> {
    /// It was there, like this: for a hard link, the entry of its inode.
    Present(&'a Entry),
    /// It was not there.
    Absent,
    /// It was as the layers below show it.
    Below,
}

impl PackedPart {
    /// Opens the part that `record` names in the directory `dir`, and checks its index.
    ///
    /// Content is checked when it is read; [`Self::verify`] checks all of it.
    pub fn open(dir: &Path, record: &PackedFiles) -> Result<Self> {
        let directory =
            Directory::open(dir).with_context(|| format!("opening {}", dir.display()))?;
        ensure!(!record.layers.is_empty(), "the part has no layer");
        limits::ensure(Limit::Layers, record.layers.len() as u64, "its layers are")?;
        let index = open_index(&directory, &record.index)
            .with_context(|| format!("reading {}", record.index.name))?;
        let layers = record
            .layers
            .iter()
            .map(|layer| {
                open_file(&directory, layer)
                    .and_then(|file| LayerReader::open(file, &layer.name))
                    .with_context(|| format!("opening {}", layer.name))
            })
            .collect::<Result<Vec<_>>>()?;
        let sizes: Vec<u64> = layers.iter().map(LayerReader::length).collect();
        index.check_all(&sizes).with_context(|| format!("reading {}", record.index.name))?;
        Ok(Self { record: record.clone(), index: Arc::new(index), layers })
    }

    /// The files it is made of.
    pub fn record(&self) -> &PackedFiles {
        &self.record
    }

    /// Whether a later snapshot shall refer to the layers of this one. All of them stay as long as
    /// one version names them: a chain that is long, or holds more that is past than present, is
    /// worth less than a new beginning.
    pub fn is_worth_building_on(&self) -> bool {
        let stored = self.layers.iter().map(LayerReader::length).sum();
        let present = |entry: &Entry| match &entry.kind {
            Kind::File { content, .. } => content.length + MEMBER,
            _ => MEMBER,
        };
        is_worth(self.layers.len(), stored, self.index.entries.values().map(present).sum())
    }

    /// Everything but content.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// The same, to be kept.
    pub(super) fn shared_index(&self) -> Arc<Index> {
        self.index.clone()
    }

    /// What a path, relative to the root and without `.` and `..`, was.
    pub fn lookup(&self, path: &[u8]) -> Lookup<'_> {
        let entries = &self.index.entries;
        let below = match self.index.driver {
            Form::Directory => Lookup::Absent,
            Form::Overlay => Lookup::Below,
        };
        let (mut at, mut is_covered) = (Id::ROOT, false);
        for name in path.split(|byte| *byte == b'/').filter(|name| !name.is_empty()) {
            match entries.value(at).map(|entry| &entry.kind) {
                Some(Kind::Dir { opaque }) => is_covered |= *opaque,
                _ => return Lookup::Absent,
            }
            match entries.child(at, name) {
                Some(child) => at = child,
                None if is_covered => return Lookup::Absent,
                None => return below,
            }
        }
        match self.index.inode(at) {
            None | Some((_, Entry { kind: Kind::Whiteout, .. })) => Lookup::Absent,
            Some((_, entry)) => Lookup::Present(entry),
        }
    }

    /// The content of a regular file, which must have at most `limit` bytes.
    pub fn read(&self, path: &[u8], limit: u64) -> Result<Vec<u8>> {
        let read = || -> Result<Vec<u8>> {
            let Lookup::Present(Entry { kind: Kind::File { size, content }, .. }) =
                self.lookup(path)
            else {
                bail!("it is no regular file of the snapshot");
            };
            ensure!(*size <= limit, "it is longer than {limit} bytes");
            let mut bytes = vec![0; *size as usize];
            self.stored(content, |at, stored| {
                let at = at as usize;
                bytes[at..at + stored.len()].copy_from_slice(stored);
                Ok(())
            })?;
            Ok(bytes)
        };
        read().with_context(|| format!("reading {} of the snapshot", shown(path)))
    }

    /// Hands out the stored bytes of a file, with the offset in the file of each piece, and fails
    /// at the end if they are not what was stored.
    pub(super) fn stored(
        &self,
        content: &Content,
        mut take: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let mut hash = blake3::Hasher::new();
        let mut from = content.offset;
        for extent in content.extents() {
            let mut at = extent.offset;
            while at < extent.end() {
                let piece = self
                    .layer(content)?
                    .piece(from, extent.end() - at)
                    .with_context(|| format!("reading {}", self.layer_name(content)))?;
                hash.update(&piece);
                take(at, &piece)?;
                at += piece.len() as u64;
                from += piece.len() as u64;
            }
        }
        ensure!(
            Digest::of(&hash) == content.digest,
            "its bytes in {} are not those that were stored",
            self.layer_name(content)
        );
        Ok(())
    }

    /// The digest of all bytes of a file, those of its holes too.
    pub(super) fn digest_with_holes(&self, content: &Content, size: u64) -> Result<String> {
        let mut hash = blake3::Hasher::new();
        let mut end = 0;
        self.stored(content, |start, bytes| {
            hash.update_reader(std::io::repeat(0).take(start - end))?;
            hash.update(bytes);
            end = start + bytes.len() as u64;
            Ok(())
        })?;
        hash.update_reader(std::io::repeat(0).take(size.saturating_sub(end)))?;
        Ok(hash.finalize().to_hex().to_string())
    }

    /// Reads stored bytes as they are, unchecked.
    pub(super) fn read_stored(
        &self,
        content: &Content,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<()> {
        self.layer(content)?
            .read_exact_at(buffer, offset)
            .with_context(|| format!("reading {}", self.layer_name(content)))
    }

    fn layer(&self, content: &Content) -> Result<&LayerReader> {
        self.layers.get(content.layer as usize).context("its layer is not there")
    }

    fn layer_name(&self, content: &Content) -> &str {
        self.record.layers.get(content.layer as usize).map_or("", |layer| &layer.name)
    }

    /// Reads all layers and compares them with their digests.
    pub fn verify(&self, progress: &dyn Progress) -> Result<()> {
        progress.expect(self.record.layers.iter().map(|layer| layer.size).sum());
        for (record, layer) in self.record.layers.iter().zip(&self.layers) {
            let mut hash = blake3::Hasher::new();
            let mut buffer = vec![0; BUFFER];
            let mut at = 0;
            while at < record.size {
                let want = buffer.len().min((record.size - at) as usize);
                layer
                    .file()
                    .read_exact_at(&mut buffer[..want], at)
                    .with_context(|| format!("reading {}", record.name))?;
                hash.update(&buffer[..want]);
                at += want as u64;
                progress.advance(want as u64);
            }
            ensure!(
                *hash.finalize().to_hex() == *record.blake3,
                "{} is not the file that was written",
                record.name
            );
        }
        Ok(())
    }
}

/// Opens a file of a part: it is a file, of the length on record.
pub(super) fn open_file(dir: &Directory, record: &FileRecord) -> Result<File> {
    let file = dir.file(&record.name)?.context("it is missing")?;
    let now = file.metadata()?;
    ensure!(
        now.len() == record.size,
        "it has {} bytes, the manifest says {}",
        now.len(),
        record.size
    );
    Ok(file)
}

fn open_index(dir: &Directory, record: &FileRecord) -> Result<Index> {
    ensure!(record.size <= INDEX_LIMIT, "it is larger than {INDEX_LIMIT} bytes");
    let file = open_file(dir, record)?;
    let mut hashing = Hashing { from: file.take(record.size), hash: blake3::Hasher::new() };
    let index = Index::read(&mut hashing);
    // Whatever it says, if it is another file.
    io::copy(&mut hashing, &mut io::sink())?;
    ensure!(
        *hashing.hash.finalize().to_hex() == *record.blake3,
        "it is not the file that was written"
    );
    index
}

/// Hashes what is read.
struct Hashing<R> {
    from: R,
    hash: blake3::Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_not_built_on_for_ever() {
        assert!(is_worth(1, 500 << 20, 400 << 20));
        assert!(is_worth(3, SLACK, 0));
        assert!(!is_worth(CHAIN_LIMIT, 500 << 20, 400 << 20));
        assert!(!is_worth(3, 900 << 20, 400 << 20));
    }
}

//! Turns staging into a layer tar and the index.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use super::copy::{BUFFER, stretches};
use super::driver::{DriverSnapshot, HeldContent};
use super::index::{Content, Entry, Index, Kind, LAYER_LIMIT, Meta, check_content};
use super::layer::{self, Compression, Reader};
use super::packed::PackedFiles;
use super::part::open_file;
use super::staging::{BLOBS, Base, STAGED_BASE, STAGED_INDEX, StagedContent, read_json};
use super::tar::{Member, TarWriter, is_sparse};
use super::{Progress, join, shown, split};
use crate::digest::FileRecord;
use crate::hint::{DAMAGED, WithHint};
use crate::sys::direct::DirectStream;
use crate::sys::directory::Directory;
use crate::sys::fs;

/// What becomes of staging while it is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Staging {
    /// It is only read: whoever finds a pack that was cut short calls this again.
    Kept,
    /// What is packed is removed at once: it takes no room twice, and has not to reach the disk.
    Consumed,
}

/// Packs a sealed staging directory into `out`: `ocicle-PREFIX.N.tar.zst`, or `.tar` if it is not to
/// be compressed, and `ocicle-PREFIX.index.json`.
///
/// Files get their names when they are whole and on disk. The layers of the base must be in `out`
/// already. The directory itself is the caller's to fsync.
pub fn pack(
    staging: &Directory,
    out: &Directory,
    prefix: &str,
    compression: Compression,
    fate: Staging,
    progress: &dyn Progress,
) -> Result<PackedFiles> {
    let base: Option<Base> = read_json(staging, STAGED_BASE)?;
    let (staged, held) = match DriverSnapshot::read(staging)? {
        Some(held) => held.index(base.as_ref()).map(|(index, content)| (index, Some(content)))?,
        None => {
            let staged = read_json(staging, STAGED_INDEX)?;
            (staged.with_context(|| format!("finding {STAGED_INDEX}"))?, None)
        }
    };
    let blobs = staging.sub(BLOBS).context("opening what is staged")?;
    let is_consumed = fate == Staging::Consumed;
    let packer = Packer { held, is_consumed, ..Packer::new(&staged, base.as_ref(), blobs, out)? };
    packer
        .run(prefix, compression, progress)
        .with_context(|| format!("packing {}", staging.path().display()))
}

struct Packer<'a> {
    staged: &'a Index<StagedContent>,
    base: Option<&'a Base>,
    base_layers: Vec<Reader>,
    /// None where nothing was staged.
    blobs: Option<Directory>,
    is_consumed: bool,
    /// The snapshot that content is in which is not in staging.
    held: Option<HeldContent>,
    out: &'a Directory,
    /// The names of each inode that has several, by the first.
    names: HashMap<&'a [u8], BTreeSet<&'a [u8]>>,
    base_names: HashMap<&'a [u8], BTreeSet<&'a [u8]>>,
}

/// The content of a file before it is written.
struct Source<'a> {
    bytes: Bytes<'a>,
    /// Where its stored bytes are in there.
    runs: Vec<(u64, u64)>,
    /// Where they belong.
    stretches: Vec<(u64, u64)>,
    /// Where they are already, and need not be written for this file's sake.
    known: Option<Content>,
}

/// Where it is read.
enum Bytes<'a> {
    Nowhere,
    Blob(File),
    Base(&'a Reader),
}

type Layer = TarWriter<layer::LayerWriter<Hashing<DirectStream>>>;

impl<'a> Packer<'a> {
    fn new(
        staged: &'a Index<StagedContent>,
        base: Option<&'a Base>,
        blobs: Option<Directory>,
        out: &'a Directory,
    ) -> Result<Self> {
        ensure!(
            base.is_none_or(|base| base.layers.len() < LAYER_LIMIT),
            "the part has {LAYER_LIMIT} layers: take this snapshot without a base"
        );
        Ok(Self {
            staged,
            base,
            base_layers: base.map_or_else(|| Ok(Vec::new()), |base| open_layers(base, out))?,
            blobs,
            is_consumed: false,
            held: None,
            out,
            names: link_groups(staged),
            base_names: base.map(|base| link_groups(&base.index)).unwrap_or_default(),
        })
    }

    fn run(
        &self,
        prefix: &str,
        compression: Compression,
        progress: &dyn Progress,
    ) -> Result<PackedFiles> {
        let mut layers = self.base.map(|base| base.layers.clone()).unwrap_or_default();
        let name = format!("ocicle-{prefix}.{}.{}", layers.len(), compression.extension());
        let (file, new) = self.out.begin(&name).with_context(|| format!("creating {name}"))?;
        let hashing = Hashing { to: DirectStream::new(file), hash: blake3::Hasher::new() };
        let mut layer = TarWriter::new(layer::LayerWriter::new(hashing, compression));
        let number = layers.len() as u32;
        let contents = self
            .write_members(&mut layer, number, progress)
            .with_context(|| format!("writing {name}"))?;
        let size = layer.position();
        if size > 0 || layers.is_empty() {
            let hashing = layer.finish()?.finish()?;
            let blake3 = hashing.hash.finalize().to_hex().to_string();
            let on_disk = || -> io::Result<File> {
                let file = hashing.to.finish()?;
                file.sync_all()?;
                Ok(file)
            };
            let file = on_disk().with_context(|| format!("writing {name} to disk"))?;
            new.finish().with_context(|| format!("naming {name}"))?;
            layers.push(FileRecord { name, size: file.metadata()?.len(), blake3 });
        } else {
            drop(layer);
            drop(new);
        }
        let index = self.write_index(prefix, contents)?;
        Ok(PackedFiles { index, layers })
    }

    fn write_index(
        &self,
        prefix: &str,
        mut contents: HashMap<&[u8], Content>,
    ) -> Result<FileRecord> {
        let mut entries = BTreeMap::new();
        for (path, entry) in &self.staged.entries {
            let kind = match &entry.kind {
                Kind::File { size, .. } => {
                    let content = contents
                        .remove(path.as_bytes())
                        .with_context(|| format!("finding the content of {path}"))?;
                    Kind::File { size: *size, content }
                }
                kind => without_content(kind),
            };
            let entry = Entry { kind, meta: entry.meta.clone(), identity: entry.identity.clone() };
            entries.insert(path.clone(), entry);
        }
        let staged = self.staged;
        let index = Index {
            schema: staged.schema,
            driver: staged.driver,
            root: staged.root.clone(),
            entries,
        };
        let name = format!("ocicle-{prefix}.index.json");
        let write = || -> Result<FileRecord> {
            let (file, new) = self.out.begin(&name)?;
            let buffered = BufWriter::with_capacity(BUFFER, file);
            let mut hashing = Hashing { to: buffered, hash: blake3::Hasher::new() };
            serde_json::to_writer(&mut hashing, &index)?;
            hashing.write_all(b"\n")?;
            let blake3 = hashing.hash.finalize().to_hex().to_string();
            let file = hashing.to.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            new.finish()?;
            Ok(FileRecord { name: name.clone(), size: file.metadata()?.len(), blake3 })
        };
        write().with_context(|| format!("writing {name}"))
    }

    /// Writes what is new against the base, and tells where each file's content is.
    fn write_members(
        &self,
        layer: &mut Layer,
        number: u32,
        progress: &dyn Progress,
    ) -> Result<HashMap<&'a [u8], Content>> {
        let staged = |entry: &Entry<StagedContent>| match &entry.kind {
            Kind::File { size, content: StagedContent::Blob(_) | StagedContent::Held } => *size,
            _ => 0,
        };
        progress.expect(self.staged.entries.values().map(staged).sum());
        let mut contents = HashMap::new();
        // A directory that was something else in the base, or showed what is below, hides what
        // older layers have in it: everything in it is written again.
        let mut again: Vec<&[u8]> = Vec::new();
        self.write_removals(layer)?;
        for (path, entry) in &self.staged.entries {
            let path = path.as_bytes();
            while again.last().is_some_and(|dir| !is_below(path, dir)) {
                again.pop();
            }
            let forced = !again.is_empty();
            let written = self
                .write_entry(layer, number, path, entry, forced, &mut contents)
                .with_context(|| format!("writing {}", shown(path)))?;
            if written && self.is_new_dir(path, entry) {
                again.push(path);
            }
            progress.advance(staged(entry));
        }
        Ok(contents)
    }

    /// Whether a directory does not continue the same directory of the base.
    fn is_new_dir(&self, path: &[u8], entry: &Entry<StagedContent>) -> bool {
        let Kind::Dir { opaque } = entry.kind else { return false };
        let was = self.base.and_then(|base| base.index.get(path)).map(|entry| &entry.kind);
        match was {
            Some(Kind::Dir { opaque: was }) => opaque && !*was,
            _ => true,
        }
    }

    fn write_entry(
        &self,
        layer: &mut Layer,
        number: u32,
        path: &'a [u8],
        entry: &'a Entry<StagedContent>,
        forced: bool,
        contents: &mut HashMap<&'a [u8], Content>,
    ) -> Result<bool> {
        let first = match &entry.kind {
            Kind::Link { to } => to.as_bytes(),
            _ => path,
        };
        let Some(inode) = self.staged.get(first) else { return Ok(false) };
        if let Kind::File { size, content } = &inode.kind {
            if let Some(already) = contents.get(first) {
                // Another name: content is known, only the member may be missing.
                let is_new = already.layer == number && already.length > 0;
                let changed =
                    forced || is_new || self.is_changed(path, first, inode, Some(already));
                return self
                    .write_other(layer, path, first, inode, changed, false)
                    .map(|()| changed);
            }
            let source = self.source(first, *size, content)?;
            let changed = forced || self.is_changed(path, first, inode, source.known.as_ref());
            let content = if changed {
                let name = self.primary(first);
                self.write_file(layer, number, &name, *size, &inode.meta, source)?
            } else {
                source.known.context("finding unchanged content")?
            };
            contents.insert(first, content);
            self.consume(&inode.kind).context("removing what is packed")?;
            return Ok(changed);
        }
        let changed = forced || self.is_changed(path, first, inode, None);
        self.write_other(layer, path, first, inode, changed, first == path)?;
        Ok(changed)
    }

    /// Whether a member must be written: the base has not the very same at this path.
    fn is_changed(
        &self,
        path: &[u8],
        first: &[u8],
        inode: &Entry<StagedContent>,
        content: Option<&Content>,
    ) -> bool {
        let Some(base) = self.base else { return true };
        let Some((base_first, was)) = base.index.inode(path) else { return true };
        let same_kind = match (&was.kind, &inode.kind) {
            (Kind::File { content: was, .. }, Kind::File { .. }) => Some(was) == content,
            (Kind::File { .. }, _) | (_, Kind::File { .. }) => false,
            (was, is) => *was == without_content(is),
        };
        // Links of one layer to a file of another are not understood everywhere, so that a change
        // of one name writes them all.
        let same_names = base_first == first && self.base_names.get(first) == self.names.get(first);
        !(same_kind && same_names && was.meta == inode.meta)
    }

    /// Under which name an inode's bytes are in the tar. A name that a layer takes for a whiteout
    /// cannot stand there: readers of layers pass over `.wh..wh.` names.
    fn primary(&self, first: &[u8]) -> Vec<u8> {
        if !is_hidden(first) {
            return first.to_vec();
        }
        let visible = self.names.get(first).and_then(|n| n.iter().find(|n| !is_hidden(n)));
        visible.map_or_else(
            || {
                let digest = blake3::hash(first).to_hex();
                format!(".wh..wh.ocicle.{}", &digest[..32]).into_bytes()
            },
            |name| name.to_vec(),
        )
    }

    /// Writes anything but the content of a regular file.
    fn write_other(
        &self,
        layer: &mut Layer,
        path: &[u8],
        first: &[u8],
        inode: &Entry<StagedContent>,
        changed: bool,
        is_first: bool,
    ) -> Result<()> {
        if !changed || is_hidden(path) {
            return Ok(());
        }
        let primary = self.primary(first);
        let is_primary = if matches!(inode.kind, Kind::File { .. }) {
            primary == path
        } else {
            is_first || primary == path
        };
        let member = match &inode.kind {
            Kind::Socket => return Ok(()),
            // The content stands under this name already.
            Kind::File { .. } if is_primary => return Ok(()),
            Kind::Whiteout => return write_whiteout(layer, path),
            _ if !is_primary => Member::Link(&primary),
            Kind::Dir { .. } => Member::Dir,
            Kind::Symlink { target } => Member::Symlink(target.as_bytes()),
            Kind::Char { major, minor } => Member::Char(*major, *minor),
            Kind::Block { major, minor } => Member::Block(*major, *minor),
            Kind::Fifo => Member::Fifo,
            Kind::File { .. } | Kind::Link { .. } => return Ok(()),
        };
        // The root's own attributes are those of `./`.
        let name: &[u8] = if path.is_empty() { b"." } else { path };
        layer.header(name, &inode.meta, &member)?;
        if matches!(inode.kind, Kind::Dir { opaque: true }) && self.is_new_dir(path, inode) {
            let marker = join(path, b".wh..wh..opq");
            layer.header(&marker, &Meta::default(), &Member::File(0, &[]))?;
        }
        Ok(())
    }

    /// Whiteouts for what the base has and this part has not.
    fn write_removals(&self, layer: &mut Layer) -> Result<()> {
        let Some(base) = self.base else { return Ok(()) };
        for (path, was) in &base.index.entries {
            let path = path.as_bytes();
            let Some((parent, _)) = split(path) else { continue };
            let gone = self.staged.get(path).is_none() && was.kind != Kind::Whiteout;
            let parent_is = self.staged.get(parent).map(|entry| &entry.kind);
            let parent_was = base.index.get(parent).map(|entry| &entry.kind);
            let in_dir = matches!(parent_is, Some(Kind::Dir { .. }))
                && matches!(parent_was, Some(Kind::Dir { .. }));
            if gone && in_dir && !is_hidden(path) {
                write_whiteout(layer, path)?;
            }
        }
        Ok(())
    }

    fn source(&self, path: &[u8], size: u64, content: &StagedContent) -> Result<Source<'_>> {
        match content {
            StagedContent::Empty => {
                let known = self.base.and_then(|base| match &base.index.get(path)?.kind {
                    Kind::File { size: 0, content } => Some(content.clone()),
                    _ => None,
                });
                Ok(Source { bytes: Bytes::Nowhere, runs: Vec::new(), stretches: Vec::new(), known })
            }
            StagedContent::Base(content) => {
                let lengths: Vec<u64> = self.base_layers.iter().map(Reader::length).collect();
                check_content(size, content, &lengths)?;
                let layer = self.base_layers.get(content.layer as usize);
                let layer = layer.context("finding a layer of the base")?;
                Ok(Source {
                    bytes: Bytes::Base(layer),
                    runs: vec![(content.offset, content.length)],
                    stretches: content.stretches(),
                    known: Some(content.clone()),
                })
            }
            StagedContent::Blob(_) | StagedContent::Held => {
                let file = self.staged_file(path, content)?;
                ensure!(file.metadata()?.len() == size, "what is staged has another length");
                let stretches = stretches(&file, size)?;
                let runs = stretches.clone();
                let mut source = Source { bytes: Bytes::Blob(file), runs, stretches, known: None };
                source.known = self.same_in_base(path, size, &source)?;
                Ok(source)
            }
        }
    }

    fn staged_file(&self, path: &[u8], content: &StagedContent) -> Result<File> {
        if let StagedContent::Blob(number) = content {
            return self
                .blobs
                .as_ref()
                .context("finding what is staged")?
                .file(&number.to_string())
                .and_then(|file| file.ok_or_else(|| io::ErrorKind::NotFound.into()))
                .with_context(|| format!("opening blob {number}"));
        }
        let held = self.held.as_ref().context("reading a snapshot that nobody holds")?;
        let (parent, name) = split(path).context("the root is no file")?;
        let entry = fs::open_entry(fs::open_dir(&held.top, parent)?, name)?;
        Ok(fs::open_for_reading(entry.context("it is gone from the snapshot")?)?.into())
    }

    /// Removes the blob of a file that is packed.
    fn consume(&self, packed: &Kind<StagedContent>) -> io::Result<()> {
        match packed {
            Kind::File { content: StagedContent::Blob(number), .. } if self.is_consumed => {
                let blobs = self.blobs.as_ref().ok_or(io::ErrorKind::NotFound)?;
                blobs.remove(&number.to_string()).map(drop)
            }
            _ => Ok(()),
        }
    }

    /// Where the base has the same bytes for the same path.
    fn same_in_base(&self, path: &[u8], size: u64, source: &Source<'_>) -> Result<Option<Content>> {
        let Some((_, was)) = self.base.and_then(|base| base.index.inode(path)) else {
            return Ok(None);
        };
        let Kind::File { size: was_size, content } = &was.kind else { return Ok(None) };
        if *was_size != size || content.stretches() != source.stretches {
            return Ok(None);
        }
        let mut hash = blake3::Hasher::new();
        source.read(|bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        Ok((*content.digest == *hash.finalize().to_hex()).then(|| content.clone()))
    }

    fn write_file(
        &self,
        layer: &mut Layer,
        number: u32,
        name: &[u8],
        size: u64,
        meta: &Meta,
        source: Source<'_>,
    ) -> Result<Content> {
        layer.header(name, meta, &Member::File(size, &source.stretches))?;
        let offset = layer.position();
        let mut hash = blake3::Hasher::new();
        source.read(|bytes| {
            let (_, written) = rayon::join(|| update(&mut hash, bytes), || layer.data(bytes));
            written
        })?;
        let length = layer.position() - offset;
        layer.pad()?;
        let map = if is_sparse(size, &source.stretches) { source.stretches } else { Vec::new() };
        Ok(Content {
            layer: if length == 0 { 0 } else { number },
            offset: if length == 0 { 0 } else { offset },
            length,
            map,
            digest: hash.finalize().to_hex().to_string(),
        })
    }
}

impl Source<'_> {
    fn read_at(&self, buffer: &mut [u8], at: u64) -> Result<()> {
        match &self.bytes {
            Bytes::Nowhere => bail!("there is none"),
            Bytes::Blob(file) => Ok(file.read_exact_at(buffer, at)?),
            Bytes::Base(layer) => layer.read_exact_at(buffer, at),
        }
    }

    fn read(&self, mut take: impl FnMut(&[u8]) -> io::Result<()>) -> Result<()> {
        let stored = self.runs.iter().map(|(_, length)| *length).max().unwrap_or(0);
        let mut buffer = vec![0; BUFFER.min(stored as usize)];
        for (start, length) in &self.runs {
            let (mut at, end) = (*start, start + length);
            while at < end {
                let want = buffer.len().min((end - at) as usize);
                self.read_at(&mut buffer[..want], at).context("reading staged content")?;
                take(&buffer[..want])?;
                at += want as u64;
            }
        }
        Ok(())
    }
}

fn open_layers(base: &Base, out: &Directory) -> Result<Vec<Reader>> {
    let open = |record: &FileRecord| {
        open_file(out, record)
            .and_then(|file| Reader::open(file, &record.name))
            .with_context(|| format!("opening {:?}, a layer of the base", record.name))
            .hint(DAMAGED)
    };
    base.layers.iter().map(open).collect()
}

fn write_whiteout(layer: &mut Layer, path: &[u8]) -> Result<()> {
    let Some((parent, name)) = split(path) else { return Ok(()) };
    let marker = join(parent, &[b".wh.", name].concat());
    Ok(layer.header(&marker, &Meta::default(), &Member::File(0, &[]))?)
}

/// Whether a reader of layers would take a path, or a directory on it, for a whiteout.
fn is_hidden(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|name| name.starts_with(b".wh."))
}

fn is_below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || (path.starts_with(dir) && path.get(dir.len()) == Some(&b'/'))
}

fn link_groups<C>(index: &Index<C>) -> HashMap<&[u8], BTreeSet<&[u8]>> {
    let mut groups: HashMap<&[u8], BTreeSet<&[u8]>> = HashMap::new();
    for (path, entry) in &index.entries {
        if let Kind::Link { to } = &entry.kind {
            groups.entry(to.as_bytes()).or_default().insert(path.as_bytes());
        }
    }
    groups
}

/// A kind that is no file, for an index with content of another type.
fn without_content(kind: &Kind<StagedContent>) -> Kind {
    match kind {
        Kind::Dir { opaque } => Kind::Dir { opaque: *opaque },
        Kind::Symlink { target } => Kind::Symlink { target: target.clone() },
        Kind::Link { to } => Kind::Link { to: to.clone() },
        Kind::Char { major, minor } => Kind::Char { major: *major, minor: *minor },
        Kind::Block { major, minor } => Kind::Block { major: *major, minor: *minor },
        Kind::Fifo => Kind::Fifo,
        Kind::Socket => Kind::Socket,
        Kind::File { .. } | Kind::Whiteout => Kind::Whiteout,
    }
}

/// Hashes bytes, many of them by all processors.
fn update(hash: &mut blake3::Hasher, bytes: &[u8]) {
    // As blake3 itself advises: below this, sharing the work costs more than it saves.
    const MANY: usize = 128 << 10;
    if bytes.len() < MANY {
        hash.update(bytes);
    } else {
        hash.update_rayon(bytes);
    }
}

/// Passes bytes on and hashes them.
struct Hashing<W> {
    to: W,
    hash: blake3::Hasher,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        update(&mut self.hash, &bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

//! Turns staging into a layer tar and the index.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, bail, ensure};

use super::BUFFER;
use super::copy::extents;
use super::driver::{DriverSnapshot, HeldContent};
use super::index::{Content, Digest, Entry, Index, Kind, Lines, Meta, check_content};
use super::layer::{self, Compression, LayerReader};
use super::packed::PackedFiles;
use super::part::open_file;
use super::paths::Id;
use super::staging::{BLOBS, Base, STAGED_INDEX, StagedContent, read_base, read_index};
use super::tar::{Member, TarWriter, is_sparse};
use super::{Progress, join, shown, split};
use crate::digest::FileRecord;
use crate::hint::{DAMAGED, WithHint};
use crate::sys::direct::DirectStream;
use crate::sys::directory::Directory;
use crate::sys::extent::Extent;
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
    let base = read_base(staging)?;
    let (staged, held) = match DriverSnapshot::read(staging)? {
        Some(held) => held.index(base.as_ref()).map(|(index, content)| (index, Some(content)))?,
        None => {
            let staged = read_index(staging, STAGED_INDEX)?;
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
    base_layers: Vec<LayerReader>,
    /// None where nothing was staged.
    blobs: Option<Directory>,
    is_consumed: bool,
    /// The snapshot that content is in which is not in staging.
    held: Option<HeldContent>,
    out: &'a Directory,
    /// The further names of each inode that has several, by the first.
    names: BTreeMap<Id, Vec<Id>>,
    base_names: BTreeMap<Id, Vec<Id>>,
    /// The first names of those that have the same names in the base.
    same_names: HashSet<Id>,
}

/// A path that is packed.
#[derive(Clone, Copy)]
struct Place<'a> {
    id: Id,
    path: &'a [u8],
    /// The same path in the base.
    twin: Option<Id>,
}

/// The content of a file before it is written.
struct Source<'a> {
    bytes: Bytes<'a>,
    /// Where its stored bytes are in there.
    runs: Vec<Extent>,
    /// Where they belong.
    extents: Vec<Extent>,
    /// Where they are already, and need not be written for this file's sake.
    known: Option<Content>,
}

/// Where it is read.
enum Bytes<'a> {
    Nowhere,
    Blob(File),
    Base(&'a LayerReader),
}

type Layer = TarWriter<layer::LayerWriter<Hashing<DirectStream>>>;

impl<'a> Packer<'a> {
    fn new(
        staged: &'a Index<StagedContent>,
        base: Option<&'a Base>,
        blobs: Option<Directory>,
        out: &'a Directory,
    ) -> Result<Self> {
        let names = staged.links();
        let base_names = base.map(|base| base.index.links()).unwrap_or_default();
        let same_names = base
            .map(|base| same_names((staged, &names), (&base.index, &base_names)))
            .unwrap_or_default();
        Ok(Self {
            staged,
            base,
            base_layers: base.map_or_else(|| Ok(Vec::new()), |base| open_layers(base, out))?,
            blobs,
            is_consumed: false,
            held: None,
            out,
            names,
            base_names,
            same_names,
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
        let index_name = format!("ocicle-{prefix}.index.json");
        let (index, new_index) =
            self.out.begin(&index_name).with_context(|| format!("creating {index_name}"))?;
        let index =
            Hashing { to: BufWriter::with_capacity(BUFFER, index), hash: blake3::Hasher::new() };
        let mut lines = Lines::begin(index, self.staged.driver, &self.staged.root)?;
        self.write_members(&mut layer, &mut lines, number, progress)
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
        let written = || -> Result<(u64, String)> {
            let hashing = lines.finish();
            let blake3 = hashing.hash.finalize().to_hex().to_string();
            let file = hashing.to.into_inner().map_err(io::IntoInnerError::into_error)?;
            file.sync_all()?;
            new_index.finish()?;
            Ok((file.metadata()?.len(), blake3))
        };
        let (size, blake3) = written().with_context(|| format!("writing {index_name}"))?;
        Ok(PackedFiles { index: FileRecord { name: index_name, size, blake3 }, layers })
    }

    /// Writes what is new against the base, and for each path a line of the index.
    fn write_members(
        &self,
        layer: &mut Layer,
        lines: &mut Lines<impl Write>,
        number: u32,
        progress: &dyn Progress,
    ) -> Result<()> {
        let staged = |entry: &Entry<StagedContent>| match &entry.kind {
            Kind::File { size, content: StagedContent::Blob(_) | StagedContent::Held } => *size,
            _ => 0,
        };
        progress.expect(self.staged.entries.values().map(staged).sum());
        self.write_removals(layer)?;
        let mut shared = HashMap::new();
        let mut walk = self.staged.entries.walk();
        // Of each directory on the way, which it was in the base, and whether all in it is written
        // again: one that was something else there, or showed what is below, hides what older layers
        // have in it.
        let mut way: Vec<(Option<Id>, bool)> = Vec::new();
        while let Some((id, entry)) = walk.next() {
            way.truncate(walk.depth());
            let name = self.staged.entries.name(id);
            let twin = match (self.base, way.last()) {
                (None, _) => None,
                (Some(_), None) => Some(Id::ROOT),
                (Some(base), Some((dir, _))) => {
                    dir.and_then(|dir| base.index.entries.child(dir, name))
                }
            };
            let forced = way.last().is_some_and(|(_, again)| *again);
            let place = Place { id, path: walk.path(), twin };
            let (written, content) = self
                .write_entry(layer, number, place, entry, forced, &mut shared)
                .with_context(|| format!("writing {}", shown(walk.path())))?;
            lines.entry(walk.depth(), name, &packed(entry, content)?)?;
            way.push((twin, forced || written && self.is_new_dir(twin, entry)));
            progress.advance(staged(entry));
        }
        Ok(())
    }

    /// Whether a directory does not continue the same directory of the base.
    fn is_new_dir(&self, twin: Option<Id>, entry: &Entry<StagedContent>) -> bool {
        let Kind::Dir { opaque } = entry.kind else { return false };
        match self.in_base(twin).map(|entry| &entry.kind) {
            Some(Kind::Dir { opaque: was }) => opaque && !*was,
            _ => true,
        }
    }

    fn in_base(&self, twin: Option<Id>) -> Option<&Entry> {
        self.base?.index.entries.value(twin?)
    }

    /// Writes a path if it is not the same in the base; says whether it is, and of a file where its
    /// content is. `shared` has that of files with several names.
    fn write_entry(
        &self,
        layer: &mut Layer,
        number: u32,
        place: Place<'_>,
        entry: &Entry<StagedContent>,
        forced: bool,
        shared: &mut HashMap<Id, Content>,
    ) -> Result<(bool, Option<Content>)> {
        let Some((first, inode)) = self.staged.inode(place.id) else { return Ok((false, None)) };
        let first_path =
            if first == place.id { Vec::new() } else { self.staged.entries.path(first) };
        let first = match first == place.id {
            true => place,
            false => self.place(first, &first_path),
        };
        let Kind::File { size, content } = &inode.kind else {
            let changed = forced || self.is_changed(place, first, inode, None);
            self.write_other(layer, place, first, inode, changed)?;
            return Ok((changed, None));
        };
        if let Some(already) = shared.get(&first.id) {
            // Another name: content is known, only the member may be missing.
            let is_new = already.layer == number && already.length > 0;
            let changed = forced || is_new || self.is_changed(place, first, inode, Some(already));
            let content = matches!(entry.kind, Kind::File { .. }).then(|| already.clone());
            self.write_other(layer, place, first, inode, changed)?;
            return Ok((changed, content));
        }
        let source = self.source(first, *size, content)?;
        let changed = forced || self.is_changed(place, first, inode, source.known.as_ref());
        let content = if changed {
            let name = self.primary(first);
            self.write_file(layer, number, &name, *size, &inode.meta, source)?
        } else {
            source.known.context("finding unchanged content")?
        };
        if self.names.contains_key(&first.id) {
            shared.insert(first.id, content.clone());
        }
        self.consume(&inode.kind).context("removing what is packed")?;
        Ok((changed, Some(content)))
    }

    /// A path that is not the one that comes next.
    fn place<'b>(&self, id: Id, path: &'b [u8]) -> Place<'b> {
        Place { id, path, twin: self.base.and_then(|base| base.index.entries.find(path)) }
    }

    /// Whether a member must be written: the base has not the very same at this path.
    fn is_changed(
        &self,
        place: Place<'_>,
        first: Place<'_>,
        inode: &Entry<StagedContent>,
        content: Option<&Content>,
    ) -> bool {
        let was = self.base.and_then(|base| base.index.inode(place.twin?));
        let Some((base_first, was)) = was else { return true };
        let same_kind = match (&was.kind, &inode.kind) {
            (Kind::File { content: was, .. }, Kind::File { .. }) => Some(was) == content,
            (Kind::File { .. }, _) | (_, Kind::File { .. }) => false,
            (Kind::Dir { opaque: was }, Kind::Dir { opaque: is }) => was == is,
            (was, is) => was.inode() == is.inode(),
        };
        // Links of one layer to a file of another are not understood everywhere, so that a change
        // of one name writes them all.
        let same_names = first.twin == Some(base_first)
            && match self.names.contains_key(&first.id) {
                true => self.same_names.contains(&first.id),
                false => !self.base_names.contains_key(&base_first),
            };
        !(same_kind && same_names && was.meta == inode.meta)
    }

    /// Under which name an inode's bytes are in the tar. A name that a layer takes for a whiteout
    /// cannot stand there: readers of layers pass over `.wh..wh.` names.
    fn primary(&self, first: Place<'_>) -> Vec<u8> {
        if !is_hidden(first.path) {
            return first.path.to_vec();
        }
        let names = self.names.get(&first.id).into_iter().flatten();
        let visible = names.map(|id| self.staged.entries.path(*id)).find(|name| !is_hidden(name));
        visible.unwrap_or_else(|| {
            let digest = blake3::hash(first.path).to_hex();
            format!(".wh..wh.ocicle.{}", &digest[..32]).into_bytes()
        })
    }

    /// Writes anything but the content of a regular file.
    fn write_other(
        &self,
        layer: &mut Layer,
        place: Place<'_>,
        first: Place<'_>,
        inode: &Entry<StagedContent>,
        changed: bool,
    ) -> Result<()> {
        let path = place.path;
        if !changed || is_hidden(path) {
            return Ok(());
        }
        let primary = self.primary(first);
        let is_primary = if matches!(inode.kind, Kind::File { .. }) {
            primary == path
        } else {
            first.id == place.id || primary == path
        };
        let member = match &inode.kind {
            Kind::Socket => return Ok(()),
            // The content stands under this name already.
            Kind::File { .. } if is_primary => return Ok(()),
            Kind::Whiteout => return write_whiteout(layer, path),
            _ if !is_primary => Member::Link(&primary),
            Kind::Dir { .. } => Member::Dir,
            Kind::Symlink { target } => Member::Symlink(target.as_bytes()),
            Kind::Char(device) => Member::Char(*device),
            Kind::Block(device) => Member::Block(*device),
            Kind::Fifo => Member::Fifo,
            Kind::File { .. } | Kind::Link { .. } => return Ok(()),
        };
        // The root's own attributes are those of `./`.
        let name: &[u8] = if path.is_empty() { b"." } else { path };
        layer.header(name, &inode.meta, &member)?;
        if matches!(inode.kind, Kind::Dir { opaque: true }) && self.is_new_dir(place.twin, inode) {
            let marker = join(path, b".wh..wh..opq");
            layer.header(&marker, &Meta::default(), &Member::File(0, &[]))?;
        }
        Ok(())
    }

    /// Whiteouts for what the base has and this part has not.
    fn write_removals(&self, layer: &mut Layer) -> Result<()> {
        let Some(base) = self.base else { return Ok(()) };
        let is_dir = |kind: Option<&Kind<_>>| matches!(kind, Some(Kind::Dir { .. }));
        let mut walk = base.index.entries.walk();
        // Each directory on the way, as it is now.
        let mut way: Vec<Option<Id>> = Vec::new();
        while let Some((id, was)) = walk.next() {
            way.truncate(walk.depth());
            let Some(dir) = way.last().copied() else {
                way.push(Some(Id::ROOT));
                continue;
            };
            let entries = &self.staged.entries;
            let twin = dir.and_then(|dir| entries.child(dir, base.index.entries.name(id)));
            let is_in = dir.and_then(|dir| entries.value(dir));
            let was_in = base.index.entries.value(base.index.entries.parent(id));
            let in_dir = matches!(is_in.map(|entry| &entry.kind), Some(Kind::Dir { .. }))
                && is_dir(was_in.map(|entry| &entry.kind));
            let gone = twin.is_none() && was.kind != Kind::Whiteout;
            if gone && in_dir && !is_hidden(walk.path()) {
                write_whiteout(layer, walk.path())?;
            }
            way.push(twin);
        }
        Ok(())
    }

    fn source(&self, place: Place<'_>, size: u64, content: &StagedContent) -> Result<Source<'_>> {
        match content {
            StagedContent::Empty => {
                let known = self.in_base(place.twin).and_then(|entry| match &entry.kind {
                    Kind::File { size: 0, content } => Some(content.clone()),
                    _ => None,
                });
                Ok(Source { bytes: Bytes::Nowhere, runs: Vec::new(), extents: Vec::new(), known })
            }
            StagedContent::Base(content) => {
                let lengths: Vec<u64> = self.base_layers.iter().map(LayerReader::length).collect();
                check_content(size, content, &lengths)?;
                let layer = self.base_layers.get(content.layer as usize);
                let layer = layer.context("finding a layer of the base")?;
                Ok(Source {
                    bytes: Bytes::Base(layer),
                    runs: vec![Extent::new(content.offset, content.length)],
                    extents: content.extents(),
                    known: Some((**content).clone()),
                })
            }
            StagedContent::Blob(_) | StagedContent::Held => {
                let file = self.staged_file(place.path, content)?;
                ensure!(file.metadata()?.len() == size, "what is staged has another length");
                let extents = extents(&file, size)?;
                let runs = extents.clone();
                let mut source = Source { bytes: Bytes::Blob(file), runs, extents, known: None };
                source.known = self.same_in_base(place.twin, size, &source)?;
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
    fn same_in_base(
        &self,
        twin: Option<Id>,
        size: u64,
        source: &Source<'_>,
    ) -> Result<Option<Content>> {
        let Some((_, was)) = self.base.and_then(|base| base.index.inode(twin?)) else {
            return Ok(None);
        };
        let Kind::File { size: was_size, content } = &was.kind else { return Ok(None) };
        if *was_size != size || content.extents() != source.extents {
            return Ok(None);
        }
        let mut hash = blake3::Hasher::new();
        source.read(|bytes| {
            hash.update(bytes);
            Ok(())
        })?;
        Ok((content.digest == Digest::of(&hash)).then(|| content.clone()))
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
        layer.header(name, meta, &Member::File(size, &source.extents))?;
        let offset = layer.position();
        let mut hash = blake3::Hasher::new();
        source.read(|bytes| {
            let (_, written) = rayon::join(|| update(&mut hash, bytes), || layer.data(bytes));
            written
        })?;
        let length = layer.position() - offset;
        layer.pad()?;
        let map = if is_sparse(size, &source.extents) { source.extents } else { Vec::new() };
        Ok(Content {
            layer: if length == 0 { 0 } else { number },
            offset: if length == 0 { 0 } else { offset },
            length,
            map,
            digest: Digest::of(&hash),
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
        let stored = self.runs.iter().map(|run| run.length).max().unwrap_or(0);
        let mut buffer = vec![0; BUFFER.min(stored as usize)];
        for run in &self.runs {
            let mut at = run.offset;
            while at < run.end() {
                let want = buffer.len().min((run.end() - at) as usize);
                self.read_at(&mut buffer[..want], at).context("reading staged content")?;
                take(&buffer[..want])?;
                at += want as u64;
            }
        }
        Ok(())
    }
}

fn open_layers(base: &Base, out: &Directory) -> Result<Vec<LayerReader>> {
    let open = |record: &FileRecord| {
        open_file(out, record)
            .and_then(|file| LayerReader::open(file, &record.name))
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

/// The inodes of which all names are the same in the base, by the first.
fn same_names(
    (staged, names): (&Index<StagedContent>, &BTreeMap<Id, Vec<Id>>),
    (base, base_names): (&Index, &BTreeMap<Id, Vec<Id>>),
) -> HashSet<Id> {
    let is_same = |(first, names): (&Id, &Vec<Id>)| -> Option<Id> {
        let was = base_names.get(&base.entries.find(&staged.entries.path(*first))?)?;
        // Both are in the order of a walk.
        let same = |(is, was): (&Id, &Id)| staged.entries.path(*is) == base.entries.path(*was);
        (was.len() == names.len() && names.iter().zip(was).all(same)).then_some(*first)
    };
    names.iter().filter_map(is_same).collect()
}

/// An entry of the index that is written.
fn packed(entry: &Entry<StagedContent>, content: Option<Content>) -> Result<Entry> {
    let known = |_| content.context("finding its content");
    let kind = entry.kind.clone().try_map(known, Ok)?;
    Ok(Entry { kind, meta: entry.meta.clone(), identity: entry.identity.clone() })
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

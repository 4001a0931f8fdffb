//! Copying: the index and the bytes of a part, taken into staging in two passes.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use rayon::prelude::*;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

use super::{CopyStats, Driver, DriverName, Lease};
use crate::files::Suspects;
use crate::freezer::{Frozen, Still};
use crate::limits::Weight;
use crate::snapshot::attributes::{Found, identity, is_racy};
use crate::snapshot::cache::Cache;
use crate::snapshot::copy::{self, copy_file};
use crate::snapshot::identity::Form;
use crate::snapshot::index::{Fingerprint, Index, Kind, Lines};
use crate::snapshot::opened::Opened;
use crate::snapshot::part::PackedPart;
use crate::snapshot::paths::Id;
use crate::snapshot::probe::Root;
use crate::snapshot::shown;
use crate::snapshot::shows::{ShownAt, Shows, shown_in};
use crate::snapshot::staging::{
    BLOBS, STAGED_INDEX, StagedContent, content_of, entries, known_content, write_base, write_whole,
};
use crate::snapshot::walk::{Earlier, Seen, Tree, Walked, Walking, walk};
use crate::sys::fs;
use crate::sys::inode::DevIno;
use crate::sys::process::go_first;
use crate::sys::time::Time;

/// A part on its way into a staging directory.
pub struct CopyDriver {
    root: Root,
    dir: PathBuf,
    blobs: OwnedFd,
    next_blob: AtomicU64,
    cache: Cache,
    /// What was copied so far, by device and inode number.
    copies: HashMap<DevIno, CopiedFile>,
    /// The base, and its files whose identity counts, by inode number.
    base: Option<(Arc<Index>, HashMap<u64, Id>)>,
    /// What the walk of the running container found.
    earlier: Earlier,
    /// What changed after this shows it in its ctime, whoever wrote it.
    since: Time,
    /// What the walk of the frozen one found.
    taken: Option<Tree>,
    /// What the last walk found takes.
    weight: Weight,
}

/// A file that was copied.
struct CopiedFile {
    blob: StagedContent,
    /// What stat(2) said before, if a later change must show in it.
    identity: Option<Fingerprint>,
    shared: bool,
}

impl CopyDriver {
    /// Prepares a staging directory, which must be there, be empty and be readable by its owner
    /// only. `base` is the previous snapshot of the same root.
    pub fn create(staging: &Path, root: Root, base: Option<&PackedPart>) -> Result<Self> {
        write_base(staging, base)?;
        let base = base.map(PackedPart::shared_index);
        let base = base.map(|index| (index.clone(), known_content(&index)));
        Ok(Self { base, ..Self::copying(staging, root)? })
    }

    /// The same, when nothing but the bytes themselves can be known before the freeze.
    pub(super) fn copying(staging: &Path, root: Root) -> Result<Self> {
        let dir =
            fs::open_host_dir(staging).with_context(|| format!("opening {}", staging.display()))?;
        let fresh = || -> io::Result<OwnedFd> {
            rustix::fs::mkdirat(&dir, BLOBS, Mode::RWXU)?;
            fs::open_dir(&dir, BLOBS.as_bytes())
        };
        let blobs = fresh().with_context(|| format!("preparing {}", staging.display()))?;
        Ok(Self {
            root,
            dir: staging.to_owned(),
            blobs,
            next_blob: AtomicU64::new(0),
            cache: Cache::default(),
            copies: HashMap::new(),
            base: None,
            earlier: Earlier::default(),
            since: Time::default(),
            taken: None,
            weight: Weight::default(),
        })
    }

    /// One walk and the copies that it asks for.
    fn pass(&mut self, suspects: &Suspects, still: Still<'_>) -> Result<(CopyStats, Walked)> {
        let known = std::mem::take(&mut self.earlier);
        let walked = walk(&self.root, Walking::Live(still), known, suspects)?;
        self.weight = walked.tree.weight();
        let Walked { tree, fresh, kept, .. } = &walked;
        let entries = tree.count() as u64;
        let mut stats = CopyStats { entries, kept: *kept, ..CopyStats::default() };
        let mut wanted = Vec::new();
        let mut seen = HashSet::new();
        for path in fresh {
            let Some(Seen::Inode { found, upper, .. }) = tree.value(*path) else { continue };
            let has_others = found.names > 1;
            if !found.kind.is_file() || has_others && !seen.insert(found.inode()) {
                continue;
            }
            let is_volatile = suspects.contains(found.inode())
                || upper.as_ref().is_some_and(|upper| suspects.contains(upper.inode()));
            if self.keep(found, is_volatile) {
                stats.kept += u64::from(found.identity.size > 0);
            } else {
                wanted.push((*path, is_volatile));
            }
        }
        wanted.chunks(MANY).try_for_each(|wanted| {
            let copied = self.copy_all(tree, wanted, still)?;
            for (inode, (size, copied)) in copied {
                stats.copied += u64::from(size > 0);
                stats.shared += u64::from(size > 0 && copied.shared);
                stats.bytes += size;
                self.copies.insert(inode, copied);
            }
            anyhow::Ok(())
        })?;
        Ok((stats, walked))
    }

    /// Copies files side by side; of a running container, those that are still there.
    fn copy_all(&self, tree: &Tree, wanted: &[(Id, bool)], still: Still<'_>) -> Result<Copies> {
        let dirs = Dirs {
            merged: Opened::below(self.root.top()),
            upper: self.root.overlay().map(|overlay| Opened::below(overlay.upper.as_fd())),
        };
        let copy = |(path, is_volatile): &(Id, bool)| {
            let Some(Seen::Inode { found, .. }) = tree.value(*path) else { return None };
            let place = Place { tree, path: *path, dirs: &dirs };
            let copied = self.copy(&place, &found.identity, *is_volatile, still);
            let copied = copied.with_context(|| format!("copying {}", place.shown()));
            copied.map(|copied| Some((found.inode(), copied?))).transpose()
        };
        wanted.par_iter().filter_map(copy).collect()
    }

    /// Whether the content of a file is there already; what the base has is noted as a copy.
    fn keep(&mut self, found: &Found, is_volatile: bool) -> bool {
        if is_volatile {
            return false;
        }
        let inode = found.inode();
        if let Some(copied) = self.copies.get(&inode) {
            return copied.identity.as_ref() == Some(&found.identity);
        }
        let Some((base, known)) = &self.base else { return false };
        let Some(content) = content_of(base, known, &found.identity) else { return false };
        let blob = StagedContent::Base(Box::new(content.clone()));
        let identity = Some(found.identity.clone());
        self.copies.insert(inode, CopiedFile { blob, identity, shared: false });
        true
    }

    /// Copies one file to a new blob; `None` if the running container has removed it.
    fn copy(
        &self,
        place: &Place<'_>,
        walked: &Fingerprint,
        volatile: bool,
        still: Still<'_>,
    ) -> Result<Option<(u64, CopiedFile)>> {
        for _ in 0..4 {
            // Direct I/O may be under way since before we looked who does it: what it writes while
            // the container runs is known by the time of that look only.
            let started = if still.is_frozen() { Time::coarse_now() } else { self.since };
            let Some(source) = self.open_source(place)? else {
                if !still.is_frozen() {
                    return Ok(None);
                }
                bail!("it is gone, although its container is frozen");
            };
            if !still.is_frozen() {
                settle(&source)?;
            }
            let before = identity(&fs::stat(&source.merged)?);
            let (size, blob, shared) = match self.copy_blob(&source) {
                Err(error) if !still.is_frozen() && !is_full(&error) => {
                    tracing::debug!("copying {} ahead: {error:#}", place.shown());
                    return Ok(None);
                }
                other => other?,
            };
            let after = identity(&fs::stat(&source.merged)?);
            let trusted = !volatile
                && before == after
                && size == after.size
                && tells_changes(&source)
                && !is_racy(before.ctime, started);
            let unchanged = *walked == before && before == after && size == after.size;
            if !still.is_frozen() || unchanged {
                let identity = trusted.then_some(before);
                return Ok(Some((size, CopiedFile { blob, identity, shared })));
            }
        }
        bail!("it changes, although its container is frozen: another program on the host writes it")
    }

    fn copy_blob(&self, source: &Source) -> Result<(u64, StagedContent, bool)> {
        let size = fs::stat(&source.data)?.st_size as u64;
        if size == 0 {
            return Ok((0, StagedContent::Empty, false));
        }
        let number = self.next_blob.fetch_add(1, Ordering::Relaxed);
        let blob = fs::create_file(&self.blobs, number.to_string().as_bytes())?;
        let copied = copy_file(&source.data, &blob, self.cache.way(size)).inspect_err(|_| {
            let _ = rustix::fs::unlinkat(&self.blobs, number.to_string(), AtFlags::empty());
        })?;
        let shared = copied == copy::HowCopied::Shared;
        Ok((fs::stat(&blob)?.st_size as u64, StagedContent::Blob(number), shared))
    }

    /// Opens a file for its content, or `None` if it is no regular file any more.
    fn open_source(&self, place: &Place<'_>) -> Result<Option<Source>> {
        let Place { tree, path, dirs } = place;
        let (dir, name) = (tree.parent(*path), tree.name(*path));
        let open = |dirs: &Opened<'_>| -> io::Result<Option<(OwnedFd, OwnedFd)>> {
            let Some(dir) = dirs.existing(tree, dir)? else { return Ok(None) };
            let Some(entry) = fs::open_entry(dir, name)? else { return Ok(None) };
            if !is_regular(&entry)? {
                return Ok(None);
            }
            let file = fs::open_for_reading(&entry)?;
            Ok(Some((entry, file)))
        };
        let Some((_, merged)) = open(&dirs.merged)? else { return Ok(None) };
        let mut data = None;
        if let (Some(overlay), Some(upper)) = (self.root.overlay(), &dirs.upper)
            && let Some((entry, file)) = open(upper)?
            // A metacopy file in the upper layer has the attributes, and no content.
            && overlay.xattr(&entry, "metacopy")?.is_none()
            && fs::stat(&file)?.st_size == fs::stat(&merged)?.st_size
        {
            // The same bytes, but here the kernel can clone or copy them: not across an overlay.
            data = Some(file);
        }
        let data = match data {
            Some(data) => data,
            None => merged.try_clone()?,
        };
        Ok(Some(Source { merged, data }))
    }
}

impl Shows for CopyDriver {
    fn shows(&self, path: &[u8]) -> ShownAt {
        self.taken.as_ref().map_or(ShownAt::Below, |tree| shown_in(tree, self.root.form(), path))
    }
}

impl Driver for CopyDriver {
    fn name(&self) -> DriverName {
        match self.root.form() {
            Form::Overlay => DriverName::Overlay,
            Form::Directory => DriverName::Directory,
        }
    }

    fn prepare(&mut self, suspects: &Suspects) -> Result<CopyStats> {
        let begun = suspects.begun();
        // What is written asynchronously may land long after its file was closed.
        let flight = if suspects.asynchronous() { FLIGHT } else { 0 };
        self.since = Time { seconds: begun.seconds - flight, ..begun };
        let begun = Time::coarse_now();
        let (stats, walked) = self.pass(suspects, Still::Running)?;
        let is_copied = |found: &Found| {
            let copied =
                self.copies.get(&found.inode()).and_then(|copied| copied.identity.as_ref());
            copied == Some(&found.identity)
        };
        self.earlier = Earlier::of(&self.root, walked, begun, is_copied);
        Ok(stats)
    }

    /// Looks at everything again, and copies what [`Self::prepare`] has not, or what has changed
    /// since.
    fn take(&mut self, frozen: &Frozen<'_>, suspects: &Suspects) -> Result<CopyStats> {
        let hurry = rayon::ThreadPoolBuilder::new().start_handler(|_| go_first()).build()?;
        let (stats, walked) = hurry.install(|| self.pass(suspects, Still::Frozen(frozen)))?;
        self.taken = Some(walked.tree);
        Ok(stats)
    }

    fn weight(&self) -> Weight {
        self.weight
    }

    /// Writes the index, and removes the blobs that a later copy replaced.
    fn seal(mut self: Box<Self>) -> Result<Option<Lease>> {
        let Some(tree) = self.taken.take() else {
            bail!("sealing a snapshot that was not taken");
        };
        let content = |found: &Found| {
            let copied = self.copies.get(&found.inode()).context("it was not copied")?;
            Ok((copied.blob.clone(), copied.identity.clone()))
        };
        let mut used = vec![false; self.next_blob.load(Ordering::Relaxed) as usize];
        write_whole(&self.dir, STAGED_INDEX, |file| {
            let mut lines = Lines::begin(file, self.root.form(), self.root.identity())?;
            entries(&tree, content, |depth, name, entry| {
                if let Kind::File { content: StagedContent::Blob(blob), .. } = entry.kind {
                    used[blob as usize] = true;
                }
                lines.entry(depth, name, &entry)
            })
        })?;
        for (blob, _) in used.iter().enumerate().filter(|(_, used)| !**used) {
            // One that was never finished is not there.
            let _ = rustix::fs::unlinkat(&self.blobs, blob.to_string(), AtFlags::empty());
        }
        Ok(None)
    }
}

/// Files that were copied, by their inodes, with their lengths.
type Copies = Vec<(DevIno, (u64, CopiedFile))>;

/// So many files are copied side by side.
const MANY: usize = 4096;

/// Where the files of a walk are opened.
struct Dirs<'a> {
    merged: Opened<'a>,
    upper: Option<Opened<'a>>,
}

/// A file that a walk found.
struct Place<'a> {
    tree: &'a Tree,
    path: Id,
    dirs: &'a Dirs<'a>,
}

impl Place<'_> {
    fn shown(&self) -> String {
        shown(&self.tree.path(self.path))
    }
}

/// How many seconds a write may be in flight that nobody waits for.
const FLIGHT: i64 = 10;

/// A file opened for its content.
struct Source {
    /// As the container sees it.
    merged: OwnedFd,
    /// Where the bytes are read.
    data: OwnedFd,
}

fn is_regular(entry: &OwnedFd) -> io::Result<bool> {
    let mode = fs::stat(entry)?.st_mode;
    Ok(rustix::fs::FileType::from_raw_mode(mode) == rustix::fs::FileType::RegularFile)
}

/// Writes a file's dirty pages to disk before it is copied from a running container.
///
/// A store through a shared mapping changes ctime only when it faults, and a page that is dirty
/// already does not fault again: a process could go on storing into it, unmap the file before the
/// freeze, and the copy would look current. Writing a page back makes it read-only in every mapping
/// (page_mkclean), so that each store after this one faults, and is seen.
fn settle(source: &Source) -> io::Result<()> {
    if on_disk_file_system(&source.data) && fs::dirty_pages(&source.data) == Some(0) {
        return Ok(());
    }
    Ok(rustix::fs::fdatasync(&source.merged)?)
}

/// Whether a change of content changes ctime on the file system of a file: where pages are written
/// back, it does; on tmpfs a mapped page is never made read-only again, and for the rest nobody
/// knows.
fn tells_changes(source: &Source) -> bool {
    on_disk_file_system(&source.data)
        || rustix::fs::fstatfs(&source.data).is_ok_and(|fs| fs.f_type as u64 == OVERLAY)
}

const OVERLAY: u64 = 0x794c_7630;

/// ext4, xfs, btrfs, f2fs: the pages that cachestat(2) counts are the file's own.
fn on_disk_file_system(file: &OwnedFd) -> bool {
    rustix::fs::fstatfs(file).is_ok_and(|fs| {
        matches!(fs.f_type as u64 & 0xffff_ffff, 0xef53 | 0x5846_5342 | 0x9123_683e | 0xf2f5_2010)
    })
}

fn is_full(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .and_then(Errno::from_io_error)
        .is_some_and(|errno| errno == Errno::NOSPC || errno == Errno::DQUOT)
}

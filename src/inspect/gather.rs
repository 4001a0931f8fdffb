//! What is read of a checkpoint: small files are kept, of the memory only the arguments of its
//! processes, of everything else the size.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::fs::{FileType, Mode, OFlags};

use super::content::{Bytes, CompressedAs, Peeked, Seekable};
use super::tar;
use super::usage::{MemoryUse, pages_in};
use crate::criu::images::ImageDir;
use crate::hint::WithHint;

/// The largest file that is kept.
const FILE: u64 = 64 << 20;
/// The most bytes that are kept of all files.
const KEPT: u64 = 256 << 20;
/// The most names that are remembered.
const NAMES: usize = 100_000;
/// How deep directories are looked into: as deep as the blobs of an OCI layout lie.
const DEPTH: usize = 3;
/// What podman copies of the root file system itself, an archive in its archive.
pub(super) const PODMANS_DIFF: &str = "rootfs-diff.tar";
/// What makes a directory one of CRIU's images.
const INVENTORY: &str = "inventory.img";

/// What can be looked into.
pub(super) const WANTED: &str = "name a checkpoint of the store (web@v1), a directory of CRIU's images, an archive of `podman \
     container checkpoint -e`, or an image of podman's or that was saved";

/// What was read of one directory or archive.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Small files, by path.
    kept: BTreeMap<String, Vec<u8>>,
    bytes: u64,
    /// The sizes of all files, by path; what lies deeper together, by its first directory.
    pub sizes: BTreeMap<String, u64>,
    /// What is known of memory, by the directory of the images.
    memory: BTreeMap<String, MemoryUse>,
    /// The archive inside, of an image or an archive of one, that holds a checkpoint.
    pub layer: Option<Layer>,
    /// Files that could not be read as they are.
    pub sparse: BTreeSet<String>,
    /// Whether podman's copy of the root file system is broken.
    pub has_cut_diff: bool,
    /// How it was compressed.
    pub compression: Option<CompressedAs>,
}

/// A layer of an image.
#[derive(Debug)]
pub(super) struct Layer {
    /// Its path in the image, which ends with the digest that names it.
    pub path: String,
    pub gathered: Box<Gathered>,
}

impl Gathered {
    /// Reads a directory, or an archive.
    pub(super) fn of(path: &Path) -> Result<Self> {
        let mut gathered = Self::default();
        gathered.walk(path)?;
        // Memory that came before its description, in an archive whose members are not sorted.
        if gathered.lacks_arguments() {
            gathered.sizes.clear();
            gathered.walk(path)?;
        }
        Ok(gathered)
    }

    fn lacks_arguments(&self) -> bool {
        self.memory.values().any(MemoryUse::has_passed)
            || self.layer.as_ref().is_some_and(|layer| layer.gathered.lacks_arguments())
    }

    fn walk(&mut self, path: &Path) -> Result<()> {
        let file = open(path)?;
        if file.metadata()?.is_dir() {
            return self.walk_directory(path, "", DEPTH);
        }
        self.walk_archive(Box::new(Seekable(file)), true)
    }

    fn walk_directory(&mut self, path: &Path, prefix: &str, depth: usize) -> Result<()> {
        let entries =
            std::fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?;
        for entry in entries {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let (below, kind) = (format!("{prefix}{name}"), entry.file_type()?);
            if kind.is_dir() && depth > 1 {
                self.walk_directory(&entry.path(), &format!("{below}/"), depth - 1)?;
            } else if kind.is_file() {
                let file = open(&entry.path())?;
                let size = file.metadata()?.len();
                self.visit(below, size, &mut Seekable(file), true)
                    .with_context(|| format!("reading {}", entry.path().display()))?;
            }
        }
        Ok(())
    }

    fn walk_archive(&mut self, content: Box<dyn Bytes + '_>, outer: bool) -> Result<()> {
        let (mut archive, compression) = Peeked::through(content)?;
        if !archive.is_tar() {
            return Err(anyhow!("it is no tar archive").hint(WANTED));
        }
        self.compression = compression;
        tar::walk(&mut archive, &mut |member, content| {
            let Some(path) = normal(&member.path) else { return Ok(()) };
            if member.sparse {
                self.note(&path, member.size)?;
                self.sparse.insert(path);
                return Ok(());
            }
            self.visit(path, member.size, content, outer)
        })
    }

    fn visit(
        &mut self,
        path: String,
        size: u64,
        content: &mut dyn Bytes,
        outer: bool,
    ) -> Result<()> {
        self.note(&path, size)?;
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if let Some(pages) = pages_in(name) {
            let memory = self.memory.entry(directory.to_owned()).or_default();
            return read_arguments(memory, pages, content);
        }
        if path == PODMANS_DIFF {
            // Go's own writer has no such gap: the container changed a file that was being copied.
            self.has_cut_diff = tar::walk(content, &mut |_, _| Ok(())).is_err();
            return Ok(());
        }
        if outer && is_blob(&path) {
            return self.visit_blob(path, size, content);
        }
        if is_kept(name) {
            self.keep(path, size, content)?;
        }
        Ok(())
    }

    /// A layer of an image, or one of the documents that describe it.
    fn visit_blob(&mut self, path: String, size: u64, content: &mut dyn Bytes) -> Result<()> {
        let (mut peeked, _) = Peeked::through(Box::new(content))?;
        if peeked.is_json_object() {
            return self.keep(path, size.min(FILE), &mut peeked);
        }
        if !peeked.is_tar() {
            return Ok(());
        }
        let known = self.layer.take_if(|layer| layer.path == path);
        let mut gathered = known.map(|layer| layer.gathered).unwrap_or_default();
        gathered.sizes.clear();
        gathered.walk_archive(Box::new(peeked), false)?;
        if gathered.has_checkpoint() {
            ensure!(self.layer.is_none(), "it holds more than one checkpoint");
            self.layer = Some(Layer { path, gathered });
        }
        Ok(())
    }

    fn note(&mut self, path: &str, size: u64) -> Result<()> {
        let deep = path.matches('/').count() > 1;
        let key = if deep { path.split('/').next().unwrap_or(path) } else { path };
        ensure!(self.sizes.len() < NAMES, "it has more than {NAMES} files: it is no checkpoint");
        let sum = self.sizes.entry(key.to_owned()).or_default();
        *sum = sum.saturating_add(size);
        Ok(())
    }

    fn keep(&mut self, path: String, size: u64, content: &mut dyn Bytes) -> Result<()> {
        if self.kept.contains_key(&path) {
            return Ok(());
        }
        ensure!(size <= FILE, "it is larger than {FILE} bytes");
        let mut bytes = Vec::new();
        content.take(FILE).read_to_end(&mut bytes)?;
        self.bytes += bytes.len() as u64;
        ensure!(self.bytes <= KEPT, "what describes it is larger than {KEPT} bytes");
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if name.starts_with("mm-") || name.starts_with("pagemap-") {
            self.memory.entry(directory.to_owned()).or_default().learn(name, &bytes);
        }
        self.kept.insert(path, bytes);
        Ok(())
    }

    /// Where the images are, if they are here.
    pub(super) fn images_path(&self) -> Option<&str> {
        self.kept.keys().find_map(|path| {
            let directory = path.strip_suffix(INVENTORY)?;
            (directory.is_empty() || directory.ends_with('/'))
                .then(|| directory.trim_end_matches('/'))
        })
    }

    fn has_checkpoint(&self) -> bool {
        self.images_path().is_some()
    }

    /// The images.
    pub(super) fn images(&self) -> Option<ImageDir> {
        let directory = self.images_path()?;
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let files = self.kept.iter().filter_map(|(path, bytes)| {
            let name = path.strip_prefix(&prefix)?;
            (!name.contains('/')).then(|| (name.to_owned(), bytes.clone()))
        });
        Some(ImageDir::of_memory(Path::new(directory), files.collect()))
    }

    /// What is known of the processes' memory.
    pub(super) fn memory(&self) -> Option<&MemoryUse> {
        self.memory.get(self.images_path()?)
    }

    /// A file that was kept.
    pub(super) fn file(&self, path: &str) -> Option<&[u8]> {
        self.kept.get(path).map(Vec::as_slice)
    }

    /// The file of that name beside the images, or beside their directory.
    pub(super) fn near_images(&self, name: &str) -> Option<&[u8]> {
        let images = self.images_path()?;
        let above = images.rsplit_once('/').map_or("", |(above, _)| above);
        [images, above].iter().find_map(|directory| {
            self.file(&if directory.is_empty() {
                name.to_owned()
            } else {
                format!("{directory}/{name}")
            })
        })
    }

    /// The documents of an image.
    pub(super) fn documents(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.kept.iter().map(|(path, bytes)| (path.as_str(), bytes.as_slice()))
    }
}

fn read_arguments(memory: &mut MemoryUse, pages: u32, content: &mut dyn Bytes) -> Result<()> {
    let mut at = 0;
    for want in memory.wanted(pages) {
        content.pass(want.offset - at)?;
        let mut bytes = Vec::new();
        content.take(want.length).read_to_end(&mut bytes)?;
        at = want.offset + bytes.len() as u64;
        memory.add(&want, bytes);
    }
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, Mode::empty())
        .with_context(|| format!("opening {}", path.display()))?;
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode);
    if !matches!(kind, FileType::RegularFile | FileType::Directory) {
        bail!("{} is neither a file nor a directory", path.display());
    }
    Ok(file.into())
}

/// A path of an archive, relative and without dots; `None` for one that leads out or is no text.
fn normal(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let names = path.split('/').filter(|name| !name.is_empty() && *name != ".");
    let names: Vec<&str> = names.collect();
    (!names.is_empty() && !names.contains(&"..")).then(|| names.join("/"))
}

/// Whether a file of an image is named by its digest: a layer, a manifest, a configuration.
fn is_blob(path: &str) -> bool {
    let mut names = path.rsplit('/');
    let name = names.next().unwrap_or_default();
    let name = if name == "layer.tar" { names.next().unwrap_or_default() } else { name };
    let stem = name.split_once('.').map_or(name, |(stem, _)| stem);
    stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Whether a file describes a checkpoint or an image.
fn is_kept(name: &str) -> bool {
    const NAMES: [&str; 22] = [
        INVENTORY,
        "pstree.img",
        "files.img",
        "remap-fpath.img",
        "tty-info.img",
        "tty-data.img",
        "memfd.img",
        "filelocks.img",
        "stats-dump",
        "descriptors.json",
        "config.dump",
        "spec.dump",
        "config.json",
        "network.status",
        "index.json",
        "manifest.json",
        "oci-layout",
        "repositories",
        "user_info.txt",
        crate::store::manifest::NAME,
        crate::store::manifest::DIGEST,
        crate::files::TABLE,
    ];
    const PREFIXES: [&str; 6] = ["core-", "ids-", "mm-", "fs-", "fdinfo-", "pagemap-"];
    let is_image = name.ends_with(".img") && PREFIXES.iter().any(|begin| name.starts_with(begin));
    is_image || NAMES.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        assert_eq!(normal(b"./checkpoint//a").as_deref(), Some("checkpoint/a"));
        assert_eq!(normal(b"/etc/passwd").as_deref(), Some("etc/passwd"));
        for bad in [&b"../a"[..], b"a/../../b", b"./", b"", b"a\xff"] {
            assert_eq!(normal(bad), None, "{bad:?}");
        }
    }

    /// An archive as podman makes it, of whose own archive so many bytes are there.
    fn exported(length: u64) -> Gathered {
        let directory = tempfile::tempdir().unwrap();
        let top = directory.path();
        std::fs::write(top.join("file"), vec![b'x'; 3000]).unwrap();
        let tar = |name: &str, of: &str| {
            let mut tar = std::process::Command::new("tar");
            tar.arg("-C").arg(top).arg("-cf").arg(top.join(name)).arg(of);
            assert!(tar.status().unwrap().success());
        };
        tar(PODMANS_DIFF, "file");
        File::options().write(true).open(top.join(PODMANS_DIFF)).unwrap().set_len(length).unwrap();
        tar("web.tar", PODMANS_DIFF);
        Gathered::of(&top.join("web.tar")).unwrap()
    }

    #[test]
    fn an_archive_that_podman_has_cut_is_known() {
        assert!(!exported(10240).has_cut_diff);
        let cut = exported(2048);
        assert!(cut.has_cut_diff && cut.sizes[PODMANS_DIFF] == 2048);
    }

    #[test]
    fn names_of_layers() {
        let digest = "0123456789abcdef".repeat(4);
        for name in [
            format!("blobs/sha256/{digest}"),
            format!("{digest}.tar"),
            format!("{digest}/layer.tar"),
            format!("{digest}.json"),
        ] {
            assert!(is_blob(&name), "{name}");
        }
        for name in ["layer.tar", "rootfs-diff.tar", "blobs/sha256/12", "checkpoint/core-1.img"] {
            assert!(!is_blob(name), "{name}");
        }
    }
}

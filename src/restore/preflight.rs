//! Looking at every file that CRIU will open by its path, before anything is changed.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::bytes::ByteString;
use crate::container::Bundle;
use crate::criu::images::Images;
use crate::files::{FileId, Found, preflight};
use crate::hint::WithHint;
use crate::snapshot::{Kind, Lookup, Part, Plan};

/// Makes sure that CRIU will find every file as it was.
pub(super) fn check(
    images: &Path,
    plan: Option<&Plan<'_>>,
    part: Option<&Part>,
    bundle: &Bundle,
    substituted: &[FileId],
) -> Result<()> {
    let images = Images::load(images).context("reading CRIU's images")?;
    let view = View::of(plan, part, bundle)?;
    let problems = preflight(&images, substituted, &|path| view.look(path));
    let Some(first) = problems.first() else { return Ok(()) };
    let mut text = String::from("some files are not as CRIU needs them:");
    for problem in &problems {
        let _ = write!(text, "\n  {problem}");
    }
    let advice = first.hint();
    let refused: Result<()> = (|| bail!(text))();
    refused.hint(advice)
}

/// The file systems of the container to be, as far as they can be seen from here.
struct View<'a> {
    root: File,
    part: Option<&'a Part>,
    /// What the reconciliation will change.
    changed: HashSet<ByteString>,
    mounts: Vec<Mount>,
}

/// A mount of the container, by its point.
struct Mount {
    point: PathBuf,
    /// What is bound there; `None` for a file system of its own, which CRIU fills.
    source: Option<PathBuf>,
}

impl<'a> View<'a> {
    fn of(plan: Option<&Plan<'_>>, part: Option<&'a Part>, bundle: &Bundle) -> Result<Self> {
        let root = File::open(&bundle.rootfs)
            .with_context(|| format!("opening {}", bundle.rootfs.display()))?;
        let changed =
            plan.into_iter().flat_map(Plan::actions).map(|action| action.path.clone()).collect();
        let mounts = bundle
            .spec
            .mounts()
            .iter()
            .flatten()
            .map(|mount| Mount::of(mount, &bundle.directory))
            .collect();
        Ok(Self { root, part, changed, mounts })
    }

    fn look(&self, path: &Path) -> Found {
        let mount = self
            .mounts
            .iter()
            .enumerate()
            .filter(|(_, mount)| path.starts_with(&mount.point))
            .max_by_key(|(order, mount)| (mount.point.components().count(), *order));
        match mount {
            Some((_, Mount { source: None, .. })) => Found::Unknown,
            Some((_, Mount { point, source: Some(source) })) => {
                look_in_bind(source, path.strip_prefix(point).unwrap_or(Path::new("")))
            }
            None => self.look_in_root(path.strip_prefix("/").unwrap_or(path)),
        }
    }

    fn look_in_root(&self, path: &Path) -> Found {
        match self.part.map(|part| part.lookup(path.as_os_str().as_bytes())) {
            Some(Lookup::Present(entry)) => {
                let (kind, size) = kind_and_size(&entry.kind);
                Found::Present { mode: entry.meta.mode | kind.as_raw_mode(), size }
            }
            Some(Lookup::Absent) => Found::Missing,
            Some(Lookup::Below) if self.will_change(path) => Found::Unknown,
            Some(Lookup::Below) | None => look_below(&self.root, path),
        }
    }

    fn will_change(&self, path: &Path) -> bool {
        path.ancestors()
            .filter(|above| !above.as_os_str().is_empty())
            .any(|above| self.changed.contains(&ByteString::from(above)))
    }
}

impl Mount {
    fn of(mount: &oci_spec::runtime::Mount, bundle: &Path) -> Self {
        let options = mount.options().iter().flatten();
        let is_bind = mount.typ().as_deref() == Some("bind")
            || options.into_iter().any(|option| option == "bind" || option == "rbind");
        let source = mount.source().as_ref().filter(|_| is_bind).map(|source| bundle.join(source));
        Self { point: mount.destination().clone(), source }
    }
}

fn look_in_bind(source: &Path, path: &Path) -> Found {
    match File::open(source) {
        Ok(file) if path.as_os_str().is_empty() => found(&file),
        Ok(directory) => look_below(&directory, path),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Found::Missing,
        Err(_) => Found::Unknown,
    }
}

/// Looks a path up below a directory, through no link: CRIU's names have none. Where there is
/// one now, what it leads to depends on the container's mounts, and CRIU has to judge.
fn look_below(directory: &File, path: &Path) -> Found {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(
        directory,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    ) {
        Ok(fd) => found(&File::from(fd)),
        Err(Errno::NOENT) => Found::Missing,
        Err(Errno::NOTDIR) => Found::NotADirectory(ByteString::from(path.parent().unwrap_or(path))),
        Err(_) => Found::Unknown,
    }
}

/// The type of what a snapshot holds, and the length of a regular file.
fn kind_and_size(kind: &Kind) -> (FileType, u64) {
    match kind {
        Kind::File { size, .. } => (FileType::RegularFile, *size),
        Kind::Dir { .. } => (FileType::Directory, 0),
        Kind::Symlink { .. } => (FileType::Symlink, 0),
        Kind::Char { .. } => (FileType::CharacterDevice, 0),
        Kind::Block { .. } => (FileType::BlockDevice, 0),
        Kind::Fifo => (FileType::Fifo, 0),
        Kind::Socket => (FileType::Socket, 0),
        Kind::Link { .. } | Kind::Whiteout => (FileType::Unknown, 0),
    }
}

fn found(file: &File) -> Found {
    rustix::fs::fstat(file).map_or(Found::Unknown, |stat| Found::Present {
        mode: stat.st_mode,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
    })
}

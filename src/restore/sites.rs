//! The file systems of the container to be, as far as they can be seen from here.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::reconcile::Target;
use crate::bytes::ByteString;
use crate::container::Bundle;
use crate::files::FoundFile;
use crate::snapshot::{Changes, Kind, Lookup, PackedPart, Plan, Verb};
use crate::substitute::Site;

/// The file systems of the container to be, as far as they can be seen from here, in the order of
/// mounting: the root file system is the first.
pub(super) struct FutureMounts<'a> {
    mounts: Vec<Mount<'a>>,
}

/// A file system of the container, by where it is mounted.
struct Mount<'a> {
    point: PathBuf,
    /// What is there on the host; `None` for a file system of its own, which CRIU fills.
    source: Option<PathBuf>,
    /// Whether the container may write there.
    writable: bool,
    part: Option<&'a PackedPart>,
    /// What putting the part back will change.
    changes: Option<Changes>,
}

impl<'a> FutureMounts<'a> {
    pub(super) fn of(parts: &'a [Target], plans: &[Plan<'_>], bundle: &Bundle) -> Result<Self> {
        let root = Some(bundle.rootfs.clone());
        let mut mounts = vec![Mount::new("/".into(), root, !bundle.is_read_only())];
        for mount in bundle.spec.mounts().iter().flatten() {
            let bind = bundle.bind(mount);
            let writable = bind.as_ref().is_some_and(|bind| !bind.read_only);
            let source = bind.map(|bind| bind.source);
            mounts.push(Mount::new(mount.destination().clone(), source, writable));
        }
        for (part, plan) in parts.iter().zip(plans) {
            let holds = |mount: &&mut Mount<'_>| mount.point == part.destination;
            let mount = mounts.iter_mut().rfind(holds).context("a part is mounted nowhere")?;
            mount.part = Some(&part.packed);
            mount.changes = Some(plan.changes());
        }
        Ok(Self { mounts })
    }

    pub(super) fn look(&self, path: &Path) -> FoundFile {
        self.mount(path).map_or(FoundFile::Unknown, |(mount, below)| mount.look(below))
    }

    /// What will be at a path, and where that is now.
    pub(super) fn site(&self, path: &Path) -> Site {
        let Some((mount, below)) = self.mount(path) else {
            return Site {
                found: FoundFile::Unknown,
                directory: None,
                relative: path.to_owned(),
                writable: false,
            };
        };
        Site {
            found: mount.look(below),
            directory: mount.source.clone(),
            relative: below.to_owned(),
            writable: mount.writable,
        }
    }

    /// The mount that a path is on, and the rest of the path.
    fn mount<'b>(&self, path: &'b Path) -> Option<(&Mount<'a>, &'b Path)> {
        let above =
            self.mounts.iter().enumerate().filter(|(_, mount)| path.starts_with(&mount.point));
        let deepest = above.max_by_key(|(order, mount)| (mount.point.components().count(), *order));
        let (_, mount) = deepest?;
        Some((mount, path.strip_prefix(&mount.point).unwrap_or(Path::new(""))))
    }
}

impl<'a> Mount<'a> {
    fn new(point: PathBuf, source: Option<PathBuf>, writable: bool) -> Self {
        Self { point, source, writable, part: None::<&'a PackedPart>, changes: None }
    }

    fn look(&self, path: &Path) -> FoundFile {
        let Some(source) = &self.source else { return FoundFile::Unknown };
        match self.part.map(|part| part.lookup(path.as_os_str().as_bytes())) {
            Some(Lookup::Present(entry)) => {
                let (kind, size) = kind_and_size(&entry.kind);
                FoundFile::Present { mode: entry.meta.mode | kind.as_raw_mode(), size }
            }
            Some(Lookup::Absent) => FoundFile::Missing,
            Some(Lookup::Below) => match self.change_of(path) {
                Some(Verb::Remove) => FoundFile::Missing,
                Some(_) => FoundFile::Unknown,
                None => look_in(source, path),
            },
            None => look_in(source, path),
        }
    }

    /// What will be done to a path, or to what it is in.
    fn change_of(&self, path: &Path) -> Option<Verb> {
        self.changes.as_ref()?.of(path.as_os_str().as_bytes())
    }
}

fn look_in(source: &Path, path: &Path) -> FoundFile {
    // To open a pipe is to wait, and some devices begin to work.
    match rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Ok(file) if path.as_os_str().is_empty() => found(&file),
        Ok(directory) => look_below(&directory, path),
        Err(Errno::NOENT) => FoundFile::Missing,
        Err(_) => FoundFile::Unknown,
    }
}

/// Looks a path up below a directory, through no link: CRIU's names have none. Where there is
/// one now, what it leads to depends on the container's mounts, and CRIU has to judge.
fn look_below(directory: &OwnedFd, path: &Path) -> FoundFile {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(
        directory,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    ) {
        Ok(fd) => found(&fd),
        Err(Errno::NOENT) => FoundFile::Missing,
        Err(Errno::NOTDIR) => {
            FoundFile::NotADirectory(ByteString::from(path.parent().unwrap_or(path)))
        }
        Err(_) => FoundFile::Unknown,
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

fn found(file: &OwnedFd) -> FoundFile {
    rustix::fs::fstat(file).map_or(FoundFile::Unknown, |stat| FoundFile::Present {
        mode: stat.st_mode,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
    })
}

//! The file systems of the container to be, as far as they can be seen from here.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::bytes::ByteString;
use crate::container::Bundle;
use crate::files::FoundFile;
use crate::snapshot::{PlannedChanges, ShownAt, Shows, Verb};
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
    part: Option<&'a dyn Shows>,
    /// What putting the part back will change.
    changes: Option<PlannedChanges>,
}

impl<'a> FutureMounts<'a> {
    /// Those of a bundle, as they are now.
    pub(super) fn of(bundle: &Bundle) -> Self {
        let root = Some(bundle.rootfs.clone());
        let mut mounts = vec![Mount::new("/".into(), root, !bundle.is_read_only())];
        for mount in bundle.spec.mounts().iter().flatten() {
            let bind = bundle.bind(mount);
            let writable = bind.as_ref().is_some_and(|bind| !bind.read_only);
            let source = bind.map(|bind| bind.source);
            mounts.push(Mount::new(mount.destination().clone(), source, writable));
        }
        Self { mounts }
    }

    /// Notes that what is mounted at `destination` will be what a snapshot shows, by these changes.
    pub(super) fn put_back(
        &mut self,
        destination: &Path,
        part: &'a dyn Shows,
        changes: Option<PlannedChanges>,
    ) -> Result<()> {
        let holds = |mount: &&mut Mount<'_>| mount.point == destination;
        let mount = self.mounts.iter_mut().rfind(holds).context("a part is mounted nowhere")?;
        mount.part = Some(part);
        mount.changes = changes;
        Ok(())
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
        Self { point, source, writable, part: None, changes: None }
    }

    fn look(&self, path: &Path) -> FoundFile {
        let Some(source) = &self.source else { return FoundFile::Unknown };
        match self.part.map(|part| part.shows(path.as_os_str().as_bytes())) {
            Some(ShownAt::Present { mode, size }) => FoundFile::Present { mode, size },
            Some(ShownAt::Absent) => FoundFile::Missing,
            Some(ShownAt::Below) => match self.change_of(path) {
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
        // The runtime makes a control group anew before CRIU looks for it.
        Ok(directory) if is_of_control_groups(&directory) => FoundFile::Unknown,
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

/// Whether the kernel shows control groups there (`CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` of
/// include/uapi/linux/magic.h).
fn is_of_control_groups(directory: &OwnedFd) -> bool {
    const CGROUP: u64 = 0x0027_e0eb;
    const CGROUP2: u64 = 0x6367_7270;
    rustix::fs::fstatfs(directory)
        .is_ok_and(|system| matches!(system.f_type as u64, CGROUP | CGROUP2))
}

fn found(file: &OwnedFd) -> FoundFile {
    rustix::fs::fstat(file).map_or(FoundFile::Unknown, |stat| FoundFile::Present {
        mode: stat.st_mode,
        size: u64::try_from(stat.st_size).unwrap_or_default(),
    })
}

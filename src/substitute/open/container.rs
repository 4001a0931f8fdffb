//! Files of the container, which CRIU opens in the container's mounts.
//!
//! A file descriptor opened here would be of a mount that the container does not have. So the
//! image names the path instead, and what is here to do is to make sure that it will be there.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, SeekFrom};

use super::file::{check_new, check_options, open_flags, seek, seek_new};
use super::{Around, Site, check_access, check_directory, file_type};
use crate::bytes::ByteString;
use crate::files::{FoundFile, OpenFile};
use crate::substitute::rewrite::How;
use crate::substitute::source::{Access, FileSource};
use crate::sys::fs::{check_path, proc_path};

/// A path that CRIU is to open.
#[derive(Debug)]
pub(super) struct Reopen {
    path: ByteString,
    flags: OFlags,
    position: Option<u64>,
    /// Where it is on the host, if it is of a file system that the host has.
    host_path: Option<PathBuf>,
    /// What is to be made or truncated before, below which directory.
    change: Option<(PathBuf, PathBuf, Change)>,
}

/// What becomes of a file before CRIU opens it.
#[derive(Clone, Copy, Debug)]
enum Change {
    Make,
    Truncate,
}

pub(super) fn prepare(
    source: &FileSource,
    file: &OpenFile,
    around: &Around<'_>,
) -> Result<Reopen, String> {
    let below = source.path.as_bytes().strip_prefix(b"/").unwrap_or_default();
    check_path(below).map_err(|error| format!("the path cannot be used: {error}"))?;
    let access = source.access.unwrap_or_else(|| Access::of(file.flags));
    check_access(access, file)?;
    if file.watched {
        return Err(
            "an epoll instance watches the original, and a file cannot be polled: with `,drop` \
             behind the rule it is watched no more"
                .to_owned(),
        );
    }
    let flags = open_flags(source, access, file);
    let site = (around.site)(source.path.as_path());
    let is_new = site.found == FoundFile::Missing && source.create;
    check_site(source, file, around, &site, is_new)?;
    if !site.writable && (access != Access::Read || is_new || source.truncate) {
        return Err("the container cannot write there".to_owned());
    }
    let (is_regular, size) = match site.found {
        FoundFile::Present { mode, size } => {
            (FileType::from_raw_mode(mode) == FileType::RegularFile, size)
        }
        _ => (true, 0),
    };
    check_options(source, is_regular, flags)?;
    let size = if source.truncate { 0 } else { size };
    let seek = if is_new { seek_new(source, file)? } else { seek(source, file)? };
    let position = is_regular.then(|| position(seek, size));
    let change = change(source, &site, is_new);
    let host_path = site.directory.as_ref().map(|directory| directory.join(&site.relative));
    Ok(Reopen { path: source.path.clone(), flags, position, host_path, change })
}

/// Refuses what is not there, and what does more than hold bytes: a device or pipe that the
/// container made must not be opened on its behalf.
fn check_site(
    source: &FileSource,
    file: &OpenFile,
    around: &Around<'_>,
    site: &Site,
    is_new: bool,
) -> Result<(), String> {
    let is_directory = match &site.found {
        FoundFile::Missing if is_new => {
            check_parent(source, around)?;
            check_new(file)?;
            false
        }
        FoundFile::Missing => {
            return Err("the container has no such file (with `create` it is made)".to_owned());
        }
        FoundFile::NotADirectory(prefix) => return Err(format!("{prefix} is not a directory")),
        FoundFile::Unknown => {
            return Err(format!(
                "what is at {} cannot be seen from here: a symbolic link is on the way, or it is on a \
                 file system that only the container has",
                source.path
            ));
        }
        FoundFile::Present { mode, .. } => match FileType::from_raw_mode(*mode) {
            FileType::RegularFile => false,
            FileType::Directory => true,
            FileType::Symlink => {
                return Err("it is a symbolic link: name the file that it leads to".to_owned());
            }
            _ => return Err("it is neither a regular file nor a directory".to_owned()),
        },
    };
    check_directory(is_directory, file)
}

/// A file is made in a directory that will be there.
fn check_parent(source: &FileSource, around: &Around<'_>) -> Result<(), String> {
    let parent = source.path.as_path().parent().filter(|parent| *parent != Path::new("/"));
    let is_directory = |mode| FileType::from_raw_mode(mode) == FileType::Directory;
    match parent.map(|parent| (around.site)(parent).found) {
        None => Ok(()),
        Some(FoundFile::Present { mode, .. }) if is_directory(mode) => Ok(()),
        Some(_) => Err("the directory to make it in is missing".to_owned()),
    }
}

fn position(seek: Option<SeekFrom>, size: u64) -> u64 {
    match seek {
        Some(SeekFrom::Start(position)) => position,
        Some(_) => size,
        None => 0,
    }
}

fn change(source: &FileSource, site: &Site, is_new: bool) -> Option<(PathBuf, PathBuf, Change)> {
    let change = match (is_new, source.truncate) {
        (true, _) => Change::Make,
        (false, true) => Change::Truncate,
        (false, false) => return None,
    };
    Some((site.directory.clone()?, site.relative.clone(), change))
}

impl Reopen {
    /// What becomes of the open file in the images.
    pub(super) fn how(&self) -> How {
        How::Reopen { path: self.path.clone(), flags: self.flags.bits(), position: self.position }
    }

    pub(super) fn host_path(&self) -> Option<&Path> {
        self.host_path.as_deref()
    }

    /// Makes or truncates the file.
    pub(super) fn settle(&self) -> Result<(), String> {
        let Some((directory, relative, change)) = &self.change else { return Ok(()) };
        match change {
            Change::Make => make(directory, relative).map_err(|error| error.to_string()),
            Change::Truncate => truncate(directory, relative),
        }
    }
}

fn make(directory: &Path, relative: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    open_below(directory, relative, flags, Mode::RUSR | Mode::WUSR).map(drop)
}

/// It is looked at before it is opened: to open a device or a pipe may do something by itself.
fn truncate(directory: &Path, relative: &Path) -> Result<(), String> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file =
        open_below(directory, relative, flags, Mode::empty()).map_err(|error| error.to_string())?;
    if file_type(&file)? != FileType::RegularFile {
        return Err("it is no regular file any more".to_owned());
    }
    nix::unistd::truncate(proc_path(&file).as_str(), 0).map_err(|error| error.to_string())
}

/// Opens a path that leads nowhere else, whoever owns what it is below.
fn open_below(
    directory: &Path,
    relative: &Path,
    flags: OFlags,
    mode: Mode,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // What is mounted is a file by itself, maybe: then there is no path below it.
    if relative.as_os_str().is_empty() {
        return rustix::fs::open(directory, flags, mode);
    }
    let root = rustix::fs::open(
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    rustix::io::retry_on_intr(|| rustix::fs::openat2(&root, relative, flags, mode, resolve))
}

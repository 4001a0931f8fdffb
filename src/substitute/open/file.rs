//! Files of the host.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, SeekFrom};
use rustix::io::Errno;

use super::{check_access, check_type, file_type};
use crate::files::{FileKind, OpenFile};
use crate::substitute::rule::Origin;
use crate::substitute::source::{Access, FileSource, Position};

/// What is left to do to a file.
#[derive(Debug)]
pub(super) enum Pending {
    /// One that is there.
    Open { fd: OwnedFd, flags: OFlags, truncate: bool, seek: Option<SeekFrom> },
    /// One that has to be made.
    New { path: PathBuf, resolve: ResolveFlags, flags: OFlags, seek: Option<SeekFrom> },
}

pub(super) fn prepare(
    source: &FileSource,
    origin: &Origin,
    file: &OpenFile,
) -> Result<Pending, String> {
    let access = source.access.unwrap_or_else(|| Access::of(file.flags));
    check_access(access, file)?;
    let flags = open_flags(source, access, file);
    let opening = OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = resolve(origin);
    match open(source.path.as_path(), flags | opening, Mode::empty(), resolve) {
        Ok(fd) => prepare_open(source, file, fd, flags),
        Err(Errno::NOENT) if source.create => prepare_new(source, resolve, file, flags),
        Err(Errno::NOENT) => Err("there is no such file (with `create` it is made)".to_owned()),
        Err(Errno::NXIO) => Err("nobody reads from this pipe".to_owned()),
        Err(Errno::LOOP) if origin.is_annotation() => Err(LINK.to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// Why a path of an annotation is refused.
pub(super) const LINK: &str = "a symbolic link is on the way, which an annotation may not use: name \
                               the file that it leads to";

/// The administrator allows paths; who can make links there could lead them elsewhere.
pub(super) fn resolve(origin: &Origin) -> ResolveFlags {
    if origin.is_annotation() {
        ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
    } else {
        ResolveFlags::empty()
    }
}

fn open(path: &Path, flags: OFlags, mode: Mode, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::CLOEXEC;
    rustix::io::retry_on_intr(|| rustix::fs::openat2(CWD, path, flags, mode, resolve))
}

/// The access of the rule and what the original's flags say of writing and waiting.
pub(super) fn open_flags(source: &FileSource, access: Access, file: &OpenFile) -> OFlags {
    let original = OFlags::from_bits_truncate(file.flags);
    let kept = original & (OFlags::APPEND | OFlags::NONBLOCK);
    let added = if source.append { OFlags::APPEND } else { OFlags::empty() };
    kept | added
        | match access {
            Access::Read => OFlags::RDONLY,
            Access::Write => OFlags::WRONLY,
            Access::Both => OFlags::RDWR,
        }
}

fn prepare_open(
    source: &FileSource,
    file: &OpenFile,
    fd: OwnedFd,
    flags: OFlags,
) -> Result<Pending, String> {
    check_type(&fd, file)?;
    let is_regular = file_type(&fd)? == FileType::RegularFile;
    check_options(source, is_regular, flags)?;
    let seek = if is_regular { seek(source, file)? } else { None };
    Ok(Pending::Open { fd, flags, truncate: source.truncate, seek })
}

/// Refuses options that only regular files have.
pub(super) fn check_options(
    source: &FileSource,
    is_regular: bool,
    flags: OFlags,
) -> Result<(), String> {
    if source.truncate && !(is_regular && flags.intersects(OFlags::WRONLY | OFlags::RDWR)) {
        return Err("`truncate` is for regular files opened for writing".to_owned());
    }
    if source.position.is_some() && !is_regular {
        return Err("`pos` is for regular files".to_owned());
    }
    Ok(())
}

fn prepare_new(
    source: &FileSource,
    resolve: ResolveFlags,
    file: &OpenFile,
    flags: OFlags,
) -> Result<Pending, String> {
    let path = source.path.as_path();
    if !path.parent().is_some_and(Path::is_dir) {
        return Err("the directory to make it in is missing".to_owned());
    }
    check_new(file)?;
    Ok(Pending::New { path: path.to_owned(), resolve, flags, seek: seek_new(source, file)? })
}

/// Whether a new regular file can take the place of this.
pub(super) fn check_new(file: &OpenFile) -> Result<(), String> {
    if file.kind == FileKind::Dir || file.watched {
        return Err("a new file can be neither a directory nor polled".to_owned());
    }
    Ok(())
}

/// Where a file begins that is made for the rule: there is nothing yet for a position to be kept in.
pub(super) fn seek_new(source: &FileSource, file: &OpenFile) -> Result<Option<SeekFrom>, String> {
    match source.position {
        Some(_) => seek(source, file),
        None => Ok(None),
    }
}

/// Where a regular file that is there goes on.
pub(super) fn seek(source: &FileSource, file: &OpenFile) -> Result<Option<SeekFrom>, String> {
    let kept = match (source.position, file.position) {
        (Some(Position::End), _) => return Ok(Some(SeekFrom::End(0))),
        (Some(Position::Keep), None) => {
            return Err("`pos=keep`: the original has no position".to_owned());
        }
        (Some(Position::Start), _) | (None, None) => return Ok(None),
        (None, _) if source.truncate => return Ok(None),
        (_, Some(position)) => position,
    };
    if i64::try_from(kept).is_err() {
        return Err(format!("the original's position {kept} is beyond any file"));
    }
    Ok(Some(SeekFrom::Start(kept)))
}

impl Pending {
    pub(super) fn finish(self) -> Result<OwnedFd, String> {
        let text = |error: Errno| error.to_string();
        let (fd, seek) = match self {
            Self::Open { fd, flags, truncate, seek } => {
                rustix::fs::fcntl_setfl(&fd, flags).map_err(text)?;
                if truncate {
                    rustix::fs::ftruncate(&fd, 0).map_err(text)?;
                }
                (fd, seek)
            }
            Self::New { path, resolve, flags, seek } => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                (open(&path, flags, Mode::RUSR | Mode::WUSR, resolve).map_err(text)?, seek)
            }
        };
        if let Some(seek) = seek {
            rustix::fs::seek(&fd, seek).map_err(text)?;
        }
        Ok(fd)
    }
}

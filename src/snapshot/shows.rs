//! What a snapshot shows at a path: one that is packed, and one that has just been taken.

use std::os::fd::AsFd;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};

use super::attributes::Found;
use super::identity::Form;
use super::index::{Entry, Kind};
use super::part::{Lookup, PackedPart};
use super::split;
use super::walk::{Seen, Tree};

/// What a snapshot shows at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShownAt {
    /// An inode.
    Present {
        /// Its type and permissions, as `st_mode` has them.
        mode: u32,
        /// The length of a regular file; 0 for others.
        size: u64,
    },
    /// Nothing.
    Absent,
    /// What the layers below show.
    Below,
}

/// A snapshot that can be asked what it shows, be it packed or not.
pub trait Shows {
    /// What is at a path, relative to the root and without `.` and `..`.
    fn shows(&self, path: &[u8]) -> ShownAt;
}

impl Shows for PackedPart {
    fn shows(&self, path: &[u8]) -> ShownAt {
        match self.lookup(path) {
            Lookup::Present(Entry { kind, meta, .. }) => {
                let size = if let Kind::File { size, .. } = kind { *size } else { 0 };
                let kind = kind.inode().map_or(FileType::Unknown, |kind| kind.file_type());
                ShownAt::Present { mode: meta.mode | kind.as_raw_mode(), size }
            }
            Lookup::Absent => ShownAt::Absent,
            Lookup::Below => ShownAt::Below,
        }
    }
}

/// What a walk has found at a path, in a root of this form: as [`PackedPart::lookup`] of the part that is
/// made of it.
pub(super) fn shown_in(tree: &Tree, form: Form, path: &[u8]) -> ShownAt {
    let mut at = path;
    loop {
        let is_it = at.len() == path.len();
        match tree.get(at) {
            Some(Seen::Inode { found, .. }) if is_it => return present(found),
            Some(Seen::Inode { found, opaque: false, .. }) if found.kind.is_dir() => {}
            None => {}
            Some(Seen::Inode { .. } | Seen::Whiteout) => return ShownAt::Absent,
        }
        match split(at) {
            Some((parent, _)) => at = parent,
            None if form == Form::Directory => return ShownAt::Absent,
            None => return ShownAt::Below,
        }
    }
}

fn present(found: &Found) -> ShownAt {
    let size = if found.kind.is_file() { found.identity.size } else { 0 };
    ShownAt::Present { mode: found.meta.mode | found.kind.file_type().as_raw_mode(), size }
}

/// What is below a directory that holds all of a snapshot. What cannot be looked at is not there.
pub(super) fn shown_below(directory: impl AsFd, path: &[u8]) -> ShownAt {
    let path = if path.is_empty() { b"." } else { path };
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    // `NOFOLLOW` and `PATH` let the last name be a link (openat2(2)).
    let opened = rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve);
    match opened.and_then(|file| rustix::fs::fstat(&file)) {
        Ok(stat) => {
            let is_file = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
            let size = if is_file { u64::try_from(stat.st_size).unwrap_or_default() } else { 0 };
            ShownAt::Present { mode: stat.st_mode, size }
        }
        Err(_) => ShownAt::Absent,
    }
}

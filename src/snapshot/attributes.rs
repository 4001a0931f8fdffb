//! The attributes of one inode: read, compared, set.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result};
use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::index::{Fingerprint, Meta, is_overlay_xattr};
use super::inode::InodeKind;
use crate::bytes::ByteString;
use crate::limits::{self, Limit};
use crate::sys::fs;
use crate::sys::inode::{DevIno, Device};
use crate::sys::time::Time;

/// An inode that was looked at.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub kind: InodeKind,
    pub meta: Meta,
    pub identity: Fingerprint,
    pub device: Device,
    pub names: u64,
}

impl Found {
    /// Looks at what an `O_PATH` descriptor refers to.
    pub(super) fn look(entry: impl AsFd) -> io::Result<Self> {
        let stat = fs::stat(&entry)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => InodeKind::Dir,
            FileType::Symlink => InodeKind::Symlink(fs::link_target(&entry)?),
            FileType::CharacterDevice => InodeKind::Char(Device::from_stat(stat.st_rdev)),
            FileType::BlockDevice => InodeKind::Block(Device::from_stat(stat.st_rdev)),
            FileType::Fifo => InodeKind::Fifo,
            FileType::Socket => InodeKind::Socket,
            _ => InodeKind::File(()),
        };
        let xattrs = xattrs(&entry)?;
        let identity = identity(&stat);
        let meta = Meta {
            // The mode of a symbolic link means nothing and cannot be set.
            mode: if kind.is_symlink() { 0o777 } else { stat.st_mode & 0o7777 },
            uid: stat.st_uid,
            gid: stat.st_gid,
            mtime: identity.mtime,
            xattrs,
        };
        Ok(Self {
            kind,
            meta,
            identity,
            device: Device::from_stat(stat.st_dev),
            names: stat.st_nlink,
        })
    }

    /// Which inode it is.
    pub(super) fn inode(&self) -> DevIno {
        DevIno { device: self.device, ino: self.identity.ino }
    }
}

/// The extended attributes of a file, but for the overlay's own.
fn xattrs(entry: impl AsFd) -> io::Result<BTreeMap<ByteString, ByteString>> {
    let (mut xattrs, mut bytes) = (BTreeMap::new(), 0);
    for name in fs::xattr_names(&entry)?.into_iter().filter(|name| !is_overlay_xattr(name)) {
        let Some(value) = fs::xattr(&entry, &name)? else { continue };
        bytes += name.len() + value.len();
        limits::ensure(Limit::Attributes, bytes as u64, "its attributes take")
            .map_err(io::Error::other)?;
        xattrs.insert(name.into(), value.into());
    }
    Ok(xattrs)
}

/// What stat(2) tells that changes with every change.
pub(super) fn identity(stat: &Stat) -> Fingerprint {
    Fingerprint {
        ino: stat.st_ino,
        size: stat.st_size as u64,
        mtime: Time::from_kernel(stat.st_mtime, stat.st_mtime_nsec as i64),
        ctime: Time::from_kernel(stat.st_ctime, stat.st_ctime_nsec as i64),
    }
}

/// Makes the attributes of what an `O_PATH` descriptor refers to equal to `meta`.
///
/// The order matters: chown(2) clears setuid, setgid and `security.capability`; a mode set after an
/// ACL would change the ACL's mask, and a default ACL of the directory has given a new file an ACL
/// that must go first; everything changes ctime, and only the last step sets mtime.
pub(super) fn apply(entry: impl AsFd, meta: &Meta) -> Result<()> {
    let now = Found::look(&entry).context("reading its attributes")?;
    let is_link = now.kind.is_symlink();
    let changes_owner = (now.meta.uid, now.meta.gid) != (meta.uid, meta.gid);
    if changes_owner {
        fs::set_owner(&entry, meta.uid, meta.gid).context("setting its owner")?;
    }
    for xattr in now.meta.xattrs.keys().filter(|name| !meta.xattrs.contains_key(*name)) {
        match fs::remove_xattr(&entry, xattr.as_bytes()) {
            Ok(()) => {}
            // chown has removed it; or a security module owns it and lets nobody.
            Err(error) if is_one_of(&error, &[Errno::NODATA]) => {}
            Err(error)
                if xattr.as_bytes().starts_with(b"security.")
                    && is_one_of(&error, &[Errno::ACCESS, Errno::OPNOTSUPP]) => {}
            Err(error) => {
                return Err(error).with_context(|| format!("removing its attribute {xattr}"));
            }
        }
    }
    let mode_now = fs::stat(&entry)?.st_mode & 0o7777;
    if !is_link && mode_now != meta.mode {
        fs::set_mode(&entry, meta.mode).context("setting its mode")?;
    }
    for (xattr, value) in &meta.xattrs {
        let same = now.meta.xattrs.get(xattr) == Some(value);
        let is_acl = xattr.as_bytes().starts_with(b"system.posix_acl");
        if !same || is_acl || changes_owner {
            fs::set_xattr(&entry, xattr.as_bytes(), value.as_bytes())
                .with_context(|| format!("setting its attribute {xattr}"))?;
        }
    }
    fs::set_mtime(&entry, meta.mtime).context("setting its time")
}

fn is_one_of(error: &io::Error, errnos: &[Errno]) -> bool {
    Errno::from_io_error(error).is_some_and(|errno| errnos.contains(&errno))
}

/// Whether a change right after `started` might carry the same ctime: as git does for its index.
pub(super) fn is_racy(ctime: Time, started: Time) -> bool {
    // The kernel stamps with the clock of its last tick, at least every 10 ms. A file system that
    // keeps only seconds (ext4 with small inodes) shows no nanoseconds.
    let grain: i128 = if ctime.nanoseconds == 0 { 2_000_000_000 } else { 20_000_000 };
    let nanoseconds =
        |time: Time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    nanoseconds(ctime) + grain >= nanoseconds(started)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_of_the_same_tick_proves_nothing() {
        assert!(is_racy(Time::new(100, 5), Time::new(100, 5)));
        assert!(is_racy(Time::new(100, 5), Time::new(100, 20_000_000)));
        assert!(!is_racy(Time::new(100, 5), Time::new(100, 30_000_000)));
        assert!(is_racy(Time::new(100, 0), Time::new(101, 900_000_000)));
        assert!(is_racy(Time::new(200, 1), Time::new(100, 0)), "a clock that went back");
    }
}

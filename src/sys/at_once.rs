//! What a file is, without waiting for whoever serves its file system.
//!
//! Of a file on FUSE, NFS and their like, fstat(2) asks the server: one in the container does not
//! answer while that is frozen, and one elsewhere when it pleases. statx(2) with
//! `AT_STATX_DONT_SYNC` tells what the kernel knows already (`fuse_update_get_attr` in
//! fs/fuse/dir.c, `nfs_getattr` in fs/nfs/inode.c); for file systems of the kernel's own there is no
//! difference. What statfs(2) tells is in mountinfo as well.

use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::io::Result;

use super::inode::{DevIno, Device};

/// What is known of a file, by the names of stat(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Which inode it is.
    pub inode: DevIno,
    /// Type and permissions.
    pub st_mode: u32,
    /// How many names it has.
    pub st_nlink: u32,
    /// Its owner.
    pub st_uid: u32,
    /// Its group.
    pub st_gid: u32,
    /// Of a device, its number.
    pub st_rdev: Device,
    /// Its length.
    pub st_size: u64,
    /// What it occupies, in units of 512 bytes.
    pub st_blocks: u64,
}

impl Stat {
    /// Whether it is a regular file.
    pub fn is_file(&self) -> bool {
        self.st_mode & libc::S_IFMT == libc::S_IFREG
    }
}

/// What is known of an open file.
pub fn stat(file: impl AsFd) -> Result<Stat> {
    read(statx(file, c"", flags() | AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?)
}

/// What is known of the file that a link of proc(5) stands for, such as `/proc/PID/fd/N`: following
/// it asks nobody, as no name is looked up.
pub fn stat_behind(link: &Path) -> Result<Stat> {
    read(statx(CWD, link, flags(), StatxFlags::BASIC_STATS)?)
}

fn flags() -> AtFlags {
    AtFlags::STATX_DONT_SYNC
}

fn read(found: rustix::fs::Statx) -> Result<Stat> {
    Ok(Stat {
        inode: DevIno {
            device: Device::new(found.stx_dev_major, found.stx_dev_minor),
            ino: found.stx_ino,
        },
        st_mode: found.stx_mode.into(),
        st_nlink: found.stx_nlink,
        st_uid: found.stx_uid,
        st_gid: found.stx_gid,
        st_rdev: Device::new(found.stx_rdev_major, found.stx_rdev_minor),
        st_size: found.stx_size,
        st_blocks: found.stx_blocks,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_stat_says() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        std::fs::write(&path, "12345").unwrap();
        for path in [&path, Path::new("/dev/null"), directory.path()] {
            let file = std::fs::File::open(path).unwrap();
            let (known, told) = (stat(&file).unwrap(), rustix::fs::fstat(&file).unwrap());
            assert_eq!(known.inode, DevIno::from(&told));
            assert_eq!((known.st_mode, known.st_rdev.as_stat()), (told.st_mode, told.st_rdev));
            assert_eq!(known.st_size, told.st_size.unsigned_abs());
            assert_eq!(known.st_blocks, told.st_blocks.unsigned_abs());
            assert_eq!((known.st_uid, known.st_gid), (told.st_uid, told.st_gid));
            assert_eq!(stat_behind(Path::new(&crate::sys::fs::proc_path(&file))).unwrap(), known);
        }
    }
}

//! Copies the bytes of files: cloned, by the kernel, or by hand; holes stay holes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use super::BUFFER;
use crate::limits::EXTENT_LIMIT;
use crate::sys::direct::{Buffer, Direct};
use crate::sys::extent::{Extent, next_data};
use crate::sys::fs;

/// Which way bytes take to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the page cache, which is the quickest as long as it has room.
    Cache,
    /// Past it.
    Direct,
}

/// How the bytes of a file came to be in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HowCopied {
    /// Both share them on disk.
    Shared,
    /// So many were moved.
    Moved(u64),
}

impl HowCopied {
    /// How many bytes were moved.
    pub(super) fn moved(self) -> u64 {
        match self {
            Self::Shared => 0,
            Self::Moved(bytes) => bytes,
        }
    }
}

/// Copies all of `source` to the empty file `target`.
///
/// Both ways wait for a write(2) that is under way, which has set the times already and not yet all
/// of the bytes: cloning locks the inode, and so does looking for data in it (`SEEK_DATA` of ext4,
/// btrfs and f2fs; xfs locks it for reading). One that begins later shows in ctime.
pub(super) fn copy_file(source: &OwnedFd, target: &OwnedFd, way: Way) -> io::Result<HowCopied> {
    match rustix::fs::ioctl_ficlone(target, source) {
        Ok(()) => return Ok(HowCopied::Shared),
        Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC.into()),
        Err(_) => {}
    }
    let size = fs::stat(source)?.st_size as u64;
    rustix::fs::ftruncate(target, size)?;
    let mut moved = 0;
    let mut at = 0;
    while let Some(data) = next_data(source, at, size)? {
        moved += match way {
            Way::Cache => copy_range(source.as_fd(), target.as_fd(), data)?,
            Way::Direct => copy_past_cache(source.as_fd(), target.as_fd(), data)?,
        };
        at = data.end();
    }
    Ok(HowCopied::Moved(moved))
}

fn copy_range(source: BorrowedFd<'_>, target: BorrowedFd<'_>, data: Extent) -> io::Result<u64> {
    let (mut from, mut to) = (data.offset, data.offset);
    while from < data.end() {
        let length = (data.end() - from).min(1 << 30) as usize;
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), length) {
            Ok(0) => break,
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::NOSPC | Errno::DQUOT) => return Err(Errno::NOSPC.into()),
            // Between kinds of file systems, and on old ones, the kernel does not copy.
            Err(_) => {
                from += copy_by_hand(source, target, Extent::between(from, data.end()))?;
                break;
            }
        }
    }
    // Less than asked for: the file was cut short meanwhile, which its ctime will tell.
    Ok(from - data.offset)
}

fn copy_past_cache(
    source: BorrowedFd<'_>,
    target: BorrowedFd<'_>,
    data: Extent,
) -> io::Result<u64> {
    let (source, mut target) = (as_file(source)?, Direct::new(as_file(target)?));
    let mut buffer = Buffer::new(BUFFER);
    let mut at = data.offset;
    while at < data.end() && buffer.fill(data.end() - at, |bytes| source.read_at(bytes, at))? > 0 {
        target.write_all_at(buffer.filled(), at)?;
        at += buffer.filled().len() as u64;
    }
    target.into_file()?;
    Ok(at - data.offset)
}

fn copy_by_hand(source: BorrowedFd<'_>, target: BorrowedFd<'_>, data: Extent) -> io::Result<u64> {
    let (source, target) = (as_file(source)?, as_file(target)?);
    let mut buffer = vec![0; BUFFER.min(data.length as usize)];
    let mut at = data.offset;
    while at < data.end() {
        let length = buffer.len().min((data.end() - at) as usize);
        match source.read_at(&mut buffer[..length], at)? {
            0 => break,
            read => {
                target.write_all_at(&buffer[..read], at)?;
                at += read as u64;
            }
        }
    }
    Ok(at - data.offset)
}

fn as_file(fd: BorrowedFd<'_>) -> io::Result<File> {
    Ok(File::from(fd.try_clone_to_owned()?))
}

/// The extents of a file, to 512 bytes (tar's block, so that every reader of sparse
/// members agrees where an extent begins), small holes closed until there are few enough.
pub(super) fn extents(file: impl AsFd, size: u64) -> io::Result<Vec<Extent>> {
    let mut list: Vec<Extent> = Vec::new();
    let mut least_hole = 4096;
    let mut at = 0;
    while let Some(data) = next_data(&file, at, size)? {
        at = data.end();
        let end = at.next_multiple_of(512).min(size);
        add_extent(&mut list, Extent::between(data.offset & !511, end), least_hole);
        if list.len() > EXTENT_LIMIT {
            least_hole *= 4;
            let old = std::mem::take(&mut list);
            for extent in old {
                add_extent(&mut list, extent, least_hole);
            }
        }
    }
    Ok(list)
}

fn add_extent(list: &mut Vec<Extent>, next: Extent, least_hole: u64) {
    match list.last_mut() {
        Some(last) if next.offset < last.end() + least_hole => {
            *last = Extent::between(last.offset, next.end());
        }
        _ => list.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_holes_are_closed_until_few_are_left() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        let count = 3 * EXTENT_LIMIT as u64;
        file.set_len(count * 8192).unwrap();
        for n in 0..count {
            file.write_all_at(b"x", n * 8192).unwrap();
        }
        let found = extents(&file, count * 8192).unwrap();
        assert!(found.len() <= EXTENT_LIMIT, "{}", found.len());
        assert!(found.windows(2).all(|pair| pair[0].end() < pair[1].offset));
    }

    #[test]
    fn holes_stay_holes() {
        for way in [Way::Cache, Way::Direct] {
            let file = || tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
            let (source, target) = (file(), file());
            source.write_all_at(b"tail", 10 << 20).unwrap();
            source.set_len(20 << 20).unwrap();
            let (source, target): (OwnedFd, OwnedFd) = (source.into(), target.into());
            copy_file(&source, &target, way).unwrap();
            let stat = fs::stat(&target).unwrap();
            assert_eq!(stat.st_size, 20 << 20);
            assert!(stat.st_blocks * 512 < 1 << 20);
            assert_eq!(extents(&target, 20 << 20).unwrap(), [Extent::new(10 << 20, 4096)]);
            let mut tail = [0; 5];
            File::from(target).read_exact_at(&mut tail, 10 << 20).unwrap();
            assert_eq!(tail, *b"tail\0");
        }
    }
}

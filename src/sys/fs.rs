//! File system calls relative to an open directory, which never follow a link.
//!
//! A path here is a list of names with `/` between; the empty path is the directory itself. It is
//! resolved by openat2(2) with `RESOLVE_IN_ROOT`, `RESOLVE_NO_SYMLINKS` and
//! `RESOLVE_NO_MAGICLINKS`, so that whoever owns the tree cannot lead a caller out of it.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::inode::DevIno;
use super::time::Time;

/// Paths are resolved in pieces of at most this many bytes, since a tree may be deeper than
/// `PATH_MAX`.
const PIECE: usize = 3500;

/// Why a name or path may not be used below a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// A name of no bytes: two slashes, a leading or a trailing one.
    #[error("it has an empty name")]
    Empty,
    /// `.` or `..`.
    #[error("it has a name of dots")]
    Dots,
    /// A NUL byte.
    #[error("it has a NUL byte")]
    Nul,
    /// A name above `NAME_MAX`.
    #[error("it has a name longer than 255 bytes")]
    Name,
}

/// Checks one name: not empty, no dots, no slash, no NUL, at most 255 bytes.
pub fn check_name(name: &[u8]) -> Result<(), BadPath> {
    match name {
        b"" => Err(BadPath::Empty),
        b"." | b".." => Err(BadPath::Dots),
        _ if name.len() > 255 => Err(BadPath::Name),
        _ if name.contains(&b'/') => Err(BadPath::Empty),
        _ if name.contains(&0) => Err(BadPath::Nul),
        _ => Ok(()),
    }
}

/// Checks every name of a relative path; the empty path is fine.
pub fn check_path(path: &[u8]) -> Result<(), BadPath> {
    if path.is_empty() {
        return Ok(());
    }
    path.split(|byte| *byte == b'/').try_for_each(check_name)
}

fn resolve() -> ResolveFlags {
    ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS
}

/// openat2(2), again when a rename elsewhere disturbed it.
fn open_beneath(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    for _ in 0..128 {
        match rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve()) {
            // EAGAIN: "a rename or mount happened anywhere while `..` or the root was checked".
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
    Err(Errno::AGAIN.into())
}

/// Opens the directory `path` below `root` for reading.
pub fn open_dir(root: impl AsFd, path: &[u8]) -> io::Result<OwnedFd> {
    check_path(path).map_err(|e| io::Error::new(ErrorKind::InvalidInput, e))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NOATIME;
    let mut rest = path;
    let mut dir: Option<OwnedFd> = None;
    while rest.len() > PIECE {
        let cut = rest[..PIECE].iter().rposition(|byte| *byte == b'/').unwrap_or(PIECE);
        let from = dir.as_ref().map_or(root.as_fd(), AsFd::as_fd);
        dir = Some(open_beneath(from, &rest[..cut], flags)?);
        rest = &rest[cut + 1..];
    }
    let from = dir.as_ref().map_or(root.as_fd(), AsFd::as_fd);
    open_beneath(from, if rest.is_empty() { b"." } else { rest }, flags)
}

/// Opens the directory that `dir` is in, if it is that inode: `..` leads wherever somebody has moved a directory to.
pub fn open_parent(dir: impl AsFd, inode: DevIno) -> io::Result<Option<OwnedFd>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOATIME | OFlags::CLOEXEC;
    let parent = rustix::fs::openat(dir, "..", flags, Mode::empty())?;
    Ok((DevIno::of(&parent)? == inode).then_some(parent))
}

/// Opens what `name` in `dir` is, itself, without reading it (`O_PATH`): a link stays a link, a
/// fifo does not block and a device is not touched. `None` if there is no such name.
pub fn open_entry(dir: impl AsFd, name: &[u8]) -> io::Result<Option<OwnedFd>> {
    check_name(name).map_err(|e| io::Error::new(ErrorKind::InvalidInput, e))?;
    match open_beneath(dir.as_fd(), name, OFlags::PATH | OFlags::NOFOLLOW) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Opens a path of the host as `O_PATH` directory, links and all: for paths the administrator gave.
pub fn open_host_dir(path: &std::path::Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// Opens the regular file behind an `O_PATH` descriptor for reading, without touching its atime.
pub fn open_for_reading(entry: impl AsFd) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = proc_path(&entry);
    match rustix::fs::open(&path, flags | OFlags::NOATIME, Mode::empty()) {
        // Only the owner and root of the right user namespace may ask for O_NOATIME.
        Err(Errno::PERM) => Ok(rustix::fs::open(&path, flags, Mode::empty())?),
        other => Ok(other?),
    }
}

/// Makes a new file in `dir` and opens it for writing; fails if the name is there.
pub fn create_file(dir: impl AsFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?)
}

/// The names in a directory, without `.` and `..`, in no order.
pub fn names(dir: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        match entry.file_name().to_bytes() {
            b"." | b".." => {}
            name => names.push(name.to_vec()),
        }
    }
    Ok(names)
}

/// stat(2) of an open file or `O_PATH` descriptor.
pub fn stat(fd: impl AsFd) -> io::Result<Stat> {
    Ok(rustix::fs::fstat(fd)?)
}

/// Where a link, opened as `O_PATH`, points.
pub fn link_target(link: impl AsFd) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(link, "", Vec::new())?.into_bytes())
}

/// `/proc/self/fd/N`: how system calls that want a path reach an `O_PATH` descriptor. The kernel
/// jumps to the very file, and follows nothing from there.
pub fn proc_path(fd: impl AsFd) -> String {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())
}

/// The names of all extended attributes; none where the file system has none.
pub fn xattr_names(fd: impl AsFd) -> io::Result<Vec<Vec<u8>>> {
    let path = proc_path(&fd);
    let mut list = Vec::with_capacity(1024);
    loop {
        match rustix::fs::listxattr(&path, spare_capacity(&mut list)) {
            Ok(_) => break,
            Err(Errno::RANGE) => {
                let needed = rustix::fs::listxattr_query(&path)?;
                list.reserve(needed.max(2 * list.capacity()));
            }
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(list.split(|byte| *byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect())
}

/// The value of one extended attribute, `None` without it.
pub fn xattr(fd: impl AsFd, name: &[u8]) -> io::Result<Option<Vec<u8>>> {
    let path = proc_path(&fd);
    let mut value = Vec::with_capacity(256);
    loop {
        match rustix::fs::getxattr(&path, name, spare_capacity(&mut value)) {
            Ok(_) => return Ok(Some(value)),
            Err(Errno::RANGE) => value.reserve(2 * value.capacity()),
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Sets one extended attribute.
pub fn set_xattr(fd: impl AsFd, name: &[u8], value: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::setxattr(proc_path(&fd), name, value, rustix::fs::XattrFlags::empty())?)
}

/// Removes one extended attribute.
pub fn remove_xattr(fd: impl AsFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::removexattr(proc_path(&fd), name)?)
}

/// Sets the permission bits of what an `O_PATH` descriptor refers to, never a link.
pub fn set_mode(fd: impl AsFd, mode: u32) -> io::Result<()> {
    Ok(rustix::fs::chmod(proc_path(&fd), Mode::from_raw_mode(mode & 0o7777))?)
}

/// Sets owner and group of what a descriptor refers to, a link too.
pub fn set_owner(fd: impl AsFd, uid: u32, gid: u32) -> io::Result<()> {
    let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
    Ok(rustix::fs::chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?)
}

/// Sets the time of modification of what a descriptor refers to, of a link itself too (Linux 5.8);
/// the time of access stays as it is.
pub fn set_mtime(fd: impl AsFd, time: Time) -> io::Result<()> {
    let times = rustix::fs::Timestamps {
        last_access: rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: rustix::fs::Timespec {
            tv_sec: time.seconds,
            tv_nsec: i64::from(time.nanoseconds),
        },
    };
    Ok(rustix::fs::utimensat(fd, "", &times, AtFlags::EMPTY_PATH)?)
}

/// How many pages of the file are not on disk yet (cachestat(2), Linux 6.5); `None` where the
/// kernel cannot tell.
pub fn dirty_pages(file: impl AsFd) -> Option<u64> {
    /// The same number on every architecture but alpha.
    const SYS_CACHESTAT: libc::c_long = 451;
    let everything = [0_u64; 2];
    let mut answer = [0_u64; 5];
    // SAFETY: `everything` is a struct cachestat_range (two u64) and `answer` a struct cachestat
    // (five u64: cached, dirty, in writeback, evicted, recently evicted); both outlive the call.
    #[expect(unsafe_code, reason = "libc has no wrapper for cachestat")]
    let result = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_fd().as_raw_fd(),
            everything.as_ptr(),
            answer.as_mut_ptr(),
            0,
        )
    };
    (result == 0).then(|| answer[1] + answer[2])
}

/// A path as it stands in errors: escaped, and the root with a name.
pub fn shown(path: &[u8]) -> String {
    format!("/{}", crate::bytes::ByteString::from(path))
}

/// `parent/name`, where the root is the empty path.
pub fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, b"/", name].concat() }
}

/// The parent and the last name of a path; the root has neither.
pub fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.is_empty() {
        return None;
    }
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Some((&path[..slash], &path[slash + 1..])),
        None => Some((b"", path)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        assert_eq!(check_path(b""), Ok(()));
        assert_eq!(check_path(b"a/..b/c"), Ok(()));
        assert_eq!(check_path(b"/a"), Err(BadPath::Empty));
        assert_eq!(check_path(b"a/"), Err(BadPath::Empty));
        assert_eq!(check_path(b"a//b"), Err(BadPath::Empty));
        assert_eq!(check_path(b"a/../b"), Err(BadPath::Dots));
        assert_eq!(check_path(b"."), Err(BadPath::Dots));
        assert_eq!(check_path(b"a\0"), Err(BadPath::Nul));
        assert_eq!(check_path(&[b'a'; 256]), Err(BadPath::Name));
    }

    #[test]
    fn a_link_is_neither_followed_nor_crossed() {
        let top = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", top.path().join("out")).unwrap();
        let root = open_host_dir(top.path()).unwrap();
        assert!(open_dir(&root, b"out").is_err());
        assert!(open_dir(&root, b"out/ssl").is_err());
        let link = open_entry(&root, b"out").unwrap().unwrap();
        assert_eq!(link_target(&link).unwrap(), b"/etc");
        assert!(open_entry(&root, b"none").unwrap().is_none());
    }

    #[test]
    fn a_tree_deeper_than_path_max_is_reached() {
        let top = tempfile::tempdir().unwrap();
        let root = open_host_dir(top.path()).unwrap();
        let name = [b'd'; 200];
        let mut path = Vec::new();
        for _ in 0..60 {
            let dir = open_dir(&root, &path).unwrap();
            rustix::fs::mkdirat(&dir, &name[..], Mode::RWXU).unwrap();
            path.extend_from_slice(if path.is_empty() { b"" } else { b"/" });
            path.extend_from_slice(&name);
        }
        assert!(names(open_dir(&root, &path).unwrap()).unwrap().is_empty());
    }
}

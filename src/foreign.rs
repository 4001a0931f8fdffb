//! Files that somebody else keeps, such as the state of a user's containers: looked at without being
//! led elsewhere, without acting on a device, and without waiting for anybody.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use crate::bytes::ByteString;
use crate::proc::Proc;
use crate::sys::fs::names;

/// The largest file of root's that is read; an engine has kilobytes for each container.
const LIMIT: u64 = 64 << 20;
/// The largest file of somebody else's.
const USERS_LIMIT: u64 = 1 << 20;
/// The most names of a directory of somebody else's.
const NAMES: usize = 4096;

/// Why something is not read.
#[derive(Debug, thiserror::Error)]
pub enum Unreadable {
    /// It is of another kind than is looked for.
    #[error("it {0}")]
    Kind(&'static str),
    /// A directory above it is not what it would have to be.
    #[error("{0} {1}")]
    Above(ByteString, &'static str),
    /// It, or what it is in, is of another user.
    #[error("{0} belongs to user {1}")]
    Owner(ByteString, u32),
    /// A program of somebody would have to answer first.
    #[error("{0} is on a FUSE file system")]
    Served(ByteString),
    /// It is larger than anything that it could be.
    #[error("it is larger than {0} bytes")]
    Large(u64),
    /// There are more names in it than there can be containers.
    #[error("it holds more than {NAMES} names")]
    Many,
    /// The kernel says so.
    #[error("{0}")]
    System(#[from] io::Error),
}

impl From<Errno> for Unreadable {
    fn from(errno: Errno) -> Self {
        Self::System(errno.into())
    }
}

/// Reads what somebody keeps.
#[derive(Clone, Debug)]
pub struct Reader {
    /// The user whose files are meant; `None` for those that root has named.
    user: Option<u32>,
    /// The numbers of mounts that a program serves.
    served: BTreeSet<u32>,
}

impl Reader {
    /// Reads wherever root's settings lead, through links too.
    pub fn of_root() -> Self {
        Self { user: None, served: BTreeSet::new() }
    }

    /// Reads what this user keeps in directories of its own: no link is followed, nothing of anybody
    /// else is opened, and nothing that a FUSE server has to hand out.
    pub fn of_user(user: u32) -> Self {
        // Without a list of mounts nothing is known of any of them, and all are looked at.
        let mounts = Proc::own().mounts().unwrap_or_default();
        let served = mounts.iter().filter(|mount| mount.kind.starts_with("fuse"));
        Self { user: Some(user), served: served.map(|mount| mount.id).collect() }
    }

    /// The user whose files are meant.
    pub fn user(&self) -> Option<u32> {
        self.user
    }

    /// The content of a regular file; `None` where there is none.
    ///
    /// # Errors
    /// When it is something else, of somebody else, or too large.
    pub fn read(&self, path: &Path) -> Result<Option<Vec<u8>>, Unreadable> {
        let Some((entry, found)) = self.open(path)? else { return Ok(None) };
        if let Some(what) = what_else(&found, FileType::RegularFile) {
            return Err(Unreadable::Kind(what));
        }
        let limit = if found.stx_uid == 0 { LIMIT } else { USERS_LIMIT };
        if found.stx_size > limit {
            return Err(Unreadable::Large(limit));
        }
        let mut bytes = Vec::new();
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        File::from(reopen(&entry, flags)?).take(limit + 1).read_to_end(&mut bytes)?;
        // It may have grown, and files of proc have no length at all.
        if bytes.len() as u64 > limit { Err(Unreadable::Large(limit)) } else { Ok(Some(bytes)) }
    }

    /// The directories in a directory, sorted; none where there is no such directory.
    ///
    /// # Errors
    /// When it is something else, of somebody else, or holds too many names.
    pub fn directories(&self, path: &Path) -> Result<Vec<PathBuf>, Unreadable> {
        let Some((entry, found)) = self.open(path)? else { return Ok(Vec::new()) };
        if let Some(what) = what_else(&found, FileType::Directory) {
            return Err(Unreadable::Kind(what));
        }
        let directory = reopen(&entry, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut found: Vec<PathBuf> = names(&directory)?
            .into_iter()
            .take(NAMES + 1)
            .map(|name| path.join(OsString::from_vec(name)))
            .collect();
        if self.user.is_some() && found.len() > NAMES {
            return Err(Unreadable::Many);
        }
        found.retain(|path| self.is_directory(path));
        found.sort();
        Ok(found)
    }

    fn is_directory(&self, path: &Path) -> bool {
        let found = self.open(path).ok().flatten();
        found.is_some_and(|(_, found)| what_else(&found, FileType::Directory).is_none())
    }

    /// Whether there is such a path, and it is theirs.
    pub fn is_there(&self, path: &Path) -> bool {
        matches!(self.open(path), Ok(Some(_)))
    }

    /// Opens a path without reading it; `None` where there is none.
    fn open(&self, path: &Path) -> Result<Option<(OwnedFd, Statx)>, Unreadable> {
        match self.user {
            None => match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
                Ok(entry) => Ok(Some(look(entry)?)),
                Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
                Err(errno) => Err(errno.into()),
            },
            Some(user) => self.descend(path, user),
        }
    }

    /// Goes down name by name: what is above the user's own is root's, and what is below is the
    /// user's.
    fn descend(&self, path: &Path, user: u32) -> Result<Option<(OwnedFd, Statx)>, Unreadable> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mut at = look(rustix::fs::open("/", flags, Mode::empty())?)?;
        let mut so_far = PathBuf::from("/");
        for component in path.components() {
            let name = match component {
                Component::RootDir => continue,
                Component::Normal(name) => name,
                _ => return Err(Unreadable::Kind("has a name of dots in its path")),
            };
            if let Some(what) = what_else(&at.1, FileType::Directory) {
                return Err(Unreadable::Above(so_far.as_path().into(), what));
            }
            so_far.push(name);
            let entry = match rustix::fs::openat(&at.0, name, flags, Mode::empty()) {
                Ok(entry) => entry,
                Err(Errno::NOENT) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            };
            if self.served.contains(&mount_of(&entry)?) {
                return Err(Unreadable::Served(so_far.as_path().into()));
            }
            let above = at.1.stx_uid;
            at = look(entry)?;
            let owner = at.1.stx_uid;
            if owner != user && (owner != 0 || above == user) {
                return Err(Unreadable::Owner(so_far.as_path().into(), owner));
            }
        }
        if at.1.stx_uid == user {
            return Ok(Some(at));
        }
        Err(Unreadable::Owner(path.into(), at.1.stx_uid))
    }
}

fn look(entry: OwnedFd) -> Result<(OwnedFd, Statx), Unreadable> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let found = rustix::fs::statx(&entry, "", flags, StatxFlags::BASIC_STATS)?;
    Ok((entry, found))
}

/// The mount that a descriptor is on, which is known without asking the file system.
fn mount_of(entry: &OwnedFd) -> io::Result<u32> {
    let number = Proc::own().fdinfo(entry.as_raw_fd())?.mount;
    number.try_into().map_err(|_| io::Error::other("its fdinfo names no mount"))
}

/// Opens the very file, whatever has its name by now.
fn reopen(entry: &OwnedFd, flags: OFlags) -> io::Result<OwnedFd> {
    let path = crate::sys::fs::proc_path(entry);
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?)
}

/// What it is, if it is not what is wanted.
fn what_else(found: &Statx, wanted: FileType) -> Option<&'static str> {
    let is = FileType::from_raw_mode(found.stx_mode.into());
    (is != wanted).then_some(match is {
        FileType::RegularFile => "is a regular file",
        FileType::Directory => "is a directory",
        FileType::Symlink => "is a symbolic link",
        FileType::Fifo => "is a fifo",
        FileType::Socket => "is a socket",
        _ => "is a device",
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn said(outcome: Result<Option<Vec<u8>>, Unreadable>) -> String {
        outcome.map_or_else(|error| error.to_string(), |found| format!("{found:?}"))
    }

    /// What runs the tests owns the directory, and stands for the user.
    #[test]
    fn only_regular_files_of_the_user_are_opened() {
        let top = tempfile::tempdir().unwrap();
        let top = top.path().canonicalize().unwrap();
        let path = |name: &str| top.join(name);
        let us = rustix::process::geteuid().as_raw();
        std::fs::write(path("status"), "{}").unwrap();
        symlink(path("status"), path("link")).unwrap();
        std::fs::create_dir(path("directory")).unwrap();
        std::fs::write(path("directory/x"), "").unwrap();
        symlink(path("directory"), path("way")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, path("fifo"), Mode::RUSR).unwrap();
        File::create(path("large")).unwrap().set_len(LIMIT + 1).unwrap();
        let reader = Reader::of_user(us);
        assert_eq!(reader.read(&path("status")).unwrap().unwrap(), b"{}");
        assert!(reader.read(&path("none")).unwrap().is_none());
        for (name, why) in [
            ("link", "is a symbolic link"),
            ("directory", "is a directory"),
            ("fifo", "is a fifo"),
            ("large", "larger than"),
            ("way/x", "way is a symbolic link"),
            ("status/x", "status is a regular file"),
            ("directory/../status", "a name of dots"),
        ] {
            let told = said(reader.read(&path(name)));
            assert!(told.contains(why), "{name}: {told}");
        }
        assert_eq!(reader.directories(&top).unwrap(), [path("directory")]);
        assert!(reader.directories(&path("fifo")).is_err());
        assert!(reader.directories(&path("none")).unwrap().is_empty());
        assert!(reader.is_there(&path("fifo")) && !reader.is_there(&path("link/x")));
        // Root's settings may lead through links, and not into a pipe either.
        assert_eq!(Reader::of_root().read(&path("link")).unwrap().unwrap(), b"{}");
        assert!(said(Reader::of_root().read(&path("fifo"))).contains("is a fifo"));
        let other = said(Reader::of_user(us.wrapping_add(4711)).read(&path("status")));
        assert!(other.contains("belongs to user"), "{other}");
    }
}

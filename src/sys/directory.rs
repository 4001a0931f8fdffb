//! A directory of ocicle's own that somebody else may have filled: the image directory of an archive
//! that anybody made, what is staged in it, a store.
//!
//! Everything in it is reached through the opened directory and by one plain name. A link is never
//! followed, a fifo never waited for, a device never opened; what is written is written to a file that
//! did not exist before, for root alone, and gets its name when it is whole.

use std::fs::File;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::fs::{check_name, create_file, names};
use super::remove;

/// An opened directory, and the path that messages call it by.
#[derive(Debug)]
pub struct Directory {
    fd: OwnedFd,
    path: PathBuf,
}

impl Directory {
    /// Opens a directory by a path of the caller's, links and all.
    pub fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self { fd, path: path.to_owned() })
    }

    /// Opens the directory that a path of the caller's is in, and says by which name.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidInput`] where the path ends in no name.
    pub fn above(path: &Path) -> io::Result<(Self, Vec<u8>)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(ErrorKind::InvalidInput.into());
        };
        let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
        Ok((Self::open(parent)?, name.as_encoded_bytes().to_vec()))
    }

    /// The path of the directory, for messages and for programs that want one.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the directory `name` in this one; `None` if there is no such name.
    ///
    /// # Errors
    /// `ENOTDIR` or `ELOOP` where the name is something else, a link to a directory too.
    pub fn sub(&self, name: &str) -> io::Result<Option<Self>> {
        let found = self.open_at(name, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(found.map(|fd| Self { fd, path: self.path.join(name) }))
    }

    /// Makes the directory `name`, for root alone, and opens it.
    ///
    /// # Errors
    /// [`ErrorKind::AlreadyExists`] where anything has the name.
    pub fn make(&self, name: &str) -> io::Result<Self> {
        check(name)?;
        rustix::fs::mkdirat(&self.fd, name, Mode::RWXU)?;
        self.sub(name)?.ok_or_else(|| ErrorKind::NotFound.into())
    }

    /// What kind of file `name` is, itself, and how many names it has; `None` if there is no such name.
    pub fn look(&self, name: &str) -> io::Result<Option<(FileType, u64)>> {
        let Some(entry) = self.open_at(name, OFlags::PATH)? else { return Ok(None) };
        let found = rustix::fs::fstat(entry)?;
        Ok(Some((FileType::from_raw_mode(found.st_mode), found.st_nlink)))
    }

    /// Opens the regular file `name` for reading; `None` if there is no such name.
    ///
    /// # Errors
    /// `ELOOP` where the name is a link, [`ErrorKind::InvalidInput`] where it is anything else.
    pub fn file(&self, name: &str) -> io::Result<Option<File>> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        // Looked at first: to open a device can be to act on it.
        let Some(entry) = self.open_at(name, OFlags::PATH)? else { return Ok(None) };
        ensure_regular(&entry)?;
        let Some(file) = self.open_at(name, flags)? else { return Ok(None) };
        ensure_regular(&file)?;
        Ok(Some(file.into()))
    }

    /// The content of the regular file `name`; `None` if there is no such name.
    ///
    /// # Errors
    /// As [`Self::file`], and [`ErrorKind::FileTooLarge`] for more than `limit` bytes.
    pub fn read(&self, name: &str, limit: u64) -> io::Result<Option<Vec<u8>>> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(ErrorKind::FileTooLarge.into());
        }
        Ok(Some(bytes))
    }

    /// Begins a file that is to be called `name`. Until [`NewFile::finish`] it has another name, and
    /// whatever has the name already stays.
    ///
    /// # Errors
    /// Also when a directory has the name of the unfinished file.
    pub fn begin(&self, name: &str) -> io::Result<(File, NewFile<'_>)> {
        check(name)?;
        let partial = format!("{name}.partial");
        // What has the name was left by somebody who died, or put there by somebody hostile.
        self.remove(&partial)?;
        let file = create_file(&self.fd, partial.as_bytes())?;
        Ok((file.into(), NewFile { directory: self, name: name.to_owned(), partial }))
    }

    /// Writes a whole file durably, in the place of what has the name.
    pub fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let (mut file, new) = self.begin(name)?;
        file.write_all(content)?;
        file.sync_all()?;
        new.finish()
    }

    /// Removes a name that is no directory's, and says whether it was there.
    pub fn remove(&self, name: &str) -> io::Result<bool> {
        check(name)?;
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes a name with all that is below it, however deep that is. Nothing is done where there is
    /// no such name.
    pub fn remove_tree(&self, name: &str) -> anyhow::Result<()> {
        remove::tree(&self.fd, name.as_bytes())
    }

    /// What all that is in it takes on disk, in bytes.
    pub fn bytes(&self) -> io::Result<u64> {
        let mut bytes = 0;
        for name in self.names()? {
            let found = rustix::fs::statat(&self.fd, &name[..], AtFlags::SYMLINK_NOFOLLOW)?;
            bytes += found.st_blocks.cast_unsigned() * 512;
            if FileType::from_raw_mode(found.st_mode).is_dir()
                && let Ok(name) = std::str::from_utf8(&name)
                && let Some(below) = self.sub(name)?
            {
                bytes += below.bytes()?;
            }
        }
        Ok(bytes)
    }

    /// Gives the regular file `name` of another directory the same name here.
    ///
    /// # Errors
    /// Where it is not there or no regular file, and where anything has the name here.
    pub fn link_from(&self, other: &Self, name: &str) -> io::Result<()> {
        let Some((kind, _)) = other.look(name)? else { return Err(ErrorKind::NotFound.into()) };
        if kind != FileType::RegularFile {
            return Err(ErrorKind::InvalidInput.into());
        }
        Ok(rustix::fs::linkat(&other.fd, name, &self.fd, name, AtFlags::empty())?)
    }

    /// Its names, without `.` and `..`, in no order.
    pub fn names(&self) -> io::Result<Vec<Vec<u8>>> {
        names(self.open_again()?)
    }

    /// Brings its names to disk.
    pub fn sync(&self) -> io::Result<()> {
        Ok(rustix::fs::fsync(&self.fd)?)
    }

    /// A descriptor of the directory of its own, for a lock (flock(2)).
    pub fn as_file(&self) -> io::Result<File> {
        Ok(self.open_again()?.into())
    }

    /// A descriptor of its own, with a position of its own.
    fn open_again(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(&self.fd, ".", flags, Mode::empty())?)
    }

    fn open_at(&self, name: &str, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        check(name)?;
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match rustix::fs::openat2(&self.fd, name, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Directory {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A file that has not got its name yet. Dropped unfinished, it is removed.
#[derive(Debug)]
#[must_use = "without `finish` the file is removed"]
pub struct NewFile<'a> {
    directory: &'a Directory,
    name: String,
    partial: String,
}

impl NewFile<'_> {
    /// Gives the file its name, in the place of what has it. To sync the file before is the caller's.
    ///
    /// # Errors
    /// When a directory has the name; the unfinished file is removed then.
    pub fn finish(self) -> io::Result<()> {
        let dir = &self.directory.fd;
        Ok(rustix::fs::renameat(dir, &self.partial, dir, &self.name)?)
    }
}

impl Drop for NewFile<'_> {
    fn drop(&mut self) {
        // After `finish` there is no such name.
        let _ = self.directory.remove(&self.partial);
    }
}

fn check(name: &str) -> io::Result<()> {
    check_name(name.as_bytes()).map_err(|error| io::Error::new(ErrorKind::InvalidInput, error))
}

fn ensure_regular(entry: &OwnedFd) -> io::Result<()> {
    match FileType::from_raw_mode(rustix::fs::fstat(entry)?.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Symlink => Err(Errno::LOOP.into()),
        _ => Err(io::Error::new(ErrorKind::InvalidInput, "it is no regular file")),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A directory with a link out of it under each of these names, and the file it leads to.
    fn with_links(names: &[&str]) -> (tempfile::TempDir, PathBuf) {
        let top = tempfile::tempdir().unwrap();
        let victim = top.path().join("victim");
        std::fs::write(&victim, "of the host").unwrap();
        std::fs::create_dir(top.path().join("images")).unwrap();
        for name in names {
            symlink(&victim, top.path().join("images").join(name)).unwrap();
        }
        (top, victim)
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let (top, victim) = with_links(&["layer", "layer.partial"]);
        let images = Directory::open(&top.path().join("images")).unwrap();
        images.replace("layer", b"of ours").unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"of the host");
        let written = top.path().join("images/layer");
        let found = std::fs::symlink_metadata(&written).unwrap();
        assert!(found.is_file());
        assert_eq!(found.permissions().mode() & 0o7777, 0o600);
        assert_eq!(std::fs::read(written).unwrap(), b"of ours");
        assert_eq!(images.names().unwrap(), [b"layer"]);
    }

    #[test]
    fn only_regular_files_are_read() {
        let (top, _victim) = with_links(&["link"]);
        let path = top.path().join("images");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            path.join("fifo"),
            rustix::fs::FileType::Fifo,
            Mode::RWXU,
            0,
        )
        .unwrap();
        std::fs::create_dir(path.join("directory")).unwrap();
        std::fs::write(path.join("file"), "four").unwrap();
        let images = Directory::open(&path).unwrap();
        for name in ["link", "fifo", "directory", "../victim", ".", ""] {
            assert!(images.file(name).is_err(), "{name}");
        }
        assert!(images.file("none").unwrap().is_none());
        assert_eq!(images.read("file", 4).unwrap().unwrap(), b"four");
        assert_eq!(images.read("file", 3).unwrap_err().kind(), ErrorKind::FileTooLarge);
        assert!(images.sub("link").is_err());
        assert!(images.sub("directory").unwrap().is_some());
        assert!(images.sub("none").unwrap().is_none());
    }

    #[test]
    fn what_is_not_finished_is_removed() {
        let (top, _victim) = with_links(&[]);
        let images = Directory::open(&top.path().join("images")).unwrap();
        drop(images.begin("layer").unwrap());
        assert!(images.names().unwrap().is_empty());
        std::fs::create_dir(top.path().join("images/layer.partial")).unwrap();
        assert!(images.begin("layer").is_err());
    }
}

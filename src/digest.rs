//! Digests of files: BLAKE3, in hexadecimal digits.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::sys::directory::Directory;

/// A file of a checkpoint, as its manifest knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Its name in the image directory.
    pub name: String,
    /// Its length in bytes.
    pub size: u64,
    /// BLAKE3 of all of it, in hexadecimal digits.
    pub blake3: String,
}

impl FileRecord {
    /// Reads a file and records it.
    pub fn of(directory: &Path, name: &str) -> Result<Self> {
        let reading = || format!("reading {}", directory.join(name).display());
        let file = open(directory, name).with_context(reading)?.context("it is missing");
        let file = file.with_context(reading)?;
        let size = file.metadata().with_context(reading)?.len();
        let blake3 = digest_of(file, size).with_context(reading)?;
        Ok(Self { name: name.to_owned(), size, blake3 })
    }

    /// Makes sure that a file is still what was recorded.
    pub fn verify(&self, directory: &Path) -> Result<()> {
        ensure_plain(&self.name)?;
        let reading = || format!("reading {}", directory.join(&self.name).display());
        let file = open(directory, &self.name).with_context(reading)?;
        let file = file.with_context(|| format!("{} is missing", self.name))?;
        let length = file.metadata().with_context(reading)?.len();
        ensure!(
            length == self.size,
            "{} has {length} bytes, not {}: it was cut or added to",
            self.name,
            self.size
        );
        ensure!(
            digest_of(file, self.size).with_context(reading)? == self.blake3,
            "{} was altered: its digest is another",
            self.name
        );
        Ok(())
    }
}

/// Opens a regular file of an image directory; `None` where it is missing.
fn open(directory: &Path, name: &str) -> Result<Option<File>> {
    match Directory::open(directory)?.file(name) {
        Ok(file) => Ok(file),
        Err(error) if is_of_another_kind(&error) => bail!("{name} is not a regular file"),
        Err(error) => Err(error.into()),
    }
}

fn is_of_another_kind(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidInput || error.raw_os_error() == Some(libc::ELOOP)
}

/// Refuses a name from a manifest that is more than a name.
pub fn ensure_plain(name: &str) -> Result<()> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    ensure!(plain, "{name:?} is no file name");
    Ok(())
}

/// The digest of bytes.
pub fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

/// How much of a file is read before all processors digest it.
const PIECE: usize = 8 << 20;

/// The digest of a file of so many bytes. It is read, and not mapped: whoever cuts a file that is
/// mapped ends who looks at it (SIGBUS, mmap(2)).
///
/// # Errors
/// When it ends earlier.
fn digest_of(mut file: impl Read, size: u64) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE))];
    let mut left = size;
    while left > 0 {
        let piece = buffer.len().min(usize::try_from(left).unwrap_or(PIECE));
        file.read_exact(&mut buffer[..piece])?;
        hasher.update_rayon(&buffer[..piece]);
        left -= piece as u64;
    }
    Ok(hasher.finalize().to_hex().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn pieces_are_digested_in_their_order() {
        for size in [0, 1, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 7] {
            let bytes: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            assert_eq!(digest_of(&bytes[..], size as u64).unwrap(), digest(&bytes), "{size}");
        }
    }

    /// Somebody else has the image directory, and cuts a file of it.
    #[test]
    fn a_file_that_is_cut_while_it_is_read_is_an_error() {
        /// Cuts the file behind its first bytes, which have been read then.
        struct Cut(File);
        impl Read for Cut {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let read = self.0.read(buffer)?;
                self.0.set_len(read as u64)?;
                Ok(read)
            }
        }
        let path = tempfile::NamedTempFile::new().unwrap();
        let size = 3 * PIECE as u64;
        path.as_file().set_len(size).unwrap();
        let file = File::options().read(true).write(true).open(path.path()).unwrap();
        let error = digest_of(Cut(file), size).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn what_was_altered_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pages-1.img");
        fs::write(&path, b"pages").unwrap();
        let record = FileRecord::of(directory.path(), "pages-1.img").unwrap();
        record.verify(directory.path()).unwrap();
        let message =
            |record: &FileRecord| format!("{:#}", record.verify(directory.path()).unwrap_err());
        fs::write(&path, b"Pages").unwrap();
        assert!(message(&record).contains("pages-1.img was altered"));
        fs::write(&path, b"page").unwrap();
        assert!(message(&record).contains("has 4 bytes, not 5"));
        fs::remove_file(&path).unwrap();
        assert!(message(&record).contains("is missing"));
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(message(&record).contains("not a regular file"));
        fs::remove_file(&path).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        assert!(message(&record).contains("not a regular file"), "and nobody waits for it");
        let outside = FileRecord { name: "../x".into(), ..record };
        assert!(message(&outside).contains("no file name"));
    }
}

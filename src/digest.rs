//! Digests of files: BLAKE3, in hexadecimal digits.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

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
        let path = directory.join(name);
        let size =
            fs::metadata(&path).with_context(|| format!("looking at {}", path.display()))?.len();
        Ok(Self { name: name.to_owned(), size, blake3: digest_of(&path)? })
    }

    /// Makes sure that a file is still what was recorded.
    pub fn verify(&self, directory: &Path) -> Result<()> {
        ensure_plain(&self.name)?;
        let path = directory.join(&self.name);
        let found = match fs::symlink_metadata(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("{} is missing", self.name)
            }
            Err(error) => {
                return Err(error).with_context(|| format!("looking at {}", path.display()));
            }
        };
        ensure!(found.is_file(), "{} is not a regular file", self.name);
        ensure!(
            found.len() == self.size,
            "{} has {} bytes, not {}: it was cut or added to",
            self.name,
            found.len(),
            self.size
        );
        ensure!(
            digest_of(&path)? == self.blake3,
            "{} was altered: its digest is another",
            self.name
        );
        Ok(())
    }
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

/// The digest of a file, read by all processors.
pub fn digest_of(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut digest = || -> std::io::Result<String> {
        // An empty file, or one that cannot be mapped, is read.
        if File::open(path)?.metadata()?.len() > 0 {
            hasher.update_mmap_rayon(path)?;
        }
        Ok(hasher.finalize().to_hex().to_string())
    };
    digest().with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_altered_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pages-1.img");
        fs::write(&path, b"pages").unwrap();
        let record = FileRecord::of(directory.path(), "pages-1.img").unwrap();
        record.verify(directory.path()).unwrap();
        let message =
            |record: &FileRecord| record.verify(directory.path()).unwrap_err().to_string();
        fs::write(&path, b"Pages").unwrap();
        assert!(message(&record).contains("pages-1.img was altered"));
        fs::write(&path, b"page").unwrap();
        assert!(message(&record).contains("has 4 bytes, not 5"));
        fs::remove_file(&path).unwrap();
        assert!(message(&record).contains("is missing"));
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert!(message(&record).contains("not a regular file"));
        let outside = FileRecord { name: "../x".into(), ..record };
        assert!(message(&outside).contains("no file name"));
    }
}

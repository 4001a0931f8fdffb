//! Runs of a file's bytes.

use std::io;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

/// A run of a file's bytes. In JSON it is a list of its two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "(u64, u64)", into = "(u64, u64)")]
pub struct Extent {
    /// Where it begins in the file, in bytes.
    pub offset: u64,
    /// How many bytes it has.
    pub length: u64,
}

impl Extent {
    /// So many bytes from there on.
    pub const fn new(offset: u64, length: u64) -> Self {
        Self { offset, length }
    }

    /// The bytes from one offset up to another, which is not among them.
    pub const fn between(start: u64, end: u64) -> Self {
        Self { offset: start, length: end - start }
    }

    /// Where what follows it begins. Numbers that somebody else has written are to be checked with
    /// [`Self::checked_end`].
    pub const fn end(self) -> u64 {
        self.offset + self.length
    }

    /// The same, if there is such an offset.
    pub const fn checked_end(self) -> Option<u64> {
        self.offset.checked_add(self.length)
    }
}

impl From<(u64, u64)> for Extent {
    fn from((offset, length): (u64, u64)) -> Self {
        Self { offset, length }
    }
}

impl From<Extent> for (u64, u64) {
    fn from(extent: Extent) -> Self {
        (extent.offset, extent.length)
    }
}

/// The next data of a file at or after `offset`, up to where a hole begins or the file has `size`
/// bytes; `None` if only a hole follows. A file system that knows no holes is all data.
///
/// # Errors
/// Those of lseek(2).
pub fn next_data(file: impl AsFd, offset: u64, size: u64) -> io::Result<Option<Extent>> {
    let start = match rustix::fs::seek(&file, SeekFrom::Data(offset)) {
        Ok(start) if start < size => start,
        Ok(_) | Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(Extent::between(offset, size))),
        Err(errno) => return Err(errno.into()),
    };
    let end = rustix::fs::seek(&file, SeekFrom::Hole(start))?;
    Ok(Some(Extent::between(start, end.min(size))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn two_numbers_in_json() {
        let extent = Extent::new(4096, 7);
        assert_eq!(serde_json::to_string(&extent).unwrap(), "[4096,7]");
        assert_eq!(serde_json::from_str::<Extent>("[4096,7]").unwrap(), extent);
        assert_eq!((extent.end(), extent.checked_end()), (4103, Some(4103)));
        assert_eq!(Extent::new(u64::MAX, 1).checked_end(), None);
    }

    #[test]
    fn data_lies_between_holes() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(b"data", 256 << 10).unwrap();
        let found = next_data(&file, 0, 1 << 20).unwrap().unwrap();
        assert!(found.offset <= 256 << 10 && found.end() >= (256 << 10) + 4, "{found:?}");
        assert_eq!(next_data(&file, found.end(), 1 << 20).unwrap(), None);
        assert_eq!(next_data(&file, 0, 256 << 10).unwrap(), None, "beyond the size is none");
        let cut = next_data(&file, 256 << 10, (256 << 10) + 3).unwrap();
        assert_eq!(cut, Some(Extent::new(256 << 10, 3)));
    }

    /// As on a file system that does not say where holes are.
    #[test]
    fn where_holes_are_not_told_all_is_data() {
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let refused = rustix::fs::seek(&file, SeekFrom::Data(5));
        assert_eq!(refused, Err(Errno::INVAL));
        assert_eq!(next_data(&file, 5, 100).unwrap(), Some(Extent::new(5, 95)));
    }
}

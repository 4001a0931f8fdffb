//! Reads the headers of a tar that anybody may have made. Nothing is kept but the header in hand.

use std::io::{self, Read};

use anyhow::{Context, Result, ensure};
use tar_core::SparseEntry;
pub use tar_core::parse::Limits;
use tar_core::parse::{ParseEvent, ParsedEntry, Parser};

use crate::sys::time::Time;

const BLOCK: usize = 512;

/// How many bytes follow a member of that size, to the next header.
pub fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

/// A file that is stored without its holes.
#[derive(Clone, Copy, Debug)]
pub struct SparseFile<'a> {
    /// Its length in bytes.
    pub length: u64,
    /// The extents that are stored.
    pub stored: &'a [SparseEntry],
}

/// The headers of an archive, one after the other.
pub struct Headers {
    parser: Parser,
    buffer: Vec<u8>,
    /// What is read at once of one member's headers.
    most: usize,
}

impl Headers {
    /// Headers that are refused beyond `limits`.
    pub fn new(limits: Limits) -> Self {
        let most = 4 * limits.max_metadata_size as usize;
        Self { parser: Parser::new(limits), buffer: Vec::new(), most }
    }

    /// The same; but numbers of PAX records that the parser cannot read are passed over. Times before
    /// 1970 are among them, and it is the caller who has to look at the others.
    pub(in crate::snapshot) fn of_any_time(limits: Limits) -> Self {
        let mut headers = Self::new(limits);
        headers.parser.set_ignore_pax_errors(true);
        headers
    }

    /// Reads to the end of the next member's headers and shows it to `look`. Its bytes follow, and
    /// their [`padding`]. `None` at the end of the archive.
    ///
    /// # Errors
    /// When it is no tar, is cut off, or goes beyond the limits.
    pub fn next<T>(
        &mut self,
        archive: &mut dyn Read,
        look: impl FnOnce(&ParsedEntry<'_>, Option<SparseFile<'_>>) -> T,
    ) -> Result<Option<T>> {
        self.buffer.clear();
        loop {
            let (consumed, seen) = match self.parser.parse(&self.buffer)? {
                ParseEvent::NeedData { min_bytes } => {
                    if !self.fill(archive, min_bytes)? {
                        return Ok(None);
                    }
                    continue;
                }
                ParseEvent::End { .. } => return Ok(None),
                ParseEvent::GlobalExtensions { consumed, .. } => {
                    self.buffer.drain(..consumed);
                    continue;
                }
                ParseEvent::Entry { consumed, entry } => (consumed, look(&entry, None)),
                ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => (
                    consumed,
                    look(&entry, Some(SparseFile { length: real_size, stored: &sparse_map })),
                ),
            };
            // No more than the parser asked for was read, so that the bytes follow.
            ensure!(consumed == self.buffer.len(), "a header is shorter than it says");
            return Ok(Some(seen));
        }
    }

    /// Makes so many bytes available. `false` when the archive ends before its next header.
    fn fill(&mut self, archive: &mut dyn Read, bytes: usize) -> Result<bool> {
        let have = self.buffer.len();
        let wanted = bytes.next_multiple_of(BLOCK);
        ensure!(wanted <= self.most, "a header has more than {} bytes", self.most);
        // Asked for by a damaged map of extents.
        ensure!(wanted > have, "a header does not end");
        let missing = (wanted - have) as u64;
        let read = archive.take(missing).read_to_end(&mut self.buffer)?;
        match read as u64 {
            read if read == missing => Ok(true),
            // Some writers leave the two empty blocks at the end away.
            0 if have == 0 => Ok(false),
            _ => Err(io::Error::from(io::ErrorKind::UnexpectedEof)).context("it is cut off"),
        }
    }
}

/// Seconds with a fraction, which counts backwards before 1970.
pub(in crate::snapshot) fn parse_time(text: &str) -> Option<Time> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    Some(match (whole.starts_with('-'), nanoseconds) {
        (false, _) | (true, 0) => Time::new(seconds, nanoseconds),
        (true, _) => Time::new(seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds),
    })
}

/// The name of an attribute, which stands in its key as in a URL: a key cannot have `=`.
pub(in crate::snapshot) fn xattr_name(key: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(key.len());
    let mut rest = key;
    while let [first, tail @ ..] = rest {
        let (byte, after) = match (first, tail) {
            (b'%', [b'3', b'D', after @ ..]) => (b'=', after),
            (b'%', [b'2', b'5', after @ ..]) => (b'%', after),
            _ => (*first, tail),
        };
        name.push(byte);
        rest = after;
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        assert_eq!(parse_time("5"), Some(Time::new(5, 0)));
        assert_eq!(parse_time("5.000000001"), Some(Time::new(5, 1)));
        assert_eq!(parse_time("5.5"), Some(Time::new(5, 500_000_000)));
        assert_eq!(parse_time("-0.25"), Some(Time::new(-1, 750_000_000)));
        assert_eq!(parse_time("-2"), Some(Time::new(-2, 0)));
        assert_eq!(parse_time("soon"), None);
    }

    #[test]
    fn keys_of_attributes() {
        assert_eq!(xattr_name(b"user.a%3Db%25c%3"), b"user.a=b%c%3");
    }
}

//! gzip that compresses nothing: RFC 1952 around the stored blocks of RFC 1951.
//!
//! An encoder that could compress has some hundred KiB of tables to set up, which takes longer than
//! all the rest for an archive of a few device nodes.

use std::io::{self, Write};

use flate2::Crc;

/// No name, no time, an unknown system.
const HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// The first byte of a block: stored, and whether it is the last.
const STORED: u8 = 0;
const LAST: u8 = 1;
/// The most that a block can hold.
const BLOCK: usize = u16::MAX as usize;

/// Wraps what is written to it.
pub(super) struct StoredBlocks<W> {
    to: W,
    sum: Crc,
    block: Vec<u8>,
}

impl<W: Write> StoredBlocks<W> {
    pub(super) fn new(mut to: W) -> io::Result<Self> {
        to.write_all(&HEADER)?;
        Ok(Self { to, sum: Crc::new(), block: Vec::new() })
    }

    /// Writes what is left, and the end.
    pub(super) fn finish(mut self) -> io::Result<W> {
        self.write_block(LAST)?;
        self.to.write_all(&self.sum.sum().to_le_bytes())?;
        self.to.write_all(&self.sum.amount().to_le_bytes())?;
        Ok(self.to)
    }

    fn write_block(&mut self, kind: u8) -> io::Result<()> {
        let length = self.block.len() as u16;
        let [low, high] = length.to_le_bytes();
        self.to.write_all(&[kind, low, high, !low, !high])?;
        self.to.write_all(&self.block)?;
        self.block.clear();
        Ok(())
    }
}

impl<W: Write> Write for StoredBlocks<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.block.len() == BLOCK {
            self.write_block(STORED)?;
        }
        let taken = &bytes[..bytes.len().min(BLOCK - self.block.len())];
        self.block.extend_from_slice(taken);
        self.sum.update(taken);
        Ok(taken.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn every_length_is_read_again() {
        for length in [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 300_000] {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let mut stored = StoredBlocks::new(Vec::new()).unwrap();
            bytes.chunks(1000).try_for_each(|part| stored.write_all(part)).unwrap();
            let stored = stored.finish().unwrap();
            assert_eq!(stored.len(), length + HEADER.len() + 8 + 5 * length.div_ceil(BLOCK).max(1));
            let mut again = Vec::new();
            flate2::read::GzDecoder::new(&stored[..]).read_to_end(&mut again).unwrap();
            assert!(again == bytes, "{length}");
        }
    }
}

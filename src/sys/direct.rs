//! Writing past the page cache: long files that nobody reads soon. They go to the disk at its own
//! pace, no flusher has to find their pages, and nobody else waits because the cache is full.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

use rustix::fs::OFlags;

/// Where memory, offsets and lengths of direct I/O must begin and end: the largest block of a disk.
const ALIGNMENT: usize = 4096;

/// A file that is written past the page cache, as far as its file system and what is written allow.
#[derive(Debug)]
pub struct Direct {
    file: File,
    is_direct: bool,
}

impl Direct {
    /// Takes a file that is open for writing.
    pub fn new(file: File) -> Self {
        let is_direct = set_direct(&file, true).is_ok();
        Self { file, is_direct }
    }

    /// Writes all of `bytes` at `offset`. From the first that are not aligned on, the page cache is
    /// used: they are the last of a file.
    pub fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let is_aligned = bytes.as_ptr().align_offset(ALIGNMENT) == 0
            && bytes.len().is_multiple_of(ALIGNMENT)
            && offset.is_multiple_of(ALIGNMENT as u64);
        if !is_aligned {
            self.leave()?;
        }
        match self.file.write_all_at(bytes, offset) {
            // Some file systems say only now that they cannot, or that they want larger blocks.
            Err(error) if self.is_direct && error.kind() == io::ErrorKind::InvalidInput => {
                self.leave()?;
                self.file.write_all_at(bytes, offset)
            }
            other => other,
        }
    }

    /// The file, which is written through the cache again.
    pub fn into_file(mut self) -> io::Result<File> {
        self.leave()?;
        Ok(self.file)
    }

    fn leave(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.is_direct) {
            set_direct(&self.file, false)?;
        }
        Ok(())
    }
}

fn set_direct(file: &File, on: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, on);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

/// Bytes on their way to a [`Direct`] file, in memory that is aligned for it.
#[derive(Debug)]
pub struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    /// An empty one for so many bytes.
    pub fn new(capacity: usize) -> Self {
        let bytes = vec![0; capacity + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT);
        Self { bytes, start, length: 0 }
    }

    /// What is in it.
    pub fn filled(&self) -> &[u8] {
        &self.bytes[self.start..self.start + self.length]
    }

    /// Fills it anew with what `read` puts into it, at most `limit` bytes; returns how many.
    pub fn fill(
        &mut self,
        limit: u64,
        read: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let capacity = self.bytes.len() - ALIGNMENT;
        let room = usize::try_from(limit).map_or(capacity, |limit| limit.min(capacity));
        self.length = read(&mut self.bytes[self.start..self.start + room])?;
        Ok(self.length)
    }

    /// Takes as many bytes as there is room for.
    fn append(&mut self, bytes: &[u8]) -> usize {
        let end = self.start + self.length;
        let room = self.bytes.len() - ALIGNMENT - self.length;
        let taken = room.min(bytes.len());
        self.bytes[end..end + taken].copy_from_slice(&bytes[..taken]);
        self.length += taken;
        taken
    }

    fn is_full(&self) -> bool {
        self.length == self.bytes.len() - ALIGNMENT
    }
}

/// Writes a file from its beginning to its end past the page cache, while the caller makes what
/// comes next.
#[derive(Debug)]
pub struct DirectStream {
    filling: Buffer,
    empty: Receiver<Buffer>,
    full: Option<SyncSender<Buffer>>,
    writer: Option<JoinHandle<io::Result<File>>>,
}

/// The bytes that are written at once, and how many such buffers there are.
const AT_ONCE: usize = 4 << 20;
const BUFFERS: usize = 3;

impl DirectStream {
    /// Takes a file that is open for writing, and empty.
    pub fn new(file: File) -> Self {
        let (full, to_write) = sync_channel::<Buffer>(BUFFERS);
        let (written, empty) = sync_channel(BUFFERS);
        for _ in 1..BUFFERS {
            // There is room: nobody waits, and the receiver is here.
            let _ = written.send(Buffer::new(AT_ONCE));
        }
        let writer = thread::spawn(move || {
            let (mut file, mut offset) = (Direct::new(file), 0);
            for mut buffer in to_write {
                file.write_all_at(buffer.filled(), offset)?;
                offset += buffer.length as u64;
                buffer.length = 0;
                // Nobody waits for it where the last one is written.
                let _ = written.send(buffer);
            }
            file.into_file()
        });
        Self { filling: Buffer::new(AT_ONCE), empty, full: Some(full), writer: Some(writer) }
    }

    /// Writes what is left, and returns the file. It is not synced.
    pub fn finish(mut self) -> io::Result<File> {
        let last = std::mem::replace(&mut self.filling, Buffer::new(0));
        if let Some(full) = self.full.take() {
            // One that has failed says so now.
            let _ = full.send(last);
        }
        self.join()
    }

    fn hand_over(&mut self) -> io::Result<()> {
        let Ok(empty) = self.empty.recv() else { return self.join().map(drop) };
        let filled = std::mem::replace(&mut self.filling, empty);
        match &self.full {
            Some(full) if full.send(filled).is_ok() => Ok(()),
            _ => self.join().map(drop),
        }
    }

    fn join(&mut self) -> io::Result<File> {
        let writer = self.writer.take().ok_or_else(|| io::Error::other("writing has failed"))?;
        writer.join().map_err(|_| io::Error::other("writing panicked"))?
    }
}

impl Write for DirectStream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.filling.is_full() {
            self.hand_over()?;
        }
        Ok(self.filling.append(bytes))
    }

    /// Whoever wants it on disk finishes, and syncs the file.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::io::Seek;

    fn bytes(count: usize) -> Vec<u8> {
        (0..count as u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
    }

    /// On a disk and in memory: files of each are written whole, whatever their length.
    #[test]
    fn a_stream_is_written_as_it_came() {
        for place in [env!("CARGO_MANIFEST_DIR"), "/dev/shm"] {
            for length in [0, 1, ALIGNMENT, AT_ONCE - 1, AT_ONCE, 3 * AT_ONCE + 4711] {
                let expected = &bytes(length / 4 + 1)[..length];
                let mut stream = DirectStream::new(tempfile::tempfile_in(place).unwrap());
                for piece in expected.chunks(700_001) {
                    stream.write_all(piece).unwrap();
                }
                let mut file = stream.finish().unwrap();
                let mut found = Vec::new();
                file.rewind().unwrap();
                file.read_to_end(&mut found).unwrap();
                assert!(found == expected, "{length} bytes at {place}");
                assert!(!rustix::fs::fcntl_getfl(&file).unwrap().contains(OFlags::DIRECT));
            }
        }
    }

    #[test]
    fn a_full_disk_is_an_error() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut stream = DirectStream::new(full);
        let all = bytes(5 * AT_ONCE / 4);
        let error = stream.write_all(&all).and_then(|()| stream.finish().map(drop)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::NOSPC.raw_os_error()));
    }

    #[test]
    fn a_file_that_cannot_be_written_is_an_error() {
        let file = File::open("/dev/null").unwrap();
        assert!(Direct::new(file).write_all_at(b"x", 0).is_err());
    }
}

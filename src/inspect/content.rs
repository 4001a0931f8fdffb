//! Bytes that are read once, from front to back, with what is of no interest passed over.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};

use anyhow::{Context, Result};

/// How much of a file says what it is: a tar's first header.
const HEAD: usize = 512;

/// Bytes to read, or to pass over where that is cheaper.
pub(super) trait Bytes: Read {
    /// Goes on behind so many bytes.
    fn pass(&mut self, bytes: u64) -> io::Result<()>;
}

/// A file, whose reader can go forward without reading.
pub(super) struct Seekable(pub File);

impl Read for Seekable {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Bytes for Seekable {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = i64::try_from(bytes).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        self.0.seek(SeekFrom::Current(bytes)).map(drop)
    }
}

/// Anything that can only be read.
pub(super) struct ReadOnly<R>(pub R);

impl<R: Read> Read for ReadOnly<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl<R: Read> Bytes for ReadOnly<R> {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let passed = io::copy(&mut self.0.by_ref().take(bytes), &mut io::sink())?;
        if passed == bytes { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The first bytes of something, for who comes next to read.
pub(super) struct Head<'a> {
    inner: &'a mut dyn Bytes,
    left: u64,
}

impl<'a> Head<'a> {
    pub(super) fn new(inner: &'a mut dyn Bytes, length: u64) -> Self {
        Self { inner, left: length }
    }

    /// Goes on behind all of it.
    pub(super) fn pass_rest(mut self) -> io::Result<()> {
        self.pass(self.left)
    }
}

impl Read for Head<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        let read = self.inner.read(&mut buffer[..wanted])?;
        if read == 0 && wanted > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= read as u64;
        Ok(read)
    }
}

impl Bytes for Head<'_> {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.left {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.inner.pass(bytes)?;
        self.left -= bytes;
        Ok(())
    }
}

/// How something was compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CompressedAs {
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Something of which the first bytes have been looked at.
pub(super) struct Peeked<'a> {
    head: Cursor<Vec<u8>>,
    rest: Box<dyn Bytes + 'a>,
}

impl<'a> Peeked<'a> {
    fn new(mut content: Box<dyn Bytes + 'a>) -> io::Result<Self> {
        let mut head = Vec::with_capacity(HEAD);
        content.by_ref().take(HEAD as u64).read_to_end(&mut head)?;
        Ok(Self { head: Cursor::new(head), rest: content })
    }

    /// Looks at something, and looks through its compression.
    pub(super) fn through(content: Box<dyn Bytes + 'a>) -> Result<(Self, Option<CompressedAs>)> {
        let peeked = Self::new(content)?;
        let (stream, compression): (Box<dyn Bytes + 'a>, _) = match peeked.head.get_ref()[..] {
            [0x1f, 0x8b, ..] => {
                let gzip = flate2::read::MultiGzDecoder::new(peeked);
                (Box::new(ReadOnly(gzip)), CompressedAs::Gzip)
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                // It refuses a window above 128 MiB by itself.
                let zstd = zstd::Decoder::new(peeked).context("decompressing it")?;
                (Box::new(ReadOnly(zstd)), CompressedAs::Zstd)
            }
            _ => return Ok((peeked, None)),
        };
        Ok((Self::new(stream).context("decompressing it")?, Some(compression)))
    }

    pub(super) fn is_tar(&self) -> bool {
        self.head.get_ref().get(257..262) == Some(b"ustar")
    }

    pub(super) fn is_json_object(&self) -> bool {
        self.head.get_ref().trim_ascii_start().first() == Some(&b'{')
    }
}

impl Read for Peeked<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.head.read(buffer)? {
            0 => self.rest.read(buffer),
            read => Ok(read),
        }
    }
}

impl Bytes for Peeked<'_> {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        let ahead = self.head.get_ref().len() as u64 - self.head.position();
        let first = bytes.min(ahead);
        self.head.set_position(self.head.position() + first);
        self.rest.pass(bytes - first)
    }
}

impl<T: Bytes + ?Sized> Bytes for &mut T {
    fn pass(&mut self, bytes: u64) -> io::Result<()> {
        (**self).pass(bytes)
    }
}

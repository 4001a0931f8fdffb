//! The file of a layer: plain, or compressed with zstd on all processors.
//!
//! A compressed layer is a row of frames of [`FRAME`] bytes each and a seek table at its end, which
//! is a frame that decompressors pass over: `zstd -d` and readers of OCI layers take it for any
//! other file of zstd, and a restore reads no more of it than it puts back. Source: the seekable
//! format of zstd, `contrib/seekable_format` in its repository.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use zeekstd::SeekTable;

/// How layers are compressed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    /// As plain tar
    None,
    /// With zstd, on all processors
    #[default]
    Zstd,
}

impl Compression {
    /// What the names of its files end in.
    pub(super) fn extension(self) -> &'static str {
        match self {
            Self::None => "tar",
            Self::Zstd => "tar.zst",
        }
    }

    fn of(name: &str) -> Self {
        if name.ends_with(".zst") { Self::Zstd } else { Self::None }
    }
}

/// The bytes of the layer in one frame.
pub(super) const FRAME: usize = 1 << 20;

/// A frame that would become longer than this is refused.
const FRAME_LIMIT: u64 = 16 << 20;

/// That of the `zstd` program, and of podman's archives.
const LEVEL: i32 = 3;

/// The end of a seek table: the number of frames, a byte of flags and a magic number.
const TABLE_END: u64 = 9;

/// The smallest that a table says of a frame: two numbers of four bytes.
const TABLE_ENTRY: u64 = 8;

/// Writes a layer.
pub(super) enum LayerWriter<W: Write> {
    Plain(W),
    Zstd(Frames<W>),
}

impl<W: Write> LayerWriter<W> {
    pub(super) fn new(to: W, compression: Compression) -> Self {
        match compression {
            Compression::None => Self::Plain(to),
            Compression::Zstd => Self::Zstd(Frames::new(to)),
        }
    }

    /// Writes what is left.
    pub(super) fn finish(self) -> io::Result<W> {
        match self {
            Self::Plain(to) => Ok(to),
            Self::Zstd(frames) => frames.finish(),
        }
    }
}

impl<W: Write> Write for LayerWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(to) => to.write(bytes),
            Self::Zstd(frames) => frames.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(to) => to.flush(),
            Self::Zstd(frames) => frames.to.flush(),
        }
    }
}

/// Collects frames and compresses some at a time, side by side.
pub(super) struct Frames<W: Write> {
    to: W,
    waiting: Vec<Vec<u8>>,
    at_once: usize,
    table: SeekTable,
}

impl<W: Write> Frames<W> {
    fn new(to: W) -> Self {
        let at_once = 2 * rayon::current_num_threads();
        Self { to, waiting: Vec::new(), at_once, table: SeekTable::new() }
    }

    fn compress(&mut self) -> io::Result<()> {
        let compressor = || zstd::bulk::Compressor::new(LEVEL);
        let compressed: Vec<io::Result<Vec<u8>>> = self
            .waiting
            .par_iter()
            .map_init(compressor, |compressor, frame| match compressor {
                Ok(compressor) => compressor.compress(frame),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            })
            .collect();
        for (compressed, frame) in compressed.into_iter().zip(self.waiting.drain(..)) {
            let compressed = compressed?;
            // Neither is near 4 GiB.
            self.table
                .log_frame(compressed.len() as u32, frame.len() as u32)
                .map_err(io::Error::other)?;
            self.to.write_all(&compressed)?;
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<W> {
        self.compress()?;
        let mut table = self.table.into_serializer();
        let mut bytes = vec![0; table.encoded_len()];
        table.write_into(&mut bytes);
        self.to.write_all(&bytes)?;
        Ok(self.to)
    }
}

impl<W: Write> Write for Frames<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.waiting.last().is_none_or(|frame| frame.len() == FRAME) {
            if self.waiting.len() == self.at_once {
                self.compress()?;
            }
            self.waiting.push(Vec::with_capacity(FRAME));
        }
        let frame = self.waiting.last_mut().expect("a frame was just pushed");
        let taken = bytes.len().min(FRAME - frame.len());
        frame.extend_from_slice(&bytes[..taken]);
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a layer, any run of its bytes. Whoever has made it: what it says of itself is checked.
pub struct LayerReader {
    file: File,
    length: u64,
    frames: Option<Table>,
}

struct Table {
    table: SeekTable,
    /// The frames that were read last, the newest at the end: files that follow one another share
    /// frames, and several are read side by side.
    recent: Mutex<Vec<(u32, Arc<Vec<u8>>)>>,
}

/// Frames that are kept have at most so many bytes together.
const KEPT: usize = FRAME_LIMIT as usize;

impl LayerReader {
    /// Opens the layer in `file`, whose name tells how it is compressed.
    ///
    /// # Errors
    /// When it has no seek table, or one that cannot be its own.
    pub fn open(file: File, name: &str) -> Result<Self> {
        let stored = file.metadata()?.len();
        let frames = match Compression::of(name) {
            Compression::None => None,
            Compression::Zstd => {
                let table = read_table(&file, stored).context("reading its seek table")?;
                Some(Table { table, recent: Mutex::default() })
            }
        };
        let length = frames.as_ref().map_or(stored, |frames| frames.table.size_decomp());
        Ok(Self { file, length, frames })
    }

    /// How many bytes the layer has, uncompressed.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The file as it is stored.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Fills `buffer` with the bytes at `offset`.
    ///
    /// # Errors
    /// When it ends before, or a frame is not what the seek table says.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        if self.frames.is_none() {
            return Ok(self.file.read_exact_at(buffer, offset)?);
        }
        let mut done = 0;
        while done < buffer.len() {
            let piece = self.piece(offset + done as u64, (buffer.len() - done) as u64)?;
            buffer[done..done + piece.len()].copy_from_slice(&piece);
            done += piece.len();
        }
        Ok(())
    }

    /// The bytes at `offset`: at least one, and at most `most`.
    pub(super) fn piece(&self, offset: u64, most: u64) -> Result<LayerBytes> {
        if let Some(frames) = &self.frames {
            return frames.piece(&self.file, offset, most);
        }
        let mut bytes = vec![0; most.min(FRAME as u64) as usize];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(LayerBytes { range: 0..bytes.len(), bytes: Arc::new(bytes) })
    }
}

/// Some bytes of a layer.
pub(super) struct LayerBytes {
    bytes: Arc<Vec<u8>>,
    range: Range<usize>,
}

impl Deref for LayerBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.range.clone()]
    }
}

impl Table {
    /// What the frame of an offset has, at least one byte.
    fn piece(&self, file: &File, offset: u64, most: u64) -> Result<LayerBytes> {
        ensure!(offset < self.table.size_decomp(), "it ends before byte {offset}");
        let index = self.table.frame_index_decomp(offset);
        let frame = match self.kept(index) {
            Some(frame) => frame,
            None => self.keep(index, self.frame(file, index)?),
        };
        let start = self.table.frame_start_decomp(index)?;
        let skip = offset.checked_sub(start).filter(|skip| *skip < frame.len() as u64);
        let skip = skip.context("its seek table is in disorder")? as usize;
        let length = most.min((frame.len() - skip) as u64) as usize;
        Ok(LayerBytes { bytes: frame, range: skip..skip + length })
    }

    fn kept(&self, index: u32) -> Option<Arc<Vec<u8>>> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().find(|(known, _)| *known == index).map(|(_, frame)| frame.clone())
    }

    fn keep(&self, index: u32, frame: Vec<u8>) -> Arc<Vec<u8>> {
        let frame = Arc::new(frame);
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        let mut total = frame.len();
        let first = recent.iter().rposition(|(_, frame)| {
            total += frame.len();
            total > KEPT
        });
        recent.drain(..first.map_or(0, |first| first + 1));
        recent.push((index, frame.clone()));
        frame
    }

    fn frame(&self, file: &File, index: u32) -> Result<Vec<u8>> {
        let size = self.table.frame_size_decomp(index)?;
        let stored = self.table.frame_size_comp(index)?;
        ensure!(size <= FRAME_LIMIT, "frame {index} has {size} bytes");
        ensure!(stored <= 2 * FRAME_LIMIT, "frame {index} is stored in {stored} bytes");
        let from = self.table.frame_start_comp(index)?;
        let frame = TOOLS.with_borrow_mut(|tools| {
            let tools = match tools {
                Some(tools) => tools,
                None => tools.insert(Tools::new()?),
            };
            tools.stored.resize(stored as usize, 0);
            file.read_exact_at(&mut tools.stored, from)?;
            let decompressed = tools.decompressor.decompress(&tools.stored, size as usize);
            decompressed.with_context(|| format!("decompressing frame {index}"))
        })?;
        ensure!(frame.len() as u64 == size, "frame {index} has {} bytes", frame.len());
        Ok(frame)
    }
}

thread_local! {
    /// What each thread decompresses with: to make it anew for every frame takes as long as the rest.
    static TOOLS: RefCell<Option<Tools>> = const { RefCell::new(None) };
}

struct Tools {
    decompressor: zstd::bulk::Decompressor<'static>,
    stored: Vec<u8>,
}

impl Tools {
    fn new() -> Result<Self> {
        Ok(Self { decompressor: zstd::bulk::Decompressor::new()?, stored: Vec::new() })
    }
}

/// Reads the seek table at the end of a file of `stored` bytes.
fn read_table(mut file: &File, stored: u64) -> Result<SeekTable> {
    let end = stored.checked_sub(TABLE_END).context("it is too short to have one")?;
    file.seek(SeekFrom::Start(end))?;
    let mut frames = [0; 4];
    file.read_exact(&mut frames)?;
    // What is made room for is what can be there.
    let frames = u64::from(u32::from_le_bytes(frames));
    ensure!(frames * TABLE_ENTRY <= end, "it is shorter than the table that it says it has");
    let table = SeekTable::from_seekable(&mut file)?;
    ensure!(table.size_comp() <= stored, "the frames are longer than the file");
    Ok(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(bytes: &[u8]) -> (File, u64) {
        let mut file = tempfile::tempfile().unwrap();
        let mut writer = LayerWriter::new(&mut file, Compression::Zstd);
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap();
        let stored = file.metadata().unwrap().len();
        (file, stored)
    }

    fn numbers(count: u32) -> Vec<u8> {
        (0..count).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect()
    }

    #[test]
    fn any_run_can_be_read() {
        let bytes = numbers((9 * FRAME / 4 + 777) as u32);
        let (file, _) = layer(&bytes);
        let reader = LayerReader::open(file, "ocicle-rootfs.0.tar.zst").unwrap();
        assert_eq!(reader.length(), bytes.len() as u64);
        for (start, length) in [(0, 1), (FRAME - 1, 2), (3 * FRAME - 5, 2 * FRAME + 10), (7, 0)] {
            let mut found = vec![0; length];
            reader.read_exact_at(&mut found, start as u64).unwrap();
            assert!(found == bytes[start..start + length], "{length} bytes at {start}");
        }
        assert!(reader.read_exact_at(&mut [0; 2], bytes.len() as u64 - 1).is_err());
        assert!(reader.read_exact_at(&mut [0], u64::MAX - 1).is_err());
    }

    #[test]
    fn the_newest_frames_are_kept() {
        let (file, _) = layer(&numbers(1));
        let reader = LayerReader::open(file, "x.tar.zst").unwrap();
        let table = reader.frames.unwrap();
        let most = (KEPT / FRAME) as u32;
        for index in 0..most + 2 {
            table.keep(index, vec![0; FRAME]);
        }
        assert!(table.kept(1).is_none() && table.kept(2).is_some() && table.kept(most).is_some());
        table.keep(99, vec![0; KEPT]);
        assert!(table.kept(99).is_some() && table.kept(most).is_none(), "the largest there is");
    }

    #[test]
    fn it_is_a_file_of_zstd_and_smaller() {
        let bytes = b"as many words as there are ".repeat(FRAME / 5);
        let (mut file, stored) = layer(&bytes);
        assert!(stored * 100 < bytes.len() as u64);
        file.rewind().unwrap();
        assert!(zstd::decode_all(&file).unwrap() == bytes);
    }

    #[test]
    fn one_without_content() {
        let (file, _) = layer(b"");
        assert_eq!(LayerReader::open(file, "x.tar.zst").unwrap().length(), 0);
    }

    /// Whatever a byte is changed to, reading ends, with an error or with what it decompresses to.
    #[test]
    fn what_was_altered_does_no_harm() {
        let (mut file, stored) = layer(&numbers(9000));
        let mut bytes = Vec::new();
        file.rewind().unwrap();
        file.read_to_end(&mut bytes).unwrap();
        let places = (0..20).chain(stored as usize - 40..stored as usize);
        for (place, value) in places.flat_map(|place| [(place, 0xff), (place, 0), (place, 0x80)]) {
            let altered = tempfile::tempfile().unwrap();
            altered.write_all_at(&bytes, 0).unwrap();
            altered.write_all_at(&[value], place as u64).unwrap();
            if let Ok(reader) = LayerReader::open(altered, "x.tar.zst") {
                let _ = reader.read_exact_at(&mut [0; 100], 20_000);
            }
        }
        let short = tempfile::tempfile().unwrap();
        short.set_len(5).unwrap();
        assert!(LayerReader::open(short, "x.tar.zst").is_err());
    }
}

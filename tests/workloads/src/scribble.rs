//! Writes to files in every way there is, until it is killed.

use std::fs::{File, OpenOptions};
use std::num::NonZeroUsize;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, ensure};
use io_uring::{IoUring, opcode, types};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// So many files each way has.
const FILES: usize = 150;
const SIZE: usize = 16 << 10;
const PAGE: usize = 4096;
/// Between two writes: a file rests long enough, now and then, for its times to prove something.
const PAUSE: Duration = Duration::from_micros(700);

/// How files are written.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Way {
    Ordinary,
    Mapped,
    Direct,
    Ring,
}

/// Is a process that writes in one way, and starts one for each of the others.
pub fn run(dir: &Path, ways: &[Way]) -> anyhow::Result<()> {
    let (way, others) = ways.split_first().context("no way is named")?;
    for other in others {
        let name = format!("{other:?}").to_lowercase();
        Command::new("/proc/self/exe").args(["scribble", "--way", &name]).arg(dir).spawn()?;
    }
    write_for_ever(dir, *way)
}

fn write_for_ever(dir: &Path, way: Way) -> anyhow::Result<()> {
    let path = |number: usize| dir.join(format!("{way:?}-{number}").to_lowercase());
    for number in 0..FILES {
        std::fs::write(path(number), vec![b'.'; SIZE])?;
    }
    let mut ring = match way {
        Way::Ring => Some(Ring::new(path)?),
        _ => None,
    };
    std::fs::write(dir.join(format!("{way:?}-ready").to_lowercase()), "")?;
    let mut turn = 0_usize;
    loop {
        turn += 1;
        // Every file in some order, none of them regularly.
        let (number, page) = (turn * 7919 % FILES, turn * 31 % (SIZE / PAGE));
        let byte = (turn % 251) as u8;
        match (way, &mut ring) {
            (Way::Ordinary, _) => write(&path(number), page, byte)?,
            (Way::Mapped, _) => store(&path(number), page, byte)?,
            (Way::Direct, _) => write_directly(&path(number), page, byte)?,
            (Way::Ring, Some(ring)) => ring.write(number, page, byte)?,
            (Way::Ring, None) => anyhow::bail!("there is no ring"),
        }
        std::thread::sleep(PAUSE);
    }
}

fn open(path: &Path, flags: i32) -> anyhow::Result<File> {
    let opened = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    opened.with_context(|| format!("opening {}", path.display()))
}

fn write(path: &Path, page: usize, byte: u8) -> anyhow::Result<()> {
    Ok(open(path, 0)?.write_all_at(&[byte; 100], (page * PAGE) as u64)?)
}

/// Stores into one page again and again: only the first time shows in the file's times.
fn store(path: &Path, page: usize, byte: u8) -> anyhow::Result<()> {
    let file = open(path, 0)?;
    let size = NonZeroUsize::new(SIZE).context("a size")?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a mapping of its own, of a file that nobody cuts short, unmapped below.
    unsafe {
        let map = mmap(None, size, access, MapFlags::MAP_SHARED, &file, 0)?;
        for at in 0..4 {
            map.as_ptr().cast::<u8>().add(page * PAGE + at).write_volatile(byte);
            std::thread::sleep(PAUSE);
        }
        munmap(map, SIZE)?;
    }
    Ok(())
}

#[repr(align(4096))]
struct Page([u8; PAGE]);

fn write_directly(path: &Path, page: usize, byte: u8) -> anyhow::Result<()> {
    let content = Page([byte; PAGE]);
    Ok(open(path, libc::O_DIRECT)?.write_all_at(&content.0, (page * PAGE) as u64)?)
}

/// A ring that keeps its files by itself: no descriptor of them is left.
struct Ring(IoUring);

impl Ring {
    fn new(path: impl Fn(usize) -> PathBuf) -> anyhow::Result<Self> {
        let ring = IoUring::new(8).context("making an io_uring")?;
        let files =
            (0..FILES).map(|number| open(&path(number), 0)).collect::<Result<Vec<_>, _>>()?;
        let numbers: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
        ring.submitter().register_files(&numbers).context("registering files")?;
        Ok(Self(ring))
    }

    fn write(&mut self, number: usize, page: usize, byte: u8) -> anyhow::Result<()> {
        let content = [byte; 100];
        let file = types::Fixed(u32::try_from(number)?);
        let entry = opcode::Write::new(file, content.as_ptr(), content.len() as u32)
            .offset((page * PAGE) as u64)
            .build();
        // SAFETY: `content` outlives the write, which is waited for.
        unsafe { self.0.submission().push(&entry) }.context("the ring is full")?;
        self.0.submit_and_wait(1)?;
        let done = self.0.completion().next().context("nothing is done")?;
        ensure!(done.result() == 100, "a write through the ring: {}", done.result());
        Ok(())
    }
}

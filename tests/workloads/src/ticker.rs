//! Measures from inside a container for how long it did not run.

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::time::{ClockId, ClockNanosleepFlags, clock_gettime, clock_nanosleep};
use nix::unistd::{ForkResult, fork};

use crate::memory::{fill, words_of};

const TICK: Duration = Duration::from_millis(1);
const MIB: usize = 1 << 20;

/// What the ticker does besides ticking.
#[derive(clap::Args)]
pub struct Options {
    /// Mapped shared. Three words of 64 bits: longest gap in ns, ticks, and a request to reset.
    file: PathBuf,
    /// MiB of memory to fill with bytes that do not compress.
    #[arg(long, default_value_t = 0)]
    memory: usize,
    /// Files to create in --dir.
    #[arg(long, default_value_t = 0)]
    files: u64,
    /// Bytes in each file.
    #[arg(long, default_value_t = 0)]
    size: usize,
    /// Where the files are.
    #[arg(long, default_value = "/data")]
    dir: PathBuf,
    /// Per cent of the files that a second process keeps rewriting.
    #[arg(long, default_value_t = 0)]
    rewrite: u64,
    /// Milliseconds from one file that is rewritten to the next.
    #[arg(long, default_value_t = 1)]
    every: u64,
}

pub fn run(options: &Options) -> Result<()> {
    fs::create_dir_all(&options.dir)?;
    for number in 0..options.files {
        write_file(options, number, number)?;
    }
    if options.rewrite > 0 {
        // SAFETY: there is one thread, so the child may do everything.
        if let ForkResult::Child = unsafe { fork() }? {
            return rewrite(options);
        }
    }
    // After the fork: the second process has none of it.
    tick(&options.file, &ballast(options.memory))
}

fn ballast(mebibytes: usize) -> Vec<u8> {
    let mut memory = vec![0; mebibytes * MIB];
    fill(&mut memory, 1);
    memory
}

fn write_file(options: &Options, number: u64, seed: u64) -> Result<()> {
    let path = options.dir.join(format!("file-{number}"));
    let mut content = vec![0; options.size];
    fill(&mut content, seed);
    fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
}

fn rewrite(options: &Options) -> Result<()> {
    let share = options.files * options.rewrite.min(100) / 100;
    let every = Duration::from_millis(options.every);
    for round in 1.. {
        for number in 0..share {
            write_file(options, number, round * options.files + number)?;
            pause(every)?;
        }
    }
    Ok(())
}

/// Ticks for ever. The ballast is borrowed so that it lives as long.
fn tick(path: &Path, ballast: &[u8]) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
    let [longest, ticks, reset] = words_of::<3>(&file)?;
    File::create(path.with_extension("ready"))?;
    let mut last = now()?;
    loop {
        pause(TICK)?;
        let this = now()?;
        if reset.swap(0, Relaxed) != 0 {
            longest.store(0, Relaxed);
        } else {
            let gap = this.saturating_sub(last).as_nanos();
            longest.fetch_max(u64::try_from(gap)?, Relaxed);
        }
        ticks.fetch_add(1, Relaxed);
        std::hint::black_box(ballast);
        last = this;
    }
}

/// Sleeps. A dump ends a sleep early, with EINTR (compel_get_task_regs in CRIU).
fn pause(time: Duration) -> Result<()> {
    match clock_nanosleep(ClockId::CLOCK_MONOTONIC, ClockNanosleepFlags::empty(), &time.into()) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn now() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?))
}

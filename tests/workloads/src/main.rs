//! Programs that the tests run inside containers: each does one kind of thing that a checkpoint
//! has to get right, says that it is ready by creating a file, and can be asked what it sees.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

mod fuse;
mod hold;
mod journal;
mod kinds;
mod lend;
mod memory;
mod named;
mod odd;
mod probe;
mod scribble;
mod sleepers;
mod spawn;
mod ticker;
mod timers;
mod trouble;
mod writers;

#[derive(Parser)]
enum Workload {
    /// Two processes append to one log and one SQLite database, and answer on DIR/control.
    Journal {
        dir: PathBuf,
        /// Port on 127.0.0.1 that answers the counter.
        #[arg(long, default_value_t = 7000)]
        port: u16,
        /// A file of the image that is changed at the start.
        #[arg(long, default_value = "/etc/motd")]
        image_file: PathBuf,
    },
    /// Records in FILE the longest time for which this process did not run.
    Ticker(ticker::Options),
    /// Opens one thing of each kind, lists them in DIR/fds.json, and waits.
    Hold {
        dir: PathBuf,
        /// Open an inotify instance too, which CRIU cannot dump on every file system.
        #[arg(long)]
        inotify: bool,
    },
    /// Holds open files that CRIU cannot dump, and shows on DIR/control that they work.
    Odd {
        dir: PathBuf,
        #[arg(required = true)]
        kinds: Vec<String>,
    },
    /// Holds open files, and reads and writes them when asked on DIR/control.
    Probe { dir: PathBuf },
    /// Holds COUNT open files of KIND, shared with another process, and answers as the probe does.
    Kinds { dir: PathBuf, kind: String, count: usize },
    /// Starts a program by vfork, which does not begin before somebody writes to DIR/fifo.
    Spawn { dir: PathBuf },
    /// Writes to files in DIR, in each of these ways, without an end.
    Scribble {
        dir: PathBuf,
        #[arg(long, value_enum, required = true)]
        way: Vec<scribble::Way>,
    },
    /// As a program of `exec:`, lends FILE, and keeps what it was told in FILE.json.
    Lend { file: PathBuf },
    /// Serves a FUSE file system in DIR, and has a file of it open.
    Fuse { dir: PathBuf, way: fuse::Way },
    /// Holds KIND, which CRIU has to find by another name, in PLACE, and answers on DIR/control.
    Named { kind: String, dir: PathBuf, place: PathBuf },
    /// Gets into one trouble that a checkpoint may have, and waits.
    Trouble { kind: String, dir: PathBuf },
    /// Sleeps for so many seconds in each call that sleeps, and writes what became of it to DIR.
    Sleepers { dir: PathBuf, seconds: u32 },
    /// Timers of every kind, which are asked on DIR/control whether they tick.
    Timers { dir: PathBuf },
    /// COUNT processes that write to one SQLite database, and note what it has accepted.
    Writers { dir: PathBuf, count: usize },
    /// Ask a workload on its control socket, and print the answer.
    Ask {
        socket: PathBuf,
        #[arg(required = true)]
        request: Vec<String>,
    },
}

fn main() -> anyhow::Result<()> {
    match Workload::parse() {
        Workload::Journal { dir, port, image_file } => {
            recorded(&dir, journal::run(&dir, port, &image_file))
        }
        Workload::Ticker(options) => ticker::run(&options),
        Workload::Hold { dir, inotify } => recorded(&dir, hold::run(&dir, inotify)),
        Workload::Probe { dir } => recorded(&dir, probe::run(&dir)),
        Workload::Odd { dir, kinds } => recorded(&dir, odd::run(&dir, &kinds)),
        Workload::Kinds { dir, kind, count } => recorded(&dir, kinds::run(&dir, &kind, count)),
        Workload::Spawn { dir } => recorded(&dir, spawn::run(&dir)),
        Workload::Scribble { dir, way } => recorded(&dir, scribble::run(&dir, &way)),
        Workload::Lend { file } => lend::run(&file),
        Workload::Fuse { dir, way } => recorded(&dir, fuse::run(&dir, way)),
        Workload::Named { kind, dir, place } => recorded(&dir, named::run(&kind, &dir, &place)),
        Workload::Trouble { kind, dir } => recorded(&dir, trouble::run(&kind, &dir)),
        Workload::Sleepers { dir, seconds } => recorded(&dir, sleepers::run(&dir, seconds)),
        Workload::Timers { dir } => recorded(&dir, timers::run(&dir)),
        Workload::Writers { dir, count } => recorded(&dir, writers::run(&dir, count)),
        Workload::Ask { socket, request } => ask(&socket, &request.join(" ")),
    }
}

fn ask(socket: &Path, request: &str) -> anyhow::Result<()> {
    let mut stream = UnixStream::connect(socket)
        .with_context(|| format!("connecting to {}", socket.display()))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    writeln!(stream, "{request}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("reading the answer")?;
    anyhow::ensure!(answer.ends_with('\n'), "there was no answer");
    print!("{answer}");
    Ok(())
}

/// Leaves a failure in DIR/error.log: nobody listens to a container's standard error.
fn recorded(dir: &Path, result: anyhow::Result<()>) -> anyhow::Result<()> {
    if let Err(error) = &result {
        std::fs::write(dir.join("error.log"), format!("{error:?}\n"))?;
    }
    result
}

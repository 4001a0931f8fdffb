//! Holds one open file of each kind, for whoever lists or replaces open files.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::EventFd;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::SignalFd;
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use nix::unistd::{ForkResult, fork, pause, pipe};

/// Opens everything in DIR, forks once so that all is shared, writes DIR/fds.json
/// (`{"name": fd}`), creates DIR/ready and waits for a signal.
pub fn run(dir: &Path, inotify: bool) -> Result<()> {
    let mut held = Held::default();
    regular_files(dir, &mut held)?;
    kernel_objects(&mut held)?;
    sockets(&mut held)?;
    if inotify {
        let watch = Inotify::init(InitFlags::empty())?;
        watch.add_watch(dir, AddWatchFlags::IN_CREATE)?;
        held.keep("inotify", watch);
    }
    // SAFETY: there is one thread, so the child may do everything.
    if let ForkResult::Parent { .. } = unsafe { fork() }? {
        fs::write(dir.join("fds.json"), serde_json::to_vec(&held.numbers)?)?;
        File::create(dir.join("ready"))?;
    }
    pause();
    Ok(())
}

#[derive(Default)]
struct Held {
    fds: Vec<OwnedFd>,
    numbers: BTreeMap<&'static str, i32>,
}

impl Held {
    fn keep(&mut self, name: &'static str, file: impl Into<OwnedFd>) {
        let file = file.into();
        self.numbers.insert(name, file.as_raw_fd());
        self.fds.push(file);
    }
}

fn regular_files(dir: &Path, held: &mut Held) -> Result<()> {
    let path = dir.join("data");
    fs::write(&path, "0123456789abcdef")?;
    let mut first = OpenOptions::new().read(true).write(true).open(&path)?;
    first.read_exact(&mut [0; 4])?;
    let mut second = File::open(&path)?;
    second.read_exact(&mut [0; 8])?;
    held.keep("dup", first.try_clone()?);
    held.keep("file", first);
    held.keep("file-again", second);
    held.keep("append", OpenOptions::new().append(true).create(true).open(dir.join("log"))?);
    held.keep("directory", File::open(dir)?);
    held.keep("null", OpenOptions::new().read(true).write(true).open("/dev/null")?);

    let path = dir.join("deleted");
    let mut deleted =
        OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    deleted.write_all(b"no name\n")?;
    fs::remove_file(&path)?;
    held.keep("deleted", deleted);
    Ok(())
}

fn kernel_objects(held: &mut Held) -> Result<()> {
    let (reader, writer) = pipe()?;
    let event = EventFd::from_value(3)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN, 1))?;
    nix::unistd::write(&writer, b"in the pipe")?;
    let mut usr2 = SigSet::empty();
    usr2.add(Signal::SIGUSR2);
    usr2.thread_block()?;
    held.keep("pipe-read", reader);
    held.keep("pipe-write", writer);
    held.keep("eventfd", event);
    held.keep("epoll", epoll.0);
    held.keep("timerfd", TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty())?);
    held.keep("signalfd", SignalFd::new(&usr2)?);
    let mut memory = File::from(memfd_create(c"held", MFdFlags::empty())?);
    memory.write_all(b"in memory")?;
    held.keep("memfd", memory);
    Ok(())
}

fn sockets(held: &mut Held) -> Result<()> {
    let (left, right) = UnixStream::pair()?;
    held.keep("unix-left", left);
    held.keep("unix-right", right);
    held.keep("tcp-listener", TcpListener::bind("127.0.0.1:0").context("binding a TCP port")?);
    Ok(())
}

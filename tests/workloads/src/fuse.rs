//! A file system that one process of the container serves, and another has open.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{ForkResult, fork, pause};

/// How it is mounted, and served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Way {
    /// The server answers at once.
    Healthy,
    /// From the time on that DIR/ready is there, it does not answer any more.
    Silent,
    /// It is mounted nowhere any more when DIR/ready is there.
    Detached,
}

/// Serves a file system at DIR/served, opens a file in it, and creates DIR/ready.
pub fn run(dir: &Path, way: Way) -> Result<()> {
    let mut device = File::options().read(true).write(true).open("/dev/fuse")?;
    let point = dir.join("served");
    fs::create_dir(&point)?;
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
    mount(Some("served"), &point, Some("fuse"), MsFlags::empty(), Some(options.as_str()))?;
    let ready = dir.join("ready");
    // SAFETY: there is one thread.
    if let ForkResult::Child = unsafe { fork() }? {
        return serve(&mut device, || way == Way::Silent && ready.exists());
    }
    drop(device);
    let _held = File::open(point.join("file")).context("opening what is served")?;
    if way == Way::Detached {
        umount2(&point, MntFlags::MNT_DETACH)?;
    }
    File::create(ready)?;
    loop {
        pause();
    }
}

// The numbers and forms of include/uapi/linux/fuse.h.
const LOOKUP: u32 = 1;
const FORGET: u32 = 2;
const GETATTR: u32 = 3;
const OPEN: u32 = 14;
const STATFS: u32 = 17;
const RELEASE: u32 = 18;
const INIT: u32 = 26;
const INTERRUPT: u32 = 36;

const ROOT: u64 = 1;
const FILE: u64 = 2;

fn serve(device: &mut File, is_silent: impl Fn() -> bool) -> Result<()> {
    let mut request = vec![0; 1 << 17];
    loop {
        let length = device.read(&mut request)?;
        if length < 40 {
            bail!("a request of {length} bytes");
        }
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let (operation, unique, node) = (word(4), long(8), long(16));
        if [FORGET, INTERRUPT].contains(&operation) || is_silent() {
            continue;
        }
        let (error, body) = match answer(operation, node) {
            Some(body) => (0, body),
            None => (-libc::ENOSYS, Vec::new()),
        };
        let mut reply = Vec::new();
        reply.extend(u32::try_from(16 + body.len())?.to_ne_bytes());
        reply.extend(error.to_ne_bytes());
        reply.extend(unique.to_ne_bytes());
        reply.extend(body);
        // One that was interrupted is not known any more.
        let _ = device.write(&reply);
    }
}

/// Nothing may be kept: the kernel asks again each time.
fn answer(operation: u32, node: u64) -> Option<Vec<u8>> {
    let zeros = |count: usize| std::iter::repeat_n(0, count);
    let mut body = Vec::new();
    match operation {
        INIT => {
            [7_u32, 31, 0, 0, 0, 4096].iter().for_each(|word| body.extend(word.to_ne_bytes()));
            body.extend(zeros(40));
        }
        LOOKUP => {
            body.extend(FILE.to_ne_bytes());
            body.extend(zeros(32));
            body.extend(attributes(FILE));
        }
        GETATTR => {
            body.extend(zeros(16));
            body.extend(attributes(node));
        }
        OPEN => body.extend(zeros(16)),
        STATFS => body.extend(zeros(80)),
        RELEASE => {}
        _ => return None,
    }
    Some(body)
}

fn attributes(node: u64) -> Vec<u8> {
    let mode =
        if node == ROOT { Mode::S_IRWXU.bits() | libc::S_IFDIR } else { 0o600 | libc::S_IFREG };
    let mut body: Vec<u8> = node.to_ne_bytes().to_vec();
    body.extend([0; 5 * 8 + 3 * 4]);
    [mode, 1, 0, 0, 0, 4096, 0].iter().for_each(|word: &u32| body.extend(word.to_ne_bytes()));
    body
}

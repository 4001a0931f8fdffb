//! Processes and threads that sleep, each in a call of its own, and write down how that ended.

use std::fs::{self, File};
use std::path::Path;
use std::ptr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libc::{c_int, c_long, timespec};
use nix::errno::Errno;
use nix::unistd::fork;

/// A call that sleeps for so long; below 0 it has failed.
type Call = fn(timespec) -> c_long;

const CALLS: &[(&str, Call)] = &[
    // SAFETY, of each: what is pointed to lives as long as the call, and has the type that it takes.
    ("nanosleep", |time| unsafe { libc::syscall(libc::SYS_nanosleep, &raw const time, 0) }),
    ("nanosleep-same", |mut time| unsafe {
        let place = &raw mut time;
        libc::syscall(libc::SYS_nanosleep, place, place)
    }),
    ("clock-nanosleep", |time| unsafe {
        let (clock, relative) = (libc::CLOCK_MONOTONIC, 0);
        libc::syscall(libc::SYS_clock_nanosleep, clock, relative, &raw const time, 0)
    }),
    ("poll", |time| unsafe { libc::syscall(libc::SYS_poll, 0, 0, time.tv_sec * 1000) }),
    ("ppoll", |mut time| unsafe { libc::syscall(libc::SYS_ppoll, 0, 0, &raw mut time, 0, 8) }),
    ("select", |time| unsafe {
        let mut time = libc::timeval { tv_sec: time.tv_sec, tv_usec: 0 };
        libc::syscall(libc::SYS_select, 0, 0, 0, 0, &raw mut time)
    }),
    ("futex", |time| unsafe {
        let word = 0_u32;
        let wait = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
        libc::syscall(libc::SYS_futex, &raw const word, wait, 0, &raw const time, 0, 0)
    }),
    ("epoll-wait", |time| unsafe {
        let mut event = libc::epoll_event { events: 0, u64: 0 };
        let epoll = libc::epoll_create1(0);
        libc::syscall(libc::SYS_epoll_wait, epoll, &raw mut event, 1, time.tv_sec * 1000)
    }),
    ("semtimedop", |time| unsafe {
        let set = libc::semget(libc::IPC_PRIVATE, 1, 0o600);
        let mut take = libc::sembuf { sem_num: 0, sem_op: -1, sem_flg: 0 };
        libc::syscall(libc::SYS_semtimedop, set, &raw mut take, 1, &raw const time)
    }),
    ("sigtimedwait", |time| unsafe {
        let mut set = 1_u64 << (libc::SIGUSR1 - 1);
        libc::pthread_sigmask(libc::SIG_BLOCK, (&raw const set).cast(), ptr::null_mut());
        libc::syscall(libc::SYS_rt_sigtimedwait, &raw mut set, 0, &raw const time, 8)
    }),
    ("io-getevents", |time| unsafe {
        let mut context = 0_u64;
        let mut events = [0_u64; 4];
        libc::syscall(libc::SYS_io_setup, 1, &raw mut context);
        libc::syscall(libc::SYS_io_getevents, context, 1, 1, events.as_mut_ptr(), &raw const time)
    }),
];

/// Has every call made for so many seconds by a process and by a thread beside its first. Each
/// writes to DIR/CALL.process or DIR/CALL.thread what became of it: the error, and the milliseconds.
/// After half of the time there is DIR/half.
pub fn run(dir: &Path, seconds: u32) -> Result<()> {
    for (name, call) in CALLS {
        for is_thread in [false, true] {
            // SAFETY: there is one thread, so the child may do everything.
            if unsafe { fork() }?.is_child() {
                sleep(dir, name, *call, seconds, is_thread)?;
                std::process::exit(0);
            }
        }
    }
    std::thread::sleep(Duration::from_secs(seconds.into()) / 2);
    File::create(dir.join("half"))?;
    loop {
        nix::unistd::pause();
    }
}

fn sleep(dir: &Path, name: &str, call: Call, seconds: u32, is_thread: bool) -> Result<()> {
    let ending = if is_thread { "thread" } else { "process" };
    let path = dir.join(format!("{name}.{ending}"));
    let work = move || {
        let begin = Instant::now();
        let time = timespec { tv_sec: seconds.into(), tv_nsec: 0 };
        let error = if call(time) < 0 { Errno::last_raw() } else { 0 };
        record(&path, error, begin.elapsed())
    };
    match is_thread {
        false => work(),
        true => std::thread::spawn(work).join().map_err(|_| anyhow::anyhow!("it panicked"))?,
    }
}

fn record(path: &Path, error: c_int, took: Duration) -> Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let error = Errno::from_raw(error);
    fs::write(&new, format!("{error:?} {}", took.as_millis()))?;
    fs::rename(&new, path).with_context(|| format!("writing {}", path.display()))
}

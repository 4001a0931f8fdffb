//! Timers of every kind, and whether they go on.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::mem;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use libc::{c_int, itimerspec, itimerval, timespec, timeval};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::time::{TimeSpec, TimeValLike};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

/// How often those tick that repeat.
const TICK: i64 = 20;
/// How long to wait for one that does not.
const LIMIT: Duration = Duration::from_secs(5);

static ALARMS: AtomicU32 = AtomicU32::new(0);
static TIMERS: AtomicU32 = AtomicU32::new(0);
static INTERVALS: AtomicU32 = AtomicU32::new(0);

extern "C" fn count(signal: c_int) {
    let counter = match signal {
        libc::SIGALRM => &ALARMS,
        libc::SIGUSR1 => &TIMERS,
        _ => &INTERVALS,
    };
    counter.fetch_add(1, Ordering::SeqCst);
}

/// Starts them and answers on DIR/control: `ticks NAME` whether three ticks come, one after the other;
/// `alarm` sets one that rings once, and `rung` waits for that.
pub fn run(dir: &Path) -> Result<()> {
    let control = UnixListener::bind(dir.join("control")).context("binding the control socket")?;
    for signal in [libc::SIGALRM, libc::SIGUSR1, libc::SIGVTALRM] {
        // SAFETY: the handler does nothing but to count.
        unsafe { libc::signal(signal, count as *const () as libc::sighandler_t) };
    }
    let descriptors = [TimerSetTimeFlags::empty(), TimerSetTimeFlags::TFD_TIMER_ABSTIME];
    let descriptors = descriptors.into_iter().map(descriptor).collect::<Result<Vec<_>>>()?;
    start_timer();
    start_interval();
    // The descriptors expire before anybody reads them.
    wait(&[], Duration::from_millis(3 * TICK.unsigned_abs()));
    File::create(dir.join("ready"))?;
    for stream in control.incoming() {
        // A caller who went away is no reason to end.
        let _ = serve(&stream?, &descriptors);
    }
    Ok(())
}

fn descriptor(flags: TimerSetTimeFlags) -> Result<TimerFd> {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK)?;
    let tick = TimeSpec::milliseconds(TICK);
    let first = if flags.is_empty() {
        tick
    } else {
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)? + tick
    };
    timer.set(Expiration::IntervalDelayed(first, tick), flags)?;
    Ok(timer)
}

fn start_timer() {
    let tick = timespec { tv_sec: 0, tv_nsec: TICK * 1_000_000 };
    let time = itimerspec { it_interval: tick, it_value: tick };
    // SAFETY: zeroes are a `sigevent`, and everything lives until the calls return.
    unsafe {
        let mut event: libc::sigevent = mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGUSR1;
        let mut timer = ptr::null_mut();
        libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer);
        libc::timer_settime(timer, 0, &raw const time, ptr::null_mut());
    }
}

/// Of the time that this process uses, of which it has to use some.
fn start_interval() {
    let tick = timeval { tv_sec: 0, tv_usec: TICK * 1000 };
    let time = itimerval { it_interval: tick, it_value: tick };
    // SAFETY: it lives until the call returns.
    unsafe { libc::setitimer(libc::ITIMER_VIRTUAL, &raw const time, ptr::null_mut()) };
}

fn serve(stream: &UnixStream, descriptors: &[TimerFd]) -> Result<()> {
    let mut request = String::new();
    BufReader::new(stream).read_line(&mut request)?;
    let answer = match request.trim() {
        "ticks timerfd" => tick_of(&descriptors[0]),
        "ticks timerfd-absolute" => tick_of(&descriptors[1]),
        "ticks timer" => counts(&TIMERS, 3),
        "ticks interval" => counts(&INTERVALS, 3),
        "alarm" => {
            // SAFETY: it reads and writes no memory.
            unsafe { libc::alarm(2) };
            true
        }
        "rung" => ALARMS.load(Ordering::SeqCst) > 0 || counts(&ALARMS, 1),
        _ => false,
    };
    writeln!(&*stream, "{}", if answer { "yes" } else { "no" })?;
    Ok(())
}

fn tick_of(timer: &TimerFd) -> bool {
    (0..3).all(|_| {
        wait(&[PollFd::new(timer.as_fd(), PollFlags::POLLIN)], LIMIT) && timer.wait().is_ok()
    })
}

/// Whether something is ready before the time is over.
fn wait(fds: &[PollFd<'_>], time: Duration) -> bool {
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
        match poll(&mut fds.to_vec(), left) {
            Err(nix::Error::EINTR) => {}
            ready => return ready.is_ok_and(|count| count > 0),
        }
    }
}

/// Whether a counter goes on by so much; looking takes time of this process.
fn counts(counter: &AtomicU32, more: u32) -> bool {
    let (begin, end) = (counter.load(Ordering::SeqCst), Instant::now() + LIMIT);
    while Instant::now() < end {
        if counter.load(Ordering::SeqCst) - begin >= more {
            return true;
        }
    }
    false
}

//! Locks of ranges are taken again, when nothing can lose them any more.
//!
//! CRIU has a restored process take its locks, and then maps its files and closes what it mapped them
//! by. A process that closes any descriptor of a file gives up its locks of ranges on it (fcntl(2)).
//! So they are taken again, all of them, by the processes themselves, while they stand at the end of
//! their restore. Of one that was not lost, the kernel makes the same again.

use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io, mem, slice};

use libc::{c_int, flock};

use crate::told::{Lock, told};
use crate::tracee::{Tracee, Visit};

/// Whether the restore has been ended.
static FAILED: AtomicBool = AtomicBool::new(false);

/// Takes the locks of a process. Where that fails all are ended, which makes the restore fail
/// (`finalize_restore_detach` in criu/cr-restore.c): who goes on without its lock spoils files.
pub fn take_again(process: c_int) {
    let locks = &told().locks;
    if locks.is_empty() || FAILED.load(Ordering::Relaxed) {
        return;
    }
    let Some(number) = inner_number(process) else { return fail(process, None, libc::ESRCH) };
    let its: Vec<&Lock> = locks.iter().filter(|lock| lock.pid == number).collect();
    if its.is_empty() {
        return;
    }
    let mut current = None;
    let taken = Visit::to(Tracee(process), |visit| {
        its.iter().try_for_each(|lock| take(visit, current.insert(*lock)))
    });
    if let Err(error) = taken {
        fail(process, current.or(its.first().copied()), error.raw_os_error().unwrap_or(0));
    }
}

fn take(visit: &mut Visit, lock: &Lock) -> io::Result<()> {
    // SAFETY: zeroes are a value of `flock`, which is numbers only.
    let mut wanted: flock = unsafe { mem::zeroed() };
    wanted.l_type = lock.kind;
    wanted.l_whence = libc::SEEK_SET as i16;
    (wanted.l_start, wanted.l_len) = (lock.start, lock.length);
    // SAFETY: it lives as long as the slice, and all of it, gaps too, was made zero.
    let bytes =
        unsafe { slice::from_raw_parts((&raw const wanted).cast::<u8>(), mem::size_of::<flock>()) };
    let first = [i64::from(lock.fd).cast_unsigned(), libc::F_SETLK as u64];
    match visit.call(libc::SYS_fcntl, first, bytes)? {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(i32::try_from(-error).unwrap_or(0))),
    }
}

fn fail(process: c_int, lock: Option<&Lock>, errno: i32) {
    FAILED.store(true, Ordering::Relaxed);
    let (pid, fd) = lock.map_or((-1, -1), |lock| (lock.pid, lock.fd));
    told().report(&format!("lock {pid} {fd} {errno}"));
    end_all(process);
}

/// Ends every process that this CRIU traces, and waits for its end: the first process of a namespace
/// ends when all others have been waited for, which is the tracer's, and CRIU waits for the first only.
fn end_all(process: c_int) {
    let mut traced = traced();
    if traced.is_empty() {
        traced.push(process);
    }
    for process in &traced {
        // SAFETY: kill(2) reads and writes no memory.
        unsafe { libc::kill(*process, libc::SIGKILL) };
    }
    traced.sort_by_key(|process| inner_number(*process) == Some(1));
    let threads = |process: &c_int| numbers_in(&format!("/proc/{process}/task"));
    let others = traced.iter().flat_map(threads).filter(|thread| !traced.contains(thread));
    for thread in others.chain(traced.iter().copied()) {
        Tracee(thread).wait_for_end();
    }
}

/// The processes that this one traces.
fn traced() -> Vec<c_int> {
    let own = std::process::id().to_string();
    let is_ours = |process: &c_int| field(*process, b"TracerPid:").is_some_and(|it| it == own);
    numbers_in("/proc").into_iter().filter(is_ours).collect()
}

fn numbers_in(directory: &str) -> Vec<c_int> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// The number of a process in its innermost namespace, which is the container's: CRIU dumps none
/// that has others within.
fn inner_number(process: c_int) -> Option<c_int> {
    field(process, b"NSpid:")?.split_ascii_whitespace().last()?.parse().ok()
}

/// A line of `/proc/PID/status`, in which a name may be any bytes.
fn field(process: c_int, name: &[u8]) -> Option<String> {
    let status = fs::read(format!("/proc/{process}/status")).ok()?;
    let line = status.split(|byte| *byte == b'\n').find_map(|line| line.strip_prefix(name))?;
    Some(str::from_utf8(line).ok()?.trim().to_owned())
}

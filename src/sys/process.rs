//! Processes: pidfds, programs, our own inherited descriptors.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::PidfdFlags;

use super::pid::{Pid, ProcessFd};

/// A process's pidfd; `None` when there is no such process any more.
pub fn pidfd(pid: Pid) -> Result<Option<OwnedFd>> {
    let Some(number) = Option::from(pid) else { return Ok(None) };
    match rustix::process::pidfd_open(number, PidfdFlags::empty()) {
        Ok(fd) => Ok(Some(fd)),
        Err(rustix::io::Errno::SRCH) => Ok(None),
        Err(error) => Err(error).with_context(|| format!("opening process {pid}")),
    }
}

/// Ends a process at once; one that has ended already needs nothing.
pub fn kill(process: BorrowedFd<'_>) -> Result<()> {
    match rustix::process::pidfd_send_signal(process, rustix::process::Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error).context("killing a process"),
    }
}

/// Has this thread run before what else wants the processors: a container is frozen as long as it
/// takes. Where that is not allowed, it takes its turn. Nothing of the container may inherit it.
pub fn go_first() {
    const NICE: i32 = -15;
    let _ = rustix::process::setpriority_process(None, NICE);
}

/// Waits until one of `fds` can be read or has ended; which of them did, none after `limit`.
pub fn wait_readable(fds: &[BorrowedFd<'_>], limit: Option<Duration>) -> Result<Vec<bool>> {
    wait_for(fds, PollFlags::IN, limit)
}

/// As [`wait_readable`], for the exceptional condition by which cgroup and proc files say that
/// their content changed.
pub fn wait_changed(fd: BorrowedFd<'_>, limit: Duration) -> Result<bool> {
    Ok(wait_for(&[fd], PollFlags::PRI, Some(limit))?[0])
}

fn wait_for(fds: &[BorrowedFd<'_>], what: PollFlags, limit: Option<Duration>) -> Result<Vec<bool>> {
    let mut polled: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, what)).collect();
    let limit = limit.map(|limit| Timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    });
    match rustix::event::poll(&mut polled, limit.as_ref()) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error).context("waiting for an event"),
    }
    Ok(polled.iter().map(|fd| !fd.revents().is_empty()).collect())
}

/// A copy of a file descriptor of another process, of the same open file.
pub fn descriptor_of(ProcessFd { pid, fd }: ProcessFd) -> Result<OwnedFd> {
    let process = pidfd(pid)?.context("it has ended")?;
    rustix::process::pidfd_getfd(process, fd, rustix::process::PidfdGetfdFlags::empty())
        .with_context(|| format!("copying fd {fd} of process {pid}"))
}

/// The descriptors that this process was started with.
///
/// A rule may name one of them by number; a number that we opened ourselves since is none.
#[derive(Clone, Debug, Default)]
pub struct InheritedFds(BTreeSet<RawFd>);

impl InheritedFds {
    /// Reads what is open now: to be called before anything else is opened.
    pub fn capture() -> Result<Self> {
        let mut numbers = BTreeSet::new();
        for entry in fs::read_dir("/proc/self/fd").context("reading our own descriptors")? {
            let number = entry?.file_name().to_string_lossy().parse::<RawFd>()?;
            numbers.insert(number);
        }
        // The descriptor of the directory itself was among them, and is gone by now.
        numbers.retain(|number| fs::symlink_metadata(format!("/proc/self/fd/{number}")).is_ok());
        Ok(Self(numbers))
    }

    /// Those of these numbers.
    #[cfg(test)]
    pub fn of<const N: usize>(numbers: [RawFd; N]) -> Self {
        Self(numbers.into())
    }

    /// All of them.
    pub fn numbers(&self) -> &BTreeSet<RawFd> {
        &self.0
    }

    /// Whether `number` was open when this process started.
    pub fn contains(&self, number: RawFd) -> bool {
        self.0.contains(&number)
    }
}

/// Where programs are when the environment does not say it: podman calls `delete` with none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `PATH`, or its usual value where there is none.
pub fn search_path() -> OsString {
    std::env::var_os("PATH").filter(|path| !path.is_empty()).unwrap_or_else(|| DEFAULT_PATH.into())
}

/// Finds a program as execvp(3) does, leaving out what `refuse` says.
pub fn find_program(name: &str, refuse: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    std::env::split_paths(&search_path())
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(|candidate| is_program(candidate) && !refuse(candidate))
}

/// Whether there is a file that we may execute.
pub fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_gone_has_no_pidfd() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::of(&child);
        assert!(pidfd(pid).unwrap().is_some());
        child.wait().unwrap();
        assert!(pidfd(pid).unwrap().is_none());
    }
}

//! Processes: `/proc/PID`, pidfds, our own inherited descriptors.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

/// A process's pidfd; `None` when there is no such process any more.
pub fn pidfd(pid: i32) -> Result<Option<OwnedFd>> {
    let Some(number) = Pid::from_raw(pid) else { return Ok(None) };
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

/// The number of a pidfd's process; `None` when that has ended (fdinfo of pidfd_open(2)).
pub fn number_of(process: BorrowedFd<'_>) -> Option<i32> {
    let path = format!("/proc/thread-self/fdinfo/{}", process.as_raw_fd());
    let info = fs::read_to_string(path).ok()?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"))?.trim().parse().ok()?;
    (number > 0).then_some(number)
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

/// The numbers of a process in each pid namespace from ours inwards (`NSpid` of proc_pid_status(5)).
pub fn namespaced_pids(pid: i32) -> Result<Vec<i32>> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    parse_nspid(&text).with_context(|| format!("reading {path}"))
}

fn parse_nspid(status: &str) -> Result<Vec<i32>> {
    let line =
        status.lines().find_map(|line| line.strip_prefix("NSpid:")).context("it has no NSpid")?;
    line.split_ascii_whitespace().map(|number| Ok(number.parse()?)).collect()
}

/// A copy of a file descriptor of another process, of the same open file.
pub fn descriptor_of(pid: i32, fd: RawFd) -> Result<OwnedFd> {
    let process = pidfd(pid)?.context("it has ended")?;
    rustix::process::pidfd_getfd(process, fd, rustix::process::PidfdGetfdFlags::empty())
        .with_context(|| format!("copying fd {fd} of process {pid}"))
}

/// When a process was started, in ticks since the machine was; `None` when it has ended.
pub fn start_time(pid: i32) -> Option<u64> {
    let text = fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse_start_time(&String::from_utf8_lossy(&text))
}

fn parse_start_time(stat: &str) -> Option<u64> {
    let mut fields = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace();
    // One that has ended and waits for its parent is a process no more.
    let state = fields.next()?;
    if ["Z", "X"].contains(&state) { None } else { fields.nth(18)?.parse().ok() }
}

/// What proc_pid_stat(5) says of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// `R`, `S`, `D`, `T`, `t`, `Z` …
    pub state: char,
    /// Its parent.
    pub parent: i32,
    /// The leader of its session.
    pub session: i32,
    /// The number of its controlling terminal's device; 0 if it has none.
    pub terminal: u64,
}

impl Status {
    /// Reads it.
    pub fn of(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/stat");
        let text = fs::read(&path).with_context(|| format!("reading {path}"))?;
        Self::parse(&String::from_utf8_lossy(&text)).with_context(|| format!("reading {path}"))
    }

    /// The name is between the first and the last parenthesis: it may hold any byte itself.
    fn parse(stat: &str) -> Result<Self> {
        let (open, close) = stat.find('(').zip(stat.rfind(')')).context("it has no name")?;
        let mut fields = stat.get(close + 1..).unwrap_or_default().split_ascii_whitespace();
        let mut next = || fields.next().context("it is cut");
        let state = next()?.chars().next().context("it has no state")?;
        let (parent, _group, session) = (next()?.parse()?, next()?, next()?.parse()?);
        Ok(Self {
            name: stat.get(open + 1..close).context("its name is cut")?.to_owned(),
            state,
            parent,
            session,
            terminal: next()?.parse()?,
        })
    }
}

/// The parent and the name of a process (proc_pid_stat(5)).
pub fn parent_and_name(pid: i32) -> Result<(i32, String)> {
    Status::of(pid).map(|status| (status.parent, status.name))
}

/// Whether a process is another, or descends from it.
pub fn descends_from(process: i32, ancestor: i32) -> bool {
    let mut at = process;
    while at != ancestor {
        match parent_and_name(at) {
            Ok((parent, _)) if parent > 1 => at = parent,
            _ => return false,
        }
    }
    true
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
    fn a_process_that_ended_has_no_start_time() {
        let rest = "3 7 7 0 -1 0 0 0 0 0 1 2 3 4 20 0 1 0 4711 5 6";
        assert_eq!(parse_start_time(&format!("7 (a) b) S {rest}")), Some(4711));
        assert_eq!(parse_start_time(&format!("7 (a) Z {rest}")), None);
        assert_eq!(parse_start_time("7 (a) S 1"), None);
        assert!(start_time(std::process::id().cast_signed()).is_some());
    }

    #[test]
    fn a_name_may_hold_parentheses_and_spaces() {
        let status = Status::parse("7 (a) b (c) S 3 7 6 34817").unwrap();
        assert_eq!((status.parent, status.name.as_str()), (3, "a) b (c"));
        assert_eq!((status.state, status.session, status.terminal), ('S', 6, 34817));
        assert!(Status::parse("7 (a S 3").is_err());
        assert!(Status::parse("7 )(").is_err());
    }

    #[test]
    fn pids_of_each_namespace() {
        assert_eq!(parse_nspid("Name:\tx\nNSpid:\t812\t7\n").unwrap(), [812, 7]);
        assert!(parse_nspid("Name:\tx\n").is_err());
    }

    #[test]
    fn a_process_that_is_gone_has_no_pidfd() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(pidfd(pid).unwrap().is_some());
        child.wait().unwrap();
        assert!(pidfd(pid).unwrap().is_none());
    }
}

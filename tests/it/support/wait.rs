//! Waiting for events, each with a deadline.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// After this, whatever a test waits for is not coming.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// Waits until a file exists; fails at once when the process that should make it is gone.
#[track_caller]
pub fn wait_for_file(path: &Path, maker: i32) {
    let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
    let created = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO;
    watch.add_watch(path.parent().unwrap(), created).unwrap();
    let maker = pidfd(maker);
    let end = Instant::now() + DEADLINE;
    while !path.exists() {
        let Some(maker) = &maker else { panic!("{}: its maker is gone", path.display()) };
        let [gone, changed] = poll_until(end, [maker.as_fd(), watch.as_fd()]);
        assert!(gone || changed, "{} did not appear in {DEADLINE:?}", path.display());
        assert!(!gone || path.exists(), "{}: its maker ended without it", path.display());
        let _ = watch.read_events();
    }
}

/// Waits until a file is as it should be: looks again whenever it is made or written to.
#[track_caller]
pub fn wait_for_writes<T>(file: &Path, what: &str, look: impl Fn() -> Option<T>) -> T {
    let watch = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).unwrap();
    let written = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_MODIFY;
    watch.add_watch(file.parent().unwrap(), written).unwrap();
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        let [changed] = poll_until(end, [watch.as_fd()]);
        assert!(changed, "{}: {what}, in {DEADLINE:?}", file.display());
        let _ = watch.read_events();
    }
}

/// Waits for what the kernel raises no event for: a word in `/proc`, a byte of mapped memory.
#[track_caller]
pub fn poll_for<T>(what: &str, look: impl Fn() -> Option<T>) -> T {
    let end = Instant::now() + DEADLINE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "{what}, in {DEADLINE:?}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Waits until a log has a line, which is a number.
#[track_caller]
pub fn first_number(log: &Path) -> u64 {
    wait_for_writes(log, "it has not got a line", || {
        let text = std::fs::read_to_string(log).unwrap();
        text.split_once('\n').map(|(first, _)| first.parse().unwrap())
    })
}

/// Waits until a process runs a program.
#[track_caller]
pub fn wait_for_program(pid: i32, program: &str) {
    let name = format!("/proc/{pid}/comm");
    poll_for(&format!("process {pid} does not run {program}"), || {
        (std::fs::read_to_string(&name).unwrap().trim_end() == program).then_some(())
    });
}

/// Sends a line to a port, and returns all that is answered until the other side closes.
#[track_caller]
pub fn ask(address: &str, line: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connecting to the container");
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    writeln!(stream, "{line}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer of the container");
    answer
}

/// Waits until a process is gone, whoever its parent is.
#[track_caller]
pub fn wait_for_exit(pid: i32) {
    if let Some(process) = pidfd(pid) {
        let [gone] = poll_until(Instant::now() + DEADLINE, [process.as_fd()]);
        assert!(gone, "process {pid} did not end in {DEADLINE:?}");
    }
}

/// Waits until what cleans up behind every ocicle that was killed is done, this test's and others'.
#[track_caller]
pub fn wait_for_guardians() {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if let Some(pid) = pid.filter(|_| command.starts_with(b"ocicle-guardian")) {
            wait_for_exit(pid);
        }
    }
}

/// A descriptor of a process; none when there is no such process any more.
fn pidfd(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

fn poll_until<const N: usize>(end: Instant, fds: [BorrowedFd<'_>; N]) -> [bool; N] {
    let mut fds = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    let left = end.saturating_duration_since(Instant::now());
    loop {
        match poll(&mut fds, PollTimeout::try_from(left).unwrap()) {
            Ok(_) => return fds.map(|fd| fd.any().unwrap_or(false)),
            Err(nix::Error::EINTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

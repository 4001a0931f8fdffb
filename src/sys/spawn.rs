//! Starting programs that inherit one descriptor more, fewer blocked signals, or our end.
#![expect(
    unsafe_code,
    reason = "what runs between fork and exec cannot be checked by the compiler"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use nix::sys::signal::SigSet;

/// Starts a program that inherits `fd`, whose number stands in an environment variable. Nobody
/// else inherits it, and it is closed here.
pub fn with_fd(mut command: Command, fd: OwnedFd, variable: &str) -> io::Result<Child> {
    command.env(variable, fd.as_raw_fd().to_string());
    let keep = move || {
        // SAFETY: fcntl(2) with a number touches no memory, and may follow a fork.
        match unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    // SAFETY: `keep` makes one system call, and allocates nothing.
    unsafe { command.pre_exec(keep) };
    command.spawn()
}

/// Starts a program that gets all signals, whatever is blocked here.
pub fn with_signals(mut command: Command) -> io::Result<Child> {
    // SAFETY: `unblock` makes one system call, and allocates nothing.
    unsafe { command.pre_exec(unblock) };
    command.spawn()
}

fn unblock() -> io::Result<()> {
    Ok(SigSet::empty().thread_set_mask()?)
}

/// As [`with_signals`], a program that gets SIGTERM when the thread that starts it ends, however it ends.
pub fn bound(mut command: Command) -> io::Result<Child> {
    let parent = rustix::process::getpid();
    let bind = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        // Too late, if the parent has ended before.
        match rustix::process::getppid() {
            now if now == Some(parent) => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    };
    // SAFETY: `bind` makes two system calls, and allocates nothing.
    unsafe { command.pre_exec(bind) };
    with_signals(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn the_program_gets_what_is_blocked_here() {
        let blocked = SigSet::from_iter([nix::sys::signal::Signal::SIGTERM]);
        blocked.thread_block().unwrap();
        let ends = |spawn: fn(Command) -> io::Result<Child>| {
            let mut command = Command::new("sh");
            command.args(["-c", "kill -TERM $$"]);
            std::os::unix::process::ExitStatusExt::signal(&spawn(command).unwrap().wait().unwrap())
        };
        assert_eq!(ends(|mut command| command.spawn()), None, "it would inherit the mask");
        assert_eq!([ends(with_signals), ends(bound)], [Some(15), Some(15)]);
    }

    #[test]
    fn the_program_has_it_and_we_do_not() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo inherited >&$WRITER"]);
        let mut child = with_fd(command, writer.into(), "WRITER").unwrap();
        assert!(child.wait().unwrap().success());
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "inherited\n");
    }
}

//! Starting programs that inherit one descriptor more.
#![expect(
    unsafe_code,
    reason = "what runs between fork and exec cannot be checked by the compiler"
)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

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

//! Starting programs that inherit one descriptor more, fewer blocked signals, or our end.
#![expect(
    unsafe_code,
    reason = "what runs between fork and exec cannot be checked by the compiler"
)]

use std::collections::BTreeMap;
use std::env;
use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus};

use super::pid::Pid;
use nix::spawn::{PosixSpawnAttr, PosixSpawnFileActions, PosixSpawnFlags, posix_spawn};
use nix::sys::signal::{SigSet, Signal};

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

/// Starts a program that gets all signals, whatever is blocked here, with these variables beside
/// ours. It shares our memory until it is executed, where a [`Command`] that changes its mask would
/// copy it: that takes both sides longer than all the rest of a start.
///
/// # Errors
/// When the program, a path, cannot be executed. A script without `#!` cannot.
pub fn with_signals(command: &[OsString], variables: &[(&str, OsString)]) -> io::Result<Pid> {
    let mut attributes = PosixSpawnAttr::init()?;
    let flags = PosixSpawnFlags::POSIX_SPAWN_SETSIGMASK | PosixSpawnFlags::POSIX_SPAWN_SETSIGDEF;
    attributes.set_flags(flags)?;
    attributes.set_sigmask(&SigSet::empty())?;
    // Rust ignores it, and a program would inherit that.
    attributes.set_sigdefault(&SigSet::from_iter([Signal::SIGPIPE]))?;
    let as_they_are = PosixSpawnFileActions::init()?;
    let arguments: Vec<CString> =
        command.iter().map(|argument| terminated(argument)).collect::<io::Result<_>>()?;
    let environment = environment(variables)?;
    let program = command[0].as_os_str();
    let child = posix_spawn(program, &as_they_are, &attributes, &arguments, &environment)?;
    Ok(Pid(child.as_raw()))
}

fn environment(variables: &[(&str, OsString)]) -> io::Result<Vec<CString>> {
    let mut all: BTreeMap<OsString, OsString> = env::vars_os().collect();
    all.extend(variables.iter().map(|(name, value)| (name.into(), value.clone())));
    let line = |(mut name, value): (OsString, OsString)| {
        name.push("=");
        name.push(value);
        terminated(&name)
    };
    all.into_iter().map(line).collect()
}

fn terminated(word: &OsStr) -> io::Result<CString> {
    Ok(CString::new(word.as_bytes())?)
}

/// Waits for the end of a program that was started here.
///
/// # Errors
/// When there is no such child.
pub fn wait(program: Pid) -> io::Result<ExitStatus> {
    let program = program.into();
    let any = rustix::process::WaitOptions::empty();
    let ended = rustix::io::retry_on_intr(|| rustix::process::waitpid(program, any))?;
    let (_, status) = ended.ok_or(io::ErrorKind::NotFound)?;
    Ok(ExitStatus::from_raw(status.as_raw()))
}

/// Starts a program that gets all signals, as [`with_signals`], and SIGTERM when the thread that
/// starts it ends, however it ends.
pub fn bound(mut command: Command) -> io::Result<Child> {
    let parent = rustix::process::getpid();
    let bind = move || {
        SigSet::empty().thread_set_mask()?;
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
        // Too late, if the parent has ended before.
        match rustix::process::getppid() {
            now if now == Some(parent) => Ok(()),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    };
    // SAFETY: `bind` makes three system calls, and allocates nothing.
    unsafe { command.pre_exec(bind) };
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const SUICIDE: [&str; 3] = ["/bin/sh", "-c", "kill -TERM $$"];

    #[test]
    fn the_program_gets_what_is_blocked_here() {
        SigSet::from_iter([Signal::SIGTERM]).thread_block().unwrap();
        let ends = |spawn: fn(Command) -> io::Result<Child>| {
            let mut command = Command::new(SUICIDE[0]);
            command.args(&SUICIDE[1..]);
            spawn(command).unwrap().wait().unwrap().signal()
        };
        assert_eq!(ends(|mut command| command.spawn()), None, "it would inherit the mask");
        assert_eq!(ends(bound), Some(15));
        let program = with_signals(&SUICIDE.map(OsString::from), &[]).unwrap();
        assert_eq!(wait(program).unwrap().signal(), Some(15));
    }

    #[test]
    fn the_program_dies_of_a_closed_pipe_and_has_our_variables() {
        let script = r#"test -n "$PATH" && test "$OURS" = "a b" && kill -PIPE $$"#;
        let command = ["/bin/sh", "-c", script].map(OsString::from);
        let program = with_signals(&command, &[("OURS", "a b".into())]).unwrap();
        assert_eq!(wait(program).unwrap().signal(), Some(13));
    }

    #[test]
    fn what_cannot_be_executed_is_said() {
        let error = with_signals(&["/nowhere".into()], &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
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

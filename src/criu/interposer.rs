//! The interposer: what a runtime finds as `criu` on its `PATH`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::FdFlags;
use rustix::net::RecvFlags;

use super::door::{Answer, Knock, Work, knock};
use super::plugin;
use crate::sys::inherited::inherited;
use crate::sys::process::go_first;

/// The name by which the program knows that it is to be the interposer.
pub const NAME: &str = "criu";

/// The number of the first descriptor that CRIU inherits; the others follow. High enough for
/// what runc (which gives out numbers from 3 up) and libcriu use, low enough for the usual limit
/// of 1024 descriptors, at whose end CRIU keeps its own.
pub const FIRST_FD: RawFd = 400;

/// How many descriptors CRIU can be given.
pub const FD_LIMIT: usize = 200;

/// The interposer's program: asks at the door, and becomes CRIU.
pub fn main() -> ExitCode {
    let error = match become_criu(std::env::args_os().skip(1).collect()) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    eprintln!("criu (ocicle): {error:#}");
    ExitCode::FAILURE
}

fn become_criu(arguments: Vec<OsString>) -> Result<std::convert::Infallible> {
    let work = work_of(&arguments)?;
    if let (Work::Other, Some(program)) = (work, std::env::var_os(super::door::PROGRAM)) {
        return become_program(Command::new(program).args(arguments));
    }
    let (answer, fds) = knock(&Knock::Criu(work))?;
    let (program, configuration, set_aside) = match answer {
        Answer::Become { program, configuration, set_aside } => (program, configuration, set_aside),
        Answer::Stop(why) => bail!(why),
        Answer::Continue => bail!("that is no answer for CRIU"),
    };
    place(fds)?;
    if work == Work::Dump {
        go_first();
    }
    let mut command = Command::new(&program);
    command.args(arguments);
    if let Some(configuration) = configuration {
        command.env("CRIU_CONFIG_FILE", configuration);
    }
    if let Some(list) = set_aside {
        plugin::preload(&mut command, &list)?;
    }
    become_program(&mut command)
}

fn become_program(command: &mut Command) -> Result<std::convert::Infallible> {
    command.env("PATH", path_without_us()?);
    Err(command.exec()).with_context(|| format!("executing {}", command.get_program().display()))
}

/// Looks at the request that waits for CRIU, and leaves it there.
fn work_of(arguments: &[OsString]) -> Result<Work> {
    let [first, number, ..] = arguments else { return Ok(Work::Other) };
    if first != "swrk" {
        return Ok(Work::Other);
    }
    let number = number
        .to_str()
        .and_then(|number| number.parse().ok())
        .context("swrk names no descriptor")?;
    let socket =
        inherited(number).with_context(|| format!("descriptor {number} of swrk is not open"))?;
    work_waiting(socket).context("looking at the runtime's request")
}

fn work_waiting(socket: BorrowedFd<'_>) -> Result<Work> {
    let mut start = [0; 64];
    let (length, _) =
        rustix::io::retry_on_intr(|| rustix::net::recv(socket, &mut start, RecvFlags::PEEK))
            .map_err(io::Error::from)?;
    Ok(parse_work(&start[..length]))
}

/// The type is field 1 of the message, and protobuf writers put it first.
fn parse_work(request: &[u8]) -> Work {
    match request {
        [0x08, 1, ..] => Work::Dump,
        [0x08, 2, ..] => Work::Restore,
        _ => Work::Other,
    }
}

/// Gives the descriptors their numbers, for the program to come.
fn place(fds: Vec<OwnedFd>) -> Result<()> {
    ensure!(fds.len() <= FD_LIMIT, "{} descriptors are more than CRIU can be given", fds.len());
    for (wanted, fd) in (FIRST_FD..).zip(fds) {
        let placed = rustix::io::fcntl_dupfd_cloexec(fd.as_fd(), wanted)
            .map_err(io::Error::from)
            .with_context(|| format!("giving a descriptor the number {wanted}"))?;
        rustix::io::fcntl_setfd(&placed, FdFlags::empty())?;
        ensure!(placed.into_raw_fd() == wanted, "descriptor {wanted} is in use");
    }
    Ok(())
}

fn path_without_us() -> Result<OsString> {
    let path = crate::sys::process::search_path();
    let door = std::env::var_os(super::door::VARIABLE).map(PathBuf::from);
    let ours =
        door.as_deref().and_then(|door| door.parent()).map(|directory| directory.join("bin"));
    let others = std::env::split_paths(&path).filter(|directory| Some(directory) != ours.as_ref());
    Ok(std::env::join_paths(others)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_told_by_its_first_field() {
        assert_eq!(parse_work(&[0x08, 1, 0x12, 0]), Work::Dump);
        assert_eq!(parse_work(&[0x08, 2]), Work::Restore);
        assert_eq!(parse_work(&[0x08, 9]), Work::Other);
        assert_eq!(parse_work(&[]), Work::Other);
    }
}

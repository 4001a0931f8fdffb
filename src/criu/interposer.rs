//! The interposer: what a runtime finds as `criu` on its `PATH`.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};
use rustix::io::FdFlags;
use rustix::net::RecvFlags;

use super::plugin;
use super::protocol::{self, Answer, FIRST_FD, Knock, Work, knock};
use crate::apart;
use crate::sys::descriptors;
use crate::sys::inherited::inherited;
use crate::sys::process::go_first;
use crate::sys::socket::Channel;

/// The numbers behind the inherited ones that are left to CRIU: it keeps its own descriptors above
/// all others, some for each process of a table, at the end of a block of 128
/// (`choose_service_fd_base` in criu/servicefd.c).
const RESERVED: usize = 256;

/// How many descriptors CRIU can be given: the kernel's limit decides.
pub fn room() -> usize {
    let limit = usize::try_from(descriptors::most()).unwrap_or(usize::MAX);
    limit.saturating_sub(FIRST_FD as usize + RESERVED)
}

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
    if let (Work::Other, Some(program)) = (work, std::env::var_os(protocol::PROGRAM)) {
        return become_program(Command::new(program).args(arguments));
    }
    if work == Work::Dump {
        apart::leave_groups();
    }
    let (answer, channel) = knock(&Knock::Criu(work))?;
    let (program, configuration, plugin, inherited) = match answer {
        Answer::Become { program, configuration, plugin, inherited } => {
            (program, configuration, plugin, inherited)
        }
        Answer::Stop(why) => bail!(why),
        Answer::Continue => bail!("that is no answer for CRIU"),
    };
    inherit(&channel, inherited)?;
    if work == Work::Dump {
        go_first();
    }
    let mut command = Command::new(&program);
    command.args(arguments);
    if let Some(configuration) = configuration {
        command.env("CRIU_CONFIG_FILE", configuration);
    }
    if plugin {
        plugin::preload(&mut command, &door_directory().context("the door is gone")?)?;
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

/// Takes the descriptors for the program to come, and gives them their numbers.
fn inherit(channel: &Channel, count: usize) -> Result<()> {
    descriptors::make_room((FIRST_FD as usize + count + RESERVED) as u64)?;
    let mut placed = 0;
    while placed < count {
        let (Answer::Continue, fds) = channel.receive()?.context("ocicle is gone")? else {
            bail!("descriptors were to come");
        };
        ensure!(!fds.is_empty(), "{placed} descriptors have come instead of {count}");
        for (wanted, fd) in (FIRST_FD + placed as RawFd..).zip(&fds) {
            place(fd, wanted)?;
        }
        placed += fds.len();
    }
    Ok(())
}

fn place(fd: &OwnedFd, wanted: RawFd) -> Result<()> {
    let placed = rustix::io::fcntl_dupfd_cloexec(fd, wanted)
        .map_err(io::Error::from)
        .with_context(|| format!("giving a descriptor the number {wanted}"))?;
    rustix::io::fcntl_setfd(&placed, FdFlags::empty())?;
    ensure!(placed.into_raw_fd() == wanted, "descriptor {wanted} is in use");
    Ok(())
}

fn door_directory() -> Option<PathBuf> {
    let door = PathBuf::from(std::env::var_os(protocol::VARIABLE)?);
    Some(door.parent()?.to_owned())
}

fn path_without_us() -> Result<OsString> {
    let path = crate::sys::process::search_path();
    let ours = door_directory().map(|directory| directory.join(protocol::BINARIES));
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

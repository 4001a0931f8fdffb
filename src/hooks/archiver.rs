//! The archiver's program, in the place of GNU tar below CRIU.
//!
//! Whatever it cannot do is left to the real tar, which then begins at the beginning. There are two
//! exceptions: an archive that leads out of its directory, and images that are no files but pipes.

use std::convert::Infallible;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use rustix::fs::SeekFrom;

use crate::criu::door;
use crate::criu::protocol::ARCHIVER;
use crate::criu::tar_call::TarCall;
use crate::runtime::is_ourselves;
use crate::snapshot::{LeadsOut, pack_tree, unpack_tree};
use crate::sys::fs::open_host_dir;
use crate::sys::process::find_program;

/// The archiver's program.
pub fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match TarCall::of(&arguments).map(|call| carry_out(&call)) {
        Some(Ok(())) => return ExitCode::SUCCESS,
        Some(Err(error)) => {
            eprintln!("{ARCHIVER} (ocicle): {error:#}");
            if error.is::<LeadsOut>() || error.is::<NoWayBack>() {
                return ExitCode::FAILURE;
            }
        }
        None => {}
    }
    let error = match become_tar(&arguments) {
        Err(error) => error,
        Ok(never) => match never {},
    };
    eprintln!("{ARCHIVER} (ocicle): {error:#}");
    ExitCode::FAILURE
}

/// What was written or read cannot be taken back: standard input or output is no file.
#[derive(Debug, thiserror::Error)]
#[error("and it cannot begin again")]
struct NoWayBack;

fn carry_out(call: &TarCall) -> Result<()> {
    let (stream, begin) = match call {
        TarCall::Pack(_) => opened(&std::io::stdout())?,
        TarCall::Unpack(_) => opened(&std::io::stdin())?,
    };
    work(call, &stream).map_err(|error| {
        let is_back = begin.is_some_and(|begin| take_back(call, &stream, begin).is_ok());
        if is_back { error } else { error.context(NoWayBack) }
    })
}

fn work(call: &TarCall, stream: &File) -> Result<()> {
    match call {
        TarCall::Pack(directory) => pack_tree(&open_host_dir(directory)?, stream),
        TarCall::Unpack(directory) => {
            for left_out in unpack_tree(stream, &open_host_dir(directory)?)? {
                eprintln!("{ARCHIVER} (ocicle): attributes are left out: {left_out}");
            }
            Ok(())
        }
    }
}

/// A standard stream without a buffer, and where it stands in its file.
fn opened(stream: &impl AsFd) -> Result<(File, Option<u64>)> {
    let stream: OwnedFd = stream.as_fd().try_clone_to_owned()?;
    let begin = rustix::fs::tell(&stream).ok();
    Ok((stream.into(), begin))
}

/// Makes a stream what it was before.
fn take_back(call: &TarCall, stream: &File, begin: u64) -> Result<()> {
    if let TarCall::Pack(_) = call {
        stream.set_len(begin)?;
    }
    rustix::fs::seek(stream, SeekFrom::Start(begin))?;
    Ok(())
}

fn become_tar(arguments: &[OsString]) -> Result<Infallible> {
    // Two doors may be on the way, of two installations.
    let is_ours = |path: &Path| path.starts_with(door::RUN) || is_ourselves(path);
    let program = find_program(ARCHIVER, is_ours).context("there is no tar on PATH")?;
    Err(Command::new(&program).args(arguments).exec())
        .with_context(|| format!("executing {}", program.display()))
}

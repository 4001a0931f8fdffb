//! What is said at the door, by both sides of it, and what everybody there is called.

use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::sys::socket::Channel;

/// The name by which the program knows that it is to be the interposer.
pub const INTERPOSER: &str = "criu";

/// The name by which the program knows that it is to be the archiver.
pub const ARCHIVER: &str = "tar";

/// The name by which the program knows that it is to be the action script.
pub const ACTION: &str = "criu-action";

/// The environment variable that names the socket.
pub const VARIABLE: &str = "OCICLE_DOOR";

/// The one that names the real CRIU, for a call that need not come to the door.
pub(super) const PROGRAM: &str = "OCICLE_CRIU";

/// Where the interposer is.
pub(super) const BINARIES: &str = "bin";

/// The number of the first descriptor that CRIU inherits; the others follow. High enough for
/// what runc (which gives out numbers from 3 up) and libcriu use, low enough for the usual limit
/// of 1024 descriptors, at whose end CRIU keeps its own.
pub const FIRST_FD: RawFd = 400;

/// How many descriptors come along with one message: together with those that a runtime leaves open
/// they must have numbers below [`FIRST_FD`] until they are placed.
pub(super) const BATCH: usize = 100;

/// What comes to the door.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Knock {
    /// CRIU, asked for this.
    Criu(Work),
    /// The action script, at this point.
    Action(String),
}

/// The answer to a knock.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Become this program, with this configuration, and with the library if that was told something.
    /// So many descriptors follow, and take the numbers from [`FIRST_FD`] on.
    Become { program: PathBuf, configuration: Option<PathBuf>, plugin: bool, inherited: usize },
    /// Go on.
    Continue,
    /// Fail.
    Stop(String),
}

/// What CRIU was asked for, as far as it matters here (`criu_req_type` of CRIU's rpc.proto).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Work {
    /// A dump.
    Dump,
    /// A restore.
    Restore,
    /// A version, a check for features, anything else.
    Other,
}

/// Goes to the door that the environment names.
pub(super) fn knock(knock: &Knock) -> Result<(Answer, Channel)> {
    let path = std::env::var_os(VARIABLE).with_context(|| format!("{VARIABLE} is not set"))?;
    let channel = Channel::connect(Path::new(&path))?;
    channel.send(knock, &[])?;
    let (answer, _) = channel.receive()?.context("ocicle is gone")?;
    Ok((answer, channel))
}

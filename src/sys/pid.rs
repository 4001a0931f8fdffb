//! The numbers of processes: ours, and those of a container's namespace. One is not the other.

use std::fmt;
use std::io;
use std::num::ParseIntError;
use std::os::fd::RawFd;
use std::process::Child;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

macro_rules! numbers {
    ($($(#[doc = $doc:literal])* $name:ident,)*) => {$(
        $(#[doc = $doc])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub i32);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = ParseIntError;

            fn from_str(text: &str) -> Result<Self, ParseIntError> {
                text.parse().map(Self)
            }
        }
    )*};
}

numbers! {
    /// A process, by its number in the namespace that we are in: the one by which system calls and
    /// `/proc` know it.
    Pid,
    /// A process, by its number in the namespace of its container: the one that the container sees,
    /// that CRIU's images have, and that rules and messages name.
    InnerPid,
}

impl Pid {
    /// This process.
    pub fn own() -> Self {
        Self(std::process::id().cast_signed())
    }

    /// A child that was started here.
    pub fn of(child: &Child) -> Self {
        Self(child.id().cast_signed())
    }

    /// The number of a process that there can be; `None` for 0 and below, which system calls take for
    /// something else.
    pub fn exists(self) -> Option<Self> {
        (self.0 > 0).then_some(self)
    }
}

/// A file descriptor of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessFd {
    /// The process.
    pub pid: Pid,
    /// Its number for the open file.
    pub fd: RawFd,
}

impl ProcessFd {
    /// One of this process.
    pub fn own(fd: RawFd) -> Self {
        Self { pid: Pid::own(), fd }
    }
}

impl From<Pid> for Option<rustix::process::Pid> {
    fn from(pid: Pid) -> Self {
        rustix::process::Pid::from_raw(pid.0)
    }
}

/// Sends a signal to a process that was started here, and has not been waited for.
///
/// # Errors
/// Those of kill(2).
pub fn signal(child: Pid, signal: nix::sys::signal::Signal) -> io::Result<()> {
    Ok(nix::sys::signal::kill(nix::unistd::Pid::from_raw(child.0), signal)?)
}

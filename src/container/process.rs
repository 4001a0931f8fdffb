//! A process of a container, and its file descriptors.

use std::fmt;
use std::os::fd::RawFd;

use serde::{Deserialize, Serialize};

use crate::sys::pid::{InnerPid, Pid};

/// A process of a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number here.
    pub host: Pid,
    /// Its number in the container's process namespace.
    pub inner: InnerPid,
}

/// A file descriptor of a process of a container, by which it holds an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Holder {
    /// The process, as the container sees it.
    pub pid: InnerPid,
    /// The file descriptor.
    pub fd: RawFd,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.pid, self.fd)
    }
}

//! What the open files of a container can be.

use std::fmt;
use std::str::FromStr;

use rustix::fs::FileType;
use serde::{Deserialize, Serialize};

macro_rules! kinds {
    ($($(#[doc = $doc:literal])* $variant:ident = $name:literal,)*) => {
        /// What an open file is.
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub enum FileKind {
            $($(#[doc = $doc])* #[serde(rename = $name)] $variant,)*
        }

        impl FileKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name it is shown and selected by.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// A regular file.
    Reg = "reg",
    /// A directory.
    Dir = "dir",
    /// A symbolic link, opened with `O_PATH`.
    Symlink = "symlink",
    /// A character or block device that is no terminal.
    Device = "device",
    /// One end of a pipe.
    Pipe = "pipe",
    /// A named pipe.
    Fifo = "fifo",
    /// A terminal.
    Tty = "tty",
    /// A unix socket.
    Unix = "unix",
    /// An IP socket.
    Inet = "inet",
    /// A netlink socket.
    Netlink = "netlink",
    /// A packet socket.
    Packet = "packet",
    /// An eventfd.
    Eventfd = "eventfd",
    /// An epoll instance.
    Epoll = "epoll",
    /// A timerfd.
    Timerfd = "timerfd",
    /// A signalfd.
    Signalfd = "signalfd",
    /// An inotify instance.
    Inotify = "inotify",
    /// A fanotify group.
    Fanotify = "fanotify",
    /// A memfd.
    Memfd = "memfd",
    /// A pidfd.
    Pidfd = "pidfd",
    /// A tun or tap device.
    Tun = "tun",
    /// A namespace.
    Namespace = "namespace",
    /// A BPF map.
    Bpfmap = "bpfmap",
    /// A file that a plugin of CRIU handles.
    External = "external",
    /// Anything else.
    Unknown = "unknown",
}

impl FileKind {
    /// What the type bits of a mode say (inode(7)). A terminal is a device to them, and what has no
    /// path nothing at all.
    pub fn of_mode(mode: u32) -> Self {
        match FileType::from_raw_mode(mode) {
            FileType::RegularFile => Self::Reg,
            FileType::Directory => Self::Dir,
            FileType::Symlink => Self::Symlink,
            FileType::Fifo => Self::Fifo,
            FileType::CharacterDevice | FileType::BlockDevice => Self::Device,
            _ => Self::Unknown,
        }
    }

    /// Whether it is a socket of any family.
    pub fn is_socket(self) -> bool {
        matches!(self, Self::Unix | Self::Inet | Self::Netlink | Self::Packet)
    }
}

impl fmt::Display for FileKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for FileKind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, UnknownKind> {
        Self::ALL.iter().find(|kind| kind.as_str() == text).copied().ok_or(UnknownKind)
    }
}

/// A word that is the name of no kind.
#[derive(Debug, thiserror::Error)]
#[error("it is no type of open file")]
pub struct UnknownKind;

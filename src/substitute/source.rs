//! What takes the place of an open file.

use std::fmt;

use super::escaped;
use crate::bytes::ByteString;

/// What takes a file's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file descriptor inherited from the caller.
    Fd(i32),
    /// One that the caller has named (`LISTEN_FDNAMES` of sd_listen_fds(3)).
    FdName(ByteString),
    /// A file of the host.
    File(FileSource),
    /// A file of the container.
    Container(FileSource),
    /// The null device.
    Null,
    /// What is at its end at once, and takes and drops what is written.
    Empty,
    /// The caller's terminal.
    Tty,
    /// A unix socket of the host.
    Unix(UnixSource),
    /// A TCP socket of the caller's network.
    Tcp(TcpSource),
    /// A socket whose peer is gone.
    Reset,
    /// Nothing: the file descriptors are closed.
    Closed,
    /// What a program returns.
    Exec(ByteString),
}

/// A unix socket at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixSource {
    /// The path.
    pub path: ByteString,
    /// Whether to listen there instead of connecting.
    pub listen: bool,
}

/// A TCP socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSource {
    /// An address, or a name that is looked up.
    pub host: String,
    /// The port.
    pub port: u16,
    /// Whether to listen there instead of connecting.
    pub listen: bool,
}

impl TcpSource {
    /// `HOST:PORT`, with brackets around an address of IPv6.
    pub fn address(&self) -> String {
        let colon = self.host.contains(':');
        let (open, close) = if colon { ("[", "]") } else { ("", "") };
        format!("{open}{}{close}:{}", self.host, self.port)
    }
}

/// A file, and how to open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileSource {
    /// Its path.
    pub path: ByteString,
    /// The access; as the original's if it is not said.
    pub access: Option<Access>,
    /// Whether everything is written at the end. The original's `O_APPEND` stays in any case.
    pub append: bool,
    /// Whether the file is made if there is none, with mode 0600.
    pub create: bool,
    /// Whether its content goes first.
    pub truncate: bool,
    /// The position; as the original's, if that had one, or else the start.
    pub position: Option<Position>,
}

impl FileSource {
    /// A file opened as the original was.
    pub fn new(path: impl Into<ByteString>) -> Self {
        Self {
            path: path.into(),
            access: None,
            append: false,
            create: false,
            truncate: false,
            position: None,
        }
    }

    fn write(&self, word: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{word}:{}", escaped(&self.path))?;
        if let Some(access) = self.access {
            write!(f, ",{}", access.as_str())?;
        }
        for (word, is_set) in
            [("append", self.append), ("create", self.create), ("truncate", self.truncate)]
        {
            if is_set {
                write!(f, ",{word}")?;
            }
        }
        if let Some(position) = self.position {
            write!(f, ",pos={}", position.as_str())?;
        }
        Ok(())
    }
}

/// An access mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `ro`
    Read,
    /// `wo`
    Write,
    /// `rw`
    Both,
}

impl Access {
    /// The word for it in a rule.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Read => "ro",
            Self::Write => "wo",
            Self::Both => "rw",
        }
    }

    /// The access mode of `O_…` flags.
    pub fn of(flags: u32) -> Self {
        match flags as i32 & libc::O_ACCMODE {
            libc::O_RDONLY => Self::Read,
            libc::O_WRONLY => Self::Write,
            _ => Self::Both,
        }
    }

    /// Whether this suffices where `other` is expected.
    pub fn covers(self, other: Self) -> bool {
        self == Self::Both || self == other
    }
}

/// Where in a file to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// Where the original was.
    Keep,
    /// At its start.
    Start,
    /// At its end.
    End,
}

impl Position {
    /// The word for it in a rule.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Start => "start",
            Self::End => "end",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listens = |listen: bool| if listen { ",listen" } else { "" };
        match self {
            Self::Fd(fd) => write!(f, "fd:{fd}"),
            Self::FdName(name) => write!(f, "fd:{}", escaped(name)),
            Self::File(file) => file.write("file", f),
            Self::Container(file) => file.write("container", f),
            Self::Null => f.write_str("null"),
            Self::Empty => f.write_str("empty"),
            Self::Tty => f.write_str("tty"),
            Self::Unix(unix) => write!(f, "unix:{}{}", escaped(&unix.path), listens(unix.listen)),
            Self::Tcp(tcp) => write!(f, "tcp:{}{}", tcp.address(), listens(tcp.listen)),
            Self::Reset => f.write_str("reset"),
            Self::Closed => f.write_str("closed"),
            Self::Exec(program) => write!(f, "exec:{}", escaped(program)),
        }
    }
}

//! What a substitution rule says.

use std::fmt;

use crate::bytes::ByteString;
use crate::files::{FileId, Holder};

/// A rule: an open file, and what takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which open file.
    pub selector: Selector,
    /// What takes its place.
    pub source: Source,
    /// Who wrote the rule.
    pub origin: Origin,
}

/// Where a rule was written: what it may do depends on that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line, by whoever runs ocicle.
    CommandLine,
    /// In an annotation of the container's configuration.
    Annotation(String),
    /// In a configuration file of the administrator.
    Configuration(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::Annotation(name) => write!(f, "annotation {name}"),
            Self::Configuration(path) => f.write_str(path),
        }
    }
}

/// Which open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The one with this identifier in the list of open files.
    Id(FileId),
    /// The one behind this file descriptor.
    Holder(Holder),
    /// The only one with this path.
    Path(ByteString),
}

/// What takes a file's place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file descriptor inherited from the caller.
    Fd(i32),
    /// A file of the host.
    File(FileSource),
    /// The null device.
    Null,
}

/// A file of the host, and how to open it.
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

/// A path in a rule: the characters that mean something to the grammar are escaped as well.
fn escaped(path: &ByteString) -> String {
    let mut text = String::new();
    for character in path.to_string().chars() {
        match character {
            '=' | ',' | ';' => text.push_str(&format!("\\x{:02x}", u32::from(character))),
            blank if blank.is_whitespace() => {
                let mut utf8 = [0; 4];
                for byte in blank.encode_utf8(&mut utf8).bytes() {
                    text.push_str(&format!("\\x{byte:02x}"));
                }
            }
            other => text.push(other),
        }
    }
    text
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Holder(holder) => write!(f, "{holder}"),
            Self::Path(path) if path.as_bytes().starts_with(b"/") => f.write_str(&escaped(path)),
            Self::Path(path) => write!(f, "path:{}", escaped(path)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fd(fd) => write!(f, "fd:{fd}"),
            Self::Null => f.write_str("null"),
            Self::File(file) => file.fmt(f),
        }
    }
}

impl fmt::Display for FileSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "file:{}", escaped(&self.path))?;
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

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.selector, self.source)
    }
}

//! Which open file a rule means.

use std::fmt;
use std::net::SocketAddr;

use super::pattern::{AddressPattern, PathPattern};
use crate::container::Holder;
use crate::files::{FileId, FileKind, OpenFile};

/// Which open files: those that every term says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selector {
    /// Whether it was said that they may be several.
    pub all: bool,
    /// At least one.
    pub terms: Vec<Term>,
}

/// One thing that a selector says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Term {
    /// The one with this identifier in the list of open files.
    Id(FileId),
    /// The one behind this file descriptor.
    Holder(Holder),
    /// Behind this number in any process.
    Fd(i32),
    /// Of this type.
    Kind(FileKind),
    /// With a path, or a symbolic name, of this form.
    Path(PathPattern),
    /// An IP socket with this address of its own.
    Local(AddressPattern),
    /// An IP socket whose peer has this address.
    Remote(AddressPattern),
    /// A terminal, of a pseudoterminal the slave.
    Tty,
    /// Standard input, output or error of any process.
    Stdio,
}

impl Term {
    fn matches(&self, file: &OpenFile) -> bool {
        let held_at = |may: &dyn Fn(i32) -> bool| file.holders.iter().any(|h| may(h.fd));
        match self {
            Self::Id(id) => file.id == *id,
            Self::Holder(holder) => file.holders.binary_search(holder).is_ok(),
            Self::Fd(fd) => held_at(&|number| number == *fd),
            Self::Kind(kind) => file.kind == *kind,
            Self::Path(pattern) => {
                pattern.matches(file.name.as_bytes())
                    || socket_path(file).is_some_and(|path| pattern.matches(path))
            }
            Self::Local(pattern) => addresses(file).0.is_some_and(|is| pattern.matches(is)),
            Self::Remote(pattern) => addresses(file).1.is_some_and(|is| pattern.matches(is)),
            // The master is a program's side of it, of a name of its own.
            Self::Tty => file.kind == FileKind::Tty && !file.name.as_bytes().ends_with(b"/ptmx"),
            Self::Stdio => held_at(&|number| (0..=2).contains(&number)),
        }
    }

    /// How much it narrows: of two rules that mean one open file, the more specific one wins.
    fn weight(&self) -> u8 {
        match self {
            Self::Id(_) | Self::Holder(_) => 6,
            Self::Path(pattern) if pattern.as_exact().is_some() => 5,
            Self::Local(address) | Self::Remote(address)
                if address.ip.is_some() && address.port.is_some() =>
            {
                5
            }
            Self::Path(_) | Self::Local(_) | Self::Remote(_) => 4,
            Self::Fd(_) => 3,
            Self::Stdio => 2,
            Self::Kind(_) | Self::Tty => 1,
        }
    }

    /// Open files that might be meant where none is: of the same process, or of the same name in
    /// another directory.
    fn near(&self, file: &OpenFile) -> bool {
        match self {
            Self::Holder(Holder { pid, .. }) => file.holders.iter().any(|h| h.pid == *pid),
            Self::Path(pattern) => pattern.as_exact().is_some_and(|path| {
                let name = path.as_path().file_name();
                name.is_some() && name == file.name.as_path().file_name()
            }),
            Self::Local(_) | Self::Remote(_) => file.kind == FileKind::Inet,
            _ => false,
        }
    }
}

impl Selector {
    /// A selector that says one thing.
    pub fn new(term: Term) -> Self {
        Self { all: false, terms: vec![term] }
    }

    /// Whether it means this open file.
    pub fn matches(&self, file: &OpenFile) -> bool {
        self.terms.iter().all(|term| term.matches(file))
    }

    /// Whether it may mean several open files.
    pub fn may_mean_several(&self) -> bool {
        self.all || self.terms.iter().any(|term| matches!(term, Term::Tty | Term::Stdio))
    }

    /// Whether this open file might be meant where none is.
    pub(super) fn near(&self, file: &OpenFile) -> bool {
        self.terms.iter().any(|term| term.near(file))
    }

    /// What two selectors are compared by: the most specific term decides, then the next; of two
    /// that are equal so far, the longer one wins.
    pub(super) fn specificity(&self) -> Vec<u8> {
        let mut weights: Vec<u8> = self.terms.iter().map(Term::weight).collect();
        weights.sort_unstable_by(|a, b| b.cmp(a));
        weights
    }
}

/// The path or abstract name in the name of a unix socket.
fn socket_path(file: &OpenFile) -> Option<&[u8]> {
    let name = file.name.as_bytes().strip_prefix(b"unix ")?;
    let is_socket = file.kind == FileKind::Unix;
    let words = [&b"stream "[..], b"dgram ", b"seqpacket "];
    let name = words.iter().find_map(|word| name.strip_prefix(*word))?;
    let name = name.strip_prefix(b"listen ").unwrap_or(name);
    is_socket.then_some(name)
}

/// The own address and the peer's in the name of an IP socket, of which both are numbers.
pub(super) fn addresses(file: &OpenFile) -> (Option<SocketAddr>, Option<SocketAddr>) {
    if file.kind != FileKind::Inet {
        return (None, None);
    }
    let name = file.name.to_string();
    let (own, peer) = name.split_once(" -> ").unwrap_or((&name, ""));
    let address = |text: &str| text.split(' ').find_map(|word| word.parse().ok());
    (address(own), address(peer))
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => write!(f, "{id}"),
            Self::Holder(holder) => write!(f, "{holder}"),
            Self::Fd(fd) => write!(f, "fd:{fd}"),
            Self::Kind(kind) => write!(f, "type:{kind}"),
            Self::Path(pattern) => write!(f, "{pattern}"),
            Self::Local(address) => write!(f, "local:{address}"),
            Self::Remote(address) => write!(f, "remote:{address}"),
            Self::Tty => f.write_str("tty"),
            Self::Stdio => f.write_str("stdio"),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.all { "all " } else { "" })?;
        for (at, term) in self.terms.iter().enumerate() {
            f.write_str(if at > 0 { " and " } else { "" })?;
            term.fmt(f)?;
        }
        Ok(())
    }
}

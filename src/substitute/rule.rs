//! What a substitution rule says.

use std::fmt;

use super::selector::Selector;
use super::source::Source;
use crate::bytes::ByteString;

/// A rule: an open file, and what takes its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which open file.
    pub selector: Selector,
    /// What takes its place.
    pub source: Source,
    /// Whether what others have of the original goes: locks, the watch of epoll instances, its
    /// place in messages that carry it. Else it has to pass on to what takes its place.
    pub drop: bool,
    /// Who wrote the rule.
    pub origin: Origin,
}

/// Where a rule was written: what it may do depends on that. What comes later here wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In an annotation of the container's configuration.
    Annotation(String),
    /// In a configuration file of the administrator.
    Configuration(String),
    /// On the command line of `ocicle with`, below which this runs.
    With,
    /// On the command line, by whoever runs ocicle.
    CommandLine,
}

impl Origin {
    /// Whether what it says may come from somebody without root.
    pub fn is_annotation(&self) -> bool {
        matches!(self, Self::Annotation(_))
    }

    /// Of two rules that mean one open file, that of the higher rank wins.
    pub fn rank(&self) -> u8 {
        match self {
            Self::Annotation(_) => 0,
            Self::Configuration(_) => 1,
            Self::With => 2,
            Self::CommandLine => 3,
        }
    }
}

impl Rule {
    /// Of two rules that mean one open file, the stronger one wins.
    pub(super) fn strength(&self) -> (u8, Vec<u8>) {
        (self.origin.rank(), self.selector.specificity())
    }

    /// Whether it does to an open file what the other does.
    pub(super) fn does_as(&self, other: &Self) -> bool {
        (&self.source, self.drop) == (&other.source, other.drop)
    }

    /// Whether this is meant to replace an earlier rule of the same strength, and does not
    /// contradict it by mistake: it is for the same selector, or of the configuration, in which
    /// each table is written for other containers.
    pub(super) fn may_override(&self, earlier: &Self) -> bool {
        let is_configured = |rule: &Self| matches!(rule.origin, Origin::Configuration(_));
        self.does_as(earlier)
            || self.selector == earlier.selector
            || (is_configured(self) && is_configured(earlier))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CommandLine => f.write_str("the command line"),
            Self::With => f.write_str("`ocicle with`"),
            // Whoever wrote it chose its name as well.
            Self::Annotation(name) => {
                write!(f, "annotation {}", ByteString::from(name.as_str()))
            }
            Self::Configuration(path) => f.write_str(path),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}{}", self.selector, self.source, if self.drop { ",drop" } else { "" })
    }
}

//! What a substitution rule says.

use std::fmt;

use super::selector::Selector;
use super::source::Source;

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

/// Where a rule was written: what it may do depends on that. What comes later here wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// In a configuration file of the administrator.
    Configuration(String),
    /// In an annotation of the container's configuration.
    Annotation(String),
    /// On the command line, by whoever runs ocicle.
    CommandLine,
}

impl Origin {
    /// Whether what it says may come from somebody without root.
    pub fn is_annotation(&self) -> bool {
        matches!(self, Self::Annotation(_))
    }

    /// Of two rules that mean one open file, that of the higher rank wins.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Configuration(_) => 0,
            Self::Annotation(_) => 1,
            Self::CommandLine => 2,
        }
    }
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

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.selector, self.source)
    }
}

//! How a checkpoint of the store is named.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, anyhow};

use crate::container::ensure_name;

/// The number of a version, written `vN`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version(pub(super) u32);

impl FromStr for Version {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = text.strip_prefix('v').unwrap_or(text);
        match number.parse() {
            Ok(number) if number > 0 => Ok(Self(number)),
            _ => Err(anyhow!("{text:?} is no version: versions are v1, v2, … and latest")),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("v{}", self.0))
    }
}

/// Which version of a container is meant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Which {
    /// Nothing was said: the container itself where it has processes to look at, or its newest version.
    #[default]
    Unsaid,
    /// The newest.
    Latest,
    /// That one.
    Numbered(Version),
}

impl FromStr for Which {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "latest" => Ok(Self::Latest),
            number => number.parse().map(Self::Numbered),
        }
    }
}

/// A container's name, and perhaps a version: `web`, `web@v2` or `web@latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// The container.
    pub id: String,
    /// Its version.
    pub version: Which,
}

impl Reference {
    /// Whether it can only mean a checkpoint, and no container.
    pub fn has_version(&self) -> bool {
        self.version != Which::Unsaid
    }
}

impl FromStr for Reference {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (id, version) = match text.split_once('@') {
            Some((id, version)) => (id, version.parse()?),
            None => (text, Which::Unsaid),
        };
        ensure_name(id).map_err(|error| match id.split_once(':') {
            Some((id, version)) => anyhow!("{error}: a version is named {id}@{version}"),
            None => error,
        })?;
        Ok(Self { id: id.to_owned(), version })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.version {
            Which::Unsaid => f.write_str(&self.id),
            Which::Latest => write!(f, "{}@latest", self.id),
            Which::Numbered(version) => write!(f, "{}@{version}", self.id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_and_versions() {
        let parsed = |text: &str| text.parse::<Reference>().unwrap();
        let reference = parsed("web@v12");
        assert_eq!(
            (reference.id.as_str(), reference.version),
            ("web", Which::Numbered(Version(12)))
        );
        assert_eq!(parsed("web@3").version, Which::Numbered(Version(3)));
        assert_eq!(parsed("web@latest").version, Which::Latest);
        assert!(!parsed("web").has_version() && parsed("web@latest").has_version());
        for text in ["web", "web@v12", "web@latest"] {
            assert_eq!(parsed(text).to_string(), text);
        }
        for bad in ["web@", "web@v0", "web@x", "@v1", "a/b", "web@v-1", "web@v99999999999"] {
            assert!(bad.parse::<Reference>().is_err(), "{bad}");
        }
        let error = "web:v1".parse::<Reference>().unwrap_err();
        assert!(error.to_string().ends_with("a version is named web@v1"), "{error}");
    }
}

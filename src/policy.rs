//! What becomes of files that are not as they were at the checkpoint, where the snapshot does not
//! put them back and nothing takes their place.
//!
//! A [`Policy`] is for the paths of a pattern and says up to three things: what is done about a
//! file that is missing, one that has grown, and one that has shrunk. What nobody says is an error.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::container::Identity;
use crate::glob;
use crate::hint::WithHint;
use crate::substitute::Origin;

/// The annotation that holds policies; `ANNOTATION.NAME` does too.
pub const ANNOTATION: &str = "org.ocicle.policy";

/// What is done about a file that is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Missing {
    /// The restore is refused.
    Error,
    /// It is made again, empty.
    Recreate,
}

/// What is done about a file that is larger than it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Grown {
    /// The restore is refused.
    Error,
    /// It is cut to the size that it had.
    Truncate,
    /// It stays as it is.
    Accept,
}

/// What is done about a file that is smaller than it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shrunk {
    /// The restore is refused.
    Error,
    /// It stays as it is.
    Accept,
}

/// What is done about files with paths of one form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// The paths, as the container sees them, with `*` and `**`.
    pub pattern: String,
    /// If they are missing.
    pub missing: Option<Missing>,
    /// If they have grown.
    pub grown: Option<Grown>,
    /// If they have shrunk.
    pub shrunk: Option<Shrunk>,
}

/// A policy for some files of some containers.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct FilePolicy {
    /// The form of their names, or of what their runtime calls them; any if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The form of a name of their image; any if unsaid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The paths, as the container sees them, with `*` and `**`.
    pub path: String,
    /// If such a file is missing.
    #[serde(default)]
    pub missing: Option<Missing>,
    /// If it has grown.
    #[serde(default)]
    pub grown: Option<Grown>,
    /// If it has shrunk.
    #[serde(default)]
    pub shrunk: Option<Shrunk>,
}

impl FilePolicy {
    /// Whether it is for this container.
    pub fn is_for(&self, identity: &Identity) -> bool {
        identity.is_meant(self.container.as_deref(), self.image.as_deref())
    }

    /// What it says.
    pub fn policy(&self) -> Policy {
        Policy {
            pattern: self.path.clone(),
            missing: self.missing,
            grown: self.grown,
            shrunk: self.shrunk,
        }
    }
}

/// What stands for every path.
const EVERY: &str = "**";

impl FromStr for Policy {
    type Err = anyhow::Error;

    /// Reads `missing=recreate,grown=truncate:/var/log/**`; without a path it is for every file.
    fn from_str(text: &str) -> Result<Self> {
        let (said, pattern) = text.split_once(':').unwrap_or((text, EVERY));
        let mut policy =
            Self { pattern: pattern.trim().to_owned(), missing: None, grown: None, shrunk: None };
        policy.ensure_pattern()?;
        for word in said.split(',').map(str::trim) {
            let read = policy.say(word);
            // Alone it is what the caller says that it reads.
            if word == text { read? } else { read.with_context(|| format!("reading {word:?}"))? }
        }
        Ok(policy)
    }
}

impl Policy {
    fn say(&mut self, word: &str) -> Result<()> {
        let (name, value) =
            word.split_once('=').context("it is not of the form missing=recreate")?;
        let (name, value) = (name.trim(), value.trim());
        let twice = match name {
            "missing" => self.missing.replace(read(value, "error or recreate")?).is_some(),
            "grown" => self.grown.replace(read(value, "error, truncate or accept")?).is_some(),
            "shrunk" => self.shrunk.replace(read(value, "error or accept")?).is_some(),
            _ => return Err(anyhow!("policies are for missing, grown and shrunk files")),
        };
        ensure!(!twice, "it is said twice");
        Ok(())
    }

    /// Makes sure that the pattern can be that of a path.
    pub fn ensure_pattern(&self) -> Result<()> {
        let pattern = &self.pattern;
        ensure!(
            pattern.starts_with('/') || pattern.starts_with(EVERY),
            "{pattern:?} is no path: it begins with / or **"
        );
        Ok(())
    }

    /// Whether it is for one path only.
    fn is_exact(&self) -> bool {
        !self.pattern.contains('*')
    }

    fn is_for(&self, path: &[u8]) -> bool {
        glob::matches(self.pattern.as_bytes(), path)
    }
}

/// A word that serde knows for a value.
fn read<T: for<'de> Deserialize<'de>>(value: &str, known: &str) -> Result<T> {
    let word = serde::de::value::StrDeserializer::<serde::de::value::Error>::new(value);
    T::deserialize(word).map_err(|_| anyhow!("it is {known}, not {value:?}"))
}

/// Reads a policy of a command line.
pub fn parse_typed(text: &str) -> Result<Policy> {
    text.parse()
        .with_context(|| format!("reading the policy {text:?}"))
        .hint("such as missing=recreate,grown=truncate,shrunk=accept:/var/log/**")
}

/// Reads several policies, one a line or with semicolons between.
pub fn parse_policies(text: &str) -> Result<Vec<Policy>> {
    let written = text.split(['\n', ';']).map(str::trim).filter(|text| !text.is_empty());
    written
        .map(|text| text.parse().with_context(|| format!("reading the policy {text:?}")))
        .collect()
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = Vec::new();
        said.extend(self.missing.map(|it| format!("missing={}", word(&it))));
        said.extend(self.grown.map(|it| format!("grown={}", word(&it))));
        said.extend(self.shrunk.map(|it| format!("shrunk={}", word(&it))));
        write!(f, "{}:{}", said.join(","), self.pattern)
    }
}

fn word(value: &impl fmt::Debug) -> String {
    format!("{value:?}").to_lowercase()
}

/// A policy and where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The policy.
    pub policy: Policy,
    /// Who says it.
    pub origin: Origin,
}

/// The policies of a restore.
#[derive(Clone, Debug, Default)]
pub struct Policies(pub Vec<Standing>);

impl Policies {
    /// What is done about a file that is missing, and who says so.
    pub fn missing(&self, path: &[u8]) -> Option<(Missing, &Standing)> {
        self.strongest(path, |policy| policy.missing)
    }

    /// What is done about a file that has grown, and who says so.
    pub fn grown(&self, path: &[u8]) -> Option<(Grown, &Standing)> {
        self.strongest(path, |policy| policy.grown)
    }

    /// What is done about a file that has shrunk, and who says so.
    pub fn shrunk(&self, path: &[u8]) -> Option<(Shrunk, &Standing)> {
        self.strongest(path, |policy| policy.shrunk)
    }

    /// The command line goes before the configuration, that before annotations; of one origin, a
    /// path goes before a pattern, and what comes later before what comes first.
    fn strongest<T>(
        &self,
        path: &[u8],
        says: impl Fn(&Policy) -> Option<T>,
    ) -> Option<(T, &Standing)> {
        let fitting = self.0.iter().enumerate().filter(|(_, one)| one.policy.is_for(path));
        let said = fitting.filter_map(|(at, one)| Some((at, says(&one.policy)?, one)));
        let strength =
            |(at, _, one): &(usize, T, &Standing)| (one.origin.rank(), one.policy.is_exact(), *at);
        said.max_by_key(strength).map(|(_, value, one)| (value, one))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_form_of_a_policy() {
        for (text, shown) in [
            ("missing=recreate", "missing=recreate:**"),
            (" grown = truncate , shrunk=accept : /a:b/* ", "grown=truncate,shrunk=accept:/a:b/*"),
            ("missing=error,grown=accept:/x", "missing=error,grown=accept:/x"),
        ] {
            let policy: Policy = text.parse().unwrap();
            assert_eq!(policy.to_string(), shown);
            assert_eq!(shown.parse::<Policy>().unwrap(), policy);
        }
        let two = parse_policies("missing=recreate:/a; grown=accept\n\n").unwrap();
        assert_eq!(two.len(), 2);
    }

    #[test]
    fn what_is_no_policy() {
        let said: Vec<_> = [
            "",
            "recreate",
            "missing=truncate",
            "shrunk=truncate",
            "lost=recreate",
            "grown=accept,grown=error",
            "grown=accept:data",
            "grown=accept:",
        ]
        .iter()
        .map(|text| format!("{:#}", text.parse::<Policy>().unwrap_err()))
        .collect();
        insta::assert_snapshot!(said.join("\n"));
    }

    fn standing(text: &str, origin: Origin) -> Standing {
        Standing { policy: text.parse().unwrap(), origin }
    }

    #[test]
    fn later_and_more_specific_wins() {
        let file = || Origin::Configuration("f".into());
        let policies = Policies(vec![
            standing("grown=truncate:/log/x", file()),
            standing("grown=accept,missing=recreate", file()),
            standing("shrunk=accept:/log/*", Origin::Annotation("a".into())),
            standing("shrunk=error", Origin::CommandLine),
        ]);
        assert_eq!(policies.grown(b"/log/x").unwrap().0, Grown::Truncate);
        assert_eq!(policies.grown(b"/log/y").unwrap().0, Grown::Accept);
        assert_eq!(policies.missing(b"/log/x").unwrap().0, Missing::Recreate);
        assert_eq!(policies.shrunk(b"/log/x").unwrap().0, Shrunk::Error);
        assert!(Policies::default().grown(b"/log/x").is_none());
    }

    proptest! {
        #[test]
        fn any_text_is_read(text: String) {
            if let Ok(policy) = text.parse::<Policy>() {
                prop_assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
            }
        }
    }
}

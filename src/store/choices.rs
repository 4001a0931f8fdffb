//! What becomes of the files, and of the versions before: said by a flag, by a purpose, by an
//! annotation or by the configuration, in this order.

use std::fmt;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::container::Bundle;

/// The annotation that says what a checkpoint does about files.
const ANNOTATION: &str = "org.ocicle.filesystem";

/// What a checkpoint does about the files of a container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// Takes a snapshot of them, which a restore puts back
    #[default]
    Snapshot,
    /// Records those that are open or mapped; a restore refuses others in their place
    Verify,
    /// Leaves them alone
    None,
}

impl fmt::Display for Filesystem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Snapshot => "snapshot",
            Self::Verify => "verify",
            Self::None => "none",
        })
    }
}

/// What an annotation says that is `true` or `false`.
///
/// # Errors
/// When it is something else.
pub fn flag_of(bundle: &Bundle, annotation: &str) -> Result<Option<bool>> {
    let annotated = bundle.annotations(annotation).into_iter().next();
    annotated
        .map(|(_, value)| value.parse().context("it is neither true nor false"))
        .transpose()
        .with_context(|| format!("reading the annotation {annotation}"))
}

/// What a checkpoint is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Purpose {
    /// To go on elsewhere, with the same files: none is copied, one version is kept
    Migrate,
    /// To go on after a failure: the last two versions are kept, whole
    Recover,
    /// To go back to any time: every version is kept, whole
    History,
}

/// How many versions of a container are kept; 0 means all.
pub type Keep = u32;

impl Purpose {
    fn settings(self) -> (Filesystem, Keep) {
        match self {
            Self::Migrate => (Filesystem::Verify, 1),
            // The one before the last is there until the last has been of use.
            Self::Recover => (Filesystem::Snapshot, 2),
            Self::History => (Filesystem::Snapshot, 0),
        }
    }

    /// What it chooses, for a reader: what was said otherwise counts.
    pub fn explain(self, filesystem: Option<Filesystem>, keep: Option<Keep>) -> String {
        let (chosen, kept) = self.settings();
        let keep = match keep.unwrap_or(kept) {
            0 => "all".to_owned(),
            number => number.to_string(),
        };
        let name = match self {
            Self::Migrate => "migrate",
            Self::Recover => "recover",
            Self::History => "history",
        };
        format!("purpose {name}: --filesystem {} --keep {keep}", filesystem.unwrap_or(chosen))
    }

    /// What it does about files.
    pub fn filesystem(self) -> Filesystem {
        self.settings().0
    }

    /// How many versions it keeps.
    pub fn keep(self) -> Keep {
        self.settings().1
    }
}

/// What is done about the files of a container, when the command line does not say.
pub fn annotated(bundle: &Bundle) -> Result<Option<Filesystem>> {
    let Some((_, value)) = bundle.annotations(ANNOTATION).into_iter().next() else {
        return Ok(None);
    };
    parse(&value).with_context(|| format!("reading the annotation {ANNOTATION}")).map(Some)
}

/// Reads `snapshot`, `verify` or `none`.
pub fn parse(text: &str) -> Result<Filesystem> {
    clap::ValueEnum::from_str(text, false)
        .map_err(|_| anyhow::anyhow!("it is `snapshot`, `verify` or `none`, not {text:?}"))
}

/// Reads a number of versions, or `all`.
pub fn parse_keep(text: &str) -> Result<Keep> {
    match text {
        "all" => Ok(0),
        _ => text.parse().with_context(|| format!("it is a number or `all`, not {text:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_purpose_says_what_it_chooses() {
        assert_eq!(
            Purpose::Migrate.explain(None, None),
            "purpose migrate: --filesystem verify --keep 1"
        );
        assert_eq!(
            Purpose::History.explain(Some(Filesystem::None), Some(7)),
            "purpose history: --filesystem none --keep 7"
        );
        assert!(Purpose::History.explain(None, None).ends_with("--keep all"));
    }

    #[test]
    fn names_and_numbers() {
        assert_eq!(parse("verify").unwrap(), Filesystem::Verify);
        assert!(parse("Verify").is_err() && parse("").is_err());
        assert_eq!((parse_keep("all").unwrap(), parse_keep("3").unwrap()), (0, 3));
        assert!(parse_keep("-1").is_err());
    }
}

//! What is mounted into a container from outside, and which of it belongs to a checkpoint.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, ensure};
use oci_spec::runtime::Mount;
use serde::{Deserialize, Serialize, Serializer};

use super::Bundle;
use crate::bytes::ByteString;
use crate::choice::Choice;
use crate::glob;
use crate::hint::WithHint;

/// The annotation that says which volumes belong to a checkpoint.
const ANNOTATION: &str = "org.ocicle.volumes";

/// Where engines keep volumes that have a name: podman and docker, under any root directory.
const NAMED: [&str; 2] = ["**/volumes/*/_data", "**/volumes/*/_data/**"];

/// Where podman keeps a container's /dev/shm, which it binds and CRIU therefore does not carry.
const SHM: &str = "**/userdata/shm";

/// Where podman merges an overlay for one run of a container: of a volume with `:O`, and of an image
/// (libpod's `generateSpec` in container_internal_linux.go, `MountPoint` in buildah's pkg/overlay).
const OF_ONE_RUN: &[u8] = b"**/userdata/overlay/*/merge";

/// A directory or file of the host that is mounted into a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bind {
    /// Where the container sees it.
    pub destination: PathBuf,
    /// What it is on the host.
    pub source: PathBuf,
    /// Whether the container cannot write it.
    pub read_only: bool,
}

impl Bind {
    /// The bind mount that an entry of `config.json` asks for; `None` for a file system of its own.
    pub(super) fn of(mount: &Mount, bundle: &Path) -> Option<Self> {
        let has = |wanted: &[&str]| {
            mount.options().iter().flatten().any(|option| wanted.contains(&option.as_str()))
        };
        let is_bind = mount.typ().as_deref() == Some("bind") || has(&["bind", "rbind"]);
        let source = mount.source().as_ref().filter(|_| is_bind)?;
        Some(Self {
            destination: mount.destination().clone(),
            source: bundle.join(source),
            read_only: has(&["ro", "rro"]),
        })
    }
}

impl Bundle {
    /// Makes sure that what is mounted is there as long as the bundle is.
    ///
    /// # Errors
    /// When an engine has made it for this run of the container alone.
    pub fn ensure_mounts_last(&self) -> Result<()> {
        let is_of_one_run = |mount: &&Mount| {
            let source = mount.source().as_ref().map(|source| source.as_os_str().as_bytes());
            source.is_some_and(|source| glob::matches(OF_ONE_RUN, source))
        };
        let Some(mount) = self.spec.mounts().iter().flatten().find(is_of_one_run) else {
            return Ok(());
        };
        Err(anyhow!(
            "the engine has made what is mounted at {} for this run of the container alone, and \
             throws it away when that ends",
            mount.destination().display()
        )
        .hint("give the container a volume or a directory there: not `:O`, and no image"))
    }

    /// The volumes that belong to a checkpoint, by where they are mounted: of two at one place the one
    /// that is seen. A `/dev/shm` belongs to the namespace of its semaphores and queues: where that is
    /// another container's, so is this, unless it is named.
    pub fn volumes(&self, choice: &Choice<Volumes>) -> Result<Vec<(PathBuf, PathBuf)>> {
        let chosen = Volumes::chosen(self, choice)?;
        let is_ours = |bind: &Bind| bind.destination != Path::new("/dev/shm") || self.has_own_ipc();
        let is_named = matches!(chosen, Volumes::Patterns(_));
        let is_part = |bind: &Bind| chosen.include(bind) && (is_named || is_ours(bind));
        let mut volumes = Vec::new();
        for bind in self.visible_binds().into_iter().filter(is_part) {
            let source = bind
                .source
                .canonicalize()
                .with_context(|| format!("opening the volume {}", bind.source.display()))?;
            // A single file is what engines mount for names and addresses; it is no volume.
            if source.is_dir() {
                volumes.push((bind.destination, source));
            }
        }
        Ok(volumes)
    }
}

/// Which volumes belong to a checkpoint: `named`, `all`, `none`, or patterns of paths, as the
/// container sees them, separated by commas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub enum Volumes {
    /// Those that an engine made and named, and podman's /dev/shm.
    #[default]
    Named,
    /// Every directory that the container can write.
    All,
    /// None.
    Nothing,
    /// Those mounted at a path of one of these forms.
    Patterns(Vec<String>),
}

impl Volumes {
    /// Whether a mount belongs to the checkpoint. One that the container cannot write never does.
    pub fn include(&self, bind: &Bind) -> bool {
        let source = ByteString::from(bind.source.as_path());
        let destination = ByteString::from(bind.destination.as_path());
        let is =
            |pattern: &str, path: &ByteString| glob::matches(pattern.as_bytes(), path.as_bytes());
        !bind.read_only
            && match self {
                Self::Named => NAMED.iter().chain([&SHM]).any(|pattern| is(pattern, &source)),
                Self::All => true,
                Self::Nothing => false,
                Self::Patterns(patterns) => {
                    patterns.iter().any(|pattern| is(pattern, &destination))
                }
            }
    }
}

impl Volumes {
    /// Those that a command names, or else the container's annotation, or else the configuration:
    /// what makes a volume a part of a checkpoint, and what lets a restore put it back.
    ///
    /// # Errors
    /// When the annotation means nothing.
    pub fn chosen(bundle: &Bundle, choice: &Choice<Self>) -> Result<Self> {
        if let Some(asked) = &choice.asked {
            return Ok(asked.clone());
        }
        let annotated = bundle.annotations(ANNOTATION).into_iter().next();
        let annotated = annotated.map(|(_, value)| value.parse()).transpose();
        let annotated =
            annotated.with_context(|| format!("reading the annotation {ANNOTATION}"))?;
        Ok(choice.or_annotated(annotated))
    }
}

impl FromStr for Volumes {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        Self::from_words(text.split(',').map(|word| word.trim().to_owned()).collect())
    }
}

impl Volumes {
    fn from_words(words: Vec<String>) -> anyhow::Result<Self> {
        match &words[..] {
            [one] if one == "named" => return Ok(Self::Named),
            [one] if one == "all" => return Ok(Self::All),
            [one] if one == "none" => return Ok(Self::Nothing),
            _ => {}
        }
        for word in &words {
            ensure!(
                word.starts_with('/') || word.starts_with("**"),
                "volumes are `named`, `all`, `none` or paths, not {word:?}"
            );
        }
        Ok(Self::Patterns(words))
    }
}

impl Serialize for Volumes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Named => serializer.serialize_str("named"),
            Self::All => serializer.serialize_str("all"),
            Self::Nothing => serializer.serialize_str("none"),
            Self::Patterns(patterns) => patterns.serialize(serializer),
        }
    }
}

/// A setting of the configuration: a word, or a list of patterns.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Word(String),
    List(Vec<String>),
}

impl TryFrom<Written> for Volumes {
    type Error = anyhow::Error;

    fn try_from(written: Written) -> anyhow::Result<Self> {
        match written {
            Written::Word(word) => word.parse(),
            Written::List(list) => Self::from_words(list),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &str, destination: &str, read_only: bool) -> Bind {
        Bind { destination: destination.into(), source: source.into(), read_only }
    }

    #[test]
    fn named_volumes_are_those_that_engines_keep() {
        let podman = bind("/var/lib/containers/storage/volumes/db/_data", "/data", false);
        let shm = bind(
            "/var/lib/containers/storage/overlay-containers/1/userdata/shm",
            "/dev/shm",
            false,
        );
        let own = bind("/srv/data", "/data", false);
        assert!(Volumes::Named.include(&podman) && Volumes::Named.include(&shm));
        assert!(!Volumes::Named.include(&own) && Volumes::All.include(&own));
        assert!(!Volumes::All.include(&bind("/srv/data", "/data", true)), "it cannot be written");
        let patterns: Volumes = "/data, /srv/**".parse().unwrap();
        assert!(patterns.include(&own) && patterns.include(&bind("/x", "/srv/a/b", false)));
        assert!(!patterns.include(&bind("/data", "/other", false)));
        assert!(!Volumes::Nothing.include(&podman));
    }

    #[test]
    fn the_command_goes_before_the_annotation_and_that_before_the_configuration() {
        let mut spec = oci_spec::runtime::Spec::default();
        let named = |value: &str| Some([(ANNOTATION.to_owned(), value.to_owned())].into());
        let mut chosen = |annotations, asked: Option<&Volumes>| {
            spec.set_annotations(annotations);
            let bundle = Bundle { directory: "/b".into(), rootfs: "/b".into(), spec: spec.clone() };
            let choice = Choice::by_default(Volumes::Nothing).asked(asked.cloned());
            Volumes::chosen(&bundle, &choice).ok()
        };
        assert_eq!(chosen(named("all"), Some(&Volumes::Named)), Some(Volumes::Named));
        assert_eq!(chosen(named("all"), None), Some(Volumes::All));
        assert_eq!(chosen(None, None), Some(Volumes::Nothing));
        assert_eq!(chosen(named("some"), None), None);
    }

    #[test]
    fn a_wrong_word_is_refused() {
        for text in ["", "some", "named,/data", "data"] {
            assert!(text.parse::<Volumes>().is_err(), "{text}");
        }
    }
}

//! The parts of a checkpoint: the root file system and volumes, on their way into it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Request;
use super::directory::ImageDirectory;
use super::volatile;
use crate::bytes::ByteString;
use crate::container::{Bundle, Container, Volumes, shared};
use crate::files::held::Digests;
use crate::freezer::Frozen;
use crate::snapshot::{self, Part as Packed, Root, Stage};
use crate::store::manifest::{Manifest, Part};

/// The annotation that says which volumes belong to a checkpoint.
const ANNOTATION: &str = "org.ocicle.volumes";

/// What the application sees as its root.
pub(super) const ROOT: &str = "rootfs";

/// A part that will be taken.
pub(super) struct Planned {
    part: Part,
    root: Root,
}

/// A part that was copied once while the container ran.
pub(super) struct Staged {
    part: Part,
    stage: Stage,
}

/// Parts that were copied once, and the files that could not be trusted then.
pub(super) struct Copied {
    pub parts: Vec<Staged>,
    pub volatile: volatile::Files,
    /// Of the files that the container held, where no copy of them is taken.
    pub digests: Option<Digests>,
}

/// Reads the files that the processes hold.
pub(super) fn digest_held(container: &Container) -> Result<Digests> {
    Digests::read_ahead(&holders(container)?, &container.bundle)
        .context("reading the files that it has open")
}

/// The processes whose files a restore needs.
pub(super) fn holders(container: &Container) -> Result<Vec<i32>> {
    Ok(container.dumped_processes()?.into_iter().map(|process| process.host).collect())
}

/// The parts of a container: what it can write of its root file system, and its volumes.
pub(super) fn plan(container: &Container, root: Root, request: &Request) -> Result<Vec<Planned>> {
    let bundle = &container.bundle;
    let mut planned = Vec::new();
    if !bundle.is_read_only() {
        let part = Part::new(ROOT, Path::new("/"), &bundle.rootfs);
        planned.push(Planned { part, root });
    }
    let chosen = volumes_of(bundle, request.volumes.as_ref(), &request.default_volumes)?;
    for (destination, source) in chosen {
        let part = Part::new(&format!("volume-{}", planned.len()), &destination, &source);
        for user in shared::writers_of(&source, Some(container.init))? {
            let destination = destination.display();
            tracing::warn!("{user} can write the volume {destination} too, and is not frozen");
        }
        let root = snapshot::probe(&source)
            .with_context(|| format!("looking at the volume {}", destination.display()))?;
        planned.push(Planned { part, root });
    }
    Ok(planned)
}

/// The volumes that belong to the checkpoint, by where they are mounted: those that the command
/// names, or else the container's annotation, or else the configuration.
pub fn volumes_of(
    bundle: &Bundle,
    asked: Option<&Volumes>,
    default: &Volumes,
) -> Result<Vec<(PathBuf, PathBuf)>> {
    let annotated = bundle.annotations(ANNOTATION).into_iter().next();
    let annotated = annotated
        .map(|(_, value)| value.parse::<Volumes>())
        .transpose()
        .with_context(|| format!("reading the annotation {ANNOTATION}"))?;
    let chosen = asked.or(annotated.as_ref()).unwrap_or(default);
    let mut volumes = Vec::new();
    for bind in bundle.binds().into_iter().filter(|bind| chosen.include(bind)) {
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

/// Copies what can be copied while the container runs.
pub(super) fn stage(
    planned: Vec<Planned>,
    base: Option<&Path>,
    directory: &ImageDirectory,
) -> Result<Vec<Staged>> {
    // A base that cannot be read is no reason to fail.
    let base = base.and_then(|images| Some((images, Manifest::read(images).ok()?)));
    planned
        .into_iter()
        .map(|Planned { part, root }| {
            let before =
                base.as_ref().and_then(|(images, manifest)| before(images, manifest, &part));
            if let (Some(before), Some((images, _))) = (&before, &base) {
                directory.share_layers(images, before)?;
            }
            let staging = directory.stage(&part.name)?;
            let stage = || -> Result<Stage> {
                let mut stage = Stage::create(&staging, root, before.as_ref())?;
                stage.pre_copy()?;
                Ok(stage)
            };
            let stage = stage().with_context(|| format!("copying {}", part.destination))?;
            Ok(Staged { part, stage })
        })
        .collect()
}

/// The same part of the version before, whose layers have the same names.
fn before(images: &Path, manifest: &Manifest, part: &Part) -> Option<Packed> {
    let same = |other: &&Part| other.name == part.name && other.destination == part.destination;
    let before = Packed::open(images, manifest.parts.iter().find(same)?.files.as_ref()?).ok()?;
    before.is_worth_building_on().then_some(before)
}

/// Takes the snapshot of every part, under the freeze.
pub(super) fn take(
    staged: Vec<Staged>,
    volatile: &volatile::Files,
    _frozen: &Frozen<'_>,
) -> Result<Vec<Staged>> {
    staged
        .into_iter()
        .map(|Staged { part, mut stage }| {
            stage.take(volatile).with_context(|| format!("copying {}", part.destination))?;
            Ok(Staged { part, stage })
        })
        .collect()
}

/// Writes the indexes, so that whoever comes can pack what is staged.
pub(super) fn seal(staged: Vec<Staged>) -> Result<()> {
    for Staged { part, stage } in staged {
        stage.seal().with_context(|| format!("writing the index of {}", part.destination))?;
    }
    Ok(())
}

/// What the manifest says of parts that are not packed yet.
pub(super) fn records(staged: &[Staged]) -> Vec<Part> {
    staged.iter().map(|staged| staged.part.clone()).collect()
}

impl Part {
    fn new(name: &str, destination: &Path, source: &Path) -> Self {
        Self {
            name: name.to_owned(),
            destination: ByteString::from(destination),
            source: source.to_owned(),
            files: None,
        }
    }
}

//! The parts of a checkpoint: the root file system and volumes, on their way into it.

use std::path::Path;

use anyhow::{Context, Result};

use super::CheckpointRequest;
use super::directory::ImageDirectory;
use super::sharing::Sharing;
use crate::bytes::ByteString;
use crate::container::Container;
use crate::files::Suspects;
use crate::files::verify::Digests;
use crate::freezer::Frozen;
use crate::guardian::Guardian;
use crate::limits::{self, Limit, Weight};
use crate::restorable::TakenPart;
use crate::snapshot::{
    self, Claim, CopyStats, Driver, DriverReport, DriverSnapshot, Lease, PackedPart, Root,
    SnapshotOwner, choose,
};
use crate::store::manifest::{self, Manifest, PartRecord, State};
use crate::store::open_staged;
use crate::sys::pid::Pid;

/// What the application sees as its root.
pub(super) const ROOT: &str = "rootfs";

/// A part that will be taken.
pub(super) struct Planned {
    part: PartRecord,
    root: Root,
}

/// A part that is prepared, or taken.
pub(super) struct PartUnderway {
    part: PartRecord,
    driver: Box<dyn Driver>,
    prepared: CopyStats,
    notes: Vec<String>,
}

impl PartUnderway {
    /// What a restore would be asked to put back, once it is taken.
    pub(super) fn taken(&self) -> TakenPart<'_> {
        let PartRecord { destination, source, .. } = &self.part;
        TakenPart { destination: destination.as_path(), source, snapshot: &*self.driver }
    }
}

/// Parts that were copied once, and the files that could not be trusted then.
pub(super) struct CopiedAhead {
    pub parts: Vec<PartUnderway>,
    pub suspects: Suspects,
    pub sharing: Sharing,
    /// Of the files that the container held, where no copy of them is taken.
    pub digests: Option<Digests>,
}

/// Reads the files that the processes hold.
pub(super) fn digest_held(container: &Container) -> Result<Digests> {
    Digests::read_ahead(&holders(container)?, &container.bundle)
        .context("reading the files that it has open")
}

/// The processes whose files a restore needs.
pub(super) fn holders(container: &Container) -> Result<Vec<Pid>> {
    Ok(container.dumped_processes()?.into_iter().map(|process| process.host).collect())
}

/// The parts of a container: what it can write of its root file system, and its volumes.
pub(super) fn plan(
    container: &Container,
    root: Root,
    request: &CheckpointRequest,
) -> Result<(Vec<Planned>, Sharing)> {
    let bundle = &container.bundle;
    let mut planned = Vec::new();
    if !bundle.is_read_only() {
        let part = PartRecord::new(ROOT, Path::new("/"), &bundle.rootfs);
        planned.push(Planned { part, root });
    }
    let volumes = bundle.volumes(&request.volumes)?;
    let sharing = Sharing::find(container, &volumes, request.shared)?;
    for (destination, source) in volumes {
        container.ensure_volume_is(&destination, &source)?;
        let part = PartRecord::new(&format!("volume-{}", planned.len()), &destination, &source);
        let root = snapshot::probe(&source)
            .and_then(Root::described)
            .with_context(|| format!("looking at the volume {}", destination.display()))?;
        planned.push(Planned { part, root });
    }
    Ok((planned, sharing))
}

/// Copies what can be copied while the container runs.
pub(super) fn stage(
    planned: Vec<Planned>,
    request: &CheckpointRequest,
    directory: &ImageDirectory,
    guardian: &Guardian,
    suspects: &Suspects,
) -> Result<Vec<PartUnderway>> {
    limits::ensure(Limit::Parts, planned.len() as u64, "its parts are")?;
    let mut weight = Weight::default();
    // A base that cannot be read is no reason to fail.
    let base = request.base.as_deref();
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
            let prepare = || {
                let purpose =
                    SnapshotOwner { owner: &request.images, part: &part.name, is_alive: &is_alive };
                let (mut driver, notes) =
                    choose(&staging, root, before.as_ref(), &request.drivers, &purpose)?;
                if let Some(held) = driver.held() {
                    guardian.discard_if_we_die(held, &request.images.join(manifest::NAME))?;
                }
                let prepared = driver.prepare(suspects)?;
                weight = weight + driver.weight();
                limits::ensure_weight(weight)?;
                anyhow::Ok((driver, notes, prepared))
            };
            let (driver, notes, prepared) =
                prepare().with_context(|| format!("copying {}", part.destination))?;
            notes.iter().for_each(|note| tracing::warn!("{}: {note}", part.destination));
            Ok(PartUnderway { part, driver, prepared, notes })
        })
        .collect()
}

/// Whether what was recorded for a checkpoint still belongs to one: to a part that is not packed yet,
/// or to one with the same index.
fn is_alive(claim: &Claim) -> bool {
    let Some(owner) = &claim.owner else { return false };
    let Ok(manifest) = Manifest::read(owner) else {
        // What it is kept on may not be mounted, and what is not packed is nowhere else.
        let is_away = !owner.parent().is_some_and(Path::exists);
        return manifest::is_there(owner) || (claim.index.is_none() && is_away);
    };
    let staged = || DriverSnapshot::read(&open_staged(owner, &claim.part).ok()??).ok()?;
    match &claim.index {
        None => manifest.state == State::Staged && staged().is_some_and(|held| held.is(claim)),
        Some(index) => {
            let packed = manifest.parts.iter().filter_map(|part| part.files.as_ref());
            packed.into_iter().any(|packed| packed.index.blake3 == *index)
        }
    }
}

/// The same part of the version before, whose layers have the same names.
fn before(images: &Path, manifest: &Manifest, part: &PartRecord) -> Option<PackedPart> {
    let same =
        |other: &&PartRecord| other.name == part.name && other.destination == part.destination;
    let before =
        PackedPart::open(images, manifest.parts.iter().find(same)?.files.as_ref()?).ok()?;
    before.is_worth_building_on().then_some(before)
}

/// Takes the snapshot of every part, under the freeze.
pub(super) fn take(
    staged: Vec<PartUnderway>,
    suspects: &Suspects,
    frozen: &Frozen<'_>,
) -> Result<Vec<PartUnderway>> {
    let mut weight = Weight::default();
    staged
        .into_iter()
        .map(|mut staged| {
            let taken = staged.driver.take(frozen, suspects);
            let taken = taken.with_context(|| format!("copying {}", staged.part.destination))?;
            weight = weight + staged.driver.weight();
            limits::ensure_weight(weight)?;
            let notes = staged.notes.clone();
            let driver = staged.driver.name();
            staged.part.taken = Some(DriverReport::of(driver, staged.prepared, taken, notes));
            Ok(staged)
        })
        .collect()
}

/// Undoes that for a container that goes on before it is frozen again.
pub(super) fn take_back(staged: &mut [PartUnderway]) -> Result<()> {
    staged.iter_mut().try_for_each(|staged| {
        let part = &staged.part.destination;
        staged.driver.take_back().with_context(|| format!("taking back the snapshot of {part}"))
    })
}

/// Writes the indexes, so that whoever comes can pack what is staged.
///
/// What drivers hold elsewhere stays until there is a manifest as long as the leases are there.
pub(super) fn seal(staged: Vec<PartUnderway>) -> Result<Vec<Lease>> {
    let seal = |PartUnderway { part, driver, .. }: PartUnderway| {
        driver.seal().with_context(|| format!("writing the index of {}", part.destination))
    };
    staged.into_iter().filter_map(|staged| seal(staged).transpose()).collect()
}

/// What the manifest says of parts that are not packed yet.
pub(super) fn records(staged: &[PartUnderway]) -> Vec<PartRecord> {
    staged.iter().map(|staged| staged.part.clone()).collect()
}

impl PartRecord {
    fn new(name: &str, destination: &Path, source: &Path) -> Self {
        Self {
            name: name.to_owned(),
            destination: ByteString::from(destination),
            source: source.to_owned(),
            taken: None,
            files: None,
        }
    }
}

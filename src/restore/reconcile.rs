//! The file systems that are to become what they were.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::choice::Choice;
use crate::container::{Bind, Bundle, Engine, Volumes, shared};
use crate::hint::WithHint;
use crate::limits::{self, Weight};
use crate::locations;
use crate::snapshot::{self, DriverSettings, Form, HeldLocally, PackedPart, Plan, Progress, Root};
use crate::store::choices::Filesystem;
use crate::store::manifest::{self, Manifest};
use crate::sys::pid::Pid;

/// A part of the checkpoint, and what it is put back on.
pub(super) struct Target {
    /// Where the container sees it.
    pub destination: PathBuf,
    /// Its snapshot.
    pub packed: PackedPart,
    root: Root,
    /// What this machine still holds of it.
    local: Option<HeldLocally>,
}

impl Target {
    /// Whether it is the root file system.
    pub(super) fn is_root(&self) -> bool {
        self.destination == Path::new("/")
    }

    /// Where it lies on the host.
    pub(super) fn path(&self) -> &Path {
        self.root.path()
    }

    /// Makes sure that nobody uses what `changes` would be done to, but for processes in mount
    /// namespaces of `beside`.
    pub(super) fn ensure_unused(&self, changes: &Plan<'_>, beside: &[Pid]) -> Result<()> {
        match self.is_root() {
            false => ensure_volume_is_unused(&self.destination, self.path(), beside),
            true if changes.is_empty() => Ok(()),
            true => ensure_root_is_unused(self.path(), beside),
        }
    }

    /// What has to be done to it.
    pub(super) fn plan(&self) -> Result<Plan<'_>> {
        snapshot::plan(&self.root, &self.packed)
            .with_context(|| format!("comparing {}", self.root.path().display()))
    }

    /// Makes it what it was: at once, where a driver can put back all that it holds, then by
    /// comparing, which is also the proof.
    pub(super) fn put_back(&self, plan: Plan<'_>, progress: &dyn Progress) -> Result<()> {
        if plan.is_empty() {
            return Ok(());
        }
        if self.replace_all() {
            let root = snapshot::probe(self.root.path())?;
            snapshot::plan(&root, &self.packed)?.execute(progress)?;
            return Ok(());
        }
        self.put_back_in_place(plan, progress)
    }

    /// Makes it what it was by what differs alone: it stays the directory that is mounted already.
    pub(super) fn put_back_in_place(&self, plan: Plan<'_>, progress: &dyn Progress) -> Result<()> {
        plan.cloning(self.local.as_ref()).execute(progress)?;
        Ok(())
    }

    /// A driver that fails leaves what comparing can put right.
    fn replace_all(&self) -> bool {
        let Some(local) = &self.local else { return false };
        local.put_back(&self.root).unwrap_or_else(|error| {
            tracing::warn!("{}: {error:#}", self.destination.display());
            false
        })
    }
}

/// Which volumes this restore puts back. That a checkpoint holds one does not make it a part: anybody
/// may have written that.
pub(super) struct VolumeChoice {
    chosen: Volumes,
    /// Whether the command names them: then it leaves the others as they are.
    is_asked: bool,
}

impl VolumeChoice {
    /// By what a command names, or else by the container's annotation, or else by the configuration.
    pub(super) fn of(bundle: &Bundle, choice: &Choice<Volumes>) -> Result<Self> {
        Ok(Self { chosen: Volumes::chosen(bundle, choice)?, is_asked: choice.asked.is_some() })
    }

    /// Whether a part of the checkpoint is to be put back.
    ///
    /// # Errors
    /// When nothing says that it is, or that it is not.
    fn includes(&self, record: &manifest::PartRecord, bundle: &Bundle) -> Result<bool> {
        let place = &record.destination;
        if record.is_root() {
            return Ok(true);
        }
        let is_left = self.is_asked && self.chosen == Volumes::Nothing;
        if !is_left && self.chosen.include(&volume_at(place.as_path(), bundle)?) {
            return Ok(true);
        }
        if self.is_asked {
            tracing::warn!(
                "the volume {place} is left as it is, and not as the checkpoint holds it"
            );
            return Ok(false);
        }
        Err(anyhow!(
            "the checkpoint holds the volume {place}, and nothing says that it is put back"
        )
        .hint(format!(
            "say so with --volumes {place}, or by `volumes` in {}; with --volumes none it is left \
                 as it is",
            locations::configuration().display()
        )))
    }
}

/// Opens every part that is put back, and finds in the bundle what it belongs to: the root file
/// system, and of a volume whatever is mounted now where it was.
///
/// # Errors
/// When the root file system is not made of the image that the snapshot lies on, the bundle has no
/// such volume, or nothing says that it is put back.
pub(super) fn open_parts(
    manifest: &Manifest,
    images: &Path,
    bundle: &Bundle,
    policy: &VolumeChoice,
    drivers: &DriverSettings,
) -> Result<Vec<Target>> {
    if manifest.filesystem != Filesystem::Snapshot {
        return Ok(Vec::new());
    }
    let mut root = Some(root_of_same_image(manifest, bundle)?);
    let (mut parts, mut weight) = (Vec::new(), Weight::default());
    for record in &manifest.parts {
        if policy.includes(record, bundle)? {
            let part = open(record, images, bundle, drivers, &mut root)?;
            weight = weight + part.packed.index().entries.weight();
            limits::ensure_weight(weight)?;
            parts.push(part);
        }
    }
    Ok(parts)
}

fn open(
    record: &manifest::PartRecord,
    images: &Path,
    bundle: &Bundle,
    drivers: &DriverSettings,
    of_bundle: &mut Option<Root>,
) -> Result<Target> {
    let destination = record.destination.as_path().to_owned();
    let target = target_of(record, bundle)?;
    let files = record.files.as_ref().with_context(|| format!("{} is not packed", record.name))?;
    let packed = PackedPart::open(images, files)
        .with_context(|| format!("opening the snapshot of {}", record.destination))?;
    let known = if record.is_root() { of_bundle.take() } else { None };
    let root = known.map_or_else(|| snapshot::probe(&target), Ok)?;
    // Without it, everything is in the layers.
    let local = HeldLocally::find(&root, files, drivers).unwrap_or_else(|error| {
        tracing::debug!("{}: {error:#}", record.destination);
        None
    });
    Ok(Target { destination, packed, root, local })
}

/// What a part is put back on.
pub(super) fn target_of(record: &manifest::PartRecord, bundle: &Bundle) -> Result<PathBuf> {
    if record.is_root() {
        return Ok(bundle.rootfs.clone());
    }
    Ok(volume_at(record.destination.as_path(), bundle)?.source)
}

fn volume_at(destination: &Path, bundle: &Bundle) -> Result<Bind> {
    let bind = bundle.binds().into_iter().rfind(|bind| bind.destination == destination);
    bind.filter(|bind| !bind.read_only)
        .with_context(|| format!("the checkpoint holds the volume {}, and the bundle mounts nothing there that can be written", destination.display()))
        .hint("give the bundle that volume, or leave it out: --volumes none")
}

/// Putting a volume back under a container that writes it would destroy that one's data.
pub(super) fn ensure_volume_is_unused(
    destination: &Path,
    source: &Path,
    beside: &[Pid],
) -> Result<()> {
    let users = shared::users_of(source, beside)?;
    let Some(user) = users.first() else { return Ok(()) };
    Err(anyhow!("the volume {} is in use: {user} has it mounted", destination.display())
        .hint("end that container, or give this one a volume of its own"))
}

/// Putting the root file system back under a container that lives there would, too. What its runtime
/// says of names does not tell: another container may have been made of the same bundle.
fn ensure_root_is_unused(root: &Path, beside: &[Pid]) -> Result<()> {
    let Some(user) = shared::process_in(root, beside)? else { return Ok(()) };
    Err(anyhow!("the root file system {} is in use: {user} lives there", root.display())
        .hint("end that container, or name another bundle with --bundle"))
}

/// The root file system of the bundle.
///
/// # Errors
/// When the snapshot would mean something else on it.
pub(super) fn root_of_same_image(manifest: &Manifest, bundle: &Bundle) -> Result<Root> {
    let (root, differences) = snapshot::probe(&bundle.rootfs)?.compared_with(&manifest.root)?;
    if differences.is_empty() {
        return Ok(root);
    }
    if manifest.root.driver == Form::Overlay && root.identity().driver == Form::Directory {
        return Err(not_mounted(&manifest.container.id, bundle));
    }
    Err(anyhow!(
        "the root file system {} is another: {}",
        bundle.rootfs.display(),
        differences.join("; ")
    )
    .hint("name with --bundle one that is made of the same image"))
}

/// Says that an overlay is wanted where there is a directory: engines unmount it when a container ends.
fn not_mounted(id: &str, bundle: &Bundle) -> anyhow::Error {
    let rootfs = bundle.rootfs.display();
    let hint = match bundle.engine() {
        Engine::Podman => format!("`podman mount {id}` mounts it"),
        _ => "mount the overlay of its image there".to_owned(),
    };
    anyhow!("the root file system {rootfs} is not mounted: the snapshot is of an overlay")
        .hint(format!("{hint}; or name with --bundle one that is made of the same image"))
}

//! A checkpoint whose dump a runtime makes without us: CRIU's action script is at `post-dump`.

use anyhow::{Context, Result};
use jiff::Timestamp;

use super::comeback::Comeback;
use super::complete::complete;
use super::dump::{TakenParts, lost_events, take};
use super::freeze::freeze;
use super::links::Links;
use super::locks::Locks;
use super::outside::{self, not_held};
use super::parts::{self, CopiedAhead};
use super::record::{Begun, FreezeFacts};
use super::{CheckpointRequest, ImageDirectory, copy_first};
use crate::container::Container;
use crate::files::{self, Finder};
use crate::freezer::Still;
use crate::guardian::Guardian;
use crate::machine;
use crate::restorable::Restorable;
use crate::snapshot;
use crate::store::Timeline;
use crate::store::lock::ContainerLock;

/// Copies the container's files beside the images that CRIU has just written, and commits both. The
/// next restore packs them.
///
/// CRIU holds every process of the dump, and goes on when this returns. The control group is frozen
/// besides, for whoever is in it and not in the dump, and thawed again.
///
/// # Errors
/// CRIU has to be told: then it lets go of the container, which goes on, and the directory holds
/// nothing that looks like a checkpoint.
pub fn under_dump(
    request: &CheckpointRequest,
    container: &Container,
    restorable: &dyn Restorable,
    held: &ContainerLock,
) -> Result<()> {
    machine::ensure_capable()?;
    let root = snapshot::probe(&container.bundle.rootfs)?.described()?;
    container.ensure_root_is(root.path())?;
    let filesystem = request.filesystem_of(container)?;
    let comeback = Comeback::of(request, container, restorable)?;
    let volumes = request.volumes_of(container, filesystem)?;
    comeback.ensure_foreseen(&volumes)?;
    let not_held = not_held(container, filesystem, &volumes);
    let begun = Begun::of(request, container, root.identity(), filesystem, not_held)?;
    let guardian = Guardian::start(held, request.max_freeze)?;
    let directory = ImageDirectory::prepare(&request.images, false, &guardian, held)?;

    let frozen = freeze(request, &container.freezer, &guardian)?;
    let created = Timestamp::now();
    let copied = copy_first(container, root, request, filesystem, &directory, &guardian)?;
    let CopiedAhead { parts, suspects, sharing, digests } = copied;
    let others = sharing.freeze(request, container, &guardian)?;
    let TakenParts { parts, held: files, begin, end } =
        take(container, &frozen, parts, digests.as_ref(), &suspects)?;
    others.thaw()?;
    let seen = files::by_path(&container.dumped_processes()?, Still::Frozen(&frozen))
        .context("looking for locks")?;
    complete(&request.images, &Locks(seen.locks))?;
    let finder = Finder::of(container.init, &request.runtime)?;
    let links = Links::of_dump(&request.images, container, &finder)?;
    let freeze = FreezeFacts {
        created,
        by: frozen.by(),
        others: sharing.groups(),
        // CRIU has decided over every open file.
        external: Vec::new(),
        unsupported: Vec::new(),
        owners: Vec::new(),
        lost_events: lost_events(&seen.events),
        link_remaps: links.records(),
    };
    let milliseconds = Timeline::milliseconds(end - begin);
    let manifest = begun.staged(freeze, parts::records(&parts), files, milliseconds);
    comeback.ensure_after(&request.images, &manifest, &parts)?;
    let _leases = parts::seal(parts)?;
    guardian.ensure_in_time()?;
    directory.commit_staged(&manifest)?;
    frozen.thaw()?;
    outside::say(&manifest.not_held);
    guardian.dismiss()
}

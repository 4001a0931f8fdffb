//! The plan of a restore: all that can refuse it is asked while the plan is made, and nothing is
//! changed by it.
//!
//! [`Examined`] owns what was read and opened, [`RestorePlan`] borrows it and says what is to be done. A
//! dry run prints the plan ([`RestorePlan::forecast`]), a restore carries it out ([`RestorePlan::carry_out`]), and
//! so does the action script of a runtime that restores the processes by itself
//! ([`RestorePlan::put_back_in_place`]).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use super::console::Console;
use super::links::CriusNames;
use super::not_held::say_what_is_not_held;
use super::preflight;
use super::reconcile::{self, Target, ensure_volume_is_unused};
use super::remedies::{self, Remedy};
use super::run::{self, ImageView};
use super::sites::FutureMounts;
use super::{RestoreRequest, bounds, ensure_not_alive, make_room, rules, verify};
use crate::container::{Bundle, Container, Identity};
use crate::criu::door::Door;
use crate::fault::{self, Point};
use crate::files::{FileId, FileKind, OpenFile, Table};
use crate::hint::WithHint;
use crate::policy::Policies;
use crate::restorable::{JustTaken, TakenPart};
use crate::runtime::ended;
use crate::runtime::exit::Ended;
use crate::snapshot::{self, Progress};
use crate::store::finish;
use crate::store::lock::ImagesLock;
use crate::store::manifest::{Manifest, State};
use crate::substitute::{
    self, Allow, Around, Callers, Mismatch, Mismatches, Prepared, Resolved, Site, Treatment,
};
use crate::sys::pid::Pid;

const FITTING: &str = "give something that can be used as the original was: opened in the same \
                       mode, and of a type that fits";

const IDENTIFIERS: &str = "`ocicle files` lists the open files with their identifiers";

/// What a restore begins with: the checkpoint, the bundle, and what the rules mean for them.
pub struct Examined<'a> {
    pub(super) request: &'a RestoreRequest,
    images: PathBuf,
    manifest: Manifest,
    bundle: Bundle,
    pub(super) rules: Rules,
    parts: Targets<'a>,
    /// Processes that may use what the parts are put back on: the container's own.
    own: Vec<Pid>,
}

/// The file systems that are to be as they were.
enum Targets<'a> {
    /// As the checkpoint holds them.
    Packed(Vec<Target>),
    /// As they have just been taken: nothing would have to be done.
    Taken(&'a [TakenPart<'a>]),
}

/// What rules and policies say of the open files of a checkpoint.
#[derive(Default)]
pub(super) struct Rules {
    pub(super) resolved: Vec<Resolved>,
    /// Open files that something else takes the place of.
    replaced: Vec<FileId>,
    callers: Callers,
    /// Locked files that no rule replaces.
    locked: Vec<OpenFile>,
    policies: Policies,
}

impl<'a> Examined<'a> {
    /// Examines a checkpoint for a container that does not live yet. One that was interrupted is
    /// finished first.
    pub fn of(request: &'a RestoreRequest, progress: &dyn Progress) -> Result<Self> {
        let images = images_of(request)?;
        let manifest = finished(&images, request, progress)
            .with_context(|| format!("reading the checkpoint {}", images.display()))?;
        let bundle = Bundle::read(&request.bundle)?;
        ensure_not_alive(request)?;
        let rules = Rules::of(request, &bundle, &Table::read(&images)?)?;
        Self::new(request, images, manifest, bundle, rules)
    }

    /// Examines a checkpoint as it lies there. The container of that name may be running.
    pub(super) fn unchanged(request: &'a RestoreRequest) -> Result<Self> {
        let images = images_of(request)?;
        let manifest = Manifest::read(&images)?;
        if manifest.state == State::Staged {
            let shown = images.display();
            return Err(anyhow!("the checkpoint {shown} was interrupted before its end")
                .hint("a restore finishes it first, which a dry run does not"));
        }
        manifest.verify(&images, request.trust)?;
        let bundle = Bundle::read(&request.bundle)?;
        let rules = Rules::of(request, &bundle, &Table::read(&images)?)?;
        let own = processes_of(request);
        Ok(Self { own, ..Self::new(request, images, manifest, bundle, rules)? })
    }

    /// Examines a checkpoint for a runtime whose CRIU has begun: no rule and no policy has a place
    /// there.
    pub(super) fn without_rules(request: &'a RestoreRequest) -> Result<Self> {
        let images = request.images.clone();
        let manifest = finished(&images, request, &())
            .with_context(|| format!("reading the checkpoint {}", images.display()))?;
        let bundle = Bundle::read(&request.bundle)?;
        Self::new(request, images, manifest, bundle, Rules::default())
    }

    fn new(
        request: &'a RestoreRequest,
        images: PathBuf,
        manifest: Manifest,
        bundle: Bundle,
        rules: Rules,
    ) -> Result<Self> {
        let policy = reconcile::VolumeChoice::of(&bundle, &request.volumes)?;
        let parts = reconcile::open_parts(&manifest, &images, &bundle, &policy, &request.drivers)?;
        let parts = Targets::Packed(parts);
        Ok(Self { request, images, manifest, bundle, rules, parts, own: Vec::new() })
    }

    /// Examines what a checkpoint has just taken, for a restore where the container is. `with_rules`
    /// says whether that can obey rules and policies.
    pub(super) fn just_taken(
        request: &'a RestoreRequest,
        taken: &'a JustTaken<'_>,
        with_rules: bool,
    ) -> Result<Self> {
        let bundle = taken.container.bundle.clone();
        let rules = match with_rules {
            true => Rules::already(request, &bundle, &taken.table)?,
            false => Rules::default(),
        };
        Ok(Self {
            request,
            images: taken.images.to_owned(),
            manifest: taken.manifest.clone(),
            bundle,
            rules,
            parts: Targets::Taken(&taken.parts),
            own: taken.container.freezer.processes()?,
        })
    }

    /// Makes the plan.
    ///
    /// # Errors
    /// With all that speaks against the restore, as far as it can be known without a connection and
    /// without running a program.
    pub fn plan(&self) -> Result<RestorePlan<'_>> {
        let Self { manifest, images, bundle, .. } = self;
        let Rules { resolved, replaced, policies, .. } = &self.rules;
        let changes = self.parts.compare()?;
        self.parts.ensure_unused(&changes, &self.own)?;
        self.parts.ensure_within(&changes, bundle, &self.request.allow)?;
        let sites = self.parts.put_back_on(FutureMounts::of(bundle), &changes)?;
        let remedies = preflight::check(policies, manifest, images, &sites, replaced)?;
        if let Targets::Packed(_) = self.parts {
            verify::ensure_same(manifest, bundle, resolved, &remedies)?;
        }
        let site = |path: &Path| sites.site(path);
        let prepared = substitute::prepare(resolved, &self.around(&site)).hint(FITTING)?;
        let plan = RestorePlan { examined: self, changes, sites, remedies, prepared };
        substitute::check(images, &plan.treatments())?;
        Ok(plan)
    }

    fn around<'b>(&'b self, site: &'b dyn Fn(&Path) -> Site) -> Around<'b> {
        let Rules { callers, locked, .. } = &self.rules;
        Around { container: &self.request.id, callers, site, locked }
    }

    /// Whether a terminal is replaced of which the caller, or the runtime, may expect the other
    /// side.
    fn gives_up_terminal(&self) -> bool {
        let process = self.bundle.spec.process().as_ref();
        process.and_then(oci_spec::runtime::Process::terminal).unwrap_or(false)
            && self.rules.resolved.iter().any(|one| one.file.kind == FileKind::Tty)
    }
}

/// What a restore does. Up to here nothing is changed.
pub struct RestorePlan<'a> {
    pub(super) examined: &'a Examined<'a>,
    /// What is done to each part, in their order.
    changes: Vec<snapshot::Plan<'a>>,
    sites: FutureMounts<'a>,
    pub(super) remedies: Vec<Remedy>,
    prepared: Vec<Prepared>,
}

impl<'a> RestorePlan<'a> {
    /// What is done to each part.
    pub(super) fn changes(&self) -> impl Iterator<Item = (&'a Target, &snapshot::Plan<'a>)> {
        self.examined.parts.packed().iter().zip(&self.changes)
    }

    /// What becomes of entries of the images.
    fn treatments(&self) -> Vec<Treatment> {
        let relaxed = self.remedies.iter().filter_map(Remedy::treatment);
        self.prepared.iter().map(Prepared::treatment).chain(relaxed).collect()
    }

    /// Every open file of the checkpoint.
    pub(super) fn table(&self) -> Result<Table> {
        Table::read(&self.examined.images)
    }

    /// Puts the files back and runs the runtime's `restore`; returns how that ended.
    ///
    /// # Errors
    /// Sockets are connected and programs are run first, then something is changed. An error behind
    /// that leaves the files as they were at the checkpoint, and no container.
    pub fn carry_out(mut self, progress: &dyn Progress) -> Result<Ended> {
        fault::point(Point::Planned);
        let Examined { request, manifest, images, .. } = self.examined;
        let door = Door::open()?;
        let with = (manifest, &self.examined.bundle);
        let view = ImageView::make(&door, request, with, images, &self.treatments())?;
        let site = |path: &Path| self.sites.site(path);
        let around = self.examined.around(&site);
        let replacements = substitute::open(&mut self.prepared, &around).hint(FITTING)?;

        if request.replace_stopped {
            make_room(&request.runtime, &request.id)?;
        }
        let put_back =
            |part: &Target, changes: snapshot::Plan<'_>| part.put_back(changes, progress);
        each_part(self.examined.parts.packed(), self.changes, put_back)?;
        remedies::carry_out(&self.remedies).context("obeying the policies")?;
        substitute::settle(&self.prepared).context("changing files of the container")?;
        let console = if self.examined.gives_up_terminal() {
            Some(Console::between(&request.flags, door.directory())?)
        } else {
            None
        };
        say_what_is_not_held(manifest, &self.examined.bundle);
        ended::withdraw(&request.id);
        let _names = CriusNames::make(manifest, &self.sites)?;
        run::run(request, manifest, &door, &view, &replacements, console.as_ref())
    }

    /// Puts the files back where the runtime has mounted them already.
    pub(super) fn put_back_in_place(self) -> Result<()> {
        let put_back =
            |part: &Target, changes: snapshot::Plan<'_>| part.put_back_in_place(changes, &());
        each_part(self.examined.parts.packed(), self.changes, put_back)?;
        CriusNames::make(&self.examined.manifest, &self.sites).map(CriusNames::keep)
    }
}

impl Targets<'_> {
    /// Those that can be put back.
    fn packed(&self) -> &[Target] {
        match self {
            Self::Packed(parts) => parts,
            Self::Taken(_) => &[],
        }
    }

    /// What has to be done to each.
    fn compare(&self) -> Result<Vec<snapshot::Plan<'_>>> {
        self.packed().iter().map(Target::plan).collect()
    }

    /// Makes sure that nobody but `own` processes use what would be changed.
    fn ensure_unused(&self, changes: &[snapshot::Plan<'_>], own: &[Pid]) -> Result<()> {
        match self {
            Self::Packed(parts) => parts
                .iter()
                .zip(changes)
                .try_for_each(|(part, changes)| part.ensure_unused(changes, own)),
            Self::Taken(parts) => parts
                .iter()
                .filter(|part| part.destination != Path::new("/"))
                .try_for_each(|part| ensure_volume_is_unused(part.destination, part.source, own)),
        }
    }

    fn ensure_within(
        &self,
        changes: &[snapshot::Plan<'_>],
        bundle: &Bundle,
        allow: &Allow,
    ) -> Result<()> {
        bounds::ensure_within(self.packed(), changes, bundle, allow)
    }

    /// What the container will see with these changes made.
    fn put_back_on<'b>(
        &'b self,
        mut sites: FutureMounts<'b>,
        changes: &[snapshot::Plan<'_>],
    ) -> Result<FutureMounts<'b>> {
        match self {
            Self::Packed(parts) => {
                for (part, changes) in parts.iter().zip(changes) {
                    sites.put_back(&part.destination, &part.packed, Some(changes.changes()))?;
                }
            }
            Self::Taken(parts) => {
                for part in *parts {
                    sites.put_back(part.destination, part.snapshot, None)?;
                }
            }
        }
        Ok(sites)
    }
}

fn each_part<'a>(
    parts: &'a [Target],
    changes: Vec<snapshot::Plan<'a>>,
    put_back: impl Fn(&Target, snapshot::Plan<'_>) -> Result<()>,
) -> Result<()> {
    for (changes, part) in changes.into_iter().zip(parts) {
        put_back(part, changes)
            .with_context(|| format!("putting {} back", part.destination.display()))?;
    }
    Ok(())
}

fn images_of(request: &RestoreRequest) -> Result<PathBuf> {
    fs::canonicalize(&request.images)
        .with_context(|| format!("opening the checkpoint {}", request.images.display()))
}

/// Reads the manifest of a checkpoint, finishes one that was interrupted, and makes sure that
/// everything is as it was written.
fn finished(images: &Path, request: &RestoreRequest, progress: &dyn Progress) -> Result<Manifest> {
    let mut manifest = Manifest::read(images)?;
    if manifest.state == State::Staged {
        // Another container may be restored from it at the same time, or its maker still be at it.
        let alone = ImagesLock::take(images)?;
        manifest = Manifest::read(images)?;
        if manifest.state == State::Staged {
            manifest = finish(images, manifest, &request.drivers, progress, &alone)
                .context("finishing the interrupted checkpoint")?;
        }
    }
    manifest.verify(images, request.trust)?;
    Ok(manifest)
}

impl Rules {
    /// Finds the open file of every rule, and makes sure that the rule may be obeyed.
    fn of(request: &RestoreRequest, bundle: &Bundle, table: &Table) -> Result<Self> {
        let identity = Identity::of(&request.id, bundle);
        let mut callers = rules::callers(request, &identity)?;
        let rules = rules::gather(request, bundle, &identity, &callers)?;
        let resolved = substitute::resolve(&rules, table).hint(IDENTIFIERS)?;
        substitute::ensure_allowed(&resolved, &request.allow)?;
        callers.fetch(&resolved, &request.allow)?;
        let replaced = replaced(&resolved);
        ensure_interfaces(request, bundle, table, &replaced)?;
        let is_locked = |file: &&OpenFile| !file.locks.is_empty() && !replaced.contains(&file.id);
        let locked = table.files.iter().filter(is_locked).cloned().collect();
        let policies = remedies::gather(request, bundle)?;
        Ok(Self { resolved, replaced, callers, locked, policies })
    }

    /// What can be said at the checkpoint: by rules that stand somewhere. What else needs a
    /// replacement can get it at the restore; and whether that fits is asked then, as the container
    /// itself holds what it would be tried on.
    fn already(request: &RestoreRequest, bundle: &Bundle, table: &Table) -> Result<Self> {
        let identity = Identity::of(&request.id, bundle);
        let rules = substitute::standing_rules(&identity, &request.configured, bundle)?;
        let (resolved, mut wrong) = substitute::judge(&rules, table);
        wrong.retain(|mismatch| !matches!(mismatch, Mismatch::Needed { .. }));
        if !wrong.is_empty() {
            return Err(Mismatches(wrong)).hint(IDENTIFIERS);
        }
        substitute::ensure_allowed(&resolved, &request.allow)?;
        let needed = table.files.iter().filter(|file| file.must_substitute).map(|file| file.id);
        let replaced = replaced(&resolved).into_iter().chain(needed).collect();
        let policies = remedies::gather(request, bundle)?;
        Ok(Self { replaced, policies, ..Self::default() })
    }
}

/// The processes of the container of that name, if it runs.
fn processes_of(request: &RestoreRequest) -> Vec<Pid> {
    if !request.runtime.may_know(&request.id) {
        return Vec::new();
    }
    let container = Container::discover(&request.runtime, &request.id).ok();
    container.and_then(|container| container.freezer.processes().ok()).unwrap_or_default()
}

fn replaced(resolved: &[Resolved]) -> Vec<FileId> {
    resolved.iter().map(|resolved| resolved.file.id).collect()
}

/// Refuses to keep tun devices whose interfaces are not restored: CRIU would look for them in vain
/// (`tunfile_open` in criu/tun.c).
fn ensure_interfaces(
    request: &RestoreRequest,
    bundle: &Bundle,
    table: &Table,
    replaced: &[FileId],
) -> Result<()> {
    let is_kept = |file: &&OpenFile| file.has_interface() && !replaced.contains(&file.id);
    match table.files.iter().find(is_kept) {
        Some(file) if !bundle.restores_interfaces(&request.runtime) => {
            let OpenFile { id, name, .. } = file;
            Err(anyhow!(
                "open file {id} ({name}) needs a replacement: its interface is not restored, as the \
                 network is the engine's"
            )
            .hint(format!("such as -s {id}=null")))
        }
        _ => Ok(()),
    }
}

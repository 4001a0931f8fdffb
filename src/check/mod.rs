//! Whether a checkpoint would work, found out on a running container without making one.
//!
//! Nothing is frozen and nothing is changed: what is said holds for the moment at which it was
//! looked at. [`files`](crate::files::dumpable) judges each open file, [`processes`] what the
//! processes use beside, [`mounts`] what is mounted; [`others`] says who is no part of the
//! checkpoint and may write what is. All of it is in a [`CheckReport`].

mod annotated;
mod kept;
mod mounts;
mod others;
mod processes;

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use crate::choice::Choice;
use crate::container::Holder;
use crate::container::{Container, Shared, Volumes};
use crate::cover::{self, SeenAhead, UNMAP};
use crate::files::dumpable::{Obstacle, Verdict, verdict};
use crate::files::facts::{Facts, Known};
use crate::files::{DumpSettings, Finder};
use crate::files::{FileId, OpenFile};
use crate::freezer::FreezerState;
use crate::hint::hint_of;
use crate::restorable::Restorable;
use crate::runtime::Runtime;
use crate::substitute::{
    Allow, Mismatch, OnUnsupported, Resolved, Substitution, ensure_allowed, judge,
};

pub use annotated::mistakes;
pub use kept::KeptBy;

/// What is asked.
#[derive(Debug)]
pub struct CheckRequest {
    /// The real runtime, with the global flags of the call.
    pub runtime: Runtime,
    /// The container.
    pub id: String,
    /// What the runtime would be told.
    pub settings: DumpSettings,
    /// Which volumes would belong to the checkpoint.
    pub volumes: Choice<Volumes>,
    /// What would be done about volumes that others write too.
    pub shared: Shared,
    /// Rules of the command line.
    pub rules: Vec<String>,
    /// What would become of open files that CRIU cannot dump and that no rule covers.
    pub on_unsupported: OnUnsupported,
    /// Rules of the configuration.
    pub configured: Vec<Substitution>,
    /// What rules of annotations may use.
    pub allow: Allow,
}

/// What would come of a checkpoint.
#[derive(Debug, Serialize)]
pub struct CheckReport {
    /// The version of this form: 1.
    pub schema: u32,
    /// The container.
    pub container: String,
    /// Whether a checkpoint would work.
    pub works: bool,
    /// Every open file.
    pub files: Vec<FileOutlook>,
    /// Why it would fail, beside what is said of the open files.
    pub problems: Vec<Finding>,
    /// What does not make it fail, and should be known.
    pub remarks: Vec<Finding>,
}

/// What would become of an open file.
#[derive(Debug, Serialize)]
pub struct FileOutlook {
    /// The open file, with an identifier of this report alone.
    #[serde(flatten)]
    pub file: OpenFile,
    /// Whether it can be dumped.
    pub dump: DumpOutlook,
    /// Where its content would be kept.
    pub held: KeptBy,
    /// The rule that would replace it at a restore.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleSaid>,
    /// Why it cannot be dumped.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Finding>,
}

/// Whether an open file can be dumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DumpOutlook {
    /// It can.
    Yes,
    /// It is left out: something has to take its place at a restore.
    LeftOut,
    /// A checkpoint fails over it.
    No,
}

/// A rule that stands in the configuration or in an annotation.
#[derive(Debug, Serialize)]
pub struct RuleSaid {
    /// The rule, as the grammar writes it.
    pub rule: String,
    /// Where it stands.
    pub from: String,
}

/// Something that was found, and what would help.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// What it is.
    pub what: String,
    /// What would help, if anything does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    /// The option of `ocicle checkpoint` with which it would be none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub option: Option<&'static str>,
}

impl Finding {
    fn new(what: String) -> Self {
        Self { what, help: None, option: None }
    }

    fn with_help(what: String, help: &str) -> Self {
        Self { help: Some(help.to_owned()), ..Self::new(what) }
    }

    fn of(obstacle: &Obstacle, subject: &str) -> Self {
        Self {
            what: format!("{subject}: {obstacle}"),
            help: Some(obstacle.help()),
            option: obstacle.option(),
        }
    }

    /// Of an open file, which may be left out if it is not so for the moment only.
    fn of_open_file(obstacle: &Obstacle, subject: &str, mapped: bool) -> Self {
        let finding = Self::of(obstacle, subject);
        let help = finding.help.unwrap_or_default();
        let help = match (obstacle.is_lasting(), obstacle.can_be_set_aside()) {
            (false, _) => help,
            (true, true) if mapped => format!("{UNMAP}; no rule can help"),
            (true, true) => format!("{help}; or a rule, or --on-unsupported substitute"),
            (true, false) => format!("{help}; no rule can help"),
        };
        Self { help: Some(help), ..finding }
    }
}

/// Looks at a container; of one that ends with its checkpoint, `restorable` says whether it could come
/// back.
pub fn check(
    request: &CheckRequest,
    container: &Container,
    restorable: Option<&dyn Restorable>,
) -> Result<CheckReport> {
    let settings = request.settings.with_standing(&request.runtime)?;
    let dumped = container.dumped_processes()?;
    let finder = Finder::of(container.init, &request.runtime)?;
    let facts = Facts::of(&dumped, &finder).context("listing the open files")?;
    let settings = facts.settle(&settings)?;
    let parts = kept::Parts::of(container, request)?;

    let rules = cover::rules(container, &request.id, &request.configured, &request.rules)?;
    let (resolved, mismatches) = judge(&rules, &facts.table());
    let rest = request.on_unsupported;
    let ahead = cover::set_aside(container, rules, rest, settings.clone(), finder.clone())?;
    let judge = |known| (known, verdict_with(known, &settings, &ahead));
    let files: Vec<_> = facts
        .files
        .iter()
        .map(judge)
        .map(|(known, verdict)| fate(known, &verdict, &parts, &resolved))
        .collect();
    let mut problems =
        processes::problems(container, &dumped, &facts, &settings, request.runtime.family())?;
    problems.extend(mounts::problems(container, &dumped)?);
    let mut remarks = remarks(&files, &mismatches);
    if !container.bundle.restores_interfaces(&request.runtime) {
        remarks.extend(lost_interfaces(&files));
    }
    problems.extend(frozen_from_above(container)?);
    remarks.extend(frozen(container)?);
    remarks.extend(refused(&resolved, &request.allow));
    remarks.extend(processes::remarks(&dumped));
    let (refused_users, other_users) = others::sharing(container, &parts, request.shared);
    problems.extend(refused_users);
    remarks.extend(other_users);
    remarks.extend(others::remarks(container, &dumped, &parts)?);
    problems.extend(unmounted(container, &parts));
    problems.extend(restorable.and_then(|asked| unrestorable(container, &parts, asked)));
    let works = problems.is_empty() && files.iter().all(|fate| fate.dump != DumpOutlook::No);
    let container = request.id.clone();
    Ok(CheckReport { schema: 1, container, works, files, problems, remarks })
}

/// What CRIU will do about an open file: it is kept from those that are set aside.
fn verdict_with(known: &Known, settings: &DumpSettings, ahead: &SeenAhead) -> Foretold {
    let first = known.file.holders.first();
    let is_in = |holders: &HashSet<Holder>| first.is_some_and(|holder| holders.contains(holder));
    match verdict(&known.described, settings) {
        Verdict::Dumps => Foretold::Dumped,
        Verdict::LeftOut(_) => Foretold::LeftOut,
        Verdict::Fails(_) if is_in(&ahead.aside) => Foretold::LeftOut,
        Verdict::Fails(obstacles) => Foretold::Fails { obstacles, mapped: is_in(&ahead.mapped) },
    }
}

/// What will become of an open file.
enum Foretold {
    Dumped,
    LeftOut,
    Fails { obstacles: Vec<Obstacle>, mapped: bool },
}

fn fate(
    known: &Known,
    foretold: &Foretold,
    parts: &kept::Parts,
    resolved: &[Resolved],
) -> FileOutlook {
    let subject = subject(&known.file);
    let (dump, problems) = match foretold {
        Foretold::Dumped => (DumpOutlook::Yes, Vec::new()),
        Foretold::LeftOut => (DumpOutlook::LeftOut, Vec::new()),
        Foretold::Fails { obstacles, mapped } => {
            let finding = |obstacle| Finding::of_open_file(obstacle, &subject, *mapped);
            (DumpOutlook::No, obstacles.iter().map(finding).collect())
        }
    };
    FileOutlook {
        held: parts.holder_of(known, dump),
        rule: rule_for(known.file.id, resolved),
        file: known.file.clone(),
        dump,
        problems,
    }
}

fn rule_for(file: FileId, resolved: &[Resolved]) -> Option<RuleSaid> {
    let winner = resolved.iter().find(|resolved| resolved.file.id == file)?;
    let from = winner.rule.origin.to_string();
    Some(RuleSaid { rule: winner.rule.to_string(), from })
}

/// The open file as a problem names it: one of its descriptors, and its name.
fn subject(file: &OpenFile) -> String {
    let name = &file.name;
    match file.holders.first() {
        Some(holder) => format!("fd {} of pid {} ({name})", holder.fd, holder.pid),
        None => name.to_string(),
    }
}

fn remarks(files: &[FileOutlook], mismatches: &[Mismatch]) -> Vec<Finding> {
    let left_out =
        files.iter().filter(|fate| fate.dump == DumpOutlook::LeftOut && fate.rule.is_none());
    let needed = left_out.map(|fate| needs_replacement(&fate.file, "it is left out"));
    let rules = mismatches.iter().filter(|one| !matches!(one, Mismatch::Needed { .. }));
    needed.chain(rules.map(|rule| Finding::new(format!("rule {rule}")))).collect()
}

/// Tun devices that are saved, and whose interfaces are not: runc leaves networks out.
fn lost_interfaces(files: &[FileOutlook]) -> impl Iterator<Item = Finding> {
    let is_lost = |fate: &&FileOutlook| {
        fate.file.has_interface() && fate.dump == DumpOutlook::Yes && fate.rule.is_none()
    };
    let lost = files.iter().filter(is_lost);
    lost.map(|fate| needs_replacement(&fate.file, "its interface is left to the engine"))
}

fn needs_replacement(file: &OpenFile, why: &str) -> Finding {
    let what = format!("{}: {why}, and a restore needs something in its place", subject(file));
    let help = file.holders.first().map(|holder| format!("-s {holder}=SOURCE"));
    Finding { help, ..Finding::new(what) }
}

/// A rule of an annotation that a restore would refuse.
fn refused(resolved: &[Resolved], allow: &Allow) -> Option<Finding> {
    let error = ensure_allowed(resolved, allow).err()?;
    let help = hint_of(&error).map(str::to_owned);
    Some(Finding { help, ..Finding::new(format!("a restore would be refused: {error:#}")) })
}

/// Volumes that a checkpoint cannot hold: the container has something else there.
fn unmounted(container: &Container, parts: &kept::Parts) -> Option<Finding> {
    let is = |(point, source): &(PathBuf, PathBuf)| container.ensure_volume_is(point, source).err();
    let error = parts.volumes().iter().find_map(is)?;
    let help = hint_of(&error).map(str::to_owned);
    Some(Finding { help, ..Finding::new(format!("{error:#}")) })
}

/// Why a checkpoint refuses to end the container.
fn unrestorable(
    container: &Container,
    parts: &kept::Parts,
    restorable: &dyn Restorable,
) -> Option<Finding> {
    let error = restorable.ahead(container, parts.volumes()).err()?;
    let what = format!("a restore in place would be refused: {error:#}");
    let help = hint_of(&error).map(str::to_owned);
    Some(Finding { what, help, option: Some("--unrestorable-ok") })
}

fn frozen_from_above(container: &Container) -> Result<Option<Finding>> {
    let state = container.freezer.state()?;
    Ok((state == Some(FreezerState::FrozenFromAbove)).then(|| {
        let what = "it is frozen by a control group above its own".to_owned();
        Finding::with_help(what, "thaw that one")
    }))
}

fn frozen(container: &Container) -> Result<Option<Finding>> {
    Ok(match container.freezer.state()? {
        Some(FreezerState::Frozen) => {
            Some(Finding::new("it is frozen, and would stay so".to_owned()))
        }
        Some(FreezerState::Freezing) => Some(Finding::with_help(
            "it is being frozen by somebody, and a process has not stopped yet".to_owned(),
            &format!("ocicle thaw {}", container.id),
        )),
        _ => None,
    })
}

impl CheckReport {
    /// Everything over which it would fail.
    pub fn all_problems(&self) -> impl Iterator<Item = &Finding> {
        self.files.iter().flat_map(|fate| &fate.problems).chain(&self.problems)
    }

    /// The options with which it would work; `None` if there are none such.
    pub fn remedy(&self) -> Option<Vec<&'static str>> {
        let mut options: Vec<_> =
            self.all_problems().map(|problem| problem.option).collect::<Option<_>>()?;
        options.sort_unstable();
        options.dedup();
        Some(options)
    }

    /// The headings of [`CheckReport::rows`].
    pub const HEADINGS: [&'static str; 7] =
        ["ID", "TYPE", "HOLDERS", "NAME", "DUMP", "HELD BY", "RULE"];

    /// A row for each open file.
    pub fn rows(&self) -> impl Iterator<Item = [String; 7]> + '_ {
        self.files.iter().map(|fate| {
            let [id, kind, _, _, holders, name] = fate.file.row();
            let dump = match fate.dump {
                DumpOutlook::Yes => "yes",
                DumpOutlook::LeftOut => "left out",
                DumpOutlook::No => "no",
            };
            let rule = fate.rule.as_ref();
            let rule =
                rule.map_or_else(String::new, |said| format!("{} ({})", said.rule, said.from));
            [id, kind, holders, name, dump.to_owned(), fate.held.to_string(), rule]
        })
    }
}

/// The volumes of a checkpoint with these choices.
fn volumes(container: &Container, request: &CheckRequest) -> Result<Vec<kept::Volume>> {
    container.bundle.volumes(&request.volumes)
}

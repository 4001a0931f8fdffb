//! Open files that CRIU cannot dump: who covers them, and what is written down of them.
//!
//! A file is *covered* when a rule says what takes its place at a restore, or when all such files
//! are by `on-unsupported`. Then CRIU is kept from looking at it ([`crate::criu::plugin`]), and the
//! manifest says what it was, since CRIU's images do not. A file that nobody covers is refused
//! before the container is touched, all of them in one message; but not if it is such a one only
//! for the moment, or if an option of CRIU's allows it: CRIU has the last word on those.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, anyhow};

use crate::container::Holder;
use crate::container::{Container, Identity, Process};
use crate::criu::plugin::SetAside;
use crate::files::dumpable::{Obstacle, Verdict, verdict};
use crate::files::facts::Facts;
use crate::files::{DumpSettings, Finder, OpenFile};
use crate::hint::WithHint;
use crate::proc::Proc;
use crate::store::manifest::Unsupported;
use crate::substitute::{
    OnUnsupported, Origin, Rule, Substitution, Term, parse_each, standing_rules,
};
use crate::sys::at_once;
use crate::sys::inode::DevIno;
use crate::sys::pid::{InnerPid, Pid, ProcessFd};

/// What CRIU is kept from looking at.
#[derive(Debug, Default)]
pub struct Aside {
    /// The files.
    pub chosen: Vec<SetAside>,
    /// What the manifest says of them.
    pub records: Vec<Unsupported>,
    /// Those that nobody covers: at them CRIU will fail.
    pub stopping: Vec<Failing>,
}

impl Aside {
    /// Makes sure that CRIU is left nothing that is sure to make it fail. What an option of CRIU's
    /// allows, or what is over in a moment, is left to it.
    ///
    /// # Errors
    /// All those that are.
    pub fn ensure_nothing_lasts(&self) -> Result<()> {
        let lasting: Vec<_> = self.stopping.iter().filter(|one| one.is_lasting()).collect();
        if lasting.is_empty() { Ok(()) } else { Err(refusal(&lasting)) }
    }
}

/// How often is looked again at what would stop a dump, while the container runs, and how far apart.
const LOOKS: u32 = 4;
const APART: Duration = Duration::from_millis(10);

/// Who covers which open files.
#[derive(Debug)]
pub struct Cover {
    rules: Vec<Rule>,
    rest: OnUnsupported,
    settings: DumpSettings,
    /// Where files are that have no other name.
    finder: Finder,
    /// Whether it is worth looking again when the container is frozen.
    is_needed: Cell<bool>,
}

impl Cover {
    /// Makes sure that no open file will stop the dump, as far as that can be known while the
    /// container runs: what it has open for a moment only, or what is so for a moment, is no matter.
    ///
    /// # Errors
    /// All those that would.
    pub fn of(
        rules: Vec<Rule>,
        rest: OnUnsupported,
        settings: DumpSettings,
        finder: Finder,
        container: &Container,
    ) -> Result<Self> {
        let cover = Self { rules, rest, settings, finder, is_needed: Cell::new(false) };
        let mut failing = cover.failing(&container.dumped_processes()?)?;
        cover.is_needed.set(!failing.is_empty() || cover.rest == OnUnsupported::Substitute);
        failing.retain(|one| one.is_lasting() && cover.by(one).is_none());
        for _ in 0..LOOKS {
            // With what will stop it in any case, all else that did so at each look is named.
            if failing.iter().all(Failing::can_pass) {
                return Ok(cover);
            }
            // A program closes a file without any event.
            std::thread::sleep(APART);
            let now = cover.failing(&container.dumped_processes()?)?;
            failing.retain(|one| now.iter().any(|other| one.is(other)));
        }
        if failing.iter().all(Failing::can_pass) {
            return Ok(cover);
        }
        Err(refusal(&failing.iter().collect::<Vec<_>>()))
    }

    /// Has it look again under the freeze: there is something about that stops a dump.
    pub fn look_again(&self) {
        self.is_needed.set(true);
    }

    /// Who knows where files are.
    pub fn finder(&self) -> &Finder {
        &self.finder
    }

    /// Whether CRIU is told to keep locks.
    pub fn keeps_locks(&self) -> bool {
        self.settings.file_locks
    }

    /// Chooses the files that CRIU is kept from. The last time it is part of the pause: where nothing
    /// was found at the beginning, it is not looked for again.
    pub fn choose(&self, container: &Container) -> Result<Aside> {
        let mut aside = Aside::default();
        if !self.is_needed.get() {
            return Ok(aside);
        }
        for one in self.failing(&container.dumped_processes()?)? {
            let Some(by) = self.by(&one) else {
                aside.stopping.push(one);
                continue;
            };
            let rule = by.rule().map(Rule::to_string);
            let why = one.in_words();
            aside.chosen.push(one.aside);
            aside.records.push(Unsupported { file: one.file, why, rule });
        }
        Ok(aside)
    }

    /// The open files at which CRIU would fail.
    fn failing(&self, processes: &[Process]) -> Result<Vec<Failing>> {
        let hosts: HashMap<InnerPid, Pid> =
            processes.iter().map(|process| (process.inner, process.host)).collect();
        let mut mapped = None;
        let mut failing = Vec::new();
        let facts = Facts::of(processes, &self.finder)?;
        let settings = facts.settle(&self.settings)?;
        for known in facts.files {
            let Verdict::Fails(obstacles) = verdict(&known.described, &settings) else {
                continue;
            };
            let Some(holder) = known.file.holders.first() else { continue };
            let Some(host) = hosts.get(&holder.pid) else { continue };
            // What is gone already stops nothing.
            let Ok(aside) = SetAside::of(ProcessFd { pid: *host, fd: holder.fd }) else { continue };
            let mapped = mapped.get_or_insert_with(|| mapped_files(processes));
            let is_mapped = mapped.contains(&aside.inode());
            failing.push(Failing { file: known.file, obstacles, aside, is_mapped });
        }
        Ok(failing)
    }

    /// Who covers an open file.
    fn by(&self, one: &Failing) -> Option<CoveredBy<'_>> {
        if !one.can_be_set_aside() {
            return None;
        }
        let rule = self.rules.iter().find(|rule| rule.selector.matches(&one.file));
        let all = self.rest == OnUnsupported::Substitute;
        rule.map(CoveredBy::Rule).or(all.then_some(CoveredBy::All))
    }
}

enum CoveredBy<'a> {
    Rule(&'a Rule),
    All,
}

impl<'a> CoveredBy<'a> {
    fn rule(self) -> Option<&'a Rule> {
        match self {
            Self::Rule(rule) => Some(rule),
            Self::All => None,
        }
    }
}

/// An open file at which CRIU would fail.
#[derive(Clone, Debug)]
pub struct Failing {
    file: OpenFile,
    obstacles: Vec<Obstacle>,
    aside: SetAside,
    is_mapped: bool,
}

impl Failing {
    /// Whether it is the same open file, as far as can be told, and fails for the same reasons.
    pub fn is(&self, other: &Self) -> bool {
        let named = |one: &Self| (one.aside, one.file.name.clone());
        named(self) == named(other) && self.obstacles == other.obstacles
    }

    /// Whether one that is so again and again stays so.
    pub fn tells_by_staying(&self) -> bool {
        !self.obstacles.iter().all(Obstacle::is_of_content)
    }

    fn can_pass(&self) -> bool {
        self.obstacles.iter().all(Obstacle::can_pass)
    }

    fn is_lasting(&self) -> bool {
        self.obstacles.iter().any(Obstacle::is_lasting)
    }

    /// CRIU would take a mapping of a file that was set aside for one of what replaces it
    /// (`fd_id_cache_lookup` in criu/file-ids.c).
    fn can_be_set_aside(&self) -> bool {
        !self.is_mapped && self.obstacles.iter().all(Obstacle::can_be_set_aside)
    }

    fn in_words(&self) -> String {
        self.obstacles.iter().map(Obstacle::to_string).collect::<Vec<_>>().join("; ")
    }
}

fn refusal(stopping: &[&Failing]) -> anyhow::Error {
    let mut text = String::from("CRIU cannot dump some of its open files:");
    for one in stopping {
        let OpenFile { kind, name, .. } = &one.file;
        let _ = write!(text, "\n  {}: {kind} {name}: {}", one.file.holders_text(), one.in_words());
        text.push_str(match (one.is_mapped, one.can_be_set_aside()) {
            (true, _) => "; it is mapped, and no rule can help",
            (false, false) => "; no rule can help",
            (false, true) => "",
        });
    }
    anyhow!(text).hint(advice(stopping))
}

fn advice(stopping: &[&Failing]) -> String {
    let (covered, lost): (Vec<&Failing>, Vec<&Failing>) =
        stopping.iter().partition(|one| one.can_be_set_aside());
    let example = covered.first().and_then(|one| one.file.holders.first());
    match (example, &helps(&lost)[..]) {
        (Some(holder), "") => format!(
            "close them; or give each a rule for its replacement at the restore, such as \
             -s {holder}=null, or all of them --on-unsupported substitute"
        ),
        (Some(holder), helps) => format!(
            "where no rule can help: {helps}; for the others a rule, such as -s {holder}=null, or \
             --on-unsupported substitute"
        ),
        (None, helps) => helps.to_owned(),
    }
}

/// What helps where no rule does.
fn helps(lost: &[&Failing]) -> String {
    let of = |one: &&Failing| match one.is_mapped {
        true => vec![UNMAP.to_owned()],
        false => {
            one.obstacles.iter().filter(|it| !it.can_be_set_aside()).map(Obstacle::help).collect()
        }
    };
    let mut helps: Vec<String> = lost.iter().flat_map(of).collect();
    helps.sort_unstable();
    helps.dedup();
    helps.join("; ")
}

/// What helps with a file that cannot be dumped and is mapped too.
pub const UNMAP: &str = "end the mapping before the checkpoint";

/// The files that processes have mapped, by their inodes.
fn mapped_files(processes: &[Process]) -> HashSet<DevIno> {
    let links = processes.iter().flat_map(|process| Proc::of(process.host).mapped());
    let found = links.filter_map(|link| at_once::stat_behind(&link).ok());
    found.map(|file| file.inode).collect()
}

/// The rules that may cover a file: none that names it by its identifier, as CRIU has given none
/// yet. One of those that stand somewhere is for the restore.
///
/// # Errors
/// Those of the command line have no other purpose than this.
pub fn rules(
    container: &Container,
    id: &str,
    configured: &[Substitution],
    given: &[String],
) -> Result<Vec<Rule>> {
    let identity = Identity::of(id, &container.bundle);
    let mut rules = standing_rules(&identity, configured, &container.bundle)?;
    rules.retain(|rule| !names_an_identifier(rule));
    let given = parse_each(given, &Origin::CommandLine)?;
    if let Some(rule) = given.iter().find(|rule| names_an_identifier(rule)) {
        return Err(anyhow!("{rule}: an open file has no identifier before it is dumped").hint(
            "name it by a process and its file descriptor, such as 1:3, or by its path; \
             identifiers are for the restore",
        ));
    }
    rules.extend(given);
    Ok(rules)
}

fn names_an_identifier(rule: &Rule) -> bool {
    rule.selector.terms.iter().any(|term| matches!(term, Term::Id(_)))
}

/// What becomes of the open files of a container that runs at which CRIU would fail.
#[derive(Debug)]
pub struct SeenAhead {
    /// Those that CRIU would be kept from, by their first holders.
    pub aside: HashSet<Holder>,
    /// Those that are mapped too, so that it cannot be.
    pub mapped: HashSet<Holder>,
}

/// Looks which open files CRIU would be kept from.
pub fn set_aside(
    container: &Container,
    rules: Vec<Rule>,
    rest: OnUnsupported,
    settings: DumpSettings,
    finder: Finder,
) -> Result<SeenAhead> {
    let cover = Cover { rules, rest, settings, finder, is_needed: Cell::new(true) };
    let failing = cover.failing(&container.dumped_processes()?)?;
    let holders = |is_meant: &dyn Fn(&Failing) -> bool| {
        let meant = failing.iter().filter(|one| is_meant(one));
        meant.filter_map(|one| one.file.holders.first().copied()).collect()
    };
    Ok(SeenAhead {
        aside: holders(&|one| cover.by(one).is_some()),
        mapped: holders(&|one| one.is_mapped),
    })
}

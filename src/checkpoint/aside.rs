//! Open files that CRIU cannot dump: who covers them, and what is written down of them.
//!
//! A file is *covered* when a rule says what takes its place at a restore, or when all such files
//! are by `on-unsupported`. Then CRIU is kept from looking at it ([`crate::criu::plugin`]), and the
//! manifest says what it was, since CRIU's images do not. A file that nobody covers is refused
//! before the container is touched, all of them in one message; but not if it is such a one only
//! for the moment, or if an option of CRIU's allows it: CRIU has the last word on those.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};

use super::Request;
use crate::config::{OnUnsupported, Substitution};
use crate::container::{Container, Identity, Process};
use crate::criu::config::standing_options;
use crate::criu::door::real_criu;
use crate::criu::plugin::SetAside;
use crate::files::dumpable::{Described, Detail, Obstacle, Settings, Verdict, verdict};
use crate::files::facts::Facts;
use crate::files::{Holder, OpenFile};
use crate::hint::WithHint;
use crate::restore::{parse_each, standing_rules};
use crate::runtime::Runtime;
use crate::store::manifest::Unsupported;
use crate::substitute::{Origin, Rule, Term};

/// What CRIU is kept from looking at.
#[derive(Debug, Default)]
pub(super) struct Aside {
    pub(super) chosen: Vec<SetAside>,
    pub(super) records: Vec<Unsupported>,
}

/// Who covers which open files.
#[derive(Debug)]
pub(super) struct Cover {
    rules: Vec<Rule>,
    rest: OnUnsupported,
    settings: Settings,
    /// Whether it is worth looking again when the container is frozen.
    is_needed: bool,
}

impl Cover {
    /// Makes sure that no open file will stop the dump.
    ///
    /// # Errors
    /// All those that would.
    pub(super) fn of(request: &Request, container: &Container) -> Result<Self> {
        let mut cover = Self {
            rules: rules(container, &request.id, &request.configured, &request.rules)?,
            rest: request.on_unsupported,
            settings: with_standing(&settings(request)?, &request.runtime)?,
            is_needed: false,
        };
        let failing = cover.failing(&container.dumped_processes()?)?;
        cover.is_needed = !failing.is_empty() || cover.rest == OnUnsupported::Substitute;
        let stopping: Vec<_> =
            failing.iter().filter(|one| one.is_lasting() && cover.by(one).is_none()).collect();
        if stopping.is_empty() { Ok(cover) } else { Err(refusal(&stopping)) }
    }

    /// Whether CRIU is told to keep locks.
    pub(super) fn keeps_locks(&self) -> bool {
        self.settings.file_locks
    }

    /// Chooses the files that CRIU is kept from. The last time it is part of the pause: where nothing
    /// was found at the beginning, it is not looked for again.
    pub(super) fn choose(&self, container: &Container) -> Result<Aside> {
        let mut aside = Aside::default();
        if !self.is_needed {
            return Ok(aside);
        }
        for one in self.failing(&container.dumped_processes()?)? {
            let Some(by) = self.by(&one) else { continue };
            let rule = by.rule().map(Rule::to_string);
            let why = one.in_words();
            aside.chosen.push(one.aside);
            aside.records.push(Unsupported { file: one.file, why, rule });
        }
        Ok(aside)
    }

    /// The open files at which CRIU would fail.
    fn failing(&self, processes: &[Process]) -> Result<Vec<Failing>> {
        let hosts: HashMap<i32, i32> =
            processes.iter().map(|process| (process.inner, process.host)).collect();
        let mut mapped = None;
        let mut failing = Vec::new();
        let facts = Facts::of(processes)?;
        let settings = settled(&self.settings, &facts)?;
        for known in facts.files {
            let Verdict::Fails(obstacles) = verdict(&known.described, &settings) else {
                continue;
            };
            let Some(holder) = known.file.holders.first() else { continue };
            let Some(host) = hosts.get(&holder.pid) else { continue };
            // What is gone already stops nothing.
            let Ok(aside) = SetAside::of(*host, holder.fd) else { continue };
            let mapped = mapped.get_or_insert_with(|| mapped_files(processes));
            let is_mapped = mapped.contains(&aside.identity());
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
struct Failing {
    file: OpenFile,
    obstacles: Vec<Obstacle>,
    aside: SetAside,
    is_mapped: bool,
}

impl Failing {
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

/// The files that processes have mapped, by device and inode.
fn mapped_files(processes: &[Process]) -> HashSet<(u64, u64)> {
    let maps = processes.iter().map(|process| format!("/proc/{}/map_files", process.host));
    let links = maps.filter_map(|maps| fs::read_dir(maps).ok()).flatten().flatten();
    let found = links.filter_map(|link| fs::metadata(link.path()).ok());
    found.map(|file| (file.dev(), file.ino())).collect()
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

/// What CRIU is told, as far as it decides over open files.
fn settings(request: &Request) -> Result<Settings> {
    let has = |flag: &str| request.flags.iter().any(|given| given == flag);
    Ok(Settings {
        tcp_established: has("--tcp-established"),
        tcp_skip_in_flight: has("--tcp-skip-in-flight"),
        file_locks: has("--file-locks"),
        ext_unix_sk: has("--ext-unix-sk"),
        shell_job: has("--shell-job"),
        link_remap: has("--link-remap"),
        bpf_maps: false,
        ghost_limit: bytes_of(&request.ghost_limit),
    })
}

/// The settings with what has to be looked up, if one of the open files makes it matter.
pub fn settled(settings: &Settings, facts: &Facts) -> Result<Settings> {
    settled_by(settings, facts.files.iter().map(|known| &known.described), saves_bpf_maps)
}

fn settled_by<'a>(
    settings: &Settings,
    mut files: impl Iterator<Item = &'a Described>,
    saves_bpf_maps: impl FnOnce() -> Result<bool>,
) -> Result<Settings> {
    let mut settings = settings.clone();
    if files.any(|file| matches!(file.detail, Detail::BpfMap(_))) {
        settings.bpf_maps = saves_bpf_maps()?;
    }
    Ok(settings)
}

/// Whether CRIU needs libbpf: without it it does not know BPF maps (`dump_one_file` in
/// criu/files.c), and no feature check tells. The whole program is read for that, once.
fn saves_bpf_maps() -> Result<bool> {
    const LIBRARY: &[u8] = b"libbpf.so";
    static SAVES: OnceLock<bool> = OnceLock::new();
    if let Some(known) = SAVES.get() {
        return Ok(*known);
    }
    let path = real_criu()?;
    let program = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let saves = program.windows(LIBRARY.len()).any(|bytes| bytes == LIBRARY);
    Ok(*SAVES.get_or_init(|| saves))
}

/// What the administrator's files for CRIU allow as well.
pub fn with_standing(settings: &Settings, runtime: &Runtime) -> Result<Settings> {
    let mut settings = settings.clone();
    for option in standing_options(&runtime.name())? {
        match option.as_str() {
            "tcp-established" | "tcp-close" => settings.tcp_established = true,
            "skip-in-flight" | "tcp-skip-in-flight" => settings.tcp_skip_in_flight = true,
            "file-locks" => settings.file_locks = true,
            "ext-unix-sk" => settings.ext_unix_sk = true,
            "shell-job" => settings.shell_job = true,
            "link-remap" => settings.link_remap = true,
            _ => {}
        }
    }
    Ok(settings)
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
    settings: Settings,
) -> Result<SeenAhead> {
    let cover = Cover { rules, rest, settings, is_needed: true };
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

/// A size as CRIU writes it.
pub fn bytes_of(text: &str) -> u64 {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match text.as_bytes().last() {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        _ => 0,
    };
    digits.parse::<u64>().map_or(u64::MAX, |number| number.saturating_mul(1 << shift))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::FileKind;
    use crate::files::dumpable::tests::{file, strict};

    #[test]
    fn criu_is_looked_at_only_for_the_sake_of_a_bpf_map() {
        let plain = file(FileKind::Reg, Detail::Plain);
        let map = file(FileKind::Bpfmap, Detail::BpfMap(1));
        let settings = Settings { bpf_maps: false, ..strict() };
        let never = || panic!("there is no BPF map");
        assert!(!settled_by(&settings, [&plain].into_iter(), never).unwrap().bpf_maps);
        let saves = || Ok(true);
        assert!(settled_by(&settings, [&plain, &map].into_iter(), saves).unwrap().bpf_maps);
    }
}

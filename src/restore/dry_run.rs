//! What a restore would do, found out without doing any of it.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

use super::{
    Examined, Request, bounds, check_substitutions, examine, held, policies::Remedy, preflight,
    reconcile::Part,
};
use crate::bytes::ByteString;
use crate::container::Bundle;
use crate::files::{OpenFile, Table};
use crate::hint::WithHint;
use crate::snapshot::{Plan, Verb};
use crate::store::lock::Lock;
use crate::store::manifest::{Manifest, State};
use crate::substitute::{Resolved, Rule};

/// What a restore would do.
#[derive(Debug, Serialize)]
pub struct Forecast {
    /// The version of this form: 1.
    pub schema: u32,
    /// The container.
    pub container: String,
    /// Every open file, by its identifier.
    pub files: Vec<Fate>,
    /// What policies do about files that are not as they were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Remedy>,
    /// Every file system that is put back.
    pub parts: Vec<Changes>,
}

/// What would become of an open file.
#[derive(Debug, Serialize)]
pub struct Fate {
    /// The open file.
    #[serde(flatten)]
    pub file: OpenFile,
    /// What takes its place; none if it stays what it was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub substitute: Option<Substitute>,
}

/// What would take an open file's place.
#[derive(Debug, Serialize)]
pub struct Substitute {
    /// The source.
    pub source: String,
    /// The rule that won.
    #[serde(flatten)]
    pub rule: Said,
    /// Why it won.
    pub why: String,
    /// The rules that lost, the strongest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub beaten: Vec<Said>,
}

/// A rule and where it stands.
#[derive(Debug, Serialize)]
pub struct Said {
    /// The rule, as the grammar writes it.
    pub rule: String,
    /// Who says it.
    pub from: String,
}

/// What would be changed on a file system.
#[derive(Debug, Serialize)]
pub struct Changes {
    /// Where the container sees it.
    pub destination: ByteString,
    /// How many paths of each kind: `remove`, `create`, `replace`, `link`, `attributes`.
    pub paths: BTreeMap<&'static str, usize>,
    /// What could not be compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Finds out what [`super::restore`] would do. The container of that name may be running; then its
/// files are those of this moment.
///
/// # Errors
/// What would be refused before anything is changed. No socket is connected and no program is run,
/// so those may still refuse.
pub fn dry_run(request: &Request, _held: &Lock) -> Result<Forecast> {
    let images = fs::canonicalize(&request.images)
        .with_context(|| format!("opening the checkpoint {}", request.images.display()))?;
    let manifest = Manifest::read(&images)?;
    if manifest.state == State::Staged {
        return Err(anyhow!("the checkpoint {} was interrupted before its end", images.display())
            .hint("a restore finishes it first, which a dry run does not"));
    }
    manifest.verify(&images, request.trust)?;
    let bundle = Bundle::read(&request.bundle)?;
    let examined = examine(request, &manifest, &bundle, &images)?;
    let Examined { resolved, parts, .. } = &examined;
    let plans = parts.iter().map(Part::plan).collect::<Result<Vec<_>>>()?;
    bounds::ensure_within(parts, &plans, &bundle, &request.allow)?;
    let files = preflight::View::of(parts, &plans, &bundle)?;
    let policies = preflight::check(request, &manifest, &bundle, &images, &files, resolved)?;
    held::ensure_same(&manifest, &bundle, resolved, &policies)?;
    check_substitutions(request, &examined, &files, &images)?;
    Ok(Forecast {
        schema: 1,
        container: request.id.clone(),
        files: fates(Table::read(&images)?, resolved),
        policies,
        parts: parts.iter().zip(&plans).map(|(part, plan)| changes(part, plan)).collect(),
    })
}

fn fates(table: Table, resolved: &[Resolved]) -> Vec<Fate> {
    let fate = |file: OpenFile| {
        let winner = resolved.iter().find(|resolved| resolved.file.id == file.id);
        Fate { substitute: winner.map(Substitute::of), file }
    };
    table.files.into_iter().map(fate).collect()
}

impl Substitute {
    fn of(resolved: &Resolved) -> Self {
        Self {
            source: resolved.rule.source.to_string(),
            rule: Said::by(&resolved.rule),
            why: resolved.why(),
            beaten: resolved.beaten.iter().map(|rule| Said::by(rule)).collect(),
        }
    }
}

impl Said {
    fn by(rule: &Rule) -> Self {
        Self { rule: rule.to_string(), from: rule.origin.to_string() }
    }
}

fn changes(part: &Part, plan: &Plan<'_>) -> Changes {
    let name = |verb| match verb {
        Verb::Remove => "remove",
        Verb::Create => "create",
        Verb::Replace => "replace",
        Verb::Link => "link",
        Verb::Attributes => "attributes",
    };
    Changes {
        destination: part.destination.as_path().into(),
        paths: plan.summary().into_iter().map(|(verb, count)| (name(verb), count)).collect(),
        notes: plan.notes().to_vec(),
    }
}

impl Forecast {
    /// The headings of [`Forecast::rows`].
    pub const HEADINGS: [&'static str; 6] = ["ID", "TYPE", "HOLDERS", "NAME", "BECOMES", "BECAUSE"];

    /// A row for each open file.
    pub fn rows(&self) -> impl Iterator<Item = [String; 6]> + '_ {
        self.files.iter().map(|fate| {
            let [id, kind, _, _, holders, name] = fate.file.row();
            let (becomes, because) = match &fate.substitute {
                Some(one) => (
                    one.source.clone(),
                    format!("{} (from {}): {}", one.rule.rule, one.rule.from, one.why),
                ),
                None => ("what it was".to_owned(), String::new()),
            };
            [id, kind, holders, name, becomes, because]
        })
    }

    /// A line for each policy that is obeyed, and for each file system.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        let policies = self.policies.iter().map(Remedy::line);
        policies.chain(self.parts.iter().map(|part| {
            let counts: Vec<_> =
                part.paths.iter().map(|(verb, count)| format!("{verb} {count}")).collect();
            let counts =
                if counts.is_empty() { "nothing to change".to_owned() } else { counts.join(", ") };
            let notes: String = part.notes.iter().map(|note| format!("\n  {note}")).collect();
            format!("{}: {counts}{notes}", part.destination)
        }))
    }
}

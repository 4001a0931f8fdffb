//! What a restore would do, found out without doing any of it.

use std::collections::BTreeMap;

use anyhow::Result;
use serde::Serialize;

use super::plan::RestorePlan;
use super::reconcile::Target;
use super::remedies::Remedy;
use crate::bytes::ByteString;
use crate::files::{OpenFile, Table};
use crate::snapshot::{self, Verb};
use crate::substitute::{Resolved, Rule};

/// What a restore would do.
#[derive(Debug, Serialize)]
pub struct Forecast {
    /// The version of this form: 1.
    pub schema: u32,
    /// The container.
    pub container: String,
    /// Every open file, by its identifier.
    pub files: Vec<FileFate>,
    /// What policies do about files that are not as they were.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<Remedy>,
    /// Every file system that is put back.
    pub parts: Vec<PartChanges>,
}

/// What would become of an open file.
#[derive(Debug, Serialize)]
pub struct FileFate {
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
pub struct PartChanges {
    /// Where the container sees it.
    pub destination: ByteString,
    /// How many paths of each kind: `remove`, `create`, `replace`, `link`, `attributes`.
    pub paths: BTreeMap<&'static str, usize>,
    /// What could not be compared.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl RestorePlan<'_> {
    /// Says what would be done.
    pub fn forecast(&self) -> Result<Forecast> {
        Ok(Forecast {
            schema: 1,
            container: self.examined.request.id.clone(),
            files: fates(self.table()?, &self.examined.rules.resolved),
            policies: self.remedies.clone(),
            parts: self.changes().map(|(part, changes)| changes_of(part, changes)).collect(),
        })
    }
}

fn fates(table: Table, resolved: &[Resolved]) -> Vec<FileFate> {
    let fate = |file: OpenFile| {
        let winner = resolved.iter().find(|resolved| resolved.file.id == file.id);
        FileFate { substitute: winner.map(Substitute::of), file }
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

fn changes_of(part: &Target, plan: &snapshot::Plan<'_>) -> PartChanges {
    let name = |verb| match verb {
        Verb::Remove => "remove",
        Verb::Create => "create",
        Verb::Replace => "replace",
        Verb::Link => "link",
        Verb::Attributes => "attributes",
    };
    PartChanges {
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

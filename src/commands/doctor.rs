//! `ocicle doctor`.

use std::path::Path;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;

use super::Format;
use crate::config::Config;
use crate::doctor::{Diagnosis, Health, examine};
use crate::output::{self, Tone, toned};

/// What can be asked of an examination.
#[derive(Debug, clap::Args)]
pub struct DoctorOptions {
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    /// Print only what is missing or could be better
    #[arg(short, long)]
    quiet: bool,
}

/// Prints what this machine has and lacks; fails where something is missing.
pub fn run(config: &Result<Config>, store: &Path, options: &DoctorOptions) -> Result<ExitCode> {
    let findings = examine(config, store);
    let healthy = findings.iter().all(|finding| finding.verdict != Health::Missing);
    if options.format == Format::Json {
        output::json(&json!({ "schema": 1, "healthy": healthy, "findings": findings }))?;
    } else {
        let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or_default();
        let told =
            findings.iter().filter(|finding| !options.quiet || finding.verdict != Health::Good);
        told.for_each(|finding| output::line(&line(finding, width)));
        if !options.quiet {
            output::line("");
            output::line(&conclusion(&findings));
        }
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What all of it comes to.
fn conclusion(findings: &[Diagnosis]) -> String {
    let of = |verdict: Health| -> Vec<&str> {
        let all = findings.iter().filter(|finding| finding.verdict == verdict);
        all.map(|finding| finding.what.as_str()).collect()
    };
    let (missing, advice) = (of(Health::Missing), of(Health::Advice));
    match (&missing[..], &advice[..]) {
        ([], []) => "everything is as it should be".to_owned(),
        ([], _) => format!("ocicle works here; look at: {}", advice.join(", ")),
        _ => format!("ocicle does not work here; missing: {}", missing.join(", ")),
    }
}

fn line(finding: &Diagnosis, width: usize) -> String {
    let (tone, verdict) = match finding.verdict {
        Health::Good => (Tone::Good, "good"),
        Health::Advice => (Tone::Warning, "advice"),
        Health::Missing => (Tone::Bad, "missing"),
    };
    let advice = finding.advice.as_ref().map_or(String::new(), |advice| format!(" ({advice})"));
    let verdict = toned(tone, &format!("{verdict:7}"));
    format!("{verdict}  {:width$}  {}{advice}", finding.what, finding.found)
}

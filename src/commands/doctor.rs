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
    format: Format,
}

/// Prints what this machine has and lacks; fails where something is missing.
pub fn run(config: &Result<Config>, store: &Path, options: &DoctorOptions) -> Result<ExitCode> {
    let findings = examine(config, store);
    let healthy = findings.iter().all(|finding| finding.verdict != Health::Missing);
    if options.format == Format::Json {
        output::json(&json!({ "schema": 1, "healthy": healthy, "findings": findings }))?;
    } else {
        let width = findings.iter().map(|finding| finding.what.len()).max().unwrap_or_default();
        findings.iter().for_each(|finding| output::line(&line(finding, width)));
    }
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

//! `ocicle check`.

use std::process::ExitCode;

use anyhow::{Context, Result};

use super::checkpoint::{CoverOptions, CriuOptions};
use super::naming::Named;
use super::{Format, Machine};
use crate::check::{self, CheckReport, Finding};
use crate::container::{Shared, Volumes, ensure_name};
use crate::machine;
use crate::output;
use crate::restorable::Restorable;

/// What can be asked of a check.
#[derive(Debug, clap::Args)]
pub struct CheckOptions {
    /// The container
    #[arg(value_name = "CONTAINER")]
    id: String,
    /// Of a checkpoint after which the container goes on
    #[arg(short = 'R', long)]
    leave_running: bool,
    /// Which volumes would belong to the checkpoint, as for `ocicle checkpoint`
    #[arg(long, value_name = "WHICH")]
    volumes: Option<Volumes>,
    #[command(flatten)]
    cover: CoverOptions,
    /// What would be done about volumes that another container can write too
    #[arg(long, value_enum, value_name = "RULE")]
    shared: Option<Shared>,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
    #[command(flatten)]
    criu: CriuOptions,
}

impl CheckOptions {
    /// Looks at what the command line alone shows.
    pub fn check(&self) -> Result<()> {
        self.cover.check().with_context(|| format!("checking {}", self.id))
    }
}

/// The exit status when a checkpoint would fail.
const WOULD_FAIL: u8 = 3;

/// Prints whether a checkpoint would work, and of every open file what would become of it.
pub fn run(machine: &Machine, options: &CheckOptions) -> Result<ExitCode> {
    let context = || format!("checking {}", options.id);
    machine::ensure_capable().and_then(|()| machine::ensure_criu()).with_context(context)?;
    let Named { machine, id } = machine.named(&options.id).with_context(context)?;
    let (machine, id) = (&machine, &id);
    ensure_name(id)?;
    let settings = options.criu.settings(&machine.config);
    let configured = machine.config.check(machine.runtime.clone(), id, settings);
    let request = check::CheckRequest {
        rules: options.cover.substitute.clone(),
        on_unsupported: options.cover.rest(&machine.config),
        volumes: configured.volumes.asked(options.volumes.clone()),
        shared: options.shared.unwrap_or(machine.config.shared),
        ..configured
    };
    let container = machine.discover(id).with_context(context)?;
    let in_place = machine.config.in_place(&machine.runtime, &container);
    let restorable: Option<&dyn Restorable> = match options.leave_running {
        true => None,
        false => Some(&in_place),
    };
    let report = check::check(&request, &container, restorable).with_context(context)?;
    match options.format {
        Format::Json => output::json(&serde_json::to_value(&report)?)?,
        Format::Table => print(&report),
    }
    Ok(if report.works { ExitCode::SUCCESS } else { ExitCode::from(WOULD_FAIL) })
}

fn print(report: &CheckReport) {
    let mut table = output::TextTable::new(&CheckReport::HEADINGS);
    report.rows().for_each(|row| table.row(row.to_vec()));
    table.print();
    section("would fail", report.all_problems());
    section("note", report.remarks.iter());
    output::line("");
    output::line(&conclusion(report));
}

fn section<'a>(heading: &str, findings: impl Iterator<Item = &'a Finding>) {
    for finding in findings {
        output::line(&format!("\n{heading}: {}", finding.what));
        if let Some(help) = &finding.help {
            output::line(&format!("  helps: {help}"));
        }
    }
}

fn conclusion(report: &CheckReport) -> String {
    let id = &report.container;
    match report.remedy() {
        _ if report.works => format!("a checkpoint of {id} would work"),
        Some(options) => format!("a checkpoint of {id} would work with {}", options.join(" ")),
        None => format!("a checkpoint of {id} would fail"),
    }
}

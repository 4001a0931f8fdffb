//! `ocicle inspect`.

mod bars;
mod processes;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Format;
use super::naming::{Located, locate};
use crate::bytes::ByteString;
use crate::engines::stored_image;
use crate::files::OpenFile;
use crate::inspect::{ArchiveForm, InspectReport, PartSummary, inspect, inspect_unpacked};
use crate::output::{self, TextTable, Tone, toned};
use crate::store::versions::{Store, Whose};

/// What can be asked of a look into a checkpoint.
#[derive(Debug, clap::Args)]
pub struct InspectOptions {
    /// A checkpoint of the store (web, web@v2), a directory of images, a tar archive as podman
    /// exports it (plain, gzip or zstd), an image of podman's by its name, or one that was saved as
    /// an OCI layout, an OCI archive or an archive of docker's
    #[arg(value_name = "CHECKPOINT")]
    what: PathBuf,
    /// Draw what happened when, as bars
    #[arg(long)]
    timeline: bool,
    /// How to print it
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,
}

/// Prints what is in a checkpoint.
pub fn run(store: &Store, whose: Whose<'_>, options: &InspectOptions) -> Result<()> {
    let report = look_into(store, whose, &options.what)
        .with_context(|| format!("inspecting {}", options.what.display()))?;
    if options.format == Format::Json {
        return output::json(&serde_json::to_value(&report)?);
    }
    print_origin(&report);
    if options.timeline {
        section("TIMELINE", &bars::lines(&report.timeline));
        if let Some(record) = &report.ocicle {
            let milliseconds = record.freeze.milliseconds;
            output::line(&format!("\nthe container stood still for {milliseconds:.1} ms"));
        }
        return Ok(());
    }
    section("PROCESSES", &processes::lines(&report.processes));
    print_files(&report);
    print_parts(&report.parts);
    print_sizes(&report);
    let warnings = report.warnings.iter().map(|text| toned(Tone::Warning, text));
    section("WARNINGS", &warnings.collect::<Vec<_>>());
    Ok(())
}

/// A checkpoint of the store, or what is at a path, or an image of podman's.
fn look_into(store: &Store, whose: Whose<'_>, what: &Path) -> Result<InspectReport> {
    let Some(name) = what.to_str() else { return inspect(what) };
    let refused = match locate(store, whose, name) {
        Ok(Located::Stored(entry)) => return inspect(&entry.directory),
        Ok(Located::Path(path)) => return inspect(&path),
        Err(error) => error,
    };
    match stored_image(name) {
        Some(image) => inspect_unpacked(&image.layer, &image.reference, &image.manifest),
        None if name.contains('/') => inspect(what),
        None => Err(refused),
    }
}

fn section(heading: &str, lines: &[String]) {
    if !lines.is_empty() {
        output::line("");
        output::line(&toned(Tone::Heading, heading));
        lines.iter().for_each(|line| output::line(line));
    }
}

fn print_origin(report: &InspectReport) {
    let origin = &report.origin;
    let shown = |field: &Option<ByteString>| field.as_ref().map(ToString::to_string);
    let engine = shown(&origin.engine).map(|engine| match &origin.engine_version {
        Some(version) => format!("{engine} {version}"),
        None => engine,
    });
    let left = report.ocicle.as_ref().map(|record| {
        let milliseconds = record.freeze.milliseconds;
        format!("{}, after {milliseconds:.0} ms frozen", record.left.as_str())
    });
    let rows = [
        ("container", shown(&origin.container)),
        ("id", shown(&origin.id)),
        ("pod", shown(&origin.pod)),
        ("engine", engine),
        ("image", shown(&origin.image)),
        ("saved as", shown(&origin.reference)),
        ("created", shown(&origin.created)),
        ("left", left),
        ("ocicle", report.ocicle.as_ref().map(|record| record.version.clone())),
        ("runtime", shown(&origin.runtime)),
        ("criu", shown(&origin.criu)),
        ("kernel", shown(&origin.kernel)),
        ("form", Some(form_text(report))),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            output::line(&format!("{}  {value}", toned(Tone::Heading, &format!("{name:9}"))));
        }
    }
}

fn form_text(report: &InspectReport) -> String {
    let form = match report.form {
        ArchiveForm::Directory => "directory",
        ArchiveForm::Archive => "archive",
        ArchiveForm::Image => "image",
    };
    match report.compression {
        Some(compression) => format!("{form}, {compression:?}").to_lowercase(),
        None => form.to_owned(),
    }
}

fn print_files(report: &InspectReport) {
    let (sockets, files): (Vec<&OpenFile>, _) =
        report.files.iter().partition(|file| file.kind.is_socket());
    for (heading, files) in [("OPEN FILES", files), ("SOCKETS", sockets)] {
        if !files.is_empty() {
            output::line("");
            output::line(&toned(Tone::Heading, heading));
            let mut table = TextTable::new(&OpenFile::HEADINGS);
            files.iter().for_each(|file| table.row(file.row().to_vec()));
            table.print();
        }
    }
}

fn print_parts(parts: &[PartSummary]) {
    if parts.is_empty() {
        return;
    }
    output::line("");
    output::line(&toned(Tone::Heading, "PARTS"));
    let mut table = TextTable::new(&["NAME", "LAYERS", "SIZE", "DESTINATION"]);
    for part in parts {
        table.row(vec![
            ByteString::from(&*part.name).to_string(),
            part.layers.to_string(),
            output::bytes(part.bytes),
            part.destination.to_string(),
        ]);
    }
    table.print();
}

fn print_sizes(report: &InspectReport) {
    let what = |name| match name {
        "memory" => "memory",
        "images" => "CRIU's other images",
        "files" => "files, by ocicle",
        _ => "beside the images, by the engine",
    };
    let rows = ["memory", "images", "files", "engine"].into_iter().filter_map(|name| {
        let size = *report.sizes.get(name).filter(|size| **size > 0)?;
        Some(format!("{:>12}  {}", output::bytes(size), what(name)))
    });
    section("SIZES", &rows.collect::<Vec<_>>());
}

//! What is in a checkpoint, wherever it is: a directory, an archive, an image.
//!
//! Nothing is unpacked. An archive is read once from front to back ([`tar`], [`content`]); of it
//! only small files are [kept](gather), and the few pages of [memory](usage) that hold the processes'
//! command lines. All of it is hostile: everything has a limit, and names are escaped.

mod content;
mod gather;
mod origin;
mod tar;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use serde::Serialize;

pub use content::CompressedAs;
use gather::Gathered;
pub use origin::Provenance;

use crate::bytes::ByteString;
use crate::criu::images::image::{Image, ImageKind};
use crate::criu::images::{DumpStats, Images, TaskImages};
use crate::files::{OpenFile, Table};
use crate::hint::WithHint;
use crate::store::STAGING;
use crate::store::manifest::{self, Freeze, Left, Manifest, PartRecord, Phase, State};
use crate::sys::pid::InnerPid;

/// The version of the JSON form.
const SCHEMA: u32 = 1;

/// What a checkpoint lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ArchiveForm {
    /// A directory with CRIU's images.
    Directory,
    /// A tar archive, as podman and Kubernetes export it.
    Archive,
    /// An image, as a directory or an archive.
    Image,
}

/// Everything that is told of a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct InspectReport {
    /// The version of this form.
    pub schema: u32,
    /// What it lies in.
    pub form: ArchiveForm,
    /// How it was compressed; of an image, its layer.
    pub compression: Option<CompressedAs>,
    /// The container and who made it.
    #[serde(flatten)]
    pub origin: Provenance,
    /// What ocicle recorded; nothing if it took no part.
    pub ocicle: Option<Record>,
    /// The processes, in the order of CRIU's images.
    pub processes: Vec<DumpedProcess>,
    /// The open files and sockets.
    pub files: Vec<OpenFile>,
    /// The file systems that belong to it.
    pub parts: Vec<PartSummary>,
    /// Bytes, by what they are for.
    pub sizes: BTreeMap<&'static str, u64>,
    /// What CRIU says of the dump.
    pub dump: Option<DumpStats>,
    /// What happened when, in milliseconds.
    pub timeline: Vec<Phase>,
    /// What a restore should know.
    pub warnings: Vec<String>,
}

/// What ocicle recorded of a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// The version that made it.
    pub version: String,
    /// What became of the container.
    pub left: Left,
    /// How it was frozen.
    pub freeze: Freeze,
}

/// A process of a checkpoint, with numbers as the container sees them.
#[derive(Clone, Debug, Serialize)]
pub struct DumpedProcess {
    /// The process.
    pub pid: InnerPid,
    /// Its parent.
    pub ppid: InnerPid,
    /// Its user.
    pub uid: Option<u32>,
    /// How many threads it has.
    pub threads: usize,
    /// Its name.
    pub name: ByteString,
    /// Its command line, if its memory is here.
    pub command: Option<Vec<ByteString>>,
    /// Its own memory in the checkpoint, in bytes.
    pub memory: Option<u64>,
}

/// A file system that belongs to a checkpoint.
#[derive(Clone, Debug, Serialize)]
pub struct PartSummary {
    /// Its name.
    pub name: String,
    /// Where the container sees it.
    pub destination: ByteString,
    /// How many layers it has.
    pub layers: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// Looks into a checkpoint.
pub fn inspect(path: &Path) -> Result<InspectReport> {
    let gathered = Gathered::of(path).with_context(|| format!("reading {}", path.display()))?;
    let is_directory = path.is_dir();
    match &gathered.layer {
        Some(layer) => {
            report(&layer.gathered, ArchiveForm::Image, Provenance::of_image(&gathered, layer))
        }
        None if is_directory => report(&gathered, ArchiveForm::Directory, Provenance::default()),
        None => report(&gathered, ArchiveForm::Archive, Provenance::default()),
    }
    .with_context(|| format!("reading {}", path.display()))
}

/// Looks into an image whose layer somebody has unpacked.
pub fn inspect_unpacked(layer: &Path, reference: &str, manifest: &[u8]) -> Result<InspectReport> {
    let reading = || format!("reading {}", layer.display());
    let gathered = Gathered::of(layer).with_context(reading)?;
    let origin = Provenance::of_manifest(reference, manifest);
    report(&gathered, ArchiveForm::Image, origin).with_context(reading)
}

fn report(gathered: &Gathered, form: ArchiveForm, origin: Provenance) -> Result<InspectReport> {
    let images = gathered.images().ok_or_else(|| {
        anyhow!("it holds no checkpoint: no inventory.img of CRIU's is in it").hint(gather::WANTED)
    })?;
    let images = Images::read(&images)?;
    let mut warnings = Vec::new();
    let manifest = manifest_in(gathered, &mut warnings);
    let table = table_in(gathered, &images);
    warn_of_files(&images, &table, &mut warnings);
    warn_of_sizes(gathered, manifest.as_ref(), &mut warnings);
    warnings.extend(gathered.has_cut_diff.then(|| of_cut_diff(manifest.as_ref())));
    let lost = manifest.iter().flat_map(|manifest| &manifest.lost_events);
    warnings.extend(lost.map(ToString::to_string));
    let not_held = manifest.iter().flat_map(|manifest| &manifest.not_held);
    warnings.extend(not_held.map(ToString::to_string));
    Ok(InspectReport {
        schema: SCHEMA,
        form,
        compression: gathered.compression,
        origin: origin.or_of(gathered, manifest.as_ref()),
        ocicle: manifest.as_ref().map(Record::of),
        processes: images.tasks.iter().map(|task| process(task, gathered)).collect(),
        files: table.files,
        parts: manifest
            .iter()
            .flat_map(|manifest| manifest.parts.iter().map(PartSummary::of))
            .collect(),
        sizes: sizes(gathered),
        dump: dump_stats(gathered).or(manifest.as_ref().and_then(|manifest| manifest.criu)),
        timeline: manifest.map(|manifest| manifest.timeline).unwrap_or_default(),
        warnings,
    })
}

impl Record {
    fn of(manifest: &Manifest) -> Self {
        Self {
            version: manifest.ocicle.clone(),
            left: manifest.left,
            freeze: manifest.freeze.clone(),
        }
    }
}

impl PartSummary {
    fn of(part: &manifest::PartRecord) -> Self {
        let layers = part.files.as_ref().map(|files| &files.layers);
        Self {
            name: part.name.clone(),
            destination: part.destination.clone(),
            layers: layers.map_or(0, Vec::len),
            bytes: layers
                .into_iter()
                .flatten()
                .map(|layer| layer.size)
                .fold(0, u64::saturating_add),
        }
    }
}

fn process(task: &TaskImages, gathered: &Gathered) -> DumpedProcess {
    let memory = gathered.memory();
    DumpedProcess {
        pid: task.tree.pid,
        ppid: task.tree.ppid,
        uid: task.uid,
        threads: task.tree.threads.len(),
        name: task.name.clone(),
        command: memory.and_then(|memory| memory.command_of(task.tree.pid)),
        memory: memory.and_then(|memory| memory.size_of(task.tree.pid)),
    }
}

/// The manifest, as far as it can be believed and understood.
fn manifest_in(gathered: &Gathered, warnings: &mut Vec<String>) -> Option<Manifest> {
    let text = gathered.near_images(manifest::NAME);
    let sum = gathered.near_images(manifest::DIGEST);
    let Some(text) = text else {
        warnings.push(match gathered.sizes.keys().any(|path| path.contains(STAGING)) {
            true => "the checkpoint was interrupted: it cannot be restored".to_owned(),
            false => "the runtime made it alone: its files are not of the same instant as its \
                      memory"
                .to_owned(),
        });
        return None;
    };
    match Manifest::checked(text, sum.unwrap_or_default()) {
        Ok(manifest) => {
            if manifest.state == State::Staged {
                warnings.push("it is not packed yet: the next restore does that".to_owned());
            }
            Some(manifest)
        }
        Err(error) => {
            warnings.push(format!("ocicle's manifest: {error:#}"));
            None
        }
    }
}

/// The table that the checkpoint keeps, which knows files from outside by name; else CRIU's.
fn table_in(gathered: &Gathered, images: &Images) -> Table {
    let kept = gathered.near_images(crate::files::TABLE);
    let kept = kept.and_then(|text| serde_json::from_slice::<Table>(text).ok());
    kept.filter(|table| table.schema == crate::files::SCHEMA).unwrap_or_else(|| Table::of(images))
}

fn warn_of_files(images: &Images, table: &Table, warnings: &mut Vec<String>) {
    for file in table.files.iter().filter(|file| file.must_substitute) {
        warnings.push(format!(
            "{} ({}) is from outside the container: a restore has to replace it (-s {}=…)",
            file.name,
            file.holders_text(),
            file.id
        ));
    }
    if !images.locks.is_empty() {
        warnings.push("processes hold file locks: the runtime wants --file-locks".to_owned());
    }
    let connected = |file: &&OpenFile| {
        let name = file.name.to_string();
        name.starts_with("tcp") && name.contains(" -> ")
    };
    if table.files.iter().any(|file| connected(&file)) {
        warnings.push("it has TCP connections: the runtime wants --tcp-established".to_owned());
    }
}

/// What the manifest names has to be there.
fn warn_of_sizes(gathered: &Gathered, manifest: Option<&Manifest>, warnings: &mut Vec<String>) {
    let prefix = match gathered.images_path() {
        Some("") | None => String::new(),
        Some(directory) => format!("{directory}/"),
    };
    for record in manifest.iter().flat_map(|manifest| manifest.all_files()) {
        match gathered.sizes.get(&format!("{prefix}{}", record.name)) {
            None => warnings.push(format!("{} is missing", ByteString::from(&*record.name))),
            Some(size) if *size != record.size => warnings.push(format!(
                "{} has {size} bytes instead of {}",
                ByteString::from(&*record.name),
                record.size
            )),
            Some(_) => {}
        }
    }
    let sparse: BTreeSet<_> =
        gathered.sparse.iter().map(|path| ByteString::from(&**path)).collect();
    for path in sparse {
        warnings.push(format!("{path} is stored without its holes and was not read"));
    }
}

/// What podman copied while the container went on, and cannot unpack (*unexpected EOF*).
fn of_cut_diff(manifest: Option<&Manifest>) -> String {
    let diff = gather::PODMANS_DIFF;
    let said = format!("{diff}, podman's own copy of the files, ends too early: podman refuses it");
    match manifest.is_some_and(|manifest| manifest.parts.iter().any(PartRecord::is_root)) {
        true => format!(
            "{said}. ocicle's snapshot holds the files: remove that copy from the archive, uncompressed, \
             with `tar --delete -f ARCHIVE {diff}`; podman's --ignore-rootfs leaves it out from the beginning"
        ),
        false => said,
    }
}

/// Bytes by what they are for: the memory, CRIU's other images, ocicle's own files, and what the
/// engine put beside them.
fn sizes(gathered: &Gathered) -> BTreeMap<&'static str, u64> {
    let images = gathered.images_path().unwrap_or_default();
    let mut sizes = BTreeMap::from([("memory", 0), ("images", 0), ("files", 0), ("engine", 0)]);
    for (path, size) in &gathered.sizes {
        let (directory, name) = path.rsplit_once('/').unwrap_or(("", path));
        let category = match () {
            () if directory != images => "engine",
            () if name.starts_with("pages-") => "memory",
            () if name.starts_with("ocicle-") => "files",
            () => "images",
        };
        let sum = sizes.entry(category).or_default();
        *sum = u64::saturating_add(*sum, *size);
    }
    sizes
}

fn dump_stats(gathered: &Gathered) -> Option<DumpStats> {
    let bytes = gathered.near_images("stats-dump")?.to_vec();
    Image::parse(ImageKind::Stats, bytes).ok()?.read_one(DumpStats::read).ok()
}

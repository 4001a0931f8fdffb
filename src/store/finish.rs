//! After the thaw: the open-file table, the layers, the digests, the manifest.
//!
//! Done again from the beginning when it was interrupted, by whoever needs the checkpoint next.

use std::path::Path;
use std::thread;
use std::time::Instant;
use std::{fs, io};

use anyhow::{Context, Result, anyhow, ensure};

use super::lock::ImagesLock;
use super::timeline::Timeline;
use crate::bytes::ByteString;
use crate::criu::images::{DumpStats, Images};
use crate::digest::FileRecord;
use crate::fault::{self, Point};
use crate::files::{self, FileKind, OpenFile, Table};
use crate::hint::{DAMAGED, WithHint};
use crate::snapshot::{self, DriverSnapshot, Progress, Staging};
use crate::store::manifest::{
    self, Freeze, Manifest, MustSubstitute, PartRecord, State, Unsupported, sync_directory,
};
use crate::store::{STAGING, open_staged};
use crate::sys::directory::Directory;

/// Makes a complete checkpoint of one that was interrupted, or that somebody says was.
pub fn finish(
    images: &Path,
    manifest: Manifest,
    drivers: &snapshot::DriverSettings,
    progress: &dyn Progress,
    alone: &ImagesLock,
) -> Result<Manifest> {
    manifest::ensure_plain_files(images)?;
    let staging = images.join(STAGING);
    ensure_plain(&staging)
        .with_context(|| format!("looking at {}", staging.display()))
        .hint(DAMAGED)?;
    for part in &manifest.parts {
        let staged = open_part(images, part).hint(DAMAGED)?;
        if let Some(held) = DriverSnapshot::read(&staged)? {
            held.ensure_recorded(drivers)
                .with_context(|| format!("looking for the files of {}", part.destination))
                .hint(ELSEWHERE)?;
        }
    }
    complete(images, manifest, None, progress, alone)
}

fn open_part(images: &Path, part: &PartRecord) -> Result<Directory> {
    open_staged(images, &part.name)
        .and_then(|staged| staged.ok_or_else(|| io::ErrorKind::NotFound.into()))
        .with_context(|| format!("opening what is staged of {}", part.destination))
}

const ELSEWHERE: &str =
    "restore it once where it was made: that finishes it, and then it can be taken elsewhere";

/// An archive that anybody made may have a staging directory: nothing leads out of it.
fn ensure_plain(staging: &Path) -> Result<()> {
    ensure!(fs::symlink_metadata(staging)?.is_dir(), "it is no directory");
    let mut todo = vec![staging.to_owned()];
    while let Some(directory) = todo.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let kind = entry.file_type()?;
            if kind.is_dir() {
                todo.push(entry.path());
            } else {
                let name = ByteString::from(entry.path().as_path());
                ensure!(kind.is_file(), "{name} is neither a file nor a directory");
            }
        }
    }
    Ok(())
}

/// What is known of a dump when it is over.
pub struct DumpFacts {
    /// For how many milliseconds the container stood still.
    pub milliseconds: f64,
    /// What CRIU says of its work.
    pub criu: Option<DumpStats>,
}

/// Makes a complete checkpoint of what is staged in `images`; of one that was `made` just now more is
/// known.
pub fn complete(
    images: &Path,
    staged: Manifest,
    made: Option<(&Timeline, DumpFacts)>,
    progress: &dyn Progress,
    _alone: &ImagesLock,
) -> Result<Manifest> {
    let unused = Timeline::start();
    let timeline = made.as_ref().map_or(&unused, |(timeline, _)| timeline);
    let table = timeline.time("table", || write_table(images, &staged))?;
    let (parts, files) = pack_and_digest(images, &staged, timeline, progress)?;
    fault::point(Point::Packed);
    let phases = if staged.timeline.is_empty() { timeline.phases() } else { staged.timeline };
    let facts = made.map_or_else(
        || DumpFacts { milliseconds: staged.freeze.milliseconds, criu: staged.criu },
        |(_, facts)| facts,
    );
    let mut features = staged.features;
    if !parts.is_empty() {
        features.need(manifest::INDEX_LINES);
    }
    let mut manifest = Manifest {
        state: State::Complete,
        features,
        must_substitute: must_substitute(&table),
        parts,
        files,
        timeline: phases,
        freeze: Freeze { milliseconds: facts.milliseconds, ..staged.freeze },
        criu: facts.criu,
        ..staged
    };
    sync(images, manifest.all_files())?;
    sync_directory(images)?;
    manifest.see(images);
    manifest.commit(images)?;
    fault::point(Point::ManifestWritten);
    release(images, &manifest.parts);
    open(images)?.remove_tree(STAGING)?;
    sync_directory(images)?;
    Ok(manifest)
}

fn write_table(images: &Path, manifest: &Manifest) -> Result<Table> {
    let table = table_of(images, manifest)?;
    let mut json = serde_json::to_vec_pretty(&table)?;
    json.push(b'\n');
    let directory = open(images)?;
    let user_info = files::write_user_info(&table);
    for (name, content) in [(files::TABLE, &json[..]), (files::USER_INFO, user_info.as_bytes())] {
        directory.replace(name, content).with_context(|| format!("writing {name}"))?;
    }
    Ok(table)
}

fn open(images: &Path) -> Result<Directory> {
    Directory::open(images).with_context(|| format!("opening {}", images.display()))
}

/// The open files of a checkpoint, with what the manifest alone knows of them.
pub fn table_of(images: &Path, manifest: &Manifest) -> Result<Table> {
    let read = Images::load(images).context("reading the open files from CRIU's images")?;
    let mut table = Table::of(&read);
    name_external_files(&mut table, manifest);
    describe_unsupported(&mut table, manifest);
    Ok(table)
}

/// CRIU's images know such a file by a number only.
fn name_external_files(table: &mut Table, manifest: &Manifest) {
    for file in &mut table.files {
        let key = file.external.as_ref().map(ToString::to_string);
        if let Some(known) = manifest.external.iter().find(|known| Some(&known.key) == key.as_ref())
        {
            file.name = known.path.clone();
        }
    }
}

/// Of such a file CRIU's images know who holds it.
fn describe_unsupported(table: &mut Table, manifest: &Manifest) {
    let set_aside = table.files.iter_mut().filter(|file| file.kind == FileKind::External);
    for file in set_aside {
        let was = |known: &&Unsupported| {
            known.file.holders.iter().any(|holder| file.holders.contains(holder))
        };
        if let Some(known) = manifest.unsupported.iter().find(was) {
            *file = OpenFile {
                id: file.id,
                holders: std::mem::take(&mut file.holders),
                watched: file.watched,
                locks: std::mem::take(&mut file.locks),
                in_flight: file.in_flight,
                must_substitute: true,
                unsupported: Some(known.why.clone()),
                ..known.file.clone()
            };
        }
    }
}

fn must_substitute(table: &Table) -> Vec<MustSubstitute> {
    let record = |file: &files::OpenFile| MustSubstitute {
        id: file.id.0,
        name: file.name.clone(),
        holders: file
            .holders
            .iter()
            .map(|holder| format!("{}:{}", holder.pid, holder.fd))
            .collect(),
    };
    table.files.iter().filter(|file| file.must_substitute).map(record).collect()
}

/// Packs what is staged, and beside that reads CRIU's images and brings them to disk.
fn pack_and_digest(
    images: &Path,
    staged: &Manifest,
    timeline: &Timeline,
    progress: &dyn Progress,
) -> Result<(Vec<PartRecord>, Vec<FileRecord>)> {
    thread::scope(|scope| {
        let digesting = scope.spawn(|| {
            let begin = Instant::now();
            let records = records(images)?;
            sync(images, &records)?;
            anyhow::Ok((records, begin, Instant::now()))
        });
        let packed = timeline.time("pack", || pack(images, staged, progress));
        let digested = digesting.join().map_err(|_| anyhow!("reading the images panicked"))?;
        let (records, begin, end) = digested?;
        timeline.mark("digest", begin, end);
        packed.map(|parts| (parts, records))
    })
}

fn pack(images: &Path, staged: &Manifest, progress: &dyn Progress) -> Result<Vec<PartRecord>> {
    // What is committed as it is staged can be packed again, by whoever finds it.
    let is_committed = manifest::is_there(images);
    let fate = if is_committed { Staging::Kept } else { Staging::Consumed };
    let compression = staged.compression;
    let out = open(images)?;
    let pack = |part: &PartRecord| {
        let staging = open_part(images, part)?;
        let packed = snapshot::pack(&staging, &out, &part.name, compression, fate, progress);
        let files = packed.with_context(|| format!("packing {}", part.destination))?;
        Ok(PartRecord { files: Some(files), ..part.clone() })
    };
    staged.parts.iter().map(pack).collect()
}

/// Lets go of what drivers hold outside of the directory. The checkpoint is whole without it; what
/// cannot be removed now is by who comes next.
fn release(images: &Path, parts: &[PartRecord]) {
    for part in parts {
        let release = || match (DriverSnapshot::read(&open_part(images, part)?)?, &part.files) {
            (Some(held), Some(packed)) => held.release(packed),
            _ => Ok(()),
        };
        if let Err(error) = release() {
            tracing::warn!("{}: {error:#}", part.destination);
        }
    }
}

/// CRIU's images, the runtime's descriptors and the table: what a restore reads, and nothing
/// that an engine may write beside it.
fn records(images: &Path) -> Result<Vec<FileRecord>> {
    let mut names = Vec::new();
    let directory = open(images)?;
    for name in directory.names()? {
        if let Ok(name) = String::from_utf8(name)
            && directory.look(&name)?.is_some_and(|(kind, _)| kind.is_file())
            && (name.ends_with(".img")
                || [files::TABLE, files::USER_INFO, "descriptors.json"].contains(&name.as_str()))
        {
            names.push(name);
        }
    }
    names.sort();
    names.iter().map(|name| FileRecord::of(images, name)).collect()
}

fn sync<'a>(images: &Path, records: impl IntoIterator<Item = &'a FileRecord>) -> Result<()> {
    let directory = open(images)?;
    for record in records {
        let file = directory.file(&record.name).transpose();
        file.unwrap_or_else(|| Err(io::ErrorKind::NotFound.into()))
            .and_then(|file| file.sync_all())
            .with_context(|| format!("syncing {}", images.join(&record.name).display()))?;
    }
    Ok(())
}

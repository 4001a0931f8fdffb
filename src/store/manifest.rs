//! The manifest of a checkpoint, its schema and how it comes to disk.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::{fmt, fs, io};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::bytes::ByteString;
use crate::criu::images::DumpStats;
use crate::digest::{FileRecord, digest, ensure_plain};
use crate::fault::{self, Point};
use crate::files::verify::HeldFile;
use crate::files::{FileKind, OpenFile};
use crate::freezer::{CgroupVersion, FrozenBy};
use crate::hint::{DAMAGED, WithHint};
use crate::limits::{self, Limit};
use crate::snapshot::{Compression, DriverReport, PackedFiles, RootIdentity};
use crate::store::STAGING;
use crate::store::choices::Filesystem;
use crate::sys::directory::Directory;
use crate::sys::time::Time;

/// The manifest's name in an image directory.
pub const NAME: &str = "ocicle-manifest.json";
/// The name of the file that holds the manifest's digest.
pub const DIGEST: &str = "ocicle-manifest.b3sum";
/// The version of the schema that is written, and the newest that is read.
pub const SCHEMA: u32 = 1;
const NEWER: &str = "a newer ocicle made it: use one of that version";

/// Everything that is known of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Manifest {
    /// Version of the schema.
    pub schema: u32,
    /// What a reader has to know.
    #[serde(default)]
    pub features: Features,
    /// The version of ocicle that wrote it.
    pub ocicle: String,
    /// How far it has come.
    pub state: State,
    /// When the container was frozen.
    pub created: jiff::Timestamp,
    /// The container.
    pub container: ContainerRecord,
    /// What became of it.
    pub left: Left,
    /// How it was frozen.
    pub freeze: Freeze,
    /// What happened when, in the order of beginning.
    #[serde(default)]
    pub timeline: Vec<Phase>,
    /// What CRIU says of its work; none where its `stats-dump` was not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub criu: Option<DumpStats>,
    /// The programs that took part.
    pub programs: Programs,
    /// Flags of the runtime's `checkpoint` that its `restore` needs again.
    #[serde(default)]
    pub flags: Vec<String>,
    /// What was done about files.
    #[serde(default)]
    pub filesystem: Filesystem,
    /// How its parts are, or will be, compressed; with zstd where nothing says so.
    #[serde(default)]
    pub compression: Compression,
    /// With `verify`, the files that were open or mapped.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<HeldFile>,
    /// The root file system, to know it again.
    pub root: RootIdentity,
    /// The file systems that belong to it.
    #[serde(default)]
    pub parts: Vec<PartRecord>,
    /// Every other file of the image directory; empty while `staged`.
    #[serde(default)]
    pub files: Vec<FileRecord>,
    /// What the kernel said of the files when they were complete: one of which it still says the
    /// same was not written since. Worth nothing once they were copied elsewhere.
    #[serde(default)]
    pub seen: BTreeMap<String, FileStamp>,
    /// Files of the host that CRIU was told not to look up.
    #[serde(default)]
    pub external: Vec<External>,
    /// Open files that CRIU could not dump, of which the images say only who holds them.
    #[serde(default)]
    pub unsupported: Vec<Unsupported>,
    /// Whose the open files were that are mounted from outside and not in the snapshot: a policy
    /// may make them again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<Owner>,
    /// What a restore names anew for CRIU: files whose name was removed, and that have another.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub link_remaps: Vec<LinkRemap>,
    /// What the container could write, and the checkpoint does not hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_held: Vec<NotHeld>,
    /// Whether the loopback interface was up, in a network of the container's own.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub loopback: bool,
    /// Events that waited to be read, and that no restore has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_events: Vec<LostEvents>,
    /// Open files that a restore must replace: the external and the unsupported ones.
    #[serde(default)]
    pub must_substitute: Vec<MustSubstitute>,
}

/// Whose a file was.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Owner {
    /// Its path in the container.
    pub path: ByteString,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// A directory that was mounted from outside, and is no part of the checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotHeld {
    /// Where the container saw it.
    pub destination: ByteString,
    /// Where it was on the host.
    pub source: PathBuf,
}

impl fmt::Display for NotHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the checkpoint does not hold {}, which the container can write",
            self.destination
        )
    }
}

/// A file that CRIU knows by a name of its own ([`crate::criu::remaps`]).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LinkRemap {
    /// That name, which the container has only while CRIU is at work.
    pub link: ByteString,
    /// Another that the file has, on the same mount.
    pub name: ByteString,
}

/// Events of an inotify instance or fanotify group that are not in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LostEvents {
    /// Which of the two it is.
    pub kind: FileKind,
    /// A process and its file descriptor, `pid:fd`.
    pub holder: String,
    /// How many bytes waited to be read.
    pub bytes: u64,
}

impl fmt::Display for LostEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, holder, bytes } = self;
        write!(f, "{holder} ({kind}): a restore loses {bytes} bytes of events that wait there")
    }
}

/// What a reader has to know to use a manifest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Features {
    /// May be ignored by who does not know them.
    #[serde(default)]
    pub compatible: Vec<String>,
    /// Who does not know them may look and not restore.
    #[serde(default)]
    pub read_only: Vec<String>,
    /// Who does not know them must refuse.
    #[serde(default)]
    pub incompatible: Vec<String>,
}

impl Features {
    /// Says that who does not know this must refuse.
    pub fn need(&mut self, feature: &str) {
        if !self.incompatible.iter().any(|known| known == feature) {
            self.incompatible.push(feature.to_owned());
        }
    }
}

/// The features that this version knows.
const KNOWN: [&str; 3] = [HELD_FILES, INDEX_LINES, SPARSE_DIGESTS];

/// What the runtime's `checkpoint` was told and its `restore` has to be told too.
pub const FLAGS: [&str; 4] = ["--tcp-established", "--ext-unix-sk", "--shell-job", "--file-locks"];

/// A restore has to compare the files that the container held.
pub const HELD_FILES: &str = "held-files";

/// Digests of files that the container held pass over what is zeros.
pub const SPARSE_DIGESTS: &str = "sparse-digests";

/// The indexes of parts have a line for each entry.
pub const INDEX_LINES: &str = "index-lines";

/// How far a checkpoint has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Everything is on disk, the snapshot not packed yet.
    Staged,
    /// Nothing is left to do.
    Complete,
}

/// The container of a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ContainerRecord {
    /// Its name.
    pub id: String,
    /// Its bundle, at the time.
    pub bundle: PathBuf,
    /// Its root file system, at the time.
    pub rootfs: PathBuf,
}

/// What became of the container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Left {
    /// It went on.
    Running,
    /// It stayed frozen, as it was.
    Frozen,
    /// It was stopped.
    Stopped,
}

impl Left {
    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Frozen => "frozen",
            Self::Stopped => "stopped",
        }
    }
}

/// How the container was frozen.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Freeze {
    /// By whom.
    pub by: FrozenBy,
    /// Through which hierarchy.
    pub cgroup: CgroupVersion,
    /// How many milliseconds passed from the request to freeze to the thaw, or, of a container
    /// that was stopped, to the commit.
    pub milliseconds: f64,
    /// The control groups of others that were frozen too while the snapshot was taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<PathBuf>,
}

/// A file system that belongs to a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartRecord {
    /// Its name, from which the names of its files are made.
    pub name: String,
    /// Where the container sees it; `/` for its root file system.
    pub destination: ByteString,
    /// Where it was on the host.
    pub source: PathBuf,
    /// How its snapshot was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub taken: Option<DriverReport>,
    /// Its snapshot; none while `staged`.
    #[serde(default)]
    pub files: Option<PackedFiles>,
}

impl PartRecord {
    /// Whether it is the container's root file system.
    pub fn is_root(&self) -> bool {
        self.destination.as_bytes() == b"/"
    }
}

/// A step, in milliseconds from the beginning of the command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// When it began.
    pub begin: f64,
    /// When it ended.
    pub end: f64,
    /// The step that it is part of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub within: Option<String>,
}

/// The programs that took part in a checkpoint.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Programs {
    /// What the runtime says of its version.
    pub runtime: String,
    /// CRIU's version.
    pub criu: String,
    /// The kernel's release.
    pub kernel: String,
}

/// What tells that a file was not written: only the kernel sets the time of its last change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileStamp {
    /// Its device.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
    /// Its time of change.
    pub changed: Time,
}

impl FileStamp {
    fn of(path: &Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        let found = fs::symlink_metadata(path).ok()?;
        let changed = Time::from_kernel(found.ctime(), found.ctime_nsec());
        Some(Self { device: found.dev(), inode: found.ino(), changed })
    }
}

/// How much is read to know that a checkpoint is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Trust {
    /// Nothing but what the kernel says was not written since it was complete.
    #[default]
    Unwritten,
    /// Nothing: everything is read.
    Nothing,
}

/// A file of the host that the container holds open.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct External {
    /// CRIU's name of it, `file[MOUNT:INODE]`.
    pub key: String,
    /// Its path on the host, as far as the kernel could say.
    pub path: ByteString,
}

/// An open file of which a checkpoint holds no more than this.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsupported {
    /// What it was; its identifier here means nothing.
    pub file: OpenFile,
    /// Why CRIU could not dump it.
    pub why: String,
    /// The rule that covers it; none where `on-unsupported` covers all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// An open file that a restore must replace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MustSubstitute {
    /// Its file identifier.
    pub id: u32,
    /// Where it was.
    pub name: ByteString,
    /// Who holds it, as `pid:fd`.
    pub holders: Vec<String>,
}

/// Whether a directory holds a manifest.
pub fn is_there(directory: &Path) -> bool {
    fs::symlink_metadata(directory.join(NAME)).is_ok()
}

impl Manifest {
    /// Reads and checks the manifest of an image directory.
    pub fn read(directory: &Path) -> Result<Self> {
        let opened = open(directory)?;
        let (text, sum) = (read_limited(&opened, NAME)?, read_limited(&opened, DIGEST)?);
        ensure_unaltered(&text, &sum)?;
        Self::parse(&text).with_context(|| format!("reading {}", directory.join(NAME).display()))
    }

    /// Reads and checks a manifest and the file with its digest.
    pub fn checked(text: &[u8], sum: &[u8]) -> Result<Self> {
        ensure_unaltered(text, sum)?;
        Self::parse(text)
    }

    fn parse(text: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
            #[serde(default)]
            features: Features,
        }
        // The head first: the rest of a newer schema may look otherwise.
        let head: Head = serde_json::from_slice(text)?;
        if head.schema != SCHEMA {
            return Err(anyhow!("its schema is {}, and this ocicle knows {SCHEMA}", head.schema)
                .hint(NEWER));
        }
        let unknown: Vec<&str> = head
            .features
            .incompatible
            .iter()
            .chain(&head.features.read_only)
            .map(String::as_str)
            .filter(|feature| !KNOWN.contains(feature))
            .collect();
        if !unknown.is_empty() {
            return Err(anyhow!("it needs what this ocicle does not know: {}", unknown.join(", "))
                .hint(NEWER));
        }
        let manifest: Self = serde_json::from_slice(text)?;
        manifest.ensure_harmless()?;
        Ok(manifest)
    }

    /// Who made it may have it name more than there can be: what it names is read.
    fn ensure_few(&self) -> Result<()> {
        limits::ensure(Limit::Parts, self.parts.len() as u64, "its parts are")?;
        let flags: BTreeSet<&String> = self.flags.iter().collect();
        ensure!(flags.len() == self.flags.len(), "a flag of the runtime is there twice");
        let mut names = BTreeSet::new();
        for files in self.parts.iter().filter_map(|part| part.files.as_ref()) {
            limits::ensure(Limit::Layers, files.layers.len() as u64, "the layers of a part are")?;
            for file in files.files() {
                ensure!(names.insert(&file.name), "{:?} is named twice", file.name);
            }
        }
        Ok(())
    }

    /// Makes sure that it can still be read when all is in it: before the container has ended.
    ///
    /// # Errors
    /// When what CRIU has written to `images`, and what it holds already, makes it too large.
    pub fn ensure_can_be_completed(&self, images: &Path) -> Result<()> {
        /// Of a file: its record, and what is seen of it, on lines of their own.
        const RECORD: u64 = 512;
        /// Layers of a part that is built on, at most, and its index.
        const FILES: u64 = 65;
        /// A descriptor takes some twelve bytes in CRIU's images, and here some thirty.
        const HOLDER: u64 = 4;
        let mut bytes = 2 * self.text()?.len() as u64 + (64 << 10);
        bytes += RECORD * FILES * self.parts.len() as u64;
        for entry in fs::read_dir(images)? {
            let entry = entry?;
            bytes += RECORD;
            if entry.file_name().as_encoded_bytes().starts_with(b"fdinfo-") {
                bytes += HOLDER * entry.metadata()?.len();
            }
        }
        limits::ensure(Limit::Manifest, bytes, "the bytes of its manifest would be")
    }

    fn text(&self) -> Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(self)?;
        text.push(b'\n');
        Ok(text)
    }

    /// Anybody may have made it: what it says becomes part of paths, and of a command line.
    fn ensure_harmless(&self) -> Result<()> {
        for part in &self.parts {
            ensure_plain(&part.name).context("reading the name of a part").hint(DAMAGED)?;
        }
        ensure_each_once(&self.parts).hint(DAMAGED)?;
        self.ensure_few().hint(DAMAGED)?;
        match self.flags.iter().find(|flag| !FLAGS.contains(&flag.as_str())) {
            Some(flag) => {
                Err(anyhow!("the runtime's {flag:?} is no flag of a checkpoint's").hint(NEWER))
            }
            None => Ok(()),
        }
    }

    /// Writes the manifest: the last step of a checkpoint, since its existence is what says that
    /// there is one.
    pub fn commit(&self, directory: &Path) -> Result<()> {
        let text = self.text()?;
        limits::ensure(Limit::Manifest, text.len() as u64, "the bytes of its manifest are")?;
        let sum = sum_of(&text);
        // A manifest that is replaced is valid until the new one is there: for a moment both are.
        let directory = &open(directory)?;
        let before = read_limited(directory, NAME).map(|text| sum_of(&text)).unwrap_or_default();
        replace(directory, DIGEST, (sum.clone() + &before).as_bytes())?;
        fault::point(if before.is_empty() { Point::DigestWritten } else { Point::DigestReplaced });
        replace(directory, NAME, &text)?;
        if !before.is_empty() {
            replace(directory, DIGEST, sum.as_bytes())?;
        }
        sync(directory)
    }

    /// Whether nothing is left to do.
    pub fn is_complete(&self) -> bool {
        self.state == State::Complete
    }

    /// Every file of the checkpoint but the manifest.
    pub fn all_files(&self) -> impl Iterator<Item = &FileRecord> {
        let parts = self.parts.iter().filter_map(|part| part.files.as_ref());
        self.files.iter().chain(parts.flat_map(PackedFiles::files))
    }

    /// Looks at every file, now that they are complete.
    pub fn see(&mut self, directory: &Path) {
        let look = |record: &FileRecord| {
            Some((record.name.clone(), FileStamp::of(&directory.join(&record.name))?))
        };
        self.seen = self.all_files().filter_map(look).collect();
    }

    fn is_unwritten(&self, record: &FileRecord, directory: &Path) -> bool {
        let seen = self.seen.get(&record.name);
        seen.is_some() && seen == FileStamp::of(&directory.join(&record.name)).as_ref()
    }

    /// Makes sure that every file of the checkpoint is what it was.
    pub fn verify(&self, directory: &Path, trust: Trust) -> Result<()> {
        let mut wrong = foreign_files(directory)?;
        let doubtful =
            |record: &&FileRecord| trust == Trust::Nothing || !self.is_unwritten(record, directory);
        for record in self.all_files().filter(doubtful) {
            if let Err(error) = record.verify(directory) {
                wrong.push(format!("{error:#}"));
            }
        }
        if !wrong.is_empty() {
            return Err(anyhow!("it is damaged: {}", wrong.join("; ")).hint(DAMAGED));
        }
        Ok(())
    }
}

/// Refuses a directory in which anything that a restore opens, or writes, is no regular file.
///
/// # Errors
/// Names all of them.
pub fn ensure_plain_files(directory: &Path) -> Result<()> {
    let wrong = foreign_files(directory)?;
    if wrong.is_empty() {
        return Ok(());
    }
    Err(anyhow!("it is damaged: {}", wrong.join("; ")).hint(DAMAGED))
}

/// Refuses two parts of one name, whose files would be the same, and two for one place of the
/// container, as which of them it is to be nobody says.
fn ensure_each_once(parts: &[PartRecord]) -> Result<()> {
    let (mut names, mut places) = (BTreeSet::new(), BTreeSet::new());
    for part in parts {
        let place = part.destination.as_path();
        let is_a_place =
            place.is_absolute() && !place.components().any(|one| one == Component::ParentDir);
        ensure!(is_a_place, "a part is for {}, which is no place in a container", part.destination);
        ensure!(names.insert(&part.name), "two parts are called {:?}", part.name);
        // As paths: `/` and `//` are the same.
        ensure!(places.insert(place), "two parts are for {}", part.destination);
    }
    Ok(())
}

/// Images and files of ours that are no files: CRIU opens whatever has the name of an image, and what
/// it reads then becomes the container's memory.
fn foreign_files(directory: &Path) -> Result<Vec<String>> {
    let reading = || format!("reading {}", directory.display());
    let mut foreign = Vec::new();
    for entry in fs::read_dir(directory).with_context(reading)? {
        let entry = entry.with_context(reading)?;
        let name = ByteString::from(entry.file_name());
        if is_read(name.as_bytes()) && !entry.file_type()?.is_file() {
            foreign.push(format!("{name} is not a regular file"));
        }
    }
    foreign.sort();
    Ok(foreign)
}

/// Whether a restore may open or write what has this name.
fn is_read(name: &[u8]) -> bool {
    let is_ours = name.starts_with(b"ocicle-") && name != STAGING.as_bytes();
    is_ours
        || name.ends_with(b".img")
        || [&b"user_info.txt"[..], b"descriptors.json"].contains(&name)
}

/// Takes a manifest back: what it stood for is no checkpoint any more.
pub fn withdraw(directory: &Path) -> Result<()> {
    let directory = open(directory)?;
    for name in [NAME, DIGEST] {
        directory
            .remove(name)
            .with_context(|| format!("removing {}", directory.path().join(name).display()))?;
    }
    sync(&directory)
}

fn ensure_unaltered(text: &[u8], sum: &[u8]) -> Result<()> {
    if sum.split_inclusive(|byte| *byte == b'\n').any(|line| line == sum_of(text).as_bytes()) {
        return Ok(());
    }
    Err(anyhow!("{NAME} was altered: its digest is another").hint(DAMAGED))
}

fn sum_of(text: &[u8]) -> String {
    format!("{}  {NAME}\n", digest(text))
}

fn open(directory: &Path) -> Result<Directory> {
    Directory::open(directory).with_context(|| format!("opening {}", directory.display()))
}

fn replace(directory: &Directory, name: &str, content: &[u8]) -> Result<()> {
    directory
        .replace(name, content)
        .with_context(|| format!("writing {}", directory.path().join(name).display()))
}

fn sync(directory: &Directory) -> Result<()> {
    directory.sync().with_context(|| format!("syncing {}", directory.path().display()))
}

/// Brings the names in a directory to disk.
pub fn sync_directory(directory: &Path) -> Result<()> {
    sync(&open(directory)?)
}

fn read_limited(directory: &Directory, name: &str) -> Result<Vec<u8>> {
    let path = || directory.path().join(name).display().to_string();
    match directory.read(name, Limit::Manifest.value()) {
        Ok(text) => text
            .ok_or_else(|| io::Error::from(Errno::NOENT))
            .with_context(|| format!("opening {}", path())),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
            bail!("{} is too large", path())
        }
        Err(error) => Err(error).with_context(|| format!("opening {}", path())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What every manifest has said since there are any.
    const LEAST: &str = r#"{
        "schema": 1, "ocicle": "0.1.0", "state": "complete", "created": "2026-01-01T00:00:00Z",
        "container": { "id": "web", "bundle": "/b", "rootfs": "/b/rootfs" }, "left": "stopped",
        "freeze": { "by": "ocicle", "cgroup": "v2", "milliseconds": 1.0 },
        "programs": { "runtime": "runc", "criu": "4.2", "kernel": "6.18" },
        "root": { "driver": "directory", "fs_type": "ext4", "device": 1, "ino": 2 }
    }"#;

    #[test]
    fn no_part_is_named_twice() {
        let with = |parts: &[(&str, &str)]| {
            let part = |(name, place): &(&str, &str)| serde_json::json!({ "name": name, "destination": place, "source": "/s" });
            let parts: Vec<_> = parts.iter().map(part).collect();
            let mut manifest: serde_json::Value = serde_json::from_str(LEAST).unwrap();
            manifest["parts"] = parts.into();
            Manifest::parse(manifest.to_string().as_bytes()).map_err(|error| format!("{error:#}"))
        };
        assert!(with(&[("rootfs", "/"), ("volume-1", "/data")]).is_ok());
        for (second, why) in [
            (("rootfs", "/data"), "two parts are called \"rootfs\""),
            (("volume-1", "/"), "two parts are for /"),
            (("volume-1", "//"), "two parts are for //"),
            (("volume-1", "/."), "two parts are for /."),
            (("volume-1", "/data/.."), "no place in a container"),
            (("volume-1", "data"), "no place in a container"),
        ] {
            let refused = with(&[("rootfs", "/"), second]).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        assert!(with(&[("a", "/data"), ("b", "/data/")]).is_err());
    }

    #[test]
    fn it_names_no_more_than_there_can_be() {
        let with = |said: &str| {
            let text = LEAST.replacen("\"schema\"", &format!("{said}, \"schema\""), 1);
            Manifest::parse(text.as_bytes()).err().map(|error| format!("{error:#}"))
        };
        assert_eq!(with(r#""flags": ["--shell-job", "--file-locks"]"#), None);
        let twice = with(r#""flags": ["--shell-job", "--shell-job"]"#).unwrap();
        assert!(twice.contains("there twice"), "{twice}");
        let file = r#"{ "name": "x", "size": 1, "blake3": "" }"#;
        let part = |name: &str| {
            format!(
                r#"{{ "name": "{name}", "destination": "/{name}", "source": "/s",
                      "files": {{ "index": {file}, "layers": [] }} }}"#
            )
        };
        assert_eq!(with(&format!(r#""parts": [{}]"#, part("a"))), None);
        let twice = with(&format!(r#""parts": [{}, {}]"#, part("a"), part("b"))).unwrap();
        assert!(twice.contains("named twice"), "{twice}");
        let many: Vec<String> = (0..300).map(|n| part(&n.to_string())).collect();
        let many = with(&format!(r#""parts": [{}]"#, many.join(","))).unwrap();
        assert!(many.contains("more than 256"), "{many}");
    }

    #[test]
    fn what_older_ones_do_not_say_has_a_meaning() {
        let manifest = Manifest::parse(LEAST.as_bytes()).unwrap();
        assert_eq!(manifest.compression, Compression::Zstd);
        let said = LEAST.replace("\"schema\"", "\"compression\": \"none\", \"schema\"");
        assert_eq!(Manifest::parse(said.as_bytes()).unwrap().compression, Compression::None);
    }
}

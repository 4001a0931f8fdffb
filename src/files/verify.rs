//! The files that a container holds open or mapped, recorded so that others in their place are
//! noticed.
//!
//! Only what a path leads to from outside: on the root file system or on what is mounted from the
//! host. What is deleted, or on a file system of the container's own, is in CRIU's images.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use super::Suspects;
use crate::bytes::ByteString;
use crate::container::Bundle;
use crate::proc::{Proc, is_zombie};
use crate::sys;

/// A file as it was at a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldFile {
    /// Where the container sees it.
    pub path: ByteString,
    /// Its length in bytes.
    pub size: u64,
    /// Its type and permissions, as stat(2) has them.
    pub mode: u32,
    /// Its time of modification, seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// BLAKE3 of all of it, in hexadecimal digits.
    pub blake3: String,
}

/// How much of a file is compared with one that was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// All of it, and its size.
    All,
    /// As many bytes as there were: it may have grown.
    Beginning,
    /// None: what is left of it cannot be told from other bytes.
    Nothing,
}

impl HeldFile {
    /// In what another file differs; nothing if it can take this one's place. A time alone is no
    /// difference: what copies a file to another host need not keep it.
    pub fn differences(&self, file: &File, extent: Extent) -> Result<Vec<String>> {
        let found = file.metadata()?;
        let mut differences = Vec::new();
        if found.mode() != self.mode {
            differences.push(format!("its mode is {:o}, not {:o}", found.mode(), self.mode));
        }
        let content = match extent {
            Extent::All if found.len() != self.size => {
                Some(format!("it has {} bytes, not {}", found.len(), self.size))
            }
            Extent::Beginning if found.len() < self.size => {
                Some(format!("it has {} bytes, and had {}", found.len(), self.size))
            }
            Extent::Nothing => None,
            _ if !found.is_file() || digest_of(file, self.size)? == self.blake3 => None,
            Extent::All => Some("its content is another".to_owned()),
            Extent::Beginning => Some(format!("its first {} bytes are others", self.size)),
        };
        differences.extend(content);
        Ok(differences)
    }
}

/// What was read while the container ran, by device and inode number.
#[derive(Debug, Default)]
pub struct Digests(HashMap<(u64, u64), (Stamp, String)>);

/// What changes with every write that the kernel has noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    changed: (i64, i64),
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self { size: found.len(), changed: (found.ctime(), found.ctime_nsec()) }
    }
}

/// A change that is younger than this, when a file is read, might be followed by another that leaves
/// the same time: the coarsest clock of a file system counts seconds.
const SETTLED: Duration = Duration::from_secs(2);

impl Digests {
    /// Reads what the processes hold while they run.
    pub fn read_ahead(processes: &[i32], bundle: &Bundle) -> Result<Self> {
        let mut digests = Self::default();
        for (_, file) in held_by(processes, bundle)? {
            let before = file.metadata()?;
            let settled = SystemTime::now() - SETTLED > changed(&before);
            // One that cannot be read now is read again under the freeze.
            if let (true, Ok(digest)) = (settled, digest(&file)) {
                digests.0.insert((before.dev(), before.ino()), (Stamp::of(&before), digest));
            }
        }
        Ok(digests)
    }

    /// Records what the frozen processes hold. `suspects` are files that may have been written
    /// without a trace in their times.
    pub fn record(
        &self,
        processes: &[i32],
        bundle: &Bundle,
        suspects: &Suspects,
    ) -> Result<Vec<HeldFile>> {
        let held = held_by(processes, bundle)?.into_iter();
        held.map(|(path, file)| {
            let found = file.metadata()?;
            let inode = (found.dev(), found.ino());
            let known = self.0.get(&inode).filter(|(stamp, _)| *stamp == Stamp::of(&found));
            let blake3 = match known {
                Some((_, digest)) if !suspects.contains(inode) => digest.clone(),
                _ => digest(&file).with_context(|| format!("reading {}", path.display()))?,
            };
            Ok(HeldFile {
                path: path.as_path().into(),
                size: found.len(),
                mode: found.mode(),
                mtime: (found.mtime(), found.mtime_nsec()),
                blake3,
            })
        })
        .collect()
    }
}

fn changed(found: &Metadata) -> SystemTime {
    let seconds = Duration::from_secs(u64::try_from(found.ctime()).unwrap_or(0));
    SystemTime::UNIX_EPOCH + seconds + Duration::from_nanos(found.ctime_nsec().unsigned_abs())
}

fn digest(file: &File) -> std::io::Result<String> {
    digest_of(file, u64::MAX)
}

/// The digest of as many bytes from the beginning.
fn digest_of(file: &File, bytes: u64) -> std::io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut reader = file;
    reader.rewind()?;
    hasher.update_reader(reader.take(bytes))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The regular files that processes have open or mapped, by the paths at which the container sees
/// them, opened where the host has them.
fn held_by(processes: &[i32], bundle: &Bundle) -> Result<BTreeMap<PathBuf, File>> {
    let mut held = BTreeMap::new();
    for pid in processes.iter().filter(|pid| !is_zombie(**pid)) {
        let process = Proc::of(pid);
        // A process that ends meanwhile holds nothing.
        let open = process.descriptors().unwrap_or_default();
        let links = open.into_iter().map(|number| process.descriptor(number));
        for link in links.chain(process.mapped()) {
            if let Some((path, file)) = behind(&link, bundle) {
                held.entry(path).or_insert(file);
            }
        }
    }
    Ok(held)
}

/// The file behind a link of proc(5), if a path leads to the same file from outside.
fn behind(link: &Path, bundle: &Bundle) -> Option<(PathBuf, File)> {
    let held = fs::metadata(link).ok().filter(Metadata::is_file)?;
    let path = fs::read_link(link).ok()?;
    let (directory, below) = on_host(bundle, &path)?;
    let file = open_below(&directory, &below)?;
    let found = file.metadata().ok()?;
    ((held.dev(), held.ino()) == (found.dev(), found.ino())).then_some((path, file))
}

/// The directory of the host in which a path of the container is, and the rest of the path; `None`
/// for one on a file system of the container's own.
pub fn on_host(bundle: &Bundle, path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mounts = bundle.spec.mounts().iter().flatten();
    let above = mounts.filter(|mount| path.starts_with(mount.destination()));
    let deepest = above.max_by_key(|mount| mount.destination().components().count());
    let (source, point) = match deepest {
        Some(mount) => (bundle.bind(mount)?.source, mount.destination().clone()),
        None => (bundle.rootfs.clone(), PathBuf::from("/")),
    };
    Some((source, path.strip_prefix(point).ok()?.to_owned()))
}

/// Opens a regular file below a directory, through no link; a bind mount of one file is that file.
pub fn open_below(directory: &Path, path: &Path) -> Option<File> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let directory = rustix::fs::open(directory, flags, Mode::empty()).ok()?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let found = match path.as_os_str().is_empty() {
        true => directory,
        false => rustix::fs::openat2(directory, path, flags, Mode::empty(), resolve).ok()?,
    };
    // To open what a container has put there may be to wait, or to set a device to work.
    let mode = rustix::fs::fstat(&found).ok()?.st_mode;
    let is_file = FileType::from_raw_mode(mode) == FileType::RegularFile;
    is_file.then(|| sys::fs::open_for_reading(&found).ok().map(File::from)).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn held(file: &File) -> HeldFile {
        let found = file.metadata().unwrap();
        HeldFile {
            path: "/x".into(),
            size: found.len(),
            mode: found.mode(),
            mtime: (0, 0),
            blake3: digest(file).unwrap(),
        }
    }

    #[test]
    fn what_differs_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "content").unwrap();
        let file = File::open(&path).unwrap();
        let was = held(&file);
        let differences = |extent| was.differences(&file, extent).unwrap();
        assert_eq!(differences(Extent::All), Vec::<String>::new());
        fs::write(&path, "CONTENT").unwrap();
        assert_eq!(differences(Extent::All), ["its content is another"]);
        fs::write(&path, "content, and more").unwrap();
        assert_eq!(differences(Extent::Beginning), Vec::<String>::new());
        fs::write(&path, "longer content").unwrap();
        assert_eq!(differences(Extent::Beginning), ["its first 7 bytes are others"]);
        assert_eq!(differences(Extent::Nothing), Vec::<String>::new());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let said = differences(Extent::All).join("; ");
        assert!(said.contains("its mode is 100600") && said.contains("14 bytes, not 7"), "{said}");
    }

    #[test]
    fn nothing_is_opened_through_a_link() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("file"), "x").unwrap();
        std::os::unix::fs::symlink("file", directory.path().join("link")).unwrap();
        assert!(open_below(directory.path(), Path::new("file")).is_some());
        assert!(open_below(directory.path(), Path::new("link")).is_none());
        let pipe = directory.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(open_below(&pipe, Path::new("")).is_none(), "or it would wait for ever");
        assert!(open_below(directory.path(), Path::new("../file")).is_none());
    }
}

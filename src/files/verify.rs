//! The files that a container holds open or mapped, recorded so that others in their place are
//! noticed.
//!
//! Only what a path leads to from outside: on the root file system or on what is mounted from the
//! host. What is deleted, or on a file system of the container's own, is in CRIU's images.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use serde::{Deserialize, Serialize};

use super::Suspects;
use crate::bytes::ByteString;
use crate::container::Bundle;
use crate::freezer::Frozen;
use crate::proc::{Proc, is_zombie};
use crate::sys;
use crate::sys::extent::next_data;
use crate::sys::inode::DevIno;
use crate::sys::pid::Pid;
use crate::sys::time::Time;

/// A file as it was at a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldFile {
    /// Where the container sees it.
    pub path: ByteString,
    /// Its length in bytes.
    pub size: u64,
    /// Its type and permissions, as stat(2) has them.
    pub mode: u32,
    /// Its time of modification.
    pub mtime: Time,
    /// BLAKE3 of all of it, in hexadecimal digits.
    pub blake3: String,
    /// Whether that passes over what is zeros: of each piece of 64 KiB that is not, it has the offset
    /// (eight bytes, the least first) and the bytes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub sparse: bool,
}

/// How much of a file is compared with one that was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HowMuch {
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
    pub fn differences(&self, file: &File, much: HowMuch) -> Result<Vec<String>> {
        let found = file.metadata()?;
        let mut differences = Vec::new();
        if found.mode() != self.mode {
            differences.push(format!("its mode is {:o}, not {:o}", found.mode(), self.mode));
        }
        let content = match much {
            HowMuch::All if found.len() != self.size => {
                Some(format!("it has {} bytes, not {}", found.len(), self.size))
            }
            HowMuch::Beginning if found.len() < self.size => {
                Some(format!("it has {} bytes, and had {}", found.len(), self.size))
            }
            HowMuch::Nothing => None,
            _ if !found.is_file() || self.is_digest_of(file)? => None,
            HowMuch::All => Some("its content is another".to_owned()),
            HowMuch::Beginning => Some(format!("its first {} bytes are others", self.size)),
        };
        differences.extend(content);
        Ok(differences)
    }
}

impl HeldFile {
    /// Whether a file begins with the bytes that this one had.
    fn is_digest_of(&self, file: &File) -> Result<bool> {
        let digest =
            if self.sparse { sparse_digest(file, self.size) } else { digest_of(file, self.size) };
        Ok(digest? == self.blake3)
    }
}

/// What was read while the container ran, by its inode.
#[derive(Debug, Default)]
pub struct Digests(HashMap<DevIno, (Stamp, Digest)>);

/// A digest, and whether it passes over what is zeros.
type Digest = (String, bool);

/// What changes with every write that the kernel has noticed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    changed: Time,
}

impl Stamp {
    fn of(found: &Metadata) -> Self {
        Self { size: found.len(), changed: Time::from_kernel(found.ctime(), found.ctime_nsec()) }
    }
}

/// A change that is younger than this, when a file is read, might be followed by another that leaves
/// the same time: the coarsest clock of a file system counts seconds.
const SETTLED: Duration = Duration::from_secs(2);

impl Digests {
    /// Reads what the processes hold while they run.
    pub fn read_ahead(processes: &[Pid], bundle: &Bundle) -> Result<Self> {
        let mut digests = Self::default();
        for (_, file) in held_by(processes, bundle)? {
            let before = file.metadata()?;
            let settled = SystemTime::now() - SETTLED > changed(&before);
            // One that cannot be read now is read again under the freeze.
            if let (true, Ok(digest)) = (settled, digest(&file)) {
                digests.0.insert(DevIno::from(&before), (Stamp::of(&before), digest));
            }
        }
        Ok(digests)
    }

    /// Records what the frozen processes hold. `suspects` are files that may have been written
    /// without a trace in their times.
    pub fn record(
        &self,
        _frozen: &Frozen<'_>,
        processes: &[Pid],
        bundle: &Bundle,
        suspects: &Suspects,
    ) -> Result<Vec<HeldFile>> {
        let held = held_by(processes, bundle)?.into_iter();
        held.map(|(path, file)| {
            let found = file.metadata()?;
            let inode = DevIno::from(&found);
            let known = self.0.get(&inode).filter(|(stamp, _)| *stamp == Stamp::of(&found));
            let (blake3, sparse) = match known {
                Some((_, digest)) if !suspects.contains(inode) => digest.clone(),
                _ => digest(&file).with_context(|| format!("reading {}", path.display()))?,
            };
            Ok(HeldFile {
                path: path.as_path().into(),
                size: found.len(),
                mode: found.mode(),
                mtime: Time::from_kernel(found.mtime(), found.mtime_nsec()),
                blake3,
                sparse,
            })
        })
        .collect()
    }
}

fn changed(found: &Metadata) -> SystemTime {
    let seconds = Duration::from_secs(u64::try_from(found.ctime()).unwrap_or(0));
    SystemTime::UNIX_EPOCH + seconds + Duration::from_nanos(found.ctime_nsec().unsigned_abs())
}

/// Of a file with holes, only what is stored is read: there may be terabytes of nothing.
fn digest(file: &File) -> io::Result<Digest> {
    const SMALL: u64 = 1 << 20;
    let found = file.metadata()?;
    if found.len() > SMALL && found.blocks() * 512 < found.len() {
        return Ok((sparse_digest(file, found.len())?, true));
    }
    Ok((digest_of(file, u64::MAX)?, false))
}

/// The digest of as many bytes from the beginning that passes over what is zeros, stored or not.
fn sparse_digest(file: &File, bytes: u64) -> io::Result<String> {
    const PIECE: u64 = 64 << 10;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; PIECE as usize];
    let mut at = 0;
    while let Some(data) = next_data(file, at, bytes)? {
        at = at.max(data.offset - data.offset % PIECE);
        while at < data.end() {
            let piece = &mut buffer[..PIECE.min(bytes - at) as usize];
            file.read_exact_at(piece, at)?;
            if piece.iter().any(|byte| *byte != 0) {
                hasher.update(&at.to_le_bytes()).update(piece);
            }
            at += piece.len() as u64;
        }
        if at >= bytes {
            break;
        }
    }
    Ok(hasher.finalize().to_hex().to_string())
}

/// The digest of as many bytes from the beginning.
fn digest_of(file: &File, bytes: u64) -> io::Result<String> {
    let mut hasher = blake3::Hasher::new();
    let mut reader = file;
    reader.rewind()?;
    hasher.update_reader(reader.take(bytes))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// The regular files that processes have open or mapped, by the paths at which the container sees
/// them, opened where the host has them.
fn held_by(processes: &[Pid], bundle: &Bundle) -> Result<BTreeMap<PathBuf, File>> {
    let mut held = BTreeMap::new();
    for pid in processes.iter().filter(|pid| !is_zombie(**pid)) {
        let process = Proc::of(*pid);
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
    (DevIno::from(&held) == DevIno::from(&found)).then_some((path, file))
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
            mtime: Time::default(),
            blake3: digest(file).unwrap().0,
            sparse: digest(file).unwrap().1,
        }
    }

    #[test]
    fn what_differs_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "content").unwrap();
        let file = File::open(&path).unwrap();
        let was = held(&file);
        let differences = |much| was.differences(&file, much).unwrap();
        assert_eq!(differences(HowMuch::All), Vec::<String>::new());
        fs::write(&path, "CONTENT").unwrap();
        assert_eq!(differences(HowMuch::All), ["its content is another"]);
        fs::write(&path, "content, and more").unwrap();
        assert_eq!(differences(HowMuch::Beginning), Vec::<String>::new());
        fs::write(&path, "longer content").unwrap();
        assert_eq!(differences(HowMuch::Beginning), ["its first 7 bytes are others"]);
        assert_eq!(differences(HowMuch::Nothing), Vec::<String>::new());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let said = differences(HowMuch::All).join("; ");
        assert!(said.contains("its mode is 100600") && said.contains("14 bytes, not 7"), "{said}");
    }

    /// Terabytes of nothing take no time, and where nothing is stored does not matter.
    #[test]
    fn of_holes_nothing_is_read() {
        let directory = tempfile::tempdir_in("/dev/shm").unwrap();
        let sparse = |name: &str| {
            let path = directory.path().join(name);
            let file = File::options().read(true).write(true).create_new(true).open(path).unwrap();
            file.set_len(4 << 40).unwrap();
            file.write_all_at(b"data", 3 << 40).unwrap();
            file.write_all_at(b"end", (4 << 40) - 3).unwrap();
            file
        };
        let (one, other) = (sparse("one"), sparse("other"));
        let was = held(&one);
        assert!(was.sparse);
        // Zeros that are stored are zeros.
        other.write_all_at(&[0; 100], 1 << 40).unwrap();
        assert_eq!(was.differences(&other, HowMuch::All).unwrap(), Vec::<String>::new());
        other.write_all_at(b"x", (1 << 40) + 7).unwrap();
        assert_eq!(was.differences(&other, HowMuch::All).unwrap(), ["its content is another"]);
        one.write_all_at(b"more", 4 << 40).unwrap();
        assert_eq!(was.differences(&one, HowMuch::Beginning).unwrap(), Vec::<String>::new());
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

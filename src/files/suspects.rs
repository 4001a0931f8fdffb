//! Files whose change the kernel does not record in time.
//!
//! A store through a shared mapping changes the inode's times only when it first dirties a page, and
//! what direct I/O, libaio and io_uring have in flight lands after the times were set. The content of
//! such files is copied again under the freeze, whatever their times say.

use crate::bytes::ByteString;
use crate::proc::Proc;
use crate::proc::fdinfo::parse_fdinfo;
use crate::proc::maps::Mapping;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::unreachable::Reach;
use crate::sys::at_once;
use crate::sys::inode::{DevIno, Device};
use crate::sys::pid::Pid;
use crate::sys::time::Time;

/// Files that may change without a trace, and when that was found out.
#[derive(Clone, Debug)]
pub struct Suspects {
    files: HashSet<DevIno>,
    asynchronous: bool,
    begun: Time,
}

impl Default for Suspects {
    /// Nobody is suspected, from now on.
    fn default() -> Self {
        Self { files: HashSet::new(), asynchronous: false, begun: Time::coarse_now() }
    }
}

impl Suspects {
    /// The files that these processes map shared and writable, hold open for direct I/O, or may write
    /// through an io_uring.
    ///
    /// A process that ends while it is looked at has no such file any more.
    pub fn of(processes: &[Pid]) -> Self {
        let mut suspects = Self::default();
        for pid in processes {
            suspects.look_at(*pid);
        }
        suspects
    }

    /// Whether the file of that inode is one.
    pub fn contains(&self, inode: DevIno) -> bool {
        self.files.contains(&inode)
    }

    /// The inode numbers of those on a device.
    pub fn on(&self, device: Device) -> impl Iterator<Item = u64> + '_ {
        self.files.iter().filter(move |file| file.device == device).map(|file| file.ino)
    }

    /// Whether somebody can have writes in flight on files that are closed already.
    pub fn asynchronous(&self) -> bool {
        self.asynchronous
    }

    /// When looking began, by the clock that file systems stamp with.
    pub fn begun(&self) -> Time {
        self.begun
    }

    /// Adds what was found at another time; it counts from the earlier one.
    pub fn extend(&mut self, other: Self) {
        self.files.extend(other.files);
        self.asynchronous |= other.asynchronous;
        self.begun = self.begun.min(other.begun);
    }

    fn look_at(&mut self, pid: Pid) {
        let process = Proc::of(pid);
        let maps = process.maps();
        for mapping in maps.iter().filter(|mapping| is_shared_file(mapping)) {
            self.insert(&process.at("map_files").join(&mapping.range));
        }
        let open = Open::of(&process);
        let in_kernel = maps.iter().any(|mapping| mapping.path.contains("/[aio]"));
        let has_ring = !open.rings.is_empty()
            || maps.iter().any(|mapping| mapping.path.ends_with(RING))
            || has_ring_thread(&process);
        self.asynchronous |= in_kernel || has_ring;
        let suspected =
            |file: &&File| file.flags & libc::O_DIRECT != 0 || has_ring && file.is_writable();
        open.files.iter().filter(suspected).for_each(|file| self.insert(&file.link));
        let paths: Vec<_> = open.rings.iter().flat_map(|fdinfo| registered(fdinfo)).collect();
        self.insert_seen_by(pid, &paths);
    }

    fn insert(&mut self, link: &Path) {
        if let Ok(found) = at_once::stat_behind(link)
            && found.is_file()
        {
            self.files.insert(found.inode);
        }
    }

    /// Adds what paths mean to a process. It may lie to us, about its own files only.
    fn insert_seen_by(&mut self, process: Pid, paths: &[String]) {
        if paths.is_empty() {
            return;
        }
        let Ok(reach) = Reach::seen_by(process) else { return };
        for path in paths {
            // A file that has no name any more is in no snapshot.
            if let Ok(found) = reach.stat_at(process, path.as_bytes()) {
                self.files.insert(found.inode);
            }
        }
    }
}

/// What the kernel calls an io_uring among descriptors and mappings.
const RING: &str = "anon_inode:[io_uring]";

/// Whether a mapping is shared and of a file. One that cannot be written now counts: `mprotect` leaves
/// no trace.
fn is_shared_file(mapping: &Mapping) -> bool {
    mapping.shared && mapping.inode != 0
}

/// A ring that was closed after its descriptor was registered with itself goes on working: what is
/// left to see of it are its threads (io_uring/io-wq.c, io_uring/sqpoll.c).
fn has_ring_thread(process: &Proc) -> bool {
    let is_rings = |name: ByteString| {
        name.as_bytes().starts_with(b"iou-wrk-") || name.as_bytes().starts_with(b"iou-sqp-")
    };
    process.tasks().is_ok_and(|tasks| tasks.iter().any(|task| is_rings(task.name())))
}

/// What a process has open.
#[derive(Default)]
struct Open {
    files: Vec<File>,
    /// What fdinfo says of each io_uring.
    rings: Vec<String>,
}

struct File {
    link: PathBuf,
    flags: i32,
}

impl File {
    fn is_writable(&self) -> bool {
        self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }
}

impl Open {
    fn of(process: &Proc) -> Self {
        let mut open = Self::default();
        for number in process.descriptors().unwrap_or_default() {
            let Ok(fdinfo) = process.fdinfo_text(number) else { continue };
            let link = process.descriptor(number);
            if fs::read_link(&link).is_ok_and(|target| target == Path::new(RING)) {
                open.rings.push(fdinfo);
            } else {
                let flags = parse_fdinfo(&fdinfo).flags.cast_signed();
                open.files.push(File { link, flags });
            }
        }
        open
    }
}

/// The files that a ring can write without a descriptor: `UserFiles:` and a line for each, number
/// and path (io_uring/fdinfo.c).
fn registered(fdinfo: &str) -> Vec<String> {
    let below = fdinfo.lines().skip_while(|line| !line.starts_with("UserFiles:")).skip(1);
    below
        .map_while(|line| {
            let (number, path) = line.trim_start().split_once(": ")?;
            number.parse::<u32>().ok()?;
            Some(unescape(path))
        })
        .collect()
}

/// Undoes seq_file_path's escapes, `\ooo`.
fn unescape(path: &str) -> String {
    let mut bytes = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|code| std::str::from_utf8(code).ok());
        let byte = code.and_then(|code| u8::from_str_radix(code, 8).ok());
        match byte.filter(|_| first == b'\\') {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proc::maps::parse_maps;

    #[test]
    fn shared_mappings_of_files() {
        let first = |line: &str| parse_maps(line).first().is_some_and(is_shared_file);
        assert!(first("7f0000000000-7f0000001000 rw-s 00000000 fe:00 42 /a b"));
        for other in ["7f00-7f10 rw-p 0 fe:00 42 /a", "7f00-7f10 rw-s 0 00:00 0", "7f00-7f10"] {
            assert!(!first(other), "{other}");
        }
    }

    #[test]
    fn direct_io_and_writing_are_told_by_the_flags() {
        let flags = |text| parse_fdinfo(text).flags.cast_signed();
        assert_ne!(flags("pos:\t0\nflags:\t0140002\n") & libc::O_DIRECT, 0);
        assert_eq!(flags("pos:\t0\nflags:\t0100002\n") & libc::O_DIRECT, 0);
        assert!(File { link: "x".into(), flags: flags("flags:\t0100002\n") }.is_writable());
        assert!(!File { link: "x".into(), flags: flags("flags:\t0100000\n") }.is_writable());
        assert_eq!(flags(""), 0);
    }

    #[test]
    fn files_that_a_ring_keeps_by_itself() {
        let fdinfo = "flags:\t02\nUserFiles:\t3\n    0: /data/a\\040b\n    2: /x\nUserBufs:\t0\n";
        assert_eq!(registered(fdinfo), ["/data/a b", "/x"]);
        assert!(registered("UserFiles:\t0\nUserBufs:\t0\n").is_empty());
    }
}

//! Finding files by their inode numbers, where nothing tells their names.
//!
//! The kernel says of a watch and of an open file whose name was removed which inode it is, and of
//! the inode no name. On overlay no handle leads there either, so the directories are read. That
//! takes as long as there are files: it is done while the container runs, and what was found is
//! only looked at again when it stands still.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::criu::configuration::standing_values;
use crate::criu::remaps;
use crate::freezer::Still;
use crate::proc::Proc;
use crate::runtime::Runtime;
use crate::sys::inode::DevIno;
use crate::sys::pid::Pid;

/// How many names are read for all that is looked for.
const MOST: usize = 4 << 20;
/// The same while the container stands still: some ten milliseconds.
const MOST_FROZEN: usize = 20_000;

/// Finds files of one container, and remembers where they were.
#[derive(Clone, Debug)]
pub struct Finder {
    /// The container's first process, whose root directory is meant.
    init: Pid,
    /// Where it looks first.
    first: Vec<PathBuf>,
    memory: RefCell<Memory>,
}

/// What it has found, and how much it may still read.
#[derive(Clone, Debug)]
struct Memory {
    known: HashMap<DevIno, PathBuf>,
    missed: HashSet<DevIno>,
    left: usize,
}

impl Finder {
    /// For a container with that first process. It looks first where the administrator has CRIU search
    /// (`irmap-scan-path`), and then where CRIU searches by itself (`hints` in criu/irmap.c).
    pub fn of(init: Pid, runtime: &Runtime) -> Result<Self> {
        const HINTS: [&str; 7] = [
            "/etc",
            "/var/spool",
            "/var/log",
            "/usr/share/dbus-1/services",
            "/usr/share/dbus-1/system-services",
            "/var/lib/polkit-1/localauthority",
            "/usr/share/polkit-1/actions",
        ];
        let said = standing_values(&runtime.name(), "irmap-scan-path")?;
        let said = said.into_iter().map(PathBuf::from);
        Ok(Self::new(init, said.chain(HINTS.map(PathBuf::from)).collect()))
    }

    /// For a container with that first process; it looks into some directories before all others.
    fn new(init: Pid, first: Vec<PathBuf>) -> Self {
        let memory = Memory { known: HashMap::new(), missed: HashSet::new(), left: MOST };
        Self { init, first, memory: RefCell::new(memory) }
    }

    /// Reads little from now on, if the container stands still.
    pub fn limit(&self, still: Still<'_>) {
        self.memory.borrow_mut().left = if still.is_frozen() { MOST_FROZEN } else { MOST };
    }

    /// Where files are now, as the container's root directory has it; those that are not found are
    /// left out. It looks below the mount points `tops`, and on no other mount.
    pub fn find(&self, wanted: &HashSet<DevIno>, tops: &[PathBuf]) -> HashMap<DevIno, PathBuf> {
        let Ok(root) = open_root(self.init) else { return HashMap::new() };
        let mut memory = self.memory.borrow_mut();
        memory.known.retain(|inode, path| !wanted.contains(inode) || is_at(&root, path, *inode));
        let unknown =
            |inode: &&DevIno| !memory.known.contains_key(*inode) && !memory.missed.contains(*inode);
        let unknown: HashSet<DevIno> = wanted.iter().filter(unknown).copied().collect();
        if !unknown.is_empty() {
            let mut walk = Walk::new(&root, unknown, memory.left);
            // What else is mounted there may be somebody's who does not answer.
            self.first.iter().for_each(|place| walk.below(place, ResolveFlags::NO_XDEV));
            tops.iter().for_each(|top| walk.below(top, ResolveFlags::empty()));
            memory.left = walk.left;
            memory.known.extend(walk.found);
            memory.missed.extend(walk.wanted);
        }
        let known = memory.known.iter().filter(|(inode, _)| wanted.contains(inode));
        known.map(|(inode, path)| (*inode, path.clone())).collect()
    }
}

fn open_root(init: Pid) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(Proc::of(init).root(), flags, Mode::empty())
}

/// What a path of the container means without a link in it.
fn open_in(
    root: &OwnedFd,
    path: &Path,
    flags: OFlags,
    across: ResolveFlags,
) -> rustix::io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS | across;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn is_at(root: &OwnedFd, path: &Path, inode: DevIno) -> bool {
    let found = open_in(root, path, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::empty());
    found.and_then(rustix::fs::fstat).is_ok_and(|stat| DevIno::from(&stat) == inode)
}

/// Reads directories until everything is found, the nearer ones first.
struct Walk<'a> {
    root: &'a OwnedFd,
    wanted: HashSet<DevIno>,
    found: HashMap<DevIno, PathBuf>,
    left: usize,
}

impl<'a> Walk<'a> {
    fn new(root: &'a OwnedFd, wanted: HashSet<DevIno>, left: usize) -> Self {
        Self { root, wanted, found: HashMap::new(), left }
    }

    /// Reads a directory and all below it on the same mount.
    fn below(&mut self, place: &Path, across: ResolveFlags) {
        let Ok(top) = open_in(self.root, place, OFlags::RDONLY | OFlags::DIRECTORY, across) else {
            return;
        };
        let mut queue = VecDeque::from([PathBuf::new()]);
        while let Some(path) = queue.pop_front() {
            if self.wanted.is_empty() || self.left == 0 {
                return;
            }
            if let Ok(directory) = open_below(&top, &path) {
                self.read(&directory, &place.join(&path), &path, &mut queue);
            }
        }
    }

    /// Looks at a directory and its names; those of directories go to the queue.
    fn read(
        &mut self,
        directory: &OwnedFd,
        whole: &Path,
        below: &Path,
        queue: &mut VecDeque<PathBuf>,
    ) {
        self.note(rustix::fs::fstat(directory), whole);
        let Ok(entries) = Dir::read_from(directory) else { return };
        for entry in entries.flatten() {
            let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
            // A name of CRIU's is gone again when it would be needed.
            let bytes = name.as_os_str().as_bytes();
            if matches!(bytes, b"." | b"..") || remaps::is_link(bytes) {
                continue;
            }
            self.left = self.left.saturating_sub(1);
            if self.left == 0 {
                return;
            }
            // A directory says its number itself, when its turn comes.
            match entry.file_type() {
                FileType::Directory => queue.push_back(below.join(name)),
                _ if !self.has_number(entry.ino()) => {}
                _ => {
                    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
                    self.note(stat, &whole.join(name));
                }
            }
        }
    }

    fn has_number(&self, number: u64) -> bool {
        self.wanted.iter().any(|wanted| wanted.ino == number)
    }

    fn note(&mut self, stat: rustix::io::Result<Stat>, path: &Path) {
        if let Ok(inode) = stat.as_ref().map(DevIno::from)
            && self.wanted.remove(&inode)
        {
            self.found.insert(inode, path.to_owned());
        }
    }
}

/// A directory below another one, on the same mount, reached through no link.
fn open_below(top: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat2(top, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::freezer::Frozen;
    use std::fs;

    fn inode(path: &Path) -> DevIno {
        DevIno::from(&rustix::fs::lstat(path).unwrap())
    }

    fn own() -> Finder {
        Finder::new(Pid::own(), Vec::new())
    }

    #[test]
    fn files_and_directories_are_found_and_found_again() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/file"), "").unwrap();
        let wanted = [top.clone(), top.join("a/b"), top.join("a/b/file")];
        let inodes: HashSet<DevIno> = wanted.iter().map(|path| inode(path)).collect();
        let finder = own();
        let found = finder.find(&inodes, std::slice::from_ref(&top));
        assert!(wanted.iter().all(|path| found[&inode(path)] == *path), "{found:?}");

        // What moves while little may be read any more is found where it is now, or not at all.
        fs::rename(top.join("a"), top.join("c")).unwrap();
        finder.limit(Still::Frozen(&Frozen::of_nobody()));
        let found = finder.find(&inodes, std::slice::from_ref(&top));
        assert_eq!(found[&inode(&top.join("c/b/file"))], top.join("c/b/file"));
        fs::remove_file(top.join("c/b/file")).unwrap();
        assert_eq!(finder.find(&inodes, &[top]).len(), 2);
    }

    #[test]
    fn links_lead_nowhere_and_a_limit_is_one() {
        let scratch = tempfile::tempdir().unwrap();
        let top = scratch.path().canonicalize().unwrap();
        fs::create_dir(top.join("real")).unwrap();
        fs::write(top.join("real/file"), "").unwrap();
        fs::create_dir(top.join("other")).unwrap();
        std::os::unix::fs::symlink("../real", top.join("other/link")).unwrap();
        let wanted = HashSet::from([inode(&top.join("real/file"))]);
        assert!(own().find(&wanted, &[top.join("other")]).is_empty());
        assert!(own().find(&wanted, &[top.join("other/link")]).is_empty());
        let tired = own();
        tired.memory.borrow_mut().left = 1;
        assert!(tired.find(&wanted, std::slice::from_ref(&top)).is_empty());
        assert!(tired.find(&wanted, &[top]).is_empty(), "what was missed is not looked for again");
    }
}

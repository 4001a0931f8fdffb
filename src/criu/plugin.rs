//! A library of ours in CRIU (`plugin/`), for what CRIU does not do.
//!
//! - Open files that it cannot dump are *set aside*. Of a file for which a plugin answers, CRIU keeps
//!   an identifier and who holds it, and asks for nothing more. But it asks plugins for few of the kinds
//!   that it refuses. So the library is preloaded into CRIU, and is its plugin too: for it, the chosen
//!   open files are of a kind that CRIU has never heard of. The kernel tells which ones they are, by
//!   comparing open file descriptions; whoever shares one in the container shares it in the images.
//! - Calls that sleep, which a dump would end with `EINTR`, go on.
//! - Locks of ranges that a restore loses are taken again, by their holders, before they run: CRIU
//!   opens what is mapped after it has set the locks (`restore_one_alive_task` in criu/cr-restore.c),
//!   and closes it again when it is mapped (`restore_mapping` in criu/pie/restorer.c); and a process
//!   that closes any descriptor of a file gives up its locks of ranges on that file (fcntl(2)).
//!
//! What it is told is the file `told` in the door's directory, and what it has to say `report` there.
//! The library is part of this program. The interposer puts it into a file in memory, which it keeps
//! open for the CRIU that it becomes: `/run` may be mounted `noexec`.

use crate::proc::Proc;
use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::MemfdFlags;

use super::images::entries::FileLock;
use super::protocol::FIRST_FD;
use crate::container::Holder;
use crate::sys::at_once;
use crate::sys::inode::DevIno;
use crate::sys::pid::{InnerPid, ProcessFd};

/// The library, as `build.rs` has made it.
const LIBRARY: &[u8] = include_bytes!(env!("OCICLE_PLUGIN"));

/// The number of the descriptor that CRIU inherits of it: before those of replacements.
const FD: RawFd = FIRST_FD - 1;

/// The environment variable that leads the library to the door's directory.
const DIRECTORY: &str = "OCICLE_PLUGIN";

/// What the library is told, and says.
const TOLD: &str = "told";
const REPORT: &str = "report";

/// CRIU asks of each of its own descriptors, and the library goes through all of these each time.
const MOST_ASIDE: usize = 1000;

/// More than a container's processes have, and few enough for a restore to end.
const MOST_LOCKS: usize = 100_000;

/// What the library is told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// Whether calls that sleep shall go on after a dump.
    pub sleepers: bool,
    /// Open files that CRIU shall not look at.
    pub set_aside: Vec<SetAside>,
    /// Locks of ranges that their holders take again.
    pub locks: Vec<FileLock>,
}

impl Told {
    /// Whether there is nothing to tell, and no need for the library.
    pub fn is_empty(&self) -> bool {
        !self.sleepers && !self.is_for_hooks()
    }

    /// Whether CRIU has to call the library, and not only the library what CRIU would call.
    pub(super) fn is_for_hooks(&self) -> bool {
        !self.set_aside.is_empty() || !self.locks.is_empty()
    }

    /// Writes it down for a library that is not loaded yet.
    pub(super) fn write(&self, directory: &Path) -> Result<()> {
        let path = directory.join(TOLD);
        fs::write(&path, self.to_text()?).with_context(|| format!("writing {}", path.display()))
    }

    fn to_text(&self) -> Result<String> {
        let Self { sleepers, set_aside, locks } = self;
        let many = set_aside.len();
        ensure!(many <= MOST_ASIDE, "{many} open files are more than can be set aside");
        ensure!(locks.len() <= MOST_LOCKS, "{} locks are more than can be taken", locks.len());
        let mut text = if *sleepers { "sleepers\n".to_owned() } else { String::new() };
        // Writing to a string does not fail.
        for SetAside { by: ProcessFd { pid, fd }, inode } in set_aside {
            let (device, ino) = (inode.device.as_stat(), inode.ino);
            let _ = writeln!(text, "aside {device} {ino} {pid} {fd}");
        }
        for FileLock { pid, fd, access, start, length, .. } in locks {
            ensure!(
                *access <= libc::F_WRLCK as u32,
                "fd {fd} of pid {pid}: no such lock: {access}"
            );
            let _ = writeln!(text, "lock {pid} {fd} {access} {start} {length}");
        }
        Ok(text)
    }
}

/// What the library could not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// A holder could not take its lock again.
    Lock {
        /// The holder, as the container sees it, if one could be asked.
        holder: Option<Holder>,
        /// The kernel's answer.
        errno: i32,
    },
}

/// What the library has reported as failed in the door of that directory, if anything.
pub fn failure(directory: &Path) -> Option<Failure> {
    parse_report(&fs::read_to_string(directory.join(REPORT)).ok()?)
}

fn parse_report(text: &str) -> Option<Failure> {
    let line = text.lines().find_map(|line| line.strip_prefix("lock "))?;
    let mut words = line.split(' ').map(str::parse::<i32>);
    let mut next = || words.next()?.ok();
    let (pid, fd, errno) = (next()?, next()?, next()?);
    let holder = Holder { pid: InnerPid(pid), fd };
    Some(Failure::Lock { holder: (pid > 0).then_some(holder), errno })
}

/// An open file that CRIU is not to look at: by one of its file descriptors, and by what it is a
/// descriptor of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAside {
    by: ProcessFd,
    inode: DevIno,
}

impl SetAside {
    /// The open file behind a file descriptor of a process.
    pub fn of(by: ProcessFd) -> io::Result<Self> {
        let inode = at_once::stat_behind(&Proc::of(by.pid).descriptor(by.fd))?.inode;
        Ok(Self { by, inode })
    }

    /// Which inode it is.
    pub fn inode(&self) -> DevIno {
        self.inode
    }
}

/// Loads the library into the CRIU to come, for what was told in the door's directory.
pub(super) fn preload(criu: &mut Command, directory: &Path) -> Result<()> {
    let context = || "keeping the plugin for CRIU in memory";
    let memory =
        rustix::fs::memfd_create("ocicle-criu", MemfdFlags::CLOEXEC).with_context(context)?;
    let mut memory = fs::File::from(memory);
    memory.write_all(LIBRARY).with_context(context)?;
    let placed = rustix::io::fcntl_dupfd_cloexec(&memory, FD).with_context(context)?;
    rustix::io::fcntl_setfd(&placed, rustix::io::FdFlags::empty())?;
    ensure!(placed.into_raw_fd() == FD, "descriptor {FD} is in use");
    criu.env("LD_PRELOAD", own_path()).env(DIRECTORY, directory);
    Ok(())
}

fn own_path() -> PathBuf {
    Proc::own().descriptor(FD)
}

/// Makes the directory that CRIU takes its plugins from: the system's, and ours.
///
/// CRIU takes them from one directory only, and the system's may have to be there: without its own,
/// what uses a graphics card is not dumped.
pub(super) fn directory(path: &Path) -> Result<()> {
    let context = || format!("making {}", path.display());
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made.with_context(context)?,
    }
    symlink(own_path(), path.join("ocicle.so")).with_context(context)?;
    systems().map_or(Ok(()), |system| link_all(&system, path))
}

/// Makes links in a directory to the plugins of another.
fn link_all(system: &Path, path: &Path) -> Result<()> {
    for entry in fs::read_dir(system).with_context(|| format!("reading {}", system.display()))? {
        let name = entry?.file_name();
        if name.as_encoded_bytes().ends_with(b".so") && name != "ocicle.so" {
            symlink(system.join(&name), path.join(&name))
                .with_context(|| format!("making {}", path.join(&name).display()))?;
        }
    }
    Ok(())
}

/// The directory that CRIU would take plugins from. Its default is built in, and differs
/// (`PLUGINDIR` of its Makefile).
fn systems() -> Option<PathBuf> {
    const DEFAULTS: [&str; 4] =
        ["/usr/lib/criu", "/usr/lib64/criu", "/usr/local/lib/criu", "/usr/local/lib64/criu"];
    let named = std::env::var_os("CRIU_LIBS_DIR").map(PathBuf::from);
    named.or_else(|| DEFAULTS.iter().map(PathBuf::from).find(|path| path.is_dir()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::pid::Pid;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_file_is_named_by_what_tells_it_from_others() {
        let file = fs::File::open("/dev/null").unwrap();
        let own = Pid::own();
        let aside = SetAside::of(ProcessFd::own(file.as_raw_fd())).unwrap();
        let meta = file.metadata().unwrap();
        let line = format!("aside {} {} {own} {}\n", meta.dev(), meta.ino(), file.as_raw_fd());
        let told = |set_aside| Told { set_aside, ..Told::default() }.to_text();
        assert_eq!(told(vec![aside, aside]).unwrap(), format!("{line}{line}"));
        assert!(told(vec![aside; MOST_ASIDE + 1]).is_err());
        assert!(SetAside::of(ProcessFd::own(-1)).is_err());
    }

    #[test]
    fn locks_are_those_of_fcntl_and_not_without_end() {
        let lock = FileLock { flag: 1, access: 1, pid: InnerPid(7), fd: 3, start: 120, length: 0 };
        let told = |locks| Told { locks, ..Told::default() }.to_text();
        assert_eq!(told(vec![lock]).unwrap(), "lock 7 3 1 120 0\n");
        assert!(told(vec![FileLock { access: 2, ..lock }]).is_err(), "F_UNLCK");
        assert!(told(vec![lock; MOST_LOCKS + 1]).is_err());
    }

    #[test]
    fn what_the_library_reports() {
        let failed = |holder, errno| Some(Failure::Lock { holder, errno });
        assert_eq!(
            parse_report("lock 7 3 11\nlock 8 3 11\n"),
            failed(Some(Holder { pid: InnerPid(7), fd: 3 }), 11)
        );
        assert_eq!(parse_report("lock -1 -1 3\n"), failed(None, 3));
        assert_eq!(parse_report("lock 7 3\n"), None);
        assert_eq!(parse_report(""), None);
    }

    #[test]
    fn the_plugins_of_the_system_stay() {
        let (system, ours) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for name in ["amdgpu_plugin.so", "ocicle.so", "README"] {
            fs::write(system.path().join(name), name).unwrap();
        }
        link_all(system.path(), ours.path()).unwrap();
        let names: Vec<_> =
            fs::read_dir(ours.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(names, ["amdgpu_plugin.so"]);
        assert_eq!(fs::read(ours.path().join("amdgpu_plugin.so")).unwrap(), b"amdgpu_plugin.so");
    }

    #[test]
    fn the_library_is_one_for_this_machine() {
        let ours = fs::read("/proc/self/exe").unwrap();
        assert_eq!(LIBRARY[..4], *b"\x7fELF");
        assert_eq!(LIBRARY[4..6], ours[4..6], "class and byte order");
        assert_eq!(LIBRARY[18..20], ours[18..20], "machine");
    }
}

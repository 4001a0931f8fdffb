//! Open files that CRIU does not look at, though it cannot dump them.
//!
//! Of a file for which a plugin answers, CRIU keeps an identifier and who holds it, and asks for
//! nothing more. But it asks plugins for few of the kinds that it refuses. So a library of ours
//! (`plugin/`, which says how) is preloaded into CRIU, and is its plugin too: for it, the chosen
//! open files are of a kind that CRIU has never heard of. The kernel tells which ones they are, by
//! comparing open file descriptions; whoever shares one in the container shares it in the images.
//!
//! The library is part of this program. The interposer puts it into a file in memory, which it
//! keeps open for the CRIU that it becomes: `/run` may be mounted `noexec`.

use std::fmt::Write as _;
use std::fs::{self, DirBuilder};
use std::io::{self, Write as _};
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::fs::MemfdFlags;

use super::protocol::FIRST_FD;

/// The library, as `build.rs` has made it.
const LIBRARY: &[u8] = include_bytes!(env!("OCICLE_PLUGIN"));

/// The number of the descriptor that CRIU inherits of it: before those of replacements.
const FD: RawFd = FIRST_FD - 1;

/// What the library reads its list from.
const LIST: &str = "OCICLE_SET_ASIDE";

/// More than this would not fit into one message of the door's: an entry has less than 60 bytes.
const LIMIT: usize = 1000;

/// An open file that CRIU is not to look at: by one of its file descriptors, and by what it is a
/// descriptor of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetAside {
    process: i32,
    fd: i32,
    device: u64,
    inode: u64,
}

impl SetAside {
    /// The open file behind a file descriptor of a process, by the number that it has here.
    pub fn of(process: i32, fd: i32) -> io::Result<Self> {
        let stat = fs::metadata(format!("/proc/{process}/fd/{fd}"))?;
        Ok(Self { process, fd, device: stat.dev(), inode: stat.ino() })
    }

    /// The device and the inode.
    pub fn identity(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// The list of them, for the library.
pub(super) fn list(files: &[SetAside]) -> Result<String> {
    ensure!(files.len() <= LIMIT, "{} open files are more than can be set aside", files.len());
    let mut list = String::new();
    for SetAside { process, fd, device, inode } in files {
        // Writing to a string does not fail.
        let _ = write!(list, "{device:x}:{inode:x}:{process}:{fd} ");
    }
    Ok(list.trim_end().to_owned())
}

/// Loads the library into the CRIU to come.
pub(super) fn preload(criu: &mut Command, list: &str) -> Result<()> {
    let context = || "keeping the plugin for CRIU in memory";
    let memory =
        rustix::fs::memfd_create("ocicle-criu", MemfdFlags::CLOEXEC).with_context(context)?;
    let mut memory = fs::File::from(memory);
    memory.write_all(LIBRARY).with_context(context)?;
    let placed = rustix::io::fcntl_dupfd_cloexec(&memory, FD).with_context(context)?;
    rustix::io::fcntl_setfd(&placed, rustix::io::FdFlags::empty())?;
    ensure!(placed.into_raw_fd() == FD, "descriptor {FD} is in use");
    criu.env("LD_PRELOAD", own_path()).env(LIST, list);
    Ok(())
}

fn own_path() -> PathBuf {
    format!("/proc/self/fd/{FD}").into()
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
    use std::os::fd::AsRawFd;

    #[test]
    fn a_file_is_named_by_what_tells_it_from_others() {
        let file = fs::File::open("/dev/null").unwrap();
        let own = i32::try_from(std::process::id()).unwrap();
        let aside = SetAside::of(own, file.as_raw_fd()).unwrap();
        let meta = file.metadata().unwrap();
        let entry = format!("{:x}:{:x}:{own}:{}", meta.dev(), meta.ino(), file.as_raw_fd());
        assert_eq!(list(&[aside, aside]).unwrap(), format!("{entry} {entry}"));
        assert!(list(&vec![aside; LIMIT + 1]).is_err());
        assert!(SetAside::of(own, -1).is_err());
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

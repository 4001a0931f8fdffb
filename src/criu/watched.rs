//! Where watched files are: what CRIU reads when it starts, `irmap-cache`.
//!
//! CRIU dumps a watch by the path of the watched file. Where no handle opens the file, as on overlay,
//! it reads whole directories for that, some that it knows and those of `irmap-scan-path`, and that
//! while the container stands still. A file in its working directory saves it the search: each entry
//! leads to one file, and CRIU makes sure that it is there (`irmap_load_cache` and `irmap_lookup` in
//! criu/irmap.c). It is read after the pre-dump script (`cr_dump_tasks` in criu/cr-dump.c), so that
//! script's answer is the time to write it.

use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result};

use super::images::image::{Image, ImageKind};
use super::images::wire::Message;
use crate::proc::Proc;
use crate::sys::directory::Directory;
use crate::sys::inode::DevIno;
use crate::sys::pid::Pid;

/// The name of the file.
const NAME: &str = "irmap-cache";

/// The file, until CRIU has read it.
#[derive(Debug)]
pub struct WatchedPaths {
    directory: Directory,
}

impl WatchedPaths {
    /// Where it will be for a CRIU that waits in its pre-dump script: the directory, and the name.
    pub fn place(criu: Pid) -> Result<(Directory, &'static str)> {
        let work = Proc::of(criu).at("cwd");
        let directory = Directory::open(&work);
        Ok((directory.with_context(|| format!("opening {}", work.display()))?, NAME))
    }

    /// Writes it for a CRIU that waits in its pre-dump script: inodes and paths.
    pub fn write<'a>(criu: Pid, files: impl Iterator<Item = (DevIno, &'a Path)>) -> Result<Self> {
        let (directory, _) = Self::place(criu)?;
        let entries = files.map(|(inode, path)| entry(inode, path));
        let image = Image::empty(ImageKind::WatchedPaths).with(entries);
        // Nothing of it has to outlive a crash.
        let (mut file, new) = directory.begin(NAME).with_context(|| format!("writing {NAME}"))?;
        std::io::Write::write_all(&mut file, &image)
            .and_then(|()| new.finish())
            .with_context(|| format!("writing {NAME}"))?;
        Ok(Self { directory })
    }
}

impl Drop for WatchedPaths {
    fn drop(&mut self) {
        if let Err(error) = self.directory.remove(NAME) {
            tracing::warn!("removing {NAME}: {error}");
        }
    }
}

/// `irmap_cache_entry` of images/fh.proto; the device as the kernel numbers it within.
fn entry(inode: DevIno, path: &Path) -> Vec<u8> {
    // CRIU looks below the root directory for what follows the first byte, and for nothing if there
    // is nothing.
    let path = if path == Path::new("/") { Path::new("/.") } else { path };
    let mut message = Message::default();
    message.push_number(1, inode.device.as_kernel().into());
    message.push_number(2, inode.ino);
    message.push_bytes(3, path.as_os_str().as_bytes());
    message.encode()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::inode::Device;

    #[test]
    fn what_criu_reads_and_nothing_after_it() {
        let scratch = tempfile::tempdir().unwrap();
        let mut cat = std::process::Command::new("cat");
        let cat = cat.current_dir(scratch.path()).stdin(std::process::Stdio::piped());
        let mut cat = cat.spawn().unwrap();
        let criu = Pid::of(&cat);
        let inode = |major, minor, ino| DevIno { device: Device::new(major, minor), ino };
        let files = [(inode(0, 0x2a, 7), Path::new("/data/x")), (inode(8, 1, 2), Path::new("/"))];
        let watched = WatchedPaths::write(criu, files.into_iter()).unwrap();
        let path = scratch.path().join(WatchedPaths::place(criu).unwrap().1);
        let image = Image::parse(ImageKind::WatchedPaths, std::fs::read(&path).unwrap()).unwrap();
        let read = |message: &Message<'_>| {
            let path = message.need_bytes(3, "path")?.to_vec();
            Ok((message.need_u32(1, "dev")?, message.need_u64(2, "inode")?, path))
        };
        let expected = vec![(0x2a, 7, b"/data/x".to_vec()), (8 << 20 | 1, 2, b"/.".to_vec())];
        assert_eq!(image.read(read).unwrap(), expected);
        drop(watched);
        assert_eq!(scratch.path().read_dir().unwrap().count(), 0);
        drop(cat.stdin.take());
        cat.wait().unwrap();
    }
}

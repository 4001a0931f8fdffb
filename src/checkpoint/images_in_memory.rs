//! CRIU's images in memory while the container stands still.
//!
//! They are written to a tmpfs that is mounted nowhere and lives as long as its descriptor: whoever
//! dies leaves nothing of it behind. After the thaw they are moved to the image directory. That is
//! for containers that go on; one that ends must be on disk before it does.

use std::io::BufReader;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::CheckpointRequest;
use crate::container::memory_left;
use crate::proc::Proc;
use crate::proc::memory::MachineMemory;
use crate::sys::direct::DirectStream;
use crate::sys::directory::Directory;
use crate::sys::mount;
use crate::sys::pid::Pid;

/// Where CRIU writes its images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ImagesIn {
    /// To memory, and to disk after the thaw; for --leave-running
    Memory,
    /// To the image directory at once
    Disk,
    /// To memory where the disk would make CRIU wait and half of what is free is enough
    #[default]
    Auto,
}

/// The images in memory.
#[derive(Debug)]
pub(super) struct ImagesInMemory(OwnedFd);

impl ImagesInMemory {
    /// Makes room for images of so many bytes, if that is wished and can be.
    pub(super) fn for_images(request: &CheckpointRequest, needed: u64) -> Result<Option<Self>> {
        match request.stage {
            ImagesIn::Disk => return Ok(None),
            _ if must_be_on_disk(request) => return Ok(None),
            ImagesIn::Auto if !gains(&machine()?, needed) => return Ok(None),
            ImagesIn::Auto => {}
            ImagesIn::Memory => ensure_room(&machine()?, needed)?,
        }
        Ok(Some(Self(mount::tmpfs().context("making a tmpfs for the images")?)))
    }

    /// How the runtime and CRIU find it, as long as this process lives.
    pub(super) fn path(&self) -> PathBuf {
        Proc::of(Pid::own()).descriptor(self.0.as_raw_fd())
    }

    /// Copies the images to the image directory. They are not synced.
    pub(super) fn move_to(self, directory: &Path) -> Result<()> {
        let from = self.path();
        let from = Directory::open(&from).context("opening the images in memory")?;
        let moving = || format!("moving the images to {}", directory.display());
        let to = Directory::open(directory).with_context(moving)?;
        for name in from.names().context("reading the images in memory")? {
            let name = String::from_utf8(name).context("reading the name of an image")?;
            // Memory is given back file by file.
            copy(&from, &to, &name)
                .and_then(|()| Ok(from.remove(&name)?))
                .with_context(|| format!("moving {name} to {}", directory.display()))?;
        }
        Ok(())
    }
}

/// A container that ends is on disk before it does; a dump on top of another one refers to it by a
/// path.
fn must_be_on_disk(request: &CheckpointRequest) -> bool {
    let several = request.has_flag("--parent-path") || request.has_flag("--pre-dump");
    !request.leave_running || several
}

/// Copies an image to a new file. The directory may be anybody's: what has the name there is replaced,
/// and never written to.
fn copy(from: &Directory, to: &Directory, name: &str) -> Result<()> {
    let source = from.file(name)?.context("it is missing")?;
    // The root of a user namespace reads some of them: the mode is the one that CRIU chose.
    let permissions = source.metadata()?.permissions();
    let (file, new) = to.begin(name)?;
    // By its buffer, where std::io::copy would read 8 KiB at a time.
    let mut source = BufReader::with_capacity(1 << 20, source);
    let mut target = DirectStream::new(file);
    std::io::copy(&mut source, &mut target)?;
    target.finish()?.set_permissions(permissions)?;
    Ok(new.finish()?)
}

/// The machine's memory, as far as the control group lets us have it: what CRIU writes counts as ours.
pub(super) fn machine() -> Result<MachineMemory> {
    let machine = MachineMemory::read()?;
    let left = memory_left()?.unwrap_or(u64::MAX);
    Ok(MachineMemory { available: machine.available.min(left), ..machine })
}

/// The page cache is quicker than a tmpfs, until the kernel writes to the disk what is in it: that
/// takes a processor and locks of the file system from CRIU.
fn gains(machine: &MachineMemory, needed: u64) -> bool {
    machine.would_write(needed) && machine.has_plenty(needed)
}

fn ensure_room(machine: &MachineMemory, needed: u64) -> Result<()> {
    ensure!(
        needed < machine.available,
        "there is too little memory for the images: {} MiB are available, {} MiB are needed",
        machine.available >> 20,
        needed >> 20
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn an_image_replaces_a_link_and_keeps_its_mode() {
        let top = tempfile::tempdir().unwrap();
        let at = |name: &str| top.path().join(name);
        fs::write(at("victim"), "of the host").unwrap();
        fs::write(at("pages-1.img"), "of the container").unwrap();
        fs::set_permissions(at("pages-1.img"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::create_dir(at("images")).unwrap();
        for name in ["images/pages-1.img", "images/pages-1.img.partial"] {
            symlink(at("victim"), at(name)).unwrap();
        }
        let images = Directory::open(&at("images")).unwrap();
        copy(&Directory::open(top.path()).unwrap(), &images, "pages-1.img").unwrap();
        assert_eq!(fs::read(at("victim")).unwrap(), b"of the host");
        let made = fs::symlink_metadata(at("images/pages-1.img")).unwrap();
        assert!(made.is_file());
        assert_eq!(made.permissions().mode() & 0o7777, 0o644);
        assert_eq!(fs::read(at("images/pages-1.img")).unwrap(), b"of the container");
    }

    #[test]
    fn memory_is_chosen_where_the_disk_would_be_waited_for() {
        let machine = |dirty| MachineMemory { available: 16 << 30, dirty, limit: 3 << 30 };
        assert!(!gains(&machine(0), 1 << 30));
        assert!(!gains(&machine(1 << 30), 1 << 30));
        assert!(gains(&machine(5 << 29), 1 << 30), "much is dirty already");
        assert!(gains(&machine(0), 4 << 30));
        assert!(!gains(&machine(0), 9 << 30), "there is not so much room");
        assert!(ensure_room(&machine(0), 9 << 30).is_ok());
        assert!(ensure_room(&machine(0), 17 << 30).is_err());
    }
}

//! The names that CRIU has made of files for the time of the dump.
//!
//! They belong to no part: a restore makes them again, of another name that the file has.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use rustix::fs::{AtFlags, Mode, OFlags};

use crate::bytes::ByteString;
use crate::container::Container;
use crate::criu::images::ImageDir;
use crate::criu::remaps;
use crate::files::Finder;
use crate::hint::WithHint;
use crate::proc::Proc;
use crate::proc::mountinfo::{Mount, mount_of};
use crate::store::manifest::LinkRemap;
use crate::sys::fs;
use crate::sys::inode::DevIno;

/// Those names. Whoever drops this has seen the dump end: what CRIU leaves, as of a container that has
/// ended, is removed then.
#[derive(Debug, Default)]
pub(super) struct Links(Vec<Made>);

#[derive(Debug)]
struct Made {
    record: LinkRemap,
    directory: OwnedFd,
    inode: DevIno,
}

impl Links {
    /// Looks what a dump has made, which waits in its post-dump script.
    ///
    /// # Errors
    /// When one of the files has no name by which a restore would find it.
    pub(super) fn of_dump(images: &Path, container: &Container, finder: &Finder) -> Result<Self> {
        let links = remaps::links(&ImageDir::open(images)?)?;
        if links.is_empty() {
            return Ok(Self::default());
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(Proc::of(container.init).root(), flags, Mode::empty())?;
        let mounts = Proc::of(container.init).mounts()?;
        let binds: Vec<_> = container.bundle.binds();
        let is_bind =
            |mount: &Mount| binds.iter().any(|bind| bind.destination == mount.point.as_path());
        let mut made = Vec::new();
        for link in links {
            let mount = mount_of(&mounts, link.as_path()).context("it is on no mount")?;
            // CRIU saves what is on a tmpfs of the container's own, that name too.
            if mount.kind == "tmpfs" && !is_bind(mount) {
                continue;
            }
            let one = Made::look(&root, &link, mount, finder);
            made.push(one.with_context(|| format!("looking for another name of {link}"))?);
        }
        Ok(Self(made))
    }

    pub(super) fn records(&self) -> Vec<LinkRemap> {
        self.0.iter().map(|made| made.record.clone()).collect()
    }
}

impl Made {
    fn look(root: &OwnedFd, link: &ByteString, mount: &Mount, finder: &Finder) -> Result<Self> {
        let path = link.as_path().strip_prefix("/")?;
        let (parent, last) = parent_and_name(path).context("it has no name")?;
        let directory = fs::open_dir(root, parent)?;
        let stat = rustix::fs::statat(&directory, last, AtFlags::SYMLINK_NOFOLLOW)?;
        let inode = DevIno::from(&stat);
        let top = mount.point.as_path().to_owned();
        let name = finder.find(&HashSet::from([inode]), &[top]).remove(&inode);
        let name = name
            .ok_or_else(|| anyhow!("it has none in the container"))
            .hint("close the file, or end its mapping, before the checkpoint")?;
        let record = LinkRemap { link: link.clone(), name: ByteString::from(name.as_path()) };
        Ok(Self { record, directory, inode })
    }
}

fn parent_and_name(path: &Path) -> Option<(&[u8], &[u8])> {
    Some((path.parent()?.as_os_str().as_bytes(), path.file_name()?.as_bytes()))
}

impl Drop for Made {
    fn drop(&mut self) {
        let path = self.record.link.as_path();
        let Some(name) = path.file_name() else { return };
        let now = rustix::fs::statat(&self.directory, name, AtFlags::SYMLINK_NOFOLLOW);
        if now.is_ok_and(|now| DevIno::from(&now) == self.inode)
            && let Err(error) = rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())
        {
            tracing::warn!("removing {}: {error}", self.record.link);
        }
    }
}

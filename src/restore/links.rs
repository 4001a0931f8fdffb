//! The names by which CRIU looks for files whose own was removed, and that have another.
//!
//! They were in the container for the time of the dump only ([`crate::criu::remaps`]), and are in no
//! part. CRIU removes them when all is restored (`depopulate_roots_yard` in criu/mount.c).

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::sites::FutureMounts;
use crate::criu::remaps;
use crate::store::manifest::{LinkRemap, Manifest};
use crate::substitute::Site;
use crate::sys::fs;
use crate::sys::inode::DevIno;

/// Names that were made for CRIU. What it leaves of them, as it does when it fails, goes with this.
#[derive(Default)]
pub(super) struct CriusNames(Vec<NamedAnew>);

struct NamedAnew {
    path: PathBuf,
    directory: OwnedFd,
    inode: DevIno,
}

impl CriusNames {
    /// Makes them where the files have been put back.
    pub(super) fn make(manifest: &Manifest, sites: &FutureMounts<'_>) -> Result<Self> {
        let make = |one: &LinkRemap| {
            let (link, name) = (sites.site(one.link.as_path()), sites.site(one.name.as_path()));
            NamedAnew::make(&link, &name)
                .with_context(|| format!("naming {} as CRIU knows it, {}", one.name, one.link))
        };
        manifest.link_remaps.iter().map(make).collect::<Result<_>>().map(Self)
    }

    /// Leaves them to CRIU, whose end is not seen.
    pub(super) fn keep(self) {
        self.0.into_iter().for_each(NamedAnew::keep);
    }
}

impl NamedAnew {
    /// Who made the manifest may have written any path: no link is followed, none leads out, and only
    /// such a name is made.
    fn make(link: &Site, name: &Site) -> Result<Self> {
        let mount = link.directory.as_ref().context("CRIU itself fills what it is on")?;
        ensure!(name.directory.as_ref() == Some(mount), "both are not on one mount");
        let root = fs::open_host_dir(mount)?;
        let (parent, last) = parent_and_name(&link.relative).context("it has no name")?;
        ensure!(remaps::is_link(last), "that is no name of CRIU's");
        let (of_name, other) = parent_and_name(&name.relative).context("it has no name")?;
        let (directory, from) = (fs::open_dir(&root, parent)?, fs::open_dir(&root, of_name)?);
        let inode = DevIno::from(&rustix::fs::statat(&from, other, AtFlags::SYMLINK_NOFOLLOW)?);
        match rustix::fs::linkat(&from, other, &directory, last, AtFlags::empty()) {
            Ok(()) => {}
            // Somebody who made it before has not come to its end.
            Err(Errno::EXIST) if is_at(&directory, last, inode) => {}
            Err(Errno::EXIST) => bail!("another file has that name"),
            Err(error) => return Err(error.into()),
        }
        Ok(Self { path: link.relative.clone(), directory, inode })
    }

    fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for NamedAnew {
    fn drop(&mut self) {
        let Some(name) = self.path.file_name() else { return };
        if is_at(&self.directory, name.as_bytes(), self.inode)
            && let Err(error) = rustix::fs::unlinkat(&self.directory, name, AtFlags::empty())
        {
            tracing::warn!("removing {}: {error}", self.path.display());
        }
    }
}

fn is_at(directory: &OwnedFd, name: &[u8], inode: DevIno) -> bool {
    let now = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    now.is_ok_and(|now| DevIno::from(&now) == inode)
}

fn parent_and_name(path: &Path) -> Option<(&[u8], &[u8])> {
    Some((path.parent()?.as_os_str().as_bytes(), path.file_name()?.as_bytes()))
}

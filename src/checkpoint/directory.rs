//! The image directory while a checkpoint is made in it.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};

use crate::container::Bundle;
use crate::guardian::Guardian;
use crate::hint::{FULL, WithHint};
use crate::snapshot::PackedPart;
use crate::store::lock::{ContainerLock, ImagesLock};
use crate::store::manifest::{self, Manifest};
use crate::store::{STAGING, staged_parts};

/// An image directory that is being filled.
#[derive(Debug)]
pub struct ImageDirectory {
    path: PathBuf,
    disposable: bool,
    /// Nobody finishes what is staged here before its maker does.
    alone: ImagesLock,
}

impl ImageDirectory {
    /// Makes the directory ready: what it held is no checkpoint from now on, as CRIU overwrites
    /// its images.
    pub(super) fn prepare(
        path: &Path,
        disposable: bool,
        guardian: &Guardian,
        _held: &ContainerLock,
    ) -> Result<Self> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .with_context(|| format!("making {}", path.display()))?;
        let alone = ImagesLock::take(path)?;
        let directory = Self { path: path.to_owned(), disposable, alone };
        if manifest::is_there(path) {
            manifest::withdraw(path)?;
        }
        directory.remove_if_we_die(guardian)?;
        let staging = directory.staging();
        match fs::remove_dir_all(&staging) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", staging.display()));
            }
            _ => {}
        }
        // The runtime's own images may stay; layers and tables of ours would be taken for new.
        remove_our_files(path)?;
        for new in [staging, staged_parts(path)] {
            make(&new)?;
        }
        Ok(directory)
    }

    /// Lets the root of a container's user namespace into a version of the store: CRIU reads some images
    /// as that user, through the opened directory. By a path nobody else comes here, as those above it
    /// are root's alone.
    pub(super) fn let_in(&self, bundle: &Bundle) -> Result<()> {
        if !self.disposable || bundle.users_at(Path::new("/"))?.is_none() {
            return Ok(());
        }
        fs::set_permissions(&self.path, fs::Permissions::from_mode(0o711))
            .with_context(|| format!("letting the container's root into {}", self.path.display()))
    }

    /// The proof that nobody else is at it.
    pub(super) fn alone(&self) -> &ImagesLock {
        &self.alone
    }

    fn staging(&self) -> PathBuf {
        self.path.join(STAGING)
    }

    /// Makes the directory in which a part is staged.
    pub(super) fn stage(&self, part: &str) -> Result<PathBuf> {
        let staging = staged_parts(&self.path).join(part);
        make(&staging)?;
        Ok(staging)
    }

    /// Gives the layers of the version before a second name here: a new version refers to them.
    pub(super) fn share_layers(&self, base: &Path, part: &PackedPart) -> Result<()> {
        for layer in &part.record().layers {
            fs::hard_link(base.join(&layer.name), self.path.join(&layer.name))
                .with_context(|| format!("sharing {} with the version before", layer.name))?;
        }
        Ok(())
    }

    /// Has everything half-made removed if we die. Of a directory that is not ours `ocicle-staging`
    /// stays, empty: it says that the images in it are no checkpoint.
    fn remove_if_we_die(&self, guardian: &Guardian) -> Result<()> {
        let half_made = if self.disposable { self.path.clone() } else { staged_parts(&self.path) };
        guardian.remove_if_we_die_unless(&half_made, &self.path.join(manifest::NAME))
    }

    /// Makes sure that the file system has room for what the dump and the packing will write:
    /// so many bytes of images, and as much again as is staged.
    pub(super) fn ensure_space(&self, images: u64) -> Result<()> {
        let space = rustix::fs::statvfs(&self.path)
            .with_context(|| format!("looking at {}", self.path.display()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let needed = images + staged_bytes(&staged_parts(&self.path))?;
        if free > needed {
            return Ok(());
        }
        Err(anyhow!(
            "there is too little space at {}: {} MiB are free, {} MiB are needed",
            self.path.display(),
            free >> 20,
            (needed >> 20) + 1
        )
        .hint(FULL))
    }

    /// Makes a checkpoint of what is staged, and makes it durable.
    pub(super) fn commit_staged(&self, manifest: &Manifest) -> Result<()> {
        File::open(&self.path)
            .and_then(|directory| Ok(rustix::fs::syncfs(directory)?))
            .with_context(|| format!("syncing {}", self.path.display()))?;
        manifest.ensure_can_be_completed(&self.path)?;
        manifest.commit(&self.path).inspect_err(|_| {
            // Its name may be there already, and the container goes on.
            if let Err(error) = self.withdraw() {
                tracing::error!("{error:#}");
            }
        })
    }

    /// Takes back what was committed.
    pub(super) fn withdraw(&self) -> Result<()> {
        manifest::withdraw(&self.path)
    }
}

/// Removes the images of a dump that failed: the next one need not write over all of them.
pub(super) fn remove_images(directory: &Path) -> Result<()> {
    let context =
        || format!("removing the images of a dump that failed from {}", directory.display());
    for entry in fs::read_dir(directory).with_context(context)? {
        let entry = entry.with_context(context)?;
        let is_image = entry.path().extension().is_some_and(|extension| extension == "img");
        if is_image && !entry.file_type().with_context(context)?.is_dir() {
            fs::remove_file(entry.path()).with_context(context)?;
        }
    }
    Ok(())
}

fn make(directory: &Path) -> Result<()> {
    DirBuilder::new()
        .mode(0o700)
        .create(directory)
        .with_context(|| format!("making {}", directory.display()))
}

fn remove_our_files(directory: &Path) -> Result<()> {
    for entry in
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?
    {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name
            .to_str()
            .is_some_and(|name| name.starts_with("ocicle-") || name == "user_info.txt");
        if ours && !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())
                .with_context(|| format!("removing {}", entry.path().display()))?;
        }
    }
    Ok(())
}

/// What is staged, in bytes on disk.
fn staged_bytes(directory: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let mut bytes = 0;
    for entry in
        fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?
    {
        let entry = entry?;
        let found = entry.metadata()?;
        bytes += if found.is_dir() { staged_bytes(&entry.path())? } else { found.blocks() * 512 };
    }
    Ok(bytes)
}

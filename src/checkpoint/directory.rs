//! The image directory while a checkpoint is made in it.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::fs::{FileType, Mode};

use crate::container::Bundle;
use crate::guardian::Guardian;
use crate::hint::{FULL, WithHint};
use crate::snapshot::PackedPart;
use crate::store::lock::{ContainerLock, ImagesLock};
use crate::store::manifest::{self, Manifest};
use crate::store::{STAGED_PARTS, STAGING};
use crate::sys::directory::Directory;

/// An image directory that is being filled.
#[derive(Debug)]
pub struct ImageDirectory {
    path: PathBuf,
    opened: Directory,
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
        let opened =
            Directory::open(path).with_context(|| format!("opening {}", path.display()))?;
        let directory = Self { path: path.to_owned(), opened, disposable, alone };
        if manifest::is_there(path) {
            manifest::withdraw(path)?;
        }
        directory.remove_if_we_die(guardian)?;
        directory.clear().with_context(|| format!("clearing {}", path.display()))?;
        let parts = directory.opened.make(STAGING).and_then(|staging| staging.make(STAGED_PARTS));
        parts.with_context(|| format!("making a directory in {}", path.display()))?;
        Ok(directory)
    }

    /// Removes what is staged, files of ours, which would be taken for new, and what leads elsewhere.
    /// The runtime's own images may stay.
    fn clear(&self) -> Result<()> {
        self.opened.remove_tree(STAGING)?;
        for name in self.names()? {
            match self.opened.look(&name)? {
                None | Some((FileType::Directory, _)) => {}
                Some((kind, names)) if is_ours(&name) || leads_elsewhere(kind, names) => {
                    self.opened.remove(&name).with_context(|| format!("removing {name}"))?;
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The names in it that are text: neither ours nor CRIU's are anything else.
    fn names(&self) -> Result<Vec<String>> {
        let names = self.opened.names()?;
        Ok(names.into_iter().filter_map(|name| String::from_utf8(name).ok()).collect())
    }

    /// Lets the root of a container's user namespace into a version of the store: CRIU reads some images
    /// as that user, through the opened directory. By a path nobody else comes here, as those above it
    /// are root's alone.
    pub(super) fn let_in(&self, bundle: &Bundle) -> Result<()> {
        if !self.disposable || bundle.users_at(Path::new("/"))?.is_none() {
            return Ok(());
        }
        rustix::fs::fchmod(&self.opened, Mode::from_raw_mode(0o711))
            .with_context(|| format!("letting the container's root into {}", self.path.display()))
    }

    /// The proof that nobody else is at it.
    pub(super) fn alone(&self) -> &ImagesLock {
        &self.alone
    }

    /// Makes the directory in which a part is staged.
    pub(super) fn stage(&self, part: &str) -> Result<PathBuf> {
        let staged = self.staged()?.make(part);
        let staged = staged.with_context(|| format!("making a directory to stage {part} in"))?;
        Ok(staged.path().to_owned())
    }

    /// Gives the layers of the version before a second name here: a new version refers to them.
    pub(super) fn share_layers(&self, base: &Path, part: &PackedPart) -> Result<()> {
        let base = Directory::open(base).with_context(|| format!("opening {}", base.display()))?;
        for layer in &part.record().layers {
            self.opened
                .link_from(&base, &layer.name)
                .with_context(|| format!("sharing {} with the version before", layer.name))?;
        }
        Ok(())
    }

    /// Has everything half-made removed if we die. Of a directory that is not ours `ocicle-staging`
    /// stays, empty: it says that the images in it are no checkpoint.
    fn remove_if_we_die(&self, guardian: &Guardian) -> Result<()> {
        if !self.disposable {
            let parts = [STAGING.as_bytes(), b"/", STAGED_PARTS.as_bytes()].concat();
            return guardian.remove_if_we_die(
                &self.opened,
                &parts,
                Some(manifest::NAME.as_bytes()),
            );
        }
        let above = || format!("opening the directory of {}", self.path.display());
        let (store, name) = Directory::above(&self.path).with_context(above)?;
        let manifest = [&name, &b"/"[..], manifest::NAME.as_bytes()].concat();
        guardian.remove_if_we_die(&store, &name, Some(&manifest))
    }

    /// Where the parts are staged.
    fn staged(&self) -> Result<Directory> {
        let staging = self.opened.sub(STAGING)?.context("nothing is staged any more")?;
        staging.sub(STAGED_PARTS)?.context("no part is staged any more")
    }

    /// Makes sure that the file system has room for what the dump and the packing will write:
    /// so many bytes of images, and as much again as is staged.
    pub(super) fn ensure_space(&self, images: u64) -> Result<()> {
        let space = rustix::fs::fstatvfs(&self.opened)
            .with_context(|| format!("looking at {}", self.path.display()))?;
        let free = space.f_bavail.saturating_mul(space.f_frsize);
        let needed = images + self.staged()?.bytes()?;
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
        rustix::fs::syncfs(&self.opened)
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

/// Whether a file of that name is ocicle's own.
fn is_ours(name: &str) -> bool {
    name.starts_with("ocicle-") || name == "user_info.txt"
}

/// Whether who writes to such a file would write elsewhere, or wait: CRIU opens its images, its log and
/// its statistics by their names, as it finds them (`do_open_image` in criu/image.c). The link to the
/// images before it makes anew, where it is told to, and believes one that is there
/// (`open_image_dir`).
fn leads_elsewhere(kind: FileType, names: u64) -> bool {
    kind != FileType::RegularFile || names > 1
}

/// Removes the images of a dump that failed: the next one need not write over all of them.
pub(super) fn remove_images(directory: &Path) -> Result<()> {
    let context =
        || format!("removing the images of a dump that failed from {}", directory.display());
    let directory = Directory::open(directory).with_context(context)?;
    for name in directory.names().with_context(context)? {
        let Ok(name) = String::from_utf8(name) else { continue };
        let is_directory =
            || anyhow::Ok(directory.look(&name)?.is_none_or(|(kind, _)| kind.is_dir()));
        if name.ends_with(".img") && !is_directory().with_context(context)? {
            directory.remove(&name).with_context(context)?;
        }
    }
    Ok(())
}

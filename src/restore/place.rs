//! Where a view of an image directory lies, and whose it is.
//!
//! A view is a second name for most images, so it lies where they do. Several containers may be restored
//! from one image directory at once: each holds the lock of its view as long as it lives, and what
//! nobody holds was left by one that was killed.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use tempfile::TempDir;

use crate::store::lock::ImagesLock;
use crate::sys::directory::Directory;

/// How the name of a view begins.
const VIEW: &str = ".ocicle-view-";

/// The directory of a view. It goes with the value, and the lock goes last.
#[derive(Debug)]
pub(super) struct ViewPlace {
    directory: TempDir,
    _owned: Flock<File>,
}

impl ViewPlace {
    /// Makes one in the image directory, or in `otherwise` where nothing can be written there.
    pub(super) fn make(images: &Path, otherwise: &Path) -> Result<Self> {
        // One that is just being made has no owner yet.
        let _alone = ImagesLock::take(images)?;
        remove_unowned(images).with_context(|| format!("clearing {}", images.display()))?;
        let make = |place: &Path| tempfile::Builder::new().prefix(VIEW).tempdir_in(place);
        let directory =
            make(images).or_else(|_| make(otherwise)).context("making a view of the images")?;
        let file = Directory::open(directory.path())
            .and_then(|opened| opened.as_file())
            .context("opening the view of the images")?;
        let owned = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .context("locking the view of the images")?;
        Ok(Self { directory, _owned: owned })
    }

    /// Its path.
    pub(super) fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// Removes the views that nobody holds.
fn remove_unowned(images: &Path) -> Result<()> {
    let images = Directory::open(images)?;
    for name in images.names()? {
        let Some(name) = std::str::from_utf8(&name).ok().filter(|name| name.starts_with(VIEW))
        else {
            continue;
        };
        // One that has just ended may be gone by now, and what is no directory is no view.
        let Ok(Some(view)) = images.sub(name) else { continue };
        match Flock::lock(view.as_file()?, FlockArg::LockExclusiveNonblock) {
            Ok(_unowned) => images.remove_tree(name)?,
            Err((_, Errno::EWOULDBLOCK)) => {}
            Err((_, error)) => {
                return Err(error).with_context(|| format!("locking {}", view.path().display()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn only_what_nobody_holds_is_a_leftover() {
        let images = tempfile::tempdir().unwrap();
        let leftover = images.path().join(".ocicle-view-killed");
        fs::create_dir(&leftover).unwrap();
        fs::write(leftover.join("files.img"), "").unwrap();
        fs::write(images.path().join(".ocicle-view-file"), "").unwrap();
        let living = images.path().join(".ocicle-view-living");
        fs::create_dir(&living).unwrap();
        let owner =
            Flock::lock(File::open(&living).unwrap(), FlockArg::LockExclusiveNonblock).unwrap();
        remove_unowned(images.path()).unwrap();
        assert!(!leftover.exists() && living.exists());
        drop(owner);
        remove_unowned(images.path()).unwrap();
        assert!(!living.exists() && images.path().join(".ocicle-view-file").exists());
    }
}

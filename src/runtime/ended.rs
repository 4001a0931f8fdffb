//! Containers that a checkpoint has ended, and that crun has forgotten by then.
//!
//! runc and crun both remove what they keep of a container when its checkpoint has ended it. The
//! engine deletes it all the same, as it ended; and containerd takes runc's answer, that it does
//! not exist, for a success, but not crun's words (`Delete` in cmd/containerd-shim-runc-v2/process).
//! So docker never got rid of such a container's task, and could not restore it in place. A notice
//! says that ocicle ended it, and the one `delete` that comes for it succeeds.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::{Family, Runtime};

/// A file for each: its name the container's, in it where crun kept it.
const NOTICES: &str = "/run/ocicle/ended";

/// Withdrawn on its drop, for the checkpoint failed then.
#[derive(Debug)]
pub struct Notice {
    path: PathBuf,
}

impl Notice {
    /// Says that a container is about to end; of crun's only.
    ///
    /// The engine may come as soon as it has, so this is said before.
    pub fn give(runtime: &Runtime, id: &str) -> Result<Option<Self>> {
        if runtime.family() != Family::Crun {
            return Ok(None);
        }
        let notices = Path::new(NOTICES);
        let path = notices.join(id);
        fs::create_dir_all(notices)
            .and_then(|()| fs::write(&path, runtime.crun_directory().as_os_str().as_bytes()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(Some(Self { path }))
    }

    /// Leaves it: the container has ended.
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Notice {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Whether it is such a container, of which crun knows nothing; once.
pub fn take(runtime: &Runtime, id: &str) -> bool {
    if runtime.family() != Family::Crun {
        return false;
    }
    let place = runtime.crun_directory();
    let given = fs::read(Path::new(NOTICES).join(id));
    let is_its = given.is_ok_and(|given| given == place.as_os_str().as_bytes());
    if is_its {
        withdraw(id);
    }
    is_its && !place.join(id).exists()
}

/// The container is there again.
pub fn withdraw(id: &str) {
    let _ = fs::remove_file(Path::new(NOTICES).join(id));
}

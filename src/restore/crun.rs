//! What crun 1.28 does not get right by itself at a restore.

use std::ffi::OsString;
use std::path::Path;

use anyhow::Result;

use crate::criu::images::{ImageDir, mount_keys};
use crate::runtime::{Family, Runtime};

/// A flag of runc's that containerd gives whatever runtime it calls. crun refuses it, and does what
/// it asks for anyway.
const NO_SUBREAPER: [&str; 2] = ["--no-subreaper", "-no-subreaper"];

/// The flags that the runtime knows.
pub(super) fn known(runtime: &Runtime, mut flags: Vec<OsString>) -> Vec<OsString> {
    if runtime.family() == Family::Crun {
        flags.retain(|flag| !NO_SUBREAPER.iter().any(|known| flag == known));
    }
    flags
}

/// Removes what crun leaves of a container that it could not restore, for which it then refuses the
/// name: a directory without a status (`libcrun_container_restore` in src/libcrun/container.c).
pub(super) fn forget(runtime: &Runtime, id: &str) {
    if runtime.family() == Family::Crun
        && runtime.may_know(id)
        && runtime.state(id).is_err()
        && let Err(error) = runtime.delete(id)
    {
        tracing::debug!("{error:#}");
    }
}

/// What crun mounts over the directories that a container must not see.
const EMPTY: &str = ".empty-directory";

/// What CRIU is to be told of mounts, as `external`.
///
/// crun names its empty directory to CRIU: at a checkpoint that of the usual state directory, since
/// it has forgotten `--root` (`read_container_config_from_state` leaves the context of the
/// container unset, in src/libcrun/container.c), at a restore that of `--root`.
pub(super) fn mounts(runtime: &Runtime, images: &Path) -> Result<Vec<String>> {
    if runtime.family() != Family::Crun {
        return Ok(Vec::new());
    }
    let directory = runtime.crun_directory().join(EMPTY);
    let Some(directory) = directory.to_str().filter(|path| is_plain(path)) else {
        return Ok(Vec::new());
    };
    let keys = mount_keys(&ImageDir::open(images)?)?;
    let others = keys.iter().filter_map(|key| std::str::from_utf8(key.as_bytes()).ok());
    let others = others.filter(|key| *key != directory && is_empty_directory(key));
    Ok(others.map(|key| format!("mnt[{key}]:{directory}")).collect())
}

/// The key comes from the images, and goes into CRIU's configuration.
fn is_empty_directory(key: &str) -> bool {
    Path::new(key).file_name().is_some_and(|name| name == EMPTY) && is_plain(key)
}

fn is_plain(path: &str) -> bool {
    path.starts_with('/')
        && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/._-+@".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crun_is_spared_what_it_refuses() {
        let flags = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        let given = flags(&["--detach", "-no-subreaper", "--pid-file", "/p", "--no-subreaper"]);
        let crun = Runtime::at("/usr/bin/crun".into());
        assert_eq!(known(&crun, given.clone()), flags(&["--detach", "--pid-file", "/p"]));
        let runc = Runtime::at("/usr/bin/runc".into());
        assert_eq!(known(&runc, given.clone()), given);
    }

    #[test]
    fn a_key_of_the_images_is_nothing_but_a_path() {
        assert!(is_empty_directory("/run/crun/.empty-directory"));
        for key in [
            "/run/crun/other",
            ".empty-directory",
            "/run]:/etc\nexternal mnt[/run/.empty-directory",
            "/a b/.empty-directory",
            "/#/.empty-directory",
            "",
        ] {
            assert!(!is_empty_directory(key), "{key:?}");
        }
    }
}

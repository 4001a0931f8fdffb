//! Whether a path is root's alone: what root uses because somebody else has named it.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Others than the owner may write: an access control list that lets them shows there too, as its mask
/// is the group's bits (acl(5)).
const BY_OTHERS: u32 = 0o022;
const STICKY: u32 = 0o1000;

/// Makes sure that nobody but root can change what is at a path, or what the path leads to: root owns
/// it and all that is above it, nobody else can write there, and there is no link on the way. Above it a
/// directory in which everybody can make names may keep them to their owners, as `/tmp` does.
///
/// # Errors
/// Names the first of which that is not so; also when there is no such path.
pub fn ensure_roots_alone(path: &Path) -> Result<()> {
    ensure!(path.is_absolute(), "{} is no absolute path", path.display());
    let mut at = PathBuf::new();
    for component in path.components() {
        let is_plain = matches!(component, Component::RootDir | Component::Normal(_));
        ensure!(is_plain, "{} has a name of dots", path.display());
        at.push(component);
        let found =
            fs::symlink_metadata(&at).with_context(|| format!("looking at {}", at.display()))?;
        ensure_roots(&at, &found, at != path)?;
    }
    Ok(())
}

fn ensure_roots(at: &Path, found: &Metadata, is_above: bool) -> Result<()> {
    let (shown, mode) = (at.display(), found.mode());
    ensure!(!found.is_symlink(), "{shown} is a symbolic link");
    ensure!(found.uid() == 0, "{shown} belongs to user {}", found.uid());
    let keeps_names = is_above && mode & STICKY != 0;
    ensure!(
        mode & BY_OTHERS == 0 || keeps_names,
        "{shown} can be written by others than root (mode {:04o})",
        mode & 0o7777
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    /// As root, with a directory that is root's alone; else there is nothing to look at.
    #[test]
    fn what_others_could_change_is_named() {
        let top = tempfile::tempdir().unwrap();
        let bundle = top.path().join("above/bundle");
        fs::create_dir_all(&bundle).unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        mode(&bundle, 0o755);
        mode(bundle.parent().unwrap(), 0o755);
        let said = |path: &Path| ensure_roots_alone(path).map_err(|error| format!("{error:#}"));
        if !nix::unistd::Uid::effective().is_root() {
            assert!(said(&bundle).unwrap_err().contains("belongs to user"));
            return;
        }
        assert_eq!(said(&bundle), Ok(()));
        mode(&bundle, 0o775);
        assert!(said(&bundle).unwrap_err().contains("bundle can be written by others"));
        mode(&bundle, 0o1777);
        assert!(said(&bundle).is_err(), "names in it can be made");
        mode(&bundle, 0o755);
        mode(bundle.parent().unwrap(), 0o1777);
        assert_eq!(said(&bundle), Ok(()));
        mode(bundle.parent().unwrap(), 0o757);
        assert!(said(&bundle).unwrap_err().contains("above can be written by others"));
        mode(bundle.parent().unwrap(), 0o755);
        symlink(&bundle, top.path().join("link")).unwrap();
        assert!(said(&top.path().join("link")).unwrap_err().contains("is a symbolic link"));
        assert!(said(&top.path().join("above/../above/bundle")).unwrap_err().contains("dots"));
        assert!(said(&top.path().join("none")).unwrap_err().contains("looking at"));
        chown(bundle.parent().unwrap(), Some(1000), None).unwrap();
        assert!(said(&bundle).unwrap_err().contains("above belongs to user 1000"));
    }
}

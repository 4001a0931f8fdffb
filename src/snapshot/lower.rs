//! What a small layer holds, as a digest: whether another layer shows the same.
//!
//! docker puts a layer of each container's own between the image and what the container writes, with
//! the empty files that it mounts on (`setupInitLayer` in moby, daemon/initlayer). So another
//! container of the same image has another uppermost layer, with the same in it.

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use serde::Serialize;

use super::attributes::Found;
use super::join;
use crate::bytes::ByteString;
use crate::digest::digest;

use super::inode::InodeKind;
use crate::sys::fs;
use crate::sys::inode::Device;

/// docker's has about 15 entries, all empty. A layer of an image that is as small is read as well.
const MOST_ENTRIES: usize = 64;
const MOST_BYTES: u64 = 64 << 10;

/// The attributes by which an overlay takes a file for more than it is.
const MEANINGFUL: [&str; 3] = ["opaque", "redirect", "metacopy"];

/// One entry: all but its times and its inode, which differ between equal layers.
#[derive(Serialize)]
struct Entry {
    path: ByteString,
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    xattrs: Vec<(ByteString, ByteString)>,
}

#[derive(Serialize)]
enum Kind {
    Dir,
    File(String),
    Symlink(ByteString),
    Device(bool, u32, u32),
    Fifo,
    Socket,
}

/// A digest of all that the layer holds; `None` for one that is larger than such layers are.
pub(super) fn digest_of(layer: &OwnedFd, prefix: &str) -> Result<Option<String>> {
    let mut left = MOST_BYTES;
    let mut pending = vec![(Vec::new(), layer.try_clone().context("opening the layer")?)];
    let mut entries = vec![entry(layer, b"", prefix, &mut left)?];
    while let Some((path, directory)) = pending.pop() {
        let mut names = fs::names(fs::open_dir(&directory, b"")?)?;
        names.sort();
        if entries.len() + names.len() > MOST_ENTRIES {
            return Ok(None);
        }
        for name in names {
            let path = join(&path, &name);
            let Some(found) = fs::open_entry(&directory, &name)? else { return Ok(None) };
            let entry = entry(&found, &path, prefix, &mut left)?;
            if matches!(entry, Some(Entry { kind: Kind::Dir, .. })) {
                pending.push((path, found));
            }
            entries.push(entry);
        }
    }
    let Some(entries) = entries.into_iter().collect::<Option<Vec<_>>>() else { return Ok(None) };
    Ok(Some(digest(&serde_json::to_vec(&entries)?)))
}

/// `None` for a file for which no bytes are left.
fn entry(found: &OwnedFd, path: &[u8], prefix: &str, left: &mut u64) -> Result<Option<Entry>> {
    let Found { kind, meta, identity, .. } = Found::look(found)?;
    let kind = match kind {
        InodeKind::File(()) if identity.size > *left => return Ok(None),
        InodeKind::File(()) => {
            let mut bytes = Vec::new();
            let file = File::from(fs::open_for_reading(found.as_fd())?);
            file.take(*left).read_to_end(&mut bytes)?;
            *left -= bytes.len() as u64;
            Kind::File(digest(&bytes))
        }
        InodeKind::Dir => Kind::Dir,
        InodeKind::Symlink(target) => Kind::Symlink(target.into()),
        InodeKind::Char(Device { major, minor }) => Kind::Device(false, major, minor),
        InodeKind::Block(Device { major, minor }) => Kind::Device(true, major, minor),
        InodeKind::Fifo => Kind::Fifo,
        InodeKind::Socket => Kind::Socket,
    };
    let mut xattrs: Vec<_> = meta.xattrs.into_iter().collect();
    for name in MEANINGFUL {
        let name = format!("{prefix}{name}");
        if let Some(value) = fs::xattr(found, name.as_bytes())? {
            xattrs.push((name.as_str().into(), value.into()));
        }
    }
    let path = ByteString::from(path);
    Ok(Some(Entry { path, kind, mode: meta.mode, uid: meta.uid, gid: meta.gid, xattrs }))
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, create_dir, remove_file, set_permissions, write};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;

    use super::*;

    fn digest(layer: &Path) -> Option<String> {
        digest_of(&fs::open_host_dir(layer).unwrap(), "trusted.overlay.").unwrap()
    }

    fn layer() -> tempfile::TempDir {
        let layer = tempfile::tempdir().unwrap();
        create_dir(layer.path().join("etc")).unwrap();
        write(layer.path().join("etc/hosts"), "").unwrap();
        symlink("/proc/mounts", layer.path().join("etc/mtab")).unwrap();
        layer
    }

    #[test]
    fn equal_layers_have_equal_digests_and_others_have_not() {
        let (one, other) = (layer(), layer());
        let same = digest(one.path()).unwrap();
        assert_eq!(digest(other.path()).as_ref(), Some(&same));
        type Change = fn(&Path);
        let changes: [Change; 5] = [
            |etc| write(etc.join("hosts"), "x").unwrap(),
            |etc| write(etc.join("passwd"), "").unwrap(),
            |etc| remove_file(etc.join("hosts")).unwrap(),
            |etc| set_permissions(etc.join("hosts"), Permissions::from_mode(0o666)).unwrap(),
            |etc| {
                remove_file(etc.join("mtab")).unwrap();
                symlink("/etc/shadow", etc.join("mtab")).unwrap();
            },
        ];
        for (number, change) in changes.iter().enumerate() {
            let changed = layer();
            change(&changed.path().join("etc"));
            assert_ne!(digest(changed.path()), Some(same.clone()), "change {number}");
        }
    }

    #[test]
    fn a_large_layer_has_none() {
        let large = layer();
        write(large.path().join("etc/hosts"), vec![0; MOST_BYTES as usize + 1]).unwrap();
        assert_eq!(digest(large.path()), None);
        let many = layer();
        (0..MOST_ENTRIES).for_each(|n| write(many.path().join(n.to_string()), "").unwrap());
        assert_eq!(digest(many.path()), None);
    }
}

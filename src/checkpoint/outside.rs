//! What a container can write, and its checkpoint does not hold.

use std::path::{Path, PathBuf};

use crate::bytes::ByteString;
use crate::container::{Bind, Container};
use crate::proc::Proc;
use crate::proc::mountinfo::{Mount, mount_of};
use crate::store::choices::Filesystem;
use crate::store::manifest::NotHeld;

/// The directories that are mounted from outside, can be written, and are none of the `volumes` that
/// are taken. Without a snapshot nobody expects them to be.
pub(super) fn not_held(
    container: &Container,
    filesystem: Filesystem,
    volumes: &[(PathBuf, PathBuf)],
) -> Vec<NotHeld> {
    if filesystem != Filesystem::Snapshot {
        return Vec::new();
    }
    let mounts = Proc::own().mounts().unwrap_or_default();
    let is_taken = |bind: &Bind| volumes.iter().any(|(point, _)| *point == bind.destination);
    let binds = container.bundle.visible_binds().into_iter();
    let left = binds.filter(|bind| !bind.read_only && !is_taken(bind));
    let directories = left.filter(|bind| is_directory(&bind.source, &mounts));
    let not_held = |bind: Bind| NotHeld {
        destination: ByteString::from(bind.destination.as_path()),
        source: bind.source,
    };
    directories.map(not_held).collect()
}

/// Says it of a checkpoint that is there.
pub(super) fn say(not_held: &[NotHeld]) {
    for one in not_held {
        let place = &one.destination;
        tracing::warn!(
            "{one}: --volumes {place}, or `volumes` in the configuration or in an annotation, has it held"
        );
    }
}

/// Single files are what engines mount for names and addresses, and devices. A server elsewhere is
/// not asked.
fn is_directory(source: &Path, mounts: &[Mount]) -> bool {
    mount_of(mounts, source).is_some_and(Mount::is_remote) || source.is_dir()
}

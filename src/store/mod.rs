//! What ocicle keeps on disk.
//!
//! # A checkpoint
//! is a directory: CRIU's images, as the runtime made them, and beside them
//!
//! ```text
//! ocicle-manifest.json       what the checkpoint is; written last
//! ocicle-manifest.b3sum      the manifest's digest, as b3sum(1) writes it
//! ocicle-files.json          the open-file table
//! user_info.txt              the same, a line for each open file
//! ocicle-PART.N.tar.zst      the files of a file system (rootfs, volume-1, …), as OCI layers
//! ocicle-PART.index.json     what belongs to its snapshot, and where in the layers it is
//! ocicle-staging/            there while a checkpoint is made, or when that was interrupted
//! ```
//!
//! A directory with `ocicle-staging` and without a manifest is no checkpoint: it was interrupted.
//! A manifest whose state is `staged` is one: the container was stopped, everything is on disk,
//! and only the packing of `ocicle-staging` into layers is left to do.
//!
//! # The store
//! keeps the versions of each container, `STORE/ID/vN`, each a checkpoint as above, and CRIU's last
//! logs in `STORE/ID/work`. A version without a manifest is none, and is removed by the next command
//! that holds the lock of its container.
//!
//! A container is an identifier *and* the state directory of its runtime: `STORE/ID/container.json`
//! names that, and a second container of the same identifier has `STORE/ID@DIGEST`, with twelve digits
//! of the digest of its own. A directory without that file is of an ocicle that did not write it, and
//! belongs to the container whose bundle its newest version names.

use std::io;
use std::path::Path;

use crate::sys::directory::Directory;

pub mod choices;
mod finish;
pub mod lock;
pub mod manifest;
pub mod reference;
pub mod shelf;
mod timeline;
pub mod versions;

pub use finish::{DumpFacts, complete, finish, table_of};
pub use timeline::Timeline;

/// The directory, in an image directory, that holds what is not packed yet.
pub const STAGING: &str = "ocicle-staging";

/// The directory in that one in which each part is staged, in a directory of its name.
pub const STAGED_PARTS: &str = "parts";

/// Opens what is staged of a part; `None` if there is nothing.
///
/// # Errors
/// Also where a link leads there: the image directory may be of somebody hostile.
pub fn open_staged(images: &Path, part: &str) -> io::Result<Option<Directory>> {
    let images = Directory::open(images)?;
    let Some(staging) = images.sub(STAGING)? else { return Ok(None) };
    let Some(parts) = staging.sub(STAGED_PARTS)? else { return Ok(None) };
    parts.sub(part)
}

/// Where the parts of a checkpoint are staged, each in a directory of its name.
pub fn staged_parts(images: &std::path::Path) -> std::path::PathBuf {
    images.join(STAGING).join("parts")
}

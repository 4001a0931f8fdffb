//! Whether what a checkpoint takes can be restored where it was taken: asked before the container is
//! ended, as what has ended cannot go on.
//!
//! A checkpoint knows what it took, and a restore knows what it refuses. Neither knows the other:
//! who calls the checkpoint hands in who answers.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::container::Container;
use crate::files::Table;
use crate::snapshot::Shows;
use crate::store::manifest::Manifest;

/// Who knows what a restore refuses.
pub trait Restorable {
    /// What can be known while the container runs: `volumes` will be taken, each by where it is
    /// mounted and where it is on the host.
    ///
    /// # Errors
    /// What a restore in place would say.
    fn ahead(&self, container: &Container, volumes: &[(PathBuf, PathBuf)]) -> Result<()>;

    /// What is known when everything is taken, and the container still stands.
    ///
    /// # Errors
    /// What a restore in place would say.
    fn of_taken(&self, taken: &JustTaken<'_>) -> Result<()>;
}

/// What a checkpoint has taken of a container that has not gone on and not ended.
pub struct JustTaken<'a> {
    /// The container.
    pub container: &'a Container,
    /// Where CRIU's images are.
    pub images: &'a Path,
    /// What the manifest is going to say.
    pub manifest: &'a Manifest,
    /// The open files.
    pub table: Table,
    /// The parts.
    pub parts: Vec<TakenPart<'a>>,
}

/// A part that was taken, and is not packed yet.
#[derive(Clone, Copy)]
pub struct TakenPart<'a> {
    /// Where the container sees it.
    pub destination: &'a Path,
    /// Where it is on the host.
    pub source: &'a Path,
    /// What it holds.
    pub snapshot: &'a dyn Shows,
}

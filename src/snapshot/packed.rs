//! Which files of an image directory are a part's.

use serde::{Deserialize, Serialize};

use crate::digest::FileRecord;

/// The files of a part, for the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PackedFiles {
    /// The index.
    pub index: FileRecord,
    /// The layers, the oldest first.
    pub layers: Vec<FileRecord>,
}

impl PackedFiles {
    /// All of them.
    pub fn files(&self) -> impl Iterator<Item = &FileRecord> {
        std::iter::once(&self.index).chain(&self.layers)
    }
}

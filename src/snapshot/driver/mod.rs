//! Drivers: ways to hold what a part was at one instant.
//!
//! | driver | for | before the freeze | in the freeze | afterwards |
//! |---|---|---|---|---|
//! | [`CopyDriver`] | everything | copies or clones each file | those that changed since | - |
//! | [`Subvolume`](subvolume) | a btrfs subvolume | writes dirty pages | a read-only snapshot | read from it; kept for a restore |
//! | [`Program`](program) | what the administrator says | `prepare` | `take` | `commit`, read, `discard` |
//!
//! The last two hold the content outside of the checkpoint's directory: a [`DriverSnapshot`], which the
//! guardian [discards](DriverSnapshot::discard) if we die, and the next run when the guardian was killed too.
//! Whatever the driver, what is packed is the same: layers and an index.

mod by_program;
mod choose;
mod copying;
mod held;
mod pool;
mod program;
mod registry;
mod subvolume;

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::files::Suspects;
use crate::freezer::Frozen;
use crate::limits::Weight;
use crate::snapshot::shows::Shows;

pub use choose::choose;
pub use copying::CopyDriver;
pub(super) use held::HeldContent;
pub use held::{DriverSnapshot, HeldLocally};
pub use program::Program;
pub use registry::{Claim, Lease};

/// A way to hold what a part was at one instant. Once that is taken, it [shows](Shows) what it holds.
pub trait Driver: Shows + Send {
    /// What it is called, and how it works.
    fn name(&self) -> DriverName;

    /// What is outside of the staging directory from now on, and has to be discarded if we die.
    fn held(&self) -> Option<&DriverSnapshot> {
        None
    }

    /// Does what can be done while the container runs. Nothing read here is trusted later, unless it
    /// is proven unchanged.
    ///
    /// `suspects` are files that may change without a trace in their times.
    fn prepare(&mut self, suspects: &Suspects) -> Result<CopyStats>;

    /// Takes the snapshot while the container is frozen.
    fn take(&mut self, frozen: &Frozen<'_>, suspects: &Suspects) -> Result<CopyStats>;

    /// Undoes what [`take`](Self::take) has done, for it was for nothing, and is done again when the
    /// container is frozen the next time. What was copied stays.
    fn take_back(&mut self) -> Result<()> {
        Ok(())
    }

    /// What the paths take that were found so far, where they are known before they are packed.
    fn weight(&self) -> Weight {
        Weight::default()
    }

    /// Writes to the staging directory what [`super::pack()`] needs, in another process maybe. Without
    /// a manifest beside it, it is the lease that keeps the snapshot from being removed by others.
    fn seal(self: Box<Self>) -> Result<Option<Lease>>;
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CopyStats {
    /// Paths seen.
    pub entries: u64,
    /// Files with content that were copied now.
    pub copied: u64,
    /// Those of them whose bytes the file system shares with the original.
    pub shared: u64,
    /// Their lengths.
    pub bytes: u64,
    /// Files whose content was there already, from the first pass or the base.
    pub kept: u64,
}

/// What a driver is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DriverName {
    /// The upper directory of an overlay, copied or cloned.
    Overlay,
    /// A directory tree, copied or cloned.
    Directory,
    /// A snapshot of a btrfs subvolume.
    Btrfs,
    /// A snapshot that a program took.
    Program(PathBuf),
}

/// What a driver really did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverReport {
    /// Which driver.
    pub driver: DriverName,
    /// How it came by the content of files.
    pub method: Method,
    /// What was done before the freeze.
    pub prepared: CopyStats,
    /// What was done in it.
    pub frozen: CopyStats,
    /// Why it was not a better one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// How content came to be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// There was none to copy: it is the version's before, or there is none.
    Nothing,
    /// Bytes were copied.
    Copy,
    /// The file system shares them (`FICLONE`).
    Reflink,
    /// Some files were shared, others copied.
    Mixed,
    /// All at once.
    Snapshot,
}

impl std::fmt::Display for DriverReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let driver = match &self.driver {
            DriverName::Overlay => "overlay".to_owned(),
            DriverName::Directory => "directory".to_owned(),
            DriverName::Btrfs => "btrfs".to_owned(),
            DriverName::Program(program) => program.display().to_string(),
        };
        match self.method {
            Method::Nothing => write!(f, "{driver}"),
            Method::Copy => write!(f, "{driver} by copy"),
            Method::Reflink => write!(f, "{driver} by reflink"),
            Method::Mixed => write!(f, "{driver} by reflink and copy"),
            Method::Snapshot => write!(f, "{driver} snapshot"),
        }
    }
}

impl DriverReport {
    /// What a driver did, by what it says of its two steps.
    pub fn of(
        driver: DriverName,
        prepared: CopyStats,
        frozen: CopyStats,
        notes: Vec<String>,
    ) -> Self {
        let (copied, shared) = (prepared.copied + frozen.copied, prepared.shared + frozen.shared);
        let method = match driver {
            DriverName::Btrfs | DriverName::Program(_) => Method::Snapshot,
            _ if copied == 0 => Method::Nothing,
            _ if shared == 0 => Method::Copy,
            _ if shared == copied => Method::Reflink,
            _ => Method::Mixed,
        };
        Self { driver, method, prepared, frozen, notes }
    }
}

/// What the administrator says of drivers.
#[derive(Clone, Debug, Default)]
pub struct DriverSettings {
    /// Programs, and what they are for; the first that takes a part has it.
    pub programs: Vec<Program>,
    /// Where it is recorded what programs hold.
    pub records: PathBuf,
}

/// Whose snapshot it is to be.
pub struct SnapshotOwner<'a> {
    /// The image directory.
    pub owner: &'a Path,
    /// The part's name.
    pub part: &'a str,
    /// Whether what was recorded for a checkpoint still belongs to one.
    pub is_alive: &'a dyn Fn(&Claim) -> bool,
}

//! The open files of a container: one list, taken from CRIU's images or from live processes.

pub mod by_process;
mod descriptors;
pub mod dumpable;
pub mod facts;
mod finder;
mod images;
mod live;
mod lost_locks;
mod name;
mod problems;
mod settings;
mod sockets;
mod suspects;
mod table;
mod unreachable;
mod user_info;

pub mod verify;

pub use crate::container::FileKind;
pub use crate::proc::fdinfo::LockKind;
pub use finder::Finder;
pub use lost_locks::lost_locks;
pub use problems::{FileUser, FoundFile, Problem, Role, Wrong, preflight};
pub use settings::{DumpSettings, bytes_of};
pub use suspects::Suspects;
pub use table::{ExternalFile, FileId, Lock, OpenFile, SCHEMA, Table};
pub use unreachable::{Owned, SeenByPath, Unreachable, WaitingEvents, Watched, by_path};
pub use user_info::{UserInfo, parse_user_info, write_user_info};

impl Table {
    /// Reads the table that a checkpoint keeps.
    pub fn read(images: &std::path::Path) -> anyhow::Result<Self> {
        use anyhow::Context;
        let path = images.join(TABLE);
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("reading {}", path.display()))
    }
}

/// The name of the table in an image directory.
pub const TABLE: &str = "ocicle-files.json";
/// The name of the table as lines in an image directory: Kerrighed's.
pub const USER_INFO: &str = "user_info.txt";

//! The snapshot of one *part*, a writable root file system, and its restore.
//!
//! ```text
//! running   choose, Driver::prepare    a driver; it copies what the part holds, in advance
//! frozen    Driver::take, seal         copies what changed since, or takes a snapshot at once
//! thawed    pack                       what is held → an OCI layer and the index
//! later     Part::open, plan, execute  makes a root equal to the index
//! ```
//!
//! # What is in a part
//! `ocicle-NAME.index.json` is the [`Index`]: each path with its kind and attributes, and for each
//! regular file where its bytes are: layer, offset, digest, and which extents are no holes.
//! `ocicle-NAME.0.tar.zst`, `.1.tar.zst`, … are OCI layers, to be applied in this order. A later version of
//! the same part adds one layer with what changed, and its index goes on referring to older layers,
//! whose files the caller links into the new directory.
//!
//! With the **overlay** driver the entries are what deviates from the image's layers; with the
//! **directory** driver they are the whole tree.
//!
//! # What is in staging
//! `held.json`, which names what a driver holds elsewhere; or `index.json` and `blobs/N`, one for each inode with content: bytes only, no owner, no mode, no
//! device, no link. Nothing in staging does anything by being there.

mod attributes;
mod cache;
mod copy;
mod diff;
mod driver;
mod execute;
mod gain;
mod identity;
mod index;
mod inode;
mod layer;
mod lower;
mod node;
mod opened;
mod pack;
mod packed;
mod part;
mod paths;
mod plan;
mod probe;
mod shows;
mod staging;
mod stored;
mod tar;
mod tmpfs;
mod walk;

pub use diff::{Aspect, Change, Difference, Fate, between, since};
pub use driver::{
    Claim, CopyDriver, CopyStats, Driver, DriverName, DriverReport, DriverSettings, DriverSnapshot,
    HeldLocally, Lease, Method, Program, SnapshotOwner, choose,
};
pub use execute::PutBack;
pub use gain::Gain;
pub use identity::{Form, LayerIdentity, RootIdentity};
pub use index::{Content, Digest, Entry, Fingerprint, Index, Kind, Meta};
pub use layer::{Compression, LayerReader};
pub use pack::{Staging, pack};
pub use packed::PackedFiles;
pub use part::{Lookup, PackedPart};
pub use paths::{Id, Paths};
pub use plan::{Action, Plan, PlannedChanges, Verb, plan};
pub use probe::{Root, probe};
pub use shows::{ShownAt, Shows};
pub use tar::{Headers, Limits, padding};
pub use tmpfs::{LeadsOut, pack_tree, unpack_tree};

use crate::sys::fs::{join, shown, split};

/// Bytes read or written at once.
const BUFFER: usize = 1 << 20;

/// Told how far long work has come. The core draws nothing.
pub trait Progress: Sync {
    /// So many bytes more are to be done.
    fn expect(&self, bytes: u64);
    /// So many bytes more are done.
    fn advance(&self, bytes: u64);
}

/// Tells nobody.
impl Progress for () {
    fn expect(&self, _bytes: u64) {}
    fn advance(&self, _bytes: u64) {}
}

#[cfg(test)]
mod tests;

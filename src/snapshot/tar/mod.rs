//! Tar archives: written by us, read whoever has made them.

mod read;
mod write;

pub use read::{Headers, Limits, SparseFile, padding};
pub(in crate::snapshot) use read::{parse_time, xattr_name};
pub(in crate::snapshot) use write::{Member, TarWriter, is_sparse};

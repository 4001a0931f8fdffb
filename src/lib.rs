//! ocicle: checkpoint and restore of OCI containers, memory and files of one instant.

pub mod bytes;
pub mod snapshot;
pub mod sys;

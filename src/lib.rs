//! ocicle: checkpoint and restore of OCI containers, memory and files of one instant.

pub mod bytes;
pub mod config;
pub mod container;
pub mod criu;
pub mod freezer;
pub mod guardian;
pub mod runtime;
pub mod sys;

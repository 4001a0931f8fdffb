//! ocicle: checkpoint and restore of OCI containers, memory and files of one instant.

pub mod bytes;
pub mod checkpoint;
pub mod config;
pub mod container;
pub mod criu;
pub mod fault;
pub mod files;
pub mod freezer;
pub mod guardian;
pub mod hint;
pub mod runtime;
pub mod store;
pub mod substitute;
pub mod sys;

//! ocicle: checkpoint and restore of OCI containers, memory and files of one instant.

pub mod bytes;
pub mod config;
pub mod freezer;
pub mod runtime;
pub mod sys;

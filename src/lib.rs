//! ocicle: checkpoint and restore of OCI containers, memory and files of one instant.

pub mod applets;
pub mod bytes;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod config;
pub mod container;
pub mod criu;
pub mod fault;
pub mod files;
pub mod freezer;
pub mod glob;
pub mod guardian;
pub mod hint;
pub mod output;
pub mod restore;
pub mod runtime;
pub mod shim;
pub mod snapshot;
pub mod store;
pub mod substitute;
pub mod sys;

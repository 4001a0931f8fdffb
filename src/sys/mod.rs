//! Thin, safe functions over system calls: one for each call, file descriptors
//! borrowed as [`std::os::fd::AsFd`] and returned owned.
//!
//! All `unsafe` of the crate is below this module.

pub mod at_once;
pub mod btrfs;
pub mod descriptors;
pub mod diag;
pub mod direct;
pub mod directory;
pub mod extent;
pub mod fd;
pub mod fs;
pub mod handle;
pub mod inherited;
pub mod inode;
pub mod kcmp;
pub mod loopback;
pub mod mount;
pub mod mqueue;
pub mod named;
pub mod owned;
pub mod pid;
pub mod process;
pub mod remove;
pub mod signals;
pub mod socket;
pub mod sockopt;
pub mod spawn;
pub mod terminal;
pub mod time;

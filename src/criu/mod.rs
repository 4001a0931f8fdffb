//! CRIU: how ocicle speaks to the one that the runtime starts, and what it leaves behind.
//!
//! runc and crun start `criu swrk N` from `PATH`. A runtime that ocicle starts finds there, first,
//! the [`interposer`]: it asks ocicle for admission over the [`door`], takes along the file
//! descriptors that replace open files and a [configuration file](configuration), and becomes the real
//! CRIU, with a [plugin] where open files are set aside. CRIU in turn calls the [`action`] script,
//! which comes to the same door, and the [archiver](tar_call) for each tmpfs.

pub mod action;
pub mod configuration;
pub mod door;
pub mod failure;
pub mod images;
pub mod interposer;
pub mod log;
pub mod phases;
pub mod plugin;
pub mod protocol;
pub mod remaps;
pub mod tar_call;
pub mod watched;

//! The integration tests, a module for each area. All of them need the testbed, and so root: see
//! [`support`].
//!
//! One program, for the linker takes longer than the compiler. Beside it are only the examples,
//! which have to be alone in the testbed; the package, which makes trees of its own; and what needs
//! no testbed.

#[macro_use]
mod support;

mod bad_input;
#[cfg(target_arch = "x86_64")]
mod campaign;
mod capture;
mod check;
mod choices;
mod comeback;
mod containerd;
mod cri;
mod docker;
mod driver_programs;
mod drivers;
mod foreign;
mod freeze;
mod handed;
mod hooks;
mod hostile;
mod kinds;
mod limits;
mod main_job;
mod mistakes;
mod names;
mod neighbour;
mod outside;
mod parts;
mod pause;
mod podman;
mod policies;
mod policy;
mod precopy;
mod resume;
mod seeing;
mod shim;
mod side_by_side;
mod snapshot;
mod substitution;
mod survival;
mod testbed_smoke;
mod tmpfs;
mod trust;
mod unsupported;
mod whose;
mod with;

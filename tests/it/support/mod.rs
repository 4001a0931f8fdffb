//! What integration tests share: a machine per test, bundles, and containers that clean up.
//!
//! A test is written once and runs for every runtime and version of cgroups:
//!
//! ```ignore
//! on_each_runtime!(survives_a_dump, |machine| {
//!     let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
//!     let container = bundle.run();
//! });
//! ```
//!
//! Every such body runs on a thread of its own with a private mount namespace, under nextest and
//! under plain `cargo test` alike: namespaces belong to threads, and children are started from the
//! thread that owns them. So look at `/proc/thread-self/mountinfo`, and start no other threads.

#![allow(missing_docs, reason = "helpers named after what they do")]

mod bundle;
mod container;
mod daemon;
mod filesystems;
mod frozen;
mod image;
mod machine;
mod picture;
mod podman;
mod probe;
mod random;
mod refused;
mod rules;
mod session;
mod told;
mod tree;
mod wait;

pub use self::{
    bundle::{Bundle, BundleBuilder, Rootfs},
    container::{Container, Control},
    daemon::{Containerd, Docker},
    filesystems::{SmallStore, file_system, opened, private, scratch, subvolume},
    frozen::nobody_runs,
    machine::{
        Machine, Shim, Variant, doors, manifest, on_machine, private_criu_settings,
        private_network, rewrite_manifest, run, try_run,
    },
    picture::{Picture, assert_same, picture},
    podman::{IMAGE, Podman, WRONG_LINE},
    probe::Probe,
    random::{Dice, all_paths, assert_still_shown, changes, set_times, shown_at_all},
    refused::Refused,
    rules::{by_shell, find, held, holds, owner_of_lock, restore, restore_command, table},
    session::{Terminal, holders, in_shell, lending},
    told::{Told, listed, outcome, status_of},
    tree::{Tree, tree_of},
    wait::{
        DEADLINE, ask, first_number, poll_for, wait_for_exit, wait_for_file, wait_for_guardians,
        wait_for_program, wait_for_writes,
    },
};

/// Makes one `#[test]` of a body `|machine: &Machine| { … }` for each runtime and cgroup version.
macro_rules! on_each_runtime {
    ($name:ident, $body:expr) => {
        mod $name {
            #[allow(unused_imports, reason = "not every body names something of the file")]
            use super::*;

            #[test]
            fn runc_v1() {
                crate::support::on_machine(crate::support::Variant::RuncV1, $body);
            }

            #[test]
            fn runc_v2() {
                crate::support::on_machine(crate::support::Variant::RuncV2, $body);
            }

            #[test]
            fn crun_v2() {
                crate::support::on_machine(crate::support::Variant::CrunV2, $body);
            }
        }
    };
}

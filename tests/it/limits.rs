//! What a container, or who hands over a checkpoint, can make ocicle take of memory and time.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::sys::resource::{UsageWho, getrusage};
use rustix::fs::{Mode, OFlags};

use crate::support::{Bundle, Container, Machine, Variant, on_machine, outcome, run};

const WAIT: [&str; 3] = ["sh", "-c", ": >/data/ready; exec tail -f /dev/null"];

fn start<'b>(bundle: &'b Bundle<'_>) -> Container<'b> {
    let container = bundle.run();
    container.wait_for("/data/ready");
    container
}

/// The most that a program of this test has taken so far, in MiB.
fn peak() -> i64 {
    getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss() >> 10
}

/// The processor time that programs of this test have taken so far, in seconds.
fn processor_time() -> i64 {
    let taken = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    taken.user_time().tv_sec() + taken.system_time().tv_sec()
}

/// Makes a chain of directories, and opens the last.
fn chain(top: &Path, name: &str, length: usize) -> OwnedFd {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut dir: OwnedFd = File::open(top).unwrap().into();
    for _ in 0..length {
        rustix::fs::mkdirat(&dir, name, Mode::RWXU).unwrap();
        dir = rustix::fs::openat(&dir, name, flags, Mode::empty()).unwrap();
    }
    dir
}

fn fill(dir: &OwnedFd, files: usize) {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    for number in 0..files {
        rustix::fs::openat(dir, number.to_string(), flags, Mode::RUSR).unwrap();
    }
}

fn count(dir: &OwnedFd) -> usize {
    rustix::fs::Dir::read_from(dir).unwrap().count() - 2
}

fn checkpoint(machine: &Machine, bundle: &Bundle<'_>) {
    let mut command = machine.ocicle();
    run(command.args(["checkpoint", bundle.id()]).args(machine.variant().criu_flags()));
}

fn restore(machine: &Machine, bundle: &Bundle<'_>) {
    let mut command = machine.ocicle();
    run(command.args(["restore", bundle.id()]).args(machine.variant().criu_flags()));
}

/// An inode 32 KiB deep takes no more memory than one beside the root, at a checkpoint and a restore.
#[test]
fn names_of_a_container_cost_what_they_are() {
    on_machine(Variant::RuncV2, |machine| {
        let bundle = machine.bundle("deep").args(WAIT).make();
        let container = start(&bundle);
        let deep = chain(&bundle.path("/data"), &"d".repeat(255), 127);
        fill(&deep, 8000);
        checkpoint(machine, &bundle);
        drop(container);
        // It is put back, and what came since goes.
        rustix::fs::unlinkat(&deep, "7", rustix::fs::AtFlags::empty()).unwrap();
        fill(&deep, 9000);
        restore(machine, &bundle);
        assert_eq!(count(&deep), 8000);
        assert!(peak() < 100, "{} MiB", peak());
        bundle.end();
    });
}

/// Directories that came since the checkpoint are removed, however deep they are in each other.
#[test]
fn a_chain_of_directories_is_removed_one_by_one() {
    on_machine(Variant::RuncV2, |machine| {
        let bundle = machine.bundle("chain").args(WAIT).make();
        let container = start(&bundle);
        checkpoint(machine, &bundle);
        drop(container);
        chain(&bundle.path("/data"), "d", 6000);
        let before = processor_time();
        restore(machine, &bundle);
        // What the disk takes is its own.
        let taken = processor_time() - before;
        assert!(taken < 15, "{taken} s");
        assert!(!bundle.path("/data/d").exists());
        assert!(peak() < 100, "{} MiB", peak());
        fs::metadata(bundle.path("/data/ready")).unwrap();
        bundle.end();
    });
}

/// Whatever a reader refuses, a checkpoint is refused for, and its container lives.
#[test]
fn what_cannot_be_read_again_is_not_committed() {
    on_machine(Variant::RuncV2, |machine| {
        let bundle = machine.bundle("limits").args(WAIT).make();
        let container = start(&bundle);
        let attribute = "x".repeat(100);
        xattr::set(bundle.path("/data/ready"), "user.long", attribute.as_bytes()).unwrap();
        for (limit, said) in [
            ("weight=500", "more names and attributes than fit into 500 bytes"),
            ("path=5", "longer than 5 bytes"),
            ("attributes=99", "its attributes take more than 99"),
            ("manifest=5000", "the bytes of its manifest would be more than 5000"),
            ("parts=0", "its parts are more than 0"),
            ("layers=0", "its layers would be more than 0"),
        ] {
            let mut command = machine.ocicle();
            command.args(["checkpoint", bundle.id()]).args(machine.variant().criu_flags());
            let (success, _, errors) = outcome(command.env("OCICLE_LIMITS", limit));
            assert!(!success && errors.contains(said), "{limit}: {errors}");
            assert_eq!(container.status(), "running", "{limit}");
            assert!(!container.is_frozen(), "{limit}");
            assert_eq!(run(machine.ocicle().args(["list", "--quiet"])), "", "{limit}");
        }
        checkpoint(machine, &bundle);
        drop(container);
        restore(machine, &bundle);
        bundle.end();
    });
}

//! The testbed itself: a container runs, answers, is dumped by the bare runtime, and goes away.

use std::process::Command;

use crate::support::{IMAGE, Podman, Rootfs, Shim, Variant, on_machine, run, wait_for_file};

on_each_runtime!(bare_live_checkpoint, |machine| {
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    assert_eq!(container.status(), "running");

    let before = container.control("/data").status();
    assert_eq!(before["counter"], before["db_max"]);
    assert_eq!(before["log_size"], before["log_position"]);
    assert_eq!(before["second_position"], 10);
    assert_eq!(before["image_file"], "the image's own text\nchanged by the container\n");

    let images = bundle.images("images");
    let took = container.checkpoint(&images, &["--leave-running", "--file-locks"]).unwrap();
    println!("a bare live checkpoint of the journal: {took:?}");
    assert!(images.join("inventory.img").exists());
    assert!(!container.is_frozen());

    let after = container.control("/data").status();
    assert!(after["counter"].as_u64() >= before["counter"].as_u64());
    assert_eq!(after["db_check"], "ok");
});

// A runtime's own stop-mode checkpoint, and what it makes of it at once: files were not touched.
on_each_runtime!(bare_stop_and_restore, |machine| {
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let images = bundle.images("images");
    let container = bundle.run();
    container.wait_for("/data/ready");
    let before = container.control("/data").status();
    container.checkpoint(&images, &["--file-locks"]).unwrap();
    drop(container);

    let restored = bundle.restore(&images, &["--file-locks"]).unwrap();
    let after = restored.control("/data").status();
    assert!(after["counter"].as_u64() >= before["counter"].as_u64());
    assert_eq!(after["deleted_content"], before["deleted_content"]);
    assert_eq!(after["counter"], after["db_max"]);
});

// What the checkpoint of a container that somebody else has frozen rests upon.
on_each_runtime!(bare_checkpoints_of_a_frozen_container, |machine| {
    let bundle = machine.bundle("journal").args(["workload", "journal", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    container.freeze();
    assert_eq!(container.status(), "paused");

    let live = bundle.images("live");
    container.checkpoint(&live, &["--leave-running", "--file-locks"]).unwrap();
    assert!(container.is_frozen(), "a live checkpoint leaves it as it was");

    let stop = bundle.images("stop");
    container.checkpoint(&stop, &["--file-locks"]).unwrap();
    assert!(machine.cgroups(bundle.id()).is_empty(), "its cgroups are gone, without a thaw");
});

on_each_runtime!(holds_and_shares_open_files, |machine| {
    let bundle =
        machine.bundle("hold").rootfs(Rootfs::Directory).args(["workload", "hold", "/data"]).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let text = std::fs::read(bundle.path("/data/fds.json")).unwrap();
    let numbers: std::collections::BTreeMap<String, i32> = serde_json::from_slice(&text).unwrap();
    let processes = container.processes();
    assert_eq!(processes.len(), 2);
    for (name, number) in numbers {
        for process in &processes {
            let link = std::fs::read_link(format!("/proc/{process}/fd/{number}"));
            assert!(link.is_ok(), "fd {number} ({name}) of process {process}");
        }
    }
    container.checkpoint(&bundle.images("images"), &["--leave-running", "--file-locks"]).unwrap();
});

on_each_runtime!(ticker_on_btrfs_sees_a_freeze, |machine| {
    let data = machine.scratch().join("ticks");
    std::fs::create_dir(&data).unwrap();
    let bundle = machine
        .bundle("ticker")
        .rootfs(Rootfs::Subvolume)
        .bind(&data, "/ticks")
        .args([
            "workload",
            "ticker",
            "/ticks/page",
            "--memory",
            "4",
            "--files",
            "3",
            "--size",
            "100",
        ])
        .make();
    let container = bundle.run();
    wait_for_file(&data.join("page.ready"), container.pid());
    container.freeze();
    let frozen_at = ticks(&data);
    assert_eq!(ticks(&data), frozen_at, "nothing runs in a frozen container");
    container.checkpoint(&bundle.images("images"), &["--leave-running"]).unwrap();
    assert_eq!(ticks(&data), frozen_at, "nor did it run after the dump");
    assert_eq!(std::fs::metadata(bundle.path("/data/file-2")).unwrap().len(), 100);
    drop(container);
    std::fs::remove_dir_all(&data).unwrap();
});

/// The ticker's second word.
fn ticks(data: &std::path::Path) -> u64 {
    let page = std::fs::read(data.join("page")).unwrap();
    u64::from_ne_bytes(page[8..16].try_into().unwrap())
}

/// Gives the calling thread a view of the cgroups in which a directory lies beside the hierarchies.
fn directory_beside_the_hierarchies(name: &str) {
    let top = "/sys/fs/cgroup";
    let view = tempfile::tempdir_in(std::env::var_os("OCICLE_SCRATCH").unwrap()).unwrap();
    let script = format!(
        "set -e; cd {top}; mount -t tmpfs tmpfs {view}; \
         for hierarchy in *; do mkdir {view}/$hierarchy; mount --bind $hierarchy {view}/$hierarchy; done; \
         mkdir {view}/{name}; cd /; umount --recursive --lazy {top}; mount --rbind {view} {top}; \
         umount --recursive --lazy {view}",
        view = view.path().display()
    );
    run(Command::new("sh").args(["-c", &script]));
}

/// podman takes it for the hierarchy of a controller, and makes its cgroups there too: files.
#[test]
fn what_podman_makes_beside_the_hierarchies_is_removed() {
    on_machine(Variant::RuncV1, |machine| {
        directory_beside_the_hierarchies("net_cls");
        let podman = Podman::new(machine, Shim::Bare);
        podman.start("beside", &["--network", "none", IMAGE]);
        let made = machine.cgroups(&machine.unique("podman"));
        assert!(made.iter().any(|path| path.starts_with("/sys/fs/cgroup/net_cls")), "{made:?}");
        podman.remove("beside");
    });
}

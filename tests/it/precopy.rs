//! What is copied while a container writes in every way there is, compared with the truth.

use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::support::{self, Container, Machine, file_system, opened, tree_of};
use ocicle::files::Suspects;
use ocicle::freezer::{CgroupVersion, Freezer};
use ocicle::snapshot::{
    Compression, DriverSettings, SnapshotOwner, Staging, choose, pack, plan, probe,
};
use ocicle::sys::pid::Pid;

const ROUNDS: usize = 6;

/// So many files nobody writes in a round.
const RESTING: usize = 20;

/// Writes files, and waits until a later change must show in their times.
fn rest(dir: &Path) {
    for number in 0..RESTING {
        fs::write(dir.join(format!("resting-{number}")), format!("file {number}")).unwrap();
    }
    // Time itself is waited for: the clock of the file system's times moves on by then.
    std::thread::sleep(Duration::from_millis(50));
}

/// Takes snapshots of a directory that a container writes, compares each with what is there, and says
/// how many files did not have to be copied again.
fn is_true(machine: &Machine, container: &Container<'_>, root: &Path, dir: &str) -> u64 {
    let mut kept = 0;
    for round in 0..ROUNDS {
        let top = machine.scratch().join(format!("round-{round}"));
        let (staging, out, into) = (top.join("staging"), top.join("out"), top.join("into"));
        for path in [&staging, &out, &into] {
            fs::create_dir_all(path).unwrap();
        }
        let settings = DriverSettings { programs: Vec::new(), records: top.join("records") };
        let purpose = SnapshotOwner { owner: &out, part: "rootfs", is_alive: &|_| true };
        rest(&root.join(dir));
        let before = Suspects::of(&pids(container));
        let (mut driver, _) =
            choose(&staging, probe(root).unwrap(), None, &settings, &purpose).unwrap();
        driver.prepare(&before).unwrap();
        container.freeze();
        let freezer = Freezer::new(version(machine), container.freezer());
        let frozen = freezer.freeze(Duration::from_secs(10)).unwrap();
        let mut suspects = before;
        suspects.extend(Suspects::of(&pids(container)));
        let stats = driver.take(&frozen, &suspects).unwrap();
        let truth = tree_of(&root.join(dir));
        container.thaw();
        driver.seal().unwrap();
        let record = pack(
            &opened(&staging),
            &opened(&out),
            "rootfs",
            Compression::default(),
            Staging::Kept,
            &(),
        )
        .unwrap();
        let part = ocicle::snapshot::PackedPart::open(&out, &record).unwrap();
        plan(&probe(&into).unwrap(), &part).unwrap().execute(&()).unwrap();
        tree_of(&into.join(dir)).assert_is(&truth, &format!("round {round}: {stats:?}"));
        kept += stats.kept;
        fs::remove_dir_all(&top).unwrap();
    }
    kept
}

/// With a ring about, nothing that was written in the last seconds is trusted: so not with all ways.
fn writes_in_every_way(machine: &Machine, kind: Option<&str>) {
    let without = writes(machine, kind, &["ordinary", "mapped", "direct"]);
    assert!(without >= (ROUNDS * RESTING) as u64, "copied in advance, and kept: {without}");
    writes(machine, kind, &["ring", "ordinary", "mapped", "direct"]);
}

fn writes(machine: &Machine, kind: Option<&str>, ways: &[&str]) -> u64 {
    let place = machine.scratch().join("place");
    fs::create_dir(&place).unwrap();
    let pool = kind.map(|kind| file_system(&place, kind));
    let volume = pool.as_ref().unwrap_or(&place).join("volume");
    fs::create_dir(&volume).unwrap();
    let dir = if pool.is_some() { "/volume" } else { "/data" };
    let mut args = vec!["workload", "scribble", dir];
    args.extend(ways.iter().flat_map(|way| ["--way", way]));
    let bundle = machine.bundle(ways[0]).bind(&volume, "/volume");
    let bundle = bundle.configure(|config| config["process"]["args"] = args.into()).make();
    let container = bundle.run();
    let seen = if pool.is_some() { volume.clone() } else { bundle.path("/data") };
    for way in ways {
        support::wait_for_file(&seen.join(format!("{way}-ready")), container.pid());
    }
    let kept = match pool {
        Some(_) => is_true(machine, &container, &volume, ""),
        None => is_true(machine, &container, &bundle.rootfs(), "data"),
    };
    drop(container);
    if let Some(pool) = pool {
        nix::mount::umount2(&pool, nix::mount::MntFlags::MNT_DETACH).unwrap();
    }
    fs::remove_dir_all(&place).unwrap();
    kept
}

on_each_runtime!(on_an_overlay, |machine| writes_in_every_way(machine, None));

on_each_runtime!(on_xfs, |machine| writes_in_every_way(machine, Some("xfs")));

on_each_runtime!(on_btrfs, |machine| writes_in_every_way(machine, Some("btrfs")));

on_each_runtime!(on_ext4, |machine| writes_in_every_way(machine, Some("ext4")));

fn version(machine: &Machine) -> CgroupVersion {
    if machine.variant().has_cgroup2() { CgroupVersion::V2 } else { CgroupVersion::V1 }
}

/// The processes of a container, as the library numbers them.
fn pids(container: &Container<'_>) -> Vec<Pid> {
    container.processes().into_iter().map(Pid).collect()
}

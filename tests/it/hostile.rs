//! Image directories that somebody hostile has filled, at random: whatever is done with them, nothing
//! outside of them changes, and nobody waits for what is in them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::support::{
    Bundle, Dice, Machine, Shim, all_paths, run, status_of, tree_of, wait_for_guardians,
};

/// Names that are there for a moment only, or that CRIU and the runtime write.
const WRITTEN: [&str; 17] = [
    "ocicle-manifest.json.partial",
    "ocicle-manifest.b3sum.partial",
    "ocicle-files.json.partial",
    "ocicle-rootfs.0.tar.zst.partial",
    "ocicle-rootfs.index.json.partial",
    "ocicle-staging",
    "user_info.txt.partial",
    "descriptors.json",
    "dump.log",
    "restore.log",
    "stats-dump",
    "stats-restore",
    "inventory.img",
    "pages-9.img",
    "irmap-cache",
    "parent",
    ".ocicle-view-link",
];

/// What no command may touch.
struct Host(PathBuf);

impl Host {
    fn make(machine: &Machine) -> Self {
        let top = machine.state_root().with_file_name("host");
        fs::create_dir_all(top.join("directory/below")).unwrap();
        for (name, mode) in [("secret", 0o600), ("tool", 0o4755), ("directory/below/file", 0o644)] {
            fs::write(top.join(name), format!("{name} of the host")).unwrap();
            fs::set_permissions(top.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        Self(top)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

/// Somebody who puts a link in the place of a file and takes it away again, until it is dropped.
fn swap(path: &Path, link: &Path, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        let _ = renameat_with(CWD, path, CWD, link, RenameFlags::EXCHANGE);
    }
}

/// Makes one thing of a name other than it was, and says what. The link of the last way is for
/// [`swap`].
fn spoil(dice: &mut Dice, path: &Path, host: &Host) -> (&'static str, Option<PathBuf>) {
    let is_file = fs::symlink_metadata(path).is_ok_and(|found| found.is_file());
    let way = dice.below(if is_file { 10 } else { 8 });
    if way < 8 {
        let _ = fs::remove_dir_all(path).or_else(|_| fs::remove_file(path));
    }
    let node = |kind, mode| mknod(path, kind, Mode::from_bits_truncate(mode), makedev(1, 3));
    let what = match way {
        0 => symlink(host.path("secret"), path).map(|()| "a link to a file"),
        1 => symlink(host.path("directory"), path).map(|()| "a link to a directory"),
        2 => symlink(host.path("new"), path).map(|()| "a link to nothing"),
        3 => fs::hard_link(host.path("tool"), path).map(|()| "a hard link"),
        4 => node(SFlag::S_IFIFO, 0o666).map(|()| "a fifo").map_err(Into::into),
        5 => node(SFlag::S_IFCHR, 0o666).map(|()| "a device").map_err(Into::into),
        6 => fs::create_dir(path).map(|()| "an empty directory"),
        7 => fs::create_dir(path)
            .and_then(|()| symlink(host.path("secret"), path.join("inventory.img")))
            .and_then(|()| symlink(host.path("directory"), path.join("parts")))
            .map(|()| "a directory with links"),
        8 => {
            let length = fs::metadata(path).unwrap().len();
            fs::write(path, dice.bytes(length.min(4096) as usize)).map(|()| "anything")
        }
        _ => {
            let link = path.with_extension("aside");
            symlink(host.path("secret"), &link).unwrap();
            return ("swapped for a link", Some(link));
        }
    };
    (what.unwrap(), None)
}

/// A name that is there, or that will be.
fn choose(dice: &mut Dice, images: &Path) -> PathBuf {
    let (mut directories, mut paths) = all_paths(images);
    directories.retain(|directory| directory != images);
    paths.append(&mut directories);
    match dice.below(3) {
        0 => images.join(WRITTEN[dice.below(WRITTEN.len())]),
        _ => paths.swap_remove(dice.below(paths.len())),
    }
}

/// Runs a command that must end by itself; says whether it was a success.
fn ends(command: &Command, what: &str) -> bool {
    let mut limited = Command::new("timeout");
    limited.args(["--signal=KILL", "60"]).arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        limited.env(name, value.unwrap());
    }
    let streams = limited.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = streams.status().unwrap();
    assert!(status.code().is_some_and(|code| ![124, 137].contains(&code)), "{what}: {status}");
    status.success()
}

fn shim(bundle: &Bundle<'_>, command: &str, images: &Path) -> Command {
    let mut shim = bundle.machine().runtime(Shim::Ocicle, &bundle.log());
    shim.arg(command).arg("--image-path").arg(images).arg("--work-path").arg(bundle.work());
    shim.arg("--file-locks").args(bundle.machine().variant().criu_flags());
    shim
}

/// Does something with the images, at random.
fn use_them(dice: &mut Dice, images: &Path, ended: &Bundle<'_>, living: &Bundle<'_>, what: &str) {
    let machine = ended.machine();
    match dice.below(4) {
        0 | 1 => {
            let mut restore = shim(ended, "restore", images);
            restore.args(["--detach", "--bundle"]).arg(ended.dir());
            if ends(restore.arg(ended.id()), &format!("restore, {what}")) {
                ended.end();
            }
        }
        2 => {
            let mut checkpoint = shim(living, "checkpoint", images);
            let checkpoint = checkpoint.arg("--leave-running").arg(living.id());
            ends(checkpoint, &format!("checkpoint, {what}"));
            wait_for_guardians();
        }
        _ => {
            for command in ["inspect", "files", "diff"] {
                let mut look = machine.ocicle();
                ends(look.arg(command).arg(images), &format!("{command}, {what}"));
            }
        }
    }
}

/// A complete checkpoint of a container, and one that was interrupted when it had ended.
fn checkpoints(bundle: &Bundle<'_>) -> [PathBuf; 2] {
    let [complete, staged] = ["complete", "staged"].map(|name| bundle.images(name));
    let container = bundle.run();
    container.wait_for("/data/ready");
    run(shim(bundle, "checkpoint", &complete).arg("--leave-running").arg(bundle.id()));
    let mut interrupted = shim(bundle, "checkpoint", &staged);
    interrupted.env("OCICLE_FAULT", "thawed").arg(bundle.id());
    assert_eq!(status_of(&mut interrupted).0, 128 + 9);
    wait_for_guardians();
    [complete, staged]
}

on_each_runtime!(images_of_somebody_hostile, |machine| {
    let rounds = std::env::var("OCICLE_ROUNDS").map_or(10, |rounds| rounds.parse().unwrap());
    let seed = std::env::var("OCICLE_SEED").map_or(0x0c1c1e, |seed| seed.parse().unwrap());
    let [ended, living] = ["ended", "living"].map(|name| {
        machine.bundle(name).args(["workload", "journal", "/data"]).shim(Shim::Bare).make()
    });
    let checkpoints = checkpoints(&ended);
    let other = living.run();
    other.wait_for("/data/ready");
    let host = Host::make(machine);
    let before = tree_of(&host.0);
    let mut dice = Dice(seed);
    for round in 0..rounds {
        let images = ended.dir().join("images");
        run(Command::new("cp").arg("-a").arg(&checkpoints[dice.below(2)]).arg(&images));
        let mut what = format!("round {round}");
        let mut swapped = None;
        for _ in 0..=dice.below(3) {
            let path = choose(&mut dice, &images);
            // Below something that was spoilt there is nothing any more.
            if path.parent().is_none_or(|parent| !parent.is_dir()) {
                continue;
            }
            let (how, link) = spoil(&mut dice, &path, &host);
            what += &format!(", {} is {how}", path.strip_prefix(&images).unwrap().display());
            swapped = link.map(|link| (path, link)).or(swapped);
        }
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let swapper =
                swapped.as_ref().map(|(path, link)| scope.spawn(|| swap(path, link, &stop)));
            use_them(&mut dice, &images, &ended, &living, &what);
            stop.store(true, Ordering::Relaxed);
            if let Some(swapper) = swapper {
                swapper.join().unwrap();
            }
        });
        fs::remove_dir_all(&images).unwrap();
        tree_of(&host.0).assert_is(&before, &what);
        assert_eq!(other.status(), "running", "{what}");
    }
    fs::remove_dir_all(&host.0).unwrap();
});

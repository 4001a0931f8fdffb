//! Volumes through real containers: held by each driver, shared with others, put back.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{
    Bundle, Container, Machine, file_system, manifest, outcome, run, subvolume, tree_of,
    wait_for_guardians, wait_for_program,
};
use serde_json::{Value, json};

const WAIT: [&str; 3] = ["sh", "-c", ": >/data/ready; exec tail -f /dev/null"];

fn start<'b>(bundle: &'b Bundle<'_>) -> Container<'b> {
    let container = bundle.run();
    container.wait_for("/data/ready");
    container
}

fn ocicle(machine: &Machine, command: &str, container: &str) -> Command {
    let mut ocicle = machine.call(command, &[container]);
    if command == "restore" {
        ocicle.args(["--volumes", "all"]);
    }
    ocicle
}

fn checkpoint(machine: &Machine, bundle: &Bundle<'_>, flags: &[&str]) -> Command {
    let mut command = ocicle(machine, "checkpoint", bundle.id());
    command.args(["--volumes", "all"]).args(flags);
    command
}

#[track_caller]
fn succeeds(mut command: Command) -> String {
    let (success, _, errors) = outcome(&mut command);
    assert!(success, "{command:?}: {errors}");
    errors
}

#[track_caller]
fn fails(mut command: Command) -> String {
    let (success, _, errors) = outcome(&mut command);
    assert!(!success, "{command:?} did not fail");
    errors
}

/// A directory of the host that is gone with the test.
struct Place(PathBuf);

impl Place {
    fn new(machine: &Machine) -> Self {
        let path = machine.scratch().join("place");
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn directory(&self, name: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::create_dir(&path).unwrap();
        path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for kind in ["btrfs", "xfs", "there/btrfs"] {
            let _ = nix::mount::umount2(&self.0.join(kind), nix::mount::MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A place with a btrfs of its own, and a subvolume of that.
fn with_subvolume(machine: &Machine) -> (Place, PathBuf, PathBuf) {
    let place = Place::new(machine);
    let pool = file_system(&place.0, "btrfs");
    let volume = subvolume(&pool.join("volume"));
    (place, pool, volume)
}

fn fill(volume: &Path) {
    fs::create_dir(volume.join("deep")).unwrap();
    fs::write(volume.join("deep/file"), vec![b'x'; 300_000]).unwrap();
    fs::write(volume.join("gone"), "content").unwrap();
}

fn mess_up(volume: &Path) {
    fs::remove_dir_all(volume.join("deep")).unwrap();
    fs::remove_file(volume.join("gone")).unwrap();
    fs::write(volume.join("deep"), "a file now").unwrap();
    fs::create_dir_all(volume.join("since/then")).unwrap();
}

/// Takes the inode numbers that files would have by chance.
fn take_inodes(volume: &Path) {
    for number in 0..1000 {
        fs::write(volume.join(format!("since-{number}")), "x").unwrap();
    }
}

/// Another directory in the place of a volume, as an engine makes one for an imported container.
fn mount_instead(bundle: &Bundle<'_>, old: &Path, new: &Path) {
    let path = bundle.dir().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(old.to_str().unwrap(), new.to_str().unwrap())).unwrap();
}

on_each_runtime!(a_volume_on_a_subvolume, |machine| {
    let (place, _, volume) = with_subvolume(machine);
    let bundle = machine.bundle("files").bind(&volume, "/volume").args(WAIT).make();
    let container = start(&bundle);
    fill(&volume);
    container.exec(&["sh", "-c", "echo of the container >/volume/own"]);
    let before = tree_of(&volume);
    let inode = volume.join("deep/file").metadata().unwrap().ino();
    succeeds(checkpoint(machine, &bundle, &[]));
    drop(container);
    let taken = &manifest(&machine.version(bundle.id(), "v1"))["parts"][1]["taken"];
    assert_eq!((&taken["driver"], &taken["method"]), (&json!("btrfs"), &json!("snapshot")));
    let listed = run(machine.ocicle().args(["list", "--format", "json"]));
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["checkpoints"][0]["parts"][1]["how"], "btrfs snapshot", "{listed}");

    mess_up(&volume);
    succeeds(ocicle(machine, "restore", bundle.id()));
    let restored = bundle.adopt();
    tree_of(&volume).assert_is(&before, "in place");
    assert_eq!(volume.join("deep/file").metadata().unwrap().ino(), inode, "the very inode");
    assert_eq!(restored.exec(&["cat", "/volume/own"]), "of the container\n");
    drop(restored);

    let fresh = place.directory("fresh");
    mount_instead(&bundle, &volume, &fresh);
    succeeds(ocicle(machine, "restore", bundle.id()));
    tree_of(&fresh).assert_is(&before, "a fresh volume elsewhere");
    drop(bundle.adopt());
});

on_each_runtime!(a_subvolume_that_is_sent_to_another_file_system, |machine| {
    let (place, pool, volume) = with_subvolume(machine);
    let bundle = machine.bundle("sent").bind(&volume, "/volume").args(WAIT).make();
    let container = start(&bundle);
    fill(&volume);
    container.exec(&["sh", "-c", "echo of the container >/volume/own"]);
    let before = tree_of(&volume);
    succeeds(checkpoint(machine, &bundle, &[]));
    drop(container);

    let there = file_system(&place.directory("there"), "btrfs");
    let index =
        &manifest(&machine.version(bundle.id(), "v1"))["parts"][1]["files"]["index"]["blake3"];
    let kept = format!(".ocicle/ocicle-{}", index.as_str().unwrap());
    fs::create_dir(there.join(".ocicle")).unwrap();
    fs::set_permissions(there.join(".ocicle"), fs::Permissions::from_mode(0o700)).unwrap();
    let send = "btrfs send -q \"$1\" | btrfs receive -q \"$2\"";
    let mut sent = Command::new("bash");
    run(sent.args(["-ec", send, "-"]).args([pool.join(&kept), there.join(".ocicle")]));
    nix::mount::umount2(&pool, nix::mount::MntFlags::MNT_DETACH).unwrap();

    let fresh = subvolume(&there.join("volume"));
    take_inodes(&fresh);
    mount_instead(&bundle, &volume, &fresh);
    succeeds(ocicle(machine, "restore", bundle.id()));
    let restored = bundle.adopt();
    tree_of(&fresh).assert_is(&before, "on another file system");
    let inode = |path: PathBuf| path.join("deep/file").metadata().unwrap().ino();
    assert_eq!(inode(fresh.clone()), inode(there.join(&kept)), "a snapshot of what was received");
    assert_eq!(restored.exec(&["cat", "/volume/own"]), "of the container\n");
    drop(restored);
});

/// A restore has no guardian: its door stays, of no use to anybody.
fn forget_doors() {
    for entry in fs::read_dir("/run/ocicle").unwrap().flatten() {
        if entry.file_name().as_encoded_bytes().starts_with(b"door-") {
            fs::remove_dir_all(entry.path()).unwrap();
        }
    }
}

#[track_caller]
fn killed_at(point: &str, mut command: Command) {
    command.env("OCICLE_FAULT", point);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert_eq!(command.status().unwrap().signal(), Some(9), "{point} was not reached");
    wait_for_guardians();
}

on_each_runtime!(killed_with_a_snapshot_of_a_subvolume, |machine| {
    let (_place, pool, volume) = with_subvolume(machine);
    let bundle = machine.bundle("files").bind(&volume, "/volume").args(WAIT).make();
    let container = start(&bundle);
    fill(&volume);
    let kept = || fs::read_dir(pool.join(".ocicle")).unwrap().count();
    for point in ["pre-copied", "subvolume-taken", "post-dump", "thawed", "packed"] {
        killed_at(point, checkpoint(machine, &bundle, &["--leave-running"]));
        assert_eq!(kept(), 0, "{point}");
        assert!(!container.is_frozen() && container.status() == "running", "{point}");
    }
    // Stopped and committed, and not packed: the next restore packs the snapshot.
    let before = tree_of(&volume);
    killed_at("dumped", checkpoint(machine, &bundle, &[]));
    drop(container);
    assert_eq!(kept(), 2);
    mess_up(&volume);
    succeeds(ocicle(machine, "restore", bundle.id()));
    tree_of(&volume).assert_is(&before, "from the snapshot that was left");
    drop(bundle.adopt());
    // A restore that is killed leaves the volume as it was, or as it is to be.
    for point in ["snapshot-made", "snapshot-exchanged"] {
        mess_up(&volume);
        killed_at(point, ocicle(machine, "restore", bundle.id()));
        forget_doors();
        succeeds(ocicle(machine, "restore", bundle.id()));
        tree_of(&volume).assert_is(&before, point);
        drop(bundle.adopt());
    }
    // Without the checkpoint, its snapshot goes with the next one.
    fs::remove_dir_all(machine.store()).unwrap();
    let container = bundle.run();
    succeeds(checkpoint(machine, &bundle, &["--leave-running"]));
    assert_eq!(kept(), 2, "the new one and its record");
    drop(container);
});

/// A driver that copies a directory, and notes what it was asked, and in what state a control group
/// was when it took the snapshot.
fn copying_driver(place: &Place, state: &Path) -> PathBuf {
    let held = place.directory("held");
    let script = format!(
        r#"#!/bin/bash -e
read -r request
get() {{ jq -r ".$1" <<<"$request"; }}
held={held} verb=$(get verb) name=$(get name) path=$(get path)
echo $verb >>$held.log
[[ ! -e $held.fail-$verb ]] || {{ echo "no $verb today" >&2; exit 3; }}
[[ ! -e $held.hang-$verb ]] || read -r <>$held.hang-$verb
case $verb in
    probe) echo '{{"usable": true, "keeps": true}}' ;;
    prepare) echo '{{}}' ;;
    take) cat {state} >$held.state; cp -a $path $held/$name; echo '{{}}' ;;
    commit) echo "{{\"directory\": \"$held/$name\"}}" ;;
    discard) [[ $(get keep) == true ]] || rm -rf $held/$name; echo '{{}}' ;;
    restore) rm -rf $path/*; cp -a $held/$name/. $path; echo '{{"restored": true}}' ;;
esac
"#,
        held = held.display(),
        state = state.display(),
    );
    let program = place.0.join("driver");
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let config = format!(
        "[[driver]]\npath = '{}'\nprogram = '{}'\ntimeout = 5\n",
        place.0.join("volume").display(),
        program.display()
    );
    fs::write(place.0.join("ocicle.toml"), config).unwrap();
    held
}

fn with_driver(mut command: Command, place: &Place) -> Command {
    command.env("OCICLE_CONFIG", place.0.join("ocicle.toml"));
    command
}

fn state_file(container: &Container<'_>, machine: &Machine) -> PathBuf {
    let v2 = machine.variant().has_cgroup2();
    container.freezer().join(if v2 { "cgroup.events" } else { "freezer.state" })
}

fn says_frozen(text: &str) -> bool {
    text.contains("frozen 1") || text.trim() == "FROZEN"
}

on_each_runtime!(a_volume_that_a_program_holds, |machine| {
    let place = Place::new(machine);
    let volume = place.directory("volume");
    let bundle = machine.bundle("files").bind(&volume, "/volume").args(WAIT).make();
    let container = start(&bundle);
    fill(&volume);
    let before = tree_of(&volume);
    let held = copying_driver(&place, &state_file(&container, machine));
    let kept = || fs::read_dir(&held).unwrap().count();
    let log = || fs::read_to_string(held.with_extension("log")).unwrap();
    let flag = |name: &str| held.with_file_name(format!("held.{name}"));

    // It fails, or does not answer: there is no checkpoint, and the container goes on.
    fs::write(flag("fail-take"), "").unwrap();
    let said = fails(with_driver(checkpoint(machine, &bundle, &["--leave-running"]), &place));
    assert!(said.contains("no take today") && said.contains("to take"), "{said}");
    fs::remove_file(flag("fail-take")).unwrap();
    run(Command::new("mkfifo").arg(flag("hang-take")));
    let said = fails(with_driver(checkpoint(machine, &bundle, &["--leave-running"]), &place));
    assert!(said.contains("longer than 5 s"), "{said}");
    fs::remove_file(flag("hang-take")).unwrap();
    killed_at(
        "program-taken",
        with_driver(checkpoint(machine, &bundle, &["--leave-running"]), &place),
    );
    assert_eq!(kept(), 0, "{}", log());
    assert!(!container.is_frozen() && container.status() == "running");
    fs::remove_file(flag("log")).unwrap();

    succeeds(with_driver(checkpoint(machine, &bundle, &[]), &place));
    drop(container);
    assert_eq!(log(), "probe\nprepare\ntake\ncommit\ndiscard\n");
    assert_eq!(kept(), 1, "it keeps them");
    let taken = &manifest(&machine.version(bundle.id(), "v1"))["parts"][1]["taken"];
    assert_eq!(taken["driver"]["program"], place.0.join("driver").to_str().unwrap(), "{taken}");
    mess_up(&volume);
    succeeds(with_driver(ocicle(machine, "restore", bundle.id()), &place));
    tree_of(&volume).assert_is(&before, "put back by the program");
    assert!(log().ends_with("restore\n"));
    drop(bundle.adopt());
    // Without the program, the layers have everything.
    mess_up(&volume);
    succeeds(ocicle(machine, "restore", bundle.id()));
    tree_of(&volume).assert_is(&before, "put back without it");
    drop(bundle.adopt());
    // A program that does not want the part: another driver has it.
    fs::write(flag("fail-probe"), "").unwrap();
    let container = bundle.run();
    let said = succeeds(with_driver(checkpoint(machine, &bundle, &[]), &place));
    assert!(said.contains("no probe today"), "{said}");
    let taken = &manifest(&machine.version(bundle.id(), "v2"))["parts"][1]["taken"];
    assert_eq!(taken["driver"], "directory", "{taken}");
    drop(container);
});

on_each_runtime!(a_volume_that_another_container_writes, |machine| {
    let place = Place::new(machine);
    let volume = place.directory("volume");
    let below = volume.join("below");
    fill(&volume);
    fs::create_dir(&below).unwrap();
    let bundle = machine.bundle("files").bind(&volume, "/volume").args(WAIT).make();
    let container = start(&bundle);
    let other = machine.bundle("other").bind(&below, "/mine").args(WAIT).make();
    let other = start(&other);
    copying_driver(&place, &state_file(&other, machine));
    let with = |flags: &[&str]| {
        let flags = [&["--leave-running"], flags].concat();
        with_driver(checkpoint(machine, &bundle, &flags), &place)
    };

    wait_for_program(other.pid(), "tail");
    let who = format!("pid {} (tail)", other.pid());
    let said = fails(with(&["--shared", "error"]));
    assert!(said.contains(&who) && said.contains("--shared freeze"), "{said}");
    let said = succeeds(with(&[]));
    assert!(said.contains(&who) && said.contains("is not frozen"), "{said}");
    assert!(!says_frozen(&fs::read_to_string(place.0.join("held.state")).unwrap()));

    let said = succeeds(with(&["--shared", "freeze"]));
    assert!(!said.contains("can write"), "{said}");
    assert!(says_frozen(&fs::read_to_string(place.0.join("held.state")).unwrap()));
    let others = &manifest(&machine.version(bundle.id(), "v2"))["freeze"]["others"];
    assert_eq!(others, &json!([other.freezer()]), "{others}");
    let both_run = |when: &str| {
        for container in [&container, &other] {
            assert!(!container.is_frozen() && container.status() == "running", "{when}");
        }
    };
    both_run("afterwards");
    for point in ["others-frozen", "program-taken"] {
        killed_at(point, with(&["--shared", "freeze"]));
        both_run(point);
    }
    // What somebody else had frozen stays so.
    other.freeze();
    succeeds(with(&["--shared", "freeze"]));
    assert!(other.is_frozen());
    other.thaw();
});

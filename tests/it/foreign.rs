//! What users of the machine put where their containers are kept, and what root sees of it.

use std::fs::{self, File};
use std::os::unix::fs::{chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{Pid, mkfifo};
use serde_json::{Value, json};

use crate::support::{Machine, Variant, on_machine, outcome, run};

const USERS: &str = "/run/user";

/// The directory of a user, in a place of this test's own.
fn home_of(user: u32) -> PathBuf {
    let home = Path::new(USERS).join(user.to_string());
    fs::create_dir_all(home.join("crun")).unwrap();
    for path in [&home, &home.join("crun")] {
        chown(path, Some(user), Some(user)).unwrap();
    }
    home
}

fn private_users() {
    fs::create_dir_all(USERS).unwrap();
    mount(Some("tmpfs"), USERS, Some("tmpfs"), MsFlags::empty(), Some("mode=755")).unwrap();
}

/// Makes a file of a container's state, whatever it is, the user's.
fn state_of(user: u32, id: &str, make: impl FnOnce(&Path)) {
    let directory = home_of(user).join("crun").join(id);
    fs::create_dir(&directory).unwrap();
    make(&directory.join("status"));
    for path in [&directory, &directory.join("status")] {
        lchown(path, Some(user), Some(user)).unwrap();
    }
}

fn fifo(path: &Path) {
    mkfifo(path, Mode::from_bits_truncate(0o666)).unwrap();
}

/// A command of ocicle's that has to end; its output.
#[track_caller]
fn ends(machine: &Machine, words: &[&str]) -> String {
    let ocicle = machine.ocicle();
    let mut command = Command::new("timeout");
    command.args(["--signal=KILL", "60"]).arg(ocicle.get_program()).args(ocicle.get_args());
    command.env("OCICLE_RUNTIME", machine.variant().runtime()).args(words);
    let (success, said, errors) = outcome(&mut command);
    assert!(success, "{words:?}: {said}{errors}");
    said
}

fn listed(machine: &Machine) -> Vec<Value> {
    let all: Value = serde_json::from_str(&ends(machine, &["ps", "--format", "json"])).unwrap();
    all["containers"].as_array().unwrap().clone()
}

/// What is said of a container, or of a place whose path ends so.
#[track_caller]
fn problem(all: &[Value], user: u32, what: &str) -> String {
    let is_it = |one: &&Value| {
        let name = one["name"].as_str().unwrap_or_default();
        one["user"] == user && (one["id"] == what || name.ends_with(what))
    };
    let found = all.iter().find(is_it).unwrap_or_else(|| panic!("{what} of {user} in {all:#?}"));
    found["problem"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_hostile_entry_is_a_line_and_no_end() {
    on_machine(Variant::RuncV2, |machine| {
        private_users();
        let bundle = machine.bundle("own").args(["tail", "-f", "/dev/null"]).make();
        let container = bundle.run();
        let good = json!({ "pid": 0, "bundle": "/nowhere" }).to_string();
        state_of(4711, "good", |status| fs::write(status, &good).unwrap());
        state_of(4711, "fifo", fifo);
        state_of(4711, "link", |status| symlink("/etc/shadow", status).unwrap());
        state_of(4711, "device", |status| {
            mknod(status, SFlag::S_IFCHR, Mode::from_bits_truncate(0o666), makedev(10, 130))
                .unwrap();
        });
        state_of(4711, "large", |status| File::create(status).unwrap().set_len(2 << 20).unwrap());
        state_of(4711, "cursor", |status| fs::write(status, "\"\\u001b[2J\u{202e}\"").unwrap());
        state_of(4711, "roots", |status| fs::write(status, &good).unwrap());
        chown(home_of(4711).join("crun/roots/status"), Some(0), None).unwrap();
        let bundled = home_of(4711).join("bundle");
        fs::create_dir(&bundled).unwrap();
        fifo(&bundled.join("config.json"));
        chown(&bundled, Some(4711), None).unwrap();
        chown(bundled.join("config.json"), Some(4711), None).unwrap();
        let state = json!({ "pid": 0, "bundle": bundled }).to_string();
        state_of(4711, "bundled", |status| fs::write(status, &state).unwrap());
        let foreign = json!({ "pid": 0, "bundle": bundle.dir() }).to_string();
        state_of(4711, "foreign", |status| fs::write(status, &foreign).unwrap());
        for (user, make) in
            [(4712, fifo as fn(&Path)), (4713, |path: &Path| symlink("/run", path).unwrap())]
        {
            fs::remove_dir(home_of(user).join("crun")).unwrap();
            make(&only_home_of(user).join("crun"));
            lchown(only_home_of(user).join("crun"), Some(user), None).unwrap();
        }
        let all = listed(machine);
        assert!(all.iter().any(|one| one["id"] == bundle.id() && one["status"] == "running"));
        assert_eq!(problem(&all, 4711, "good"), "");
        for (user, what, why) in [
            (4711, "fifo", "it is a fifo"),
            (4711, "link", "it is a symbolic link"),
            (4711, "device", "it is a device"),
            (4711, "large", "it is larger than 1048576 bytes"),
            (4711, "cursor", "invalid type"),
            (4711, "roots", "belongs to user 0"),
            (4711, "bundled", "its config.json is unreadable: it is a fifo"),
            (4711, "foreign", "its config.json is unreadable: "),
            (4712, "4712/crun", "it is a fifo"),
            (4713, "4713/crun", "it is a symbolic link"),
        ] {
            let told = problem(&all, user, what);
            assert!(told.contains(why), "{what} of {user}: {told}");
        }
        let table = ends(machine, &["ps"]);
        assert!(table.contains("unreadable: it is a fifo"), "{table}");
        assert!(!table.contains(['\u{1b}', '\u{202e}']), "{table:?}");
        for words in [&["doctor"][..], &["check", bundle.id()], &["list"]] {
            let mut command = Command::new("timeout");
            let ocicle = machine.ocicle();
            command.args(["--signal=KILL", "60"]).arg(ocicle.get_program()).args(ocicle.get_args());
            let (status, ..) = crate::support::status_of(command.args(words));
            assert_ne!(status, 137, "{words:?} waits");
        }
        drop(container);
        umount2(USERS, MntFlags::MNT_DETACH).unwrap();
    });
}

fn only_home_of(user: u32) -> PathBuf {
    Path::new(USERS).join(user.to_string())
}

/// What a user mounts is served by a program of the user's, which need not answer.
#[test]
fn nobody_waits_for_a_file_system_of_a_users_own() {
    on_machine(Variant::RuncV2, |machine| {
        private_users();
        let (home, place) = (home_of(4711), machine.scratch().join("served"));
        for name in ["lower/x", "upper", "work"] {
            fs::create_dir_all(place.join(name)).unwrap();
        }
        fs::write(place.join("lower/x/status"), "{}").unwrap();
        run(Command::new("chown").args(["-R", "4711"]).arg(&place));
        let [lower, upper, work] =
            ["lower", "upper", "work"].map(|name| place.join(name).display().to_string());
        let options = format!("lowerdir={lower},upperdir={upper},workdir={work},allow_other");
        // It returns when the file system is there.
        run(Command::new("fuse-overlayfs").args(["-o", &options]).arg(home.join("crun")));
        let server = server_of(&place);
        kill(server, Signal::SIGSTOP).unwrap();
        let all = listed(machine);
        assert!(problem(&all, 4711, "4711/crun").contains("is on a FUSE file system"), "{all:#?}");
        kill(server, Signal::SIGKILL).unwrap();
        umount2(&home.join("crun"), MntFlags::MNT_DETACH).unwrap();
        umount2(USERS, MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir_all(place).unwrap();
    });
}

fn server_of(place: &Path) -> Pid {
    let is_server = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        line.starts_with("fuse-overlayfs") && line.contains(place.to_str().unwrap())
    };
    let all = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let server = all.into_iter().find(is_server).expect("a server");
    Pid::from_raw(server.file_name().unwrap().to_str().unwrap().parse().unwrap())
}

#[test]
fn lists_in_a_home_are_looked_at_in_the_same_way() {
    on_machine(Variant::RuncV2, |machine| {
        private_users();
        let home = machine.scratch().join("home");
        let passwd = machine.scratch().join("passwd");
        let users = [4711, 4712, 4713]
            .map(|user| format!("u{user}:x:{user}:{user}::{}/{user}:/bin/sh\n", home.display()));
        fs::write(&passwd, format!("root:x:0:0::/root:/bin/sh\n{}", users.concat())).unwrap();
        mount(Some(&passwd), "/etc/passwd", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        let lists = |user: u32| {
            home_of(user);
            let lists = home
                .join(user.to_string())
                .join(".local/share/containers/storage/overlay-containers");
            fs::create_dir_all(&lists).unwrap();
            lists
        };
        let list = r#"[{"id":"aa","names":["web"],"metadata":"{\"image-name\":\"img\",\"name\":\"web\"}"}]"#;
        fs::write(lists(4711).join("containers.json"), list).unwrap();
        fifo(&lists(4712).join("containers.json"));
        symlink("/etc/passwd", lists(4713).join("volatile-containers.json")).unwrap();
        for user in [4711, 4712, 4713] {
            run(Command::new("chown")
                .args(["-Rh", &user.to_string()])
                .arg(home.join(user.to_string())));
        }
        let all = listed(machine);
        assert_eq!(problem(&all, 4711, "web"), "");
        assert_eq!(problem(&all, 4712, "/containers.json"), "it is a fifo");
        assert_eq!(problem(&all, 4713, "/volatile-containers.json"), "it is a symbolic link");
        umount2("/etc/passwd", MntFlags::MNT_DETACH).unwrap();
        umount2(USERS, MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir_all(home).unwrap();
        fs::remove_file(passwd).unwrap();
    });
}

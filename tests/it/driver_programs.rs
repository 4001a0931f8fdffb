//! The snapshot drivers in hooks/drivers/: fsfreeze on real file systems, LVM and ZFS with stand-ins for their
//! commands, since neither is to be had on every machine.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{self, Tree, file_system, private, run, scratch, tree_of};
use serde_json::{Value, json};

const NAME: &str = "ocicle-1a-2b-3c";

/// A driver of hooks/drivers/, with stand-ins first on its `PATH`.
struct Hook {
    program: PathBuf,
    mount: Value,
    path: PathBuf,
    top: PathBuf,
}

impl Hook {
    fn new(name: &str, top: &Path, path: &Path, mount: Value) -> Self {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("hooks/drivers").join(name);
        fs::create_dir(top.join("bin")).unwrap();
        fs::create_dir(top.join("held")).unwrap();
        Self { program, mount, path: path.to_owned(), top: top.to_owned() }
    }

    /// Puts a command in the place of the real one; it finds its things in `$top`.
    fn stand_in(&self, name: &str, script: &str) {
        let path = self.top.join("bin").join(name);
        fs::write(&path, format!("#!/bin/bash -e\ntop={}\n{script}\n", self.top.display()))
            .unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.top.join("bin").display()));
        command.env("OCICLE_FSFREEZE", self.top.join("fsfreeze.conf"));
        for variable in ["OCICLE_FSFREEZE_MOUNTS", "OCICLE_LVM_MOUNTS"] {
            command.env(variable, self.top.join("held"));
        }
        command.env("OCICLE_LVM_DEVICES", self.top.join("devices"));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn request(&self, verb: &str, more: Value) -> String {
        let mut request = json!({
            "schema": 1, "verb": verb, "path": self.path, "mount": self.mount, "name": NAME,
        });
        let Value::Object(more) = more else { panic!("{more} is no object") };
        request.as_object_mut().unwrap().extend(more);
        request.to_string()
    }

    fn ask_with(&self, verb: &str, more: Value) -> Result<Value, String> {
        let mut child = self.command().spawn().unwrap();
        // One that does not read it has its reasons.
        let _ = child.stdin.take().unwrap().write_all(self.request(verb, more).as_bytes());
        let output = child.wait_with_output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        if !output.status.success() {
            return Err(errors);
        }
        Ok(serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{verb}: {output:?}")))
    }

    #[track_caller]
    fn ask(&self, verb: &str) -> Value {
        self.ask_with(verb, json!({})).unwrap_or_else(|errors| panic!("{verb}: {errors}"))
    }

    /// Where the content is that was there when it was taken.
    #[track_caller]
    fn committed(&self) -> PathBuf {
        PathBuf::from(self.ask("commit")["directory"].as_str().unwrap())
    }

    /// Has a snapshot taken of what is in `part`, and kept; what was in it.
    #[track_caller]
    fn take_and_keep(&self, part: &Path) -> Tree {
        assert_eq!(self.ask("probe"), json!({ "usable": true, "keeps": true }));
        self.ask("prepare");
        let was = tree_of(part);
        self.ask("take");
        fs::write(part.join("other"), "afterwards").unwrap();
        tree_of(&self.committed()).assert_is(&was, "the snapshot");
        self.ask_with("discard", json!({ "keep": true })).unwrap();
        was
    }

    fn held(&self) -> usize {
        fs::read_dir(self.top.join("held")).unwrap().count()
    }
}

fn mount_of(point: &Path, kind: &str, source: &str) -> Value {
    json!({ "point": point, "root": "/", "source": source, "type": kind, "device": "0:0" })
}

fn fill(part: &Path) {
    fs::create_dir_all(part.join("deep")).unwrap();
    fs::write(part.join("deep/file"), vec![b'x'; 100_000]).unwrap();
    fs::write(part.join("other"), "before").unwrap();
}

fn freezes(kind: &'static str) {
    private(move || {
        let top = scratch();
        let point = file_system(top.path(), kind);
        let part = point.join("part");
        fill(&part);
        let hook = Hook::new("fsfreeze", top.path(), &part, mount_of(&point, kind, "/dev/loop"));
        let image = top.path().join(format!("{kind}.img"));
        let configure = |make_copy: &str| {
            let (image, copy) = (image.display(), top.path().join("copy"));
            let copy = copy.display();
            let text = format!(
                "make_copy() {{ {make_copy}; cp --sparse=always {image} {copy}; }}\n\
                 show_copy() {{ echo {copy}; }}\nremove_copy() {{ rm -f {copy}; }}\n"
            );
            fs::write(top.path().join("fsfreeze.conf"), text).unwrap();
        };
        configure("true");
        assert_eq!(hook.ask("probe"), json!({ "usable": true, "keeps": false }));
        let was = tree_of(&part);
        hook.ask("prepare");
        hook.ask("take");
        fs::write(part.join("other"), "afterwards").unwrap();
        for _ in 0..2 {
            tree_of(&hook.committed()).assert_is(&was, "the copy");
        }
        for _ in 0..2 {
            hook.ask("discard");
        }
        assert!(!top.path().join("copy").exists() && hook.held() == 0);
        // A copy that cannot be made.
        configure("return 7");
        let said = hook.ask_with("take", json!({})).unwrap_err();
        assert!(said.contains("make_copy ended with status 7"), "{said}");
        fs::write(part.join("other"), "thawed").unwrap();
        // Killed in the middle, with all of its process group, while the file system is frozen.
        let ready = top.path().join("ready");
        configure(&format!(
            ": >{}; read -r <>{}",
            ready.display(),
            top.path().join("fifo").display()
        ));
        run(Command::new("mkfifo").arg(top.path().join("fifo")));
        let mut command = hook.command();
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(hook.request("take", json!({})).as_bytes()).unwrap();
        let pid = child.id().cast_signed();
        support::wait_for_file(&ready, pid);
        let group = nix::unistd::Pid::from_raw(pid);
        nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL).unwrap();
        child.wait().unwrap();
        // It would wait for ever.
        fs::write(part.join("other"), "thawed again").unwrap();
        hook.ask("discard");
    });
}

#[test]
fn fsfreeze_on_xfs() {
    freezes("xfs");
}

#[test]
fn fsfreeze_on_ext4() {
    freezes("ext4");
}

#[test]
fn fsfreeze_is_not_for_everything() {
    let top = scratch();
    let hook = Hook::new("fsfreeze", top.path(), top.path(), mount_of(top.path(), "tmpfs", "none"));
    assert_eq!(hook.ask("probe")["usable"], false);
    assert!(hook.ask_with("frobnicate", json!({})).unwrap_err().contains("no verb"));
    let said = hook.ask_with("take", json!({ "name": "../x" })).unwrap_err();
    assert!(said.contains("no name of a snapshot"), "{said}");
}

#[test]
fn zfs_with_a_stand_in() {
    let top = scratch();
    let point = top.path().join("pool");
    let part = point.join("part");
    fill(&part);
    let hook = Hook::new("zfs", top.path(), &part, mount_of(&point, "zfs", "tank/data"));
    hook.stand_in(
        "zfs",
        r#"echo "$*" >>$top/log; snapshots=$top/pool/.zfs/snapshot; last=${!#}; name=${last#*@}
case "$1 $*" in
    "list "*" snapshot "*) [[ -d $snapshots/$name ]] ;;
    "list "*) [[ $last == tank/data ]] ;;
    snapshot*) mkdir -p $snapshots/$name; cp -a $top/pool/part $snapshots/$name ;;
    rollback*) [[ $(ls $snapshots) == "$name" ]] ;;
    destroy*) rm -r $snapshots/$name ;;
    *) exit 9 ;;
esac"#,
    );
    let was = hook.take_and_keep(&part);
    tree_of(&hook.committed()).assert_is(&was, "kept");
    // The part is but a directory of the dataset, which a rollback would put back whole.
    assert_eq!(hook.ask("restore")["restored"], false);
    let whole = Hook { path: point.clone(), ..hook };
    let same = whole.ask_with("restore", json!({ "taken_of": point })).unwrap();
    assert_eq!(same["restored"], true);
    whole.ask("discard");
    whole.ask("discard");
    assert!(whole.ask_with("commit", json!({})).unwrap_err().contains("is not there"));
    let log = fs::read_to_string(top.path().join("log")).unwrap();
    for line in ["snapshot", "rollback", "destroy"] {
        let line = format!("{line} tank/data@{NAME}");
        assert_eq!(log.lines().filter(|said| *said == line).count(), 1, "{line}: {log}");
    }
    let other = Hook { mount: mount_of(&point, "ext4", "/dev/vda"), ..whole };
    assert_eq!(other.ask("probe")["usable"], false);
}

#[test]
fn lvm_with_stand_ins() {
    private(|| {
        let top = scratch();
        let point = file_system(top.path(), "xfs");
        let part = point.join("part");
        fill(&part);
        let hook =
            Hook::new("lvm-thin", top.path(), &part, mount_of(&point, "xfs", "/dev/vg/data"));
        hook.stand_in(
            "lvs",
            r#"case "$*" in
    *pool_lv*/dev/vg/data) echo "  pool" ;;
    *pool_lv*) exit 5 ;;
    *vg_name*) echo "  vg/data" ;;
    *) [[ -e $top/snapshot ]] ;;
esac"#,
        );
        // lvcreate freezes the file system itself.
        hook.stand_in(
            "lvcreate",
            "[[ $* == \"--quiet --snapshot --name ocicle-1a-2b-3c vg/data\" ]]\n\
             fsfreeze -f $top/xfs; cp --sparse=always $top/xfs.img $top/snapshot; fsfreeze -u $top/xfs",
        );
        hook.stand_in(
            "lvchange",
            r#"device=$top/devices/vg/ocicle-1a-2b-3c
case "$2" in
    y) mkdir -p ${device%/*}; [[ -e $device ]] || ln -s $(losetup -f --show -r $top/snapshot) $device ;;
    n) losetup -d $(readlink $device); rm $device ;;
esac"#,
        );
        hook.stand_in(
            "lvremove",
            "device=$top/devices/vg/ocicle-1a-2b-3c; rm $top/snapshot\n\
             [[ ! -L $device ]] || { losetup -d $(readlink $device); rm $device; }",
        );
        let was = hook.take_and_keep(&part);
        assert!(hook.held() == 0 && top.path().join("snapshot").exists());
        tree_of(&hook.committed()).assert_is(&was, "kept");
        assert_eq!(hook.ask("restore")["restored"], false);
        for _ in 0..2 {
            hook.ask("discard");
        }
        assert!(hook.held() == 0 && !top.path().join("snapshot").exists());
        let other = Hook { mount: mount_of(&point, "xfs", "/dev/vda1"), ..hook };
        assert_eq!(other.ask("probe")["usable"], false);
    });
}

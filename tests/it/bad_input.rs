//! What bad input gets: a cause, advice, and nothing changed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    self, Bundle, Container, Machine, Shim, SmallStore, Told, Tree, outcome, poll_for,
    rewrite_manifest, run, status_of, tree_of, wait_for_exit, wait_for_guardians,
};
use nix::mount::{MntFlags, umount2};
use ocicle::criu::images::Images;
use ocicle::criu::images::entries::FileEntry;
use ocicle::criu::images::image::{EntryChange, Image, ImageKind};
use ocicle::criu::images::wire::{BadMessage, Message};
use ocicle::digest::FileRecord;
use ocicle::files::FileKind;
use serde_json::{Value, json};

/// A container that holds open files and changes nothing.
fn hold<'m>(machine: &'m Machine, name: &str, shim: Shim) -> Bundle<'m> {
    machine.bundle(name).shim(shim).args(["workload", "hold", "/data"]).make()
}

fn start<'b>(bundle: &'b Bundle<'_>) -> Container<'b> {
    let container = bundle.run();
    container.wait_for("/data/ready");
    container
}

/// Checkpoints a container of `hold` and stops it.
fn stopped_version(machine: &Machine, bundle: &Bundle<'_>) -> PathBuf {
    let container = start(bundle);
    run(&mut machine.call("checkpoint", &[bundle.id()]));
    drop(container);
    machine.version(bundle.id(), "v1")
}

/// Whatever a command must not touch.
struct Files {
    store: Tree,
    upper: Tree,
}

impl Files {
    #[track_caller]
    fn assert_are(&self, before: &Files, what: &str) {
        self.store.assert_is(&before.store, what);
        self.upper.assert_is(&before.upper, what);
    }
}

fn files(machine: &Machine, bundle: &Bundle<'_>) -> Files {
    let mut store = tree_of(&machine.store());
    // A file that was there for a moment changes the time of its directory.
    store.forget_times_of_directories();
    Files { store, upper: tree_of(&bundle.upper()) }
}

/// The container runs, and nothing of the failed command is left.
#[track_caller]
fn assert_goes_on(container: &Container<'_>) {
    assert!(!container.is_frozen());
    assert_eq!(container.status(), "running");
    assert_eq!(container.exec(&["echo", "alive"]), "alive\n");
}

#[track_caller]
fn assert_restores(machine: &Machine, bundle: &Bundle<'_>) {
    let (restored, _, errors) = outcome(&mut machine.call("restore", &[bundle.id()]));
    assert!(restored, "{errors}");
    bundle.adopt();
}

on_each_runtime!(containers_that_are_not_there, |machine| {
    let bundle = machine.bundle("done").args(["true"]).make();
    let container = bundle.run();
    wait_for_exit(container.pid());
    let mut told = Told::new(machine);
    for command in ["checkpoint", "restore", "files", "thaw"] {
        told.refused(&format!("{command} nobody"), &mut machine.call(command, &["nobody"]));
    }
    for command in ["checkpoint", "files", "thaw"] {
        let what = format!("{command} a stopped container");
        told.refused(&what, &mut machine.call(command, &[bundle.id()]));
    }
    told.refused("files of no version", &mut machine.call("files", &["nobody@v3"]));
    assert!(!machine.store().join(bundle.id()).exists(), "nothing was made");
    told.compare("containers");
});

on_each_runtime!(a_checkpoint_that_was_damaged, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    let version = stopped_version(machine, &bundle);
    let mut told = Told::new(machine);
    for name in [
        "ocicle-manifest.json",
        "ocicle-manifest.b3sum",
        "ocicle-rootfs.index.json",
        "ocicle-rootfs.0.tar.zst",
        "pages-1.img",
        "files.img",
    ] {
        let path = version.join(name);
        let whole = fs::read(&path).unwrap();
        assert!(whole.len() > 60, "{name} holds something");
        let mut flipped = whole.clone();
        flipped[whole.len() / 2] ^= 1;
        for (what, content) in
            [("with a flipped bit", &flipped[..]), ("truncated", &whole[..whole.len() / 2])]
        {
            fs::write(&path, content).unwrap();
            let before = files(machine, &bundle);
            let what = format!("{name} {what}");
            told.refused(&what, &mut machine.call("restore", &[bundle.id()]));
            files(machine, &bundle).assert_are(&before, &what);
        }
        fs::write(&path, &whole).unwrap();
    }
    let image = version.join("core-1.img");
    let whole = fs::read(&image).unwrap();
    fs::remove_file(&image).unwrap();
    told.refused("core-1.img missing", &mut machine.call("restore", &[bundle.id()]));
    fs::write(&image, whole).unwrap();
    assert_restores(machine, &bundle);
    told.compare("damaged");
});

on_each_runtime!(a_checkpoint_of_a_newer_ocicle, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    let version = stopped_version(machine, &bundle);
    let original = fs::read(version.join("ocicle-manifest.json")).unwrap();
    let original: Value = serde_json::from_slice(&original).unwrap();
    let mut told = Told::new(machine);
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 4] = [
        ("schema 2", |manifest| manifest["schema"] = 2.into()),
        ("an incompatible feature", |manifest| {
            manifest["features"]["incompatible"] = serde_json::json!(["encrypted"]);
        }),
        ("a read-only feature", |manifest| {
            manifest["features"]["read_only"] = serde_json::json!(["volumes"]);
        }),
        ("a file outside", |manifest| manifest["files"][0]["name"] = "../../secret".into()),
    ];
    for (what, change) in changes {
        rewrite_manifest(&version, change);
        let before = files(machine, &bundle);
        told.refused(what, &mut machine.call("restore", &[bundle.id()]));
        files(machine, &bundle).assert_are(&before, what);
        rewrite_manifest(&version, |manifest| *manifest = original.clone());
    }
    // What may be ignored is ignored.
    rewrite_manifest(&version, |manifest| {
        manifest["features"]["compatible"] = serde_json::json!(["pretty"]);
    });
    assert_restores(machine, &bundle);
    told.compare("newer");
});

/// Changes an image, and what the manifest says of it.
fn rewrite_image(
    version: &Path,
    kind: ImageKind,
    name: &str,
    change: impl FnMut(&Message<'_>) -> Result<EntryChange, BadMessage>,
) {
    let path = version.join(name);
    let image = Image::parse(kind, fs::read(&path).unwrap()).unwrap();
    fs::write(&path, image.rewrite(change).unwrap()).unwrap();
    let record = serde_json::to_value(FileRecord::of(version, name).unwrap()).unwrap();
    rewrite_manifest(version, |manifest| {
        let mut records = manifest["files"].as_array_mut().unwrap().iter_mut();
        *records.find(|record| record["name"] == name).unwrap() = record;
    });
}

// As of a CRIU that counted the open files of each type by themselves.
on_each_runtime!(open_files_with_one_identifier, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    let version = stopped_version(machine, &bundle);
    let images = Images::load(&version).unwrap();
    let held: Vec<u32> = images.fds().map(|(_, fd)| fd.file).collect();
    let of = |kind| {
        let is_one = |file: &&FileEntry| file.kind.kind() == kind && held.contains(&file.id);
        images.files.iter().find(is_one).unwrap().id
    };
    let (event, file) = (of(FileKind::Eventfd), of(FileKind::Reg));
    rewrite_image(&version, ImageKind::Files, "files.img", |entry| {
        /// Where its body is.
        const EVENT: u32 = 8;
        let Ok(mut body) = entry.need_message(EVENT, "efd") else { return Ok(EntryChange::Keep) };
        body.set_number(1, file.into());
        let mut renamed = entry.without(EVENT);
        renamed.set_number(2, file.into());
        renamed.push_bytes(EVENT, &body.encode());
        Ok(EntryChange::Replace(renamed.encode()))
    });
    for table in images.tables.keys() {
        rewrite_image(&version, ImageKind::FdInfo, &format!("fdinfo-{table}.img"), |entry| {
            if entry.number(1) != Some(event.into()) {
                return Ok(EntryChange::Keep);
            }
            let mut renamed = entry.clone();
            renamed.set_number(1, file.into());
            Ok(EntryChange::Replace(renamed.encode()))
        });
    }
    let before = files(machine, &bundle);
    let mut told = Told::new(machine);
    let rule = format!("{file}=null,drop");
    told.refused("one of them", &mut machine.call("restore", &[bundle.id(), "-s", &rule]));
    files(machine, &bundle).assert_are(&before, "refused");
    told.compare("one-identifier");
});

/// A checkpoint of `hold` that was interrupted when the container had ended.
fn staged_version(machine: &Machine, bundle: &Bundle<'_>) -> PathBuf {
    let container = start(bundle);
    let mut command = machine.call("checkpoint", &[bundle.id()]);
    assert_eq!(status_of(command.env("OCICLE_FAULT", "thawed")).0, 128 + 9);
    wait_for_guardians();
    drop(container);
    machine.version(bundle.id(), "v1")
}

/// What a snapshot driver of the administrator's choice would have written, in other words.
fn held_by(program: &Path, records: &Path, root: &Value) -> Value {
    json!({
        "claim": { "schema": 1, "owner": null, "part": "rootfs", "name": "ocicle-1-2-3",
            "path": "/", "program": program },
        "place": { "Program": {
            "program": { "path": "**", "program": program, "timeout": 5 },
            "path": "/", "keeps": false, "records": records,
        } },
        "root": root, "suspects": [], "taken": [0, 0],
    })
}

on_each_runtime!(an_interrupted_checkpoint_that_somebody_made_up, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    let version = staged_version(machine, &bundle);
    let part = version.join("ocicle-staging/parts/rootfs");
    let manifest = fs::read(version.join("ocicle-manifest.json")).unwrap();
    let manifest: Value = serde_json::from_slice(&manifest).unwrap();
    assert_eq!(manifest["state"], "staged");
    let host = machine.state_root().with_file_name("host");
    fs::create_dir(&host).unwrap();
    fs::write(host.join("secret"), "of the host").unwrap();
    write_script(&host.join("program"), &format!(": >{}; exit 1", host.join("has-run").display()));

    let mut told = Told::new(machine);
    let mut refuse = |what: &str| {
        let before = tree_of(&bundle.upper());
        told.refused(what, &mut machine.call("restore", &[bundle.id()]));
        tree_of(&bundle.upper()).assert_is(&before, what);
        let names = fs::read_dir(&host).unwrap().map(|entry| entry.unwrap().file_name());
        assert_eq!(names.count(), 2, "{what}: something has run, or was written");
    };
    let held = part.join("held.json");
    let made_up = held_by(&host.join("program"), &host, &manifest["root"]);
    fs::write(&held, made_up.to_string()).unwrap();
    refuse("a program is to show the files");
    let mut made_up = made_up;
    made_up["place"] = json!({ "Btrfs": { "device": "/dev/zero" } });
    fs::write(&held, made_up.to_string()).unwrap();
    refuse("a device is to be mounted");
    fs::remove_file(held).unwrap();

    let blobs = fs::read_dir(part.join("blobs")).unwrap();
    let blob = blobs.map(|blob| blob.unwrap().path()).next().unwrap();
    let kept = version.join("kept");
    fs::rename(&blob, &kept).unwrap();
    symlink(host.join("secret"), &blob).unwrap();
    refuse("a file of the host is to be copied");
    fs::remove_file(&blob).unwrap();
    fs::rename(kept, blob).unwrap();

    let index = fs::read_to_string(part.join("index.json")).unwrap();
    let mut lines = index.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let (mut root, top) = (lines.next().unwrap(), lines.next().unwrap());
    let size = fs::metadata(host.join("secret")).unwrap().len();
    let layer = json!({ "name": "../../../host/secret", "size": size, "blake3": "" });
    // As the first version had it.
    root["schema"] = json!(1);
    root["entries"] = json!({ "": top[2] });
    let base = json!({ "layers": [layer], "index": root });
    fs::write(part.join("base.json"), base.to_string()).unwrap();
    refuse("a file of the host is to be a layer");
    fs::remove_file(part.join("base.json")).unwrap();

    type Change = fn(&mut Value);
    let changes: [(&str, Change); 2] = [
        ("a flag for the runtime", |manifest| {
            manifest["flags"] = json!(["--pid-file=/scratch/host/number"]);
        }),
        ("a part outside", |manifest| manifest["parts"][0]["name"] = "../../../host".into()),
    ];
    for (what, change) in changes {
        rewrite_manifest(&version, change);
        refuse(what);
        rewrite_manifest(&version, |now| *now = manifest.clone());
    }
    symlink(host.join("secret"), version.join("pages-9.img")).unwrap();
    refuse("a file of the host is to be memory");
    fs::remove_file(version.join("pages-9.img")).unwrap();
    // Links in the place of what is written before anything is read.
    for name in ["ocicle-rootfs.0.tar.zst", "ocicle-rootfs.index.json", "ocicle-files.json"] {
        for name in [name.to_owned(), format!("{name}.partial")] {
            // Of a try before this one.
            let _ = fs::remove_file(version.join(&name));
            symlink(host.join("secret"), version.join(&name)).unwrap();
            refuse(&format!("{name} leads to a file of the host"));
            fs::remove_file(version.join(&name)).unwrap();
        }
    }
    assert_eq!(fs::read_to_string(host.join("secret")).unwrap(), "of the host");

    fs::remove_dir_all(host).unwrap();
    assert_restores(machine, &bundle);
    told.compare("made-up");
});

/// The same command, started with a file open as a descriptor.
fn with_fd(command: &Command, redirection: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(format!("exec \"$@\" {redirection}")).arg("sh");
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap());
    }
    shell
}

on_each_runtime!(rules_that_cannot_be_obeyed, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    stopped_version(machine, &bundle);
    let fds = fs::read(bundle.path("/data/fds.json")).unwrap();
    let fds: Value = serde_json::from_slice(&fds).unwrap();
    let fd = |name: &str| format!("1:{}", fds[name]);
    let before = files(machine, &bundle);
    let mut told = Told::new(machine);
    let mut refuse = |what: &str, rules: &[String], redirection: Option<&str>| {
        let mut arguments = vec![bundle.id()];
        rules.iter().for_each(|rule| arguments.extend(["-s", rule]));
        let mut command = machine.call("restore", &arguments);
        if let Some(redirection) = redirection {
            command = with_fd(&command, redirection);
        }
        told.refused(what, &mut command);
        files(machine, &bundle).assert_are(&before, what);
    };
    refuse("no such identifier", &["9999=null".to_owned()], None);
    refuse("no such holder", &["1:333=null".to_owned()], None);
    refuse("no such process", &["77:1=null".to_owned()], None);
    refuse("no such path", &["/var/data=null".to_owned()], None);
    refuse("a path that is opened twice", &["/data/data=null".to_owned()], None);
    refuse("no rule at all", &["anything".to_owned()], None);
    refuse("no such source", &["1:3=tape:0".to_owned()], None);
    refuse("two rules for one", &[fd("file") + "=null", fd("dup") + "=fd:0"], None);
    refuse("a closed descriptor", &[fd("file") + "=fd:77"], None);
    refuse("read-only for a written file", &[fd("file") + "=fd:5"], Some("5</etc/passwd"));
    refuse("a directory for a file", &[fd("file-again") + "=fd:5"], Some("5</etc"));
    refuse("a file for a directory", &[fd("directory") + "=file:/etc/passwd"], None);
    refuse("no such file", &[fd("file") + "=file:/no/such/file"], None);
    refuse("a file for what epoll watches", &[fd("pipe-read") + "=file:/etc/passwd"], None);
    refuse(
        "several at once",
        &["9999=null".to_owned(), "/data/data=null".to_owned(), "77:1=null".to_owned()],
        None,
    );
    let config = bundle.dir().join("config.json");
    let original = fs::read(&config).unwrap();
    let mut changed: Value = serde_json::from_slice(&original).unwrap();
    changed["annotations"]["org.ocicle.substitute"] = "/data/log=file:/etc/passwd".into();
    fs::write(&config, changed.to_string()).unwrap();
    refuse("an annotation without leave", &[], None);
    fs::write(&config, original).unwrap();
    assert_restores(machine, &bundle);
    told.compare("rules");
});

on_each_runtime!(a_name_that_is_in_use, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    let container = start(&bundle);
    run(&mut machine.call("checkpoint", &[bundle.id(), "--leave-running"]));
    let before = files(machine, &bundle);
    let mut told = Told::new(machine);
    told.refused("restore beside itself", &mut machine.call("restore", &[bundle.id()]));
    told.refused("no such version", &mut machine.call("restore", &[bundle.id(), "v7"]));
    files(machine, &bundle).assert_are(&before, "refused");
    assert_goes_on(&container);
    told.compare("in-use");
});

on_each_runtime!(a_root_file_system_that_is_in_use, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    stopped_version(machine, &bundle);
    fs::write(bundle.path("/data/since"), "another container's").unwrap();
    let other = machine.unique("other");
    let runtime = || machine.runtime(Shim::Bare, &bundle.log());
    let mut start = runtime();
    start.args(["run", "--detach", "--bundle"]).arg(bundle.dir()).arg(&other);
    assert_eq!(status_of(&mut start).0, 0);
    let state: Value = serde_json::from_str(&run(runtime().args(["state", &other]))).unwrap();
    let pid = i32::try_from(state["pid"].as_i64().unwrap()).unwrap();
    support::wait_for_program(pid, "workload");
    let mut told = Told::new(machine);
    told.refused("another lives there", &mut machine.call("restore", &[bundle.id()]));
    assert!(bundle.path("/data/since").exists());
    run(runtime().args(["delete", "--force", &other]));
    wait_for_exit(pid);
    assert_restores(machine, &bundle);
    assert!(!bundle.path("/data/since").exists());
    told.compare("root-in-use");
});

/// A directory that holds links to programs, for a `PATH` of its own.
fn programs(machine: &Machine, name: &str, programs: &[&str]) -> PathBuf {
    let directory = machine.store().with_file_name("state").join(name);
    fs::create_dir(&directory).unwrap();
    for program in programs {
        symlink(real_path(program), directory.join(program)).unwrap();
    }
    directory
}

fn write_script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

on_each_runtime!(a_machine_that_lacks_something, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    let container = start(&bundle);
    run(&mut machine.call("checkpoint", &[bundle.id(), "--leave-running"]));
    let runtime = machine.variant().runtime();
    let before = files(machine, &bundle);
    let mut told = Told::new(machine);
    let mut refuse = |what: &str, change: &dyn Fn(&mut Command)| {
        for command in ["checkpoint", "restore"] {
            let mut ocicle = machine.call(command, &[bundle.id()]);
            change(&mut ocicle);
            told.refused(&format!("{command}: {what}"), &mut ocicle);
            files(machine, &bundle).assert_are(&before, what);
            assert_goes_on(&container);
        }
    };
    refuse("no root", &|command| {
        command.uid(65534).gid(65534);
    });
    let only_runtime = programs(machine, "only-runtime", &[runtime]);
    refuse("no CRIU", &|command| {
        command.env("PATH", &only_runtime);
    });
    let old = programs(machine, "old", &[runtime]);
    write_script(&old.join("criu"), "echo Version: 3.17.1");
    refuse("CRIU is too old", &|command| {
        command.env("PATH", &old);
    });
    let broken = programs(machine, "broken", &[runtime]);
    let says = "[ $1 = --version ] && echo Version: 4.2 && exit; echo 'Error (criu/cr-check.c:1): no ptrace' >&2; exit 1";
    write_script(&broken.join("criu"), says);
    refuse("CRIU does not work here", &|command| {
        command.env("PATH", &broken);
    });
    refuse("no such runtime", &|command| {
        command.env("OCICLE_RUNTIME", "/nonexistent");
    });
    let only_criu = programs(machine, "only-criu", &["criu"]);
    refuse("no runtime on PATH", &|command| {
        command.env("PATH", &only_criu).env_remove("OCICLE_RUNTIME");
    });
    refuse("the runtime is ocicle", &|command| {
        command.env("OCICLE_RUNTIME", env!("CARGO_BIN_EXE_ocicle-runtime"));
    });
    refuse("no such configuration", &|command| {
        command.env("OCICLE_CONFIG", "/nonexistent.toml");
    });
    for directory in [only_runtime, old, broken, only_criu] {
        fs::remove_dir_all(directory).unwrap();
    }
    told.compare("machine");
});

/// A runtime that runs a command before each dump: at a moment when ocicle has found that there is
/// space enough.
fn before_dump(machine: &Machine, what: &str) -> PathBuf {
    let runtime = machine.variant().runtime();
    let directory = machine.state_root().join("in-front");
    fs::create_dir(&directory).unwrap();
    let real = real_path(runtime);
    let script = format!(
        "case \" $* \" in *' checkpoint '*) {what};; esac >/dev/null 2>&1\nexec {real} \"$@\""
    );
    write_script(&directory.join(runtime), &script);
    directory.join(runtime)
}

fn real_path(program: &str) -> String {
    run(Command::new("sh").arg("-c").arg(format!("command -v {program}"))).trim().to_owned()
}

/// What the store has beside what fills it.
fn versions(machine: &Machine, bundle: &Bundle<'_>) -> Vec<PathBuf> {
    let entries = fs::read_dir(machine.store().join(bundle.id())).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().path());
    names.filter(|path| !path.ends_with("work") && !path.ends_with("container.json")).collect()
}

on_each_runtime!(too_little_space, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    let container = start(&bundle);
    let _store = SmallStore::new(machine, "1M");
    let mut told = Told::new(machine);
    let before = tree_of(&bundle.upper());
    for flags in [&["--leave-running"][..], &[]] {
        let mut command = machine.call("checkpoint", &[bundle.id()]);
        told.refused("a disk that is too small", command.args(flags));
        assert_eq!(versions(machine, &bundle), Vec::<PathBuf>::new());
    }
    tree_of(&bundle.upper()).assert_is(&before, "refused");
    assert_goes_on(&container);
    told.compare("space");
});

on_each_runtime!(a_disk_that_fills_up_during_the_dump, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    let container = start(&bundle);
    let _store = SmallStore::new(machine, "64M");
    let fill = format!("dd if=/dev/zero of={}/fill bs=64k", machine.store().display());
    let runtime = before_dump(machine, &fill);
    let before = tree_of(&bundle.upper());
    for flags in [&["--leave-running"][..], &[]] {
        let mut command = machine.call("checkpoint", &[bundle.id()]);
        command.args(flags).env("OCICLE_RUNTIME", &runtime);
        let errors = Told::new(machine).refused("full", &mut command);
        assert!(errors.to_lowercase().contains("no space left on device"), "{errors}");
        assert!(errors.contains("hint: ") && errors.contains("free"), "{errors}");
        assert_eq!(versions(machine, &bundle), Vec::<PathBuf>::new());
        assert_goes_on(&container);
        fs::remove_file(machine.store().join("fill")).unwrap();
    }
    tree_of(&bundle.upper()).assert_is(&before, "refused");
    fs::remove_dir_all(runtime.parent().unwrap()).unwrap();
    run(&mut machine.call("checkpoint", &[bundle.id(), "--leave-running"]));
});

// The container writes more after the first copy than there is room for.
on_each_runtime!(a_disk_that_fills_up_during_the_snapshot, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    let container = start(&bundle);
    let _store = SmallStore::new(machine, "64M");
    let big = bundle.path("/data/big");
    let write = format!("dd if=/dev/urandom of={} bs=1M count=80", big.display());
    let runtime = before_dump(machine, &write);
    for flags in [&["--leave-running"][..], &[]] {
        let mut command = machine.call("checkpoint", &[bundle.id()]);
        command.args(flags).env("OCICLE_RUNTIME", &runtime);
        let errors = Told::new(machine).refused("full", &mut command);
        assert!(errors.to_lowercase().contains("no space left on device"), "{errors}");
        assert_eq!(versions(machine, &bundle), Vec::<PathBuf>::new());
        assert_eq!(fs::metadata(&big).unwrap().len(), 80 << 20);
        assert_goes_on(&container);
        fs::remove_file(&big).unwrap();
    }
    fs::remove_dir_all(runtime.parent().unwrap()).unwrap();
});

// The processes are gone by then: what was committed must still be a checkpoint.
on_each_runtime!(a_disk_that_fills_up_during_the_packing, |machine| {
    let bundle = hold(machine, "hold", Shim::Bare);
    let container = start(&bundle);
    fs::write(bundle.path("/data/big"), vec![7; 24 << 20]).unwrap();
    let _store = SmallStore::new(machine, "96M");
    let directory = machine.state_root().join("in-front");
    fs::create_dir(&directory).unwrap();
    let fill = format!("dd if=/dev/zero of={}/fill bs=64k", machine.store().display());
    let images = machine.store().join(bundle.id()).join("v1/inventory.img");
    let script = format!(
        "{} \"$@\"; status=$?\n[ ! -e {} ] || {fill} >/dev/null 2>&1\nexit $status",
        real_path("criu"),
        images.display()
    );
    write_script(&directory.join("criu"), &script);
    let mut command = machine.call("checkpoint", &[bundle.id()]);
    let path = std::env::var("PATH").unwrap();
    command.env("PATH", format!("{}:{path}", directory.display()));
    let errors = Told::new(machine).refused("full", &mut command);
    assert!(errors.to_lowercase().contains("no space left on device"), "{errors}");
    fs::remove_dir_all(directory).unwrap();
    drop(container);

    fs::remove_file(machine.store().join("fill")).unwrap();
    fs::remove_file(bundle.path("/data/big")).unwrap();
    assert_restores(machine, &bundle);
    assert_eq!(fs::read(bundle.path("/data/big")).unwrap(), vec![7; 24 << 20]);
});

on_each_runtime!(an_image_directory_without_a_manifest, |machine| {
    let bundle = hold(machine, "hold", Shim::Ocicle);
    let container = start(&bundle);
    let images = bundle.images("bare");
    let mut bare = machine.runtime(Shim::Bare, &bundle.log());
    bare.args(["checkpoint", "--image-path"]).arg(&images).arg("--work-path").arg(bundle.work());
    run(bare.args(machine.variant().criu_flags()).arg(bundle.id()));
    drop(container);

    // Interrupted: what an interrupted checkpoint leaves is no checkpoint.
    fs::create_dir(images.join("ocicle-staging")).unwrap();
    let before = (tree_of(&images), tree_of(&bundle.upper()));
    let mut told = Told::new(machine);
    for format in ["text", "json"] {
        let log = bundle.dir().join("restore.log");
        let mut shim = machine.runtime(Shim::Ocicle, &log);
        shim.args(["--log-format", format, "restore", "--detach", "--bundle"]).arg(bundle.dir());
        shim.arg("--image-path").arg(&images).args(machine.variant().criu_flags());
        let (restored, output, errors) = outcome(shim.arg(bundle.id()));
        assert!(!restored && output.is_empty(), "{errors}");
        told.add("standard error", &errors);
        told.add(&format!("the log in {format}"), &fs::read_to_string(&log).unwrap());
        fs::remove_file(&log).unwrap();
    }
    tree_of(&images).assert_is(&before.0, "the images");
    tree_of(&bundle.upper()).assert_is(&before.1, "the files");
    fs::remove_dir(images.join("ocicle-staging")).unwrap();

    // The bare runtime's own: its business.
    let restored = bundle.restore(&images, &[]).unwrap();
    assert_goes_on(&restored);
    told.compare("interrupted");
});

/// A file system that can be frozen, mounted at a directory below the test's own.
struct Freezable(PathBuf);

impl Freezable {
    fn new(machine: &Machine) -> Self {
        let (image, point) =
            (machine.scratch().join("disk"), machine.state_root().with_file_name("mounted"));
        File::create(&image).unwrap().set_len(128 << 20).unwrap();
        fs::create_dir(&point).unwrap();
        run(Command::new("mkfs.btrfs").arg("-q").arg(&image));
        run(Command::new("mount").args(["-o", "loop"]).args([&image, &point]));
        Freezable(point)
    }

    fn freeze(&self) {
        run(Command::new("fsfreeze").arg("--freeze").arg(&self.0));
    }

    fn thaw(&self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).status();
    }
}

impl Drop for Freezable {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
        let _ = fs::remove_file(self.0.with_file_name("disk"));
        let _ = fs::remove_dir(&self.0);
    }
}

struct Thaw<'a>(&'a Freezable);

impl Drop for Thaw<'_> {
    fn drop(&mut self) {
        self.0.thaw();
    }
}

/// The letter of a process's state (proc_pid_stat(5)).
fn state_of(pid: i32) -> char {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat[stat.rfind(')').unwrap() + 2..].chars().next().unwrap()
}

fn a_process_that_does_not_freeze(machine: &Machine) {
    let disk = Freezable::new(machine);
    let bundle = machine
        .bundle("ticker")
        .bind(&disk.0, "/disk")
        .args(["workload", "ticker", "/disk/ticks"])
        .make();
    let container = bundle.run();
    support::wait_for_file(&disk.0.join("ticks.ready"), container.pid());
    let config = bundle.dir().join("ocicle.toml");
    fs::write(&config, "freeze-timeout = 0.5\n").unwrap();
    let ticks = File::open(disk.0.join("ticks")).unwrap();
    let count = || {
        let mut word = [0; 8];
        ticks.read_exact_at(&mut word, 8).unwrap();
        u64::from_ne_bytes(word)
    };

    // A write to a mapped page of a frozen file system waits where no signal reaches it.
    disk.freeze();
    let thaw = Thaw(&disk);
    poll_for("it does not get stuck", || (state_of(container.pid()) == 'D').then_some(()));
    let mut told = Told::new(machine);
    let mut command = machine.call("checkpoint", &[bundle.id(), "--leave-running"]);
    let errors = told.refused("a process that is stuck", command.env("OCICLE_CONFIG", &config));
    assert!(errors.contains(&format!("process {} (workload)", container.pid())), "{errors}");
    assert_eq!(versions(machine, &bundle), Vec::<PathBuf>::new());
    drop(thaw);

    assert!(!container.is_frozen());
    let before = count();
    poll_for("it does not go on", || (count() != before).then_some(()));
    assert_goes_on(&container);
    drop(container);
    drop(ticks);
    drop(bundle);
    drop(disk);
    told.compare("stuck");
}

// Only under version 2: the freezer of version 1 takes a process that waits for a frozen file
// system for frozen (`percpu_down_read_freezable`, Linux 6.16).
mod stuck {
    use super::*;

    #[test]
    fn runc_v2() {
        support::on_machine(support::Variant::RuncV2, a_process_that_does_not_freeze);
    }

    #[test]
    fn crun_v2() {
        support::on_machine(support::Variant::CrunV2, a_process_that_does_not_freeze);
    }
}

//! What a restore takes from a checkpoint, and what from nobody but the administrator and the bundle.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{self, Bundle, Machine, Shim, Told, outcome, rewrite_manifest, run, tree_of};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use serde_json::{Value, json};

const WAIT: [&str; 3] = ["sh", "-c", ": >/data/ready; exec tail -f /dev/null"];

fn ocicle(machine: &Machine, command: &str, bundle: &Bundle<'_>, flags: &[&str]) -> Command {
    let mut ocicle = machine.call(command, &[bundle.id()]);
    ocicle.args(flags);
    ocicle
}

/// A directory of the host, writable in a container that has ended: all that changes is what its
/// checkpoint, the first version, brings.
struct Volume<'m> {
    machine: &'m Machine,
    bundle: Bundle<'m>,
    directory: PathBuf,
}

impl<'m> Volume<'m> {
    fn checkpointed(machine: &'m Machine, flags: &[&str], fill: impl FnOnce(&Path)) -> Self {
        let directory = machine.scratch().join("volume");
        fs::create_dir(&directory).unwrap();
        fill(&directory);
        let bundle = machine.bundle("files").bind(&directory, "/volume").args(WAIT).make();
        let container = bundle.run();
        container.wait_for("/data/ready");
        run(&mut ocicle(machine, "checkpoint", &bundle, flags));
        drop(container);
        fs::write(bundle.path("/data/since"), "").unwrap();
        Self { machine, bundle, directory }
    }

    fn restore(&self, flags: &[&str]) -> Command {
        ocicle(self.machine, "restore", &self.bundle, flags)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn version(&self) -> PathBuf {
        self.machine.store().join(self.bundle.id()).join("v1")
    }

    /// Refused, with nothing changed.
    #[track_caller]
    fn refused(
        &self,
        told: &mut Told<'_>,
        what: &str,
        flags: &[&str],
        config: Option<&str>,
    ) -> String {
        let before = tree_of(&self.directory);
        let mut restore = self.restore(flags);
        let said = told.refused(what, with(&mut restore, self, config));
        tree_of(&self.directory).assert_is(&before, what);
        assert!(self.bundle.path("/data/since").exists(), "{what}");
        said
    }

    /// Restored, and ended again.
    #[track_caller]
    fn restored(&self, what: &str, flags: &[&str], config: Option<&str>) {
        let mut restore = self.restore(flags);
        let (success, _, said) = outcome(with(&mut restore, self, config));
        assert!(success, "{what}: {said}");
        self.bundle.end();
        assert!(!self.bundle.path("/data/since").exists(), "{what}");
        fs::write(self.bundle.path("/data/since"), "").unwrap();
    }
}

impl Drop for Volume<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn with<'c>(
    command: &'c mut Command,
    volume: &Volume<'_>,
    config: Option<&str>,
) -> &'c mut Command {
    let Some(text) = config else { return command };
    let path = volume.bundle.dir().join("ocicle.toml");
    fs::write(&path, text).unwrap();
    command.env("OCICLE_CONFIG", path)
}

on_each_runtime!(a_volume_is_put_back_only_where_this_restore_says_so, |machine| {
    let volume = Volume::checkpointed(machine, &["--volumes", "all"], |directory| {
        fs::write(directory.join("kept"), "kept").unwrap();
    });
    let mess_up = || {
        fs::remove_file(volume.path("kept")).unwrap();
        fs::write(volume.path("precious"), "of the host").unwrap();
    };
    mess_up();
    let mut told = Told::new(machine);
    volume.refused(&mut told, "nothing says so", &[], None);
    volume.refused(&mut told, "nothing says so, asked only", &["--dry-run"], None);
    told.compare("volumes");
    volume.restored("left as it is", &["--volumes", "none"], None);
    assert!(volume.path("precious").exists() && !volume.path("kept").exists());
    let is_back = |what: &str| {
        assert!(!volume.path("precious").exists() && volume.path("kept").exists(), "{what}");
    };
    volume.restored("the command", &["--volumes", "/vol*"], None);
    is_back("the command");
    mess_up();
    volume.restored("the configuration", &[], Some("volumes = ['/volume']\n"));
    is_back("the configuration");
    mess_up();
    volume.bundle.reconfigure(|config| config["annotations"]["org.ocicle.volumes"] = json!("all"));
    volume.restored("the annotation", &[], None);
    is_back("the annotation");
});

/// Copies the files of a part to other names, and names those.
fn give_files_of_its_own(version: &Path, files: &mut serde_json::Value) {
    let copy = |record: &mut serde_json::Value| {
        let name = record["name"].as_str().unwrap().to_owned();
        let new = name.replace("rootfs", "volume-1");
        fs::copy(version.join(&name), version.join(&new)).unwrap();
        record["name"] = json!(new);
    };
    copy(&mut files["index"]);
    files["layers"].as_array_mut().unwrap().iter_mut().for_each(copy);
}

on_each_runtime!(a_manifest_adds_no_volume, |machine| {
    let volume = Volume::checkpointed(machine, &["--volumes", "none"], |directory| {
        fs::write(directory.join("precious"), "of the host").unwrap();
    });
    let version = volume.version();
    rewrite_manifest(&version, |manifest| {
        let mut part = manifest["parts"][0].clone();
        part["name"] = json!("volume-1");
        part["destination"] = json!("/volume");
        give_files_of_its_own(&version, &mut part["files"]);
        manifest["parts"].as_array_mut().unwrap().push(part);
    });
    let mut told = Told::new(machine);
    volume.refused(&mut told, "one part more", &[], None);
    for (what, destination, name) in [
        ("the root twice", "/", "volume-1"),
        ("the root, written otherwise", "//", "volume-1"),
        ("a name twice", "/volume", "rootfs"),
    ] {
        rewrite_manifest(&version, |manifest| {
            manifest["parts"][1]["destination"] = json!(destination);
            manifest["parts"][1]["name"] = json!(name);
        });
        volume.refused(&mut told, what, &["--volumes", "all"], None);
    }
    told.compare("made-up-parts");
});

// Asks the shim, as an engine does.
on_each_runtime!(the_shim_has_the_same_flag, |machine| {
    let directory = machine.scratch().join("volume");
    fs::create_dir(&directory).unwrap();
    fs::write(directory.join("kept"), "").unwrap();
    let bundle =
        machine.bundle("files").bind(&directory, "/volume").shim(Shim::Ocicle).args(WAIT).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let images = bundle.images("images");
    container.checkpoint(&images, &["--volumes=all"]).unwrap();
    drop(container);
    fs::remove_file(directory.join("kept")).unwrap();
    let refused = bundle.restore(&images, &[]).err().unwrap();
    assert!(refused.contains("nothing says that it is put back"), "{refused}");
    drop(bundle.restore(&images, &["--volumes", "/volume"]).unwrap());
    assert!(directory.join("kept").exists());
    fs::remove_dir_all(&directory).unwrap();
});

/// A capability of the host's root that a file gives to whoever runs it.
const CAPABILITY: [u8; 20] =
    [1, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn make_privileged(directory: &Path) {
    let tool = |name: &str, mode: u32| {
        fs::write(directory.join(name), "a tool").unwrap();
        fs::set_permissions(directory.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    tool("tool", 0o4755);
    tool("group-tool", 0o2755);
    tool("capable", 0o755);
    set_attribute(&directory.join("capable"), "security.capability", &CAPABILITY);
    mknod(
        &directory.join("device"),
        SFlag::S_IFBLK,
        Mode::from_bits_truncate(0o666),
        makedev(254, 0),
    )
    .unwrap();
}

fn set_attribute(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

on_each_runtime!(a_volume_gets_nothing_privileged_without_leave, |machine| {
    let volume = Volume::checkpointed(machine, &["--volumes", "all"], |directory| {
        make_privileged(directory);
        fs::create_dir(directory.join("group")).unwrap();
        // Of a directory it says whose the files in it are.
        fs::set_permissions(directory.join("group"), fs::Permissions::from_mode(0o2775)).unwrap();
        fs::write(directory.join("file"), "").unwrap();
    });
    let before = tree_of(&volume.directory);
    // What is there as it was is not brought.
    fs::remove_file(volume.path("file")).unwrap();
    fs::remove_dir(volume.path("group")).unwrap();
    fs::set_permissions(volume.path("tool"), fs::Permissions::from_mode(0o4711)).unwrap();
    volume.restored("all that is privileged is there", &["--volumes", "all"], None);
    tree_of(&volume.directory).assert_is(&before, "all that is privileged is there");

    let mut told = Told::new(machine);
    let privileged = ["tool", "group-tool", "capable", "device"];
    for name in privileged {
        let aside = volume.bundle.dir().join("aside");
        fs::rename(volume.path(name), &aside).unwrap();
        volume.refused(&mut told, name, &["--volumes", "all"], None);
        // With its bytes, and without what is special about it.
        if name != "device" {
            fs::copy(&aside, volume.path(name)).unwrap();
            fs::set_permissions(volume.path(name), fs::Permissions::from_mode(0o755)).unwrap();
            volume.refused(
                &mut told,
                &format!("attributes of {name}"),
                &["--volumes", "all"],
                None,
            );
            fs::remove_file(volume.path(name)).unwrap();
        }
        fs::rename(&aside, volume.path(name)).unwrap();
    }
    // Another owner of what has the bit.
    chown(volume.path("tool"), Some(1234), None).unwrap();
    fs::set_permissions(volume.path("tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    volume.refused(&mut told, "the tool of somebody else", &["--volumes", "all"], None);
    privileged.iter().for_each(|name| fs::remove_file(volume.path(name)).unwrap());
    volume.refused(&mut told, "all of them", &["--volumes", "all"], None);
    told.compare("privileged");

    let leave =
        format!("[allow]\nprivileged-volumes = ['{}/**', '{0}']\n", volume.directory.display());
    volume.restored("with leave", &["--volumes", "all"], Some(&leave));
    tree_of(&volume.directory).assert_is(&before, "with leave");
});

fn with_users(config: &mut Value) {
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    config["linux"]["uidMappings"] = mapping.clone();
    config["linux"]["gidMappings"] = mapping;
    let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.push(json!({ "type": "user" }));
    // The network has to be of that user namespace, and so has sysfs.
    namespaces.retain(|namespace| namespace["type"] != "network");
    namespaces.push(json!({ "type": "network" }));
    config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
}

// The host's numbers of users are none of a container that has its own.
on_each_runtime!(users_outside_of_the_namespace_are_refused, |machine| {
    let bundle = machine.bundle("users").args(WAIT).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let file = bundle.path("/data/file");
    fs::write(&file, "its own").unwrap();
    run(&mut ocicle(machine, "checkpoint", &bundle, &[]));
    drop(container);
    bundle.reconfigure(with_users);
    fs::remove_file(&file).unwrap();
    let mut told = Told::new(machine);
    told.refused("root of the host", &mut ocicle(machine, "restore", &bundle, &[]));
    told.compare("users");
    assert!(!file.exists());
});

/// What its own users have comes back, and what the image's have stays.
#[test]
fn users_of_the_namespace_come_back() {
    support::on_machine(support::Variant::RuncV2, |machine| {
        let builder = machine.bundle("users").shim(Shim::Ocicle);
        let bundle = builder.args(["tail", "-f", "/dev/null"]).make();
        bundle.reconfigure(with_users);
        chown(bundle.path("/data"), Some(100_000), Some(100_000)).unwrap();
        let container = bundle.run();
        let fill = "cd /data; echo own >file; chown 7:8 file; cp file tool; chmod 4755 tool";
        container.exec(&["sh", "-ec", fill]);
        let images = bundle.images("images");
        container.checkpoint(&images, &[]).unwrap();
        drop(container);
        for name in ["/data/file", "/data/tool"] {
            fs::remove_file(bundle.path(name)).unwrap();
        }
        fs::write(bundle.path("/etc/motd"), "of the host").unwrap();
        drop(bundle.restore(&images, &[]).unwrap());
        let found = fs::metadata(bundle.path("/data/file")).unwrap();
        assert_eq!((found.uid(), found.gid()), (100_007, 100_008));
        assert_eq!(fs::metadata(bundle.path("/data/tool")).unwrap().mode() & 0o7777, 0o4755);
        assert_eq!(fs::read_to_string(bundle.path("/etc/motd")).unwrap(), "the image's own text\n");
    });
}

// CRIU reads some images as the namespace's own root, who is nobody on the host.
#[test]
fn a_container_with_users_comes_back_from_the_store() {
    support::on_machine(support::Variant::RuncV2, |machine| {
        let bundle = machine.bundle("users").args(["tail", "-f", "/dev/null"]).make();
        bundle.reconfigure(with_users);
        let container = bundle.run();
        run(&mut ocicle(machine, "checkpoint", &bundle, &[]));
        drop(container);
        let version = machine.store().join(bundle.id()).join("v1");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
        assert_eq!((mode(version.parent().unwrap()), mode(&version)), (0o700, 0o711));
        run(&mut ocicle(machine, "restore", &bundle, &[]));
        assert_eq!(bundle.adopt().status(), "running");
    });
}

// Its hooks are run by root: whoever copies a checkpoint into the store does not choose them.
on_each_runtime!(a_bundle_that_a_checkpoint_names_is_roots_alone, |machine| {
    let bundle = machine.bundle("files").args(WAIT).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    run(&mut ocicle(machine, "checkpoint", &bundle, &[]));
    drop(container);
    let mut told = Told::new(machine);
    let config = bundle.dir().join("config.json");
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    let mut refuse = |what: &str| {
        told.refused(what, &mut ocicle(machine, "restore", &bundle, &[]));
        assert!(bundle.path("/data/ready").exists(), "{what}");
    };
    mode(bundle.dir(), 0o777);
    refuse("a directory in which others make names");
    mode(bundle.dir(), 0o755);
    mode(&config, 0o664);
    refuse("a configuration that others write");
    mode(&config, 0o644);
    chown(bundle.dir(), Some(1000), None).unwrap();
    refuse("a directory of somebody else");
    run(&mut ocicle(machine, "restore", &bundle, &["--bundle", bundle.dir().to_str().unwrap()]));
    bundle.end();
    chown(bundle.dir(), Some(0), None).unwrap();
    let version = machine.store().join(bundle.id()).join("v1");
    let link = machine.scratch().join("link");
    symlink(bundle.dir(), &link).unwrap();
    let named = |path: &Path| {
        rewrite_manifest(&version, |manifest| manifest["container"]["bundle"] = json!(path));
    };
    named(&link);
    refuse("a link");
    named(Path::new("files"));
    refuse("a path from here");
    named(bundle.dir());
    run(&mut ocicle(machine, "restore", &bundle, &[]));
    bundle.end();
    fs::remove_file(link).unwrap();
    told.compare("bundles");
});

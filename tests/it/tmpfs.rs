//! What a container keeps on its tmpfs: in CRIU's images, packed and unpacked by ocicle's archiver.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{
    Bundle, Container, Dice, Shim, SmallStore, Variant, all_paths, assert_same, changes,
    on_machine, outcome, picture, run,
};
use serde_json::{Value, json};
use tempfile::TempDir;

const WAIT: [&str; 3] = ["sh", "-c", ": >/data/ready; exec tail -f /dev/null"];

fn with_tmpfs(config: &mut Value) {
    let mount = json!({ "destination": "/tmp", "type": "tmpfs", "source": "tmpfs" });
    config["mounts"].as_array_mut().unwrap().push(mount);
}

fn start<'b>(bundle: &'b Bundle<'_>) -> Container<'b> {
    let container = bundle.run();
    container.wait_for("/data/ready");
    container
}

/// The tmpfs of a container, seen from outside.
fn memory(container: &Container<'_>) -> PathBuf {
    PathBuf::from(format!("/proc/{}/root/tmp", container.pid()))
}

/// Everything that may be on a tmpfs but sockets, which CRIU's archives leave out.
fn fill(memory: &Path, seed: u64) {
    changes(memory, &mut Dice(seed), 700);
    let sparse = File::create(memory.join("sparse")).unwrap();
    sparse.set_len(256 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 128 << 20).unwrap();
    for file in all_paths(memory).1 {
        if file.symlink_metadata().unwrap().file_type().is_socket() {
            fs::remove_file(file).unwrap();
        }
    }
}

/// How CRIU's images of tmpfs are compressed: the type of a block of RFC 1951.
fn compressions(images: &Path) -> Vec<u8> {
    let entries = fs::read_dir(images).unwrap().map(|entry| entry.unwrap().path());
    let kind = |path: PathBuf| {
        let mut head = [0; 11];
        File::open(path).unwrap().read_exact(&mut head).unwrap();
        assert_eq!(head[..3], [0x1f, 0x8b, 8], "it is no gzip");
        // Behind the bit that says whether it is the last block.
        head[10] >> 1 & 3
    };
    let is_archive = |path: &PathBuf| path.to_string_lossy().ends_with(".tar.gz.img");
    let kinds: Vec<u8> = entries.filter(is_archive).map(kind).collect();
    assert!(kinds.len() > 1, "/tmp and /dev at least");
    kinds
}

/// The type of a block that is not compressed.
const STORED: u8 = 0;

on_each_runtime!(a_tmpfs_comes_back_as_it_was, |machine| {
    let bundle = machine.bundle("memory").configure(with_tmpfs).args(WAIT).make();
    let container = start(&bundle);
    fill(&memory(&container), 20);
    let before = picture(&memory(&container));
    let ocicle = |command: &str| {
        let mut ocicle = machine.call(command, &[bundle.id()]);
        let (success, _, errors) = outcome(&mut ocicle);
        assert!(success, "{errors}");
    };
    ocicle("checkpoint");
    drop(container);

    let images = machine.version(bundle.id(), "v1");
    assert!(compressions(&images).iter().all(|kind| *kind == STORED));
    ocicle("restore");
    let restored = bundle.adopt();
    let memory = memory(&restored);
    assert_same(&before, &picture(&memory), "after the restore");
    let sparse = fs::metadata(memory.join("sparse")).unwrap();
    assert!(sparse.blocks() < 100, "holes stay holes");
});

on_each_runtime!(it_has_to_have_room_in_the_store, |machine| {
    let bundle = machine.bundle("memory").configure(with_tmpfs).args(WAIT).make();
    let container = start(&bundle);
    let _store = SmallStore::new(machine, "64M");
    let checkpoint = || {
        let mut checkpoint = machine.checkpoint(&["--leave-running", bundle.id()]);
        outcome(&mut checkpoint)
    };
    File::create(memory(&container).join("large")).unwrap().write_all(&[1; 80 << 20]).unwrap();
    let (success, _, errors) = checkpoint();
    assert!(!success && errors.contains("there is too little space"), "{errors}");
    fs::remove_file(memory(&container).join("large")).unwrap();
    let (success, _, errors) = checkpoint();
    assert!(success, "{errors}");
});

/// What GNU tar keeps of a tree.
fn listed(memory: &Path) -> String {
    let list = "find . -printf '%p %y %m %U:%G %Ts %n %l\\0' | sort -z
                find . -type f -print0 | sort -z | xargs -0 sha256sum";
    run(Command::new("sh").args(["-ec", list]).current_dir(memory))
}

on_each_runtime!(without_ocicle_tar_unpacks_it, |machine| {
    let builder = machine.bundle("memory").configure(with_tmpfs);
    let bundle = builder.shim(Shim::Ocicle).args(WAIT).make();
    let container = start(&bundle);
    fill(&memory(&container), 21);
    let before = listed(&memory(&container));
    let images = bundle.images("images");
    container.checkpoint(&images, &[]).unwrap();
    drop(container);

    let mut bare = machine.runtime(Shim::Bare, &bundle.log());
    bare.arg("restore").arg("--detach").arg("--image-path").arg(&images);
    bare.arg("--work-path").arg(bundle.work()).arg("--bundle").arg(bundle.dir());
    let (success, _, errors) = outcome(bare.args(machine.variant().criu_flags()).arg(bundle.id()));
    assert!(success, "{errors}");
    let after = listed(&memory(&bundle.adopt()));
    let differ = before.split('\0').zip(after.split('\0')).find(|(was, is)| was != is);
    assert_eq!(differ, None);
});

/// A directory with the archiver in it, as a runtime's CRIU finds it, and with what it shall do.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        let desk = Self(TempDir::new().unwrap());
        fs::create_dir(desk.path("tools")).unwrap();
        fs::create_dir_all(desk.path("from/directory")).unwrap();
        fs::create_dir(desk.path("to")).unwrap();
        fs::write(desk.path("from/directory/file"), "content").unwrap();
        symlink(env!("CARGO_BIN_EXE_ocicle"), desk.path("tools/tar")).unwrap();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// tar, called by somebody to whom the archiver comes first.
    fn tar(&self, arguments: &str, others: &str) -> Command {
        let mut tar = Command::new(self.path("tools/tar"));
        tar.env("PATH", format!("{}:{others}", self.path("tools").display()));
        tar.args(arguments.split_whitespace()).current_dir(self.0.path()).arg0("tar");
        tar
    }
}

/// Has tar unpack something; what it says if it fails.
fn unpack(mut tar: Command, archive: impl Into<Stdio>) -> Result<(), String> {
    let done = tar.stdin(archive).output().unwrap();
    let said = String::from_utf8(done.stderr).unwrap();
    if done.status.success() { Ok(()) } else { Err(said) }
}

/// CRIU's calls.
const PACK: &str = "--create --gzip --no-unquote --no-wildcards --one-file-system --check-links \
                    --preserve-permissions --sparse --numeric-owner --directory from .";
const UNPACK: &str = "--extract --gzip --no-unquote --no-wildcards --directory to";

fn path() -> String {
    std::env::var("PATH").unwrap()
}

#[test]
fn what_criu_does_not_ask_is_tars() {
    let desk = Desk::new();
    assert!(run(&mut desk.tar("--version", &path())).starts_with("tar (GNU tar)"));
    let (success, _, errors) = outcome(&mut desk.tar("--version", "/nowhere"));
    assert_eq!((success, &*errors), (false, "tar (ocicle): there is no tar on PATH\n"));
}

#[test]
fn what_the_archiver_cannot_do_is_tars() {
    let desk = Desk::new();
    let archive = desk.path("archive");
    // Owners by name: CRIU's have none.
    run(desk
        .tar("--create --gzip --owner=daemon --directory from .", &path())
        .arg("--file")
        .arg(&archive));
    let archive = || File::open(&archive).unwrap();
    let said = unpack(desk.tar(UNPACK, "/nowhere"), archive()).unwrap_err();
    assert!(said.starts_with("tar (ocicle): the owner of / has a name\n"), "{said}");
    unpack(desk.tar(UNPACK, &path()), archive()).unwrap();
    assert_eq!(fs::read_to_string(desk.path("to/directory/file")).unwrap(), "content");
}

#[test]
fn an_archive_that_leads_out_is_nobodys() {
    let desk = Desk::new();
    let archive = desk.path("archive");
    let transform =
        "--create --gzip --numeric-owner -P --transform=s,directory,../out, --directory from .";
    run(desk.tar(transform, &path()).arg("--file").arg(&archive));
    let said = unpack(desk.tar(UNPACK, &path()), File::open(&archive).unwrap()).unwrap_err();
    assert!(said.contains("it leads out of the directory"), "{said}");
    assert!(!desk.path("out").exists());
}

#[test]
fn a_pipe_will_do() {
    let desk = Desk::new();
    let mut pack = desk.tar(PACK, "/nowhere").stdout(Stdio::piped()).spawn().unwrap();
    let archive = pack.stdout.take().unwrap();
    unpack(desk.tar(UNPACK, "/nowhere"), archive).unwrap();
    assert!(pack.wait().unwrap().success());
    assert_same(&picture(&desk.path("from")), &picture(&desk.path("to")), "through a pipe");
}

/// CRIU has tar work in the container's user namespace, where nothing of ours can be reached: then
/// tar does it. crun's binds of device nodes are none that CRIU could dump there.
#[test]
fn in_a_user_namespace_tar_does_it() {
    on_machine(Variant::RuncV2, |machine| {
        let builder = machine.bundle("memory").configure(with_user_namespace).shim(Shim::Ocicle);
        let bundle = builder.args(["tail", "-f", "/dev/null"]).make();
        // The network has to be of that user namespace.
        bundle.leave_network();
        bundle.reconfigure(|config| with_namespace(config, "network"));
        let container = bundle.run();
        let fill = "echo content >/tmp/file; ln -s file /tmp/link; chown 7 /tmp/file";
        container.exec(&["sh", "-ec", fill]);
        let before = listed(&memory(&container));
        let images = bundle.images("images");
        container.checkpoint(&images, &[]).unwrap();
        drop(container);
        assert!(compressions(&images).iter().all(|kind| *kind != STORED));
        let restored = bundle.restore(&images, &[]).unwrap();
        assert_eq!(listed(&memory(&restored)), before);
    });
}

fn with_user_namespace(config: &mut Value) {
    with_tmpfs(config);
    with_namespace(config, "user");
    let mapping = json!([{ "containerID": 0, "hostID": 100_000, "size": 65_536 }]);
    config["linux"]["uidMappings"] = mapping.clone();
    config["linux"]["gidMappings"] = mapping;
    // sysfs is of the network's user namespace.
    config["mounts"].as_array_mut().unwrap().retain(|mount| mount["type"] != "sysfs");
}

fn with_namespace(config: &mut Value, kind: &str) {
    config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": kind }));
}

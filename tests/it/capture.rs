//! What a snapshot holds, and what a restore puts back, through real containers.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use crate::support::{
    self, Bundle, Container, Dice, Machine, Rootfs, Shim, Told, Tree, manifest, outcome, run,
    tree_of,
};
use nix::sys::stat::{Mode, SFlag, mknod};
use rustix::fs::{XattrFlags, lsetxattr};
use serde_json::Value;

/// Everything in the directories that the tests work with. Where a container mounts something is
/// the runtime's business.
fn files_of(bundle: &Bundle<'_>) -> Vec<Tree> {
    ["data", "etc", "root", "usr"].map(|name| tree_of(&bundle.path(name))).into()
}

#[track_caller]
fn assert_same(bundle: &Bundle<'_>, before: &[Tree], what: &str) {
    for (now, before) in files_of(bundle).iter().zip(before) {
        now.assert_is(before, what);
    }
}

/// `ACL_USER_OBJ`, user 1000, `ACL_GROUP_OBJ`, `ACL_MASK` and `ACL_OTHER`, as the kernel has them.
const ACL: &[u8] = b"\x02\0\0\0\
    \x01\0\x06\0\xff\xff\xff\xff\x02\0\x04\0\xe8\x03\0\0\x04\0\x04\0\xff\xff\xff\xff\
    \x10\0\x06\0\xff\xff\xff\xff\x20\0\0\0\xff\xff\xff\xff";

/// One of everything that a file system can hold.
fn make_one_of_each(data: &Path) {
    let file = |name: &str, content: &[u8]| {
        fs::write(data.join(name), content).unwrap();
        data.join(name)
    };
    let set = |path: &Path, name: &str, value: &[u8]| {
        lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
    };
    let owned = file("owned", b"somebody's\n");
    lchown(&owned, Some(1234), Some(5678)).unwrap();
    fs::set_permissions(&owned, fs::Permissions::from_mode(0o4751)).unwrap();
    set(&file("attributes", b"x"), "user.colour", b"blue\0green");
    set(&file("acl", b"x"), "system.posix_acl_access", ACL);
    fs::hard_link(file("first", b"one file\n"), data.join("second")).unwrap();
    let sparse = File::create(data.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    sparse.write_all_at(b"in the middle", 32 << 20).unwrap();
    symlink("/nowhere/at all", data.join("link")).unwrap();
    fs::write(data.join(OsStr::from_bytes(b"not \xff text\n")), "content").unwrap();
    let make = |name: &str, kind: SFlag, device: u64| {
        mknod(&data.join(name), kind, Mode::from_bits_truncate(0o640), device).unwrap();
    };
    make("fifo", SFlag::S_IFIFO, 0);
    make("char", SFlag::S_IFCHR, nix::sys::stat::makedev(1, 3));
    make("block", SFlag::S_IFBLK, nix::sys::stat::makedev(7, 200));
    let deep = data.join("deep/er/and/deeper");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("leaf"), "green").unwrap();
    set(&data.join("deep"), "user.kind", b"directory");
    fs::set_permissions(data.join("deep"), fs::Permissions::from_mode(0o1777)).unwrap();
    let old = fs::FileTimes::new()
        .set_modified(std::time::UNIX_EPOCH + std::time::Duration::new(1_000_000_007, 123_456_789));
    File::options().write(true).open(data.join("attributes")).unwrap().set_times(old).unwrap();
    fs::create_dir(data.join("empty")).unwrap();
}

/// Changes each of them, each in another way.
fn mess_up(data: &Path) {
    let write = |name: &str, content: &str| fs::write(data.join(name), content).unwrap();
    let remove = |name: &str| fs::remove_file(data.join(name)).unwrap();
    lchown(data.join("owned"), Some(0), Some(0)).unwrap();
    rustix::fs::lremovexattr(data.join("attributes"), "user.colour").unwrap();
    fs::set_permissions(data.join("acl"), fs::Permissions::from_mode(0o777)).unwrap();
    remove("second");
    write("second", "another file\n");
    write("sparse", "dense");
    remove("link");
    fs::create_dir_all(data.join("link/to")).unwrap();
    remove("fifo");
    write("fifo", "no fifo");
    remove("char");
    fs::rename(data.join("block"), data.join("blocked")).unwrap();
    fs::remove_dir_all(data.join("deep")).unwrap();
    symlink("/etc", data.join("deep")).unwrap();
    fs::remove_file(data.join(OsStr::from_bytes(b"not \xff text\n"))).unwrap();
    fs::write(data.join(OsStr::from_bytes(b"new \xfe name")), "new").unwrap();
    fs::remove_dir(data.join("empty")).unwrap();
    write("empty", "a file now");
    fs::create_dir_all(data.join("made/since")).unwrap();
    write("made/since/file", "since");
}

const WAIT: [&str; 3] = ["sh", "-c", ": >/data/ready; exec tail -f /dev/null"];

fn start<'b>(bundle: &'b Bundle<'_>) -> Container<'b> {
    let container = bundle.run();
    container.wait_for("/data/ready");
    container
}

fn holds_and_puts_back(machine: &Machine, kind: Rootfs) {
    let bundle = machine.bundle("files").shim(Shim::Ocicle).rootfs(kind).args(WAIT).make();
    let images = bundle.images("images");
    let container = start(&bundle);
    make_one_of_each(&bundle.path("/data"));
    if kind == Rootfs::FuseOverlay {
        // It tells nobody of holes: what was one is put back as zeros.
        fs::write(bundle.path("/data/sparse"), "no holes").unwrap();
    }
    // By the container itself, and by a process that came in later.
    container.exec(&[
        "sh",
        "-c",
        "echo exec >>/etc/motd; rm /etc/group; chmod 700 /root; mkfifo /root/f",
    ]);
    let before = files_of(&bundle);
    container.checkpoint(&images, &[]).unwrap();
    drop(container);
    assert_same(&bundle, &before, "the checkpoint changed something");

    mess_up(&bundle.path("/data"));
    fs::write(bundle.path("/etc/motd"), "since").unwrap();
    fs::write(bundle.path("/etc/group"), "since").unwrap();
    fs::remove_file(bundle.path("/etc/passwd")).unwrap();
    fs::remove_dir_all(bundle.path("/root")).unwrap();
    let restored = bundle.restore(&images, &[]).unwrap();
    assert_same(&bundle, &before, "not put back");
    assert_eq!(restored.exec(&["cat", "/etc/motd"]), "the image's own text\nexec\n");
    drop(restored);
    // And again, with nothing to do.
    let restored = bundle.restore(&images, &[]).unwrap();
    assert_same(&bundle, &before, "not left alone");
    drop(restored);
}

on_each_runtime!(one_of_each_on_an_overlay, |machine| holds_and_puts_back(
    machine,
    Rootfs::Overlay
));

on_each_runtime!(one_of_each_in_a_directory, |machine| holds_and_puts_back(
    machine,
    Rootfs::Directory
));

on_each_runtime!(one_of_each_in_a_subvolume, |machine| holds_and_puts_back(
    machine,
    Rootfs::Subvolume
));

on_each_runtime!(one_of_each_on_fuse_overlayfs, |machine| holds_and_puts_back(
    machine,
    Rootfs::FuseOverlay
));

on_each_runtime!(unchanged_content_is_kept_once, |machine| {
    let bundle = machine.bundle("files").rootfs(Rootfs::Directory).args(WAIT).make();
    let container = start(&bundle);
    let checkpoint = || {
        let mut ocicle = machine.checkpoint(&["--leave-running", bundle.id()]);
        run(&mut ocicle);
    };
    let layers = |version: &str| -> Vec<(String, u64)> {
        let manifest = manifest(&machine.store().join(bundle.id()).join(version));
        let layers = manifest["parts"][0]["files"]["layers"].as_array().unwrap().clone();
        let layer = |layer: &Value| {
            (layer["name"].as_str().unwrap().to_owned(), layer["size"].as_u64().unwrap())
        };
        layers.iter().map(layer).collect()
    };
    checkpoint();
    let first = layers("v1");
    assert_eq!(first.len(), 1);
    assert!(first[0].1 > 1 << 20, "the whole root file system: {first:?}");
    checkpoint();
    let second = layers("v2");
    assert_eq!(second[0], first[0]);
    let added: u64 = second[1..].iter().map(|(_, size)| size).sum();
    assert!(added < 64 << 10, "copied again: {second:?}");
    // Nothing that could be compressed.
    fs::write(bundle.path("/data/new"), Dice(17).bytes(300_000)).unwrap();
    checkpoint();
    let third = layers("v3");
    let added: u64 = third[1..].iter().map(|(_, size)| size).sum();
    assert!((300_000..400_000).contains(&added), "{third:?}");
    drop(container);
});

/// Says something, and says more when something is written to the fifo /data/go.
const TALKER: [&str; 3] = [
    "sh",
    "-c",
    "mkfifo /data/go; echo one; : >/data/ready; while :; do read word </data/go || continue; echo $word; : >/data/done; done",
];

fn tell(bundle: &Bundle<'_>, container: &Container<'_>, word: &str) {
    let _ = fs::remove_file(bundle.path("/data/done"));
    let mut fifo = File::options().write(true).open(bundle.path("/data/go")).unwrap();
    writeln!(fifo, "{word}").unwrap();
    drop(fifo);
    container.wait_for("/data/done");
}

on_each_runtime!(output_that_goes_to_the_host, |machine| {
    let bundle = machine.bundle("talker").shim(Shim::Ocicle).args(TALKER).make();
    let images = bundle.images("images");
    let (old, new) = (bundle.dir().join("old.txt"), bundle.dir().join("new.txt"));
    let container = bundle.run_into(File::create(&old).unwrap());
    container.wait_for("/data/ready");
    container.checkpoint(&images, &["--leave-running"]).unwrap();
    tell(&bundle, &container, "two");
    assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
    container.checkpoint(&images, &[]).unwrap();
    drop(container);
    let manifest = manifest(&images);
    let needed = &manifest["must_substitute"][0];
    assert_eq!(needed["holders"][0], "1:1", "{needed}");

    let before = files_of(&bundle);
    let refused = bundle.restore(&images, &[]).err().unwrap();
    assert!(refused.contains("old.txt") && refused.contains("needs a replacement"), "{refused}");
    assert!(refused.contains(&format!("-s {}=", needed["id"])), "{refused}");
    assert_same(&bundle, &before, "a refused restore changed something");

    fs::write(&new, "before\n").unwrap();
    let rule = format!("1:1=file:{},append", new.display());
    let restored = bundle.restore(&images, &["-s", &rule]).unwrap();
    tell(&bundle, &restored, "three");
    assert_eq!(fs::read_to_string(&new).unwrap(), "before\nthree\n");
    assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo\n");
    drop(restored);
});

on_each_runtime!(links_that_lead_out, |machine| {
    let outside = machine.state_root().with_file_name("outside");
    fs::create_dir_all(outside.join("deep/er")).unwrap();
    fs::write(outside.join("passwd"), "the host's\n").unwrap();
    fs::write(outside.join("motd"), "the host's\n").unwrap();
    fs::write(outside.join("deep/er/leaf"), "the host's\n").unwrap();
    let host = tree_of(&outside);
    let bundle = machine.bundle("links").shim(Shim::Ocicle).args(WAIT).make();
    let container = start(&bundle);
    let data = bundle.path("/data");
    fs::create_dir_all(data.join("deep/er")).unwrap();
    fs::write(data.join("deep/er/leaf"), "the container's\n").unwrap();
    fs::write(bundle.path("/etc/motd"), "the container's\n").unwrap();
    symlink(&outside, data.join("way-out")).unwrap();
    symlink(outside.join("passwd"), data.join("file")).unwrap();
    let before = files_of(&bundle);
    let images = bundle.images("images");
    container.checkpoint(&images, &["--leave-running"]).unwrap();

    // By the container, which knows where it is: directories become links, and links directories.
    let to = outside.display().to_string();
    let script = format!(
        "rm -r /etc /data/deep /data/way-out /data/file; ln -s {to} /etc; ln -s {to}/deep /data/deep;\
         mkdir -p /data/way-out/deep; echo x >/data/way-out/passwd; ln -s / /data/file;\
         ln -s ../../../../../../../..{to} /data/up; ln -s /data/up /data/again"
    );
    container.exec(&["sh", "-c", &script]);
    drop(container);
    let restored = bundle.restore(&images, &[]).unwrap();
    tree_of(&outside).assert_is(&host, "outside the root");
    assert_same(&bundle, &before, "inside the root");
    drop(restored);

    // The other way round: it was so at the checkpoint.
    let container = bundle.run();
    container.exec(&["sh", "-c", &format!("rm -r /data/deep; ln -s {to}/deep /data/deep")]);
    let hostile = files_of(&bundle);
    let images = bundle.images("hostile");
    container.checkpoint(&images, &["--leave-running"]).unwrap();
    container.exec(&[
        "sh",
        "-c",
        "rm /data/deep; mkdir -p /data/deep/er; echo y >/data/deep/er/leaf",
    ]);
    drop(container);
    let restored = bundle.restore(&images, &[]).unwrap();
    tree_of(&outside).assert_is(&host, "outside the root");
    assert_same(&bundle, &hostile, "inside the root");
    drop(restored);
    fs::remove_dir_all(&outside).unwrap();
});

on_each_runtime!(files_that_are_no_longer_there, |machine| {
    let volume = machine.state_root().with_file_name("volume");
    fs::create_dir(&volume).unwrap();
    let bundle = machine
        .bundle("hold")
        .bind(&volume, "/volume")
        .args(["workload", "hold", "/volume"])
        .make();
    let container = bundle.run();
    support::wait_for_file(&volume.join("ready"), container.pid());
    let ocicle = |command: &str| machine.call(command, &[bundle.id()]);
    run(&mut ocicle("checkpoint"));
    drop(container);
    let whole = fs::read(volume.join("data")).unwrap();
    fs::write(volume.join("data"), &whole[..7]).unwrap();
    fs::remove_file(volume.join("log")).unwrap();
    fs::write(bundle.path("/data/made-since"), "x").unwrap();
    let before = (tree_of(&volume), files_of(&bundle));
    let mut told = Told::new(machine);
    told.refused("a bind mount that changed", &mut ocicle("restore"));
    tree_of(&volume).assert_is(&before.0, "the volume");
    assert_same(&bundle, &before.1, "a refused restore changed something");

    fs::write(volume.join("data"), &whole).unwrap();
    fs::create_dir(volume.join("log")).unwrap();
    told.refused("a directory in place of a file", &mut ocicle("restore"));
    fs::remove_dir(volume.join("log")).unwrap();
    fs::write(volume.join("log"), "").unwrap();
    let (restored, _, errors) = outcome(&mut ocicle("restore"));
    assert!(restored, "{errors}");
    assert!(!bundle.path("/data/made-since").exists());
    drop(bundle.adopt());
    drop(bundle);
    fs::remove_dir_all(volume).unwrap();
    told.compare("missing-files");
});

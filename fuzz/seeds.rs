//! Writes the first inputs of the corpus: what ocicle's own writers, the kernel and GNU tar write.
//!
//! `fuzz/run seeds` puts them there. Real images of CRIU are in tests/data.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ocicle::files::Suspects;
use ocicle::freezer::{CgroupVersion, Freezer};
use ocicle::lend::{LoanReply, LoanRequest, Offer};
use ocicle::snapshot::{
    Compression, DriverSettings, SnapshotOwner, Staging, choose, pack, pack_tree, probe,
};
use ocicle::sys::directory::Directory;

/// What CRIU logs of a restore that fails, a line of each form.
const LOG: &str = "\
(00.000123) Version: 4.2.1 (gitid 0)\n\
(00.010000) Running post-dump scripts\n\
(00.012345)      7: Error (criu/files-reg.c:2175): File data/log has bad size 5 (expect 7)\n\
(00.012400) Error (criu/cr-restore.c:2100): Restoring FAILED.\n";

const POLICIES: &str =
    "missing=recreate:/data/a; grown=accept\nshrunk=error,missing=error:/log/**\n";

/// As the kernel writes them, of an overlay, of a bind mount and of a name with a space.
const MOUNTS: &str = "\
36 35 0:26 / / rw,relatime shared:1 - overlay overlay rw,lowerdir=/a:/b,upperdir=/c,workdir=/d\n\
98 36 8:1 /in\\040side /data ro,nosuid master:2 propagate_from:1 - ext4 /dev/sda1 rw\n";

const FDINFO: &str = "pos:\t5\nflags:\t02100002\nmnt_id:\t36\nino:\t7\n\
lock:\t1: POSIX  ADVISORY  WRITE 812 00:2f:5 2 EOF\n\
inotify wd:1 ino:2 sdev:fe00000 mask:100 ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:0011223344556677\n\
tfd:        7 events:       19 data:                7  pos:0 ino:1 sdev:2\nNSpid:\t9\t1\niff:\ttun0\n";

const CGROUPS: &str = "5:cpuacct,cpu:/docker/a:b\n1:name=systemd:/user.slice\n0::/user.slice\n";

const MAPS: &str = "\
7f00-7f10 rw-s 00000000 fe:01 42                         /a b (deleted)\n\
7f20-7f30 r-xp 00001000 00:00 0 \n\
7ffd-7ffe rw-p 00000000 00:00 0                          [stack]\n";

const STAT: &str = "7 (a) b (c) S 3 7 6 34817 7 4194304 1 2 3 4 30 12 3 4 20 0 1 0 4711 5 6 18446744073709551615\n";

/// An input for a target: the target, its own name, its bytes.
pub type Seed = (&'static str, &'static str, Vec<u8>);

/// The first inputs of each target, each of which has to be accepted.
pub fn seeds() -> Vec<Seed> {
    let work = tempfile::tempdir().unwrap();
    let tree = work.path().join("tree");
    fill(&tree);
    let texts = [
        ("policies", POLICIES),
        ("mountinfo", MOUNTS),
        ("fdinfo", FDINFO),
        ("log", LOG),
        ("user-info", "pipe|3|/a\\x7cb\\x0ac|1:2\n"),
        ("lent", "30, 31"),
        ("name", "/a\\x0ab\\\\c"),
        ("phases", LOG),
    ];
    let own = |file: &str| fs::read(Path::new("/proc/self").join(file)).unwrap();
    let of_kernel = [
        ("cgroup", CGROUPS.as_bytes().to_vec()),
        ("maps", MAPS.as_bytes().to_vec()),
        ("stat", STAT.as_bytes().to_vec()),
        ("status", own("status")),
        ("meminfo", fs::read("/proc/meminfo").unwrap()),
        ("io", own("io")),
        ("oom-score", own("oom_score_adj")),
    ];
    let numbered = |number: u8, bytes: &[u8]| [&[number], bytes].concat();
    let mut seeds: Vec<Seed> = (0_u8..)
        .zip(texts)
        .map(|(number, (name, text))| ("texts", name, numbered(number, text.as_bytes())))
        .collect();
    seeds.extend(
        (8_u8..)
            .zip(of_kernel)
            .map(|(number, (name, text))| ("texts", name, numbered(number, &text))),
    );
    let documents = documents().into_iter();
    seeds.extend(
        documents
            .map(|(number, name, text)| ("documents", name, numbered(number, text.as_bytes()))),
    );
    let (index, layer) = part(&tree, work.path());
    seeds.push(("documents", "index", numbered(0, &index)));
    let (pax, gnu) = (by_tar(&tree, "--format=pax"), by_tar(&tree, "--format=gnu"));
    let plain = checkpoint();
    let mut packed = Vec::new();
    pack_tree(&OwnedFd::from(File::open(&tree).unwrap()), &mut packed).unwrap();
    let mut ours = Vec::new();
    flate2::read::GzDecoder::new(&packed[..]).read_to_end(&mut ours).unwrap();
    seeds.extend([
        ("layer", "part", layer),
        ("archive", "gzip", gzipped(&plain)),
        ("archive", "zstd", zstd::encode_all(&plain[..], 3).unwrap()),
        ("archive", "plain", plain),
        ("tree", "pax", pax),
        ("tree", "gnu", gnu),
        ("tree", "ours", ours),
    ]);
    seeds
}

/// One of each that a snapshot holds, and little of it.
fn fill(tree: &Path) {
    fs::create_dir_all(tree.join("deep/er")).unwrap();
    fs::write(tree.join("deep/er/file"), "content").unwrap();
    fs::hard_link(tree.join("deep/er/file"), tree.join("link")).unwrap();
    symlink("deep/er", tree.join("symlink")).unwrap();
    let mut sparse = File::create(tree.join("sparse")).unwrap();
    sparse.write_all(b"begin").unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(b"end", 1 << 19).unwrap();
    let run = |program: &str, arguments: &[&str]| {
        assert!(
            Command::new(program).args(arguments).current_dir(tree).status().unwrap().success()
        );
    };
    run("mkfifo", &["fifo"]);
}

fn documents() -> Vec<(u8, &'static str, String)> {
    let offer = Offer { rules: vec!["1=null".into()], terminal: true, ..Offer::default() };
    let fetch = LoanRequest::Fetch { numbers: vec![3, 4], terminals: 1 };
    let real = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
        fs::read_to_string(path).unwrap()
    };
    vec![
        (1, "manifest", real("ocicle-manifest.json")),
        (4, "table", real("ocicle-files.json")),
        (2, "fetch", json(&fetch)),
        (3, "lent", json(&LoanReply::Lent(offer))),
        (3, "failed", json(&LoanReply::Failed("it is lent already".into()))),
    ]
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap()
}

/// A packed part of the tree: its index and its layer.
fn part(tree: &Path, work: &Path) -> (Vec<u8>, Vec<u8>) {
    let [staging, out] = ["staging", "out"].map(|name| work.join(name));
    for path in [&staging, &out] {
        fs::create_dir(path).unwrap();
    }
    let settings = DriverSettings { programs: Vec::new(), records: work.join("records") };
    let owner = SnapshotOwner { owner: &out, part: "rootfs", is_alive: &|_| true };
    let (mut driver, _) = choose(&staging, probe(tree).unwrap(), None, &settings, &owner).unwrap();
    driver.prepare(&Suspects::default()).unwrap();
    // Nobody is in the group, which only looks like one.
    fs::write(work.join("cgroup.freeze"), "1\n").unwrap();
    fs::write(work.join("cgroup.events"), "frozen 1\n").unwrap();
    let nobody = Freezer::new(CgroupVersion::V2, work.to_owned());
    let frozen = nobody.freeze(Duration::from_secs(1)).unwrap();
    driver.take(&frozen, &Suspects::default()).unwrap();
    driver.seal().unwrap();
    let (from, to) = (Directory::open(&staging).unwrap(), Directory::open(&out).unwrap());
    let files = pack(&from, &to, "rootfs", Compression::default(), Staging::Kept, &()).unwrap();
    let read = |name: &str| fs::read(out.join(name)).unwrap();
    (read(&files.index.name), read(&files.layers[0].name))
}

fn by_tar(tree: &Path, format: &str) -> Vec<u8> {
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(tree).args([
        "-b1",
        "--sort=name",
        "--numeric-owner",
        "--sparse",
        "-c",
        format,
        ".",
    ]);
    tar.output().unwrap().stdout
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(bytes).unwrap();
    gzip.finish().unwrap()
}

/// Real images as an engine exports them.
fn checkpoint() -> Vec<u8> {
    let images = ["inventory", "pstree", "core-1", "ids-1", "mm-1", "fs-1", "files", "fdinfo-2"];
    let mut tar = Command::new("tar");
    tar.arg("-C").arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images"));
    tar.args(["-b1", "-c", "--numeric-owner", "--transform", "s,^,checkpoint/,"]);
    tar.args(images.map(|name| format!("{name}.img"))).output().unwrap().stdout
}

//! What has to hold for any bytes: the fuzz targets and the tests that replay the corpus share it.
//!
//! A check panics when it does not hold. It returns the parser's error when that accepts nothing.

#![allow(dead_code, reason = "each fuzz target uses one of them")]

use std::fs;
use std::io::Write;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result, ensure};
use ocicle::bytes::ByteString;
use ocicle::criu::images::cgroups::relocated;
use ocicle::criu::images::entries::{
    Core, DumpStats, FdEntry, FileEntry, FileLock, Fs, Ids, Inventory, MemfdInode, Mm, Packet,
    Pagemap, Remap, TreeEntry, TtyInfo, mount_key,
};
use ocicle::criu::images::image::{BadImage, EntryChange, Image, ImageKind};
use ocicle::criu::{log, phases};
use ocicle::digest::digest;
use ocicle::files::{Table, parse_user_info};
use ocicle::lend::{Lent, LoanReply, LoanRequest};
use ocicle::policy::{Policy, parse_policies};
use ocicle::proc::cgroup::parse_cgroup;
use ocicle::proc::fdinfo::parse_fdinfo;
use ocicle::proc::maps::parse_maps;
use ocicle::proc::mountinfo::parse_mountinfo;
use ocicle::proc::stat::parse_stat;
use ocicle::proc::status::parse_pids;
use ocicle::proc::{memory, oom, work};
use ocicle::snapshot::{Index, LayerReader, pack_tree, unpack_tree};
use ocicle::store::manifest::Manifest;
use ocicle::substitute::{Origin, parse_list, parse_rule};

/// Text is rules that are read back as they are shown, or an error that can be shown.
pub fn grammar(bytes: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    for rule in parse_list(&text, &Origin::Annotation("org.ocicle.substitute".into()))? {
        let shown = rule.to_string();
        assert_eq!(parse_rule(&shown, rule.origin.clone()).as_ref(), Ok(&rule), "{shown}");
    }
    Ok(())
}

/// The images that ocicle reads, in the order of the first byte of an input.
pub const KINDS: [(&str, ImageKind); 18] = [
    ("inventory", ImageKind::Inventory),
    ("pstree", ImageKind::ProcessTree),
    ("ids", ImageKind::Ids),
    ("core", ImageKind::Core),
    ("fdinfo", ImageKind::FdInfo),
    ("files", ImageKind::Files),
    ("memfd", ImageKind::MemfdInode),
    ("mm", ImageKind::Mm),
    ("fs", ImageKind::Fs),
    ("remap-fpath", ImageKind::RemapPath),
    ("tty-info", ImageKind::TtyInfo),
    ("tty-data", ImageKind::TtyData),
    ("filelocks", ImageKind::FileLocks),
    ("sk-queues", ImageKind::SocketQueues),
    ("stats", ImageKind::Stats),
    ("pagemap", ImageKind::Pagemap),
    ("mountpoints", ImageKind::Mounts),
    ("cgroup", ImageKind::Cgroups),
];

/// Bytes are an image, of which every entry can be read or is wrong, and which a rewrite that
/// changes nothing leaves as it is; or they are an error that can be shown. The first byte says of
/// which kind.
pub fn images(bytes: &[u8]) -> Result<()> {
    let (number, bytes) = bytes.split_first().context("it is empty")?;
    let kind = KINDS[usize::from(*number) % KINDS.len()].1;
    let image = Image::parse(kind, bytes.to_vec())?;
    let entries = read(kind, &image);
    if let Ok(rewritten) = image.rewrite(|_| Ok(EntryChange::Keep)) {
        assert_eq!(rewritten, bytes);
    }
    entries?;
    Ok(())
}

/// Reads every entry as what it is; how many there are.
fn read(kind: ImageKind, image: &Image) -> Result<usize, BadImage> {
    Ok(match kind {
        ImageKind::Inventory => image.read(Inventory::read)?.len(),
        ImageKind::ProcessTree => image.read(TreeEntry::read)?.len(),
        ImageKind::Ids => image.read(Ids::read)?.len(),
        ImageKind::Core => image.read(Core::read)?.len(),
        ImageKind::FdInfo => image.read(FdEntry::read)?.len(),
        ImageKind::Files => image.read(FileEntry::read)?.len(),
        ImageKind::MemfdInode => image.read(MemfdInode::read)?.len(),
        ImageKind::Mm => image.read(Mm::read)?.len(),
        ImageKind::Pagemap => Pagemap::read(image)?.entries.len(),
        ImageKind::Fs => image.read(Fs::read)?.len(),
        ImageKind::RemapPath => image.read(Remap::read)?.len(),
        ImageKind::TtyInfo => image.read(TtyInfo::read)?.len(),
        ImageKind::TtyData => image.read(|entry| entry.need_u32(1, "tty_id"))?.len(),
        ImageKind::FileLocks => image.read(FileLock::read)?.len(),
        ImageKind::SocketQueues => image.read(Packet::read)?.len(),
        ImageKind::Mounts => image.read(mount_key)?.len(),
        ImageKind::Cgroups => image.read(|entry| relocated(entry, 1))?.len(),
        ImageKind::Stats => image.read(DumpStats::read)?.len(),
        ImageKind::WatchedPaths => image.read(|entry| entry.need_u64(2, "inode"))?.len(),
    })
}

/// A check of what is behind the first byte of an input, and what it is called.
pub type Check = (&'static str, fn(&[u8]) -> Result<()>);

fn by_first_byte(checks: &[Check], bytes: &[u8]) -> Result<()> {
    let (number, bytes) = bytes.split_first().context("it is empty")?;
    checks[usize::from(*number) % checks.len()].1(bytes)
}

/// The texts that ocicle reads, in the order of the first byte of an input.
pub const TEXTS: [Check; 15] = [
    ("policies", policies),
    ("mountinfo", mountinfo),
    ("fdinfo", fdinfo),
    ("log", criu_log),
    ("user-info", user_info),
    ("lent", lent),
    ("name", name),
    ("phases", criu_phases),
    ("cgroup", cgroup),
    ("maps", maps),
    ("stat", stat),
    ("status", status),
    ("meminfo", meminfo),
    ("io", io),
    ("oom-score", oom_score),
];

/// Bytes are a text of one kind, or an error that can be shown.
pub fn texts(bytes: &[u8]) -> Result<()> {
    by_first_byte(&TEXTS, bytes)
}

/// Policies are read back as they are shown.
fn policies(bytes: &[u8]) -> Result<()> {
    for policy in parse_policies(&String::from_utf8_lossy(bytes))? {
        assert_eq!(policy.to_string().parse::<Policy>().unwrap(), policy);
    }
    Ok(())
}

fn mountinfo(bytes: &[u8]) -> Result<()> {
    parse_mountinfo(bytes).map(drop)
}

fn fdinfo(bytes: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    assert_eq!(parse_fdinfo(&text), parse_fdinfo(&format!("{text}\n")));
    Ok(())
}

/// What is said of a log is a line of it.
fn criu_log(bytes: &[u8]) -> Result<()> {
    let cause = log::explain(bytes).context("it has no error")?;
    let line = bytes.split(|byte| *byte == b'\n').nth(cause.line - 1).expect("a line of the log");
    assert!(String::from_utf8_lossy(line).contains(&cause.message));
    Ok(())
}

fn criu_phases(bytes: &[u8]) -> Result<()> {
    for step in phases::of_dump(bytes) {
        assert!(step.begin <= step.end, "{step:?}");
    }
    Ok(())
}

fn user_info(bytes: &[u8]) -> Result<()> {
    parse_user_info(&String::from_utf8_lossy(bytes)).map(drop)
}

fn lent(bytes: &[u8]) -> Result<()> {
    String::from_utf8_lossy(bytes).parse::<Lent>().map(drop)
}

/// Each line is a group, and a group is of one version.
fn cgroup(bytes: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    let groups = parse_cgroup(&text)?;
    assert_eq!(groups.len(), text.lines().count());
    for group in groups {
        assert_eq!(group.is_unified(), !group.controllers.iter().any(|one| group.has(one)));
    }
    Ok(())
}

/// No line is more than one mapping.
fn maps(bytes: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    let maps = parse_maps(&text);
    assert!(maps.len() <= text.lines().count());
    ensure!(!maps.is_empty(), "there is no mapping in it");
    Ok(())
}

/// The name is whatever is between the first parenthesis and the last.
fn stat(bytes: &[u8]) -> Result<()> {
    let stat = parse_stat(bytes)?;
    assert!(String::from_utf8_lossy(bytes).contains(&format!("({})", stat.name)));
    Ok(())
}

fn status(bytes: &[u8]) -> Result<()> {
    parse_pids(&String::from_utf8_lossy(bytes), "NSpid").map(drop)
}

fn meminfo(bytes: &[u8]) -> Result<()> {
    let names = ["MemAvailable:", "Dirty:", "Writeback:"];
    memory::parse_numbers(&String::from_utf8_lossy(bytes), names).map(drop)
}

fn io(bytes: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(bytes);
    // A line feed would take it along.
    ensure!(!text.ends_with('\r'), "its end is no line's");
    let twice = work::parse_io(&format!("{text}\n{text}"));
    assert_eq!(twice, work::parse_io(&text).wrapping_mul(2));
    Ok(())
}

fn oom_score(bytes: &[u8]) -> Result<()> {
    let score = oom::parse_score(&String::from_utf8_lossy(bytes))?;
    assert!((-1000..=1000).contains(&score));
    Ok(())
}

/// Bytes are what their escaped form means.
fn name(bytes: &[u8]) -> Result<()> {
    let is_read_back = |name: &ByteString| {
        assert_eq!(ByteString::parse(&name.to_string()).unwrap(), *name);
    };
    is_read_back(&ByteString::from(bytes));
    is_read_back(&ByteString::parse(&String::from_utf8_lossy(bytes))?);
    Ok(())
}

/// The documents that ocicle reads, in the order of the first byte of an input.
pub const DOCUMENTS: [Check; 5] = [
    ("index", index),
    ("manifest", manifest),
    ("request", said_again::<LoanRequest>),
    ("reply", said_again::<LoanReply>),
    ("table", said_again::<Table>),
];

/// Bytes are a document of one kind, which says the same when it is written again, or an error.
pub fn documents(bytes: &[u8]) -> Result<()> {
    by_first_byte(&DOCUMENTS, bytes)
}

/// The lengths of the layers that an index may refer to.
const LAYERS: [u64; 3] = [1 << 20; 3];

/// Whatever index is accepted is read as the same when it is written again, and every path of it is
/// found.
fn index(bytes: &[u8]) -> Result<()> {
    let index = Index::checked(bytes, &LAYERS)?;
    let written = |index: &Index| {
        let mut text = Vec::new();
        index.write(&mut text).unwrap();
        text
    };
    let text = written(&index);
    assert!(written(&Index::checked(&text[..], &LAYERS).unwrap()) == text);
    for (path, _) in index.entries.walk() {
        assert_eq!(index.entries.find(&index.entries.path(path)), Some(path));
        assert!(index.inode(path).is_some());
    }
    Ok(())
}

fn manifest(bytes: &[u8]) -> Result<()> {
    let read = |text: &[u8]| {
        let sum = format!("{}  ocicle-manifest.json\n", digest(text));
        Manifest::checked(text, sum.as_bytes())
    };
    let written = serde_json::to_vec(&read(bytes)?)?;
    assert!(serde_json::to_vec(&read(&written).unwrap())? == written);
    Ok(())
}

fn said_again<T: serde::Serialize + serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<()> {
    let written = serde_json::to_value(serde_json::from_slice::<T>(bytes)?)?;
    let read: T = serde_json::from_value(written.clone()).unwrap();
    assert_eq!(serde_json::to_value(&read)?, written);
    Ok(())
}

/// Whatever layer is accepted has as many bytes as it says, or an error where they are not there;
/// and a part of it is what the whole has there.
pub fn layer(bytes: &[u8]) -> Result<()> {
    let mut file = tempfile::tempfile_in("/dev/shm")?;
    file.write_all(bytes)?;
    let layer = LayerReader::open(file, "x.tar.zst")?;
    assert!(layer.read_exact_at(&mut [0], layer.length()).is_err());
    let length = layer.length().min(64 << 10) as usize;
    let mut whole = vec![0; length];
    layer.read_exact_at(&mut whole, 0)?;
    let mut half = vec![0; length / 2];
    layer.read_exact_at(&mut half, (length - length / 2) as u64).unwrap();
    assert!(half == whole[length - length / 2..]);
    Ok(())
}

/// Anything can be inspected, or is an error that can be shown.
pub fn archive(bytes: &[u8]) -> Result<()> {
    let mut file = tempfile::NamedTempFile::new_in("/dev/shm")?;
    file.write_all(bytes)?;
    let report = ocicle::inspect::inspect(file.path())?;
    serde_json::to_vec(&report).unwrap();
    Ok(())
}

/// A tar, as it is below gzip, is unpacked in its directory alone, and what is there then can be
/// unpacked again once it is packed; or it is an error that can be shown.
pub fn tree(bytes: &[u8]) -> Result<()> {
    let top = tempfile::tempdir_in("/dev/shm")?;
    let [first, second] = ["first", "second"].map(|name| top.path().join(name));
    for path in [&first, &second] {
        fs::create_dir(path)?;
    }
    let open = |path| OwnedFd::from(fs::File::open(path).unwrap());
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::none());
    gzip.write_all(bytes)?;
    let unpacked = unpack_tree(&gzip.finish()?[..], &open(&first));
    let mut here = fs::read_dir(top.path())?.map(|entry| entry.unwrap().file_name());
    assert!(here.all(|name| name == "first" || name == "second"));
    unpacked?;
    let mut packed = Vec::new();
    if pack_tree(&open(&first), &mut packed).is_ok() {
        unpack_tree(&packed[..], &open(&second)).unwrap();
    }
    Ok(())
}

/// Every target.
pub const TARGETS: [Check; 7] = [
    ("grammar", grammar),
    ("images", images),
    ("texts", texts),
    ("documents", documents),
    ("layer", layer),
    ("archive", archive),
    ("tree", tree),
];

/// Runs a check: whatever is refused, it can be said why.
pub fn holds(check: fn(&[u8]) -> Result<()>, bytes: &[u8]) {
    if let Err(error) = check(bytes) {
        assert!(!format!("{error:#}").is_empty());
    }
}

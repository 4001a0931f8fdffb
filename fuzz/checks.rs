//! What has to hold for any bytes: the fuzz targets and the test that replays the corpus share it.

#![allow(dead_code, reason = "each fuzz target uses one of them")]

use ocicle::criu::images::cgroups::relocated;
use ocicle::criu::images::entries::{
    Core, DumpStats, FdEntry, FileEntry, FileLock, Fs, Ids, Inventory, MemfdInode, Mm, Packet,
    Pagemap, Remap, TreeEntry, TtyInfo, mount_key,
};
use ocicle::criu::images::image::{BadImage, Change, Image, Kind};
use ocicle::substitute::{Origin, parse_list, parse_rule};

/// Text is rules that are read back as they are shown, or an error that can be shown.
pub fn grammar(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    match parse_list(&text, &Origin::Annotation("org.ocicle.substitute".into())) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(rules) => {
            for rule in rules {
                let shown = rule.to_string();
                assert_eq!(parse_rule(&shown, rule.origin.clone()).as_ref(), Ok(&rule), "{shown}");
            }
        }
    }
}

/// The images that ocicle reads, in the order of the first byte of an input.
pub const KINDS: [(&str, Kind); 18] = [
    ("inventory", Kind::Inventory),
    ("pstree", Kind::ProcessTree),
    ("ids", Kind::Ids),
    ("core", Kind::Core),
    ("fdinfo", Kind::FdInfo),
    ("files", Kind::Files),
    ("memfd", Kind::MemfdInode),
    ("mm", Kind::Mm),
    ("fs", Kind::Fs),
    ("remap-fpath", Kind::RemapPath),
    ("tty-info", Kind::TtyInfo),
    ("tty-data", Kind::TtyData),
    ("filelocks", Kind::FileLocks),
    ("sk-queues", Kind::SocketQueues),
    ("stats", Kind::Stats),
    ("pagemap", Kind::Pagemap),
    ("mountpoints", Kind::Mounts),
    ("cgroup", Kind::Cgroups),
];

/// Bytes are an image, of which every entry can be read or is wrong, and which a rewrite that
/// changes nothing leaves as it is; or they are an error that can be shown. The first byte says of
/// which kind.
pub fn images(bytes: &[u8]) {
    let Some((number, bytes)) = bytes.split_first() else { return };
    let kind = KINDS[usize::from(*number) % KINDS.len()].1;
    match Image::parse(kind, bytes.to_vec()) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(image) => {
            if let Err(error) = read(kind, &image) {
                assert!(!error.to_string().is_empty());
            }
            if let Ok(rewritten) = image.rewrite(|_| Ok(Change::Keep)) {
                assert_eq!(rewritten, bytes);
            }
        }
    }
}

/// Reads every entry as what it is; how many there are.
fn read(kind: Kind, image: &Image) -> Result<usize, BadImage> {
    Ok(match kind {
        Kind::Inventory => image.read(Inventory::read)?.len(),
        Kind::ProcessTree => image.read(TreeEntry::read)?.len(),
        Kind::Ids => image.read(Ids::read)?.len(),
        Kind::Core => image.read(Core::read)?.len(),
        Kind::FdInfo => image.read(FdEntry::read)?.len(),
        Kind::Files => image.read(FileEntry::read)?.len(),
        Kind::MemfdInode => image.read(MemfdInode::read)?.len(),
        Kind::Mm => image.read(Mm::read)?.len(),
        Kind::Pagemap => Pagemap::read(image)?.stretches.len(),
        Kind::Fs => image.read(Fs::read)?.len(),
        Kind::RemapPath => image.read(Remap::read)?.len(),
        Kind::TtyInfo => image.read(TtyInfo::read)?.len(),
        Kind::TtyData => image.read(|entry| entry.need_u32(1, "tty_id"))?.len(),
        Kind::FileLocks => image.read(FileLock::read)?.len(),
        Kind::SocketQueues => image.read(Packet::read)?.len(),
        Kind::Mounts => image.read(mount_key)?.len(),
        Kind::Cgroups => image.read(|entry| relocated(entry, 1))?.len(),
        Kind::Stats => image.read(DumpStats::read)?.len(),
    })
}

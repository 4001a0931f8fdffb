//! What has to hold for any bytes: the fuzz targets and the test that replays the corpus share it.

#![allow(dead_code, reason = "each fuzz target uses one of them")]

use ocicle::criu::images::cgroups::relocated;
use ocicle::criu::images::entries::{
    Core, DumpStats, FdEntry, FileEntry, FileLock, Fs, Ids, Inventory, MemfdInode, Mm, Packet,
    Pagemap, Remap, TreeEntry, TtyInfo, mount_key,
};
use ocicle::criu::images::image::{BadImage, EntryChange, Image, ImageKind};
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
pub fn images(bytes: &[u8]) {
    let Some((number, bytes)) = bytes.split_first() else { return };
    let kind = KINDS[usize::from(*number) % KINDS.len()].1;
    match Image::parse(kind, bytes.to_vec()) {
        Err(error) => assert!(!error.to_string().is_empty()),
        Ok(image) => {
            if let Err(error) = read(kind, &image) {
                assert!(!error.to_string().is_empty());
            }
            if let Ok(rewritten) = image.rewrite(|_| Ok(EntryChange::Keep)) {
                assert_eq!(rewritten, bytes);
            }
        }
    }
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
        ImageKind::Pagemap => Pagemap::read(image)?.stretches.len(),
        ImageKind::Fs => image.read(Fs::read)?.len(),
        ImageKind::RemapPath => image.read(Remap::read)?.len(),
        ImageKind::TtyInfo => image.read(TtyInfo::read)?.len(),
        ImageKind::TtyData => image.read(|entry| entry.need_u32(1, "tty_id"))?.len(),
        ImageKind::FileLocks => image.read(FileLock::read)?.len(),
        ImageKind::SocketQueues => image.read(Packet::read)?.len(),
        ImageKind::Mounts => image.read(mount_key)?.len(),
        ImageKind::Cgroups => image.read(|entry| relocated(entry, 1))?.len(),
        ImageKind::Stats => image.read(DumpStats::read)?.len(),
    })
}

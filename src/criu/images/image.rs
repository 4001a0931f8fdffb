//! One image file: its magic numbers, and entries of a length and a message each.

use std::ops::Range;

use super::wire::{BadMessage, Message};

/// The first word of most images since version 1.1 of the format.
const COMMON_MAGIC: u32 = 0x5456_4319;
/// The first word of images that are no part of a checkpoint, such as the statistics.
const SERVICE_MAGIC: u32 = 0x5510_5940;

/// The largest entry that is read. CRIU's largest is a memory map, some 60 bytes a mapping.
pub const MAX_ENTRY: usize = 16 << 20;
/// The most entries that are read from one image.
pub const MAX_ENTRIES: usize = 4 << 20;
/// The largest image that is read.
pub const MAX_IMAGE: u64 = 512 << 20;

/// The images that ocicle reads: all consist of entries, and one has bytes behind each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageKind {
    /// `inventory.img`: the format's version and the identifiers of the root task.
    Inventory,
    /// `pstree.img`: the processes.
    ProcessTree,
    /// `ids-<pid>.img`: identifiers of what a process shares with others.
    Ids,
    /// `core-<pid>.img`: a thread's registers and name.
    Core,
    /// `fdinfo-<id>.img`: a table of file descriptors.
    FdInfo,
    /// `files.img`: open files.
    Files,
    /// `memfd.img`: the memory files behind memfd file descriptors.
    MemfdInode,
    /// `mm-<pid>.img`: a memory map.
    Mm,
    /// `pagemap-<pid>.img`: which pages of a process are in `pages-<id>.img`.
    Pagemap,
    /// `fs-<pid>.img`: working directory and root.
    Fs,
    /// `remap-fpath.img`: files whose name was gone.
    RemapPath,
    /// `tty-info.img`: terminals.
    TtyInfo,
    /// `tty-data.img`: what was not read yet from terminals.
    TtyData,
    /// `filelocks.img`: locks.
    FileLocks,
    /// `sk-queues.img`: messages that wait in unix sockets, each with its bytes behind it.
    SocketQueues,
    /// `mountpoints-<id>.img`: the mounts of a namespace.
    Mounts,
    /// `cgroup.img`: control groups.
    Cgroups,
    /// `stats-dump` and `stats-restore`: how long it took.
    Stats,
    /// `irmap-cache`: where watched files are.
    WatchedPaths,
}

impl ImageKind {
    /// The magic number (criu/include/magic.h).
    fn magic(self) -> u32 {
        match self {
            Self::Inventory => 0x5831_3116,
            Self::ProcessTree => 0x5027_3030,
            Self::Ids => 0x5443_2030,
            Self::Core => 0x5505_3847,
            Self::FdInfo => 0x5621_3732,
            Self::Files => 0x5630_3138,
            Self::MemfdInode => 0x4845_3499,
            Self::Mm => 0x5749_2820,
            Self::Pagemap => 0x5608_4025,
            Self::Fs => 0x5140_3912,
            Self::RemapPath => 0x5913_3954,
            Self::TtyInfo => 0x5945_3036,
            Self::TtyData => 0x5941_3026,
            Self::FileLocks => 0x5432_3616,
            Self::SocketQueues => 0x5626_4026,
            Self::Mounts => 0x5556_3928,
            Self::Cgroups => 0x5938_3330,
            Self::Stats => 0x5709_3306,
            Self::WatchedPaths => 0x5700_4059,
        }
    }

    /// The field that says how many bytes stand behind an entry, which are none of its message
    /// (`read_img_buf` in criu/sk-queue.c).
    fn payload(self) -> Option<u32> {
        (self == Self::SocketQueues).then_some(2)
    }

    /// The words an image of this kind begins with, when CRIU 4 writes it.
    fn head(self) -> Vec<u32> {
        match self {
            Self::Inventory => vec![self.magic()],
            Self::Stats | Self::WatchedPaths => vec![SERVICE_MAGIC, self.magic()],
            _ => vec![COMMON_MAGIC, self.magic()],
        }
    }
}

/// Why a file is no image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadImage {
    /// It is shorter than the magic numbers.
    #[error("it is too short to be an image")]
    TooShort,
    /// The magic numbers are others.
    #[error(
        "it begins with {found:#010x}, which is not the magic number of a CRIU image of this kind ({expected:#010x})"
    )]
    Magic {
        /// The word found.
        found: u32,
        /// The word of this kind.
        expected: u32,
    },
    /// An entry is longer than the rest of the file.
    #[error("entry {entry} is cut off: it has {size} bytes, {left} are left")]
    Truncated {
        /// The entry's number, from 0.
        entry: usize,
        /// Its length.
        size: usize,
        /// Bytes left in the file.
        left: usize,
    },
    /// An entry is larger than any CRIU writes.
    #[error("entry {entry} has {size} bytes, more than {MAX_ENTRY}")]
    TooLarge {
        /// The entry's number, from 0.
        entry: usize,
        /// Its length.
        size: usize,
    },
    /// There are too many entries.
    #[error("it has more than {MAX_ENTRIES} entries")]
    TooMany,
    /// There is no entry, or more than one, where CRIU writes one.
    #[error("it has {0} entries instead of one")]
    NotOne(usize),
    /// An entry's message is wrong.
    #[error("entry {entry}: {source}")]
    Entry {
        /// The entry's number, from 0.
        entry: usize,
        /// What is wrong with it.
        source: BadMessage,
    },
}

/// What becomes of an entry in a rewrite.
#[derive(Clone, Debug)]
pub enum EntryChange {
    /// It stays, byte for byte.
    Keep,
    /// Another message takes its place.
    Replace(Vec<u8>),
    /// It stays, and this message follows it.
    Follow(Vec<u8>),
    /// It goes, with the bytes behind it.
    Remove,
}

/// Where an entry is in the file.
#[derive(Clone, Debug)]
struct Entry {
    /// The message, without its length.
    message: Range<usize>,
    /// The bytes behind it.
    payload: Range<usize>,
}

/// An image: the file's bytes, split into entries.
#[derive(Clone, Debug)]
pub struct Image {
    bytes: Vec<u8>,
    /// Where the first entry begins.
    head: usize,
    entries: Vec<Entry>,
}

impl Image {
    /// Checks the magic numbers and splits the file.
    pub fn parse(kind: ImageKind, bytes: Vec<u8>) -> Result<Self, BadImage> {
        let head = check_head(kind, &bytes)?;
        let mut entries = Vec::new();
        let mut at = head;
        while at < bytes.len() {
            if entries.len() == MAX_ENTRIES {
                return Err(BadImage::TooMany);
            }
            let message = entry_at(&bytes, at, entries.len())?;
            let payload = payload_behind(kind, &bytes, &message, entries.len())?;
            at = payload.end;
            entries.push(Entry { message, payload });
        }
        Ok(Self { bytes, head, entries })
    }

    /// One without entries, as CRIU would begin it.
    pub fn empty(kind: ImageKind) -> Self {
        let bytes: Vec<u8> = kind.head().iter().flat_map(|word| word.to_le_bytes()).collect();
        Self { head: bytes.len(), bytes, entries: Vec::new() }
    }

    /// The bytes of an image with more entries behind those that are there.
    pub fn with(&self, messages: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
        let mut out = self.bytes.clone();
        messages.into_iter().for_each(|message| put_entry(&message, &mut out));
        out
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The whole file.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn messages(&self) -> impl Iterator<Item = (usize, Result<Message<'_>, BadImage>)> {
        self.entries.iter().enumerate().map(|(entry, place)| {
            let message = Message::parse(&self.bytes[place.message.clone()]);
            (entry, message.map_err(|source| BadImage::Entry { entry, source }))
        })
    }

    /// Reads every entry into a type.
    pub fn read<T>(
        &self,
        mut read: impl FnMut(&Message<'_>) -> Result<T, BadMessage>,
    ) -> Result<Vec<T>, BadImage> {
        self.messages()
            .map(|(entry, message)| {
                read(&message?).map_err(|source| BadImage::Entry { entry, source })
            })
            .collect()
    }

    /// Reads the only entry of an image that has one.
    pub fn read_one<T>(
        &self,
        read: impl FnMut(&Message<'_>) -> Result<T, BadMessage>,
    ) -> Result<T, BadImage> {
        if self.len() != 1 {
            return Err(BadImage::NotOne(self.len()));
        }
        let mut entries = self.read(read)?;
        entries.pop().ok_or(BadImage::NotOne(0))
    }

    /// The bytes of an image in which some entries are changed and all others are as they were.
    pub fn rewrite(
        &self,
        mut change: impl FnMut(&Message<'_>) -> Result<EntryChange, BadMessage>,
    ) -> Result<Vec<u8>, BadImage> {
        let mut out = Vec::with_capacity(self.bytes.len());
        out.extend_from_slice(&self.bytes[..self.head]);
        for (entry, message) in self.messages() {
            let change = change(&message?).map_err(|source| BadImage::Entry { entry, source })?;
            let Entry { message: place, payload } = &self.entries[entry];
            let (first, second) = match &change {
                EntryChange::Keep => (&self.bytes[place.clone()], None),
                EntryChange::Replace(message) => (&message[..], None),
                EntryChange::Follow(message) => (&self.bytes[place.clone()], Some(message)),
                EntryChange::Remove => continue,
            };
            put_entry(first, &mut out);
            out.extend_from_slice(&self.bytes[payload.clone()]);
            if let Some(message) = second {
                put_entry(message, &mut out);
            }
        }
        Ok(out)
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|word| u32::from_le_bytes(*word))
}

/// Returns where the entries begin. Images of version 1 of the format have no common word.
fn check_head(kind: ImageKind, bytes: &[u8]) -> Result<usize, BadImage> {
    let first = word(bytes, 0).ok_or(BadImage::TooShort)?;
    if first == kind.magic() {
        return Ok(4);
    }
    let (found, head) = match kind.head()[..] {
        [common, _] if common == first => (word(bytes, 4).ok_or(BadImage::TooShort)?, 8),
        _ => (first, 4),
    };
    if found != kind.magic() {
        return Err(BadImage::Magic { found, expected: kind.magic() });
    }
    Ok(head)
}

fn entry_at(bytes: &[u8], at: usize, entry: usize) -> Result<Range<usize>, BadImage> {
    let left = bytes.len() - at;
    let size = word(bytes, at).ok_or(BadImage::Truncated { entry, size: 4, left })? as usize;
    if size > MAX_ENTRY {
        return Err(BadImage::TooLarge { entry, size });
    }
    if size > left - 4 {
        return Err(BadImage::Truncated { entry, size, left: left - 4 });
    }
    Ok(at + 4..at + 4 + size)
}

/// The bytes behind an entry that says how many there are.
fn payload_behind(
    kind: ImageKind,
    bytes: &[u8],
    message: &Range<usize>,
    entry: usize,
) -> Result<Range<usize>, BadImage> {
    let start = message.end;
    let Some(field) = kind.payload() else { return Ok(start..start) };
    let size = Message::parse(&bytes[message.clone()])
        .and_then(|message| message.need_u32(field, "length"))
        .map_err(|source| BadImage::Entry { entry, source })? as usize;
    let left = bytes.len() - start;
    if size > left {
        return Err(BadImage::Truncated { entry, size, left });
    }
    Ok(start..start + size)
}

fn put_entry(message: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(message.len() as u32).to_le_bytes());
    out.extend_from_slice(message);
}

/// Puts an image together, as CRIU would. Serves the tests.
#[cfg(test)]
pub fn build(kind: ImageKind, messages: &[Vec<u8>]) -> Vec<u8> {
    Image::empty(kind).with(messages.iter().cloned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KINDS: [ImageKind; 15] = [
        ImageKind::Inventory,
        ImageKind::ProcessTree,
        ImageKind::Ids,
        ImageKind::Core,
        ImageKind::FdInfo,
        ImageKind::Files,
        ImageKind::MemfdInode,
        ImageKind::Mm,
        ImageKind::Fs,
        ImageKind::RemapPath,
        ImageKind::TtyInfo,
        ImageKind::TtyData,
        ImageKind::FileLocks,
        ImageKind::Stats,
        ImageKind::SocketQueues,
    ];
    /// Those that consist of entries only.
    const PLAIN: &[ImageKind] = KINDS.split_last().unwrap().1;

    fn any_message() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec((1u32..60, any::<u64>(), any::<Vec<u8>>()), 0..8).prop_map(|fields| {
            let mut message = Message::default();
            for (number, value, bytes) in fields {
                message.push_bytes(number + 40, &bytes);
                message.set_number(number, value);
            }
            message.encode()
        })
    }

    proptest! {
        #[test]
        fn a_rewrite_that_changes_nothing_changes_no_byte(
            kind in prop::sample::select(PLAIN),
            messages in prop::collection::vec(any_message(), 0..6),
        ) {
            let bytes = build(kind, &messages);
            let image = Image::parse(kind, bytes.clone()).unwrap();
            prop_assert_eq!(image.len(), messages.len());
            prop_assert_eq!(image.rewrite(|_| Ok(EntryChange::Keep)).unwrap(), bytes);
        }

        #[test]
        fn a_cut_image_is_an_error_or_has_fewer_entries(
            messages in prop::collection::vec(any_message(), 1..4),
            cut in any::<prop::sample::Index>(),
        ) {
            let bytes = build(ImageKind::Files, &messages);
            let length = cut.index(bytes.len());
            match Image::parse(ImageKind::Files, bytes[..length].to_vec()) {
                Ok(image) => prop_assert!(image.len() < messages.len()),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }

        #[test]
        fn any_bytes_are_an_image_or_an_error(
            kind in prop::sample::select(&KINDS[..]),
            bytes: Vec<u8>,
        ) {
            let mut image = build(kind, &[]);
            image.extend(bytes);
            if let Ok(image) = Image::parse(kind, image) {
                let _ = image.rewrite(|_| Ok(EntryChange::Keep));
            }
        }
    }

    #[test]
    fn bytes_behind_an_entry_stay_and_go_with_it() {
        let packet = |id: u64, length: u64| {
            let mut message = Message::default();
            message.set_number(1, id);
            message.set_number(2, length);
            message.encode()
        };
        let mut bytes = build(ImageKind::SocketQueues, &[packet(7, 3)]);
        bytes.extend(b"abc");
        put_entry(&packet(8, 0), &mut bytes);
        put_entry(&packet(9, 2), &mut bytes);
        bytes.extend(b"de");
        let image = Image::parse(ImageKind::SocketQueues, bytes.clone()).unwrap();
        assert_eq!(image.len(), 3);
        assert_eq!(image.rewrite(|_| Ok(EntryChange::Keep)).unwrap(), bytes);
        let rewritten = image.rewrite(|message| {
            Ok(match message.number(1) {
                Some(7) => EntryChange::Replace(packet(5, 3)),
                Some(8) => EntryChange::Keep,
                _ => EntryChange::Remove,
            })
        });
        let mut expected = build(ImageKind::SocketQueues, &[packet(5, 3)]);
        expected.extend(b"abc");
        put_entry(&packet(8, 0), &mut expected);
        assert_eq!(rewritten.unwrap(), expected);
        bytes.pop();
        let error = Image::parse(ImageKind::SocketQueues, bytes).unwrap_err();
        assert_eq!(error, BadImage::Truncated { entry: 2, size: 2, left: 1 });
    }

    #[test]
    fn a_message_can_follow_another() {
        let message = |id: u64| {
            let mut message = Message::default();
            message.set_number(1, id);
            message.encode()
        };
        let image =
            Image::parse(ImageKind::Files, build(ImageKind::Files, &[message(1), message(2)]));
        let followed = image.unwrap().rewrite(|entry| {
            let is_first = entry.number(1) == Some(1);
            Ok(if is_first { EntryChange::Follow(message(3)) } else { EntryChange::Keep })
        });
        assert_eq!(
            followed.unwrap(),
            build(ImageKind::Files, &[message(1), message(3), message(2)])
        );
    }

    #[test]
    fn heads() {
        assert_eq!(build(ImageKind::Inventory, &[])[..], 0x5831_3116u32.to_le_bytes());
        assert_eq!(Image::parse(ImageKind::Files, vec![1, 2]).unwrap_err(), BadImage::TooShort);
        let other = build(ImageKind::Core, &[]);
        let error = Image::parse(ImageKind::Files, other).unwrap_err();
        assert!(matches!(error, BadImage::Magic { found: 0x5505_3847, .. }), "{error}");
        let old = 0x5630_3138u32.to_le_bytes().to_vec();
        assert!(Image::parse(ImageKind::Files, old).unwrap().is_empty());
    }

    #[test]
    fn sizes_beyond_the_file_are_refused_before_anything_is_allocated() {
        let mut bytes = build(ImageKind::Files, &[]);
        bytes.extend([0xff, 0xff, 0xff, 0xff]);
        let error = Image::parse(ImageKind::Files, bytes.clone()).unwrap_err();
        assert_eq!(error, BadImage::TooLarge { entry: 0, size: 0xffff_ffff });
        bytes.truncate(8);
        bytes.extend([9, 0, 0, 0, 1]);
        let error = Image::parse(ImageKind::Files, bytes).unwrap_err();
        assert_eq!(error, BadImage::Truncated { entry: 0, size: 9, left: 1 });
    }
}

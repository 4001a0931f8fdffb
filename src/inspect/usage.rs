//! The command lines of processes that are not running: their arguments lie in their memory.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use crate::bytes::ByteString;
use crate::criu::images::entries::{Mm, Pagemap, PagemapEntry};
use crate::criu::images::image::{Image, ImageKind};
use crate::sys::pid::InnerPid;

/// The size of a page, of CRIU's images and of this architecture's memory.
const PAGE: u64 = 4096;
/// As much of a command line as is read.
const LENGTH: u64 = 32 << 10;
/// Of all command lines together.
const TOTAL: u64 = 16 << 20;

/// A piece of a process' arguments in a file of pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Want {
    pid: InnerPid,
    /// Where it lies in the file.
    pub offset: u64,
    pub length: u64,
    /// Where it lies in the arguments.
    at: u64,
}

/// What is known of the memory of the processes of one directory of images.
#[derive(Debug, Default)]
pub(super) struct MemoryUse {
    /// Where the arguments of each process are, by pid.
    ranges: BTreeMap<InnerPid, Range<u64>>,
    /// The map of each process, by pid.
    maps: BTreeMap<InnerPid, Pagemap>,
    /// Whose memory a file of pages has, by the file's number.
    owners: BTreeMap<u32, InnerPid>,
    /// Files of pages that came before their owners were known.
    passed: BTreeSet<u32>,
    /// The arguments of each process: pieces, by where they begin.
    found: BTreeMap<InnerPid, BTreeMap<u64, Vec<u8>>>,
    bytes: u64,
}

impl MemoryUse {
    /// Learns from an image, if it describes memory.
    ///
    /// What is wrong with it is found, and told, when all images are read.
    pub(super) fn learn(&mut self, name: &str, bytes: &[u8]) {
        if let Some(pid) = number_in("mm-", name).map(InnerPid)
            && let Ok(image) = Image::parse(ImageKind::Mm, bytes.to_vec())
            && let Ok(mm) = image.read_one(Mm::read)
        {
            self.ranges.insert(pid, mm.arguments);
        } else if let Some(pid) = number_in("pagemap-", name).map(InnerPid)
            && let Ok(image) = Image::parse(ImageKind::Pagemap, bytes.to_vec())
            && let Ok(map) = Pagemap::read(&image)
        {
            self.owners.insert(map.pages, pid);
            self.maps.insert(pid, map);
        }
    }

    /// Where a file of pages has arguments, in its order. Before the process is known of which it
    /// is the memory, that cannot be said: then it has to be seen again.
    pub(super) fn wanted(&mut self, pages: u32) -> Vec<Want> {
        let Some(pid) = self.owners.get(&pages) else {
            self.passed.insert(pages);
            return Vec::new();
        };
        self.passed.remove(&pages);
        match (self.ranges.get(pid), self.maps.get(pid)) {
            (Some(range), Some(map)) if !self.found.contains_key(pid) => {
                wants(*pid, range, &map.entries)
            }
            _ => Vec::new(),
        }
    }

    /// Whether some memory came before what describes it.
    pub(super) fn has_passed(&self) -> bool {
        self.passed.iter().any(|pages| self.owners.contains_key(pages))
    }

    pub(super) fn add(&mut self, want: &Want, bytes: Vec<u8>) {
        self.bytes += bytes.len() as u64;
        if self.bytes <= TOTAL {
            self.found.entry(want.pid).or_default().insert(want.at, bytes);
        }
    }

    /// The command line of a process, if its memory has it.
    pub(super) fn command_of(&self, pid: InnerPid) -> Option<Vec<ByteString>> {
        let pieces = self.found.get(&pid)?;
        let mut text = Vec::new();
        for (at, bytes) in pieces {
            // What is missing in between would make other words of it.
            if *at != text.len() as u64 {
                break;
            }
            text.extend_from_slice(bytes);
        }
        let text = text.strip_suffix(b"\0").unwrap_or(&text);
        (!text.is_empty()).then(|| text.split(|byte| *byte == 0).map(ByteString::from).collect())
    }

    /// The bytes of memory that the checkpoint has of a process.
    pub(super) fn size_of(&self, pid: InnerPid) -> Option<u64> {
        let present = self.maps.get(&pid)?.entries.iter().filter(|entry| entry.present);
        let pages = present.map(|entry| entry.pages).fold(0u64, u64::saturating_add);
        Some(pages.saturating_mul(PAGE))
    }
}

/// The number in `<begin><number>.img`.
fn number_in(begin: &str, name: &str) -> Option<i32> {
    name.strip_prefix(begin)?.strip_suffix(".img")?.parse().ok()
}

/// The number of a file of pages, by its name.
pub(super) fn pages_in(name: &str) -> Option<u32> {
    number_in("pages-", name)?.try_into().ok()
}

fn wants(pid: InnerPid, arguments: &Range<u64>, entries: &[PagemapEntry]) -> Vec<Want> {
    let Range { start: begin, end } = *arguments;
    let end = end.min(begin.saturating_add(LENGTH));
    let mut offset = 0u64;
    let mut wants = Vec::new();
    for entry in entries.iter().filter(|entry| entry.present) {
        let length = entry.pages.saturating_mul(PAGE);
        let first = begin.max(entry.address);
        let last = end.min(entry.address.saturating_add(length));
        if first < last {
            wants.push(Want {
                pid,
                offset: offset.saturating_add(first - entry.address),
                length: last - first,
                at: first - begin,
            });
        }
        offset = offset.saturating_add(length);
    }
    wants
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(address: u64, pages: u64, present: bool) -> PagemapEntry {
        PagemapEntry { address, pages, present }
    }

    #[test]
    fn arguments_over_two_entries_are_found_behind_the_pages_before() {
        let entries = [
            entry(0x1000, 2, true),
            entry(0x5000, 1, false),
            entry(0x8000, 1, true),
            entry(0x9000, 1, true),
        ];
        let found = wants(InnerPid(1), &(0x8ff0..0x9010), &entries);
        let places: Vec<_> = found.iter().map(|want| (want.offset, want.length, want.at)).collect();
        assert_eq!(places, [(2 * 4096 + 0xff0, 16, 0), (3 * 4096, 16, 16)]);
        assert_eq!(wants(InnerPid(1), &(0x5000..0x5010), &entries), [], "they are elsewhere");
    }

    #[test]
    fn numbers_out_of_range_are_no_panic() {
        let entries = [entry(u64::MAX - 10, u64::MAX, true), entry(0, u64::MAX, true)];
        let _ = wants(InnerPid(1), &(0..u64::MAX), &entries);
        assert_eq!(wants(InnerPid(1), &Range { start: 10, end: 5 }, &entries), []);
    }

    #[test]
    fn a_command_line_is_split_at_its_zeros() {
        let mut memory = MemoryUse::default();
        let want = |at| Want { pid: InnerPid(3), offset: 0, length: 0, at };
        memory.add(&want(4), b"-c\0x\0".to_vec());
        memory.add(&want(0), b"a\0b\0".to_vec());
        let words: Vec<String> =
            memory.command_of(InnerPid(3)).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(words, ["a", "b", "-c", "x"]);
        assert_eq!(memory.command_of(InnerPid(4)), None);
    }
}

//! Writes tar members: ustar headers, with PAX records where they do not suffice.
//!
//! Sources: pax(1) in POSIX.1-2017 for the headers; the GNU tar manual, "Storing Sparse Files", for
//! sparse members of version 1.0. Go's archive/tar and libarchive read both.

use std::io::{self, Write};

use crate::snapshot::index::Meta;
use crate::sys::extent::Extent;
use crate::sys::inode::Device;
use crate::sys::time::Time;

const BLOCK: u64 = 512;

/// What a member is.
pub(in crate::snapshot) enum Member<'a> {
    Dir,
    /// Length, and the extents if it has holes.
    File(u64, &'a [Extent]),
    Symlink(&'a [u8]),
    /// A further name of a member before.
    Link(&'a [u8]),
    Char(Device),
    Block(Device),
    Fifo,
}

impl Member<'_> {
    fn flag(&self) -> u8 {
        match self {
            Self::File(..) => b'0',
            Self::Link(_) => b'1',
            Self::Symlink(_) => b'2',
            Self::Char(..) => b'3',
            Self::Block(..) => b'4',
            Self::Dir => b'5',
            Self::Fifo => b'6',
        }
    }
}

/// A tar being written, which knows how many bytes it has.
pub(in crate::snapshot) struct TarWriter<W> {
    to: W,
    at: u64,
}

impl<W: Write> TarWriter<W> {
    pub(in crate::snapshot) fn new(to: W) -> Self {
        Self { to, at: 0 }
    }

    /// Where the next byte goes.
    pub(in crate::snapshot) fn position(&self) -> u64 {
        self.at
    }

    /// Writes the header of a member. The stored bytes of a file follow by [`Self::data`], then
    /// [`Self::pad`].
    pub(in crate::snapshot) fn header(
        &mut self,
        path: &[u8],
        meta: &Meta,
        member: &Member<'_>,
    ) -> io::Result<()> {
        let mut records = Vec::new();
        let mut name = path.to_vec();
        let mut map = Vec::new();
        let mut size = 0;
        match member {
            Member::Dir => name.push(b'/'),
            Member::File(length, extents) => {
                size = *length;
                if is_sparse(*length, extents) {
                    map = sparse_map(*length, extents);
                    size =
                        map.len() as u64 + extents.iter().map(|extent| extent.length).sum::<u64>();
                    record(&mut records, b"GNU.sparse.major", b"1");
                    record(&mut records, b"GNU.sparse.minor", b"0");
                    record(&mut records, b"GNU.sparse.name", &name);
                    record(&mut records, b"GNU.sparse.realsize", length.to_string().as_bytes());
                    name = sparse_name(&name);
                }
            }
            _ => {}
        }
        let mut head = Header::new(member.flag());
        let target: &[u8] = match member {
            Member::Symlink(target) | Member::Link(target) => target,
            _ => b"",
        };
        // A name that is no UTF-8 goes as it is: GNU tar warns of the `hdrcharset` that would say so.
        if !head.name(&name) {
            record(&mut records, b"path", &name);
        }
        if !head.text(157, 100, target) {
            record(&mut records, b"linkpath", target);
        }
        head.attributes(meta, &mut records);
        if !head.number(124, 12, size) {
            record(&mut records, b"size", size.to_string().as_bytes());
        }
        if let Member::Char(device) | Member::Block(device) = member {
            head.number(329, 8, device.major.into());
            head.number(337, 8, device.minor.into());
        }
        if !records.is_empty() {
            self.records(&records)?;
        }
        self.data(&head.sealed())?;
        self.data(&map)
    }

    fn records(&mut self, records: &[u8]) -> io::Result<()> {
        let mut head = Header::new(b'x');
        head.name(b"PaxHeaders/ocicle");
        head.attributes(&Meta { mode: 0o644, ..Meta::default() }, &mut Vec::new());
        head.number(124, 12, records.len() as u64);
        self.data(&head.sealed())?;
        self.data(records)?;
        self.pad()
    }

    /// Bytes of the member whose header was written last.
    pub(in crate::snapshot) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.at += bytes.len() as u64;
        self.to.write_all(bytes)
    }

    /// Fills the last block of a member.
    pub(in crate::snapshot) fn pad(&mut self) -> io::Result<()> {
        let missing = self.at.next_multiple_of(BLOCK) - self.at;
        self.data(&[0; BLOCK as usize][..missing as usize])
    }

    /// Writes the two empty blocks at the end.
    pub(in crate::snapshot) fn finish(mut self) -> io::Result<W> {
        self.data(&[0; 2 * BLOCK as usize])?;
        Ok(self.to)
    }
}

/// Whether a file has holes.
pub(in crate::snapshot) fn is_sparse(length: u64, extents: &[Extent]) -> bool {
    length > 0 && extents != [Extent::new(0, length)]
}

/// The map that goes before the data: decimal numbers on lines, in whole blocks. A hole at the end
/// needs an empty extent there, or readers take the file to be shorter.
fn sparse_map(length: u64, extents: &[Extent]) -> Vec<u8> {
    let ends_in_hole = extents.last().is_none_or(|last| last.end() < length);
    let mut lines = vec![extents.len() as u64 + u64::from(ends_in_hole)];
    lines.extend(extents.iter().flat_map(|extent| [extent.offset, extent.length]));
    if ends_in_hole {
        lines.extend([length, 0]);
    }
    let mut map: Vec<u8> =
        lines.iter().flat_map(|number| format!("{number}\n").into_bytes()).collect();
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}

/// What a reader that knows no sparse members makes of one.
fn sparse_name(path: &[u8]) -> Vec<u8> {
    match crate::snapshot::split(path) {
        Some((b"", name)) => [b"GNUSparseFile.0/", name].concat(),
        Some((parent, name)) => [parent, b"/GNUSparseFile.0/", name].concat(),
        None => path.to_vec(),
    }
}

/// One PAX record; the length at its start counts itself.
fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    records.extend_from_slice(format!("{length} ").as_bytes());
    records.extend_from_slice(key);
    records.push(b'=');
    records.extend_from_slice(value);
    records.push(b'\n');
}

/// A ustar header of 512 bytes.
struct Header([u8; BLOCK as usize]);

impl Header {
    fn new(flag: u8) -> Self {
        let mut header = Self([0; BLOCK as usize]);
        header.0[156] = flag;
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header
    }

    /// A text field, cut if it does not fit, which is told.
    fn text(&mut self, at: usize, width: usize, text: &[u8]) -> bool {
        let length = text.len().min(width);
        self.0[at..at + length].copy_from_slice(&text[..length]);
        text.len() <= width && text.is_ascii()
    }

    /// The path, in two fields if need be.
    fn name(&mut self, name: &[u8]) -> bool {
        let slash = || {
            let first = name.len().saturating_sub(101);
            (first..name.len().min(156))
                .find(|at| name[*at] == b'/' && *at > 0 && *at + 1 < name.len())
        };
        match (name.len() <= 100, slash()) {
            (false, Some(at)) => {
                self.text(345, 155, &name[..at]) && self.text(0, 100, &name[at + 1..])
            }
            _ => self.text(0, 100, name),
        }
    }

    /// Octal digits and a NUL; nothing but zeros if there are too many, which is told.
    fn number(&mut self, at: usize, width: usize, number: u64) -> bool {
        let fits = number < 1 << (3 * (width - 1));
        let digits = format!("{:0w$o}", if fits { number } else { 0 }, w = width - 1);
        self.0[at..at + width - 1].copy_from_slice(digits.as_bytes());
        fits
    }

    fn attributes(&mut self, meta: &Meta, records: &mut Vec<u8>) {
        self.number(100, 8, u64::from(meta.mode));
        for (at, key, id) in [(108, &b"uid"[..], meta.uid), (116, &b"gid"[..], meta.gid)] {
            if !self.number(at, 8, u64::from(id)) {
                record(records, key, id.to_string().as_bytes());
            }
        }
        let seconds = u64::try_from(meta.mtime.seconds);
        let fits = seconds.is_ok_and(|seconds| self.number(136, 12, seconds));
        if !fits || meta.mtime.nanoseconds != 0 {
            self.number(136, 12, seconds.unwrap_or(0));
            record(records, b"mtime", decimal(meta.mtime).as_bytes());
        }
        for (name, value) in &meta.xattrs {
            record(records, &xattr_key(name.as_bytes()), value.as_bytes());
        }
    }

    fn sealed(mut self) -> [u8; BLOCK as usize] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.0[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0
    }
}

/// A key cannot have `=`; GNU tar writes it, and `%`, as it stands in a URL.
fn xattr_key(name: &[u8]) -> Vec<u8> {
    let mut key = b"SCHILY.xattr.".to_vec();
    for byte in name {
        match byte {
            b'=' => key.extend_from_slice(b"%3D"),
            b'%' => key.extend_from_slice(b"%25"),
            byte => key.push(*byte),
        }
    }
    key
}

/// Seconds with a fraction; before 1970 the fraction counts backwards.
fn decimal(Time { seconds, nanoseconds }: Time) -> String {
    if seconds < 0 && nanoseconds > 0 {
        let whole = -(seconds + 1);
        format!("-{whole}.{:09}", 1_000_000_000 - nanoseconds)
    } else {
        format!("{seconds}.{nanoseconds:09}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_length_of_a_record_counts_itself() {
        let mut records = Vec::new();
        record(&mut records, b"path", &[b'a'; 88]);
        assert!(records.starts_with(b"97 path="));
        assert_eq!(records.len(), 97);
        records.clear();
        record(&mut records, b"path", &[b'a'; 91]);
        assert_eq!(records.len().to_string().as_bytes(), &records[..3]);
    }

    #[test]
    fn times_before_1970() {
        assert_eq!(decimal(Time::new(-1, 750_000_000)), "-0.250000000");
        assert_eq!(decimal(Time::new(-2, 1)), "-1.999999999");
        assert_eq!(decimal(Time::new(5, 1)), "5.000000001");
    }

    #[test]
    fn a_hole_at_the_end_is_told() {
        let map = sparse_map(10_000, &[Extent::new(0, 512)]);
        assert_eq!(map.len(), 512);
        assert!(map.starts_with(b"2\n0\n512\n10000\n0\n\0"));
    }
}

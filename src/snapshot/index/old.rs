//! The first version of the index, one object of JSON: read, and never written.
//!
//! It is read as it comes, and nothing in it can make the reader keep more than is limited elsewhere.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read};
use std::marker::PhantomData;

use anyhow::{Context, Result, ensure};
use serde::de::{DeserializeOwned, Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::{Entry, Index, Kind};
use crate::bytes::ByteString;
use crate::limits::{self, EXTENT_LIMIT, Limit, PATH_LIMIT};
use crate::snapshot::identity::{Form, RootIdentity};
use crate::snapshot::paths::Paths;
use crate::snapshot::{shown, split};
use crate::sys::extent::Extent;

/// The only version.
const SCHEMA: u32 = 1;

/// Bytes of one string: of an attribute of 64 KiB each is escaped, at most.
const STRING_LIMIT: u64 = 1 << 20;

#[derive(Deserialize)]
#[serde(bound = "C: Deserialize<'de>")]
pub(in crate::snapshot) struct Old<C> {
    schema: u32,
    driver: Form,
    root: RootIdentity,
    entries: Entries<C>,
}

/// Reads an index. What it says is not checked, but that every directory is there.
pub(super) fn read<C: DeserializeOwned>(from: impl Read) -> Result<Index<C>> {
    let guarded = Guarded { from, is_escaped: false, length: 0 };
    let old: Old<C> = serde_json::from_reader(io::BufReader::with_capacity(64 << 10, guarded))?;
    old.into_index()
}

impl<C> Old<C> {
    /// The same in the order of this version. What it says is not checked.
    pub(in crate::snapshot) fn into_index(self) -> Result<Index<C>> {
        ensure!(
            self.schema == SCHEMA,
            "the index has version {}, this program reads versions up to {}",
            self.schema,
            super::SCHEMA
        );
        let entries = self.entries.0.context("the index has no root")?;
        let entries = entries.ordered(|entry, places| {
            if let Kind::Link { to } = &mut entry.kind {
                *to = places(*to);
            }
        })?;
        Ok(Index { driver: self.driver, root: self.root, entries })
    }
}

/// The entries, in the order in which they came.
struct Entries<C>(Option<Paths<Entry<C>>>);

impl<'de, C: Deserialize<'de>> Deserialize<'de> for Entries<C> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<C>(PhantomData<C>);

impl<'de, C: Deserialize<'de>> Visitor<'de> for EntriesVisitor<C> {
    type Value = Entries<C>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the entries of an index")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = None;
        while let Some((path, entry)) = map.next_entry::<ByteString, Entry<C, ByteString>>()? {
            let path = path.as_bytes();
            let added = add(&mut entries, path, entry);
            let added = added.with_context(|| format!("reading {} of the index", shown(path)));
            added.map_err(|error| A::Error::custom(format!("{error:#}")))?;
        }
        Ok(Entries(entries))
    }
}

/// Adds an entry. They come sorted by the bytes of their paths, so that a directory is before what is in
/// it, and the first name of a file before its others.
fn add<C>(
    entries: &mut Option<Paths<Entry<C>>>,
    path: &[u8],
    entry: Entry<C, ByteString>,
) -> Result<()> {
    ensure!(path.len() <= PATH_LIMIT, "the path is longer than {PATH_LIMIT} bytes");
    let entry = linked(entries.as_ref(), entry)?;
    let Some((parent, name)) = split(path) else {
        ensure!(entries.is_none(), "the root is there twice");
        *entries = Some(Paths::new(entry));
        return Ok(());
    };
    let entries = entries.as_mut().context("the index has no root")?;
    let dir = entries.find(parent).context("its directory is not in the index")?;
    entries.push(dir, name, entry).map(drop)
}

/// The same entry, with the place of what it links to.
fn linked<C>(
    entries: Option<&Paths<Entry<C>>>,
    Entry { kind, meta, identity }: Entry<C, ByteString>,
) -> Result<Entry<C>> {
    let place = |to: ByteString| {
        let first = entries.and_then(|entries| entries.find(to.as_bytes()));
        first.context("it links to nothing, or to a later path")
    };
    let kind = kind.try_map(Ok, place)?;
    Ok(Entry { kind, meta, identity })
}

/// Fails where a string is longer than any that is written.
struct Guarded<R> {
    from: R,
    is_escaped: bool,
    length: u64,
}

impl<R: Read> Read for Guarded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(buffer)?;
        for byte in &buffer[..read] {
            let ends = *byte == b'"' && !self.is_escaped;
            self.length = if ends { 0 } else { self.length + 1 };
            self.is_escaped = *byte == b'\\' && !self.is_escaped;
        }
        if self.length > STRING_LIMIT {
            return Err(io::Error::other("a string in it is too long"));
        }
        Ok(read)
    }
}

/// Reads the extents of a file, as many as one may have.
pub(super) fn extents<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Extent>, D::Error> {
    at_most(from, EXTENT_LIMIT)
}

/// Reads a list of at most so many elements.
pub(crate) fn at_most<'de, T: Deserialize<'de>, D: Deserializer<'de>>(
    from: D,
    most: usize,
) -> Result<Vec<T>, D::Error> {
    struct List<T>(usize, PhantomData<T>);

    impl<'de, T: Deserialize<'de>> Visitor<'de> for List<T> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {} elements", self.0)
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut elements = Vec::new();
            while let Some(element) = list.next_element()? {
                if elements.len() == self.0 {
                    return Err(A::Error::invalid_length(self.0 + 1, &self));
                }
                elements.push(element);
            }
            Ok(elements)
        }
    }

    from.deserialize_seq(List(most, PhantomData))
}

/// Reads the extended attributes of a file, as many as one may have.
pub(super) fn xattrs<'de, D: Deserializer<'de>>(
    from: D,
) -> Result<BTreeMap<ByteString, ByteString>, D::Error> {
    struct Xattrs;

    impl<'de> Visitor<'de> for Xattrs {
        type Value = BTreeMap<ByteString, ByteString>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("extended attributes")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let (mut xattrs, mut bytes) = (BTreeMap::new(), 0);
            while let Some((name, value)) = map.next_entry::<ByteString, ByteString>()? {
                bytes += name.as_bytes().len() + value.as_bytes().len();
                limits::ensure(Limit::Attributes, bytes as u64, "the attributes of a file take")
                    .map_err(A::Error::custom)?;
                xattrs.insert(name, value);
            }
            Ok(xattrs)
        }
    }

    from.deserialize_map(Xattrs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::snapshot::index::Content;
    use crate::snapshot::paths::Id;

    fn index(entries: &str) -> Result<Index<Content>> {
        let head = r#""driver": "directory", "fs_type": "ext4", "device": 1, "ino": 2"#;
        let text = format!(
            r#"{{"schema":1,"driver":"directory","root":{{{head}}},"entries":{{{entries}}}}}"#
        );
        Index::read(text.as_bytes())
    }

    #[test]
    fn the_first_version_is_read_in_the_new_order() {
        let dir = r#"{"kind":{"dir":{"opaque":false}}}"#;
        let link = r#"{"kind":{"link":{"to":"a-b"}}}"#;
        let read = index(&format!(
            r#""":{dir},"a":{dir},"a-b":{{"kind":"fifo"}},"a/in":{{"kind":"fifo"}},"a/link":{link}"#
        ));
        let read = read.unwrap();
        read.check().unwrap();
        let mut walk = read.entries.walk();
        let mut paths = Vec::new();
        while let Some((path, _)) = walk.next() {
            assert_eq!(path, Id::nth(paths.len()));
            paths.push(String::from_utf8_lossy(walk.path()).into_owned());
        }
        assert_eq!(paths, ["", "a", "a/in", "a/link", "a-b"]);
        let link = read.entries.find(b"a/link").unwrap();
        assert_eq!(read.inode(link).unwrap().0, read.entries.find(b"a-b").unwrap());
    }

    #[test]
    fn what_no_writer_wrote_is_refused() {
        let dir = r#"{"kind":{"dir":{"opaque":false}}}"#;
        let fifo = r#"{"kind":"fifo"}"#;
        for entries in [
            format!(r#""a":{fifo}"#),
            format!(r#""":{dir},"a/b":{fifo}"#),
            format!(r#""":{dir},"b":{fifo},"a":{fifo}"#),
            format!(r#""":{dir},"a":{fifo},"a":{fifo}"#),
            format!(r#""":{dir},"a":{{"kind":{{"link":{{"to":"b"}}}}}},"b":{fifo}"#),
            format!(
                r#""":{dir},"a":{{"kind":{{"symlink":{{"target":"{}"}}}}}}"#,
                "a".repeat(2 << 20)
            ),
        ] {
            assert!(index(&entries).is_err(), "{entries:.100}");
        }
    }
}

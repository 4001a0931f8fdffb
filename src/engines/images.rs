//! Images in containers/storage, where `podman container checkpoint --create-image` puts a checkpoint.
//!
//! ```text
//! overlay-images/images.json       identifiers, names, the uppermost layer of each
//! overlay-images/ID/manifest       the image's manifest
//! overlay/LAYER/diff               what is in a layer, unpacked
//! ```

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::catalog::graph_root;
use crate::container::ensure_name;
use crate::container::records::read_own;
use crate::foreign::Reader;

/// An image of containers/storage.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredImage {
    /// Its first name, or its identifier.
    pub reference: String,
    /// Its manifest.
    pub manifest: Vec<u8>,
    /// The directory with what is in its uppermost layer.
    pub layer: PathBuf,
}

/// An entry of `images.json`.
#[derive(Deserialize)]
struct Record {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    layer: String,
}

/// The image of that name or identifier, or of one that is abbreviated as podman lets it be.
pub fn stored_image(name: &str) -> Option<StoredImage> {
    find(&graph_root(), name)
}

fn find(root: &Path, name: &str) -> Option<StoredImage> {
    let images = root.join("overlay-images");
    let records: Vec<Record> = read_own(&images.join("images.json"))?;
    let record = records.into_iter().find(|record| is_called(record, name))?;
    ensure_name(&record.id).and(ensure_name(&record.layer)).ok()?;
    Some(StoredImage {
        manifest: Reader::of_root().read(&images.join(&record.id).join("manifest")).ok()??,
        layer: root.join("overlay").join(&record.layer).join("diff"),
        reference: record.names.into_iter().next().unwrap_or(record.id),
    })
}

/// The fewest digits of an identifier that are taken for one.
const DIGITS: usize = 4;

fn is_called(record: &Record, name: &str) -> bool {
    let is_id = name.len() >= DIGITS && record.id.starts_with(name);
    let tagged = format!("{name}:latest");
    let is_name = |known: &String| {
        [name, &tagged].iter().any(|name| {
            known == name || known.strip_suffix(name).is_some_and(|rest| rest.ends_with('/'))
        })
    };
    !name.is_empty() && (is_id || record.names.iter().any(is_name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_by_its_names() {
        let root = tempfile::tempdir().unwrap();
        let images = root.path().join("overlay-images");
        let id = "0123456789abcdef";
        std::fs::create_dir_all(images.join(id)).unwrap();
        let records = serde_json::json!([
            { "id": "fedc", "names": ["localhost/other:1"], "layer": "x" },
            { "id": id, "names": ["localhost/web:latest", "r.example/team/web:1"], "layer": "abc" },
            { "id": "../../etc", "names": ["localhost/evil:latest"], "layer": "abc" },
        ]);
        std::fs::write(images.join("images.json"), records.to_string()).unwrap();
        std::fs::write(images.join(id).join("manifest"), "{}").unwrap();
        let expected = StoredImage {
            reference: "localhost/web:latest".to_owned(),
            manifest: b"{}".to_vec(),
            layer: root.path().join("overlay/abc/diff"),
        };
        for name in ["web", "localhost/web", "localhost/web:latest", "team/web:1", "01234567"] {
            assert_eq!(find(root.path(), name).as_ref(), Some(&expected), "{name}");
        }
        for name in ["", "eb", "012", "web:2", "evil", "other:1"] {
            assert_eq!(find(root.path(), name), None, "{name}");
        }
    }
}

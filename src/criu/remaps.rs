//! Names that CRIU gives files for the time of a dump.
//!
//! A file whose name was removed, and that has others, is found by none that CRIU knows: so it links it
//! to `link_remap.N`, beside the name that is gone or, where that directory is gone too, above it
//! (`create_link_remap` in criu/files-reg.c). A restore finds it there, and removes that name when all
//! is well (`try_clean_remaps`); so does a dump of a container that goes on.

use anyhow::{Context, Result};

use super::images::ImageDir;
use super::images::entries::{FileBody, FileEntry, Remap, RemapKind};
use super::images::image::ImageKind;
use crate::bytes::ByteString;

/// Whether that is such a name.
pub fn is_link(name: &[u8]) -> bool {
    let number = name.strip_prefix(b"link_remap.").unwrap_or_default();
    (1..=10).contains(&number.len()) && number.iter().all(u8::is_ascii_digit)
}

/// The paths of those names that a dump has made.
pub fn links(images: &ImageDir) -> Result<Vec<ByteString>> {
    let remaps = images.all(ImageKind::RemapPath, "remap-fpath.img", Remap::read)?;
    let linked = remaps.iter().filter(|remap| remap.kind == RemapKind::Linked);
    let targets: Vec<u32> = linked.map(|remap| remap.target).collect();
    if targets.is_empty() {
        return Ok(Vec::new());
    }
    let files = images.all(ImageKind::Files, "files.img", FileEntry::read)?;
    let path = |target: &u32| {
        let file = files.iter().find(|file| file.id == *target);
        match file.map(|file| &file.body) {
            Some(FileBody::Reg(reg)) => Ok(reg.name.clone()),
            _ => Err(anyhow::anyhow!("open file {target}, of another name, is in no image")),
        }
    };
    targets.iter().map(path).collect::<Result<_>>().context("reading which names CRIU has made")
}

#[cfg(test)]
mod tests {
    use super::is_link;

    #[test]
    fn names_of_criu() {
        assert!(is_link(b"link_remap.7") && is_link(b"link_remap.4294967295"));
        for other in ["link_remap.", "link_remap.7a", "link_remap", "xlink_remap.7", "7"] {
            assert!(!is_link(other.as_bytes()), "{other}");
        }
    }
}

//! What a root is, for a restore to compare it with what it was.

use serde::{Deserialize, Serialize};

use crate::bytes::ByteString;
use crate::sys::inode::{DevIno, Device};

/// How a part's root stores what is written to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// An overlay mount: the entries are what deviates from its lower layers.
    Overlay,
    /// Any directory: the entries are the whole tree.
    Directory,
}

/// The answer to: is this the same image that the snapshot was taken on?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootIdentity {
    /// How the root stores what is written.
    pub driver: Form,
    /// Type of the file system (`overlay`, `ext4`, …).
    pub fs_type: String,
    /// `st_dev` of the root.
    pub device: u64,
    /// `st_ino` of the root.
    pub ino: u64,
    /// The lower layers of an overlay, the uppermost first, those that only give data last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lowers: Vec<LayerIdentity>,
    /// The options of an overlay that decide what it shows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// One lower layer of an overlay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerIdentity {
    /// Its directory, links resolved.
    pub path: ByteString,
    /// `st_dev` of the directory.
    pub device: u64,
    /// `st_ino` of the directory.
    pub ino: u64,
    /// What the uppermost layer holds, if it is small, as that of docker's that each container has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

impl LayerIdentity {
    fn inode(&self) -> DevIno {
        DevIno { device: Device::from_stat(self.device), ino: self.ino }
    }

    fn is_same(&self, now: &Self) -> bool {
        self.path == now.path
            || self.inode() == now.inode()
            || (self.digest.is_some() && self.digest == now.digest)
    }
}

impl RootIdentity {
    /// What speaks against `now` showing the same image below: one sentence each, none if all is
    /// well. A layer is the same if its path is, or its device and inode number, or all it holds.
    pub fn differences(&self, now: &Self) -> Vec<String> {
        let mut found = Vec::new();
        if self.driver != now.driver {
            found.push(format!(
                "the snapshot is of {:?} kind, the root of {:?} kind",
                self.driver, now.driver
            ));
            return found;
        }
        if self.lowers.len() != now.lowers.len() {
            found.push(format!(
                "the snapshot lies on {} layers, the root on {}",
                self.lowers.len(),
                now.lowers.len()
            ));
        }
        for (was, is) in self.lowers.iter().zip(&now.lowers) {
            if !was.is_same(is) {
                found.push(format!("layer {} was {}", is.path, was.path));
            }
        }
        if self.options != now.options {
            found.push(format!(
                "the overlay's options are {:?}, were {:?}",
                now.options, self.options
            ));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_is_the_same_by_its_place_or_by_all_it_holds() {
        let layer = |path: &str, ino, digest: Option<&str>| LayerIdentity {
            path: path.into(),
            device: 1,
            ino,
            digest: digest.map(str::to_owned),
        };
        let was = layer("/a", 2, Some("x"));
        for (now, same) in [
            (layer("/a", 3, None), true),
            (layer("/b", 2, None), true),
            (layer("/b", 3, Some("x")), true),
            (layer("/b", 3, Some("y")), false),
            (layer("/b", 3, None), false),
        ] {
            assert_eq!(was.is_same(&now), same, "{now:?}");
        }
        assert!(!layer("/a", 2, None).is_same(&layer("/b", 3, None)));
    }
}

//! The limits of what ocicle writes and reads, one table.
//!
//! Whatever a reader refuses, the writer refuses too, and before the container has ended: what was
//! committed can be read again.

use anyhow::{Result, anyhow};

use crate::hint::WithHint;

/// More bytes than this no path may have.
pub const PATH_LIMIT: usize = 32 << 10;

/// Extents that one file may be cut into by its holes.
pub const EXTENT_LIMIT: usize = 1 << 14;

/// What is limited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// What the paths of all parts take in memory, with their attributes.
    Weight,
    /// The bytes of a path.
    Path,
    /// What the extended attributes of one file take, names and values.
    Attributes,
    /// The bytes of the manifest.
    Manifest,
    /// The parts of a checkpoint.
    Parts,
    /// The layers of a part; whoever comes near starts again with a full one.
    Layers,
}

impl Limit {
    /// All of them, with the names that the tests give them.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Weight, "weight"),
        (Self::Path, "path"),
        (Self::Attributes, "attributes"),
        (Self::Manifest, "manifest"),
        (Self::Parts, "parts"),
        (Self::Layers, "layers"),
    ];

    /// The limit itself.
    pub fn value(self) -> u64 {
        self.in_tests().unwrap_or(match self {
            Self::Weight => 512 << 20,
            Self::Path => PATH_LIMIT as u64,
            Self::Attributes => 1 << 20,
            Self::Manifest => 32 << 20,
            Self::Parts => 256,
            Self::Layers => 1000,
        })
    }

    /// Tests set smaller ones: `OCICLE_LIMITS=weight=10000,parts=1`.
    #[cfg(feature = "fault-points")]
    fn in_tests(self) -> Option<u64> {
        static SET: std::sync::OnceLock<Vec<(Limit, u64)>> = std::sync::OnceLock::new();
        let read = || {
            let set = std::env::var("OCICLE_LIMITS").unwrap_or_default();
            let limit = |name| Self::ALL.into_iter().find(|(_, known)| *known == name);
            set.split(',')
                .filter_map(|one| one.split_once('='))
                .filter_map(|(name, value)| Some((limit(name)?.0, value.parse().ok()?)))
                .collect()
        };
        let (_, value) = SET.get_or_init(read).iter().find(|(limit, _)| *limit == self)?;
        Some(*value)
    }

    #[cfg(not(feature = "fault-points"))]
    #[expect(clippy::unused_self, reason = "there are no others in a build for use")]
    fn in_tests(self) -> Option<u64> {
        None
    }
}

/// What paths take in memory, in bytes: of their number, names and attributes, and the same in the
/// walk of a container, in the index and at a restore.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(pub u64);

impl std::ops::Add for Weight {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// Refuses more paths than there may be.
pub fn ensure_weight(weight: Weight) -> Result<()> {
    let limit = Limit::Weight.value();
    if weight.0 <= limit {
        return Ok(());
    }
    Err(anyhow!("its files have more names and attributes than fit into {}", shown(limit)).hint(
        "some million files are: keep them on a volume that is not part of it (--volumes), or in \
         the image",
    ))
}

/// Refuses more of something than there may be.
pub fn ensure(limit: Limit, count: u64, what: &str) -> Result<()> {
    let most = limit.value();
    anyhow::ensure!(count <= most, "{what} more than {most}");
    Ok(())
}

fn shown(bytes: u64) -> String {
    match bytes >> 20 {
        0 => format!("{bytes} bytes"),
        mebibytes => format!("{mebibytes} MiB"),
    }
}

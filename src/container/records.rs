//! What engines write of their containers.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

/// The largest file of an engine's that is read; real ones have kilobytes for each container.
const LIMIT: u64 = 64 << 20;

/// A file that somebody else writes, if it is there and of a size that can be.
pub fn read_small(path: &Path) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    let read = File::open(path).ok()?.take(LIMIT + 1).read_to_end(&mut text).ok()?;
    (read as u64 <= LIMIT).then_some(text)
}

/// Such a file with JSON.
pub fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    let text = read_small(path)?;
    match serde_json::from_slice(&text) {
        Ok(value) => Some(value),
        Err(error) => {
            tracing::warn!("reading {}: {error}", path.display());
            None
        }
    }
}

/// A container of containers/storage, which podman, CRI-O and buildah share.
#[derive(Debug, Deserialize)]
pub struct StoredContainer {
    /// Its identifier.
    pub id: String,
    /// Its names there.
    #[serde(default)]
    pub names: Vec<String>,
    /// The identifier of its image.
    #[serde(default)]
    pub image: String,
    /// JSON in JSON.
    #[serde(default)]
    metadata: String,
}

/// What podman and CRI-O add. buildah's working containers have other fields.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct Metadata {
    /// The container's name.
    pub name: Option<String>,
    /// The image's.
    pub image_name: Option<String>,
    /// CRI-O's: the pod.
    pub pod_name: Option<String>,
    /// CRI-O's: the container's name in it.
    pub container_name: Option<String>,
}

impl StoredContainer {
    /// What its engine added.
    pub fn metadata(&self) -> Metadata {
        serde_json::from_str(&self.metadata).unwrap_or_default()
    }
}

/// The containers whose directories are in this one, `overlay-containers` or the like.
pub fn stored(directory: &Path) -> Vec<StoredContainer> {
    ["containers.json", "volatile-containers.json"]
        .iter()
        .filter_map(|list| read_json::<Vec<StoredContainer>>(&directory.join(list)))
        .flatten()
        .collect()
}

/// docker's `config.v2.json` (moby, `container.CommonContainer`).
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerContainer {
    /// Its identifier.
    #[serde(rename = "ID")]
    pub id: String,
    /// Its name, behind a slash.
    #[serde(default)]
    name: String,
    /// The identifier of its image.
    #[serde(default)]
    pub image: String,
    /// What it was made with.
    #[serde(default)]
    pub config: DockerConfig,
}

/// docker's `container.Config`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerConfig {
    /// The image, as its user called it.
    #[serde(default)]
    pub image: String,
}

impl DockerContainer {
    /// Its name, where it has one.
    pub fn name(&self) -> Option<&str> {
        Some(self.name.trim_start_matches('/')).filter(|name| !name.is_empty())
    }
}

/// The container that has this directory.
pub fn docker(directory: &Path) -> Option<DockerContainer> {
    read_json(&directory.join("config.v2.json"))
}

//! What engines write of their containers.

use std::path::Path;

use serde::Deserialize;

use crate::foreign::{Reader, Unreadable};

/// JSON that somebody keeps; `None` where there is none.
///
/// # Errors
/// When it cannot be read, or is no such JSON.
pub fn read_json<T: for<'de> Deserialize<'de>>(
    reader: &Reader,
    path: &Path,
) -> Result<Option<T>, Unreadable> {
    let Some(text) = reader.read(path)? else { return Ok(None) };
    Ok(Some(serde_json::from_slice(&text).map_err(std::io::Error::from)?))
}

/// The same in a place that root has named; what cannot be read is warned of.
pub fn read_own<T: for<'de> Deserialize<'de>>(path: &Path) -> Option<T> {
    read_json(&Reader::of_root(), path).unwrap_or_else(|error| {
        tracing::warn!("reading {}: {error}", path.display());
        None
    })
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

/// The lists of containers whose directories are in this one, `overlay-containers` or the like.
pub const LISTS: [&str; 2] = ["containers.json", "volatile-containers.json"];

/// The containers in both of them.
pub fn stored(directory: &Path) -> Vec<StoredContainer> {
    let lists = LISTS.iter().map(|list| read_own::<Vec<StoredContainer>>(&directory.join(list)));
    lists.flatten().flatten().collect()
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
    read_own(&directory.join("config.v2.json"))
}

//! Where a checkpoint comes from, as the engines' documents say.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::gather::{Gathered, Layer};
use crate::bytes::ByteString;
use crate::container::annotations::OF_CHECKPOINTS;
use crate::container::{Engine, annotations};
use crate::store::manifest::Manifest;

/// The container of a checkpoint, and who made it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Provenance {
    /// The container's name.
    pub container: Option<ByteString>,
    /// Its identifier, where that is another.
    pub id: Option<ByteString>,
    /// The pod it was in.
    pub pod: Option<ByteString>,
    /// The engine.
    pub engine: Option<ByteString>,
    /// The engine's version.
    pub engine_version: Option<ByteString>,
    /// The image that the container was made of.
    pub image: Option<ByteString>,
    /// The name of the image that holds the checkpoint.
    pub reference: Option<ByteString>,
    /// When it was made.
    pub created: Option<ByteString>,
    /// The runtime and its version.
    pub runtime: Option<ByteString>,
    /// CRIU's version.
    pub criu: Option<ByteString>,
    /// The kernel.
    pub kernel: Option<ByteString>,
}

/// What podman and CRI-O write as `config.dump`, as far as it is told.
#[derive(Default, Deserialize)]
struct ConfigDump {
    id: Option<String>,
    name: Option<String>,
    #[serde(rename = "rootfsImageName")]
    image: Option<String>,
    runtime: Option<String>,
    #[serde(rename = "checkpointedTime")]
    created: Option<String>,
}

/// An OCI configuration: podman's `spec.dump`.
#[derive(Default, Deserialize)]
struct SpecDump {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// The manifest of an OCI image, or an index of some.
#[derive(Default, Deserialize)]
struct ImageManifest {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// An entry of the `manifest.json` of an archive of docker's form.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

impl Provenance {
    /// What an image says of the checkpoint in one of its layers.
    pub(super) fn of_image(image: &Gathered, layer: &Layer) -> Self {
        let digest = digest_of(&layer.path);
        let manifests = image.documents().filter_map(|(path, text)| {
            let manifest: ImageManifest = serde_json::from_slice(text).ok()?;
            Some((path, manifest))
        });
        let own = manifests
            .filter(|(_, manifest)| manifest.layers.iter().any(|one| has_digest(one, digest)))
            .last();
        let mut origin = Self { reference: saved_as(image, digest), ..Self::default() };
        if let Some((path, manifest)) = own {
            origin.annotated(&manifest.annotations);
            origin.reference = origin.reference.or_else(|| tagged(image, digest_of(path)));
        }
        origin
    }

    /// What an image's manifest says of the checkpoint in its layer.
    pub(super) fn of_manifest(reference: &str, manifest: &[u8]) -> Self {
        let manifest: ImageManifest = serde_json::from_slice(manifest).unwrap_or_default();
        let mut origin = Self { reference: Some(reference.into()), ..Self::default() };
        origin.annotated(&manifest.annotations);
        origin
    }

    /// What the annotations of checkpoints say: those of each writer begin otherwise, and have mostly
    /// the same names behind that.
    fn annotated(&mut self, annotations: &BTreeMap<String, String>) {
        for (name, value) in annotations {
            let name = OF_CHECKPOINTS.iter().find_map(|prefix| name.strip_prefix(prefix));
            let field = match name {
                Some("name" | "container.name") => &mut self.container,
                Some("pod.name") => &mut self.pod,
                Some("rootfsImageName") => &mut self.image,
                Some("engine.name") => &mut self.engine,
                Some("engine.version") => &mut self.engine_version,
                Some("podman.version") => {
                    self.engine = Some(Engine::Podman.as_str().into());
                    &mut self.engine_version
                }
                // Several lines: its `--version`.
                Some("runtime.version") => {
                    self.runtime = value.lines().next().map(ByteString::from);
                    continue;
                }
                Some("criu.version") => &mut self.criu,
                Some("host.kernel") => &mut self.kernel,
                _ => continue,
            };
            *field = Some(value.as_str().into());
        }
    }

    /// Adds what the documents beside the images say, and ocicle's manifest.
    pub(super) fn or_of(mut self, gathered: &Gathered, manifest: Option<&Manifest>) -> Self {
        let config: ConfigDump = document(gathered, "config.dump");
        let spec: SpecDump = document(gathered, "spec.dump");
        let bundle = manifest.map(|manifest| manifest.container.bundle.as_path());
        let engine = engine_of(&spec.annotations).or_else(|| bundle.map(Engine::of_bundle));
        let said = |names: &[&str]| {
            let value = |name: &str| spec.annotations.get(name).cloned();
            annotations::first(names, value).map(ByteString::from)
        };

        or(&mut self.engine, engine.map(|engine| engine.as_str().into()));
        or(&mut self.container, config.name.map(ByteString::from));
        or(&mut self.container, manifest.map(|m| m.container.id.as_str().into()));
        or(&mut self.id, config.id.map(ByteString::from));
        or(&mut self.image, config.image.map(ByteString::from));
        or(&mut self.image, said(&annotations::IMAGE));
        or(&mut self.pod, said(&annotations::POD));
        or(&mut self.created, manifest.map(|m| m.created.to_string().into()));
        or(&mut self.created, config.created.map(ByteString::from));
        or(&mut self.runtime, config.runtime.map(ByteString::from));
        or(&mut self.kernel, manifest.map(|m| m.programs.kernel.as_str().into()));
        // podman writes into an image what its default runtime is, not the container's.
        if let Some(manifest) = manifest {
            self.runtime = Some(manifest.programs.runtime.as_str().into());
            self.criu = Some(manifest.programs.criu.as_str().into());
        }
        self
    }
}

fn or(field: &mut Option<ByteString>, other: Option<ByteString>) {
    if field.is_none() {
        *field = other;
    }
}

fn engine_of(annotations: &BTreeMap<String, String>) -> Option<Engine> {
    Engine::of_annotations(annotations.iter().map(|(name, value)| (name.as_str(), value.as_str())))
}

/// A document that may be missing, or be no such document.
fn document<T: Default + for<'de> Deserialize<'de>>(gathered: &Gathered, name: &str) -> T {
    let text = gathered.near_images(name);
    text.and_then(|text| serde_json::from_slice(text).ok()).unwrap_or_default()
}

/// The digest that names a blob: `blobs/sha256/DIGEST`, `DIGEST.tar`, `DIGEST/layer.tar`.
fn digest_of(path: &str) -> &str {
    let path = path.strip_suffix("/layer.tar").unwrap_or(path);
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split_once('.').map_or(name, |(stem, _)| stem)
}

fn has_digest(descriptor: &Descriptor, digest: &str) -> bool {
    descriptor.digest.rsplit(':').next() == Some(digest)
}

/// The name that an index gives to a manifest.
fn tagged(image: &Gathered, manifest: &str) -> Option<ByteString> {
    let index: ImageManifest = serde_json::from_slice(image.file("index.json")?).ok()?;
    let found = index.manifests.iter().find(|one| has_digest(one, manifest))?;
    found.annotations.get("org.opencontainers.image.ref.name").map(|name| name.as_str().into())
}

/// The name under which an archive of docker's form has an image with that layer.
fn saved_as(image: &Gathered, layer: &str) -> Option<ByteString> {
    let saved: Vec<Saved> = serde_json::from_slice(image.file("manifest.json")?).ok()?;
    let found =
        saved.into_iter().find(|one| one.layers.iter().any(|path| digest_of(path) == layer))?;
    found.repo_tags?.into_iter().next().map(ByteString::from)
}

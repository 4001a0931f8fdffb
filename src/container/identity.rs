//! What a container is called: by its runtime, by its engine, and after its image.
//!
//! An engine gives the runtime an identifier of its own making. The name that a user knows, and
//! the image, are in the engine's state, or in annotations that the engine makes:
//!
//! | engine | where |
//! |---|---|
//! | podman | `containers.json` or `volatile-containers.json`, two directories above the bundle or above what it mounts at `/run/.containerenv` (containers/storage) |
//! | docker | `config.v2.json` beside what it mounts at `/etc/hostname` (moby, `container.CommonContainer`) |
//! | containerd and CRI-O for Kubernetes, nerdctl | annotations |

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::records::{self, DockerContainer, StoredContainer};
use super::{Bundle, annotations};
use crate::glob;

/// What a container is called.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// By the runtime.
    pub id: String,
    /// By its engine: its name, and in a pod `NAMESPACE/POD/NAME` too.
    pub names: Vec<String>,
    /// The image that it is made of, in every form in which it can be named.
    pub images: Vec<String>,
}

/// The fewest digits by which engines let an identifier be abbreviated everywhere.
const SHORT: usize = 12;

impl Identity {
    /// Finds out what the container of a bundle is called.
    pub fn of(id: &str, bundle: &Bundle) -> Self {
        let called = storage(id, bundle).or_else(|| docker(id, bundle));
        let called = called.unwrap_or_else(|| by_annotations(bundle));
        let images = called.images.iter().flat_map(|image| forms(image)).collect();
        Self { id: id.to_owned(), names: called.names, images }
    }

    /// Whether somebody means this container who says `name`: its name, its identifier, or the
    /// start of an engine's identifier.
    pub fn is_called(&self, name: &str) -> bool {
        let is_engines = self.id.len() == 64 && self.id.bytes().all(|b| b.is_ascii_hexdigit());
        let is_short = is_engines && name.len() >= SHORT && self.id.starts_with(name);
        self.id == name || is_short || self.names.iter().any(|known| known == name)
    }

    /// Whether its identifier or a name of it has this form.
    pub fn has_name_like(&self, pattern: &str) -> bool {
        let mut all = self.names.iter().chain([&self.id]);
        all.any(|name| glob::matches(pattern.as_bytes(), name.as_bytes()))
    }

    /// Whether what is for containers and images of these forms is for this one; any form if unsaid.
    pub fn is_meant(&self, container: Option<&str>, image: Option<&str>) -> bool {
        container.is_none_or(|pattern| self.has_name_like(pattern))
            && image.is_none_or(|pattern| self.has_image_like(pattern))
    }

    /// Whether its image has a name of this form.
    pub fn has_image_like(&self, pattern: &str) -> bool {
        self.images.iter().any(|image| glob::matches(pattern.as_bytes(), image.as_bytes()))
    }
}

/// What an engine says.
#[derive(Debug, Default, PartialEq, Eq)]
struct Called {
    names: Vec<String>,
    images: Vec<String>,
}

/// podman, and whatever else keeps its containers with containers/storage.
fn storage(id: &str, bundle: &Bundle) -> Option<Called> {
    let mounted = source_of(bundle, "/run/.containerenv");
    let userdata = [Some(bundle.directory.as_path()), mounted.as_deref().and_then(Path::parent)];
    userdata.into_iter().flatten().find_map(|userdata| {
        let all = records::stored(userdata.parent()?.parent()?);
        all.into_iter().find(|stored| stored.id == id).map(Called::from)
    })
}

impl From<StoredContainer> for Called {
    fn from(stored: StoredContainer) -> Self {
        let image_name = stored.metadata().image_name.unwrap_or_default();
        Self { names: stored.names, images: said([image_name, stored.image]) }
    }
}

fn docker(id: &str, bundle: &Bundle) -> Option<Called> {
    let hostname = source_of(bundle, "/etc/hostname")?;
    let directory = hostname.parent().filter(|directory| directory.ends_with(id))?;
    records::docker(directory).map(Called::from)
}

impl From<DockerContainer> for Called {
    fn from(container: DockerContainer) -> Self {
        let names = container.name().map(str::to_owned).into_iter().collect();
        Self { names, images: said([container.config.image, container.image]) }
    }
}

fn by_annotations(bundle: &Bundle) -> Called {
    let value = |name: &str| bundle.spec.annotations().as_ref()?.get(name).cloned();
    let first = |names: &[&str]| annotations::first(names, value);
    let name = first(&annotations::NAME);
    let in_pod = || {
        let (namespace, pod) = (first(&annotations::NAMESPACE)?, first(&annotations::POD)?);
        Some(format!("{namespace}/{pod}/{}", name.clone()?))
    };
    Called {
        names: name.clone().into_iter().chain(in_pod()).collect(),
        images: annotations::IMAGE.iter().filter_map(|name| value(name)).collect(),
    }
}

fn said<const N: usize>(words: [String; N]) -> Vec<String> {
    words.into_iter().filter(|word| !word.is_empty()).collect()
}

/// Where a file that an engine mounts lies on the host.
fn source_of(bundle: &Bundle, destination: &str) -> Option<PathBuf> {
    let mounts = bundle.spec.mounts().as_ref()?;
    let mount = mounts.iter().find(|mount| mount.destination() == Path::new(destination))?;
    mount.source().clone()
}

/// The forms of a reference: `docker.io/library/nginx:1` is `docker.io/library/nginx`, `nginx:1`
/// and `nginx` too. An engine writes the one form or the other, and so does who writes a pattern.
fn forms(image: &str) -> Vec<String> {
    let bare = image.split('@').next().unwrap_or(image);
    let last = bare.rfind('/').map_or(0, |slash| slash + 1);
    let untagged = bare[last..].find(':').map_or(bare, |colon| &bare[..last + colon]);
    let mut all = Vec::new();
    for form in [image, bare, untagged] {
        let short = ["docker.io/library/", "docker.io/", "localhost/"]
            .iter()
            .find_map(|prefix| form.strip_prefix(prefix));
        all.extend([Some(form), short].into_iter().flatten().map(str::to_owned));
    }
    all.sort();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use oci_spec::runtime::Spec;

    #[test]
    fn an_image_has_several_forms() {
        for (image, expected) in [
            (
                "docker.io/library/nginx:1",
                &["docker.io/library/nginx", "docker.io/library/nginx:1", "nginx", "nginx:1"][..],
            ),
            ("nginx", &["nginx"]),
            ("localhost:5000/a/b", &["localhost:5000/a/b"]),
            ("quay.io/a/b:2@sha256:0", &["quay.io/a/b", "quay.io/a/b:2", "quay.io/a/b:2@sha256:0"]),
        ] {
            assert_eq!(forms(image), expected);
        }
    }

    #[test]
    fn what_podman_keeps() {
        let directory = tempfile::tempdir().unwrap();
        let userdata = directory.path().join("b/userdata");
        let bundle =
            Bundle { directory: userdata.clone(), rootfs: userdata, spec: Spec::default() };
        let list = directory.path().join("volatile-containers.json");
        let text = br#"[{"id":"a","names":["x"]},{"id":"b","names":["web"],"image":"84a0",
            "metadata":"{\"image-name\":\"localhost/counter:latest\",\"name\":\"web\"}"}]"#;
        std::fs::write(&list, text).unwrap();
        let called = storage("b", &bundle).unwrap();
        assert_eq!(called.names, ["web"]);
        assert_eq!(called.images, ["localhost/counter:latest", "84a0"]);
        assert_eq!(storage("c", &bundle), None);
        std::fs::write(&list, "[{").unwrap();
        assert_eq!(storage("a", &bundle), None);
    }

    #[test]
    fn what_docker_keeps() {
        let text =
            br#"{"ID":"b","Name":"/web","Image":"sha256:84a0","Config":{"Image":"nginx:1"}}"#;
        let container: DockerContainer = serde_json::from_slice(text).unwrap();
        assert_eq!(
            Called::from(container),
            Called {
                names: vec!["web".to_owned()],
                images: vec!["nginx:1".to_owned(), "sha256:84a0".to_owned()],
            }
        );
    }

    fn with_annotations(annotations: &[(&str, &str)]) -> Identity {
        let mut spec = Spec::default();
        let map = annotations.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        spec.set_annotations(Some(map.collect()));
        let bundle = Bundle { directory: "/nowhere".into(), rootfs: "/nowhere".into(), spec };
        Identity::of("7f", &bundle)
    }

    #[test]
    fn what_kubernetes_says() {
        let identity = with_annotations(&[
            ("io.kubernetes.cri.container-name", "nginx"),
            ("io.kubernetes.cri.sandbox-name", "web-1"),
            ("io.kubernetes.cri.sandbox-namespace", "shop"),
            ("io.kubernetes.cri.image-name", "docker.io/library/nginx:1"),
        ]);
        assert_eq!(identity.names, ["nginx", "shop/web-1/nginx"]);
        assert!(identity.has_name_like("shop/web-*/nginx") && identity.has_name_like("7f"));
        assert!(identity.has_image_like("nginx:*") && !identity.has_image_like("nginx:2"));
        assert_eq!(with_annotations(&[]).names, Vec::<String>::new());
    }

    #[test]
    fn an_identifier_may_be_cut_as_engines_cut_it() {
        let id = "ab".repeat(32);
        let identity = Identity { id: id.clone(), names: vec!["web".into()], images: Vec::new() };
        assert!(identity.is_called("web") && identity.is_called(&id));
        assert!(identity.is_called(&id[..12]));
        assert!(!identity.is_called(&id[..11]) && !identity.is_called("we"));
        let plain = Identity { id: "a-name-of-runc-1".into(), ..Identity::default() };
        assert!(!plain.is_called("a-name-of-runc"));
    }
}

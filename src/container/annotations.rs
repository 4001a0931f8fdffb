//! The annotations in which engines say what a container is: containerd's pkg/cri/annotations, cri-o's
//! pkg/annotations, nerdctl's pkg/labels.

/// Its name.
pub const NAME: [&str; 3] =
    ["io.kubernetes.cri.container-name", "io.kubernetes.container.name", "nerdctl/name"];

/// Its image; CRI-O says the name that was asked for, and what that was resolved to.
pub const IMAGE: [&str; 3] =
    ["io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName", "io.kubernetes.cri-o.Image"];

/// Its pod.
pub const POD: [&str; 2] = ["io.kubernetes.cri.sandbox-name", "io.kubernetes.pod.name"];

/// The namespace of its pod.
pub const NAMESPACE: [&str; 2] =
    ["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.pod.namespace"];

/// Which engine made it: podman and CRI-O.
pub const MANAGER: &str = "io.container.manager";

/// What it is to a pod: of containerd alone.
pub const CRI_TYPE: &str = "io.kubernetes.cri.container-type";

/// What the names of podman (`libpod/define/annotations.go`) and of checkpointctl begin with, in the
/// manifest of an image that has a checkpoint; other engines follow the latter.
pub const OF_CHECKPOINTS: [&str; 2] = ["io.podman.annotations.checkpoint.", "org.criu.checkpoint."];

/// What the first of these annotations says that is there and says anything.
pub fn first(names: &[&str], value: impl Fn(&str) -> Option<String>) -> Option<String> {
    names.iter().find_map(|name| value(name).filter(|text| !text.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_annotation_says_nothing() {
        let value = |name: &str| match name {
            "io.kubernetes.cri.container-name" => Some(String::new()),
            "nerdctl/name" => Some("web".to_owned()),
            _ => None,
        };
        assert_eq!(first(&NAME, value).as_deref(), Some("web"));
        assert_eq!(first(&POD, value), None);
    }
}

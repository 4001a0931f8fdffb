//! Which engine a container belongs to.

use std::path::Path;

use serde::Serialize;

use super::annotations::{CRI_TYPE, MANAGER};

/// What made a container and looks after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// podman.
    Podman,
    /// CRI-O.
    CriO,
    /// docker, above its containerd.
    Docker,
    /// containerd, for a client of its own or for Kubernetes.
    Containerd,
    /// Nobody but the OCI runtime.
    Runtime,
}

impl Engine {
    /// The name it is known by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Podman => "podman",
            Self::CriO => "cri-o",
            Self::Docker => "docker",
            Self::Containerd => "containerd",
            Self::Runtime => "runtime",
        }
    }

    /// Whether it looks after its containers: it knows of each whether it runs, and starts it again.
    pub fn looks_after_them(self) -> bool {
        self != Self::Runtime
    }

    /// What its user types for a checkpoint of a container that is called so.
    pub fn checkpoint_command(self, name: &str, namespace: Option<&str>) -> String {
        match (self, namespace) {
            (Self::Podman, _) => format!("podman container checkpoint {name}"),
            (Self::Docker, _) => format!("docker checkpoint create {name} c1"),
            (Self::CriO, _) | (Self::Containerd, Some("k8s.io")) => {
                format!("crictl checkpoint --export=web.tar {name}")
            }
            (Self::Containerd, Some(namespace)) => {
                format!("ctr --namespace {namespace} tasks checkpoint {name}")
            }
            (Self::Containerd, None) => format!("ctr tasks checkpoint {name}"),
            (Self::Runtime, _) => format!("ocicle checkpoint {name}"),
        }
    }

    /// What its user types to go on from that, where that is one command.
    pub fn restore_command(self, name: &str) -> Option<String> {
        match self {
            Self::Podman => Some(format!("podman container restore {name}")),
            Self::Docker => Some(format!("docker start --checkpoint c1 {name}")),
            Self::Runtime => Some(format!("ocicle restore {name}")),
            Self::CriO | Self::Containerd => None,
        }
    }

    /// The engine that says it of a container in its annotations: `io.container.manager` of podman
    /// and CRI-O, or those of containerd's CRI.
    pub fn of_annotations<'a>(
        annotations: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Option<Self> {
        annotations.into_iter().find_map(|(name, value)| match (name, value) {
            (MANAGER, "libpod") => Some(Self::Podman),
            (MANAGER, "cri-o") => Some(Self::CriO),
            (CRI_TYPE, _) => Some(Self::Containerd),
            _ => None,
        })
    }

    /// The engine that keeps bundles there: `…/overlay-containers/ID/userdata` is containers/storage
    /// of podman (and of CRI-O, which says so in its annotations); below containerd a bundle's path
    /// has the namespace, and docker's is `moby`.
    pub fn of_bundle(bundle: &Path) -> Self {
        match task_of(bundle) {
            Some(("moby", _)) => Self::Docker,
            Some(_) => Self::Containerd,
            None if names(bundle).any(|name| name.ends_with("-containers")) => Self::Podman,
            None => Self::Runtime,
        }
    }

    /// containerd's namespace, of a bundle of its.
    pub fn namespace_of(bundle: &Path) -> Option<&str> {
        task_of(bundle).map(|(namespace, _)| namespace)
    }
}

/// Namespace and container of `…/io.containerd.runtime.v2.task/NAMESPACE/ID`.
fn task_of(bundle: &Path) -> Option<(&str, &str)> {
    let mut names = names(bundle).skip_while(|name| !name.starts_with("io.containerd.runtime."));
    names.next()?;
    names.next().zip(names.next())
}

fn names(path: &Path) -> impl Iterator<Item = &str> {
    path.iter().filter_map(|name| name.to_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_by_their_bundles() {
        let engine = |path: &str| Engine::of_bundle(Path::new(path));
        assert_eq!(
            engine("/var/lib/containers/storage/overlay-containers/ab/userdata"),
            Engine::Podman
        );
        let tasks = "/run/containerd/io.containerd.runtime.v2.task";
        assert_eq!(engine(&format!("{tasks}/moby/ab")), Engine::Docker);
        assert_eq!(engine(&format!("{tasks}/default/web")), Engine::Containerd);
        assert_eq!(engine(tasks), Engine::Runtime);
        assert_eq!(engine("/srv/web"), Engine::Runtime);
        let path = format!("{tasks}/k8s.io/web");
        assert_eq!(Engine::namespace_of(Path::new(&path)), Some("k8s.io"));
    }

    #[test]
    fn annotations_say_more() {
        assert_eq!(
            Engine::of_annotations([("a", "b"), ("io.container.manager", "cri-o")]),
            Some(Engine::CriO)
        );
        assert_eq!(Engine::of_annotations([("io.container.manager", "other")]), None);
    }
}

//! What runc and crun remember of their containers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Checkpoint, Listed, directories_in};
use crate::bytes::ByteString;
use crate::container::records::read_json;
use crate::container::{Engine, annotations, ensure_name, freezer_of_process};
use crate::freezer::FreezerState;
use crate::sys::process::start_time;

/// Whether a container runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum ContainerStatus {
    /// Its first process waits for `start`.
    Created,
    /// It runs.
    Running,
    /// Its engine or somebody else has frozen it.
    Paused,
    /// It has no process.
    Stopped,
}

/// runc's `state.json` (libcontainer's `State`) and crun's `status`, as far as we need them.
#[derive(Deserialize)]
struct State {
    #[serde(alias = "pid", default)]
    init_process_pid: i32,
    #[serde(alias = "process-start-time", default)]
    init_process_start: u64,
    /// crun's.
    #[serde(default)]
    bundle: Option<PathBuf>,
    #[serde(default)]
    config: Config,
}

/// runc keeps the bundle as a label.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default)]
    labels: Vec<String>,
}

/// What a bundle's `config.json` says of its engine.
#[derive(Default, Deserialize)]
struct Bundle {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Every container in the state directories of runtimes.
pub(super) fn read(named: Option<&Path>) -> Vec<Listed> {
    let mut found = Vec::new();
    for (root, user) in roots(named) {
        for directory in directories_in(&root) {
            found.extend(container(&directory, &root, user));
        }
    }
    found
}

/// Where runtimes keep their states: by themselves and below podman and CRI-O in `/run/runc` and
/// `/run/crun`; below containerd in a directory for each namespace, below docker also for each
/// runtime; below rootless podman in the user's own.
fn roots(named: Option<&Path>) -> Vec<(PathBuf, Option<u32>)> {
    let mut roots: Vec<(PathBuf, Option<u32>)> =
        named.into_iter().map(|root| (root.to_owned(), None)).collect();
    for root in ["/run/runc", "/run/crun"] {
        roots.push((root.into(), None));
    }
    let docker = directories_in(Path::new("/run/docker")).into_iter().filter(|directory| {
        directory.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"runtime-"))
    });
    for above in docker.chain([PathBuf::from("/run/containerd/runc")]) {
        roots.extend(directories_in(&above).into_iter().map(|root| (root, None)));
    }
    for home in directories_in(Path::new("/run/user")) {
        let user = home.file_name().and_then(|name| name.to_str()?.parse().ok());
        roots.extend(["runc", "crun"].map(|name| (home.join(name), user)));
    }
    roots
}

fn container(directory: &Path, root: &Path, user: Option<u32>) -> Option<Listed> {
    let id = directory.file_name()?.to_str()?.to_owned();
    ensure_name(&id).ok()?;
    let (runtime, state) = ["state.json", "status"]
        .iter()
        .zip(["runc", "crun"])
        .find_map(|(name, runtime)| Some((runtime, read_json::<State>(&directory.join(name))?)))?;
    let alive = state.is_alive().then_some(state.init_process_pid);
    let frozen = alive.is_some_and(is_frozen);
    let status = match alive {
        None => ContainerStatus::Stopped,
        // Where `start` lets the first process go on.
        Some(_) if directory.join("exec.fifo").exists() => ContainerStatus::Created,
        Some(_) if frozen => ContainerStatus::Paused,
        Some(_) => ContainerStatus::Running,
    };
    let bundle = state.bundle();
    let says: Bundle =
        bundle.as_ref().and_then(|path| read_json(&path.join("config.json"))).unwrap_or_default();
    let said = |names: &[&str]| {
        let value = |name: &str| says.annotations.get(name).cloned();
        annotations::first(names, value).map(|text| ByteString::from(text.as_str()))
    };
    let pairs = says.annotations.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let engine = bundle.as_deref().map_or(Engine::Runtime, Engine::of_bundle);
    Some(Listed {
        engine: Engine::of_annotations(pairs).unwrap_or(engine),
        name: said(&annotations::NAME),
        namespace: bundle.as_deref().and_then(Engine::namespace_of).map(ByteString::from),
        pod: said(&annotations::POD),
        user,
        image: said(&annotations::IMAGE),
        runtime: Some(runtime),
        root: Some(root.to_owned()),
        checkpoints: bundle.as_deref().and_then(in_place).into_iter().collect(),
        bundle,
        status,
        frozen,
        pid: alive,
        id,
    })
}

impl State {
    /// Whether the first process is still the one that the runtime started.
    fn is_alive(&self) -> bool {
        self.init_process_pid > 0
            && start_time(self.init_process_pid).is_some_and(|start| {
                self.init_process_start == 0 || start == self.init_process_start
            })
    }

    fn bundle(&self) -> Option<PathBuf> {
        let label = || self.config.labels.iter().find_map(|label| label.strip_prefix("bundle="));
        self.bundle.clone().or_else(|| label().map(PathBuf::from))
    }
}

fn is_frozen(pid: i32) -> bool {
    let state = freezer_of_process(pid).and_then(|freezer| freezer.state()).ok().flatten();
    matches!(state, Some(FreezerState::Frozen | FreezerState::FrozenFromAbove))
}

/// podman and CRI-O keep a checkpoint that was not exported beside the bundle.
pub(super) fn in_place(bundle: &Path) -> Option<Checkpoint> {
    let path = bundle.join("checkpoint");
    path.join("inventory.img").exists().then(|| Checkpoint { name: "in place".into(), path })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_runtimes_are_read() {
        let runc = r#"{"id":"a","init_process_pid":7,"init_process_start":9,"created":"x",
            "config":{"rootfs":"/r","labels":["a=b","bundle=/b"]}}"#;
        let crun =
            r#"{"pid":7,"process-start-time":9,"bundle":"/b","created":"x","detached":true}"#;
        for text in [runc, crun] {
            let state: State = serde_json::from_str(text).unwrap();
            assert_eq!((state.init_process_pid, state.init_process_start), (7, 9), "{text}");
            assert_eq!(state.bundle().unwrap(), Path::new("/b"), "{text}");
        }
    }

    #[test]
    fn a_number_that_was_given_again_is_another_process() {
        let ours = std::process::id().cast_signed();
        let start = start_time(ours).unwrap();
        let alive = |pid, start| {
            State {
                init_process_pid: pid,
                init_process_start: start,
                bundle: None,
                config: Config::default(),
            }
            .is_alive()
        };
        assert!(alive(ours, start));
        assert!(!alive(ours, start + 1));
        assert!(!alive(0, 0));
    }
}

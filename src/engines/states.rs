//! What runc and crun remember of their containers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{Checkpoint, Listed, Seen, directories_in, user_directory, users};
use crate::bytes::ByteString;
use crate::container::records::read_json;
use crate::container::{Engine, annotations, ensure_name, freezer_of_process};
use crate::foreign::Reader;
use crate::freezer::FreezerState;
use crate::proc::start_time;
use crate::sys::pid::Pid;

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
    /// What is kept of it cannot be read.
    Unreadable,
}

/// runc's `state.json` (libcontainer's `State`) and crun's `status`, as far as we need them.
#[derive(Deserialize)]
struct State {
    #[serde(alias = "pid", default)]
    init_process_pid: Pid,
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
pub(super) fn read(named: Option<&Path>) -> Seen<Listed> {
    let mut seen = Seen::default();
    for (root, reader) in roots(named) {
        let all = seen.or_row(&reader, &root, reader.directories(&root)).unwrap_or_default();
        seen.found.extend(all.iter().filter_map(|one| container(one, &root, &reader)));
    }
    seen
}

/// Where runtimes keep their states: by themselves and below podman and CRI-O in `/run/runc` and
/// `/run/crun`; below containerd in a directory for each namespace, below docker also for each
/// runtime; below rootless podman in the user's own.
fn roots(named: Option<&Path>) -> Vec<(PathBuf, Reader)> {
    let own = |root: PathBuf| (root, Reader::of_root());
    let mut roots: Vec<(PathBuf, Reader)> =
        named.into_iter().map(|root| own(root.into())).collect();
    roots.extend(["/run/runc", "/run/crun"].map(|root| own(root.into())));
    let docker = directories_in(Path::new("/run/docker")).into_iter().filter(|directory| {
        directory.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"runtime-"))
    });
    for above in docker.chain([PathBuf::from("/run/containerd/runc")]) {
        roots.extend(directories_in(&above).into_iter().map(own));
    }
    for user in users() {
        let (home, reader) = (user_directory(user), Reader::of_user(user));
        roots.extend(["runc", "crun"].map(|name| (home.join(name), reader.clone())));
    }
    roots
}

fn container(directory: &Path, root: &Path, reader: &Reader) -> Option<Listed> {
    let id = directory.file_name()?.to_str()?.to_owned();
    ensure_name(&id).ok()?;
    let read = |name: &str| read_json::<State>(reader, &directory.join(name)).transpose();
    let (runtime, state) = [("runc", "state.json"), ("crun", "status")]
        .into_iter()
        .find_map(|(runtime, name)| Some((runtime, read(name)?)))?;
    let known = Listed { root: Some(root.to_owned()), ..Listed::of_runtime(id, runtime, reader) };
    Some(match state {
        Ok(state) => state.describe(known, directory, reader),
        Err(why) => {
            Listed { status: ContainerStatus::Unreadable, problem: Some(why.to_string()), ..known }
        }
    })
}

impl State {
    /// What is known of a container by its state and its bundle.
    fn describe(&self, known: Listed, directory: &Path, reader: &Reader) -> Listed {
        let alive = self.is_alive().then_some(self.init_process_pid);
        let frozen = alive.is_some_and(is_frozen);
        let status = match alive {
            None => ContainerStatus::Stopped,
            // Where `start` lets the first process go on.
            Some(_) if reader.is_there(&directory.join("exec.fifo")) => ContainerStatus::Created,
            Some(_) if frozen => ContainerStatus::Paused,
            Some(_) => ContainerStatus::Running,
        };
        let bundle = self.bundle();
        let config = |bundle: &PathBuf| read_json::<Bundle>(reader, &bundle.join("config.json"));
        let (says, problem) = match bundle.as_ref().map(config).transpose() {
            Ok(says) => (says.flatten().unwrap_or_default(), None),
            Err(why) => (Bundle::default(), Some(format!("its config.json is unreadable: {why}"))),
        };
        let pairs = says.annotations.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let engine = bundle.as_deref().map_or(Engine::Runtime, Engine::of_bundle);
        Listed {
            engine: Engine::of_annotations(pairs).unwrap_or(engine),
            name: says.first(&annotations::NAME),
            namespace: bundle.as_deref().and_then(Engine::namespace_of).map(ByteString::from),
            pod: says.first(&annotations::POD),
            image: says.first(&annotations::IMAGE),
            checkpoints: bundle.iter().filter_map(|bundle| in_place(bundle, reader)).collect(),
            bundle,
            status,
            problem,
            frozen,
            pid: alive,
            ..known
        }
    }
}

impl Bundle {
    /// The first of these annotations that is there.
    fn first(&self, names: &[&str]) -> Option<ByteString> {
        let value = |name: &str| self.annotations.get(name).cloned();
        annotations::first(names, value).map(|text| ByteString::from(text.as_str()))
    }
}

impl State {
    /// Whether the first process is still the one that the runtime started.
    fn is_alive(&self) -> bool {
        self.init_process_pid
            .exists()
            .and_then(start_time)
            .is_some_and(|start| self.init_process_start == 0 || start == self.init_process_start)
    }

    fn bundle(&self) -> Option<PathBuf> {
        let label = || self.config.labels.iter().find_map(|label| label.strip_prefix("bundle="));
        self.bundle.clone().or_else(|| label().map(PathBuf::from))
    }
}

fn is_frozen(pid: Pid) -> bool {
    let state = freezer_of_process(pid).and_then(|freezer| freezer.state()).ok().flatten();
    matches!(state, Some(FreezerState::Frozen | FreezerState::FrozenFromAbove))
}

/// podman and CRI-O keep a checkpoint that was not exported beside the bundle.
pub(super) fn in_place(bundle: &Path, reader: &Reader) -> Option<Checkpoint> {
    let path = bundle.join("checkpoint");
    reader
        .is_there(&path.join("inventory.img"))
        .then(|| Checkpoint { name: "in place".into(), path })
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
            assert_eq!((state.init_process_pid, state.init_process_start), (Pid(7), 9), "{text}");
            assert_eq!(state.bundle().unwrap(), Path::new("/b"), "{text}");
        }
    }

    #[test]
    fn a_number_that_was_given_again_is_another_process() {
        let ours = Pid::own();
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
        assert!(!alive(Pid(0), 0));
    }
}

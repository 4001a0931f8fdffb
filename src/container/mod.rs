//! A container, as its runtime, its bundle and the kernel describe it.

pub mod annotations;
mod cgroup;
mod engine;
mod file_kind;
mod identity;
mod process;
pub mod records;
pub mod shared;
mod users;
mod volumes;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};
use oci_spec::runtime::{LinuxNamespaceType, Spec};

use crate::foreign::Reader;
use crate::freezer::Freezer;
use crate::hint::WithHint;
use crate::proc::{Proc, descends_from};
use crate::runtime::{Family, Runtime};
use crate::sys::inode::DevIno;
use crate::sys::owned::ensure_roots_alone;
use crate::sys::pid::Pid;

pub use cgroup::{cgroup_version, freezer_of_process, group_name, memory_left};
pub use engine::Engine;
pub use file_kind::{FileKind, UnknownKind};
pub use identity::Identity;
pub use process::{Holder, Process};
pub use shared::Shared;
pub use users::{Ranges, Users};
pub use volumes::{Bind, Volumes};

/// A container that has processes.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub id: String,
    /// Its first process, as the host numbers it.
    pub init: Pid,
    /// Where its bundle and its root file system are.
    pub bundle: Bundle,
    /// Its control group.
    pub freezer: Freezer,
}

/// A bundle: `config.json` and what it names.
#[derive(Clone, Debug)]
pub struct Bundle {
    /// The bundle's directory.
    pub directory: PathBuf,
    /// The root file system.
    pub rootfs: PathBuf,
    /// What `config.json` says.
    pub spec: Spec,
}

impl Bundle {
    /// Reads a bundle's `config.json`.
    pub fn read(directory: &Path) -> Result<Self> {
        let directory = fs::canonicalize(directory)
            .with_context(|| format!("opening the bundle {}", directory.display()))
            .hint("it was moved or removed; a restore takes another one: --bundle DIR")?;
        let config = directory.join("config.json");
        let spec =
            read_spec(&config).with_context(|| format!("reading {}", config.display())).hint(
                "a bundle is a directory with a config.json; a restore takes another: --bundle DIR",
            )?;
        let root = spec.root().as_ref().context("config.json names no root file system")?;
        let rootfs = directory.join(root.path());
        let rootfs = fs::canonicalize(&rootfs)
            .with_context(|| format!("opening the root file system {}", rootfs.display()))
            .hint("mount it or put it back; a restore takes another bundle: --bundle DIR")?;
        Ok(Self { directory, rootfs, spec })
    }

    /// Makes sure that nobody but root can have written a bundle that somebody else names.
    ///
    /// # Errors
    /// What is not root's alone: its `config.json`, the directory, or one above.
    pub fn ensure_roots_alone(directory: &Path) -> Result<()> {
        ensure_roots_alone(&directory.join("config.json"))
            .with_context(|| {
                format!(
                    "the checkpoint names the bundle {}, and that is not root's alone",
                    directory.display()
                )
            })
            .hint(format!(
                "if its config.json is as it should be, name it: --bundle {}",
                directory.display()
            ))
    }

    /// The engine whose bundle it is.
    pub fn engine(&self) -> Engine {
        let all = self.spec.annotations().iter().flatten();
        let pairs = all.map(|(name, value)| (name.as_str(), value.as_str()));
        Engine::of_annotations(pairs).unwrap_or_else(|| Engine::of_bundle(&self.directory))
    }

    /// What is mounted into the container from outside, in the order of mounting.
    pub fn binds(&self) -> Vec<Bind> {
        self.spec.mounts().iter().flatten().filter_map(|mount| self.bind(mount)).collect()
    }

    /// What is mounted last at each place from outside: what the container sees there.
    pub fn visible_binds(&self) -> Vec<Bind> {
        let mut visible: Vec<Bind> = Vec::new();
        for bind in self.binds() {
            visible.retain(|below| below.destination != bind.destination);
            visible.push(bind);
        }
        visible
    }

    /// What an entry of `config.json` mounts from outside; `None` for a file system of its own.
    pub fn bind(&self, mount: &oci_spec::runtime::Mount) -> Option<Bind> {
        Bind::of(mount, &self.directory)
    }

    /// Whether the container cannot write its root file system.
    pub fn is_read_only(&self) -> bool {
        self.spec.root().as_ref().and_then(oci_spec::runtime::Root::readonly).unwrap_or(false)
    }

    /// Whether the container has a network that nobody else made, which has no path.
    pub fn has_own_network(&self) -> bool {
        self.has_own(LinuxNamespaceType::Network)
    }

    /// The same of what System V and POSIX have for shared memory, semaphores and queues.
    pub fn has_own_ipc(&self) -> bool {
        self.has_own(LinuxNamespaceType::Ipc)
    }

    fn has_own(&self, kind: LinuxNamespaceType) -> bool {
        let namespaces = self.spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref());
        namespaces.into_iter().flatten().any(|one| one.typ() == kind && one.path().is_none())
    }

    /// Whether `runtime` restores the interfaces of its network: not those of a network from
    /// outside, and none below runc, which leaves every network to the engine (`setEmptyNsMask` in
    /// its restore.go).
    pub fn restores_interfaces(&self, runtime: &Runtime) -> bool {
        runtime.family() != Family::Runc && self.has_own_network()
    }

    /// The annotations `prefix` and `prefix.*`, sorted by name.
    pub fn annotations(&self, prefix: &str) -> Vec<(String, String)> {
        let belongs = |name: &str| {
            name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let all = self.spec.annotations().iter().flatten();
        let mut found: Vec<_> = all
            .filter(|(name, _)| belongs(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        found.sort();
        found
    }
}

/// Whoever keeps the bundle may have put something else there than a file.
fn read_spec(config: &Path) -> Result<Spec> {
    let text = Reader::of_root().read(config)?;
    let text = text.ok_or_else(|| std::io::Error::from(rustix::io::Errno::NOENT))?;
    Ok(serde_json::from_slice(&text)?)
}

impl Container {
    /// Finds a container that runs or is paused.
    pub fn discover(runtime: &Runtime, id: &str) -> Result<Self> {
        ensure_name(id)?;
        let state = runtime.state(id)?;
        match state.status.as_str() {
            "running" | "paused" => {}
            status => {
                return Err(anyhow!(
                    "it is {status}: only a running or paused container has a state to keep"
                )
                .hint(format!("start it, or go on from a checkpoint: ocicle restore {id}")));
            }
        }
        ensure!(state.pid.exists().is_some(), "{} names no process", runtime.name());
        let freezer =
            cgroup::freezer_of(runtime, id, state.pid).context("finding its control group")?;
        Ok(Self {
            id: id.to_owned(),
            init: state.pid,
            bundle: Bundle::read(&state.bundle)?,
            freezer,
        })
    }

    /// The processes that CRIU dumps: init and what descends from it. A process that came in
    /// through `exec` is in the control group, and is frozen, and is not among them.
    pub fn dumped_processes(&self) -> Result<Vec<Process>> {
        let all = self.freezer.processes()?;
        let depth = Proc::of(self.init).namespaced_pids()?.depth();
        let mut dumped = Vec::new();
        for host in all {
            if !descends_from(host, self.init) {
                continue;
            }
            // A process that ended since the listing has nothing to keep.
            if let Ok(numbers) = Proc::of(host).namespaced_pids()
                && let Some(inner) = numbers.at(depth)
            {
                dumped.push(Process { host, inner });
            }
        }
        dumped.sort_by_key(|process| process.inner);
        Ok(dumped)
    }

    /// Makes sure that the container still has mounted what is at the source of a volume.
    ///
    /// # Errors
    /// When that was unmounted or replaced here since: the container goes on with what was there.
    pub fn ensure_volume_is(&self, destination: &Path, source: &Path) -> Result<()> {
        if shared::has_mounted(self.init, source)? {
            return Ok(());
        }
        let (destination, source) = (destination.display(), source.display());
        Err(anyhow!(
            "its volume {destination} is not what is at {source} now: that was unmounted or \
             replaced while the container ran"
        )
        .hint(format!(
            "leave it out (--volumes), or end the container and start it with what {source} shall be"
        )))
    }

    /// Makes sure that the container sees, as its root, the directory that we would snapshot.
    pub fn ensure_root_is(&self, rootfs: &Path) -> Result<()> {
        let seen = fs::metadata(Proc::of(self.init).root().join("."))
            .context("looking at its root directory")?;
        let ours =
            fs::metadata(rootfs).with_context(|| format!("looking at {}", rootfs.display()))?;
        ensure!(
            DevIno::from(&seen) == DevIno::from(&ours),
            "its root directory is not {}: it is mounted where this process does not see it",
            rootfs.display()
        );
        Ok(())
    }
}

/// More bytes than this has no name of a directory, and so no name of a container.
const NAME_MAX: usize = 255;

/// Refuses a name that no runtime accepts: it becomes part of paths.
pub fn ensure_name(id: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    ensure!(
        !id.is_empty()
            && id.len() <= NAME_MAX
            && id != "."
            && id != ".."
            && id.bytes().all(allowed),
        "{id:?} is no container name"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_no_path() {
        for bad in ["", ".", "..", "a/b", "../x", "a b", "a\n"] {
            assert!(ensure_name(bad).is_err(), "{bad:?}");
        }
        assert!(ensure_name("web-1_2.3+x").is_ok() && ensure_name(&"x".repeat(255)).is_ok());
        assert!(ensure_name(&"x".repeat(256)).is_err());
    }
}

//! The view of the machine that one test has.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
use nix::unistd::Uid;
use serde_json::Value;

use super::bundle::BundleBuilder;
use super::wait::wait_for_exit;

/// A runtime and the cgroups that it sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    RuncV1,
    RuncV2,
    /// crun refuses the hybrid view, so here version 2 is not mounted beside version 1.
    CrunV1,
    CrunV2,
}

impl Variant {
    /// The real runtime's name.
    pub fn runtime(self) -> &'static str {
        match self {
            Variant::RuncV1 | Variant::RuncV2 => "runc",
            Variant::CrunV1 | Variant::CrunV2 => "crun",
        }
    }

    pub fn has_cgroup2(self) -> bool {
        matches!(self, Variant::RuncV2 | Variant::CrunV2)
    }

    /// What the real runtime needs here for checkpoint and restore. In the pure version 2 view, crun
    /// would have CRIU copy the version 1 hierarchies that it does not see.
    pub fn criu_flags(self) -> &'static [&'static str] {
        match self {
            Variant::RuncV1 | Variant::RuncV2 | Variant::CrunV1 => &[],
            Variant::CrunV2 => &["--manage-cgroups-mode", "ignore"],
        }
    }
}

/// What ocicle keeps while it runs: this test's alone, so that its leftovers are too.
const RUN: &str = "/run/ocicle";

/// What podman's and docker's tests configure is for nobody else.
const SETTINGS: &str = "/etc/ocicle";

/// Which program stands for "the runtime" in a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shim {
    /// runc or crun itself.
    Bare,
    /// `ocicle-runtime` in front of it.
    Ocicle,
}

/// One test's machine: its runtime, its view of the cgroups, its directory.
pub struct Machine {
    variant: Variant,
    /// Begins the names of all cgroups and containers of this test.
    prefix: String,
    scratch: PathBuf,
}

/// Runs a test's body on a machine of its own and checks that nothing is left of it.
pub fn on_machine(variant: Variant, body: impl FnOnce(&Machine) + Send + 'static) {
    let test = std::thread::spawn(move || {
        let machine = Machine::new(variant);
        body(&machine);
        machine.assert_clean();
    });
    if let Err(panic) = test.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Machine {
    /// Moves the calling thread to a private mount namespace with the variant's view of cgroups.
    ///
    /// Fails, and never skips, where containers cannot run.
    pub fn new(variant: Variant) -> Machine {
        static COUNT: AtomicU32 = AtomicU32::new(0);

        assert!(Uid::effective().is_root(), "this test needs root: run it by `make test`");
        let id = std::env::var("OCICLE_TESTBED_ID")
            .expect("this test runs inside the testbed: use `make test` or tests/testbed/enter");
        let scratch = PathBuf::from(std::env::var_os("OCICLE_SCRATCH").expect("OCICLE_SCRATCH"));
        private_mounts();
        private_directory(RUN, "mode=700");
        private_directory(SETTINGS, "mode=755");
        match variant {
            Variant::RuncV1 => {}
            Variant::RuncV2 | Variant::CrunV2 => pure_cgroup2(),
            Variant::CrunV1 => pure_cgroup1(),
        }
        for program in ["criu", variant.runtime()] {
            run(Command::new(program).arg("--version"));
        }
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("{id}-{}-{count}", std::process::id());
        let scratch = scratch.join(format!("{}-{count}", std::process::id()));
        fs::create_dir(&scratch).unwrap();
        fs::create_dir(scratch.join("state")).unwrap();
        Machine { variant, prefix, scratch }
    }

    pub fn variant(&self) -> Variant {
        self.variant
    }

    /// An empty directory on a real file system (ext4 or the like, no overlay, no tmpfs).
    pub fn scratch(&self) -> &Path {
        &self.scratch
    }

    /// The state directory of the runtime, the `--root` of all its calls.
    pub fn state_root(&self) -> PathBuf {
        self.scratch.join("state")
    }

    /// Where `ocicle` keeps the checkpoints of this test.
    pub fn store(&self) -> PathBuf {
        self.scratch.join("store")
    }

    /// A name for a container of this test that no other test has.
    pub fn unique(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// Begins a bundle; the name is unique within the test.
    pub fn bundle(&self, name: &str) -> BundleBuilder<'_> {
        BundleBuilder::new(self, name)
    }

    /// The runtime with its state directory and the given log, but no command yet.
    pub fn runtime(&self, shim: Shim, log: &Path) -> Command {
        let mut command = match shim {
            Shim::Bare => Command::new(self.variant.runtime()),
            Shim::Ocicle => Command::new(env!("CARGO_BIN_EXE_ocicle-runtime")),
        };
        command.env("OCICLE_RUNTIME", self.variant.runtime());
        command.arg("--root").arg(self.state_root()).arg("--log").arg(log);
        command
    }

    /// `ocicle` itself, with the environment that leads it to this machine's runtime.
    pub fn ocicle(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocicle"));
        command.env("OCICLE_RUNTIME", self.variant.runtime());
        command.arg("--root").arg(self.state_root()).arg("--store").arg(self.store());
        command
    }

    /// A command of `ocicle`, with what CRIU needs here if it is one that has the runtime run it.
    pub fn call(&self, command: &str, words: &[&str]) -> Command {
        let mut ocicle = self.ocicle();
        ocicle.arg(command).args(words);
        if ["checkpoint", "restore", "check"].contains(&command) {
            ocicle.args(self.variant.criu_flags());
        }
        ocicle
    }

    /// `ocicle checkpoint WORDS…`
    pub fn checkpoint(&self, words: &[&str]) -> Command {
        self.call("checkpoint", words)
    }

    /// `ocicle restore WORDS…`
    pub fn restore(&self, words: &[&str]) -> Command {
        self.call("restore", words)
    }

    /// Where the store has a version of a container.
    pub fn version(&self, id: &str, version: &str) -> PathBuf {
        self.store().join(id).join(version)
    }

    /// The directory of a cgroup of this test, in the hierarchy with the freezer.
    pub fn freezer(&self, cgroup: &str) -> PathBuf {
        let hierarchy =
            if self.variant.has_cgroup2() { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/freezer" };
        Path::new(hierarchy).join(cgroup.trim_start_matches('/'))
    }

    /// The directories of a cgroup in every hierarchy that has it.
    pub fn cgroups(&self, cgroup: &str) -> Vec<PathBuf> {
        let cgroup = cgroup.trim_start_matches('/');
        let top = Path::new("/sys/fs/cgroup");
        if self.variant.has_cgroup2() {
            return Some(top.join(cgroup)).filter(|path| path.exists()).into_iter().collect();
        }
        entries(top).map(|hierarchy| hierarchy.join(cgroup)).filter(|path| path.exists()).collect()
    }

    /// Removes a cgroup with those below it, once what is in them has ended.
    pub fn remove_cgroups(&self, cgroup: &str) {
        for directory in self.cgroups(cgroup) {
            for below in entries(&directory).filter(|path| path.is_dir()).chain([directory.clone()])
            {
                let processes = fs::read_to_string(below.join("cgroup.procs")).unwrap_or_default();
                processes.lines().filter_map(|pid| pid.parse().ok()).for_each(wait_for_exit);
                let _ = fs::remove_dir(below);
            }
            // podman takes every directory there for a hierarchy: in others it makes real files.
            if !is_cgroup(&directory) {
                let _ = fs::remove_dir_all(directory);
            }
        }
    }

    /// Everything of this test that is still there: containers, cgroups, mounts, files.
    pub fn leftovers(&self) -> Vec<String> {
        let mut left = Vec::new();
        for container in entries(&self.state_root()) {
            left.push(format!("container {}", container.display()));
        }
        let top = Path::new("/sys/fs/cgroup");
        for place in std::iter::once(top.to_owned()).chain(entries(top)) {
            let ours = entries(&place).filter(|path| {
                path.file_name()
                    .is_some_and(|name| name.to_string_lossy().starts_with(&self.prefix))
            });
            left.extend(ours.map(|path| format!("cgroup {}", path.display())));
        }
        let scratch = self.scratch.to_string_lossy().into_owned();
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(&scratch)).map(str::to_owned));
        let kept = [self.state_root(), self.store()];
        let files = entries(&self.scratch).filter(|path| !kept.contains(path));
        left.extend(files.map(|file| format!("file {}", file.display())));
        left.extend(processes_with(&self.prefix));
        let run = entries(Path::new(RUN));
        let doors = run.filter(|path| path.to_string_lossy().contains("door-"));
        left.extend(doors.map(|door| format!("door {}", door.display())));
        left
    }

    fn assert_clean(&self) {
        let left = self.leftovers();
        assert!(left.is_empty(), "the test left behind:\n{}", left.join("\n"));
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.scratch);
    }
}

/// The manifest of a checkpoint, as it is written.
#[track_caller]
pub fn manifest(images: &Path) -> Value {
    let text = fs::read(images.join("ocicle-manifest.json")).expect("the manifest");
    serde_json::from_slice(&text).expect("the manifest is JSON")
}

fn private_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).expect("making a private mount namespace");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
}

/// Gives the calling thread, and what it starts, a network of its own, with lo up.
pub fn private_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("making a private network namespace");
    run(Command::new("ip").args(["link", "set", "lo", "up"]));
}

/// Gives the calling thread, and what it starts, settings of CRIU's of its own: none.
pub fn private_criu_settings() {
    private_directory("/etc/criu", "mode=755");
}

/// Mounts an empty directory of the calling thread's own.
fn private_directory(path: &str, options: &str) {
    fs::create_dir_all(path).unwrap();
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(options)).unwrap();
}

fn pure_cgroup1() {
    umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH).expect("unmounting version 2");
}

fn pure_cgroup2() {
    let none = None::<&str>;
    umount2("/sys/fs/cgroup", MntFlags::MNT_DETACH).expect("unmounting /sys/fs/cgroup");
    mount(Some("cgroup2"), "/sys/fs/cgroup", Some("cgroup2"), MsFlags::empty(), none)
        .expect("mounting cgroup2");
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Whether a directory is on a file system of control groups, and not merely beside them.
fn is_cgroup(directory: &Path) -> bool {
    statfs(directory).is_ok_and(|found| {
        [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&found.filesystem_type())
    })
}

/// Processes that have the text in their command line or in the names of their cgroups.
fn processes_with(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for process in entries(Path::new("/proc")) {
        let number = process.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if number.parse::<u32>().is_err() || number == std::process::id().to_string() {
            continue;
        }
        for file in ["cmdline", "cgroup"] {
            let content = fs::read(process.join(file)).unwrap_or_default();
            if String::from_utf8_lossy(&content).contains(text) {
                found.push(format!("process {number}: {}", String::from_utf8_lossy(&content)));
            }
        }
    }
    found
}

/// The doors that are in this test's `/run/ocicle`.
pub fn doors() -> Vec<String> {
    let entries = fs::read_dir(RUN).into_iter().flatten().flatten();
    let names = entries.map(|entry| entry.file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("door-")).collect()
}

/// Changes a manifest, and its digest with it.
pub fn rewrite_manifest(version: &Path, change: impl FnOnce(&mut Value)) {
    let path = version.join("ocicle-manifest.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut manifest);
    let text = serde_json::to_vec_pretty(&manifest).unwrap();
    let sum = format!("{}  ocicle-manifest.json\n", blake3::hash(&text).to_hex());
    fs::write(&path, text).unwrap();
    fs::write(version.join("ocicle-manifest.b3sum"), sum).unwrap();
}

/// Runs a command to its end and returns what it printed; panics with all it said if it fails.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    try_run(command).unwrap_or_else(|failure| panic!("{failure}"))
}

/// Like [`run`], but a failure is returned: the command, its status and its standard error.
pub fn try_run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(format!("{command:?}: {}\n{said}", output.status))
}

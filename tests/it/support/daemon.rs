//! containerd and dockerd, each with a store of its own in the test's directory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::machine::{Machine, Shim, run};
use super::podman::{IMAGE, Podman, install};
use super::told::status_of;
use super::wait::{wait_for_exit, wait_for_file};

/// Their sockets have one place each: where tests share a process, one has them at a time.
static SOCKETS: Mutex<()> = Mutex::new(());

fn sockets() -> MutexGuard<'static, ()> {
    SOCKETS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A daemon, ended in the end.
struct Daemon {
    process: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it, and waits until its socket is there.
    fn start(command: &mut Command, log: PathBuf, socket: &Path) -> Self {
        let _ = fs::remove_file(socket);
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let output = File::create(&log).unwrap();
        command.stdin(Stdio::null()).stdout(output.try_clone().unwrap()).stderr(output);
        let process = command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let daemon = Self { process, log };
        wait_for_file(socket, daemon.process.id().cast_signed());
        daemon
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
        let _ = kill(Pid::from_raw(self.process.id().cast_signed()), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// containerd, and the image in it.
pub struct Containerd<'m> {
    machine: &'m Machine,
    binary: PathBuf,
    directory: PathBuf,
    daemon: Option<Daemon>,
    _sockets: MutexGuard<'static, ()>,
}

impl<'m> Containerd<'m> {
    pub fn new(machine: &'m Machine, shim: Shim) -> Self {
        Self::configured(machine, shim, "default", "")
    }

    /// As a node of Kubernetes has it: with the project's drop-in, and what the testbed needs.
    pub fn with_cri(machine: &'m Machine) -> Self {
        let drop_in = machine.state_root().join("conf.d");
        fs::create_dir(&drop_in).unwrap();
        fs::copy("config/containerd/ocicle.toml", drop_in.join("ocicle.toml")).unwrap();
        let settings = format!(
            "imports = [\"{}/*.toml\"]\n\
             [plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = '{IMAGE}:latest'\n\
             [plugins.'io.containerd.cri.v1.runtime']\nrestrict_oom_score_adj = true\n",
            drop_in.display()
        );
        Self::configured(machine, Shim::Ocicle, "k8s.io", &settings)
    }

    fn configured(machine: &'m Machine, shim: Shim, namespace: &str, settings: &str) -> Self {
        let sockets = sockets();
        let directory = machine.state_root().join("containerd");
        fs::create_dir(&directory).unwrap();
        let archive = directory.join("image.tar");
        let podman = Podman::new(machine, Shim::Bare);
        let save = ["save", "--quiet", "--format", "oci-archive", "--output"];
        podman.run(&[&save[..], &[archive.to_str().unwrap(), IMAGE]].concat());
        drop(podman);
        let runtime = match shim {
            Shim::Bare => machine.variant().runtime().into(),
            Shim::Ocicle => install(machine),
        };
        let find = format!("command -v {}", runtime.display());
        let binary = PathBuf::from(run(Command::new("sh").args(["-c", &find])).trim());
        let daemon = start_containerd(&directory, settings);
        let containerd =
            Self { machine, binary, directory, daemon: Some(daemon), _sockets: sockets };
        let archive = archive.to_str().unwrap();
        containerd.run(&["--namespace", namespace, "image", "import", archive]);
        containerd
    }

    /// Runs a command of ctr to its end.
    pub fn call(&self, arguments: &[&str]) -> Result<String, String> {
        call(Command::new("ctr").args(arguments))
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        self.call(arguments).unwrap_or_else(|said| panic!("ctr {arguments:?}: {said}"))
    }

    /// Starts a container of the runtime.
    #[track_caller]
    pub fn start(&self, name: &str, arguments: &[&str]) {
        let binary = self.binary.to_str().unwrap();
        let group = format!("/{}", self.machine.unique(name));
        let image = format!("{IMAGE}:latest");
        // Without shares of the processor: in the second view there is no controller for them.
        let limits = ["--cpu-shares", "0"];
        let run = ["run", "--detach", "--null-io", "--runc-binary", binary, "--cgroup", &group];
        let run = [&run[..], &limits].concat();
        self.run(&[&run[..], &[&image, name], arguments].concat());
    }

    /// Runs a command in a container; its output, if it succeeded.
    pub fn exec(&self, name: &str, arguments: &[&str]) -> Result<String, String> {
        self.call(&[&["task", "exec", "--exec-id", "test", name], arguments].concat())
    }

    /// Ends a container and removes it.
    pub fn remove(&self, name: &str) {
        let process = self.process(name);
        let _ = self.call(&["task", "kill", "--signal", "KILL", name]);
        process.into_iter().for_each(wait_for_exit);
        let _ = self.call(&["task", "delete", "--force", name]);
        let _ = self.call(&["container", "delete", name]);
    }

    /// What `ctr task ls` says of a container: its process and its status.
    pub fn task(&self, name: &str) -> Option<(i32, String)> {
        let tasks = self.run(&["task", "ls"]);
        let row = tasks.lines().find(|row| row.split_whitespace().next() == Some(name))?;
        let mut words = row.split_whitespace().skip(1);
        Some((words.next()?.parse().ok()?, words.next()?.to_owned()))
    }

    fn process(&self, name: &str) -> Option<i32> {
        self.task(name).map(|(pid, _)| pid)
    }
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        for name in self.call(&["container", "ls", "-q"]).unwrap_or_default().lines() {
            self.remove(name);
        }
        drop(self.daemon.take());
        let _ = fs::remove_dir_all(&self.directory);
        let _ = fs::remove_dir_all(self.machine.state_root().join("conf.d"));
    }
}

/// dockerd with ocicle among its runtimes, a containerd, and the image.
pub struct Docker<'m> {
    machine: &'m Machine,
    runtime: &'static str,
    directory: PathBuf,
    /// Ended in their order.
    daemons: Vec<Daemon>,
    _sockets: MutexGuard<'static, ()>,
}

impl<'m> Docker<'m> {
    /// Needs a network namespace of the test's own.
    pub fn new(machine: &'m Machine, shim: Shim) -> Self {
        let sockets = sockets();
        install(machine);
        let directory = machine.state_root().join("docker");
        fs::create_dir(&directory).unwrap();
        let containerd = start_containerd(&directory, "");
        let docker = start_docker(machine, &directory);
        let tar = directory.join("image.tar");
        run(Command::new("tar").arg("-C").arg(super::image::image()).arg("-cf").arg(&tar).arg("."));
        let runtime = match shim {
            Shim::Bare => machine.variant().runtime(),
            Shim::Ocicle => "ocicle",
        };
        let docker = Self {
            machine,
            runtime,
            directory,
            daemons: vec![docker, containerd],
            _sockets: sockets,
        };
        docker.run(&["import", tar.to_str().unwrap(), IMAGE]);
        docker
    }

    /// Runs a command of docker to its end.
    pub fn call(&self, arguments: &[&str]) -> Result<String, String> {
        call(Command::new("docker").args(arguments))
    }

    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> String {
        self.call(arguments).unwrap_or_else(|said| panic!("docker {arguments:?}: {said}"))
    }

    /// Starts a container of the runtime.
    #[track_caller]
    pub fn start(&self, name: &str, arguments: &[&str]) {
        self.run(&[&["run", "--detach"], &self.named(name)[..], arguments].concat());
    }

    /// Makes a container of the runtime, and does not start it.
    #[track_caller]
    pub fn create(&self, name: &str, arguments: &[&str]) {
        self.run(&[&["create"], &self.named(name)[..], arguments].concat());
    }

    fn named<'a>(&self, name: &'a str) -> [&'a str; 4] {
        ["--runtime", self.runtime, "--name", name]
    }

    /// docker's own files.
    pub fn data_root(&self) -> PathBuf {
        data_root(&self.directory)
    }

    /// Has containerd sweep away what nothing refers to. docker puts a checkpoint into its store for
    /// a restore, and fails where it is still there (moby #42900): docker removes it without waiting.
    pub fn sweep(&self) {
        let leases = |arguments: &[&str]| {
            run(Command::new("ctr").args(["--namespace", "moby", "leases"]).args(arguments))
        };
        // A lease that is deleted so waits for the next collection (--sync in ctr's help).
        leases(&["create", "--id", "sweep"]);
        leases(&["delete", "--sync", "sweep"]);
    }

    /// A directory that is removed with docker.
    pub fn directory(&self) -> &Path {
        &self.directory
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        let containers = self.call(&["ps", "--all", "--quiet"]).unwrap_or_default();
        for container in containers.split_whitespace() {
            let _ = self.call(&["rm", "--force", "--volumes", container]);
        }
        self.daemons.clear();
        self.machine.remove_cgroups(&cgroup_parent(self.machine));
        // dockerd mounts its directory on itself.
        let _ = nix::mount::umount2(&self.data_root(), nix::mount::MntFlags::MNT_DETACH);
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn call(command: &mut Command) -> Result<String, String> {
    let (status, output, errors) = status_of(command);
    println!("$ {command:?}: {status}\n{output}{errors}");
    if status == 0 { Ok(output) } else { Err(errors) }
}

fn start_containerd(directory: &Path, settings: &str) -> Daemon {
    let config = directory.join("containerd.toml");
    let root = directory.join("containerd");
    let text = format!("version = 3\nroot = {root:?}\nstate = \"/run/containerd\"\n{settings}");
    fs::write(&config, text).unwrap();
    let mut command = Command::new("containerd");
    command.arg("--config").arg(&config);
    let socket = Path::new("/run/containerd/containerd.sock");
    Daemon::start(&mut command, directory.join("containerd.log"), socket)
}

fn cgroup_parent(machine: &Machine) -> String {
    format!("/{}", machine.unique("docker"))
}

/// With the project's own daemon.json, and crun, which docker does not know by itself; what the
/// testbed needs stands on the command line.
fn start_docker(machine: &Machine, directory: &Path) -> Daemon {
    let settings = fs::read("config/docker/daemon.json").unwrap();
    let mut settings: serde_json::Value = serde_json::from_slice(&settings).unwrap();
    settings["runtimes"]["crun"] = serde_json::json!({ "path": "crun" });
    let file = directory.join("daemon.json");
    fs::write(&file, settings.to_string()).unwrap();
    let mut command = Command::new("dockerd");
    command.arg("--config-file").arg(&file).args(["--storage-driver", "overlay2"]);
    command.args(["--iptables=false", "--ip6tables=false", "--ip-forward=false"]);
    command.args(["--containerd", "/run/containerd/containerd.sock"]);
    command.arg("--data-root").arg(data_root(directory));
    command.arg("--cgroup-parent").arg(cgroup_parent(machine));
    let socket = Path::new("/var/run/docker.sock");
    Daemon::start(&mut command, directory.join("docker.log"), socket)
}

fn data_root(directory: &Path) -> PathBuf {
    directory.join("data")
}

//! Bundles: a root file system, a network namespace and a config.json.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::{Value, json};

use super::container::Container;
use super::image::image;
use super::machine::{Machine, Shim, run, try_run};

/// What a bundle's root file system is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rootfs {
    /// An overlay: `lower` is the image, `upper` and `work` are in the bundle.
    Overlay,
    /// The same by fuse-overlayfs, which is another kind of file system to the kernel.
    FuseOverlay,
    /// A copy of the image in a plain directory.
    Directory,
    /// A copy of the image in a subvolume of a btrfs of its own.
    Subvolume,
}

/// A bundle in the making.
pub struct BundleBuilder<'m> {
    machine: &'m Machine,
    name: String,
    rootfs: Rootfs,
    shim: Shim,
    config: Value,
}

impl<'m> BundleBuilder<'m> {
    pub(super) fn new(machine: &'m Machine, name: &str) -> Self {
        let config = default_config(&machine.unique(name));
        BundleBuilder {
            machine,
            name: name.to_owned(),
            rootfs: Rootfs::Overlay,
            shim: Shim::Bare,
            config,
        }
    }

    /// The command that the container runs.
    pub fn args<const N: usize>(mut self, args: [&str; N]) -> Self {
        self.config["process"]["args"] = json!(args.as_slice());
        self
    }

    pub fn rootfs(mut self, rootfs: Rootfs) -> Self {
        self.rootfs = rootfs;
        self
    }

    /// Puts `ocicle-runtime` in front of the runtime.
    pub fn shim(mut self, shim: Shim) -> Self {
        self.shim = shim;
        self
    }

    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.config["annotations"][key] = json!(value);
        self
    }

    /// A bind mount that the container can write to.
    pub fn bind(mut self, source: &Path, destination: &str) -> Self {
        push(
            &mut self.config["mounts"],
            json!({ "destination": destination, "type": "bind", "source": source,
                "options": ["rbind", "rw"] }),
        );
        self
    }

    /// Whatever else: changes the configuration itself.
    pub fn configure(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.config);
        self
    }

    /// Makes the directories, mounts the root file system and writes config.json.
    pub fn make(mut self) -> Bundle<'m> {
        let dir = self.machine.scratch().join(&self.name);
        fs::create_dir(&dir).unwrap();
        let bundle = Bundle {
            machine: self.machine,
            id: self.machine.unique(&self.name),
            shim: self.shim,
            dir,
        };
        bundle.make_rootfs(self.rootfs);
        bundle.make_network();
        push(
            &mut self.config["linux"]["namespaces"],
            json!({ "type": "network", "path": bundle.network() }),
        );
        let config = serde_json::to_vec_pretty(&self.config).unwrap();
        fs::write(bundle.dir.join("config.json"), config).unwrap();
        bundle
    }
}

/// A bundle, removed in the end. It outlives its container, as checkpoint and restore need it to.
pub struct Bundle<'m> {
    pub(super) machine: &'m Machine,
    pub(super) id: String,
    pub(super) shim: Shim,
    dir: PathBuf,
}

impl<'m> Bundle<'m> {
    pub fn machine(&self) -> &'m Machine {
        self.machine
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The container's id, and the name of its cgroup.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Changes the configuration that is there.
    pub fn reconfigure(&self, change: impl FnOnce(&mut Value)) {
        let path = self.dir.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        fs::write(path, serde_json::to_vec_pretty(&config).unwrap()).unwrap();
    }

    /// Has the container run in the network of this machine.
    pub fn leave_network(&self) {
        self.reconfigure(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "network");
        });
    }

    /// The merged root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.dir.join("rootfs")
    }

    /// The overlay's upper directory.
    pub fn upper(&self) -> PathBuf {
        self.dir.join("upper")
    }

    /// A path of the container, seen from outside.
    pub fn path(&self, inside: &str) -> PathBuf {
        self.rootfs().join(inside.trim_start_matches('/'))
    }

    /// A file that is the container's network namespace, with lo up.
    pub fn network(&self) -> PathBuf {
        self.dir.join("network")
    }

    /// Where the runtime logs.
    pub fn log(&self) -> PathBuf {
        self.dir.join("runtime.log")
    }

    /// The work directory for CRIU; made when asked for.
    pub fn work(&self) -> PathBuf {
        let work = self.dir.join("criu-work");
        fs::create_dir_all(&work).unwrap();
        work
    }

    /// A new, empty directory for images.
    pub fn images(&self, name: &str) -> PathBuf {
        let images = self.dir.join(name);
        fs::create_dir(&images).unwrap();
        images
    }

    /// Starts the container, detached.
    #[track_caller]
    pub fn run(&self) -> Container<'_> {
        Container::run(self, Stdio::null())
    }

    /// Starts the container, detached, with a file of this machine as its standard output.
    #[track_caller]
    pub fn run_into(&self, output: File) -> Container<'_> {
        Container::run(self, output.into())
    }

    /// Restores the container from images. The failure text has the runtime's own words.
    pub fn restore(&self, images: &Path, flags: &[&str]) -> Result<Container<'_>, String> {
        Container::restore(self, images, flags)
    }

    /// Kills and removes the container that `ocicle restore` made of this bundle.
    #[track_caller]
    pub fn end(&self) {
        let runtime = || self.machine.runtime(Shim::Bare, &self.log());
        let state: Value =
            serde_json::from_str(&run(runtime().args(["state", self.id()]))).unwrap();
        run(runtime().args(["kill", self.id(), "KILL"]));
        super::wait::wait_for_exit(i32::try_from(state["pid"].as_i64().unwrap()).unwrap());
        run(runtime().args(["delete", self.id()]));
    }

    /// The container of this bundle, if somebody else started it: it ends with the value.
    pub fn adopt(&self) -> Container<'_> {
        Container::adopt(self)
    }

    fn make_rootfs(&self, kind: Rootfs) {
        let rootfs = self.rootfs();
        match kind {
            Rootfs::Overlay => {
                let options = self.layers();
                let kind = Some("overlay");
                mount(kind, &rootfs, kind, MsFlags::empty(), Some(options.as_str()))
                    .expect("mounting the overlay");
            }
            Rootfs::FuseOverlay => {
                let options = self.layers();
                run(Command::new("fuse-overlayfs").args(["-o", &options]).arg(&rootfs));
            }
            Rootfs::Directory => copy_tree(image(), &rootfs),
            Rootfs::Subvolume => {
                let pool = self.make_btrfs();
                run(Command::new("btrfs")
                    .args(["-q", "subvolume", "create"])
                    .arg(pool.join("root")));
                run(Command::new("cp").arg("-a").arg(image().join(".")).arg(pool.join("root")));
                fs::create_dir(&rootfs).unwrap();
                let none = None::<&str>;
                mount(Some(&pool.join("root")), &rootfs, none, MsFlags::MS_BIND, none).unwrap();
            }
        }
    }

    /// Makes what an overlay needs: its options.
    fn layers(&self) -> String {
        for directory in ["rootfs", "upper", "overlay-work"] {
            fs::create_dir(self.dir.join(directory)).unwrap();
        }
        format!(
            "lowerdir={},upperdir={},workdir={}",
            image().display(),
            self.upper().display(),
            self.dir.join("overlay-work").display()
        )
    }

    fn make_btrfs(&self) -> PathBuf {
        let (file, pool) = (self.dir.join("btrfs.img"), self.dir.join("pool"));
        File::create(&file).unwrap().set_len(512 << 20).unwrap();
        fs::create_dir(&pool).unwrap();
        run(Command::new("mkfs.btrfs").arg("-q").arg(&file));
        run(Command::new("mount").args(["-t", "btrfs", "-o", "loop"]).args([&file, &pool]));
        pool
    }

    /// The runtime would make a namespace of its own at restore, with lo down; engines give a path.
    fn make_network(&self) {
        fs::write(self.network(), "").unwrap();
        let mut unshare = Command::new("unshare");
        unshare.arg(format!("--net={}", self.network().display()));
        run(unshare.args(["ip", "link", "set", "lo", "up"]));
    }

    fn print_logs(&self) {
        let find = "find . -maxdepth 3 -name '*.log' | while read f; do echo \"== $f\"; tail -n 25 $f; done";
        let logs = try_run(Command::new("sh").args(["-c", find]).current_dir(&self.dir));
        eprintln!("logs of {}:\n{}", self.id, logs.unwrap_or_else(|failure| failure));
    }
}

impl Drop for Bundle<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_logs();
        }
        for mounted in ["rootfs", "pool", "network"] {
            let _ = umount2(&self.dir.join(mounted), MntFlags::MNT_DETACH);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn copy_tree(from: &Path, to: &Path) {
    run(Command::new("cp").arg("-a").arg(from).arg(to));
}

fn push(list: &mut Value, item: Value) {
    list.as_array_mut().expect("a list").push(item);
}

fn default_config(id: &str) -> Value {
    let capabilities = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT",
    ];
    json!({
        "ociVersion": "1.0.2",
        "hostname": "container",
        "root": { "path": "rootfs", "readonly": false },
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh"],
            "env": ["PATH=/bin", "RUST_BACKTRACE=1"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities,
            },
        },
        "annotations": {},
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/shm", "type": "tmpfs", "source": "shm",
              "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
        ],
        "linux": {
            "cgroupsPath": format!("/{id}"),
            "namespaces": [
                { "type": "pid" }, { "type": "mount" }, { "type": "ipc" }, { "type": "uts" },
            ],
        },
    })
}

//! Without the shim: stock runc and crun, whose CRIU calls ocicle, and the OCI hook.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::support::{self, Bundle, Container, Machine, manifest, owner_of_lock};
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;

/// Writes numbers to a log, and remembers the last.
const COUNT: &str = "exec 3>/data/log; i=0; while :; do i=$((i+1)); echo $i >&3; done";

/// ocicle under the names by which stock programs call it, and CRIU's configuration.
struct Installed {
    directory: PathBuf,
}

impl Installed {
    fn at(machine: &Machine) -> Self {
        let directory = machine.scratch().join("installed");
        fs::create_dir(&directory).unwrap();
        for name in ["criu-action", "ocicle-hook"] {
            symlink(env!("CARGO_BIN_EXE_ocicle"), directory.join(name)).unwrap();
        }
        let script = directory.join("criu-action");
        let line = format!("action-script {}\n", script.display());
        fs::write(directory.join("criu.conf"), line).unwrap();
        Self { directory }
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Installed {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

fn lines(log: &Path) -> Vec<String> {
    fs::read_to_string(log).unwrap_or_default().lines().map(str::to_owned).collect()
}

/// Waits until the container has written more.
fn await_more(log: &Path, than: usize) {
    support::wait_for_writes(log, "it does not grow", || (lines(log).len() > than).then_some(()));
}

#[track_caller]
fn assert_counts_up(log: &Path) {
    let lines = lines(log);
    // The last line may just be written.
    for (at, line) in lines.iter().take(lines.len() - 1).enumerate() {
        assert_eq!(*line, (at + 1).to_string(), "line {at} of {}", lines.len());
    }
}

fn has_manifest(images: &Path) -> bool {
    images.join("ocicle-manifest.json").exists()
}

#[track_caller]
fn assert_runs_on(container: &Container<'_>, log: &Path) {
    assert_eq!(container.status(), "running");
    assert!(!container.is_frozen());
    await_more(log, lines(log).len());
}

on_each_runtime!(criu_itself_takes_the_snapshot_and_puts_it_back, |machine: &Machine| {
    let installed = Installed::at(machine);
    let counter = machine.bundle("counter").args(["sh", "-c", COUNT]);
    let bundle = counter.annotation("org.criu.config", &installed.path("criu.conf")).make();
    taken_and_put_back(&bundle);
});

on_each_runtime!(the_runtimes_own_settings_of_criu_will_do, |machine: &Machine| {
    let installed = Installed::at(machine);
    support::private_criu_settings();
    let mut names = vec!["runc.conf"];
    if machine.variant().runtime() == "crun" {
        names.push("crun.conf");
    }
    for name in names {
        let settings = Path::new("/etc/criu").join(name);
        fs::copy(installed.path("criu.conf"), &settings).unwrap();
        taken_and_put_back(&machine.bundle(name).args(["sh", "-c", COUNT]).make());
        fs::remove_file(settings).unwrap();
    }
});

on_each_runtime!(what_criu_leaves_out_is_added_under_its_dump, |machine: &Machine| {
    let installed = Installed::at(machine);
    let args = ["workload", "kinds", "/data", "locked-by-child", "1"];
    let settings = installed.path("criu.conf");
    let bundle = machine.bundle("kinds").args(args).annotation("org.criu.config", &settings).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let images = bundle.images("hooked");
    container.checkpoint(&images, &["--file-locks", "--leave-running"]).unwrap();
    container.kill();
    let restored = bundle.restore(&images, &["--file-locks"]).unwrap();
    let owner = owner_of_lock(&bundle.path("/data/locked-by-child.0"), 2).unwrap();
    assert!(restored.processes().contains(&owner), "{owner}");
});

/// A checkpoint and a restore, and both once more.
fn taken_and_put_back(bundle: &Bundle<'_>) {
    let container = bundle.run();
    let log = bundle.path("data/log");
    await_more(&log, 100);
    let images = bundle.images("hooked");
    container.checkpoint(&images, &["--leave-running"]).unwrap();
    let staged = manifest(&images);
    assert_eq!((&staged["state"], &staged["left"]), (&"staged".into(), &"running".into()));
    assert_runs_on(&container, &log);
    let since = bundle.path("data/since");
    fs::write(&since, "").unwrap();
    container.kill();
    let after = lines(&log).len();

    let restored = bundle.restore(&images, &[]).unwrap();
    assert!(!since.exists(), "what came since is gone");
    assert_eq!(manifest(&images)["state"], "complete");
    assert_runs_on(&restored, &log);
    assert_counts_up(&log);

    // Once more, in stop mode: CRIU ends the container, and only then.
    restored.checkpoint(&images, &[]).unwrap();
    assert_eq!(manifest(&images)["left"], "stopped");
    fs::write(&log, "overwritten").unwrap();
    drop(restored);
    let restored = bundle.restore(&images, &[]).unwrap();
    assert_runs_on(&restored, &log);
    assert_counts_up(&log);
    assert!(after > 0);
}

on_each_runtime!(
    a_snapshot_that_fails_fails_the_dump_and_not_the_container,
    |machine: &Machine| {
        let installed = Installed::at(machine);
        let bundle = machine
            .bundle("held")
            .args(["sh", "-c", COUNT])
            .annotation("org.criu.config", &installed.path("criu.conf"))
            .make();
        let container = bundle.run();
        let log = bundle.path("data/log");
        await_more(&log, 10);
        let images = bundle.images("hooked");
        fs::create_dir_all("/run/ocicle/locks").unwrap();
        let lock = File::create(Path::new("/run/ocicle/locks").join(bundle.id())).unwrap();
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, e)| e).unwrap();
        container.checkpoint(&images, &[]).unwrap_err();
        assert!(!has_manifest(&images));
        assert_runs_on(&container, &log);
        drop(lock);
        container.checkpoint(&images, &[]).unwrap();
        assert!(has_manifest(&images));
    }
);

on_each_runtime!(the_hook_clears_away_what_was_left_half_made, |machine: &Machine| {
    let installed = Installed::at(machine);
    let settings = machine.scratch().join("ocicle.toml");
    fs::write(&settings, format!("store = {:?}\n", machine.store())).unwrap();
    let hook = json!([{
        "path": installed.path("ocicle-hook"),
        "args": ["ocicle-hook"],
        "env": [format!("OCICLE_CONFIG={}", settings.display())],
    }]);
    let bundle = machine
        .bundle("hooked")
        .args(["sleep", "1000"])
        .configure(|config| {
            config["hooks"] = json!({ "createRuntime": hook.clone(), "poststop": hook });
        })
        .make();
    let versions = machine.store().join(bundle.id());
    let half_made = versions.join("v2");
    let whole = versions.join("v1");
    fs::create_dir_all(&whole).unwrap();
    fs::write(whole.join("ocicle-manifest.json"), "{}").unwrap();
    let leave = |door: &Path| {
        fs::create_dir_all(&half_made).unwrap();
        fs::create_dir_all(door).unwrap();
        drop(UnixListener::bind(door.join("door")).unwrap());
    };
    let dead = Path::new("/run/ocicle/door-dead");
    let alive = Path::new("/run/ocicle/door-alive");
    fs::create_dir_all(alive).unwrap();
    let _listener = UnixListener::bind(alive.join("door")).unwrap();

    leave(dead);
    let container = bundle.run();
    assert!(!half_made.exists() && !dead.exists(), "createRuntime clears");
    leave(dead);
    container.kill();
    assert!(!half_made.exists() && !dead.exists(), "poststop clears");
    assert!(whole.exists() && alive.exists(), "and nothing else");
    assert_eq!(fs::read_dir("/run/ocicle/locks").unwrap().count(), 0, "nor leaves locks");
    fs::remove_dir_all(alive).unwrap();
    fs::remove_file(&settings).unwrap();
});

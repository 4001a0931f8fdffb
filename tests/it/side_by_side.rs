//! Several containers restored from one checkpoint at once.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::{Bundle, Container, Machine, Probe, Shim, outcome, wait_for_guardians};

/// Another bundle of the same image, for another container.
fn other<'m>(machine: &'m Machine, args: [&str; 3]) -> Bundle<'m> {
    machine.bundle("other").shim(Shim::Ocicle).args(args).make()
}

/// The shim's restore of a bundle from these images.
fn restore(machine: &Machine, bundle: &Bundle<'_>, images: &Path, flags: &[&str]) -> Command {
    let mut runtime = machine.runtime(Shim::Ocicle, &bundle.log());
    runtime.args(["restore", "--detach", "--image-path"]).arg(images);
    runtime.arg("--work-path").arg(bundle.work()).arg("--bundle").arg(bundle.dir());
    runtime.args(machine.variant().criu_flags()).args(flags).arg(bundle.id());
    runtime
}

/// A script with the words of a command as `"$@"`.
fn script(bundle: &Bundle<'_>, name: &str, command: &Command, text: &str) -> PathBuf {
    let path = bundle.dir().join(name);
    let quote = |word: &std::ffi::OsStr| format!("'{}'", word.to_str().unwrap());
    let words: Vec<String> =
        std::iter::once(command.get_program()).chain(command.get_args()).map(quote).collect();
    let environment = command.get_envs().filter_map(|(name, value)| {
        Some(format!("export {}='{}'\n", name.to_str()?, value?.to_str()?))
    });
    let environment: String = environment.collect();
    let text = format!("#!/bin/bash\n{environment}set -- {}\n{text}\n", words.join(" "));
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn views(images: &Path) -> usize {
    let names = fs::read_dir(images).unwrap().map(|entry| entry.unwrap().file_name());
    names.filter(|name| name.to_string_lossy().starts_with(".ocicle-view-")).count()
}

// The one has made its view, and asks a program for a replacement; that restores the other.
on_each_runtime!(a_view_of_a_restore_that_goes_on_stays, |machine| {
    let probe = Probe::checkpointed_by_shim(machine, machine.bundle("probe"));
    let images = probe.bundle.dir().join("images");
    let killed = images.join(".ocicle-view-killed");
    fs::create_dir(&killed).unwrap();
    let second = other(machine, ["workload", "probe", "/data"]);
    let null = probe.rule("file", "null");
    let inner = restore(machine, &second, &images, &["-s", &null]);
    let lent = probe.bundle.dir().join("lent");
    fs::write(&lent, "lent").unwrap();
    let text = format!(
        "\"$@\" </dev/null >{0}/inner 2>&1\nls -d {1}/.ocicle-view-* >{0}/views\nexec {2} lend {3}",
        probe.bundle.dir().display(),
        images.display(),
        probe.bundle.path("/bin/workload").display(),
        lent.display(),
    );
    let program = script(&probe.bundle, "program", &inner, &text);
    let rule = probe.rule("file", &format!("exec:{}", program.display()));
    let (success, _, said) = outcome(&mut restore(machine, &probe.bundle, &images, &["-s", &rule]));
    assert!(success, "{said}");
    let _first = probe.bundle.adopt();
    let told = fs::read_to_string(probe.bundle.dir().join("inner")).unwrap();
    // Here crun leaves control groups alone, and CRIU looks for that of the first one: by then it has
    // had its view.
    let is_crun = machine.variant().runtime() == "crun";
    assert!(told.is_empty() || is_crun && told.contains("cgroup.procs"), "{told}");
    let _second = (!is_crun).then(|| second.adopt());
    if is_crun {
        // It keeps the name of what it could not restore.
        let mut delete = machine.runtime(Shim::Bare, &second.log());
        outcome(delete.args(["delete", "--force", second.id()]));
        machine.remove_cgroups(second.id());
    }
    assert_eq!(probe.ask("read", "file"), "\"lent\"");
    let seen = fs::read_to_string(probe.bundle.dir().join("views")).unwrap();
    assert_eq!(seen.lines().count(), 1, "that of the one that goes on: {seen}");
    assert_eq!(views(&images), 0);
});

const WAIT: [&str; 3] = ["sh", "-c", ": >/data/ready; exec tail -f /dev/null"];

/// A checkpoint that was committed, and whose maker was killed before it was packed.
fn staged<'b>(bundle: &'b Bundle<'_>, images: &Path, container: Container<'b>) {
    let mut checkpoint = container.bundle().machine().runtime(Shim::Ocicle, &bundle.log());
    checkpoint
        .args(["checkpoint", "--image-path"])
        .arg(images)
        .arg("--work-path")
        .arg(bundle.work());
    checkpoint.args(bundle.machine().variant().criu_flags()).arg(bundle.id());
    checkpoint.env("OCICLE_FAULT", "dumped").stdin(Stdio::null());
    assert!(!outcome(&mut checkpoint).0);
    wait_for_guardians();
    drop(container);
}

// The one has packed what was staged when the other comes: that waits, or packs it too.
on_each_runtime!(two_that_finish_one_checkpoint, |machine| {
    let bundle = machine.bundle("first").shim(Shim::Ocicle).args(WAIT).make();
    let container = bundle.run();
    container.wait_for("/data/ready");
    let images = bundle.images("images");
    staged(&bundle, &images, container);
    let second = other(machine, WAIT);
    let text = format!(
        "\"$@\" </dev/null >{0}/inner 2>&1 &\necho $! >{0}/pid\n\
         while kill -0 $! 2>/dev/null; do grep -q -- \"-> FLOCK.* $! \" /proc/locks && break; done",
        bundle.dir().display()
    );
    let program = script(&bundle, "program", &restore(machine, &second, &images, &[]), &text);
    let mut first = restore(machine, &bundle, &images, &[]);
    first.env("OCICLE_FAULT_RUN", format!("packed:{}", program.display()));
    let (success, _, said) = outcome(&mut first);
    assert!(success, "{said}");
    let pid = fs::read_to_string(bundle.dir().join("pid")).unwrap().trim().parse().unwrap();
    crate::support::wait_for_exit(pid);
    let told = fs::read_to_string(bundle.dir().join("inner")).unwrap();
    assert_eq!(told, "");
    let (_first, _second) = (bundle.adopt(), second.adopt());
});

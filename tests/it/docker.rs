//! Below docker: dockerd and its command, unchanged, with the bare runtime and with ocicle.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{
    self, Docker, IMAGE, Machine, Shim, Terminal, WRONG_LINE, first_number, holders, in_shell,
    lending, outcome,
};
use regex::Regex;

/// Counts in memory, in a log of the image's file system and in one of a volume.
const COUNT: &str = "echo changed >/etc/motd; exec 3>/log 4>/vol/log; i=0; \
    while :; do i=$((i+1)); echo $i >&3; echo $i >&4; done";

/// docker restores no container that has a network of its own.
const HOST: [&str; 2] = ["--network", "host"];

fn on_docker(body: impl FnOnce(&Machine) + Send + 'static) {
    on_docker_with(support::Variant::RuncV1, body);
}

fn on_docker_with(variant: support::Variant, body: impl FnOnce(&Machine) + Send + 'static) {
    support::on_machine(variant, |machine| {
        support::private_network();
        body(machine);
    });
}

/// Makes a test for docker with each runtime that it can be used with here: in the second view, it
/// wants a controller of crun that there is none of.
macro_rules! with_docker {
    ($name:ident, $body:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn runc_v1() {
                on_docker_with(support::Variant::RuncV1, $body);
            }

            #[test]
            fn runc_v2() {
                on_docker_with(support::Variant::RuncV2, $body);
            }

            #[test]
            fn crun_v1() {
                on_docker_with(support::Variant::CrunV1, $body);
            }
        }
    };
}

fn lines(docker: &Docker<'_>, name: &str, file: &str) -> u64 {
    let program = format!("[ -e {file} ] && wc -l <{file} || echo 0");
    docker.run(&["exec", name, "sh", "-c", &program]).trim().parse().unwrap()
}

fn counts(docker: &Docker<'_>, name: &str, file: &str) -> bool {
    docker.run(&["exec", name, "awk", WRONG_LINE, file]).is_empty()
}

fn start_counting(docker: &Docker<'_>, network: &[&str]) {
    docker.start("web", &[network, &["--volume", "data:/vol", IMAGE, "sh", "-c", COUNT]].concat());
    while lines(docker, "web", "/vol/log") < 100 {}
}

/// Makes a file in a stopped container's own layer.
fn make_since(docker: &Docker<'_>) -> std::path::PathBuf {
    let upper = docker.run(&["inspect", "--format", "{{.GraphDriver.Data.UpperDir}}", "web"]);
    let since = Path::new(upper.trim()).join("since");
    fs::write(&since, "").unwrap();
    since
}

/// Restores a container.
fn restore(docker: &Docker<'_>, name: &str, checkpoint: &str) -> Result<String, String> {
    docker.sweep();
    docker.call(&["start", "--checkpoint", checkpoint, name])
}

/// Whether memory and files are of one instant after a restore in place, again and again.
fn goes_back(docker: &Docker<'_>) -> bool {
    start_counting(docker, &HOST);
    docker.run(&["checkpoint", "create", "--leave-running", "web", "live"]);
    let before = lines(docker, "web", "/log");
    while lines(docker, "web", "/log") == before {}
    docker.run(&["kill", "web"]);
    for _ in 0..2 {
        let since = make_since(docker);
        if restore(docker, "web", "live").is_err() || since.exists() {
            return false;
        }
        let motd = docker.run(&["exec", "web", "cat", "/etc/motd"]);
        let right = motd == "changed\n"
            && counts(docker, "web", "/log")
            && counts(docker, "web", "/vol/log");
        docker.run(&["kill", "web"]);
        if !right {
            return false;
        }
    }
    true
}

with_docker!(a_live_checkpoint_is_restored_with_its_files, |machine| {
    assert!(goes_back(&Docker::new(machine, Shim::Ocicle)));
    assert!(!goes_back(&Docker::new(machine, Shim::Bare)), "docker has learnt it");
});

/// Restores a container that its checkpoint has stopped; tells whether what came since is gone.
fn forgets(docker: &Docker<'_>) -> bool {
    start_counting(docker, &HOST);
    docker.run(&["checkpoint", "create", "web", "stopped"]);
    assert_eq!(docker.run(&["inspect", "--format", "{{.State.Running}}", "web"]), "false\n");
    assert!(docker.run(&["checkpoint", "ls", "web"]).contains("stopped"));
    let since = make_since(docker);
    restore(docker, "web", "stopped").unwrap();
    assert!(counts(docker, "web", "/log") && counts(docker, "web", "/vol/log"));
    !since.exists()
}

with_docker!(what_came_since_is_gone, |machine| {
    assert!(forgets(&Docker::new(machine, Shim::Ocicle)));
    // docker gives crun a flag that it refuses.
    if machine.variant().runtime() == "runc" {
        assert!(!forgets(&Docker::new(machine, Shim::Bare)), "docker has learnt it");
    }
});

/// Makes another container of the same image, gives it the checkpoint of the first, and restores it.
fn comes_back_as_another(docker: &Docker<'_>, options: &[&str]) -> Result<String, String> {
    let place = |name: &str| {
        let id = docker.run(&["inspect", "--format", "{{.Id}}", name]);
        docker.data_root().join("containers").join(id.trim()).join("checkpoints")
    };
    docker.create("clone", &[&HOST[..], options, &["sh", "-c", COUNT]].concat());
    let mut copy = Command::new("cp");
    support::run(copy.arg("-a").arg(place("web").join("one")).arg(place("clone")));
    restore(docker, "clone", "one")
}

with_docker!(a_checkpoint_comes_back_in_another_container, |machine| {
    let docker = Docker::new(machine, Shim::Ocicle);
    start_counting(&docker, &HOST);
    docker.run(&["checkpoint", "create", "web", "one"]);
    comes_back_as_another(&docker, &["--volume", "data:/vol", IMAGE]).unwrap();
    assert_eq!(docker.run(&["exec", "clone", "cat", "/etc/motd"]), "changed\n");
    let before = lines(&docker, "clone", "/log");
    while lines(&docker, "clone", "/log") == before {}
    assert!(counts(&docker, "clone", "/log") && counts(&docker, "clone", "/vol/log"));
    docker.run(&["rm", "--force", "clone"]);

    // Of another image it is refused: what its processes have open is not there.
    let other = docker.run(&["commit", "--change", "ENV other=1", "web", "localhost/other"]);
    let refused = comes_back_as_another(&docker, &["--volume", "data:/vol", "localhost/other"]);
    assert!(refused.unwrap_err().contains("the root file system"), "{other}");
});

#[test]
fn containers_are_listed_with_their_checkpoints() {
    on_docker(|machine| {
        let docker = Docker::new(machine, Shim::Ocicle);
        start_counting(&docker, &HOST);
        docker.run(&["checkpoint", "create", "--leave-running", "web", "one"]);
        docker.create("never", &[IMAGE, "true"]);
        // Where docker keeps its files if nobody says otherwise.
        let usual = Path::new("/var/lib/docker");
        fs::create_dir_all(usual).unwrap();
        let none = None::<&str>;
        let bind = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&docker.data_root()), usual, none, bind, none).unwrap();
        let listed = support::listed(machine);
        nix::mount::umount2(usual, nix::mount::MntFlags::MNT_DETACH).unwrap();
        let find = |name: &str| {
            let found = listed.iter().find(|one| one["name"] == name);
            found.unwrap_or_else(|| panic!("{name} is not among {listed:?}"))
        };
        let web = find("web");
        assert_eq!((&web["engine"], &web["status"]), (&"docker".into(), &"running".into()));
        assert_eq!((&web["runtime"], &web["frozen"]), (&"runc".into(), &false.into()));
        assert!(web["image"].as_str().unwrap().starts_with(IMAGE), "{web}");
        assert_eq!(web["checkpoints"][0]["name"], "one");
        assert_eq!(find("never")["status"], "stopped");
        docker.run(&["pause", "web"]);
        let paused = support::listed(machine);
        let id = &web["id"];
        let web = paused.iter().find(|one| one["id"] == *id).unwrap();
        assert_eq!((&web["status"], &web["frozen"]), (&"paused".into(), &true.into()));
        docker.run(&["unpause", "web"]);
    });
}

#[test]
fn what_docker_itself_breaks() {
    on_docker(|machine| {
        let docker = Docker::new(machine, Shim::Ocicle);
        docker.start("net", &["--network", "none", IMAGE, "tail", "-f", "/dev/null"]);
        for (network, restored) in [("none", false), ("bridge", false), ("container:net", true)] {
            start_counting(&docker, &["--network", network]);
            docker.run(&["checkpoint", "create", "web", "one"]);
            let outcome = restore(&docker, "web", "one");
            assert_eq!(outcome.is_ok(), restored, "{network}: {outcome:?}");
            if let Err(said) = outcome {
                assert!(said.contains("bind-mount /proc/0/ns/net"), "{said}");
            } else {
                assert!(counts(&docker, "web", "/log"));
            }
            docker.run(&["rm", "--force", "web"]);
        }
        start_counting(&docker, &HOST);
        let elsewhere = docker.directory().join("elsewhere");
        let elsewhere = ["--checkpoint-dir", elsewhere.to_str().unwrap()];
        let create = ["checkpoint", "create", "--leave-running"];
        docker.run(&[&create[..], &elsewhere, &["web", "one"]].concat());
        docker.run(&["kill", "web"]);
        let refused = docker
            .call(&[&["start", "--checkpoint", "one"], &elsewhere[..], &["web"]].concat())
            .unwrap_err();
        assert!(refused.contains("custom checkpointdir is not supported"), "{refused}");
    });
}

#[test]
fn a_refused_checkpoint_leaves_the_container_running() {
    on_docker(|machine| {
        let docker = Docker::new(machine, Shim::Ocicle);
        start_counting(&docker, &HOST);
        // docker pauses the container before it asks for the checkpoint, and resumes it afterwards.
        fs::write("/etc/ocicle/ocicle.toml", "runtime = 'runc'\nfrobnicate = 1\n").unwrap();
        let refused = docker.call(&["checkpoint", "create", "web", "one"]).unwrap_err();
        fs::write("/etc/ocicle/ocicle.toml", "runtime = 'runc'\n").unwrap();
        assert!(!refused.is_empty());
        let before = lines(&docker, "web", "/log");
        while lines(&docker, "web", "/log") == before {}
        assert!(counts(&docker, "web", "/log"));
    });
}

/// What a descriptor of the container's first process is.
fn descriptor(docker: &Docker<'_>, number: u32) -> PathBuf {
    let pid = docker.run(&["inspect", "--format", "{{.State.Pid}}", "web"]);
    fs::read_link(format!("/proc/{}/fd/{number}", pid.trim())).unwrap()
}

with_docker!(the_daemon_restores_with_what_is_lent, |machine| {
    let docker = Docker::new(machine, Shim::Ocicle);
    start_counting(&docker, &HOST);
    docker.run(&["checkpoint", "create", "--leave-running", "web", "one"]);
    docker.run(&["kill", "web"]);
    docker.sweep();
    let lent = docker.directory().join("lent");
    let mut start = Command::new("docker");
    start.args(["start", "--checkpoint", "one", "web"]);
    let with = lending(&["--container", "web", "-s", "/log=fd:9"], &start);
    let mut with = in_shell(&with, &format!("exec \"$@\" 9<>{}", lent.display()));
    let (restored, _, said) = outcome(&mut with);
    assert!(restored, "{said}");
    assert_eq!(descriptor(&docker, 3), lent);
    assert_eq!(holders(&lent).len(), 1, "only the container has it: {:?}", holders(&lent));
    assert!(first_number(&lent) > 100, "it goes on where it was");
    assert!(counts(&docker, "web", "/vol/log"), "another log is what it was");
    let (started, _, said) = outcome(&mut with);
    assert!(!started && said.contains("no restore of web"), "it runs already: {said}");
});

with_docker!(the_daemon_restores_at_the_callers_terminal, |machine| {
    let docker = Docker::new(machine, Shim::Ocicle);
    let answer = "exec 3>/log; echo $$ >&3; while read -r line; do echo got $line; done";
    docker.start("web", &[&HOST[..], &["--tty", IMAGE, "sh", "-c", answer]].concat());
    while lines(&docker, "web", "/log") < 1 {}
    docker.run(&["checkpoint", "create", "--leave-running", "web", "one"]);
    docker.run(&["kill", "web"]);
    docker.sweep();
    let mut start = Command::new("docker");
    start.args(["start", "--checkpoint", "one", "web"]);
    let (status, mut terminal) = Terminal::run(&lending(&["--container", "web", "-t"], &start));
    terminal.type_in("hello\n");
    terminal.shows("got hello");
    assert!(status.success());
    assert_eq!(descriptor(&docker, 1), Path::new("/dev/tty"));
});

/// Without identifiers and the name of the runtime.
fn plain(text: &str) -> String {
    let text = text.replace("ocicle-runtime", "runc");
    Regex::new("[0-9a-f]{64}").unwrap().replace_all(&text, "ID").into_owned()
}

#[test]
fn ordinary_commands_are_the_real_runtimes() {
    on_docker(|machine| {
        let life = |docker: &Docker<'_>| -> Vec<Result<String, String>> {
            let program = "echo hello; exec tail -f /dev/null";
            docker.start("web", &[&HOST[..], &[IMAGE, "sh", "-c", program]].concat());
            [
                &["exec", "web", "echo", "inside"][..],
                &["exec", "web", "sh", "-c", "exit 7"],
                &["exec", "web", "/no/such/program"],
                &["logs", "web"],
                &["update", "--memory", "64m", "--memory-swap", "64m", "web"],
                &["exec", "web", "cat", "/sys/fs/cgroup/memory/memory.limit_in_bytes"],
                &["pause", "web"],
                &["inspect", "--format", "{{.State.Status}}", "web"],
                &["unpause", "web"],
                &["unpause", "web"],
                &["restart", "--time", "0", "web"],
                &["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "web"],
                &["stop", "--time", "0", "web"],
                &["wait", "web"],
                &["checkpoint", "create", "web", "none"],
                &["start", "web"],
                &["kill", "web"],
                &["rm", "web"],
                &["rm", "web"],
            ]
            .map(|call| docker.call(call).map_err(|said| plain(&said)))
            .to_vec()
        };
        let bare = life(&Docker::new(machine, Shim::Bare));
        assert_eq!(bare, life(&Docker::new(machine, Shim::Ocicle)));
        assert!(bare[0].is_ok() && bare[2].is_err() && bare[16].is_ok());
    });
}

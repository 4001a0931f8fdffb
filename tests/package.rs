//! The Debian package: installed, looked at, used and removed, as somebody would.
//!
//! Runs on the machine itself, and makes its own trees: a fresh Debian 13, and the testbed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tempfile::TempDir;

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (told, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{told}{errors}", output.status);
    told.into_owned()
}

/// The package of the programs under test, stripped of what only a debugger reads. It goes with the
/// last test that has it.
struct Package {
    _directory: TempDir,
    path: PathBuf,
}

fn package() -> Arc<Package> {
    static PACKAGE: Mutex<Weak<Package>> = Mutex::new(Weak::new());
    let mut package = PACKAGE.lock().unwrap_or_else(PoisonError::into_inner);
    package.upgrade().unwrap_or_else(|| {
        let built = Arc::new(build());
        *package = Arc::downgrade(&built);
        built
    })
}

fn build() -> Package {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for (name, program) in [
        ("ocicle", env!("CARGO_BIN_EXE_ocicle")),
        ("ocicle-runtime", env!("CARGO_BIN_EXE_ocicle-runtime")),
    ] {
        output(Command::new("strip").args(["-o"]).arg(directory.path().join(name)).arg(program));
    }
    let build = Path::new(CHECKOUT).join("packaging/deb");
    let path = output(Command::new(build).arg(directory.path()).arg(directory.path()));
    Package { path: PathBuf::from(path.trim()), _directory: directory }
}

/// Everything of a tree but what dpkg itself remembers.
const LIST: &str = "list() { find / -xdev -not -path '/proc/*' -not -path '/var/lib/dpkg/*' \
    -not -path '/var/log/*' -not -path '/var/cache/*' -printf '%p %y %m %s %l\\n' | \
    sed '/^[^ ]* d /s/ [0-9]* $//' | sort; }\n";

#[test]
fn it_installs_on_a_fresh_debian_and_leaves_nothing() {
    let package = package();
    let script = LIST.to_owned()
        + r#"
        list >/run/before
        dpkg -i /files/*.deb
        ocicle --version
        ocicle list
        ocicle ps
        ocicle generate man /run/man
        for page in /run/man/*.8; do
            zcat "/usr/share/man/man8/${page##*/}.gz" | cmp - "$page"
        done
        test -s /usr/share/man/man8/ocicle-runtime.8.gz
        bash -c '. /usr/share/bash-completion/completions/ocicle && complete -p ocicle'
        test -s /usr/share/zsh/vendor-completions/_ocicle
        test -s /usr/share/fish/vendor_completions.d/ocicle.fish
        test -s /usr/share/doc/ocicle/copyright
        zcat /usr/share/doc/ocicle/changelog.Debian.gz | grep -Eq '^ -- [^<]+ <[^>]+@[^>]+>  [A-Z]'
        cmp /usr/share/doc/ocicle/examples/podman/ocicle.conf \
            /etc/containers/containers.conf.d/ocicle.conf
        dpkg --verify ocicle
        dpkg-query -W -f '${Maintainer}\n' ocicle | grep -Ex '[^<>]+ <[^@<> ]+@[^@<> ]+>'
        # There is no CRIU and no runtime here: the doctor says so and fails.
        if ocicle doctor >/run/doctor; then exit 1; fi
        grep -q '^missing  criu ' /run/doctor
        grep -q '^good     shim ' /run/doctor
        echo '# mine' >>/etc/ocicle/ocicle.toml
        dpkg -r ocicle
        test -e /etc/ocicle/ocicle.toml
        ! command -v ocicle
        dpkg -P ocicle
        list >/run/after
        diff /run/before /run/after
        echo done
        "#;
    let fresh = Path::new(CHECKOUT).join("tests/testbed/fresh");
    let told = output(Command::new(fresh).arg(script).arg(&package.path));
    assert!(told.ends_with("done\n"), "{told}");
}

/// Where nobody else installs; and again, over a configuration that somebody has changed.
#[test]
fn make_installs_where_it_is_told_and_takes_that_back() {
    let programs = Path::new(env!("CARGO_BIN_EXE_ocicle")).parent().unwrap();
    let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let root = root.path();
    let make = |target: &str| {
        let mut make = Command::new("make");
        make.args(["-s", "-C", CHECKOUT, target, "PREFIX=/opt/ocicle", "SYSCONFDIR=/opt/etc"]);
        make.arg(format!("DESTDIR={}", root.display()));
        output(make.arg(format!("BIN={}", programs.display())))
    };
    let files = || -> Vec<String> {
        let found = output(Command::new("find").args([".", "-type", "f"]).current_dir(root));
        found.lines().map(str::to_owned).collect()
    };
    make("install");
    let settings = root.join("opt/etc/ocicle/ocicle.toml");
    fs::write(&settings, "# mine\n").unwrap();
    make("install");
    assert_eq!(fs::read_to_string(&settings).unwrap(), "# mine\n");
    let installed = files();
    assert!(installed.iter().all(|file| file.starts_with("./opt/")), "{installed:?}");
    for file in [
        "./opt/ocicle/bin/ocicle-runtime",
        "./opt/ocicle/share/man/man8/ocicle-checkpoint.8",
        "./opt/ocicle/share/zsh/site-functions/_ocicle",
        "./opt/ocicle/share/doc/ocicle/docs/engines/podman.md",
        "./opt/ocicle/libexec/ocicle/drivers/zfs",
    ] {
        assert!(installed.iter().any(|installed| installed == file), "{file}: {installed:?}");
    }
    // What names a program names the one that was installed.
    let named = r"/[a-z/]*/(bin/ocicle-runtime|libexec/ocicle)";
    let named = output(Command::new("grep").args(["-rhoE", named, "."]).current_dir(root).args([
        "--include=*.conf",
        "--include=*.json",
        "--include=*.md",
        "--exclude-dir=drivers",
    ]));
    assert!(named.lines().count() >= 4, "{named}");
    assert!(named.lines().all(|path| path.starts_with("/opt/ocicle/")), "{named}");
    let script = root.join("opt/ocicle/libexec/ocicle/criu-action");
    assert_eq!(script.canonicalize().unwrap(), root.join("opt/ocicle/bin/ocicle"));

    let links = regex::Regex::new(r"\]\(([^)#]+)").unwrap();
    for page in installed.iter().filter(|file| file.ends_with(".md")) {
        let page = root.join(page);
        for link in links.captures_iter(&fs::read_to_string(&page).unwrap()) {
            if !link[1].starts_with("https:") {
                let target = page.parent().unwrap().join(&link[1]);
                assert!(target.exists(), "{} links {}", page.display(), &link[1]);
            }
        }
    }

    make("uninstall");
    assert_eq!(files(), ["./opt/etc/ocicle/ocicle.toml"]);
}

/// The commands of the first console block below a heading of a document.
fn commands_below(document: &str, heading: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(CHECKOUT).join(document)).unwrap();
    let section = format!("\n{text}");
    let section = section.split_once(&format!("\n{heading}\n")).expect("the section").1;
    let block = section.split_once("```console\n").expect("a block").1.split_once("\n```").unwrap();
    let commands: Vec<String> =
        block.0.lines().filter_map(|line| line.strip_prefix("# ")).map(str::to_owned).collect();
    assert!(!commands.is_empty());
    commands
}

/// What the testbed needs, and the documents do not speak of; a list of what is there; the package.
const PREPARE: &str = r#"
    cd "$OCICLE_SCRATCH"
    export PODMAN_IGNORE_CGROUPSV1_WARNING=1
    mkdir -p /etc/containers/containers.conf.d
    printf '[containers]\nnetns = "none"\npids_limit = 0\n' \
        >/etc/containers/containers.conf.d/testbed.conf
    mkdir -p image/{bin,etc,proc,dev,sys,tmp,run,data}
    cp /bin/busybox image/bin
    for name in sh cat tail awk; do ln -s busybox image/bin/$name; done
    tar -C image -cf image.tar .
    podman import image.tar docker.io/library/alpine
    list >/run/before
    dpkg -i "$PACKAGE"
    # crun does not run where there are control groups of both versions.
    sed -i 's/^#runtime = .*/runtime = "runc"/' /etc/ocicle/ocicle.toml
    # Whether a log counts up by one, and the process goes on with it.
    counts() {
        # The last line may be half written.
        podman exec web awk 'NR > 1 && last != NR - 1 { print NR; exit } { last = $1 }' "$1" >/run/wrong
        test ! -s /run/wrong
        local last=$(podman exec web tail -n 1 "$1")
        timeout 60 sh -c "until test \$(podman exec web tail -n 1 $1) -gt $last; do :; done"
    }
"#;

/// Removes everything, and looks whether something of ocicle's is left.
const REMOVE: &str = r#"
    podman rm -f -t 0 -a
    podman volume rm -a -f
    podman rmi -f -a
    find /sys/fs/cgroup -depth -type d -name 'libpod*' -exec rmdir {} + || true
    rm -rf image image.tar web.tar*
    dpkg -P ocicle
    list | grep ocicle | grep -v "^$CHECKOUT\|^/run\|^/scratch" >/run/left || true
    test ! -s /run/left
    echo done
"#;

/// Runs a script in the testbed between the two.
fn in_the_testbed(script: &str) -> String {
    let script = format!("set -euxo pipefail\n{LIST}{PREPARE}{script}{REMOVE}");
    let enter = Path::new(CHECKOUT).join("tests/testbed/enter");
    let mut command = Command::new(enter);
    let package = package();
    command.args(["bash", "-c", &script]).env("PACKAGE", &package.path).env("CHECKOUT", CHECKOUT);
    let told = output(&mut command);
    assert!(told.ends_with("done\n"), "{told}");
    told
}

#[test]
fn the_page_of_podman_is_followed_to_the_letter() {
    let commands = commands_below("docs/engines/podman.md", "## Step by step");
    let told = in_the_testbed(&format!(
        r#"{}
        counts /data/log
        checkpointctl inspect --all web.tar.zst | grep -q 'Engine: Podman'
        ocicle doctor | grep -q '^good     podman '
        "#,
        commands.join("\n")
    ));
    assert!(told.contains("\nengine     podman\n") && told.contains("\nOPEN FILES\n"), "{told}");
    assert!(told.lines().any(|line| line.starts_with("podman ") && line.ends_with("in place")));
}

/// The lines of the README that show what goes wrong do so, and those that show it right too.
#[test]
fn the_readme_shows_what_happens() {
    let [mut wrong, right] = ["## What goes wrong today", "## The same with ocicle"]
        .map(|heading| commands_below("README.md", heading));
    assert!(wrong.len() + right.len() <= 10);
    let restore = wrong.pop().unwrap();
    let wrong = wrong.join("\n").replace("podman run", "podman --runtime runc run");
    in_the_testbed(&format!(
        r#"{wrong}
        if {restore} 2>errors; then exit 1; fi
        cat errors
        grep -q 'OCI runtime error: runc: criu failed: type RESTORE errno 0' errors
        rm errors
        podman rm -f -t 0 web
        {}
        counts /log
        "#,
        right.join("\n")
    ));
}

#[test]
fn the_page_of_hooks_is_followed_to_the_letter() {
    let [criu, hooks] = ["# Without the shim", "# OCI hooks"]
        .map(|heading| commands_below("docs/hooks.md", heading).join("\n"));
    in_the_testbed(&format!(
        r#"
        count='exec >/log; while :; do echo $((i+=1)); done'
        mkdir bundle
        cp -a image bundle/rootfs
        (cd bundle && runc spec)
        jq --arg count "$count" --arg group "/$OCICLE_TESTBED_ID-web" '.process.terminal = false
            | .process.args = ["sh", "-c", $count] | .root.readonly = false
            | .linux.cgroupsPath = $group' bundle/config.json >config.json
        mv config.json bundle
        runc run --detach --bundle bundle web </dev/null >/dev/null 2>&1
        mkdir /ckpt
        {criu}
        test -e /ckpt/ocicle-manifest.json
        timeout 60 sh -c 'until test -s bundle/rootfs/log; do :; done'
        runc delete --force web
        awk -v lines="$(wc -l <bundle/rootfs/log)" '$1 != NR && NR < lines {{ exit 1 }}' bundle/rootfs/log
        rm -r bundle /ckpt /etc/criu/runc.conf

        # Both of the hook's times, in podman with the runtime alone.
        leave() {{
            mkdir -p /run/ocicle/door-dead
            python3 -c 'import socket; socket.socket(1).bind("/run/ocicle/door-dead/door")'
        }}
        {hooks}
        leave
        podman --runtime runc run --detach --name web docker.io/library/alpine sh -c "$count"
        test ! -e /run/ocicle/door-dead
        leave
        podman rm -f -t 0 web
        test ! -e /run/ocicle/door-dead
        rm -r /usr/share/containers/oci
        "#
    ));
}

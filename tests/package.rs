//! The Debian package: installed, looked at, used and removed, as somebody would.
//!
//! Runs on the machine itself, and makes its own trees: a fresh Debian 13, and the testbed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const CHECKOUT: &str = env!("CARGO_MANIFEST_DIR");

fn output(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (told, errors) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{told}{errors}", output.status);
    told.into_owned()
}

/// The package of the programs under test, stripped of what only a debugger reads.
fn package() -> &'static Path {
    static PACKAGE: OnceLock<PathBuf> = OnceLock::new();
    PACKAGE.get_or_init(|| {
        let directory =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("package-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        for (name, program) in [
            ("ocicle", env!("CARGO_BIN_EXE_ocicle")),
            ("ocicle-runtime", env!("CARGO_BIN_EXE_ocicle-runtime")),
        ] {
            output(Command::new("strip").args(["-o"]).arg(directory.join(name)).arg(program));
        }
        let build = Path::new(CHECKOUT).join("packaging/deb");
        PathBuf::from(output(Command::new(build).arg(&directory).arg(&directory)).trim())
    })
}

struct Discard;

impl Drop for Discard {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(package().parent().unwrap());
    }
}

/// Everything of a tree but what dpkg itself remembers.
const LIST: &str = "list() { find / -xdev -not -path '/proc/*' -not -path '/var/lib/dpkg/*' \
    -not -path '/var/log/*' -not -path '/var/cache/*' -printf '%p %y %m %s %l\\n' | \
    sed '/^[^ ]* d /s/ [0-9]* $//' | sort; }\n";

#[test]
fn it_installs_on_a_fresh_debian_and_leaves_nothing() {
    let _discard = Discard;
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
    let told = output(Command::new(fresh).arg(script).arg(package()));
    assert!(told.ends_with("done\n"), "{told}");
}

/// The commands of the first console block below a heading of the README.
fn commands_below(heading: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(CHECKOUT).join("README.md")).unwrap();
    let section = text.split_once(&format!("\n{heading}\n")).expect("the section").1;
    let block = section.split_once("```console\n").expect("a block").1.split_once("\n```").unwrap();
    let commands: Vec<String> =
        block.0.lines().filter_map(|line| line.strip_prefix("# ")).map(str::to_owned).collect();
    assert!(!commands.is_empty());
    commands
}

#[test]
fn the_readme_page_of_podman_is_followed_to_the_letter() {
    let _discard = Discard;
    let mut script = format!("set -euxo pipefail\n{LIST}");
    script += r#"
        cd "$OCICLE_SCRATCH"
        export PODMAN_IGNORE_CGROUPSV1_WARNING=1
        # What the testbed needs, and the README does not speak of.
        mkdir -p /etc/containers/containers.conf.d
        printf '[containers]\nnetns = "none"\npids_limit = 0\n' \
            >/etc/containers/containers.conf.d/testbed.conf
        mkdir -p image/{bin,etc,proc,dev,sys,tmp,run,data}
        cp /bin/busybox image/bin
        for name in sh cat sleep; do ln -s busybox image/bin/$name; done
        tar -C image -cf image.tar .
        IMAGE=counter
        count='i=0; exec 3>/data/log 4>/log; while :; do i=$((i+1)); echo $i >&3; echo $i >&4; done'
        podman import --change "CMD [\"sh\", \"-c\", \"$count\"]" image.tar $IMAGE
        list >/run/before
        dpkg -i "$PACKAGE"
        # crun does not run where there are control groups of both versions.
        sed -i 's/^#runtime = .*/runtime = "runc"/' /etc/ocicle/ocicle.toml
        "#;
    script += &commands_below("### podman").join("\n");
    script += r#"
        # The container that was restored counts on, and its files agree with what it remembers.
        podman exec web cat /data/log >log
        test "$(head -n 1 log)" = 1
        # The last line may just be written.
        awk -v lines="$(wc -l <log)" '$1 != NR && NR < lines { exit 1 }' log
        ocicle inspect web.tar.zst | grep -q '^engine     podman'
        ocicle ps | grep -q '^podman .* web .*running'
        checkpointctl show web.tar.zst | grep -q '^web '
        checkpointctl inspect --all web.tar.zst | grep -q 'Engine: Podman'
        ocicle doctor | grep -q '^good     podman '
        podman rm -f -t 0 -a
        podman volume rm -a -f
        podman rmi -f -a
        find /sys/fs/cgroup -depth -type d -name 'libpod*' -exec rmdir {} + || true
        rm -rf image image.tar web.tar.zst log
        dpkg -P ocicle
        list | grep ocicle | grep -v "^$CHECKOUT\|^/run\|^/scratch" >/run/left || true
        test ! -s /run/left
        echo done
        "#;
    let enter = Path::new(CHECKOUT).join("tests/testbed/enter");
    let mut command = Command::new(enter);
    command.args(["bash", "-c", &script]).env("PACKAGE", package()).env("CHECKOUT", CHECKOUT);
    let told = output(&mut command);
    assert!(told.ends_with("done\n"), "{told}");
}

//! The root file system that containers start from: busybox, the workloads and their libraries.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::machine::run;

/// The image's directory; made once for each test process, and not to be written to.
pub fn image() -> &'static Path {
    static IMAGE: OnceLock<PathBuf> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let scratch = PathBuf::from(std::env::var_os("OCICLE_SCRATCH").expect("OCICLE_SCRATCH"));
        let image = scratch.join(format!("image-{}", std::process::id()));
        build(&image);
        image
    })
}

fn build(image: &Path) {
    for directory in ["bin", "data", "dev", "etc", "proc", "run", "sys", "tmp", "usr/bin", "root"] {
        fs::create_dir_all(image.join(directory)).unwrap();
    }
    fs::write(image.join("etc/motd"), "the image's own text\n").unwrap();
    fs::write(image.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    fs::write(image.join("etc/group"), "root:x:0:\n").unwrap();
    install_busybox(image);
    let workload = workload();
    fs::copy(&workload, image.join("bin/workload")).unwrap();
    for library in libraries(&workload) {
        let target = image.join(library.strip_prefix("/").unwrap());
        fs::create_dir_all(target.parent().unwrap()).unwrap();
        fs::copy(&library, target).unwrap();
    }
}

/// The program beside `ocicle` in the target directory.
fn workload() -> PathBuf {
    let workload = Path::new(env!("CARGO_BIN_EXE_ocicle")).with_file_name("workload");
    assert!(workload.exists(), "build the workloads first: cargo build -p workloads");
    workload
}

fn install_busybox(image: &Path) {
    fs::copy("/usr/bin/busybox", image.join("bin/busybox")).unwrap();
    for applet in run(Command::new("/usr/bin/busybox").arg("--list")).lines() {
        if applet != "busybox" {
            symlink("busybox", image.join("bin").join(applet)).unwrap();
        }
    }
}

/// The shared libraries of a program and its loader, as ldd names them.
fn libraries(program: &Path) -> Vec<PathBuf> {
    run(Command::new("ldd").arg(program))
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

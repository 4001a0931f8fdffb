//! Builds what is loaded into CRIU (`plugin/`), so that it is part of the programs.
//!
//! A library of its own, and so a build of its own: with settings that suit a guest in somebody
//! else's process, whatever this build's are.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What this build sets for itself.
const OURS: [&str; 7] = [
    "RUSTFLAGS",
    "CARGO_ENCODED_RUSTFLAGS",
    "RUSTC_WRAPPER",
    "RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_TARGET",
    "CARGO_MAKEFLAGS",
    "MAKEFLAGS",
];

fn main() {
    let directory = variable("CARGO_MANIFEST_DIR");
    let manifest = Path::new(&directory).join("plugin/Cargo.toml");
    for part in ["plugin/Cargo.toml", "plugin/src", "build.rs"] {
        println!("cargo:rerun-if-changed={part}");
    }
    let library = build(&manifest, &PathBuf::from(variable("OUT_DIR")).join("plugin"));
    println!("cargo:rustc-env=OCICLE_PLUGIN={}", library.display());
}

fn build(manifest: &Path, target: &Path) -> PathBuf {
    let triple = variable("TARGET");
    let mut cargo = Command::new(variable("CARGO"));
    cargo.args(["build", "--release", "--quiet", "--locked", "--target", &triple]);
    cargo.arg("--manifest-path").arg(manifest).arg("--target-dir").arg(target);
    OURS.iter().for_each(|name| {
        cargo.env_remove(name);
    });
    // Small, and nothing to unwind into CRIU.
    cargo.env("RUSTFLAGS", "-Cpanic=abort -Cstrip=symbols -Copt-level=s");
    let status = cargo.status().expect("cargo, which runs this, can be run");
    assert!(status.success(), "building the plugin for CRIU: {status}");
    target.join(triple).join("release/libocicle_criu.so")
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

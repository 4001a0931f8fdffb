//! Which engines there are, and whether they call ocicle.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::Diagnosis;
use crate::bytes::ByteString;
use crate::sys::process::find_program;

/// The program that an engine's settings have to name.
const SHIM: &str = "ocicle-runtime";

/// An engine: its program, its settings, and how they name a runtime.
struct Engine {
    program: &'static str,
    files: &'static [&'static str],
    drop_ins: &'static [&'static str],
    advice: &'static str,
}

const ENGINES: [Engine; 4] = [
    Engine {
        program: "podman",
        files: &["/usr/share/containers/containers.conf", "/etc/containers/containers.conf"],
        drop_ins: &["/usr/share/containers/containers.conf.d", "/etc/containers/containers.conf.d"],
        advice: "copy config/podman/ocicle.conf to /etc/containers/containers.conf.d",
    },
    Engine {
        program: "dockerd",
        files: &["/etc/docker/daemon.json"],
        drop_ins: &[],
        advice: "name ocicle-runtime under `runtimes` in /etc/docker/daemon.json",
    },
    Engine {
        program: "containerd",
        files: &["/etc/containerd/config.toml"],
        drop_ins: &["/etc/containerd/conf.d"],
        advice: "set BinaryName of a runtime to ocicle-runtime in /etc/containerd/config.toml",
    },
    Engine {
        program: "crio",
        files: &["/etc/crio/crio.conf"],
        drop_ins: &["/usr/share/crio/crio.conf.d", "/etc/crio/crio.conf.d"],
        advice: "name ocicle-runtime as runtime_path of a runtime in /etc/crio/crio.conf.d",
    },
];

/// A finding for each engine that is there.
pub(super) fn all() -> Vec<Diagnosis> {
    let mut findings: Vec<Diagnosis> = vec![shim()];
    findings.extend(ENGINES.iter().filter_map(Engine::examine));
    if findings.len() == 1 {
        findings.push(Diagnosis::good("engines", "none: runc and crun can be used by themselves"));
    }
    findings
}

fn shim() -> Diagnosis {
    match find_program(SHIM, |_| false) {
        Some(path) => Diagnosis::good("shim", path.display().to_string()),
        None => Diagnosis::advice(
            "shim",
            format!("{SHIM} is not on PATH"),
            "install it: `make install`, or the Debian package",
        ),
    }
}

impl Engine {
    fn examine(&self) -> Option<Diagnosis> {
        let program = find_program(self.program, |_| false)?;
        let version = version_of(&program);
        let naming = self.settings().into_iter().find_map(|path| {
            let settings = read(&path)?;
            names_shim(&settings).then_some((path, is_default(&settings)))
        });
        Some(match naming {
            Some((path, default)) => {
                let how = if default { "its default runtime" } else { "can be chosen" };
                let found = format!("{version}; {SHIM} {how}, by {}", path.display());
                Diagnosis::good(self.program, found)
            }
            None => Diagnosis::advice(
                self.program,
                format!("{version}; it does not know {SHIM}"),
                self.advice,
            ),
        })
    }

    fn settings(&self) -> Vec<PathBuf> {
        let mut settings: Vec<PathBuf> = self.files.iter().map(PathBuf::from).collect();
        for directory in self.drop_ins {
            let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
            let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
            files.sort();
            settings.extend(files);
        }
        // What comes later counts more.
        settings.reverse();
        settings
    }
}

/// What `--version` prints, without the name.
fn version_of(program: &Path) -> String {
    let output = Command::new(program).arg("--version").stdin(Stdio::null()).output();
    let text = output.map(|output| output.stdout).unwrap_or_default();
    let first = text.split(|byte| *byte == b'\n').next().unwrap_or_default();
    number_in(&ByteString::from(first).to_string())
}

/// The version in a line that may name the program, a package and a commit too.
pub(super) fn number_in(line: &str) -> String {
    let is_number =
        |word: &&str| word.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    line.split_whitespace().find(is_number).unwrap_or(line).trim_end_matches(',').to_owned()
}

/// Settings in TOML or JSON, as one value.
fn read(path: &Path) -> Option<Value> {
    let text = std::fs::read_to_string(path).ok()?;
    if path.extension().is_some_and(|extension| extension == "json") {
        return serde_json::from_str(&text).ok();
    }
    serde_json::to_value(text.parse::<toml::Table>().ok()?).ok()
}

/// Whether some text of the settings is the shim: a path, or a member of a list of paths.
fn names_shim(value: &Value) -> bool {
    match value {
        Value::String(text) => Path::new(text).file_name().is_some_and(|name| name == SHIM),
        Value::Array(values) => values.iter().any(|value| {
            // podman's list of runtimes that write errors as JSON names no program.
            value.as_str().is_some_and(|text| text.contains('/')) && names_shim(value)
        }),
        Value::Object(fields) => fields.values().any(names_shim),
        _ => false,
    }
}

/// Whether it is what the engine takes when nobody says otherwise: podman's `engine.runtime`,
/// docker's `default-runtime`, containerd's `default_runtime_name`, CRI-O's `default_runtime`.
fn is_default(value: &Value) -> bool {
    const DEFAULTS: [&str; 4] =
        ["runtime", "default-runtime", "default_runtime_name", "default_runtime"];
    let Value::Object(fields) = value else { return false };
    fields.iter().any(|(name, value)| {
        let names = value.as_str().is_some_and(|text| text.contains("ocicle"));
        (DEFAULTS.contains(&name.as_str()) && names) || is_default(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toml(text: &str) -> Value {
        serde_json::to_value(text.parse::<toml::Table>().unwrap()).unwrap()
    }

    #[test]
    fn versions_of_engines() {
        for (line, version) in [
            ("podman version 5.8.6", "5.8.6"),
            ("Docker version 28.5.2+dfsg4, build 3ef3c07", "28.5.2+dfsg4"),
            ("containerd github.com/containerd/containerd/v2 v2.1.9 5fb4", "v2.1.9"),
            ("crio version 1.34.0", "1.34.0"),
            ("unheard of", "unheard of"),
        ] {
            assert_eq!(number_in(line), version);
        }
    }

    #[test]
    fn the_shim_is_found_in_each_engines_settings() {
        let podman = toml(include_str!("../../config/podman/ocicle.conf"));
        assert!(names_shim(&podman) && !is_default(&podman));
        let docker = serde_json::json!({
            "default-runtime": "ocicle",
            "runtimes": { "ocicle": { "path": "/usr/bin/ocicle-runtime" } }
        });
        assert!(names_shim(&docker) && is_default(&docker));
        let containerd = toml(
            "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.ocicle.options]\n\
             BinaryName = '/usr/bin/ocicle-runtime'",
        );
        assert!(names_shim(&containerd) && !is_default(&containerd));
        let none = toml("[engine]\nruntime = 'crun'\nruntime_supports_json = ['ocicle-runtime']");
        assert!(!names_shim(&none) && !is_default(&none));
    }
}

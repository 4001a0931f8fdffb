//! Whether this machine has what ocicle needs, and where its engines call it.

mod engines;

use std::path::Path;
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::config::Config;
use crate::container::cgroup_version;
use crate::criu::door::real_criu;
use crate::freezer::CgroupVersion;
use crate::hint::hint_of;
use crate::locations;
use crate::machine::{self, CriuVersion};
use crate::proc::knows_file_system;
use crate::runtime::{Family, Runtime};
use crate::sys::pid::ProcessFd;
use crate::sys::process::find_program;

/// What was found of one thing.
#[derive(Clone, Debug, Serialize)]
pub struct Diagnosis {
    /// What was looked at.
    pub what: String,
    /// How it is.
    pub verdict: Health,
    /// What was found.
    pub found: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    Good,
    /// It works without; something could be better.
    Advice,
    /// Nothing works without.
    Missing,
}

/// The oldest kernel with every system call that ocicle makes.
const KERNEL: (u32, u32) = (5, 8);
/// A store on a file system with less than this cannot hold much.
const SPACE: u64 = 1 << 30;

/// Looks at everything.
pub fn examine(config: &anyhow::Result<Config>, store: &Path) -> Vec<Diagnosis> {
    let settings = config.as_ref().ok().cloned().unwrap_or_default();
    let mut findings = vec![configuration(config), capabilities()];
    findings.extend(kernel());
    findings.extend(criu());
    findings.extend(runtimes(&settings));
    findings.extend(engines::all());
    findings.push(space(store));
    findings
}

impl Diagnosis {
    fn good(what: impl Into<String>, found: impl Into<String>) -> Self {
        let (what, found) = (what.into(), found.into());
        Self { what, verdict: Health::Good, found, advice: None }
    }

    fn advice(
        what: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { verdict: Health::Advice, advice: Some(advice.into()), ..Self::good(what, found) }
    }

    fn missing(
        what: impl Into<String>,
        found: impl Into<String>,
        advice: impl Into<String>,
    ) -> Self {
        Self { verdict: Health::Missing, advice: Some(advice.into()), ..Self::good(what, found) }
    }

    /// An error is something missing, with its own advice.
    fn wrong(what: &str, error: &anyhow::Error) -> Self {
        let advice = hint_of(error).map(str::to_owned);
        Self { verdict: Health::Missing, advice, ..Self::good(what, format!("{error:#}")) }
    }

    fn of<T>(what: &str, outcome: anyhow::Result<T>, found: impl FnOnce(T) -> String) -> Self {
        match outcome {
            Ok(value) => Self::good(what, found(value)),
            Err(error) => Self::wrong(what, &error),
        }
    }
}

fn configuration(config: &anyhow::Result<Config>) -> Diagnosis {
    let path = locations::configuration();
    match config {
        Err(error) => Diagnosis::wrong("configuration", error),
        Ok(_) if path.exists() => Diagnosis::good("configuration", path.display().to_string()),
        Ok(_) => Diagnosis::good("configuration", "none: every setting has its default"),
    }
}

fn capabilities() -> Diagnosis {
    Diagnosis::of("capabilities", machine::ensure_capable(), |()| "all that are needed".into())
}

fn kernel() -> Vec<Diagnosis> {
    let release = nix::sys::utsname::uname()
        .map(|names| names.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let new_enough = version_of(&release).is_some_and(|version| version >= KERNEL);
    let (major, minor) = KERNEL;
    let kernel = if new_enough {
        Diagnosis::good("kernel", release)
    } else {
        Diagnosis::missing("kernel", release, format!("Linux {major}.{minor} or newer is needed"))
    };
    let cgroup = Diagnosis::of("cgroups", cgroup_version(), |version| match version {
        CgroupVersion::V1 => "version 1, with the freezer".into(),
        CgroupVersion::V2 => "version 2".into(),
    });
    vec![kernel, cgroup, overlay(), kcmp()]
}

/// The first two numbers of a release.
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(['.', '-', '+']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn overlay() -> Diagnosis {
    match knows_file_system("overlay") {
        true => Diagnosis::good("overlay", "the kernel has it"),
        false => Diagnosis::advice(
            "overlay",
            "the kernel does not have it now",
            "a root file system in a plain directory is snapshotted whole: load the module overlay",
        ),
    }
}

/// kcmp(2) tells shared open files apart; it comes with CONFIG_CHECKPOINT_RESTORE or CONFIG_KCMP.
fn kcmp() -> Diagnosis {
    match crate::sys::kcmp::compare_files(ProcessFd::own(0), ProcessFd::own(0)) {
        Ok(_) => Diagnosis::good("kcmp", "the kernel has it"),
        Err(error) => Diagnosis::missing(
            "kcmp",
            error.to_string(),
            "a kernel with CONFIG_CHECKPOINT_RESTORE is needed",
        ),
    }
}

fn criu() -> Vec<Diagnosis> {
    let program = match real_criu() {
        Ok(program) => program,
        Err(error) => return vec![Diagnosis::wrong("criu", &error)],
    };
    let version = Diagnosis::of("criu", machine::criu_version(), |version: CriuVersion| {
        format!("{version}, {}", program.display())
    });
    let check = Diagnosis::of("criu check", machine::ensure_criu(), |()| "looks good".into());
    vec![version, check, soft_dirty(&program)]
}

/// Memory that was written since is found by soft-dirty bits, CONFIG_MEM_SOFT_DIRTY.
fn soft_dirty(criu: &Path) -> Diagnosis {
    if succeeds(Command::new(criu).args(["check", "--feature", "mem_dirty_track"])) {
        return Diagnosis::good("soft-dirty", "memory can be dumped before the freeze");
    }
    Diagnosis::advice(
        "soft-dirty",
        "the kernel does not track written memory",
        "pre-dumps need a kernel with CONFIG_MEM_SOFT_DIRTY; everything else works without",
    )
}

fn succeeds(command: &mut Command) -> bool {
    let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    quiet.status().is_ok_and(|status| status.success())
}

/// The runtimes that are there, and the one that ocicle would call.
fn runtimes(config: &Config) -> Vec<Diagnosis> {
    let mut findings: Vec<Diagnosis> = ["runc", "crun"]
        .into_iter()
        .filter_map(|name| Some((name, find_program(name, |_| false)?)))
        .map(|(name, program)| {
            let version = Runtime::at(program.clone()).version();
            let number = |line: String| engines::number_in(&line);
            Diagnosis::of(name, version, |line| format!("{}, {}", number(line), program.display()))
        })
        .collect();
    let real = Runtime::find(config.runtime.as_deref());
    findings.extend(libcriu(real.as_ref().is_ok_and(|it| it.family() == Family::Crun)));
    findings.push(Diagnosis::of("real runtime", real, |runtime| {
        runtime.program().display().to_string()
    }));
    findings
}

/// crun loads CRIU's library when it needs it (`load_wrapper` in src/libcrun/criu.c); where the
/// dynamic linker keeps no cache, nobody knows.
fn libcriu(is_needed: bool) -> Option<Diagnosis> {
    const NAME: &[u8] = b"libcriu.so.2";
    find_program("crun", |_| false)?;
    let cache = std::fs::read("/etc/ld.so.cache").ok()?;
    if cache.windows(NAME.len()).any(|name| name == NAME) {
        return Some(Diagnosis::good("libcriu", "crun can load it"));
    }
    let make = if is_needed { Diagnosis::missing } else { Diagnosis::advice };
    Some(make(
        "libcriu",
        "not there, so crun makes no checkpoints",
        "install it: libcriu2 in Debian",
    ))
}

fn space(store: &Path) -> Diagnosis {
    // It is made with the first checkpoint: until then, where it will be.
    let existing = store.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(space) => {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            let found = format!("{}, {} free", store.display(), crate::output::bytes(free));
            if free < SPACE {
                Diagnosis::advice("store", found, crate::hint::FULL)
            } else {
                Diagnosis::good("store", found)
            }
        }
        Err(error) => Diagnosis::missing(
            "store",
            format!("{}: {error}", existing.display()),
            "name another directory: `store` in the configuration, or --store",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_kernels() {
        assert_eq!(version_of("6.12.94+deb13-amd64"), Some((6, 12)));
        assert_eq!(version_of("5.8"), Some((5, 8)));
        assert_eq!(version_of("x"), None);
        assert!(version_of("5.10.0").unwrap() > KERNEL);
    }
}

//! What the machine must have before a container is touched: capabilities, and a CRIU that works.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use caps::{CapSet, Capability};

use crate::container::Container;
use crate::criu::door::real_criu;
use crate::hint::WithHint;

/// What freezing, dumping and snapshotting need.
const NEEDED: [Capability; 7] = [
    Capability::CAP_SYS_ADMIN,
    Capability::CAP_SYS_PTRACE,
    Capability::CAP_DAC_OVERRIDE,
    Capability::CAP_DAC_READ_SEARCH,
    Capability::CAP_CHOWN,
    Capability::CAP_FOWNER,
    Capability::CAP_MKNOD,
];

/// The first CRIU that dumps sockets on current kernels, and whose configuration is read once.
const OLDEST: CriuVersion = CriuVersion { major: 4, minor: 2, patch: 0 };

/// Where it is remembered that CRIU said it works here.
const CHECKED: &str = "/run/ocicle/criu-checked";

/// Makes sure that a checkpoint can begin.
pub fn check(container: &Container) -> Result<()> {
    ensure_capable()?;
    ensure_criu()?;
    ensure!(!container.freezer.processes()?.is_empty(), "its control group holds no process");
    Ok(())
}

/// Makes sure that this process may do what ocicle does.
pub fn ensure_capable() -> Result<()> {
    let held = caps::read(None, CapSet::Effective).context("reading our capabilities")?;
    let missing: Vec<String> =
        NEEDED.iter().filter(|needed| !held.contains(needed)).map(ToString::to_string).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(anyhow!("it needs root: {} missing", missing.join(", "))
        .hint("run it as root, with sudo say"))
}

/// Makes sure that there is a CRIU, that it is new enough, and that it works on this kernel.
pub fn ensure_criu() -> Result<()> {
    let program = real_criu()?;
    let identity = identity_of(&program)?;
    if fs::read_to_string(CHECKED).is_ok_and(|checked| checked == identity) {
        return Ok(());
    }
    let version = criu_version()?;
    if version < OLDEST {
        return Err(anyhow!(
            "{} is CRIU {version}: at least {OLDEST} is needed",
            program.display()
        )
        .hint(format!("install CRIU {OLDEST} or newer, and have it first on PATH")));
    }
    let output = run(&program, "check")?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let first = text.lines().find(|line| line.contains("Error")).or(text.lines().last());
        return Err(anyhow!("criu check: {}", first.unwrap_or("it failed without a word").trim())
            .hint("CRIU does not work on this kernel: `criu check` says what it lacks"));
    }
    // Not being able to remember it costs a check next time.
    let _ = fs::create_dir_all("/run/ocicle").and_then(|()| fs::write(CHECKED, identity));
    Ok(())
}

/// A version of CRIU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct CriuVersion {
    major: u32,
    minor: u32,
    patch: u32,
}

impl fmt::Display for CriuVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 { write!(f, ".{}", self.patch) } else { Ok(()) }
    }
}

/// The version of the CRIU on `PATH`.
pub fn criu_version() -> Result<CriuVersion> {
    let program = real_criu()?;
    let output = run(&program, "--version")?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text)
        .with_context(|| format!("reading what {} --version printed", program.display()))
}

fn parse_version(text: &str) -> Result<CriuVersion> {
    let version = text
        .lines()
        .find_map(|line| line.strip_prefix("Version:"))
        .context("it names no version")?;
    let mut numbers = version.trim().split(['.', '-', ' ']);
    let mut next = || numbers.next().unwrap_or("0").parse::<u32>();
    let (major, minor) = (next()?, next()?);
    Ok(CriuVersion { major, minor, patch: next().unwrap_or(0) })
}

/// What changes when CRIU or the kernel does.
fn identity_of(program: &Path) -> Result<String> {
    let found =
        fs::metadata(program).with_context(|| format!("looking at {}", program.display()))?;
    let kernel = nix::sys::utsname::uname()?;
    let path: PathBuf = fs::canonicalize(program)?;
    Ok(format!(
        "{} {} {} {}",
        path.display(),
        found.ino(),
        found.mtime(),
        kernel.release().display()
    ))
}

fn run(program: &Path, argument: &str) -> Result<Output> {
    Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("running {} {argument}", program.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ordered() {
        let version = |text: &str| parse_version(text).unwrap();
        assert!(version("Version: 4.2.1\nGitID: v4.2.1\n") > OLDEST);
        assert!(version("Version: 4.2\n") == OLDEST);
        assert!(version("Version: 3.17.1\n") < OLDEST);
        assert!(version("Version: 4.2-rc1\n") >= OLDEST);
        assert!(parse_version("criu\n").is_err() && parse_version("Version: x\n").is_err());
        assert_eq!(version("Version: 4.2.1").to_string(), "4.2.1");
    }
}

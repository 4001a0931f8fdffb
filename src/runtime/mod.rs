//! The real runtime: runc, crun, or another that has their command line.

pub mod arguments;
pub mod ended;
pub mod exit;
pub mod log;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail};

use crate::bytes::ByteString;
use crate::hint::WithHint;
use crate::proc::OWN_PROGRAM;
use crate::sys::inode::DevIno;
use crate::sys::pid::Pid;
use crate::sys::process::{find_program, is_program};

/// The program that does the work, and the global flags that it is called with.
#[derive(Clone, Debug)]
pub struct Runtime {
    program: PathBuf,
    globals: Vec<OsString>,
}

impl Runtime {
    /// Finds the real runtime: `OCICLE_RUNTIME`, then the one that the configuration has named,
    /// then the first of crun and runc on `PATH`. Whatever is ocicle itself is refused, or passed
    /// over on `PATH`.
    pub fn find(configured: Option<&Path>) -> Result<Self> {
        const INSTALL: &str = "install runc or crun, or name one: in OCICLE_RUNTIME, or as `runtime` \
                               in /etc/ocicle/ocicle.toml";
        let program = if let Some(named) =
            std::env::var_os("OCICLE_RUNTIME").filter(|name| !name.is_empty())
        {
            Self::named(&named).context("the real runtime of OCICLE_RUNTIME")?
        } else if let Some(named) = configured {
            Self::named(named.as_os_str()).context("the real runtime of the configuration")?
        } else {
            ["crun", "runc"].iter().find_map(|name| find_program(name, is_ourselves)).ok_or_else(
                || anyhow!("neither crun nor runc is on PATH").context(MISSING).hint(INSTALL),
            )?
        };
        Ok(Self { program, globals: Vec::new() })
    }

    /// The runtime of that path, or of that name on `PATH`.
    pub fn named(name: &OsStr) -> Result<PathBuf> {
        let path = Path::new(name);
        let program = if path.components().count() > 1 {
            Some(path.to_owned())
        } else {
            let name = path.to_str().unwrap_or_default();
            find_program(name, is_ourselves).or_else(|| find_program(name, |_| false))
        };
        let program = program
            .filter(|program| is_program(program))
            .with_context(|| format!("there is no program {}", ByteString::from(path)))
            .hint("name an OCI runtime that is installed: crun, runc, or a path")?;
        if is_ourselves(&program) {
            return Err(anyhow!("{} is ocicle itself", program.display())
                .hint("name the runtime that does the work: crun, runc, or a path"));
        }
        Ok(program)
    }

    /// The same runtime, called with these global flags.
    pub fn with_globals(self, globals: Vec<OsString>) -> Self {
        Self { globals, ..self }
    }

    /// The same runtime, for the containers in that state directory.
    pub fn with_root(self, root: &Path) -> Self {
        if self.root().is_some_and(|own| resolved(&own) == resolved(root)) {
            return self;
        }
        let globals = arguments::without(&self.globals, "--root");
        let root = ["--root".into(), root.to_owned().into_os_string()];
        self.with_globals(globals.into_iter().chain(root).collect())
    }

    /// A runtime at a known path.
    pub fn at(program: PathBuf) -> Self {
        Self { program, globals: Vec::new() }
    }

    /// Where the program is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Its name, `runc` or `crun` for the two that ocicle is tested with.
    pub fn name(&self) -> String {
        let name = self.program.file_name().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// The `--root` among its global flags.
    pub fn root(&self) -> Option<PathBuf> {
        arguments::value_of(&self.globals, "--root").map(PathBuf::from)
    }

    /// The directory that it keeps containers in, as they are told apart by: absolute, and without
    /// links where it is there. runc's default is for root (`main` in its main.go).
    pub fn state_root(&self) -> PathBuf {
        let root = match (self.root(), self.family()) {
            (Some(root), _) => root,
            (None, Family::Crun) => self.crun_directory(),
            (None, Family::Runc) => "/run/runc".into(),
            (None, Family::Other) => Path::new("/run").join(self.name()),
        };
        resolved(&root)
    }

    /// Which of the runtimes it is that ocicle knows more of than their command line.
    pub fn family(&self) -> Family {
        Family::of(&self.name())
    }

    /// Where crun keeps its containers, as `get_run_directory` in src/libcrun/status.c finds it.
    pub fn crun_directory(&self) -> PathBuf {
        let session = std::env::var_os("XDG_RUNTIME_DIR").filter(|path| !path.is_empty());
        let session = session.map(|path| PathBuf::from(path).join("crun"));
        self.root().or(session).unwrap_or_else(|| "/run/crun".into())
    }

    /// Whether it may know a container of that name, which takes longer to ask: runc and crun keep
    /// each in a directory of that name below their root.
    pub fn may_know(&self, id: &str) -> bool {
        match self.root() {
            Some(root) if self.family() != Family::Other => {
                std::fs::symlink_metadata(root.join(id))
                    .map_or_else(|error| error.kind() != std::io::ErrorKind::NotFound, |_| true)
            }
            _ => true,
        }
    }

    /// The program, its global flags, and `rest`.
    pub fn command_line(&self, rest: &[OsString]) -> Vec<OsString> {
        let words: Vec<OsString> = std::iter::once(self.program.clone().into_os_string())
            .chain(self.globals.iter().cloned())
            .chain(rest.iter().cloned())
            .collect();
        tracing::debug!("calling {words:?}");
        words
    }

    /// Becomes the runtime; returns only when that fails.
    pub fn exec(&self, rest: &[OsString]) -> anyhow::Error {
        let error = Command::new(&self.program).args(&self.globals).args(rest).exec();
        anyhow::Error::new(error).context(format!("executing {}", self.program.display()))
    }

    /// The state of a container, as `state` prints it.
    ///
    /// # Errors
    /// What the runtime says when it does not know the container.
    pub fn state(&self, id: &str) -> Result<RuntimeState> {
        let output = self.quiet(&["state", id])?;
        if !output.status.success() {
            let said = last_line(&output.stderr).unwrap_or_else(|| output.status.to_string());
            let root =
                self.root().map_or(String::new(), |root| format!(" --root {}", root.display()));
            return Err(anyhow!("{} state: {}", self.name(), message_of(&said)).hint(format!(
                "`{}{root} list` shows the containers there are, `ocicle ps` those of every engine",
                self.name()
            )));
        }
        serde_json::from_slice(&output.stdout)
            .with_context(|| format!("reading what {} state printed", self.name()))
    }

    /// Removes what is left of a stopped container.
    pub fn delete(&self, id: &str) -> Result<()> {
        let output = self.quiet(&["delete", id])?;
        if !output.status.success() {
            bail!("{} delete {id}: {}", self.name(), last_line(&output.stderr).unwrap_or_default());
        }
        Ok(())
    }

    /// The first line of what `--version` prints.
    pub fn version(&self) -> Result<String> {
        let output = self.quiet(&["--version"])?;
        let text = String::from_utf8_lossy(&output.stdout);
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Runs a command of our own, whose errors must not reach the caller's log.
    fn quiet(&self, rest: &[&str]) -> Result<Output> {
        Command::new(&self.program)
            .args(arguments::without_log(&self.globals))
            .args(rest)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("running {} {}", self.program.display(), rest.join(" ")))
    }
}

/// A state directory by the one name that it is compared by.
pub fn resolved(root: &Path) -> PathBuf {
    let absolute = || std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    std::fs::canonicalize(root).unwrap_or_else(|_| absolute())
}

/// The runtimes whose ways beyond the command line ocicle knows: told by the program's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// runc.
    Runc,
    /// crun.
    Crun,
    /// Any other: nothing is taken for granted.
    Other,
}

impl Family {
    /// That of a program of this name.
    pub fn of(name: &str) -> Self {
        match name {
            "runc" => Self::Runc,
            "crun" => Self::Crun,
            _ => Self::Other,
        }
    }
}

const MISSING: &str = "no OCI runtime found";

/// What the runtime knows of a container (the OCI runtime specification's *State*).
#[derive(Clone, Debug, serde::Deserialize)]
pub struct RuntimeState {
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// The first process, as the host numbers it; 0 when there is none.
    #[serde(default)]
    pub pid: Pid,
    /// The bundle directory.
    pub bundle: PathBuf,
}

/// The message in a line of a runtime's log, which may have a time and a level about it:
/// logrus's `time=… level=error msg="…"` of runc, or an object of JSON.
pub fn message_of(line: &str) -> String {
    #[derive(serde::Deserialize)]
    struct Line {
        msg: String,
    }
    if let Ok(Line { msg }) = serde_json::from_str(line) {
        return msg;
    }
    let quoted = line.split_once(" msg=").map(|(_, message)| message);
    match quoted.and_then(|message| serde_json::from_str(message).ok()) {
        Some(message) => message,
        None => line.to_owned(),
    }
}

/// Not what crun adds to an error of its command line.
pub(crate) fn is_telling(line: &str) -> bool {
    !line.trim().is_empty() && !line.starts_with("Try `")
}

fn last_line(text: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(text);
    let line = text.lines().rev().find(|line| is_telling(line))?;
    Some(ByteString::from(line.trim()).to_string())
}

/// Whether a program is ocicle: the same file as this one or as its sibling, or a copy of either.
pub fn is_ourselves(program: &Path) -> bool {
    let siblings = std::env::current_exe()
        .ok()
        .into_iter()
        .flat_map(|exe| ["ocicle", "ocicle-runtime"].map(|name| exe.with_file_name(name)));
    std::iter::once(PathBuf::from(OWN_PROGRAM)).chain(siblings).any(|ours| is_same(&ours, program))
}

fn is_same(ours: &Path, program: &Path) -> bool {
    let same = || -> std::io::Result<bool> {
        let (mut ours, mut theirs) = (File::open(ours)?, File::open(program)?);
        let (our, their) = (ours.metadata()?, theirs.metadata()?);
        if DevIno::from(&our) == DevIno::from(&their) {
            return Ok(true);
        }
        Ok(our.len() == their.len() && same_bytes(&mut ours, &mut theirs)?)
    };
    same().unwrap_or(false)
}

fn same_bytes(one: &mut File, other: &mut File) -> std::io::Result<bool> {
    let (mut left, mut right) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let length = one.read(&mut left)?;
        if length == 0 {
            return Ok(true);
        }
        match other.read_exact(&mut right[..length]) {
            Ok(()) if left[..length] == right[..length] => {}
            Ok(()) => return Ok(false),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_this_program_is_this_program() {
        let directory = tempfile::tempdir().unwrap();
        let copy = directory.path().join("runc");
        std::fs::copy("/proc/self/exe", &copy).unwrap();
        assert!(is_ourselves(&copy));
        assert!(!is_ourselves(Path::new("/bin/sh")));
        assert!(Runtime::named(copy.as_os_str()).unwrap_err().to_string().contains("itself"));
    }

    #[test]
    fn only_a_directory_of_its_name_is_a_container() {
        let root = tempfile::tempdir().unwrap();
        let named = |program: &str| {
            Runtime::at(program.into()).with_globals(vec!["--root".into(), root.path().into()])
        };
        assert!(!named("/usr/bin/runc").may_know("web"));
        assert!(named("/usr/bin/other").may_know("web"), "who knows where it keeps them");
        assert!(Runtime::at("/usr/bin/runc".into()).may_know("web"));
        std::fs::create_dir(root.path().join("web")).unwrap();
        assert!(named("/usr/bin/runc").may_know("web"));
    }

    #[test]
    fn the_message_of_a_line() {
        let line = r#"time="2026-01-02T03:04:05Z" level=error msg="a \"b\" c""#;
        assert_eq!(message_of(line), r#"a "b" c"#);
        let json = r#"{"level":"error","msg":"a \"b\" c","time":"2026-01-02T03:04:05Z"}"#;
        assert_eq!(message_of(json), r#"a "b" c"#);
        for plain in ["container `x` does not exist", "a msg=b", r#" msg="cut"#] {
            assert_eq!(message_of(plain), plain);
        }
        assert_eq!(
            last_line(b"unrecognized option\nTry `crun --help'\n\n").unwrap(),
            "unrecognized option"
        );
    }
}

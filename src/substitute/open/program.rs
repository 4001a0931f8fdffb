//! Programs that return what takes an open file's place.
//!
//! The program is started with a JSON object on standard input:
//!
//! ```json
//! { "schema": 1, "container": "web", "file": { "id": 17, "type": "inet", … } }
//! ```
//!
//! where `file` has the form that `ocicle files --format json` has. The environment variable
//! [`VARIABLE`] is the number of a `SOCK_SEQPACKET` unix socket, on which the program sends one
//! message: `{}`, with one file descriptor (`SCM_RIGHTS`). It then ends with status 0. Its
//! standard output goes where its errors go.

use std::io::{Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::Around;
use crate::bytes::ByteString;
use crate::files::OpenFile;
use crate::sys::pid::Pid;
use crate::sys::process::{is_program, pidfd, wait_readable};
use crate::sys::socket::Channel;
use crate::sys::spawn;

/// The environment variable that names the socket.
const VARIABLE: &str = "OCICLE_FD_SOCKET";

/// How long a program may take, from its start to its end.
const LIMIT: Duration = Duration::from_secs(30);

/// A program that is to be asked.
#[derive(Debug)]
pub(super) struct Question {
    program: PathBuf,
    container: String,
}

pub(super) fn prepare(
    program: &ByteString,
    file: &OpenFile,
    around: &Around<'_>,
) -> Result<Question, String> {
    let program = program.as_path().to_owned();
    if !is_program(&program) {
        return Err(format!("{} is no program", program.display()));
    }
    tracing::debug!("{} will be asked for open file {}", program.display(), file.id);
    Ok(Question { program, container: around.container.to_owned() })
}

impl Question {
    /// Runs the program.
    pub(super) fn ask(&self, file: &OpenFile) -> Result<Option<OwnedFd>, String> {
        let description = json!({ "schema": 1, "container": self.container, "file": file });
        self.run(&description, Instant::now() + LIMIT)
            .map(Some)
            .map_err(|error| format!("{error:#}"))
    }

    fn run(&self, description: &Value, end: Instant) -> Result<OwnedFd> {
        let (ours, theirs) = Channel::pair()?;
        let mut child = self.start(description, theirs.into())?;
        let answered = answer(&ours, end);
        drop(ours);
        let ended = wait(&child, end);
        if ended.is_err() {
            let _ = child.kill();
        }
        let status = child.wait().context("waiting for the program")?;
        let name = self.program.display();
        let fd = answered.with_context(|| format!("{name} ended with {status}"))?;
        ended.with_context(|| name.to_string())?;
        ensure!(status.success(), "{name} ended with {status}");
        Ok(fd)
    }

    fn start(&self, description: &Value, socket: OwnedFd) -> Result<Child> {
        let mut input = tempfile::tempfile().context("writing the description")?;
        serde_json::to_writer(&mut input, description).context("writing the description")?;
        input.write_all(b"\n")?;
        input.rewind()?;
        let errors = std::io::stderr().as_fd().try_clone_to_owned()?;
        let mut command = Command::new(&self.program);
        command.stdin(input).stdout(Stdio::from(errors));
        spawn::with_fd(command, socket, VARIABLE)
            .with_context(|| format!("executing {}", self.program.display()))
    }
}

/// Waits for the message.
fn answer(socket: &Channel, end: Instant) -> Result<OwnedFd> {
    loop {
        let left = end.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "it returned nothing within {} seconds", LIMIT.as_secs());
        if wait_readable(&[socket.as_fd()], Some(left))? == [true] {
            break;
        }
    }
    let Some((_, mut fds)) = socket.receive::<Value>()? else { bail!("it returned nothing") };
    let count = fds.len();
    let fd = fds.pop().filter(|_| count == 1);
    fd.with_context(|| format!("it returned {count} descriptors instead of one"))
}

/// Waits for the end.
fn wait(child: &Child, end: Instant) -> Result<()> {
    let Some(process) = pidfd(Pid::of(child))? else { return Ok(()) };
    loop {
        let left = end.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "it did not end within {} seconds", LIMIT.as_secs());
        if wait_readable(&[process.as_fd()], Some(left))? == [true] {
            return Ok(());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program that waits for ever; it has to be ended when there is no more time.
    fn slow() -> (tempfile::TempDir, Question) {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("slow");
        let text = "#!/bin/sh\necho $$ >\"$0.pid\"\nexec sleep 1000\n";
        std::fs::write(&program, text).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        (directory, Question { program, container: "web".to_owned() })
    }

    #[test]
    fn a_program_that_does_not_answer_is_ended() {
        let (directory, question) = slow();
        let error = question.run(&json!({}), Instant::now() + Duration::from_secs(2)).unwrap_err();
        assert!(format!("{error:#}").contains("returned nothing within"), "{error:#}");
        let pid = std::fs::read_to_string(directory.path().join("slow.pid")).unwrap();
        assert!(!std::path::Path::new("/proc").join(pid.trim()).exists(), "it has ended");
    }

    #[test]
    fn a_program_has_to_end_in_time() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let error = wait(&child, Instant::now() + Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end within"), "{error}");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_program_returns_one_descriptor() {
        let end = || Instant::now() + LIMIT;
        let file = tempfile::tempfile().unwrap();
        for count in [0, 2] {
            let (ours, theirs) = Channel::pair().unwrap();
            theirs.send(&json!({}), &vec![file.as_fd(); count]).unwrap();
            let error = answer(&ours, end()).unwrap_err();
            let said = format!("it returned {count} descriptors instead of one");
            assert_eq!(error.to_string(), said);
        }
        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(&json!({}), &[file.as_fd()]).unwrap();
        answer(&ours, end()).unwrap();
        let (ours, theirs) = Channel::pair().unwrap();
        drop(theirs);
        assert_eq!(answer(&ours, end()).unwrap_err().to_string(), "it returned nothing");
    }
}

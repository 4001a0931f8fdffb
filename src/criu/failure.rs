//! Why CRIU failed, in its own words.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::anyhow;

use super::images::{DumpStats, ImageDir};
use super::log;
use crate::bytes::ByteString;
use crate::hint::{FULL, WithHint};
use crate::runtime::exit::Ended;
use crate::runtime::{Runtime, is_telling, message_of};
use crate::sys::directory::Directory;

/// A log larger than this is read from its end.
const LOG_LIMIT: u64 = 64 << 20;

/// Where CRIU's log may be: its name is not ours to know, since configuration files can set it.
#[derive(Debug)]
pub struct Logs {
    directories: Vec<PathBuf>,
    since: SystemTime,
}

impl Logs {
    /// The places where runc and crun have it written, to logs written since `since`.
    pub fn of(runtime: &Runtime, id: &str, images: &Path, since: SystemTime) -> Self {
        let root = runtime.root().unwrap_or_else(|| Path::new("/run").join(runtime.name()));
        Self { directories: vec![images.to_owned(), root.join(id).join("criu.work")], since }
    }

    /// Looks in another directory first.
    pub fn look_in(&mut self, directory: Option<&Path>) {
        self.directories.splice(0..0, directory.map(Path::to_owned));
    }

    /// Whether CRIU restored the processes: what ends with another status then is the container.
    pub fn say_restored(&self) -> bool {
        const DONE: &[u8] = b"Restore finished successfully";
        let log = self.newest().and_then(|log| log.tail()).unwrap_or_default();
        log.windows(DONE.len()).any(|words| words == DONE)
    }

    /// The log that was written last, and what CRIU's `stats-dump` beside it says.
    pub fn of_dump(&self) -> Option<(Vec<u8>, Option<DumpStats>)> {
        let log = self.newest()?;
        let stats = ImageDir::open(log.path.parent()?).and_then(|directory| directory.dump_stats());
        Some((log.tail()?, stats.ok().flatten()))
    }

    /// Whether CRIU failed over something that is over in a moment.
    pub fn say_passing(&self) -> bool {
        self.newest().and_then(|log| log.tail()).is_some_and(|log| log::is_passing(&log))
    }

    /// The log that was written last.
    fn newest(&self) -> Option<Log> {
        let opened = self.directories.iter().filter_map(|path| Directory::open(path).ok());
        let logs: Vec<Log> = opened.flat_map(|directory| logs_in(&directory)).collect();
        logs.into_iter().filter(|log| log.written >= self.since).max_by_key(|log| log.written)
    }
}

/// A log, opened.
struct Log {
    written: SystemTime,
    path: PathBuf,
    file: File,
}

impl Log {
    /// The end of it.
    fn tail(&self) -> Option<Vec<u8>> {
        let mut file = &self.file;
        let length = file.metadata().ok()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_LIMIT))).ok()?;
        let mut bytes = Vec::new();
        file.take(LOG_LIMIT).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }
}

/// Those of a directory that are regular files: an image directory may have links and fifos by such
/// names.
fn logs_in(directory: &Directory) -> Vec<Log> {
    let names = directory.names().unwrap_or_default();
    let names = names.into_iter().filter_map(|name| String::from_utf8(name).ok());
    let logs = names.filter(|name| Path::new(name).extension().is_some_and(|end| end == "log"));
    let open = |name: String| {
        let file = directory.file(&name).ok()??;
        let written = file.metadata().ok()?.modified().ok()?;
        Some(Log { written, path: directory.path().join(name), file })
    };
    logs.filter_map(open).collect()
}

/// Says why a command of the runtime failed: CRIU's first real error, or what the runtime said.
pub fn explain(
    command: &str,
    runtime: &Runtime,
    ended: &Ended,
    errors: Option<&File>,
    logs: &Logs,
) -> anyhow::Error {
    let log = logs.newest();
    let cause = log.as_ref().and_then(|log| log::explain(&log.tail()?));
    let log = log.map(|log| log.path);
    let said = errors.and_then(last_words);
    match (cause, log) {
        (Some(cause), Some(path)) => {
            let error = anyhow!(
                "CRIU: {} (log: {})",
                ByteString::from(cause.message.as_str()),
                path.display()
            );
            match cause.hint {
                Some(hint) => error.hint(hint),
                None => error,
            }
        }
        (_, path) => {
            let words =
                said.map_or_else(|| ended.to_string(), |words| format!("{words} ({ended})"));
            let log = path.map_or_else(String::new, |path| format!(" (log: {})", path.display()));
            let error = anyhow!("{} {command}: {words}{log}", runtime.name());
            if words.to_lowercase().contains("no space left on device") {
                return error.hint(FULL);
            }
            match log::hint(&words) {
                Some(hint) => error.hint(hint),
                None => error,
            }
        }
    }
}

/// The last line of what the runtime wrote to its standard error.
fn last_words(mut errors: &File) -> Option<String> {
    let mut bytes = Vec::new();
    errors.seek(SeekFrom::Start(0)).ok()?;
    errors.take(1 << 20).read_to_end(&mut bytes).ok()?;
    let text = String::from_utf8_lossy(&bytes);
    let line = text.lines().rev().find(|line| is_telling(line))?;
    Some(ByteString::from(message_of(line.trim())).to_string())
}

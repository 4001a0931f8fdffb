//! Why CRIU failed, in its own words.

use std::fs::{self, File};
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
        let log = self.newest().and_then(|path| tail(&path)).unwrap_or_default();
        log.windows(DONE.len()).any(|words| words == DONE)
    }

    /// The log that was written last, and what CRIU's `stats-dump` beside it says.
    pub fn of_dump(&self) -> Option<(Vec<u8>, Option<DumpStats>)> {
        let path = self.newest()?;
        let stats = ImageDir::open(path.parent()?).and_then(|directory| directory.dump_stats());
        Some((tail(&path)?, stats.ok().flatten()))
    }

    /// Whether CRIU failed over something that is over in a moment.
    pub fn say_passing(&self) -> bool {
        self.newest().and_then(|path| tail(&path)).is_some_and(|log| log::is_passing(&log))
    }

    /// The log that was written last.
    fn newest(&self) -> Option<PathBuf> {
        let logs = self
            .directories
            .iter()
            .filter_map(|directory| fs::read_dir(directory).ok())
            .flatten()
            .flatten();
        logs.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"))
            .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
            .filter(|(written, _)| *written >= self.since)
            .max()
            .map(|(_, path)| path)
    }
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
    let cause = log.as_deref().and_then(|path| log::explain(&tail(path)?));
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

fn tail(path: &Path) -> Option<Vec<u8>> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_LIMIT))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_LIMIT).read_to_end(&mut bytes).ok()?;
    Some(bytes)
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

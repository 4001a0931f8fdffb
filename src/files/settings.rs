//! What CRIU is told, as far as it decides over open files.

use anyhow::Result;

use crate::criu::configuration::standing_options;
use crate::runtime::Runtime;

/// What CRIU is told that decides over a dump.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpSettings {
    /// `--tcp-established`, or `--tcp-close`: TCP connections are kept, or dropped at the restore.
    pub tcp_established: bool,
    /// `--tcp-skip-in-flight`: connections that nobody has accepted are dropped.
    pub tcp_skip_in_flight: bool,
    /// `--file-locks`.
    pub file_locks: bool,
    /// `--ext-unix-sk`.
    pub ext_unix_sk: bool,
    /// `--shell-job`.
    pub shell_job: bool,
    /// Whether CRIU was built with libbpf, and saves BPF maps. Looked up only where there is one.
    pub bpf_maps: bool,
    /// The most bytes on disk that a deleted file may have.
    pub ghost_limit: u64,
}

impl DumpSettings {
    /// The settings, and what the administrator's files for CRIU allow as well.
    pub fn with_standing(&self, runtime: &Runtime) -> Result<Self> {
        let mut settings = self.clone();
        for option in standing_options(&runtime.name())? {
            match option.as_str() {
                "tcp-established" | "tcp-close" => settings.tcp_established = true,
                "skip-in-flight" | "tcp-skip-in-flight" => settings.tcp_skip_in_flight = true,
                "file-locks" => settings.file_locks = true,
                "ext-unix-sk" => settings.ext_unix_sk = true,
                "shell-job" => settings.shell_job = true,
                _ => {}
            }
        }
        Ok(settings)
    }
}

/// A size as CRIU writes it.
pub fn bytes_of(text: &str) -> u64 {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match text.as_bytes().last() {
        Some(b'K') => 10,
        Some(b'M') => 20,
        Some(b'G') => 30,
        _ => 0,
    };
    digits.parse::<u64>().map_or(u64::MAX, |number| number.saturating_mul(1 << shift))
}

//! What CRIU is told, as far as it decides over open files.

use std::fs;
use std::sync::OnceLock;

use anyhow::{Context, Result};

use super::dumpable::{Described, Detail};
use super::facts::Facts;
use crate::criu::config::standing_options;
use crate::criu::door::real_criu;
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
    /// `--link-remap`.
    pub link_remap: bool,
    /// Whether CRIU was built with libbpf, and saves BPF maps. Looked up only where there is one.
    pub bpf_maps: bool,
    /// The most bytes on disk that a deleted file may have.
    pub ghost_limit: u64,
}

impl DumpSettings {
    /// The settings with what has to be looked up, if one of the open files makes it matter.
    pub fn settled(&self, facts: &Facts) -> Result<Self> {
        settled_by(self, facts.files.iter().map(|known| &known.described), saves_bpf_maps)
    }

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
                "link-remap" => settings.link_remap = true,
                _ => {}
            }
        }
        Ok(settings)
    }
}

fn settled_by<'a>(
    settings: &DumpSettings,
    mut files: impl Iterator<Item = &'a Described>,
    saves_bpf_maps: impl FnOnce() -> Result<bool>,
) -> Result<DumpSettings> {
    let mut settings = settings.clone();
    if files.any(|file| matches!(file.detail, Detail::BpfMap(_))) {
        settings.bpf_maps = saves_bpf_maps()?;
    }
    Ok(settings)
}

/// Whether CRIU needs libbpf: without it it does not know BPF maps (`dump_one_file` in
/// criu/files.c), and no feature check tells. The whole program is read for that, once.
fn saves_bpf_maps() -> Result<bool> {
    const LIBRARY: &[u8] = b"libbpf.so";
    static SAVES: OnceLock<bool> = OnceLock::new();
    if let Some(known) = SAVES.get() {
        return Ok(*known);
    }
    let path = real_criu()?;
    let program = fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
    let saves = program.windows(LIBRARY.len()).any(|bytes| bytes == LIBRARY);
    Ok(*SAVES.get_or_init(|| saves))
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

#[cfg(test)]
mod tests {
    use super::super::dumpable::tests::{file, strict};
    use super::*;
    use crate::files::FileKind;

    #[test]
    fn criu_is_looked_at_only_for_the_sake_of_a_bpf_map() {
        let plain = file(FileKind::Reg, Detail::Plain);
        let map = file(FileKind::Bpfmap, Detail::BpfMap(1));
        let settings = DumpSettings { bpf_maps: false, ..strict() };
        let never = || panic!("there is no BPF map");
        assert!(!settled_by(&settings, [&plain].into_iter(), never).unwrap().bpf_maps);
        let saves = || Ok(true);
        assert!(settled_by(&settings, [&plain, &map].into_iter(), saves).unwrap().bpf_maps);
    }
}

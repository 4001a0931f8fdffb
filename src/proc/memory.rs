//! The machine's memory and its page cache.

use std::fs;

use anyhow::{Context, Result};

/// What the kernel knows of the machine's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineMemory {
    /// What can be had without swapping (proc_meminfo(5)).
    pub available: u64,
    /// What is written and not yet on disk.
    pub dirty: u64,
    /// How much may be dirty before the kernel begins to write it, beside whoever writes more.
    pub limit: u64,
}

impl MachineMemory {
    /// Whether the kernel begins to write what is dirty if there are so many bytes more.
    pub fn would_write(&self, more: u64) -> bool {
        self.dirty + more > self.limit
    }

    /// Whether half of what is available is enough.
    pub fn has_plenty(&self, needed: u64) -> bool {
        needed < self.available / 2
    }

    /// As it is now.
    pub fn read() -> Result<Self> {
        let [available, dirty, writeback] =
            read_numbers("/proc/meminfo", ["MemAvailable:", "Dirty:", "Writeback:"])?;
        let [limit] = read_numbers("/proc/vmstat", ["nr_dirty_background_threshold"])?;
        let page = rustix::param::page_size() as u64;
        Ok(Self {
            available: available << 10,
            dirty: (dirty + writeback) << 10,
            limit: limit * page,
        })
    }
}

fn read_numbers<const N: usize>(path: &str, names: [&str; N]) -> Result<[u64; N]> {
    let read = || parse_numbers(&fs::read_to_string(path)?, names);
    read().with_context(|| format!("reading {path}"))
}

/// The numbers behind these names, of which each begins a line.
///
/// # Errors
/// One of them is not there, or behind it is something else.
pub fn parse_numbers<const N: usize>(text: &str, names: [&str; N]) -> Result<[u64; N]> {
    let mut found = [0; N];
    for (name, number) in names.iter().zip(&mut found) {
        let mut lines = text.lines().map(str::split_ascii_whitespace);
        let value = lines.find_map(|mut words| (words.next()? == *name).then(|| words.next())?);
        let value = value.with_context(|| format!("it has no {name}"))?;
        *number = value.parse().with_context(|| format!("{name} {value:?} is no number"))?;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tells() {
        let memory = MachineMemory::read().unwrap();
        assert!(memory.available > 0 && memory.limit > 0);
        assert!(read_numbers("/proc/meminfo", ["NoSuchThing:"]).is_err());
    }

    #[test]
    fn numbers_by_their_names() {
        let text =
            "MemTotal:       9 kB\nDirty:          12 kB\nDirtyX: 3\nnr_dirty 7\nBare:\nBad: x\n";
        assert_eq!(parse_numbers(text, ["Dirty:", "nr_dirty"]).unwrap(), [12, 7]);
        for name in ["Dirt", "Dirty", "Bare:", "Bad:", "12", ""] {
            assert!(parse_numbers(text, [name]).is_err(), "{name}");
        }
    }

    #[test]
    fn what_the_numbers_mean() {
        let memory = MachineMemory { available: 100, dirty: 10, limit: 30 };
        assert!(memory.has_plenty(49) && !memory.has_plenty(50));
        assert!(!memory.would_write(20) && memory.would_write(21));
    }
}

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
            numbers("/proc/meminfo", ["MemAvailable:", "Dirty:", "Writeback:"])?;
        let [limit] = numbers("/proc/vmstat", ["nr_dirty_background_threshold"])?;
        let page = rustix::param::page_size() as u64;
        Ok(Self {
            available: available << 10,
            dirty: (dirty + writeback) << 10,
            limit: limit * page,
        })
    }
}

/// The numbers that a file of /proc has, each in a line, after these names.
fn numbers<const N: usize>(path: &str, names: [&str; N]) -> Result<[u64; N]> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let mut found = [0; N];
    for (name, number) in names.iter().zip(&mut found) {
        let mut lines = text.lines().map(str::split_ascii_whitespace);
        let value = lines.find_map(|mut words| (words.next()? == *name).then(|| words.next())?);
        let value = value.with_context(|| format!("finding {name} in {path}"))?;
        *number = value.parse().with_context(|| format!("reading {name} in {path}"))?;
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
        assert!(numbers("/proc/meminfo", ["NoSuchThing:"]).is_err());
    }
}

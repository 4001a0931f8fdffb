//! Keeps staging from filling the page cache with what waits for the disk: CRIU would have to wait
//! with it while the container stands still.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::copy::Way;
use crate::proc::memory::MachineMemory;

/// Decides for each file which way its bytes take.
#[derive(Debug, Default)]
pub(super) struct Cache {
    copied: AtomicU64,
    is_busy: AtomicBool,
}

/// Of shorter files, direct I/O costs more than it saves.
const LONG: u64 = 512 << 10;

/// After so many bytes the kernel is asked again.
const STEP: u64 = 32 << 20;

impl Cache {
    /// The way for the next file, of so many bytes.
    pub(super) fn way(&self, size: u64) -> Way {
        self.way_given(size, || MachineMemory::read().is_ok_and(|memory| is_busy(&memory)))
    }

    fn way_given(&self, size: u64, is_busy: impl FnOnce() -> bool) -> Way {
        let before = self.copied.fetch_add(size, Ordering::Relaxed);
        if before / STEP != (before + size) / STEP {
            self.is_busy.store(is_busy(), Ordering::Relaxed);
        }
        let is_busy = self.is_busy.load(Ordering::Relaxed);
        if is_busy && size >= LONG { Way::Direct } else { Way::Cache }
    }
}

/// Whether what is dirty takes too much of the room that CRIU's images need.
fn is_busy(memory: &MachineMemory) -> bool {
    memory.dirty > memory.limit / 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_go_past_a_cache_that_is_busy() {
        let cache = Cache::default();
        assert_eq!(cache.way_given(LONG, || unreachable!("not yet asked")), Way::Cache);
        assert_eq!(cache.way_given(STEP, || true), Way::Direct);
        assert_eq!(cache.way_given(LONG - 1, || unreachable!()), Way::Cache);
        assert_eq!(cache.way_given(LONG, || unreachable!()), Way::Direct);
        assert_eq!(cache.way_given(STEP, || false), Way::Cache);
        let memory = |dirty| MachineMemory { available: 0, dirty, limit: 100 };
        assert!(!is_busy(&memory(33)) && is_busy(&memory(34)));
    }
}

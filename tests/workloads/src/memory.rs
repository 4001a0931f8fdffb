//! Shared memory, and bytes that do not compress.

use std::fs::File;
use std::num::NonZeroUsize;
use std::sync::atomic::AtomicU64;

use anyhow::{Context, Result};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous};

const PAGE: NonZeroUsize = NonZeroUsize::new(4096).unwrap();

/// One word, shared with every process forked from now on.
pub fn shared_word() -> Result<&'static AtomicU64> {
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, never unmapped, aligned to a page and zeroed by the kernel.
    unsafe {
        let page = mmap_anonymous(None, PAGE, protection, MapFlags::MAP_SHARED)
            .context("mapping the shared counter")?;
        Ok(page.cast::<AtomicU64>().as_ref())
    }
}

/// The first words of a file, mapped shared; the file is made one page long.
pub fn words_of<const N: usize>(file: &File) -> Result<&'static [AtomicU64; N]> {
    const { assert!(N * 8 <= PAGE.get()) };
    file.set_len(PAGE.get() as u64).context("sizing the mapped file")?;
    let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: a new mapping, never unmapped, of a whole page that the file has; others that map
    // the file use atomic words as well.
    unsafe {
        let page = mmap(None, PAGE, protection, MapFlags::MAP_SHARED, file, 0)
            .context("mapping the file")?;
        Ok(page.cast::<[AtomicU64; N]>().as_ref())
    }
}

/// Fills a buffer with bytes that follow from the seed and do not compress (xorshift).
pub fn fill(buffer: &mut [u8], seed: u64) {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    for chunk in buffer.chunks_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        chunk.copy_from_slice(&state.to_le_bytes()[..chunk.len()]);
    }
}

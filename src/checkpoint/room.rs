//! Room for what CRIU writes: as many pages as it will need, had before the freeze and let go at its
//! door.
//!
//! On a machine whose memory is full of page cache, each page that CRIU writes has to be won from it
//! first; and a virtual machine that gives its free memory back to the host waits for the host at each
//! page that it touches again (free page reporting: Documentation/mm/free_page_reporting.rst of the
//! kernel; seen: 0.4 GiB/s instead of 3). Both happen here instead, while the container runs. The
//! pages are had as CRIU has them, by writing to a file where it does: had otherwise, they would be
//! other pages than those that the kernel then gives to CRIU.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags, open};

use super::images_in_memory::machine;
use crate::proc::memory::MachineMemory;

/// What is smaller is not worth the look.
const SMALL: u64 = 64 << 20;

/// A file without a name, of the size of a dump.
#[derive(Debug)]
pub(super) struct Room(#[cfg_attr(not(test), expect(dead_code, reason = "it is held"))] File);

impl Room {
    /// Makes room for so many bytes in a directory, in memory or on disk, if that is gentle. Without
    /// it the pause is longer, and that is all.
    pub(super) fn make(directory: &Path, on_disk: bool, needed: u64) -> Option<Self> {
        if needed < SMALL {
            return None;
        }
        let made = machine().and_then(|machine| {
            let gentle = is_gentle(&machine, on_disk, needed);
            gentle.then(|| Self::of(directory, needed)).transpose()
        });
        made.inspect_err(|error| tracing::debug!("making room for the dump: {error:#}")).ok()?
    }

    fn of(directory: &Path, size: u64) -> Result<Self> {
        // Where no file can be without a name, as on NFS, bytes may travel as soon as they are written.
        let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = open(directory, flags, Mode::RUSR | Mode::WUSR).context("making a file")?;
        let mut file = File::from(file);
        // As much at a time as the pipe holds from which CRIU writes.
        let piece = vec![0; 1 << 20];
        for _ in 0..size.div_ceil(1 << 20) {
            file.write_all(&piece).context("filling it")?;
        }
        Ok(Self(file))
    }
}

/// Whether nothing else is pushed out of memory for it, and nothing of it gets on its way to the disk.
fn is_gentle(machine: &MachineMemory, on_disk: bool, needed: u64) -> bool {
    machine.has_plenty(needed) && !(on_disk && machine.would_write(needed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_where_nobody_else_has_to_leave() {
        let machine = MachineMemory { available: 16 << 30, dirty: 1 << 30, limit: 3 << 30 };
        assert!(is_gentle(&machine, true, 1 << 30));
        let directory = tempfile::tempdir().unwrap();
        assert!(Room::make(directory.path(), false, 1 << 20).is_none(), "it is not worth it");
        assert!(!is_gentle(&machine, true, 5 << 29), "the kernel would begin to write");
        assert!(is_gentle(&machine, false, 5 << 29));
        assert!(!is_gentle(&machine, false, 9 << 30), "there is too little memory");
    }

    #[test]
    fn room_is_as_large_as_the_dump_and_leaves_nothing_behind() {
        let directory = tempfile::tempdir().unwrap();
        let size = (2 << 20) + 1;
        let room = Room::of(directory.path(), size).unwrap();
        assert!(room.0.metadata().unwrap().len() >= size);
        assert_eq!(directory.path().read_dir().unwrap().count(), 0);
    }

    #[test]
    fn no_room_is_made_where_no_file_can_be_without_a_name() {
        let directory = Path::new("/proc");
        assert_eq!(Room::of(directory, 1).unwrap_err().to_string(), "making a file");
        assert!(Room::make(directory, false, SMALL).is_none());
    }
}

//! Files whose change the kernel does not record in time.
//!
//! A store through a shared mapping changes the inode's times only when it first dirties a page,
//! and direct I/O in flight lands after they were set. The content of such files is copied again
//! under the freeze, whatever their times say.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Files by device and inode number.
pub type Files = HashSet<(u64, u64)>;

/// The files that these processes map shared and writable, or hold open for direct I/O.
///
/// A process that ends while it is looked at has no such file any more.
pub(super) fn files_of(processes: &[i32]) -> Files {
    let mut files = Files::new();
    for pid in processes {
        mapped(*pid, &mut files);
        direct(*pid, &mut files);
    }
    files
}

fn mapped(pid: i32, files: &mut Files) {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    for range in String::from_utf8_lossy(&maps).lines().filter_map(shared_and_writable) {
        insert(&Path::new("/proc").join(format!("{pid}/map_files/{range}")), files);
    }
}

/// The address range of a line of proc_pid_maps(5), if its mapping is shared, writable and of a
/// file. One that may be made writable again counts: `mprotect` leaves no trace.
fn shared_and_writable(line: &str) -> Option<&str> {
    let mut fields = line.split_ascii_whitespace();
    let (range, permissions) = (fields.next()?, fields.next()?);
    let inode = fields.nth(2)?;
    (permissions.ends_with('s') && inode != "0").then_some(range)
}

fn direct(pid: i32, files: &mut Files) {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return };
    for entry in entries.flatten() {
        let text = fs::read_to_string(entry.path()).unwrap_or_default();
        if is_direct(&text) {
            insert(
                &Path::new("/proc").join(pid.to_string()).join("fd").join(entry.file_name()),
                files,
            );
        }
    }
}

fn is_direct(fdinfo: &str) -> bool {
    let flags = fdinfo.lines().find_map(|line| line.strip_prefix("flags:")).map(str::trim);
    flags
        .and_then(|flags| i32::from_str_radix(flags, 8).ok())
        .is_some_and(|flags| flags & libc::O_DIRECT != 0)
}

fn insert(link: &Path, files: &mut Files) {
    if let Ok(found) = fs::metadata(link)
        && found.is_file()
    {
        files.insert((found.dev(), found.ino()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_mappings_of_files() {
        let shared = "7f0000000000-7f0000001000 rw-s 00000000 fe:00 42 /a b";
        assert_eq!(shared_and_writable(shared), Some("7f0000000000-7f0000001000"));
        for other in ["7f00-7f10 rw-p 0 fe:00 42 /a", "7f00-7f10 rw-s 0 00:00 0", "7f00-7f10"] {
            assert_eq!(shared_and_writable(other), None, "{other}");
        }
    }

    #[test]
    fn direct_io_is_told_by_the_flags() {
        assert!(is_direct("pos:\t0\nflags:\t0140002\n"));
        assert!(!is_direct("pos:\t0\nflags:\t0100002\n"));
        assert!(!is_direct(""));
    }
}

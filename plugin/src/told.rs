//! What ocicle tells of this run of CRIU, and what it is told in return.
//!
//! The environment names a directory that root alone can open ([`DIRECTORY`]). In it are `told`, one
//! thing to do on each line, and `report`, which is made when there is something to say.

use std::ffi::{CStr, OsStr};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use libc::c_int;

/// The environment variable that names the directory.
const DIRECTORY: &CStr = c"OCICLE_PLUGIN";

static TOLD: OnceLock<Told> = OnceLock::new();

/// What there is to do.
#[derive(Default)]
pub struct Told {
    directory: PathBuf,
    /// Whether calls that sleep shall go on: `sleepers`.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub sleepers: bool,
    pub aside: Vec<Aside>,
    pub locks: Vec<Lock>,
}

/// An open file that is set aside: `aside DEVICE INODE PID FD`.
pub struct Aside {
    pub device: u64,
    pub inode: u64,
    pub pid: c_int,
    pub fd: c_int,
}

/// A lock of a range: `lock PID FD TYPE START LENGTH`, with the process as the container numbers it.
pub struct Lock {
    pub pid: c_int,
    pub fd: c_int,
    pub kind: i16,
    pub start: i64,
    pub length: i64,
}

/// What was told; nothing before [`begin`].
pub fn told() -> &'static Told {
    static NOTHING: OnceLock<Told> = OnceLock::new();
    TOLD.get().unwrap_or_else(|| NOTHING.get_or_init(Told::default))
}

/// Reads it, before CRIU's `main`. What CRIU starts finds neither the directory nor this library.
pub fn begin() {
    TOLD.get_or_init(|| {
        // SAFETY: the names end in a zero byte; nothing else runs yet that could use the
        // environment, and the value is copied before it changes.
        let directory = unsafe {
            let value = libc::getenv(DIRECTORY.as_ptr());
            let value = if value.is_null() { c"" } else { CStr::from_ptr(value) };
            let directory = PathBuf::from(OsStr::from_bytes(value.to_bytes()));
            libc::unsetenv(DIRECTORY.as_ptr());
            libc::unsetenv(c"LD_PRELOAD".as_ptr());
            directory
        };
        let text = fs::read_to_string(directory.join("told")).unwrap_or_default();
        Told::parse(directory, &text)
    });
}

impl Told {
    fn parse(directory: PathBuf, text: &str) -> Self {
        let mut told = Self { directory, ..Self::default() };
        for line in text.lines() {
            let mut words = line.split(' ');
            match words.next() {
                Some("aside") => told.aside.extend(Aside::parse(words)),
                Some("sleepers") => told.sleepers = true,
                Some("lock") => told.locks.extend(Lock::parse(words)),
                _ => {}
            }
        }
        told
    }

    /// Says one thing more to ocicle, on a line.
    pub fn report(&self, line: &str) {
        let path = self.directory.join("report");
        let report = File::options().create(true).append(true).open(path);
        // Who cannot even say so has ended the restore before.
        let _ = report.and_then(|mut report| writeln!(report, "{line}"));
    }
}

impl Aside {
    fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        Some(Self {
            device: words.next()?.parse().ok()?,
            inode: words.next()?.parse().ok()?,
            pid: words.next()?.parse().ok()?,
            fd: words.next()?.parse().ok()?,
        })
    }
}

impl Lock {
    fn parse<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Self> {
        Some(Self {
            pid: words.next()?.parse().ok()?,
            fd: words.next()?.parse().ok()?,
            kind: words.next()?.parse().ok()?,
            start: words.next()?.parse().ok()?,
            length: words.next()?.parse().ok()?,
        })
    }
}

//! How many file descriptors this process may have.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The most that the soft limit can be raised to.
pub fn most() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

/// How many there are.
pub fn open() -> io::Result<u64> {
    // One is of the directory that is read.
    Ok(std::fs::read_dir("/proc/self/fd")?.count() as u64 - 1)
}

/// Raises the soft limit to so many, or as far as it goes; it is never lowered.
pub fn make_room(wanted: u64) -> io::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = wanted.min(most());
    if current.is_none_or(|current| current >= wanted) {
        return Ok(());
    }
    Ok(setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_raised_and_not_lowered() {
        let current = || getrlimit(Resource::Nofile).current.unwrap();
        let before = current();
        make_room(3).unwrap();
        assert_eq!(current(), before);
        let more = (before + 1).min(most());
        make_room(more).unwrap();
        assert_eq!(current(), more);
        make_room(u64::MAX).unwrap();
        assert_eq!(current(), most());
    }

    #[test]
    fn those_that_are_open_are_counted() {
        let before = open().unwrap();
        let files: Vec<_> = (0..5).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        assert!(open().unwrap() >= 5 && before >= 3, "{before}");
        drop(files);
    }
}

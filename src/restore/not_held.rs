//! What the container can write and the checkpoint does not hold: whether it has changed since.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType};

use crate::bytes::ByteString;
use crate::container::Bundle;
use crate::proc::Proc;
use crate::proc::mountinfo::{Mount, mount_of};
use crate::store::manifest::{Manifest, NotHeld};
use crate::sys::fs;
use crate::sys::time::Time;

/// So many names are looked at.
const MOST: usize = 100_000;

/// Says of each such directory what has changed in it since the checkpoint.
pub(super) fn say_what_is_not_held(manifest: &Manifest, bundle: &Bundle) {
    let mounts = Proc::own().mounts().unwrap_or_default();
    let created = manifest.created;
    let since = Time::from_kernel(created.as_second(), created.subsec_nanosecond().into());
    for bind in bundle.visible_binds() {
        let is_it = |one: &&NotHeld| one.destination.as_path() == bind.destination;
        if let Some(one) = manifest.not_held.iter().find(is_it) {
            tracing::warn!("{one}, and {}", since_then(&bind.source, since, &mounts));
        }
    }
}

fn since_then(source: &Path, since: Time, mounts: &[Mount]) -> String {
    if mount_of(mounts, source).is_some_and(Mount::is_remote) {
        return "whether it has changed since is not known: a server elsewhere has it".to_owned();
    }
    match Changed::below(source, since) {
        Ok(changed) => changed.in_words(),
        Err(error) => format!("whether it has changed since is not known: {error}"),
    }
}

/// What was changed, made or removed since a moment: the kernel sets the time of an inode's last change,
/// and nobody sets it back.
struct Changed {
    since: Time,
    count: usize,
    first: Option<ByteString>,
    /// How many names may still be looked at.
    left: usize,
}

impl Changed {
    fn below(top: &Path, since: Time) -> io::Result<Self> {
        let mut changed = Self { since, count: 0, first: None, left: MOST };
        let top = fs::open_host_dir(top)?;
        let device = rustix::fs::fstat(&top)?.st_dev;
        let mut waiting = VecDeque::from([Vec::new()]);
        while let Some(path) = waiting.pop_front() {
            // What goes away meanwhile belongs to somebody who is at work there.
            if let Ok(directory) = fs::open_dir(&top, &path)
                && rustix::fs::fstat(&directory).is_ok_and(|found| found.st_dev == device)
            {
                changed.look_in(&directory, &path, &mut waiting);
            }
        }
        Ok(changed)
    }

    fn look_in(&mut self, dir: &OwnedFd, path: &[u8], waiting: &mut VecDeque<Vec<u8>>) {
        for name in fs::names(dir).unwrap_or_default() {
            let Some(left) = self.left.checked_sub(1) else { return };
            self.left = left;
            let below = if path.is_empty() { name.clone() } else { [path, b"/", &name].concat() };
            let found = rustix::fs::statat(dir, &*name, AtFlags::SYMLINK_NOFOLLOW);
            let Ok(found) = found else { continue };
            if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                waiting.push_back(below.clone());
            }
            if Time::from_kernel(found.st_ctime, found.st_ctime_nsec.cast_signed()) > self.since {
                self.count += 1;
                self.first.get_or_insert_with(|| below.into());
            }
        }
    }

    fn in_words(&self) -> String {
        let Self { count, left, .. } = self;
        let least = if *left == 0 { "at least " } else { "" };
        match &self.first {
            None if *left == 0 => "it is too large to see what has changed since".to_owned(),
            None => "nothing there has changed since".to_owned(),
            Some(first) if *count == 1 => format!("{least}1 file there has changed since: {first}"),
            Some(first) => {
                format!("{least}{count} files there have changed since, such as {first}")
            }
        }
    }
}

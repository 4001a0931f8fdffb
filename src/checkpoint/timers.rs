//! Timers that a restore would stop: those of timerfd that have expired, and that nobody has read since.
//!
//! The kernel arms such a timer again when it is read (`timerfd_read` in fs/timerfd.c). Until then it
//! says of one that repeats that nothing is left of its time (`timerfd_show`), CRIU writes that down
//! (`dump_one_timerfd` in criu/timerfd.c), and at the restore sets the timer to that, which disarms it
//! (timerfd_settime(2)). With its interval for the time that is left it goes on, up to one interval late.

use std::path::Path;

use anyhow::{Context, Result};

use crate::criu::images::ImageDir;
use crate::criu::images::image::{EntryChange, ImageKind};
use crate::criu::images::wire::{BadMessage, Message};
use crate::sys::directory::Directory;

/// The image of open files.
const IMAGE: &str = "files.img";

/// Makes sure that a restore goes on with them.
pub(super) fn complete(images: &Path) -> Result<()> {
    let changed = changed(&ImageDir::open(images)?).context("looking for timers")?;
    let Some(bytes) = changed else { return Ok(()) };
    let write = || Directory::open(images)?.replace(IMAGE, &bytes);
    write().with_context(|| format!("writing {}", images.join(IMAGE).display()))
}

/// The image with them, if there are any.
fn changed(dir: &ImageDir) -> Result<Option<Vec<u8>>> {
    let Some(image) = dir.find(ImageKind::Files, IMAGE)? else { return Ok(None) };
    let mut is_changed = false;
    let bytes = image.rewrite(|entry| {
        let armed = armed_again(entry)?;
        is_changed |= armed.is_some();
        Ok(armed.map_or(EntryChange::Keep, EntryChange::Replace))
    })?;
    Ok(is_changed.then_some(bytes))
}

/// The entry of one of them, with its interval for the time that is left.
fn armed_again(entry: &Message<'_>) -> Result<Option<Vec<u8>>, BadMessage> {
    /// The body's field in `file_entry`, and what is in it (images/timerfd.proto).
    const BODY: u32 = 12;
    const SETTIME_FLAGS: u32 = 6;
    const LEFT: [u32; 2] = [7, 8];
    const INTERVAL: [u32; 2] = [9, 10];
    let Some(body) = entry.message(BODY)? else { return Ok(None) };
    let of = |field| body.number(field).unwrap_or(0);
    let interval = INTERVAL.map(of);
    if LEFT.map(of) != [0, 0] || interval == [0, 0] {
        return Ok(None);
    }
    let mut armed = body.clone();
    LEFT.iter().zip(interval).for_each(|(field, value)| armed.set_number(*field, value));
    // What is left is a time from now: with that flag CRIU adds the clock's (`timerfd_arm` in
    // criu/pie/restorer.c).
    armed.set_number(SETTIME_FLAGS, of(SETTIME_FLAGS) & !(libc::TFD_TIMER_ABSTIME as u64));
    let mut entry = entry.without(BODY);
    entry.push_bytes(BODY, &armed.encode());
    Ok(Some(entry.encode()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::criu::images::image::build;

    /// An entry of a timer: the flags it was set with, what is left, its interval.
    fn timer(flags: u64, left: [u64; 2], interval: [u64; 2]) -> Vec<u8> {
        let mut body = Message::default();
        for (field, value) in (1..).zip([7, 0, 0, 1, 2, flags]) {
            body.set_number(field, value);
        }
        let times = [left, interval].concat();
        (7..).zip(times).for_each(|(field, value)| body.set_number(field, value));
        let mut entry = Message::default();
        entry.set_number(1, 17);
        entry.set_number(2, 7);
        entry.push_bytes(12, &body.encode());
        entry.encode()
    }

    #[test]
    fn what_repeats_and_has_no_time_left_gets_its_interval() {
        let other = timer(0, [0, 5], [1, 0]);
        let once = timer(0, [0, 0], [0, 0]);
        let before = [timer(3, [0, 0], [0, 20]), other.clone(), once.clone()];
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(IMAGE);
        let write = |entries: &[Vec<u8>]| {
            std::fs::write(&path, build(ImageKind::Files, entries)).unwrap();
        };
        write(&before);
        complete(directory.path()).unwrap();
        let after = [timer(2, [0, 20], [0, 20]), other.clone(), once.clone()];
        assert_eq!(std::fs::read(&path).unwrap(), build(ImageKind::Files, &after));
        write(&[other, once]);
        assert_eq!(changed(&ImageDir::open(directory.path()).unwrap()).unwrap(), None);
        std::fs::remove_file(&path).unwrap();
        complete(directory.path()).unwrap();
    }
}

//! Locks that CRIU alone loses at a restore: those of ranges, on files that their holder has mapped too.
//!
//! CRIU opens what is mapped after it has set the locks (`restore_one_alive_task` in
//! criu/cr-restore.c), and closes it again when it is mapped (`restore_mapping` in
//! criu/pie/restorer.c). A process that closes any descriptor of a file gives up its locks of ranges
//! on that file (fcntl(2)), and so does every process that has the same table of descriptors.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::bytes::ByteString;
use crate::container::Holder;
use crate::criu::images::entries::{FileBody, FileEntry, FileLock};
use crate::criu::images::{Images, InTable, TaskImages};

/// Those of a checkpoint: the file descriptors that they are held through, and the files.
pub fn lost_locks(images: &Images) -> BTreeSet<(Holder, ByteString)> {
    let descriptors = images.descriptors();
    let paths: HashMap<u32, Place<'_>> = images.files.iter().filter_map(place).collect();
    let mapped: HashSet<(u32, Place<'_>)> = images
        .tasks
        .iter()
        .flat_map(|task| mapped(task).filter_map(|one| Some((one.table, *paths.get(&one.file)?))))
        .collect();
    let lost = |lock: &FileLock| {
        let holder = Holder { pid: lock.pid, fd: lock.fd };
        let InTable { table, file } = *descriptors.get(&holder)?;
        let locked = *paths.get(&file)?;
        mapped.contains(&(table, locked)).then(|| (holder, locked.1.clone()))
    };
    let ranges = images.locks.iter().filter(|lock| lock.is_of_process());
    ranges.filter_map(lost).collect()
}

/// The mount of a file and its path.
type Place<'a> = (Option<i32>, &'a ByteString);

fn place(file: &FileEntry) -> Option<(u32, Place<'_>)> {
    match &file.body {
        FileBody::Reg(reg) => Some((file.id, (reg.mount, &reg.name))),
        _ => None,
    }
}

/// What a process has mapped, and its program, each with its table of file descriptors.
fn mapped(task: &TaskImages) -> impl Iterator<Item = InTable> + '_ {
    let files = task.mm.iter().flat_map(|mm| mm.mapped.iter().copied().chain([mm.exe]));
    files.filter_map(|file| Some(InTable { table: task.table()?, file }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_lock_of_a_range_on_what_is_mapped() {
        let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images");
        let mut images = Images::load(&kept).unwrap();
        let program = images.tasks[0].mm.as_ref().unwrap().exe;
        let lock = images.locks[0];
        assert!(lost_locks(&images).is_empty(), "it is one of flock");
        images.locks[0].flag = FileLock::POSIX;
        assert!(lost_locks(&images).is_empty(), "nobody has mapped that file");
        // Another opening of the program, by another identifier.
        let table = images.tasks[0].ids.unwrap().files;
        let fds = images.tables.get_mut(&table).unwrap();
        let held = fds.iter_mut().find(|fd| fd.fd == lock.fd).unwrap();
        let mut opened = images.files.iter().find(|file| file.id == program).unwrap().clone();
        opened.id = 4711;
        held.file = opened.id;
        images.files.push(opened);
        images.locks[0].pid = images.tasks[0].tree.pid;
        let lost: Vec<_> = lost_locks(&images).into_iter().map(|(holder, _)| holder.fd).collect();
        assert_eq!(lost, [lock.fd]);
    }
}

//! Real images, read and rewritten.
//!
//! `tests/data/images` is part of a checkpoint that runc 1.3 and CRIU 4.2.1 made of `program.c`
//! there, with its standard output redirected to a file of the host.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ocicle::container::Holder;
use ocicle::criu::images::Images;
use ocicle::criu::images::entries::FileBody;
use ocicle::criu::images::image::{EntryChange, Image, ImageKind};
use ocicle::files::{FileId, FoundFile, Table, parse_user_info, preflight, write_user_info};
use ocicle::substitute::{How, Treatment, rewrite};
use ocicle::sys::pid::InnerPid;

fn images() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/images")
}

fn id(table: &Table, fd: i32) -> FileId {
    table.held_by(Holder { pid: InnerPid(1), fd }).unwrap_or_else(|| panic!("fd {fd}")).id
}

fn kind_of(name: &str) -> ImageKind {
    match name.trim_end_matches(|c: char| !c.is_alphabetic()).split('-').next().unwrap() {
        "core" => ImageKind::Core,
        "fdinfo" => ImageKind::FdInfo,
        "filelocks.img" => ImageKind::FileLocks,
        "files.img" => ImageKind::Files,
        "fs" => ImageKind::Fs,
        "ids" => ImageKind::Ids,
        "inventory.img" => ImageKind::Inventory,
        "memfd.img" => ImageKind::MemfdInode,
        "mm" => ImageKind::Mm,
        "pstree.img" => ImageKind::ProcessTree,
        "remap" => ImageKind::RemapPath,
        "tty" => ImageKind::TtyInfo,
        other => panic!("{other}"),
    }
}

fn all() -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(images()).unwrap().map(Result::unwrap);
    let images = entries.filter(|entry| entry.path().extension().is_some_and(|e| e == "img"));
    images
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect()
}

#[test]
fn a_rewrite_that_changes_nothing_changes_no_byte() {
    let all = all();
    assert!(all.len() > 20);
    for (name, bytes) in all {
        let image = Image::parse(kind_of(&name), bytes.clone()).unwrap();
        assert!(!image.is_empty(), "{name}");
        assert_eq!(image.rewrite(|_| Ok(EntryChange::Keep)).unwrap(), bytes, "{name}");
    }
}

fn inherited(ids: &[FileId]) -> Vec<Treatment> {
    ids.iter().map(|id| Treatment { id: *id, how: How::Inherit, drop: false }).collect()
}

#[test]
fn the_open_files() {
    let table = Table::from_images(&images()).unwrap();
    let rows: Vec<_> = table.files.iter().map(|file| file.row().join("  ")).collect();
    insta::assert_snapshot!(rows.join("\n"));
    assert!(table.find(id(&table, 11)).unwrap().watched);
    assert!(table.find(id(&table, 1)).unwrap().must_substitute);
    assert_eq!(parse_user_info(&write_user_info(&table)).unwrap().len(), table.files.len());
}

#[test]
fn damaged_images_are_errors_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let all = all();
    for (name, bytes) in &all {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    for (name, bytes) in &all {
        let path = dir.path().join(name);
        let steps = (0..bytes.len()).step_by(bytes.len() / 64 + 1);
        for at in steps {
            fs::write(&path, &bytes[..at]).unwrap();
            let _ = Table::from_images(dir.path());
            for bit in [0x01, 0x80] {
                let mut flipped = bytes.clone();
                flipped[at] ^= bit;
                fs::write(&path, &flipped).unwrap();
                if let Ok(images) = Images::load(dir.path()) {
                    let table = Table::of(&images);
                    let _ = preflight(&images, &[], &|_| FoundFile::Missing);
                    assert!(table.files.len() <= images.files.len());
                }
            }
        }
        fs::write(&path, bytes).unwrap();
    }
}

/// A restore reads what the kernel says was written since: a view must not make it look so.
#[test]
fn a_view_leaves_what_the_kernel_says_of_the_images() {
    let directory = tempfile::tempdir().unwrap();
    for (name, bytes) in all() {
        fs::write(directory.path().join(name), bytes).unwrap();
    }
    let said = || -> BTreeMap<String, (u64, i64, i64)> {
        let names = all().into_keys();
        names
            .map(|name| {
                let found = fs::symlink_metadata(directory.path().join(&name)).unwrap();
                (name, (found.nlink(), found.ctime(), found.ctime_nsec()))
            })
            .collect()
    };
    let before = said();
    let table = Table::from_images(directory.path()).unwrap();
    let view = directory.path().join("a/view");
    fs::create_dir(directory.path().join("a")).unwrap();
    rewrite(directory.path(), &view, &inherited(&[id(&table, 16)])).unwrap();
    for (name, bytes) in all() {
        let is_changed = name == "files.img" || name.starts_with("fdinfo-");
        assert_eq!(fs::read(view.join(&name)).unwrap() != bytes, is_changed, "{name}");
    }
    fs::remove_dir_all(directory.path().join("a")).unwrap();
    assert_eq!(said(), before);
}

#[test]
fn a_view_changes_the_chosen_files_and_nothing_else() {
    let before = all();
    let out = tempfile::tempdir().unwrap();
    let view = out.path().join("view");
    let table = Table::from_images(&images()).unwrap();
    let chosen: Vec<_> = [16, 4, 7, 10, 11, 12, 13, 14, 15, 1].map(|fd| id(&table, fd)).into();
    let keys = rewrite(&images(), &view, &inherited(&chosen)).unwrap();
    assert_eq!(keys.iter().map(|key| key.id).collect::<Vec<_>>(), chosen);

    let seen = Table::from_images(&view).unwrap();
    for (was, is) in table.files.iter().zip(&seen.files) {
        assert_eq!((was.id, &was.holders), (is.id, &is.holders));
        let key = keys.iter().find(|key| key.id == is.id);
        match key {
            None => assert_eq!(was, is),
            Some(key) => {
                assert_eq!(is.name.to_string(), format!("/{}", key.key));
                assert_eq!((is.position, is.size, is.mode), (Some(0), None, None));
                assert!(!is.must_substitute && !is.deleted);
                let known = !matches!(was.kind, ocicle::files::FileKind::Fifo);
                assert!(!known || was.flags == is.flags);
            }
        }
    }
    for (name, bytes) in &before {
        let is_changed = ["files.img", "remap-fpath.img"].contains(&name.as_str())
            || name.starts_with("fdinfo-");
        assert_eq!(&fs::read(view.join(name)).unwrap() != bytes, is_changed, "{name}");
    }
    assert_eq!(all(), before);
}

#[test]
fn a_closed_file_leaves_nothing_that_refers_to_it() {
    let out = tempfile::tempdir().unwrap();
    let view = out.path().join("view");
    let before = Table::from_images(&images()).unwrap();
    let watched: Vec<_> = before.files.iter().filter(|file| file.watched).map(|f| f.id).collect();
    let ids = [&watched[..], &[id(&before, 16)]].concat();
    assert!(!watched.is_empty());
    let closed: Vec<_> =
        ids.iter().map(|id| Treatment { id: *id, how: How::Close, drop: false }).collect();
    assert_eq!(rewrite(&images(), &view, &closed).unwrap(), []);
    let after = Images::load(&view).unwrap();
    assert!(after.fds().all(|(_, fd)| !ids.contains(&FileId(fd.file))));
    let table = Table::of(&after);
    assert!(table.files.iter().all(|file| !file.watched), "no epoll instance watches it");
    let rest: Vec<_> = before.files.into_iter().filter(|file| !ids.contains(&file.id)).collect();
    assert_eq!(table.files, rest);
}

#[test]
fn a_file_of_the_container_takes_the_place_of_another() {
    let out = tempfile::tempdir().unwrap();
    let view = out.path().join("view");
    let before = Table::from_images(&images()).unwrap();
    let how = How::Reopen { path: "/etc/motd".into(), flags: 0o2001, position: Some(7) };
    let treatment = Treatment { id: id(&before, 10), how, drop: false };
    assert_eq!(rewrite(&images(), &view, std::slice::from_ref(&treatment)).unwrap(), []);
    let images = Images::load(&view).unwrap();
    let table = Table::of(&images);
    let file = table.find(treatment.id).unwrap();
    assert_eq!(
        (file.name.to_string(), file.flags, file.position),
        ("/etc/motd".to_owned(), 0o2001, Some(7))
    );
    assert_eq!(file.holders, before.find(treatment.id).unwrap().holders);
}

#[test]
fn what_cannot_be_replaced_is_refused_before_anything_is_made() {
    let out = tempfile::tempdir().unwrap();
    let view = out.path().join("view");
    let table = Table::from_images(&images()).unwrap();
    let program = Images::load(&images()).unwrap().tasks[0].mm.as_ref().unwrap().exe;
    let ids = [id(&table, 4), FileId(4242), FileId(program)];
    let error = rewrite(&images(), &view, &inherited(&ids)).unwrap_err().to_string();
    insta::assert_snapshot!(error.replace(&program.to_string(), "PROGRAM"));
    assert!(!view.exists());
    let pair: Vec<_> = [8, 9].map(|fd| id(&table, fd)).into();
    rewrite(&images(), &view, &inherited(&pair)).unwrap();
    let error = rewrite(&images(), &view, &inherited(&pair)).unwrap_err();
    assert!(format!("{error:#}").ends_with("it is not empty"), "{error:#}");
}

#[test]
fn a_peer_stays_alone() {
    let out = tempfile::tempdir().unwrap();
    let view = out.path().join("view");
    let table = Table::from_images(&images()).unwrap();
    let (left, right) = (id(&table, 8), id(&table, 9));
    rewrite(&images(), &view, &inherited(&[left])).unwrap();
    let after = Images::load(&view).unwrap();
    let peer_of = |images: &Images| match &images.file(right.0).unwrap().body {
        FileBody::Unix(socket) => socket.peer,
        other => panic!("{other:?}"),
    };
    assert_ne!(peer_of(&Images::load(&images()).unwrap()), 0);
    assert_eq!(peer_of(&after), 0);
}

#[test]
fn what_is_mapped_stays_mapped() {
    let table = Table::from_images(&images()).unwrap();
    let mapped = id(&table, 17);
    let before = Images::load(&images()).unwrap();
    let maps = |images: &Images| {
        let all = images.tasks.iter().flat_map(|task| task.mm.iter());
        all.map(|mm| mm.mapped.clone()).collect::<Vec<_>>()
    };
    assert!(maps(&before).concat().contains(&mapped.0));
    for how in [How::Inherit, How::Close] {
        let out = tempfile::tempdir().unwrap();
        let view = out.path().join("view");
        let is_closed = how == How::Close;
        let keys =
            rewrite(&images(), &view, &[Treatment { id: mapped, how, drop: false }]).unwrap();
        let after = Images::load(&view).unwrap();
        assert_eq!(maps(&after), maps(&before));
        assert_eq!(after.file(mapped.0), before.file(mapped.0), "the mapping's entry stays");
        assert!(after.fds().all(|(_, fd)| fd.file != mapped.0), "and no descriptor has it");
        let table = Table::of(&after);
        match table.held_by(Holder { pid: InnerPid(1), fd: 17 }) {
            Some(file) => assert_eq!(file.name.to_string(), format!("/{}", keys[0].key)),
            None => assert!(is_closed),
        }
    }
}

#[test]
fn a_lock_stays_unless_it_is_dropped() {
    let table = Table::from_images(&images()).unwrap();
    let locked = id(&table, 22);
    assert_eq!(table.find(locked).unwrap().locks.len(), 1);
    for (drop, expected) in [(false, 1), (true, 0)] {
        let out = tempfile::tempdir().unwrap();
        let view = out.path().join("view");
        rewrite(&images(), &view, &[Treatment { id: locked, how: How::Inherit, drop }]).unwrap();
        let after = Images::load(&view).unwrap();
        assert_eq!(Table::of(&after).find(locked).unwrap().locks.len(), expected);
    }
}

#[test]
fn every_file_that_is_not_as_it_was_is_named() {
    let images = Images::load(&images()).unwrap();
    let table = Table::of(&images);
    let there = |path: &Path| {
        let file = images.files.iter().find_map(|file| match &file.body {
            ocicle::criu::images::entries::FileBody::Reg(reg) if reg.name.as_path() == path => {
                Some(reg)
            }
            _ => None,
        });
        let reg = file.unwrap();
        FoundFile::Present { mode: reg.mode.unwrap(), size: reg.size.unwrap_or(7) }
    };
    assert_eq!(preflight(&images, &[], &there), []);
    let changed = |path: &Path| match (path.to_str(), there(path)) {
        (Some("/data/file"), FoundFile::Present { mode, .. }) => {
            FoundFile::Present { mode, size: 18 }
        }
        (Some("/data/mapped" | "/data/log"), _) => FoundFile::Missing,
        (Some("/data"), _) => FoundFile::Present { mode: 0o100644, size: 0 },
        (_, found) => found,
    };
    let problems = preflight(&images, &[id(&table, 5)], &changed);
    let shown: Vec<_> =
        problems.iter().map(|problem| format!("{problem}\n  hint: {}", problem.hint())).collect();
    insta::assert_snapshot!(shown.join("\n"));
}

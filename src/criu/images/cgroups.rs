//! The control groups of a checkpoint, `cgroup.img`, and how they are found again elsewhere.
//!
//! The image has sets, the group in every hierarchy of those processes that have all in common, and
//! the directories of each hierarchy. CRIU renames groups to where the runtime wants the container
//! only below directories that are listed (`rewrite_cgroup_roots` in criu/cgroup.c); and a dump with
//! `--manage-cgroups=ignore` lists none. So its processes go back to groups of their old names, or
//! fail for want of them, unless the restore has that mode too: then they stay where the runtime
//! starts CRIU, in the container's own groups. crun 1.28 has no way to give it
//! (`crun_command_restore` in src/restore.c sets the mode back after it has read the option).

use std::collections::BTreeSet;

use anyhow::{Context, Result};

use super::ImageDir;
use super::entries::TreeEntry;
use super::image::{EntryChange, ImageKind};
use super::wire::{BadMessage, Message};

/// The image's name.
pub const NAME: &str = "cgroup.img";

/// Fields of `cgroup_entry`, `cg_set_entry`, `cg_member_entry`, `cg_controller_entry` and
/// `cgroup_dir_entry` (cgroup.proto).
const SETS: u32 = 1;
const CONTROLLERS: u32 = 2;
const SET_ID: u32 = 1;
const MEMBERS: u32 = 2;
const MEMBER_NAME: u32 = 1;
const MEMBER_PATH: u32 = 2;
const MEMBER_PREFIX: u32 = 3;
const CONTROLLER_NAMES: u32 = 1;
const DIRECTORIES: u32 = 2;
const DIRECTORY_NAME: u32 = 1;
const CHILDREN: u32 = 2;

/// What the hierarchy of version 2 is called, which has no controllers in its name.
const VERSION_2: &[u8] = b"";

/// The image as CRIU renames it: the directories of the container's own groups of version 2 are
/// listed, and the other hierarchies, which the runtime does not see, are left alone.
///
/// `None` where nothing has to be done: directories are listed, or the container's own group is
/// none of version 2.
///
/// # Errors
/// When an image cannot be read.
pub fn relocatable(dir: &ImageDir) -> Result<Option<Vec<u8>>> {
    let Some(image) = dir.find(ImageKind::Cgroups, NAME)? else { return Ok(None) };
    let Some(init) = set_of_init(dir)? else { return Ok(None) };
    let reading = || format!("reading {}", dir.path().join(NAME).display());
    let Some(new) = image.read_one(|message| relocated(message, init)).with_context(reading)?
    else {
        return Ok(None);
    };
    image.rewrite(|_| Ok(EntryChange::Replace(new.clone()))).map(Some).with_context(reading)
}

/// Whether all processes were in the same groups, of which the image lists no directories and which
/// were no roots of a namespace: then a restore can leave them where the runtime starts CRIU.
///
/// # Errors
/// When an image cannot be read.
pub fn are_one(dir: &ImageDir) -> Result<bool> {
    let Some(image) = dir.find(ImageKind::Cgroups, NAME)? else { return Ok(false) };
    let Some(init) = set_of_init(dir)? else { return Ok(false) };
    image
        .read_one(|message| is_one(message, init))
        .with_context(|| format!("reading {}", dir.path().join(NAME).display()))
}

fn is_one(image: &Message<'_>, init: u32) -> Result<bool, BadMessage> {
    let sets = image.messages(SETS).collect::<Result<Vec<_>, _>>()?;
    let [set] = &sets[..] else { return Ok(false) };
    for member in set.messages(MEMBERS) {
        if member?.u32(MEMBER_PREFIX, "cgns_prefix")?.is_some() {
            return Ok(false);
        }
    }
    Ok(set.need_u32(SET_ID, "id")? == init && !lists_directories(image)?)
}

fn lists_directories(image: &Message<'_>) -> Result<bool, BadMessage> {
    for controller in image.messages(CONTROLLERS) {
        if controller?.messages(DIRECTORIES).next().is_some() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The set that the first process is in.
fn set_of_init(dir: &ImageDir) -> Result<Option<u32>> {
    let tree = dir.all(ImageKind::ProcessTree, "pstree.img", TreeEntry::read)?;
    let Some(init) = tree.first() else { return Ok(None) };
    let name = format!("core-{}.img", init.pid);
    Ok(dir.one(ImageKind::Core, &name, set_of_core)?.flatten())
}

/// In the thread since CRIU 3.18, in the task before.
fn set_of_core(core: &Message<'_>) -> Result<Option<u32>, BadMessage> {
    let thread = core.message(5)?.map(|thread| thread.u32(16, "cg_set")).transpose()?.flatten();
    let task = core.message(3)?.map(|task| task.u32(9, "cg_set")).transpose()?.flatten();
    Ok(thread.or(task))
}

/// The entry of such an image. `init` is the set that the first process is in.
pub fn relocated(image: &Message<'_>, init: u32) -> Result<Option<Vec<u8>>, BadMessage> {
    if lists_directories(image)? {
        return Ok(None);
    }
    let mut sets = Vec::new();
    for set in image.messages(SETS) {
        sets.push(Set::read(&set?)?);
    }
    let Some(root) = sets.iter().find(|set| set.id == init).and_then(Set::root) else {
        return Ok(None);
    };
    let mut new = Message::default();
    for set in &sets {
        new.push_bytes(SETS, &set.encode(&root));
    }
    for controller in image.messages(CONTROLLERS) {
        let mut controller = controller?;
        if controller.need_bytes(CONTROLLER_NAMES, "cnames")? == VERSION_2 {
            controller.push_bytes(DIRECTORIES, &directories(&root, &sets));
            new.push_bytes(CONTROLLERS, &controller.encode());
        }
    }
    Ok(Some(new.encode()))
}

/// A set, as far as it is of version 2.
struct Set {
    id: u32,
    /// The group's path, and how much of it is outside the container's namespace of groups.
    group: Option<(Vec<u8>, Option<usize>)>,
    /// The longest path of all hierarchies.
    deepest: usize,
}

impl Set {
    fn read(message: &Message<'_>) -> Result<Self, BadMessage> {
        let id = message.need_u32(SET_ID, "id")?;
        let mut set = Self { id, group: None, deepest: 0 };
        for member in message.messages(MEMBERS) {
            let member = member?;
            let path = member.need_bytes(MEMBER_PATH, "path")?;
            set.deepest = set.deepest.max(path.len());
            if member.need_bytes(MEMBER_NAME, "name")? == VERSION_2 {
                let outside = member.u32(MEMBER_PREFIX, "cgns_prefix")?;
                set.group = Some((path.to_owned(), outside.map(|length| length as usize)));
            }
        }
        Ok(set)
    }

    /// The container's group, if it is of version 2: runtimes make it below their own, so it is the
    /// deepest that the first process is in.
    fn root(&self) -> Option<Vec<u8>> {
        let (path, outside) = self.group.as_ref()?;
        let root = path.get(..outside.unwrap_or(path.len()))?;
        (path.len() == self.deepest && root.len() > 1).then(|| root.to_owned())
    }

    /// The part of the path below the container's group; empty in that group itself.
    fn below(&self, root: &[u8]) -> &[u8] {
        let path = self.group.as_ref().map_or(&b""[..], |(path, _)| path);
        let below = path.strip_prefix(root).unwrap_or_default();
        if below.starts_with(b"/") { below } else { b"" }
    }

    fn encode(&self, root: &[u8]) -> Vec<u8> {
        let mut member = Message::default();
        member.push_bytes(MEMBER_NAME, VERSION_2);
        member.push_bytes(MEMBER_PATH, &[root, self.below(root)].concat());
        if matches!(self.group, Some((_, Some(_)))) {
            member.set_number(MEMBER_PREFIX, root.len() as u64);
        }
        let mut set = Message::default();
        set.set_number(SET_ID, self.id.into());
        set.push_bytes(MEMBERS, &member.encode());
        set.encode()
    }
}

/// The container's group, and in it those groups that processes are in.
fn directories(root: &[u8], sets: &[Set]) -> Vec<u8> {
    let below: BTreeSet<&[u8]> = sets.iter().map(|set| set.below(root)).collect();
    let mut directory = Message::default();
    directory.push_bytes(DIRECTORY_NAME, root.strip_prefix(b"/").unwrap_or(root));
    for path in below.iter().filter_map(|path| path.strip_prefix(b"/")) {
        let mut child = Message::default();
        child.push_bytes(DIRECTORY_NAME, path);
        directory.push_bytes(CHILDREN, &child.encode());
    }
    directory.encode()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(id: u32, members: &[(&str, &str, Option<u64>)]) -> Vec<u8> {
        let mut set = Message::default();
        set.set_number(SET_ID, id.into());
        for (name, path, prefix) in members {
            let mut member = Message::default();
            member.push_bytes(MEMBER_NAME, name.as_bytes());
            member.push_bytes(MEMBER_PATH, path.as_bytes());
            if let Some(prefix) = prefix {
                member.set_number(MEMBER_PREFIX, *prefix);
            }
            set.push_bytes(MEMBERS, &member.encode());
        }
        set.encode()
    }

    fn image(sets: &[Vec<u8>]) -> Vec<u8> {
        let mut image = Message::default();
        sets.iter().for_each(|set| image.push_bytes(SETS, set));
        for name in ["freezer", ""] {
            let mut controller = Message::default();
            controller.push_bytes(CONTROLLER_NAMES, name.as_bytes());
            image.push_bytes(CONTROLLERS, &controller.encode());
        }
        image.encode()
    }

    fn changed(sets: &[Vec<u8>]) -> Option<Vec<u8>> {
        relocated(&Message::parse(&image(sets)).unwrap(), 2).unwrap()
    }

    #[test]
    fn groups_of_version_2_are_listed_and_others_left_alone() {
        let bytes = changed(&[
            set(2, &[("freezer", "/test", Some(5)), ("", "/test/web", Some(9))]),
            set(3, &[("freezer", "/test", Some(5)), ("", "/test/web/sub/a", Some(9))]),
            set(4, &[("freezer", "/test", Some(5)), ("", "/test/website", Some(9))]),
        ]);
        let mut expected = Message::default();
        for (id, path) in [(2, "/test/web"), (3, "/test/web/sub/a"), (4, "/test/web")] {
            expected.push_bytes(SETS, &set(id, &[("", path, Some(9))]));
        }
        let (mut child, mut directory) = (Message::default(), Message::default());
        child.push_bytes(DIRECTORY_NAME, b"sub/a");
        directory.push_bytes(DIRECTORY_NAME, b"test/web");
        directory.push_bytes(CHILDREN, &child.encode());
        let mut controller = Message::default();
        controller.push_bytes(CONTROLLER_NAMES, b"");
        controller.push_bytes(DIRECTORIES, &directory.encode());
        expected.push_bytes(CONTROLLERS, &controller.encode());
        assert_eq!(bytes.unwrap(), expected.encode());
        let again = relocated(&expected, 2).unwrap();
        assert_eq!(again, None, "what lists directories is renamed by CRIU as it is");
    }

    #[test]
    fn groups_of_all_processes_are_told_from_others() {
        let is_one = |image: &[u8]| is_one(&Message::parse(image).unwrap(), 2).unwrap();
        let plain = &[("freezer", "/test/web", None), ("", "/test/web", None)][..];
        assert!(is_one(&image(&[set(2, plain)])));
        assert!(!is_one(&image(&[])), "none");
        assert!(!is_one(&image(&[set(3, plain)])), "the first process is elsewhere");
        assert!(!is_one(&image(&[set(2, plain), set(3, &[("", "/test/web/a", None)])])), "two");
        assert!(!is_one(&image(&[set(2, &[("", "/test/web", Some(9))])])), "a namespace");
        let listed = changed(&[set(2, &[("", "/test/web", None)])]).unwrap();
        assert!(!is_one(&listed), "CRIU makes them");
    }

    #[test]
    fn groups_of_version_1_are_as_they_were() {
        for members in [
            &[("freezer", "/test/web", None), ("", "/test", None)][..],
            &[("freezer", "/test/web", None)],
            &[("", "/", None)],
            &[("", "/test/web", Some(99))],
            &[("", "/test/web", Some(0))],
            &[],
        ] {
            assert_eq!(changed(&[set(2, members)]), None, "{members:?}");
        }
        assert_eq!(changed(&[set(3, &[("", "/test/web", None)])]), None, "no set of the first");
    }
}

//! A view of an image directory in which open files are inherited, opened elsewhere, or gone.
//!
//! CRIU takes an inherited file descriptor for an open file of type REG whose name it was told,
//! and then sets neither its flags, its position nor its owner, nor checks size and mode
//! (`open_path` in criu/files-reg.c). So the entry of a chosen file in `files.img` becomes one of
//! type REG with a name that nothing else has, and the file descriptors that refer to it get that
//! type, by which CRIU looks it up (`find_file_desc` in criu/files.c). A file of the container that
//! takes another's place has such an entry too, with its path for a name. A file that goes leaves
//! its entry only where others may refer to that; what it was watched and locked by goes with it.
//!
//! A file that is also mapped, or a program, keeps its entry for that; its file descriptors get one
//! of their own, with a new identifier. What was tied to a replaced file and stays is in [`rest`].

mod rest;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use crate::bytes::ByteString;
use crate::container::Holder;
use crate::criu::images::entries::{
    FdEntry, FdType, FileBody, FileEntry, FileLock, Remap, RemapKind,
};
use crate::criu::images::image::{EntryChange, ImageKind};
use crate::criu::images::wire::{BadMessage, Message};
use crate::criu::images::{ImageDir, Images, LOCKS, TaskImages};
use crate::files::FileId;
use crate::hint::WithHint;
use crate::sys::directory::Directory;
use crate::sys::pid::InnerPid;

use rest::Rest;

/// What CRIU is told, as `inherit-fd fd[N]:KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InheritKey {
    /// The open file.
    pub id: FileId,
    /// Its name in the view, without the slash it begins with there.
    pub key: String,
}

/// What becomes of an open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Treatment {
    /// The open file.
    pub id: FileId,
    /// What becomes of it.
    pub how: How,
    /// Whether locks on it, the watch of epoll instances and messages that carry it lose it.
    pub drop: bool,
}

/// What can become of an open file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum How {
    /// CRIU inherits a file descriptor for it.
    Inherit,
    /// CRIU opens this path of the container instead.
    Reopen {
        /// The path, from the container's root.
        path: ByteString,
        /// How to open it, `O_…`.
        flags: u32,
        /// Where in it to go on, if that can be said of it.
        position: Option<u64>,
    },
    /// Its file descriptors are closed.
    Close,
    /// It stays itself, and CRIU does not look at its size.
    Relax {
        /// Where in it to go on, if not where it was.
        position: Option<u64>,
    },
}

/// Makes `out_dir`, which must be empty or not be there, a view of `images_dir` in which open
/// files are treated as said. The keys are those of the inherited ones, in their order.
///
/// Every image is a link to the original but those that change; the originals do not change, nor
/// may anyone write to the view. A view that is not below the images' directory is a copy, memory
/// and all. Before anything is made, everything is checked as by [`check`].
pub fn rewrite(
    images_dir: &Path,
    out_dir: &Path,
    treatments: &[Treatment],
) -> Result<Vec<InheritKey>> {
    rewrite_with(images_dir, out_dir, treatments, BTreeMap::new())
}

/// The same, with other images in the place of those of these names, which are none of open files.
pub fn rewrite_with(
    images_dir: &Path,
    out_dir: &Path,
    treatments: &[Treatment],
    others: BTreeMap<String, Vec<u8>>,
) -> Result<Vec<InheritKey>> {
    let dir = ImageDir::open(images_dir)?;
    let images = Images::read(&dir)?;
    let plan = Plan::of(&images, treatments)?;
    let mut changed = changed_images(&dir, &images, &plan)?;
    changed.extend(others);
    make_view(images_dir, out_dir, &changed)
        .with_context(|| format!("making a view of the images in {}", out_dir.display()))?;
    let key = |one: &Treatment| {
        let name = plan.names.get(&one.id.0)?;
        let inherited = one.how == How::Inherit;
        inherited.then(|| InheritKey { id: one.id, key: name.trim_start_matches('/').to_owned() })
    };
    Ok(treatments.iter().filter_map(key).collect())
}

/// Makes sure that CRIU can restore the rest without these files.
///
/// # Errors
/// All that it could not restore.
pub fn check(images_dir: &Path, treatments: &[Treatment]) -> Result<()> {
    Plan::of(&Images::load(images_dir)?, treatments).map(drop)
}

const TOGETHER: &str = "`ocicle files` lists the open files of the checkpoint; replace what belongs \
                        together, or end the rule with `,drop` where that is offered";

/// What is to be done to the images.
struct Plan<'a> {
    treatments: BTreeMap<u32, &'a How>,
    /// Files that stay themselves, of any size, and where in them to go on.
    relaxed: BTreeMap<u32, Option<u64>>,
    /// The names of inherited files, with the slash.
    names: BTreeMap<u32, String>,
    /// The mount of the container's root.
    root: Option<i32>,
    /// File descriptors whose locks go, and which no epoll instance watches any more.
    forgotten: HashSet<Holder>,
    /// The process whose numbers an epoll instance watches, by the instance's identifier.
    masters: HashMap<u32, InnerPid>,
    /// Files that are also used otherwise, and the identifiers that their file descriptors get;
    /// their own if they are closed.
    split: BTreeMap<u32, u32>,
    rest: Rest,
}

impl<'a> Plan<'a> {
    fn of(images: &Images, treatments: &'a [Treatment]) -> Result<Self> {
        let (mut by_id, mut relaxed) = (BTreeMap::new(), BTreeMap::new());
        for Treatment { id, how, .. } in treatments {
            match how {
                How::Relax { position } => drop(relaxed.insert(id.0, *position)),
                how => drop(by_id.insert(id.0, how)),
            }
        }
        let chosen: BTreeSet<u32> = by_id.keys().copied().collect();
        let is_forgotten = |one: &&Treatment| one.drop || one.how == How::Close;
        let forgotten: BTreeSet<u32> =
            treatments.iter().filter(is_forgotten).map(|one| one.id.0).collect();
        let mut refused = refusals(images, treatments, &chosen);
        let root = root_mount(images);
        if root.is_none() && by_id.values().any(|how| matches!(how, How::Reopen { .. })) {
            refused.push("the images do not say where the container's root is mounted".to_owned());
        }
        if !refused.is_empty() {
            return Err(anyhow!(refused.join("\n")).hint(TOGETHER));
        }
        let fds = images.fds().filter(|(_, fd)| forgotten.contains(&fd.file));
        Ok(Self {
            names: names(images, &by_id),
            root,
            forgotten: fds.map(|(pid, fd)| Holder { pid, fd: fd.fd }).collect(),
            masters: masters(images),
            split: split(images, &by_id),
            rest: Rest::of(images, &chosen),
            treatments: by_id,
            relaxed,
        })
    }

    fn is_closed(&self, id: u32) -> bool {
        self.treatments.get(&id) == Some(&&How::Close)
    }

    /// The identifier by which file descriptors and messages refer to what was this file.
    fn seen_as(&self, id: u32) -> u32 {
        self.split.get(&id).copied().unwrap_or(id)
    }

    /// Whether an epoll instance watches a file descriptor that it must forget.
    fn watches_forgotten(&self, file: &FileEntry) -> bool {
        let Some(master) = self.masters.get(&file.id) else { return false };
        let FileBody::Epoll { watched } = &file.body else { return false };
        watched.iter().any(|fd| self.forgotten.contains(&Holder { pid: *master, fd: *fd }))
    }
}

/// Files that processes use otherwise than through file descriptors as well, and new identifiers.
fn split(images: &Images, treatments: &BTreeMap<u32, &How>) -> BTreeMap<u32, u32> {
    let used = used_otherwise(images);
    let taken: BTreeSet<u32> = images.files.iter().map(|file| file.id).collect();
    let mut free = (1..).filter(|id| !taken.contains(id));
    let renamed = |(id, how): (&u32, &&How)| match how {
        How::Close => Some((*id, *id)),
        _ => free.next().map(|new| (*id, new)),
    };
    treatments.iter().filter(|(id, _)| used.contains(id)).filter_map(renamed).collect()
}

/// Files that are mapped, programs, working or root directories.
fn used_otherwise(images: &Images) -> BTreeSet<u32> {
    let of_task = |task: &TaskImages| {
        let mm = task.mm.iter().flat_map(|mm| mm.mapped.iter().copied().chain([mm.exe]));
        let fs = task.fs.iter().flat_map(|fs| [fs.cwd, fs.root]);
        mm.chain(fs).collect::<Vec<_>>()
    };
    images.tasks.iter().flat_map(of_task).collect()
}

/// CRIU fills an epoll instance in the process with the lowest number of those that hold it
/// (`file_master` in criu/files.c).
fn masters(images: &Images) -> HashMap<u32, InnerPid> {
    let mut masters: HashMap<u32, InnerPid> = HashMap::new();
    for (pid, fd) in images.fds() {
        masters.entry(fd.file).and_modify(|least| *least = pid.min(*least)).or_insert(pid);
    }
    masters
}

/// The mount that the first process has its root directory on.
fn root_mount(images: &Images) -> Option<i32> {
    let root = images.tasks.first()?.fs?.root;
    match &images.file(root)?.body {
        FileBody::Reg(reg) => reg.mount,
        _ => None,
    }
}

/// A name for every inherited file that no file of the container has.
fn names(images: &Images, treatments: &BTreeMap<u32, &How>) -> BTreeMap<u32, String> {
    let of_images = images.files.iter().filter_map(|file| match &file.body {
        FileBody::Reg(reg) => Some(reg.name.as_bytes()),
        _ => None,
    });
    let of_rules = treatments.values().filter_map(|how| match how {
        How::Reopen { path, .. } => Some(path.as_bytes()),
        _ => None,
    });
    let taken: BTreeSet<&[u8]> = of_images.chain(of_rules).collect();
    let is_free = |name: &String| !taken.contains(name.as_bytes());
    let named = |id: u32| {
        let more = (1..).map(|count| format!("/ocicle/{id}.{count}"));
        std::iter::once(format!("/ocicle/{id}")).chain(more).find(is_free).unwrap_or_default()
    };
    let inherited = treatments.iter().filter(|(_, how)| ***how == How::Inherit);
    inherited.map(|(id, _)| (*id, named(*id))).collect()
}

/// Why the chosen files cannot be replaced.
fn refusals(images: &Images, treatments: &[Treatment], chosen: &BTreeSet<u32>) -> Vec<String> {
    let held: BTreeSet<u32> = images.fds().map(|(_, fd)| fd.file).collect();
    let flying: BTreeSet<u32> =
        images.packets.iter().flat_map(|packet| packet.rights.iter().copied()).collect();
    let tuns = images.tun_devices();
    let mut refused = Vec::new();
    for one in treatments {
        let id = one.id.0;
        let is_half = |file: &FileEntry| file.kind == FdType::REG && tuns.contains(&id);
        let entries: Vec<_> =
            images.files.iter().filter(|file| file.id == id && !is_half(file)).collect();
        let why = match entries[..] {
            [] => Some("there is no open file with this identifier".to_owned()),
            [_] if !held.contains(&id) && !flying.contains(&id) => {
                Some("no file descriptor refers to it".to_owned())
            }
            [_] if flying.contains(&id) && one.how == How::Close && !one.drop => Some(
                "a message that waits in a socket carries it: with `,drop` behind the rule it \
                 arrives without"
                    .to_owned(),
            ),
            [file] => {
                rest::terminal_refusal(images, chosen, file).or_else(|| link_refusal(images, one))
            }
            _ => Some("a CRIU of old has given its identifier to several files".to_owned()),
        };
        refused.extend(why.map(|why| format!("open file {id} cannot be replaced: {why}")));
    }
    refused
}

/// CRIU would open a file that it has linked to another name by that name.
fn link_refusal(images: &Images, one: &Treatment) -> Option<String> {
    let is_reopened = matches!(one.how, How::Reopen { .. });
    let is_linked = |remap: &Remap| remap.file == one.id.0 && remap.kind == RemapKind::Linked;
    (is_reopened && images.remaps.iter().any(is_linked)).then(|| {
        "its name was gone, and no file of the container can take its place: use file: or fd:"
            .to_owned()
    })
}

/// The images that change, by name.
fn changed_images(
    dir: &ImageDir,
    images: &Images,
    plan: &Plan<'_>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut changed = BTreeMap::new();
    if plan.treatments.is_empty() && plan.relaxed.is_empty() {
        return Ok(changed);
    }
    let mut change = |kind, name: String, rewrite: &dyn Fn(&Message<'_>) -> Rewritten| {
        let bytes =
            dir.need(kind, &name)?.rewrite(rewrite).with_context(|| format!("rewriting {name}"))?;
        changed.insert(name, bytes);
        anyhow::Ok(())
    };
    change(ImageKind::Files, "files.img".to_owned(), &|entry| rewrite_file(images, plan, entry))?;
    for (id, fds) in &images.tables {
        if fds.iter().any(|fd| plan.treatments.contains_key(&fd.file)) {
            change(ImageKind::FdInfo, format!("fdinfo-{id}.img"), &|entry| {
                rewrite_fd(plan, entry)
            })?;
        }
    }
    if images.remaps.iter().any(|remap| is_dropped(plan, remap)) {
        let name = "remap-fpath.img".to_owned();
        change(ImageKind::RemapPath, name, &|entry| rewrite_remap(plan, entry))?;
    }
    if images
        .locks
        .iter()
        .any(|lock| plan.forgotten.contains(&Holder { pid: lock.pid, fd: lock.fd }))
    {
        change(ImageKind::FileLocks, LOCKS.to_owned(), &|entry| rewrite_lock(plan, entry))?;
    }
    if plan.rest.changes_terminals() {
        let rest = &plan.rest;
        change(ImageKind::TtyInfo, "tty-info.img".to_owned(), &|entry| {
            rest.rewrite_terminal(entry)
        })?;
        if !images.tty_data.is_empty() {
            change(ImageKind::TtyData, "tty-data.img".to_owned(), &|entry| {
                rest.rewrite_input(entry)
            })?;
        }
    }
    if !images.packets.is_empty() {
        let name = "sk-queues.img".to_owned();
        change(ImageKind::SocketQueues, name, &|entry| rest::rewrite_packet(plan, entry))?;
    }
    Ok(changed)
}

/// What becomes of an entry.
type Rewritten = Result<EntryChange, BadMessage>;

fn rewrite_file(images: &Images, plan: &Plan<'_>, message: &Message<'_>) -> Rewritten {
    let file = FileEntry::read(message)?;
    if let Some(position) = plan.relaxed.get(&file.id)
        && file.kind == FdType::REG
    {
        return Ok(EntryChange::Replace(of_any_size(message, *position)?));
    }
    let is_split = plan.split.contains_key(&file.id);
    let id = plan.seen_as(file.id);
    let entry = match plan.treatments.get(&file.id) {
        // Its other half takes the replacement.
        Some(How::Inherit | How::Reopen { .. }) if file.kind == FdType::TUN => {
            return Ok(EntryChange::Remove);
        }
        Some(How::Inherit) => RegEntry {
            id,
            flags: file.flags.unwrap_or_default(),
            position: 0,
            name: plan.names.get(&file.id).map(String::as_bytes).unwrap_or_default(),
            mount: linked_mount(images, &file).filter(|_| !is_split),
        },
        Some(How::Reopen { path, flags, position }) => RegEntry {
            id,
            flags: *flags,
            // "No position" of do_open_reg in criu/files-reg.c.
            position: position.unwrap_or(u64::MAX),
            name: path.as_bytes(),
            mount: plan.root,
        },
        // CRIU has no use for one that nobody holds, but for those of type REG, which others
        // refer to: a remap, say (`collect_one_remap` in criu/files-reg.c).
        Some(How::Close) if file.kind != FdType::REG && !is_split => {
            return Ok(EntryChange::Remove);
        }
        None => return rewrite_other(plan, &file, message),
        Some(How::Close | How::Relax { .. }) => return Ok(EntryChange::Keep),
    };
    let entry = entry.encode();
    Ok(if is_split { EntryChange::Follow(entry) } else { EntryChange::Replace(entry) })
}

/// What becomes of an open file that stays.
fn rewrite_other(plan: &Plan<'_>, file: &FileEntry, message: &Message<'_>) -> Rewritten {
    Ok(if plan.watches_forgotten(file) {
        EntryChange::Replace(without_forgotten(plan, file.id, message)?)
    } else if plan.rest.is_alone(file) {
        EntryChange::Replace(rest::without_peer(message)?)
    } else {
        EntryChange::Keep
    })
}

/// An entry of type REG with nothing for CRIU to check: `file_entry` around `reg_file_entry`,
/// with the required fields of both.
struct RegEntry<'a> {
    id: u32,
    flags: u32,
    position: u64,
    name: &'a [u8],
    mount: Option<i32>,
}

impl RegEntry<'_> {
    fn encode(&self) -> Vec<u8> {
        let mut owner = Message::default();
        (1..=5).for_each(|field| owner.set_number(field, 0));
        let mut reg = Message::default();
        reg.set_number(1, self.id.into());
        reg.set_number(2, self.flags.into());
        reg.set_number(3, self.position);
        reg.push_bytes(5, &owner.encode());
        reg.push_bytes(6, self.name);
        if let Some(mount) = self.mount {
            reg.set_number(7, u64::from(((mount << 1) ^ (mount >> 31)) as u32));
        }
        let mut entry = Message::default();
        entry.set_number(1, FdType::REG.0.into());
        entry.set_number(FileEntry::ID, self.id.into());
        entry.push_bytes(3, &reg.encode());
        entry.encode()
    }
}

/// The entry of a file that CRIU reopens whatever its size and content: without what
/// `validate_file` of criu/files-reg.c compares.
fn of_any_size(message: &Message<'_>, position: Option<u64>) -> Result<Vec<u8>, BadMessage> {
    /// The body's field in `file_entry`, and in it those of the position, the size, the build ID
    /// and the checksum.
    const BODY: u32 = 3;
    const POSITION: u32 = 3;
    const COMPARED: [u32; 6] = [8, 11, 12, 13, 14, 15];
    let body = message.need_message(BODY, "reg")?;
    let mut body = COMPARED.iter().fold(body, |body, field| body.without(*field));
    if let Some(position) = position {
        body.set_number(POSITION, position);
    }
    let mut entry = message.without(BODY);
    entry.push_bytes(BODY, &body.encode());
    Ok(entry.encode())
}

/// The entry of an epoll instance that watches a file descriptor no more, as the kernel takes one
/// out that is closed.
fn without_forgotten(
    plan: &Plan<'_>,
    id: u32,
    message: &Message<'_>,
) -> Result<Vec<u8>, BadMessage> {
    /// The body's field in `file_entry`, and in it that of what is watched.
    const BODY: u32 = 9;
    const WATCHED: u32 = 4;
    let master = plan.masters.get(&id).copied().unwrap_or_default();
    let body = message.need_message(BODY, "epfd")?;
    let mut kept = body.without(WATCHED);
    for watched in body.messages(WATCHED) {
        let watched = watched?;
        let fd = watched.need_u32(2, "tfd")?;
        if i32::try_from(fd).is_ok_and(|fd| !plan.forgotten.contains(&Holder { pid: master, fd })) {
            kept.push_bytes(WATCHED, &watched.encode());
        }
    }
    let mut entry = message.without(BODY);
    entry.push_bytes(BODY, &kept.encode());
    Ok(entry.encode())
}

/// The mount of a file that CRIU has linked to another name. It will remove that name after the
/// restore, and looks for it on this mount (`clean_one_remap` in criu/files-reg.c).
fn linked_mount(images: &Images, file: &FileEntry) -> Option<i32> {
    let is_linked = |remap: &Remap| remap.file == file.id && remap.kind == RemapKind::Linked;
    match &file.body {
        FileBody::Reg(reg) if images.remaps.iter().any(is_linked) => reg.mount,
        _ => None,
    }
}

fn rewrite_fd(plan: &Plan<'_>, message: &Message<'_>) -> Rewritten {
    let id = message.need_u32(FdEntry::FILE, "id")?;
    if plan.is_closed(id) {
        return Ok(EntryChange::Remove);
    }
    if !plan.treatments.contains_key(&id) {
        return Ok(EntryChange::Keep);
    }
    let mut message = message.clone();
    message.set_number(FdEntry::FILE, plan.seen_as(id).into());
    message.set_number(FdEntry::TYPE, FdType::REG.0.into());
    Ok(EntryChange::Replace(message.encode()))
}

/// Whether a remap goes with its file: a ghost file would be made beside the name, which has no
/// directory now (`open_remap_ghost` in criu/files-reg.c), and nothing would use it.
fn is_dropped(plan: &Plan<'_>, remap: &Remap) -> bool {
    let is_replaced =
        plan.treatments.contains_key(&remap.file) && !plan.split.contains_key(&remap.file);
    is_replaced && remap.kind != RemapKind::Linked
}

fn rewrite_remap(plan: &Plan<'_>, message: &Message<'_>) -> Rewritten {
    let remap = Remap::read(message)?;
    Ok(if is_dropped(plan, &remap) { EntryChange::Remove } else { EntryChange::Keep })
}

fn rewrite_lock(plan: &Plan<'_>, message: &Message<'_>) -> Rewritten {
    let lock = FileLock::read(message)?;
    let is_forgotten = plan.forgotten.contains(&Holder { pid: lock.pid, fd: lock.fd });
    Ok(if is_forgotten { EntryChange::Remove } else { EntryChange::Keep })
}

fn make_view(images_dir: &Path, out_dir: &Path, changed: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    let original = images_dir.canonicalize()?;
    match std::fs::DirBuilder::new().mode(0o700).create(out_dir) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let is_empty = std::fs::read_dir(out_dir)?.next().is_none();
            ensure!(is_empty, "it is not empty");
        }
        result => result?,
    }
    let out = out_dir.canonicalize()?;
    for entry in std::fs::read_dir(&original)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_str().is_none_or(|name| !changed.contains_key(name)) {
            let is_image = entry.file_type()?.is_file() && is_image(&name);
            show(&original.join(&name), &out.join(&name), is_image)
                .with_context(|| format!("linking {}", name.display()))?;
        }
    }
    for (name, bytes) in changed {
        let mut options = File::options();
        options.write(true).create_new(true).mode(0o600);
        options.open(out_dir.join(name))?.write_all(bytes)?;
    }
    Ok(())
}

fn is_image(name: &OsStr) -> bool {
    Path::new(name).extension().is_some_and(|extension| extension == "img")
}

/// Makes a file of the image directory visible in the view.
///
/// CRIU opens images also when it has entered the container's mount namespace, by which time an
/// absolute symbolic link leads elsewhere, and takes an image that it does not find for an empty
/// one. The way up from a directory that it holds open stays the same: so images are links to what
/// is above them, or copies if the view is elsewhere; the rest, which CRIU does not read then, is
/// linked to. They are no hard links: those change what the kernel says of an image, and then all of
/// it is read at the next restore, to see that it was not written.
fn show(original: &Path, shown: &Path, is_image: bool) -> std::io::Result<()> {
    if is_image && !original.parent().is_some_and(|above| shown.starts_with(above)) {
        return copy(original, shown);
    }
    symlink(relative(original, shown), shown)
}

fn copy(original: &Path, shown: &Path) -> std::io::Result<()> {
    let (directory, name) = Directory::above(original)?;
    let name = String::from_utf8(name).map_err(std::io::Error::other)?;
    let mut from = directory.file(&name)?.ok_or(std::io::ErrorKind::NotFound)?;
    let mut to = File::options().write(true).create_new(true).mode(0o600).open(shown)?;
    std::io::copy(&mut from, &mut to).map(drop)
}

/// The way from the directory of `from` to `to`, both absolute and without links.
fn relative(to: &Path, from: &Path) -> PathBuf {
    let start = from.parent().unwrap_or(from);
    let shared = start.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = start.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(to.components().skip(shared)).collect()
}

#[cfg(test)]
mod tests;

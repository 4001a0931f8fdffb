//! A view of an image directory in which open files are inherited.
//!
//! CRIU takes an inherited file descriptor for an open file of type REG whose name it was told,
//! and then sets neither its flags, its position nor its owner, nor checks size and mode
//! (`open_path` in criu/files-reg.c). So the entry of a chosen file in `files.img` becomes one of
//! type REG with a name that nothing else has, and the file descriptors that refer to it get that
//! type, by which CRIU looks it up (`find_file_desc` in criu/files.c).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::criu::images::entries::{FdEntry, FdType, FileBody, FileEntry, Remap, RemapKind};
use crate::criu::images::image::{Change, Kind};
use crate::criu::images::wire::{BadMessage, Message};
use crate::criu::images::{ImageDir, Images};
use crate::files::FileId;

/// What CRIU is told, as `inherit-fd fd[N]:KEY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InheritKey {
    /// The open file.
    pub id: FileId,
    /// Its name in the view, without the slash it begins with there.
    pub key: String,
}

/// Makes `out_dir`, which must be empty or not be there, a view of `images_dir` in which CRIU
/// takes the open files `ids` from inherited file descriptors. The keys are in the order of `ids`.
///
/// Every image is a hard link to the original but those that change; the originals do not change,
/// nor may anyone write to the view. On another file system than the images' it is a copy, memory
/// and all: put it beside them. Before anything is made, every open file is checked for what CRIU could not restore without it, and
/// the error lists all that was found.
pub fn rewrite(images_dir: &Path, out_dir: &Path, ids: &[FileId]) -> Result<Vec<InheritKey>> {
    let dir = ImageDir::open(images_dir)?;
    let images = Images::read(&dir)?;
    let chosen: BTreeSet<u32> = ids.iter().map(|id| id.0).collect();
    let refused = refusals(&images, &chosen);
    if !refused.is_empty() {
        bail!("{}", refused.join("\n"));
    }
    let keys = keys(&images, &chosen);
    let changed = changed_images(&dir, &images, &keys)?;
    make_view(images_dir, out_dir, &changed)
        .with_context(|| format!("making a view of the images in {}", out_dir.display()))?;
    Ok(ids.iter().map(|id| InheritKey { id: *id, key: keys[&id.0].clone() }).collect())
}

/// A name for every chosen file that no file of the container has.
fn keys(images: &Images, chosen: &BTreeSet<u32>) -> BTreeMap<u32, String> {
    let taken: BTreeSet<&[u8]> = images
        .files
        .iter()
        .filter_map(|file| match &file.body {
            FileBody::Reg(reg) => Some(reg.name.as_bytes()),
            _ => None,
        })
        .collect();
    let is_free = |key: &String| !taken.contains(format!("/{key}").as_bytes());
    let named = |id: u32| {
        let more = (1..).map(|count| format!("ocicle/{id}.{count}"));
        std::iter::once(format!("ocicle/{id}")).chain(more).find(is_free).unwrap_or_default()
    };
    chosen.iter().map(|id| (*id, named(*id))).collect()
}

/// Why the chosen files cannot be replaced.
fn refusals(images: &Images, chosen: &BTreeSet<u32>) -> Vec<String> {
    let uses = Uses::of(images);
    let mut refused = Vec::new();
    for id in chosen {
        let entries: Vec<_> = images.files.iter().filter(|file| file.id == *id).collect();
        let why = match entries[..] {
            [] => Some("there is no open file with this identifier".to_owned()),
            [file] => uses.refusal(file).or_else(|| partner_refusal(images, chosen, file)),
            _ => Some("a CRIU of old has given its identifier to several files".to_owned()),
        };
        refused.extend(why.map(|why| format!("open file {id} cannot be replaced: {why}")));
    }
    refused
}

/// Who uses files other than through a file descriptor.
#[derive(Default)]
struct Uses {
    held: BTreeSet<u32>,
    other: HashMap<u32, String>,
}

impl Uses {
    fn of(images: &Images) -> Self {
        let mut uses = Self::default();
        for task in &images.tasks {
            uses.add_task(task);
        }
        let locked: HashSet<_> = images.locks.iter().map(|lock| (lock.pid, lock.fd)).collect();
        for (pid, fd) in images.fds() {
            uses.held.insert(fd.file);
            if locked.contains(&(pid, fd.fd)) {
                uses.add(fd.file, format!("pid {pid} holds a lock on it through fd {}", fd.fd));
            }
        }
        uses
    }

    fn add_task(&mut self, task: &crate::criu::images::Task) {
        let pid = task.tree.pid;
        if let Some(mm) = &task.mm {
            self.add(mm.exe, format!("it is the program of pid {pid}"));
            for file in &mm.mapped {
                self.add(*file, format!("pid {pid} has mapped it"));
            }
        }
        if let Some(fs) = task.fs {
            self.add(fs.cwd, format!("it is the working directory of pid {pid}"));
            self.add(fs.root, format!("it is the root directory of pid {pid}"));
        }
    }

    fn add(&mut self, file: u32, what: String) {
        self.other.entry(file).or_insert(what);
    }

    fn refusal(&self, file: &FileEntry) -> Option<String> {
        if let Some(what) = self.other.get(&file.id) {
            return Some(what.clone());
        }
        (!self.held.contains(&file.id)).then(|| "no file descriptor refers to it".to_owned())
    }
}

/// Files that come in pairs: the one that stays must do without the other.
fn partner_refusal(images: &Images, chosen: &BTreeSet<u32>, file: &FileEntry) -> Option<String> {
    let stays = |other: &&FileEntry| other.id != file.id && !chosen.contains(&other.id);
    let staying: Vec<_> = images.files.iter().filter(stays).collect();
    match &file.body {
        FileBody::Unix(socket) => staying.iter().find_map(|other| match &other.body {
            // "FATAL: Peer %u unresolved" of fixup_unix_peer in criu/sk-unix.c.
            FileBody::Unix(peer) if peer.peer == socket.inode && socket.inode != 0 => {
                Some(format!("the unix socket {} is connected to it: replace both", other.id))
            }
            _ => None,
        }),
        FileBody::Tty { info, .. } => tty_refusal(images, &staying, *info),
        _ => None,
    }
}

/// A pseudoterminal's two sides have neighbouring numbers, and the slave needs the master
/// (`tty_has_active_pair` and `tty_setup_slavery` in criu/tty.c). Unread input needs a terminal
/// to go to (`collect_one_tty_data`).
fn tty_refusal(images: &Images, staying: &[&FileEntry], info: u32) -> Option<String> {
    let terminal = images.ttys.iter().find(|tty| tty.id == info)?;
    let open = |wanted: u32| {
        staying
            .iter()
            .find(|other| matches!(other.body, FileBody::Tty { info, .. } if info == wanted))
    };
    if open(info).is_some() {
        return None;
    }
    if let Some(slave) = info.checked_sub(1).filter(|_| terminal.master).and_then(open) {
        return Some(format!("the terminal {} is the other side of it: replace both", slave.id));
    }
    images.tty_data.contains(&info).then(|| "there is input in it that was not read".to_owned())
}

/// The images that change, by name.
fn changed_images(
    dir: &ImageDir,
    images: &Images,
    keys: &BTreeMap<u32, String>,
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut changed = BTreeMap::new();
    if keys.is_empty() {
        return Ok(changed);
    }
    let files = dir.need(Kind::Files, "files.img")?;
    let bytes = files
        .rewrite(|message| replace_file(images, keys, message))
        .context("rewriting files.img")?;
    changed.insert("files.img".to_owned(), bytes);
    for (id, fds) in &images.tables {
        if fds.iter().any(|fd| keys.contains_key(&fd.file)) {
            let name = format!("fdinfo-{id}.img");
            let bytes = dir
                .need(Kind::FdInfo, &name)?
                .rewrite(|message| retype_fd(keys, message))
                .with_context(|| format!("rewriting {name}"))?;
            changed.insert(name, bytes);
        }
    }
    if images.remaps.iter().any(|remap| is_dropped(keys, remap)) {
        let bytes = dir
            .need(Kind::RemapPath, "remap-fpath.img")?
            .rewrite(|message| drop_remap(keys, message))
            .context("rewriting remap-fpath.img")?;
        changed.insert("remap-fpath.img".to_owned(), bytes);
    }
    Ok(changed)
}

/// Turns the entry of a chosen file into one that is inherited.
fn replace_file(
    images: &Images,
    keys: &BTreeMap<u32, String>,
    message: &Message<'_>,
) -> Result<Change, BadMessage> {
    let id = message.need_u32(FileEntry::ID, "id")?;
    let Some(key) = keys.get(&id) else { return Ok(Change::Keep) };
    let file = FileEntry::read(message)?;
    Ok(Change::Replace(inherited_entry(images, &file, key)))
}

/// An entry of type REG with nothing for CRIU to check: `file_entry` around `reg_file_entry`,
/// with the required fields of both.
fn inherited_entry(images: &Images, file: &FileEntry, key: &str) -> Vec<u8> {
    let mut owner = Message::default();
    (1..=5).for_each(|field| owner.set_number(field, 0));
    let mut reg = Message::default();
    reg.set_number(1, file.id.into());
    reg.set_number(2, file.flags.unwrap_or_default().into());
    reg.set_number(3, 0);
    reg.push_bytes(5, &owner.encode());
    reg.push_bytes(6, format!("/{key}").as_bytes());
    if let Some(mount) = linked_mount(images, file) {
        reg.set_number(7, u64::from(((mount << 1) ^ (mount >> 31)) as u32));
    }
    let mut entry = Message::default();
    entry.set_number(1, FdType::REG);
    entry.set_number(FileEntry::ID, file.id.into());
    entry.push_bytes(3, &reg.encode());
    entry.encode()
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

fn retype_fd(keys: &BTreeMap<u32, String>, message: &Message<'_>) -> Result<Change, BadMessage> {
    if !keys.contains_key(&message.need_u32(FdEntry::FILE, "id")?) {
        return Ok(Change::Keep);
    }
    let mut message = message.clone();
    message.set_number(FdEntry::TYPE, FdType::REG);
    Ok(Change::Replace(message.encode()))
}

/// Whether a remap goes with its file: a ghost file would be made beside the name, which has no
/// directory now (`open_remap_ghost` in criu/files-reg.c), and nothing would use it.
fn is_dropped(keys: &BTreeMap<u32, String>, remap: &Remap) -> bool {
    keys.contains_key(&remap.file) && remap.kind != RemapKind::Linked
}

fn drop_remap(keys: &BTreeMap<u32, String>, message: &Message<'_>) -> Result<Change, BadMessage> {
    let remap = Remap::read(message)?;
    Ok(if is_dropped(keys, &remap) { Change::Remove } else { Change::Keep })
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
/// one. So images are hard links, or copies if the view is on another file system; the rest,
/// which CRIU does not read then, is linked to.
fn show(original: &Path, shown: &Path, is_image: bool) -> std::io::Result<()> {
    if !is_image {
        return symlink(relative(original, shown), shown);
    }
    match std::fs::hard_link(original, shown) {
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EXDEV | libc::EPERM | libc::EMLINK | libc::EOPNOTSUPP)
            ) =>
        {
            std::fs::copy(original, shown).map(drop)
        }
        result => result,
    }
}

/// The way from the directory of `from` to `to`, both absolute and without links.
fn relative(to: &Path, from: &Path) -> PathBuf {
    let start = from.parent().unwrap_or(from);
    let shared = start.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = start.components().skip(shared).map(|_| Component::ParentDir);
    up.chain(to.components().skip(shared)).collect()
}

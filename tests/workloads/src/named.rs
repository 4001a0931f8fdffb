//! Holds files that CRIU has to find by other names, and shows that it works.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::num::NonZero;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::fanotify::{EventFFlags, Fanotify, MarkFlags, MaskFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::mman::{MapFlags, ProtFlags, mmap};

/// Makes KIND in PLACE, creates DIR/ready and answers on DIR/control: `touch PATH` writes to a file, and
/// `look` tells what is to be seen.
pub fn run(kind: &str, dir: &Path, place: &Path) -> Result<()> {
    let control = UnixListener::bind(dir.join("control")).context("binding the control socket")?;
    let held = Held::make(kind, place).with_context(|| format!("making {kind}"))?;
    File::create(dir.join("ready"))?;
    for stream in control.incoming() {
        // A caller who went away is no reason to end.
        let _ = serve(&stream?, &held);
    }
    Ok(())
}

fn serve(stream: &UnixStream, held: &Held) -> Result<()> {
    let mut request = String::new();
    BufReader::new(stream).read_line(&mut request)?;
    let answer = match request.trim_end().split_once(' ') {
        Some(("touch", path)) => fs::write(path, "touched").map(|()| "done".to_owned())?,
        _ => held.look(),
    };
    writeln!(&*stream, "{answer}")?;
    Ok(())
}

enum Held {
    Inotify(Inotify),
    Fanotify(Fanotify),
    Link(Linked),
}

/// One file open, and one mapped, by names that are gone; they have others.
struct Linked {
    file: File,
    word: &'static AtomicU64,
    names: [PathBuf; 2],
}

impl Held {
    fn make(kind: &str, place: &Path) -> Result<Self> {
        match kind {
            "inotify" => inotify(place),
            "fanotify" => fanotify(place),
            "link" => link(place).map(Self::Link),
            _ => bail!("no such kind"),
        }
    }

    fn look(&self) -> String {
        match self {
            Self::Inotify(inotify) => {
                let events = inotify.read_events().unwrap_or_default();
                let name = |event: &nix::sys::inotify::InotifyEvent| {
                    event.name.clone().unwrap_or_default().to_string_lossy().into_owned()
                };
                let names: Vec<_> = events.iter().map(name).collect();
                format!("{names:?}")
            }
            Self::Fanotify(group) => {
                format!("{} events", group.read_events().map_or(0, |events| events.len()))
            }
            Self::Link(linked) => linked.look().unwrap_or_else(|error| format!("{error:#}")),
        }
    }
}

/// Watches directories and a file: some of the image's, some new, and the root.
fn inotify(place: &Path) -> Result<Held> {
    let deep = place.join("watched/deep");
    fs::create_dir_all(&deep)?;
    fs::write(deep.join("file"), "")?;
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK)?;
    let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MODIFY;
    for path in [Path::new("/"), Path::new("/bin"), &place.join("watched"), &deep.join("file")] {
        inotify.add_watch(path, flags).with_context(|| path.display().to_string())?;
    }
    Ok(Held::Inotify(inotify))
}

fn fanotify(place: &Path) -> Result<Held> {
    use nix::sys::fanotify::InitFlags;
    let path = place.join("file");
    fs::write(&path, "")?;
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_NONBLOCK;
    let group = Fanotify::init(flags, EventFFlags::O_RDONLY)?;
    let at = nix::fcntl::AT_FDCWD;
    group.mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_MODIFY, at, Some(&path))?;
    Ok(Held::Fanotify(group))
}

/// As the C library makes a semaphore with a name (`sem_open`): under another, which is linked to the
/// final one and removed.
fn link(place: &Path) -> Result<Linked> {
    let names = ["kept", "sem.kept"].map(|name| place.join(name));
    fs::create_dir_all(place.join("sub"))?;
    let open = |gone: &Path, kept: &Path| -> Result<File> {
        let file = File::options().read(true).write(true).create_new(true).open(gone)?;
        file.set_len(size_of::<u64>() as u64)?;
        fs::hard_link(gone, kept)?;
        fs::remove_file(gone)?;
        Ok(file)
    };
    let file = open(&place.join("sub/gone"), &names[0])?;
    fs::remove_dir(place.join("sub"))?;
    let mapped = open(&place.join("sem.tmp"), &names[1])?;
    let length = NonZero::new(size_of::<u64>()).context("no length")?;
    let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    // SAFETY: the kernel chooses where.
    let word = unsafe { mmap(None, length, access, MapFlags::MAP_SHARED, &mapped, 0) }?;
    // SAFETY: it is mapped, by pages, until the end of the process.
    Ok(Linked { file, word: unsafe { word.cast().as_ref() }, names })
}

impl Linked {
    /// Writes through what is held, and says what that makes of the files of those names.
    fn look(&self) -> Result<String> {
        let word = self.word.fetch_add(1, Ordering::SeqCst) + 1;
        self.file.write_all_at(&word.to_le_bytes(), 0)?;
        for name in &self.names {
            let now = fs::read(name).with_context(|| name.display().to_string())?;
            anyhow::ensure!(now == word.to_le_bytes(), "{}: {now:?}", name.display());
        }
        Ok(word.to_string())
    }
}

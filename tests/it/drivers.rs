//! Every driver on real file systems: filled with every kind of file, changed at random thousands of
//! times, put back, and compared byte by byte and attribute by attribute.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::{
    self, Dice, Picture, Refused, assert_same, assert_still_shown, changes, file_system,
    nobody_runs, opened, picture, private, scratch, shown_at_all, subvolume,
};
use nix::errno::Errno;
use ocicle::files::Suspects;
use ocicle::snapshot::{
    Compression, Driver, DriverName, DriverReport, DriverSettings, DriverSnapshot, HeldLocally,
    Method, PackedFiles, PackedPart, ShownAt, SnapshotOwner, Staging, choose, pack, plan, probe,
};

/// How many times a root is changed before, and after.
const FILLED: usize = 1500;
const CHANGED: usize = 2500;

/// A root under test, with a place for its snapshots.
struct Subject {
    root: PathBuf,
    top: PathBuf,
    settings: DriverSettings,
}

struct Snapshot {
    staging: PathBuf,
    out: PathBuf,
    taken: DriverReport,
    shown: Vec<(PathBuf, ShownAt)>,
}

impl Subject {
    fn new(root: PathBuf, top: &Path) -> Self {
        let settings = DriverSettings { programs: Vec::new(), records: top.join("records") };
        Self { root, top: top.to_owned(), settings }
    }

    /// Takes a snapshot as a checkpoint does; `meanwhile` is what happens between its two steps.
    fn take(&self, version: &str, base: Option<&PackedPart>, meanwhile: impl FnOnce()) -> Snapshot {
        let (mut driver, notes) = self.begin(version, base);
        let prepared = driver.prepare(&Suspects::default()).unwrap();
        meanwhile();
        let frozen = driver.take(&nobody_runs(), &Suspects::default()).unwrap();
        let taken = DriverReport::of(driver.name(), prepared, frozen, notes);
        let shown = shown_at_all(&*driver, &self.root);
        driver.seal().unwrap();
        let (staging, out) = self.directories(version);
        Snapshot { staging, out, taken, shown }
    }

    fn begin(&self, version: &str, base: Option<&PackedPart>) -> (Box<dyn Driver>, Vec<String>) {
        let (staging, out) = self.directories(version);
        fs::create_dir(&staging).unwrap();
        fs::create_dir_all(&out).unwrap();
        let is_alive = |claim: &ocicle::snapshot::Claim| claim.index.is_some();
        let purpose = SnapshotOwner { owner: &out, part: "rootfs", is_alive: &is_alive };
        let root = probe(&self.root).unwrap();
        choose(&staging, root, base, &self.settings, &purpose).unwrap()
    }

    fn directories(&self, version: &str) -> (PathBuf, PathBuf) {
        (self.top.join(format!("staging-{version}")), self.top.join(format!("out-{version}")))
    }

    /// Puts a root back as a restore does, and says whether all of it was at once.
    #[track_caller]
    fn restore(&self, root: &Path, part: &PackedPart, was: &Picture, what: &str) -> bool {
        let now = probe(root).unwrap();
        let local = HeldLocally::find(&now, part.record(), &self.settings).unwrap();
        let at_once = local.as_ref().is_some_and(|local| local.put_back(&now).unwrap());
        let now = probe(root).unwrap();
        let plan_of = plan(&now, part).unwrap().cloning(local.as_ref());
        assert!(
            !at_once || plan_of.is_empty(),
            "{what}: {:?}",
            plan_of.actions().collect::<Vec<_>>()
        );
        plan_of.execute(&()).unwrap_or_else(|error| panic!("{what}: {error:#}"));
        assert_same(was, &picture(root), what);
        assert!(plan(&now, part).unwrap().is_empty(), "{what}: a second plan is not empty");
        at_once
    }

    /// The whole life of a snapshot.
    fn is_exact(&self, seed: u64, driver: &DriverName, method: Method) -> PackedPart {
        let mut dice = Dice(seed);
        changes(&self.root, &mut dice, FILLED);
        let mut was = Picture::default();
        let snapshot = self.take("a", None, || {
            changes(&self.root, &mut dice, 150);
            was = picture(&self.root);
        });
        assert_eq!((&snapshot.taken.driver, snapshot.taken.method), (driver, method));
        assert_same(&was, &picture(&self.root), "a snapshot changes nothing");
        changes(&self.root, &mut dice, CHANGED);
        let part = snapshot.packed();
        let what = format!("seed {seed}");
        self.restore(&self.root, &part, &was, &what);
        changes(&self.root, &mut dice, CHANGED);
        self.restore(&self.root, &part, &was, &format!("{what}, once more"));
        let empty = self.top.join("empty");
        fs::create_dir(&empty).unwrap();
        self.restore(&empty, &part, &was, &format!("{what}, an empty directory elsewhere"));
        self.has_versions(&mut dice, &part, &was);
        part
    }

    /// A second snapshot on the first.
    fn has_versions(&self, dice: &mut Dice, first: &PackedPart, was: &Picture) {
        changes(&self.root, dice, 40);
        let now = picture(&self.root);
        let snapshot = self.take("b", Some(first), || {});
        for layer in &first.record().layers {
            fs::hard_link(self.top.join("out-a").join(&layer.name), snapshot.out.join(&layer.name))
                .unwrap();
        }
        let second = snapshot.packed();
        let added: u64 = second.record().layers[1..].iter().map(|layer| layer.size).sum();
        assert!(added < first.record().layers[0].size / 2, "{:?}", second.record());
        self.restore(&self.root, first, was, "the first version");
        self.restore(&self.root, &second, &now, "the second version");
    }
}

impl Snapshot {
    /// What a checkpoint does after the thaw.
    fn packed(&self) -> PackedPart {
        let record = pack(
            &opened(&self.staging),
            &opened(&self.out),
            "rootfs",
            Compression::default(),
            Staging::Kept,
            &(),
        )
        .unwrap();
        self.release(&record);
        let part = PackedPart::open(&self.out, &record).unwrap();
        assert_still_shown(&part, &self.shown);
        part
    }

    fn release(&self, record: &PackedFiles) {
        if let Some(held) = DriverSnapshot::read(&opened(&self.staging)).unwrap() {
            held.release(record).unwrap();
        }
    }
}

fn made(path: PathBuf) -> PathBuf {
    fs::create_dir(&path).unwrap();
    path
}

#[test]
fn a_directory_on_ext4() {
    private(|| {
        let top = scratch();
        let root = made(file_system(top.path(), "ext4").join("root"));
        Subject::new(root, top.path()).is_exact(101, &DriverName::Directory, Method::Copy);
    });
}

#[test]
fn a_directory_on_xfs() {
    private(|| {
        let top = scratch();
        let pool = file_system(top.path(), "xfs");
        let (root, top) = (made(pool.join("root")), made(pool.join("top")));
        Subject::new(root, &top).is_exact(102, &DriverName::Directory, Method::Reflink);
    });
}

#[test]
fn a_directory_on_btrfs() {
    private(|| {
        let top = scratch();
        let pool = file_system(top.path(), "btrfs");
        let (root, top) = (made(pool.join("root")), made(pool.join("top")));
        Subject::new(root, &top).is_exact(103, &DriverName::Directory, Method::Reflink);
    });
}

#[test]
fn a_subvolume() {
    private(|| {
        let top = scratch();
        let pool = file_system(top.path(), "btrfs");
        let root = subvolume(&pool.join("root"));
        let subject = Subject::new(root.clone(), top.path());
        let part = subject.is_exact(104, &DriverName::Btrfs, Method::Snapshot);
        // All at once: the inode of a file is the one that it was.
        let before = probe(&root).unwrap();
        plan(&before, &part).unwrap().execute(&()).unwrap();
        let was = picture(&root);
        changes(&root, &mut Dice(1104), 300);
        assert!(subject.restore(&root, &part, &was, "at once"));
        // One that is mounted stays the one that is mounted.
        let mounted = made(top.path().join("mounted"));
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(&root), &mounted, None::<&str>, flags, None::<&str>).unwrap();
        changes(&mounted, &mut Dice(1105), 300);
        assert!(!subject.restore(&mounted, &part, &was, "where it is mounted"));
        assert_same(&was, &picture(&root), "below the mount");
    });
}

/// The names of what ocicle keeps on a btrfs.
fn kept(pool: &Path) -> Vec<String> {
    let top = pool.join(".ocicle");
    let mut names: Vec<String> = fs::read_dir(top)
        .map(|entries| entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()))
        .unwrap()
        .collect();
    names.sort();
    names
}

#[test]
fn a_snapshot_that_was_left_behind_is_removed_by_the_next() {
    private(|| {
        let top = scratch();
        let pool = file_system(top.path(), "btrfs");
        let subject = Subject::new(subvolume(&pool.join("root")), top.path());
        fs::write(subject.root.join("file"), "content").unwrap();
        // Whoever dies here has neither sealed nor discarded anything.
        let (mut driver, _) = subject.begin("a", None);
        driver.take(&nobody_runs(), &Suspects::default()).unwrap();
        let left = kept(&pool);
        assert_eq!(left.len(), 2, "the snapshot and its record: {left:?}");
        // As long as the process lives, it is not taken for one.
        drop(subject.begin("b", None));
        assert!(left.iter().all(|name| kept(&pool).contains(name)), "{:?}", kept(&pool));
        let lease = driver.seal().unwrap();
        drop(subject.begin("c", None));
        assert!(kept(&pool).starts_with(&left), "sealed and not packed: {:?}", kept(&pool));
        drop(lease);
        drop(subject.begin("f", None));
        assert!(kept(&pool).iter().all(|name| !left.contains(name)), "{:?}", kept(&pool));
        // What the guardian does.
        let (mut driver, _) = subject.begin("d", None);
        driver.take(&nobody_runs(), &Suspects::default()).unwrap();
        let held = driver.held().unwrap().clone();
        drop(driver);
        held.discard().unwrap();
        held.discard().unwrap();
        drop(subject.begin("e", None));
        assert_eq!(kept(&pool).len(), 1, "the last one's record: {:?}", kept(&pool));
    });
}

#[test]
fn subvolumes_inside_of_a_subvolume() {
    private(|| {
        let top = scratch();
        let pool = file_system(top.path(), "btrfs");
        let outside = subvolume(&pool.join("outside"));
        fs::write(outside.join("host"), "the host's").unwrap();
        let subject = Subject::new(subvolume(&pool.join("root")), top.path());
        let root = &subject.root;
        fs::write(root.join("file"), "content").unwrap();
        // Made by the container between the two steps: no snapshot would hold it.
        let nest = || {
            fs::write(subvolume(&root.join("inner")).join("deep"), "content").unwrap();
            std::os::unix::fs::symlink("/", root.join("way-out")).unwrap();
        };
        let snapshot = subject.take("a", None, nest);
        assert_eq!(snapshot.taken.driver, DriverName::Directory);
        let was = picture(root);
        let part = snapshot.packed();
        assert_eq!(part.read(b"inner/deep", 100).unwrap(), b"content");
        assert_eq!(kept(&pool), Vec::<String>::new());
        // From the beginning: the driver says why it is another.
        let second = subject.take("b", None, || {});
        assert_eq!(second.taken.driver, DriverName::Directory);
        assert!(second.taken.notes[0].contains("other subvolumes"), "{:?}", second.taken.notes);
        // Read-only ones, one in another, and a link in the place of one.
        subvolume(&root.join("new"));
        fs::remove_dir_all(root.join("inner")).unwrap();
        std::os::unix::fs::symlink(&outside, root.join("inner")).unwrap();
        let nested = subvolume(&root.join("new/nested"));
        fs::write(nested.join("x"), "x").unwrap();
        for path in [&nested, &root.join("new")] {
            support::run(
                std::process::Command::new("btrfs")
                    .args(["-q", "property", "set", "-ts"])
                    .arg(path)
                    .args(["ro", "true"]),
            );
        }
        subject.restore(root, &part, &was, "nested");
        assert_eq!(fs::read(outside.join("host")).unwrap(), b"the host's");
    });
}

/// The whole life of a snapshot where a call fails, in each thread that may make it.
fn is_exact_without(
    refused: Refused,
    kind: &'static str,
    seed: u64,
    is_refused: fn(&Path) -> bool,
) {
    private(move || {
        let top = scratch();
        let root = made(file_system(top.path(), kind).join("root"));
        assert!(!is_refused(top.path()), "it is there without the filter");
        refused.install();
        assert!(is_refused(top.path()), "it is not there with it");
        let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
        let driver = DriverName::Directory;
        pool.install(|| {
            Subject::new(root, top.path()).is_exact(seed, &driver, Method::Copy);
        });
    });
}

fn two_files(top: &Path) -> [fs::File; 2] {
    let open = |name: &str| {
        let mut options = fs::File::options();
        options.read(true).write(true).create(true).truncate(false).open(top.join(name)).unwrap()
    };
    fs::write(top.join("source"), "content").unwrap();
    [open("source"), open("target")]
}

/// Linux before 6.5: every file is written back before it is read.
#[test]
fn a_directory_without_cachestat() {
    const CACHESTAT: i64 = 451;
    is_exact_without(Refused::new(CACHESTAT, Errno::ENOSYS), "ext4", 121, |top| {
        ocicle::sys::fs::dirty_pages(&two_files(top)[0]).is_none()
    });
}

/// Between kinds of file systems before Linux 5.3: ocicle reads and writes.
#[test]
fn a_directory_that_the_kernel_does_not_copy() {
    let refused = Refused::new(libc::SYS_copy_file_range, Errno::EXDEV);
    is_exact_without(refused, "ext4", 122, |top| {
        let [source, target] = two_files(top);
        rustix::fs::copy_file_range(&source, None, &target, None, 7).is_err()
    });
}

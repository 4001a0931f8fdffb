//! What kind of root a path is, and how to see it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use super::identity::{Form, LayerIdentity, RootIdentity};
use super::lower;
use crate::bytes::ByteString;
use crate::proc::Proc;
use crate::proc::mountinfo::{Mount, mount_of};
use crate::sys::fs;
use crate::sys::inode::{DevIno, Device};
use crate::sys::mount::{Lowers, clone_of, overlay_of_lowers};

/// A root file system that can be snapshotted or made equal to a snapshot.
pub struct Root {
    path: PathBuf,
    identity: RootIdentity,
    top: OwnedFd,
    device: Device,
    /// Whether no other file system can be below the top.
    alone: bool,
    overlay: Option<Overlay>,
}

/// What is below an overlay.
pub(super) struct Overlay {
    pub upper: OwnedFd,
    /// `trusted.overlay.` or `user.overlay.`
    pub prefix: &'static str,
    layers: Vec<OwnedFd>,
    data_only: Vec<OwnedFd>,
    options: Options,
}

impl Root {
    /// Where the root is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The root of a snapshot that somebody holds, of a root of that identity.
    pub(super) fn of_snapshot(path: PathBuf, top: OwnedFd, was: RootIdentity) -> Result<Self> {
        let device = DevIno::of(&top)?.device;
        let identity = RootIdentity { driver: Form::Directory, ..was };
        Ok(Self { path, identity, top, device, alone: false, overlay: None })
    }

    /// How it stores what is written to it.
    pub fn form(&self) -> Form {
        self.identity.driver
    }

    /// What to compare at restore.
    pub fn identity(&self) -> &RootIdentity {
        &self.identity
    }

    /// The same root, whose identity is complete: it tells, too, what the uppermost lower layer
    /// holds, if that is small.
    pub fn described(mut self) -> Result<Self> {
        if let Some(overlay) = &self.overlay {
            let layer = &mut self.identity.lowers[0];
            layer.digest = lower::digest_of(&overlay.layers[0], overlay.prefix)
                .with_context(|| format!("reading the layer {}", layer.path))?;
        }
        Ok(self)
    }

    /// This root, and what speaks against it showing the same image below as `was` did. What a layer
    /// holds is read only if nothing else tells that it is the same.
    pub fn compared_with(self, was: &RootIdentity) -> Result<(Self, Vec<String>)> {
        let differences = was.differences(&self.identity);
        if differences.is_empty() {
            return Ok((self, differences));
        }
        let root = self.described()?;
        let differences = was.differences(&root.identity);
        Ok((root, differences))
    }

    /// What the layers below an overlay show, as a directory; `None` where there are none.
    pub fn lower_layers(&self) -> Result<Option<OwnedFd>> {
        self.overlay.as_ref().map(Overlay::lower_view).transpose()
    }

    /// The root as it is seen by the container, without the mounts on top of it.
    pub(super) fn top(&self) -> BorrowedFd<'_> {
        self.top.as_fd()
    }

    pub(super) fn into_top(self) -> OwnedFd {
        self.top
    }

    /// Whether a directory on that device belongs to the root. Without the mounts on top of it,
    /// one on another is a btrfs subvolume inside.
    pub(super) fn holds(&self, device: Device) -> bool {
        self.alone || self.device == device
    }

    pub(super) fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }
}

impl Overlay {
    /// An attribute of the overlay's own on a file or directory of the upper layer.
    pub(super) fn xattr(&self, entry: impl AsFd, name: &str) -> std::io::Result<Option<Vec<u8>>> {
        fs::xattr(entry, format!("{}{name}", self.prefix).as_bytes())
    }

    /// What the lower layers alone show. The kernel resolves their whiteouts, renames and metacopy
    /// files: the layers are mounted together once more, read-only and attached nowhere.
    pub(super) fn lower_view(&self) -> Result<OwnedFd> {
        if let ([layer], []) = (&self.layers[..], &self.data_only[..]) {
            // An overlay without an upper directory needs two layers.
            return layer.try_clone().context("opening the lower directory");
        }
        overlay_of_lowers(&Lowers {
            layers: &self.layers,
            data_only: &self.data_only,
            metacopy: self.options.metacopy,
            redirect: self.options.redirect,
            user_xattr: self.options.user_xattr,
        })
        .context("mounting the lower layers of the overlay alone")
    }
}

/// Finds out what kind of root `rootfs` is. Nothing is changed.
pub fn probe(rootfs: &Path) -> Result<Root> {
    let path = rootfs.canonicalize().with_context(|| format!("resolving {}", rootfs.display()))?;
    let mounts = Proc::own_thread().mounts()?;
    let mount = mount_of(&mounts, &path).context("finding the mount of the root")?;
    let is_overlay =
        mount.kind == "overlay" && mount.root.as_bytes() == b"/" && mount.point.as_path() == path;
    let overlay = if is_overlay {
        let found = open_overlay(&path, mount)
            .with_context(|| format!("reading the layers of the overlay at {}", path.display()))?;
        Some(found)
    } else {
        None
    };
    open_root(path, mount, overlay)
}

fn open_root(
    path: PathBuf,
    mount: &Mount,
    overlay: Option<(Overlay, Vec<LayerIdentity>)>,
) -> Result<Root> {
    // The copy hides what is mounted on top, so that no walk crosses into another file system, and
    // a bind mount of the same one is not taken twice. A mount of another namespace cannot be
    // copied: then the device numbers tell.
    let (top, alone) = clone_of(&path)
        .map(|top| (top, true))
        .or_else(|_| Ok::<_, std::io::Error>((fs::open_host_dir(&path)?, false)))
        .with_context(|| format!("opening {}", path.display()))?;
    let stat = fs::stat(&top)?;
    let (overlay, lowers) = match overlay {
        Some((overlay, lowers)) => (Some(overlay), lowers),
        None => (None, Vec::new()),
    };
    let identity = RootIdentity {
        driver: if overlay.is_some() { Form::Overlay } else { Form::Directory },
        fs_type: mount.kind.clone(),
        device: stat.st_dev,
        ino: stat.st_ino,
        lowers,
        options: overlay.as_ref().map(|o| o.options.named()).unwrap_or_default(),
    };
    let root = Root { path, identity, top, device: Device::from_stat(stat.st_dev), alone, overlay };
    if let Some(overlay) = &root.overlay {
        check_upper(&root, overlay)?;
    }
    Ok(root)
}

/// The merged root has the attributes of the upper directory: if not, it is another one.
fn check_upper(root: &Root, overlay: &Overlay) -> Result<()> {
    for _ in 0..8 {
        let (upper, top) = (fs::stat(&overlay.upper)?, fs::stat(&root.top)?);
        let of =
            |s: &rustix::fs::Stat| (s.st_mode, s.st_uid, s.st_gid, s.st_mtime, s.st_mtime_nsec);
        if of(&upper) == of(&top) {
            return Ok(());
        }
    }
    bail!(
        "the upper directory found for {} is not the one that is mounted there; take the snapshot \
         where the engine mounted it, or leave the file system out",
        root.path.display()
    )
}

/// What mountinfo tells about an overlay.
#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    lowers: Vec<Vec<u8>>,
    data_only: Vec<Vec<u8>>,
    upper: Option<Vec<u8>>,
    metacopy: bool,
    redirect: bool,
    user_xattr: bool,
    index: bool,
}

impl Options {
    /// The options that decide what is seen.
    fn named(&self) -> Vec<String> {
        [
            (self.metacopy, "metacopy=on"),
            (self.redirect, "redirect_dir"),
            (self.user_xattr, "userxattr"),
            (self.index, "index=on"),
        ]
        .into_iter()
        .filter(|(set, _)| *set)
        .map(|(_, name)| name.to_owned())
        .collect()
    }

    /// Reads the options of the file system as mountinfo shows them. A comma in a path is not
    /// escaped any more when it comes here: an option begins only where a known key does.
    fn parse(text: &[u8]) -> Self {
        let mut options = Self::default();
        for option in split_options(text) {
            let (key, value) = match option.iter().position(|byte| *byte == b'=') {
                Some(at) => (&option[..at], &option[at + 1..]),
                None => (option, &b""[..]),
            };
            match key {
                b"lowerdir" => options.parse_lowerdir(value),
                b"lowerdir+" => options.lowers.push(value.to_vec()),
                b"datadir+" => options.data_only.push(value.to_vec()),
                b"upperdir" => options.upper = Some(value.to_vec()),
                b"metacopy" => options.metacopy = value == b"on",
                b"redirect_dir" => options.redirect = value == b"on" || value == b"follow",
                b"index" => options.index = value == b"on",
                b"userxattr" => options.user_xattr = true,
                _ => {}
            }
        }
        options
    }

    /// `a:b::data`: layers, and after two colons layers that only give data. A backslash makes the
    /// next byte a part of the name.
    fn parse_lowerdir(&mut self, value: &[u8]) {
        let mut names = vec![Vec::new()];
        let mut bytes = value.iter();
        while let Some(&byte) = bytes.next() {
            match (byte, names.last_mut()) {
                (b'\\', Some(name)) => name.extend(bytes.next()),
                (b':', _) | (_, None) => names.push(Vec::new()),
                (_, Some(name)) => name.push(byte),
            }
        }
        let mut data = false;
        for name in names {
            match (name.is_empty(), data) {
                (true, _) => data = true,
                (false, false) => self.lowers.push(name),
                (false, true) => self.data_only.push(name),
            }
        }
    }
}

/// The keys that fs/overlayfs/params.c knows, with `=` where a value follows.
const KEYS: [&[u8]; 20] = [
    b"lowerdir=",
    b"lowerdir+=",
    b"datadir+=",
    b"upperdir=",
    b"workdir=",
    b"default_permissions",
    b"redirect_dir=",
    b"index=",
    b"uuid=",
    b"nfs_export=",
    b"userxattr",
    b"xino=",
    b"metacopy=",
    b"verity=",
    b"fsync=",
    b"volatile",
    b"override_creds",
    b"nooverride_creds",
    b"context=",
    b"rw",
];

fn split_options(text: &[u8]) -> Vec<&[u8]> {
    let starts_option = |rest: &[u8]| {
        KEYS.iter().any(|key| {
            rest.starts_with(key)
                && (key.ends_with(b"=") || matches!(rest.get(key.len()), None | Some(b',')))
        })
    };
    let mut options = Vec::new();
    let mut start = 0;
    for at in 0..text.len() {
        if text[at] == b',' && starts_option(&text[at + 1..]) {
            options.push(&text[start..at]);
            start = at + 1;
        }
    }
    options.push(&text[start..]);
    options
}

fn open_overlay(path: &Path, mount: &Mount) -> Result<(Overlay, Vec<LayerIdentity>)> {
    let options = Options::parse(mount.super_options.as_bytes());
    let Some(upper) = &options.upper else {
        bail!("it has no upper directory: nothing can be written to it, so leave it out");
    };
    let homes = homes(path, upper);
    let mut names = vec![upper.clone()];
    names.extend(options.lowers.iter().chain(&options.data_only).cloned());
    let mut found = resolve(&names, &homes)?.into_iter();
    let upper = found.next().context("it has no upper directory")?;
    let layers: Vec<_> = found.by_ref().take(options.lowers.len()).collect();
    let data_only: Vec<_> = found.collect();
    if layers.is_empty() {
        bail!("it has no lower directory");
    }
    let identities =
        layers.iter().chain(&data_only).map(identity_of).collect::<Result<Vec<_>>>()?;
    let prefix = if options.user_xattr { "user.overlay." } else { "trusted.overlay." };
    let fds = |list: Vec<(PathBuf, OwnedFd)>| list.into_iter().map(|(_, fd)| fd).collect();
    let overlay =
        Overlay { upper: upper.1, prefix, layers: fds(layers), data_only: fds(data_only), options };
    Ok((overlay, identities))
}

fn identity_of((path, fd): &(PathBuf, OwnedFd)) -> Result<LayerIdentity> {
    let stat = fs::stat(fd)?;
    let path = ByteString::from(path.as_path());
    Ok(LayerIdentity { path, device: stat.st_dev, ino: stat.st_ino, digest: None })
}

/// Where relative layers may lie. Docker and podman (`l/XXXX`) and containerd (`71/fs`) change to
/// their storage directory before they mount, to get many layers into one page of options.
fn homes(path: &Path, upper: &[u8]) -> Vec<PathBuf> {
    let upper = ByteString::from(upper);
    let near = path.ancestors().skip(1);
    let above_upper = upper.as_path().ancestors().skip(1).filter(|path| path.is_absolute());
    let known = [
        "/var/lib/containers/storage/overlay",
        "/var/lib/docker/overlay2",
        "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots",
    ];
    above_upper.chain(near).map(Path::to_owned).chain(known.map(PathBuf::from)).collect()
}

/// Opens all directories; the relative ones must all lie in one home.
fn resolve(names: &[Vec<u8>], homes: &[PathBuf]) -> Result<Vec<(PathBuf, OwnedFd)>> {
    let is_relative = |name: &[u8]| !name.starts_with(b"/");
    let here = PathBuf::from("/");
    let home = if let Some(first) = names.iter().find(|name| is_relative(name)) {
        homes
            .iter()
            .find(|home| {
                names.iter().filter(|name| is_relative(name)).all(|n| open_layer(home, n).is_some())
            })
            .with_context(|| {
                format!(
                    "its layer {:?} is relative to a directory that is not known; mount the root \
                     with absolute paths, or leave the file system out",
                    ByteString::from(&first[..])
                )
            })?
    } else {
        &here
    };
    names
        .iter()
        .map(|name| {
            open_layer(home, name)
                .with_context(|| format!("opening its layer {:?}", ByteString::from(&name[..])))
        })
        .collect()
}

/// Opens one layer; as it is written, or without the backslashes of mount(8).
fn open_layer(home: &Path, name: &[u8]) -> Option<(PathBuf, OwnedFd)> {
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(&byte) = bytes.next() {
        if byte == b'\\' {
            plain.extend(bytes.next());
        } else {
            plain.push(byte);
        }
    }
    [name, &plain].into_iter().find_map(|name| {
        let path = home.join(ByteString::from(name).as_path()).canonicalize().ok()?;
        let fd = fs::open_host_dir(&path).ok()?;
        Some((path, fd))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lists(text: &str) -> (Vec<String>, Vec<String>, String) {
        let options = Options::parse(text.as_bytes());
        let text = |list: &[Vec<u8>]| {
            list.iter().map(|name| String::from_utf8(name.clone()).unwrap()).collect::<Vec<_>>()
        };
        let upper = text(&options.upper.into_iter().collect::<Vec<_>>()).concat();
        (text(&options.lowers), text(&options.data_only), upper)
    }

    #[test]
    fn layers_are_read_in_both_forms() {
        let (lowers, data, upper) =
            lists("rw,lowerdir=/a,b:/c\\:d::/data1::/data2,upperdir=/u,x,workdir=/w,metacopy=on");
        assert_eq!(lowers, ["/a,b", "/c:d"]);
        assert_eq!(data, ["/data1", "/data2"]);
        assert_eq!(upper, "/u,x");
        let (lowers, data, upper) =
            lists("rw,lowerdir+=/a:b,lowerdir+=/c,datadir+=/d,upperdir=/u,workdir=/w");
        assert_eq!(lowers, ["/a:b", "/c"]);
        assert_eq!((data.concat(), upper), ("/d".into(), "/u".into()));
    }

    #[test]
    fn options_that_decide_what_is_seen_are_kept() {
        let options = Options::parse(b"ro,lowerdir=/a,redirect_dir=follow,index=off,userxattr");
        assert_eq!(options.named(), ["redirect_dir", "userxattr"]);
        assert!(options.upper.is_none());
    }
}

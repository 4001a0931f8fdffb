//! What an inode is.

use rustix::fs::FileType;

use crate::sys::inode::Device;

/// What an inode is. `F` is what is known of the content of a regular file, `T` the target of a
/// symbolic link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum InodeKind<F = (), T = Vec<u8>> {
    /// A directory.
    Dir,
    /// A regular file.
    File(F),
    /// A symbolic link.
    Symlink(T),
    /// A character device.
    Char(Device),
    /// A block device.
    Block(Device),
    /// A named pipe.
    Fifo,
    /// The name of a socket.
    Socket,
}

impl<F, T> InodeKind<F, T> {
    /// Whether it is a directory.
    pub(super) fn is_dir(&self) -> bool {
        matches!(self, Self::Dir)
    }

    /// Whether it is a regular file.
    pub(super) fn is_file(&self) -> bool {
        matches!(self, Self::File(_))
    }

    /// Whether it is a symbolic link.
    pub(super) fn is_symlink(&self) -> bool {
        matches!(self, Self::Symlink(_))
    }

    /// What stands for it in a mode.
    pub(super) fn file_type(&self) -> FileType {
        match self {
            Self::Dir => FileType::Directory,
            Self::File(_) => FileType::RegularFile,
            Self::Symlink(_) => FileType::Symlink,
            Self::Char(_) => FileType::CharacterDevice,
            Self::Block(_) => FileType::BlockDevice,
            Self::Fifo => FileType::Fifo,
            Self::Socket => FileType::Socket,
        }
    }

    /// The same, with something else known of the content of a regular file.
    pub(super) fn map_file<G>(self, file: impl FnOnce(F) -> G) -> InodeKind<G, T> {
        match self {
            Self::Dir => InodeKind::Dir,
            Self::File(content) => InodeKind::File(file(content)),
            Self::Symlink(target) => InodeKind::Symlink(target),
            Self::Char(device) => InodeKind::Char(device),
            Self::Block(device) => InodeKind::Block(device),
            Self::Fifo => InodeKind::Fifo,
            Self::Socket => InodeKind::Socket,
        }
    }
}

impl<F: Copy> InodeKind<F> {
    /// The same, with the target of a symbolic link borrowed.
    pub(super) fn by_ref(&self) -> InodeKind<F, &[u8]> {
        match self {
            Self::Dir => InodeKind::Dir,
            Self::File(content) => InodeKind::File(*content),
            Self::Symlink(target) => InodeKind::Symlink(target),
            Self::Char(device) => InodeKind::Char(*device),
            Self::Block(device) => InodeKind::Block(*device),
            Self::Fifo => InodeKind::Fifo,
            Self::Socket => InodeKind::Socket,
        }
    }
}

impl<F> InodeKind<F, &[u8]> {
    /// The same, with a target of its own.
    pub(super) fn into_owned(self) -> InodeKind<F> {
        match self {
            Self::Dir => InodeKind::Dir,
            Self::File(content) => InodeKind::File(content),
            Self::Symlink(target) => InodeKind::Symlink(target.to_vec()),
            Self::Char(device) => InodeKind::Char(device),
            Self::Block(device) => InodeKind::Block(device),
            Self::Fifo => InodeKind::Fifo,
            Self::Socket => InodeKind::Socket,
        }
    }
}

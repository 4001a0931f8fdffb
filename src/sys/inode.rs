//! The numbers that tell inodes from one another, and devices.

use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;

use rustix::fs::{Stat, major, makedev, minor};
use serde::{Deserialize, Serialize};

/// The number of a device: the one that a file system is on, or the one that a device file is.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Device {
    /// Which driver.
    pub major: u32,
    /// Which of its devices.
    pub minor: u32,
}

impl Device {
    /// How many bits the minor number has within the kernel (`MINORBITS` of its
    /// include/linux/kdev_t.h).
    const MINOR_BITS: u32 = 20;

    /// The device of those two numbers.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }

    /// The device of a number as stat(2) has it: `st_dev`, `st_rdev`.
    pub fn from_stat(number: u64) -> Self {
        Self { major: major(number), minor: minor(number) }
    }

    /// The number by which stat(2) names it.
    pub fn as_stat(self) -> u64 {
        makedev(self.major, self.minor)
    }

    /// The device of a number as the kernel has it within, and shows it in the fdinfo of a watch.
    pub const fn from_kernel(number: u32) -> Self {
        Self { major: number >> Self::MINOR_BITS, minor: number & ((1 << Self::MINOR_BITS) - 1) }
    }

    /// The number by which the kernel names it within.
    pub const fn as_kernel(self) -> u32 {
        self.major << Self::MINOR_BITS | self.minor
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

/// One inode of the machine: no two that are there at one time have the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DevIno {
    /// The device of its file system.
    pub device: Device,
    /// Its number there.
    pub ino: u64,
}

impl DevIno {
    /// The inode of an open file, or of what an `O_PATH` descriptor refers to.
    ///
    /// # Errors
    /// Those of fstat(2).
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        Ok(Self::from(&rustix::fs::fstat(file)?))
    }
}

impl From<&Stat> for DevIno {
    fn from(stat: &Stat) -> Self {
        Self { device: Device::from_stat(stat.st_dev), ino: stat.st_ino }
    }
}

impl From<&Metadata> for DevIno {
    fn from(metadata: &Metadata) -> Self {
        Self { device: Device::from_stat(metadata.dev()), ino: metadata.ino() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_one_number_by_three_ways() {
        for (device, stat, kernel) in [
            (Device::new(8, 1), 0x801, 8 << 20 | 1),
            (Device::new(0, 0x2a), 0x2a, 0x2a),
            (Device::new(254, 0x12345), 0x1230_fe45, 254 << 20 | 0x12345),
        ] {
            assert_eq!((device.as_stat(), device.as_kernel()), (stat, kernel), "{device}");
            assert_eq!((Device::from_stat(stat), Device::from_kernel(kernel)), (device, device));
        }
        assert_eq!(Device::new(10, 229).to_string(), "10:229");
    }

    #[test]
    fn an_inode_is_one_by_every_way_to_look() {
        let directory = tempfile::tempdir().unwrap();
        let make = |name: &str| std::fs::File::create(directory.path().join(name)).unwrap();
        let (one, other) = (make("one"), make("other"));
        let found = DevIno::of(&one).unwrap();
        assert_eq!(found, DevIno::from(&one.metadata().unwrap()));
        assert_ne!(found, DevIno::of(&other).unwrap());
    }
}

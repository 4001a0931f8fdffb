//! The users of a container that has a user namespace: which numbers of the host are its own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount};

use super::Bundle;
use crate::hint::WithHint;
use crate::proc::{self, Proc};

/// Numbers of users and groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Users {
    /// Of users.
    pub uids: Ranges,
    /// Of groups.
    pub gids: Ranges,
}

/// Ranges of numbers, each by its first one and its length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// Whether a number is in one of them.
    pub fn contain(&self, number: u32) -> bool {
        self.0
            .iter()
            .any(|(first, length)| number.checked_sub(*first).is_some_and(|at| at < *length))
    }

    /// What a user namespace maps to, as the kernel lists it (user_namespaces(7)).
    fn parse(map: &str) -> Result<Self> {
        let range = |line: &str| {
            let mut numbers = line.split_ascii_whitespace().skip(1).map(str::parse::<u32>);
            let (first, length) = numbers.next().zip(numbers.next()).context("it is cut")?;
            Ok((first?, length?))
        };
        map.lines().map(range).collect::<Result<_>>().map(Self)
    }

    fn of_host(mappings: Option<&Vec<LinuxIdMapping>>) -> Self {
        Self(mappings.into_iter().flatten().map(|one| (one.host_id(), one.size())).collect())
    }

    fn of_container(mappings: Option<&Vec<LinuxIdMapping>>) -> Self {
        Self(mappings.into_iter().flatten().map(|one| (one.container_id(), one.size())).collect())
    }
}

impl Bundle {
    /// The numbers that the container's own users have on disk in what is mounted at a place; in its
    /// root file system at `/`. `None` without a user namespace: then they are all the host's.
    ///
    /// # Errors
    /// When the namespace is somebody else's, and what it maps cannot be found out.
    pub fn users_at(&self, destination: &Path) -> Result<Option<Users>> {
        let linux = self.spec.linux().as_ref();
        let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
        let mut all = namespaces.into_iter().flatten();
        let Some(own) = all.find(|one| one.typ() == LinuxNamespaceType::User) else {
            return Ok(None);
        };
        let mount =
            self.spec.mounts().iter().flatten().rfind(|one| one.destination() == destination);
        let uids = linux.and_then(|linux| linux.uid_mappings().as_ref());
        let gids = linux.and_then(|linux| linux.gid_mappings().as_ref());
        // An idmapped mount shows what is on disk under other numbers: the first of each pair.
        if let Some(mount) = mount.filter(|mount| is_idmapped(mount)) {
            return Ok(Some(Users {
                uids: Ranges::of_container(mount.uid_mappings().as_ref().or(uids)),
                gids: Ranges::of_container(mount.gid_mappings().as_ref().or(gids)),
            }));
        }
        match own.path() {
            Some(path) if uids.is_none() => of_namespace(path).map(Some),
            _ => Ok(Some(Users { uids: Ranges::of_host(uids), gids: Ranges::of_host(gids) })),
        }
    }
}

fn is_idmapped(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    mount.uid_mappings().is_some() || options.any(|option| option == "idmap" || option == "ridmap")
}

/// What a user namespace maps: a process that is in it tells.
fn of_namespace(path: &Path) -> Result<Users> {
    let inode = |path: &Path| fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let context = || format!("finding the users of {}", path.display());
    let wanted = inode(path).context("it is not there").with_context(context)?;
    for process in proc::all()?.into_iter().map(Proc::of) {
        if inode(&process.at("ns/user")) == Some(wanted) {
            let read = |name: &str| Ranges::parse(&fs::read_to_string(process.at(name))?);
            return Ok(Users { uids: read("uid_map")?, gids: read("gid_map")? });
        }
    }
    Err(anyhow!("no process is in it").context(context()).hint(
        "name the mappings of the namespace in config.json: linux.uidMappings, linux.gidMappings",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ranges_have_ends() {
        let ranges = Ranges::parse("0 1000 1\n1 100000 65536\n").unwrap();
        for (number, is_in) in [
            (999, false),
            (1000, true),
            (1001, false),
            (100_000, true),
            (165_535, true),
            (165_536, false),
        ] {
            assert_eq!(ranges.contain(number), is_in, "{number}");
        }
        assert!(Ranges(vec![(u32::MAX, 5)]).contain(u32::MAX));
        assert!(!Ranges::default().contain(0));
        assert!(Ranges::parse("0 1000\n").is_err());
    }

    fn bundle(linux: &serde_json::Value, mount: &serde_json::Value) -> Bundle {
        let spec = json!({ "ociVersion": "1.0.2", "linux": linux, "mounts": [mount] });
        let spec = serde_json::from_value(spec).unwrap();
        Bundle { directory: "/b".into(), rootfs: "/b".into(), spec }
    }

    #[test]
    fn the_users_are_those_that_config_json_maps() {
        let map = json!([{ "hostID": 100_000, "containerID": 0, "size": 10 }]);
        let of =
            |linux, mount, place: &str| bundle(&linux, &mount).users_at(Path::new(place)).unwrap();
        let plain = json!({ "destination": "/data", "source": "/s", "options": ["bind"] });
        assert_eq!(of(json!({}), plain.clone(), "/"), None);
        let own =
            json!({ "namespaces": [{ "type": "user" }], "uidMappings": map, "gidMappings": map });
        let users = of(own.clone(), plain, "/data").unwrap();
        assert!(
            users.uids.contain(100_009) && !users.uids.contain(100_010) && !users.gids.contain(0)
        );
        let idmapped =
            json!({ "destination": "/data", "source": "/s", "options": ["bind", "idmap"] });
        assert!(of(own.clone(), idmapped.clone(), "/data").unwrap().uids.contain(9));
        assert!(!of(own, idmapped, "/").unwrap().uids.contain(9));
    }

    #[test]
    fn a_namespace_that_is_joined_is_asked_for() {
        let linux = json!({ "namespaces": [{ "type": "user", "path": "/proc/self/ns/user" }] });
        let users =
            bundle(&linux, &json!({ "destination": "/x" })).users_at(Path::new("/")).unwrap();
        assert!(users.unwrap().uids.contain(0));
    }
}

//! The lists that engines keep of their containers, those that do not run among them.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::states::in_place;
use super::{Checkpoint, Listed, Seen, directories_in, users};
use crate::bytes::ByteString;
use crate::container::records::{self, StoredContainer, read_json, read_own};
use crate::container::{Engine, ensure_name};
use crate::foreign::Reader;

/// A container, as its engine knows it.
#[derive(Debug)]
pub(super) struct CatalogEntry {
    pub id: String,
    pub user: Option<u32>,
    engine: Engine,
    name: Option<ByteString>,
    pod: Option<ByteString>,
    image: Option<ByteString>,
    pub bundle: Option<PathBuf>,
    checkpoints: Vec<Checkpoint>,
}

impl CatalogEntry {
    /// Adds what the engine knows.
    pub(super) fn complete(self, listed: &mut Listed) {
        listed.engine = self.engine;
        listed.user = self.user;
        listed.name = self.name.or(listed.name.take());
        listed.pod = self.pod.or(listed.pod.take());
        listed.image = self.image.or(listed.image.take());
        for checkpoint in self.checkpoints {
            if !listed.checkpoints.contains(&checkpoint) {
                listed.checkpoints.push(checkpoint);
            }
        }
    }
}

/// Every container in an engine's list.
pub(super) fn read() -> Seen<CatalogEntry> {
    let mut seen = storage(&graph_root(), &Reader::of_root());
    for user in users() {
        let Some(home) = home_of(user) else { continue };
        let root = home.join(".local/share/containers/storage");
        seen.extend(storage(&root, &Reader::of_user(user)));
    }
    seen.found.extend(docker());
    seen
}

/// The home of a user. What leads to it is root's.
fn home_of(user: u32) -> Option<PathBuf> {
    let account = nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(user)).ok()??;
    let (above, name) = account.dir.parent().zip(account.dir.file_name())?;
    Some(above.canonicalize().ok()?.join(name))
}

/// Where containers/storage keeps everything (containers-storage.conf(5)).
pub(super) fn graph_root() -> PathBuf {
    let read = |path: &&str| Reader::of_root().read(Path::new(path)).ok().flatten();
    let configured = ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"]
        .iter()
        .find_map(|path| String::from_utf8(read(path)?).ok());
    let table = configured.and_then(|text| text.parse::<toml::Table>().ok());
    let root =
        table.and_then(|table| Some(table.get("storage")?.get("graphroot")?.as_str()?.into()));
    root.unwrap_or_else(|| "/var/lib/containers/storage".into())
}

fn storage(root: &Path, reader: &Reader) -> Seen<CatalogEntry> {
    let mut seen = Seen::default();
    let drivers = seen.or_row(reader, root, reader.directories(root)).unwrap_or_default();
    for driver in drivers {
        if !driver.as_os_str().as_encoded_bytes().ends_with(b"-containers") {
            continue;
        }
        for list in records::LISTS {
            let list = driver.join(list);
            let read = read_json::<Vec<StoredContainer>>(reader, &list);
            let stored = seen.or_row(reader, &list, read).flatten().into_iter().flatten();
            seen.found.extend(stored.filter_map(|one| stored_entry(one, &driver, reader)));
        }
    }
    seen
}

fn stored_entry(stored: StoredContainer, driver: &Path, reader: &Reader) -> Option<CatalogEntry> {
    ensure_name(&stored.id).ok()?;
    // buildah's working containers have no process of their own, and no name of an image.
    let metadata = stored.metadata();
    metadata.image_name.as_ref()?;
    let bundle = driver.join(&stored.id).join("userdata");
    let engine = if metadata.pod_name.is_some() { Engine::CriO } else { Engine::Podman };
    let name = metadata.container_name.or(metadata.name).or(stored.names.into_iter().next());
    Some(CatalogEntry {
        id: stored.id,
        user: reader.user(),
        engine,
        name: name.map(ByteString::from),
        pod: metadata.pod_name.map(ByteString::from),
        image: metadata.image_name.filter(|name| !name.is_empty()).map(ByteString::from),
        checkpoints: in_place(&bundle, reader).into_iter().collect(),
        bundle: Some(bundle),
    })
}

fn docker() -> Vec<CatalogEntry> {
    let configured: Option<DaemonConfig> = read_own(Path::new("/etc/docker/daemon.json"));
    let root = configured.and_then(|config| config.data_root);
    let containers = root.unwrap_or_else(|| "/var/lib/docker".into()).join("containers");
    directories_in(&containers).iter().filter_map(|directory| docker_entry(directory)).collect()
}

/// The setting of docker's `daemon.json` that matters here.
#[derive(Deserialize)]
struct DaemonConfig {
    #[serde(rename = "data-root")]
    data_root: Option<PathBuf>,
}

fn docker_entry(directory: &Path) -> Option<CatalogEntry> {
    let container = records::docker(directory)?;
    ensure_name(&container.id).ok()?;
    let checkpoints = directories_in(&directory.join("checkpoints")).into_iter();
    Some(CatalogEntry {
        name: container.name().map(ByteString::from),
        image: Some(container.config.image.as_str())
            .filter(|name| !name.is_empty())
            .map(ByteString::from),
        id: container.id,
        user: None,
        engine: Engine::Docker,
        pod: None,
        bundle: None,
        checkpoints: checkpoints
            .filter_map(|path| {
                let name = path.file_name()?.to_str()?.to_owned();
                Some(Checkpoint { name, path })
            })
            .collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn containers_of_podman_and_of_cri_o() {
        let directory = tempfile::tempdir().unwrap();
        let driver = directory.path().join("overlay-containers");
        fs::create_dir_all(driver.join("aa/userdata/checkpoint")).unwrap();
        fs::write(driver.join("aa/userdata/checkpoint/inventory.img"), "").unwrap();
        let list = r#"[
            {"id":"aa","names":["web"],"metadata":"{\"image-name\":\"img\",\"name\":\"web\"}"},
            {"id":"bb","names":["k8s_x"],
             "metadata":"{\"image-name\":\"i\",\"pod-name\":\"p\",\"container-name\":\"c\"}"},
            {"id":"../x","metadata":"{\"image-name\":\"i\"}"},
            {"id":"cc","names":["work"],"metadata":"{\"type\":\"buildah\"}"}]"#;
        fs::write(driver.join("containers.json"), list).unwrap();
        let found = storage(directory.path(), &Reader::of_root()).found;
        let told: Vec<_> = found
            .iter()
            .map(|one| (one.engine, one.name.as_ref().unwrap().to_string(), one.checkpoints.len()))
            .collect();
        assert_eq!(
            told,
            [(Engine::Podman, "web".to_owned(), 1), (Engine::CriO, "c".to_owned(), 0)]
        );
    }
}

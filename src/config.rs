//! The administrator's configuration, `/etc/ocicle/ocicle.toml`, or the file that the environment
//! variable `OCICLE_CONFIG` names.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::check;
use crate::checkpoint::{self, ImagesIn};
use crate::choice::Choice;
use crate::container::{Container, Shared, Volumes};
use crate::files::DumpSettings;
use crate::guardian::DEFAULT_LIMIT;
use crate::hint::WithHint;
use crate::lend::Handed;
use crate::locations::{CONFIGURATION, STORE, VARIABLE, named_configuration};
use crate::policy::FilePolicy;
use crate::restore::{self, InPlace};
use crate::runtime::Runtime;
use crate::runtime::arguments::{CGROUPS_MODE, value_of};
use crate::snapshot::{Compression, DriverSettings, Program};
use crate::store::choices::{Filesystem, Keep};
use crate::store::manifest::Trust;
use crate::substitute::{Allow, OnUnsupported, Origin, Substitution, parse_list};
use crate::sys::process::InheritedFds;

/// Every setting; what a file does not say has its default.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct Config {
    /// The real runtime: a path, or a name on `PATH`.
    pub runtime: Option<PathBuf>,
    /// Where `ocicle checkpoint` keeps its versions.
    pub store: PathBuf,
    /// How many seconds a container may take to freeze.
    pub freeze_timeout: f64,
    /// How many seconds it may stay frozen beyond the dump's own progress.
    pub max_freeze: f64,
    /// Which volumes belong to a checkpoint.
    pub volumes: Volumes,
    /// What a checkpoint does about files.
    pub filesystem: Filesystem,
    /// How the snapshots of files are compressed, if it is said.
    pub compress: Option<Compression>,
    /// Where CRIU writes the images of a container that goes on.
    pub stage: ImagesIn,
    /// How many versions of a container are kept; 0 means all.
    pub keep: Keep,
    /// What is done about volumes that others write too.
    pub shared: Shared,
    /// Whether a checkpoint may end a container that could not come back where it is.
    pub unrestorable_ok: bool,
    /// Programs that take snapshots.
    pub driver: Vec<Program>,
    /// Settings of CRIU.
    pub criu: CriuSettings,
    /// What becomes of open files that CRIU cannot dump and that no rule covers.
    pub on_unsupported: OnUnsupported,
    /// What takes the place of open files at a restore.
    pub substitute: Vec<Substitution>,
    /// What becomes of files that are not as they were, and that nothing replaces.
    pub policy: Vec<FilePolicy>,
    /// What annotations and checkpoints may use.
    pub allow: Allow,
}

/// Settings of CRIU.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(default, rename_all = "kebab-case", deny_unknown_fields)]
pub struct CriuSettings {
    /// The largest deleted file that is kept in an image, as CRIU writes sizes (`64M`).
    pub ghost_limit: String,
    /// What it does about control groups, where the caller does not say it.
    pub manage_cgroups_mode: CgroupsMode,
}

/// What CRIU does about control groups: the values of runc's and crun's `--manage-cgroups-mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupsMode {
    /// Properties are restored of groups that CRIU itself made: the runtimes' own default.
    #[default]
    Soft,
    /// All properties are restored.
    Full,
    /// All groups are made anew, and must not be there.
    Strict,
    /// Groups are left to the runtime.
    Ignore,
}

impl CgroupsMode {
    fn name(self) -> &'static str {
        match self {
            Self::Soft => "soft",
            Self::Full => "full",
            Self::Strict => "strict",
            Self::Ignore => "ignore",
        }
    }
}

impl CriuSettings {
    /// The caller's flags for the runtime, and what the administrator wants beside them.
    pub fn complete(&self, mut flags: Vec<OsString>) -> Vec<OsString> {
        if self.manage_cgroups_mode != CgroupsMode::default()
            && value_of(&flags, CGROUPS_MODE).is_none()
        {
            flags.extend([CGROUPS_MODE, self.manage_cgroups_mode.name()].map(OsString::from));
        }
        flags
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            runtime: None,
            store: STORE.into(),
            freeze_timeout: 10.0,
            max_freeze: DEFAULT_LIMIT.as_secs_f64(),
            volumes: Volumes::default(),
            filesystem: Filesystem::default(),
            compress: None,
            stage: ImagesIn::default(),
            keep: 0,
            shared: Shared::default(),
            unrestorable_ok: false,
            driver: Vec::new(),
            criu: CriuSettings::default(),
            on_unsupported: OnUnsupported::default(),
            substitute: Vec::new(),
            policy: Vec::new(),
            allow: Allow::default(),
        }
    }
}

impl Default for CriuSettings {
    fn default() -> Self {
        Self { ghost_limit: "1G".into(), manage_cgroups_mode: CgroupsMode::default() }
    }
}

impl Config {
    /// Reads the configuration; where there is none, everything has its default.
    pub fn load() -> Result<Self> {
        match named_configuration() {
            Some(path) => Self::load_from(&path)?
                .with_context(|| format!("reading {}: there is no such file", path.display()))
                .hint(format!("{VARIABLE} in the environment names it")),
            None => Ok(Self::load_from(Path::new(CONFIGURATION))?.unwrap_or_default()),
        }
    }

    /// `None` when there is no such file.
    fn load_from(path: &Path) -> Result<Option<Self>> {
        let context = || format!("reading {}", path.display());
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&text).map(Some).with_context(context),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(context),
        }
    }

    fn parse(text: &str) -> Result<Self> {
        let config: Self = toml::from_str(text)?;
        for (name, seconds) in
            [("freeze-timeout", config.freeze_timeout), ("max-freeze", config.max_freeze)]
        {
            ensure!(
                seconds > 0.0 && seconds <= 3600.0,
                "{name} is {seconds}, not between 0 and 3600 seconds"
            );
        }
        let limit = config.criu.ghost_limit.trim_end_matches(['K', 'M', 'G']);
        ensure!(
            !limit.is_empty() && limit.bytes().all(|byte| byte.is_ascii_digit()),
            "criu.ghost-limit is {:?}, not a number with K, M or G",
            config.criu.ghost_limit
        );
        let origin = Origin::Configuration(String::new());
        for rules in &config.substitute {
            ensure!(
                rules.container.is_some() || rules.image.is_some(),
                "a table [[substitute]] has neither `container` nor `image`: `container = \"**\"` is any"
            );
            parse_list(&rules.rule, &origin)
                .with_context(|| format!("reading the rule for {}", rules.whom()))?;
        }
        for policy in &config.policy {
            policy.policy().ensure_pattern().context("reading a policy")?;
        }
        for program in &config.driver {
            program.check().context("reading a driver")?;
        }
        Ok(config)
    }

    /// A checkpoint of a container as the configuration wants it: to be told what its caller asks
    /// for. It stops the container, and is one below an engine.
    pub fn checkpoint(
        &self,
        runtime: Runtime,
        id: &str,
        images: PathBuf,
    ) -> checkpoint::CheckpointRequest {
        checkpoint::CheckpointRequest {
            runtime,
            id: id.to_owned(),
            images,
            work: None,
            flags: Vec::new(),
            leave_running: false,
            freeze_limit: self.freeze_limit(),
            max_freeze: self.max_freeze(),
            stage: self.stage,
            ghost_limit: self.criu.ghost_limit.clone(),
            rules: Vec::new(),
            configured: self.substitute.clone(),
            on_unsupported: self.on_unsupported,
            disposable: false,
            volumes: Choice::by_default(self.volumes.clone()),
            filesystem: Choice::by_default(self.filesystem),
            // Podman and containerd compress what they export.
            compression: self.compress.unwrap_or(Compression::None),
            base: None,
            shared: self.shared,
            unrestorable_ok: Choice::by_default(self.unrestorable_ok),
            drivers: self.drivers(&self.store),
        }
    }

    /// The restore in place of what a checkpoint takes: it says whether the container may end.
    pub fn in_place(&self, runtime: &Runtime, container: &Container) -> InPlace {
        InPlace::of(self.restore_of(runtime, container))
    }

    /// The restore in place of what a checkpoint takes, wherever that lies.
    pub fn restore_of(&self, runtime: &Runtime, container: &Container) -> restore::RestoreRequest {
        let bundle = container.bundle.directory.clone();
        self.restore(runtime.clone(), &container.id, PathBuf::new(), bundle)
    }

    /// A look at a container as the configuration wants it: to be told what its caller asks for.
    pub fn check(&self, runtime: Runtime, id: &str, settings: DumpSettings) -> check::CheckRequest {
        check::CheckRequest {
            runtime,
            id: id.to_owned(),
            settings,
            volumes: Choice::by_default(self.volumes.clone()),
            shared: self.shared,
            rules: Vec::new(),
            on_unsupported: self.on_unsupported,
            configured: self.substitute.clone(),
            allow: self.allow.clone(),
        }
    }

    /// A restore as the configuration wants it: to be told what its caller asks for.
    pub fn restore(
        &self,
        runtime: Runtime,
        id: &str,
        images: PathBuf,
        bundle: PathBuf,
    ) -> restore::RestoreRequest {
        restore::RestoreRequest {
            runtime,
            id: id.to_owned(),
            images,
            work: None,
            bundle,
            flags: Vec::new(),
            rules: Vec::new(),
            configured: self.substitute.clone(),
            volumes: Choice::by_default(self.volumes.clone()),
            policies: Vec::new(),
            configured_policies: self.policy.clone(),
            allow: self.allow.clone(),
            inherited: InheritedFds::default(),
            handed: Handed::default(),
            trust: Trust::Unwritten,
            drivers: self.drivers(&self.store),
            replace_stopped: false,
        }
    }

    /// How snapshots are taken, with what belongs to a store.
    pub fn drivers(&self, store: &Path) -> DriverSettings {
        DriverSettings { programs: self.driver.clone(), records: store.join("@held") }
    }

    /// How long a container may take to freeze.
    pub fn freeze_limit(&self) -> Duration {
        Duration::from_secs_f64(self.freeze_timeout)
    }

    /// How long it may stay frozen beyond the dump's own progress.
    pub fn max_freeze(&self) -> Duration {
        Duration::from_secs_f64(self.max_freeze)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Identity;

    #[test]
    fn what_is_not_said_has_its_default() {
        let config =
            Config::parse("runtime = '/usr/sbin/runc'\n[criu]\nghost-limit = '8M'\n").unwrap();
        assert_eq!(config.runtime.as_deref(), Some(Path::new("/usr/sbin/runc")));
        assert_eq!(config.store.to_str(), Some(STORE));
        assert_eq!(config.criu.ghost_limit, "8M");
    }

    #[test]
    fn rules_for_some_containers() {
        let text = "[[substitute]]\ncontainer = 'web-*'\nrule = 'tty=null; 1:3=fd:4'\n";
        let config = Config::parse(text).unwrap();
        let named = |name: &str| Identity { id: name.to_owned(), ..Identity::default() };
        assert!(config.substitute[0].is_for(&named("web-1")));
        assert!(!config.substitute[0].is_for(&named("db")));
    }

    #[test]
    fn the_callers_word_on_cgroups_goes_first() {
        let criu = |text: &str| Config::parse(text).unwrap().criu;
        let ignore = criu("[criu]\nmanage-cgroups-mode = 'ignore'\n");
        let flags = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            ignore.complete(flags("--detach")),
            flags("--detach --manage-cgroups-mode ignore")
        );
        let said = flags("--manage-cgroups-mode=soft --detach");
        assert_eq!(ignore.complete(said.clone()), said);
        assert_eq!(criu("").complete(flags("--detach")), flags("--detach"));
    }

    #[test]
    fn policies_for_some_containers() {
        let text = "[[policy]]\ncontainer = 'web-*'\npath = '/log/*'\ngrown = 'truncate'\n";
        let config = Config::parse(text).unwrap();
        let named = |name: &str| Identity { id: name.to_owned(), ..Identity::default() };
        assert!(config.policy[0].is_for(&named("web-1")) && !config.policy[0].is_for(&named("db")));
        assert_eq!(config.policy[0].policy().to_string(), "grown=truncate:/log/*");
    }

    const EXAMPLE: &str = include_str!("../config/ocicle.toml");

    /// In the example, a comment has a blank behind its `#`, and a setting has none.
    fn uncommented(example: &str) -> String {
        let uncommented = |line: &str| match line.strip_prefix('#') {
            Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting.to_owned(),
            _ => line.to_owned(),
        };
        example.lines().map(|line| uncommented(line) + "\n").collect()
    }

    #[test]
    fn the_example_has_every_setting_with_its_default() {
        let default = Config::default();
        let commented = Config::parse(EXAMPLE).unwrap();
        assert_eq!(toml::to_string(&commented).unwrap(), toml::to_string(&default).unwrap());
        // The settings without a default, or with more than one.
        let compress = Some(Compression::Zstd);
        let shown = Config { runtime: Some("/usr/bin/crun".into()), compress, ..default };
        let example: toml::Table = toml::from_str(&uncommented(EXAMPLE)).unwrap();
        assert_eq!(example, toml::Table::try_from(&shown).unwrap());
    }

    #[test]
    fn a_file_that_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        assert!(Config::load_from(&directory.path().join("none.toml")).unwrap().is_none());
        let message = format!("{:#}", Config::load_from(directory.path()).unwrap_err());
        assert!(message.starts_with("reading /"), "{message}");
    }

    #[test]
    fn a_wrong_setting_is_named() {
        for (text, named) in [
            ("frobnicate = 1", "frobnicate"),
            ("freeze-timeout = 0", "freeze-timeout"),
            ("freeze-timeout = nan", "freeze-timeout"),
            ("max-freeze = 3601", "max-freeze"),
            ("[criu]\nghost-limit = '1G\\nfoo'", "ghost-limit"),
            ("[criu]\nmanage-cgroups-mode = 'none'", "manage-cgroups-mode"),
            ("[allow]\nfile = []", "file"),
            ("shared = 'maybe'", "maybe"),
            ("[[substitute]]\ncontainer = 'a'\nrule = 'tty'", "SELECTOR=SOURCE"),
            ("[[substitute]]\nrule = 'tty=null'", "container"),
            ("[[policy]]\ncontainer = 'a'\npath = 'log'", "log"),
            ("[[policy]]\ncontainer = 'a'\npath = '/x'\ngrown = 'recreate'", "grown"),
            ("[[driver]]\npath = '/srv'\nprogram = 'zfs'", "no absolute path"),
            ("[[driver]]\npath = '/srv'\nprogram = '/zfs'\ntimeout = 0", "timeout"),
        ] {
            let message = format!("{:#}", Config::parse(text).unwrap_err());
            assert!(message.contains(named), "{message}");
        }
    }
}

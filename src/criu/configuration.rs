//! CRIU's configuration file: a line for each long option (criu(8), *CONFIGURATION FILES*).

use std::fmt::Write as _;
use std::fs;
use std::os::fd::RawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::plugin::Told;

/// What CRIU is told beside what the runtime tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Configuration {
    /// A program to call at each point of a dump or restore.
    pub action_script: Option<PathBuf>,
    /// Files that CRIU shall not look up: `file[MOUNT:INODE]`, in hexadecimal.
    pub external: Vec<String>,
    /// What the library in CRIU is told.
    pub plugin: Told,
    /// Open files to be replaced: the number CRIU inherits, and the name it looks up.
    pub inherit: Vec<(RawFd, String)>,
    /// The largest deleted file to keep in the image.
    pub ghost_limit: Option<String>,
    /// Whether CRIU may give a file another name for the time of the dump, where its own was removed and it
    /// has others.
    pub link_remap: bool,
    /// Whether the network needs no lock, neither now nor at the restore: the images tell it.
    pub no_network_lock: bool,
}

impl Configuration {
    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Writes it to a new file, behind what the caller's own `CRIU_CONFIG_FILE` says; with the
    /// directory that CRIU takes its plugins from.
    pub(super) fn write(&self, path: &Path, plugins: &Path) -> Result<()> {
        let text = callers()? + &self.to_text(plugins);
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }

    fn to_text(&self, plugins: &Path) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        if let Some(script) = &self.action_script {
            let _ = writeln!(text, "action-script {}", script.display());
        }
        if self.plugin.is_for_hooks() {
            let _ = writeln!(text, "libdir {}", plugins.display());
        }
        for file in &self.external {
            let _ = writeln!(text, "external {file}");
        }
        for (number, key) in &self.inherit {
            let _ = writeln!(text, "inherit-fd fd[{number}]:{key}");
        }
        if let Some(limit) = &self.ghost_limit {
            let _ = writeln!(text, "ghost-limit {limit}");
        }
        if self.link_remap {
            text.push_str("link-remap\n");
        }
        if self.no_network_lock {
            text.push_str("network-lock skip\n");
        }
        text
    }
}

/// CRIU reads one file of that variable, and it is ours: so it holds the caller's too.
fn callers() -> Result<String> {
    let Some(path) = std::env::var_os("CRIU_CONFIG_FILE") else { return Ok(String::new()) };
    let mut text = fs::read_to_string(&path)
        .with_context(|| format!("reading {} (CRIU_CONFIG_FILE)", Path::new(&path).display()))?;
    text.push('\n');
    Ok(text)
}

/// The options that stand in the files that CRIU reads by itself: its own, the runtime's and the
/// caller's (criu(8), *CONFIGURATION FILES*). Their values are left out.
pub fn standing_options(runtime: &str) -> Result<Vec<String>> {
    Ok(standing(runtime)?.lines().filter_map(option_of).map(|(option, _)| option).collect())
}

/// The values of an option in those files, in the order of CRIU's reading.
pub fn standing_values(runtime: &str, option: &str) -> Result<Vec<String>> {
    let text = standing(runtime)?;
    let options = text.lines().filter_map(option_of);
    Ok(options.filter(|(name, _)| name == option).filter_map(|(_, value)| value).collect())
}

fn standing(runtime: &str) -> Result<String> {
    let mut text = callers()?;
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".criu/default.conf"));
    let files = ["/etc/criu/default.conf".into(), format!("/etc/criu/{runtime}.conf").into()];
    for path in files.into_iter().chain(home) {
        text.push_str(&fs::read_to_string(path).unwrap_or_default());
        text.push('\n');
    }
    Ok(text)
}

/// The option of a line, which may have a comment, and its value, behind blanks or `=`.
fn option_of(line: &str) -> Option<(String, Option<String>)> {
    let line = line.split('#').next()?.trim();
    let (option, value) =
        match line.split_once(|byte: char| byte.is_ascii_whitespace() || byte == '=') {
            Some((option, value)) => (option, Some(value.trim().trim_matches('"').to_owned())),
            None => (line, None),
        };
    (!option.is_empty()).then(|| (option.to_owned(), value))
}

#[cfg(test)]
mod tests {
    use super::super::plugin::SetAside;
    use super::*;
    use crate::sys::pid::ProcessFd;
    use std::os::fd::AsRawFd;

    #[test]
    fn options_of_lines() {
        let option =
            |name: &str, value: Option<&str>| Some((name.to_owned(), value.map(str::to_owned)));
        assert_eq!(option_of(" tcp-established # why"), option("tcp-established", None));
        assert_eq!(option_of("ghost-limit=8M"), option("ghost-limit", Some("8M")));
        assert_eq!(option_of("irmap-scan-path  /a b # x"), option("irmap-scan-path", Some("/a b")));
        assert_eq!(option_of("# tcp-close"), None);
        assert_eq!(option_of(""), None);
    }

    #[test]
    fn a_line_for_each_option() {
        let file = fs::File::open("/dev/null").unwrap();
        let aside = SetAside::of(ProcessFd::own(file.as_raw_fd())).unwrap();
        let configuration = Configuration {
            action_script: Some("/run/x/criu-action".into()),
            external: vec!["file[1f:2a]".into()],
            plugin: Told { set_aside: vec![aside], ..Told::default() },
            inherit: vec![(400, "ocicle/7".into())],
            ghost_limit: Some("1G".into()),
            link_remap: true,
            no_network_lock: true,
        };
        assert_eq!(
            configuration.to_text(Path::new("/run/x/plugins")),
            "action-script /run/x/criu-action\nlibdir /run/x/plugins\nexternal file[1f:2a]\n\
             inherit-fd fd[400]:ocicle/7\nghost-limit 1G\nlink-remap\n\
             network-lock skip\n"
        );
    }
}

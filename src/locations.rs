//! Where ocicle's own files are.

use std::path::PathBuf;

/// Where the configuration is, unless [`VARIABLE`] names another file.
pub const CONFIGURATION: &str = "/etc/ocicle/ocicle.toml";

/// The environment variable that names another configuration file, which must be there.
pub const VARIABLE: &str = "OCICLE_CONFIG";

/// Where checkpoints are kept unless told otherwise.
pub const STORE: &str = "/var/lib/ocicle";

/// The file that holds the configuration, if there is one.
pub fn configuration() -> PathBuf {
    named_configuration().unwrap_or_else(|| CONFIGURATION.into())
}

/// The configuration file that the environment names.
pub fn named_configuration() -> Option<PathBuf> {
    std::env::var_os(VARIABLE).filter(|path| !path.is_empty()).map(PathBuf::from)
}

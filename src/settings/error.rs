//! What can be wrong with a configuration. Each message names source, key and value, and says what is allowed.

use std::{fmt, path::PathBuf};

/// All that is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub struct SettingsErrors(pub(super) Vec<SettingsError>);

impl SettingsErrors {
    /// Each mistake; there is at least one.
    pub fn iter(&self) -> impl Iterator<Item = &SettingsError> {
        self.0.iter()
    }
}

/// One a line.
impl fmt::Display for SettingsErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        out.write_str(&lines.join("\n"))
    }
}

/// A configuration that can't be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file can't be read.
    #[error("read configuration file {path:?}: {problem}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        problem: std::io::Error,
    },
    /// A layer can't be understood.
    #[error("{source_name}: {problem}")]
    Layer {
        /// File and line, or environment variable.
        source_name: String,
        /// What is wrong, with key and value.
        problem: String,
    },
    /// A value makes no sense.
    #[error("{source_name}: {key} = {value}: {problem}")]
    Value {
        /// The layer that set it last.
        source_name: String,
        /// Dotted name of the key.
        key: &'static str,
        /// The value, without credentials.
        value: String,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// A secret file can't be read.
    #[error("{source_name}: {key} = {path:?}: read secret file: {problem}")]
    Secret {
        /// The layer that named it.
        source_name: String,
        /// Dotted name of the key.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        problem: std::io::Error,
    },
}

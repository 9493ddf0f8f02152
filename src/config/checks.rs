//! The error of an impossible value, and the checks that the sections share.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::bounded_file;
use crate::ids::check_id;
use crate::keys::secret_file::{OTHERS, credentials_dir, exposed_mode};

/// One of the faults of a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigFault {
    /// From 1; `None`: of a variable, a file, or of a key that is not written.
    pub line: Option<usize>,
    pub text: String,
}

impl fmt::Display for ConfigFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.text),
            None => f.write_str(&self.text),
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}{}", sudo_hint(.source))]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    /// All that is wrong, each fault on a line of its own if there are several.
    #[error("{path} is not valid: {}", list_faults(.faults))]
    Faults { path: PathBuf, faults: Vec<ConfigFault> },
    #[error("the environment variable {name} {why}")]
    Environment { name: String, why: String },
    #[error("{key} {why}")]
    Value { key: &'static str, why: String },
    /// A file that a key names.
    #[error("{key}: cannot read {path}")]
    File {
        key: &'static str,
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

/// An installed device's configuration is open to root and the daemon alone.
fn sudo_hint(source: &std::io::Error) -> &'static str {
    if source.kind() == std::io::ErrorKind::PermissionDenied { " (run it with sudo)" } else { "" }
}

impl ConfigError {
    /// Returns the key that is at fault: `[mqtt] host`.
    pub(super) fn key(&self) -> Option<&'static str> {
        match self {
            Self::Value { key, .. } | Self::File { key, .. } => Some(key),
            Self::Read { .. } | Self::Faults { .. } | Self::Environment { .. } => None,
        }
    }
}

fn list_faults(faults: &[ConfigFault]) -> String {
    match faults {
        [one] => one.to_string(),
        several => {
            let lines: Vec<String> = several.iter().map(|it| format!("\n  {it}")).collect();
            lines.concat()
        }
    }
}

pub(super) fn invalid(key: &'static str, why: impl Into<String>) -> ConfigError {
    ConfigError::Value { key, why: why.into() }
}

pub(super) fn check_id_key(key: &'static str, id: &str) -> Result<(), ConfigError> {
    check_id(id).map_err(|e| invalid(key, format!("= {id:?}: {e}")))
}

/// Rejects NaN too.
pub(super) fn within<T: PartialOrd + Copy + fmt::Display>(
    key: &'static str,
    number: T,
    least: T,
    most: T,
) -> Result<T, ConfigError> {
    if (&least..=&most).contains(&&number) {
        return Ok(number);
    }
    Err(invalid(key, format!("= {number} is not within {least} to {most}")))
}

pub(super) fn time_within(
    key: &'static str,
    time: Duration,
    least: Duration,
    most: Duration,
) -> Result<Duration, ConfigError> {
    if (least..=most).contains(&time) {
        return Ok(time);
    }
    Err(invalid(key, format!("= {time:?} is not within {least:?} to {most:?}")))
}

pub(super) fn at_least_a_second(
    key: &'static str,
    time: Duration,
) -> Result<Duration, ConfigError> {
    if time >= Duration::from_secs(1) {
        Ok(time)
    } else {
        Err(invalid(key, format!("= {time:?} is less than a second")))
    }
}

pub(super) fn resolve_path(folder: &Path, path: &Path) -> Option<PathBuf> {
    (!path.as_os_str().is_empty()).then(|| folder.join(path))
}

pub(super) fn non_empty(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Mode bits of those who are neither owner nor group.
const EVERYBODY: u32 = 0o007;
/// No password, token or URI is as long.
const SECRET_BYTES_MAX: u64 = 16 << 10;

/// Reads a secret from a file that nobody else may read.
pub(super) fn read_secret(key: &'static str, path: &Path) -> Result<String, ConfigError> {
    let file = open(key, path)?;
    let metadata = file.metadata().map_err(|source| unreadable(key, path, source))?;
    if exposed_mode(&metadata, OTHERS).is_some() {
        let why = format!("{} may be read by others: chmod 600 it", path.display());
        return Err(invalid(key, why));
    }
    read_rest(key, file, path)
}

/// Reads a secret that systemd passes, which grants access to it in its own way.
pub(super) fn read_credential(key: &'static str, path: &Path) -> Result<String, ConfigError> {
    read_rest(key, open(key, path)?, path)
}

fn open(key: &'static str, path: &Path) -> Result<File, ConfigError> {
    bounded_file::open(path).map_err(|source| unreadable(key, path, source))
}

fn unreadable(key: &'static str, path: &Path, source: std::io::Error) -> ConfigError {
    ConfigError::File { key, path: path.to_owned(), source }
}

fn read_rest(key: &'static str, file: File, path: &Path) -> Result<String, ConfigError> {
    let bytes = bounded_file::read_all(file, SECRET_BYTES_MAX)
        .map_err(|source| unreadable(key, path, source))?;
    // The library's error would quote nothing, but hold the secret.
    let text = String::from_utf8(bytes)
        .map_err(|_| unreadable(key, path, std::io::Error::other("it is not text in UTF-8")))?;
    // Windows' editors put a mark before a text.
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

/// Rejects a private key that everybody may read; the daemon's group may.
pub(super) fn check_not_public(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    let is_public = |it: std::fs::Metadata| exposed_mode(&it, EVERYBODY).is_some();
    if std::fs::metadata(path).is_ok_and(is_public) {
        let why = format!("{} may be read by everybody: chmod 640 it, or 600", path.display());
        return Err(invalid(key, why));
    }
    Ok(())
}

/// Rejects what the daemon would wait for at its start, or not find.
pub(super) fn check_file(key: &'static str, path: &Path) -> Result<(), ConfigError> {
    bounded_file::check_regular_if_exists(path)
        .map_err(|error| invalid(key, format!("{}: {error}", path.display())))
}

/// Returns the file of a systemd credential, if the service manager passed it.
pub(super) fn find_credential(name: &str) -> Option<PathBuf> {
    credentials_dir().map(|it| it.join(name)).filter(|file| file.is_file())
}

/// A name that differs more is not meant (Jaro-Winkler similarity; a guess).
const SIMILARITY_MIN: f64 = 0.8;

/// `; did you mean "threshold"?`, or nothing if no name is alike.
pub(super) fn did_you_mean<'a>(given: &str, names: impl Iterator<Item = &'a str>) -> String {
    let given = given.to_lowercase();
    let likeness = |name: &str| strsim::jaro_winkler(&given, &name.to_lowercase());
    let nearest = names.map(|name| (likeness(name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest.filter(|it| it.0 >= SIMILARITY_MIN) {
        Some((_, name)) => format!("; did you mean \"{name}\"?"),
        None => String::new(),
    }
}

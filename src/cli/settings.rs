//! Loads the configuration for a command.

use std::path::Path;

use crate::app::exit;
use crate::app::exit::Failure;
use crate::config;
use crate::config::Settings;

/// Returns the settings, or an error with key and reason that ends the command with code 78.
pub fn load(path: Option<&Path>) -> anyhow::Result<Settings> {
    let failed = |error: config::checks::ConfigError| Failure {
        code: exit::CONFIG,
        what: "the configuration cannot be used",
        source: error.into(),
    };
    Ok(config::load::load(path, &config::environment::variables()).map_err(failed)?)
}

//! The section `[mongo]`.

use std::path::Path;

use crate::config::checks::{
    ConfigError, find_credential, invalid, non_empty, read_credential, read_secret, resolve_path,
};
use crate::config::raw::RawConfig;
use crate::error_chain::error_chain;
use crate::mongo::{self, MongoSettings};
use crate::mqtt::tls;

/// Name of the systemd credential with the URI, used if neither key is set.
const MONGO_CREDENTIAL: &str = "mongo_uri";

pub(super) fn check_mongo(
    raw: &RawConfig,
    folder: &Path,
) -> Result<Option<MongoSettings>, ConfigError> {
    let it = &raw.mongo;
    let uri_file = resolve_path(folder, &it.uri_file);
    let uri = match (non_empty(&it.uri), &uri_file) {
        (Some(_), Some(_)) => {
            return Err(invalid("[mongo] uri", "and uri_file exclude each other"));
        }
        (Some(uri), None) => uri,
        (None, Some(file)) => not_empty(&read_secret("[mongo] uri_file", file)?, file)?,
        (None, None) => match find_credential(MONGO_CREDENTIAL) {
            Some(file) => not_empty(&read_credential("[mongo] uri_file", &file)?, &file)?,
            None => String::new(),
        },
    };
    let database = it.database.clone();
    let venues_collection = it.venues_collection.clone();
    let ca_file = resolve_path(folder, &it.ca_file);
    if let Some(file) = &ca_file {
        let wrong = |error| invalid("[mongo] ca_file", format!(": {}", error_chain(&error)));
        tls::read_ca(file).map_err(wrong)?;
    }
    let tls = it.tls;
    let timeout = it.timeout;
    let window = it.window;
    let source =
        mongo::UriSource { uri, database, venues_collection, ca_file, tls, timeout, window };
    mongo::settings_from(source)
        .map_err(|error| ConfigError::Value { key: error.key, why: error.why })
}

fn not_empty(text: &str, file: &Path) -> Result<String, ConfigError> {
    let uri = text.trim().to_owned();
    if uri.is_empty() {
        // An empty file would disable MongoDB silently.
        return Err(invalid("[mongo] uri_file", format!("{} is empty", file.display())));
    }
    Ok(uri)
}

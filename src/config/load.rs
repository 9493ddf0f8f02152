//! config.toml as text → settings, with overrides from the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::bounded_file::{self, TEXT_BYTES_MAX};
use crate::config::checks::{ConfigError, ConfigFault};
use crate::config::environment::override_key;
use crate::config::faults;
use crate::config::raw::RawConfig;
use crate::config::{Settings, check};
use crate::keys::secret_file::is_exposed;
use crate::mongo::MongoSettings;

/// Reads, overrides and checks the configuration. Without a file the defaults apply, relative to the working
/// directory.
pub fn load(
    path: Option<&Path>,
    environment: &BTreeMap<String, String>,
) -> Result<Settings, ConfigError> {
    let (text, named) = match path {
        Some(path) => {
            let text = bounded_file::read_text(path, TEXT_BYTES_MAX);
            let text =
                text.map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
            (text.strip_prefix('\u{feff}').unwrap_or(&text).to_owned(), path.to_owned())
        }
        None => (String::new(), PathBuf::from("(built-in defaults)")),
    };
    let folder = path.and_then(Path::parent).unwrap_or(Path::new("")).to_owned();
    let first = parse(&text, environment).and_then(|raw| Ok((check(&raw, &folder)?, raw)));
    let (mut settings, raw) = first.map_err(|error| {
        let faults = faults::find_all(&text, &folder, environment);
        // A variable is corrected elsewhere.
        if faults.is_empty()
            || faults.len() == 1 && matches!(error, ConfigError::Environment { .. })
        {
            return error;
        }
        ConfigError::Faults { path: named.clone(), faults }
    })?;
    let in_clear = !raw.mongo.uri.is_empty()
        && settings.mongo.as_ref().is_some_and(MongoSettings::has_password);
    if in_clear && path.is_some_and(is_exposed) {
        let why = "holds a password, and others may read the file: chmod 600 it, or use uri_file";
        settings.warnings.push(format!("[mongo] uri in {} {why}", named.display()));
    }
    Ok(settings)
}

/// Parses the text and applies overrides: `ROLLCALL_MQTT_HOST` replaces `host` in `[mqtt]`.
pub fn parse(text: &str, environment: &BTreeMap<String, String>) -> Result<RawConfig, ConfigError> {
    let syntax = |error: toml::de::Error| {
        let fault = ConfigFault { line: None, text: explain(text, &error) };
        ConfigError::Faults { path: "the configuration".into(), faults: vec![fault] }
    };
    let written: RawConfig = toml::from_str(text).map_err(syntax)?;
    if environment.is_empty() {
        return Ok(written);
    }
    let mut table =
        toml::Table::try_from(&written).expect("the raw configuration is a table of plain values");
    for (name, value) in environment {
        override_key(&mut table, name, value)?;
    }
    let refused = |error: toml::de::Error| ConfigError::Environment {
        name: environment.keys().cloned().collect::<Vec<_>>().join(", "),
        why: format!("cannot be used: {}", without_value(error.message())),
    };
    table.try_into().map_err(refused)
}
/// Returns where and why a text is no configuration, without the line itself: it may hold a secret.
pub fn explain(text: &str, error: &toml::de::Error) -> String {
    let why = without_value(error.message());
    let Some(span) = error.span() else {
        return why;
    };
    let start = text.floor_char_boundary(span.start);
    let before = &text[..start];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    let number = before.matches('\n').count() + 1;
    let column = before[line_start..].chars().count() + 1;
    let line = text[line_start..].lines().next().unwrap_or_default();
    // What stands before `=` is shown only if it is a key: a secret may end in `=`.
    let key = line.split_once('=').map(|it| it.0.trim()).filter(|it| is_known_key(it));
    let of = key.map_or(String::new(), |key| format!(" ({key})"));
    format!("line {number}, column {column}{of}: {why}")
}

/// Removes the value from a message of serde: `invalid type: integer `7`, expected a string`. A word
/// that stands for one of a few choices is shown.
fn without_value(message: &str) -> String {
    let quoted = ["invalid type: ", "invalid value: ", "unknown variant "];
    if !quoted.iter().any(|it| message.starts_with(it)) {
        return message.to_owned();
    }
    let mut parts = message.splitn(3, ['"', '`', '\'']);
    let kind = parts.next().unwrap_or_default().trim_end();
    let is_word =
        |it: &&str| it.len() <= CHOICE_MAX && it.bytes().all(|b| b.is_ascii_alphanumeric());
    let word = parts.next().filter(|_| kind == "unknown variant").filter(is_word);
    let word = word.map_or(String::new(), |it| format!(" {it:?}"));
    // The last one: a value may hold the word as well.
    match message.rsplit_once(", expected ") {
        Some((_, expected)) => format!("{kind}{word}, expected {expected}"),
        None => kind.to_owned(),
    }
}

/// Letters of a choice that is shown. No secret is as short.
const CHOICE_MAX: usize = 6;

fn is_known_key(name: &str) -> bool {
    let shipped = toml::Table::try_from(RawConfig::default()).unwrap_or_default();
    shipped.values().filter_map(toml::Value::as_table).any(|section| section.contains_key(name))
}

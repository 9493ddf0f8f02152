//! Keys of config.toml from the environment: `ROLLCALL_MQTT_HOST` replaces `host` in `[mqtt]`.

use std::collections::BTreeMap;

use crate::config::checks::ConfigError;

/// The environment variables that concern the configuration.
pub fn variables() -> BTreeMap<String, String> {
    std::env::vars()
        .filter(|(name, _)| name.starts_with(PREFIX) && !NOT_KEYS.contains(&name.as_str()))
        .collect()
}

const PREFIX: &str = "ROLLCALL_";

/// Variables with our prefix that are no keys of config.toml.
const NOT_KEYS: [&str; 1] = ["ROLLCALL_CONFIG"];

pub(super) fn override_key(
    table: &mut toml::Table,
    name: &str,
    value: &str,
) -> Result<(), ConfigError> {
    let fault = |why: String| ConfigError::Environment { name: name.to_owned(), why };
    for (section, keys) in table.iter_mut() {
        let Some(keys) = keys.as_table_mut() else {
            continue; // `[[venue]]` is a list and has no single key to override.
        };
        for (key, present) in keys.iter_mut() {
            if name != format!("{PREFIX}{}_{}", section.to_uppercase(), key.to_uppercase()) {
                continue;
            }
            let wrong = |kind: &str| fault(format!("must be {kind}, not {value:?}"));
            *present = match present {
                toml::Value::String(_) => value.into(),
                toml::Value::Integer(_) => {
                    value.parse::<i64>().map_err(|_| wrong("a whole number"))?.into()
                }
                toml::Value::Float(_) => {
                    value.parse::<f64>().map_err(|_| wrong("a number"))?.into()
                }
                toml::Value::Boolean(_) => {
                    value.parse::<bool>().map_err(|_| wrong("true or false"))?.into()
                }
                _ => {
                    return Err(fault("stands for a list, which only config.toml can hold".into()));
                }
            };
            return Ok(());
        }
    }
    Err(fault("stands for no key of config.toml (ROLLCALL_<SECTION>_<KEY>)".into()))
}

//! The tables `[[webhook]]`.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use ring::hmac;
use rustls::pki_types::ServerName;
use zeroize::Zeroizing;

use crate::clock;
use crate::config::checks::{
    ConfigError, invalid, non_empty, read_secret, resolve_path, time_within, within,
};
use crate::config::raw::{RawConfig, RawWebhook, RawWebhookPreset};
use crate::error_chain::error_chain;
use crate::mqtt::tls;
use crate::webhook::{BATCH_MAX, Preset, WEBHOOKS_MAX, WebhookSettings, WebhookUrl};

const NAME_CHARS_MAX: usize = 32;
/// A key that can be guessed protects from nothing: 16 random bytes are enough.
const SECRET_BYTES_MIN: usize = 16;
const SHIFTS_MAX: usize = 20;

pub(super) fn check_webhooks(
    raw: &RawConfig,
    folder: &Path,
    warnings: &mut Vec<String>,
) -> Result<Vec<Arc<WebhookSettings>>, ConfigError> {
    within("[[webhook]]", raw.webhook.len(), 0, WEBHOOKS_MAX)?;
    let mut webhooks: Vec<Arc<WebhookSettings>> = Vec::new();
    for it in &raw.webhook {
        check_name(&it.name)?;
        if webhooks.iter().any(|other| other.name == it.name) {
            return Err(invalid("[[webhook]] name", format!("{:?} stands twice", it.name)));
        }
        let settings = check_webhook(it, folder).map_err(|error| of_webhook(error, &it.name))?;
        if matches!(settings.preset, Preset::Plain)
            && settings.key.is_none()
            && settings.authorization.is_none()
        {
            warnings.push(format!(
                "[[webhook]] {:?} has neither secret_file nor authorization_file: whoever learns its URL can send the \
                 receiver events of their own",
                it.name
            ));
        }
        webhooks.push(Arc::new(settings));
    }
    Ok(webhooks)
}

fn check_name(name: &str) -> Result<(), ConfigError> {
    let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.is_empty() || name.len() > NAME_CHARS_MAX || !name.chars().all(is_allowed) {
        let why = format!("= {name:?} is no name of 1 to {NAME_CHARS_MAX} of a-z, 0-9 and -");
        return Err(invalid("[[webhook]] name", why));
    }
    Ok(())
}

/// Names the webhook in an error of one of its keys.
fn of_webhook(error: ConfigError, name: &str) -> ConfigError {
    match error {
        ConfigError::Value { key, why } => {
            let gap = if why.starts_with(':') { "" } else { " " };
            invalid(key, format!("of {name:?}{gap}{why}"))
        }
        ConfigError::File { key, path, source } => {
            invalid(key, format!("of {name:?}: cannot read {}: {source}", path.display()))
        }
        other => other,
    }
}

fn check_webhook(it: &RawWebhook, folder: &Path) -> Result<WebhookSettings, ConfigError> {
    let url = WebhookUrl::parse(&it.url, it.allow_private)
        .map_err(|error| invalid("[[webhook]] url", error.to_string()))?;
    if url.is_https && ServerName::try_from(url.host()).is_err() {
        return Err(invalid("[[webhook]] url", "names no host that a certificate could be for"));
    }
    let ca_file = resolve_path(folder, &it.ca_file);
    if let Some(file) = &ca_file {
        const KEY: &str = "[[webhook]] ca_file";
        if !url.is_https {
            return Err(invalid(KEY, "has no use with http"));
        }
        tls::read_ca(file).map_err(|error| invalid(KEY, format!(": {}", error_chain(&error))))?;
    }
    let preset = check_preset(it)?;
    let authorization = read_authorization(it, folder)?;
    if authorization.is_none() && !matches!(preset, Preset::Plain) {
        return Err(invalid(
            "[[webhook]] authorization_file",
            "is empty, and this preset needs it: Frappe takes \"token KEY:SECRET\", Odoo \"bearer KEY\"",
        ));
    }
    let batch = within("[[webhook]] batch", it.batch, 1, BATCH_MAX)?;
    if batch > 1 && !matches!(preset, Preset::Plain) {
        return Err(invalid("[[webhook]] batch", "is for preset = \"plain\" alone"));
    }
    let second = Duration::from_secs(1);
    Ok(WebhookSettings {
        name: it.name.clone(),
        url,
        preset,
        key: read_key(it, folder)?,
        authorization,
        ca_file,
        allow_private: it.allow_private,
        timeout: time_within("[[webhook]] timeout", it.timeout, second, second * 60)?,
        batch,
    })
}

fn check_preset(it: &RawWebhook) -> Result<Preset, ConfigError> {
    let only = |key, is_set: bool, preset: &str| {
        if is_set {
            return Err(invalid(key, format!("is for preset = {preset:?} alone")));
        }
        Ok(())
    };
    if it.preset != RawWebhookPreset::Frappe {
        only("[[webhook]] time_zone", !it.time_zone.is_empty(), "frappe")?;
        only("[[webhook]] shifts", !it.shifts.is_empty(), "frappe")?;
    }
    if it.preset != RawWebhookPreset::Odoo {
        only("[[webhook]] database", !it.database.is_empty(), "odoo")?;
    }
    match it.preset {
        RawWebhookPreset::Plain => Ok(Preset::Plain),
        RawWebhookPreset::Frappe => {
            const KEY: &str = "[[webhook]] time_zone";
            if it.time_zone.is_empty() {
                return Err(invalid(
                    KEY,
                    "is empty: Frappe's times have none, so that of the site's System Settings is needed here",
                ));
            }
            let zone = clock::time_zone(&it.time_zone).ok_or_else(|| {
                invalid(KEY, format!("= {:?} is not in the time zone database", it.time_zone))
            })?;
            within("[[webhook]] shifts", it.shifts.len(), 0, SHIFTS_MAX)?;
            if it.shifts.iter().any(String::is_empty) {
                return Err(invalid("[[webhook]] shifts", "has an empty name"));
            }
            Ok(Preset::Frappe { zone, shifts: it.shifts.clone() })
        }
        RawWebhookPreset::Odoo => {
            let value = |name: String| {
                HeaderValue::try_from(name).map_err(|_| {
                    invalid("[[webhook]] database", "has characters that no header has")
                })
            };
            Ok(Preset::Odoo { database: non_empty(&it.database).map(value).transpose()? })
        }
    }
}

/// The content of the file is the key, without the line's end.
fn read_key(it: &RawWebhook, folder: &Path) -> Result<Option<hmac::Key>, ConfigError> {
    const KEY: &str = "[[webhook]] secret_file";
    let Some(file) = resolve_path(folder, &it.secret_file) else {
        return Ok(None);
    };
    let text = Zeroizing::new(read_secret(KEY, &file)?);
    let secret = text.trim();
    if secret.len() < SECRET_BYTES_MIN {
        let why = format!(
            ": {} needs {SECRET_BYTES_MIN} characters or more, for example by `openssl rand -base64 32`",
            file.display()
        );
        return Err(invalid(KEY, why));
    }
    Ok(Some(hmac::Key::new(hmac::HMAC_SHA256, secret.as_bytes())))
}

/// The content of the file is the header's value; a word alone is a bearer token.
fn read_authorization(it: &RawWebhook, folder: &Path) -> Result<Option<HeaderValue>, ConfigError> {
    const KEY: &str = "[[webhook]] authorization_file";
    let Some(file) = resolve_path(folder, &it.authorization_file) else {
        return Ok(None);
    };
    let text = Zeroizing::new(read_secret(KEY, &file)?);
    let text = text.trim();
    if text.is_empty() {
        return Err(invalid(KEY, format!(": {} is empty", file.display())));
    }
    let value = if text.contains(' ') { text.to_owned() } else { format!("Bearer {text}") };
    let mut value = HeaderValue::try_from(value).map_err(|_| {
        invalid(KEY, format!(": {} has characters that no header has", file.display()))
    })?;
    value.set_sensitive(true);
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::config::load::parse;

    struct Folder(tempfile::TempDir);

    impl Folder {
        fn new() -> Self {
            let folder = Self(tempfile::tempdir().unwrap());
            folder.write("key", "a key of at least sixteen\n", 0o600);
            folder.write("short", "too short\n", 0o600);
            folder.write("open", "a key of at least sixteen\n", 0o644);
            folder.write("token", "token abc:def\n", 0o600);
            folder.write("word", "abcdef\n", 0o600);
            folder.write("empty", "\n", 0o600);
            folder
        }

        fn write(&self, name: &str, text: &str, mode: u32) {
            let path = self.0.path().join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }

        fn check(&self, tables: &str) -> Result<Vec<Arc<WebhookSettings>>, ConfigError> {
            let raw = parse(tables, &BTreeMap::new())?;
            check_webhooks(&raw, self.0.path(), &mut Vec::new())
        }
    }

    const PLAIN: &str = "[[webhook]]\nname = \"a\"\nurl = \"https://example.com/s3cret\"\n";

    #[test]
    fn plain_webhook_has_defaults() {
        let folder = Folder::new();
        let webhook = folder
            .check(&format!("{PLAIN}secret_file = \"key\"\nauthorization_file = \"word\"\n"))
            .unwrap();
        let webhook = &webhook[0];
        assert_eq!((webhook.sink().as_str(), webhook.batch), ("webhook:a", 1));
        assert_eq!(webhook.timeout, Duration::from_secs(10));
        assert!(webhook.key.is_some());
        assert_eq!(webhook.authorization.as_ref().unwrap().as_bytes(), b"Bearer abcdef");
        assert!(!format!("{webhook:?}").contains("s3cret"));
        let raw = parse(PLAIN, &BTreeMap::new()).unwrap();
        assert!(!format!("{raw:?}").contains("s3cret"));
        let mut warnings = Vec::new();
        check_webhooks(&raw, folder.0.path(), &mut warnings).unwrap();
        assert!(warnings[0].contains("secret_file"), "{warnings:?}");
    }

    #[test]
    fn presets_take_their_keys() {
        let folder = Folder::new();
        let tables = "[[webhook]]\nname = \"hr\"\nurl = \"https://hr.example.com\"\npreset = \"frappe\"\n\
                      authorization_file = \"token\"\ntime_zone = \"Europe/Berlin\"\nshifts = [\"Day\"]\n\
                      [[webhook]]\nname = \"odoo\"\nurl = \"https://odoo.example.com\"\npreset = \"odoo\"\n\
                      authorization_file = \"word\"\ndatabase = \"firm\"\n";
        let webhooks = folder.check(tables).unwrap();
        assert!(matches!(&webhooks[0].preset, Preset::Frappe { shifts, .. } if shifts == &["Day"]));
        assert_eq!(webhooks[0].authorization.as_ref().unwrap().as_bytes(), b"token abc:def");
        assert!(matches!(&webhooks[1].preset, Preset::Odoo { database: Some(_) }));
    }

    #[test]
    fn faults_name_webhook_and_key() {
        let folder = Folder::new();
        for (more, named) in [
            ("secret_file = \"none\"", "[[webhook]] secret_file of \"a\": cannot read"),
            ("secret_file = \"open\"", "chmod 600"),
            ("secret_file = \"short\"", "needs 16 characters"),
            ("authorization_file = \"empty\"", "is empty"),
            ("ca_file = \"none.pem\"", "[[webhook]] ca_file of \"a\""),
            ("timeout = \"10ms\"", "[[webhook]] timeout of \"a\""),
            ("timeout = \"10m\"", "[[webhook]] timeout"),
            ("batch = 0", "[[webhook]] batch"),
            ("batch = 501", "[[webhook]] batch"),
            ("time_zone = \"UTC\"", "preset = \"frappe\" alone"),
            ("database = \"x\"", "preset = \"odoo\" alone"),
            ("preset = \"frappe\"", "[[webhook]] time_zone"),
            ("preset = \"frappe\"\ntime_zone = \"Moon/Base\"", "time zone database"),
            ("preset = \"frappe\"\ntime_zone = \"UTC\"", "[[webhook]] authorization_file"),
            ("preset = \"odoo\"\nauthorization_file = \"word\"\nbatch = 2", "plain"),
            ("preset = \"sap\"", "sap"),
            ("secret = \"in clear\"", "unknown field `secret`"),
            (PLAIN, "[[webhook]] name \"a\" stands twice"),
        ] {
            let error = folder.check(&format!("{PLAIN}{more}\n")).expect_err(more);
            let message = error_chain(&error);
            assert!(message.contains(named), "{more}: {message}");
            assert!(!message.contains("s3cret"), "{more}: {message}");
        }
        for (name, url, named) in [
            ("", "https://h/", "[[webhook]] name"),
            ("HR", "https://h/", "[[webhook]] name"),
            ("a", "http://h/", "[[webhook]] url of \"a\" begins with http"),
            ("a", "https://10.0.0.1/", "allow_private"),
            ("a", "https://2130706433/", "a certificate"),
            ("a", "https://u:s3cret@h/", "authorization_file"),
        ] {
            let tables = format!("[[webhook]]\nname = \"{name}\"\nurl = \"{url}\"\n");
            let message = folder.check(&tables).expect_err(url).to_string();
            assert!(message.contains(named) && !message.contains("s3cret"), "{url}: {message}");
        }
        let mut many = String::new();
        for number in 0..=WEBHOOKS_MAX {
            many += &PLAIN.replace("\"a\"", &format!("\"a{number}\""));
        }
        assert!(folder.check(&many).is_err());
    }
}

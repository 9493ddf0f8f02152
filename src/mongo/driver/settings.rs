//! The checked settings of `[mongo]`. Writes must be as durable as the contract promises, so options
//! of the URI that contradict it are rejected by name.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use mongodb::options::{ConnectionString, Tls};

use crate::mongo::types::{SettingsError, UriSource, WINDOW_MAX};

#[derive(Clone)]
pub struct MongoSettings {
    pub(super) uri: String,
    pub(super) database: String,
    pub(super) venues: String,
    pub(super) ca_file: Option<PathBuf>,
    /// The time limit of each call.
    pub(super) timeout: Duration,
    window: usize,
    /// Hosts as the URI names them, without user and password.
    pub(super) hosts: String,
    has_password: bool,
}

impl MongoSettings {
    /// Returns how many rows are given to the sink at a time.
    pub fn window(&self) -> usize {
        self.window
    }

    pub fn has_password(&self) -> bool {
        self.has_password
    }
}

impl fmt::Debug for MongoSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "MongoSettings({}/{}, at most {:?} a call)",
            self.hosts, self.database, self.timeout
        )
    }
}

/// Options that the contract decides, with the reason.
const RESERVED: [(&str, &str); 6] = [
    ("w", "a majority must have what is acknowledged"),
    ("journal", "what is acknowledged is journaled"),
    ("wtimeoutms", "[mongo] timeout bounds every call"),
    ("readpreference", "what was just written must be seen"),
    ("readpreferencetags", "what was just written must be seen"),
    ("readconcernlevel", "what was just written must be seen"),
];
/// Reserved options with the value that holds anyway.
const HARMLESS: [(&str, &str); 4] = [
    ("w", "majority"),
    ("journal", "true"),
    ("readpreference", "primary"),
    ("readconcernlevel", "majority"),
];
/// Where the record is kept, unless it is configured or the URI names a database.
const DATABASE: &str = "rollcall";
/// The other collections.
const OURS: [&str; 4] = ["attendance", "subjects", "devices", "gallery"];
/// Options that allow the server to be an impostor.
const UNSAFE: [&str; 3] =
    ["tlsinsecure", "tlsallowinvalidcertificates", "tlsallowinvalidhostnames"];

/// Checks the settings; `None` without a URI, and then nothing else may be set either.
pub fn settings_from(from: UriSource) -> Result<Option<MongoSettings>, SettingsError> {
    let refuse = |key, why: &str| Err(SettingsError { key, why: why.into() });
    if from.uri.is_empty() {
        if from.tls || from.ca_file.is_some() {
            return refuse("[mongo] tls", "is set, but [mongo] uri is empty");
        }
        return Ok(None);
    }
    if from.timeout < Duration::from_secs(1) || from.timeout > Duration::from_mins(10) {
        return refuse("[mongo] timeout", "is not within 1 s to 10 min");
    }
    if !(1..=WINDOW_MAX).contains(&from.window) {
        return Err(SettingsError {
            key: "[mongo] window",
            why: format!("is not within 1 to {WINDOW_MAX}"),
        });
    }
    check_options(&from.uri)?;
    // The parser's error may quote the URI.
    let Ok(parsed) = ConnectionString::parse(&from.uri) else {
        return refuse(
            "[mongo] uri",
            "is no connection string: mongodb://HOST:PORT/?replicaSet=NAME or mongodb+srv://HOST (in user and password, \
             write / : @ and % as %2F %3A %40 %25)",
        );
    };
    let is_name = |name: &str| {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        (1..=60).contains(&name.len()) && name.chars().all(good)
    };
    let database =
        match (from.database.as_str(), parsed.default_database.as_deref().unwrap_or_default()) {
            // Users are kept there; it is named to authenticate, not to write to.
            ("", "" | "admin") => DATABASE.to_owned(),
            ("", named) => named.to_owned(),
            (chosen, _) => chosen.to_owned(),
        };
    if !is_name(&database) {
        return refuse("[mongo] database", "is not 1 to 60 of the characters A-Z a-z 0-9 _ -");
    }
    if !is_name(&from.venues_collection) || OURS.contains(&from.venues_collection.as_str()) {
        let why = "is not 1 to 60 of the characters A-Z a-z 0-9 _ -, or is another collection of rollcall";
        return refuse("[mongo] venues_collection", why);
    }
    let hosts = hosts(&from.uri);
    let tls = match &parsed.tls {
        Some(Tls::Enabled(options)) => {
            if options.ca_file_path.is_some() && from.ca_file.is_some() {
                return refuse("[mongo] ca_file", "and tlsCAFile in the URI exclude each other");
            }
            true
        }
        Some(Tls::Disabled) => false,
        // The driver itself uses TLS for mongodb+srv.
        None => from.uri.starts_with("mongodb+srv://"),
    };
    if let Some(file) = from.ca_file.as_ref().filter(|file| !file.is_file()) {
        return Err(SettingsError {
            key: "[mongo] ca_file",
            why: format!("{} is not there", file.display()),
        });
    }
    if from.ca_file.is_some() && !tls {
        return refuse("[mongo] ca_file", "would not be used: the URI does not have tls=true");
    }
    if from.tls && !tls {
        return refuse(
            "[mongo] tls",
            "= true, but the URI does not have tls=true: the connection would be in the clear",
        );
    }
    let has_password = parsed.credential.as_ref().is_some_and(|it| it.password.is_some());
    Ok(Some(MongoSettings {
        uri: from.uri,
        database,
        venues: from.venues_collection,
        ca_file: from.ca_file,
        timeout: from.timeout,
        window: from.window,
        hosts,
        has_password,
    }))
}

/// Returns hosts and ports: what is between credentials and path.
fn hosts(uri: &str) -> String {
    let rest = uri.split_once("://").map_or(uri, |(_, rest)| rest);
    let hosts = rest.split(['/', '?']).next().unwrap_or_default();
    hosts.rsplit_once('@').map_or(hosts, |(_, hosts)| hosts).to_owned()
}

fn check_options(uri: &str) -> Result<(), SettingsError> {
    let refuse = |why: String| Err(SettingsError { key: "[mongo] uri", why });
    let options = uri.split_once('?').map_or("", |(_, options)| options);
    for option in options.split(['&', ';']).filter(|it| !it.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let name = name.to_lowercase();
        let value = value.to_lowercase();
        if let Some((_, why)) = RESERVED.iter().find(|it| it.0 == name) {
            let harmless = HARMLESS.contains(&(name.as_str(), value.as_str()));
            if !harmless {
                return refuse(format!("may not set {name}: {why}"));
            }
        }
        if UNSAFE.contains(&name.as_str()) && value != "false" {
            return refuse(format!(
                "may not set {name}: any server that replies would get the password and the record"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(uri: &str) -> UriSource {
        UriSource {
            uri: uri.into(),
            database: String::new(),
            venues_collection: "venues".into(),
            ca_file: None,
            tls: false,
            timeout: Duration::from_secs(10),
            window: 500,
        }
    }

    #[test]
    fn uri_is_checked_and_password_hidden() {
        let settings =
            settings_from(from("mongodb://door:s3cret@a:1,b:2/?replicaSet=rs0&w=majority"))
                .unwrap()
                .unwrap();
        assert!(settings.has_password());
        assert_eq!(format!("{settings:?}"), "MongoSettings(a:1,b:2/rollcall, at most 10s a call)");
        assert!(settings_from(from("")).unwrap().is_none());
        for (uri, named) in [
            ("mongodb://a/?w=0", "w:"),
            ("mongodb://a/?w=1", "w:"),
            ("mongodb://a/?journal=false", "journal:"),
            ("mongodb://a/?readPreference=secondary", "readpreference:"),
            ("mongodb://a/?tls=true&tlsInsecure=true", "tlsinsecure:"),
            ("mongodb://door:s3c/ret@a", "connection string"),
            ("localhost:27017", "connection string"),
        ] {
            let error = settings_from(from(uri)).unwrap_err();
            assert_eq!(error.key, "[mongo] uri");
            assert!(
                error.why.contains(named) && !error.to_string().contains("s3c"),
                "{uri}: {error}"
            );
        }
    }

    #[test]
    fn settings_without_effect_are_rejected() {
        let with = |change: fn(&mut UriSource), uri: &str| {
            let mut source = from(uri);
            change(&mut source);
            settings_from(source).map_err(|it| it.key)
        };
        let ca: fn(&mut UriSource) = |it| it.ca_file = Some("Cargo.toml".into());
        let lost: fn(&mut UriSource) = |it| it.ca_file = Some("ca.pem".into());
        let tls: fn(&mut UriSource) = |it| it.tls = true;
        assert_eq!(with(ca, "").unwrap_err(), "[mongo] tls");
        assert_eq!(with(tls, "").unwrap_err(), "[mongo] tls");
        assert_eq!(with(ca, "mongodb://a").unwrap_err(), "[mongo] ca_file");
        assert_eq!(with(tls, "mongodb://a").unwrap_err(), "[mongo] tls");
        assert_eq!(with(tls, "mongodb+srv://a.example.net/?tls=false").unwrap_err(), "[mongo] tls");
        assert!(with(ca, "mongodb://a/?tls=true").is_ok());
        assert_eq!(with(lost, "mongodb://a/?tls=true").unwrap_err(), "[mongo] ca_file");
        assert!(with(tls, "mongodb+srv://a.example.net").is_ok());
        assert_eq!(with(|it| it.window = 0, "mongodb://a").unwrap_err(), "[mongo] window");
        assert_eq!(
            with(|it| it.timeout = Duration::ZERO, "mongodb://a").unwrap_err(),
            "[mongo] timeout"
        );
        assert_eq!(
            with(|it| it.database = "a.b".into(), "mongodb://a").unwrap_err(),
            "[mongo] database"
        );
    }
}

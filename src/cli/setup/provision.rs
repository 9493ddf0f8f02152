//! A provisioning file: some keys of config.toml that `rollcall setup --from` takes over.
//!
//! It is hostile until checked, because the boot partition has no file owners and anybody may write
//! there. It may set what a site sets for a door, but not the paths of the program. Files that it
//! names must lie beside it and be no links, so that nothing of this device, which root may read, is
//! sent to the hosts that the same file names. What else it names is not opened by `setup`.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use toml_edit::{DocumentMut, Item};

use crate::bounded_file;
use crate::cli::doctor::program::CARD_BYTES_MAX;
use crate::cli::setup::draft::{ALL_KEPT, Draft, Kept, PASSWORD, URI};
use crate::config;
use crate::config::raw::RawConfig;

/// Keys that only the package sets, and what would be run.
const RESERVED_KEYS: [(&str, &str); 4] = [
    ("storage", "directory"),
    ("recognition", "models"),
    ("recognition", "runtime_library"),
    ("camera", "command"),
];

/// Puts the keys of the file into the draft. Returns the files that hold secrets and should now be
/// deleted.
pub fn apply(draft: &mut Draft, path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = bounded_file::read_text(path, CARD_BYTES_MAX)
        .with_context(|| format!("cannot use {}", path.display()))?;
    let what = || format!("{} cannot be used", path.display());
    // The error names keys and types, never the line itself, which may hold a password.
    if let Err(error) = toml::from_str::<RawConfig>(&text) {
        bail!("{}, {}", what(), config::load::explain(&text, &error));
    }
    let before = BROKER_KEYS.map(|key| draft.shown("mqtt", key));
    let document: DocumentMut =
        text.parse().map_err(|_| anyhow::anyhow!("{}: it is not TOML", what()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut secrets = BTreeSet::new();
    for (section, item) in document.iter() {
        if let Some(venues) = item.as_array_of_tables() {
            ensure!(
                section == "venue",
                "{}: [[{section}]] is no part of a provisioning file: write it into config.toml",
                what()
            );
            venues.iter().for_each(|venue| draft.put_venue(venue, true));
            draft.answer("venue", "time_zone");
            continue;
        }
        let Some(table) = item.as_table_like() else {
            bail!("{}: write [[venue]] for each venue", what());
        };
        for (key, value) in table.iter() {
            ensure!(
                !RESERVED_KEYS.contains(&(section, key)),
                "{}: a provisioning file may not set [{section}] {key}",
                what()
            );
            draft.answer(section, key);
            if let Some(kept) =
                ALL_KEPT.into_iter().find(|it| (it.section, it.key) == (section, key))
            {
                let named = value.as_str().unwrap_or_default();
                let file = take_file(draft, kept, folder, named).with_context(what)?;
                secrets.extend(file.filter(|_| kept.secret));
            } else if (section, key) == ("camera", "device") {
                let device = value.as_str().unwrap_or_default();
                ensure!(is_camera(device), "{}: [camera] device = {device:?} is no camera", what());
                draft.set(section, key, device);
            } else if let Some(kept) = secret_in_clear(section, key, value) {
                draft.keep(kept, value.as_str().unwrap_or_default().into())?;
                secrets.insert(path.to_owned());
            } else if let Item::Value(value) = value {
                // A value without a password replaces a file with one.
                if let Some(kept) =
                    ALL_KEPT.into_iter().find(|it| it.section == section && it.clear == Some(key))
                {
                    draft.drop_kept(kept);
                }
                let mut value = value.clone();
                value.decor_mut().clear();
                draft.set(section, key, value);
            }
        }
    }
    let after = BROKER_KEYS.map(|key| draft.shown("mqtt", key));
    let is_other = before != after || draft.is_answered("mqtt", "ca_file");
    let has_own = ["password", "password_file"].iter().any(|key| draft.is_answered("mqtt", key));
    if is_other && !has_own && draft.has_kept(&PASSWORD) {
        draft.drop_kept(&PASSWORD);
        draft.note("[mqtt] the password is left out: the provisioning file names another broker");
    }
    let has_own_uri = ["uri", "uri_file"].iter().any(|key| draft.is_answered("mongo", key));
    let own_uri = draft.has_kept(&URI) || draft.text("mongo", "uri").is_some();
    if draft.is_answered("mongo", "ca_file") && !has_own_uri && own_uri {
        draft.drop_kept(&URI);
        draft.note("[mongo] the URI is left out: the provisioning file names another authority");
    }
    if let Some(uri) = draft.held_text(&URI).or_else(|| draft.text("mongo", "uri")) {
        ensure!(!names_file(&uri), "{}: [mongo] uri may name no file: see ca_file", what());
    }
    Ok(secrets.into_iter().collect())
}

/// What decides who receives the password of `[mqtt]`. This device's own is not sent to a host that
/// the provisioning file names.
const BROKER_KEYS: [&str; 3] = ["host", "port", "tls"];

/// Returns whether a text can only name a camera: opening other devices may have effects.
fn is_camera(device: &str) -> bool {
    let is_plain = |it: &str| !it.contains('/') && it != "..";
    match device.strip_prefix('/') {
        None => is_plain(device),
        Some(path) => {
            path.strip_prefix("dev/video").is_some_and(|it| it.bytes().all(|b| b.is_ascii_digit()))
                || ["dev/v4l/by-id/", "dev/v4l/by-path/"]
                    .iter()
                    .any(|folder| path.strip_prefix(folder).is_some_and(is_plain))
        }
    }
}

/// Returns whether a URI of MongoDB names a file or a socket of this machine.
fn names_file(uri: &str) -> bool {
    let (place, options) = uri.split_once('?').unwrap_or((uri, ""));
    let hosts = place.rsplit_once('@').map_or(place, |it| it.1);
    let is_file = |option: &str| {
        let name = option.split('=').next().unwrap_or_default().to_lowercase();
        name.contains("file") || name.contains('%')
    };
    hosts.contains('%') || options.split(['&', ';']).any(is_file)
}

/// Returns what a secret in the file itself is.
fn secret_in_clear(section: &str, key: &str, value: &Item) -> Option<&'static Kept> {
    let kept = ALL_KEPT.into_iter().find(|it| it.section == section && it.clear == Some(key))?;
    let text = value.as_str().filter(|text| !text.is_empty())?;
    (kept != &URI || text.contains('@')).then_some(kept)
}

/// Copies a named file and returns its path, to be deleted if it is a secret.
fn take_file(
    draft: &mut Draft,
    kept: &'static Kept,
    folder: &Path,
    named: &str,
) -> anyhow::Result<Option<PathBuf>> {
    if named.is_empty() {
        draft.drop_kept(kept);
        return Ok(None);
    }
    let plain = !named.contains('/') && named != ".." && named != ".";
    ensure!(plain, "[{}] {} = {named:?} must lie beside the file", kept.section, kept.key);
    let path = folder.join(named);
    ensure!(!path.is_symlink(), "{} is a link", path.display());
    draft.keep_unlinked_file(kept, &path)?;
    Ok(Some(path))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn with(text: &str) -> (tempfile::TempDir, anyhow::Result<(Draft, Vec<PathBuf>)>) {
        let dir = tempfile::tempdir().unwrap();
        let card = dir.path().join("card");
        fs::create_dir(&card).unwrap();
        fs::write(card.join("rollcall.toml"), text).unwrap();
        fs::write(card.join("pw"), "s3cret\n").unwrap();
        fs::write(card.join("uri"), "mongodb://h/?tls=true&tlsCAFile=/etc/shadow\n").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", card.join("link")).unwrap();
        fs::create_dir(card.join("folder")).unwrap();
        fs::File::create(card.join("huge")).unwrap().set_len(1 << 40).unwrap();
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mkfifoat(rustix::fs::CWD, card.join("pipe"), mode).unwrap();
        let mut draft = Draft::load(&dir.path().join("config.toml")).unwrap();
        let applied = apply(&mut draft, &card.join("rollcall.toml"));
        (dir, applied.map(|secrets| (draft, secrets)))
    }

    #[test]
    fn provisioning_applies_keys_venues_and_secrets() {
        let text = "[device]\nsite = \"hq\"\n[mqtt]\nhost = \"b\"\nuser = \"u\"\npassword_file = \"pw\"\n\
            [mongo]\nuri = \"mongodb://u:p@h\"\n[[venue]]\nid = \"main\"\ntime_zone = \"Europe/Berlin\"\n\
            [[venue.session]]\nid = \"am\"\nweekdays = [\"mon\"]\nstart = \"08:00\"\nend = \"12:00\"\n";
        let (dir, applied) = with(text);
        let (draft, secrets) = applied.unwrap();
        let settings = draft.settings().unwrap();
        assert_eq!((settings.site.as_str(), settings.venues[0].sessions.len()), ("hq", 1));
        assert_eq!(settings.mqtt.unwrap().credentials.unwrap().password, "s3cret");
        assert!(settings.mongo.is_some() || cfg!(not(feature = "mongo")));
        let card = dir.path().join("card");
        assert_eq!(secrets, [card.join("pw"), card.join("rollcall.toml")]);
        draft.commit(None).unwrap();
        let written = fs::read_to_string(dir.path().join("config.toml")).unwrap();
        assert!(!written.contains("s3cret") && !written.contains("u:p@"), "{written}");
    }

    #[test]
    fn own_password_is_not_kept_for_other_broker() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.toml");
        let own = "[mqtt]\nhost = \"broker\"\nuser = \"u\"\npassword = \"s3cret\"\n";
        fs::write(&config, own).unwrap();
        let card = dir.path().join("rollcall.toml");
        for (text, kept) in [
            ("[mqtt]\nhost = \"other\"\n", None),
            ("[mqtt]\nport = 1884\n", None),
            ("[mqtt]\nhost = \"other\"\npassword = \"theirs\"\n", Some("theirs")),
            ("[mqtt]\nhost = \"broker\"\n", Some("s3cret")),
            ("[device]\nsite = \"hq\"\n", Some("s3cret")),
        ] {
            fs::write(&card, text).unwrap();
            let mut draft = Draft::load(&config).unwrap();
            apply(&mut draft, &card).unwrap();
            assert_eq!(draft.held_text(&PASSWORD).as_deref(), kept, "{text}");
            assert_eq!(draft.notes().is_empty(), kept.is_some(), "{text}");
        }
    }

    #[test]
    fn own_uri_is_not_kept_for_other_authority() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.toml");
        fs::write(&config, "[mongo]\nuri_file = \"own\"\ntls = true\n").unwrap();
        fs::write(dir.path().join("own"), "mongodb://u:s3cret@h").unwrap();
        let card = dir.path().join("rollcall.toml");
        fs::write(dir.path().join("ca"), "x").unwrap();
        fs::write(dir.path().join("theirs"), "mongodb://v:w@h\n").unwrap();
        for (text, is_kept) in [
            ("[mongo]\nca_file = \"ca\"\n", false),
            ("[mongo]\nca_file = \"ca\"\nuri_file = \"theirs\"\n", true),
            ("[mongo]\ndatabase = \"other\"\n", true),
        ] {
            fs::write(&card, text).unwrap();
            let mut draft = Draft::load(&config).unwrap();
            apply(&mut draft, &card).unwrap();
            let is_told = draft.notes().iter().any(|note| note.contains("another authority"));
            assert_eq!((draft.has_kept(&URI), is_told), (is_kept, !is_kept), "{text}");
        }
    }

    #[test]
    fn every_file_key_must_name_neighbour() {
        let shipped: toml::Table = include_str!("../../../config.toml").parse().unwrap();
        let tables = shipped.iter().filter_map(|(section, it)| Some((section, it.as_table()?)));
        let keys = tables.flat_map(|(section, it)| it.keys().map(move |key| (section, key)));
        let files: Vec<_> = keys.filter(|(_, key)| key.ends_with("_file")).collect();
        assert!(files.len() >= 11, "{files:?}");
        for (section, key) in files {
            let (_dir, applied) = with(&format!("[{section}]\n{key} = \"/etc/hostname\"\n"));
            let message = format!("{:#}", applied.err().expect(key));
            assert!(message.contains("beside the file"), "[{section}] {key}: {message}");
        }
    }

    #[test]
    fn only_cameras_are_named_as_camera() {
        for device in ["", "auto", "/dev/video0", "/dev/v4l/by-id/usb-x-index0", "usb-x-index0"] {
            assert!(is_camera(device), "{device}");
        }
        for device in ["/dev/", "/dev/video0x", "/etc/shadow", "..", "a/b"] {
            assert!(!is_camera(device), "{device}");
        }
    }

    #[test]
    fn provisioning_errors_name_key_without_secret() {
        for (text, part) in [
            ("[storage]\ndirectory = \"/tmp\"", "[storage] directory"),
            ("[recognition]\nruntime_library = \"/boot/x.so\"", "runtime_library"),
            ("[device]\nsight = \"hq\"", "sight"),
            ("[mqtt]\npassword_file = \"../shadow\"", "beside"),
            ("[mqtt]\npassword_file = \"link\"", "link"),
            ("[mqtt]\npassword_file = \"/etc/shadow\"", "beside"),
            ("[mqtt]\nca_file = \"/etc/shadow\"", "beside"),
            ("[mqtt]\nclient_key_file = \"/etc/shadow\"", "beside"),
            ("[mongo]\nuri_file = \"/etc/shadow\"", "beside"),
            ("[mongo]\nca_file = \"./../shadow\"", "beside"),
            ("[http]\ntoken_file = \"/etc/shadow\"", "beside"),
            ("[fleet]\nkey_file = \"/etc/shadow\"", "beside"),
            ("[commands]\nsigning_key_file = \"/etc/shadow\"", "beside"),
            (
                "[[webhook]]\nname = \"x\"\nurl = \"https://h/\"\nsecret_file = \"/etc/shadow\"",
                "[[webhook]] is no part",
            ),
            ("[mqtt]\npassword_file = \"pipe\"", "regular file"),
            ("[mqtt]\npassword_file = \"folder\"", "regular file"),
            ("[mqtt]\npassword_file = \"huge\"", "more than"),
            ("[camera]\ndevice = \"/dev/watchdog\"", "no camera"),
            ("[camera]\ndevice = \"/dev/video0/../sda\"", "no camera"),
            ("[camera]\ndevice = \"/dev/v4l/by-id/../../sda\"", "no camera"),
            (
                "[mongo]\nuri = \"mongodb://h/?tls=true&tlsCertificateKeyFile=/etc/shadow\"",
                "no file",
            ),
            ("[mongo]\nuri = \"mongodb://h/?tls=true;TLSCAFILE=/etc/shadow\"", "no file"),
            ("[mongo]\nuri = \"mongodb://u:s3cret@%2Frun%2Fx.sock/\"", "no file"),
            ("[mongo]\nuri_file = \"uri\"", "no file"),
            ("[mqtt]\npassword_file = \"missing\"", "missing"),
            ("[mqtt]\nhost = \"b\"\npassword = s3cret", "line 3"),
            ("[mqtt]\nport = \"s3cret\"", "line 2"),
            ("[mqtt]\npassword = 12345678", "invalid type: integer, expected a string"),
            ("venue = [{ id = \"x\" }]", "[[venue]]"),
        ] {
            let (_dir, applied) = with(text);
            let message = format!("{:#}", applied.err().expect(text));
            assert!(message.contains(part) && !message.contains("s3cret"), "{text}: {message}");
        }
        let (_dir, applied) = with(&format!("# {}", "x".repeat(70_000)));
        assert!(format!("{:#}", applied.err().unwrap()).contains("more than"));
    }
}

//! Files that somebody else has written: the configuration, a provisioning card, a list of people,
//! the manifest of a backup.

use std::collections::BTreeMap;
use std::fs;

use rollcall::cli::backup::manifest::{MANIFEST, Manifest};
use rollcall::cli::import::people;
use rollcall::cli::setup::draft::Draft;
use rollcall::cli::setup::provision;
use rollcall::config;

use crate::{choice, folder};

fn write(name: &str, bytes: &[u8]) -> std::path::PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("the temporary folder can be written to");
    path
}

/// config.toml, with an override from the environment.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let environment = BTreeMap::from([("ROLLCALL_MQTT_PORT".to_owned(), "1883".to_owned())]);
    if let Ok(raw) = config::load::parse(text, &environment) {
        config::check(&raw, folder()).ok();
    }
    config::load::parse(text, &BTreeMap::new()).ok();
}

/// rollcall.toml of a boot partition. Nothing of it may reach the error but keys and types.
pub fn provisioning(bytes: &[u8]) {
    let card = write("rollcall.toml", bytes);
    let Ok(mut draft) = Draft::load(&folder().join("config.toml")) else { return };
    if provision::apply(&mut draft, &card).is_ok() {
        draft.settings().ok();
    }
}

/// The list of `rollcall import --map`. Photographs that it names are not opened here.
pub fn roster(bytes: &[u8]) {
    let (most, text) = choice(bytes);
    let photographs = folder().join("photographs");
    fs::create_dir_all(&photographs).expect("the temporary folder can be written to");
    let map = write("map.csv", text);
    let photographs_max = usize::from(most % 20) + 1;
    if let Ok(found) = people::from_map(&map, &photographs, photographs_max) {
        assert!(found.people.iter().all(|it| it.photographs.len() <= photographs_max));
    }
}

/// The manifest of a backup, and then the files that it lists.
pub fn backup(bytes: &[u8]) {
    let backup = folder().join("backup");
    fs::create_dir_all(&backup).expect("the temporary folder can be written to");
    fs::write(backup.join(MANIFEST), bytes).expect("the temporary folder can be written to");
    if let Ok(manifest) = Manifest::read(&backup) {
        manifest.check_files(&backup).expect_err("the files are not there");
    }
}

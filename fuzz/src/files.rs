//! Files that somebody else has written: the configuration, a provisioning card, a list of people,
//! the manifest of a backup.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::LazyLock;

use rollcall::cli::backup::manifest::{MANIFEST, Manifest};
use rollcall::cli::import::people;
use rollcall::cli::setup::draft::Draft;
use rollcall::cli::setup::provision;
use rollcall::config;

use crate::{choice, folder};

fn write(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, bytes).expect("the temporary folder can be written to");
    path
}

fn make_folder(name: &str) -> PathBuf {
    let path = folder().join(name);
    fs::create_dir_all(&path).expect("the temporary folder can be written to");
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

/// What a unit has already: short, so that a run is about the card.
const CONFIG: &str =
    "[device]\nsite = \"hq\"\n\n[mqtt]\nhost = \"broker\"\npassword = \"secret\"\n";

/// rollcall.toml of a boot partition. Nothing of it may reach the error but keys and types.
pub fn provisioning(bytes: &[u8]) {
    static UNIT: LazyLock<PathBuf> = LazyLock::new(|| write("config.toml", CONFIG.as_bytes()));
    let card = write("rollcall.toml", bytes);
    let mut draft = Draft::load(&UNIT).expect("the unit's configuration is one");
    if provision::apply(&mut draft, &card).is_ok() {
        draft.settings().ok();
    }
}

/// The list of `rollcall import --map`. Photographs that it names are not opened here.
pub fn roster(bytes: &[u8]) {
    let (most, text) = choice(bytes);
    static PHOTOGRAPHS: LazyLock<PathBuf> = LazyLock::new(|| make_folder("photographs"));
    let map = write("map.csv", text);
    let photographs_max = usize::from(most % 20) + 1;
    if let Ok(found) = people::from_map(&map, &PHOTOGRAPHS, photographs_max) {
        assert!(found.people.iter().all(|it| it.photographs.len() <= photographs_max));
    }
}

/// The manifest of a backup, and then the files that it lists.
pub fn backup(bytes: &[u8]) {
    static BACKUP: LazyLock<PathBuf> = LazyLock::new(|| make_folder("backup"));
    fs::write(BACKUP.join(MANIFEST), bytes).expect("the temporary folder can be written to");
    if let Ok(manifest) = Manifest::read(&BACKUP) {
        manifest.check_files(&BACKUP).expect_err("the files are not there");
    }
}

//! The configuration to be written: what is there, with its comments, and what was answered. Files
//! that it names (passwords, keys, certificates) are held in memory until it is committed.
//!
//! Invariants: a secret never stands in config.toml. Nothing on the disk changes before `commit`;
//! whatever ends it before its last rename leaves the old configuration with the files that it
//! names, whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{MemfdFlags, Mode, fchmod, memfd_create};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, TableLike, Value};
use zeroize::Zeroizing;

use crate::bounded_file;
use crate::cli::setup::files::{self, Owner, Writer};
use crate::config::{self, Settings};
use crate::keys::secret_file::{OTHERS, exposed_mode};

/// The file as it ships.
const SHIPPED: &str = include_str!("../../../config.toml");
static SHIPPED_DOCUMENT: LazyLock<DocumentMut> =
    LazyLock::new(|| SHIPPED.parse().expect("the program ships with a file that is TOML"));
/// No configuration is as large.
const BYTES_MAX: u64 = 1 << 20;
/// Nor is a key or a certificate.
const KEPT_BYTES_MAX: u64 = 256 << 10;

/// Keys that name a file which is kept beside the configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Kept {
    pub section: &'static str,
    pub key: &'static str,
    /// The key that may hold the same in clear.
    pub clear: Option<&'static str>,
    /// Its file's name.
    name: &'static str,
    pub secret: bool,
}

const fn kept(
    section: &'static str,
    key: &'static str,
    clear: Option<&'static str>,
    name: &'static str,
) -> Kept {
    Kept { section, key, clear, name, secret: true }
}

pub const PASSWORD: Kept = kept("mqtt", "password_file", Some("password"), "mqtt_password");
pub const URI: Kept = kept("mongo", "uri_file", Some("uri"), "mongo_uri");
pub const TOKEN: Kept = kept("http", "token_file", None, "http_token");
const READER_TOKEN: Kept = kept("http", "reader_token_file", None, "http_reader_token");
pub const CAMERA_URL: Kept = kept("camera", "url_file", None, "camera_url");
pub const SITE_KEY: Kept = kept("fleet", "key_file", None, "site.key");
pub const MQTT_CA: Kept = Kept { secret: false, ..kept("mqtt", "ca_file", None, "mqtt_ca.pem") };
pub const MONGO_CA: Kept = Kept { secret: false, ..kept("mongo", "ca_file", None, "mongo_ca.pem") };
const CLIENT_CERT: Kept =
    Kept { secret: false, ..kept("mqtt", "client_cert_file", None, "mqtt_client.pem") };
const CLIENT_KEY: Kept = kept("mqtt", "client_key_file", None, "mqtt_client.key");
const SIGNING_KEY: Kept = kept("commands", "signing_key_file", None, "signing.key");

pub const ALL_KEPT: [&Kept; 11] = [
    &CAMERA_URL,
    &PASSWORD,
    &URI,
    &TOKEN,
    &READER_TOKEN,
    &SITE_KEY,
    &MQTT_CA,
    &MONGO_CA,
    &CLIENT_CERT,
    &CLIENT_KEY,
    &SIGNING_KEY,
];

/// The folder of secrets, beside the configuration.
const SECRETS: &str = "secrets";

pub struct Draft {
    document: DocumentMut,
    /// With links followed: a configuration may lie on another partition.
    path: PathBuf,
    folder: PathBuf,
    /// As it stands on the disk; none where it does not.
    before: Option<String>,
    staged: Vec<Staged>,
    /// What flags and provisioning file have answered.
    answered: BTreeSet<(String, String)>,
    notes: Vec<String>,
}

struct Staged {
    of: &'static Kept,
    bytes: Zeroizing<Vec<u8>>,
    /// Where a check can read it, as if it lay on the disk.
    memory: File,
}

/// What became of a draft.
#[derive(Debug)]
pub struct Committed {
    pub changed: bool,
    pub files: Vec<PathBuf>,
}

impl Draft {
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let folder = path
            .parent()
            .filter(|it| !it.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
            .to_owned();
        let before = read(&path)?;
        let text = before.as_deref().unwrap_or(SHIPPED);
        // What the daemon would refuse is not written on; its own words, which name the key.
        config::load::parse(text, &BTreeMap::new())?;
        let document = text.parse().with_context(|| format!("cannot edit {}", path.display()))?;
        let staged = Vec::new();
        let answered = BTreeSet::new();
        let notes = Vec::new();
        let mut draft = Self { document, path, folder, before, staged, answered, notes };
        if draft.before.is_none() {
            draft.begin();
        }
        for kept in ALL_KEPT {
            draft.take_in_clear(kept)?;
            draft.mend(kept)?;
        }
        Ok(draft)
    }

    /// A new file, on a unit that has the package, names what the package brought.
    fn begin(&mut self) {
        const PACKAGED: [(&str, &str, &str); 2] = [
            ("recognition", "models", "/usr/share/rollcall/models"),
            ("storage", "directory", "/var/lib/rollcall"),
        ];
        for (section, key, path) in PACKAGED {
            if Path::new(path).is_dir() {
                self.set(section, key, path);
            }
        }
    }

    /// Somebody wrote a secret into the file itself.
    fn take_in_clear(&mut self, kept: &'static Kept) -> anyhow::Result<()> {
        let Some(text) = kept.clear.and_then(|key| self.text(kept.section, key)) else {
            return Ok(());
        };
        if kept == &URI && !text.contains('@') {
            return Ok(()); // No password in it.
        }
        self.keep(kept, text.into_bytes())
    }

    /// A file that is named but not there would let the daemon refuse everything, as would a secret
    /// that others may read: the one is forgotten, to be answered anew, the other gets a file of
    /// its own.
    fn mend(&mut self, kept: &'static Kept) -> anyhow::Result<()> {
        let Some(named) = self.text(kept.section, kept.key) else { return Ok(()) };
        let path = self.folder.join(&named);
        let what = format!("[{}] {} = {named:?}", kept.section, kept.key);
        match fs::metadata(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                self.drop_kept(kept);
                self.notes.push(format!("{what} is not there: it is left out"));
            }
            Ok(it) if kept.secret && exposed_mode(&it, OTHERS).is_some() => {
                self.keep_file(kept, &path)?;
                self.notes
                    .push(format!("{what} may be read by others: it is copied into a file that only the daemon reads"));
            }
            _ => {}
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was noticed in the file that was there.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    pub fn note(&mut self, what: &str) {
        self.notes.push(what.to_owned());
    }

    /// A value as it would be written, or as it ships.
    pub fn shown(&self, section: &str, key: &str) -> Option<String> {
        let value = self.section(section).and_then(|it| it.get(key)?.as_value());
        value.map(|it| it.to_string().trim().to_owned())
    }

    /// Before anybody answers questions for nothing.
    pub fn may_be_written(&self) -> std::io::Result<()> {
        let above = self.folder.ancestors().find(|it| it.is_dir()).unwrap_or(Path::new("/"));
        Ok(rustix::fs::access(above, rustix::fs::Access::WRITE_OK)?)
    }

    pub fn is_new(&self) -> bool {
        self.before.is_none()
    }

    fn section(&self, section: &str) -> Option<&dyn TableLike> {
        self.document.get(section)?.as_table_like()
    }

    /// A text that is not empty.
    pub fn text(&self, section: &str, key: &str) -> Option<String> {
        let text = self.section(section)?.get(key)?.as_str()?;
        (!text.is_empty()).then(|| text.to_owned())
    }

    /// The content of a file that is held, where it is text.
    pub fn held_text(&self, kept: &Kept) -> Option<String> {
        let held = self.staged.iter().find(|it| it.of == kept)?;
        std::str::from_utf8(&held.bytes).ok().map(str::to_owned)
    }

    pub fn number(&self, section: &str, key: &str) -> Option<i64> {
        self.section(section)?.get(key)?.as_integer()
    }

    pub fn is_on(&self, section: &str, key: &str) -> bool {
        self.section(section).and_then(|it| it.get(key)?.as_bool()).unwrap_or_default()
    }

    /// A key that has the value already is left as it is written.
    pub fn set(&mut self, section: &str, key: &str, value: impl Into<Value>) {
        let mut value = value.into();
        // What the file leaves out is as it ships.
        let shipped = || SHIPPED_DOCUMENT.get(section)?.get(key)?.as_value();
        if self.section(section).is_none_or(|it| !it.contains_key(key))
            && shipped().is_some_and(|it| same(it, &value))
        {
            return;
        }
        let root = self.document.as_table_mut();
        if !root.contains_key(section) {
            root.insert(section, Item::Table(Table::new()));
        }
        let Some(table) = root.get_mut(section).and_then(Item::as_table_like_mut) else {
            return; // `config::parse` has refused what is no table.
        };
        match table.get_mut(key).and_then(Item::as_value_mut) {
            Some(old) if same(old, &value) => {}
            Some(old) => {
                // What stands behind it on the line stays.
                *value.decor_mut() = old.decor().clone();
                *old = value;
            }
            None => {
                table.insert(key, Item::Value(value));
            }
        }
    }

    pub fn answer(&mut self, section: &str, key: &str) {
        self.answered.insert((section.to_owned(), key.to_owned()));
    }

    pub fn is_answered(&self, section: &str, key: &str) -> bool {
        self.answered.contains(&(section.to_owned(), key.to_owned()))
    }

    /// Holds a file's content for `commit`, and forgets the same in clear.
    pub fn keep(&mut self, kept: &'static Kept, bytes: Vec<u8>) -> anyhow::Result<()> {
        let bytes = Zeroizing::new(bytes);
        let mut memory = File::from(memfd_create("rollcall", MemfdFlags::CLOEXEC)?);
        fchmod(&memory, Mode::from_raw_mode(0o600))?;
        memory.write_all(&bytes)?;
        if let Some(clear) = kept.clear
            && self.text(kept.section, clear).is_some()
        {
            self.set(kept.section, clear, "");
        }
        self.staged.retain(|it| it.of != kept);
        self.staged.push(Staged { of: kept, bytes, memory });
        Ok(())
    }

    /// Reads a file that is to be kept.
    pub fn keep_file(&mut self, kept: &'static Kept, path: &Path) -> anyhow::Result<()> {
        let file = bounded_file::open(path);
        self.keep_open_file(kept, path, file)
    }

    /// Reads a file that is to be kept, unless it is a link to another place.
    pub fn keep_unlinked_file(&mut self, kept: &'static Kept, path: &Path) -> anyhow::Result<()> {
        let file = bounded_file::open_no_link(path);
        self.keep_open_file(kept, path, file)
    }

    fn keep_open_file(
        &mut self,
        kept: &'static Kept,
        path: &Path,
        file: std::io::Result<File>,
    ) -> anyhow::Result<()> {
        let bytes = file.and_then(|it| bounded_file::read_all(it, KEPT_BYTES_MAX));
        let bytes = bytes.with_context(|| format!("cannot use {}", path.display()))?;
        ensure!(!bytes.is_empty(), "{} is empty", path.display());
        self.keep(kept, bytes)
    }

    /// Takes a file, and whatever was held for it, back.
    pub fn drop_kept(&mut self, kept: &'static Kept) {
        self.staged.retain(|it| it.of != kept);
        for key in std::iter::once(kept.key).chain(kept.clear) {
            if self.text(kept.section, key).is_some() {
                self.set(kept.section, key, "");
            }
        }
    }

    pub fn has_kept(&self, kept: &Kept) -> bool {
        self.staged.iter().any(|it| it.of == kept) || self.text(kept.section, kept.key).is_some()
    }

    fn venues(&self) -> impl Iterator<Item = &Table> {
        self.document.get("venue").and_then(Item::as_array_of_tables).into_iter().flatten()
    }

    /// The time zone that the file gives a venue; none where it has no such venue.
    pub fn zone_of(&self, venue: &str) -> Option<String> {
        let table = self.venues().find(|it| it.get("id").and_then(Item::as_str) == Some(venue))?;
        Some(table.get("time_zone").and_then(Item::as_str).unwrap_or("UTC").to_owned())
    }

    pub fn set_zone(&mut self, venue: &str, zone: &str) {
        let known = self.zone_of(venue);
        // Without a venue in the file it is in UTC anyway, and may be put by command.
        if known.as_deref() == Some(zone)
            || (known.is_none() && zone == "UTC" && self.venues().next().is_none())
        {
            return;
        }
        let mut changed = Table::new();
        changed.insert("id", toml_edit::value(venue));
        changed.insert("time_zone", toml_edit::value(zone));
        self.put_venue(&changed, false);
    }

    /// A venue by its id: `whole` in place of one that is there, or its keys over those.
    pub fn put_venue(&mut self, venue: &Table, whole: bool) {
        let id = venue.get("id").and_then(Item::as_str).unwrap_or_default().to_owned();
        let item =
            self.document.entry("venue").or_insert(Item::ArrayOfTables(ArrayOfTables::new()));
        if item.as_array_of_tables().is_none() {
            // `venue = [{…}]`, as nobody writes it but may.
            let tables = std::mem::take(item).into_array_of_tables().unwrap_or_default();
            *item = Item::ArrayOfTables(tables);
        }
        let Some(venues) = item.as_array_of_tables_mut() else { return };
        let known = venues.iter_mut().find(|it| it.get("id").and_then(Item::as_str) == Some(&id));
        if let Some(known) = known {
            if whole {
                known.clear();
            }
            for (key, value) in venue {
                known.insert(key, unplaced(value.clone()));
            }
        } else {
            let mut fresh = Table::new();
            for (key, value) in venue {
                fresh.insert(key, unplaced(value.clone()));
            }
            venues.push(fresh);
        }
    }

    /// The settings that would result, every file read from memory.
    pub fn settings(&self) -> anyhow::Result<Settings> {
        use std::os::fd::AsRawFd as _;
        let mut document = self.document.clone();
        for it in &self.staged {
            let path = format!("/proc/self/fd/{}", it.memory.as_raw_fd());
            put(&mut document, it.of.section, it.of.key, path);
        }
        self.check(&document.to_string())
    }

    fn check(&self, text: &str) -> anyhow::Result<Settings> {
        let raw = config::load::parse(text, &BTreeMap::new())?;
        Ok(config::check(&raw, &self.folder)?)
    }

    /// Writes the files, then the configuration; its rename is what counts.
    pub fn commit(mut self, owner: Option<Owner>) -> anyhow::Result<Committed> {
        fs::create_dir_all(&self.folder)
            .with_context(|| format!("cannot make {}", self.folder.display()))?;
        let mut writer = Writer::new(&self.folder, owner)?;
        let before = self.before.clone().unwrap_or_default();
        let before = before.parse::<DocumentMut>().unwrap_or_default();
        let mut files = Vec::new();
        for it in std::mem::take(&mut self.staged) {
            let (place, name) = self.place_of(&it, &before);
            let path = place.join(&name);
            if !holds(&path, &it.bytes) {
                let folder = if it.of.secret { Some(SECRETS) } else { None };
                writer.write(folder, &name, &it.bytes, it.of.secret)?;
            }
            let relative = path.strip_prefix(&self.folder).unwrap_or(&path).display().to_string();
            put(&mut self.document, it.of.section, it.of.key, relative);
            if it.of.secret {
                files.push(path);
            }
        }
        let text = self.document.to_string();
        self.check(&text).context("with the files in their places it cannot be used")?;
        let changed = self.before.as_deref() != Some(&text);
        if changed {
            Writer::replace(&self.path, text.as_bytes())?;
        }
        writer.keep();
        self.clear_away();
        Ok(Committed { changed: changed || !files.is_empty(), files })
    }

    /// Secrets that nothing names any more, and what one that was killed has left.
    fn clear_away(&self) {
        for kept in ALL_KEPT.iter().filter(|it| it.secret) {
            for name in names(kept) {
                let path = self.folder.join(SECRETS).join(&name);
                let named = self
                    .text(kept.section, kept.key)
                    .is_some_and(|it| self.folder.join(it) == path);
                if !named {
                    fs::remove_file(&path).ok();
                }
                fs::remove_file(files::beside(&path)).ok();
            }
        }
    }

    /// Where a file goes: never over one that the configuration on the disk names, since that must
    /// hold until the new one is there.
    fn place_of(&self, staged: &Staged, before: &DocumentMut) -> (PathBuf, String) {
        let place = if staged.of.secret { self.folder.join(SECRETS) } else { self.folder.clone() };
        let named = before
            .get(staged.of.section)
            .and_then(|it| it.get(staged.of.key))
            .and_then(Item::as_str);
        let named = named.map(|it| self.folder.join(it));
        let [first, second] = names(staged.of);
        let in_use = named.as_ref() == Some(&place.join(&first))
            && !holds(&place.join(&first), &staged.bytes);
        (place, if in_use { second } else { first })
    }
}

fn names(kept: &Kept) -> [String; 2] {
    [kept.name.to_owned(), format!("{}-2", kept.name)]
}

fn holds(path: &Path, bytes: &[u8]) -> bool {
    let length = fs::symlink_metadata(path).map(|it| it.len());
    length.is_ok_and(|it| it == bytes.len() as u64) && fs::read(path).is_ok_and(|it| it == bytes)
}

/// `set` for a document of its own.
fn put(document: &mut DocumentMut, section: &str, key: &str, text: String) {
    if let Some(table) =
        document.entry(section).or_insert(Item::Table(Table::new())).as_table_like_mut()
    {
        match table.get_mut(key).and_then(Item::as_value_mut) {
            Some(old) if old.as_str() == Some(&text) => {}
            Some(old) => {
                let decor = old.decor().clone();
                *old = text.into();
                *old.decor_mut() = decor;
            }
            None => {
                table.insert(key, toml_edit::value(text));
            }
        }
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::String(a), Value::String(b)) => a.value() == b.value(),
        (Value::Integer(a), Value::Integer(b)) => a.value() == b.value(),
        (Value::Boolean(a), Value::Boolean(b)) => a.value() == b.value(),
        (a, b) => a.to_string().trim() == b.to_string().trim(),
    }
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    let file = match bounded_file::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mut text = String::new();
    file.take(BYTES_MAX + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {}", path.display()))?;
    if text.len() as u64 > BYTES_MAX {
        bail!("{} is too large for a configuration", path.display());
    }
    Ok(Some(text))
}

/// Tables from another file remember where they stood in it, and would be written there.
fn unplaced(mut item: Item) -> Item {
    match &mut item {
        Item::Table(table) => unplace(table),
        Item::ArrayOfTables(tables) => tables.iter_mut().for_each(unplace),
        Item::None | Item::Value(_) => {}
    }
    item
}

fn unplace(table: &mut Table) {
    table.set_position(None);
    for (_, item) in table.iter_mut() {
        *item = unplaced(std::mem::take(item));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn draft(text: &str) -> (tempfile::TempDir, Draft) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        let draft = Draft::load(&path).unwrap();
        (dir, draft)
    }

    fn written(dir: &tempfile::TempDir) -> String {
        fs::read_to_string(dir.path().join("config.toml")).unwrap()
    }

    #[test]
    fn draft_changes_keys_and_keeps_comments() {
        let text = "# ours\n[device]\nsite = 'hq'   # the house\nname=\"door-1\" # old\n\n[log]\nlevel = \"warn\"\n";
        let (dir, mut draft) = draft(text);
        draft.set("device", "site", "hq");
        draft.set("device", "name", "door-2");
        draft.set("mqtt", "host", "broker");
        draft.set_zone("main", "Europe/Berlin");
        draft.commit(None).unwrap();
        let expected = text.replace("\"door-1\"", "\"door-2\"")
            + "\n[mqtt]\nhost = \"broker\"\n\n[[venue]]\nid = \"main\"\ntime_zone = \"Europe/Berlin\"\n";
        assert_eq!(written(&dir), expected);
    }

    #[test]
    fn shipped_file_changes_only_answered_lines() {
        let (dir, mut draft) = draft(SHIPPED);
        draft.set("device", "site", "hq");
        draft.set("camera", "source", "v4l2");
        draft.set("mqtt", "port", 8883);
        draft.set_zone("main", "UTC");
        draft.commit(None).unwrap();
        let changed: Vec<_> = written(&dir)
            .lines()
            .zip(SHIPPED.lines())
            .filter(|(a, b)| a != b)
            .map(|it| it.0.to_owned())
            .collect();
        assert_eq!(changed, ["site = \"hq\"", "source = \"v4l2\"", "port = 8883"]);
    }

    #[test]
    fn secrets_move_into_files_on_commit() {
        let (dir, mut draft) = draft("[mqtt]\nhost = \"b\"\nuser = \"u\"\npassword = \"first\"\n");
        assert!(draft.settings().unwrap().mqtt.unwrap().credentials.unwrap().password == "first");
        draft.set("log", "level", "warn");
        draft.commit(None).unwrap();
        let file = |name: &str| fs::read_to_string(dir.path().join(SECRETS).join(name));
        assert!(!written(&dir).contains("first") && file("mqtt_password").unwrap() == "first");
        let mode = fs::metadata(dir.path().join(SECRETS).join("mqtt_password"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        // Another one does not go over that which the file names.
        let mut draft = Draft::load(&dir.path().join("config.toml")).unwrap();
        draft.keep(&PASSWORD, b"second".to_vec()).unwrap();
        assert!(draft.settings().unwrap().mqtt.unwrap().credentials.unwrap().password == "second");
        draft.commit(None).unwrap();
        assert!(written(&dir).contains("secrets/mqtt_password-2"));
        assert!(file("mqtt_password-2").unwrap() == "second" && file("mqtt_password").is_err());
        // The same again changes nothing.
        let before = written(&dir);
        let mut draft = Draft::load(&dir.path().join("config.toml")).unwrap();
        draft.keep(&PASSWORD, b"second".to_vec()).unwrap();
        draft.commit(None).unwrap();
        assert_eq!(
            written(&dir).matches("mqtt_password").count(),
            before.matches("mqtt_password").count()
        );
    }

    #[test]
    fn invalid_draft_changes_no_file() {
        let text = "[device]\nsite = \"hq\"\n";
        let (dir, mut draft) = draft(text);
        draft.keep(&PASSWORD, b"secret".to_vec()).unwrap();
        draft.set("mqtt", "host", "b"); // A password without a user.
        assert!(draft.settings().is_err());
        assert!(draft.commit(None).is_err());
        assert_eq!(written(&dir), text);
        assert!(fs::read_dir(dir.path().join(SECRETS)).map_or(true, |mut it| it.next().is_none()));
    }

    #[test]
    fn invalid_configuration_is_not_edited() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, "[device]\nsight = \"hq\"\n").unwrap();
        assert!(Draft::load(&path).err().unwrap().to_string().contains("sight"));
    }
}

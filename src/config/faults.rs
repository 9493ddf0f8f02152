//! All faults of a configuration at once, each with its line, key, value and remedy.
//!
//! Each key is read by itself, so that one fault hides no other. What can be read is then checked
//! as a whole, again and again, each time without the key that was found impossible.
//!
//! Invariant: the value of a key that may hold a secret is never shown, and no line of the file is.

use std::collections::BTreeMap;
use std::path::Path;

use toml::{Table, Value};
use toml_edit::{Document, Item, TableLike};

use crate::config::check;
use crate::config::checks::{ConfigError, ConfigFault, did_you_mean};
use crate::config::environment::override_key;
use crate::config::raw::RawConfig;
use crate::error_chain::error_chain;

/// More are not listed: the file is of another program.
const FAULTS_MAX: usize = 50;
/// A longer value is cut.
const SHOWN_CHARS_MAX: usize = 60;
/// Keys whose values are, or could by mistake be, secrets.
const SECRETS: [(&str, &str); 5] = [
    ("mqtt", "password"),
    ("mongo", "uri"),
    ("commands", "trusted_keys"),
    ("camera", "url"),
    ("camera", "command"),
];

/// Finds all faults of a configuration of which one is known.
pub(super) fn find_all(
    text: &str,
    folder: &Path,
    environment: &BTreeMap<String, String>,
) -> Vec<ConfigFault> {
    // Windows' editors put a mark before the text.
    let text = text.trim_start_matches('\u{feff}');
    let document = match Document::parse(text) {
        Ok(document) => document,
        Err(error) => {
            let line = error.span().map(|span| line_at(text, span.start));
            return vec![ConfigFault { line, text: format!("is not TOML: {}", error.message()) }];
        }
    };
    let mut search = Search {
        text,
        document,
        faults: Vec::new(),
        table: default_table(),
        has_removed_venue: false,
    };
    search.read_keys();
    search.read_environment(environment);
    search.check_values(folder);
    search.faults.truncate(FAULTS_MAX);
    search.faults.sort_by_key(|it| it.line.unwrap_or(usize::MAX));
    search.faults
}

struct Search<'a> {
    text: &'a str,
    document: Document<&'a str>,
    faults: Vec<ConfigFault>,
    /// The defaults, with those keys of the document that can be read.
    table: Table,
    /// Whether a venue was left out because of a fault.
    has_removed_venue: bool,
}

fn default_table() -> Table {
    Table::try_from(RawConfig::default()).expect("the raw configuration has plain values")
}

impl Search<'_> {
    fn read_keys(&mut self) {
        let defaults = default_table();
        let root = self.document.as_table().clone();
        for (section, item) in &root {
            let line = root.key(section).and_then(|it| self.line_of(it.span()));
            match (defaults.get(section), item) {
                (Some(Value::Table(known)), item) if item.is_table_like() => {
                    let table = item.as_table_like().expect("just looked at");
                    self.read_section(section, known, table);
                }
                (Some(Value::Table(_)), _) => {
                    self.add(line, format!("{section} must be a section: [{section}]"));
                }
                (Some(_), Item::ArrayOfTables(entries)) => {
                    let entries: Vec<_> =
                        entries.iter().map(|it| (it.clone(), it.span())).collect();
                    self.read_entries(section, &entries);
                }
                (Some(_), _) => self.add(line, format!("{section} must be a list: [[{section}]]")),
                (None, item) => {
                    let sections = defaults.keys().map(String::as_str);
                    let hint = did_you_mean(section, sections);
                    let what = if item.is_table_like() || item.is_array_of_tables() {
                        format!("there is no section [{section}]{hint}")
                    } else {
                        format!("the key {section} stands before any section")
                    };
                    self.add(line, what);
                }
            }
        }
    }

    fn read_section(&mut self, section: &str, known: &Table, table: &dyn TableLike) {
        for (key, item) in table.iter() {
            let line = table.key(key).and_then(|it| self.line_of(it.span()));
            let Some(default) = known.get(key) else {
                let hint = did_you_mean(key, known.keys().map(String::as_str));
                self.add(line, format!("[{section}] has no key {key}{hint}"));
                continue;
            };
            let Some(written) = item.as_value().and_then(toml_edit::Value::span) else {
                self.add(line, format!("[{section}] {key} must be a value, not a section"));
                continue;
            };
            let written = &self.text[written];
            match toml::from_str::<RawConfig>(&format!("[{section}]\n{key} = {written}")) {
                Ok(_) => {
                    let value = toml::from_str::<Table>(&format!("it = {written}"));
                    let value = value.ok().and_then(|mut it| it.remove("it"));
                    if let (Some(value), Some(Value::Table(keys))) =
                        (value, self.table.get_mut(section))
                    {
                        keys.insert(key.to_owned(), value);
                    }
                }
                Err(error) => {
                    let why = rephrase(error.message(), default);
                    let shown = shown_value(section, key, written);
                    self.add(line, format!("[{section}] {key}{shown} {why}"));
                }
            }
        }
    }

    /// Reads the tables of a list, each by itself.
    fn read_entries(
        &mut self,
        section: &str,
        entries: &[(toml_edit::Table, Option<std::ops::Range<usize>>)],
    ) {
        let mut read = Vec::new();
        for (at, (_, span)) in entries.iter().enumerate() {
            let start = span.as_ref().map_or(0, |it| it.start);
            let next = entries.get(at + 1).and_then(|it| it.1.as_ref()).map(|it| it.start);
            let end = next.unwrap_or(self.text.len());
            // Up to the next one, with the tables that belong to it, and without those behind it.
            let part = own_part(&self.text[start..end], section);
            match toml::from_str::<Table>(part).map(Table::try_into::<RawConfig>) {
                Ok(Ok(_)) => {
                    let table = toml::from_str::<Table>(part).unwrap_or_default();
                    if let Some(Value::Array(list)) = table.get(section) {
                        read.extend(list.iter().cloned());
                    }
                }
                _ => {
                    if let Err(error) = toml::from_str::<RawConfig>(part) {
                        let inside = error.span().map_or(0, |it| it.start);
                        let line = Some(line_at(self.text, start + inside));
                        let why = rephrase(error.message(), &Value::Table(Table::new()));
                        self.add(line, format!("[[{section}]] {why}"));
                    }
                }
            }
        }
        self.table.insert(section.to_owned(), Value::Array(read));
    }

    fn read_environment(&mut self, environment: &BTreeMap<String, String>) {
        for (name, value) in environment {
            let before = self.table.clone();
            let outcome = override_key(&mut self.table, name, value).and_then(|()| {
                self.table.clone().try_into::<RawConfig>().map(drop).map_err(|error| {
                    let why = format!("cannot be used: {}", rephrase(error.message(), &"".into()));
                    ConfigError::Environment { name: name.clone(), why }
                })
            });
            if let Err(error) = outcome {
                self.table = before;
                self.add(None, error.to_string());
            }
        }
    }

    /// Checks what could be read, until nothing is found any more.
    fn check_values(&mut self, folder: &Path) {
        for _ in 0..FAULTS_MAX {
            let Ok(raw) = self.table.clone().try_into::<RawConfig>() else { return };
            let Err(error) = check(&raw, folder) else { return };
            let Some(name) = error.key() else {
                self.add(None, error_chain(&error));
                return;
            };
            let (section, key) = split_key(name);
            if section == "attendance" && key == "venue" && self.has_removed_venue {
                // It may be one of those that were found impossible.
                self.table.insert("venue".to_owned(), Value::Array(Vec::new()));
                continue;
            }
            let text = error_chain(&error);
            let ids: Vec<&str> = match section {
                "venue" => raw.venue.iter().map(|it| it.id.as_str()).collect(),
                "webhook" => raw.webhook.iter().map(|it| it.name.as_str()).collect(),
                _ => Vec::new(),
            };
            let entry = ids.iter().rposition(|id| text.contains(&format!("{id:?}")));
            let is_reset = if let Some(at) = entry {
                self.add(self.line_of_entry(section, ids[at]), text);
                self.remove_entry(section, at)
            } else {
                self.add(self.line_of_key(section, key), text);
                self.reset(section, key)
            };
            if !is_reset {
                return;
            }
        }
    }

    /// Puts a key back to its default or, if that is what it has, its section. Returns whether
    /// anything changed.
    fn reset(&mut self, section: &str, key: &str) -> bool {
        let defaults = default_table();
        let before = self.table.clone();
        if let (Some(Value::Table(keys)), Some(default)) =
            (self.table.get_mut(section), defaults.get(section).and_then(|it| it.get(key)))
        {
            keys.insert(key.to_owned(), default.clone());
        }
        if self.table == before
            && let Some(default) = defaults.get(section)
        {
            self.table.insert(section.to_owned(), default.clone());
        }
        self.table != before
    }

    fn remove_entry(&mut self, section: &str, at: usize) -> bool {
        self.has_removed_venue |= section == "venue";
        match self.table.get_mut(section) {
            Some(Value::Array(list)) if at < list.len() => {
                list.remove(at);
                true
            }
            _ => false,
        }
    }

    fn line_of_key(&self, section: &str, key: &str) -> Option<usize> {
        let table = self.document.get(section)?.as_table_like()?;
        self.line_of(table.key(key)?.span())
    }

    /// The last entry of this id or name: of two with the same, the second is at fault.
    fn line_of_entry(&self, section: &str, id: &str) -> Option<usize> {
        let entries = self.document.get(section)?.as_array_of_tables()?;
        let key = if section == "venue" { "id" } else { "name" };
        let is_meant = |it: &&toml_edit::Table| it.get(key).and_then(Item::as_str) == Some(id);
        self.line_of(entries.iter().filter(is_meant).last()?.span())
    }

    fn line_of(&self, span: Option<std::ops::Range<usize>>) -> Option<usize> {
        span.map(|it| line_at(self.text, it.start))
    }

    fn add(&mut self, line: Option<usize>, text: String) {
        let fault = ConfigFault { line, text };
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }
}

/// Returns the beginning of a text that belongs to this list: up to a section with another name.
fn own_part<'a>(text: &'a str, section: &str) -> &'a str {
    let mut end = 0;
    for line in text.split_inclusive('\n') {
        let name = line.trim_start().trim_start_matches('[');
        if line.trim_start().starts_with('[') && !name.trim_start().starts_with(section) {
            break;
        }
        end += line.len();
    }
    &text[..end]
}

/// `[mqtt] host` → its section and its key.
fn split_key(name: &str) -> (&str, &str) {
    let (section, key) = name.split_once(' ').unwrap_or((name, ""));
    (section.trim_matches(['[', ']']), key)
}

fn line_at(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|it| *it == b'\n').count() + 1
}

fn shown_value(section: &str, key: &str, written: &str) -> String {
    if SECRETS.contains(&(section, key)) {
        return String::new();
    }
    let first = written.lines().next().unwrap_or_default();
    let cut: String = first.chars().take(SHOWN_CHARS_MAX).collect();
    let more = if cut.len() < written.trim_end().len() { "…" } else { "" };
    format!(" = {cut}{more}:")
}

/// Puts the reader's message into words without its types.
fn rephrase(message: &str, default: &Value) -> String {
    let kind = match default {
        Value::Integer(_) => "a whole number",
        Value::Float(_) => "a number",
        Value::Boolean(_) => "true or false",
        Value::Array(_) => "a list: […]",
        Value::Table(_) => "",
        _ => "a text in quotes",
    };
    let expected = message.rsplit_once("expected ").map(|(_, it)| it.trim());
    if let Some(rest) = message.strip_prefix("unknown variant ") {
        let names: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        let Some((given, allowed)) = names.split_first() else { return message.to_owned() };
        let hint = did_you_mean(given, allowed.iter().copied());
        return format!("\"{given}\" is none of \"{}\"{hint}", allowed.join("\", \""));
    }
    if let Some(rest) = message.strip_prefix("unknown field ") {
        let names: Vec<&str> = rest.split('`').skip(1).step_by(2).collect();
        let Some((given, allowed)) = names.split_first() else { return message.to_owned() };
        return format!("has no key {given}{}", did_you_mean(given, allowed.iter().copied()));
    }
    let most = match expected {
        Some("u8") => ", 0 to 255",
        Some("u16") => ", 0 to 65535",
        Some("u32") => ", 0 to 4294967295",
        Some("usize" | "u64") => ", 0 or more",
        _ => "",
    };
    match expected {
        Some("a duration") => "must be a duration like \"10s\", \"5m\" or \"1h\"".to_owned(),
        Some("an array of length 4") => "must be a list of 4 numbers".to_owned(),
        _ if kind.is_empty() => message.replace('`', "\""),
        _ if message.starts_with("invalid ") => format!("must be {kind}{most}"),
        _ => format!("must be {kind}: {}", message.replace('`', "\"")),
    }
}

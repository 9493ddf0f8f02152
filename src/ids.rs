//! Identifiers and names that are valid by construction: subjects, sites, devices, venues and
//! requests.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};
use unicode_normalization::UnicodeNormalization as _;

/// Where a message comes from: a device of a site.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Origin {
    pub site: String,
    pub device: String,
}

/// A subject's id: `[A-Za-z0-9._-]{1,64}`, so that it can stand in a topic, a file name or a
/// column.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct SubjectId(Box<str>);

impl SubjectId {
    pub fn new(id: &str) -> Result<Self, IdError> {
        check_id(id)?;
        Ok(Self(id.into()))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SubjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SubjectId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&id).map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an id is 1 to 64 of the characters A-Z a-z 0-9 . _ - ({why})")]
pub struct IdError {
    why: String,
}

/// The rule for every id of the project (subjects, venues, sites, devices, requests).
pub fn check_id(id: &str) -> Result<(), IdError> {
    let fault = |why: String| Err(IdError { why });
    if id.is_empty() {
        return fault("it is empty".into());
    }
    if id.len() > 64 {
        return fault(format!("it has {} bytes", id.len()));
    }
    match id.chars().find(|c| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))) {
        Some(other) => fault(format!("it has a {other:?}")),
        None => Ok(()),
    }
}

/// A person's name: free text of 1 to 200 characters without control characters. Never part of a
/// topic, never logged.
///
/// Names are composed (NFC) and without what cannot be seen, on every way in, so that what looks the
/// same is the same: macOS writes `ü` as `u` and a mark, and copied text has spaces that do not break
/// and marks of direction.
#[derive(Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Name(Box<str>);

const NAME_LENGTH_MAX: usize = 200;

impl Name {
    pub fn new(name: &str) -> Result<Self, NameError> {
        // Before it is composed: what is this long cannot become short enough.
        let length = name.chars().count();
        if length > 20 * NAME_LENGTH_MAX {
            return Err(NameError { why: format!("it has {length}") });
        }
        let name: String = visible(name).nfc().collect();
        let name = name.trim();
        let why = match name.chars().count() {
            0 => "it is empty".to_owned(),
            length if length > NAME_LENGTH_MAX => format!("it has {length}"),
            _ if name.chars().any(char::is_control) => "it has a control character".to_owned(),
            _ if name.contains(char::REPLACEMENT_CHARACTER) => {
                "a character of it was lost: send it as UTF-8".to_owned()
            }
            _ => return Ok(Self(name.into())),
        };
        Err(NameError { why })
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Removes what cannot be seen, and makes every space the usual one.
fn visible(name: &str) -> String {
    let mut visible = String::with_capacity(name.len());
    let mut characters = name.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            // Joiners change how some scripts are written, between two letters.
            '\u{200C}' | '\u{200D}' => {
                let is_between = |it: Option<char>| it.is_some_and(|it| it > '\u{2FF}');
                if is_between(visible.chars().next_back()) && is_between(characters.peek().copied())
                {
                    visible.push(character);
                }
            }
            // Soft hyphen, marks and overrides of direction, zero width, byte order mark, tags.
            '\u{AD}'
            | '\u{61C}'
            | '\u{180E}'
            | '\u{200B}'..='\u{200F}'
            | '\u{202A}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}'
            | '\u{FEFF}'
            | '\u{FFF9}'..='\u{FFFB}'
            | '\u{E0000}'..='\u{E007F}' => {}
            space if space.is_whitespace() && !space.is_control() => visible.push(' '),
            other => visible.push(other),
        }
    }
    visible
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Name(…)")
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::new(&name).map_err(serde::de::Error::custom)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a name is 1 to {NAME_LENGTH_MAX} characters without control characters ({why})")]
pub struct NameError {
    why: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_look_the_same_are_the_same() {
        for (written, expected) in [
            ("Zo\u{eb}", "Zo\u{eb}"),
            ("Zoe\u{308}", "Zo\u{eb}"),
            ("\u{feff}Anna\u{a0}Maria\u{200b} ", "Anna Maria"),
            ("\u{202e}Max\u{202c}", "Max"),
            ("Ann\u{ad}a\u{200d}", "Anna"),
            ("\u{ac00}\u{1112}", "\u{ac00}\u{1112}"),
            ("\u{1112}\u{1161}\u{11ab}", "\u{d55c}"),
            // A joiner between two letters of its script is how the name is written.
            ("\u{6cc}\u{200c}\u{6a9}", "\u{6cc}\u{200c}\u{6a9}"),
        ] {
            let name = Name::new(written).unwrap();
            assert_eq!(name.as_str(), expected, "{written:?}");
            assert_eq!(Name::new(name.as_str()).unwrap(), name, "it stays as it is");
        }
    }

    #[test]
    fn impossible_names_are_refused_with_reason() {
        for (name, expected) in [
            (String::new(), "empty"),
            ("\u{200b}\u{a0}".into(), "empty"),
            ("a\nb".into(), "control"),
            ("J\u{fffd}rgen".into(), "UTF-8"),
            ("x".repeat(201), "201"),
            ("x".repeat(100_000), "100000"),
        ] {
            let why = Name::new(&name).unwrap_err().to_string();
            assert!(why.contains(expected), "{why}");
        }
        assert!(Name::new(&"e\u{308}".repeat(200)).is_ok(), "200 when composed");
    }
}

//! The record as comma-separated values (RFC 4180), for the command line and HTTP alike.

use std::borrow::Cow;

use crate::attend::venue::Venue;
use crate::wire::reply::AttendanceEntry;

/// Defuses a `=`, `+`, `-` or `@` that begins a cell, also in the wide form of East Asian keyboards: a
/// name must not become a formula in a spreadsheet. A program that separates by other characters than
/// this file begins a cell behind each of them; quotes and spaces before the formula do not count.
pub fn defused(text: &str) -> Cow<'_, str> {
    let begins_formula = |it: char| {
        matches!(
            it,
            '=' | '+' | '-' | '@' | '\t' | '\r' | '\u{FF1D}' | '\u{FF0B}' | '\u{FF0D}' | '\u{FF20}'
        )
    };
    let separates = |it: char| matches!(it, ';' | ',' | '\t' | '|' | '\n' | '\r');
    let mut is_at_begin = true;
    let mut defused = String::new();
    for (at, here) in text.char_indices() {
        if begins_formula(here) && is_at_begin {
            if defused.is_empty() {
                defused.push_str(&text[..at]);
            }
            defused.push('\'');
            defused.push(here);
        } else if !defused.is_empty() {
            defused.push(here);
        }
        is_at_begin = separates(here) || (is_at_begin && matches!(here, '"' | ' '));
    }
    if defused.is_empty() { text.into() } else { defused.into() }
}

/// What makes spreadsheets read a file as UTF-8 (a byte order mark).
pub const UTF8_MARK: &str = "\u{feff}";

/// As long as most lines are; longer ones are written in pieces.
const LINE_BYTES: usize = 256;

/// Returns one line, with its end.
pub fn line(fields: &[impl AsRef<str>]) -> String {
    separated(fields, b',')
}

/// Returns one line with another separator between the fields.
pub fn separated(fields: &[impl AsRef<str>], separator: u8) -> String {
    let mut writer = csv::WriterBuilder::new()
        .delimiter(separator)
        .buffer_capacity(LINE_BYTES)
        .from_writer(Vec::new());
    writer
        .write_record(fields.iter().map(|it| defused(it.as_ref()).into_owned()))
        .expect("memory can be written to");
    let bytes = writer.into_inner().expect("memory can be written to");
    String::from_utf8(bytes).expect("the fields are UTF-8")
}

/// With its offset, so that it is one moment: the wall clock at the venue.
pub fn local(venue: &Venue, wall_ms: i64) -> String {
    let Ok(at) = jiff::Timestamp::from_millisecond(wall_ms) else {
        return "invalid".into();
    };
    at.to_zoned(venue.zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// The heading of [`attendance`].
pub const ATTENDANCE: [&str; 13] = [
    "seq",
    "occurred_at",
    "clock",
    "venue",
    "direction",
    "status",
    "subject",
    "name",
    "session",
    "local_time",
    "superseded_by",
    "date",
    "time",
];

/// The separators that may be chosen, with their names.
pub const SEPARATORS: [(&str, u8); 4] =
    [("comma", b','), ("semicolon", b';'), ("tab", b'\t'), ("bar", b'|')];

pub fn attendance(venue: &str, local: &str, entry: &AttendanceEntry) -> Vec<String> {
    let (id, name) = whose(entry);
    vec![
        entry.seq.to_string(),
        entry.occurred_at.clone(),
        entry.clock.as_str().into(),
        venue.into(),
        entry.direction.as_str().into(),
        entry.status.as_str().into(),
        id,
        name,
        entry.session.clone().unwrap_or_default(),
        local.into(),
        entry.superseded_by.map_or_else(String::new, |id| id.to_string()),
        local.get(..10).unwrap_or_default().to_owned(),
        local.get(11..19).unwrap_or_default().to_owned(),
    ]
}

/// What stands for the id of a subject that was erased.
pub const ERASED: &str = "(erased)";

/// Id and name of the subject.
pub fn whose(entry: &AttendanceEntry) -> (String, String) {
    let erased = || (ERASED.to_owned(), String::new());
    entry
        .subject
        .as_ref()
        .map_or_else(erased, |it| (it.id.to_string(), it.name.as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_quoted_and_formulas_defused() {
        let written = line(&[
            "plain",
            "",
            "a,\"b\"",
            "=1+1",
            "\rx",
            "two\nlines",
            " space ",
            "'",
            "é",
            "#",
            "a\\b",
        ]);
        assert_eq!(line(&["x;=1+1", "a\t@b", "a-b"]), "x;'=1+1,a\t'@b,a-b\n");
        assert_eq!(separated(&["a;b", "c"], b';'), "\"a;b\";c\n");
        // Opened with another separator, quotes within a line are not always quotes.
        for (name, expected) in [
            ("x;\"=1+1\"", "x;\"'=1+1\""),
            ("\"=1\"", "\"'=1\""),
            (" =1", " '=1"),
            ("\u{FF1D}1", "'\u{FF1D}1"),
            ("a|\u{FF20}b", "a|'\u{FF20}b"),
            ("\"a\"-b", "\"a\"-b"),
            ("a =b", "a =b"),
        ] {
            assert_eq!(defused(name), expected);
        }
        let expected = "plain,,\"a,\"\"b\"\"\",'=1+1,\"'\rx\",\"two\nlines\", space ,',é,#,a\\b\n";
        assert_eq!(written, expected);
    }
}

//! The record as comma-separated values (RFC 4180), for the command line and HTTP alike.

use crate::attend::venue::Venue;
use crate::record::command::answer::AttendanceEntry;

/// A field of a CSV file (RFC 4180), quoted where it must be. A leading `=`, `+`, `-` or `@` is defused: a name must not
/// become a formula in somebody's spreadsheet.
pub fn field(text: &str) -> String {
    let text = if text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        format!("'{text}")
    } else {
        text.to_owned()
    };
    if text.contains(['"', ',', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text
    }
}

/// One line, with its end.
pub fn line(fields: &[impl AsRef<str>]) -> String {
    fields.iter().map(|it| field(it.as_ref())).collect::<Vec<_>>().join(",") + "\n"
}

pub fn table(heading: &[&str], rows: &[Vec<String>]) -> String {
    rows.iter().fold(line(heading), |text, row| text + &line(row))
}

/// With its offset, so that it is one moment: the wall clock at the venue.
pub fn local(venue: &Venue, wall_ms: i64) -> String {
    let Ok(at) = jiff::Timestamp::from_millisecond(wall_ms) else {
        return "invalid".into();
    };
    at.to_zoned(venue.zone.clone()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
}

/// The heading of [`attendance`].
pub const ATTENDANCE: [&str; 11] = [
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
];

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
    ]
}

/// Id and name of whoever it was.
pub fn whose(entry: &AttendanceEntry) -> (String, String) {
    let erased = || ("(erased)".to_owned(), String::new());
    entry
        .subject
        .as_ref()
        .map_or_else(erased, |it| (it.id.to_string(), it.name.as_str().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_quoted_and_harmless() {
        assert_eq!(field("plain"), "plain");
        assert_eq!(field("a,\"b\""), "\"a,\"\"b\"\"\"");
        assert_eq!(field("=1+1"), "'=1+1");
    }
}

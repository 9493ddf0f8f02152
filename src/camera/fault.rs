//! Why a camera delivers nothing: the kind, which decides what to do about it, and a reason in an
//! operator's words for events, logs and `doctor`.
//!
//! Invariant: a reason is one short line without control characters, whatever a device, a program
//! or a server reported.

use strum::{EnumString, IntoStaticStr};

/// What is wrong, by what an operator does about it. The names are part of the health message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString, IntoStaticStr)]
#[strum(serialize_all = "snake_case")]
pub enum FaultKind {
    /// No camera is connected.
    Absent,
    /// The configured camera is not there.
    Missing,
    Denied,
    Busy,
    Unplugged,
    /// The USB port has too little bandwidth left.
    Bandwidth,
    /// The camera has no format that can be read.
    Format,
    NotCamera,
    /// Pictures come, and none of them can be read.
    Damaged,
    /// Nothing comes.
    Stalled,
    /// The camera or its driver reports an error.
    Failing,
    /// The program of a command is not installed.
    ProgramMissing,
    /// The program of a command may not be run.
    ProgramDenied,
    /// A command ended.
    CommandEnded,
    /// A command does not end.
    CommandStuck,
    /// What comes is no picture.
    NotPictures,
    /// A camera in the network does not answer.
    Unreachable,
    /// A camera in the network rejects user or password.
    Unauthorised,
    /// A camera in the network answers with something else than a stream of pictures.
    NoStream,
}

impl FaultKind {
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct CameraFault {
    pub kind: FaultKind,
    reason: String,
}

/// Long enough for a sentence and the last line of a program.
const REASON_CHARS_MAX: usize = 300;

impl CameraFault {
    pub fn new(kind: FaultKind, reason: impl AsRef<str>) -> Self {
        Self { kind, reason: clean_line(reason.as_ref(), REASON_CHARS_MAX) }
    }

    pub fn reason(&self) -> &str {
        &self.reason
    }
}

/// The text on one line, without control characters, cut off at so many characters.
pub fn clean_line(text: &str, chars_max: usize) -> String {
    let mut clean = String::new();
    let mut rest = text.chars();
    let mut length = 0;
    while let Some(c) = rest.next() {
        if c == '\u{1b}' {
            skip_escape_sequence(&mut rest);
            continue;
        }
        // Separators of lines and marks of direction reorder or break what stands beside them.
        let is_hidden = c.is_control()
            || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        let c = if c == '\t' { ' ' } else { c };
        if is_hidden && c != ' ' {
            continue;
        }
        if length == chars_max {
            clean.push('…');
            break;
        }
        clean.push(c);
        length += 1;
    }
    clean.trim().to_owned()
}

/// The colours of a terminal: `ESC [`, parameters, and a letter.
fn skip_escape_sequence(rest: &mut std::str::Chars<'_>) {
    let mut ahead = rest.clone();
    if ahead.next() != Some('[') {
        return;
    }
    *rest = ahead.clone();
    for c in ahead {
        if !matches!(c, '0'..='?' | ' '..='/' | '@'..='~') {
            return;
        }
        rest.next();
        if matches!(c, '@'..='~') {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::str::FromStr as _;

    use super::*;

    #[test]
    fn fault_kinds_have_stable_names() {
        assert_eq!(FaultKind::ProgramMissing.as_str(), "program_missing");
        assert_eq!(FaultKind::from_str("no_stream"), Ok(FaultKind::NoStream));
        assert!(FaultKind::from_str("streaming").is_err());
    }

    #[test]
    fn reason_is_one_short_clean_line() {
        let fault = |words: &str| CameraFault::new(FaultKind::Failing, words).to_string();
        assert_eq!(fault("a\r\nb\u{0}\u{7}c\td "), "abc d");
        assert_eq!(fault("\u{1b}[1;31mred\u{1b}[0m \u{1b}x \u{1b}[31"), "red x");
        assert_eq!(fault("a\u{2028}b\u{202e}c"), "abc");
        let long = fault(&"ü".repeat(1000));
        assert_eq!(long.chars().count(), REASON_CHARS_MAX + 1);
        assert!(long.ends_with('…'));
    }
}

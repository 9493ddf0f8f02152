//! The last line that a program wrote to standard error: the reason when it fails.
//!
//! Invariants: bounded memory whatever the program writes; no control characters; no part of a URL
//! but its scheme and host, because user, password, and on some cameras the path are secret.

use crate::camera::fault::clean_line;

/// A line is read so far; the rest of a longer one is ignored.
const LINE_BYTES_MAX: usize = 2048;
/// What is shown of it.
const SHOWN_CHARS_MAX: usize = 200;
/// A shorter secret would blank out ordinary words.
const SECRET_BYTES_MIN: usize = 3;

#[derive(Default)]
pub struct LastLine {
    present: Vec<u8>,
    is_cut: bool,
    last: String,
    /// Texts that are never shown.
    secrets: Vec<String>,
}

impl LastLine {
    pub fn hiding(secrets: Vec<String>) -> Self {
        Self { secrets, ..Self::default() }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        for byte in bytes {
            // Progress is written over itself with carriage returns.
            if matches!(byte, b'\n' | b'\r') {
                self.end_line();
            } else if self.present.len() < LINE_BYTES_MAX {
                self.present.push(*byte);
            } else {
                self.is_cut = true;
            }
        }
    }

    /// The last line that is not blank; empty if there was none.
    pub fn text(&mut self) -> &str {
        self.end_line();
        &self.last
    }

    fn end_line(&mut self) {
        let present = std::mem::take(&mut self.present);
        let mut line = String::from_utf8_lossy(&present).into_owned();
        if std::mem::take(&mut self.is_cut) {
            // The beginning of a URL that is cut off may be a password.
            line.truncate(line.rfind(char::is_whitespace).unwrap_or_default());
        }
        for secret in self.secrets.iter().filter(|it| it.len() >= SECRET_BYTES_MIN) {
            line = line.replace(secret.as_str(), "…");
        }
        let line = clean_line(&hide_urls(&line), SHOWN_CHARS_MAX);
        if !line.is_empty() {
            self.last = line;
        }
    }
}

/// Leaves scheme and host of every URL.
pub fn hide_urls(line: &str) -> String {
    let mut hidden = String::new();
    for word in line.split_inclusive(char::is_whitespace) {
        let Some((scheme, rest)) = word.split_once("://") else {
            hidden.push_str(word);
            continue;
        };
        hidden.push_str(scheme);
        hidden.push_str("://");
        let rest = match rest.matches('@').count() {
            0 => rest,
            1 => rest.split_once('@').map_or("", |(_, host)| host),
            // A password may hold the sign itself.
            _ => "…",
        };
        let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
        hidden.push_str(host);
        if host.len() < rest.len() {
            hidden.push_str("/… ");
        }
    }
    hidden
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last(text: &[u8]) -> String {
        let mut line = LastLine::hiding(vec!["hunter2".into(), "x".into()]);
        for part in text.chunks(3) {
            line.push(part);
        }
        line.text().to_owned()
    }

    #[test]
    fn last_line_is_kept_clean() {
        assert_eq!(last(b"first\nsecond\n\n  \n"), "second");
        assert_eq!(last(b"frame=1\rframe=2\rframe=3"), "frame=3");
        assert_eq!(last(b"\x1b[31mno camera\x07\x1b[0m\r\n"), "no camera");
        assert_eq!(last(b"\xFF\xFEbad"), "\u{FFFD}\u{FFFD}bad");
        assert_eq!(last(b""), "");
    }

    #[test]
    fn urls_are_shown_without_secrets() {
        for (line, shown) in [
            ("rtsp://a:b@h:554/s: refused", "rtsp://h:554/… refused"),
            ("[tcp] rtsp://192.0.2.4/user=admin&password=p", "[tcp] rtsp://192.0.2.4/…"),
            ("'http://a:p/w@h/x' failed", "'http://h/… failed"),
            ("rtsp://a:p@w@h/x", "rtsp://…"),
            ("rtsp://h: timed out", "rtsp://h: timed out"),
            ("password is hunter2!", "password is …!"),
            ("x stays", "x stays"),
        ] {
            assert_eq!(last(line.as_bytes()), shown);
        }
    }

    #[test]
    fn endless_line_is_bounded() {
        let mut line = LastLine::default();
        line.push(b"open ");
        line.push("a".repeat(100_000).as_bytes());
        assert!(line.present.len() <= LINE_BYTES_MAX);
        assert_eq!(line.text(), "open");
        let url = format!("{} rtsp://user:secret", "a".repeat(LINE_BYTES_MAX - 18));
        line.push(url.as_bytes());
        line.push(b"ret@host/x\n");
        assert!(!line.text().contains("secret"), "{}", line.text());
        line.push("ü".repeat(5000).as_bytes());
        line.push(b"\n");
        assert!(line.text().chars().count() <= SHOWN_CHARS_MAX + 1);
    }
}

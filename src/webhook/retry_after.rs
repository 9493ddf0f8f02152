//! How long a receiver asks us to wait: the header `Retry-After`, in seconds or as a date.

use std::time::Duration;

use http::HeaderMap;
use http::header::{DATE, RETRY_AFTER};
use jiff::fmt::rfc2822::DateTimeParser;

/// A receiver cannot stop deliveries for longer; a guess.
pub(super) const PAUSE_MAX: Duration = Duration::from_mins(15);

/// Returns the pause, at most [`PAUSE_MAX`]. A date is compared with that of the answer, since the
/// clocks may differ, and without one with `now_ms`.
pub(super) fn read(headers: &HeaderMap, now_ms: i64) -> Option<Duration> {
    let text = |name| headers.get(name)?.to_str().ok().map(str::trim);
    let asked = text(RETRY_AFTER)?;
    if !asked.is_empty() && asked.bytes().all(|it| it.is_ascii_digit()) {
        // Too large a number is a long time.
        let seconds = asked.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(PAUSE_MAX));
    }
    let date = |text: &str| {
        let time = DateTimeParser::new().relaxed_weekday(true).parse_timestamp(text).ok()?;
        Some(time.as_millisecond())
    };
    let now_ms = text(DATE).and_then(date).unwrap_or(now_ms);
    let pause_ms = date(asked)?.saturating_sub(now_ms).max(0) as u64;
    Some(Duration::from_millis(pause_ms).min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_bounded() {
        // Sun, 06 Nov 1994 08:49:37 GMT
        let now_ms = 784_111_777_000;
        for (asked, date, expected_s) in [
            ("0", "", Some(0)),
            (" 120 ", "", Some(120)),
            ("999999999999999999999999", "", Some(900)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", "", Some(60)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", "Sun, 06 Nov 1994 08:50:27 GMT", Some(10)),
            ("Sun, 06 Nov 1994 07:00:00 GMT", "", Some(0)),
            ("Sat, 06 Nov 2094 07:00:00 GMT", "", Some(900)),
            ("-1", "", None),
            ("", "", None),
            ("soon", "", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, asked.parse().unwrap());
            if !date.is_empty() {
                headers.insert(DATE, date.parse().unwrap());
            }
            let expected = expected_s.map(Duration::from_secs);
            assert_eq!(read(&headers, now_ms), expected, "{asked:?} {date:?}");
        }
        assert_eq!(read(&HeaderMap::new(), now_ms), None);
    }
}

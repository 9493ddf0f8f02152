//! The record of a person's consent: when it was given, to which version of the text, until when it
//! holds, and who recorded it.
//!
//! It has one form in commands, replies, events and the shared gallery. Times are RFC 3339 there and
//! milliseconds since 1970 here. Not here: what happens when a consent ends (`store`,
//! `app::maintenance`).

use serde::{Deserialize, Serialize};

use crate::clock::rfc3339;
use crate::ids::{IdError, Name, check_id};

/// How long before its end a consent is reported as ending: time to ask for it again.
pub const ENDING_MS: i64 = 30 * 86_400_000;

/// A consent, valid by construction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ConsentText", into = "ConsentText")]
pub struct Consent {
    given_ms: i64,
    text_version: Box<str>,
    valid_until_ms: Option<i64>,
    recorded_by: Name,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConsentError {
    #[error("given_at must not be before 1970")]
    TooEarly,
    #[error("valid_until must be after given_at")]
    Order,
    #[error("text_version is no id: {0}")]
    TextVersion(IdError),
    #[error("{0} is no RFC 3339 time with an offset")]
    Time(&'static str),
}

impl Consent {
    pub fn new(
        given_ms: i64,
        text_version: &str,
        valid_until_ms: Option<i64>,
        recorded_by: Name,
    ) -> Result<Self, ConsentError> {
        if given_ms < 0 {
            return Err(ConsentError::TooEarly);
        }
        if valid_until_ms.is_some_and(|it| it <= given_ms) {
            return Err(ConsentError::Order);
        }
        check_id(text_version).map_err(ConsentError::TextVersion)?;
        Ok(Self { given_ms, text_version: text_version.into(), valid_until_ms, recorded_by })
    }

    pub fn given_ms(&self) -> i64 {
        self.given_ms
    }

    pub fn text_version(&self) -> &str {
        &self.text_version
    }

    /// The first moment at which it holds no longer; `None`: until it is withdrawn.
    pub fn valid_until_ms(&self) -> Option<i64> {
        self.valid_until_ms
    }

    /// A person or an office, as the client named it.
    pub fn recorded_by(&self) -> &Name {
        &self.recorded_by
    }

    pub fn has_ended(&self, now_ms: i64) -> bool {
        self.valid_until_ms.is_some_and(|it| it <= now_ms)
    }

    /// Whether it ends within the next 30 days, or has ended.
    pub fn is_ending(&self, now_ms: i64) -> bool {
        self.has_ended(now_ms.saturating_add(ENDING_MS))
    }
}

/// As it is written.
#[derive(Serialize, Deserialize)]
struct ConsentText {
    given_at: String,
    text_version: String,
    #[serde(default)]
    valid_until: Option<String>,
    recorded_by: Name,
}

impl From<Consent> for ConsentText {
    fn from(it: Consent) -> Self {
        Self {
            given_at: rfc3339(it.given_ms),
            text_version: it.text_version.into(),
            valid_until: it.valid_until_ms.map(rfc3339),
            recorded_by: it.recorded_by,
        }
    }
}

impl TryFrom<ConsentText> for Consent {
    type Error = ConsentError;

    fn try_from(it: ConsentText) -> Result<Self, ConsentError> {
        let time = |key, text: &str| match text.parse::<jiff::Timestamp>() {
            Ok(time) if text.len() <= 64 => Ok(time.as_millisecond()),
            _ => Err(ConsentError::Time(key)),
        };
        let valid_until_ms = it.valid_until.map(|text| time("valid_until", &text)).transpose()?;
        Self::new(time("given_at", &it.given_at)?, &it.text_version, valid_until_ms, it.recorded_by)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{"given_at":"2026-11-23T07:58:03.412Z","text_version":"2026-1","valid_until":"2027-11-23T00:00:00.000Z","recorded_by":"Front desk"}"#;

    #[test]
    fn consent_round_trips_through_its_text() {
        let consent: Consent = serde_json::from_str(TEXT).unwrap();
        assert_eq!(consent.given_ms(), 1_795_420_683_412);
        assert_eq!(serde_json::to_string(&consent).unwrap(), TEXT);
        let open = Consent { valid_until_ms: None, ..consent };
        let text = serde_json::to_string(&open).unwrap();
        assert!(text.contains(r#""valid_until":null"#), "{text}");
        assert_eq!(serde_json::from_str::<Consent>(&text).unwrap(), open);
        assert!(!open.has_ended(i64::MAX) && !open.is_ending(i64::MAX));
    }

    #[test]
    fn consent_ends_at_its_moment() {
        let by = Name::new("desk").unwrap();
        let consent = Consent::new(0, "v1", Some(ENDING_MS + 1000), by).unwrap();
        assert!(!consent.is_ending(999) && consent.is_ending(1000));
        assert!(!consent.has_ended(ENDING_MS + 999) && consent.has_ended(ENDING_MS + 1000));
    }

    #[test]
    fn impossible_consent_is_rejected() {
        for (from, to) in [
            ("2026-1\"", "2026/1\""),
            ("2026-11-23T07:58:03.412Z", "1969-12-31T23:59:59Z"),
            ("2026-11-23T07:58:03.412Z", "2027-11-23T00:00:00Z"),
            ("2026-11-23T07:58:03.412Z", "2026-11-23"),
            ("Front desk", ""),
        ] {
            let text = TEXT.replace(from, to);
            assert!(serde_json::from_str::<Consent>(&text).is_err(), "{text}");
        }
    }
}

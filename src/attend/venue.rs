//! Venues: as they are written (configuration, commands, database) and as they are checked.

use std::time::Duration;

use jiff::ToSpan as _;
use jiff::civil::{Date, DateTime, Time, Weekday};
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::ids::{Name, check_id};

/// A place where attendance is kept. Checked: made from a [`VenueSpec`].
#[derive(Clone, Debug, PartialEq)]
pub struct Venue {
    pub id: String,
    pub name: String,
    pub zone: TimeZone,
    pub direction: DirectionMode,
    /// Outside sessions, and between any two records where directions alternate, a subject is
    /// recorded again only when this much time has passed. Zero: at every visit.
    pub re_entry_gap: Duration,
    pub sessions: Vec<SessionRule>,
    /// When a venue of the legacy API takes place, as its clients wrote it. Nothing depends on it.
    pub date_time: Option<DateTime>,
}

/// In which direction a sighting is recorded.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, strum::EnumString,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum DirectionMode {
    #[default]
    In,
    Out,
    /// In, out, in, … within the local day.
    Alternate,
}

/// Where a device stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Door {
    pub venue: String,
    /// The direction of everybody who passes it; none: as the venue has it.
    pub direction: Option<DirectionMode>,
    /// Whether a camera watches it.
    pub has_camera: bool,
}

impl Door {
    /// Whether this device would have seen who was at a venue: its camera is there, or it has none
    /// and is sent what it is to see.
    pub fn watches(&self, venue: &str) -> bool {
        !self.has_camera || self.venue == venue
    }
}

/// A session that takes place again and again, or on certain dates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionRule {
    /// Stands in the session's id, and so in every record.
    pub id: String,
    pub days: Days,
    pub start: Time,
    /// Not later than `start`: on the next day.
    pub end: Time,
    /// Who comes later than this after the start is late; none: nobody is.
    pub late_after: Option<Duration>,
    /// How long before the start it counts already.
    pub early: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Days {
    Weekly(Vec<Weekday>),
    Dated(Vec<Date>),
}

/// A client of the legacy API makes a venue for each lesson.
pub const VENUES_MAX: usize = 1_000;
/// Of all venues together, as they are stored: each change of one reads them all.
pub const VENUES_BYTES_MAX: usize = 2 << 20;
pub const SESSIONS_MAX: usize = 50;
pub const DATES_MAX: usize = 200;
/// A person who was recorded a day ago may be recorded again in any case.
pub const RE_ENTRY_GAP_MAX: Duration = Duration::from_hours(24);
pub const RE_ENTRY_GAP: Duration = Duration::from_mins(5);
pub const EARLY_MAX: Duration = Duration::from_hours(12);
pub const EARLY: Duration = Duration::from_mins(30);
/// UTC means the same everywhere. Sessions in local time need a zone.
pub const ZONE: &str = "UTC";
/// As the former service wrote times.
const DATE_TIME: &str = "%Y-%m-%d %H:%M:%S";
/// The longest name of the zone database has 32 characters.
const ZONE_CHARS_MAX: usize = 64;

/// A venue as it is written in JSON: in commands, in the database, for those downstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VenueSpec {
    pub venue: String,
    pub name: String,
    /// A name of the IANA time zone database.
    pub time_zone: String,
    #[serde(default)]
    pub direction: DirectionMode,
    pub re_entry_gap_ms: u64,
    #[serde(default)]
    pub sessions: Vec<SessionSpec>,
    /// `2026-11-23 08:00:00`; only venues of the legacy API have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub date_time: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SessionSpec {
    pub id: String,
    /// `mon` to `sun`; or `dates`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub weekdays: Vec<String>,
    /// `2026-11-23`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub dates: Vec<String>,
    /// `08:00`, in the venue's time zone.
    pub start: String,
    pub end: String,
    #[serde(default)]
    pub late_after_ms: Option<u64>,
    #[serde(default)]
    pub early_ms: Option<u64>,
}

/// What is wrong with a venue, and where: `sessions[2].start`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} {why}")]
pub struct VenueError {
    pub field: String,
    pub why: String,
}

impl VenueError {
    pub fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }
}

impl VenueSpec {
    /// A venue of which nothing is known but its id.
    pub fn plain(id: &str) -> Self {
        Self {
            venue: id.to_owned(),
            name: id.to_owned(),
            time_zone: ZONE.to_owned(),
            direction: DirectionMode::In,
            re_entry_gap_ms: RE_ENTRY_GAP.as_millis() as u64,
            sessions: Vec::new(),
            date_time: None,
        }
    }

    /// Checks that the zone's name is safe: it becomes the path of a file.
    pub fn check_zone_name(name: &str) -> Result<(), VenueError> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '+' | '/');
        if name.is_empty()
            || name.len() > ZONE_CHARS_MAX
            || !name.chars().all(allowed)
            || name.starts_with('/')
        {
            return Err(VenueError::new(
                "time_zone",
                "is no name of the IANA database, like `Europe/Berlin`",
            ));
        }
        Ok(())
    }
}

impl Venue {
    /// Checks everything; `zone` is what `time_zone` names.
    pub fn new(spec: &VenueSpec, zone: TimeZone) -> Result<Self, VenueError> {
        check_id(&spec.venue).map_err(|e| VenueError::new("venue", format!("is no id: {e}")))?;
        Name::new(&spec.name).map_err(|e| VenueError::new("name", format!("is no name: {e}")))?;
        let re_entry_gap =
            check_duration("re_entry_gap_ms", spec.re_entry_gap_ms, RE_ENTRY_GAP_MAX)?;
        if spec.sessions.len() > SESSIONS_MAX {
            let why = format!("has {} sessions; at most {SESSIONS_MAX}", spec.sessions.len());
            return Err(VenueError::new("sessions", why));
        }
        let mut sessions: Vec<SessionRule> = Vec::with_capacity(spec.sessions.len());
        for (at, session) in spec.sessions.iter().enumerate() {
            let rule = check_rule(session).map_err(|error| VenueError {
                field: format!("sessions[{at}].{}", error.field),
                ..error
            })?;
            if let Some(other) =
                sessions.iter().find(|other| other.id == rule.id || rules_overlap(other, &rule))
            {
                let why = if other.id == rule.id {
                    "stands twice"
                } else {
                    "overlaps another of the same kind"
                };
                return Err(VenueError::new(
                    format!("sessions[{at}]"),
                    format!("{why}: {}", other.id),
                ));
            }
            sessions.push(rule);
        }
        let id = spec.venue.clone();
        let name = spec.name.clone();
        let direction = spec.direction;
        let date_time = spec.date_time.as_deref().map(parse_date_time).transpose()?;
        Ok(Self { id, name, zone, direction, re_entry_gap, sessions, date_time })
    }

    pub fn plain(id: &str) -> Self {
        let (id, name) = (id.to_owned(), id.to_owned());
        let zone = TimeZone::UTC;
        let direction = DirectionMode::In;
        let sessions = Vec::new();
        let date_time = None;
        Self { id, name, zone, direction, re_entry_gap: RE_ENTRY_GAP, sessions, date_time }
    }

    /// As it is written.
    pub fn spec(&self) -> VenueSpec {
        let session = |rule: &SessionRule| {
            let (weekdays, dates) = match &rule.days {
                Days::Weekly(days) => {
                    (days.iter().map(|day| weekday_text(*day).to_owned()).collect(), Vec::new())
                }
                Days::Dated(dates) => (Vec::new(), dates.iter().map(ToString::to_string).collect()),
            };
            SessionSpec {
                id: rule.id.clone(),
                weekdays,
                dates,
                start: rule.start.strftime("%H:%M").to_string(),
                end: rule.end.strftime("%H:%M").to_string(),
                late_after_ms: rule.late_after.map(|it| it.as_millis() as u64),
                early_ms: Some(rule.early.as_millis() as u64),
            }
        };
        VenueSpec {
            venue: self.id.clone(),
            name: self.name.clone(),
            time_zone: self.zone_name().to_owned(),
            direction: self.direction,
            re_entry_gap_ms: self.re_entry_gap.as_millis() as u64,
            sessions: self.sessions.iter().map(session).collect(),
            date_time: self.date_time.map(date_time_text),
        }
    }

    pub fn zone_name(&self) -> &str {
        self.zone.iana_name().unwrap_or(ZONE)
    }
}

fn check_rule(spec: &SessionSpec) -> Result<SessionRule, VenueError> {
    check_id(&spec.id).map_err(|e| VenueError::new("id", format!("is no id: {e}")))?;
    let days = match (spec.weekdays.is_empty(), spec.dates.is_empty()) {
        (false, true) => Days::Weekly(parse_weekdays(&spec.weekdays)?),
        (true, false) => Days::Dated(parse_dates(&spec.dates)?),
        (true, true) => return Err(VenueError::new("weekdays", "or dates: one of them is needed")),
        (false, false) => return Err(VenueError::new("weekdays", "and dates exclude each other")),
    };
    let start = time_of_day("start", &spec.start)?;
    let end = time_of_day("end", &spec.end)?;
    let length = nominal_length(start, end);
    let late_after =
        spec.late_after_ms.map(|it| check_duration("late_after_ms", it, length)).transpose()?;
    let early = spec.early_ms.map_or(Ok(EARLY), |it| check_duration("early_ms", it, EARLY_MAX))?;
    Ok(SessionRule { id: spec.id.clone(), days, start, end, late_after, early })
}

/// Reads `2026-11-23 08:00:00` or, as browsers write it, without seconds.
pub fn parse_date_time(text: &str) -> Result<DateTime, VenueError> {
    let wrong = |_| VenueError::new("date_time", "is no time like `2026-11-23 08:00:00`");
    let seconds = if text.len() == 16 { ":00" } else { "" };
    DateTime::strptime(DATE_TIME, format!("{text}{seconds}")).map_err(wrong)
}

pub fn date_time_text(time: DateTime) -> String {
    time.strftime(DATE_TIME).to_string()
}

fn check_duration(field: &str, ms: u64, most: Duration) -> Result<Duration, VenueError> {
    let time = Duration::from_millis(ms);
    if time > most {
        return Err(VenueError::new(
            field,
            format!("is longer than {} minutes", most.as_secs() / 60),
        ));
    }
    Ok(time)
}

/// `08:00`: to the minute, since a session's id names the minute.
pub fn time_of_day(field: &str, text: &str) -> Result<Time, VenueError> {
    let wrong = || VenueError::new(field, "is no time of day like `08:00`");
    let (hour, minute) = text.split_once(':').filter(|_| text.len() == 5).ok_or_else(wrong)?;
    let part = |text: &str| {
        text.bytes().all(|it| it.is_ascii_digit()).then(|| text.parse().ok()).flatten()
    };
    let (hour, minute) = part(hour).zip(part(minute)).ok_or_else(wrong)?;
    Time::new(hour, minute, 0, 0).map_err(|_| wrong())
}

/// How long a session lasts on a day whose clocks are left alone. From a time to the same time is a
/// whole day.
pub(super) fn nominal_length(start: Time, end: Time) -> Duration {
    let minutes = i64::from(minute_of_day(end)) - i64::from(minute_of_day(start));
    Duration::from_secs((if minutes > 0 { minutes } else { minutes + MINUTES_A_DAY }) as u64 * 60)
}

const MINUTES_A_DAY: i64 = 24 * 60;

fn minute_of_day(time: Time) -> u16 {
    u16::from(time.hour() as u8) * 60 + u16::from(time.minute() as u8)
}

const WEEKDAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];

fn weekday_text(day: Weekday) -> &'static str {
    WEEKDAYS.iter().find(|it| it.1 == day).map_or("mon", |it| it.0)
}

fn parse_weekdays(texts: &[String]) -> Result<Vec<Weekday>, VenueError> {
    let mut days = Vec::new();
    for text in texts {
        let known = WEEKDAYS.iter().find(|it| it.0 == text);
        let day = known
            .ok_or_else(|| VenueError::new("weekdays", "must be of mon tue wed thu fri sat sun"))?
            .1;
        if days.contains(&day) {
            return Err(VenueError::new("weekdays", format!("has {text} twice")));
        }
        days.push(day);
    }
    Ok(days)
}

fn parse_dates(texts: &[String]) -> Result<Vec<Date>, VenueError> {
    if texts.len() > DATES_MAX {
        return Err(VenueError::new(
            "dates",
            format!("has {} dates; at most {DATES_MAX}", texts.len()),
        ));
    }
    let mut dates: Vec<Date> = Vec::new();
    for text in texts {
        let parsed = text.parse().ok().filter(|_| text.len() == 10);
        let date: Date =
            parsed.ok_or_else(|| VenueError::new("dates", "must be dates like `2026-11-23`"))?;
        if dates.contains(&date) {
            return Err(VenueError::new("dates", format!("has {date} twice")));
        }
        dates.push(date);
    }
    dates.sort_unstable();
    Ok(dates)
}

/// Whether two rules of the same kind ever run at once. A dated session may overlap weekly ones: it
/// takes their place.
fn rules_overlap(a: &SessionRule, b: &SessionRule) -> bool {
    match (&a.days, &b.days) {
        (Days::Weekly(of_a), Days::Weekly(of_b)) => {
            let apart = |a: &Weekday, b: &Weekday| i64::from(a.until(*b));
            of_a.iter()
                .any(|day_a| of_b.iter().any(|day_b| run_together(a, b, apart(day_a, day_b), true)))
        }
        (Days::Dated(of_a), Days::Dated(of_b)) => of_a.iter().any(|day_a| {
            let near = |day_b: &&Date| {
                (-1..=1)
                    .any(|apart: i64| day_a.checked_add(apart.days()).is_ok_and(|it| it == **day_b))
            };
            of_b.iter().filter(near).any(|day_b| {
                run_together(
                    a,
                    b,
                    i64::from(day_a.until(*day_b).map_or(0, |it| it.get_days())),
                    false,
                )
            })
        }),
        _ => false,
    }
}

/// `b` begins so many days after `a`.
fn run_together(a: &SessionRule, b: &SessionRule, days: i64, weekly: bool) -> bool {
    let minutes = |rule: &SessionRule| {
        let start = i64::from(minute_of_day(rule.start));
        (start, start + nominal_length(rule.start, rule.end).as_secs() as i64 / 60)
    };
    let (a_start, a_end) = minutes(a);
    let (b_start, b_end) = minutes(b);
    let meet = |days: i64| {
        a_start < b_end + days * MINUTES_A_DAY && b_start + days * MINUTES_A_DAY < a_end
    };
    // A week has no beginning: six days after is one day before.
    meet(days) || weekly && meet(days - 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weekly(id: &str, days: &[&str], start: &str, end: &str) -> SessionSpec {
        let weekdays = days.iter().map(ToString::to_string).collect();
        SessionSpec {
            id: id.into(),
            weekdays,
            start: start.into(),
            end: end.into(),
            ..SessionSpec::default()
        }
    }

    fn dated(id: &str, dates: &[&str], start: &str, end: &str) -> SessionSpec {
        let dates = dates.iter().map(ToString::to_string).collect();
        SessionSpec {
            id: id.into(),
            dates,
            start: start.into(),
            end: end.into(),
            ..SessionSpec::default()
        }
    }

    fn check(sessions: Vec<SessionSpec>) -> Result<Venue, VenueError> {
        Venue::new(&VenueSpec { sessions, ..VenueSpec::plain("room-a") }, TimeZone::UTC)
    }

    #[test]
    fn venue_spec_round_trips() {
        let spec = VenueSpec {
            name: "Room A".into(),
            direction: DirectionMode::Alternate,
            re_entry_gap_ms: 0,
            sessions: vec![
                SessionSpec {
                    late_after_ms: Some(600_000),
                    early_ms: Some(0),
                    ..weekly("am", &["mon", "tue"], "08:00", "12:00")
                },
                SessionSpec {
                    early_ms: Some(60_000),
                    ..dated("exam", &["2026-11-23"], "22:00", "02:00")
                },
            ],
            ..VenueSpec::plain("room-a")
        };
        let venue = Venue::new(&spec, TimeZone::UTC).unwrap();
        assert_eq!(venue.spec(), spec);
        let json = serde_json::to_string(&spec).unwrap();
        assert_eq!(serde_json::from_str::<VenueSpec>(&json).unwrap(), spec);
        assert_eq!(Venue::new(&VenueSpec::plain("x"), TimeZone::UTC).unwrap(), Venue::plain("x"));
    }

    #[test]
    fn invalid_venue_error_names_field() {
        let long = SessionSpec {
            late_after_ms: Some(3_600_001),
            ..weekly("am", &["mon"], "08:00", "09:00")
        };
        let early =
            SessionSpec { early_ms: Some(u64::MAX), ..weekly("am", &["mon"], "08:00", "09:00") };
        for (sessions, field) in [
            (vec![weekly("a/m", &["mon"], "08:00", "09:00")], "sessions[0].id"),
            (vec![weekly("am", &[], "08:00", "09:00")], "sessions[0].weekdays"),
            (vec![weekly("am", &["Monday"], "08:00", "09:00")], "sessions[0].weekdays"),
            (vec![weekly("am", &["mon", "mon"], "08:00", "09:00")], "sessions[0].weekdays"),
            (vec![weekly("am", &["mon"], "8:00", "09:00")], "sessions[0].start"),
            (vec![weekly("am", &["mon"], "08:00", "24:00")], "sessions[0].end"),
            (vec![weekly("am", &["mon"], "08:00", "+9:00")], "sessions[0].end"),
            (vec![dated("am", &["2026-02-30"], "08:00", "09:00")], "sessions[0].dates"),
            (vec![dated("am", &["20261123"], "08:00", "09:00")], "sessions[0].dates"),
            (
                vec![dated("am", &["2026-11-23", "2026-11-23"], "08:00", "09:00")],
                "sessions[0].dates",
            ),
            (vec![long], "sessions[0].late_after_ms"),
            (vec![early], "sessions[0].early_ms"),
            (vec![weekly("x", &["mon"], "08:00", "09:00"); SESSIONS_MAX + 1], "sessions"),
        ] {
            assert_eq!(check(sessions).unwrap_err().field, field);
        }
        let both = SessionSpec {
            dates: vec!["2026-11-23".into()],
            ..weekly("am", &["mon"], "08:00", "09:00")
        };
        assert_eq!(check(vec![both]).unwrap_err().field, "sessions[0].weekdays");
        let gap = VenueSpec { re_entry_gap_ms: u64::MAX, ..VenueSpec::plain("x") };
        assert_eq!(Venue::new(&gap, TimeZone::UTC).unwrap_err().field, "re_entry_gap_ms");
    }

    #[test]
    fn sessions_of_one_kind_do_not_overlap() {
        let meet = |a: SessionSpec, b: SessionSpec| {
            let both = [check(vec![a.clone(), b.clone()]), check(vec![b, a])];
            assert_eq!(both[0].is_err(), both[1].is_err());
            both[0].is_err()
        };
        let am = || weekly("am", &["mon"], "08:00", "10:00");
        assert!(meet(am(), weekly("am", &["tue"], "08:00", "10:00")), "one id, two sessions");
        assert!(meet(am(), weekly("x", &["mon"], "09:59", "11:00")));
        assert!(!meet(am(), weekly("x", &["mon"], "10:00", "11:00")));
        assert!(!meet(am(), weekly("x", &["tue"], "09:00", "11:00")));
        assert!(meet(am(), weekly("x", &["sun"], "22:00", "08:01")));
        assert!(!meet(am(), weekly("x", &["sun"], "22:00", "08:00")));
        assert!(meet(am(), weekly("x", &["sun"], "08:30", "08:30")), "a whole day");
        assert!(
            !meet(am(), dated("x", &["2026-11-23"], "09:00", "11:00")),
            "takes the weekly one's place"
        );
        let exam = || dated("exam", &["2026-11-22", "2026-11-30"], "22:00", "02:00");
        assert!(meet(exam(), dated("x", &["2026-11-23"], "01:00", "03:00")));
        assert!(!meet(exam(), dated("x", &["2026-11-23"], "02:00", "03:00")));
        assert!(!meet(exam(), dated("x", &["2026-11-29"], "22:00", "22:30")));
    }

    #[test]
    fn time_zone_paths_are_rejected() {
        for (name, good) in [
            ("Europe/Berlin", true),
            ("Etc/GMT+5", true),
            ("../etc/passwd", false),
            ("/etc/x", false),
            ("", false),
        ] {
            assert_eq!(VenueSpec::check_zone_name(name).is_ok(), good, "{name}");
        }
    }
}

//! The sections `[attendance]` and `[[venue]]`.

use std::time::Duration;

use crate::attend::venue::{self, DirectionMode, Door, SessionSpec, Venue, VenueError, VenueSpec};
use crate::clock;
use crate::config::checks::{ConfigError, check_id_key, did_you_mean, invalid, non_empty, within};
use crate::config::raw::{RawAttendance, RawConfig, RawSession, RawSource, RawVenue};

pub(super) fn check_door(raw: &RawConfig, venues: &[Venue]) -> Result<Door, ConfigError> {
    let RawAttendance { venue, direction, .. } = &raw.attendance;
    check_id_key("[attendance] venue", venue)?;
    if !venues.is_empty() && venues.iter().all(|it| it.id != *venue) {
        return Err(invalid("[attendance] venue", format!("{venue:?} is none of [[venue]]")));
    }
    let wrong =
        || invalid("[attendance] direction", "is none of \"\", \"in\", \"out\", \"alternate\"");
    let direction = non_empty(direction)
        .map(|it| it.parse::<DirectionMode>().map_err(|_| wrong()))
        .transpose()?;
    Ok(Door { venue: venue.clone(), direction, has_camera: raw.camera.source != RawSource::None })
}

pub(super) fn check_venues(
    raw: &RawConfig,
    warnings: &mut Vec<String>,
) -> Result<Vec<Venue>, ConfigError> {
    within("[[venue]]", raw.venue.len(), 0, venue::VENUES_MAX)?;
    let mut venues: Vec<Venue> = Vec::new();
    for it in &raw.venue {
        check_id_key("[[venue]] id", &it.id)?;
        if venues.iter().any(|other| other.id == it.id) {
            return Err(invalid("[[venue]] id", format!("{:?} stands twice", it.id)));
        }
        // The names of JSON, made those of this file.
        let wrong = |error: VenueError| {
            let message = error.to_string().replace("sessions[", "session[").replace("_ms ", " ");
            invalid("[[venue]]", format!("{:?}: {message}", it.id))
        };
        if it.time_zone.is_empty() && !it.session.is_empty() {
            warnings.push(format!(
                "[[venue]] {:?} has sessions but no time_zone: their times are taken as UTC",
                it.id
            ));
        }
        let spec = build_venue_spec(it).map_err(wrong)?;
        VenueSpec::check_zone_name(&spec.time_zone).map_err(wrong)?;
        let zone = clock::time_zone(&spec.time_zone);
        let zone = zone.ok_or_else(|| {
            let names: Vec<String> = jiff::tz::db().available().map(|it| it.to_string()).collect();
            let hint = did_you_mean(&spec.time_zone, names.iter().map(String::as_str));
            let why = format!("= {:?} is not in the time zone database{hint}", spec.time_zone);
            wrong(VenueError::new("time_zone", why))
        })?;
        venues.push(Venue::new(&spec, zone).map_err(wrong)?);
    }
    Ok(venues)
}

fn build_venue_spec(raw: &RawVenue) -> Result<VenueSpec, VenueError> {
    let mut sessions = Vec::with_capacity(raw.session.len());
    for (at, session) in raw.session.iter().enumerate() {
        let late_after_ms = parse_late_after(session).map_err(|error| VenueError {
            field: format!("sessions[{at}].{}", error.field),
            ..error
        })?;
        sessions.push(SessionSpec {
            id: session.id.clone(),
            weekdays: session.weekdays.clone(),
            dates: session.dates.clone(),
            start: session.start.clone(),
            end: session.end.clone(),
            late_after_ms,
            early_ms: Some(to_ms(session.early)),
        });
    }
    Ok(VenueSpec {
        venue: raw.id.clone(),
        name: non_empty(&raw.name).unwrap_or_else(|| raw.id.clone()),
        time_zone: non_empty(&raw.time_zone).unwrap_or_else(|| venue::ZONE.to_owned()),
        direction: raw.direction,
        re_entry_gap_ms: to_ms(raw.re_entry_gap),
        sessions,
        date_time: None,
    })
}

fn to_ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// `10m` after the start, or at `08:10`.
fn parse_late_after(session: &RawSession) -> Result<Option<u64>, VenueError> {
    let Some(text) = non_empty(&session.late_after) else {
        return Ok(None);
    };
    if text.contains(':') {
        let start = venue::time_of_day("start", &session.start)?;
        let late = venue::time_of_day("late_after", &text)?;
        let minutes =
            |time: jiff::civil::Time| i64::from(time.hour()) * 60 + i64::from(time.minute());
        let after = (minutes(late) - minutes(start)).rem_euclid(24 * 60);
        return Ok(Some(after as u64 * 60_000));
    }
    let wrong = || {
        VenueError::new("late_after", "is neither a duration like `10m` nor a time like `08:10`")
    };
    let duration = humantime_serde::re::humantime::parse_duration(&text).map_err(|_| wrong())?;
    Ok(Some(to_ms(duration)))
}

//! The commands that read the record, and those that say where and when it is kept.

use super::asked::Asked;
use super::carry_out::answer;
use super::{Commander, Fault, refuse};
use crate::app::report::{self, Absent};
use crate::app::venues::{VenueRefusal, resolve};
use crate::attend::venue::{VENUES_MAX, Venue, VenueError, VenueSpec};
use crate::clock::rfc3339;
use crate::record::command::answer::{
    AttendanceList, SessionEntry, VenueDeleted, VenueEntry, VenueList, VenuePut,
};
use crate::record::command::{Attendance, ErrorCode, Refusal, SUMMARY_DAYS_MAX, Venues};
use crate::record::store::{AttendanceQuery, StoredVenue, Tx};

/// How far ahead the next session of a venue is looked for.
const NEXT_SESSION_MS: i64 = 8 * 86_400_000;

impl Commander {
    pub(super) async fn attendance(&self, asked: Asked, wanted: Attendance) -> Result<(), Fault> {
        let venue = self.venue(&wanted.venue)?;
        if wanted.summary {
            return self.summary(asked, venue, wanted).await;
        }
        let write = move |tx: &mut Tx<'_>| {
            let query = AttendanceQuery {
                venue: Some(wanted.venue.clone()),
                from_ms: wanted.from_ms,
                to_ms: wanted.to_ms,
                after_seq: wanted.after,
                limit: wanted.limit + 1,
                all: wanted.all,
            };
            let list =
                AttendanceList::page(wanted.venue.clone(), tx.attendance(&query)?, wanted.limit);
            answer(tx, &asked, "attendance", &list)
        };
        Ok(self.store.write_async(write).await?)
    }

    /// What is not said of the period is today, at the venue.
    async fn summary(&self, asked: Asked, venue: Venue, wanted: Attendance) -> Result<(), Fault> {
        let now_ms = self.clock.now().wall_ms;
        let (today_ms, tomorrow_ms) = report::day_of(&venue, now_ms);
        let to_ms =
            if wanted.to_ms == i64::MAX { tomorrow_ms.max(wanted.from_ms) } else { wanted.to_ms };
        let from_ms = if wanted.from_ms == 0 { today_ms.min(to_ms) } else { wanted.from_ms };
        if to_ms.saturating_sub(from_ms) > SUMMARY_DAYS_MAX * 86_400_000 {
            return Err(named(
                ErrorCode::BadValue,
                "to",
                format!("is more than {SUMMARY_DAYS_MAX} days after `from`"),
            ));
        }
        let absent = Absent::new(wanted.absent, self.venues.is_watched(&venue.id));
        let write = move |tx: &mut Tx<'_>| {
            let report = report::of(tx, &venue, from_ms, to_ms, absent)?;
            let summary = report.page(wanted.after, wanted.limit, wanted.absent);
            answer(tx, &asked, "attendance", &summary)
        };
        Ok(self.store.write_async(write).await?)
    }

    pub(super) async fn venue_put(&self, asked: Asked, spec: VenueSpec) -> Result<(), Fault> {
        let venue = resolve(&spec)
            .map_err(|VenueError { field, why }| named(ErrorCode::BadValue, &field, why))?;
        if self.venues.is_configured(&venue.id) {
            return Err(refused(&VenueRefusal::Configured));
        }
        // As it was understood, so that a later default does not change what was meant.
        let body = serde_json::to_string(&venue.spec())
            .expect("a venue has string keys only and writes to memory");
        let now_ms = self.clock.now().wall_ms;
        let next = venue
            .sessions_between(now_ms, now_ms.saturating_add(NEXT_SESSION_MS))
            .into_iter()
            .next();
        let next_session = next.map(|it| SessionEntry {
            session: it.id,
            starts_at: rfc3339(it.start_ms),
            ends_at: rfc3339(it.end_ms),
        });
        let write = move |tx: &mut Tx<'_>| {
            let others = tx.venues()?.iter().filter(|it| it.id != venue.id).count();
            if others >= VENUES_MAX {
                return Ok(Err(VenueRefusal::TooMany));
            }
            let replaced = tx.put_venue(&venue.id, &body)?;
            let (venue, next_session) = (venue.id.clone(), next_session.clone());
            answer(tx, &asked, "venue_put", &VenuePut { venue, replaced, next_session })?;
            tx.venues().map(Ok)
        };
        self.changed_venues(self.store.write_async(write).await?)
    }

    pub(super) async fn venue_delete(&self, asked: Asked, id: String) -> Result<(), Fault> {
        if self.venues.is_configured(&id) {
            return Err(refused(&VenueRefusal::Configured));
        }
        let write = move |tx: &mut Tx<'_>| {
            if !tx.delete_venue(&id)? {
                return Ok(Err(VenueRefusal::Unknown));
            }
            answer(tx, &asked, "venue_delete", &VenueDeleted { venue: id.clone() })?;
            tx.venues().map(Ok)
        };
        self.changed_venues(self.store.write_async(write).await?)
    }

    /// In force from now on, for camera and commands.
    fn changed_venues(&self, stored: Result<Vec<StoredVenue>, VenueRefusal>) -> Result<(), Fault> {
        self.venues.restore(&stored.map_err(|why| refused(&why))?);
        Ok(())
    }

    pub(super) async fn venue_list(&self, asked: Asked, page: Venues) -> Result<(), Fault> {
        let all = self.venues.all();
        let after = page.after.as_deref().unwrap_or_default();
        let mut entries: Vec<VenueEntry> = all
            .iter()
            .filter(|it| it.venue.id.as_str() > after)
            .take(page.limit as usize + 1)
            .map(|it| VenueEntry {
                spec: it.venue.spec(),
                source: it.source,
                door: it.venue.id == self.venues.door_id(),
            })
            .collect();
        let more = entries.len() > page.limit as usize;
        entries.truncate(page.limit as usize);
        let next_after = entries.last().filter(|_| more).map(|it| it.spec.venue.clone());
        let list = VenueList { venues: entries, next_after };
        let write = move |tx: &mut Tx<'_>| answer(tx, &asked, "venues", &list);
        Ok(self.store.write_async(write).await?)
    }
}

fn refused(why: &VenueRefusal) -> Fault {
    match why {
        VenueRefusal::Unknown => refuse(ErrorCode::UnknownVenue, why.to_string()),
        VenueRefusal::Configured => named(ErrorCode::BadValue, "venue", why),
        VenueRefusal::TooMany => refuse(ErrorCode::TooMany, why.to_string()),
    }
}

/// A refusal for good, of one field.
fn named(code: ErrorCode, field: &str, why: impl std::fmt::Display) -> Fault {
    let refusal = Refusal {
        request_id: None,
        code,
        message: format!("{field} {why}"),
        field: Some(field.to_owned()),
    };
    Fault::Refused { refusal, lasting: true, details: None }
}

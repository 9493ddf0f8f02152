//! The handlers of commands that read the record, and of those that change venues.

use crate::app::commands::commander::Commander;
use crate::app::commands::failure::{CommandError, reject, reject_for_now};
use crate::app::commands::page::Page;
use crate::app::commands::reply_to::{ReplyTo, WrittenReply};
use crate::app::commands::report;
use crate::app::commands::report::{Absent, AttendanceReport, RECORDS_MAX};
use crate::app::state::venues::{VenueChangeError, resolve};
use crate::attend::venue::{VENUES_BYTES_MAX, VENUES_MAX, Venue, VenueError, VenueSpec};
use crate::clock::rfc3339;
use crate::store::{AttendanceQuery, StoredVenue, Tx};
use crate::wire::command::{
    AttendanceRequest, ErrorCode, Rejection, SUMMARY_DAYS_MAX, VenuesRequest,
};
use crate::wire::reply::{
    AttendanceList, Reply, SessionEntry, VenueDeleted, VenueEntry, VenueList, VenuePut,
};

/// How far ahead the next session of a venue is searched.
const NEXT_SESSION_MS: i64 = 8 * 86_400_000;

impl Commander {
    pub(super) async fn attendance(
        &self,
        to: ReplyTo,
        wanted: AttendanceRequest,
    ) -> Result<WrittenReply, CommandError> {
        let venue = self.venue(&wanted.venue)?;
        if wanted.summary {
            return self.summary(to, venue, wanted).await;
        }
        let query = AttendanceQuery {
            venue: Some(wanted.venue.clone()),
            from_ms: wanted.from_ms,
            to_ms: wanted.to_ms,
            after_seq: wanted.after,
            limit: wanted.limit + 1,
            all: wanted.all,
        };
        let read = move |tx: &Tx<'_>| {
            let erasures = tx.newest_erasure()?;
            Ok((tx.attendance(&query)?, tx.unreadable()?.events, erasures))
        };
        let (found, unreadable, erasures) = self.store.report(read).await?;
        let mut list = AttendanceList::page(wanted.venue, found, wanted.limit);
        list.unreadable = unreadable;
        self.reply_with_report(to, Reply::Attendance(list), Some(erasures)).await
    }

    /// Bounds that are omitted are those of today, at the venue.
    async fn summary(
        &self,
        to: ReplyTo,
        venue: Venue,
        wanted: AttendanceRequest,
    ) -> Result<WrittenReply, CommandError> {
        let now_ms = self.clock.now().wall_ms;
        let Some(period) = report::period_of(&venue, &wanted, now_ms) else {
            return Err(named(
                ErrorCode::BadValue,
                "to",
                format!("is more than {SUMMARY_DAYS_MAX} days after `from`"),
            ));
        };
        let absent = Absent::new(wanted.absent, self.venues.is_watched(&venue.id));
        let make = move |tx: &Tx<'_>| {
            let erasures = tx.newest_erasure()?;
            let report = AttendanceReport::new(tx, &venue, period, absent)?.within(RECORDS_MAX);
            let mut page = report.page(wanted.after, wanted.limit)?;
            page.unreadable = tx.unreadable()?.events;
            Ok((page, erasures))
        };
        let (page, erasures) = self.store.report(make).await?;
        self.reply_with_report(to, Reply::Summary(page), Some(erasures)).await
    }

    /// Reports and lists are read and written beside the thread that records; it only stores the
    /// reply. Rejects what may name a person who was erased since it was read: `erasures` is the
    /// newest that it knew, of what names people.
    pub(super) async fn reply_with_report(
        &self,
        to: ReplyTo,
        report: Reply,
        erasures: Option<i64>,
    ) -> Result<WrittenReply, CommandError> {
        let reply = to.write(report);
        let json = reply.json.clone();
        let write = move |tx: &mut Tx<'_>| {
            let newest = tx.newest_erasure()?;
            let is_current = erasures.is_none_or(|known| known == newest);
            if is_current {
                to.store(tx, &json)?;
            }
            Ok(is_current)
        };
        if self.store.write_async(write).await? {
            return Ok(reply);
        }
        let message = "a person was erased while this was read; send the command again";
        Err(reject_for_now(ErrorCode::Busy, message))
    }

    pub(super) async fn venue_put(
        &self,
        to: ReplyTo,
        spec: VenueSpec,
    ) -> Result<WrittenReply, CommandError> {
        let venue = resolve(&spec)
            .map_err(|VenueError { field, why }| named(ErrorCode::BadValue, &field, why))?;
        if self.venues.is_configured(&venue.id) {
            return Err(not_changed(&VenueChangeError::Configured));
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
            let others = tx.venues_size(&venue.id)?;
            if others.count >= VENUES_MAX || others.bytes + body.len() > VENUES_BYTES_MAX {
                return Ok(Err(VenueChangeError::TooMany));
            }
            let replaced = tx.put_venue(&venue.id, &body)?;
            let venue = venue.id.clone();
            let next_session = next_session.clone();
            let put = VenuePut { venue, replaced, next_session };
            Ok(Ok((to.accept(tx, Reply::VenuePut(put))?, tx.venues()?)))
        };
        self.changed_venues(self.store.write_async(write).await?)
    }

    pub(super) async fn venue_delete(
        &self,
        to: ReplyTo,
        id: String,
    ) -> Result<WrittenReply, CommandError> {
        if self.venues.is_configured(&id) {
            return Err(not_changed(&VenueChangeError::Configured));
        }
        let write = move |tx: &mut Tx<'_>| {
            if !tx.delete_venue(&id)? {
                return Ok(Err(VenueChangeError::Unknown));
            }
            let deleted = VenueDeleted { venue: id.clone() };
            Ok(Ok((to.accept(tx, Reply::VenueDeleted(deleted))?, tx.venues()?)))
        };
        self.changed_venues(self.store.write_async(write).await?)
    }

    /// In force from now on, for camera and commands.
    fn changed_venues(
        &self,
        stored: Result<(WrittenReply, Vec<StoredVenue>), VenueChangeError>,
    ) -> Result<WrittenReply, CommandError> {
        let (reply, venues) = stored.map_err(|why| not_changed(&why))?;
        self.venues.restore(&venues);
        Ok(reply)
    }

    pub(super) async fn venue_list(
        &self,
        to: ReplyTo,
        page: VenuesRequest,
    ) -> Result<WrittenReply, CommandError> {
        let all = self.venues.all();
        let after = page.after.as_deref().unwrap_or_default();
        let entries = all.iter().filter(|it| it.venue.id.as_str() > after).map(|it| VenueEntry {
            spec: it.venue.spec(),
            source: it.source,
            door: it.venue.id == self.venues.door_id(),
        });
        let Page { entries, more } = Page::of(entries, page.limit as usize);
        let next_after = entries.last().filter(|_| more).map(|it| it.spec.venue.clone());
        let list = VenueList { venues: entries, next_after };
        self.reply_with_report(to, Reply::Venues(list), None).await
    }
}

fn not_changed(why: &VenueChangeError) -> CommandError {
    match why {
        VenueChangeError::Unknown => reject(ErrorCode::UnknownVenue, why.to_string()),
        VenueChangeError::Configured => named(ErrorCode::BadValue, "venue", why),
        VenueChangeError::TooMany => reject(ErrorCode::TooMany, why.to_string()),
    }
}

/// Rejects one field of a command for good.
fn named(code: ErrorCode, field: &str, why: impl std::fmt::Display) -> CommandError {
    CommandError::Rejected { rejection: Rejection::of_field(code, field, why), lasting: true }
}

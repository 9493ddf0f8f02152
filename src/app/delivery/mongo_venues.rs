//! The venues as MongoDB's readers see them.

use std::sync::Arc;

use serde_json::json;

use crate::app::state::venues::{KnownVenue, VenueRegistry};
use crate::mongo::{VenueRecord, Venues};
use crate::wire::reply::VenueSource;

/// Describes the venues as they are at each call. A venue that this device knows by its id only is
/// left out: devices that know more describe it.
pub fn venue_records(book: Arc<VenueRegistry>) -> Venues {
    Arc::new(move || {
        book.all().iter().filter(|it| it.source != VenueSource::Default).map(venue_record).collect()
    })
}

pub fn venue_record(listed: &KnownVenue) -> VenueRecord {
    let spec = listed.venue.spec();
    let schedule = json!({
        "time_zone": spec.time_zone,
        "direction": listed.direction,
        "sessions": spec.sessions,
    });
    VenueRecord {
        id: spec.venue,
        name: spec.name,
        schedule: Some(schedule),
        direction: listed.direction,
        re_entry_gap: listed.venue.re_entry_gap,
        date_time: listed.venue.date_time,
    }
}

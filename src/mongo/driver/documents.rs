//! Events as documents and update statements. Only computes.
//!
//! Each statement is idempotent. `_id` of an attendance is the event's id
//! as a string, as MQTT has it, so that both can be joined.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};

use crate::ids::Origin;
use crate::mongo::types::VenueRecord;
use crate::wire::chain::{Link, correctable};
use crate::wire::event::{
    Attendance, Body, Correction, EXPIRES_AFTER_MS, Enrolment, EnrolmentAction, SCHEMA,
    StoredEvent, SubjectRef, recorded,
};

pub(super) fn date(wall_ms: i64) -> Bson {
    Bson::DateTime(mongodb::bson::DateTime::from_millis(wall_ms))
}

/// Removes the noise that a float gains when it becomes a double.
fn decimal(value: f32) -> f64 {
    (f64::from(value) * 1e6).round() / 1e6
}

fn optional(value: Option<impl Into<Bson>>) -> Bson {
    value.map_or(Bson::Null, Into::into)
}

fn subject(subject: Option<&SubjectRef>) -> Bson {
    optional(subject.map(|it| doc! { "id": it.id.as_str(), "name": it.name.as_str() }))
}

/// Inserts an attendance unless it is there. The filter has the whole key of a sharded cluster.
pub(super) fn insert_attendance(
    event: &StoredEvent,
    body: &Attendance,
    origin: &Origin,
) -> Document {
    let mut fields = doc! {
        "schema": i64::from(SCHEMA),
        "seq": event.seq,
        "kind": event.body.kind().as_str(),
        "device": &origin.device,
        "venue": &body.venue,
        "session": optional(body.session.as_deref()),
        "subject": subject(body.subject.as_ref()),
        "direction": body.direction.as_str(),
        "status": body.status.as_str(),
        "occurred_at": date(event.occurred_ms),
        "clock": event.clock.as_str(),
        "boot_id": event.boot_id.as_str(),
        "boottime_ms": event.boottime_ms as i64,
        "score": decimal(body.score),
        "threshold": decimal(body.threshold),
        "frames": i64::from(body.frames),
        "track_ms": body.track_ms as i64,
        "latency_ms": body.latency_ms as i64,
        "expires_at": date(event.occurred_ms.saturating_add(EXPIRES_AFTER_MS)),
    };
    if let Some(other) = event.superseded_by {
        fields.insert("superseded_by", other.to_string());
    }
    if let Some(link) = &event.chain {
        fields.insert("chain", link_of(event, link));
    }
    let id = doc! { "_id": event.event_id.to_string(), "site": &origin.site };
    doc! { "q": id, "u": { "$setOnInsert": fields }, "upsert": true }
}

/// The link of an attendance, always with what was first recorded: later updates do not know it.
fn link_of(event: &StoredEvent, link: &Link) -> Bson {
    let was = link.was.clone().unwrap_or_else(|| correctable(&recorded(event)));
    let link = Link { was: Some(was), ..link.clone() };
    json_to_bson(&serde_json::to_value(link).unwrap_or_default())
}

/// Corrects the time of an attendance, its session and its status. Without the attendance (the
/// correction is of another kind of event, or the attendance was dead-lettered and is delivered
/// later, in its corrected form) nothing changes. A mark by another device is removed; the search
/// that follows makes it again if it still applies. `corrected` is the attendance as it is now, after
/// all corrections; the content of this correction counts only if that is gone.
pub(super) fn correct_attendance(
    event: &StoredEvent,
    body: &Correction,
    corrected: Option<&StoredEvent>,
) -> Document {
    let now = corrected.and_then(|it| match &it.body {
        Body::Attendance(now) => Some((it, now)),
        _ => None,
    });
    let dated = now.map_or(event, |(it, _)| it);
    let (session, status, superseded_by) = match now {
        Some((it, now)) => (now.session.as_ref(), Some(now.status), it.superseded_by),
        None => (body.session.as_ref(), body.status, body.superseded_by),
    };
    let mut fields = doc! {
        "occurred_at": date(dated.occurred_ms),
        "expires_at": date(dated.occurred_ms.saturating_add(EXPIRES_AFTER_MS)),
        "clock": dated.clock.as_str(),
    };
    if let Some(session) = session {
        fields.insert("session", session);
    }
    if let Some(status) = status {
        fields.insert("status", status.as_str());
    }
    let mut update = Document::new();
    match superseded_by {
        Some(other) => drop(fields.insert("superseded_by", other.to_string())),
        None => drop(update.insert("$unset", doc! { "superseded_by": "" })),
    }
    update.insert("$set", fields);
    if event.chain.is_some() {
        // It is no document here, and the chain goes through it.
        let correction = json_to_bson(&serde_json::Value::Object(recorded(event)));
        update.insert("$addToSet", doc! { "chain.corrections": correction });
    }
    doc! { "q": { "_id": body.corrects.to_string() }, "u": update }
}

/// A time without a zone, as the former service stored it: as if it were in UTC.
fn date_time(time: DateTime) -> Bson {
    let zoned = time.to_zoned(TimeZone::UTC);
    zoned.map_or(Bson::Null, |it| date(it.timestamp().as_millisecond()))
}

/// Reads the time of a document of the former service.
pub(super) fn read_date_time(stored: &Bson) -> Option<DateTime> {
    let at = Timestamp::from_millisecond(stored.as_datetime()?.timestamp_millis()).ok()?;
    Some(at.to_zoned(TimeZone::UTC).datetime())
}

/// Returns a venue's `_id`: what looks like an ObjectId is one, as in the predecessor's database.
pub(super) fn venue_id(id: &str) -> Bson {
    object_id(id).map_or_else(|| id.into(), Bson::ObjectId)
}

fn object_id(id: &str) -> Option<ObjectId> {
    ObjectId::parse_str(id).ok()
}

/// Adds names to those that were ever at a venue, for readers of the predecessor's database.
pub(super) fn add_venue_names<'a>(id: &str, names: impl IntoIterator<Item = &'a str>) -> Document {
    let names: Vec<&str> = names.into_iter().collect();
    doc! { "q": { "_id": venue_id(id) }, "u": { "$addToSet": { "attendance": { "$each": names } } }, "upsert": true }
}

/// Converts JSON as it is; the driver would read `{"$oid": …}` as an ObjectId.
fn json_to_bson(value: &serde_json::Value) -> Bson {
    use serde_json::Value;
    match value {
        Value::Null => Bson::Null,
        Value::Bool(it) => Bson::Boolean(*it),
        Value::Number(it) => {
            it.as_i64().map_or_else(|| Bson::Double(it.as_f64().unwrap_or_default()), Bson::Int64)
        }
        Value::String(it) => Bson::String(it.clone()),
        Value::Array(it) => Bson::Array(it.iter().map(json_to_bson).collect()),
        Value::Object(it) => {
            Bson::Document(it.iter().map(|(key, it)| (key.clone(), json_to_bson(it))).collect())
        }
    }
}

/// Writes a venue's name and schedule. A document of the predecessor keeps its own name.
pub(super) fn put_venue(note: &VenueRecord) -> Document {
    let schedule = note.schedule.as_ref().map_or(Bson::Null, json_to_bson);
    let set =
        doc! { "schedule": schedule, "re_entry_gap_ms": note.re_entry_gap.as_millis() as i64 };
    let update = if object_id(&note.id).is_some() {
        let mut added = doc! { "name": &note.name, "attendance": [] };
        added.extend(note.date_time.map(|it| ("date_time".to_owned(), date_time(it))));
        doc! { "$set": set, "$setOnInsert": added }
    } else {
        let mut set = set;
        set.insert("name", &note.name);
        doc! { "$set": set, "$setOnInsert": { "attendance": [] } }
    };
    doc! { "q": { "_id": venue_id(&note.id) }, "u": update, "upsert": true }
}

/// Writes what an enrolment changes in `subjects`; `None` if the subject was erased since.
pub(super) fn subject_change(
    event: &StoredEvent,
    body: &Enrolment,
    device: &str,
) -> Option<Document> {
    let person = body.subject.as_ref()?;
    let q = doc! { "_id": person.id.as_str() };
    match body.action {
        EnrolmentAction::Enrolled | EnrolmentAction::Updated | EnrolmentAction::Renamed => {
            let at = date(event.occurred_ms);
            // The newest name counts, whichever device delivers last. `$literal`, because a name may
            // begin with a dollar sign.
            let newer =
                doc! { "$lte": [{ "$ifNull": ["$named_at", mongodb::bson::DateTime::MIN] }, &at] };
            let name = doc! { "$cond": [newer, { "$literal": person.name.as_str() }, "$name"] };
            let set = doc! {
                "name": name,
                "named_at": { "$max": ["$named_at", &at] },
                "enrolled_at": { "$min": ["$enrolled_at", &at] },
                "devices": { "$setUnion": [{ "$ifNull": ["$devices", []] }, [{ "$literal": device }]] },
            };
            Some(doc! { "q": q, "u": [{ "$set": set }], "upsert": true })
        }
        EnrolmentAction::Withdrawn => {
            Some(doc! { "q": q, "u": { "$pull": { "devices": device } } })
        }
        EnrolmentAction::Erased => None,
    }
}

/// The body of an event that MongoDB stores: other kinds have no collection there.
pub(super) enum StoredBody<'a> {
    Attendance(&'a Attendance),
    Correction(&'a Correction),
    Enrolment(&'a Enrolment),
    None,
}

impl<'a> StoredBody<'a> {
    pub(super) fn of(body: &'a Body) -> Self {
        match body {
            Body::Attendance(it) => Self::Attendance(it),
            Body::Correction(it) => Self::Correction(it),
            // An erasure is delivered as a message of its own.
            Body::Enrolment(it) if it.subject.is_none() || it.action == EnrolmentAction::Erased => {
                Self::None
            }
            Body::Enrolment(it) => Self::Enrolment(it),
            Body::Unknown(_) | Body::Attack(_) | Body::Camera(_) | Body::Security(_) => Self::None,
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::clock::BootId;
    use crate::wire::event::{ClockState, Status};

    #[test]
    fn correction_uses_the_present_attendance() {
        let body = Correction {
            corrects: Uuid::from_u128(7),
            was: "1970-01-01T00:00:00.000Z".into(),
            session: Some("2026-11-23T08:00Z/mon-am".into()),
            status: Some(Status::Late),
            superseded_by: None,
        };
        let mut event = StoredEvent {
            seq: 2,
            event_id: Uuid::from_u128(8),
            occurred_ms: 5,
            boot_id: BootId::new("boot"),
            boottime_ms: 1,
            clock: ClockState::Corrected,
            superseded_by: None,
            body: Body::Correction(body.clone()),
            chain: None,
        };
        let set = doc! { "occurred_at": date(5), "expires_at": date(30_005), "clock": "corrected",
        "session": "2026-11-23T08:00Z/mon-am", "status": "late" };
        assert_eq!(
            correct_attendance(&event, &body, None),
            doc! { "q": { "_id": Uuid::from_u128(7).to_string() }, "u": { "$unset": { "superseded_by": "" }, "$set": set } }
        );
        // Its time was right, its place in the record was not.
        event.clock = ClockState::Synced;
        let body = Correction { superseded_by: Some(Uuid::from_u128(9)), ..body };
        let update = correct_attendance(&event, &body, None).get_document("u").unwrap().clone();
        assert_eq!(update.len(), 1);
        let set = update.get_document("$set").unwrap();
        assert_eq!(set.get_str("superseded_by").unwrap(), Uuid::from_u128(9).to_string());
        assert_eq!(set.get_str("clock").unwrap(), "synced");
    }

    #[test]
    fn predecessors_venue_keeps_its_id() {
        let hex = "65f0c1d2e3a4b5c6d7e8f901";
        assert_eq!(venue_id(hex), Bson::ObjectId(ObjectId::parse_str(hex).unwrap()));
        assert_eq!(venue_id("65f0c1d2e3a4b5c6d7e8f90"), Bson::from("65f0c1d2e3a4b5c6d7e8f90"));
        assert_eq!(venue_id("room-a"), Bson::from("room-a"));
    }

    #[test]
    fn json_is_converted_unchanged() {
        let value =
            serde_json::json!({"$oid": "65f0c1d2e3a4b5c6d7e8f901", "n": [1, 0.5, true, null]});
        let expected =
            doc! { "$oid": "65f0c1d2e3a4b5c6d7e8f901", "n": [1_i64, 0.5, true, Bson::Null] };
        assert_eq!(json_to_bson(&value), Bson::Document(expected));
    }
}

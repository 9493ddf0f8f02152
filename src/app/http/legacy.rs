//! The routes of the former service, with its shapes, statuses and texts.
//!
//! A venue is one of MongoDB's collection, where that is configured and can be reached: whatever the
//! former service or another device wrote there counts. Else it is one that this device knows.
//! Better than the former service on purpose: whatever it answered with status 500 is a 400 that
//! names the reason in JSON, and a body needs no `Content-Type`.

use std::borrow::Cow;
use std::collections::HashSet;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::multipart::MultipartError;
use axum::extract::{FromRequest as _, Multipart, Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::app::commands::reply_to::ReplyContent;
use crate::app::delivery::mongo_venues::venue_record;
use crate::app::http::api::status_of;
use crate::app::http::{HttpServer, Refused, Shared, content_type, new_request_id};
use crate::attend::venue::{VENUES_MAX, Venue, VenueSpec, date_time_text, parse_date_time};
use crate::ids::Name;
use crate::mongo::{LegacyVenue, VenueRecord};
use crate::store::{StoreError, Tx};
use crate::wire::command::{
    Attend, Command, EncodedImage, Enrol, ErrorCode, Recognise, Rejection, VenueDelete, Verb,
};
use crate::wire::reply::Reply;
use crate::wire::subject_id_from_name;

/// How the former service named a face that it did not know.
const UNKNOWN: &str = "Unknown";
/// MongoDB is asked within this time; then the device's own record answers. A guess.
const MONGO_PATIENCE: Duration = Duration::from_secs(3);
/// Of all names in one list of venues: as much as is taken from MongoDB.
const NAMES_BYTES_MAX: usize = 16 << 20;

/// A body's fields; those that the routes do not know are passed over, as the former service did.
#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow, default)]
    image: Option<&'a RawValue>,
    #[serde(borrow, default)]
    venue_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    date_time: Option<&'a RawValue>,
}

/// A field of a body as the former service judged it.
enum Field<'a> {
    /// Missing, or what Python takes for false.
    Empty,
    Text(Cow<'a, str>),
    /// Of another type.
    Other,
}

impl<'a> Field<'a> {
    fn of(raw: Option<&'a RawValue>) -> Self {
        let Some(raw) = raw.map(RawValue::get) else {
            return Self::Empty;
        };
        if matches!(raw, "null" | "false" | "\"\"" | "[]" | "{}") || raw.parse() == Ok(0.0_f64) {
            return Self::Empty;
        }
        // An image is borrowed where it has no escapes.
        match serde_json::from_str::<Text<'a>>(raw) {
            Ok(Text(text)) => Self::Text(text),
            Err(_) => Self::Other,
        }
    }
}

#[derive(Deserialize)]
struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

pub(super) async fn recognize_faces(
    State(server): Shared,
    body: Bytes,
) -> Result<Response, Refused> {
    let image = match Field::of(read(&body)?.image) {
        Field::Empty => return Err(Refused::bad("Image data is required")),
        field => server.image(field)?,
    };
    drop(body);
    let Reply::Recognised(recognised) =
        server.execute(Verb::Recognise(Recognise { image })).await?
    else {
        return Err(other_reply());
    };
    let unknown = recognised.faces.iter().any(|face| face.subject.is_none());
    Ok(Json(json!({"names": with_unknown(&recognised.names, unknown)})).into_response())
}

pub(super) async fn get_attendance(
    State(server): Shared,
    body: Bytes,
) -> Result<Response, Refused> {
    let fields = read(&body)?;
    let (venue_id, image) = match (Field::of(fields.venue_id), Field::of(fields.image)) {
        (Field::Empty, _) | (_, Field::Empty) => {
            return Err(Refused::bad("venue_id and image are required"));
        }
        (Field::Text(id), image) => (id.into_owned(), image),
        (Field::Other, _) => return Err(Refused::bad("Invalid venue_id format")),
    };
    let venue = server.legacy_venue(&venue_id).await?;
    let image = server.image(image)?;
    drop(body);
    let attend = Attend { venue: venue.clone(), image, direction: None };
    let Reply::Attended(attended) = server.execute(Verb::Attend(attend)).await? else {
        return Err(other_reply());
    };
    let unknown = attended.unknown > 0;
    let body = json!({
        "message": "Attendance updated successfully",
        "venue_id": venue_id,
        "attendance": server.attendance_at(&venue, unknown).await?,
        "recognized_names": with_unknown(&attended.recognised, unknown),
    });
    Ok(Json(body).into_response())
}

/// Another photograph of a name that is known becomes another reference of theirs.
pub(super) async fn add_face(State(server): Shared, request: Request) -> Result<Response, Refused> {
    let missing = || Refused::bad("Image and name are required");
    if content_type(request.headers()) != "multipart/form-data" {
        return Err(missing());
    }
    let form = Multipart::from_request(request, &())
        .await
        .map_err(|_| Refused::bad("the multipart has no boundary"))?;
    let (name, image) = server.new_face(form).await?.ok_or_else(missing)?;
    let subject_id = subject_id_from_name::from_name(name.as_str());
    let id = subject_id.clone();
    let known = server.store.read(move |tx| tx.subject(&id)).await?;
    if known.is_some_and(|it| {
        subject_id_from_name::composed(it.name.as_str())
            != subject_id_from_name::composed(name.as_str())
    }) {
        let message = "somebody with another name has the id that is made of this one; enrol by MQTT with an id of your own";
        return Err(Refused(StatusCode::CONFLICT, message.into()));
    }
    let enrol = Enrol {
        subject_id,
        name,
        images: vec![image],
        replace: false,
        allow_duplicate: false,
        consent: None,
    };
    server.execute(Verb::Enrol(enrol)).await?;
    Ok(Json(json!({"success": true})).into_response())
}

pub(super) async fn create_venue(State(server): Shared, body: Bytes) -> Result<Response, Refused> {
    let fields = read(&body)?;
    let (Field::Text(name), Field::Text(date_time)) =
        (Field::of(fields.name), Field::of(fields.date_time))
    else {
        return Err(Refused::bad("Name and date_time are required"));
    };
    let date_time = parse_date_time(&date_time).map_err(|_| {
        Refused::bad("Invalid date_time format. Expected format: YYYY-MM-DD HH:MM:SS")
    })?;
    let venue = LegacyVenue {
        id: new_venue_id(server.clock.now().wall_ms),
        name: name.into_owned(),
        date_time: Some(date_time),
        attendance: Vec::new(),
    };
    server.put_legacy_venue(&venue).await?;
    // Others read it there; if it cannot be written now, it is with the next event.
    if let (Some(link), Some(record)) = (&server.mongo, server.record_of(&venue.id)) {
        in_time(link.put_legacy_venue(&record)).await;
    }
    let body = json!({"message": "Venue created successfully!", "venue_id": venue.id});
    Ok((StatusCode::CREATED, Json(body)).into_response())
}

pub(super) async fn all_venues(State(server): Shared) -> Result<Response, Refused> {
    let mut venues = match &server.mongo {
        Some(link) => in_time(link.list_legacy_venues()).await.unwrap_or_default(),
        None => Vec::new(),
    };
    let known: HashSet<String> = venues.iter().map(|it| it.id.clone()).collect();
    let all = server.venues.all();
    let own: Vec<Venue> =
        all.iter().map(|it| &it.venue).filter(|it| !known.contains(&it.id)).cloned().collect();
    venues.extend(server.report(move |tx| list_own(tx, &own)).await?);
    // As the former service, which knew no venue without a time: its clients read the time of each. A
    // device without MongoDB lists what it has.
    if server.mongo.is_some() {
        venues.retain(|it| it.date_time.is_some());
    }
    let entry = |it: LegacyVenue| {
        json!({
            "_id": it.id,
            "name": it.name,
            // A venue that was not made by the former service takes place at no one time.
            "date_time": it.date_time.map_or_else(String::new, date_time_text),
            "attendance": it.attendance,
        })
    };
    let entries: Vec<Value> = venues.into_iter().map(entry).collect();
    Ok(Json(json!({"venues": entries})).into_response())
}

/// This device's venues with the names that it recorded there.
fn list_own(tx: &Tx<'_>, venues: &[Venue]) -> Result<Vec<LegacyVenue>, StoreError> {
    let mut listed = Vec::new();
    let (mut names, mut bytes) = (0, 0);
    for venue in venues {
        let attendance = tx.names_recorded(&venue.id)?;
        bytes += attendance.iter().map(String::len).sum::<usize>();
        if bytes > NAMES_BYTES_MAX {
            return Err(StoreError::TooManyRecords { records_max: names });
        }
        names += attendance.len() as u64;
        listed.push(LegacyVenue {
            id: venue.id.clone(),
            name: venue.name.clone(),
            date_time: venue.date_time,
            attendance,
        });
    }
    Ok(listed)
}

/// The result of a question to MongoDB, if there is one in time.
async fn in_time<T>(asked: impl Future<Output = Result<T, String>>) -> Option<T> {
    match tokio::time::timeout(MONGO_PATIENCE, asked).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(reason)) => {
            tracing::warn!(reason, "a request is answered without MongoDB");
            None
        }
        Err(_) => {
            tracing::warn!(timeout = ?MONGO_PATIENCE, "a request is answered without MongoDB: no reply");
            None
        }
    }
}

/// The names of an answer, with the former service's for faces of nobody.
fn with_unknown(names: &[Name], unknown: bool) -> Vec<&str> {
    names.iter().map(Name::as_str).chain(unknown.then_some(UNKNOWN)).collect()
}

fn other_reply() -> Refused {
    Refused::busy("the reply belongs to another command")
}

/// Returns an id in the form of MongoDB's, which the former service gave to its venues: the time in
/// seconds, and what nobody else draws.
fn new_venue_id(now_ms: i64) -> String {
    format!("{:08x}{:016x}", (now_ms / 1000) as u32, fastrand::u64(..))
}

fn is_object_id(id: &str) -> bool {
    id.len() == 24 && id.bytes().all(|it| it.is_ascii_hexdigit())
}

impl HttpServer {
    /// Finds the venue that a client means and returns its id. One that only MongoDB knows is
    /// learnt from there.
    async fn legacy_venue(&self, id: &str) -> Result<String, Refused> {
        let lower = id.to_ascii_lowercase();
        if let Some(known) = self.venues.find(id).or_else(|| self.venues.find(&lower)) {
            return Ok(known.id);
        }
        if !is_object_id(id) {
            return Err(Refused::bad("Invalid venue_id format"));
        }
        let found = match &self.mongo {
            Some(link) => in_time(link.find_legacy_venue(&lower)).await.flatten(),
            None => None,
        };
        let venue =
            found.ok_or_else(|| Refused(StatusCode::NOT_FOUND, "Venue not found".into()))?;
        self.put_legacy_venue(&venue).await?;
        Ok(venue.id)
    }

    /// Makes a venue known here. The oldest of a full device makes room: it is in MongoDB, and known
    /// again when a client names it.
    async fn put_legacy_venue(&self, venue: &LegacyVenue) -> Result<(), Refused> {
        let all = self.venues.all();
        if self.mongo.is_some() && all.len() >= VENUES_MAX {
            let dated = all.iter().filter_map(|it| Some((it.venue.date_time?, &it.venue.id)));
            if let Some((_, oldest)) = dated.min() {
                self.execute(Verb::VenueDelete(VenueDelete { venue: oldest.clone() })).await?;
            }
        }
        let spec = VenueSpec {
            name: venue.name.clone(),
            date_time: venue.date_time.map(date_time_text),
            ..VenueSpec::plain(&venue.id)
        };
        self.execute(Verb::VenuePut(spec)).await.map(drop)
    }

    fn record_of(&self, id: &str) -> Option<VenueRecord> {
        self.venues.all().iter().find(|it| it.venue.id == id).map(venue_record)
    }

    /// Everybody who was ever at a venue: first those of MongoDB, then whom this device recorded and
    /// has not delivered yet.
    async fn attendance_at(&self, venue: &str, unknown: bool) -> Result<Vec<String>, Refused> {
        let of = venue.to_owned();
        let recorded = self.report(move |tx| tx.names_recorded(&of)).await?;
        let mut names = match &self.mongo {
            Some(link) => {
                if unknown {
                    in_time(link.add_legacy_name(venue, UNKNOWN)).await;
                }
                let found = in_time(link.find_legacy_venue(venue)).await.flatten();
                found.map(|it| it.attendance).unwrap_or_default()
            }
            None => Vec::new(),
        };
        let unknown = unknown.then(|| UNKNOWN.to_owned());
        let listed: HashSet<String> = names.iter().cloned().collect();
        names.extend(recorded.into_iter().chain(unknown).filter(|it| !listed.contains(it)));
        Ok(names)
    }

    /// Returns the reply of a command that was executed.
    async fn execute(&self, verb: Verb) -> Result<Reply, Refused> {
        let command = Command { request_id: new_request_id(), expires_ms: None, verb };
        match self.ask(command).await?.content {
            ReplyContent::Executed(reply) => Ok(reply),
            ReplyContent::Rejected(it) => Err(Refused(status_of(it.code), it.message)),
            // The request id is a new one.
            ReplyContent::Stored(_) => Err(other_reply()),
        }
    }

    fn image(&self, field: Field<'_>) -> Result<EncodedImage, Refused> {
        let Field::Text(text) = field else {
            return Err(Refused::bad("image must be base64 or a data URL"));
        };
        EncodedImage::from_text("image", &text, &self.limits).map_err(refused)
    }

    /// `None`: a field is missing, or the name is empty.
    async fn new_face(&self, mut form: Multipart) -> Result<Option<(Name, EncodedImage)>, Refused> {
        let broken = |_: MultipartError| Refused::bad("the multipart body is broken");
        let mut name = None;
        let mut image = None;
        while let Some(field) = form.next_field().await.map_err(broken)? {
            match field.name() {
                Some("name") => {
                    let text = field.text().await.map_err(broken)?;
                    if text.trim().is_empty() {
                        return Ok(None);
                    }
                    name = Some(
                        Name::new(text.trim())
                            .map_err(|error| Refused::bad(format!("name: {error}")))?,
                    );
                }
                Some("image") => image = Some(field.bytes().await.map_err(broken)?),
                _ => {}
            }
        }
        let (Some(name), Some(image)) = (name, image) else {
            return Ok(None);
        };
        let image =
            EncodedImage::from_bytes("image", image.to_vec(), &self.limits).map_err(refused)?;
        Ok(Some((name, image)))
    }
}

fn refused(rejection: Rejection) -> Refused {
    let status = if rejection.code == ErrorCode::TooLarge {
        StatusCode::PAYLOAD_TOO_LARGE
    } else {
        StatusCode::BAD_REQUEST
    };
    Refused(status, rejection.message)
}

/// A JSON body, read in place: an image in it is not copied.
fn read(body: &[u8]) -> Result<Body<'_>, Refused> {
    // The library's own words may quote the body.
    serde_json::from_slice(body).map_err(|_| Refused::bad("the body is not a JSON object"))
}

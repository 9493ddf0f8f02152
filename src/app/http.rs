//! What the HTTP routes do: the former service's three, and the device's own state and record.
//!
//! Images go the way of commands: through the queue of the networks, live frames first; and what they change is the same
//! transactions. Answers quote nothing of a request.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::Duration;

use anyhow::Context as _;
use axum::body::Bytes;
use axum::extract::multipart::MultipartError;
use axum::extract::{DefaultBodyLimit, FromRequest as _, Multipart, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};

use crate::app::commander::carry_out::{NewEnrolment, unfit};
use crate::app::gallery::GalleryCell;
use crate::app::inference::{Job, LookError, Seen};
use crate::app::recorder::{record_visits, visits_in};
use crate::app::supervise::StageResult;
use crate::app::venues::VenueBook;
use crate::clock::{Clock, Stopwatch};
use crate::health::{CameraHealth, Health};
use crate::http::guard::{Guard, guard};
use crate::http::{HttpSettings, cors, refusal, serve};
use crate::recognise::decision::Decision;
use crate::recognise::face::{ModelDigest, Name, Template, subject_id_from_name};
use crate::recognise::gallery;
use crate::record::command::{EncodedImage, ErrorCode, Limits};
use crate::record::store::{Store, StoreError, Tx};

/// A request waits this long for the networks.
const JOB_PATIENCE: Duration = Duration::from_secs(20);

#[derive(Clone)]
pub struct HttpServer {
    pub settings: HttpSettings,
    pub limits: Limits,
    pub site: String,
    pub device: String,
    pub venues: Arc<VenueBook>,
    pub store: Store,
    pub gallery: Arc<GalleryCell>,
    pub embedder: ModelDigest,
    pub jobs: SyncSender<Job>,
    pub clock: Arc<dyn Clock>,
    pub health: Arc<Health>,
    /// Told when the vital signs changed in a way worth publishing at once.
    pub changed: Arc<tokio::sync::Notify>,
}

type Shared = State<Arc<HttpServer>>;

/// A refusal with its status.
pub struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        refusal(self.0, &self.1)
    }
}

impl Refused {
    pub fn bad(message: impl Into<String>) -> Self {
        Self(StatusCode::BAD_REQUEST, message.into())
    }

    fn busy(message: &str) -> Self {
        Self(StatusCode::SERVICE_UNAVAILABLE, message.to_owned())
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        let message = error.to_string();
        tracing::error!(error = format!("{:#}", anyhow::Error::new(error)), "a request failed");
        Self(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

impl HttpServer {
    pub async fn listen(&self) -> anyhow::Result<TcpListener> {
        let listener = TcpListener::bind(self.settings.listen).await;
        let listener = listener.with_context(|| format!("[http] listen: cannot listen on {}", self.settings.listen))?;
        tracing::info!(address = %listener.local_addr()?, token = self.settings.token.is_some(), "http listening");
        Ok(listener)
    }

    pub async fn run(self, listener: TcpListener, stop: watch::Receiver<bool>) -> StageResult {
        let connections_max = self.settings.connections_max;
        serve(listener, self.router(), connections_max, stop).await;
        Ok(())
    }

    fn router(self) -> Router {
        let watchman = Arc::new(Guard::new(&self.settings, Arc::clone(&self.health)));
        let cors = cors(&self.settings.origins);
        let unknown = || async { refusal(StatusCode::NOT_FOUND, "there is no such route") };
        let method = || async { refusal(StatusCode::METHOD_NOT_ALLOWED, "the route has another method") };
        Router::new()
            .route("/", get(|| async { "rollcall: see /openapi.json\n" }))
            .route("/recognize_faces", post(recognize_faces))
            .route("/get-attendance", post(get_attendance))
            .route("/add_face", post(add_face))
            .route("/healthz", get(healthz))
            .fallback(unknown)
            .method_not_allowed_fallback(method)
            .with_state(Arc::new(self))
            // The guard has its own limit, and reads the body before anything else does.
            .layer(DefaultBodyLimit::disable())
            .layer(middleware::from_fn_with_state(watchman, guard))
            .layer(cors)
    }

    fn submit(&self, job: Job) -> Result<(), Refused> {
        self.jobs.try_send(job).map_err(|refused| match refused {
            TrySendError::Full(_) => Refused::busy("the networks are busy; try again"),
            TrySendError::Disconnected(_) => Refused::busy("the device is stopping"),
        })
    }

    async fn wait<T>(&self, answered: oneshot::Receiver<T>) -> Result<T, Refused> {
        match tokio::time::timeout(JOB_PATIENCE, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Refused::busy("the device is stopping")),
            Err(_) => Err(Refused::busy("the networks are busy; try again")),
        }
    }

    async fn look(&self, image: &EncodedImage) -> Result<Vec<Seen>, Refused> {
        let (answer, answered) = oneshot::channel();
        self.submit(Job::Look { photograph: image.bytes().to_vec(), answer })?;
        match self.wait(answered).await? {
            Ok(seen) => Ok(seen),
            Err(LookError::Picture(error)) => Err(Refused::bad(format!("image cannot be used: {error}"))),
            Err(LookError::Engine(error)) => Err(failed(error)),
        }
    }

    fn image(&self, text: &str) -> Result<EncodedImage, Refused> {
        EncodedImage::from_text("image", text, &self.limits).map_err(|refusal| match refusal.code {
            ErrorCode::TooLarge => Refused(StatusCode::PAYLOAD_TOO_LARGE, refusal.message),
            _ => Refused::bad(refusal.message),
        })
    }
}

/// The networks failed: told in the log with the cause, to the client without.
fn failed(error: impl Into<anyhow::Error>) -> Refused {
    let error = error.into();
    let said = error.to_string();
    tracing::error!(error = format!("{error:#}"), "a request failed");
    Refused::busy(&said)
}

/// A JSON body, read in place: an image in it is not copied.
fn json_body<'a, T: Deserialize<'a>>(headers: &HeaderMap, body: &'a [u8]) -> Result<T, Refused> {
    let content_type = headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    if content_type.split(';').next().map(str::trim) != Some("application/json") {
        return Err(Refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the Content-Type must be application/json".into()));
    }
    // The library's own words may quote the body.
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => Refused::bad("a field is missing, or has the wrong type"),
        _ => Refused::bad("the body is not JSON"),
    })
}

// Fields that these do not know are passed over, as the former service did.

#[derive(Deserialize)]
struct ToRecognise<'a> {
    #[serde(borrow)]
    image: std::borrow::Cow<'a, str>,
}

#[derive(Deserialize)]
struct ToAttend<'a> {
    #[serde(borrow)]
    venue_id: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    image: std::borrow::Cow<'a, str>,
}

async fn recognize_faces(State(server): Shared, headers: HeaderMap, body: Bytes) -> Result<Response, Refused> {
    let image = server.image(&json_body::<ToRecognise<'_>>(&headers, &body)?.image)?;
    drop(body);
    let seen = server.look(&image).await?;
    Ok(Json(json!({"names": names(&seen)})).into_response())
}

/// Everybody once, in the order of the faces.
fn names(seen: &[Seen]) -> Vec<Name> {
    let mut known = HashSet::new();
    let identified = seen.iter().filter_map(|it| match &it.decision {
        Decision::Identified(found) => Some(&found.subject),
        _ => None,
    });
    identified.filter(|it| known.insert(it.id.clone())).map(|it| it.name.clone()).collect()
}

async fn get_attendance(State(server): Shared, headers: HeaderMap, body: Bytes) -> Result<Response, Refused> {
    let wanted = json_body::<ToAttend<'_>>(&headers, &body)?;
    let venue = server.venues.find(&wanted.venue_id);
    let venue = venue.ok_or_else(|| Refused(StatusCode::NOT_FOUND, "Venue not found".into()))?;
    let image = server.image(&wanted.image)?;
    drop(wanted);
    drop(body);
    let (watch, at) = (Stopwatch::start(), server.clock.now());
    let seen = server.look(&image).await?;
    let visits = visits_in(&seen, None, watch.elapsed().as_millis() as u64);
    let (clock, id) = (Arc::clone(&server.clock), venue.id.clone());
    let write = move |tx: &mut Tx<'_>| {
        let recorded = record_visits(tx, &venue, &visits, at, clock.as_ref())?.len();
        Ok((recorded as u64, tx.names_recorded(&venue.id)?))
    };
    let (recorded, attendance) = server.store.write_async(write).await?;
    server.health.recorded.add(recorded);
    let message = "Attendance recorded successfully";
    let answer =
        json!({"message": message, "venue_id": id, "attendance": attendance, "recognized_names": names(&seen)});
    Ok(Json(answer).into_response())
}

async fn add_face(State(server): Shared, request: Request) -> Result<Response, Refused> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    if !content_type.to_ascii_lowercase().starts_with("multipart/form-data") {
        return Err(Refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the Content-Type must be multipart/form-data".into()));
    }
    let form = Multipart::from_request(request, &()).await.map_err(|_| Refused::bad("the multipart has no boundary"))?;
    let (name, image) = server.new_face(form).await?;
    let id = subject_id_from_name(&name);
    let (answer, answered) = oneshot::channel();
    server.submit(Job::Enrol { subject: id.clone(), photographs: vec![image], answer })?;
    let judgement = server.wait(answered).await?.map_err(failed)?;
    if let Some((_, message)) = unfit(&judgement, false) {
        return Err(Refused::bad(message));
    }
    let at = server.clock.now();
    let enrolment = NewEnrolment::new(id.clone(), name.clone(), false, &judgement, server.embedder, at);
    // Store and gallery change in the same order.
    let alone = server.gallery.alone().await;
    server.store.write_async(move |tx| enrolment.store(tx, None)).await?;
    let templates: Vec<Template> = judgement.accepted().map(|(template, _)| template.clone()).collect();
    server.gallery.update(|gallery| gallery.with(gallery::Subject { id, name }, &templates));
    drop(alone);
    server.changed.notify_one();
    Ok(Json(json!({"success": true})).into_response())
}

impl HttpServer {
    async fn new_face(&self, mut form: Multipart) -> Result<(Name, Vec<u8>), Refused> {
        let broken = |_: MultipartError| Refused::bad("the multipart body is broken");
        let (mut name, mut image) = (None, None);
        while let Some(field) = form.next_field().await.map_err(broken)? {
            match field.name() {
                Some("name") => {
                    let text = field.text().await.map_err(broken)?;
                    name = Some(Name::new(&text).map_err(|error| Refused::bad(format!("name: {error}")))?);
                }
                Some("image") => image = Some(field.bytes().await.map_err(broken)?),
                _ => {}
            }
        }
        let (Some(name), Some(image)) = (name, image) else {
            return Err(Refused::bad("image and name are needed"));
        };
        if image.len() > self.limits.image_bytes {
            let message = format!("image has {} bytes; at most {}", image.len(), self.limits.image_bytes);
            return Err(Refused(StatusCode::PAYLOAD_TOO_LARGE, message));
        }
        Ok((name, image.to_vec()))
    }

    /// What keeps the device from its job, in words; nothing of anybody.
    fn faults(&self) -> Vec<&'static str> {
        let faults = [
            (self.health.camera() == CameraHealth::Lost, "the camera is lost"),
            (!self.store.vitals().reserve_held, "the disk is full, or nearly"),
        ];
        faults.into_iter().filter(|it| it.0).map(|it| it.1).collect()
    }
}

async fn healthz(State(server): Shared) -> Response {
    let faults = server.faults();
    let status = if faults.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"healthy": faults.is_empty(), "faults": faults}))).into_response()
}

//! The HTTP server of a device: what is asked of it goes the way of commands, and what it tells is what MQTT tells.
//!
//! Whatever changes something, or takes the networks, is a [`Command`](crate::record::command::Command) that the commander
//! carries out among those of MQTT: live frames first, one after the other, in the same transactions. Answers of refusals quote
//! nothing of a request.

mod api;
mod attendance;
mod feed;
mod former;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::app::commander::asked::Request;
use crate::app::exposition;
use crate::app::metrics::Metrics;
use crate::app::scene::Scenes;
use crate::app::supervise::StageResult;
use crate::app::venues::VenueBook;
use crate::app::vitals::Vitals;
use crate::clock::{Clock, Stopwatch};
use crate::health::{CameraHealth, Health};
use crate::http::guard::{Guard, guard};
use crate::http::{HttpSettings, cors, page, refusal, serve};
use crate::record::command::{Command, Limits};
use crate::record::store::{Store, StoreError};

/// A request waits this long for its command to be carried out; `enrol_from_camera` for two minutes at most.
const PATIENCE: Duration = Duration::from_mins(3);
/// Feeds at once.
const FEEDS_MAX: usize = 8;

pub struct HttpServer {
    pub settings: HttpSettings,
    pub limits: Limits,
    pub site: String,
    pub device: String,
    pub venues: Arc<VenueBook>,
    pub store: Store,
    pub requests: mpsc::Sender<Request>,
    pub clock: Arc<dyn Clock>,
    pub health: Arc<Health>,
    pub vitals: Arc<Vitals>,
    pub metrics: Metrics,
    pub scenes: Arc<Scenes>,
    /// Whether pictures may leave the daemon.
    pub snapshot: bool,
    pub stop: watch::Receiver<bool>,
    pub feeds: Arc<Semaphore>,
    /// When a picture was asked for last, so that it is logged once and not ten times a second.
    pub shown: Mutex<Option<Stopwatch>>,
}

type Shared = State<Arc<HttpServer>>;

/// A refusal with its status.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        refusal(self.0, &self.1)
    }
}

impl Refused {
    fn bad(message: impl Into<String>) -> Self {
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

pub fn feeds() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(FEEDS_MAX))
}

impl HttpServer {
    pub async fn listen(&self) -> anyhow::Result<TcpListener> {
        let listener = TcpListener::bind(self.settings.listen).await;
        let listener = listener
            .with_context(|| format!("[http] listen: cannot listen on {}", self.settings.listen))?;
        tracing::info!(address = %listener.local_addr()?, token = self.settings.token.is_some(), "http listening");
        Ok(listener)
    }

    pub async fn run(self, listener: TcpListener) -> StageResult {
        let (connections_max, stop) = (self.settings.connections_max, self.stop.clone());
        serve(listener, self.router(), connections_max, stop).await;
        Ok(())
    }

    fn router(self) -> Router {
        let watchman = Arc::new(Guard::new(&self.settings, Arc::clone(&self.health)));
        let cors = cors(&self.settings.origins);
        let needs_token = self.settings.token.is_some();
        let unknown = || async { refusal(StatusCode::NOT_FOUND, "there is no such route") };
        let method =
            || async { refusal(StatusCode::METHOD_NOT_ALLOWED, "the route has another method") };
        Router::new()
            .route("/recognize_faces", post(former::recognize_faces))
            .route("/get-attendance", post(former::get_attendance))
            .route("/add_face", post(former::add_face))
            .route("/healthz", get(healthz))
            .route("/metrics", get(metrics))
            .route("/openapi.json", get(openapi))
            .route("/api/command/{verb}", post(api::command))
            .route("/api/attendance", get(attendance::attendance))
            .route("/api/health", get(api::health))
            .route("/api/events", get(feed::events))
            .route("/api/picture", get(api::picture))
            .merge(page::routes(needs_token))
            .fallback(unknown)
            .method_not_allowed_fallback(method)
            .with_state(Arc::new(self))
            // The guard has its own limit, and reads the body before anything else does.
            .layer(DefaultBodyLimit::disable())
            .layer(middleware::from_fn_with_state(watchman, guard))
            .layer(cors)
    }

    /// Hands a command to the commander and waits for its answer.
    async fn ask(&self, command: Command) -> Result<String, Refused> {
        let (answer, answered) = oneshot::channel();
        self.requests.try_send(Request { command, answer }).map_err(|refused| match refused {
            TrySendError::Full(_) => Refused::busy("the device is busy; try again"),
            TrySendError::Closed(_) => Refused::busy("the device is stopping"),
        })?;
        match tokio::time::timeout(PATIENCE, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(Refused::busy("the device is stopping")),
            Err(_) => Err(Refused::busy("no answer in time; try again")),
        }
    }

    /// What keeps the device from its job, in words; nothing of anybody.
    fn faults(&self) -> Vec<&'static str> {
        let faults = [
            (self.health.camera() == CameraHealth::Lost, "the camera is lost"),
            (!self.store.is_reserve_held(), "the disk is full, or nearly"),
        ];
        faults.into_iter().filter(|it| it.0).map(|it| it.1).collect()
    }
}

/// The kind of the body, without parameters.
fn content_type(headers: &HeaderMap) -> String {
    let text =
        headers.get(header::CONTENT_TYPE).and_then(|it| it.to_str().ok()).unwrap_or_default();
    text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

fn json_only(headers: &HeaderMap) -> Result<(), Refused> {
    if content_type(headers) == "application/json" {
        return Ok(());
    }
    Err(Refused(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "the Content-Type must be application/json".into(),
    ))
}

/// A request id for who gave none.
fn new_request_id() -> String {
    format!("http-{}", uuid::Uuid::now_v7())
}

async fn healthz(State(server): Shared) -> Response {
    let faults = server.faults();
    let status = if faults.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({"healthy": faults.is_empty(), "faults": faults}))).into_response()
}

async fn metrics(State(server): Shared) -> Response {
    ([(header::CONTENT_TYPE, exposition::CONTENT_TYPE)], server.metrics.text()).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("http/openapi.json"))
        .into_response()
}

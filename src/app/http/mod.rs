//! The HTTP server of a device: requests go the way of commands, and replies are those of
//! MQTT.
//!
//! Whatever changes something, or takes the networks, is a
//! [`Command`](crate::wire::command::Command) that the commander carries out among those of MQTT:
//! live frames first, one after the other, in the same transactions. Answers of refusals quote
//! nothing of a request.

mod api;
mod attendance;
mod events;
mod guesses;
mod legacy;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::{DefaultBodyLimit, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};

use crate::app::commands::reply_to::{Request, WrittenReply};
use crate::app::context::Context;
use crate::app::http::guesses::GuessReporter;
use crate::app::monitor::health_message::HealthReporter;
use crate::app::monitor::metrics::Metrics;
use crate::app::monitor::prometheus;
use crate::app::state::preview::PreviewFeed;
use crate::app::state::repeats::RepeatFeed;
use crate::app::state::venues::VenueRegistry;
use crate::app::supervise::StageResult;
use crate::backoff::Backoff;
use crate::clock::Clock;
use crate::error_chain::error_chain;
use crate::health::{CameraHealth, Health, HttpState};
use crate::http::guard::{RequestGuard, guard};
use crate::http::places::per_peer_max;
use crate::http::{HttpSettings, cors_layer, error_response, page, serve};
use crate::ids::Origin;
use crate::log_throttle::LogThrottle;
use crate::mongo::MongoLink;
use crate::store::{Store, StoreError, Tx};
use crate::wire::command::{Command, Limits};

/// A request waits this long for its command to be carried out; `enrol_from_camera` for two minutes
/// at most.
const PATIENCE: Duration = Duration::from_mins(3);
/// Between two attempts to listen. A guess.
const LISTEN_BACKOFF: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(30));
/// Pictures within this time are one line in the log.
const LOG_PICTURES_EVERY: Duration = Duration::from_mins(1);
/// Feeds at once.
const FEEDS_MAX: usize = 8;
/// Of the places of one address, feeds leave so many to requests.
const PLACES_WITHOUT_FEED: usize = 2;

pub struct HttpServer {
    settings: HttpSettings,
    limits: Limits,
    origin: Origin,
    venues: Arc<VenueRegistry>,
    store: Store,
    requests: mpsc::Sender<Request>,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    reporter: Arc<HealthReporter>,
    metrics: Metrics,
    feed: Arc<PreviewFeed>,
    repeats: RepeatFeed,
    /// Whether pictures may leave the daemon.
    snapshot: bool,
    mongo: Option<MongoLink>,
    stop: watch::Receiver<bool>,
    feeds: Arc<Semaphore>,
    /// Reports that may be read at a time: commands wait for the same thread.
    reports: Semaphore,
    picture_log: Mutex<LogThrottle>,
}

/// Reports that wait for the store at a time. One takes up to 15 s, and a command waits behind them.
const REPORTS_MAX: usize = 2;

/// What the server takes from other stages.
pub struct HttpInputs {
    pub requests: mpsc::Sender<Request>,
    pub reporter: Arc<HealthReporter>,
    pub metrics: Metrics,
    pub feed: Arc<PreviewFeed>,
    /// Where the legacy API reads and writes venues.
    pub mongo: Option<MongoLink>,
}

type Shared = State<Arc<HttpServer>>;

/// An error response with its status.
struct Refused(StatusCode, String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        error_response(self.0, &self.1)
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
        match error {
            StoreError::TooManyRecords { .. } => return Self(StatusCode::BAD_REQUEST, message),
            StoreError::TooSlow { .. } => tracing::warn!(%error, "a request was given up"),
            error => tracing::error!(error = error_chain(&error), "a request failed"),
        }
        Self(StatusCode::SERVICE_UNAVAILABLE, message)
    }
}

impl HttpServer {
    pub fn new(
        ctx: Context,
        settings: HttpSettings,
        inputs: HttpInputs,
        stop: watch::Receiver<bool>,
    ) -> Self {
        let HttpInputs { requests, reporter, metrics, feed, mongo } = inputs;
        let limits = ctx.command_limits();
        let feeds_max = FEEDS_MAX.min(per_peer_max(settings.connections_max) - PLACES_WITHOUT_FEED);
        let snapshot = ctx.settings.snapshot;
        let Context { origin, venues, store, clock, health, repeats, .. } = ctx;
        Self {
            settings,
            limits,
            origin,
            venues,
            store,
            requests,
            clock,
            health,
            reporter,
            metrics,
            feed,
            repeats,
            snapshot,
            mongo,
            stop,
            feeds: Arc::new(Semaphore::new(feeds_max)),
            reports: Semaphore::new(REPORTS_MAX),
            picture_log: Mutex::new(LogThrottle::new(LOG_PICTURES_EVERY)),
        }
    }

    /// Reads a report, after those of other requests.
    async fn report<T, F>(&self, read: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let _turn = self.reports.acquire().await;
        self.store.report(read).await
    }

    /// Listens, if that is possible now.
    pub async fn listen(&self) -> std::io::Result<TcpListener> {
        let listener = TcpListener::bind(self.settings.listen).await?;
        let address = listener.local_addr()?;
        self.health.set_http(HttpState::Listening);
        tracing::info!(%address, token = self.settings.token.is_some(), "http listening");
        Ok(listener)
    }

    /// Serves. An address that cannot be used, such as a taken port, is tried again for as long as
    /// the daemon runs: attendance needs no HTTP.
    pub async fn run(self, mut first: std::io::Result<TcpListener>) -> StageResult {
        let mut stop = self.stop.clone();
        let mut failures = 0;
        let listener = loop {
            let error = match first {
                Ok(listener) => break listener,
                Err(error) => error,
            };
            if failures == 0 {
                tracing::error!(
                    address = %self.settings.listen, %error,
                    "[http] listen: cannot listen; page and routes are not served, and it is tried again"
                );
            }
            failures += 1;
            self.health.set_http(HttpState::Unavailable);
            tokio::select! {
                () = tokio::time::sleep(LISTEN_BACKOFF.pause(failures)) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
            first = self.listen().await;
        };
        let connections_max = self.settings.connections_max;
        let stop = self.stop.clone();
        let watchman = Arc::new(RequestGuard::new(&self.settings, Arc::clone(&self.health)));
        let guesses = GuessReporter::new(
            watchman.wrong_tokens(),
            self.store.clone(),
            Arc::clone(&self.clock),
        );
        let router = self.router(watchman);
        let (ended, ()) =
            tokio::join!(guesses.run(stop.clone()), serve(listener, router, connections_max, stop));
        ended
    }

    fn router(self, watchman: Arc<RequestGuard>) -> Router {
        let cors = cors_layer(&self.settings.origins);
        let needs_token = self.settings.token.is_some();
        let unknown = || async { error_response(StatusCode::NOT_FOUND, "there is no such route") };
        let method = || async {
            error_response(StatusCode::METHOD_NOT_ALLOWED, "the route has another method")
        };
        Router::new()
            .route("/recognize_faces", post(legacy::recognize_faces))
            .route("/get-attendance", post(legacy::get_attendance))
            .route("/add_face", post(legacy::add_face))
            .route("/create-attendance-venue", post(legacy::create_venue))
            .route("/get-all-venues", get(legacy::all_venues))
            .route("/healthz", get(healthz))
            .route("/metrics", get(metrics))
            .route("/openapi.json", get(openapi))
            .route("/api/command/{verb}", post(api::command))
            .route("/api/attendance", get(attendance::attendance))
            .route("/api/health", get(api::health))
            .route("/api/events", get(events::events))
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
    async fn ask(&self, command: Command) -> Result<WrittenReply, Refused> {
        let (reply, replied) = oneshot::channel();
        self.requests.try_send(Request { command, reply }).map_err(|refused| match refused {
            TrySendError::Full(_) => Refused::busy("the device is busy; try again"),
            TrySendError::Closed(_) => Refused::busy("the device is stopping"),
        })?;
        match tokio::time::timeout(PATIENCE, replied).await {
            Ok(Ok(reply)) => Ok(reply),
            Ok(Err(_)) => Err(Refused::busy("the device is stopping")),
            Err(_) => Err(Refused::busy("no answer in time; try again")),
        }
    }

    /// What keeps the device from its job, in words; nothing of anybody.
    fn faults(&self) -> Vec<&'static str> {
        let faults = [
            (self.health.camera_state() == CameraHealth::Lost, "the camera is lost"),
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
    ([(header::CONTENT_TYPE, prometheus::CONTENT_TYPE)], server.metrics.to_text()).into_response()
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("openapi.json")).into_response()
}

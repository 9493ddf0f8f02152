//! The checks before any route: origin, token, rate and size of a request.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt as _;
use tokio::sync::{Notify, Semaphore};

use super::{HttpSettings, error_response, page};
use crate::clock::Stopwatch;
use crate::health::Health;
use crate::http::places::Peer;
use crate::http::token::{GUESS_PAUSE, GuessLimiter, Token};
use crate::rate_limiter::RateLimiter;

/// A body must arrive within this time. A guess.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// A body up to this size takes no permit: it costs little, and its command may wait for somebody to
/// come before the camera.
const SMALL_BYTES: u64 = 64 << 10;
/// The body of a request that is rejected by its head is read so long.
const REJECTED_BODY_TIMEOUT: Duration = Duration::from_secs(2);
/// What Prometheus reads is not limited: a client that asks too much must not end the monitoring.
const UNLIMITED_PATH: &str = "/metrics";
/// What is served without a token: the empty page, its description, and whether the device is well.
const PUBLIC_PATHS: [&str; 3] = ["/", "/openapi.json", "/healthz"];

/// What the token of a reader opens.
const READER_ROUTES: [(Method, &str); 7] = [
    (Method::GET, "/api/attendance"),
    (Method::GET, "/api/events"),
    (Method::GET, "/api/health"),
    (Method::GET, "/get-all-venues"),
    (Method::POST, "/api/command/attendance"),
    (Method::POST, "/api/command/subjects"),
    (Method::POST, "/api/command/venues"),
];
/// Tells the page with whose token it was served; its value is `read` or `all`.
const ACCESS_HEADER: &str = "rollcall-access";

/// Whose token a request presented.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    All,
    Read,
}

pub struct RequestGuard {
    token: Option<Token>,
    reader_token: Option<Token>,
    origins: Vec<String>,
    body_bytes_max: usize,
    permits: Semaphore,
    started: Stopwatch,
    rate: Mutex<RateLimiter>,
    guesses: Mutex<GuessLimiter>,
    wrong_tokens: Arc<WrongTokens>,
    health: Arc<Health>,
}

/// Wrong tokens since they were last taken, for who reports them.
#[derive(Debug, Default)]
pub struct WrongTokens {
    since: Mutex<(u32, Option<Peer>)>,
    came: Notify,
}

impl WrongTokens {
    fn add(&self, peer: Peer) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = (since.0.saturating_add(1), Some(peer));
        self.came.notify_one();
    }

    /// Returns how many came, and the address of the last one. Waits for the first.
    pub async fn next(&self) -> (u32, Option<Peer>) {
        self.came.notified().await;
        std::mem::take(&mut self.since.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Why a request is rejected by its head.
struct Rejection {
    status: StatusCode,
    message: &'static str,
    /// Of a guessed token: the reply waits.
    paused: Option<Peer>,
}

fn reject(status: StatusCode, message: &'static str) -> Rejection {
    Rejection { status, message, paused: None }
}

impl RequestGuard {
    pub fn new(settings: &HttpSettings, health: Arc<Health>) -> Self {
        Self {
            token: settings.token.clone(),
            reader_token: settings.reader_token.clone(),
            origins: settings.origins.clone(),
            body_bytes_max: settings.body_bytes_max,
            permits: Semaphore::new(settings.requests_max),
            started: Stopwatch::start(),
            rate: Mutex::new(RateLimiter::new(settings.per_minute_max)),
            guesses: Mutex::default(),
            wrong_tokens: Arc::default(),
            health,
        }
    }

    pub fn wrong_tokens(&self) -> Arc<WrongTokens> {
        Arc::clone(&self.wrong_tokens)
    }

    /// Rejects a request by its head alone. Returns what its token opens.
    fn check_head(&self, request: &Request) -> Result<Access, Rejection> {
        let headers = request.headers();
        let path = request.uri().path();
        if !self.is_allowed_origin(headers) || !is_allowed_site(headers, path) {
            let message = "pages of this origin may not use this device";
            return Err(reject(StatusCode::FORBIDDEN, message));
        }
        // Against DNS rebinding: a foreign name may point to this machine.
        if self.token.is_none()
            && !header_text(headers, header::HOST.as_str()).is_some_and(is_this_machine)
        {
            let message = "without a token only localhost is served: the Host header names another";
            return Err(reject(StatusCode::BAD_REQUEST, message));
        }
        let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
        if is_read && (PUBLIC_PATHS.contains(&path) || path.starts_with(page::FOLDER)) {
            return Ok(Access::All);
        }
        let mut access = Access::All;
        if let Some(token) = &self.token {
            let peer = request.extensions().get::<Peer>().copied();
            let authorization = header_text(headers, header::AUTHORIZATION.as_str());
            access = self.check_token(token, authorization, peer)?;
        }
        if access == Access::Read && !is_reader_route(request.method(), path) {
            let message = "this token may read the record, and nothing else";
            return Err(reject(StatusCode::FORBIDDEN, message));
        }
        if path == UNLIMITED_PATH {
            return Ok(access);
        }
        // After the token, so that strangers cannot use up the limit.
        if !self.rate.lock().unwrap_or_else(PoisonError::into_inner).allows(self.now_ms()) {
            let message = "too many requests in a minute";
            return Err(reject(StatusCode::TOO_MANY_REQUESTS, message));
        }
        Ok(access)
    }

    fn check_token(
        &self,
        token: &Token,
        authorization: Option<&str>,
        peer: Option<Peer>,
    ) -> Result<Access, Rejection> {
        let message = "a token is needed: Authorization: Bearer …";
        let unauthorized = reject(StatusCode::UNAUTHORIZED, message);
        let presented = authorization.and_then(|it| it.strip_prefix("Bearer ")).map(str::trim);
        let Some(presented) = presented.filter(|it| !it.is_empty()) else {
            return Err(unauthorized);
        };
        if peer.is_some_and(|peer| !self.guesses().may_try(peer)) {
            let message = "too many wrong tokens from this address";
            return Err(reject(StatusCode::TOO_MANY_REQUESTS, message));
        }
        // Both are compared, so that the time does not tell which one it was.
        let is_reader =
            self.reader_token.as_ref().is_some_and(|it| it.matches(presented.as_bytes()));
        if token.matches(presented.as_bytes()) {
            return Ok(Access::All);
        }
        if is_reader {
            return Ok(Access::Read);
        }
        let Some(peer) = peer else {
            return Err(unauthorized);
        };
        self.wrong_tokens.add(peer);
        let must_wait = self.guesses().note_wrong(peer, self.now_ms());
        Err(Rejection { paused: must_wait.then_some(peer), ..unauthorized })
    }

    fn guesses(&self) -> MutexGuard<'_, GuessLimiter> {
        self.guesses.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Allows clients other than browsers, the page of this device, and configured origins.
    fn is_allowed_origin(&self, headers: &HeaderMap) -> bool {
        if !headers.contains_key(header::ORIGIN) {
            return true;
        }
        let origin = header_text(headers, header::ORIGIN.as_str());
        let host = header_text(headers, header::HOST.as_str());
        let own = |origin: &str| origin.split_once("://").map(|it| it.1) == host;
        origin.is_some_and(|origin| own(origin) || self.origins.iter().any(|it| it == origin))
    }
}

fn is_reader_route(method: &Method, path: &str) -> bool {
    READER_ROUTES.iter().any(|it| it.0 == method && it.1 == path)
}

/// Rejects what a page of another site makes a browser fetch without an `Origin`: pictures, scripts,
/// frames. A link to the local page may be followed.
fn is_allowed_site(headers: &HeaderMap, path: &str) -> bool {
    if headers.contains_key(header::ORIGIN) || !headers.contains_key("sec-fetch-site") {
        return true;
    }
    let is = |name: &str, value: &str| header_text(headers, name) == Some(value);
    let is_link =
        path == "/" && is("sec-fetch-mode", "navigate") && is("sec-fetch-dest", "document");
    is("sec-fetch-site", "same-origin") || is("sec-fetch-site", "none") || is_link
}

fn header_text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// Returns whether a `Host`, with or without port, names this machine.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |it| it.0),
        None => host.split_once(':').map_or(host, |it| it.0),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|it| it.is_loopback())
}

/// The middleware around every route.
pub async fn guard(
    State(guard): State<Arc<RequestGuard>>,
    request: Request,
    next: Next,
) -> Response {
    let watch = Stopwatch::start();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other".to_owned(), |it| it.as_str().to_owned());
    let checked = guard.check_head(&request);
    let access = checked.as_ref().ok().copied();
    let mut response = match checked {
        Err(Rejection { status, message, paused }) => {
            if let Some(peer) = paused {
                pause_guess(&guard, peer).await;
            }
            let drained = drain_body(request, guard.body_bytes_max);
            tokio::time::timeout(REJECTED_BODY_TIMEOUT, drained).await.ok();
            error_response(status, message)
        }
        Ok(_) => admit(&guard, request, next).await,
    };
    guard.health.count_http_response(&route, response.status().as_u16());
    guard.health.times.http.observe(watch.elapsed());
    // For browsers that send no `Sec-Fetch-Site`: they show nothing of this in other sites' pages.
    let own = HeaderValue::from_static("same-origin");
    response.headers_mut().insert("cross-origin-resource-policy", own);
    if guard.reader_token.is_some()
        && let Some(access) = access
    {
        let access = if access == Access::Read { "read" } else { "all" };
        response.headers_mut().insert(ACCESS_HEADER, HeaderValue::from_static(access));
    }
    response
}

/// Waits; also on behalf of a client that disconnects meanwhile, so that it gains nothing by that.
#[expect(
    clippy::disallowed_methods,
    reason = "it ends by itself within a second, and a stop need not wait for it"
)]
async fn pause_guess(guard: &Arc<RequestGuard>, peer: Peer) {
    let guard = Arc::clone(guard);
    let pause = tokio::spawn(async move {
        tokio::time::sleep(GUESS_PAUSE).await;
        guard.guesses().end_pause(peer);
    });
    pause.await.ok();
}

async fn admit(guard: &RequestGuard, request: Request, next: Next) -> Response {
    // Only bodies take memory worth limiting.
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let claimed = content_length(&request);
    if claimed.is_some_and(|bytes| bytes > guard.body_bytes_max as u64) {
        return too_large(guard.body_bytes_max);
    }
    let is_small = claimed.is_some_and(|bytes| bytes <= SMALL_BYTES);
    let permit = if is_small { None } else { Some(guard.permits.try_acquire()) };
    let Ok(permit) = permit.transpose() else {
        drain_body(request, guard.body_bytes_max).await;
        return error_response(StatusCode::SERVICE_UNAVAILABLE, "busy; try again");
    };
    let (head, body) = request.into_parts();
    let body = match tokio::time::timeout(BODY_TIMEOUT, to_bytes(body, guard.body_bytes_max)).await
    {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return too_large(guard.body_bytes_max),
        Err(_) => {
            return error_response(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time");
        }
    };
    let response = next.run(Request::from_parts(head, Body::from(body))).await;
    drop(permit);
    response
}

/// Returns the size of the body as its sender declares it.
fn content_length(request: &Request) -> Option<u64> {
    header_text(request.headers(), header::CONTENT_LENGTH.as_str())?.parse().ok()
}

/// Reads and discards the body of a rejected request: most clients send everything before they read,
/// and would see a broken connection instead of the response. Not for clients that ask first
/// (`Expect`), nor for bodies beyond the limit.
async fn drain_body(request: Request, bytes_max: usize) {
    let claimed = content_length(&request);
    if request.headers().contains_key(header::EXPECT)
        || claimed.is_none_or(|bytes| bytes > bytes_max as u64)
    {
        return;
    }
    let mut parts = request.into_body().into_data_stream();
    let all = async { while let Some(Ok(_)) = parts.next().await {} };
    tokio::time::timeout(BODY_TIMEOUT, all).await.ok();
}

fn too_large(bytes_max: usize) -> Response {
    error_response(
        StatusCode::PAYLOAD_TOO_LARGE,
        &format!("the body is incomplete or has more than {bytes_max} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_other_sites_are_rejected() {
        let is_allowed = |path: &str, pairs: &[(&'static str, &'static str)]| {
            let pairs = pairs.iter().map(|(name, value)| {
                (header::HeaderName::from_static(name), HeaderValue::from_static(value))
            });
            is_allowed_site(&pairs.collect(), path)
        };
        let site = |value| ("sec-fetch-site", value);
        let link = [("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        for value in ["cross-site", "same-site", "", "Same-Origin", "what"] {
            assert!(!is_allowed("/api/picture", &[site(value)]), "{value}");
            assert!(!is_allowed("/", &[site(value), ("sec-fetch-dest", "image")]), "{value}");
            assert!(!is_allowed("/api/picture", &[site(value), link[0], link[1]]), "{value}");
            assert!(is_allowed("/", &[site(value), link[0], link[1]]), "{value}");
            let frame = [site(value), link[0], ("sec-fetch-dest", "iframe")];
            assert!(!is_allowed("/", &frame), "{value}");
            // With an `Origin`, that decides.
            assert!(is_allowed("/api/picture", &[site(value), ("origin", "https://a.example")]));
        }
        for value in ["same-origin", "none"] {
            assert!(is_allowed("/api/picture", &[site(value)]), "{value}");
        }
        assert!(is_allowed("/api/picture", &[]), "not a browser");
    }

    #[test]
    fn only_loopback_hosts_are_this_machine() {
        for (host, expected) in [
            ("localhost", true),
            ("LocalHost:8080", true),
            ("127.0.0.1:8080", true),
            ("127.1.2.3", true),
            ("[::1]:8080", true),
            ("[::1", false),
            ("evil.example", false),
            ("localhost.evil.example:8080", false),
            ("127.0.0.1.evil.example", false),
            ("10.0.0.1:8080", false),
            ("", false),
        ] {
            assert_eq!(is_this_machine(host), expected, "{host}");
        }
    }
}

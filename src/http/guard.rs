//! Before any route: who asks, how often, and how much of it is read.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;
use futures_util::StreamExt as _;
use tokio::sync::Semaphore;

use super::{HttpSettings, Token, page, refusal};
use crate::clock::{Pace, Stopwatch};
use crate::health::Health;

/// A body has this long to come.
const BODY_PATIENCE: Duration = Duration::from_secs(10);
/// A body up to this size takes no place: it may wait for somebody to come before the camera, and costs little.
const SMALL_BYTES: u64 = 64 << 10;
/// What is served to everybody: the page without anything in it, and whether the device is well.
const OPEN: [&str; 3] = ["/", "/openapi.json", "/healthz"];

pub struct Guard {
    token: Option<Token>,
    origins: Vec<String>,
    body_bytes_max: usize,
    places: Semaphore,
    started: Stopwatch,
    pace: Mutex<Pace>,
    health: Arc<Health>,
}

impl Guard {
    pub fn new(settings: &HttpSettings, health: Arc<Health>) -> Self {
        Self {
            token: settings.token.clone(),
            origins: settings.origins.clone(),
            body_bytes_max: settings.body_bytes_max,
            places: Semaphore::new(settings.requests_max),
            started: Stopwatch::start(),
            pace: Mutex::new(Pace::new(settings.per_minute_max)),
            health,
        }
    }

    /// Why a request is refused by its head alone.
    fn check(&self, request: &Request) -> Result<(), (StatusCode, &'static str)> {
        let headers = request.headers();
        if !self.is_allowed_origin(headers) {
            return Err((StatusCode::FORBIDDEN, "pages of this origin may not use this device"));
        }
        // For a name that somebody else's DNS lets point here, a browser would think our answers its page's own.
        if self.token.is_none()
            && !text(headers, header::HOST.as_str()).is_some_and(is_this_machine)
        {
            return Err((
                StatusCode::BAD_REQUEST,
                "without a token only localhost is served: the Host header names another",
            ));
        }
        let path = request.uri().path();
        if OPEN.contains(&path) || path.starts_with(page::FOLDER) {
            return Ok(());
        }
        if let Some(token) = &self.token {
            let shown = text(headers, header::AUTHORIZATION.as_str())
                .and_then(|it| it.strip_prefix("Bearer "));
            if !shown.is_some_and(|shown| token.is(shown.trim().as_bytes())) {
                return Err((
                    StatusCode::UNAUTHORIZED,
                    "a token is needed: Authorization: Bearer …",
                ));
            }
        }
        // After the token, so that strangers do not use up the pace of those who have one.
        let now_ms = self.started.elapsed().as_millis() as u64;
        if !self.pace.lock().unwrap_or_else(PoisonError::into_inner).allows(now_ms) {
            return Err((StatusCode::TOO_MANY_REQUESTS, "too many requests in a minute"));
        }
        Ok(())
    }

    /// No browser, our own page, or a page that the configuration allows.
    fn is_allowed_origin(&self, headers: &HeaderMap) -> bool {
        if !headers.contains_key(header::ORIGIN) {
            return true;
        }
        let (origin, host) =
            (text(headers, header::ORIGIN.as_str()), text(headers, header::HOST.as_str()));
        let own = |origin: &str| origin.split_once("://").map(|it| it.1) == host;
        origin.is_some_and(|origin| own(origin) || self.origins.iter().any(|it| it == origin))
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// A `Host` with or without port.
fn is_this_machine(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map_or("", |it| it.0),
        None => host.split_once(':').map_or(host, |it| it.0),
    };
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|it| it.is_loopback())
}

/// Around every route.
pub async fn guard(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    let watch = Stopwatch::start();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or("other".to_owned(), |it| it.as_str().to_owned());
    let response = match guard.check(&request) {
        Err((status, message)) => {
            pour_away(request, guard.body_bytes_max).await;
            refusal(status, message)
        }
        Ok(()) => admit(&guard, request, next).await,
    };
    guard.health.answered_http(&route, response.status().as_u16());
    guard.health.times.http.observe(watch.elapsed());
    response
}

async fn admit(guard: &Guard, request: Request, next: Next) -> Response {
    // Only what has a body takes memory worth counting.
    if request.method() != Method::POST {
        return next.run(request).await;
    }
    let claimed = claimed_bytes(&request);
    if claimed.is_some_and(|bytes| bytes > guard.body_bytes_max as u64) {
        return too_large(guard.body_bytes_max);
    }
    let is_small = claimed.is_some_and(|bytes| bytes <= SMALL_BYTES);
    let place = if is_small { None } else { Some(guard.places.try_acquire()) };
    let Ok(place) = place.transpose() else {
        pour_away(request, guard.body_bytes_max).await;
        return refusal(StatusCode::SERVICE_UNAVAILABLE, "busy; try again");
    };
    let (head, body) = request.into_parts();
    let body = match tokio::time::timeout(BODY_PATIENCE, to_bytes(body, guard.body_bytes_max)).await
    {
        Ok(Ok(bytes)) => bytes,
        Ok(Err(_)) => return too_large(guard.body_bytes_max),
        Err(_) => return refusal(StatusCode::REQUEST_TIMEOUT, "the body did not come in time"),
    };
    let response = next.run(Request::from_parts(head, Body::from(body))).await;
    drop(place);
    response
}

/// How large the body is, by its sender's word.
fn claimed_bytes(request: &Request) -> Option<u64> {
    text(request.headers(), header::CONTENT_LENGTH.as_str())?.parse().ok()
}

/// Reads what a refused client is sending, and keeps nothing of it: most clients send all before they listen, and would meet
/// a broken connection instead of the answer. Not for who asks first (`Expect`), nor for more than is ever taken.
async fn pour_away(request: Request, bytes_max: usize) {
    let claimed = claimed_bytes(&request);
    if request.headers().contains_key(header::EXPECT)
        || claimed.is_none_or(|bytes| bytes > bytes_max as u64)
    {
        return;
    }
    let mut parts = request.into_body().into_data_stream();
    let all = async { while let Some(Ok(_)) = parts.next().await {} };
    tokio::time::timeout(BODY_PATIENCE, all).await.ok();
}

fn too_large(bytes_max: usize) -> Response {
    refusal(
        StatusCode::PAYLOAD_TOO_LARGE,
        &format!("the body is cut short or has more than {bytes_max} bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_its_own() {
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

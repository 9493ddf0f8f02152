//! The HTTP server: the listener, and every check before a route is reached.
//!
//! Invariants: beyond loopback nothing is served without a token (`config` refuses to start).
//! Memory is bounded: a permit is taken before a body is read; bodies, heads and connections have
//! limits; a client that sends or reads slowly is disconnected, and a connection ends with its reply.
//! Without a token only the names of this machine and pages of allowed origins are served, so that a
//! page in a local browser cannot use the device unnoticed. Nothing of a request is logged.
//!
//! Elsewhere: what the routes do (`app::http`).

pub mod guard;
pub mod page;
pub mod places;
pub mod token;

use std::net::SocketAddr;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tower_http::cors::{AllowOrigin, CorsLayer};

use crate::http::places::{Peer, Place, Places, Stage};
use crate::http::token::Token;

/// The head of a request must arrive within this time. A guess.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 16 << 10;
/// A client that reads nothing for this long is disconnected. A guess.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// How requests begin that have places of their own.
const LANE_STARTS: [&[u8]; 2] = [b"GET /healthz", b"GET /metrics"];
/// How often a connection asks for a place: others may have become slow meanwhile.
const ASK_AGAIN: Duration = Duration::from_millis(250);
/// The pause after a failure to accept, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct HttpSettings {
    pub listen: SocketAddr,
    pub token: Option<Token>,
    /// Of who may read the record and change nothing.
    pub reader_token: Option<Token>,
    /// Origins of pages that may use the routes, as browsers write them: `https://host:port`.
    pub origins: Vec<String>,
    pub connections_max: usize,
    /// The most requests with a body at a time.
    pub requests_max: usize,
    pub per_minute_max: u32,
    pub body_bytes_max: usize,
}

/// Returns an error response, in the form that all routes share.
pub fn error_response(status: StatusCode, message: &str) -> Response {
    let mut response = (status, axum::Json(json!({"error": message}))).into_response();
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Allows pages of the configured origins to use the routes.
pub fn cors_layer(origins: &[String]) -> CorsLayer {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|it| it.parse().ok()).collect();
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION])
        .expose_headers([HeaderName::from_static("rollcall-unreadable")])
}

/// Serves until `stop`, then finishes the requests in progress.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    mut stop: watch::Receiver<bool>,
) {
    let places = Places::new(connections_max);
    let mut serving = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // The outcome of a connection does not matter.
            Some(_) = serving.join_next() => continue,
            _ = stop.wait_for(|it| *it) => break,
        };
        match accepted {
            Ok((stream, address)) => {
                let peer = Peer::new(address.ip());
                let place = places.enter(peer);
                let router = router.clone();
                serving.spawn(serve_connection(stream, peer, place, router, stop.clone()));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    while serving.join_next().await.is_some() {}
}

/// Waits for a request to begin, and then for a place. Returns false if the connection is to be
/// closed instead.
async fn wait_for_place(
    stream: &TcpStream,
    place: &mut Place,
    stop: &mut watch::Receiver<bool>,
) -> bool {
    let mut start = [0; 12];
    let begun = tokio::select! {
        peeked = stream.peek(&mut start) => peeked.unwrap_or_default(),
        () = place.closed() => 0,
        () = tokio::time::sleep(HEAD_TIMEOUT) => 0,
        _ = stop.wait_for(|it| *it) => 0,
    };
    if begun == 0 {
        return false;
    }
    let in_lane = LANE_STARTS.contains(&&start[..begun]);
    loop {
        place.ask(in_lane);
        match place.stage() {
            Stage::Served | Stage::InLane => return true,
            Stage::Closed => return false,
            Stage::Waiting => {}
        }
        tokio::select! {
            () = place.changed() => {}
            () = tokio::time::sleep(ASK_AGAIN) => {}
            _ = stop.wait_for(|it| *it) => return false,
        }
    }
}

async fn serve_connection(
    stream: TcpStream,
    peer: Peer,
    mut place: Place,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    if !wait_for_place(&stream, &mut place, &mut stop).await {
        return;
    }
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_TIMEOUT));
    let on_request = place.on_request();
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<Incoming>| {
        on_request();
        request.extensions_mut().insert(peer);
        router.call(request)
    });
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            // One request a connection: an idle one would hold a place.
            .keep_alive(false)
            .serve_connection(TokioIo::new(Box::pin(stream)), service)
    );
    // An error is a client that disconnected, was too slow, or sent no HTTP. hyper has replied where
    // it could.
    tokio::select! {
        ended = served.as_mut() => drop(ended),
        () = place.closed() => {}
        () = async { drop(stop.wait_for(|it| *it).await) } => {
            served.as_mut().graceful_shutdown();
            served.await.ok();
        }
    }
}

//! The HTTP server: listening, and everything that a stranger may try before a route is reached.
//!
//! Invariants: beyond loopback nothing is served without a token (`config` refuses to start). Memory is bounded: a place
//! is taken before a body is read, bodies, heads and connections have limits, and who is slow in sending or reading is cut
//! off. Without a token only pages of origins that are allowed, and names of this machine, are served: a page open in a
//! browser here must not reach us unasked. Nothing of a request is logged.
//!
//! Not here: what the routes do (`app::http`).

pub mod guard;
pub mod page;

use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// A request's head: this long to come, and so large at most. A connection without a request is kept as long.
const HEAD_PATIENCE: Duration = Duration::from_secs(10);
const HEAD_BYTES_MAX: usize = 16 << 10;
/// Who takes nothing of an answer for so long is let go.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// After a failure to accept (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
pub struct HttpSettings {
    pub listen: SocketAddr,
    pub token: Option<Token>,
    /// Origins of pages that may use the routes, as browsers write them: `https://host:port`.
    pub origins: Vec<String>,
    pub connections_max: usize,
    /// Requests with a body at once.
    pub requests_max: usize,
    pub per_minute_max: u32,
    pub body_bytes_max: usize,
}

/// The digest of the secret that a client must show.
#[derive(Clone)]
pub struct Token([u8; 32]);

impl Token {
    /// Of at least 16 visible ASCII characters, since it travels in a header.
    pub fn new(text: &str) -> Option<Self> {
        let fits = text.len() >= 16 && text.bytes().all(|it| it.is_ascii_graphic());
        fits.then(|| Self(Sha256::digest(text).into()))
    }

    /// Takes the same time whatever is shown.
    pub fn is(&self, shown: &[u8]) -> bool {
        let shown: [u8; 32] = Sha256::digest(shown).into();
        self.0.ct_eq(&shown).into()
    }
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

/// What went wrong, as every route says it.
pub fn refusal(status: StatusCode, message: &str) -> Response {
    let mut response = (status, axum::Json(json!({"error": message}))).into_response();
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// Browsers are told who may call from elsewhere.
pub fn cors(origins: &[String]) -> CorsLayer {
    let origins: Vec<HeaderValue> = origins.iter().filter_map(|it| it.parse().ok()).collect();
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([header::CONTENT_TYPE, header::AUTHORIZATION])
}

/// Serves until `stop`; then what is under way is finished.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    mut stop: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(connections_max));
    let mut serving = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &places) => accepted,
            // How a connection ended does not matter.
            Some(_) = serving.join_next() => continue,
            _ = stop.wait_for(|it| *it) => break,
        };
        match accepted {
            Some((stream, place)) => {
                serving.spawn(connection(stream, place, router.clone(), stop.clone()));
            }
            None => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
    drop(listener);
    while serving.join_next().await.is_some() {}
}

/// Beyond the limit connections wait with the kernel.
async fn accept(
    listener: &TcpListener,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    let (stream, _) = listener.accept().await.ok()?;
    Some((stream, place))
}

async fn connection(
    stream: TcpStream,
    place: OwnedSemaphorePermit,
    router: Router,
    mut stop: watch::Receiver<bool>,
) {
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(WRITE_PATIENCE));
    let mut served = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_PATIENCE)
            .max_buf_size(HEAD_BYTES_MAX)
            .serve_connection(TokioIo::new(Box::pin(stream)), TowerToHyperService::new(router))
    );
    // An error is a client that hung up, was too slow, or spoke no HTTP; hyper has answered where it could.
    tokio::select! {
        ended = served.as_mut() => drop(ended),
        () = async { drop(stop.wait_for(|it| *it).await) } => {
            served.as_mut().graceful_shutdown();
            served.await.ok();
        }
    }
    drop(place);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_long_and_itself_only() {
        assert!(Token::new("short").is_none());
        assert!(Token::new("with a blank in it").is_none());
        let token = Token::new("0123456789abcdef").unwrap();
        assert!(token.is(b"0123456789abcdef"));
        assert!(!token.is(b"0123456789abcdeF") && !token.is(b""));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }
}

//! The HTTP client of one webhook: one connection, one request at a time.
//!
//! Invariants: every wait has an end; of an answer no more than [`HEAD_BYTES_MAX`] of head and
//! [`REPLY_BYTES_MAX`] of body are read; the address that is connected to is one that the policy
//! allows; no redirect is followed, because nothing here does so.
//!
//! The connection is kept between requests. One that the receiver has closed meanwhile shows when it
//! is used: then the request is sent once more by a new one, which its idempotency allows.

use std::error::Error as _;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::clock::Stopwatch;
use crate::error_chain::error_chain;
use crate::webhook::address::AddressPolicy;
use crate::webhook::settings::WebhookSettings;

/// The most that is read of the head of an answer.
const HEAD_BYTES_MAX: usize = 32 << 10;
const HEADERS_MAX: usize = 100;
/// The most that is read of the body of an answer.
pub(super) const REPLY_BYTES_MAX: usize = 64 << 10;
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 4;
/// A connection that was not used for longer is not used again: receivers close theirs after 5 s
/// (Node.js) to 75 s (nginx).
const IDLE_MAX: Duration = Duration::from_secs(4);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendFault {
    #[error("the name {host} has no address ({detail})")]
    Dns { host: String, detail: String },
    #[error("{host} has the address {address}, which is none of the internet (allow_private)")]
    Forbidden { host: String, address: IpAddr },
    #[error("{address} cannot be reached ({detail})")]
    Unreachable { address: SocketAddr, detail: String },
    /// The certificate cannot be accepted.
    #[error("the receiver's certificate is not accepted ({0})")]
    Certificate(String),
    #[error("the receiver does not use TLS as it should ({0})")]
    Tls(String),
    #[error("no {what} within {} s", .limit.as_secs_f32())]
    Timeout { what: &'static str, limit: Duration },
    #[error("the connection was cut ({0})")]
    Cut(String),
    #[error("the answer is not HTTP, or its head is too large ({0})")]
    NotHttp(String),
}

impl SendFault {
    /// Whether somebody has to correct something before it can be any better.
    pub(super) fn needs_correction(&self) -> bool {
        matches!(self, Self::Forbidden { .. } | Self::Certificate(_))
    }
}

/// An answer.
#[derive(Clone, Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    pub(super) headers: HeaderMap,
    /// As far as it was read.
    pub(super) text: String,
    /// Whether the connection ended, or time was over, before the body did.
    pub(super) is_cut: bool,
}

pub(super) struct ReceiverClient {
    settings: Arc<WebhookSettings>,
    /// With https.
    tls: Option<Arc<ClientConfig>>,
    kept: Option<Connection>,
}

/// Polls the connection: nothing is sent or received without it.
type Driver = Pin<Box<dyn Future<Output = hyper::Result<()>> + Send>>;

struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: Option<Driver>,
    since_use: Stopwatch,
}

/// What a connection runs over.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

impl ReceiverClient {
    /// Connects to nothing yet.
    pub(super) fn new(settings: Arc<WebhookSettings>, tls: Option<Arc<ClientConfig>>) -> Self {
        Self { settings, tls, kept: None }
    }

    /// Sends a request and reads the answer.
    pub(super) async fn send(&mut self, request: Request<Full<Bytes>>) -> Result<Reply, SendFault> {
        let limit = self.settings.timeout;
        let kept = self.kept.take().filter(|it| it.since_use.elapsed() < IDLE_MAX);
        if let Some(mut connection) = kept {
            match connection.exchange(request.clone(), limit).await {
                // Closed since it was used last.
                Err(SendFault::Cut(_)) => {}
                Err(fault) => return Err(fault),
                Ok(reply) => {
                    self.keep(connection, &reply);
                    return Ok(reply);
                }
            }
        }
        let mut connection = self.connect().await?;
        let reply = connection.exchange(request, limit).await?;
        self.keep(connection, &reply);
        Ok(reply)
    }

    fn keep(&mut self, mut connection: Connection, reply: &Reply) {
        // What is left of a body would be taken for the next answer.
        let is_clean = !reply.is_cut && reply.text.len() < REPLY_BYTES_MAX;
        if is_clean && connection.driver.is_some() {
            connection.since_use = Stopwatch::start();
            self.kept = Some(connection);
        }
    }

    /// Connects, with TLS where the URL has https. Exclusive, as what polls the kept connection cannot
    /// be shared between threads.
    async fn connect(&mut self) -> Result<Connection, SendFault> {
        let limit = self.settings.timeout;
        let stream = timeout(limit, self.open())
            .await
            .map_err(|_| SendFault::Timeout { what: "connection", limit })??;
        Connection::over(stream).await
    }

    /// Sends the next request by an open connection.
    pub(super) async fn use_stream(&mut self, stream: Box<dyn Stream>) -> Result<(), SendFault> {
        self.kept = Some(Connection::over(stream).await?);
        Ok(())
    }

    /// Connects, without sending anything.
    pub(super) async fn try_connecting(&mut self) -> Result<(), SendFault> {
        let limit = self.settings.timeout;
        let opened = timeout(limit, self.open());
        opened.await.map_err(|_| SendFault::Timeout { what: "connection", limit })?.map(drop)
    }

    async fn open(&mut self) -> Result<Box<dyn Stream>, SendFault> {
        let url = &self.settings.url;
        let policy = url.policy(self.settings.allow_private);
        let stream = open_tcp(url.host(), url.port(), policy).await?;
        let Some(tls) = &self.tls else {
            return Ok(Box::new(stream));
        };
        let name = ServerName::try_from(url.host().to_owned())
            .map_err(|error| SendFault::Tls(error.to_string()))?;
        let connector = TlsConnector::from(Arc::clone(tls));
        let stream = connector.connect(name, stream).await.map_err(|error| tls_fault(&error))?;
        Ok(Box::new(stream))
    }
}

async fn open_tcp(host: &str, port: u16, policy: AddressPolicy) -> Result<TcpStream, SendFault> {
    let no_address =
        |detail: &str| SendFault::Dns { host: host.to_owned(), detail: detail.to_owned() };
    let found = tokio::net::lookup_host((host, port))
        .await
        .map_err(|error| no_address(&error.to_string()))?;
    let mut fault = no_address("none was found");
    for address in found.take(ADDRESSES_MAX) {
        // Checked here, so that this address and no other is connected to.
        if !policy.allows(address.ip()) {
            fault = SendFault::Forbidden { host: host.to_owned(), address: address.ip() };
            continue;
        }
        match TcpStream::connect(address).await {
            Ok(stream) => {
                // A request is sent in one piece; waiting for more only delays it.
                stream.set_nodelay(true).ok();
                return Ok(stream);
            }
            Err(error) => {
                fault = SendFault::Unreachable { address, detail: error.to_string() };
            }
        }
    }
    Err(fault)
}

fn tls_fault(error: &std::io::Error) -> SendFault {
    let tls = error.get_ref().and_then(|it| it.downcast_ref::<rustls::Error>());
    match tls {
        Some(rustls::Error::InvalidCertificate(why)) => SendFault::Certificate(why.to_string()),
        Some(other) => SendFault::Tls(other.to_string()),
        None => SendFault::Cut(error.to_string()),
    }
}

impl Connection {
    async fn over(stream: Box<dyn Stream>) -> Result<Self, SendFault> {
        let (sender, driver) = http1::Builder::new()
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| SendFault::Cut(error_chain(&error)))?;
        let driver: Driver = Box::pin(driver);
        Ok(Self { sender, driver: Some(driver), since_use: Stopwatch::start() })
    }

    async fn exchange(
        &mut self,
        request: Request<Full<Bytes>>,
        limit: Duration,
    ) -> Result<Reply, SendFault> {
        let Self { sender, driver, .. } = self;
        let reply = async {
            let head = async {
                sender.ready().await?;
                sender.send_request(request).await
            };
            let response = timeout(limit, head)
                .await
                .map_err(|_| SendFault::Timeout { what: "answer", limit })?
                .map_err(|error| http_fault(&error))?;
            let (head, body) = response.into_parts();
            let (bytes, is_cut) = read_body(body, limit).await;
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let status = head.status.as_u16();
            Ok::<Reply, SendFault>(Reply { status, headers: head.headers, text, is_cut })
        };
        let driven = async {
            if let Some(it) = driver.as_mut() {
                // What ended the connection shows in the reply.
                it.await.ok();
            }
            *driver = None;
        };
        tokio::pin!(reply);
        tokio::select! {
            biased;
            outcome = &mut reply => outcome,
            // The end of the connection may be that of the answer.
            () = driven => reply.await,
        }
    }
}

/// Returns the body as far as it came, up to the limit, and whether it was cut.
async fn read_body(mut body: Incoming, limit: Duration) -> (Vec<u8>, bool) {
    let mut bytes = Vec::new();
    let read = async {
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { return true };
            let Ok(data) = frame.into_data() else { continue };
            let room = REPLY_BYTES_MAX - bytes.len();
            bytes.extend_from_slice(&data[..data.len().min(room)]);
            if bytes.len() >= REPLY_BYTES_MAX {
                return false;
            }
        }
        false
    };
    let is_cut = timeout(limit, read).await.unwrap_or(true);
    (bytes, is_cut)
}

fn http_fault(error: &hyper::Error) -> SendFault {
    if error.is_parse() || error.is_parse_too_large() {
        return SendFault::NotHttp(error_chain(error));
    }
    let detail = error.source().map_or_else(|| error.to_string(), error_chain);
    SendFault::Cut(detail)
}

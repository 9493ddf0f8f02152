//! How a message that is too large for us is got rid of without losing the ones behind it.
//!
//! rumqttc closes the connection when a packet's header announces more than the limit. At QoS 0 that is the end of it.
//! At QoS 1 the broker keeps the message in our session and sends it again on every connect: a link that never comes up
//! again. So when it happens twice in a row, `sift` opens one connection of its own under our client id and looks at
//! packet headers only. A message that fits is read past and *not* acknowledged, so the broker sends it again afterwards.
//! One that does not fit is read past in small pieces, its topic and the first 64 KiB kept, and acknowledged: the broker
//! forgets it. What is lost is exactly the message that nobody could have taken.
//!
//! The last resort, after `sift` itself failed several times: `purge` connects with a clean session, and the broker
//! forgets everything it queued for us. Queued commands are lost then, which is why it comes last and is told.
//!
//! Memory: 64 KiB per message found, whatever its size. Packets we send are made by rumqttc; only headers are read here.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::tokio_rustls::TlsConnector;
use rumqttc::{Connect, Login, Packet, PubAck};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{timeout, timeout_at};

use super::link::{LinkSettings, Oversized};
use super::tls;

const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Messages sifted out in one go; the next go takes the rest.
const FOUND_MAX: usize = 16;
/// A broker resumes a session at once, so silence this long means that it has sent all it wants to.
const SILENCE: Duration = Duration::from_secs(2);
/// No progress at all for this long: the connection is dead.
const STALL: Duration = Duration::from_secs(20);
const DURATION_MAX: Duration = Duration::from_mins(10);
/// We send nothing for minutes while a large packet comes in, and not every broker takes 0 for "never" (rumqttd).
const KEEP_ALIVE_S: u16 = 3600;

#[derive(Debug, thiserror::Error)]
pub(super) enum SiftError {
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    #[error("TLS")]
    Tls(#[source] tls::TlsError),
    #[error("the broker refused the connection (code {0})")]
    Refused(u8),
    #[error("the connection broke")]
    Broken(#[from] io::Error),
    #[error("the broker sent what is not MQTT")]
    Malformed,
    #[error("it took longer than {DURATION_MAX:?}")]
    TooLong,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Reads past everything in our session and acknowledges what is too large.
pub(super) async fn sift(
    settings: &LinkSettings,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Vec<Oversized>, SiftError> {
    let deadline = tokio::time::Instant::now() + DURATION_MAX;
    let mut found = Vec::new();
    let sifted = timeout_at(deadline, async {
        let mut stream = open(settings, tls, false).await?;
        let outcome = read_past(&mut stream, settings.packet_bytes_max_in, &mut found).await;
        goodbye(&mut stream).await;
        outcome
    });
    match sifted.await {
        Ok(Ok(())) => Ok(found),
        // What was acknowledged is gone from the broker, so it has to be told, whatever came after it.
        Ok(Err(_)) | Err(_) if !found.is_empty() => Ok(found),
        Ok(Err(error)) => Err(error),
        Err(_elapsed) => Err(SiftError::TooLong),
    }
}

/// Makes the broker forget our session and all that it queued.
pub(super) async fn purge(
    settings: &LinkSettings,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<(), SiftError> {
    let mut stream = open(settings, tls, true).await?;
    goodbye(&mut stream).await;
    Ok(())
}

async fn open(
    settings: &LinkSettings,
    tls: Option<&Arc<ClientConfig>>,
    clean_session: bool,
) -> Result<Box<dyn Stream>, SiftError> {
    let tcp = within(TcpStream::connect((settings.host.as_str(), settings.port)))
        .await
        .map_err(SiftError::Connect)?;
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(tcp),
        Some(config) => {
            let name = tls::server_name(&settings.host).map_err(SiftError::Tls)?;
            let connector = TlsConnector::from(Arc::clone(config));
            Box::new(within(connector.connect(name, tcp)).await.map_err(SiftError::Connect)?)
        }
    };
    let mut connect = Connect::new(&settings.client_id);
    connect.clean_session = clean_session;
    connect.keep_alive = KEEP_ALIVE_S;
    connect.login = settings
        .credentials
        .as_ref()
        .map(|it| Login { username: it.user.clone(), password: it.password.clone() });
    send(&mut stream, &Packet::Connect(connect)).await?;
    let header = within(header(&mut stream)).await?;
    if header.kind != CONNACK || header.remaining != 2 {
        return Err(SiftError::Malformed);
    }
    let mut body = [0; 2];
    within(stream.read_exact(&mut body)).await?;
    match body[1] {
        0 => Ok(stream),
        code => Err(SiftError::Refused(code)),
    }
}

async fn read_past(
    stream: &mut Box<dyn Stream>,
    limit: usize,
    found: &mut Vec<Oversized>,
) -> Result<(), SiftError> {
    // To the end of what comes: closing a socket over unread data can lose the acknowledgements we sent (TCP reset).
    loop {
        let Ok(header) = timeout(SILENCE, header(stream)).await else {
            return Ok(());
        };
        let header = header?;
        if header.kind == PUBLISH && header.remaining > limit && found.len() < FOUND_MAX {
            let (oversized, pkid) = skim(stream, &header).await?;
            if let Some(pkid) = pkid {
                send(stream, &Packet::PubAck(PubAck::new(pkid))).await?;
            }
            found.push(oversized);
        } else {
            discard(stream, header.remaining).await?;
        }
    }
}

/// Reads topic, packet id and beginning of a PUBLISH, and past the rest.
async fn skim(
    stream: &mut Box<dyn Stream>,
    header: &Header,
) -> Result<(Oversized, Option<u16>), SiftError> {
    let mut left = header.remaining;
    let topic_bytes = usize::from(within(stream.read_u16()).await?);
    let mut topic = vec![0; topic_bytes];
    within(stream.read_exact(&mut topic)).await?;
    left = left.checked_sub(2 + topic_bytes).ok_or(SiftError::Malformed)?;
    let mut pkid = None;
    if header.flags & 0b0110 != 0 {
        pkid = Some(within(stream.read_u16()).await?);
        left = left.checked_sub(2).ok_or(SiftError::Malformed)?;
    }
    let mut head = vec![0; left.min(HEAD_BYTES_MAX)];
    within(stream.read_exact(&mut head)).await?;
    discard(stream, left - head.len()).await?;
    let topic = String::from_utf8(topic).ok();
    Ok((Oversized { bytes: header.remaining, topic, head }, pkid))
}

async fn discard(stream: &mut Box<dyn Stream>, mut bytes: usize) -> Result<(), SiftError> {
    let mut scratch = vec![0; 16 * 1024];
    while bytes > 0 {
        let piece = bytes.min(scratch.len());
        let read = within(stream.read(&mut scratch[..piece])).await?;
        if read == 0 {
            return Err(SiftError::Broken(io::ErrorKind::UnexpectedEof.into()));
        }
        bytes -= read;
    }
    Ok(())
}

/// The fixed header of an MQTT packet.
struct Header {
    kind: u8,
    flags: u8,
    remaining: usize,
}

const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;

async fn header(stream: &mut Box<dyn Stream>) -> io::Result<Header> {
    let first = stream.read_u8().await?;
    let mut remaining = 0;
    for place in 0..4 {
        let byte = stream.read_u8().await?;
        remaining |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(Header { kind: first >> 4, flags: first & 0x0f, remaining });
        }
    }
    Err(io::ErrorKind::InvalidData.into())
}

async fn send(stream: &mut Box<dyn Stream>, packet: &Packet) -> Result<(), SiftError> {
    #[expect(
        clippy::default_trait_access,
        reason = "`BytesMut` cannot be named: its crate is rumqttc's, not ours"
    )]
    let mut bytes = Default::default();
    packet.write(&mut bytes, usize::MAX).map_err(|_| SiftError::Malformed)?;
    within(stream.write_all(&bytes)).await?;
    within(stream.flush()).await?;
    Ok(())
}

/// DISCONNECT, as well as it goes: a broker that does not hear it only notices later.
async fn goodbye(stream: &mut Box<dyn Stream>) {
    if send(stream, &Packet::Disconnect).await.is_ok() {
        within(stream.shutdown()).await.ok();
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STALL, work).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

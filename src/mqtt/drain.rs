//! Removes a message that is too large for us from the broker without losing the ones behind it.
//!
//! rumqttc closes the connection when a packet's header announces more than the limit. At QoS 0
//! that is the end of the message. At QoS 1 the broker keeps it in our session and sends it again
//! on every connect, so the link would never come up again. When that happens twice in a row,
//! `drain_session` opens one connection of its own under our client id and reads packet headers
//! only. A message that fits is skipped and *not* acknowledged, so the broker sends it again
//! afterwards. One that does not fit is skipped in small pieces, its topic and the first 64 KiB are
//! kept, and it is acknowledged: the broker forgets it. What is lost is exactly the message that
//! nobody could have received.
//!
//! The last resort, after `drain_session` failed several times: `purge_session` connects with a
//! clean session, and the broker forgets everything it queued for us. Queued commands are lost
//! then, which is why it comes last and is reported.
//!
//! Memory: 64 KiB for each message found, whatever its size. Packets that we send are made by
//! rumqttc; only headers are parsed here.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::time::Duration;

use rumqttc::tokio_rustls::TlsConnector;
use rumqttc::{Connect, Login, Packet, PubAck, QoS, Subscribe, SubscribeFilter};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};

use crate::mqtt::event::Oversized;
use crate::mqtt::fault::{ConnectRefusal, LinkFault, TlsFault};
use crate::mqtt::settings::LinkSettings;
use crate::mqtt::tls;

const HEAD_BYTES_MAX: usize = 64 * 1024;
/// Messages removed in one pass; the next pass takes the rest.
const FOUND_MAX: usize = 16;
/// A broker resumes a session at once, so silence this long means that it has sent everything.
const SILENCE: Duration = Duration::from_secs(2);
/// Messages that fit postpone that for no longer: somebody may send one each second without end, and
/// nothing is delivered meanwhile.
const OTHERS_MAX: Duration = Duration::from_secs(30);
/// No progress at all for this long: the connection is dead.
const STALL_MAX: Duration = Duration::from_secs(20);
const DURATION_MAX: Duration = Duration::from_mins(10);
/// We send nothing for minutes while a large packet comes in, and not every broker takes 0 for
/// "never".
const KEEP_ALIVE_S: u16 = 3600;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Skips everything in our session and acknowledges what is too large.
pub(super) async fn drain_session(
    settings: &LinkSettings,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Vec<Oversized>, LinkFault> {
    find_oversized(settings, tls, &[]).await
}

/// Skips everything that the broker retains for these filters, and returns what is too large. A
/// retained message comes again with each subscription, and at QoS 0 nothing else shows its topic.
/// The scan has a session of its own, so that our subscriptions stay as they are.
pub(super) async fn scan_retained(
    settings: &LinkSettings,
    tls: Option<&Arc<ClientConfig>>,
    filters: &[String],
) -> Result<Vec<Oversized>, LinkFault> {
    let client_id = format!("{}-scan", settings.client_id);
    let settings = LinkSettings { client_id, ..settings.clone() };
    find_oversized(&settings, tls, filters).await
}

/// Makes the broker forget our session and all that it queued.
pub(super) async fn purge_session(
    settings: &LinkSettings,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<(), LinkFault> {
    let mut stream = connect(settings, tls, true).await?;
    disconnect(&mut stream).await;
    Ok(())
}

async fn find_oversized(
    settings: &LinkSettings,
    tls: Option<&Arc<ClientConfig>>,
    filters: &[String],
) -> Result<Vec<Oversized>, LinkFault> {
    let deadline = Instant::now() + DURATION_MAX;
    let mut found = Vec::new();
    let drained = timeout_at(deadline, async {
        let mut stream = connect(settings, tls, !filters.is_empty()).await?;
        if !filters.is_empty() {
            // At QoS 0 nothing waits for an acknowledgement of ours.
            let all = filters.iter().map(|it| SubscribeFilter::new(it.clone(), QoS::AtMostOnce));
            let mut subscribe = Subscribe::new_many(all);
            subscribe.pkid = 1;
            send_packet(&mut stream, &Packet::Subscribe(subscribe)).await?;
        }
        let drained = skip_packets(&mut stream, settings.packet_bytes_max_in, &mut found).await;
        disconnect(&mut stream).await;
        drained
    });
    match drained.await {
        Ok(Ok(())) => Ok(found),
        // What was acknowledged is gone from the broker, so it has to be reported, whatever came
        // after it.
        Ok(Err(_)) | Err(_) if !found.is_empty() => Ok(found),
        Ok(Err(fault)) => Err(fault),
        Err(_elapsed) => Err(LinkFault::Timeout(DURATION_MAX)),
    }
}

async fn connect(
    settings: &LinkSettings,
    tls: Option<&Arc<ClientConfig>>,
    clean_session: bool,
) -> Result<Box<dyn Stream>, LinkFault> {
    let address = (settings.host.as_str(), settings.port);
    let tcp = until_stalled(TcpStream::connect(address)).await?;
    let mut stream: Box<dyn Stream> = match tls {
        None => Box::new(tcp),
        Some(config) => {
            let name = tls::server_name(&settings.host).map_err(|error| LinkFault::Tls {
                fault: TlsFault::WrongName,
                detail: error.to_string(),
            })?;
            let connector = TlsConnector::from(Arc::clone(config));
            Box::new(until_stalled(connector.connect(name, tcp)).await?)
        }
    };
    let mut connect = Connect::new(&settings.client_id);
    connect.clean_session = clean_session;
    connect.keep_alive = KEEP_ALIVE_S;
    connect.login = settings
        .credentials
        .as_ref()
        .map(|it| Login { username: it.user.clone(), password: it.password.clone() });
    send_packet(&mut stream, &Packet::Connect(connect)).await?;
    let header = until_stalled(read_header(&mut stream)).await?;
    if header.kind != CONNACK || header.remaining != 2 {
        return Err(LinkFault::NotMqtt);
    }
    let mut body = [0; 2];
    until_stalled(stream.read_exact(&mut body)).await?;
    match body[1] {
        0 => Ok(stream),
        code => Err(LinkFault::Refused(ConnectRefusal::from_code(code))),
    }
}

async fn skip_packets(
    stream: &mut Box<dyn Stream>,
    bytes_max: usize,
    found: &mut Vec<Oversized>,
) -> Result<(), LinkFault> {
    // To the end of what comes: closing a socket over unread data can lose the acknowledgements we
    // sent (TCP reset).
    let mut others_until = Instant::now() + OTHERS_MAX;
    loop {
        let until = others_until.min(Instant::now() + SILENCE);
        let Ok(header) = timeout_at(until, read_header(stream)).await else {
            return Ok(());
        };
        let header = header?;
        if header.kind == PUBLISH && header.remaining > bytes_max && found.len() < FOUND_MAX {
            let (oversized, pkid) = read_oversized(stream, &header).await?;
            if let Some(pkid) = pkid {
                send_packet(stream, &Packet::PubAck(PubAck::new(pkid))).await?;
            }
            found.push(oversized);
            others_until = Instant::now() + OTHERS_MAX;
        } else {
            skip_bytes(stream, header.remaining).await?;
        }
    }
}

/// Reads topic, packet id and beginning of a PUBLISH, and skips the rest.
async fn read_oversized(
    stream: &mut Box<dyn Stream>,
    header: &FixedHeader,
) -> Result<(Oversized, Option<u16>), LinkFault> {
    let mut left = header.remaining;
    let topic_bytes = usize::from(until_stalled(stream.read_u16()).await?);
    let mut topic = vec![0; topic_bytes];
    until_stalled(stream.read_exact(&mut topic)).await?;
    left = left.checked_sub(2 + topic_bytes).ok_or(LinkFault::NotMqtt)?;
    let mut pkid = None;
    if header.flags & 0b0110 != 0 {
        pkid = Some(until_stalled(stream.read_u16()).await?);
        left = left.checked_sub(2).ok_or(LinkFault::NotMqtt)?;
    }
    let mut head = vec![0; left.min(HEAD_BYTES_MAX)];
    until_stalled(stream.read_exact(&mut head)).await?;
    skip_bytes(stream, left - head.len()).await?;
    let topic = String::from_utf8(topic).ok();
    Ok((Oversized { bytes: header.remaining, topic, head }, pkid))
}

async fn skip_bytes(stream: &mut Box<dyn Stream>, mut bytes: usize) -> Result<(), LinkFault> {
    let mut scratch = vec![0; 16 * 1024];
    while bytes > 0 {
        let piece = bytes.min(scratch.len());
        let read = until_stalled(stream.read(&mut scratch[..piece])).await?;
        if read == 0 {
            return Err(LinkFault::Closed);
        }
        bytes -= read;
    }
    Ok(())
}

/// The fixed header of an MQTT packet.
struct FixedHeader {
    kind: u8,
    flags: u8,
    remaining: usize,
}

const CONNACK: u8 = 2;
const PUBLISH: u8 = 3;

async fn read_header(stream: &mut Box<dyn Stream>) -> io::Result<FixedHeader> {
    let first = stream.read_u8().await?;
    let mut remaining = 0;
    for place in 0..4 {
        let byte = stream.read_u8().await?;
        remaining |= usize::from(byte & 0x7f) << (7 * place);
        if byte & 0x80 == 0 {
            return Ok(FixedHeader { kind: first >> 4, flags: first & 0x0f, remaining });
        }
    }
    Err(ErrorKind::InvalidData.into())
}

async fn send_packet(stream: &mut Box<dyn Stream>, packet: &Packet) -> Result<(), LinkFault> {
    #[expect(
        clippy::default_trait_access,
        reason = "`BytesMut` cannot be named: its crate is rumqttc's, not ours"
    )]
    let mut bytes = Default::default();
    packet.write(&mut bytes, usize::MAX).map_err(|error| LinkFault::Other(error.to_string()))?;
    until_stalled(stream.write_all(&bytes)).await?;
    Ok(until_stalled(stream.flush()).await?)
}

/// Sends DISCONNECT if possible; a broker that does not receive it only notices later.
async fn disconnect(stream: &mut Box<dyn Stream>) {
    if send_packet(stream, &Packet::Disconnect).await.is_ok() {
        until_stalled(stream.shutdown()).await.ok();
    }
}

async fn until_stalled<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(STALL_MAX, work).await.unwrap_or_else(|_elapsed| Err(ErrorKind::TimedOut.into()))
}

//! The sockets of the embedded broker: one task for each connection, all in one thread.
//!
//! A connection's task moves bytes: from the socket into `BrokerState::feed`, and what
//! `BrokerState::output` returns into the socket. It reads nothing while replies wait, and what it
//! has to write is one chunk at a time: the rest waits in the bounded queues of the state.
//!
//! Invariant: the lock is never held across an `.await`.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;

use crate::broker::limits::Limits;
use crate::broker::state::{BrokerState, Chunk, ConnectionId, Counters, Flow};
use crate::broker::websocket::{self, Answer, Decoder, Ending};
use crate::broker::{BrokerError, BrokerSettings};
use crate::clock::Stopwatch;

const READ_BYTES: usize = 16 << 10;
/// How often deadlines are checked; they are seconds.
const TICK: Duration = Duration::from_millis(250);
/// How long a last packet may take whose connection ends. A guess.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);
/// The pause after a failure to accept, for example for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// What was lost is logged at most once in this time.
const LOG_INTERVAL: Duration = Duration::from_mins(1);

/// The sockets on which the broker listens.
pub(super) struct Listeners {
    tcp: std::net::TcpListener,
    websocket: Option<std::net::TcpListener>,
}

impl Listeners {
    pub(super) fn bind(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let bind = |address| {
            let bound = std::net::TcpListener::bind(address);
            let bound = bound.and_then(|it| it.set_nonblocking(true).map(|()| it));
            bound.map_err(|source| BrokerError::Listen { address, source })
        };
        Ok(Self { tcp: bind(settings.tcp)?, websocket: settings.websocket.map(bind).transpose()? })
    }
}

/// Serves in the calling thread, and returns only on an error.
pub(super) fn serve(listeners: Listeners, settings: &BrokerSettings) -> BrokerError {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let served = runtime.and_then(|it| it.block_on(accept_connections(listeners, settings)));
    match served {
        Ok(()) => BrokerError::Ended { why: "its servers are gone".to_owned() },
        Err(error) => BrokerError::Ended { why: error.to_string() },
    }
}

async fn accept_connections(listeners: Listeners, settings: &BrokerSettings) -> io::Result<()> {
    let tcp = TcpListener::from_std(listeners.tcp)?;
    let websocket = listeners.websocket.map(TcpListener::from_std).transpose()?;
    let limits = Limits::for_payload(settings.payload_bytes_max);
    let connect_timeout = limits.connect_timeout;
    let shared = Shared::new(BrokerState::new(limits, settings.credentials.clone()));
    let mut serving = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    let mut log = LossLog::default();
    loop {
        let (accepted, decoder) = tokio::select! {
            accepted = tcp.accept() => (accepted, None),
            accepted = accept(websocket.as_ref()) => (accepted, Some(Decoder::default())),
            _ = tick.tick() => {
                let counters = shared.with(|state, now| {
                    state.tick(now);
                    state.counters()
                });
                log.note(counters, shared.watch.elapsed());
                continue;
            }
            // The outcome of a connection does not matter.
            Some(_) = serving.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                // Beyond the limit of connections the socket is closed at once.
                if let Some(connection) = Socket::new(&shared, decoder) {
                    serving.spawn(connection.serve(stream, connect_timeout));
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the embedded broker cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> io::Result<(TcpStream, std::net::SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

/// What wakes the task of each connection.
type Wakers = BTreeMap<ConnectionId, Arc<Notify>>;

/// The state, and what wakes the tasks of its connections.
#[derive(Clone)]
struct Shared {
    state: Arc<Mutex<(BrokerState, Wakers)>>,
    watch: Arc<Stopwatch>,
}

impl Shared {
    fn new(state: BrokerState) -> Self {
        let state = Arc::new(Mutex::new((state, BTreeMap::new())));
        Self { state, watch: Arc::new(Stopwatch::start()) }
    }

    fn with<T>(&self, act: impl FnOnce(&mut BrokerState, Duration) -> T) -> T {
        let mut locked = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (state, wakers) = &mut *locked;
        let result = act(state, self.watch.elapsed());
        for id in state.take_woken() {
            if let Some(waker) = wakers.get(&id) {
                waker.notify_one();
            }
        }
        result
    }

    fn set_waker(&self, id: ConnectionId, waker: Option<Arc<Notify>>) {
        let mut locked = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match waker {
            Some(waker) => locked.1.insert(id, waker),
            None => locked.1.remove(&id),
        };
    }
}

/// Bytes on their way into a socket.
#[derive(Default)]
struct Pending {
    chunk: Chunk,
    written: usize,
}

impl Pending {
    fn rest(&self) -> &[u8] {
        let head = &self.chunk.head;
        match head.get(self.written..) {
            Some(rest) if !rest.is_empty() => rest,
            _ => &self.chunk.payload()[self.written - head.len()..],
        }
    }

    fn is_done(&self) -> bool {
        self.rest().is_empty()
    }
}

/// One connection. Dropping it is its end for the state.
struct Socket {
    shared: Shared,
    id: ConnectionId,
    waker: Arc<Notify>,
    /// `None`: plain TCP.
    decoder: Option<Decoder>,
    /// Frames of WebSocket that are to be written before the next chunk.
    replies: Vec<u8>,
    ending: Option<Ending>,
    /// Unmasked bytes of WebSocket, kept for its memory.
    unmasked: Vec<u8>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.shared.with(|state, now| state.closed(self.id, now));
        self.shared.set_waker(self.id, None);
    }
}

impl Socket {
    /// `None`: there are too many connections.
    fn new(shared: &Shared, decoder: Option<Decoder>) -> Option<Self> {
        let id = shared.with(BrokerState::open)?;
        let waker = Arc::new(Notify::new());
        shared.set_waker(id, Some(Arc::clone(&waker)));
        let shared = shared.clone();
        let (replies, unmasked) = (Vec::new(), Vec::new());
        Some(Self { shared, id, waker, decoder, replies, ending: None, unmasked })
    }

    /// Serves the connection until either side ends it. What goes wrong with the socket is the
    /// client's end.
    async fn serve(mut self, mut stream: TcpStream, connect_timeout: Duration) {
        stream.set_nodelay(true).ok();
        if self.decoder.is_some() {
            let handshake = tokio::time::timeout(connect_timeout, self.shake_hands(&mut stream));
            if !handshake.await.is_ok_and(|it| it.is_ok_and(|accepted| accepted)) {
                return;
            }
        }
        let last = self.exchange(&mut stream).await;
        if let Some(last) = last {
            let flushed = tokio::time::timeout(FLUSH_TIMEOUT, self.flush(&mut stream, last));
            flushed.await.ok();
        }
    }

    /// Answers the request for a WebSocket. Returns whether it was accepted.
    async fn shake_hands(&mut self, stream: &mut TcpStream) -> io::Result<bool> {
        let mut request = Vec::new();
        loop {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(false);
            }
            match websocket::answer(&request) {
                Answer::Incomplete => {}
                Answer::Refused { response } => {
                    stream.write_all(response.as_bytes()).await?;
                    return Ok(false);
                }
                Answer::Accepted { response, request_bytes } => {
                    stream.write_all(&response).await?;
                    self.take(&request[request_bytes..]);
                    return Ok(true);
                }
            }
        }
    }

    /// Moves bytes both ways. Returns what is being written when the connection ends from this
    /// side; `None` when the socket has ended.
    async fn exchange(&mut self, stream: &mut TcpStream) -> Option<Pending> {
        let (mut reader, mut writer) = stream.split();
        let mut buffer = vec![0; READ_BYTES];
        let mut pending = Pending::default();
        loop {
            if pending.is_done() {
                pending = self.next_output();
            }
            let flow = self.flow();
            if flow == Flow::Closing {
                return Some(pending);
            }
            tokio::select! {
                read = reader.read(&mut buffer), if flow == Flow::Open => match read {
                    Ok(count @ 1..) => self.take(&buffer[..count]),
                    Ok(0) | Err(_) => return None,
                },
                written = writer.write(pending.rest()), if !pending.is_done() => match written {
                    Ok(count @ 1..) => pending.written += count,
                    Ok(0) | Err(_) => return None,
                },
                () = self.waker.notified() => {}
            }
        }
    }

    async fn flush(&mut self, stream: &mut TcpStream, mut pending: Pending) -> io::Result<()> {
        while !pending.is_done() {
            while !pending.is_done() {
                pending.written += stream.write(pending.rest()).await?;
            }
            pending = self.next_output();
        }
        if self.decoder.is_some() {
            let ending = self.ending.unwrap_or(Ending::ClosedByClient);
            stream.write_all(&ending.close_frame()).await?;
        }
        stream.shutdown().await
    }

    fn flow(&self) -> Flow {
        if self.ending.is_some() {
            return Flow::Closing;
        }
        match self.shared.with(|state, _| state.flow(self.id)) {
            Flow::Open if self.replies.len() > READ_BYTES => Flow::Paused,
            flow => flow,
        }
    }

    /// Takes bytes of the socket.
    fn take(&mut self, bytes: &[u8]) {
        let Some(decoder) = &mut self.decoder else {
            self.shared.with(|state, now| state.feed(self.id, bytes, now));
            return;
        };
        self.unmasked.clear();
        self.ending = decoder.feed(bytes, &mut self.unmasked, &mut self.replies).err();
        self.shared.with(|state, now| state.feed(self.id, &self.unmasked, now));
    }

    fn next_output(&mut self) -> Pending {
        let mut chunk = self.shared.with(|state, now| state.output(self.id, now));
        if self.decoder.is_some() {
            let mut framed = std::mem::take(&mut self.replies);
            if !chunk.is_empty() {
                let bytes = chunk.head.len() + chunk.payload().len();
                framed.extend(websocket::binary_header(bytes));
                framed.append(&mut chunk.head);
            }
            chunk.head = framed;
        }
        Pending { chunk, written: 0 }
    }
}

/// Logs what was lost, and not for each message.
#[derive(Default)]
struct LossLog {
    logged: Counters,
    next_at: Duration,
}

impl LossLog {
    fn note(&mut self, counters: Counters, now: Duration) {
        if counters == self.logged || now < self.next_at {
            return;
        }
        self.next_at = now + LOG_INTERVAL;
        self.logged = counters;
        tracing::warn!(
            messages_lost = counters.messages_lost,
            not_retained = counters.not_retained,
            connections_refused = counters.connections_refused,
            logins_refused = counters.logins_refused,
            connections_failed = counters.connections_failed,
            sessions_lost = counters.sessions_lost,
            "the embedded broker dropped messages or connections (counts since its start)"
        );
    }
}

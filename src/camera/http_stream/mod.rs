//! A camera in the network that sends motion JPEG over HTTP: the usual way of small cameras
//! (ESP32-CAM) and of old ones.
//!
//! What must hold, whoever answers: `next` returns within `SLICE`; names are resolved and
//! connections made in a thread of their own, of which there is at most one; head and body are
//! bounded (`response`, `camera::stream`); a camera that sends no picture for `stall_after` is
//! `Lost` and connected to again, with a back-off, for ever.
//!
//! The parts of the multipart message are not parsed. Cameras disagree about boundaries (with and
//! without dashes, quoted, other than announced) and lengths (none, or wrong ones), but every
//! picture has its own beginning and end, and what stands between two pictures is skipped.
//!
//! Not here: TLS. Cameras have certificates that nobody signed, so it would protect from nothing;
//! `preset = "rtsp"` reads https through ffmpeg.

pub mod response;
pub mod url;

use std::io::{self, Read as _, Write as _};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::camera::encoded::Buffers;
use crate::camera::fault::{CameraFault, FaultKind};
use crate::camera::http_stream::response::{HEAD_BYTES_MAX, ResponseBody, read_head};
use crate::camera::http_stream::url::CameraUrl;
use crate::camera::retry::{Retry, wait_for};
use crate::camera::stream::{PictureStream, READ_BYTES, StreamSettings};
use crate::camera::{CameraError, FrameSource, Next, unreadable_fault};
use crate::clock::Stopwatch;

#[derive(Clone, Debug, PartialEq)]
pub struct HttpSettings {
    pub url: CameraUrl,
    pub stream: StreamSettings,
}

/// Longest single wait, so that a stop takes effect soon.
const SLICE: Duration = Duration::from_millis(100);
/// For each address of a name.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ADDRESSES_MAX: usize = 4;
/// As of a command (`camera::pipe`): a camera that delivered for this long is retried soon.
const STEADY: Duration = Duration::from_secs(10);

pub struct HttpCamera {
    settings: HttpSettings,
    buffers: Arc<Buffers>,
    retry: Retry,
    state: ConnectionState,
    space: Vec<u8>,
}

enum ConnectionState {
    Idle,
    Connecting {
        connected: Receiver<Result<TcpStream, CameraFault>>,
        watch: Stopwatch,
        is_reported: bool,
    },
    Open(Box<CameraConnection>),
}

struct CameraConnection {
    socket: TcpStream,
    /// What has come of the head; `None` once it is complete.
    head: Option<Vec<u8>>,
    body: ResponseBody,
    stream: PictureStream,
}

impl HttpCamera {
    /// Connects to nothing yet.
    pub fn new(settings: HttpSettings) -> Self {
        Self::retrying(settings, Retry::new())
    }

    pub fn retrying(settings: HttpSettings, retry: Retry) -> Self {
        let buffers = Arc::default();
        Self { settings, buffers, retry, state: ConnectionState::Idle, space: vec![0; READ_BYTES] }
    }

    fn start_connecting(&mut self) -> Result<(), CameraError> {
        let (send, connected) = sync_channel(1);
        let address = self.settings.url.address();
        let connect = move || {
            // Nobody receives it when the camera was dropped meanwhile.
            send.send(connect(&address)).ok();
        };
        let thread = std::thread::Builder::new().name("camera-connect".to_owned());
        if let Err(error) = thread.spawn(connect) {
            return Err(self.mark_lost(CameraFault::new(
                FaultKind::Failing,
                format!("no thread for the connection ({error})"),
            )));
        }
        let watch = Stopwatch::start();
        self.state = ConnectionState::Connecting { connected, watch, is_reported: false };
        Ok(())
    }

    fn open(&mut self, socket: TcpStream) -> Result<(), CameraFault> {
        let failed =
            |error: io::Error| unreachable(&format!("the request cannot be sent ({error})"));
        // It fits into the buffer of a new socket.
        socket.set_write_timeout(Some(SLICE)).map_err(failed)?;
        (&socket).write_all(self.settings.url.request().expose().as_bytes()).map_err(failed)?;
        socket.set_nonblocking(true).map_err(failed)?;
        let stream = PictureStream::new(&self.settings.stream, &self.buffers);
        let head = Some(Vec::new());
        let body = ResponseBody::Plain { left: None };
        self.state =
            ConnectionState::Open(Box::new(CameraConnection { socket, head, body, stream }));
        Ok(())
    }

    fn mark_lost(&mut self, fault: CameraFault) -> CameraError {
        if let ConnectionState::Open(connection) = &self.state
            && connection.stream.frames() > 0
            && connection.stream.age() >= STEADY
        {
            self.retry.succeeded();
        }
        self.state = ConnectionState::Idle;
        self.retry.failed();
        CameraError::Lost(fault)
    }
}

impl FrameSource for HttpCamera {
    fn next(&mut self) -> Result<Next, CameraError> {
        match &mut self.state {
            ConnectionState::Idle => {
                if self.retry.wait(SLICE) {
                    self.start_connecting()?;
                }
                Ok(Next::Nothing)
            }
            ConnectionState::Connecting { connected, watch, is_reported } => {
                match connected.recv_timeout(SLICE) {
                    Ok(Ok(socket)) => {
                        self.open(socket).map_err(|fault| self.mark_lost(fault))?;
                        tracing::info!("connected to the camera");
                        Ok(Next::Nothing)
                    }
                    Ok(Err(fault)) => Err(self.mark_lost(fault)),
                    // A resolver may take half a minute. A second thread would only wait too.
                    Err(RecvTimeoutError::Timeout) => {
                        let long = self.settings.stream.stall_after;
                        if *is_reported || watch.elapsed() < long {
                            return Ok(Next::Nothing);
                        }
                        *is_reported = true;
                        let ms = long.as_millis();
                        Err(CameraError::Lost(unreachable(&format!("no connection in {ms} ms"))))
                    }
                    Err(RecvTimeoutError::Disconnected) => {
                        Err(self.mark_lost(unreachable("the attempt to connect ended")))
                    }
                }
            }
            ConnectionState::Open(connection) => match connection.next(&mut self.space) {
                Ok(next) => Ok(next),
                Err(CameraError::Lost(fault)) => Err(self.mark_lost(fault)),
                Err(error) => Err(error),
            },
        }
    }

    fn unreadable_for(&mut self, long: Duration, why: &str) -> Result<(), CameraError> {
        if !matches!(self.state, ConnectionState::Open(_))
            || long < self.settings.stream.stall_after
        {
            return Ok(());
        }
        Err(self.mark_lost(unreadable_fault(long, why)))
    }

    fn describe(&self) -> String {
        format!("motion JPEG over HTTP from {}", self.settings.url.host)
    }
}

impl CameraConnection {
    fn next(&mut self, space: &mut [u8]) -> Result<Next, CameraError> {
        if let Some(frame) = self.stream.next_frame() {
            return frame.map(Next::Frame);
        }
        if let Some(fault) = self.stream.silence_fault() {
            return Err(CameraError::Lost(fault));
        }
        if let Some(pause) = self.stream.pause() {
            std::thread::sleep(pause.min(SLICE));
            return Ok(Next::Nothing);
        }
        let failed = |error: io::Error| {
            let reason = format!("the connection to the camera broke ({error})");
            CameraError::Lost(CameraFault::new(FaultKind::Unreachable, reason))
        };
        wait_for(&mut [PollFd::new(&self.socket, PollFlags::IN)], SLICE).map_err(failed)?;
        let length = match self.socket.read(space) {
            Ok(0) => return Err(CameraError::Lost(self.end_fault())),
            Ok(length) => length,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Ok(Next::Nothing);
            }
            Err(error) => return Err(failed(error)),
        };
        self.take(&space[..length]).map_err(CameraError::Lost)?;
        Ok(Next::Nothing)
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), CameraFault> {
        let Some(mut head) = self.head.take() else {
            return self.take_body(bytes);
        };
        // What follows the head in the same read is its body.
        head.extend_from_slice(bytes);
        let known = &head[..head.len().min(HEAD_BYTES_MAX)];
        if let Some((length, body)) = read_head(known)? {
            self.body = body;
            return self.take_body(&head[length..]);
        }
        self.head = Some(head);
        Ok(())
    }

    fn take_body(&mut self, bytes: &[u8]) -> Result<(), CameraFault> {
        let Self { body, stream, .. } = self;
        if body.read(bytes, |content| stream.push(content))? {
            return Ok(());
        }
        // The pictures that came are of no use any more: a stream that ends is lost.
        Err(self.end_fault())
    }

    fn end_fault(&self) -> CameraFault {
        if self.head.is_some() {
            return CameraFault::new(FaultKind::NoStream, "the camera closed without an answer");
        }
        let part = if self.stream.is_within_picture() { " within a picture" } else { "" };
        unreachable(&format!("the camera ended the stream{part}"))
    }
}

fn unreachable(reason: &str) -> CameraFault {
    CameraFault::new(FaultKind::Unreachable, reason)
}

fn connect((host, port): &(String, u16)) -> Result<TcpStream, CameraFault> {
    let addresses = (host.as_str(), *port).to_socket_addrs().map_err(|error| {
        unreachable(&format!("the camera's name {host} has no address ({error})"))
    })?;
    let mut fault = unreachable(&format!("the camera's name {host} has no address"));
    for address in addresses.take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(socket) => return Ok(socket),
            Err(error) => {
                fault = unreachable(&format!("the camera at {address} does not answer ({error})"));
            }
        }
    }
    Err(fault)
}

#[cfg(test)]
mod tests;

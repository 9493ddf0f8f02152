//! The socket in the state directory on which the daemon serves `rollcall watch`, `rollcall
//! snapshot` and `doctor`.
//!
//! A request is one line of JSON. `{"ask":"watch","names":false}` is answered with a line for each
//! frame until one side disconnects, `{"ask":"snapshot","names":false}` with one line and the
//! frame's pixels, `{"ask":"exposure"}` with a line about light and focus of the next frame, and
//! `{"ask":"health"}` with the health message as it was last published. After
//! `{"ask":"command","verb":"rename","bytes":90}` come that many bytes of JSON, a command as by MQTT,
//! and its reply is a line. That is how the command line changes what a running daemon has, whether
//! or not there is a broker; who may connect needs no signature.
//!
//! The socket has mode 0600, so only the daemon's user and root may connect. Connections and the
//! length of a request are limited, and a client that does not read is disconnected. Inference only
//! leaves each frame in the feed and never waits for a client.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::app::commands::reply_to::Request;
use crate::app::context::Context;
use crate::app::state::preview::{PreviewFeed, PreviewFrame, PreviewMessage, preview_message};
use crate::app::supervise::StageResult;
use crate::clock::Clock;
use crate::health::Health;
use crate::recognise::exposure::Exposure;
use crate::wire::command::{Limits, Received};
use crate::wire::{command, reply};

/// The socket's name in the state directory.
pub const SOCKET: &str = "watch.sock";

const CLIENTS_MAX: usize = 8;
const REQUEST_BYTES_MAX: usize = 1024;
/// How long a client may take to send its request or to read a line.
const IO_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a command may take to arrive and be executed: `enrol_from_camera` waits two minutes.
const COMMAND_TIMEOUT: Duration = Duration::from_mins(3);
/// Without frames a line is sent at this interval, so that clients see the camera's state.
const LINE_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// How long after the last client has gone the last frame is dropped.
const CLEAR_AFTER: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase", deny_unknown_fields)]
pub enum PreviewRequest {
    Watch { names: bool },
    Snapshot { names: bool },
    Exposure,
    Health,
    Command { verb: String, bytes: usize },
}

/// The line before a snapshot's pixels: `bytes` bytes follow, three a pixel, row by row.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotHeader {
    pub bytes: usize,
    pub view: PreviewMessage,
}

/// The reply to a request that is rejected.
#[derive(Debug, Serialize, Deserialize)]
pub struct PreviewRejection {
    pub error: String,
}

#[derive(Clone)]
pub struct PreviewServer {
    state_dir: PathBuf,
    feed: Arc<PreviewFeed>,
    health: Arc<Health>,
    clock: Arc<dyn Clock>,
    /// Whether pictures may leave the daemon.
    snapshot: bool,
    limits: Limits,
    requests: mpsc::Sender<Request>,
}

impl PreviewServer {
    pub fn new(ctx: Context, feed: Arc<PreviewFeed>, requests: mpsc::Sender<Request>) -> Self {
        let limits = ctx.command_limits();
        let Context { settings, health, clock, .. } = ctx;
        let state_dir = settings.state_dir.clone();
        Self { state_dir, feed, health, clock, snapshot: settings.snapshot, limits, requests }
    }

    /// Opens the socket before the daemon reports that it is ready; `None` where that fails, because
    /// attendance does not depend on it.
    pub fn listen(&self) -> Option<UnixListener> {
        let path = self.state_dir.join(SOCKET);
        open_socket(&path)
            .inspect_err(|error| {
                tracing::warn!(
                    path = %path.display(),
                    %error,
                    "`rollcall watch` is not available: the socket cannot be created"
                );
            })
            .ok()
    }

    pub async fn run(
        self,
        listener: Option<UnixListener>,
        mut stop: watch::Receiver<bool>,
    ) -> StageResult {
        let path = self.state_dir.join(SOCKET);
        let Some(listener) = listener else {
            stop.wait_for(|it| *it).await.map(drop)?;
            return Ok(());
        };
        let mut serving = JoinSet::new();
        let mut may_hold_frame = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => Some(accepted),
                // A client has disconnected; its errors do not matter.
                Some(_) = serving.join_next() => None,
                // Inference clears the feed with the next frame, which may never come. The delay
                // lets it finish putting in one.
                () = tokio::time::sleep(CLEAR_AFTER), if may_hold_frame && serving.is_empty() => {
                    self.feed.send_replace(None);
                    may_hold_frame = false;
                    None
                }
                _ = stop.wait_for(|it| *it) => break,
            };
            match accepted {
                Some(Ok((stream, _))) => {
                    let server = self.clone();
                    let is_free = serving.len() < CLIENTS_MAX;
                    may_hold_frame = true;
                    serving.spawn(async move { server.serve_client(stream, is_free).await });
                }
                // Out of file descriptors: waiting keeps the loop from spinning.
                Some(Err(_)) => tokio::time::sleep(LINE_INTERVAL_MAX).await,
                None => {}
            }
        }
        std::fs::remove_file(&path).ok();
        Ok(())
    }

    async fn serve_client(self, mut stream: UnixStream, is_free: bool) -> std::io::Result<()> {
        let uid = stream.peer_cred()?.uid();
        if !is_free {
            let why = format!("there are {CLIENTS_MAX} clients already: try again later");
            return reject(&mut stream, &why).await;
        }
        match with_timeout(read_request(&mut stream)).await?? {
            Ok(PreviewRequest::Watch { names }) => {
                tracing::info!(uid, names, "preview client connected");
                let ended = self.send_frames(&mut stream, names).await;
                tracing::info!(uid, "preview client disconnected");
                ended
            }
            Ok(PreviewRequest::Snapshot { .. }) if !self.snapshot => {
                tracing::warn!(uid, "snapshot rejected");
                reject(&mut stream, "[privacy] snapshot = false forbids pictures on this device")
                    .await
            }
            Ok(PreviewRequest::Health) => {
                let mut line = self.health.message();
                line.push(b'\n');
                with_timeout(stream.write_all(&line)).await?
            }
            Ok(PreviewRequest::Command { verb, bytes }) => {
                self.execute(&mut stream, &verb, bytes).await
            }
            Ok(PreviewRequest::Exposure) => {
                match self.next_frame().await.map(|frame| frame.pixels.full().map(Exposure::of)) {
                    Some(Ok(exposure)) => send_line(&mut stream, &exposure).await,
                    Some(Err(error)) => reject(&mut stream, &error.to_string()).await,
                    None => reject(&mut stream, "the camera delivers no frame").await,
                }
            }
            Ok(PreviewRequest::Snapshot { names }) => {
                self.send_snapshot(&mut stream, names, uid).await
            }
            Err(why) => reject(&mut stream, &why).await,
        }
    }

    async fn execute(
        &self,
        stream: &mut UnixStream,
        verb: &str,
        bytes: usize,
    ) -> std::io::Result<()> {
        if bytes > self.limits.payload_bytes {
            let most = self.limits.payload_bytes;
            return reject(stream, &format!("the command has {bytes} bytes; at most {most}")).await;
        }
        let mut payload = Vec::new();
        let mut body = stream.take(bytes as u64);
        let received = tokio::time::timeout(COMMAND_TIMEOUT, body.read_to_end(&mut payload)).await;
        received.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        let received = Received::by_http(verb, &payload, format!("local-{}", Uuid::now_v7()));
        let command = match command::parse(received, &self.limits, self.clock.now().wall_ms) {
            Ok(command) => command,
            Err(rejection) => {
                self.health.count_rejection(rejection.code.as_str());
                return send_json(stream, reply::rejected(verb, &rejection)).await;
            }
        };
        drop(payload);
        let (reply, replied) = oneshot::channel();
        // Commands by HTTP may be in front.
        let sent = self.requests.send_timeout(Request { command, reply }, COMMAND_TIMEOUT).await;
        if sent.is_err() {
            return reject(stream, "the daemon is busy or stopping; try again").await;
        }
        match tokio::time::timeout(COMMAND_TIMEOUT, replied).await {
            Ok(Ok(reply)) => send_json(stream, reply.json).await,
            _ => reject(stream, "the daemon did not reply").await,
        }
    }

    async fn send_frames(&self, stream: &mut UnixStream, names: bool) -> std::io::Result<()> {
        let mut feed = self.feed.subscribe();
        feed.mark_unchanged();
        let mut closed = [0; 1];
        loop {
            let frame = tokio::select! {
                changed = feed.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    feed.borrow_and_update().clone()
                }
                () = tokio::time::sleep(LINE_INTERVAL_MAX) => None,
                // A client sends nothing more, so this is the end of the connection.
                _ = stream.read(&mut closed) => return Ok(()),
            };
            send_line(stream, &preview_message(frame.as_deref(), &self.health, names)).await?;
        }
    }

    async fn send_snapshot(
        &self,
        stream: &mut UnixStream,
        names: bool,
        uid: u32,
    ) -> std::io::Result<()> {
        let Some(frame) = self.next_frame().await else {
            return reject(
                stream,
                &format!("the camera delivered no frame within {} s", IO_TIMEOUT.as_secs()),
            )
            .await;
        };
        let picture = match frame.pixels.full() {
            Ok(picture) => picture,
            Err(error) => return reject(stream, &error.to_string()).await,
        };
        tracing::warn!(uid, "snapshot taken");
        let head = SnapshotHeader {
            bytes: picture.rgb().len(),
            view: preview_message(Some(&frame), &self.health, names),
        };
        send_line(stream, &head).await?;
        with_timeout(stream.write_all(picture.rgb())).await?
    }

    async fn next_frame(&self) -> Option<Arc<PreviewFrame>> {
        let mut feed = self.feed.subscribe();
        feed.mark_unchanged();
        tokio::time::timeout(IO_TIMEOUT, feed.changed()).await.ok()?.ok()?;
        feed.borrow_and_update().clone()
    }
}

/// Creates the socket, in place of one that a killed daemon left behind. The store's lock guarantees
/// that no other daemon uses it.
fn open_socket(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The directory has mode 0700. This protects the socket should that change.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn read_request(stream: &mut UnixStream) -> std::io::Result<Result<PreviewRequest, String>> {
    // Byte by byte: what follows the line is the command.
    let mut line = Vec::new();
    while line.len() < REQUEST_BYTES_MAX && line.last() != Some(&b'\n') {
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error),
        }
    }
    Ok(serde_json::from_slice(&line).map_err(|_| "the request cannot be parsed".to_owned()))
}

async fn reject(stream: &mut UnixStream, why: &str) -> std::io::Result<()> {
    send_line(stream, &PreviewRejection { error: why.to_owned() }).await
}

async fn send_json(stream: &mut UnixStream, json: String) -> std::io::Result<()> {
    with_timeout(stream.write_all((json + "\n").as_bytes())).await?
}

async fn send_line(stream: &mut UnixStream, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    with_timeout(stream.write_all(&line)).await?
}

async fn with_timeout<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    tokio::time::timeout(IO_TIMEOUT, work).await.map_err(|_| std::io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt as _, BufReader};

    use crate::clock::{SimulatedClock, Stamp};
    use crate::recognise::attention::FrameAction;
    use crate::recognise::frame::Frame;
    use crate::recognise::picture::Picture;

    #[tokio::test]
    async fn preview_frame_is_released_without_watchers() {
        let dir = tempfile::tempdir().unwrap();
        let feed = Arc::new(PreviewFeed::new(None));
        let state_dir = dir.path().to_owned();
        let health = Arc::default();
        let server = PreviewServer {
            state_dir,
            feed: Arc::clone(&feed),
            health,
            clock: Arc::new(SimulatedClock::at(0)),
            snapshot: true,
            limits: Limits::default(),
            requests: mpsc::channel(1).0,
        };
        let listener = server.listen();
        let (stop, stopped) = watch::channel(false);
        let mut serving = JoinSet::new();
        serving.spawn(server.run(listener, stopped));
        let mut stream = UnixStream::connect(dir.path().join(SOCKET)).await.unwrap();
        stream.write_all(b"{\"ask\":\"watch\",\"names\":false}\n").await.unwrap();
        // Lines come even without frames: with the first, somebody is known to watch.
        let mut lines = BufReader::new(stream).lines();
        lines.next_line().await.unwrap().unwrap();
        let pixels = Arc::new(Picture::from_rgb(2, 1, vec![0; 6]).unwrap());
        let picture = Arc::downgrade(&pixels);
        let taken = Stamp { wall_ms: 0, boottime_ms: 0, trusted: true };
        let frame = Frame { seq: 7, taken, media_ms: 0, pixels };
        feed.send_replace(Some(Arc::new(PreviewFrame::new(
            &frame,
            FrameAction::Detect,
            Vec::new(),
            None,
        ))));
        drop(frame);
        assert!(lines.next_line().await.unwrap().unwrap().contains("\"frame\":7"));
        assert!(picture.upgrade().is_some());
        drop(lines);
        let cleared = feed.subscribe().wait_for(Option::is_none).await.map(drop);
        cleared.unwrap();
        assert!(picture.upgrade().is_none());
        stop.send_replace(true);
        serving.join_next().await.unwrap().unwrap().unwrap();
    }
}

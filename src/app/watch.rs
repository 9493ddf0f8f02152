//! The socket in the state directory through which `rollcall watch` and `rollcall snapshot` ask the running daemon.
//!
//! One line of JSON asks: `{"ask":"watch","names":false}` is answered with a line for each frame until one side hangs up,
//! `{"ask":"snapshot","names":false}` with one line and the picture's pixels, `{"ask":"exposure"}` with a line about light and
//! focus of the next picture, `{"ask":"health"}` with the health message as the broker gets it. Mode 0600, so that only the daemon's own
//! user (and root) may ask. Bounded: few at a time, short questions, and who does not read is let go. The networks do
//! nothing more than hand over what they have; they never wait for anybody here.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::app::scene::{Scene, Scenes, View, view};
use crate::app::supervise::StageResult;
use crate::health::Health;
use crate::recognise::exposure::Exposure;

/// The socket's name in the state directory.
pub const SOCKET: &str = "watch.sock";

const WATCHERS_MAX: usize = 4;
const QUESTION_BYTES_MAX: u64 = 1024;
/// A question, or a reader, is waited for this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// Without frames a line is sent all the same, so that whoever watches sees the camera's state.
const LINE_AT_LEAST_EVERY: Duration = Duration::from_secs(1);
/// When the last who watched has gone, the last picture follows.
const CLEARED_AFTER: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "lowercase", deny_unknown_fields)]
pub enum Question {
    Watch { names: bool },
    Snapshot { names: bool },
    Exposure,
    Health,
}

/// The line before a snapshot's pixels: `bytes` of them follow, three a pixel, row by row.
#[derive(Debug, Serialize, Deserialize)]
pub struct SnapshotHead {
    pub bytes: usize,
    pub view: View,
}

/// Why there is no answer.
#[derive(Debug, Serialize, Deserialize)]
pub struct Refused {
    pub error: String,
}

#[derive(Clone)]
pub struct WatchServer {
    pub state_dir: PathBuf,
    pub scenes: Arc<Scenes>,
    pub health: Arc<Health>,
    /// Whether pictures may leave the daemon.
    pub snapshot: bool,
}

impl WatchServer {
    /// The socket, there before the daemon says that it is ready; nothing where it cannot be made.
    pub fn listen(&self) -> Option<UnixListener> {
        let path = self.state_dir.join(SOCKET);
        let listening = listen(&path);
        if let Err(error) = &listening {
            // Nobody's attendance depends on it.
            tracing::warn!(path = %path.display(), %error, "`rollcall watch` is not served: the socket cannot be made");
        }
        listening.ok()
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
        let mut kept = false;
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => Some(accepted),
                // Whoever hung up has gone; how does not matter.
                Some(_) = serving.join_next() => None,
                // Without another frame nobody else would clear it away. A moment later, because the networks may be
                // putting in a scene just now.
                () = tokio::time::sleep(CLEARED_AFTER), if kept && serving.is_empty() => {
                    self.scenes.send_replace(None);
                    kept = false;
                    None
                }
                _ = stop.wait_for(|it| *it) => break,
            };
            match accepted {
                Some(Ok((stream, _))) => {
                    let (server, free) = (self.clone(), serving.len() < WATCHERS_MAX);
                    kept = true;
                    serving.spawn(async move { server.serve(stream, free).await });
                }
                // Out of descriptors: not a reason to spin.
                Some(Err(_)) => tokio::time::sleep(LINE_AT_LEAST_EVERY).await,
                None => {}
            }
        }
        std::fs::remove_file(&path).ok();
        Ok(())
    }

    async fn serve(self, mut stream: UnixStream, free: bool) -> std::io::Result<()> {
        let uid = stream.peer_cred()?.uid();
        if !free {
            return refuse(&mut stream, &format!("{WATCHERS_MAX} are watching already")).await;
        }
        match within(question(&mut stream)).await?? {
            Ok(Question::Watch { names }) => {
                tracing::info!(uid, names, "somebody watches");
                let ended = self.watch(&mut stream, names).await;
                tracing::info!(uid, "somebody has stopped watching");
                ended
            }
            Ok(Question::Snapshot { .. }) if !self.snapshot => {
                tracing::warn!(uid, "a snapshot was asked for and refused");
                refuse(&mut stream, "[privacy] snapshot = false forbids pictures on this device")
                    .await
            }
            Ok(Question::Health) => {
                let mut line = self.health.message();
                line.push(b'\n');
                within(stream.write_all(&line)).await?
            }
            Ok(Question::Exposure) => {
                match self.next_scene().await.map(|scene| scene.pixels.full().map(Exposure::of)) {
                    Some(Ok(exposure)) => send_line(&mut stream, &exposure).await,
                    Some(Err(error)) => refuse(&mut stream, &error.to_string()).await,
                    None => refuse(&mut stream, "the camera gives no picture").await,
                }
            }
            Ok(Question::Snapshot { names }) => self.take_snapshot(&mut stream, names, uid).await,
            Err(why) => refuse(&mut stream, &why).await,
        }
    }

    async fn watch(&self, stream: &mut UnixStream, names: bool) -> std::io::Result<()> {
        let mut scenes = self.scenes.subscribe();
        scenes.mark_unchanged();
        let mut closed = [0; 1];
        loop {
            let scene = tokio::select! {
                changed = scenes.changed() => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    scenes.borrow_and_update().clone()
                }
                () = tokio::time::sleep(LINE_AT_LEAST_EVERY) => None,
                // Nothing more is asked: whatever comes is the end.
                _ = stream.read(&mut closed) => return Ok(()),
            };
            send_line(stream, &view(scene.as_deref(), &self.health, names)).await?;
        }
    }

    async fn take_snapshot(
        &self,
        stream: &mut UnixStream,
        names: bool,
        uid: u32,
    ) -> std::io::Result<()> {
        let Some(scene) = self.next_scene().await else {
            return refuse(
                stream,
                &format!("no frame came within {} s: the camera gives none", PATIENCE.as_secs()),
            )
            .await;
        };
        let picture = match scene.pixels.full() {
            Ok(picture) => picture,
            Err(error) => return refuse(stream, &error.to_string()).await,
        };
        tracing::warn!(uid, "a snapshot was taken");
        let head = SnapshotHead {
            bytes: picture.rgb().len(),
            view: view(Some(&scene), &self.health, names),
        };
        send_line(stream, &head).await?;
        within(stream.write_all(picture.rgb())).await?
    }

    async fn next_scene(&self) -> Option<Arc<Scene>> {
        let mut scenes = self.scenes.subscribe();
        scenes.mark_unchanged();
        tokio::time::timeout(PATIENCE, scenes.changed()).await.ok()?.ok()?;
        scenes.borrow_and_update().clone()
    }
}

/// One that a killed daemon left behind is in the way; the store's lock tells that no other daemon runs here.
fn listen(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // The directory is 0700 already; this is for whoever changes that.
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn question(stream: &mut UnixStream) -> std::io::Result<Result<Question, String>> {
    let mut line = Vec::new();
    BufReader::new(stream.take(QUESTION_BYTES_MAX)).read_until(b'\n', &mut line).await?;
    Ok(serde_json::from_slice(&line).map_err(|_| "the question is not understood".to_owned()))
}

async fn refuse(stream: &mut UnixStream, why: &str) -> std::io::Result<()> {
    send_line(stream, &Refused { error: why.to_owned() }).await
}

async fn send_line(stream: &mut UnixStream, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    within(stream.write_all(&line)).await?
}

async fn within<T>(work: impl Future<Output = T>) -> std::io::Result<T> {
    tokio::time::timeout(PATIENCE, work).await.map_err(|_| std::io::ErrorKind::TimedOut.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Stamp;
    use crate::recognise::attention::Attention;
    use crate::recognise::frame::Frame;
    use crate::recognise::picture::Picture;

    #[tokio::test]
    async fn no_picture_is_kept_when_nobody_watches_any_more_and_no_frame_comes() {
        let dir = tempfile::tempdir().unwrap();
        let scenes = Arc::new(Scenes::new(None));
        let (state_dir, health) = (dir.path().to_owned(), Arc::default());
        let server = WatchServer { state_dir, scenes: Arc::clone(&scenes), health, snapshot: true };
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
        scenes.send_replace(Some(Arc::new(Scene::new(&frame, Attention::Full, Vec::new()))));
        drop(frame);
        assert!(lines.next_line().await.unwrap().unwrap().contains("\"frame\":7"));
        assert!(picture.upgrade().is_some());
        drop(lines);
        let cleared = scenes.subscribe().wait_for(Option::is_none).await.map(drop);
        cleared.unwrap();
        assert!(picture.upgrade().is_none());
        stop.send_replace(true);
        serving.join_next().await.unwrap().unwrap().unwrap();
    }
}

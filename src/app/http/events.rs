//! `GET /api/events`: server-sent events (WHATWG HTML, section 9.2) of what is recorded, of the device's health, and of what
//! the camera sees.
//!
//! Bounded: few at a time, each takes what there is when it can, and who does not read is let go by the connection. Who comes
//! back says with `Last-Event-ID` what they have, and gets what they missed.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use super::{HttpServer, Refused, Shared};
use crate::app::scene::{Scene, Scenes, view};
use crate::record::event::{self, StoredEvent};
use crate::record::store::{StoreError, Wake};

const HEALTH_EVERY: Duration = Duration::from_secs(5);
/// Ten frames a second are enough for the eye.
const VIEW_EVERY: Duration = Duration::from_millis(100);
/// When the last who watched has gone, the last picture follows.
const CLEARED_AFTER: Duration = Duration::from_millis(500);
/// Events read at a time.
const BATCH: u32 = 50;

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Wanted {
    /// What the camera sees, too.
    view: bool,
    /// With names.
    names: bool,
}

pub(super) async fn events(
    State(server): Shared,
    headers: HeaderMap,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, Refused> {
    let Query(wanted) =
        wanted.map_err(|_| Refused::bad("the query may have view=true and names=true"))?;
    let place = Arc::clone(&server.feeds).try_acquire_owned();
    let place = place
        .map_err(|_| Refused(StatusCode::SERVICE_UNAVAILABLE, "too many watch already".into()))?;
    let had = headers
        .get("last-event-id")
        .and_then(|it| it.to_str().ok())
        .and_then(|it| it.parse::<i64>().ok());
    let mut wakes = server.store.wakes();
    // There may be something since the event that they have.
    wakes.mark_changed();
    let newest = server.store.write_async(|tx| tx.newest_seq()).await?;
    let mut views = interval(VIEW_EVERY);
    views.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let feed = Feed {
        stop: server.stop.clone(),
        wakes,
        // Nobody is sent a year of events by a made-up number.
        seq: had.map_or(newest, |had| had.clamp(newest - i64::from(BATCH), newest)),
        watching: wanted.view.then(|| Watching::begin(&server.scenes)),
        views,
        wanted,
        health_due: Instant::now(),
        server,
        _place: place,
    };
    let body = Body::from_stream(stream::unfold(feed, |mut feed| async {
        let text = feed.next().await?;
        Some((Ok::<_, std::convert::Infallible>(Bytes::from(text)), feed))
    }));
    let headers =
        [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-store")];
    Ok((headers, body).into_response())
}

struct Feed {
    server: Arc<HttpServer>,
    wanted: Wanted,
    stop: watch::Receiver<bool>,
    wakes: watch::Receiver<Wake>,
    /// The last event that was sent.
    seq: i64,
    watching: Option<Watching>,
    views: Interval,
    health_due: Instant,
    _place: OwnedSemaphorePermit,
}

impl Feed {
    /// The next messages; none when the daemon stops, or cannot read its record any more.
    async fn next(&mut self) -> Option<String> {
        loop {
            if *self.stop.borrow() {
                return None;
            }
            if self.health_due <= Instant::now() {
                self.health_due = Instant::now() + HEALTH_EVERY;
                let health = self.server.vitals.now().await.ok()?;
                return Some(format!(
                    "event: health\ndata: {}\n\n",
                    String::from_utf8_lossy(&health)
                ));
            }
            if self.wakes.has_changed().ok()? {
                self.wakes.borrow_and_update();
                let text = self.events().await.ok()?;
                if !text.is_empty() {
                    return Some(text);
                }
            }
            tokio::select! {
                _ = self.stop.wait_for(|it| *it) => return None,
                woken = self.wakes.changed() => {
                    woken.ok()?;
                    self.wakes.mark_changed();
                }
                () = tokio::time::sleep_until(self.health_due) => {}
                scene = paced(&mut self.watching, &mut self.views) => {
                    let view = view(scene.as_deref(), &self.server.health, self.wanted.names);
                    let json = serde_json::to_string(&view).ok()?;
                    return Some(format!("event: view\ndata: {json}\n\n"));
                }
            }
        }
    }

    /// What was recorded since.
    async fn events(&mut self) -> Result<String, StoreError> {
        let after = self.seq;
        let found = self.server.store.write_async(move |tx| tx.events_after(after, BATCH)).await?;
        if found.len() == BATCH as usize {
            // There may be more.
            self.wakes.mark_changed();
        }
        let (now, boot_id) = (self.server.clock.now(), self.server.clock.boot_id());
        self.seq = found.last().map_or(after, |last| last.seq);
        let message = |stored: &StoredEvent| {
            let wire = event::wire(stored, &self.server.site, &self.server.device, &now, &boot_id);
            format!(
                "id: {}\nevent: event\ndata: {}\n\n",
                stored.seq,
                String::from_utf8_lossy(&wire)
            )
        };
        Ok(found.iter().map(message).collect())
    }
}

/// The next scene, not too often; for who does not watch, never.
async fn paced(watching: &mut Option<Watching>, views: &mut Interval) -> Option<Arc<Scene>> {
    let Some(watching) = watching else {
        return std::future::pending().await;
    };
    views.tick().await;
    watching.next().await
}

/// Somebody watches: as long as this lives the networks put in what they see.
pub(super) struct Watching {
    scenes: Arc<Scenes>,
    receiver: Option<watch::Receiver<Option<Arc<Scene>>>>,
}

impl Watching {
    pub fn begin(scenes: &Arc<Scenes>) -> Self {
        let mut receiver = scenes.subscribe();
        receiver.mark_unchanged();
        Self { scenes: Arc::clone(scenes), receiver: Some(receiver) }
    }

    /// The next scene; none when it was cleared away.
    pub async fn next(&mut self) -> Option<Arc<Scene>> {
        let receiver = self.receiver.as_mut()?;
        if receiver.changed().await.is_err() {
            return std::future::pending().await;
        }
        receiver.borrow_and_update().clone()
    }
}

impl Drop for Watching {
    #[expect(
        clippy::disallowed_methods,
        reason = "it ends by itself in half a second, and nobody needs it to"
    )]
    fn drop(&mut self) {
        self.receiver = None;
        let scenes = Arc::clone(&self.scenes);
        // Without another frame nobody else would clear the picture away. A moment later, because the networks may be putting
        // in a scene just now.
        tokio::spawn(async move {
            tokio::time::sleep(CLEARED_AFTER).await;
            if scenes.receiver_count() == 0 {
                scenes.send_replace(None);
            }
        });
    }
}

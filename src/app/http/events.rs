//! `GET /api/events`: server-sent events (WHATWG HTML, section 9.2) of what is recorded, of visits
//! that are recorded already, of the device's health, and of what the camera sees.
//!
//! Bounded: few at a time, each takes what there is when it can, and who does not read is let go by
//! the connection. Who comes back sends `Last-Event-ID`, the newest they have, and gets what they
//! missed.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::{StreamExt as _, stream};
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{OwnedSemaphorePermit, broadcast, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval};

use crate::app::http::{HttpServer, Refused, Shared};
use crate::app::state::preview::{PreviewFeed, PreviewFrame, preview_message};
use crate::app::state::repeats::RepeatedVisit;
use crate::store::{StoreError, Tx, Wake};
use crate::wire::event;
use crate::wire::event::StoredEvent;

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
    pub(super) view: bool,
    /// With names.
    pub(super) names: bool,
}

/// The query of a route that can send what the camera sees.
pub(super) type WantedQuery = Result<Query<Wanted>, QueryRejection>;

impl Wanted {
    pub(super) fn read(query: WantedQuery) -> Result<Self, Refused> {
        query
            .map(|Query(wanted)| wanted)
            .map_err(|_| Refused::bad("the query may have view=true and names=true"))
    }
}

pub(super) async fn events(
    State(server): Shared,
    headers: HeaderMap,
    query: WantedQuery,
) -> Result<Response, Refused> {
    let wanted = Wanted::read(query)?;
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
    let newest = server.store.read(|tx: &Tx<'_>| tx.newest_seq()).await?;
    let mut views = interval(VIEW_EVERY);
    views.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let feed = Feed {
        stop: server.stop.clone(),
        wakes,
        // Nobody is sent a year of events by a made-up number.
        seq: had.map_or(newest, |had| had.clamp(newest - i64::from(BATCH), newest)),
        watching: wanted.view.then(|| Watching::begin(&server.feed)),
        repeats: server.repeats.subscribe(),
        unreadable: 0,
        views,
        wanted,
        health_due: Instant::now(),
        server,
        _place: place,
    };
    let events = stream::unfold(feed, |mut feed| async {
        let events = feed.next().await?;
        Some((stream::iter(events.into_iter().map(Ok::<_, Infallible>)), feed))
    });
    Ok(([(header::CACHE_CONTROL, "no-store")], Sse::new(events.flatten())).into_response())
}

struct Feed {
    server: Arc<HttpServer>,
    wanted: Wanted,
    stop: watch::Receiver<bool>,
    wakes: watch::Receiver<Wake>,
    /// The last event that was sent.
    seq: i64,
    /// Events of the record that cannot be read, as it was sent.
    unreadable: u64,
    watching: Option<Watching>,
    repeats: broadcast::Receiver<Arc<RepeatedVisit>>,
    views: Interval,
    health_due: Instant,
    _place: OwnedSemaphorePermit,
}

impl Feed {
    /// The next messages; none when the daemon stops, or cannot read its record any more.
    async fn next(&mut self) -> Option<Vec<Event>> {
        loop {
            if *self.stop.borrow() {
                return None;
            }
            if self.health_due <= Instant::now() {
                self.health_due = Instant::now() + HEALTH_EVERY;
                let health = self.server.reporter.current().await.ok()?;
                return Some(vec![message(Event::default(), "health", &health)]);
            }
            if self.wakes.has_changed().ok()? {
                self.wakes.borrow_and_update();
                let events = self.events().await.ok()?;
                if !events.is_empty() {
                    return Some(events);
                }
            }
            tokio::select! {
                _ = self.stop.wait_for(|it| *it) => return None,
                woken = self.wakes.changed() => {
                    woken.ok()?;
                    self.wakes.mark_changed();
                }
                () = tokio::time::sleep_until(self.health_due) => {}
                repeat = self.repeats.recv() => match repeat {
                    Ok(visit) => {
                        let json = serde_json::to_vec(&*visit).ok()?;
                        return Some(vec![message(Event::default(), "repeat", &json)]);
                    }
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return None,
                },
                scene = paced(&mut self.watching, &mut self.views) => {
                    let view = preview_message(scene.as_deref(), &self.server.health, self.wanted.names);
                    return Some(vec![message(Event::default(), "view", &serde_json::to_vec(&view).ok()?)]);
                }
            }
        }
    }

    /// What was recorded since.
    async fn events(&mut self) -> Result<Vec<Event>, StoreError> {
        let after = self.seq;
        let read = move |tx: &Tx<'_>| Ok((tx.events_after(after, BATCH)?, tx.unreadable()?.events));
        let (found, unreadable) = self.server.store.read(read).await?;
        if found.len() == BATCH as usize {
            // There may be more.
            self.wakes.mark_changed();
        }
        let now = self.server.clock.now();
        let boot_id = self.server.clock.boot_id();
        self.seq = found.last().map_or(after, |last| last.seq);
        let sent = |stored: &StoredEvent| {
            let wire = event::wire(stored, &self.server.origin, &now, &boot_id);
            message(Event::default().id(stored.seq.to_string()), "event", &wire)
        };
        let mut events: Vec<Event> = found.iter().map(sent).collect();
        if unreadable != self.unreadable {
            self.unreadable = unreadable;
            let count = serde_json::json!({"unreadable": unreadable}).to_string();
            events.push(message(Event::default(), "unreadable", count.as_bytes()));
        }
        Ok(events)
    }
}

/// Returns a server-sent event; JSON has no raw line ends, which it could not carry.
fn message(event: Event, name: &str, json: &[u8]) -> Event {
    event.event(name).data(String::from_utf8_lossy(json))
}

/// The next scene, not too often; for who does not watch, never.
async fn paced(watching: &mut Option<Watching>, views: &mut Interval) -> Option<Arc<PreviewFrame>> {
    let Some(watching) = watching else {
        return std::future::pending().await;
    };
    views.tick().await;
    watching.next().await
}

/// Somebody watches: as long as this lives the networks put in what they see.
pub(super) struct Watching {
    scenes: Arc<PreviewFeed>,
    receiver: Option<watch::Receiver<Option<Arc<PreviewFrame>>>>,
}

impl Watching {
    pub fn begin(scenes: &Arc<PreviewFeed>) -> Self {
        let mut receiver = scenes.subscribe();
        receiver.mark_unchanged();
        Self { scenes: Arc::clone(scenes), receiver: Some(receiver) }
    }

    /// The next scene; none when it was cleared away.
    pub async fn next(&mut self) -> Option<Arc<PreviewFrame>> {
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
        // Without another frame nobody else would clear the picture away. A moment later, because
        // the networks may be putting in a scene just now.
        tokio::spawn(async move {
            tokio::time::sleep(CLEARED_AFTER).await;
            if scenes.receiver_count() == 0 {
                scenes.send_replace(None);
            }
        });
    }
}

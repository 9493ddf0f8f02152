//! A door without a camera: a real store, the relay and the MongoDB sink, in this process, with a
//! clock that tests move.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rollcall::attend::venue::DirectionMode;
use rollcall::backoff::Backoff;
use rollcall::clock::{Clock as _, SimulatedClock, Stopwatch};
use rollcall::health::{Health, MongoState};
use rollcall::ids::{Name, Origin, SubjectId};
use rollcall::mongo::{
    MongoLink, MongoSettings, MongoSink, UriSource, VenueRecord, Venues, settings_from,
};
use rollcall::store::relay::{RelaySettings, relay};
use rollcall::store::{SinkName, Store, StoreOptions};
use rollcall::wire::event::{Attendance, Body, Direction, NewEvent, Status, SubjectRef};
use tokio::sync::watch;

/// 2026-11-23T07:58:03.412Z
pub const START_MS: i64 = 1_795_420_683_412;
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A number that a run by hand may raise: the suite stays quick, and the same test does the whole
/// of it.
pub fn scaled(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

pub fn until<T>(what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let watch = Stopwatch::start();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(watch.elapsed() < PATIENCE, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

pub struct Door {
    pub name: String,
    pub clock: Arc<SimulatedClock>,
    pub store: Store,
    pub health: Arc<Health>,
    pub settings: MongoSettings,
    pub window: usize,
    pub venues: Arc<Mutex<Vec<VenueRecord>>>,
    dir: tempfile::TempDir,
}

pub struct Running {
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
    health: Arc<Health>,
}

pub fn settings(uri: &str, timeout: Duration) -> MongoSettings {
    let from = UriSource {
        uri: uri.into(),
        database: "rollcall".into(),
        venues_collection: "venues".into(),
        ca_file: None,
        tls: false,
        timeout,
        window: 500,
    };
    settings_from(from).unwrap().unwrap()
}

pub fn visit(at_clock: &SimulatedClock, venue: &str, person: &str) -> NewEvent {
    let subject = SubjectRef {
        id: SubjectId::new(person).unwrap(),
        name: Name::new(&name_of(person)).unwrap(),
    };
    let body = Attendance {
        venue: venue.into(),
        session: None,
        subject: Some(subject),
        direction: Direction::In,
        status: Status::Present,
        score: 0.713,
        threshold: 0.42,
        frames: 4,
        track_ms: 610,
        latency_ms: 84,
    };
    NewEvent::new(at_clock.now(), Body::Attendance(body))
}

/// A dollar sign first, which MongoDB takes for a field's name where one does not look out.
pub fn name_of(person: &str) -> String {
    format!("$name of {person}")
}

impl Door {
    pub fn new(name: &str, uri: &str) -> Self {
        Self::with(name, settings(uri, Duration::from_secs(10)))
    }

    pub fn with(name: &str, settings: MongoSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(START_MS));
        let options = StoreOptions::new(vec![SinkName::MONGO], Arc::clone(&clock) as _);
        let store = Store::open(dir.path(), options).unwrap().store;
        let room = VenueRecord {
            id: "room".into(),
            name: "The room".into(),
            schedule: Some(serde_json::json!({"sessions": [{"start": "08:00"}]})),
            direction: DirectionMode::In,
            re_entry_gap: Duration::from_mins(5),
            date_time: None,
        };
        let venues = Arc::new(Mutex::new(vec![room]));
        let health = Arc::new(Health::default());
        Self { name: name.into(), clock, store, health, settings, window: 500, venues, dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn append(&self, event: &NewEvent) -> i64 {
        let event = event.clone();
        self.store.write(move |tx| tx.append_event(&event)).unwrap()
    }

    /// One person after the other, a minute apart, 50 people; gives the ids in order.
    pub fn visits(&self, count: usize) -> Vec<String> {
        let mut events = Vec::with_capacity(count);
        for number in 0..count {
            self.clock.advance(Duration::from_mins(1));
            events.push(visit(&self.clock, "room", &format!("p{}", number % 50)));
        }
        let ids = events.iter().map(|it| it.event_id.to_string()).collect();
        for chunk in events.chunks(500) {
            let chunk = chunk.to_vec();
            self.store
                .write(move |tx| chunk.iter().try_for_each(|it| tx.append_event(it).map(|_| ())))
                .unwrap();
        }
        ids
    }

    pub fn visit(&self, venue: &str, person: &str) -> String {
        let event = visit(&self.clock, venue, person);
        self.append(&event);
        event.event_id.to_string()
    }

    pub fn link(&self) -> MongoLink {
        MongoLink::new(
            self.settings.clone(),
            Arc::clone(&self.clock) as _,
            Arc::clone(&self.health),
        )
    }

    /// Relay and sink, in a thread with a runtime of its own, until stopped.
    pub fn start(&self) -> Running {
        let (stop, stopped) = watch::channel(false);
        let venues = Arc::clone(&self.venues);
        let venues: Venues = Arc::new(move || venues.lock().unwrap().clone());
        let origin = Origin { site: "hq".into(), device: self.name.clone() };
        let sink = MongoSink::new(self.link(), origin, venues);
        let store = self.store.clone();
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(400));
        let settings = RelaySettings { window: self.window, backoff };
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(relay(store, sink, stopped, settings)).unwrap();
            // What a timeout cut short is not waited for.
            runtime.shutdown_background();
        });
        Running { stop, thread: Some(thread), health: Arc::clone(&self.health) }
    }

    pub fn pending(&self) -> u64 {
        self.store.write(|tx| tx.outbox_depth(SinkName::MONGO)).unwrap().rows
    }

    pub fn dead_letters(&self) -> Vec<String> {
        self.store
            .write(|tx| tx.dead_letters(100))
            .unwrap()
            .into_iter()
            .map(|it| it.reason)
            .collect()
    }

    pub fn retry_dead_letters(&self) -> u64 {
        let retried = self.store.write(|tx| tx.retry_dead_letters(0, 1000)).unwrap();
        retried.map_or(0, |it| it.count)
    }

    pub fn until_nothing_is_owed(&self) {
        until("everything is delivered", || (self.pending() == 0).then_some(()));
    }

    /// Starts, delivers everything, stops.
    pub fn deliver(&self) {
        let running = self.start();
        self.until_nothing_is_owed();
        running.stop();
    }
}

impl Running {
    pub fn stop(mut self) {
        self.stop.send_replace(true);
        self.thread.take().unwrap().join().unwrap();
    }

    pub fn state(&self) -> Option<MongoState> {
        self.health.mongo().map(|(state, _)| state)
    }

    pub fn until_state(&self, wanted: MongoState) {
        until(&format!("MongoDB counts as {wanted:?}"), || {
            (self.state() == Some(wanted)).then_some(())
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

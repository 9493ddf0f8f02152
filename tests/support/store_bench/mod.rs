//! What the tests of the store have in common.

#![allow(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rollcall::clock::{Clock as _, SimulatedClock};
use rollcall::ids::{Name, SubjectId};
use rollcall::recognise::face::{Embedder, ModelDigest, Template};
use rollcall::store::{NewReference, Opened, SinkName, Store, StoreError, StoreOptions};
use rollcall::wire::event::{
    Attendance, Body, Camera, CameraState, Direction, NewEvent, Status, SubjectRef,
};
use rusqlite::Connection;
use tempfile::TempDir;

pub const START_MS: i64 = 1_795_420_683_412; // 2026-11-23T07:58:03.412Z
pub const DAY: Duration = Duration::from_hours(24);

pub struct Bench {
    pub dir: TempDir,
    pub clock: Arc<SimulatedClock>,
}

impl Bench {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), clock: Arc::new(SimulatedClock::at(START_MS)) }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn options(&self) -> StoreOptions {
        StoreOptions::new(vec![SinkName::MQTT, SinkName::MONGO], Arc::clone(&self.clock) as _)
    }

    pub fn try_open(&self) -> Result<Opened, StoreError> {
        Store::open(self.path(), self.options())
    }

    pub fn open(&self) -> Store {
        self.try_open().unwrap().store
    }

    pub fn sqlite(&self) -> Connection {
        Connection::open(self.path().join("rollcall.db")).unwrap()
    }

    /// Changes rows beside the daemon, as if it had written them itself.
    pub fn rewrite(&self, sql: &str) {
        self.sqlite().execute_batch(&format!("{sql}; delete from checksum")).unwrap();
    }

    pub fn camera(&self) -> NewEvent {
        NewEvent::new(
            self.clock.now(),
            Body::Camera(Camera { state: CameraState::Lost, reason: None, lost_ms: None }),
        )
    }

    pub fn attendance(&self, id: &str, name: &str, direction: Direction) -> NewEvent {
        NewEvent::new(
            self.clock.now(),
            Body::Attendance(Attendance {
                venue: "room-a".into(),
                session: None,
                subject: Some(SubjectRef { id: subject(id), name: Name::new(name).unwrap() }),
                direction,
                status: Status::Present,
                score: 0.713,
                threshold: 0.42,
                frames: 4,
                track_ms: 610,
                latency_ms: 84,
            }),
        )
    }
}

pub fn append(store: &Store, event: &NewEvent) -> i64 {
    let event = event.clone();
    store.write(move |tx| tx.append_event(&event)).unwrap()
}

/// MongoDB has carried the erasures out that it was owed; until then they name the subject's id.
pub fn erasures_carried_out(store: &Store) -> usize {
    let tell = store.write(|tx| {
        let pending = tx.outbox_batch(SinkName::MONGO, 0, 10_000)?;
        let erasures: Vec<i64> =
            pending.iter().filter(|it| it.message().is_some()).map(|it| it.id).collect();
        tx.acknowledge(&erasures)?;
        Ok(erasures.len())
    });
    tell.unwrap()
}

pub fn subject(id: &str) -> SubjectId {
    SubjectId::new(id).unwrap()
}

pub fn digest(byte: u8) -> ModelDigest {
    ModelDigest([byte; 32])
}

pub fn embedder(byte: u8) -> Embedder {
    Embedder::single(digest(byte), 4)
}

pub fn template(seed: u16) -> Template {
    Template::normalised((0..512).map(|i: u16| f32::from(i + seed * 31).sin()).collect()).unwrap()
}

pub fn enrol(store: &Store, id: &str, name: &str, templates: &[Template]) {
    let id = subject(id);
    let name = Name::new(name).unwrap();
    let references: Vec<NewReference> = templates
        .iter()
        .map(|it| NewReference {
            subject_id: id.clone(),
            embedder: embedder(1),
            template: it.clone(),
            quality: 0.9,
        })
        .collect();
    store
        .write(move |tx| {
            tx.put_subject(&id, &name)?;
            tx.add_references(&references)
        })
        .unwrap();
}

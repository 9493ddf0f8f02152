//! `rollcall verify --mongo`: what is changed in the collection is found and named; corrections and
//! erasures are no faults.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::time::Duration;

use crate::support::daemon::{DEVICE, Home, SITE};
use crate::support::door::{Door, START_MS};
use crate::support::mongod::Mongod;
use mongodb::bson::{Bson, Document, doc};
use rollcall::app::delivery::checkpoint;
use rollcall::attend::venue::Venue;
use rollcall::clock::Clock as _;
use rollcall::ids::{Origin, SubjectId};
use rollcall::keys::signer::SigningKey;
use rollcall::mongo::DeviceRecord;
use rollcall::wire::event::{Body, Camera, CameraState, NewEvent};
use serde_json::{Value, json};

struct Shared {
    server: Mongod,
    door: Door,
    home: Home,
    key: SigningKey,
}

impl Shared {
    /// Three attendances from before the time was known, then some with events between that MongoDB
    /// does not have.
    fn new() -> Self {
        let server = Mongod::start();
        let door = Door::new(DEVICE, &server.uri());
        let home = Home::new(1, &format!("[mongo]\nuri = \"{}\"\n", server.uri()));
        let key = SigningKey::create(&home.path("device.key")).unwrap();
        let shared = Self { server, door, home, key };
        shared.door.clock.set_wall(5_000, false);
        shared.door.visits(3);
        shared.door.deliver();
        shared.door.clock.set_wall(START_MS, true);
        let now = shared.door.clock.now();
        let correct =
            move |tx: &mut rollcall::store::Tx<'_>| tx.correct_times(&now, &[Venue::plain("room")]);
        assert_eq!(shared.door.store.write(correct).unwrap(), 3);
        for _ in 0..5 {
            shared.camera();
            shared.door.visits(2);
        }
        shared.camera();
        shared.deliver();
        shared
    }

    fn camera(&self) {
        let body = Camera { state: CameraState::Lost, reason: None, lost_ms: None };
        self.door.append(&NewEvent::new(self.door.clock.now(), Body::Camera(body)));
    }

    fn deliver(&self) {
        self.door.clock.advance(Duration::from_secs(1));
        self.door.deliver();
        let now = self.door.clock.now();
        let origin = Origin { site: SITE.into(), device: DEVICE.into() };
        let key = SigningKey::load(&self.home.path("device.key")).unwrap();
        let sign =
            move |tx: &mut rollcall::store::Tx<'_>| checkpoint::sign(tx, &key, &origin, &now);
        let token = self.door.store.write(sign).unwrap().unwrap().1;
        let record = DeviceRecord {
            site: SITE.into(),
            device: DEVICE.into(),
            complete_through_ms: None,
            last_seen_ms: now.wall_ms,
            seq: 1,
            gaps: Vec::new(),
            checkpoint: Some(token),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(self.door.link().put_device(&record)).unwrap();
    }

    fn verify(&self) -> Value {
        let key = self.key.public().to_string();
        let output = self.home.output(&["verify", "--mongo", "--json", "--key", &key]);
        let report: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|error| panic!("{error}: {output:?}"));
        let intact = report["intact"] == json!(true);
        assert_eq!(output.status.code(), Some(if intact { 0 } else { 65 }), "{output:?}");
        report["records"][0].clone()
    }

    /// Changes the collection, expects to be told of it, and changes it back.
    fn check(&self, command: &Document, kind: &str, seq: i64) {
        let before = self.server.all("attendance");
        self.server.command(command.clone());
        let record = self.verify();
        let fault = &record["first_fault"];
        let found = (fault["kind"].as_str(), fault["seq"].as_i64());
        assert_eq!(found, (Some(kind), Some(seq)), "{command}: {record}");
        let all = doc! { "q": {}, "limit": 0 };
        self.server.command(doc! { "delete": "attendance", "deletes": [all] });
        self.server.command(doc! { "insert": "attendance", "documents": before });
    }

    fn update(&self, seq: i64, update: Document, kind: &str) {
        let statement = doc! { "q": { "seq": seq }, "u": update };
        self.check(&doc! { "update": "attendance", "updates": [statement] }, kind, seq);
    }
}

fn seqs(documents: &[Document]) -> Vec<i64> {
    documents.iter().map(|it| it.get_i64("seq").unwrap()).collect()
}

#[test]
fn changed_collection_is_found_and_named() {
    let shared = Shared::new();
    let record = shared.verify();
    assert_eq!(record["intact"], json!(true), "{record}");
    let documents = shared.server.all("attendance");
    // With the corrections, which are part of the documents.
    assert_eq!(record["checked"], json!(documents.len() + 3), "{record}");
    let seqs = seqs(&documents);
    let [first, middle, last] = [seqs[0], seqs[6], *seqs.iter().max().unwrap()];
    assert_eq!(first, 1, "{seqs:?}");
    for seq in [first, middle, last] {
        shared.update(seq, doc! { "$set": { "venue": "other" } }, "altered");
        shared.update(seq, doc! { "$set": { "subject.name": "Somebody Else" } }, "altered");
        shared.update(seq, doc! { "$set": { "subject": null } }, "altered");
        shared.update(seq, doc! { "$set": { "score": 0.8 } }, "altered");
        shared.update(seq, doc! { "$inc": { "boottime_ms": 1_i64 } }, "altered");
        let earlier = Bson::DateTime(mongodb::bson::DateTime::from_millis(START_MS - 1));
        shared.update(seq, doc! { "$set": { "occurred_at": earlier } }, "altered");
        shared.update(seq, doc! { "$unset": { "chain": "" } }, "altered");
        let removal = doc! { "q": { "seq": seq }, "limit": 1 };
        let kind = if seq == last { "truncated" } else { "removed" };
        shared.check(&doc! { "delete": "attendance", "deletes": [removal] }, kind, seq);
        let document = documents.iter().find(|it| it.get_i64("seq").unwrap() == seq).unwrap();
        let mut copy = document.clone();
        copy.insert("_id", "0192f0c1-0000-7000-8000-00000000ffff");
        shared.check(&doc! { "insert": "attendance", "documents": [copy] }, "inserted", seq);
    }
}

#[test]
fn erasure_in_mongodb_keeps_the_chain() {
    let shared = Shared::new();
    let erased = SubjectId::new("p1").unwrap();
    shared.door.store.write(move |tx| tx.erase_subject(&erased)).unwrap();
    shared.door.visits(1);
    shared.deliver();
    let record = shared.verify();
    assert_eq!(record["intact"], json!(true), "{record}");
    assert!(record["erased"].as_u64().unwrap() > 0, "{record}");
    for document in shared.server.all("attendance") {
        let has_salt = document.get_document("chain").unwrap().contains_key("salt");
        assert_eq!(has_salt, document.get_document("subject").is_ok(), "{document}");
    }
}

use serde_json::json;

use super::*;
use crate::wire::chain::{Bytes, CORRECTABLE};

type Event = Map<String, Value>;

const SALT: Bytes<16> = Bytes([7; 16]);

/// The events of one device, each linked to the one before.
#[derive(Clone)]
struct Recorder {
    events: Vec<Event>,
    record: Option<Place>,
}

impl Recorder {
    fn append(&mut self, kind: &str, more: &Value) {
        let seq = self.events.len() as i64 + 1;
        let mut event = json!({
            "schema": 1, "event_id": format!("id-{seq}"), "seq": seq, "kind": kind,
            "occurred_at": clock::rfc3339(1_795_420_683_412 + seq * 1000), "clock": "synced",
            "boot_id": "boot", "boottime_ms": seq * 1000,
        });
        let fields = event.as_object_mut().unwrap();
        fields.extend(more.as_object().unwrap().clone());
        let prev = self.events.last().map(|it| link_of(it).hash);
        let start = prev.is_none().then_some(Start::New);
        link(fields, prev, self.record, start);
        if chain::is_of_record(kind) {
            self.record = Some(Place { seq, hash: link_of(fields).hash });
        }
        self.events.push(fields.clone());
    }

    /// Sets the time of an attendance right, as the store does.
    fn correct(&mut self, at: usize) {
        let event = &mut self.events[at];
        let was = chain::correctable(event);
        event["chain"]["was"] = was.into();
        event.insert("occurred_at".into(), "2026-11-23T08:00:00.000Z".into());
        event.insert("clock".into(), "corrected".into());
        event.insert("status".into(), "late".into());
        let corrects = event["event_id"].clone();
        self.append(
            "correction",
            &json!({
                "corrects": corrects, "was": "", "occurred_at": "2026-11-23T08:00:00.000Z",
                "clock": "corrected", "status": "late",
            }),
        );
    }

    fn signed(&self) -> Signed {
        let seq = self.events.len() as i64;
        let newest = Place { seq, hash: link_of(self.events.last().unwrap()).hash };
        Signed { newest, record: self.record, began: 1, deleted_through: 0 }
    }
}

fn link_of(event: &Event) -> Link {
    Link::deserialize(&event["chain"]).unwrap()
}

fn link(event: &mut Event, prev: Option<Hash>, record: Option<Place>, start: Option<Start>) {
    let commit = chain::commitments(event, &SALT);
    let salt = (!commit.is_empty()).then_some(SALT);
    let content = chain::content(event, None, &commit);
    let seq = event["seq"].as_i64().unwrap();
    let hash = chain::hash(seq, &content, prev.as_ref(), record.as_ref(), start);
    let link = Link { prev, hash, record, start, salt, commit, was: None };
    event.insert("chain".into(), serde_json::to_value(link).unwrap());
}

/// As somebody who knows the form: with a new hash, and new commitments.
fn relink(event: &mut Event) {
    let Link { prev, record, start, .. } = link_of(event);
    link(event, prev, record, start);
}

fn attendance(person: usize) -> Value {
    json!({
        "venue": "room-a", "session": null, "direction": "in", "status": "present",
        "subject": {"id": format!("p{person}"), "name": format!("Person {person}")},
        "score": 0.713, "threshold": 0.42, "frames": 4,
    })
}

fn recorded(count: usize) -> Recorder {
    let mut made = Recorder { events: Vec::new(), record: None };
    while made.events.len() < count {
        match made.events.len() % 5 {
            1 => made.append("camera", &json!({"state": "lost", "reason": null})),
            3 => made.append("unknown", &json!({"venue": null, "score": 0.25})),
            4 if made.events.len() % 10 == 4 => made.correct(made.events.len() - 2),
            at => made.append("attendance", &attendance(at)),
        }
    }
    made
}

fn check_with(events: &[Event], expected: &Expected) -> Report {
    let mut corrections = Corrections::of_present();
    for event in events {
        corrections.add(event);
    }
    let rows = events.iter().map(|it| Row::read(it, &corrections).unwrap()).collect();
    check(rows, expected)
}

fn signed(signed: Signed) -> Expected {
    Expected { signed: Some(signed), ..Expected::default() }
}

fn first(events: &[Event], expected: &Expected) -> Option<(FaultKind, i64)> {
    let fault = check_with(events, expected).first_fault?;
    Some((fault.kind, fault.seq.unwrap()))
}

#[test]
fn untouched_record_is_intact() {
    let made = recorded(40);
    let report = check_with(&made.events, &signed(made.signed()));
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.checked, report.from, report.to), (40, Some(1), Some(40)));
    assert!(check_with(&made.events, &Expected::default()).is_intact());
}

#[test]
fn each_altered_field_is_found_and_named() {
    let made = recorded(40);
    let expected = signed(made.signed());
    for at in 0..made.events.len() {
        let keys: Vec<String> = made.events[at].keys().cloned().collect();
        for key in keys.iter().filter(|key| !matches!(key.as_str(), "chain" | "seq")) {
            let mut events = made.events.clone();
            let value = &mut events[at][key.as_str()];
            *value = match &value {
                Value::String(it) => json!(format!("{it}0")),
                Value::Null => json!("something"),
                Value::Number(it) => json!(it.as_f64().unwrap() + 0.01),
                Value::Object(it) => {
                    json!({"id": it["id"], "name": "Somebody Else"})
                }
                other => panic!("{other}"),
            };
            let seq = at as i64 + 1;
            assert_eq!(first(&events, &expected), Some((FaultKind::Altered, seq)), "{seq} {key}");
            if CORRECTABLE.contains(&key.as_str()) && events[at]["chain"].get("was").is_some() {
                // A new hash does not help: the correction states something else.
                continue;
            }
            relink(&mut events[at]);
            assert_eq!(first(&events, &expected), Some((FaultKind::Altered, seq)), "{seq} {key}");
        }
    }
}

#[test]
fn person_cannot_be_taken_out_or_exchanged() {
    let made = recorded(10);
    let expected = signed(made.signed());
    let mut events = made.events.clone();
    events[2].insert("subject".into(), Value::Null);
    assert_eq!(first(&events, &expected), Some((FaultKind::Altered, 3)));
    // An erasure deletes the salt too.
    events[2]["chain"].as_object_mut().unwrap().remove("salt");
    let report = check_with(&events, &expected);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.erased, 1);
    // Nobody can put another person there.
    events[2].insert("subject".into(), json!({"id": "x", "name": "X"}));
    assert_eq!(first(&events, &expected), Some((FaultKind::Altered, 3)));
}

#[test]
fn correction_must_state_the_present_time() {
    let mut made = recorded(3);
    made.correct(2);
    made.append("camera", &json!({"state": "back"}));
    let expected = signed(made.signed());
    assert!(check_with(&made.events, &expected).is_intact());
    let mut moved = made.events.clone();
    moved[2].insert("occurred_at".into(), "2026-11-23T07:00:00.000Z".into());
    assert_eq!(first(&moved, &expected), Some((FaultKind::Altered, 3)));
    // Back to what it was, as if it had not been corrected.
    let mut undone = made.events.clone();
    let was = undone[2]["chain"].as_object_mut().unwrap().remove("was").unwrap();
    undone[2].extend(was.as_object().unwrap().clone());
    assert_eq!(first(&undone, &expected), Some((FaultKind::Altered, 3)));
    // A time of one's own, called a correction.
    let mut own = made.events.clone();
    own[0]["chain"]["was"] = chain::correctable(&own[0]).into();
    own[0].insert("occurred_at".into(), "2026-11-23T07:00:00.000Z".into());
    assert_eq!(first(&own, &expected), Some((FaultKind::Altered, 1)));
}

#[test]
fn each_removed_event_is_found_and_named() {
    let made = recorded(40);
    for seq in 1..=40 {
        let mut events = made.events.clone();
        events.remove(seq - 1);
        let kind = if seq == 40 { FaultKind::Truncated } else { FaultKind::Removed };
        let expected = signed(made.signed());
        assert_eq!(first(&events, &expected), Some((kind, seq as i64)));
        let unsigned = first(&events, &Expected::default());
        assert_eq!(unsigned, (seq < 40).then_some((FaultKind::Removed, seq as i64)));
    }
}

#[test]
fn each_inserted_event_is_found_and_named() {
    let made = recorded(40);
    let expected = signed(made.signed());
    for at in 0..=40 {
        // A forged one with the number of another, as if it followed the one before.
        let mut forged = made.events[at.min(39)].clone();
        forged.insert("event_id".into(), "forged".into());
        let seq = (at as i64 + 1).min(40);
        for is_linked in [false, true] {
            let mut forged = forged.clone();
            if is_linked {
                relink(&mut forged);
            }
            let mut events = made.events.clone();
            events.insert(at, forged.clone());
            assert_eq!(first(&events, &expected), Some((FaultKind::Inserted, seq)), "{is_linked}");
            // Without a link.
            forged.remove("chain");
            events[at] = forged;
            assert_eq!(first(&events, &expected), Some((FaultKind::Inserted, seq)));
        }
    }
    // After the end: a copy with a new number, and one without a link.
    let mut copy = made.events[7].clone();
    copy.insert("seq".into(), 41.into());
    let mut events = made.events.clone();
    events.push(copy.clone());
    assert_eq!(first(&events, &expected), Some((FaultKind::Inserted, 41)));
    copy.remove("chain");
    *events.last_mut().unwrap() = copy;
    assert_eq!(first(&events, &expected), Some((FaultKind::Inserted, 41)));
}

#[test]
fn each_exchanged_pair_is_found_and_named() {
    let made = recorded(25);
    let expected = signed(made.signed());
    for one in 0..24 {
        for other in one + 1..25 {
            // Lines of a file.
            let mut events = made.events.clone();
            events.swap(one, other);
            let swapped = Some((FaultKind::Swapped, one as i64 + 1));
            assert_eq!(first(&events, &expected), swapped, "{one} {other}");
            // Rows of a table: the numbers stay in their places.
            let numbers = [one, other].map(|at| events[at]["seq"].clone());
            events[one].insert("seq".into(), numbers[1].clone());
            events[other].insert("seq".into(), numbers[0].clone());
            assert_eq!(first(&events, &expected), swapped, "{one} {other}");
        }
    }
}

#[test]
fn each_truncation_is_found_with_a_checkpoint() {
    let made = recorded(20);
    for kept in 0..20 {
        let found = first(&made.events[..kept], &signed(made.signed()));
        assert_eq!(found, Some((FaultKind::Truncated, kept as i64 + 1)));
    }
    // What came after the checkpoint is not signed.
    let mut later = made.clone();
    later.append("camera", &json!({"state": "back"}));
    let report = check_with(&later.events, &signed(made.signed()));
    assert!(report.is_intact());
    assert_eq!(report.unsigned, 1);
}

#[test]
fn rewritten_history_contradicts_a_checkpoint() {
    let made = recorded(20);
    let mut other = made.events.clone();
    other[4].insert("boot_id".into(), "other".into());
    let mut record = None;
    for at in 0..20_usize {
        let prev = at.checked_sub(1).map(|at| link_of(&other[at]).hash);
        let start = prev.is_none().then_some(Start::New);
        link(&mut other[at], prev, record, start);
        if chain::is_of_record(text(&other[at], "kind")) {
            record = Some(Place { seq: at as i64 + 1, hash: link_of(&other[at]).hash });
        }
    }
    let expected = Expected { signed: Some(made.signed()), ..Expected::default() };
    assert!(!check_with(&other, &expected).is_intact());
    let older = Recorder { events: made.events[..12].to_vec(), record: None };
    let expected = Expected { signed_before: vec![older.signed()], ..signed(made.signed()) };
    assert!(check_with(&made.events, &expected).is_intact());
}

#[test]
fn events_to_the_signed_bound_may_be_missing() {
    let made = recorded(20);
    let expected = |through| signed(Signed { deleted_through: through, ..made.signed() });
    assert!(check_with(&made.events[8..], &expected(8)).is_intact());
    assert_eq!(first(&made.events[8..], &expected(7)), Some((FaultKind::Removed, 8)));
    // One that stayed behind (a dead letter).
    let mut events = made.events[8..].to_vec();
    events.insert(0, made.events[2].clone());
    assert!(check_with(&events, &expected(8)).is_intact());
    assert!(check_with(&[], &expected(20)).is_intact());
    // A copy that begins later.
    let from = Expected { from: Some(9), ..signed(made.signed()) };
    assert!(check_with(&made.events[8..], &from).is_intact());
    assert_eq!(first(&made.events[9..], &from), Some((FaultKind::Removed, 9)));
}

#[test]
fn break_is_stated_and_no_fault() {
    let mut made = recorded(10);
    made.append("camera", &json!({"state": "back"}));
    made.record = None;
    link(&mut made.events[10], None, None, Some(Start::Break));
    made.append("attendance", &attendance(1));
    let report = check_with(&made.events, &signed(made.signed()));
    assert!(report.is_intact(), "{report:?}");
    assert_eq!(report.breaks, [11]);
    let mut events = made.events.clone();
    events.remove(9);
    assert_eq!(first(&events, &signed(made.signed())), Some((FaultKind::Removed, 10)));
    // Set apart by the device itself.
    let set_apart = BTreeSet::from([10]);
    let expected = Expected { set_apart, ..signed(made.signed()) };
    assert_eq!(first(&events, &expected), Some((FaultKind::Altered, 10)));
}

#[test]
fn events_before_the_chain_are_not_covered() {
    let mut made = recorded(10);
    let mut events = made.events.clone();
    for event in &mut events[..4] {
        event.remove("chain");
    }
    link(&mut events[4], None, None, Some(Start::Existing));
    for at in 5..10 {
        let prev = Some(link_of(&events[at - 1]).hash);
        link(&mut events[at], prev, None, None);
    }
    made.events = events.clone();
    let expected = signed(Signed { began: 5, record: None, ..made.signed() });
    let report = check_with(&events, &expected);
    assert!(report.is_intact(), "{report:?}");
    assert_eq!((report.not_covered, report.checked), (4, 6));
    // Not a way to take the links of later ones away.
    events[4].remove("chain");
    assert_eq!(first(&events, &expected), Some((FaultKind::Altered, 5)));
}

#[test]
fn attendance_alone_is_checked_by_the_record() {
    let made = recorded(40);
    let is_kept = |event: &&Event| chain::is_of_record(text(event, "kind"));
    let kept: Vec<Event> = made.events.iter().filter(is_kept).cloned().collect();
    let expected = Expected { scope: Scope::Record, ..signed(made.signed()) };
    assert!(check_with(&kept, &expected).is_intact());
    for at in 0..kept.len() {
        let seq = kept[at]["seq"].as_i64().unwrap();
        let mut events = kept.clone();
        events.remove(at);
        let is_newest = at == kept.len() - 1;
        let kind = if is_newest { FaultKind::Truncated } else { FaultKind::Removed };
        let found = first(&events, &expected);
        // Without its correction an event is not explained either.
        let is_correction = text(&kept[at], "kind") == "correction";
        assert!(found == Some((kind, seq)) || is_correction && found.is_some(), "{seq} {found:?}");
        let mut events = kept.clone();
        events[at].insert("boot_id".into(), "other".into());
        assert_eq!(first(&events, &expected), Some((FaultKind::Altered, seq)));
        relink(&mut events[at]);
        assert_eq!(first(&events, &expected), Some((FaultKind::Altered, seq)));
        let mut events = kept.clone();
        let mut forged = kept[at].clone();
        forged.insert("event_id".into(), "forged".into());
        relink(&mut forged);
        events.push(forged);
        assert_eq!(first(&events, &expected), Some((FaultKind::Inserted, seq)));
    }
}

#[test]
fn repeated_delivery_is_no_fault() {
    let made = recorded(10);
    let mut events = made.events.clone();
    events.insert(7, made.events[3].clone());
    events.push(made.events[9].clone());
    assert!(check_with(&events, &signed(made.signed())).is_intact());
    // In another order, where that is allowed.
    events.reverse();
    assert!(!check_with(&events, &signed(made.signed())).is_intact());
    let expected = Expected { in_order: false, ..signed(made.signed()) };
    assert!(check_with(&events, &expected).is_intact());
}

/// Each row of a long record, in turn: half an hour with this crate's optimisation for tests.
#[test]
#[ignore = "takes long: cargo test --lib every_change_of_a_long_record -- --ignored"]
fn every_change_of_a_long_record_is_found() {
    const COUNT: usize = 10_000;
    let made = recorded(COUNT);
    let mut corrections = Corrections::of_present();
    made.events.iter().for_each(|it| corrections.add(it));
    let read = |event: &Event| Row::read(event, &corrections).unwrap();
    let rows: Vec<Row> = made.events.iter().map(read).collect();
    let expected = signed(made.signed());
    assert!(check(rows.clone(), &expected).is_intact());
    let first = |rows: Vec<Row>| {
        let fault = check(rows, &expected).first_fault.unwrap();
        (fault.kind, fault.seq.unwrap())
    };
    for at in 0..COUNT {
        let seq = at as i64 + 1;
        let event = &made.events[at];
        let changed = |change: &dyn Fn(&mut Event)| {
            let mut event = event.clone();
            change(&mut event);
            read(&event)
        };
        let with = |change: &dyn Fn(&mut Vec<Row>)| {
            let mut rows = rows.clone();
            change(&mut rows);
            first(rows)
        };
        let later = changed(&|it| drop(it.insert("boottime_ms".into(), 1.into())));
        assert_eq!(with(&|it| it[at] = later.clone()), (FaultKind::Altered, seq));
        let kind = if at + 1 == COUNT { FaultKind::Truncated } else { FaultKind::Removed };
        assert_eq!(with(&|it| drop(it.remove(at))), (kind, seq));
        let forged = changed(&|it| {
            it.insert("event_id".into(), "forged".into());
            relink(it);
        });
        assert_eq!(with(&|it| it.insert(at, forged.clone())), (FaultKind::Inserted, seq));
        assert_eq!(with(&|it| it.truncate(at)), (FaultKind::Truncated, seq));
        // With the next one, and with one anywhere.
        for other in [at + 1, (at * 7919 + 13) % COUNT].into_iter().filter(|it| *it < COUNT) {
            let earlier = (at.min(other) as i64) + 1;
            if other != at {
                assert_eq!(with(&|it| it.swap(at, other)), (FaultKind::Swapped, earlier));
            }
        }
    }
}

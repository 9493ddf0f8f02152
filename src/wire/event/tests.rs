use super::*;

const OCCURRED_MS: i64 = 1_795_420_683_412;

fn subject() -> SubjectRef {
    SubjectRef { id: SubjectId::new("jdoe").unwrap(), name: Name::new("Jane Doe").unwrap() }
}

fn attendance() -> Body {
    Body::Attendance(Attendance {
        venue: "room-a".into(),
        session: Some("2026-11-23T08:00Z/mon-am".into()),
        subject: Some(subject()),
        direction: Direction::In,
        status: Status::Present,
        score: 0.713,
        threshold: 0.42,
        frames: 4,
        track_ms: 610,
        latency_ms: 84,
    })
}

fn boot() -> clock::BootId {
    clock::BootId::new("0b5e9c1e-0000-4000-8000-000000000001")
}

fn stored(body: Body) -> StoredEvent {
    StoredEvent {
        seq: 1841,
        event_id: Uuid::from_u128(0x0192_f0c1_0000_7000_8000_0000_0000_0001),
        occurred_ms: OCCURRED_MS,
        boot_id: boot(),
        boottime_ms: 912_345,
        clock: ClockState::Synced,
        superseded_by: None,
        body,
        chain: None,
    }
}

fn at(wall_ms: i64, boottime_ms: u64) -> clock::Stamp {
    clock::Stamp { wall_ms, boottime_ms, trusted: true }
}

/// What every message begins and ends with; `%` stands for the part of its kind.
const ENVELOPE: &str = r#"{"schema":1,"event_id":"0192f0c1-0000-7000-8000-000000000001","seq":1841,%,"occurred_at":"2026-11-23T07:58:03.412Z","clock":"synced","boot_id":"0b5e9c1e-0000-4000-8000-000000000001","boottime_ms":912345,"historical":false,"expires_at":"2026-11-23T07:58:33.412Z"}"#;

fn check(body: Body, part: &str) {
    let event = stored(body);
    let origin = Origin { site: "hq".into(), device: "door-1".into() };
    let sent = wire(&event, &origin, &at(OCCURRED_MS + 90, 912_435), &boot());
    assert_eq!(String::from_utf8(sent).unwrap(), ENVELOPE.replace('%', part));
    let json = event.body.to_stored(None);
    assert_eq!(Body::from_stored(event.body.kind().as_str(), &json).unwrap(), event.body, "{json}");
}

#[test]
fn attendance_message() {
    check(
        attendance(),
        r#""kind":"attendance","site":"hq","device":"door-1","venue":"room-a","session":"2026-11-23T08:00Z/mon-am","subject":{"id":"jdoe","name":"Jane Doe"},"direction":"in","status":"present","score":0.713,"threshold":0.42,"frames":4,"track_ms":610,"latency_ms":84"#,
    );
}

#[test]
fn attendance_message_of_an_erased_person() {
    let mut body = attendance();
    body.erase_subject();
    check(
        body,
        r#""kind":"attendance","site":"hq","device":"door-1","venue":"room-a","session":"2026-11-23T08:00Z/mon-am","subject":null,"direction":"in","status":"present","score":0.713,"threshold":0.42,"frames":4,"track_ms":610,"latency_ms":84"#,
    );
}

#[test]
fn unknown_message() {
    check(
        Body::Unknown(Unknown {
            venue: Some("room-a".into()),
            score: Some(0.25),
            threshold: 0.42,
            frames: 5,
            track_ms: 800,
        }),
        r#""kind":"unknown","site":"hq","device":"door-1","venue":"room-a","score":0.25,"threshold":0.42,"frames":5,"track_ms":800"#,
    );
}

#[test]
fn attack_message() {
    check(
        Body::Attack(Attack {
            venue: None,
            subject: Some(subject()),
            scores: vec![0.5, 0.25],
            threshold: 0.75,
            enforced: true,
        }),
        r#""kind":"attack","site":"hq","device":"door-1","venue":null,"subject":{"id":"jdoe","name":"Jane Doe"},"scores":[0.5,0.25],"threshold":0.75,"enforced":true"#,
    );
}

#[test]
fn camera_message() {
    check(
        Body::Camera(Camera { state: CameraState::Back, reason: None, lost_ms: Some(4200) }),
        r#""kind":"camera","site":"hq","device":"door-1","state":"back","reason":null,"lost_ms":4200"#,
    );
}

#[test]
fn enrolment_message() {
    check(
        Body::Enrolment(Enrolment {
            action: EnrolmentAction::Enrolled,
            subject: Some(subject()),
            references: 3,
            request_id: Some("r-1".into()),
            consent: None,
            reason: None,
        }),
        r#""kind":"enrolment","site":"hq","device":"door-1","action":"enrolled","subject":{"id":"jdoe","name":"Jane Doe"},"references":3,"request_id":"r-1""#,
    );
    let desk = crate::ids::Name::new("Front desk").unwrap();
    let consent = Consent::new(1_795_420_683_412, "2026-1", Some(1_795_420_683_413), desk).unwrap();
    check(
        Body::Enrolment(Enrolment {
            action: EnrolmentAction::Withdrawn,
            subject: Some(subject()),
            references: 3,
            request_id: None,
            consent: Some(consent),
            reason: Some(EndReason::ConsentExpired),
        }),
        r#""kind":"enrolment","site":"hq","device":"door-1","action":"withdrawn","subject":{"id":"jdoe","name":"Jane Doe"},"references":3,"request_id":null,"consent":{"given_at":"2026-11-23T07:58:03.412Z","text_version":"2026-1","valid_until":"2026-11-23T07:58:03.413Z","recorded_by":"Front desk"},"reason":"consent_expired""#,
    );
}

#[test]
fn correction_message() {
    check(
        Body::Correction(Correction {
            corrects: Uuid::from_u128(7),
            was: "1970-01-01T00:15:12.345Z".into(),
            session: Some("2026-11-23T08:00Z/mon-am".into()),
            status: Some(Status::Late),
            superseded_by: None,
        }),
        r#""kind":"correction","site":"hq","device":"door-1","corrects":"00000000-0000-0000-0000-000000000007","was":"1970-01-01T00:15:12.345Z","session":"2026-11-23T08:00Z/mon-am","status":"late""#,
    );
}

#[test]
fn security_message() {
    check(
        Body::Security(Security {
            reason: SecurityReason::WrongAudience,
            verb: Some("enrol".into()),
            count: 2,
        }),
        r#""kind":"security","site":"hq","device":"door-1","reason":"wrong_audience","verb":"enrol","count":2"#,
    );
}

#[test]
fn event_topic_ends_with_its_kind() {
    for kind in EventKind::VARIANTS {
        assert_eq!(topic_part(*kind), format!("event/{}", kind.as_str()));
        assert_eq!(kind.as_str().parse().as_ref(), Ok(kind));
    }
}

#[test]
fn doubtful_event_age_counts_as_historical() {
    let other = clock::BootId::new("another");
    let now = |after_ms: i64| at(OCCURRED_MS + after_ms, (912_345 + after_ms) as u64);
    let check = |clock: ClockState, now: clock::Stamp, boot: &clock::BootId, expected: bool| {
        let event = StoredEvent { clock, ..stored(attendance()) };
        assert_eq!(is_historical(&event, &now, boot), expected, "{clock:?} {now:?} {boot}");
    };
    check(ClockState::Synced, now(30_000), &boot(), false);
    check(ClockState::Synced, now(30_001), &boot(), true);
    // Same boot, wall clock set meanwhile: the other clock decides.
    check(ClockState::Unsynced, at(0, 912_400), &boot(), false);
    check(ClockState::Unsynced, at(OCCURRED_MS, 1_000_000), &boot(), true);
    // Another boot: wall time decides, if it can be relied upon.
    check(ClockState::Synced, now(20_000), &other, false);
    check(ClockState::Synced, now(30_001), &other, true);
    check(ClockState::Corrected, now(20_000), &other, false);
    check(ClockState::Unsynced, now(20_000), &other, true);
    check(ClockState::Synced, clock::Stamp { trusted: false, ..now(20_000) }, &other, true);
    check(ClockState::Synced, now(-5_000), &other, true);
}

#[test]
fn a_corrupt_body_is_an_error() {
    let good = attendance().to_stored(None);
    for (kind, json) in [
        ("attendance", "{"),
        ("attendance", "{}"),
        ("attendance", "[]"),
        ("attendance", r#"{"schema":1}"#),
        ("nonsense", good.as_str()),
        ("camera", good.as_str()),
        ("attendance", &good.replace("jdoe", "j/doe")),
        ("attendance", &good.replace(r#""schema":1"#, r#""schema":2"#)),
    ] {
        assert!(Body::from_stored(kind, json).is_err(), "{kind} {json}");
    }
}

#[test]
fn event_debug_output_has_no_name() {
    assert!(!format!("{:?}", stored(attendance())).contains("Jane"));
}

#[test]
fn event_ids_carry_their_time() {
    let event = NewEvent::new(at(OCCURRED_MS, 1), attendance());
    assert_eq!(event.event_id.get_version_num(), 7);
    let (seconds, nanos) = event.event_id.get_timestamp().unwrap().to_unix();
    assert_eq!(seconds as i64 * 1000 + i64::from(nanos) / 1_000_000, OCCURRED_MS);
    assert_eq!(NewEvent::new(at(-5, 1), attendance()).event_id.get_version_num(), 7);
}

#[test]
fn linked_event_is_sent_with_its_link() {
    let link = crate::wire::chain::Link {
        prev: None,
        hash: crate::wire::chain::Bytes([1; 32]),
        record: None,
        start: Some(crate::wire::chain::Start::New),
        salt: None,
        commit: std::collections::BTreeMap::new(),
        was: None,
    };
    let event = StoredEvent { chain: Some(Box::new(link.clone())), ..stored(attendance()) };
    let json = event.body.to_stored(Some(&link));
    assert_eq!(Body::from_stored("attendance", &json).unwrap(), event.body, "{json}");
    assert_eq!(stored_link(&json), event.chain);
    assert_eq!(stored_link(&event.body.to_stored(None)), None);
    let origin = Origin { site: "hq".into(), device: "door-1".into() };
    let sent = wire(&event, &origin, &at(OCCURRED_MS + 90, 912_435), &boot());
    let end = r#""expires_at":"2026-11-23T07:58:33.412Z","chain":{"hash":"AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE","start":"new"}}"#;
    assert!(sent.ends_with(end.as_bytes()), "{}", String::from_utf8_lossy(&sent));
    // The message has the same content as the row.
    let sent: Map<String, Value> = serde_json::from_slice(&sent).unwrap();
    let content = |it| crate::wire::chain::content(it, None, &link.commit);
    assert_eq!(content(&sent), content(&recorded(&event)));
}

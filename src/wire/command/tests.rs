use crate::enrol::camera::FaceView;
use base64::Engine as _;
use proptest::prelude::*;
use serde_json::{Value, json};
use strum::VariantArray as _;

use super::*;
use crate::wire::reply;
use crate::wire::reply::Reply;

const NOW_MS: i64 = 1_795_420_683_412; // 2026-11-23T07:58:03.412Z

fn read(verb: &str, body: &Value) -> Result<Command, Rejection> {
    parse_bytes(verb, body.to_string().as_bytes(), &Limits::default())
}

fn parse_bytes(verb: &str, payload: &[u8], limits: &Limits) -> Result<Command, Rejection> {
    parse(Received::by_mqtt(verb, payload, false), limits, NOW_MS)
}

/// One good command per verb.
fn good() -> Vec<(&'static str, Value)> {
    let image = "data:image/png;base64,aGVsbG8=";
    vec![
        (
            "enrol",
            json!({"schema": 1, "request_id": "r-1", "subject": {"id": "jdoe", "name": "Jane Doe"},
                   "images": [image, "aGVsbG8"], "replace": true, "allow_duplicate": false}),
        ),
        ("withdraw", json!({"request_id": "r-1", "subject_id": "jdoe", "erase": true})),
        ("rename", json!({"request_id": "r-1", "subject_id": "jdoe", "name": "Jane Roe"})),
        ("subjects", json!({"request_id": "r-1", "after": "jdoe", "limit": 500})),
        ("recognise", json!({"request_id": "r-1", "image": image})),
        (
            "attend",
            json!({"request_id": "r-1", "venue": "room-a", "image": image, "direction": "in"}),
        ),
        (
            "attendance",
            json!({"request_id": "r-1", "venue": "room-a", "from": "2026-11-23T00:00:00Z",
                   "to": "2026-11-24T00:00:00+01:00", "after": 7, "limit": 10}),
        ),
        (
            "sync",
            json!({"request_id": "r-1", "expires_at": "2026-11-23T08:00:00Z", "retry_buried": true}),
        ),
        (
            "venue_put",
            json!({"request_id": "r-1", "venue": "room-a", "name": "Room A", "time_zone": "Europe/Berlin",
                   "direction": "alternate", "re_entry_gap_ms": 60000, "sessions": [
                     {"id": "mon-am", "weekdays": ["mon"], "start": "08:00", "end": "12:00", "late_after_ms": 600_000},
                     {"id": "exam", "dates": ["2026-11-24"], "start": "09:00", "end": "11:00", "early_ms": 0}]}),
        ),
        ("venue_delete", json!({"request_id": "r-1", "venue": "room-a"})),
        ("venues", json!({"request_id": "r-1", "after": "room-a", "limit": 10})),
        (
            "consent",
            json!({"request_id": "r-1", "subject_id": "jdoe", "consent": {"given_at": "2026-11-23T07:58:03.412Z",
                   "text_version": "2026-1", "valid_until": "2027-11-23T00:00:00+01:00", "recorded_by": "Front desk"}}),
        ),
        (
            "enrol_from_camera",
            json!({"request_id": "r-1", "subject": {"id": "jdoe", "name": "Jane Doe"}, "samples": 2, "timeout_ms": 5000}),
        ),
    ]
}

#[test]
fn valid_commands_are_parsed() {
    for (verb, body) in good() {
        let command = read(verb, &body).unwrap();
        assert_eq!(command.request_id, "r-1");
        assert_eq!(command.verb.as_str(), verb);
    }
    let (verb, body) = &good()[0];
    let Verb::Enrol(enrol) = read(verb, body).unwrap().verb else { panic!("an enrol") };
    assert_eq!(
        enrol.images.iter().map(EncodedImage::bytes).collect::<Vec<_>>(),
        [b"hello", b"hello"]
    );
    assert!(enrol.replace && !enrol.allow_duplicate);
    assert_eq!(format!("{:?}", enrol.images[0]), "EncodedImage(5 bytes)");

    let (verb, body) = &good()[6];
    let Verb::Attendance(attendance) = read(verb, body).unwrap().verb else {
        panic!("an attendance")
    };
    assert_eq!(
        (attendance.from_ms, attendance.to_ms, attendance.after, attendance.limit),
        (1_795_392_000_000, 1_795_474_800_000, 7, 10)
    );
    assert_eq!(read("sync", &good()[7].1).unwrap().expires_ms, Some(1_795_420_800_000));
}

#[test]
fn http_command_gets_missing_request_id() {
    let parse = |body: &str| {
        let received = Received::by_http("venues", body.as_bytes(), "http-1".into());
        match parse(received, &Limits::default(), NOW_MS) {
            Ok(command) => Some(command.request_id),
            Err(rejection) => rejection.request_id,
        }
    };
    for body in [
        "{}",
        r#"{"request_id":null}"#,
        r#"{"unknown":1}"#,
        r#"{"limit":[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]}"#,
    ] {
        assert_eq!(parse(body).as_deref(), Some("http-1"), "{body}");
    }
    assert_eq!(parse(r#"{"request_id":"r-1"}"#).as_deref(), Some("r-1"));
    for unreadable in [r#"{"request_id":7}"#, r#"{"request_id":"a/b"}"#, "[]", "{", "", "7"] {
        assert_eq!(parse(unreadable), None, "{unreadable}");
    }
}

#[test]
fn omitted_fields_have_defaults() {
    let Verb::Attendance(all) =
        read("attendance", &json!({"request_id": "r", "venue": "v", "from": null})).unwrap().verb
    else {
        panic!("an attendance")
    };
    assert_eq!((all.from_ms, all.after, all.limit), (0, 0, PAGE_DEFAULT));
    assert!(all.to_ms > NOW_MS);
}

/// (verb, change to the good command of that verb, expected code, expected field)
fn check(verb: &str, change: impl FnOnce(&mut Value), code: ErrorCode, field: &str) {
    let mut body = good().into_iter().find(|it| it.0 == verb).unwrap().1;
    change(&mut body);
    let rejection = read(verb, &body).unwrap_err();
    assert_eq!(
        (rejection.code, rejection.field.as_deref()),
        (code, Some(field)),
        "{}",
        rejection.message
    );
    assert!(rejection.message.starts_with(field), "{}", rejection.message);
    let expected = (field != "request_id").then_some("r-1");
    assert_eq!(rejection.request_id.as_deref(), expected);
}

#[test]
fn invalid_field_error_names_field() {
    use ErrorCode::{BadImage, BadValue, Expired, MissingField, TooMany, UnknownField, WrongType};
    check("sync", |it| it["extra"] = json!(1), UnknownField, "extra");
    check("venue_put", |it| it["sessions"][1]["room"] = json!(1), UnknownField, "sessions[1].room");
    check("venue_put", |it| it["sessions"][1]["start"] = json!(9), WrongType, "sessions[1].start");
    check(
        "venue_put",
        |it| it["sessions"][0]["weekdays"] = json!([1]),
        WrongType,
        "sessions[0].weekdays[0]",
    );
    check(
        "venue_put",
        |it| it["sessions"][0]["weekdays"] = json!(vec!["mon"; 8]),
        TooMany,
        "sessions[0].weekdays",
    );
    check("venue_put", |it| it["sessions"] = json!(vec![json!({}); 51]), TooMany, "sessions");
    check("venue_put", |it| it["sessions"] = json!({}), WrongType, "sessions");
    check("venue_put", |it| it["re_entry_gap_ms"] = json!(-1), BadValue, "re_entry_gap_ms");
    check("venue_put", |it| it["direction"] = json!("both"), BadValue, "direction");
    check("venue_put", |it| it["venue"] = json!("a/b"), BadValue, "venue");
    check("attendance", |it| it["absent"] = json!(true), BadValue, "absent");
    check("enrol", |it| it["subject"]["vip"] = json!(true), UnknownField, "subject.vip");
    check("sync", |it| it["request_id"] = json!("a/b"), BadValue, "request_id");
    check("sync", |it| it["request_id"] = json!(7), WrongType, "request_id");
    check("sync", |it| it["schema"] = json!(2), BadValue, "schema");
    check("sync", |it| it["expires_at"] = json!("2026-11-23T07:58:03Z"), Expired, "expires_at");
    check("sync", |it| it["expires_at"] = json!("tomorrow"), BadValue, "expires_at");
    check("sync", |it| it["expires_at"] = json!("2026-11-24T07:58:03"), BadValue, "expires_at");
    check("enrol", |it| it["subject"] = json!("jdoe"), WrongType, "subject");
    check("enrol", |it| it["subject"]["id"] = json!("j doe"), BadValue, "subject.id");
    check("enrol", |it| it["subject"]["name"] = json!("x".repeat(201)), BadValue, "subject.name");
    check("enrol", |it| it["images"] = json!([]), BadValue, "images");
    check("enrol", |it| it["images"] = json!("aGVsbG8="), WrongType, "images");
    check("enrol", |it| it["images"] = json!(vec!["aGVsbG8="; 11]), TooMany, "images");
    check("enrol", |it| it["images"][1] = json!("not base64!"), BadImage, "images[1]");
    check("enrol", |it| it["images"][1] = json!(""), BadImage, "images[1]");
    check(
        "enrol",
        |it| it["images"][1] = json!("data:text/html;base64,aGk="),
        BadImage,
        "images[1]",
    );
    check("enrol", |it| it["images"][1] = json!({}), WrongType, "images[1]");
    check("enrol", |it| it["replace"] = json!("yes"), WrongType, "replace");
    check("withdraw", |it| it["subject_id"] = json!("+"), BadValue, "subject_id");
    check("rename", |it| it["name"] = json!("a\nb"), BadValue, "name");
    check("subjects", |it| it["limit"] = json!(501), BadValue, "limit");
    check("subjects", |it| it["limit"] = json!(0), BadValue, "limit");
    check("subjects", |it| it["limit"] = json!(1.5), WrongType, "limit");
    check("attend", |it| it["direction"] = json!("up"), BadValue, "direction");
    check("attendance", |it| it["to"] = json!("2026-11-22T00:00:00Z"), BadValue, "to");
    check("attendance", |it| it["after"] = json!(-1), BadValue, "after");
    for field in ["subject", "images"] {
        let remove = |it: &mut Value| drop(it.as_object_mut().unwrap().remove(field));
        check("enrol", remove, MissingField, field);
    }
}

#[test]
fn invalid_consent_error_names_field() {
    use ErrorCode::{BadValue, MissingField, UnknownField, WrongType};
    let consent = good().into_iter().find(|it| it.0 == "consent").unwrap().1["consent"].clone();
    for verb in ["enrol", "enrol_from_camera", "consent"] {
        let check = |key: &'static str, value: Value, code| {
            let mut wrong = consent.clone();
            wrong[key] = value;
            let field = format!("consent.{key}");
            check(verb, |it| it["consent"] = wrong, code, &field);
        };
        check("given_at", json!("2026-11-23"), BadValue);
        check("given_at", json!("1969-12-31T23:59:59Z"), BadValue);
        check("given_at", json!(null), WrongType);
        check("text_version", json!("a b"), BadValue);
        check("text_version", json!("x".repeat(65)), BadValue);
        check("valid_until", json!("2026-11-23T07:58:03.412Z"), BadValue);
        check("valid_until", json!(7), WrongType);
        check("recorded_by", json!("a\nb"), BadValue);
        check("recorded_by", json!("x".repeat(201)), BadValue);
        check("signed", json!(true), UnknownField);
    }
    for verb in ["enrol", "consent"] {
        check(verb, |it| it["consent"] = json!("yes"), WrongType, "consent");
        check(verb, |it| it["consent"] = json!({}), MissingField, "consent.given_at");
    }
    check("consent", |it| it["consent"] = Value::Null, MissingField, "consent");
    check("consent", |it| it["withdraw"] = json!(true), BadValue, "withdraw");
    check("consent", |it| it["erase"] = json!(true), BadValue, "erase");
}

#[test]
fn consent_commands_are_parsed() {
    let action = |body: &Value| match read("consent", body).unwrap().verb {
        Verb::Consent(change) => change.action,
        other => panic!("{other:?}"),
    };
    let ConsentAction::Record(consent) = action(&good()[11].1) else { panic!("a consent") };
    assert_eq!(consent.given_ms(), NOW_MS);
    assert_eq!(consent.valid_until_ms(), Some(1_826_924_400_000));
    assert_eq!((consent.text_version(), consent.recorded_by().as_str()), ("2026-1", "Front desk"));
    for (erase, expected) in [(json!(null), true), (json!(true), true), (json!(false), false)] {
        let body =
            json!({"request_id": "r", "subject_id": "jdoe", "withdraw": true, "erase": erase});
        assert_eq!(action(&body), ConsentAction::Withdraw { erase: expected });
    }
}

#[test]
fn oversized_image_is_rejected_by_length() {
    let limits = Limits { image_bytes: 3 << 20, ..Limits::default() };
    // Not even base64: the length is enough.
    let body = json!({"request_id": "r", "image": "!".repeat(5 << 20)}).to_string();
    let rejection = parse_bytes("recognise", body.as_bytes(), &limits).unwrap_err();
    assert_eq!(rejection.code, ErrorCode::TooLarge);
    assert_eq!(rejection.message, "image is 3.7 MB; at most 3 MB");

    for (bytes, fits) in [(99, true), (100, true), (101, false)] {
        let image = base64::engine::general_purpose::STANDARD.encode(vec![7_u8; bytes]);
        let body = json!({"request_id": "r", "image": image}).to_string();
        let limits = Limits { image_bytes: 100, ..limits };
        assert_eq!(parse_bytes("recognise", body.as_bytes(), &limits).is_ok(), fits);
    }
}

#[test]
fn malformed_command_message_is_rejected() {
    let check = |verb: &str, retained: bool, payload: &str, code, request_id: Option<&str>| {
        let limits = Limits { payload_bytes: 50_000, ..Limits::default() };
        let rejection =
            parse(Received::by_mqtt(verb, payload.as_bytes(), retained), &limits, NOW_MS)
                .unwrap_err();
        assert_eq!(
            (rejection.code, rejection.request_id.as_deref()),
            (code, request_id),
            "{payload}"
        );
    };
    let sync = r#"{"request_id":"r-1"}"#;
    let filled = |with: &str| format!(r#"{{"request_id":"r-1","x":{with}}}"#);
    check("sync", true, sync, ErrorCode::Retained, Some("r-1"));
    check("format_disk", false, sync, ErrorCode::UnknownVerb, Some("r-1"));
    check("sync", false, &" ".repeat(50_001), ErrorCode::TooLarge, None);
    check("sync", false, &filled(&"[".repeat(16)), ErrorCode::TooDeep, None);
    check(
        "sync",
        false,
        &filled(&["[".repeat(16), "]".repeat(16)].concat()),
        ErrorCode::TooDeep,
        Some("r-1"),
    );
    check("sync", false, &filled(&"[".repeat(40_000)), ErrorCode::TooDeep, None);
    check(
        "sync",
        false,
        &filled(&format!("[0{}]", ",0".repeat(1000))),
        ErrorCode::TooMany,
        Some("r-1"),
    );
    check("sync", false, &filled(r#""\"[[[[[[[[[[[[[[[[[[[[[["#), ErrorCode::BadJson, None);
    check("sync", false, r#"{"request_id":"r-1","request_id":"r-2"}"#, ErrorCode::BadJson, None);
    check("sync", false, r#"["request_id"]"#, ErrorCode::BadJson, None);
    check("sync", false, "", ErrorCode::BadJson, None);
    check("sync", false, "online", ErrorCode::BadJson, None);
    check("sync", true, r#"{"request_id":"../x"}"#, ErrorCode::Retained, None);
}

#[test]
fn brackets_in_image_are_not_json() {
    // Brackets and commas within a string are text.
    let body = json!({"request_id": "r-1", "image": "[{,".repeat(2_000)});
    assert_eq!(read("recognise", &body).unwrap_err().code, ErrorCode::BadImage);
}

#[test]
fn reply_json_matches_the_contract() {
    let entry = ImageOutcome { accepted: false, reason: Some(ImageReason::NoFace), kept: false };
    let enrolled = reply::Enrolled {
        subject_id: SubjectId::new("jdoe").unwrap(),
        references: 0,
        images: vec![entry],
        duplicate_of: None,
        look_alikes: vec![LookAlike { subject_id: SubjectId::new("jroe").unwrap(), score: 0.5 }],
        weak: false,
        single_reference: false,
        missing_views: Vec::new(),
    };
    assert_eq!(
        reply::accepted("r-1", "enrol", &Reply::Enrolled(enrolled.clone())),
        r#"{"schema":1,"request_id":"r-1","verb":"enrol","ok":true,"subject_id":"jdoe","references":0,"images":[{"accepted":false,"reason":"no_face","kept":false}],"duplicate_of":null,"look_alikes":[{"subject_id":"jroe","score":0.5}]}"#
    );
    let from_camera = reply::Enrolled {
        references: 1,
        images: Vec::new(),
        look_alikes: Vec::new(),
        single_reference: true,
        missing_views: vec![FaceView::Left, FaceView::Nearer],
        ..enrolled
    };
    assert_eq!(
        reply::accepted("r-1", "enrol_from_camera", &Reply::Enrolled(from_camera)),
        r#"{"schema":1,"request_id":"r-1","verb":"enrol_from_camera","ok":true,"subject_id":"jdoe","references":1,"images":[],"duplicate_of":null,"look_alikes":[],"single_reference":true,"missing_views":["left","nearer"]}"#
    );
    let Verb::Consent(ConsentChange { action: ConsentAction::Record(consent), .. }) =
        read("consent", &good()[11].1).unwrap().verb
    else {
        panic!("a consent")
    };
    let text = r#"{"given_at":"2026-11-23T07:58:03.412Z","text_version":"2026-1","valid_until":"2027-11-22T23:00:00.000Z","recorded_by":"Front desk"}"#;
    let subject_id = SubjectId::new("jdoe").unwrap();
    let recorded = reply::ConsentRecorded { subject_id: subject_id.clone(), consent };
    assert_eq!(
        reply::accepted("r-1", "consent", &Reply::ConsentRecorded(recorded.clone())),
        format!(
            r#"{{"schema":1,"request_id":"r-1","verb":"consent","ok":true,"subject_id":"jdoe","consent":{text}}}"#
        )
    );
    let entry = reply::SubjectEntry {
        id: subject_id,
        name: Name::new("J").unwrap(),
        references: 1,
        enrolled_at: "t".into(),
        model_digest: None,
        partial: false,
        single_reference: true,
        recognisable: true,
        consent: Some(recorded.consent),
    };
    let list = reply::SubjectList { subjects: vec![entry], next_after: None };
    assert_eq!(
        reply::accepted("r-1", "subjects", &Reply::Subjects(list)),
        format!(
            r#"{{"schema":1,"request_id":"r-1","verb":"subjects","ok":true,"subjects":[{{"id":"jdoe","name":"J","references":1,"enrolled_at":"t","model_digest":null,"recognisable":true,"single_reference":true,"consent":{text}}}],"next_after":null}}"#
        )
    );
    let rejection = Rejection {
        request_id: Some("r-1".into()),
        code: ErrorCode::TooLarge,
        message: format!("images[2] {}", over(9_542_042, 4 << 20)),
        field: Some("images[2]".into()),
        details: None,
    };
    assert_eq!(
        reply::rejected("enrol", &rejection),
        r#"{"schema":1,"request_id":"r-1","verb":"enrol","ok":false,"error":{"code":"too_large","message":"images[2] is 9.1 MB; at most 4 MB","field":"images[2]"}}"#
    );
    let unreadable = Rejection::new(None, ErrorCode::BadJson, "the JSON ends too early");
    assert_eq!(reply::topic_part(unreadable.request_id.as_deref()), "reply/unreadable");
    assert_eq!(reply::topic_part(Some("r-1")), "reply/r-1");
    assert_eq!(
        reply::rejected("sync", &unreadable),
        r#"{"schema":1,"request_id":null,"verb":"sync","ok":false,"error":{"code":"bad_json","message":"the JSON ends too early"}}"#
    );
}

#[test]
fn attend_reply_matches_the_contract() {
    let already = reply::AlreadyRecorded {
        subject_id: SubjectId::new("jdoe").unwrap(),
        direction: Direction::In,
        session: None,
        recorded_at: Some("2026-11-23T07:01:00.000Z".into()),
    };
    let attended = reply::Attended {
        venue: "room-a".into(),
        recorded: vec![],
        recognised: vec![Name::new("J").unwrap()],
        subject_ids: vec![SubjectId::new("jdoe").unwrap()],
        event_ids: vec![],
        unknown: 1,
        already_recorded: vec![already],
    };
    assert_eq!(
        reply::accepted("r-1", "attend", &Reply::Attended(attended.clone())),
        r#"{"schema":1,"request_id":"r-1","verb":"attend","ok":true,"venue":"room-a","recorded":[],"recognised":["J"],"subject_ids":["jdoe"],"event_ids":[],"unknown":1,"already_recorded":[{"subject_id":"jdoe","direction":"in","session":null,"recorded_at":"2026-11-23T07:01:00.000Z"}]}"#
    );
    // Where everybody was recorded now, it is as it always was.
    let attended = reply::Attended { already_recorded: vec![], ..attended };
    assert!(!reply::accepted("r-1", "attend", &Reply::Attended(attended)).contains("already"));
}

#[test]
fn venue_and_attendance_replies_match_contract() {
    let subject = crate::wire::event::SubjectRef {
        id: SubjectId::new("jdoe").unwrap(),
        name: Name::new("J").unwrap(),
    };
    let row = reply::SummaryRow {
        date: "2026-11-23".into(),
        session: Some("s".into()),
        subject,
        status: reply::SummaryStatus::Absent,
        first_in: None,
        last_out: None,
        late_ms: None,
        present_ms: Some(1),
    };
    let period = || reply::Period { from: "f".into(), to: "t".into() };
    let unknown = reply::NotKnown {
        session: "s".into(),
        starts_at: "a".into(),
        ends_at: "b".into(),
        not_watching: vec![period()],
    };
    let summary = reply::AttendanceSummary {
        venue: "v".into(),
        time_zone: "UTC".into(),
        from: "f".into(),
        to: "t".into(),
        rows: vec![row],
        not_known: Some(vec![unknown]),
        next_after: Some(1),
        unreadable: 0,
    };
    let check = |body: &str, expected: &str| {
        let begin = r#"{"schema":1,"request_id":"r-1","verb":"x","ok":true,"#;
        assert_eq!(body, format!("{begin}{expected}}}"));
    };
    check(
        &reply::accepted("r-1", "x", &Reply::Summary(summary)),
        r#""venue":"v","time_zone":"UTC","from":"f","to":"t","rows":[{"date":"2026-11-23","session":"s","subject":{"id":"jdoe","name":"J"},"status":"absent","first_in":null,"last_out":null,"late_ms":null,"present_ms":1}],"not_known":[{"session":"s","starts_at":"a","ends_at":"b","not_watching":[{"from":"f","to":"t"}]}],"next_after":1"#,
    );
    let session =
        reply::SessionEntry { session: "s".into(), starts_at: "a".into(), ends_at: "b".into() };
    let put = reply::VenuePut { venue: "v".into(), replaced: true, next_session: Some(session) };
    check(
        &reply::accepted("r-1", "x", &Reply::VenuePut(put)),
        r#""venue":"v","replaced":true,"next_session":{"session":"s","starts_at":"a","ends_at":"b"}"#,
    );
    let Verb::VenuePut(spec) = read("venue_put", &good()[8].1).unwrap().verb else {
        panic!("a venue")
    };
    let entry = reply::VenueEntry { spec, source: reply::VenueSource::Command, door: true };
    check(
        &reply::accepted(
            "r-1",
            "x",
            &Reply::Venues(reply::VenueList { venues: vec![entry], next_after: None }),
        ),
        r#""venues":[{"venue":"room-a","name":"Room A","time_zone":"Europe/Berlin","direction":"alternate","re_entry_gap_ms":60000,"sessions":[{"id":"mon-am","weekdays":["mon"],"start":"08:00","end":"12:00","late_after_ms":600000,"early_ms":null},{"id":"exam","dates":["2026-11-24"],"start":"09:00","end":"11:00","late_after_ms":null,"early_ms":0}],"source":"command","door":true}],"next_after":null"#,
    );
}

#[test]
fn every_error_code_is_documented() {
    let page = include_str!("../../../docs/wire.md");
    for code in ErrorCode::VARIANTS {
        let name = serde_json::to_string(&code).unwrap().replace('"', "`");
        assert!(page.contains(&format!("| {name} |")), "{name} is missing in docs/wire.md");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(verb in 0..13_usize, payload in proptest::collection::vec(any::<u8>(), 0..2000)) {
        parse_bytes(good()[verb].0, &payload, &Limits::default()).ok();
    }

    #[test]
    fn mutilated_commands_never_panic(
        verb in 0..13_usize,
        cut in any::<prop::sample::Index>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
    ) {
        let (verb, body) = &good()[verb];
        let mut payload = body.to_string().into_bytes();
        for (at, byte) in changes {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        payload.truncate(cut.index(payload.len() + 1));
        parse_bytes(verb, &payload, &Limits::default()).ok();
    }

    #[test]
    fn arbitrary_field_values_give_short_errors(verb in 0..13_usize, field in any::<prop::sample::Index>(), text in ".{0,80}", number in any::<f64>()) {
        let (verb, body) = &good()[verb];
        let key = field.get(&body.as_object().unwrap().keys().cloned().collect::<Vec<_>>()).clone();
        for value in [json!(text), json!(number), json!([text]), json!({ "id": text })] {
            let mut body = body.clone();
            body[&key] = value;
            if let Err(rejection) = read(verb, &body) {
                prop_assert!(rejection.message.len() < 400);
            }
        }
    }
}

use base64::Engine as _;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const NOW_MS: i64 = 1_795_420_683_412; // 2026-11-23T07:58:03.412Z

fn read(verb: &str, body: &Value) -> Result<Command, Refusal> {
    parse(verb, false, body.to_string().as_bytes(), &Limits::default(), NOW_MS)
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
    ]
}

#[test]
fn good_commands_are_read() {
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
fn what_is_left_out_has_a_default() {
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
    let refusal = read(verb, &body).unwrap_err();
    assert_eq!(
        (refusal.code, refusal.field.as_deref()),
        (code, Some(field)),
        "{}",
        refusal.message
    );
    assert!(refusal.message.starts_with(field), "{}", refusal.message);
    let expected = (field != "request_id").then_some("r-1");
    assert_eq!(refusal.request_id.as_deref(), expected);
}

#[test]
fn each_fault_is_named_with_its_field() {
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
fn an_image_over_the_limit_is_refused_by_its_length() {
    let limits = Limits { image_bytes: 3 << 20, ..Limits::default() };
    // Not even base64: the length is enough.
    let body = json!({"request_id": "r", "image": "!".repeat(5 << 20)}).to_string();
    let refusal = parse("recognise", false, body.as_bytes(), &limits, NOW_MS).unwrap_err();
    assert_eq!(refusal.code, ErrorCode::TooLarge);
    assert_eq!(refusal.message, "image is 3.7 MB; at most 3 MB");

    for (bytes, fits) in [(99, true), (100, true), (101, false)] {
        let image = base64::engine::general_purpose::STANDARD.encode(vec![7_u8; bytes]);
        let body = json!({"request_id": "r", "image": image}).to_string();
        let limits = Limits { image_bytes: 100, ..limits };
        assert_eq!(parse("recognise", false, body.as_bytes(), &limits, NOW_MS).is_ok(), fits);
    }
}

#[test]
fn a_message_that_is_wrong_as_a_whole_is_refused() {
    let check = |verb: &str, retained: bool, payload: &str, code, request_id: Option<&str>| {
        let limits = Limits { payload_bytes: 50_000, ..Limits::default() };
        let refusal = parse(verb, retained, payload.as_bytes(), &limits, NOW_MS).unwrap_err();
        assert_eq!((refusal.code, refusal.request_id.as_deref()), (code, request_id), "{payload}");
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
fn an_image_is_not_json() {
    // Brackets and commas within a string are text.
    let body = json!({"request_id": "r-1", "image": "[{,".repeat(2_000)});
    assert_eq!(read("recognise", &body).unwrap_err().code, ErrorCode::BadImage);
}

#[test]
fn answers_have_their_shape() {
    let entry = answer::ImageOutcome {
        accepted: false,
        reason: Some(answer::ImageReason::NoFace),
        kept: false,
    };
    let enrolled = answer::Enrolled {
        subject_id: SubjectId::new("jdoe").unwrap(),
        references: 0,
        images: vec![entry],
        duplicate_of: None,
        look_alikes: vec![answer::LookAlike {
            subject_id: SubjectId::new("jroe").unwrap(),
            score: 0.5,
        }],
    };
    assert_eq!(
        answer::accepted("r-1", "enrol", &enrolled),
        r#"{"schema":1,"request_id":"r-1","verb":"enrol","ok":true,"subject_id":"jdoe","references":0,"images":[{"accepted":false,"reason":"no_face","kept":false}],"duplicate_of":null,"look_alikes":[{"subject_id":"jroe","score":0.5}]}"#
    );
    let refusal = Refusal {
        request_id: Some("r-1".into()),
        code: ErrorCode::TooLarge,
        message: over("images[2]", 9_542_042, 4 << 20),
        field: Some("images[2]".into()),
    };
    assert_eq!(
        answer::refused("enrol", &refusal),
        r#"{"schema":1,"request_id":"r-1","verb":"enrol","ok":false,"error":{"code":"too_large","message":"images[2] is 9.1 MB; at most 4 MB","field":"images[2]"}}"#
    );
    let unreadable = Refusal::new(None, ErrorCode::BadJson, "the JSON ends too early");
    assert_eq!(answer::topic_part(unreadable.request_id.as_deref()), "reply/unreadable");
    assert_eq!(answer::topic_part(Some("r-1")), "reply/r-1");
    assert_eq!(
        answer::refused("sync", &unreadable),
        r#"{"schema":1,"request_id":null,"verb":"sync","ok":false,"error":{"code":"bad_json","message":"the JSON ends too early"}}"#
    );
}

#[test]
fn answers_about_venues_and_attendance_have_their_shape() {
    let subject = crate::record::event::SubjectRef {
        id: SubjectId::new("jdoe").unwrap(),
        name: Name::new("J").unwrap(),
    };
    let row = answer::SummaryRow {
        date: "2026-11-23".into(),
        session: Some("s".into()),
        subject,
        status: answer::SummaryStatus::Absent,
        first_in: None,
        last_out: None,
        late_ms: None,
        present_ms: Some(1),
    };
    let period = || answer::Period { from: "f".into(), to: "t".into() };
    let unknown = answer::NotKnown {
        session: "s".into(),
        starts_at: "a".into(),
        ends_at: "b".into(),
        not_watching: vec![period()],
    };
    let summary = answer::AttendanceSummary {
        venue: "v".into(),
        time_zone: "UTC".into(),
        from: "f".into(),
        to: "t".into(),
        rows: vec![row],
        not_known: Some(vec![unknown]),
        next_after: Some(1),
    };
    let check = |body: &str, expected: &str| {
        let begin = r#"{"schema":1,"request_id":"r-1","verb":"x","ok":true,"#;
        assert_eq!(body, format!("{begin}{expected}}}"));
    };
    check(
        &answer::accepted("r-1", "x", &summary),
        r#""venue":"v","time_zone":"UTC","from":"f","to":"t","rows":[{"date":"2026-11-23","session":"s","subject":{"id":"jdoe","name":"J"},"status":"absent","first_in":null,"last_out":null,"late_ms":null,"present_ms":1}],"not_known":[{"session":"s","starts_at":"a","ends_at":"b","not_watching":[{"from":"f","to":"t"}]}],"next_after":1"#,
    );
    let session =
        answer::SessionEntry { session: "s".into(), starts_at: "a".into(), ends_at: "b".into() };
    let put = answer::VenuePut { venue: "v".into(), replaced: true, next_session: Some(session) };
    check(
        &answer::accepted("r-1", "x", &put),
        r#""venue":"v","replaced":true,"next_session":{"session":"s","starts_at":"a","ends_at":"b"}"#,
    );
    let Verb::VenuePut(spec) = read("venue_put", &good()[8].1).unwrap().verb else {
        panic!("a venue")
    };
    let entry = answer::VenueEntry { spec, source: answer::VenueSource::Command, door: true };
    check(
        &answer::accepted("r-1", "x", &answer::VenueList { venues: vec![entry], next_after: None }),
        r#""venues":[{"venue":"room-a","name":"Room A","time_zone":"Europe/Berlin","direction":"alternate","re_entry_gap_ms":60000,"sessions":[{"id":"mon-am","weekdays":["mon"],"start":"08:00","end":"12:00","late_after_ms":600000,"early_ms":null},{"id":"exam","dates":["2026-11-24"],"start":"09:00","end":"11:00","late_after_ms":null,"early_ms":0}],"source":"command","door":true}],"next_after":null"#,
    );
}

#[test]
fn every_error_code_is_documented() {
    let page = include_str!("../../../docs/wire.md");
    for code in ErrorCode::ALL {
        let name = serde_json::to_string(&code).unwrap().replace('"', "`");
        assert!(page.contains(&format!("| {name} |")), "{name} is missing in docs/wire.md");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(verb in 0..11_usize, payload in proptest::collection::vec(any::<u8>(), 0..2000)) {
        parse(good()[verb].0, false, &payload, &Limits::default(), NOW_MS).ok();
    }

    #[test]
    fn mutilated_commands_never_panic(
        verb in 0..11_usize,
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
        parse(verb, false, &payload, &Limits::default(), NOW_MS).ok();
    }

    #[test]
    fn any_json_in_any_field_is_refused_or_read(verb in 0..11_usize, field in any::<prop::sample::Index>(), text in ".{0,80}", number in any::<f64>()) {
        let (verb, body) = &good()[verb];
        let key = field.get(&body.as_object().unwrap().keys().cloned().collect::<Vec<_>>()).clone();
        for value in [json!(text), json!(number), json!([text]), json!({ "id": text })] {
            let mut body = body.clone();
            body[&key] = value;
            if let Err(refusal) = read(verb, &body) {
                prop_assert!(refusal.message.len() < 400);
            }
        }
    }
}

//! A client of the former service and the database that it has always read, with the daemon between
//! them.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::faces;
use crate::support::http;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::support::daemon::{Daemon, Home, until};
use crate::support::mongod::Mongod;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use mongodb::bson::doc;
use mongodb::bson::oid::ObjectId;
use serde_json::{Value, json};

#[test]
fn legacy_venue_attendance_is_updated() {
    let server = Mongod::start();
    let hall = ObjectId::new();
    let before = doc! { "_id": hall, "name": "Hall", "attendance": ["Grace Hopper"] };
    server.command(doc! { "insert": "venues", "documents": [before] });
    let home = Home::new(1, "");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let text = format!(
        "[device]\nsite = \"hq\"\nname = \"door-1\"\n[clock]\ntrust = \"always\"\n[recognition]\nmodels = \"{}\"\n\
         [[venue]]\nid = \"{hall}\"\n[attendance]\nvenue = \"{hall}\"\n[mongo]\nuri_file = \"uri\"\n[http]\nlisten = \"127.0.0.1:0\"\n",
        models.display()
    );
    fs::write(home.path("config.toml"), text).unwrap();
    fs::write(home.path("uri"), server.uri()).unwrap();
    fs::set_permissions(home.path("uri"), fs::Permissions::from_mode(0o600)).unwrap();
    let daemon = home.start();
    let to = http::address(&home);
    let photograph = fs::read(faces::demo("biden.jpg")).unwrap();
    assert_eq!(http::add_face(to, &[], "Joe Biden", &photograph).json(), json!({"success": true}));
    let image = format!("data:image/jpeg;base64,{}", STANDARD.encode(&photograph));
    for _ in 0..2 {
        let body = json!({"venue_id": hall.to_hex(), "image": image});
        let answer = http::post_json(to, "/get-attendance", &[], &body);
        assert_eq!(
            (answer.status, answer.json()["recognized_names"].clone()),
            (200, json!(["Joe Biden"]))
        );
    }
    let names = until("the database has it", || {
        let venue = server.all("venues").remove(0);
        let names: Vec<String> = venue
            .get_array("attendance")
            .unwrap()
            .iter()
            .map(|it| it.as_str().unwrap().to_owned())
            .collect();
        (names.len() > 1).then_some(names)
    });
    assert_eq!(names, ["Grace Hopper", "Joe Biden"]);
    assert!(daemon.terminate().success());
    assert_eq!((server.count("venues"), server.count("attendance")), (1, 1));
}

/// What a client of the former service asks, and the status and body that it answered.
#[test]
fn legacy_conversation_is_answered_as_before() {
    let server = Mongod::start();
    let old = ObjectId::new();
    let at = mongodb::bson::DateTime::from_millis(1_738_576_800_000);
    let before =
        doc! { "_id": old, "name": "Room 1", "date_time": at, "attendance": ["Grace Hopper"] };
    server.command(doc! { "insert": "attendancevenues", "documents": [before] });
    let mongo = "uri_file = \"uri\"\nvenues_collection = \"attendancevenues\"\n";
    let (home, daemon, to) = door_with_mongo(&server, mongo);
    let photograph = |name: &str| fs::read(faces::demo(name)).unwrap();
    let url = |name: &str| format!("data:image/jpeg;base64,{}", STANDARD.encode(photograph(name)));
    let post = |path: &str, body: &Value| {
        let answer = http::post_json(to, path, &[], body);
        (answer.status, answer.json())
    };
    let error = |text: &str| (400, json!({ "error": text }));

    let create = |body: Value| post("/create-attendance-venue", &body);
    let required = error("Name and date_time are required");
    assert_eq!(create(json!({"name": "Room 2"})), required);
    assert_eq!(create(json!({"name": "", "date_time": "2025-02-03 10:00:00"})), required);
    let format = error("Invalid date_time format. Expected format: YYYY-MM-DD HH:MM:SS");
    for text in ["2025-02-03T10:00:00", "2025-02-03T10:00", "tomorrow", "2025-02-30 10:00:00"] {
        assert_eq!(create(json!({"name": "Room 2", "date_time": text})), format, "{text}");
    }
    let (status, made) = create(json!({"name": "Room 2", "date_time": "2025-02-03 10:30"}));
    assert_eq!((status, &made["message"]), (201, &json!("Venue created successfully!")));
    let new = made["venue_id"].as_str().unwrap().to_owned();
    assert!(ObjectId::parse_str(&new).is_ok(), "{new}");

    let names = |body: Value| post("/recognize_faces", &body);
    assert_eq!(names(json!({"image": url("obama.jpg")})), (200, json!({"names": ["Unknown"]})));
    for empty in [json!({}), json!({"image": ""}), json!({"image": null})] {
        assert_eq!(names(empty), error("Image data is required"));
    }
    let attend = |body: Value| post("/get-attendance", &body);
    let both = error("venue_id and image are required");
    assert_eq!(attend(json!({"image": url("obama.jpg")})), both);
    assert_eq!(attend(json!({"venue_id": new})), both);
    let invalid = error("Invalid venue_id format");
    assert_eq!(attend(json!({"venue_id": "7", "image": url("obama.jpg")})), invalid);
    assert_eq!(attend(json!({"venue_id": 7, "image": url("obama.jpg")})), invalid);
    let absent = json!({"venue_id": ObjectId::new().to_hex(), "image": url("obama.jpg")});
    assert_eq!(attend(absent), (404, json!({"error": "Venue not found"})));

    let recorded = |venue: &str, file: &str| {
        let (status, body) = attend(json!({"venue_id": venue, "image": url(file)}));
        assert_eq!(
            (status, &body["message"], &body["venue_id"]),
            (200, &json!("Attendance updated successfully"), &json!(venue))
        );
        (body["recognized_names"].clone(), body["attendance"].clone())
    };
    assert_eq!(recorded(&new, "obama.jpg"), (json!(["Unknown"]), json!(["Unknown"])));
    let form = http::post_json(to, "/add_face", &[], &json!({"name": "Barack Obama"}));
    assert_eq!((form.status, form.json()), error("Image and name are required"));
    for name in ["", "  "] {
        let nameless = http::add_face(to, &[], name, &photograph("obama.jpg"));
        assert_eq!((nameless.status, nameless.json()), error("Image and name are required"));
    }
    for file in ["obama.jpg", "obama2.jpg", "obama2.jpg"] {
        let answer = http::add_face(to, &[], "Barack Obama", &photograph(file));
        assert_eq!((answer.status, answer.json()), (200, json!({"success": true})), "{file}");
    }
    assert_eq!(
        recorded(&new, "obama3.jpg"),
        (json!(["Barack Obama"]), json!(["Unknown", "Barack Obama"]))
    );
    // The former service's venue, which no command and no configuration named.
    assert_eq!(
        recorded(&old.to_hex(), "obama3.jpg"),
        (json!(["Barack Obama"]), json!(["Grace Hopper", "Barack Obama"]))
    );
    // Without a content type, as scripts send it.
    let body = json!({"image": url("obama.jpg")}).to_string();
    let plain = http::send(to, "POST", "/recognize_faces", &[], body.as_bytes());
    assert_eq!((plain.status, plain.json()), (200, json!({"names": ["Barack Obama"]})));

    let entry = |id: &str, name: &str, time: &str, names: &[&str]| json!({"_id": id, "name": name, "date_time": time, "attendance": names});
    let expected = [
        entry(&old.to_hex(), "Room 1", "2025-02-03 10:00:00", &["Grace Hopper", "Barack Obama"]),
        entry(&new, "Room 2", "2025-02-03 10:30:00", &["Unknown", "Barack Obama"]),
    ];
    // MongoDB has what was recorded a moment later.
    let listed = until("both venues are complete", || {
        let venues = http::get(to, "/get-all-venues", &[]).json();
        let listed: Vec<Value> = venues["venues"].as_array().unwrap().clone();
        let complete = |it: &&Value| expected.contains(it);
        (listed.iter().filter(complete).count() == 2).then_some(listed)
    });
    assert_eq!(listed[..2], expected);
    assert!(daemon.terminate().success());
    assert!(!home.log().contains("Obama"));
}

#[test]
fn doctor_recognises_former_service_database() {
    let server = Mongod::start();
    server.command(doc! { "insert": "attendancevenues", "documents": [{ "name": "Hall" }] });
    let (home, daemon, _) = door_with_mongo(&server, "uri_file = \"uri\"\n");
    let text = String::from_utf8(home.output(&["doctor"]).stdout).unwrap();
    assert!(text.contains("venues_collection = \"attendancevenues\""), "{text}");
    assert!(daemon.terminate().success());
}

/// A door without broker that delivers to this server. `mongo`: keys of `[mongo]`.
fn door_with_mongo(server: &Mongod, mongo: &str) -> (Home, Daemon, SocketAddr) {
    door_with(server, mongo, "")
}

/// `http`: keys of `[http]`.
fn door_with(server: &Mongod, mongo: &str, http: &str) -> (Home, Daemon, SocketAddr) {
    let home = Home::new(1, "");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let text = format!(
        "[device]\nsite = \"hq\"\nname = \"door-1\"\n[clock]\ntrust = \"always\"\n[recognition]\nmodels = \"{}\"\n\
         [[venue]]\nid = \"lobby\"\n[attendance]\nvenue = \"lobby\"\n[mongo]\n{mongo}[http]\nlisten = \"127.0.0.1:0\"\n{http}",
        models.display()
    );
    fs::write(home.path("config.toml"), text).unwrap();
    fs::write(home.path("uri"), server.uri()).unwrap();
    fs::set_permissions(home.path("uri"), fs::Permissions::from_mode(0o600)).unwrap();
    let daemon = home.start();
    let address = http::address(&home);
    (home, daemon, address)
}

/// The answers that the former service gave, each beside ours.
mod needs_field_cases {
    use super::*;
    use crate::support::http::Answer;

    const VENUE: &str = "6b0c11564f4b5bea853909b6";
    /// What is answered better on purpose: the case, and the status here.
    const BETTER: [(&str, u16); 9] = [
        ("add_face: not a picture", 400),
        ("add_face: empty name", 400),
        ("recognize_faces: image a number", 400),
        ("recognize_faces: bare base64, no data: prefix", 200),
        ("recognize_faces: not base64", 400),
        ("recognize_faces: base64 of no picture", 400),
        ("recognize_faces: PNG grey", 200),
        ("recognize_faces: no JSON content type", 200),
        // The status is the same; the body is JSON with a reason, not a page.
        ("recognize_faces: broken JSON", 400),
    ];

    /// The device, and the venues that were made in the conversation.
    struct Conversation {
        to: SocketAddr,
        venue: String,
    }

    impl Conversation {
        fn add(&self, name: &str, image: &[u8]) -> Answer {
            http::add_face(self.to, &[], name, image)
        }

        fn add_demo(&self, name: &str, file: &str) -> Answer {
            self.add(name, &fs::read(faces::demo(file)).unwrap())
        }

        fn recognize(&self, body: &Value) -> Answer {
            http::post_json(self.to, "/recognize_faces", &[], body)
        }

        fn attend(&self, body: &Value) -> Answer {
            http::post_json(self.to, "/get-attendance", &[], body)
        }

        fn create(&self, body: &Value) -> Answer {
            http::post_json(self.to, "/create-attendance-venue", &[], body)
        }

        /// Asks what the words of a case mean.
        fn ask(&mut self, case: &str) -> Answer {
            let (route, what) = case.split_once(": ").unwrap_or((case, ""));
            let obama = || url("image/jpeg", &fs::read(faces::demo("obama3.jpg")).unwrap());
            let path = format!("/{route}");
            match (route, what) {
                ("add_face", "ok" | "same file name again") => {
                    self.add_demo("Barack Obama", "obama.jpg")
                }
                ("add_face", "second person") => self.add_demo("Joe Biden", "biden.jpg"),
                ("add_face", "no name") => {
                    let (kind, body) = http::form("Barack Obama", b"");
                    let body =
                        String::from_utf8(body).unwrap().replace("name=\"name\"", "name=\"x\"");
                    let kind = [("content-type", kind.as_str())];
                    http::send(self.to, "POST", &path, &kind, body.as_bytes())
                }
                ("add_face", "json instead of form") => {
                    http::post_json(self.to, &path, &[], &json!({"name": "Barack Obama"}))
                }
                ("add_face", "not a picture") => self.add("Barack Obama", b"no picture"),
                ("add_face", "empty name") => self.add_demo("", "obama.jpg"),
                (
                    "recognize_faces",
                    "empty gallery, one face" | "two people" | "unknown extra field",
                ) => self.recognize(&json!({"image": obama(), "more": 1})),
                ("recognize_faces", "nobody in the picture") => {
                    self.recognize(&json!({"image": url("image/png", &picture(false, 0))}))
                }
                ("recognize_faces", "no image field") => self.recognize(&json!({})),
                ("recognize_faces", "image \"\"") => self.recognize(&json!({"image": ""})),
                ("recognize_faces", "image a number") => self.recognize(&json!({"image": 7})),
                ("recognize_faces", "bare base64, no data: prefix") => {
                    self.recognize(&json!({"image": obama().split_once(',').unwrap().1}))
                }
                ("recognize_faces", "not base64") => {
                    self.recognize(&json!({"image": "data:image/jpeg;base64,???"}))
                }
                ("recognize_faces", "base64 of no picture") => {
                    self.recognize(&json!({"image": url("image/jpeg", b"no picture")}))
                }
                ("recognize_faces", "PNG RGBA") => {
                    self.recognize(&json!({"image": url("image/png", &picture(true, 4))}))
                }
                ("recognize_faces", "PNG grey") => {
                    self.recognize(&json!({"image": url("image/png", &picture(true, 1))}))
                }
                ("recognize_faces", "no JSON content type") => {
                    let body = json!({"image": obama()}).to_string();
                    http::send(self.to, "POST", &path, &[], body.as_bytes())
                }
                ("recognize_faces", "broken JSON") => {
                    let kind = [("content-type", "application/json")];
                    http::send(self.to, "POST", &path, &kind, b"{\"image\":")
                }
                ("recognize_faces", "GET") => http::get(self.to, &path, &[]),
                ("recognize_faces", "OPTIONS preflight") => {
                    let headers = [
                        ("origin", "https://school.example"),
                        ("access-control-request-method", "POST"),
                    ];
                    http::send(self.to, "OPTIONS", &path, &headers, b"")
                }
                ("create-attendance-venue", "ok") => {
                    let body = json!({"name": "Room 1", "date_time": "2025-02-03 10:00:00"});
                    let answer = self.create(&body);
                    answer.json()["venue_id"].as_str().unwrap().clone_into(&mut self.venue);
                    answer
                }
                ("create-attendance-venue", "with T") => {
                    self.create(&json!({"name": "Room 1", "date_time": "2025-02-03T10:00:00"}))
                }
                ("create-attendance-venue", "no date_time") => {
                    self.create(&json!({"name": "Room 1"}))
                }
                ("get-attendance", "empty gallery" | "ok") => {
                    self.attend(&json!({"venue_id": self.venue, "image": obama()}))
                }
                ("get-attendance", "nobody") => {
                    let image = url("image/png", &picture(false, 0));
                    self.attend(&json!({"venue_id": self.venue, "image": image}))
                }
                ("get-attendance", "no venue_id") => self.attend(&json!({"image": obama()})),
                ("get-attendance", "no image") => self.attend(&json!({"venue_id": self.venue})),
                ("get-attendance", "bad venue_id") => {
                    self.attend(&json!({"venue_id": "seven", "image": obama()}))
                }
                ("get-attendance", "venue_id a number") => {
                    self.attend(&json!({"venue_id": 7, "image": obama()}))
                }
                ("get-all-venues", _) => {
                    let body = json!({"name": "Room 2", "date_time": "2025-02-03 10:00:30"});
                    assert_eq!(self.create(&body).status, 201);
                    // MongoDB has what was recorded a moment later.
                    until("the venue is complete", || {
                        let answer = http::get(self.to, "/get-all-venues", &[]);
                        let names = answer.json()["venues"][0]["attendance"].clone();
                        (names.as_array()?.len() == 2).then_some(answer)
                    })
                }
                ("unknown route", _) => http::get(self.to, "/no-such-route", &[]),
                _ => panic!("a case without a request: {case}"),
            }
        }
    }

    fn url(kind: &str, bytes: &[u8]) -> String {
        format!("data:{kind};base64,{}", STANDARD.encode(bytes))
    }

    /// A PNG of somebody, with so many channels, or of nothing.
    fn picture(of_somebody: bool, channels: u8) -> Vec<u8> {
        let mut png = std::io::Cursor::new(Vec::new());
        let photograph = if of_somebody {
            image::open(faces::demo("obama3.jpg")).unwrap().thumbnail(800, 800)
        } else {
            image::DynamicImage::new_rgb8(320, 240)
        };
        let photograph = match channels {
            1 => photograph.to_luma8().into(),
            4 => photograph.to_rgba8().into(),
            _ => photograph,
        };
        photograph.write_to(&mut png, image::ImageFormat::Png).unwrap();
        png.into_inner()
    }

    #[test]
    fn former_answers_are_given_again() {
        let answers = fs::read(faces::field_case("former-service.json")).unwrap();
        let answers: Vec<Value> = serde_json::from_slice(&answers).unwrap();
        let server = Mongod::start();
        let mongo = "uri_file = \"uri\"\nvenues_collection = \"attendancevenues\"\n";
        let http = "cors_origins = [\"https://school.example\"]\n";
        let (home, daemon, to) = door_with(&server, mongo, http);
        let mut conversation = Conversation { to, venue: String::new() };
        for theirs in &answers {
            let case = theirs["case"].as_str().unwrap();
            let ours = conversation.ask(case);
            let text = String::from_utf8_lossy(&ours.body).into_owned();
            let better = BETTER.iter().find(|it| it.0 == case);
            let status =
                better.map_or_else(|| theirs["status"].as_u64().unwrap(), |it| it.1.into());
            assert_eq!(u64::from(ours.status), status, "{case}: {text}");
            // What was a page of HTML has no body that a client reads.
            let is_json = theirs["content_type"] == "application/json";
            if better.is_none() && is_json {
                let body = theirs["body"].as_str().unwrap();
                let body = body.replace(VENUE, &conversation.venue);
                let mut expected: Value = serde_json::from_str(&body).unwrap();
                let mut answered = ours.json();
                if case == "get-all-venues" {
                    expected["venues"][1]["_id"].take();
                    answered["venues"][1]["_id"].take();
                }
                assert_eq!(answered, expected, "{case}");
            }
        }
        assert!(daemon.terminate().success());
        assert!(!home.log().contains("Obama"));
    }
}

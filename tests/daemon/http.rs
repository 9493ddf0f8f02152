//! The HTTP routes of the real daemon: those of the former service as its clients call them,
//! commands, the record, what happens, who may, and what strangers try.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::faces;
use crate::support::http;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::support::daemon::{Daemon, Home, until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rollcall::clock::Stopwatch;
use serde_json::{Value, json};

pub const TOKEN: &str = "a-token-of-enough-characters";
const OFFICE: &str = "https://office.example.net";

/// A daemon without broker and database, with HTTP. `more`: keys of `[http]`, then further
/// sections.
pub fn serving(more: &str) -> (Home, Daemon, SocketAddr) {
    serving_with(more, |_| ())
}

/// `prepare` puts further files there.
fn serving_with(more: &str, prepare: impl Fn(&Home)) -> (Home, Daemon, SocketAddr) {
    let home = Home::new(1, "");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let text = format!(
        "[device]\nsite = \"hq\"\nname = \"door-1\"\n[clock]\ntrust = \"always\"\n\
         [recognition]\nmodels = \"{}\"\n[[venue]]\nid = \"lobby\"\n[attendance]\nvenue = \"lobby\"\n\
         [http]\nlisten = \"127.0.0.1:0\"\n{more}",
        models.display()
    );
    fs::write(home.path("config.toml"), text).unwrap();
    fs::write(home.path("list.csv"), format!("{},4000,100\n", faces::demo("biden.jpg").display()))
        .unwrap();
    let token = home.path("token");
    fs::write(&token, TOKEN).unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    prepare(&home);
    let daemon = home.start();
    let address = http::address(&home);
    (home, daemon, address)
}

/// Stops the daemon, and gives what it said.
fn ended(home: &Home, daemon: Daemon) -> String {
    assert!(daemon.terminate().success());
    home.log()
}

fn photograph(name: &str) -> Vec<u8> {
    fs::read(faces::demo(name)).unwrap()
}

fn data_url(kind: &str, bytes: &[u8]) -> String {
    format!("data:image/{kind};base64,{}", STANDARD.encode(bytes))
}

#[test]
fn legacy_client_works_unchanged() {
    let (home, daemon, to) = serving("");
    for (name, file) in
        [("Joe Biden", "biden.jpg"), ("Barack Obama", "obama.jpg"), ("Barack Obama", "obama2.jpg")]
    {
        let answer = http::add_face(to, &[], name, &photograph(file));
        assert_eq!((answer.status, answer.json()), (200, json!({"success": true})), "{name}");
    }
    // Another photograph of a known name is another reference.
    let subjects = http::post_json(to, "/api/command/subjects", &[], &json!({})).json();
    let references: Vec<_> = subjects["subjects"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| (it["id"].clone(), it["references"].clone()))
        .collect();
    assert_eq!(references, [(json!("barack-obama"), json!(2)), (json!("joe-biden"), json!(1))]);

    // Data URLs of every kind that browsers make, and bare base64.
    let picture = image::load_from_memory(&photograph("obama3.jpg")).unwrap().thumbnail(600, 600);
    let encoded = |format| {
        let mut out = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut out, format).unwrap();
        out.into_inner()
    };
    let jpeg = photograph("obama3.jpg");
    for image in [
        data_url("jpeg", &jpeg),
        data_url("png", &encoded(image::ImageFormat::Png)),
        data_url("webp", &encoded(image::ImageFormat::WebP)),
        STANDARD.encode(&jpeg),
    ] {
        let answer =
            http::post_json(to, "/recognize_faces", &[], &json!({"image": image, "what": "else"}));
        assert_eq!((answer.status, answer.json()), (200, json!({"names": ["Barack Obama"]})));
    }
    let nobody = http::post_json(
        to,
        "/recognize_faces",
        &[],
        &json!({"image": STANDARD.encode(photograph("astronaut.png"))}),
    );
    assert_eq!((nobody.status, nobody.json()), (200, json!({"names": ["Unknown"]})));

    let attend = |venue: &str, file: &str| {
        let body = json!({"venue_id": venue, "image": data_url("jpeg", &photograph(file))});
        http::post_json(to, "/get-attendance", &[], &body)
    };
    let first = attend("lobby", "biden.jpg");
    assert_eq!(first.status, 200);
    let message = "Attendance updated successfully";
    let expected = |attendance: Value, recognised: Value| json!({"message": message, "venue_id": "lobby", "attendance": attendance, "recognized_names": recognised});
    assert_eq!(first.json(), expected(json!(["Joe Biden"]), json!(["Joe Biden"])));
    let second = attend("lobby", "obama3.jpg");
    assert_eq!(
        second.json(),
        expected(json!(["Joe Biden", "Barack Obama"]), json!(["Barack Obama"]))
    );
    // Once more is not twice.
    assert_eq!(
        attend("lobby", "biden.jpg").json(),
        expected(json!(["Joe Biden", "Barack Obama"]), json!(["Joe Biden"]))
    );
    let record = http::get(to, "/api/attendance?venue=lobby", &[]).json();
    assert_eq!(record["attendance"].as_array().unwrap().len(), 2);

    let log = ended(&home, daemon);
    for secret in ["Biden", "Obama", "biden", "obama"] {
        assert!(!log.contains(secret), "{secret} in the log:\n{log}");
    }
}

#[test]
fn legacy_routes_report_errors_as_json() {
    let (_home, daemon, to) = serving("");
    assert_eq!(http::add_face(to, &[], "Joe Biden", &photograph("biden.jpg")).status, 200);
    let nowhere = json!({"venue_id": "65f0c1d2e3a4b5c6d7e8f901", "image": data_url("jpeg", &photograph("biden.jpg"))});
    let unknown = http::post_json(to, "/get-attendance", &[], &nowhere);
    assert_eq!((unknown.status, unknown.json()), (404, json!({"error": "Venue not found"})));
    let broken = STANDARD.encode("no picture");
    for (path, body, status) in [
        ("/recognize_faces", json!({}), 400),
        ("/recognize_faces", json!({"image": 7}), 400),
        ("/recognize_faces", json!({"image": "%%%"}), 400),
        ("/recognize_faces", json!({"image": "data:text/html;base64,AAAA"}), 400),
        ("/recognize_faces", json!({"image": broken}), 400),
        ("/get-attendance", json!({"image": broken}), 400),
        ("/get-attendance", json!({"venue_id": "lobby"}), 400),
    ] {
        let answer = http::post_json(to, path, &[], &body);
        assert_eq!(answer.status, status, "{path} {body}");
        assert!(answer.json()["error"].as_str().is_some_and(|it| !it.is_empty()), "{path} {body}");
    }
    let no_face = http::add_face(to, &[], "Nobody", b"no picture");
    assert_eq!(no_face.status, 400);
    // The same face under another name is refused, and so is another name with the same id.
    assert_eq!(http::add_face(to, &[], "Somebody Else", &photograph("biden.jpg")).status, 409);
    assert_eq!(http::add_face(to, &[], "Joë Biden", &photograph("astronaut.png")).status, 409);
    assert!(daemon.terminate().success());
}

#[test]
fn cross_origin_access_is_configured() {
    let (_home, daemon, to) = serving(&format!("cors_origins = [\"{OFFICE}\"]\n"));
    let image = json!({"image": data_url("jpeg", &photograph("biden.jpg"))});
    let preflight = |origin: &str| {
        let headers = [
            ("origin", origin),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type"),
        ];
        http::send(to, "OPTIONS", "/recognize_faces", &headers, b"")
    };
    let allowed = preflight(OFFICE);
    assert_eq!(allowed.header("access-control-allow-origin"), Some(OFFICE));
    assert!(allowed.header("access-control-allow-headers").unwrap().contains("content-type"));
    let answer = http::post_json(to, "/recognize_faces", &[("origin", OFFICE)], &image);
    assert_eq!((answer.status, answer.header("access-control-allow-origin")), (200, Some(OFFICE)));
    for stranger in [
        "https://evil.example",
        "null",
        "https://office.example.net.evil.example",
        "http://office.example.net",
    ] {
        assert_eq!(preflight(stranger).header("access-control-allow-origin"), None, "{stranger}");
        // Not only may the page not read the answer: there is none.
        let answer = http::post_json(to, "/recognize_faces", &[("origin", stranger)], &image);
        assert_eq!(
            (answer.status, answer.header("access-control-allow-origin")),
            (403, None),
            "{stranger}"
        );
    }
    // Our own page, and a name of this machine that another's DNS made up.
    let own = format!("http://{to}");
    assert_eq!(http::get(to, "/api/health", &[("origin", &own)]).status, 200);
    let rebound = http::get(to, "/api/health", &[("host", "evil.example")]);
    assert_eq!(rebound.status, 400, "{rebound:?}");
    assert!(daemon.terminate().success());
}

#[test]
fn routes_are_closed_without_token() {
    let (home, daemon, to) = serving("token_file = \"token\"\n");
    let with = format!("Bearer {TOKEN}");
    for (path, method) in [
        ("/recognize_faces", "POST"),
        ("/get-attendance", "POST"),
        ("/add_face", "POST"),
        ("/api/command/subjects", "POST"),
        ("/api/attendance", "GET"),
        ("/api/health", "GET"),
        ("/api/events", "GET"),
        ("/api/picture", "GET"),
        ("/no/such/route", "GET"),
    ] {
        let wrong = format!("Bearer {TOKEN}x");
        let half = format!("Bearer {}", &TOKEN[..TOKEN.len() - 1]);
        for authorization in [
            None,
            Some(wrong.as_str()),
            Some(half.as_str()),
            Some("Bearer "),
            Some(TOKEN),
            Some("Basic eA=="),
        ] {
            let headers: Vec<_> =
                authorization.map(|it| ("authorization", it)).into_iter().collect();
            let answer = http::send(to, method, path, &headers, b"{}");
            assert_eq!(answer.status, 401, "{path} {authorization:?}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert!(answer.json()["error"].is_string());
        }
    }
    assert_eq!(http::get(to, "/api/health", &[("authorization", &with)]).status, 200);
    // With a token, any name of this device is good.
    assert_eq!(
        http::get(to, "/api/health", &[("authorization", &with), ("host", "door-1.example.net")])
            .status,
        200
    );
    // Whether it is well is told to everybody, and nothing else with it.
    let healthz = http::get(to, "/healthz", &[]);
    assert_eq!((healthz.status, healthz.json()), (200, json!({"healthy": true, "faults": []})));
    assert!(daemon.terminate().success());
    assert!(!home.log().contains(TOKEN));
}

#[test]
fn reader_token_reads_and_changes_nothing() {
    const READER: &str = "another-token-for-teachers";
    let more = "token_file = \"token\"\nreader_token_file = \"reader\"\n";
    let (home, daemon, to) = serving_with(more, |home| {
        let file = home.path("reader");
        fs::write(&file, READER).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    });
    let as_reader = format!("Bearer {READER}");
    let as_owner = format!("Bearer {TOKEN}");
    let ask = |bearer: &str, method: &str, path: &str| {
        let headers = [("authorization", bearer), ("content-type", "application/json")];
        let body = if method == "POST" { &b"{}"[..] } else { b"" };
        http::send(to, method, path, &headers, body)
    };
    for (method, path) in [
        ("GET", "/api/attendance"),
        ("GET", "/api/health"),
        ("GET", "/get-all-venues"),
        ("POST", "/api/command/attendance"),
        ("POST", "/api/command/subjects"),
        ("POST", "/api/command/venues"),
    ] {
        let answer = ask(&as_reader, method, path);
        assert_ne!(answer.status, 401, "{path}");
        assert_ne!(answer.status, 403, "{path}");
        assert_eq!(answer.header("rollcall-access"), Some("read"), "{path}");
    }
    for (method, path) in [
        ("POST", "/api/command/enrol"),
        ("POST", "/api/command/withdraw"),
        ("POST", "/api/command/rename"),
        ("POST", "/api/command/attend"),
        ("POST", "/api/command/recognise"),
        ("POST", "/api/command/venue_put"),
        ("POST", "/api/command/sync"),
        ("POST", "/api/command/attendance/"),
        ("POST", "/api/command/..%2fenrol"),
        ("POST", "/recognize_faces"),
        ("POST", "/get-attendance"),
        ("POST", "/create-attendance-venue"),
        ("GET", "/api/picture"),
        ("GET", "/metrics"),
    ] {
        assert_eq!(ask(&as_reader, method, path).status, 403, "{path}");
    }
    let owner = ask(&as_owner, "POST", "/api/command/sync");
    assert_eq!((owner.status, owner.header("rollcall-access")), (200, Some("all")));
    assert_eq!(ask("Bearer no-token-of-this-door", "GET", "/api/health").status, 401);
    ended(&home, daemon);
}

#[test]
fn hostile_requests_are_rejected_and_bounded() {
    let (home, daemon, to) =
        serving("connections_max = 20\nrequests_max = 2\n[commands]\nimage_bytes_max = 1000000\n");
    // Paths.
    for path in [
        "/../config.toml",
        "/%2e%2e/config.toml",
        "/api/../../etc/passwd",
        "/api/command/../health",
        "//",
        "/state/rollcall.key",
        "/api/command/%00",
        "/api/command/a%2Fb",
    ] {
        let answer = http::get(to, path, &[]);
        assert!([400, 404, 405].contains(&answer.status), "{path}: {answer:?}");
    }
    assert_eq!(http::get(to, "/recognize_faces", &[]).status, 405);
    assert_eq!(http::send(to, "DELETE", "/", &[], b"").status, 405);
    // Heads.
    let padding = "x".repeat(40_000);
    let mut stream = http::connect(to);
    stream
        .write_all(
            format!("GET /healthz HTTP/1.1\r\nhost: {to}\r\nlong: {padding}\r\n\r\n").as_bytes(),
        )
        .ok();
    let answer = http::answer(stream);
    assert!(answer.as_ref().is_none_or(|it| it.status == 431), "{answer:?}");
    let many = "h: x\r\n".repeat(2000);
    let mut stream = http::connect(to);
    stream.write_all(format!("GET /healthz HTTP/1.1\r\nhost: {to}\r\n{many}\r\n").as_bytes()).ok();
    let answer = http::answer(stream);
    assert!(answer.as_ref().is_none_or(|it| it.status == 431), "{answer:?}");
    for nonsense in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"[..],
        b"GET\r\n\r\n",
        b"\r\n\r\n\r\n",
        b"POST / HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    ] {
        let mut stream = http::connect(to);
        stream.write_all(nonsense).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = http::answer(stream);
        assert!(answer.as_ref().is_none_or(|it| it.status == 400), "{answer:?}");
    }
    let said = ended(&home, daemon);
    assert!(!said.contains("passwd"), "{said}");
    assert!(said.lines().count() < 60, "a stranger fills the log:\n{said}");
}

#[test]
fn invalid_bodies_are_rejected_and_bounded() {
    let (home, mut daemon, to) =
        serving("requests_max = 2\n[commands]\nimage_bytes_max = 1000000\n");
    // Kinds and forms.
    let json_kind = [("content-type", "application/json")];
    assert_eq!(http::send(to, "POST", "/recognize_faces", &[], b"{}").status, 400);
    assert_eq!(http::send(to, "POST", "/add_face", &json_kind, b"{}").status, 400);
    assert_eq!(
        http::send(to, "POST", "/api/command/subjects", &[("content-type", "text/plain")], b"{}")
            .status,
        415
    );
    for (kind, body) in [
        ("multipart/form-data", &b"x"[..]),
        ("multipart/form-data; boundary=b", b"no form at all"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\ncut",
        ),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n\r\n--b--\r\n"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\nonly a name\r\n--b--\r\n",
        ),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\n\xff\xfe\r\n--b--\r\n",
        ),
    ] {
        let answer = http::send(to, "POST", "/add_face", &[("content-type", kind)], body);
        assert_eq!(answer.status, 400, "{kind}: {answer:?}");
        assert!(answer.json()["error"].is_string());
    }
    // JSON that is deep, or none.
    let deep = format!("{{\"image\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [deep.as_bytes(), b"[", b"\xff", b"", b"null"] {
        for path in ["/recognize_faces", "/get-attendance", "/api/command/enrol"] {
            let answer = http::send(to, "POST", path, &json_kind, body);
            assert_eq!(answer.status, 400, "{path}: {answer:?}");
        }
    }
    // Sizes: claimed, sent, and hidden in chunks.
    let big = vec![b'x'; 1_000_001];
    assert_eq!(http::add_face(to, &[], "Big", &big).status, 413);
    let image = json!({"image": STANDARD.encode(&big)});
    assert_eq!(http::post_json(to, "/recognize_faces", &[], &image).status, 413);
    let mut stream = http::connect(to);
    write!(stream, "POST /recognize_faces HTTP/1.1\r\nhost: {to}\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n").unwrap();
    assert_eq!(http::answer(stream).unwrap().status, 413);
    let mut stream = http::connect(to);
    write!(stream, "POST /recognize_faces HTTP/1.1\r\nhost: {to}\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n").unwrap();
    let chunk = format!("{:x}\r\n{}\r\n", 1 << 20, "x".repeat(1 << 20));
    // Until it is refused: the server has stopped reading by then.
    for _ in 0..20 {
        if stream.write_all(chunk.as_bytes()).is_err() {
            break;
        }
    }
    assert!(http::answer(stream).is_none_or(|it| it.status == 413));
    assert!(daemon.is_alive());
    let log = ended(&home, daemon);
    assert!(!log.contains("only a name"), "{log}");
    assert!(log.lines().count() < 60, "a stranger fills the log:\n{log}");
}

#[test]
fn slow_clients_are_cut_off() {
    let (_home, daemon, to) = serving("connections_max = 30\nrequests_max = 2\n");
    let watch = Stopwatch::start();
    // A head that never ends, a body that never comes, and nothing at all.
    let heads: Vec<_> = (0..5)
        .map(|_| {
            let mut stream = http::connect(to);
            write!(stream, "GET /healthz HTTP/1.1\r\nhost: {to}\r\nslow: ").unwrap();
            stream
        })
        .collect();
    let silent: Vec<_> = (0..5).map(|_| http::connect(to)).collect();
    let bodies: Vec<_> = (0..2).map(|_| {
        let mut stream = http::connect(to);
        write!(stream, "POST /recognize_faces HTTP/1.1\r\nhost: {to}\r\ncontent-type: application/json\r\ncontent-length: 200000\r\nexpect: 100-continue\r\n\r\n").unwrap();
        // The server asks for the body once it has a place for it.
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).unwrap();
        assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
        stream
    }).collect();
    let image = json!({"image": data_url("jpeg", &photograph("biden.jpg"))});
    // The two places for bodies are taken by those who do not send: the next is told so at once.
    let busy = http::post_json(to, "/recognize_faces", &[], &image);
    assert_eq!(busy.status, 503);
    assert_eq!(busy.header("retry-after"), Some("1"));
    assert_eq!(http::get(to, "/healthz", &[]).status, 200);
    for stream in bodies {
        assert_eq!(http::answer(stream).unwrap().status, 408);
    }
    for stream in heads.into_iter().chain(silent) {
        // Cut off, with or without a word.
        assert!(http::answer(stream).is_none_or(|it| it.status == 408));
    }
    assert!(watch.elapsed().as_secs() < 50, "{:?}", watch.elapsed());
    assert_eq!(http::post_json(to, "/recognize_faces", &[], &image).status, 200);
    assert!(daemon.terminate().success());
}

#[test]
fn requests_above_limit_return_429() {
    let (_home, daemon, to) = serving("per_minute_max = 20\ntoken_file = \"token\"\n");
    let with = format!("Bearer {TOKEN}");
    // Strangers use up nothing.
    assert!((0..50).all(|_| http::get(to, "/api/health", &[]).status == 401));
    let statuses: Vec<u16> =
        (0..40).map(|_| http::get(to, "/api/health", &[("authorization", &with)]).status).collect();
    assert!(statuses[..20].iter().all(|it| *it == 200), "{statuses:?}");
    assert!(statuses.iter().filter(|it| **it == 429).count() >= 10, "{statuses:?}");
    assert!(daemon.terminate().success());
}

#[test]
fn http_commands_match_mqtt_commands() {
    let (home, daemon, to) = serving("");
    let command =
        |verb: &str, body: &Value| http::post_json(to, &format!("/api/command/{verb}"), &[], body);
    let image = STANDARD.encode(photograph("biden.jpg"));
    let enrol =
        json!({"request_id": "r-1", "subject": {"id": "joe", "name": "Joe"}, "images": [image]});
    let enrolled = command("enrol", &enrol);
    assert_eq!(
        (enrolled.status, enrolled.json()["ok"].clone()),
        (200, json!(true)),
        "{enrolled:?}"
    );
    assert_eq!(enrolled.json()["request_id"], "r-1");
    // The same request again changes nothing, and says the same.
    assert_eq!(command("enrol", &enrol).body, enrolled.body);
    let not_enrolled =
        command("enrol", &json!({"subject": {"id": "x", "name": "X"}, "images": [image]}));
    assert_eq!(
        (not_enrolled.status, not_enrolled.json()["error"]["code"].clone()),
        (409, json!("duplicate_subject"))
    );
    assert_eq!(not_enrolled.json()["duplicate_of"], "joe");
    for (verb, body, status, code) in [
        ("withdraw", json!({"subject_id": "nobody"}), 404, "unknown_subject"),
        ("attendance", json!({"venue": "nowhere"}), 404, "unknown_venue"),
        ("rename", json!({"subject_id": "joe"}), 400, "missing_field"),
        ("subjects", json!({"what": 1}), 400, "unknown_field"),
        ("explode", json!({}), 404, "unknown_verb"),
        ("enrol_from_camera", json!({"subject": {"id": "y", "name": "Y"}}), 503, "not_ready"),
    ] {
        let answer = command(verb, &body);
        assert_eq!(
            (answer.status, answer.json()["error"]["code"].clone()),
            (status, json!(code)),
            "{verb}: {answer:?}"
        );
    }
    let venue = json!({"venue": "hall", "time_zone": "Europe/Berlin"});
    assert_eq!(command("venue_put", &venue).json()["ok"], true);
    assert_eq!(command("venues", &json!({})).json()["venues"].as_array().unwrap().len(), 2);
    assert_eq!(command("withdraw", &json!({"subject_id": "joe"})).json()["references"], 1);
    assert_eq!(command("subjects", &json!({})).json()["subjects"], json!([]));
    assert!(daemon.terminate().success());
    let kinds: Vec<_> =
        home.events().into_iter().map(|it| it.2).filter(|it| it == "enrolment").collect();
    assert_eq!(kinds.len(), 2);
}

#[test]
fn event_stream_sends_live_events() {
    // Somebody stands before the camera, comes and goes.
    let (home, daemon, to) =
        serving("[camera]\nsource = \"replay\"\npath = \"list.csv\"\nrepeat = true\n");
    let mut feed = http::Feed::open(to, "/api/events?view=true");
    until("the camera gives frames", || {
        (feed.next("health")["camera"]["state"] == "streaming").then_some(())
    });
    let view = until("a face is seen", || {
        let view = feed.next("view");
        (!view["faces"].as_array().unwrap().is_empty()).then_some(view)
    });
    assert_eq!(view["faces"][0]["name"], Value::Null, "names are for who asks for them");
    assert_eq!(http::add_face(to, &[], "Joe Biden", &photograph("biden.jpg")).status, 200);
    let enrolment =
        until("the enrolment", || Some(feed.next("event")).filter(|it| it["kind"] == "enrolment"));
    assert_eq!(
        (enrolment["site"].clone(), enrolment["device"].clone()),
        (json!("hq"), json!("door-1"))
    );
    let attendance = until("the attendance", || {
        Some(feed.next("event")).filter(|it| it["kind"] == "attendance")
    });
    assert_eq!(attendance["subject"]["name"], "Joe Biden");
    // They go, come again, and are in the record already: the answer says by which attendance.
    let visits = format!("{},1500,1500\n", faces::demo("biden.jpg").display());
    fs::write(home.path("list.new"), visits).unwrap();
    fs::rename(home.path("list.new"), home.path("list.csv")).unwrap();
    let repeat = feed.next("repeat");
    assert_eq!(
        (&repeat["subject"], &repeat["recorded_at"], &repeat["direction"], &repeat["venue"]),
        (&attendance["subject"], &attendance["occurred_at"], &json!("in"), &json!("lobby"))
    );
    assert!(repeat["track"].is_u64() && repeat["occurred_at"].is_string(), "{repeat}");
    // Who comes back gets what they missed.
    let last = attendance["seq"].as_i64().unwrap();
    let mut stream = http::connect(to);
    write!(stream, "GET /api/events HTTP/1.1\r\nhost: {to}\r\nlast-event-id: {}\r\n\r\n", last - 1)
        .unwrap();
    let mut again = http::Feed::on(stream);
    assert_eq!(again.next("event")["seq"], last);
    // And the picture, which stays nowhere.
    let picture = http::get(to, "/api/picture", &[]);
    assert_eq!((picture.status, picture.header("cache-control")), (200, Some("no-store")));
    assert!(image::load_from_memory(&picture.body).unwrap().width() > 100);
    picture_has_its_own_view(to);
    // More than a few do not watch at once; and a stop waits for none of them.
    let more: Vec<_> = (0..6)
        .map(|_| {
            let mut feed = http::Feed::open(to, "/api/events");
            feed.next("health");
            feed
        })
        .collect();
    assert_eq!(http::get(to, "/api/events", &[]).status, 503);
    let watch = Stopwatch::start();
    assert!(daemon.terminate().success());
    assert!(watch.elapsed().as_secs() < 15, "{:?}", watch.elapsed());
    drop(more);
    assert!(!home.log().contains("Biden"));
}

/// Picture and boxes in one answer are those of one frame.
fn picture_has_its_own_view(to: SocketAddr) {
    let answer = http::get(to, "/api/picture?view=true", &[]);
    assert_eq!((answer.status, answer.header("cache-control")), (200, Some("no-store")));
    let kind = answer.header("content-type").unwrap();
    let boundary = kind.strip_prefix("multipart/form-data; boundary=").unwrap();
    let between = |bytes: &[u8], from: &[u8]| {
        bytes.windows(from.len()).position(|it| it == from).map(|at| at + from.len()).unwrap()
    };
    let body = &answer.body
        [between(&answer.body, b"name=\"view\"\r\nContent-Type: application/json\r\n\r\n")..];
    let view: Value =
        serde_json::Deserializer::from_slice(body).into_iter().next().unwrap().unwrap();
    let body = &body[between(body, b"Content-Type: image/jpeg\r\n\r\n")..];
    let jpeg = body.strip_suffix(format!("\r\n--{boundary}--\r\n").as_bytes()).unwrap();
    let picture = image::load_from_memory(jpeg).unwrap();
    assert_eq!(
        (&view["width"], &view["height"]),
        (&json!(picture.width()), &json!(picture.height()))
    );
    assert!(view["frame"].is_u64() && view["faces"].is_array(), "{view}");
    assert_eq!(http::get(to, "/api/picture?what=1", &[]).status, 400);
}

#[test]
fn forbidden_picture_returns_403() {
    let (_home, daemon, to) = serving("[privacy]\nsnapshot = false\n");
    assert_eq!(http::get(to, "/api/picture", &[]).status, 403);
    assert!(daemon.terminate().success());
}

#[test]
fn attendance_is_served_paged_or_csv() {
    let (_home, daemon, to) = serving("");
    for (name, file) in [("Joe, the first", "biden.jpg"), ("=Barack", "obama.jpg")] {
        assert_eq!(http::add_face(to, &[], name, &photograph(file)).status, 200);
        let body = json!({"venue_id": "lobby", "image": STANDARD.encode(photograph(file))});
        assert_eq!(http::post_json(to, "/get-attendance", &[], &body).status, 200);
    }
    // The venue of the door, where none is named.
    let first = http::get(to, "/api/attendance?limit=1", &[]).json();
    assert_eq!(first["venue"], "lobby");
    assert_eq!(first["attendance"][0]["subject"]["name"], "Joe, the first");
    let rest =
        http::get(to, &format!("/api/attendance?limit=1&after={}", first["next_after"]), &[])
            .json();
    assert_eq!(
        (rest["attendance"][0]["subject"]["name"].clone(), rest["next_after"].clone()),
        (json!("=Barack"), json!(null))
    );
    let csv = http::get(to, "/api/attendance", &[("accept", "text/csv")]);
    assert!(csv.header("content-type").unwrap().starts_with("text/csv"));
    let mut rows = csv::Reader::from_reader(&csv.body[..]);
    let names: Vec<String> = rows
        .deserialize::<std::collections::HashMap<String, String>>()
        .map(|row| row.unwrap()["name"].clone())
        .collect();
    assert_eq!(names, ["Joe, the first", "'=Barack"]);
    let semicolons = "/api/attendance?bom=true&separator=semicolon";
    let csv = http::get(to, semicolons, &[("accept", "text/csv")]);
    let text = String::from_utf8(csv.body).unwrap();
    assert!(text.starts_with("\u{feff}seq;occurred_at;"), "{text}");
    assert!(text.contains(";Joe, the first;") && text.contains(";'=Barack;"), "{text}");
    let media = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet";
    let workbook = http::get(to, "/api/attendance?absent=true", &[("accept", media)]);
    assert_eq!(workbook.header("content-type"), Some(media));
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(&workbook.body)).unwrap();
    let mut sheet = String::new();
    let mut part = archive.by_name("xl/worksheets/sheet1.xml").unwrap();
    std::io::Read::read_to_string(&mut part, &mut sheet).unwrap();
    assert!(sheet.contains(">=Barack</t>") && !sheet.contains("<f"), "a text: {sheet}");
    for (query, accept) in [
        ("bom=true", "application/json"),
        ("bom=1", "text/csv"),
        ("separator=;", "text/csv"),
        ("absent=true", "text/csv"),
        ("all=true", media),
        ("limit=5", media),
        ("from=2026-01-01T00:00:00Z&to=2026-06-01T00:00:00Z", media),
    ] {
        let to_reject = format!("/api/attendance?{query}");
        assert_eq!(http::get(to, &to_reject, &[("accept", accept)]).status, 400, "{query}");
    }
    // The summary as the command replies it, without anything stored for it.
    let summary = http::get(to, "/api/attendance?summary=true&limit=1", &[]).json();
    let command = json!({"venue": "lobby", "summary": true, "limit": 1});
    let reply = http::post_json(to, "/api/command/attendance", &[], &command).json();
    for (key, value) in summary.as_object().unwrap() {
        assert_eq!(Some(value), reply.get(key), "{key}");
    }
    assert_eq!((&summary["next_after"], summary["rows"].as_array().unwrap().len()), (&json!(1), 1));
    let none =
        http::get(to, "/api/attendance?from=2000-01-01T00:00:00Z&to=2000-01-02T00:00:00Z", &[])
            .json();
    assert_eq!(none["attendance"], json!([]));
    for query in [
        "limit=x",
        "limit=501",
        "from=yesterday",
        "what=1",
        "venue=a%2Fb",
        "%zz=1",
        "after=-1",
        "absent=true",
        "summary=true&all=true",
        "summary=1",
    ] {
        assert_eq!(http::get(to, &format!("/api/attendance?{query}"), &[]).status, 400, "{query}");
    }
    assert!(daemon.terminate().success());
}

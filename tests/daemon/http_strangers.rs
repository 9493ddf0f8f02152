//! The HTTP server against clients that have no token, send nothing, guess, or come in hundreds.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Barrier;

use serde_json::json;

use crate::http::{TOKEN, serving};
use crate::support::daemon::{PATIENCE, until};
use crate::support::http;

/// The resident memory that hundreds of connections may cost.
const GROWTH_MAX: u64 = 50 << 20;

/// A connection from another address of this machine.
fn connect_from(host: u8, to: SocketAddr) -> TcpStream {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let stream = runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, host], 0))).unwrap();
        socket.connect(to).await.unwrap().into_std().unwrap()
    });
    stream.set_nonblocking(false).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn get_from(host: u8, to: SocketAddr, path: &str, token: &str) -> Option<http::Answer> {
    let mut stream = connect_from(host, to);
    write!(stream, "GET {path} HTTP/1.1\r\nhost: {to}\r\nauthorization: Bearer {token}\r\n\r\n")
        .unwrap();
    http::answer(stream)
}

#[test]
fn silent_connections_keep_nobody_out() {
    let (_home, mut daemon, to) = serving("connections_max = 10\ntoken_file = \"token\"\n");
    let with = format!("Bearer {TOKEN}");
    // Many from one address, some from others; half of them begin a request.
    let mut silent = Vec::new();
    for host in (2..=9).chain([1; 300]) {
        let mut stream = connect_from(host, to);
        if silent.len() % 2 == 0 {
            // Some are closed already.
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost:").ok();
        }
        silent.push(stream);
    }
    for path in ["/api/health", "/healthz", "/metrics"] {
        for _ in 0..3 {
            let answer = http::get(to, path, &[("authorization", &with)]);
            assert_eq!(answer.status, 200, "{path}");
        }
        assert_eq!(get_from(99, to, path, TOKEN).unwrap().status, 200, "{path}");
    }
    assert!(daemon.is_alive());
    drop(silent);
    assert!(daemon.terminate().success());
}

#[test]
fn busy_device_serves_healthz_and_metrics() {
    let (_home, daemon, to) = serving("connections_max = 10\ntoken_file = \"token\"\n");
    // Every place is held by a request whose body does not come.
    let busy: Vec<_> = [1, 2]
        .into_iter()
        .flat_map(|host| [host; 5])
        .map(|host| {
            let mut stream = connect_from(host, to);
            write!(
                stream,
                "POST /api/command/subjects HTTP/1.1\r\nhost: {to}\r\nauthorization: Bearer {TOKEN}\r\n\
                 content-type: application/json\r\ncontent-length: 100\r\nexpect: 100-continue\r\n\r\n"
            )
            .unwrap();
            let mut go_on = [0; 25];
            stream.read_exact(&mut go_on).unwrap();
            assert_eq!(&go_on, b"HTTP/1.1 100 Continue\r\n\r\n");
            stream
        })
        .collect();
    let with = format!("Bearer {TOKEN}");
    assert_eq!(http::get(to, "/healthz", &[]).status, 200);
    assert_eq!(http::get(to, "/metrics", &[("authorization", &with)]).status, 200);
    assert_eq!(http::get(to, "/metrics", &[]).status, 401, "the token is needed there as well");
    // Who needs a place waits for it.
    let waited = http::get(to, "/api/health", &[("authorization", &with)]);
    assert_eq!(waited.status, 200);
    for stream in busy {
        assert_eq!(http::answer(stream).unwrap().status, 408);
    }
    assert!(daemon.terminate().success());
}

#[test]
fn body_to_a_public_path_needs_the_token() {
    let (_home, daemon, to) = serving("requests_max = 1\ntoken_file = \"token\"\n");
    let strangers: Vec<_> = ["/page/x", "/", "/healthz", "/openapi.json"]
        .into_iter()
        .map(|path| {
            let mut stream = connect_from(1, to);
            write!(stream, "POST {path} HTTP/1.1\r\nhost: {to}\r\ncontent-length: 1000000\r\n\r\n")
                .unwrap();
            stream
        })
        .collect();
    let large = json!({"request_id": "r-1", "more": "x".repeat(100_000)});
    let with = format!("Bearer {TOKEN}");
    let answer = http::post_json(to, "/api/command/subjects", &[("authorization", &with)], &large);
    assert_eq!(answer.status, 400, "a wrong field, and not busy");
    for stream in strangers {
        assert_eq!(http::answer(stream).unwrap().status, 401);
    }
    assert!(daemon.terminate().success());
}

#[test]
fn five_hundred_listeners_do_no_harm() {
    let (home, daemon, to) = serving(
        "per_minute_max = 1000000\n[camera]\nsource = \"replay\"\npath = \"list.csv\"\nrepeat = true\n",
    );
    let analysed =
        || http::get(to, "/api/health", &[]).json()["camera"]["frames_analysed"].as_u64().unwrap();
    until("frames are analysed", || (analysed() > 5).then_some(()));
    let before = daemon.memory_bytes("VmRSS");
    let feeds: Vec<_> = (0..500)
        .map(|_| {
            let mut stream = http::connect(to);
            write!(stream, "GET /api/events?view=true HTTP/1.1\r\nhost: {to}\r\n\r\n").ok();
            stream
        })
        .collect();
    let socket = home.state().join("watch.sock");
    let watchers: Vec<_> = (0..500)
        .map(|_| {
            let mut stream = UnixStream::connect(&socket).unwrap();
            stream.write_all(b"{\"ask\":\"watch\",\"names\":false}\n").ok();
            stream
        })
        .collect();
    let begun = analysed();
    until("frames are analysed meanwhile", || (analysed() > begun + 10).then_some(()));
    assert_eq!(http::get(to, "/healthz", &[]).status, 200);
    assert_eq!(http::get(to, "/metrics", &[]).status, 200);
    assert_eq!(http::post_json(to, "/api/command/subjects", &[], &json!({})).status, 200);
    let growth = daemon.memory_bytes("VmHWM").saturating_sub(before);
    assert!(growth < GROWTH_MAX, "{growth}");
    drop((feeds, watchers));
    assert!(daemon.terminate().success());
}

#[test]
fn pages_of_other_sites_fetch_nothing() {
    let (home, daemon, to) =
        serving("[camera]\nsource = \"replay\"\npath = \"list.csv\"\nrepeat = true\n");
    for path in ["/api/picture", "/api/events?view=true", "/api/attendance", "/healthz", "/"] {
        for site in ["cross-site", "same-site"] {
            let headers = [("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")];
            assert_eq!(http::get(to, path, &headers).status, 403, "{path} {site}");
        }
    }
    assert!(!home.log().contains("shown the camera's picture"));
    let own = http::get(to, "/api/picture", &[("sec-fetch-site", "same-origin")]);
    assert_eq!(own.status, 200);
    assert_eq!(own.header("cross-origin-resource-policy"), Some("same-origin"));
    assert!(daemon.terminate().success());
}

#[test]
fn guessed_tokens_are_slowed_and_reported() {
    let (home, daemon, to) = serving("token_file = \"token\"\n");
    let wrong = format!("{TOKEN}x");
    for _ in 0..30 {
        assert_eq!(get_from(2, to, "/api/health", &wrong).unwrap().status, 401);
    }
    let together = Barrier::new(40);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let guess = || {
            let stream = connect_from(2, to);
            together.wait();
            let mut stream = stream;
            let head = format!("GET /api/health HTTP/1.1\r\nauthorization: Bearer {wrong}\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            http::answer(stream).unwrap().status
        };
        let threads: Vec<_> = (0..40).map(|_| scope.spawn(guess)).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    assert!(statuses.contains(&429), "{statuses:?}");
    assert!(statuses.iter().all(|it| [401, 429].contains(it)), "{statuses:?}");
    // Others are not affected, and the address itself is not locked out.
    assert_eq!(get_from(3, to, "/api/health", TOKEN).unwrap().status, 200);
    until("the address is served again", || {
        (get_from(2, to, "/api/health", TOKEN)?.status == 200).then_some(())
    });
    assert!(daemon.terminate().success());
    let log = home.log();
    assert!(log.contains("wrong token") && log.contains("127.0.0.2"), "{log}");
    assert!(!log.contains(TOKEN), "{log}");
    let database = rusqlite::Connection::open(home.state().join("rollcall.db")).unwrap();
    let mut query =
        database.prepare("select body from event where kind = 'security' order by seq").unwrap();
    let bodies: Vec<serde_json::Value> = query
        .query_map([], |row| row.get::<_, String>(0))
        .unwrap()
        .map(|it| serde_json::from_str(&it.unwrap()).unwrap())
        .collect();
    assert!(bodies.iter().all(|it| it["reason"] == "wrong_token"), "{bodies:?}");
    let counted: u64 = bodies.iter().map(|it| it["count"].as_u64().unwrap()).sum();
    let compared = 30 + statuses.iter().filter(|it| **it == 401).count() as u64;
    assert_eq!(counted, compared, "{bodies:?}");
}

#[test]
fn foreseeable_token_ends_start() {
    let (home, daemon, _) = serving("token_file = \"token\"\n");
    assert!(daemon.terminate().success());
    fs::write(home.path("token"), "changemechangeme").unwrap();
    let output = home.output(&["check-config"]);
    assert_eq!(output.status.code(), Some(78), "{output:?}");
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("easily guessed") && !text.contains("changeme"), "{text}");
}

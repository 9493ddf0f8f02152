//! Commands that cost much: a report over a long period takes the memory of a page, and a command
//! during which the process ends each time is rejected in the end, by MQTT and by HTTP.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use crate::support::daemon;
use crate::support::http;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;

use crate::support::client::Client;
use crate::support::daemon::{Daemon, Home, until};
use crate::support::mosquitto::Mosquitto;
use rollcall::clock::{Clock as _, SystemClock, Trust, rfc3339};
use rusqlite::{Connection, params};
use serde_json::{Value, json};

const DAY_MS: i64 = 86_400_000;
const HTTP: &str = "[http]\nlisten = \"127.0.0.1:0\"\n";
/// As `app::commander::attempts`.
const ATTEMPTS_MAX: usize = 4;
/// The roll of 10,000 people and the sessions of two months take some 6 MiB; all rows would take
/// gigabytes.
const GROWTH_MAX_BYTES: u64 = 48 << 20;
const PEOPLE: i64 = 10_000;
const DAYS: i64 = 61;
const SESSIONS_A_DAY: i64 = 10;

fn database(home: &Home) -> Connection {
    Connection::open(home.state().join("rollcall.db")).unwrap()
}

/// 10,000 people who have been enrolled for long, at a door that was always watching.
fn fill(home: &Home, now_ms: i64) {
    let mut database = database(home);
    let tx = database.transaction().unwrap();
    let sql =
        "insert into subject (id, name, enrolled_ms, changed_by) values (?1, ?2, ?3, 'door-1')";
    for number in 0..PEOPLE {
        let values = params![
            format!("s-{number:06}"),
            format!("Person Number {number}"),
            now_ms - 200 * DAY_MS
        ];
        tx.execute(sql, values).unwrap();
    }
    tx.execute("delete from observation", []).unwrap();
    let sql = "insert into observation (boot_id, from_ms, from_boottime_ms, to_ms, to_boottime_ms, clock) \
               values ('b', ?1, 0, ?2, ?3, 'synced')";
    tx.execute(sql, params![now_ms - 100 * DAY_MS, now_ms, 100 * DAY_MS]).unwrap();
    // As a database of the schema before checksums: the next start computes those of all rows.
    tx.execute_batch("drop table checksum; drop table unreadable; pragma user_version = 3")
        .unwrap();
    tx.commit().unwrap();
}

fn sessions() -> Vec<Value> {
    let minutes = 24 * 60 / SESSIONS_A_DAY;
    let time = |minute: i64| format!("{:02}:{:02}", minute / 60, minute % 60);
    let days = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
    let session = |number: i64| {
        let start = number * minutes;
        let end = number * minutes + minutes - 1;
        json!({"id": format!("h{number}"), "weekdays": days, "start": time(start), "end": time(end), "early_ms": 0})
    };
    (0..SESSIONS_A_DAY).map(session).collect()
}

#[test]
fn long_summary_takes_the_memory_of_a_page() {
    let broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "");
    assert!(client.started(&home).terminate().success());
    let now_ms = SystemClock::new(Trust::Always).now().wall_ms;
    fill(&home, now_ms);
    let daemon = client.started(&home);
    let put = client.request("venue_put", "p-1", json!({"venue": "hall", "sessions": sessions()}));
    assert_eq!(put["ok"], true, "{put}");
    let midnight_ms = now_ms - now_ms % DAY_MS;
    let period = (midnight_ms - (DAYS + 2) * DAY_MS, midnight_ms - 2 * DAY_MS);
    let page = |request_id: &str, after: i64| {
        let body = json!({"venue": "hall", "from": rfc3339(period.0), "to": rfc3339(period.1), "summary": true,
                          "absent": true, "after": after, "limit": 3});
        client.request("attendance", request_id, body)
    };
    let before = daemon.memory_bytes("VmHWM");
    let first = page("a-1", 0);
    assert_eq!(
        (&first["rows"][0]["subject"]["id"], &first["next_after"]),
        (&json!("s-000000"), &json!(3)),
        "{first}"
    );
    let all = DAYS * SESSIONS_A_DAY * PEOPLE;
    let last = page("a-2", all - 2);
    let rows = last["rows"].as_array().unwrap();
    let ids: Vec<&Value> = rows.iter().map(|row| &row["subject"]["id"]).collect();
    assert_eq!(ids, [&json!("s-009998"), &json!("s-009999")], "{last}");
    assert_eq!((&last["next_after"], &rows[1]["status"]), (&Value::Null, &json!("absent")));
    let growth = daemon.memory_bytes("VmHWM") - before;
    println!("pages of {all} rows: memory grew by {} KiB at most", growth >> 10);
    assert!(growth < GROWTH_MAX_BYTES, "grew by {growth} bytes");
    assert!(daemon.terminate().success());
}

/// Keeps the daemon from writing, so that a command that writes stays in progress until the daemon
/// is killed.
fn lock(home: &Home) -> Connection {
    let conn = database(home);
    conn.busy_timeout(daemon::PATIENCE).unwrap();
    conn.execute_batch("begin immediate").unwrap();
    conn
}

/// Kills the daemon while it carries the command out for the `attempt`th time.
fn kill_during(home: &Home, daemon: Daemon, request_id: &str, attempt: usize) {
    until("the attempt is written down", || {
        let written = fs::read_to_string(home.state().join("attempts")).ok()?;
        written
            .lines()
            .any(|line| line.trim_end() == format!("{attempt} {request_id}"))
            .then_some(())
    });
    daemon.kill();
}

#[test]
fn command_that_ends_the_process_is_rejected() {
    let mut broker = Mosquitto::start();
    let client = Client::connect(broker.port());
    let home = Home::new(broker.port(), "");
    let mut daemon = client.started(&home);
    let command = json!({"request_id": "r-1"});
    for attempt in 1..=ATTEMPTS_MAX {
        let locked = lock(&home);
        if attempt == 1 {
            client.command("sync", &command);
        } else {
            // It comes again from the broker, not before the database is locked.
            broker.run();
        }
        kill_during(&home, daemon, "r-1", attempt);
        drop(locked);
        broker.stop();
        daemon = home.start();
    }
    broker.run();
    let answer = client.await_one("the answer", |it| it.part == "reply/r-1").json();
    assert_eq!(
        (&answer["ok"], &answer["error"]["code"]),
        (&json!(false), &json!("internal")),
        "{answer}"
    );
    assert_eq!(client.request("sync", "r-2", json!({}))["ok"], true, "another one is carried out");
    assert!(daemon.terminate().success());
}

/// Sends a command and waits for no answer.
fn post_sync(address: SocketAddr, request_id: &str) -> std::net::TcpStream {
    let body = json!({"request_id": request_id}).to_string();
    let head = format!(
        "POST /api/command/sync HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    let mut stream = http::connect(address);
    stream.write_all((head + &body).as_bytes()).unwrap();
    stream
}

#[test]
fn http_request_that_ends_the_process_is_rejected() {
    let broker = Mosquitto::start();
    let home = Home::new(broker.port(), HTTP);
    for attempt in 1..=ATTEMPTS_MAX {
        let daemon = home.start();
        let address = http::address(&home);
        let locked = lock(&home);
        let stream = post_sync(address, "r-1");
        kill_during(&home, daemon, "r-1", attempt);
        drop((locked, stream));
    }
    let daemon = home.start();
    let address = http::address(&home);
    let post =
        |id: &str| http::post_json(address, "/api/command/sync", &[], &json!({"request_id": id}));
    let refused = post("r-1");
    assert_eq!(
        (refused.status, &refused.json()["error"]["code"]),
        (503, &json!("internal")),
        "{refused:?}"
    );
    assert_eq!(post("r-2").status, 200, "another one is carried out");
    assert!(daemon.terminate().success());
}

#[test]
fn report_is_made_while_the_database_is_locked() {
    let broker = Mosquitto::start();
    let home = Home::new(broker.port(), HTTP);
    let daemon = home.start();
    let address = http::address(&home);
    let locked = lock(&home);
    let answer = http::get(address, "/api/attendance?venue=main", &[]);
    assert_eq!((answer.status, &answer.json()["attendance"]), (200, &json!([])), "{answer:?}");
    drop(locked);
    assert!(daemon.terminate().success());
}

//! Killed at any instant, the store keeps what it acknowledged. The test runs itself again as a
//! writer, kills it with SIGKILL while it writes, and looks at what is left; several rounds on one
//! directory.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests too")]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rollcall::clock::{Clock as _, SystemClock, Trust};
use rollcall::store::{SinkName, Store, StoreOptions};
use rollcall::wire::event::{Body, Camera, CameraState, NewEvent};
use rusqlite::Connection;

const DIR: &str = "ROLLCALL_TEST_KILL_DIR";
/// How many acknowledgements the writer gets to before each kill: soon after the start, and in full
/// flow.
const ROUNDS: [usize; 14] = [1, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 200, 300];

fn open(dir: &Path) -> (Store, Arc<SystemClock>) {
    let clock = Arc::new(SystemClock::new(Trust::Always));
    let options = StoreOptions::new(vec![SinkName::MQTT, SinkName::MONGO], Arc::clone(&clock) as _);
    let opened = Store::open(dir, options).unwrap();
    assert_eq!(opened.moved_aside, None, "a kill damages nothing");
    (opened.store, clock)
}

/// What the test does when it was started by itself.
fn write_until_killed(dir: &Path) {
    let (store, clock) = open(dir);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| write_for_ever(&store, &clock));
        }
    });
}

fn write_for_ever(store: &Store, clock: &SystemClock) {
    loop {
        let body = Camera { state: CameraState::Lost, reason: None, lost_ms: None };
        let event = NewEvent::new(clock.now(), Body::Camera(body));
        let id = event.event_id;
        let seq = store.write(move |tx| tx.append_event(&event)).unwrap();
        // One write a line, so that a kill cuts between lines or within one that is then no line.
        let line = format!("acknowledged {seq} {id}\n");
        std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
    }
}

#[test]
fn acknowledged_writes_survive_sigkill() {
    if let Some(dir) = std::env::var_os(DIR) {
        return write_until_killed(Path::new(&dir));
    }
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = Vec::new();
    for enough in ROUNDS {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["acknowledged_writes_survive_sigkill", "--nocapture", "--test-threads=1"])
            .env(DIR, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let before = acknowledged.len();
        let mut killed = false;
        for line in BufReader::new(child.stdout.take().unwrap()).split(b'\n') {
            let line = String::from_utf8_lossy(&line.unwrap()).into_owned();
            // The test harness prints its own lines, the first without an end.
            let words = line.split_once("acknowledged ").and_then(|it| it.1.split_once(' '));
            if let Some((seq, id)) = words.filter(|it| it.1.len() == 36) {
                acknowledged.push((seq.parse::<i64>().unwrap(), id.parse::<uuid::Uuid>().unwrap()));
            }
            if !killed && acknowledged.len() - before >= enough {
                child.kill().unwrap(); // SIGKILL
                killed = true; // What is in the pipe was acknowledged too.
            }
        }
        assert!(killed, "the writer ended by itself");
        child.wait().unwrap();
        check(dir.path(), &acknowledged);
    }
    assert!(acknowledged.len() >= ROUNDS.iter().sum());
}

fn check(dir: &Path, acknowledged: &[(i64, uuid::Uuid)]) {
    drop(open(dir));
    let conn = Connection::open(dir.join("rollcall.db")).unwrap();
    let one = |sql: &str| conn.query_row(sql, [], |row| row.get::<_, i64>(0)).unwrap();
    let verdict: String = conn.query_row("pragma integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!(verdict, "ok");
    assert_eq!(one("select count(*) from pragma_foreign_key_check"), 0);
    let count = one("select count(*) from event");
    assert_eq!(
        (one("select min(seq) from event"), one("select max(seq) from event")),
        (1, count),
        "no gaps"
    );
    let incomplete = one(
        "select count(*) from event where (select count(*) from outbox where event_seq = seq and sink = 'mqtt') <> 1 \
         or (select count(*) from outbox where event_seq = seq and sink = 'mongo') <> 1",
    );
    assert_eq!(incomplete, 0, "each event with each of its rows");
    assert_eq!(one("select count(*) from outbox"), 2 * count);
    let mut find = conn.prepare("select 1 from event where seq = ?1 and event_id = ?2").unwrap();
    for (seq, id) in acknowledged {
        assert!(
            find.exists(rusqlite::params![seq, id.as_bytes()]).unwrap(),
            "event {seq} {id} is lost"
        );
    }
}

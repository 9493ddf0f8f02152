//! Store, relay and sink against a real mongod: what was recorded is there, once, whatever happens on the way.
//!
//! By hand, at full size: `E2E_EVENTS=10000 E2E_KILLS=5 E2E_STALL_S=600 cargo nextest run --test mongo_sink --no-capture`

#![cfg(feature = "mongo")]
#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

#[path = "support/door.rs"]
mod door;
#[path = "support/mongod.rs"]
mod mongod;

use door::{Door, scaled};
use mongod::Mongod;
use rollcall::clock::Stopwatch;
use rollcall::health::MongoState;

#[test]
fn what_was_recorded_while_mongodb_was_away_is_there_once() {
    let events = scaled("E2E_EVENTS", 1_000);
    let mut server = Mongod::start();
    server.kill_all();
    let door = Door::new("door-1", &server.uri());
    let expected = door.visits(events);
    let running = door.start();
    running.until_state(MongoState::Away);
    server.run_all();
    let watch = Stopwatch::start();
    door.store.deliver_now();
    door.until_nothing_is_owed();
    println!("{events} events drained in {:.2} s", watch.elapsed().as_secs_f64());
    running.stop();
    let found: Vec<String> = server.all("attendance").iter().map(|it| it.get_str("_id").unwrap().to_owned()).collect();
    assert_eq!(found, expected);
}

//! Webhooks, with a receiver that answers whatever a receiver may answer, at random with a seed: each
//! event is accepted exactly once by its idempotency key, and dead letters are those that must be.
//! In this process with the real store and relay; and with the daemon, killed again and again.
//!
//! By hand, the whole of it (10,000 events, 50 kills, some minutes):
//! `E2E_EVENTS=10000 E2E_KILLS=50 cargo nextest run --test daemon webhook:: --no-capture`
//! `WEBHOOK_SEED=7` repeats a run with another seed.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]
#![allow(
    clippy::redundant_closure_for_method_calls,
    reason = "a path is not general over lifetimes"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ring::hmac;
use rollcall::app::links::webhook_tls;
use rollcall::backoff::Backoff;
use rollcall::clock::{Clock as _, SimulatedClock, Stopwatch, SystemClock, Trust};
use rollcall::health::{Health, WebhookHealth, WebhookState, WebhookStatus};
use rollcall::ids::Origin;
use rollcall::store::relay::{RelaySettings, relay};
use rollcall::store::{SinkName, Store, StoreOptions};
use rollcall::webhook::{Preset, WebhookLink, WebhookSettings, WebhookSink, WebhookUrl};
use serde_json::Value;
use tokio::sync::watch;

use crate::support::daemon::{Home, scaled, until, until_for};
use crate::support::door::{START_MS, visit};
use crate::support::receiver::{Action, Received, Receiver, answer};

const KEY: &[u8] = b"a key of at least sixteen bytes";

/// A door without camera: a store, and a webhook to a receiver, in this process.
pub struct WebhookDoor {
    pub clock: Arc<SimulatedClock>,
    pub store: Store,
    pub health: Arc<Health>,
    pub settings: WebhookSettings,
    _dir: tempfile::TempDir,
}

/// Its relay, until it is dropped.
pub struct Running {
    stop: watch::Sender<bool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.send_replace(true);
        self.thread.take().unwrap().join().unwrap();
    }
}

pub fn settings(url: &str, preset: Preset) -> WebhookSettings {
    WebhookSettings {
        name: "hr".into(),
        url: WebhookUrl::parse(url, false).unwrap(),
        preset,
        key: Some(hmac::Key::new(hmac::HMAC_SHA256, KEY)),
        authorization: Some("token abc:def".parse().unwrap()),
        ca_file: None,
        allow_private: false,
        timeout: Duration::from_secs(1),
        batch: 1,
    }
}

impl WebhookDoor {
    pub fn new(settings: WebhookSettings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(START_MS));
        let options = StoreOptions::new(vec![settings.sink()], Arc::clone(&clock) as _);
        let store = Store::open(dir.path(), options).unwrap().store;
        let health = Arc::new(Health::default());
        health.set_webhooks(vec![WebhookHealth::new("hr", settings.sink().as_str())]);
        Self { clock, store, health, settings, _dir: dir }
    }

    pub fn link(&self) -> WebhookLink {
        let settings = Arc::new(self.settings.clone());
        // A host that no certificate can be for has none.
        let tls = webhook_tls(&settings).unwrap_or_default();
        WebhookLink::new(settings, tls, Arc::clone(&self.clock) as _, Arc::clone(&self.health), 0)
    }

    pub fn start(&self) -> Running {
        let (stop, stopped) = watch::channel(false);
        let origin = Origin { site: "hq".into(), device: "door-1".into() };
        let sink = WebhookSink::new(self.link(), origin);
        let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(20));
        let settings = RelaySettings { window: self.settings.window(), backoff };
        let store = self.store.clone();
        let thread = std::thread::spawn(move || {
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(relay(store, sink, stopped, settings)).unwrap();
            runtime.shutdown_background();
        });
        Running { stop, thread: Some(thread) }
    }

    /// One person after the other, a minute apart; gives the ids in order.
    pub fn visits(&self, count: usize) -> Vec<String> {
        let mut ids = Vec::with_capacity(count);
        for number in 0..count {
            self.clock.advance(Duration::from_mins(1));
            let event = visit(&self.clock, "main", &format!("{}", number % 20 + 1));
            ids.push(event.event_id.to_string());
            self.store.write(move |tx| tx.append_event(&event)).unwrap();
        }
        ids
    }

    pub fn pending(&self) -> u64 {
        let sink = self.settings.sink();
        self.store.write(move |tx| tx.outbox_depth(sink)).unwrap().rows
    }

    pub fn until_drained(&self) {
        until_for(Duration::from_mins(5), "everything is delivered", || {
            (self.pending() == 0).then_some(())
        });
    }

    /// The dead letters with the ids of their events.
    pub fn dead_letters(&self) -> Vec<(i64, String)> {
        let listed = self.store.write(|tx| tx.dead_letters(10_000)).unwrap();
        listed.into_iter().map(|it| (it.event_seq.unwrap(), it.reason)).collect()
    }

    pub fn status(&self) -> WebhookStatus {
        self.health.webhooks()[0].status()
    }
}

/// What a receiver with a memory has accepted, by idempotency key.
type Accepted = Arc<Mutex<BTreeMap<String, usize>>>;

/// Of some events every answer is that they are not taken, whatever is tried.
fn refusal(key: &str) -> Option<u16> {
    let hash = key.bytes().fold(7_u32, |hash, it| hash.wrapping_mul(31) ^ u32::from(it));
    let refusals = [400, 404, 410, 413, 422];
    hash.is_multiple_of(40).then(|| refusals[(hash / 40) as usize % refusals.len()])
}

/// Everything that a receiver does, at random: one fault in `faults` requests.
fn random_receiver(accepted: &Accepted, seed: u64, faults: u32, elsewhere: String) -> Receiver {
    let mut rng = fastrand::Rng::with_seed(seed);
    let accepted = Arc::clone(accepted);
    Receiver::start(move |received| {
        let key = received.key();
        if let Some(status) = refusal(&key) {
            return answer(status, "{\"message\": \"not this one\"}");
        }
        let fault = (rng.u32(..faults) == 0).then(|| rng.u32(..20));
        match fault {
            Some(0) => return Action::Hang,
            Some(1..=3) => return Action::Cut,
            Some(4..=5) => return answer(500, "oops"),
            Some(6) => return answer(503, ""),
            Some(7..=8) => {
                let headers = vec![("retry-after", "0".to_owned())];
                return Action::Answer { status: 429, headers, body: "slowly".into() };
            }
            Some(9..=10) => {
                let headers = vec![("location", elsewhere.clone())];
                return Action::Answer { status: 302, headers, body: String::new() };
            }
            Some(11) => return answer(401, "who?"),
            Some(12) => return Action::Raw(b"220 this is SMTP\r\n".to_vec()),
            Some(13) => return Action::Raw(b"HTTP/1.1 200 OK\r\nx: ".to_vec()),
            Some(14) => return answer(408, ""),
            _ => {}
        }
        let mut accepted = accepted.lock().unwrap();
        let is_known = accepted.contains_key(&key);
        if is_known {
            // An idempotent receiver: the same answer again, or that it is there.
            return answer(if rng.bool() { 409 } else { 200 }, "known");
        }
        *accepted.entry(key).or_default() += 1;
        match fault {
            // Accepted, and nobody hears of it.
            Some(15..=17) => Action::Cut,
            Some(18) => Action::Hang,
            Some(19) => Action::Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf".to_vec()),
            _ => answer([200, 201, 202, 204][rng.usize(..4)], "thanks"),
        }
    })
}

fn seed() -> u64 {
    std::env::var("WEBHOOK_SEED").map_or(1, |it| it.parse().unwrap())
}

/// Holds what must hold at the end against the ids of all events, in their order.
fn check_outcome(ids: &[String], accepted: &Accepted, dead_letters: &[(i64, String)]) {
    let accepted = accepted.lock().unwrap();
    for (at, id) in ids.iter().enumerate() {
        let seq = at as i64 + 1;
        let dead = dead_letters.iter().find(|it| it.0 == seq);
        if let Some(status) = refusal(id) {
            let (_, reason) = dead.unwrap_or_else(|| panic!("{id} ({status}) is no dead letter"));
            assert!(reason.contains(&format!("status {status}")), "{reason}");
            assert!(!reason.contains("not this one"), "{reason}");
            assert!(!accepted.contains_key(id), "{id}");
        } else {
            assert_eq!(accepted.get(id), Some(&1), "{id}");
            assert_eq!(dead, None, "{id}");
        }
    }
    assert_eq!(accepted.len() + dead_letters.len(), ids.len(), "and nothing else");
}

#[test]
fn random_answers_lose_and_duplicate_nothing() {
    let events = scaled("E2E_EVENTS", 2_000);
    let accepted = Accepted::default();
    let elsewhere = Receiver::start(|_| answer(200, ""));
    let receiver = random_receiver(&accepted, seed(), 10, elsewhere.url("/"));
    let door = WebhookDoor::new(WebhookSettings {
        timeout: Duration::from_millis(300),
        ..settings(&receiver.url("/hook?a=1"), Preset::Plain)
    });
    let ids = door.visits(events);
    let watch = Stopwatch::start();
    let running = door.start();
    door.until_drained();
    drop(running);
    check_outcome(&ids, &accepted, &door.dead_letters());
    assert_eq!(elsewhere.count(), 0, "no redirect is followed");
    println!(
        "{events} events with {} requests in {:.1} s, {} dead letters",
        receiver.count(),
        watch.elapsed().as_secs_f64(),
        door.dead_letters().len()
    );
}

#[test]
fn request_has_signature_key_and_event() {
    let receiver = Receiver::start(|_| answer(204, ""));
    let door = WebhookDoor::new(settings(&receiver.url("/hook?a=1"), Preset::Plain));
    let id = door.visits(1).remove(0);
    let _running = door.start();
    door.until_drained();
    let request = receiver.received().remove(0);
    assert_eq!((request.method.as_str(), request.target.as_str()), ("POST", "/hook?a=1"));
    assert_eq!(request.header("content-type"), Some("application/json"));
    assert_eq!(request.header("host"), Some(receiver.address().to_string().as_str()));
    assert!(request.header("user-agent").unwrap().starts_with("rollcall/"));
    assert_eq!(request.header("authorization"), Some("token abc:def"));
    assert_eq!(request.key(), id);
    let event = request.json();
    assert_eq!((&event["event_id"], &event["kind"]), (&id.as_str().into(), &"attendance".into()));
    assert_eq!((&event["device"], &event["schema"]), (&"door-1".into(), &1.into()));
    check_signature(&request, KEY, door.clock.now().wall_ms / 1000);
    let status = until("the state is known", || {
        Some(door.status()).filter(|it| it.state == WebhookState::Connected)
    });
    assert_eq!(status.reason, None);
}

/// As a receiver does.
fn check_signature(received: &Received, key: &[u8], now_s: i64) {
    let header = received.header("x-rollcall-signature").unwrap();
    let (time, signature) = header.strip_prefix("t=").unwrap().split_once(",v1=").unwrap();
    assert!((now_s - time.parse::<i64>().unwrap()).abs() <= 300, "{header}");
    let signed = [time.as_bytes(), b".", &received.body].concat();
    let bytes: Vec<u8> = (0..signature.len() / 2)
        .map(|at| u8::from_str_radix(&signature[at * 2..at * 2 + 2], 16).unwrap())
        .collect();
    hmac::verify(&hmac::Key::new(hmac::HMAC_SHA256, key), &signed, &bytes).unwrap();
}

#[test]
fn rejected_batch_is_halved_to_single_event() {
    let wrong = Arc::new(Mutex::new(String::new()));
    let known = Arc::clone(&wrong);
    let receiver = Receiver::start(move |received| {
        let list = received.json();
        let list = list.as_array().unwrap();
        if list.len() > 8 {
            return answer(413, "too much");
        }
        let is_wrong = |it: &Value| it["event_id"] == known.lock().unwrap().as_str();
        if list.iter().any(is_wrong) {
            return answer(422, "not $name of 6");
        }
        answer(200, "")
    });
    let door = WebhookDoor::new(WebhookSettings {
        batch: 20,
        ..settings(&receiver.url("/"), Preset::Plain)
    });
    let ids = door.visits(50);
    wrong.lock().unwrap().clone_from(&ids[5]);
    let _running = door.start();
    door.until_drained();
    // What the receiver repeats of a person is not kept.
    assert_eq!(door.dead_letters(), [(6, "status 422".to_owned())]);
    let requests = receiver.received();
    let mut taken = Vec::new();
    let mut keys = BTreeMap::new();
    for it in &requests {
        let list = it.json();
        let list: Vec<_> =
            list.as_array().unwrap().iter().map(|it| it["event_id"].clone()).collect();
        // One key for one content.
        let before = keys.insert(it.key(), list.clone());
        assert!(before.is_none_or(|before| before == list));
        if list.len() == 1 {
            assert_eq!(list[0], it.key().as_str());
        }
        if list.len() <= 8 && !list.contains(&ids[5].as_str().into()) {
            taken.extend(list);
        }
    }
    let expected: Vec<Value> =
        ids.iter().filter(|it| **it != ids[5]).map(|it| it.as_str().into()).collect();
    assert_eq!(taken, expected);
}

#[test]
fn refusals_stay_pending_and_are_reported() {
    let elsewhere = Receiver::start(|_| answer(200, ""));
    let location = elsewhere.url("/");
    let receiver = Receiver::start(|_| answer(403, "no"));
    let door = WebhookDoor::new(settings(&receiver.url("/"), Preset::Plain));
    door.visits(3);
    let _running = door.start();
    let status = |part: &str| {
        until(part, || {
            let status = door.status();
            status.reason.clone().filter(|it| it.contains(part))?;
            Some(status)
        })
    };
    let refused = status("refuses our credentials");
    assert_eq!(refused.state, WebhookState::Refused);
    receiver.set_script(move |_| Action::Answer {
        status: 307,
        headers: vec![("location", location.clone())],
        body: String::new(),
    });
    assert_eq!(status("redirects").state, WebhookState::Refused);
    assert_eq!((door.pending(), door.dead_letters().len(), elsewhere.count()), (3, 0, 0));
    receiver.set_script(|_| answer(200, ""));
    door.until_drained();
    assert_eq!(door.status().state, WebhookState::Connected);
}

#[test]
fn name_with_private_address_is_not_connected_to() {
    let receiver = Receiver::start(|_| answer(200, ""));
    // A name as far as the URL goes; resolvers read it as 127.0.0.1.
    let url = format!("https://2130706433:{}/", receiver.address().port());
    let door = WebhookDoor::new(settings(&url, Preset::Plain));
    door.visits(1);
    let _running = door.start();
    let status =
        until("it is refused", || Some(door.status()).filter(|it| it.state != WebhookState::Idle));
    assert_eq!(status.state, WebhookState::Refused, "{status:?}");
    assert!(status.reason.unwrap().contains("127.0.0.1"));
    assert_eq!((door.pending(), receiver.count()), (1, 0));
}

#[test]
fn certificate_of_receiver_is_checked() {
    let dir = tempfile::tempdir().unwrap();
    let receiver = Receiver::start_with_tls(dir.path(), |_| answer(200, ""));
    let port = receiver.address().port();
    for (host, ca, expected) in [
        ("127.0.0.1", "ca.pem", WebhookState::Connected),
        ("127.0.0.1", "other.pem", WebhookState::Refused),
        ("localhost", "ca.pem", WebhookState::Refused),
    ] {
        let before = receiver.count();
        let door = WebhookDoor::new(WebhookSettings {
            ca_file: Some(dir.path().join(ca)),
            ..settings(&format!("https://{host}:{port}/"), Preset::Plain)
        });
        door.visits(1);
        let _running = door.start();
        let status = until("it was tried", || {
            Some(door.status()).filter(|it| it.state != WebhookState::Idle)
        });
        assert_eq!(status.state, expected, "{host} {ca}: {status:?}");
        if expected == WebhookState::Connected {
            door.until_drained();
        } else {
            assert!(status.reason.unwrap().contains("certificate"), "{host} {ca}");
            assert_eq!((door.pending(), receiver.count()), (1, before));
        }
    }
}

#[test]
fn retry_after_is_kept_to() {
    let mut first = true;
    let receiver = Receiver::start(move |_| {
        if !std::mem::take(&mut first) {
            return answer(200, "");
        }
        let headers = vec![("retry-after", "2".to_owned())];
        Action::Answer { status: 503, headers, body: String::new() }
    });
    let door = WebhookDoor::new(settings(&receiver.url("/"), Preset::Plain));
    door.visits(2);
    let _running = door.start();
    door.until_drained();
    let requests = receiver.received();
    let pause_ms = requests[1].at_ms - requests[0].at_ms;
    assert!((2_000.0..30_000.0).contains(&pause_ms), "{pause_ms} ms");
    assert_eq!(requests.len(), 3);
}

#[test]
fn one_failing_event_does_not_stop_others() {
    let failing = Arc::new(Mutex::new(String::new()));
    let known = Arc::clone(&failing);
    let receiver = Receiver::start(move |received| {
        let is_it = received.key() == *known.lock().unwrap();
        answer(if is_it { 500 } else { 200 }, "")
    });
    let door = WebhookDoor::new(settings(&receiver.url("/"), Preset::Plain));
    let ids = door.visits(30);
    failing.lock().unwrap().clone_from(&ids[3]);
    let _running = door.start();
    until("all others are delivered", || (door.pending() == 1).then_some(()));
    assert!(door.dead_letters().is_empty());
    failing.lock().unwrap().clear();
    door.until_drained();
    // Where nothing was given up: a receiver notices late that nobody waits for its answer.
    assert_eq!(receiver.most_open(), 1, "one request at a time");
}

#[test]
fn hostile_answers_are_bounded() {
    let mut answers = vec![
        // A head, a body and a wait without end; a body that is compressed is not looked into.
        Action::Raw([b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'a'; 4 << 20]].concat()),
        Action::Raw(
            b"HTTP/1.1 200 OK\r\n".iter().copied().chain(b"x: y\r\n".repeat(100_000)).collect(),
        ),
        Action::Raw([b"HTTP/1.1 503 No\r\n\r\n".to_vec(), vec![b'a'; 8 << 20]].concat()),
        Action::Hang,
        answer(429, &"ä".repeat(1 << 20)),
    ];
    answers.reverse();
    let receiver = Receiver::start(move |_| {
        answers.pop().unwrap_or_else(|| answer(400, &"b\u{7}".repeat(1 << 20)))
    });
    let door = WebhookDoor::new(settings(&receiver.url("/"), Preset::Plain));
    door.visits(1);
    let _running = door.start();
    door.until_drained();
    assert_eq!(receiver.count(), 6);
    let reason = &door.dead_letters()[0].1;
    assert_eq!(reason, "status 400");
}

#[test]
fn webhook_receives_events_from_its_first_start() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(SimulatedClock::at(START_MS));
    let hr = SinkName::webhook("hr");
    let day = Duration::from_hours(24);
    let open = |sinks: &[SinkName]| {
        let options = StoreOptions::new(sinks.to_vec(), Arc::clone(&clock) as _);
        Store::open(dir.path(), options).unwrap().store
    };
    let append = |store: &Store| {
        clock.advance(Duration::from_mins(1));
        let event = visit(&clock, "main", "p1");
        store.write(move |tx| tx.append_event(&event)).unwrap();
    };
    let pending = |store: &Store| store.write(move |tx| tx.outbox_depth(hr)).unwrap().rows;
    let round = |store: &Store| {
        while store.write(|tx| tx.forget_removed_webhooks()).unwrap() > 0 {}
        store.close().unwrap();
    };
    let store = open(&[]);
    append(&store);
    round(&store);
    let store = open(&[hr]);
    assert_eq!(pending(&store), 0, "nothing of what was before");
    append(&store);
    assert_eq!(pending(&store), 1);
    round(&store);
    // Left out, and back within 30 days: as if it had been there all the time.
    let store = open(&[]);
    append(&store);
    assert_eq!(pending(&store), 1);
    round(&store);
    clock.advance(day * 29);
    let store = open(&[hr]);
    assert_eq!(pending(&store), 2);
    round(&store);
    // Left out for longer: forgotten.
    let store = open(&[]);
    round(&store);
    clock.advance(day * 29);
    let store = open(&[]);
    assert_eq!(pending(&store), 2);
    round(&store);
    clock.advance(day * 2);
    let store = open(&[]);
    round(&store);
    let store = open(&[]);
    assert_eq!(pending(&store), 0);
    append(&store);
    round(&store);
    let store = open(&[hr]);
    assert_eq!(pending(&store), 0, "a new one");
    store.close().unwrap();
}

// The daemon

/// A home without broker, with a webhook, and the port of a page for metrics.
fn home(url: &str) -> Home {
    let home = Home::new(1, "");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let text = format!(
        "[device]\nsite = \"hq\"\nname = \"door-1\"\n[clock]\ntrust = \"always\"\n[recognition]\nmodels = \"{}\"\n\
         [http]\nlisten = \"127.0.0.1:0\"\n\
         [[webhook]]\nname = \"hr\"\nurl = \"{url}\"\nsecret_file = \"key\"\ntimeout = \"1s\"\n",
        models.display()
    );
    fs::write(home.path("config.toml"), text).unwrap();
    fs::write(home.path("key"), KEY).unwrap();
    fs::set_permissions(home.path("key"), fs::Permissions::from_mode(0o600)).unwrap();
    home
}

/// Visits that were recorded before, a second apart, and are pending for the webhook.
fn recorded(home: &Home, count: usize) -> Vec<String> {
    let now_ms = SystemClock::new(Trust::Always).now().wall_ms;
    let clock = Arc::new(SimulatedClock::at(now_ms - 60_000 - count as i64 * 1000));
    let options = StoreOptions::new(vec![SinkName::webhook("hr")], Arc::clone(&clock) as _);
    let store = Store::open(&home.state(), options).unwrap().store;
    let mut events = Vec::with_capacity(count);
    for number in 0..count {
        clock.advance(Duration::from_secs(1));
        events.push(visit(&clock, "main", &format!("p{}", number % 20)));
    }
    let ids = events.iter().map(|it| it.event_id.to_string()).collect();
    store.write(move |tx| events.iter().try_for_each(|it| tx.append_event(it).map(drop))).unwrap();
    store.close().unwrap();
    ids
}

/// What is pending for the webhook, asked beside the daemon.
fn pending(home: &Home) -> Value {
    let status = home.json(&["sync", "--status", "--json"]);
    status["owed"].as_array().unwrap().iter().find(|it| it["sink"] == "webhook:hr").unwrap().clone()
}

#[test]
fn repeated_kills_deliver_each_event_once() {
    let events = scaled("E2E_EVENTS", 600);
    let kills = scaled("E2E_KILLS", 4);
    let accepted = Accepted::default();
    let elsewhere = Receiver::start(|_| answer(200, ""));
    // Each fault is a pause of a second or more.
    let faults = scaled("WEBHOOK_FAULTS", 200) as u32;
    let receiver = random_receiver(&accepted, seed(), faults, elsewhere.url("/"));
    let home = home(&receiver.url("/hook"));
    let ids = recorded(&home, events);
    let mut rng = fastrand::Rng::with_seed(seed());
    let watch = Stopwatch::start();
    let mut daemon = home.start();
    for kill in 0..kills {
        let wanted = events * (kill + 1) / (kills + 1);
        let patience = Duration::from_mins(5);
        until_for(patience, "it delivers", || {
            (accepted.lock().unwrap().len() >= wanted * 9 / 10).then_some(())
        });
        // Anywhere within request, answer and commit.
        std::thread::sleep(Duration::from_micros(rng.u64(..20_000)));
        daemon.kill();
        daemon = home.start();
    }
    until_for(Duration::from_mins(10), "everything is delivered", || {
        std::thread::sleep(Duration::from_millis(200));
        (pending(&home)["rows"] == 0).then_some(())
    });
    println!(
        "{events} events, {kills} kills, {} requests in {:.1} s",
        receiver.count(),
        watch.elapsed().as_secs_f64()
    );
    assert!(daemon.terminate().success());
    let options = StoreOptions::new(
        vec![SinkName::webhook("hr")],
        Arc::new(SimulatedClock::at(START_MS)) as _,
    );
    let store = Store::open(&home.state(), options).unwrap().store;
    let dead = store.write(|tx| tx.dead_letters(10_000)).unwrap();
    let dead: Vec<_> = dead.into_iter().map(|it| (it.event_seq.unwrap(), it.reason)).collect();
    // The daemon has recorded events of its own: only what was there before is compared.
    let of_ids: Vec<_> = dead.into_iter().filter(|it| it.0 <= ids.len() as i64).collect();
    accepted.lock().unwrap().retain(|id, _| ids.contains(id));
    check_outcome(&ids, &accepted, &of_ids);
    assert_eq!(elsewhere.count(), 0);
}

#[test]
fn refusal_is_reported_in_all_places() {
    let receiver = Receiver::start(|_| answer(401, "who are you?"));
    let home = home(&receiver.url("/hook"));
    recorded(&home, 2);
    let check = home.output(&["check-config"]);
    assert!(check.status.success(), "{check:?}");
    let doctor = || {
        let output = home.output(&["doctor", "--json"]);
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        findings.iter().find(|it| it["part"] == "webhooks").unwrap().clone()
    };
    let before = doctor();
    assert_eq!(before["state"], "good", "{before}");
    assert_eq!(receiver.count(), 0, "a check records nothing");
    let daemon = home.start();
    let told = "the receiver refuses our credentials (status 401)";
    let owed = until("sync states it", || Some(pending(&home)).filter(|it| it["fault"] == told));
    assert_eq!((&owed["rows"], &owed["buried"]), (&2.into(), &0.into()));
    let address = crate::support::http::address(&home);
    let health = crate::support::http::get(address, "/api/health", &[]).json();
    assert_eq!(health["webhooks"][0]["name"], "hr");
    assert_eq!(health["webhooks"][0]["state"], "refused");
    assert_eq!(health["webhooks"][0]["reason"], told);
    let metrics = crate::support::http::get(address, "/metrics", &[]);
    let metrics = String::from_utf8(metrics.body).unwrap();
    for part in [
        "rollcall_outbox_rows{sink=\"webhook:hr\"} 2\n",
        "rollcall_deliveries_total{sink=\"webhook:hr\",outcome=\"acknowledged\"} 0\n",
    ] {
        assert!(metrics.contains(part), "{part}: {metrics}");
    }
    let finding = doctor();
    assert_eq!(finding["state"], "fault", "{finding}");
    assert!(finding["words"].as_str().unwrap().contains(told), "{finding}");
    let shown = home.output(&["sync", "--status"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains(told), "{shown:?}");
    assert!(home.log().contains("the webhook is refused until it is corrected"), "{}", home.log());
    receiver.set_script(|_| answer(200, ""));
    home.json(&["sync", "--json"]);
    until("it is delivered", || {
        let pending = pending(&home);
        (pending["rows"] == 0 && pending["fault"].is_null()).then_some(())
    });
    check_signature(
        &receiver.received()[0],
        KEY,
        SystemClock::new(Trust::Always).now().wall_ms / 1000,
    );
    assert!(daemon.terminate().success());
    assert!(!home.log().contains("$name of"), "no name in the log");
}

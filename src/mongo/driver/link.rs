//! The connection: made when first needed, each call bounded, its state told once per edge.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::options::{ClientOptions, Tls, TlsOptions};
use mongodb::{Client, Database};
use tokio::sync::Mutex;

use super::fault::{self, Fault, Verdict};
use super::settings::MongoSettings;
use crate::clock::Clock;
use crate::health::{Health, MongoState};

/// Cheap to clone; all clones share one connection.
#[derive(Clone)]
pub struct MongoLink {
    shared: Arc<Shared>,
}

struct Shared {
    settings: MongoSettings,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    /// None until somebody needs it: a device starts without a network.
    client: Mutex<Option<Client>>,
    indexes: Mutex<Indexes>,
    /// Whether the log was told that other doors' attendances cannot be looked for.
    slow_look_said: AtomicBool,
    refused_aside: AtomicBool,
    /// Whether events were refused last: then nothing but their being taken says that all is well.
    record_refused: AtomicBool,
    /// What the log was told last.
    said: std::sync::Mutex<Option<MongoState>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Indexes {
    /// Nobody asked yet, or the server was not well.
    Unknown,
    Made,
    /// For a reason that will not pass by itself.
    Missing,
}

/// Statements in one `update` command, below what the server takes (100,000, and 48 MB).
pub(super) const STATEMENTS_MAX: usize = 1_000;
/// The oldest server that is known to do all that is asked here: 4.4.
pub(super) const WIRE_VERSION_MIN: i32 = 9;

impl MongoLink {
    pub fn new(settings: MongoSettings, clock: Arc<dyn Clock>, health: Arc<Health>) -> Self {
        health.set_mongo(MongoState::Away, clock.now().wall_ms);
        let shared = Shared {
            settings,
            clock,
            health,
            client: Mutex::new(None),
            indexes: Mutex::new(Indexes::Unknown),
            slow_look_said: AtomicBool::new(false),
            refused_aside: AtomicBool::new(false),
            record_refused: AtomicBool::new(false),
            said: std::sync::Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(super) async fn database(&self) -> Result<Database, Fault> {
        let settings = &self.shared.settings;
        let mut client = self.shared.client.lock().await;
        if client.is_none() {
            *client = Some(
                bounded("the look-up of the servers", settings.timeout, connect(settings)).await?,
            );
        }
        let client = client.as_ref().expect("put there just now");
        Ok(client.database(&settings.database))
    }

    /// A command, with its time bounded on both sides.
    pub(super) async fn command(&self, what: &str, command: Document) -> Result<Document, Fault> {
        let database = self.database().await?;
        bounded(what, self.timeout(), database.run_command(command)).await
    }

    /// Update statements, each for itself; gives what failed by its place. `Err`: nothing is known of any.
    pub(super) async fn update(
        &self,
        collection: &str,
        statements: &[Document],
    ) -> Result<Vec<(usize, Fault)>, Fault> {
        let mut faults = Vec::new();
        for (round, chunk) in statements.chunks(STATEMENTS_MAX).enumerate() {
            let command = doc! {
                "update": collection,
                "updates": chunk,
                "ordered": false,
                "writeConcern": self.concern(),
                "maxTimeMS": self.server_limit_ms(),
            };
            let written =
                fault::of_reply(&self.command(&format!("writing {collection}"), command).await?);
            if let Some(concern) = written.concern {
                return Err(concern);
            }
            let first = round * STATEMENTS_MAX;
            faults.extend(written.faults.into_iter().map(|(at, fault)| (first + at, fault)));
        }
        Ok(faults)
    }

    pub(super) fn concern(&self) -> Document {
        doc! { "w": "majority", "j": true, "wtimeout": self.server_limit_ms() }
    }

    /// The server gives up a little before we do, so that what it says can still be heard.
    pub(super) fn server_limit_ms(&self) -> i64 {
        self.timeout().mul_f32(0.8).as_millis() as i64
    }

    pub(super) fn timeout(&self) -> Duration {
        self.shared.settings.timeout
    }

    /// Makes the indexes, once for each start; a server that does not make them is delivered to all the same.
    /// Gives whether the server was asked.
    pub(super) async fn ensure_indexes(&self) -> Result<bool, Fault> {
        let mut indexes = self.shared.indexes.lock().await;
        if *indexes != Indexes::Unknown {
            return Ok(false);
        }
        let index = |name: &str, key: Document| doc! { "name": name, "key": key };
        let command = doc! {
            "createIndexes": "attendance",
            "indexes": [
                index("venue_1_occurred_at_1", doc! { "venue": 1, "occurred_at": 1 }),
                index("subject.id_1_occurred_at_1", doc! { "subject.id": 1, "occurred_at": 1 }),
            ],
            "maxTimeMS": self.server_limit_ms(),
        };
        *indexes = match self.command("making the indexes", command).await {
            Ok(_) => Indexes::Made,
            // A large collection that is older than we are takes longer than one call may.
            Err(fault) if fault.passes_by_itself() && !fault.took_too_long() => return Err(fault),
            Err(fault) => {
                tracing::error!(
                    reason = fault.why,
                    "MongoDB: the indexes of `attendance` cannot be made, queries will be slow (docs/operations.md, \
                     indexes)"
                );
                Indexes::Missing
            }
        };
        Ok(true)
    }

    /// Whether a query failed since it had to go through the whole collection: it will the next time too.
    pub(super) async fn lacks_index_for(&self, fault: &Fault) -> bool {
        fault.took_too_long() && *self.shared.indexes.lock().await == Indexes::Missing
    }

    /// Said once.
    pub(super) fn note_slow_look(&self, fault: &Fault) {
        if !self.shared.slow_look_said.swap(true, Ordering::Relaxed) {
            tracing::error!(
                reason = fault.why,
                "MongoDB: without its indexes `attendance` is too large to find who passed another door too: such \
                 passages count twice (docs/operations.md, indexes)"
            );
        }
    }

    /// What became of a delivery.
    pub(super) fn note_record(&self, outcome: Result<(), &Fault>) {
        let refused = outcome.is_err_and(|fault| fault.verdict == Verdict::Refused);
        self.shared.record_refused.store(refused, Ordering::Relaxed);
        self.note(outcome);
    }

    /// The same for what is not an event: where events are taken, a refusal of it is said once and changes no state; nor
    /// does it that it is taken where events are refused.
    pub(super) fn note_aside(&self, outcome: Result<(), &Fault>) {
        let connected =
            self.shared.health.mongo().is_some_and(|(state, _)| state == MongoState::Connected);
        match outcome {
            Ok(()) if self.shared.record_refused.load(Ordering::Relaxed) => {}
            Err(fault) if connected && fault.verdict != Verdict::Retry => {
                if !self.shared.refused_aside.swap(true, Ordering::Relaxed) {
                    let reason = fault.why.as_str();
                    tracing::error!(
                        reason,
                        "MongoDB refuses what is said of this device in `devices` (docs/operations.md, roles)"
                    );
                }
            }
            other => self.note(other),
        }
    }

    /// What became of a conversation; said in the log when it differs from what was.
    fn note(&self, outcome: Result<(), &Fault>) {
        let state = match outcome {
            Ok(()) => MongoState::Connected,
            Err(fault) if fault.verdict == Verdict::Refused => MongoState::Refused,
            Err(_) => MongoState::Away,
        };
        let shared = &self.shared;
        shared.health.set_mongo(state, shared.clock.now().wall_ms);
        let before = shared.said.lock().unwrap_or_else(PoisonError::into_inner).replace(state);
        if before == Some(state) {
            return;
        }
        let place = shared.settings.place.as_str();
        match (state, outcome) {
            (MongoState::Refused, Err(fault)) => tracing::error!(
                place,
                reason = fault.why,
                "MongoDB refuses us: nothing is lost, but nothing is delivered until this is put right (`rollcall doctor` helps)"
            ),
            (_, Err(fault)) => {
                tracing::warn!(place, reason = fault.why, "MongoDB is away: events wait on disk")
            }
            _ => tracing::info!(place, "MongoDB connected"),
        }
    }
}

/// The driver has no limit for how long an answer may take.
pub(super) async fn bounded<T>(
    what: &str,
    limit: Duration,
    call: impl IntoFuture<Output = mongodb::error::Result<T>>,
) -> Result<T, Fault> {
    match tokio::time::timeout(limit, call).await {
        Ok(outcome) => outcome.map_err(|error| fault::of_error(&error)),
        Err(_) => Err(fault::timed_out(what, limit)),
    }
}

/// Looks the servers up (`mongodb+srv`) and starts the driver; does not yet talk to a server.
pub(super) async fn connect(settings: &MongoSettings) -> mongodb::error::Result<Client> {
    let mut options = ClientOptions::parse(&settings.uri).await?;
    options.app_name.get_or_insert_with(|| "rollcall".into());
    // Before our own limit, since the driver's error says which server it did not reach and why.
    let patience = settings.timeout.mul_f32(0.6);
    options.server_selection_timeout =
        Some(options.server_selection_timeout.map_or(patience, |it| it.min(patience)));
    options.connect_timeout = Some(options.connect_timeout.map_or(patience, |it| it.min(patience)));
    // A sink and a watermark, and where the gallery is there too, its sink and its keeper: so many conversations at a time.
    options.max_pool_size.get_or_insert(4);
    if let Some(ca_file) = &settings.ca_file
        && let Some(Tls::Enabled(tls)) = &mut options.tls
    {
        tls.ca_file_path = Some(ca_file.clone());
    } else if let Some(ca_file) = &settings.ca_file {
        let mut tls = TlsOptions::default();
        tls.ca_file_path = Some(ca_file.clone());
        options.tls = Some(Tls::Enabled(tls));
    }
    Client::with_options(options)
}

#[cfg(test)]
mod tests {
    use super::super::settings::{UriSource, settings_from};
    use super::*;
    use crate::clock::SimulatedClock;

    #[test]
    fn only_events_say_that_events_are_taken() {
        let from = UriSource {
            uri: "mongodb://127.0.0.1".into(),
            database: "rollcall".into(),
            ca_file: None,
            tls: false,
            timeout: Duration::from_secs(1),
            window: 1,
        };
        let health = Arc::new(Health::default());
        let link = MongoLink::new(
            settings_from(from).unwrap().unwrap(),
            Arc::new(SimulatedClock::at(0)),
            Arc::clone(&health),
        );
        let fault = |verdict| Fault { verdict, code: None, why: String::new() };
        let check = |expected| assert_eq!(health.mongo().map(|it| it.0), Some(expected));
        link.note_aside(Ok(()));
        check(MongoState::Connected);
        link.note_aside(Err(&fault(Verdict::Refused)));
        check(MongoState::Connected);
        link.note_record(Err(&fault(Verdict::Refused)));
        check(MongoState::Refused);
        link.note_aside(Ok(()));
        check(MongoState::Refused);
        link.note_record(Ok(()));
        check(MongoState::Connected);
        link.note_aside(Err(&fault(Verdict::Poison)));
        check(MongoState::Connected);
        link.note_aside(Err(&fault(Verdict::Retry)));
        check(MongoState::Away);
        link.note_aside(Ok(()));
        check(MongoState::Connected);
    }
}

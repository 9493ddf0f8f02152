//! The connection: made when first needed, with a time limit for each call. A change of its state is
//! logged once.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use mongodb::bson::{Document, doc};
use mongodb::options::{ClientOptions, Tls, TlsOptions};
use mongodb::{Client, Database};
use tokio::sync::Mutex;

use super::fault::{self, MongoFault, WriteVerdict};
use super::settings::MongoSettings;
use crate::clock::Clock;
use crate::health::{Health, MongoState};

/// Cheap to clone; all clones share one connection.
#[derive(Clone)]
pub struct MongoLink {
    shared: Arc<LinkState>,
}

struct LinkState {
    settings: MongoSettings,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    /// `None` until first needed: a device starts without a network.
    client: Mutex<Option<Client>>,
    indexes: Mutex<IndexState>,
    is_missing_index_logged: AtomicBool,
    is_status_refusal_logged: AtomicBool,
    /// Whether events were refused last: then only accepted events show that all is well.
    are_events_refused: AtomicBool,
    logged: std::sync::Mutex<Option<MongoState>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IndexState {
    /// Not requested yet, or the server was unavailable.
    Unknown,
    Present,
    /// For a reason that is not transient.
    Missing,
}

/// Statements in one `update` command, below what the server accepts (100,000, and 48 MB).
pub(super) const STATEMENTS_MAX: usize = 1_000;
/// The oldest server that supports everything used here: 4.4.
pub(super) const WIRE_VERSION_MIN: i32 = 9;

impl MongoLink {
    pub fn new(settings: MongoSettings, clock: Arc<dyn Clock>, health: Arc<Health>) -> Self {
        health.set_mongo(MongoState::Away, clock.now().wall_ms);
        let shared = LinkState {
            settings,
            clock,
            health,
            client: Mutex::new(None),
            indexes: Mutex::new(IndexState::Unknown),
            is_missing_index_logged: AtomicBool::new(false),
            is_status_refusal_logged: AtomicBool::new(false),
            are_events_refused: AtomicBool::new(false),
            logged: std::sync::Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    pub(super) async fn database(&self) -> Result<Database, MongoFault> {
        let settings = &self.shared.settings;
        let mut client = self.shared.client.lock().await;
        if client.is_none() {
            *client = Some(
                bounded("resolving the servers", settings.timeout, create_client(settings)).await?,
            );
        }
        let client = client.as_ref().expect("put there just now");
        Ok(client.database(&settings.database))
    }

    /// Runs a command, with its time bounded on both sides.
    pub(super) async fn run_command(
        &self,
        what: &str,
        command: Document,
    ) -> Result<Document, MongoFault> {
        let database = self.database().await?;
        bounded(what, self.timeout(), database.run_command(command)).await
    }

    /// Runs update statements independently of each other and returns the faults by index. `Err`:
    /// the outcome of all is unknown.
    pub(super) async fn update(
        &self,
        collection: &str,
        statements: &[Document],
    ) -> Result<Vec<(usize, MongoFault)>, MongoFault> {
        let mut faults = Vec::new();
        for (round, chunk) in statements.chunks(STATEMENTS_MAX).enumerate() {
            let command = doc! {
                "update": collection,
                "updates": chunk,
                "ordered": false,
                "writeConcern": self.write_concern(),
                "maxTimeMS": self.server_limit_ms(),
            };
            let written = fault::read_reply(
                &self.run_command(&format!("writing {collection}"), command).await?,
            );
            if let Some(concern) = written.concern {
                return Err(concern);
            }
            let first = round * STATEMENTS_MAX;
            faults.extend(written.faults.into_iter().map(|(at, fault)| (first + at, fault)));
        }
        Ok(faults)
    }

    pub(super) fn settings(&self) -> &MongoSettings {
        &self.shared.settings
    }

    pub(super) fn write_concern(&self) -> Document {
        doc! { "w": "majority", "j": true, "wtimeout": self.server_limit_ms() }
    }

    /// The server gives up a little before we do, so that its error can still be received.
    pub(super) fn server_limit_ms(&self) -> i64 {
        self.timeout().mul_f32(0.8).as_millis() as i64
    }

    pub(super) fn timeout(&self) -> Duration {
        self.shared.settings.timeout
    }

    /// Creates the indexes, once for each start; delivery goes on without them. Returns whether the
    /// server was asked.
    pub(super) async fn ensure_indexes(&self) -> Result<bool, MongoFault> {
        let mut indexes = self.shared.indexes.lock().await;
        if *indexes != IndexState::Unknown {
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
        *indexes = match self.run_command("creating the indexes", command).await {
            Ok(_) => IndexState::Present,
            // Indexing a large, older collection takes longer than one call may.
            Err(fault) if fault.is_transient() && !fault.is_time_limit() => return Err(fault),
            Err(fault) => {
                tracing::error!(
                    reason = fault.why,
                    "MongoDB: the indexes of `attendance` cannot be created, queries will be slow (docs/operations.md, \
                     indexes)"
                );
                IndexState::Missing
            }
        };
        Ok(true)
    }

    /// Returns whether a query failed because it had to scan the whole collection: it will fail
    /// again.
    pub(super) async fn lacks_index_for(&self, fault: &MongoFault) -> bool {
        fault.is_time_limit() && *self.shared.indexes.lock().await == IndexState::Missing
    }

    /// Logged once.
    pub(super) fn log_missing_index(&self, fault: &MongoFault) {
        if !self.shared.is_missing_index_logged.swap(true, Ordering::Relaxed) {
            tracing::error!(
                reason = fault.why,
                "MongoDB: without its indexes `attendance` is too large to find who passed another door too: such \
                 passages count twice (docs/operations.md, indexes)"
            );
        }
    }

    /// Records the outcome of a delivery of events.
    pub(super) fn record_events_outcome(&self, outcome: Result<(), &MongoFault>) {
        let refused = outcome.is_err_and(|fault| fault.verdict == WriteVerdict::Refused);
        self.shared.are_events_refused.store(refused, Ordering::Relaxed);
        self.update_state(outcome);
    }

    /// Records the outcome of a write of the device's status. While events are accepted, a refusal
    /// of it is logged once and changes no state; while they are refused, its success changes none.
    pub(super) fn record_status_outcome(&self, outcome: Result<(), &MongoFault>) {
        let connected =
            self.shared.health.mongo().is_some_and(|(state, _)| state == MongoState::Connected);
        match outcome {
            Ok(()) if self.shared.are_events_refused.load(Ordering::Relaxed) => {}
            Err(fault) if connected && fault.verdict != WriteVerdict::Retry => {
                if !self.shared.is_status_refusal_logged.swap(true, Ordering::Relaxed) {
                    let reason = fault.why.as_str();
                    tracing::error!(
                        reason,
                        "MongoDB refuses the status of this device in `devices` (docs/operations.md, roles)"
                    );
                }
            }
            other => self.update_state(other),
        }
    }

    /// Sets the state in the health message and logs it when it changed.
    fn update_state(&self, outcome: Result<(), &MongoFault>) {
        let state = match outcome {
            Ok(()) => MongoState::Connected,
            Err(fault) if fault.verdict == WriteVerdict::Refused => MongoState::Refused,
            Err(_) => MongoState::Away,
        };
        let shared = &self.shared;
        shared.health.set_mongo(state, shared.clock.now().wall_ms);
        let before = shared.logged.lock().unwrap_or_else(PoisonError::into_inner).replace(state);
        if before == Some(state) {
            return;
        }
        let hosts = shared.settings.hosts.as_str();
        match (state, outcome) {
            (MongoState::Refused, Err(fault)) => tracing::error!(
                hosts,
                reason = fault.why,
                "MongoDB refuses access: nothing is lost, but nothing is delivered until this is corrected (run `rollcall doctor`)"
            ),
            (_, Err(fault)) => {
                tracing::warn!(
                    hosts,
                    reason = fault.why,
                    "MongoDB is not reachable: events stay pending on disk"
                );
            }
            _ => tracing::info!(hosts, "MongoDB connected"),
        }
    }
}

/// Limits the time of a call: the driver has no limit for a reply.
pub(super) async fn bounded<T>(
    what: &str,
    limit: Duration,
    call: impl IntoFuture<Output = mongodb::error::Result<T>>,
) -> Result<T, MongoFault> {
    match tokio::time::timeout(limit, call).await {
        Ok(outcome) => outcome.map_err(|error| fault::driver_fault(&error)),
        Err(_) => Err(fault::timed_out(what, limit)),
    }
}

/// Resolves the servers (`mongodb+srv`) and starts the driver, without contacting a server yet.
pub(super) async fn create_client(settings: &MongoSettings) -> mongodb::error::Result<Client> {
    let mut options = ClientOptions::parse(&settings.uri).await?;
    options.app_name.get_or_insert_with(|| "rollcall".into());
    // Below our own limit, because the driver's error names the server and the reason.
    let limit = settings.timeout.mul_f32(0.6);
    options.server_selection_timeout =
        Some(options.server_selection_timeout.map_or(limit, |it| it.min(limit)));
    options.connect_timeout = Some(options.connect_timeout.map_or(limit, |it| it.min(limit)));
    // Event sink, watermark, gallery sink and gallery scan may each have a call at a time.
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
    use super::super::settings::settings_from;
    use super::*;
    use crate::clock::SimulatedClock;
    use crate::mongo::types::UriSource;

    #[test]
    fn only_events_show_that_events_are_accepted() {
        let from = UriSource {
            uri: "mongodb://127.0.0.1".into(),
            database: "rollcall".into(),
            venues_collection: "venues".into(),
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
        let fault = |verdict| MongoFault { verdict, code: None, why: String::new() };
        let check = |expected| assert_eq!(health.mongo().map(|it| it.0), Some(expected));
        link.record_status_outcome(Ok(()));
        check(MongoState::Connected);
        link.record_status_outcome(Err(&fault(WriteVerdict::Refused)));
        check(MongoState::Connected);
        link.record_events_outcome(Err(&fault(WriteVerdict::Refused)));
        check(MongoState::Refused);
        link.record_status_outcome(Ok(()));
        check(MongoState::Refused);
        link.record_events_outcome(Ok(()));
        check(MongoState::Connected);
        link.record_status_outcome(Err(&fault(WriteVerdict::Poison)));
        check(MongoState::Connected);
        link.record_status_outcome(Err(&fault(WriteVerdict::Retry)));
        check(MongoState::Away);
        link.record_status_outcome(Ok(()));
        check(MongoState::Connected);
    }
}

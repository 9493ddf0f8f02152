//! The process of the embedded broker: started before everything else, and restarted when it ends.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::app::exit::config;
use crate::app::shutdown::DRAIN_CHECK_INTERVAL;
use crate::app::supervise::Stages;
use crate::broker::process::BrokerProcess;
use crate::broker::{BrokerError, BrokerSettings};
use crate::clock::Stopwatch;
use crate::config::Settings;
use crate::error_chain::error_chain;

/// How long to wait for a port that another process still holds.
const PORT_WAIT_MAX: Duration = Duration::from_secs(3);

pub(super) fn broker_settings(settings: &Settings) -> Option<BrokerSettings> {
    let broker = settings.broker.as_ref()?;
    let payload_bytes_max = settings.commands.payload_bytes_max + (64 << 10);
    let mut settings = BrokerSettings::new(broker.listen, payload_bytes_max);
    settings.websocket = broker.websocket;
    Some(settings)
}

/// Starts the broker. That of a daemon killed a moment ago may still hold the port, so this retries
/// for a while.
pub(super) fn start_broker(settings: &Settings) -> anyhow::Result<Option<BrokerProcess>> {
    let Some(broker) = broker_settings(settings) else {
        return Ok(None);
    };
    let watch = Stopwatch::start();
    let process = loop {
        match spawn_broker(&broker) {
            Err(BrokerError::Listen { .. }) if watch.elapsed() < PORT_WAIT_MAX => {
                std::thread::sleep(DRAIN_CHECK_INTERVAL);
            }
            other => break other.map_err(config)?,
        }
    };
    tracing::info!(address = %broker.tcp, websocket = ?broker.websocket, "embedded broker listening");
    Ok(Some(process))
}

fn spawn_broker(broker: &BrokerSettings) -> Result<BrokerProcess, BrokerError> {
    let program = std::env::current_exe().map_err(BrokerError::Start)?;
    BrokerProcess::start(&program, &["broker-child"], broker)
}

/// Restarts the broker when it ends. It is dropped, and so stopped, after all its clients have
/// disconnected.
pub(super) fn watch_broker(
    stages: &mut Stages,
    broker: &Arc<Mutex<BrokerProcess>>,
    settings: Option<BrokerSettings>,
) {
    let Some(settings) = settings else {
        return;
    };
    let mut stop = stages.stop_signal();
    let broker = Arc::clone(broker);
    stages.task("broker", async move {
        loop {
            let ended = broker.lock().unwrap_or_else(PoisonError::into_inner).ended();
            if let Some(status) = ended {
                // It held nothing durable, and its clients reconnect.
                tracing::error!(%status, "the embedded broker ended; starting another");
                let started = spawn_broker(&settings);
                match started {
                    Ok(process) => *broker.lock().unwrap_or_else(PoisonError::into_inner) = process,
                    Err(error) => {
                        tracing::error!(
                            error = error_chain(&error),
                            "the embedded broker does not start"
                        );
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    });
}

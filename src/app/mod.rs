//! The application: opens store, models and gallery, runs the stages, and stops them.
//!
//! Stages stop in the order of the flow (camera, inference, commands, deliveries, link, store), so
//! that no frame in progress is lost. A crash at any point loses nothing that was recorded.

pub mod broker;
pub mod commands;
pub mod context;
pub mod daemon;
pub mod delivery;
pub mod exit;
pub mod fleet;
pub mod http;
pub mod links;
pub mod maintenance;
pub mod monitor;
pub mod open;
pub mod pipeline;
pub mod preview_socket;
pub mod shutdown;
pub mod state;
pub mod supervise;

use std::sync::Arc;

use anyhow::Context as _;

use crate::app::commands::in_process;
use crate::app::context::{Context, Loaded};
use crate::app::daemon::{Daemon, RunOptions};
use crate::app::exit::{Failure, STORAGE_UNUSABLE, storage, unusable_key};
use crate::app::open::{load_gallery, load_vision, open_store};
use crate::app::state::venues::VenueRegistry;
use crate::clock::{Clock, Stopwatch, SystemClock};
use crate::config::Settings;
use crate::keys::signer::SigningKey;
use crate::store::{Store, StoreError};
use crate::vision::Vision;
use crate::wire::command::Command;

/// Loads what every stage needs.
fn load_context(
    settings: Settings,
    clock: Arc<dyn Clock>,
    store: &Store,
) -> anyhow::Result<(Context, Vision)> {
    let watch = Stopwatch::start();
    let device_key = SigningKey::of_device(&settings.state_dir).map_err(unusable_key)?;
    let vision = load_vision(&settings)?;
    let gallery = load_gallery(store, &vision)?;
    let stored = store.write(|tx| tx.venues()).map_err(storage)?;
    let venues = VenueRegistry::new(settings.venues.clone(), settings.door.clone(), &stored);
    tracing::info!(
        subjects = gallery.subjects(),
        references = gallery.references(),
        elapsed_ms = watch.elapsed().as_millis() as u64,
        "models and gallery loaded"
    );
    let loaded = Loaded { gallery, venues, device_key };
    let ctx =
        Context::new(settings, clock, store.clone(), &vision, loaded).map_err(exit::config)?;
    Ok((ctx, vision))
}

/// Executes a command in this process, where no daemon has the store open.
pub fn execute_here(
    settings: Settings,
    clock: Arc<dyn Clock>,
    store: &Store,
    command: Command,
) -> anyhow::Result<String> {
    let (ctx, vision) = load_context(settings, clock, store)?;
    Ok(in_process::execute(ctx, vision, command)?.json)
}

/// Runs the daemon from start to stop.
pub fn run(settings: Settings, options: RunOptions) -> anyhow::Result<()> {
    let watch = Stopwatch::start();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    let store = open_store(&settings, &clock)?;
    let (ctx, vision) = load_context(settings, clock, &store)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("net")
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let serve = Daemon::serve(ctx, vision, options, watch);
    let outcome = runtime.block_on(serve).map_err(|error| {
        // An unusable store has its own exit code, whichever stage found it.
        let of_storage = error.chain().any(|it| it.downcast_ref::<StoreError>().is_some());
        if of_storage {
            Failure { code: exit::STORAGE, what: STORAGE_UNUSABLE, source: error }.into()
        } else {
            error
        }
    });
    let closed = store.stop();
    outcome.and(closed.map_err(storage))
}

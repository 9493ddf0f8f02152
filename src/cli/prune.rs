//! `rollcall prune`: deletes old events that no sink is waiting for, or counts them.

use std::sync::Arc;

use anyhow::{Context, bail};

use crate::app::delivery::checkpoint;
use crate::app::exit;
use crate::app::open;
use crate::clock::{Clock, SystemClock, rfc3339};
use crate::config::Settings;
use crate::ids::Origin;
use crate::keys::signer::{DEVICE_KEY_FILE, SigningKey};
use crate::store::{Store, StoreError};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall prune --days 90 --dry-run")]
pub struct Args {
    /// Keep this many days [default: [storage] keep_days]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: Option<u32>,
    /// Report what would be deleted, and delete nothing; works beside a running daemon
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let days = args.days.or(settings.keep_days);
    let days = days
        .context("how many days are kept? Set --days N, or [storage] keep_days in config.toml")?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    let now = clock.now();
    let reader = open::open_reader(settings)?;
    let prunable = reader.prunable(now.wall_ms, days)?;
    drop(reader);
    if !now.trusted && !args.dry_run {
        bail!(
            "the clock is not synchronised and may be wrong, so nothing is deleted (see [clock] trust)"
        );
    }
    let deleted = if args.dry_run { 0 } else { delete(settings, &clock, days)? };
    if args.json {
        let period = |ms: Option<i64>| ms.map(rfc3339);
        let report = serde_json::json!({
            "days": days, "dry_run": args.dry_run, "old": prunable.events, "deleted": deleted,
            "from": period(prunable.from_ms), "to": period(prunable.to_ms),
            "kept_as_owed": prunable.pending, "kept_as_newer": prunable.newer,
        });
        println!("{report}");
        return Ok(());
    }
    let period = prunable.from_ms.zip(prunable.to_ms);
    let period = period
        .map_or_else(String::new, |(from, to)| format!(" ({} to {})", rfc3339(from), rfc3339(to)));
    if args.dry_run {
        println!(
            "{} events are older than {days} days and delivered{period}: they would be deleted",
            prunable.events
        );
    } else {
        println!("{deleted} events deleted{period}");
    }
    println!(
        "{} as old are kept, because they are still pending or their delivery failed",
        prunable.pending
    );
    println!("{} newer events are kept", prunable.newer);
    Ok(())
}

fn delete(settings: &Settings, clock: &Arc<dyn Clock>, days: u32) -> anyhow::Result<usize> {
    let store = match Store::open(&settings.state_dir, open::store_options(settings, clock)) {
        Ok(opened) => opened.store,
        Err(error @ StoreError::Locked { .. }) => {
            let why = "the daemon is running: set [storage] keep_days, with which it deletes old events every hour, or stop \
                       it first; --dry-run works beside it";
            return Err(exit::storage(error).context(why));
        }
        Err(error) => return Err(exit::storage(error)),
    };
    let mut deleted = 0;
    loop {
        match store.write(move |tx| tx.retention(days))? {
            0 => break,
            more => deleted += more,
        }
    }
    // Only the daemon makes a key.
    if let Ok(key) = SigningKey::load(&settings.state_dir.join(DEVICE_KEY_FILE)) {
        let origin = Origin { site: settings.site.clone(), device: settings.device.clone() };
        let now = clock.now();
        store.write(move |tx| checkpoint::sign(tx, &key, &origin, &now))?;
    }
    store.close()?;
    Ok(deleted)
}

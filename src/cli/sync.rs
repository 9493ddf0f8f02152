//! `rollcall sync`: what is owed to whom, and deliver it now.
//!
//! The daemon that runs is asked over MQTT; its database is only read, or, where no daemon runs, opened.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::app;
use crate::app::commander::carry_out::{BURIED_TOLD, synced};
use crate::cli::console::with_console;
use crate::clock::{Clock, SystemClock, rfc3339};
use crate::config::Settings;
use crate::record::store::{Store, StoreError};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only tell what is owed to whom since when, and up to when everything is delivered; asks no daemon
    #[arg(long, conflicts_with = "retry_buried")]
    status: bool,
    /// Try again what was set aside as undeliverable, once its reason is put right
    #[arg(long)]
    retry_buried: bool,
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// How long the daemon's answer is waited for.
const PATIENCE: Duration = Duration::from_secs(15);

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let told = if args.status { status(settings)? } else { now(args, settings)? };
    if args.json {
        println!("{told}");
    } else {
        print(&told);
    }
    Ok(())
}

fn status(settings: &Settings) -> anyhow::Result<Value> {
    let reader = app::open_reader(settings)?;
    let clock = SystemClock::new(settings.trust);
    let standing = reader.standing(&app::serve::sinks(settings), &clock.now())?;
    let mut told = serde_json::to_value(synced(&standing, &reader.buried(BURIED_TOLD)?, 0))?;
    let gap = |gap: &crate::record::store::Unwatched| json!({"from": rfc3339(gap.from_ms), "to": rfc3339(gap.to_ms), "reason": gap.reason()});
    told["gaps"] = standing.gaps.iter().map(gap).collect();
    Ok(told)
}

fn now(args: &Args, settings: &Settings) -> anyhow::Result<Value> {
    // Whoever holds the lock delivers; nobody does when there is none.
    if args.retry_buried
        && let Some(told) = retry_without_daemon(settings)?
    {
        return Ok(told);
    }
    let body = json!({"retry_buried": args.retry_buried});
    let answer = with_console(settings, &["reply/+"], async |console| {
        console.request("sync", body, PATIENCE).await
    })
    .context("is the daemon running? `rollcall sync --status` asks the database alone")?;
    ensure!(answer["ok"] == true, "the daemon refuses: {}", answer["error"]["message"]);
    Ok(answer)
}

/// None: a daemon has the store.
fn retry_without_daemon(settings: &Settings) -> anyhow::Result<Option<Value>> {
    app::open_reader(settings)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
    let store = match Store::open(&settings.state_dir, app::store_options(settings, &clock)) {
        Ok(opened) => opened.store,
        Err(StoreError::Locked { .. }) => return Ok(None),
        Err(error) => return Err(app::storage(error)),
    };
    let retry = store.write(|tx| {
        let retried = tx.retry_buried()? as u64;
        Ok((tx.standing()?, tx.buried(BURIED_TOLD)?, retried))
    });
    let (standing, buried, retried) = retry?;
    store.close()?;
    Ok(Some(serde_json::to_value(synced(&standing, &buried, retried))?))
}

fn print(told: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), str::to_owned);
    let list = |key: &str| told[key].as_array().cloned().unwrap_or_default();
    if list("owed").is_empty() {
        println!("nothing is configured to deliver to: see [mqtt] and [mongo] in config.toml");
    }
    for owed in list("owed") {
        let (sink, rows, buried) = (text(&owed["sink"]), &owed["rows"], &owed["buried"]);
        println!("{sink:6} owed {rows} since {}, set aside {buried}", text(&owed["oldest_at"]));
    }
    for buried in list("buried") {
        println!(
            "set aside: {} event {}: {}",
            text(&buried["sink"]),
            buried["seq"],
            text(&buried["reason"])
        );
    }
    match told["complete_through"].as_str() {
        Some(moment) => println!("everything seen up to {moment} is delivered"),
        None => println!(
            "up to when everything is delivered cannot be said (is the clock right, has it watched yet?)"
        ),
    }
    for gap in list("gaps") {
        println!(
            "not watching from {} to {} ({})",
            text(&gap["from"]),
            text(&gap["to"]),
            text(&gap["reason"])
        );
    }
    if told["retried"].as_u64().is_some_and(|it| it > 0) {
        println!("{} put back among what is owed", told["retried"]);
    }
}

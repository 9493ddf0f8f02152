//! `rollcall sync`: retries delivery at once, or shows what is pending.
//!
//! The process that has the store open delivers. Where no daemon runs, only what is to be retried is
//! marked in the database.

use serde_json::{Value, json};

use crate::app::commands::sync::{DEAD_LETTERS_LISTED, synced};
use crate::app::open;
use crate::cli::{command, watch};
use crate::clock::{Clock as _, SystemClock, rfc3339};
use crate::config::Settings;
use crate::store::SinkName;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall sync --status")]
pub struct Args {
    /// Only show what is pending since when, and up to when everything is delivered; needs no
    /// running daemon
    #[arg(long, conflicts_with = "retry_buried")]
    status: bool,
    /// Retry the messages whose delivery failed (dead letters), once the cause is fixed
    #[arg(long)]
    retry_buried: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let report = if args.status { read_status(settings)? } else { deliver_now(args, settings)? };
    if args.json {
        println!("{report}");
    } else {
        print_report(&report);
    }
    Ok(())
}

pub fn read_status(settings: &Settings) -> anyhow::Result<Value> {
    let reader = open::open_reader(settings)?;
    let clock = SystemClock::new(settings.trust);
    let delivery = reader.delivery_status_of(&open::sinks(settings), &clock.now())?;
    // What the other side does with our messages only the daemon knows.
    let health = watch::request_health(settings).unwrap_or_default();
    let fault = |sink: &str| fault_of(&health, sink).map(str::to_owned);
    let dead_letters = reader.dead_letters(DEAD_LETTERS_LISTED)?;
    let mut report = serde_json::to_value(synced(&delivery, &dead_letters, 0, fault))?;
    let gap = |gap: &crate::store::Unwatched| json!({"from": rfc3339(gap.from_ms), "to": rfc3339(gap.to_ms), "reason": gap.reason()});
    report["gaps"] = delivery.gaps.iter().map(gap).collect();
    Ok(report)
}

/// Returns what is wrong with a sink by the health message.
fn fault_of<'a>(health: &'a Value, sink: &str) -> Option<&'a str> {
    if sink == SinkName::MQTT.as_str() {
        return health.pointer("/mqtt/reason")?.as_str();
    }
    let name = sink.strip_prefix("webhook:")?;
    let webhooks = health.get("webhooks")?.as_array()?;
    webhooks.iter().find(|it| it["name"] == name)?["reason"].as_str()
}

fn deliver_now(args: &Args, settings: &Settings) -> anyhow::Result<Value> {
    command::execute(settings, "sync", json!({"retry_buried": args.retry_buried}))
}

pub fn print_report(report: &Value) {
    let text = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), str::to_owned);
    let list = |key: &str| report[key].as_array().cloned().unwrap_or_default();
    if list("owed").is_empty() {
        println!(
            "no destination is configured: see [mqtt], [mongo] and [[webhook]] in config.toml"
        );
    }
    for entry in list("owed") {
        let sink = text(&entry["sink"]);
        let rows = &entry["rows"];
        let buried = &entry["buried"];
        println!("{sink:6} pending {rows} since {}, failed {buried}", text(&entry["oldest_at"]));
        if let Some(fault) = entry["fault"].as_str() {
            println!("{sink:6} {fault}");
        }
    }
    for buried in list("buried") {
        println!(
            "failed: {} event {}: {}",
            text(&buried["sink"]),
            buried["seq"],
            text(&buried["reason"])
        );
    }
    match report["complete_through"].as_str() {
        Some(moment) => println!("everything recorded up to {moment} is delivered"),
        None => println!(
            "it is not known up to when everything is delivered (is the clock synchronised, has the camera \
             been watching?)"
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
    if report["retried"].as_u64().is_some_and(|it| it > 0) {
        println!("{} messages are pending again", report["retried"]);
    }
}

//! `rollcall status`: how the device is, in a few lines.

use serde_json::{Value, json};

use crate::app::open;
use crate::cli::sync;
use crate::cli::watch;
use crate::config::Settings;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall status")]
pub struct Args {
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let health = watch::request_health(settings);
    let reader = open::open_reader(settings);
    let delivery = if reader.is_ok() { sync::read_status(settings)? } else { Value::Null };
    if args.json {
        println!(
            "{}",
            json!({"running": health.is_some(), "health": health, "delivery": delivery})
        );
        return Ok(());
    }
    let Some(health) = health else {
        println!("no daemon runs here: `sudo systemctl start rollcall`, or `rollcall run`");
        if !delivery.is_null() {
            sync::print_report(&delivery);
        }
        return Ok(());
    };
    let text = |pointer: &str| {
        let value = health.pointer(pointer).cloned().unwrap_or_default();
        value.as_str().map_or_else(|| value.to_string(), str::to_owned)
    };
    println!("running since {} s; camera {}", text("/uptime_s"), text("/camera/state"));
    println!("{} people, {} face samples", text("/gallery/subjects"), text("/gallery/references"));
    println!("{} visits recorded since the start", text("/recorded"));
    sync::print_report(&delivery);
    Ok(())
}

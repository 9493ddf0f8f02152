//! `rollcall venue`: puts and deletes venues, as the commands `venue_put` and `venue_delete` do.

use std::time::Duration;

use serde_json::{Value, json};

use crate::cli::command;
use crate::config::Settings;

#[derive(Debug, clap::Subcommand)]
pub enum VenueCommand {
    /// Add a venue, or replace it as a whole
    Put(PutArgs),
    /// Delete a venue; what was recorded there stays
    Delete(DeleteArgs),
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  rollcall venue put room-a --time-zone Europe/Berlin \\\n    --session 'am mon,tue,wed,thu,fri 08:00-12:00 10m'"
)]
pub struct PutArgs {
    /// The venue's id: 1 to 64 of A-Z a-z 0-9 . _ -
    id: String,
    /// [default: the id]
    #[arg(long)]
    name: Option<String>,
    /// A name of the IANA time zone database [default: UTC]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<String>,
    /// in, out or alternate
    #[arg(long)]
    direction: Option<String>,
    /// How long nobody is recorded again outside sessions
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    re_entry_gap: Option<Duration>,
    /// A session, as often as there are some: 'ID DAYS START-END [LATE_AFTER]'
    #[arg(long = "session", value_name = "SESSION", value_parser = parse_session)]
    sessions: Vec<Value>,
    /// Print the reply as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall venue delete room-a")]
pub struct DeleteArgs {
    id: String,
    /// Print the reply as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(command: &VenueCommand, settings: &Settings) -> anyhow::Result<()> {
    match command {
        VenueCommand::Put(args) => put(args, settings),
        VenueCommand::Delete(args) => {
            let reply = command::execute(settings, "venue_delete", json!({"venue": args.id}))?;
            if args.json {
                println!("{reply}");
            } else {
                println!("{} is deleted; what was recorded there stays", args.id);
            }
            Ok(())
        }
    }
}

fn put(args: &PutArgs, settings: &Settings) -> anyhow::Result<()> {
    let mut body = json!({"venue": args.id, "sessions": args.sessions});
    let gap = args.re_entry_gap.map(|it| Value::from(it.as_millis() as u64));
    for (key, value) in [
        ("name", args.name.clone().map(Value::from)),
        ("time_zone", args.time_zone.clone().map(Value::from)),
        ("direction", args.direction.clone().map(Value::from)),
        ("re_entry_gap_ms", gap),
    ] {
        if let Some(value) = value {
            body[key] = value;
        }
    }
    let reply = command::execute(settings, "venue_put", body)?;
    if args.json {
        println!("{reply}");
        return Ok(());
    }
    let done = if reply["replaced"] == true { "replaced" } else { "added" };
    println!("{} is {done}", args.id);
    if let Some(next) = reply["next_session"]["starts_at"].as_str() {
        println!("its next session begins at {next}");
    }
    Ok(())
}

fn parse_time(text: &str) -> Result<Duration, String> {
    humantime_serde::re::humantime::parse_duration(text)
        .map_err(|_| "is no time like 5m or 1h".to_owned())
}

/// `am mon,tue 08:00-12:00 10m`: days are weekdays or dates, and without a last word nobody is late.
fn parse_session(text: &str) -> Result<Value, String> {
    let form = || "is not 'ID DAYS START-END [LATE_AFTER]', like 'am mon,tue 08:00-12:00 10m'";
    let words: Vec<&str> = text.split_whitespace().collect();
    let ([id, days, times] | [id, days, times, _]) = words[..] else {
        return Err(form().to_owned());
    };
    let (start, end) = times.split_once('-').ok_or_else(form)?;
    let days: Vec<&str> = days.split(',').collect();
    let kind = if days[0].contains('-') { "dates" } else { "weekdays" };
    let mut session = json!({"id": id, kind: days, "start": start, "end": end});
    if let Some(late) = words.get(3) {
        session["late_after_ms"] = (parse_time(late)?.as_millis() as u64).into();
    }
    Ok(session)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_text_becomes_session_fields() {
        let expected = json!({"id": "am", "weekdays": ["mon", "tue"], "start": "08:00",
            "end": "12:00", "late_after_ms": 600_000});
        assert_eq!(parse_session("am mon,tue 08:00-12:00 10m").unwrap(), expected);
        let dated = json!({"id": "x", "dates": ["2026-11-23"], "start": "08:00", "end": "09:00"});
        assert_eq!(parse_session("x 2026-11-23 08:00-09:00").unwrap(), dated);
        for wrong in ["am", "am mon 08:00", "am mon 08:00-12:00 soon", "a b c-d 1m more"] {
            assert!(parse_session(wrong).is_err(), "{wrong}");
        }
    }
}

//! `rollcall attendance`: what the device itself has recorded; needs neither daemon nor broker.

use crate::app;
use crate::cli::table;
use crate::config::Settings;
use crate::record::command::answer::AttendanceEntry;
use crate::record::store::AttendanceQuery;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only this venue
    #[arg(long)]
    venue: Option<String>,
    /// From this moment on: a date (2026-11-23) or RFC 3339 time; a date is the day's beginning in UTC
    #[arg(long, value_parser = moment)]
    from: Option<i64>,
    /// Up to this moment, not included
    #[arg(long, value_parser = moment)]
    to: Option<i64>,
    /// One JSON array
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Comma-separated values with a heading
    #[arg(long)]
    csv: bool,
}

/// Rows fetched at a time.
const PAGE: u32 = 1000;

fn moment(text: &str) -> Result<i64, String> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(at.as_millisecond());
    }
    let date: jiff::civil::Date = text.parse().map_err(|_| "neither a date nor an RFC 3339 time".to_owned())?;
    let start = date.to_zoned(jiff::tz::TimeZone::UTC).map_err(|e| e.to_string())?;
    Ok(start.timestamp().as_millisecond())
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let reader = app::open_reader(settings)?;
    let mut entries = Vec::new();
    let mut after_seq = 0;
    loop {
        let page = reader.attendance(&AttendanceQuery {
            venue: args.venue.clone(),
            from_ms: args.from.unwrap_or(0),
            to_ms: args.to.unwrap_or(i64::MAX),
            after_seq,
            limit: PAGE,
        })?;
        let Some(last) = page.last() else { break };
        after_seq = last.seq;
        entries.extend(page.iter().filter_map(|event| {
            let venue = event.body.venue().unwrap_or_default().to_owned();
            Some((venue, AttendanceEntry::of(event)?))
        }));
    }
    print(args, &entries)
}

fn print(args: &Args, entries: &[(String, AttendanceEntry)]) -> anyhow::Result<()> {
    if args.json {
        let with_venue = |(venue, entry): &(String, AttendanceEntry)| {
            let mut value = serde_json::to_value(entry)?;
            value["venue"] = venue.as_str().into();
            Ok(value)
        };
        let list = entries.iter().map(with_venue).collect::<anyhow::Result<Vec<_>>>()?;
        println!("{}", serde_json::Value::from(list));
        return Ok(());
    }
    let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
    if args.csv {
        println!("{}", HEADING.join(","));
        for row in rows {
            println!("{}", row.iter().map(|field| table::csv_field(field)).collect::<Vec<_>>().join(","));
        }
    } else if rows.is_empty() {
        println!("nothing recorded yet");
    } else {
        print!("{}", table::render(&HEADING, &rows));
    }
    Ok(())
}

const HEADING: [&str; 8] = ["seq", "occurred_at", "clock", "venue", "direction", "status", "subject", "name"];

fn row((venue, entry): &(String, AttendanceEntry)) -> Vec<String> {
    let (id, name) =
        entry.subject.as_ref().map_or(("(erased)", ""), |subject| (subject.id.as_str(), subject.name.as_str()));
    vec![
        entry.seq.to_string(),
        entry.occurred_at.clone(),
        entry.clock.as_str().into(),
        venue.clone(),
        entry.direction.as_str().into(),
        entry.status.as_str().into(),
        id.into(),
        name.into(),
    ]
}

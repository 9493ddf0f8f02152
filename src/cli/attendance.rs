//! `rollcall attendance` and `rollcall venues`: what the device itself has recorded, and where it records; neither daemon
//! nor broker are needed.

use jiff::civil::Date;

use crate::app::report::Absent;
use crate::app::venues::VenueBook;
use crate::app::{self, csv, report};
use crate::attend::venue::Venue;
use crate::cli::table;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::record::command::answer::{
    AttendanceEntry, NotKnown, SummaryRow, SummaryStatus, VenueEntry,
};
use crate::record::store::{AttendanceQuery, Reader};

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "they are the flags of a command line")]
pub struct Args {
    /// Only this venue [default: all; with --summary, the one of this device's camera]
    #[arg(long)]
    venue: Option<String>,
    /// From here on: a date (2026-11-23), which is the day's beginning at the venue, or an RFC 3339 time
    #[arg(long, value_parser = moment)]
    from: Option<Moment>,
    /// Up to here, not included [with --summary: at most 366 days]
    #[arg(long, value_parser = moment)]
    to: Option<Moment>,
    /// Per person and session (or day): first in, last out, present or late [default period: today]
    #[arg(long)]
    summary: bool,
    /// With the enrolled who were not seen at this door, for sessions during all of which it was watching
    #[arg(long, requires = "summary")]
    absent: bool,
    /// Records too in whose stead an earlier one counts
    #[arg(long, conflicts_with = "summary")]
    all: bool,
    /// One JSON array; with --summary, one object
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Comma-separated values with a heading
    #[arg(long)]
    csv: bool,
}

/// A date has no moment without a place.
#[derive(Clone, Copy, Debug)]
enum Moment {
    At(i64),
    Begin(Date),
}

impl Moment {
    fn at(self, venue: &Venue) -> i64 {
        match self {
            Self::At(wall_ms) => wall_ms,
            Self::Begin(date) => venue.begin_of(date).unwrap_or(0),
        }
    }
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(Moment::At(at.as_millisecond()));
    }
    let date = text
        .parse()
        .map_err(|_| "neither a date nor an RFC 3339 time with an offset".to_owned())?;
    Ok(Moment::Begin(date))
}

const SUMMARY_DAYS_MAX: i64 = 366;

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let reader = app::open_reader(settings)?;
    let book = VenueBook::new(settings.venues.clone(), settings.door.clone(), &reader.venues()?);
    // Of a venue that was deleted the record is still there.
    let venue = match &args.venue {
        Some(id) => book.find(id).unwrap_or_else(|| Venue::plain(id)),
        None => book.door(),
    };
    if args.summary {
        summary(args, settings, &reader, &venue)
    } else {
        list(args, &reader, &book, &venue)
    }
}

fn list(args: &Args, reader: &Reader, book: &VenueBook, venue: &Venue) -> anyhow::Result<()> {
    let query = AttendanceQuery {
        venue: args.venue.clone(),
        from_ms: args.from.map_or(i64::MIN, |it| it.at(venue)),
        to_ms: args.to.map_or(i64::MAX, |it| it.at(venue)),
        after_seq: 0,
        limit: 0,
        all: args.all,
    };
    let mut entries = Vec::new();
    reader.attendance_by_time(&query, |event| {
        let of = event.body.venue().unwrap_or_default().to_owned();
        let local =
            csv::local(&book.find(&of).unwrap_or_else(|| Venue::plain(&of)), event.occurred_ms);
        entries.extend(AttendanceEntry::of(&event).map(|entry| (of, local, entry)));
    })?;
    // As they were recorded: the order that `seq` tells.
    entries.sort_by_key(|it| it.2.seq);
    if args.json {
        let with_venue = |(venue, local, entry): &(String, String, AttendanceEntry)| {
            let mut value = serde_json::to_value(entry)?;
            value["venue"] = venue.as_str().into();
            value["local_time"] = local.as_str().into();
            Ok(value)
        };
        let list = entries.iter().map(with_venue).collect::<anyhow::Result<Vec<_>>>()?;
        return put(&format!("{}\n", serde_json::Value::from(list)));
    }
    if args.csv {
        let rows: Vec<Vec<String>> = entries
            .iter()
            .map(|(venue, local, entry)| csv::attendance(venue, local, entry))
            .collect();
        put(&csv::table(&csv::ATTENDANCE, &rows))?;
    } else if entries.is_empty() {
        println!("nothing recorded yet");
    } else {
        let rows: Vec<Vec<String>> =
            entries.iter().map(|(venue, local, entry)| table_row(venue, local, entry)).collect();
        put(&table::render(&TABLE_HEADING, &rows))?;
    }
    Ok(())
}

const TABLE_HEADING: [&str; 9] =
    ["seq", "local_time", "clock", "venue", "session", "direction", "status", "subject", "name"];

fn table_row(venue: &str, local: &str, entry: &AttendanceEntry) -> Vec<String> {
    let (id, name) = csv::whose(entry);
    let status = if entry.superseded_by.is_some() { "superseded" } else { entry.status.as_str() };
    vec![
        entry.seq.to_string(),
        local.into(),
        entry.clock.as_str().into(),
        venue.into(),
        entry.session.clone().unwrap_or_else(|| "-".into()),
        entry.direction.as_str().into(),
        status.into(),
        id,
        name,
    ]
}

/// A reader that has seen enough (`head`) is no mistake.
fn put(text: &str) -> anyhow::Result<()> {
    use std::io::Write as _;
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}

fn summary(args: &Args, settings: &Settings, reader: &Reader, venue: &Venue) -> anyhow::Result<()> {
    let now = SystemClock::new(settings.trust).now();
    let (today_ms, tomorrow_ms) = report::day_of(venue, now.wall_ms);
    let to_ms = args.to.map_or(tomorrow_ms, |it| it.at(venue));
    let from_ms = args.from.map_or(today_ms.min(to_ms), |it| it.at(venue));
    anyhow::ensure!(from_ms <= to_ms, "--to is before --from");
    anyhow::ensure!(
        to_ms.saturating_sub(from_ms) <= SUMMARY_DAYS_MAX * 86_400_000,
        "more than {SUMMARY_DAYS_MAX} days: name --from and --to"
    );
    let absent = Absent::new(args.absent, settings.door.watches(&venue.id));
    let report = report::of(reader, venue, from_ms, to_ms, absent)?;
    if args.json {
        return put(&format!(
            "{}\n",
            serde_json::to_string(&report.page(0, u32::MAX, args.absent))?
        ));
    }
    let rows: Vec<Vec<String>> = report.rows.iter().map(|row| summary_row(venue, row)).collect();
    if args.csv {
        put(&csv::table(&SUMMARY_HEADING, &rows))?;
        // Not among the rows, where somebody would count them.
        report.not_known.iter().for_each(|it| eprintln!("{}", not_known(venue, it)));
        return Ok(());
    }
    let table = if rows.is_empty() {
        "nothing recorded in this period\n".to_owned()
    } else {
        table::render(&SUMMARY_HEADING, &rows)
    };
    put(&report.not_known.iter().fold(table, |text, it| text + &not_known(venue, it) + "\n"))
}

const SUMMARY_HEADING: [&str; 9] = [
    "date",
    "session",
    "subject",
    "name",
    "status",
    "first_in",
    "last_out",
    "late_minutes",
    "present_minutes",
];

fn summary_row(venue: &Venue, row: &SummaryRow) -> Vec<String> {
    let time =
        |at: &Option<String>| at.as_deref().map_or_else(String::new, |at| local_of(venue, at));
    let minutes = |ms: Option<i64>| ms.map_or_else(String::new, |ms| (ms / 60_000).to_string());
    let status = match row.status {
        SummaryStatus::Present => "present",
        SummaryStatus::Late => "late",
        SummaryStatus::Absent => "absent",
    };
    vec![
        row.date.clone(),
        row.session.clone().unwrap_or_default(),
        row.subject.id.to_string(),
        row.subject.name.as_str().to_owned(),
        status.into(),
        time(&row.first_in),
        time(&row.last_out),
        minutes(row.late_ms),
        minutes(row.present_ms),
    ]
}

fn local_of(venue: &Venue, at: &str) -> String {
    at.parse::<jiff::Timestamp>()
        .map_or_else(|_| at.to_owned(), |at| csv::local(venue, at.as_millisecond()))
}

fn not_known(venue: &Venue, it: &NotKnown) -> String {
    let gap =
        |from: &str, to: &str| format!("{} to {}", local_of(venue, from), local_of(venue, to));
    let gaps: Vec<String> = it.not_watching.iter().map(|it| gap(&it.from, &it.to)).collect();
    format!(
        "{}: who was absent is not known: this door was not watching from {}",
        it.session,
        gaps.join(", ")
    )
}

#[derive(Debug, clap::Args)]
pub struct VenuesArgs {
    /// One JSON array
    #[arg(long)]
    json: bool,
}

pub fn venues(args: &VenuesArgs, settings: &Settings) -> anyhow::Result<()> {
    // Before the first start there are only those of the configuration.
    let stored = match app::open_reader(settings) {
        Ok(reader) => reader.venues()?,
        Err(_) if !settings.state_dir.join(crate::record::store::DATABASE).is_file() => Vec::new(),
        Err(error) => return Err(error),
    };
    let book = VenueBook::new(settings.venues.clone(), settings.door.clone(), &stored);
    let entry = |it: &app::venues::Listed| VenueEntry {
        spec: it.venue.spec(),
        source: it.source,
        door: it.venue.id == book.door_id(),
    };
    let entries: Vec<VenueEntry> = book.all().iter().map(entry).collect();
    if args.json {
        return put(&format!("{}\n", serde_json::to_string(&entries)?));
    }
    let mut rows = Vec::new();
    for it in &entries {
        let direction = serde_json::to_value(it.spec.direction)?;
        let venue = [
            &*it.spec.venue,
            &*it.spec.time_zone,
            direction.as_str().unwrap_or_default(),
            it.source.as_str(),
        ];
        let row = |session: &str, when: &str| {
            venue.iter().copied().chain([session, when]).map(str::to_owned).collect::<Vec<_>>()
        };
        if it.spec.sessions.is_empty() {
            rows.push(row("-", "recorded once per re-entry gap"));
        }
        for session in &it.spec.sessions {
            let days = if session.dates.is_empty() { &session.weekdays } else { &session.dates };
            rows.push(row(
                &session.id,
                &format!("{}–{} {}", session.start, session.end, days.join(" ")),
            ));
        }
    }
    put(&table::render(&["venue", "time_zone", "direction", "from", "session", "when"], &rows))
}

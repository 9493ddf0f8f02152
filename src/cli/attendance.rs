//! `rollcall attendance` and `rollcall venues`: prints what this device has recorded, and its
//! venues. Needs neither the daemon nor a broker.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use jiff::civil::Date;

use crate::app::commands::report;
use crate::app::commands::report::{Absent, AttendanceReport};
use crate::app::commands::workbook::workbook;
use crate::app::open;
use crate::app::state::venues::{KnownVenue, VenueRegistry};
use crate::attend::venue::Venue;
use crate::cli::table::{self, Layout};
use crate::cli::verify::proof;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::ids::Origin;
use crate::store::{AttendanceQuery, Reader};
use crate::wire::command::PAGE_MAX;
use crate::wire::csv;
use crate::wire::reply::{
    AttendanceEntry, AttendanceSummary, NotKnown, SummaryRow, SummaryStatus, VenueEntry,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  rollcall attendance --from 2026-11-23 --csv\n  \
                  rollcall attendance --summary --absent\n  \
                  rollcall attendance --summary --from 2026-11-01 --to 2026-12-01 --xlsx november.xlsx")]
#[expect(clippy::struct_excessive_bools, reason = "they are the flags of a command line")]
pub struct Args {
    /// Only this venue [default: all; with --summary, the one of this device's camera]
    #[arg(long)]
    venue: Option<String>,
    /// From this time on: a date (2026-11-23), which begins at midnight at the venue, or an RFC 3339
    /// time
    #[arg(long, value_parser = parse_time)]
    from: Option<TimeArg>,
    /// Before this time [with --summary: at most 366 days after --from]
    #[arg(long, value_parser = parse_time)]
    to: Option<TimeArg>,
    /// One row per person and session (or day): first in, last out, present or late [default period:
    /// today]
    #[arg(long)]
    summary: bool,
    /// Add the enrolled people who were not seen at this door, for sessions that it watched
    /// completely
    #[arg(long, requires = "summary")]
    absent: bool,
    /// Include superseded records, instead of which an earlier one counts
    #[arg(long, conflicts_with = "summary")]
    all: bool,
    /// Write a spreadsheet workbook (.xlsx): totals for each person, a sheet for each session
    #[arg(long, value_name = "FILE", requires = "summary", conflicts_with_all = ["json", "csv"])]
    xlsx: Option<PathBuf>,
    /// Print a JSON array; with --summary, one object
    #[arg(long, conflicts_with = "csv")]
    json: bool,
    /// Print comma-separated values with a heading
    #[arg(long)]
    csv: bool,
    /// With --csv: write the proof of these attendances, with which `rollcall verify` checks the export
    #[arg(long, value_name = "FILE", requires = "csv", conflicts_with = "summary")]
    proof: Option<PathBuf>,
    /// The separator of --csv: `;` for spreadsheets of many European languages
    #[arg(long, value_name = "CHARACTER", requires = "csv", default_value = ",", value_parser = parse_separator)]
    separator: u8,
    /// Begin --csv with the mark by which spreadsheets recognise UTF-8
    #[arg(long, requires = "csv")]
    bom: bool,
}

/// A time given on the command line. A date is a parse_time only at a venue.
#[derive(Clone, Copy, Debug)]
enum TimeArg {
    At(i64),
    Begin(Date),
}

impl TimeArg {
    fn wall_ms(self, venue: &Venue) -> i64 {
        match self {
            Self::At(wall_ms) => wall_ms,
            Self::Begin(date) => venue.begin_of(date).unwrap_or(0),
        }
    }
}

fn parse_time(text: &str) -> Result<TimeArg, String> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(TimeArg::At(at.as_millisecond()));
    }
    // Otherwise a time without an offset is a date whose time is passed over.
    let is_date = text.len() == "2026-11-23".len();
    let date = text.parse().ok().filter(|_| is_date);
    date.map(TimeArg::Begin)
        .ok_or_else(|| "neither a date nor an RFC 3339 time with an offset".to_owned())
}

fn parse_separator(text: &str) -> Result<u8, String> {
    match text.as_bytes() {
        [it @ (b',' | b';' | b'\t' | b'|')] => Ok(*it),
        _ => Err("is none of , ; | and the tab".to_owned()),
    }
}

const SUMMARY_DAYS_MAX: i64 = 366;

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let reader = open::open_reader(settings)?;
    let book =
        VenueRegistry::new(settings.venues.clone(), settings.door.clone(), &reader.venues()?);
    // The records of a deleted venue remain.
    let venue = match &args.venue {
        Some(id) => book.find(id).unwrap_or_else(|| Venue::plain(id)),
        None => book.door(),
    };
    if args.summary {
        print_summary(args, settings, &reader, &venue)?;
    } else {
        let shown = print_list(args, &reader, &book, &venue)?;
        if let Some(path) = &args.proof {
            write_proof(path, &reader, settings, &shown)?;
        }
    }
    let unreadable = reader.unreadable()?.events;
    if unreadable > 0 {
        eprintln!(
            "{unreadable} events of the record cannot be read and are not in the list: \
             see `rollcall doctor`"
        );
    }
    Ok(())
}

fn write_proof(
    path: &Path,
    reader: &Reader,
    settings: &Settings,
    shown: &BTreeSet<i64>,
) -> anyhow::Result<()> {
    let origin = Origin { site: settings.site.clone(), device: settings.device.clone() };
    let unproven = proof::write(path, reader, &origin, shown)?;
    if unproven > 0 {
        eprintln!(
            "{unproven} attendances are from before the chain of events: {} does not prove them",
            path.display()
        );
    }
    Ok(())
}

/// Returns the numbers of what a CSV file has.
fn print_list(
    args: &Args,
    reader: &Reader,
    book: &VenueRegistry,
    venue: &Venue,
) -> anyhow::Result<BTreeSet<i64>> {
    let query = AttendanceQuery {
        venue: args.venue.clone(),
        from_ms: args.from.map_or(i64::MIN, |it| it.wall_ms(venue)),
        to_ms: args.to.map_or(i64::MAX, |it| it.wall_ms(venue)),
        after_seq: 0,
        limit: 0,
        all: args.all,
    };
    let each = |visit: &mut dyn FnMut(VenueRecord) -> io::Result<()>| {
        visit_records(reader, &query, book, visit)
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if args.json {
        allow_closed_pipe(write_json_list(&mut out, each))?;
        return Ok(BTreeSet::new());
    }
    if args.csv {
        let mut shown = BTreeSet::new();
        allow_closed_pipe((|| {
            if args.bom {
                out.write_all(csv::UTF8_MARK.as_bytes())?;
            }
            let line = |fields: &[String]| csv::separated(fields, args.separator);
            out.write_all(line(&csv::ATTENDANCE.map(str::to_owned)).as_bytes())?;
            each(&mut |(venue, local, entry)| {
                shown.insert(entry.seq);
                out.write_all(line(&csv::attendance(&venue, &local, &entry)).as_bytes())
            })?;
            Ok(out.flush()?)
        })())?;
        return Ok(shown);
    }
    // Twice, because the columns are as wide as their widest cell, and the record may not fit into
    // the memory.
    let mut layout = Layout::new(&TABLE_HEADING);
    let mut count = 0_u64;
    each(&mut |(venue, local, entry)| {
        layout.fit(&table_row(&venue, &local, &entry));
        count += 1;
        Ok(())
    })?;
    if count == 0 {
        println!("nothing recorded yet");
        return Ok(BTreeSet::new());
    }
    allow_closed_pipe((|| {
        out.write_all(layout.heading(&TABLE_HEADING).as_bytes())?;
        each(&mut |(venue, local, entry)| {
            out.write_all(layout.line(&table_row(&venue, &local, &entry)).as_bytes())
        })?;
        Ok(out.flush()?)
    })())?;
    Ok(BTreeSet::new())
}

/// The venue, the local time there, and the entry.
type VenueRecord = (String, String, AttendanceEntry);

/// Visits the records in the order of `seq`, a page at a time.
fn visit_records(
    reader: &Reader,
    query: &AttendanceQuery,
    book: &VenueRegistry,
    visit: &mut dyn FnMut(VenueRecord) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut page = AttendanceQuery { limit: PAGE_MAX, ..query.clone() };
    loop {
        let found = reader.attendance(&page)?;
        for event in &found {
            let of = event.body.venue().unwrap_or_default().to_owned();
            let local =
                csv::local(&book.find(&of).unwrap_or_else(|| Venue::plain(&of)), event.occurred_ms);
            if let Some(entry) = AttendanceEntry::of(event) {
                visit((of, local, entry))?;
            }
        }
        match found.last() {
            Some(last) if found.len() == PAGE_MAX as usize => page.after_seq = last.seq,
            _ => return Ok(()),
        }
    }
}

fn write_json_list(
    out: &mut impl Write,
    each: impl Fn(&mut dyn FnMut(VenueRecord) -> io::Result<()>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut before = "[";
    each(&mut |(venue, local, entry)| {
        let mut value = serde_json::to_value(entry)?;
        value["venue"] = venue.into();
        value["local_time"] = local.into();
        write!(out, "{before}{value}")?;
        before = ",";
        Ok(())
    })?;
    // Of an empty list nothing has been written yet.
    let begin = if before == "[" { before } else { "" };
    writeln!(out, "{begin}]")?;
    Ok(out.flush()?)
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

/// Takes a closed pipe (`| head`) for success.
fn allow_closed_pipe(written: anyhow::Result<()>) -> anyhow::Result<()> {
    match written {
        Err(error)
            if error
                .downcast_ref()
                .is_some_and(|it: &io::Error| it.kind() == ErrorKind::BrokenPipe) =>
        {
            Ok(())
        }
        other => other,
    }
}

fn write_output(text: &str) -> anyhow::Result<()> {
    allow_closed_pipe(io::stdout().lock().write_all(text.as_bytes()).map_err(Into::into))
}

fn print_summary(
    args: &Args,
    settings: &Settings,
    reader: &Reader,
    venue: &Venue,
) -> anyhow::Result<()> {
    let now = SystemClock::new(settings.trust).now();
    let (today_ms, tomorrow_ms) = report::day_of(venue, now.wall_ms);
    let to_ms = args.to.map_or(tomorrow_ms, |it| it.wall_ms(venue));
    let from_ms = args.from.map_or(today_ms.min(to_ms), |it| it.wall_ms(venue));
    anyhow::ensure!(from_ms <= to_ms, "--to is before --from");
    anyhow::ensure!(
        to_ms.saturating_sub(from_ms) <= SUMMARY_DAYS_MAX * 86_400_000,
        "more than {SUMMARY_DAYS_MAX} days: name --from and --to"
    );
    let absent = Absent::new(args.absent, settings.door.watches(&venue.id));
    let report = AttendanceReport::new(reader, venue, (from_ms, to_ms), absent)?;
    if let Some(path) = &args.xlsx {
        return write_workbook(path, &workbook(&report, venue, absent)?);
    }
    let mut out = BufWriter::new(io::stdout().lock());
    let written = if args.json {
        write_json_summary(&mut out, &report, args.absent)
    } else if args.csv {
        write_csv_summary(&mut out, &report, venue, args)
    } else {
        write_table_summary(&mut out, &report, venue)
    };
    allow_closed_pipe(written)
}

/// The file has names, so only its owner can read it.
fn write_workbook(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", path.display());
    let mut options = OpenOptions::new();
    let opened = options.write(true).create_new(true).mode(0o600).open(path);
    let mut file = opened.with_context(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).with_context(failed)?;
    println!("{}: {} bytes", path.display(), bytes.len());
    Ok(())
}

/// Writes the same object as the reply of the command, row by row.
fn write_json_summary(
    out: &mut impl Write,
    report: &AttendanceReport<'_>,
    absent: bool,
) -> anyhow::Result<()> {
    let not_known = absent.then(|| report.not_known());
    let text = serde_json::to_string(&AttendanceSummary { not_known, ..report.heading() })?;
    // Only ids and times come before the rows.
    let (before, after) = text.split_once("\"rows\":[]").context("the summary has no rows")?;
    write!(out, "{before}\"rows\":[")?;
    let mut comma = "";
    visit_rows(report, |row| {
        write!(out, "{comma}{}", serde_json::to_string(&row)?)?;
        comma = ",";
        Ok(())
    })?;
    writeln!(out, "]{after}")?;
    Ok(out.flush()?)
}

fn write_csv_summary(
    out: &mut impl Write,
    report: &AttendanceReport<'_>,
    venue: &Venue,
    args: &Args,
) -> anyhow::Result<()> {
    if args.bom {
        out.write_all(csv::UTF8_MARK.as_bytes())?;
    }
    let heading = [&SUMMARY_HEADING[..], &SUMMARY_TIMES].concat();
    out.write_all(csv::separated(&heading, args.separator).as_bytes())?;
    visit_rows(report, |row| {
        let mut cells = summary_row(venue, &row);
        // The date is the first column; these are the times alone.
        let times = [&row.first_in, &row.last_out].map(|at| time_of_day(venue, at.as_deref()));
        cells.extend(times);
        out.write_all(csv::separated(&cells, args.separator).as_bytes())
    })?;
    out.flush()?;
    // To standard error, so that nobody counts these lines as rows.
    report.not_known().iter().for_each(|it| eprintln!("{}", describe_gap(venue, it)));
    Ok(())
}

/// Reads twice, because the columns are as wide as their widest cell, and the rows may not fit into
/// the memory.
fn write_table_summary(
    out: &mut impl Write,
    report: &AttendanceReport<'_>,
    venue: &Venue,
) -> anyhow::Result<()> {
    let mut layout = Layout::new(&SUMMARY_HEADING);
    let mut count = 0_u64;
    visit_rows(report, |row| {
        layout.fit(&summary_row(venue, &row));
        count += 1;
        Ok(())
    })?;
    if count == 0 {
        writeln!(out, "nothing recorded in this period")?;
    } else {
        out.write_all(layout.heading(&SUMMARY_HEADING).as_bytes())?;
        visit_rows(report, |row| out.write_all(layout.line(&summary_row(venue, &row)).as_bytes()))?;
    }
    for it in report.not_known() {
        writeln!(out, "{}", describe_gap(venue, &it))?;
    }
    Ok(out.flush()?)
}

/// Visits all rows, until one cannot be written.
fn visit_rows(
    report: &AttendanceReport<'_>,
    mut visit: impl FnMut(SummaryRow) -> io::Result<()>,
) -> anyhow::Result<()> {
    let mut written = Ok(());
    report.each_row(0, &mut |row| {
        written = visit(row);
        if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(written?)
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

/// More columns of the CSV: the times without their dates, as spreadsheets read them.
const SUMMARY_TIMES: [&str; 2] = ["first_in_time", "last_out_time"];

fn time_of_day(venue: &Venue, at: Option<&str>) -> String {
    let local = at.map(|at| format_local(venue, at)).unwrap_or_default();
    local.get(11..19).unwrap_or_default().to_owned()
}

fn summary_row(venue: &Venue, row: &SummaryRow) -> Vec<String> {
    let time =
        |at: &Option<String>| at.as_deref().map_or_else(String::new, |at| format_local(venue, at));
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

fn format_local(venue: &Venue, at: &str) -> String {
    at.parse::<jiff::Timestamp>()
        .map_or_else(|_| at.to_owned(), |at| csv::local(venue, at.as_millisecond()))
}

fn describe_gap(venue: &Venue, it: &NotKnown) -> String {
    let gap = |from: &str, to: &str| {
        format!("{} to {}", format_local(venue, from), format_local(venue, to))
    };
    let gaps: Vec<String> = it.not_watching.iter().map(|it| gap(&it.from, &it.to)).collect();
    format!(
        "{}: absence is not known: this door was not watching from {}",
        it.session,
        gaps.join(", ")
    )
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall venues --json")]
pub struct VenuesArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

pub fn venues(args: &VenuesArgs, settings: &Settings) -> anyhow::Result<()> {
    // Before the first start only the configuration has venues.
    let stored = match open::open_reader(settings) {
        Ok(reader) => reader.venues()?,
        Err(_) if !settings.state_dir.join(crate::store::DATABASE).is_file() => Vec::new(),
        Err(error) => return Err(error),
    };
    let book = VenueRegistry::new(settings.venues.clone(), settings.door.clone(), &stored);
    let entry = |it: &KnownVenue| VenueEntry {
        spec: it.venue.spec(),
        source: it.source,
        door: it.venue.id == book.door_id(),
    };
    let entries: Vec<VenueEntry> = book.all().iter().map(entry).collect();
    if args.json {
        return write_output(&format!("{}\n", serde_json::to_string(&entries)?));
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
            rows.push(row("-", "once per re-entry gap"));
        }
        for session in &it.spec.sessions {
            let days = if session.dates.is_empty() { &session.weekdays } else { &session.dates };
            rows.push(row(
                &session.id,
                &format!("{}–{} {}", session.start, session.end, days.join(" ")),
            ));
        }
    }
    write_output(&table::render(
        &["venue", "time_zone", "direction", "from", "session", "when"],
        &rows,
    ))
}

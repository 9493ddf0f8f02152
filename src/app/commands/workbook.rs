//! The record of a venue and period as a spreadsheet workbook: totals for each person, and a sheet for
//! each session of the schedule.
//!
//! The rows are those of the summary ([`crate::app::commands::report`]). They are held until the sheet
//! is written to which they belong, and therefore bounded.

use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;

use jiff::civil::DateTime;

use crate::app::commands::report::{Absent, AttendanceReport};
use crate::attend::venue::Venue;
use crate::ids::SubjectId;
use crate::store::StoreError;
use crate::wire::reply::{NotKnown, SummaryRow, SummaryStatus};
use crate::wire::xlsx::{Cell, SHEETS_MAX, Workbook};

/// Rows of a workbook, some 20 MB while it is made.
pub const WORKBOOK_ROWS_MAX: usize = 50_000;

#[derive(Debug, thiserror::Error)]
pub enum WorkbookError {
    #[error(
        "more than {WORKBOOK_ROWS_MAX} rows: choose a shorter period, or comma-separated values"
    )]
    TooManyRows,
    #[error("more sessions than a workbook has sheets: choose a shorter period")]
    TooManySheets,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the workbook cannot be written")]
    Write(#[from] io::Error),
}

/// What the sessions of a person add up to.
#[derive(Default)]
struct Totals {
    name: String,
    present: i64,
    late: i64,
    absent: i64,
    late_ms: i64,
    present_ms: i64,
}

impl Totals {
    fn add(&mut self, row: &SummaryRow) {
        row.subject.name.as_str().clone_into(&mut self.name);
        match row.status {
            SummaryStatus::Present => self.present += 1,
            SummaryStatus::Late => self.late += 1,
            SummaryStatus::Absent => self.absent += 1,
        }
        self.late_ms += row.late_ms.unwrap_or(0);
        self.present_ms += row.present_ms.unwrap_or(0);
    }
}

/// The rows of a workbook, by what they belong to.
#[derive(Default)]
struct Sheets {
    /// By the id of the session's rule, empty for what belongs to none.
    sessions: BTreeMap<String, Vec<SummaryRow>>,
    totals: BTreeMap<SubjectId, Totals>,
    count: usize,
}

const TITLE_TOTALS: &str = "Totals";
const TITLE_NO_SESSION: &str = "Outside sessions";
const TITLE_NOT_KNOWN: &str = "Not known";

const TOTAL_COLUMNS: [(&str, u8); 7] = [
    ("Id", 16),
    ("Name", 28),
    ("Present", 10),
    ("Late", 10),
    ("Absent", 10),
    ("Late (minutes)", 16),
    ("Present (minutes)", 18),
];
const SESSION_COLUMNS: [(&str, u8); 8] = [
    ("Date", 12),
    ("Id", 16),
    ("Name", 28),
    ("Status", 10),
    ("First in", 18),
    ("Last out", 18),
    ("Late (minutes)", 16),
    ("Present (minutes)", 18),
];
const NOT_KNOWN_COLUMNS: [(&str, u8); 4] =
    [("Session", 36), ("Starts", 18), ("Ends", 18), ("Not watched", 60)];

/// Writes the workbook of a report.
pub fn workbook(
    report: &AttendanceReport<'_>,
    venue: &Venue,
    absent: Absent,
) -> Result<Vec<u8>, WorkbookError> {
    let sheets = collect(report)?;
    let mut book = Workbook::new();
    book.begin_sheet(TITLE_TOTALS, &TOTAL_COLUMNS)?;
    for (id, total) in &sheets.totals {
        book.row(&[
            Cell::Text(id.as_str()),
            Cell::Text(&total.name),
            Cell::Whole(total.present),
            Cell::Whole(total.late),
            Cell::Whole(total.absent),
            Cell::Whole(total.late_ms / 60_000),
            Cell::Whole(total.present_ms / 60_000),
        ])?;
    }
    for (rule, rows) in &sheets.sessions {
        let title = if rule.is_empty() { TITLE_NO_SESSION } else { rule };
        book.begin_sheet(title, &SESSION_COLUMNS)?;
        rows.iter().try_for_each(|row| write_row(&mut book, venue, row))?;
    }
    if absent != Absent::NotAsked {
        book.begin_sheet(TITLE_NOT_KNOWN, &NOT_KNOWN_COLUMNS)?;
        report.not_known().iter().try_for_each(|it| write_not_known(&mut book, venue, it))?;
    }
    Ok(book.finish()?)
}

fn collect(report: &AttendanceReport<'_>) -> Result<Sheets, WorkbookError> {
    let mut sheets = Sheets::default();
    report.each_row(0, &mut |row| {
        sheets.count += 1;
        if sheets.count > WORKBOOK_ROWS_MAX {
            return ControlFlow::Break(());
        }
        sheets.totals.entry(row.subject.id.clone()).or_default().add(&row);
        // The id of a session ends with that of its rule.
        let rule = row.session.as_deref().and_then(|it| it.rsplit('/').next()).unwrap_or_default();
        if let Some(rows) = sheets.sessions.get_mut(rule) {
            rows.push(row);
        } else {
            sheets.sessions.insert(rule.to_owned(), vec![row]);
        }
        ControlFlow::Continue(())
    })?;
    if sheets.count > WORKBOOK_ROWS_MAX {
        return Err(WorkbookError::TooManyRows);
    }
    // Beside them: totals, and what is not known.
    if sheets.sessions.len() + 2 > SHEETS_MAX {
        return Err(WorkbookError::TooManySheets);
    }
    Ok(sheets)
}

fn write_row(book: &mut Workbook, venue: &Venue, row: &SummaryRow) -> io::Result<()> {
    let date = row.date.parse::<jiff::civil::Date>().ok();
    let time = |at: &Option<String>| {
        let Some(at) = at.as_deref().and_then(|at| local(venue, at)) else { return Cell::Empty };
        // A session may go past midnight.
        if Some(at.date()) == date { Cell::Time(at.time()) } else { Cell::DateTime(at) }
    };
    let minutes = |ms: Option<i64>| ms.map_or(Cell::Empty, |ms| Cell::Whole(ms / 60_000));
    let status = match row.status {
        SummaryStatus::Present => "present",
        SummaryStatus::Late => "late",
        SummaryStatus::Absent => "absent",
    };
    book.row(&[
        date.map_or(Cell::Text(&row.date), Cell::Date),
        Cell::Text(row.subject.id.as_str()),
        Cell::Text(row.subject.name.as_str()),
        Cell::Text(status),
        time(&row.first_in),
        time(&row.last_out),
        minutes(row.late_ms),
        minutes(row.present_ms),
    ])
}

fn write_not_known(book: &mut Workbook, venue: &Venue, it: &NotKnown) -> io::Result<()> {
    let cell = |at: &str| local(venue, at).map_or(Cell::Empty, Cell::DateTime);
    let text = |at: &str| local(venue, at).map_or_else(|| at.to_owned(), |at| at.to_string());
    let gaps: Vec<String> = it
        .not_watching
        .iter()
        .map(|it| format!("{} to {}", text(&it.from), text(&it.to)))
        .collect();
    let gaps = gaps.join(", ");
    book.row(&[Cell::Text(&it.session), cell(&it.starts_at), cell(&it.ends_at), Cell::Text(&gaps)])
}

/// The wall clock at the venue, in whole seconds.
fn local(venue: &Venue, at: &str) -> Option<DateTime> {
    let at = at.parse::<jiff::Timestamp>().ok()?;
    let local = at.to_zoned(venue.zone.clone()).datetime();
    local.with().subsec_nanosecond(0).build().ok()
}

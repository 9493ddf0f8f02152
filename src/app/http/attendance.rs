//! `GET /api/attendance`: the device's own record, as JSON in pages or whole as CSV; its summary as
//! JSON in pages, or as a spreadsheet workbook. Unlike the command, nothing is stored for it.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderName, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, extract::Query};
use futures_util::stream;
use serde_json::{Map, Value};

use super::{HttpServer, Refused, Shared};
use crate::app::commands::report::{Absent, AttendanceReport, RECORDS_MAX, period_of};
use crate::app::commands::workbook::{WorkbookError, workbook};
use crate::attend::venue::Venue;
use crate::store::{AttendanceQuery, StoreError, Tx};
use crate::wire::command;
use crate::wire::command::{AttendanceRequest, PAGE_MAX, SUMMARY_DAYS_MAX};
use crate::wire::csv;
use crate::wire::event::StoredEvent;
use crate::wire::reply::{AttendanceEntry, AttendanceList};
use crate::wire::xlsx;

/// What is asked for, by the header `Accept`.
#[derive(Clone, Copy, PartialEq, Eq)]
enum TableFormat {
    Json,
    Csv,
    Workbook,
}

impl TableFormat {
    fn of(headers: &HeaderMap) -> Self {
        let accepts =
            headers.get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
        let accepts = |wanted: &str| {
            let media_type = |it: &str| it.split(';').next().unwrap_or_default().trim() == wanted;
            accepts.split(',').any(media_type)
        };
        if accepts("text/csv") {
            Self::Csv
        } else if accepts(xlsx::MEDIA_TYPE) {
            Self::Workbook
        } else {
            Self::Json
        }
    }

    /// The keys that a query may have.
    fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Json => &["venue", "from", "to", "after", "limit", "all", "summary", "absent"],
            Self::Csv => &["venue", "from", "to", "after", "limit", "all", "bom", "separator"],
            Self::Workbook => &["venue", "from", "to", "absent"],
        }
    }
}

/// How the CSV is written.
#[derive(Clone, Copy)]
struct CsvStyle {
    separator: u8,
    bom: bool,
}

/// `?venue=&from=&to=`, and what the format has besides: without a venue, that of the door.
pub(super) async fn attendance(
    State(server): Shared,
    headers: HeaderMap,
    query: RawQuery,
) -> Result<Response, Refused> {
    let format = TableFormat::of(&headers);
    let (wanted, style) = server.wanted(query, format)?;
    match format {
        TableFormat::Csv => {
            let unreadable = server.store.read(|tx: &Tx<'_>| Ok(tx.unreadable()?.events)).await?;
            Ok(as_csv(server, wanted, style, unreadable))
        }
        TableFormat::Workbook => as_workbook(&server, wanted).await,
        TableFormat::Json if wanted.summary => as_summary(&server, wanted).await,
        TableFormat::Json => {
            let (found, unreadable) =
                page(&server, &wanted, wanted.after, wanted.limit + 1).await?;
            let mut list = AttendanceList::page(wanted.venue, found, wanted.limit);
            list.unreadable = unreadable;
            Ok(Json(list).into_response())
        }
    }
}

impl HttpServer {
    /// The query as the command of the same name would have it, checked as that one is.
    fn wanted(
        &self,
        RawQuery(query): RawQuery,
        format: TableFormat,
    ) -> Result<(AttendanceRequest, CsvStyle), Refused> {
        let uri = format!("/?{}", query.unwrap_or_default());
        let uri = uri.parse().map_err(|_| Refused::bad("the query is not understood"))?;
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&uri)
            .map_err(|_| Refused::bad("the query is not understood"))?;
        let mut body = Map::new();
        let mut style = CsvStyle { separator: b',', bom: false };
        for (key, text) in pairs.into_iter().filter(|it| !it.1.is_empty()) {
            if !format.keys().contains(&key.as_str()) {
                let keys = format.keys().join(", ");
                return Err(Refused::bad(format!("the query may have {keys}")));
            }
            let value = match key.as_str() {
                "after" | "limit" => text.parse::<i64>().map_or(Value::String(text), Value::from),
                "all" | "absent" | "summary" => {
                    text.parse::<bool>().map_or(Value::String(text), Value::from)
                }
                "bom" => {
                    style.bom =
                        text.parse().map_err(|_| Refused::bad("bom must be true or false"))?;
                    continue;
                }
                "separator" => {
                    style.separator = separator(&text)?;
                    continue;
                }
                _ => Value::String(text),
            };
            body.insert(key, value);
        }
        if format == TableFormat::Workbook {
            body.insert("summary".into(), true.into());
        }
        body.entry("venue").or_insert_with(|| self.venues.door_id().into());
        let wanted = command::attendance_of(body);
        wanted.map(|it| (it, style)).map_err(|rejection| Refused::bad(rejection.message))
    }
}

fn separator(name: &str) -> Result<u8, Refused> {
    let found = csv::SEPARATORS.iter().find(|it| it.0 == name);
    found
        .map(|it| it.1)
        .ok_or_else(|| Refused::bad("separator must be comma, semicolon, tab or bar"))
}

/// What a summary is made of.
struct SummaryRequest {
    venue: Venue,
    period: (i64, i64),
    absent: Absent,
}

impl SummaryRequest {
    fn new(server: &HttpServer, wanted: &AttendanceRequest) -> Result<Self, Refused> {
        let venue = server.venues.find(&wanted.venue);
        let venue = venue.unwrap_or_else(|| Venue::plain(&wanted.venue));
        let now_ms = server.clock.now().wall_ms;
        let period = period_of(&venue, wanted, now_ms).ok_or_else(|| {
            Refused::bad(format!("to is more than {SUMMARY_DAYS_MAX} days after from"))
        })?;
        let absent = Absent::new(wanted.absent, server.venues.is_watched(&venue.id));
        Ok(Self { venue, period, absent })
    }
}

/// Returns a page of the summary of a period, as the command replies it.
async fn as_summary(server: &HttpServer, wanted: AttendanceRequest) -> Result<Response, Refused> {
    let SummaryRequest { venue, period, absent } = SummaryRequest::new(server, &wanted)?;
    let make = move |tx: &Tx<'_>| {
        let report = AttendanceReport::new(tx, &venue, period, absent)?.within(RECORDS_MAX);
        let mut page = report.page(wanted.after, wanted.limit)?;
        page.unreadable = tx.unreadable()?.events;
        Ok(page)
    };
    Ok(Json(server.report(make).await?).into_response())
}

/// Returns the summary of a period as a spreadsheet workbook.
async fn as_workbook(server: &HttpServer, wanted: AttendanceRequest) -> Result<Response, Refused> {
    let SummaryRequest { venue, period, absent } = SummaryRequest::new(server, &wanted)?;
    let write = move |tx: &Tx<'_>| {
        let report = AttendanceReport::new(tx, &venue, period, absent)?.within(RECORDS_MAX);
        match workbook(&report, &venue, absent) {
            Err(WorkbookError::Store(error)) => Err(error),
            written => Ok((written, tx.unreadable()?.events)),
        }
    };
    let (written, unreadable) = server.report(write).await?;
    let bytes = written.map_err(|error| Refused::bad(error.to_string()))?;
    let headers = [
        (header::CONTENT_TYPE, xlsx::MEDIA_TYPE),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"attendance.xlsx\""),
    ];
    let mut response = (headers, bytes).into_response();
    if unreadable > 0 {
        response.headers_mut().insert(UNREADABLE, unreadable.into());
    }
    Ok(response)
}

/// Returns a page, and how many events of the record cannot be read.
async fn page(
    server: &HttpServer,
    wanted: &AttendanceRequest,
    after_seq: i64,
    limit: u32,
) -> Result<(Vec<StoredEvent>, u64), StoreError> {
    let AttendanceRequest { venue, from_ms, to_ms, all, .. } = wanted.clone();
    let query = AttendanceQuery { venue: Some(venue), from_ms, to_ms, after_seq, limit, all };
    let read = move |tx: &Tx<'_>| Ok((tx.attendance(&query)?, tx.unreadable()?.events));
    server.report(read).await
}

/// The header of a CSV that says how many events of the record cannot be read.
const UNREADABLE: HeaderName = HeaderName::from_static("rollcall-unreadable");

/// Page by page, as the client takes it: the memory is that of one page.
fn as_csv(
    server: Arc<HttpServer>,
    wanted: AttendanceRequest,
    style: CsvStyle,
    unreadable: u64,
) -> Response {
    let venue = server.venues.find(&wanted.venue).unwrap_or_else(|| Venue::plain(&wanted.venue));
    let mark = if style.bom { csv::UTF8_MARK } else { "" };
    let heading = csv::separated(&csv::ATTENDANCE, style.separator);
    let begin = (format!("{mark}{heading}"), Some(wanted.after));
    let pages = stream::try_unfold(begin, move |(text, after)| {
        let server = Arc::clone(&server);
        let wanted = wanted.clone();
        let venue = venue.clone();
        async move {
            let Some(after) = after else {
                return Ok::<_, StoreError>(None);
            };
            let (found, _) = page(&server, &wanted, after, PAGE_MAX).await?;
            let text =
                found.iter().fold(text, |text, event| text + &line(&venue, event, style.separator));
            let next =
                found.last().filter(|_| found.len() == PAGE_MAX as usize).map(|last| last.seq);
            Ok(Some((Bytes::from(text), (String::new(), next))))
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"attendance.csv\""),
    ];
    let mut response = (headers, Body::from_stream(pages)).into_response();
    if unreadable > 0 {
        response.headers_mut().insert(UNREADABLE, unreadable.into());
    }
    response
}

fn line(venue: &Venue, event: &StoredEvent, separator: u8) -> String {
    let local = csv::local(venue, event.occurred_ms);
    AttendanceEntry::of(event).map_or_else(String::new, |it| {
        csv::separated(&csv::attendance(&venue.id, &local, &it), separator)
    })
}

//! `GET /api/attendance`: the device's own record, as JSON in pages or whole as CSV.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::{Json, extract::Query};
use futures_util::stream;
use serde_json::{Map, Value};

use super::{HttpServer, Refused, Shared, new_request_id};
use crate::app::csv;
use crate::attend::venue::Venue;
use crate::record::command::answer::{AttendanceEntry, AttendanceList};
use crate::record::command::{self, Attendance, PAGE_MAX, Verb};
use crate::record::event::StoredEvent;
use crate::record::store::{AttendanceQuery, StoreError};

/// `?venue=&from=&to=&after=&limit=&all=`: without a venue, that of the door.
pub(super) async fn attendance(
    State(server): Shared,
    headers: HeaderMap,
    query: RawQuery,
) -> Result<Response, Refused> {
    let wanted = server.wanted(query)?;
    let accepts = headers.get(header::ACCEPT).and_then(|it| it.to_str().ok()).unwrap_or_default();
    if accepts.split(',').any(|it| it.split(';').next().is_some_and(|it| it.trim() == "text/csv")) {
        return Ok(as_csv(server, wanted));
    }
    let found = page(&server, &wanted, wanted.after, wanted.limit + 1).await?;
    Ok(Json(AttendanceList::page(wanted.venue, found, wanted.limit)).into_response())
}

impl HttpServer {
    /// The query as the command of the same name would have it, checked as that one is.
    fn wanted(&self, RawQuery(query): RawQuery) -> Result<Attendance, Refused> {
        let uri = format!("/?{}", query.unwrap_or_default());
        let uri = uri.parse().map_err(|_| Refused::bad("the query is not understood"))?;
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&uri)
            .map_err(|_| Refused::bad("the query is not understood"))?;
        let mut body = Map::new();
        for (key, text) in pairs.into_iter().filter(|it| !it.1.is_empty()) {
            let value = match key.as_str() {
                "after" | "limit" => text.parse::<i64>().map_or(Value::String(text), Value::from),
                "all" => text.parse::<bool>().map_or(Value::String(text), Value::from),
                "venue" | "from" | "to" => Value::String(text),
                _ => {
                    return Err(Refused::bad(
                        "the query may have venue, from, to, after, limit and all",
                    ));
                }
            };
            body.insert(key, value);
        }
        body.entry("venue").or_insert_with(|| self.venues.door_id().into());
        body.insert("request_id".into(), new_request_id().into());
        let body = Value::from(body).to_string();
        let parsed = command::parse(
            "attendance",
            false,
            body.as_bytes(),
            &self.limits,
            self.clock.now().wall_ms,
        );
        match parsed.map_err(|refusal| Refused::bad(refusal.message))?.verb {
            Verb::Attendance(wanted) => Ok(wanted),
            _ => Err(Refused::bad("the query is not understood")),
        }
    }
}

async fn page(
    server: &HttpServer,
    wanted: &Attendance,
    after_seq: i64,
    limit: u32,
) -> Result<Vec<StoredEvent>, StoreError> {
    let Attendance { venue, from_ms, to_ms, all, .. } = wanted.clone();
    let query = AttendanceQuery { venue: Some(venue), from_ms, to_ms, after_seq, limit, all };
    server.store.write_async(move |tx| tx.attendance(&query)).await
}

/// Page by page, as the client takes it: the memory is that of one page.
fn as_csv(server: Arc<HttpServer>, wanted: Attendance) -> Response {
    let venue = server.venues.find(&wanted.venue).unwrap_or_else(|| Venue::plain(&wanted.venue));
    let begin = (csv::line(&csv::ATTENDANCE), Some(wanted.after));
    let pages = stream::try_unfold(begin, move |(text, after)| {
        let (server, wanted, venue) = (Arc::clone(&server), wanted.clone(), venue.clone());
        async move {
            let Some(after) = after else {
                return Ok::<_, StoreError>(None);
            };
            let found = page(&server, &wanted, after, PAGE_MAX).await?;
            let text = found.iter().fold(text, |text, event| text + &line(&venue, event));
            let next =
                found.last().filter(|_| found.len() == PAGE_MAX as usize).map(|last| last.seq);
            Ok(Some((Bytes::from(text), (String::new(), next))))
        }
    });
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"attendance.csv\""),
    ];
    (headers, Body::from_stream(pages)).into_response()
}

fn line(venue: &Venue, event: &StoredEvent) -> String {
    let local = csv::local(venue, event.occurred_ms);
    AttendanceEntry::of(event)
        .map_or_else(String::new, |it| csv::line(&csv::attendance(&venue.id, &local, &it)))
}

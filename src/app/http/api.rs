//! Commands, health and the picture: what the local page, and scripts without MQTT, use.

use std::io::Cursor;
use std::sync::PoisonError;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use uuid::Uuid;

use super::{HttpServer, Refused, Shared, json_only, new_request_id};
use crate::app::commands::reply_to::WrittenReply;
use crate::app::http::events::{Wanted, WantedQuery, Watching};
use crate::app::state::preview::preview_message;
use crate::app::supervise::run_on_thread;
use crate::recognise::picture::Picture;
use crate::wire::command;
use crate::wire::command::{ErrorCode, Received};

/// A frame is waited for this long.
const FRAME_PATIENCE: Duration = Duration::from_secs(5);
/// Of the JPEG that is shown.
const QUALITY: u8 = 80;
const JPEG: &str = "image/jpeg";

/// The commands of MQTT with the same bodies and replies (`docs/wire.md`); a request id is
/// generated where none is given.
pub(super) async fn command(
    State(server): Shared,
    Path(verb): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    json_only(&headers)?;
    let received = Received::by_http(&verb, &body, new_request_id());
    let reply = match command::parse(received, &server.limits, server.clock.now().wall_ms) {
        Ok(command) => {
            drop(body);
            server.ask(command).await?
        }
        Err(rejection) => {
            server.health.count_rejection(rejection.code.as_str());
            let known = if command::is_verb(&verb) { verb.as_str() } else { "" };
            WrittenReply::rejected(known, rejection)
        }
    };
    let status = reply.error().map_or(StatusCode::OK, status_of);
    Ok((status, [(header::CONTENT_TYPE, "application/json")], reply.json).into_response())
}

/// Returns the HTTP status for an error code.
pub(super) fn status_of(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        ErrorCode::RateLimited => StatusCode::TOO_MANY_REQUESTS,
        ErrorCode::UnknownSubject | ErrorCode::UnknownVenue | ErrorCode::UnknownVerb => {
            StatusCode::NOT_FOUND
        }
        ErrorCode::DuplicateSubject => StatusCode::CONFLICT,
        ErrorCode::Busy
        | ErrorCode::NotReady
        | ErrorCode::TimedOut
        | ErrorCode::StorageFull
        | ErrorCode::Internal => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::BAD_REQUEST,
    }
}

/// The message of the topic `health`, as it would be sent now.
pub(super) async fn health(State(server): Shared) -> Result<Response, Refused> {
    Ok(([(header::CONTENT_TYPE, "application/json")], server.reporter.current().await?)
        .into_response())
}

/// Returns the newest frame, as the camera gave it; with `view` together with the faces in it. It is
/// made for the client that asks, and kept nowhere.
pub(super) async fn picture(
    State(server): Shared,
    query: WantedQuery,
) -> Result<Response, Refused> {
    let wanted = Wanted::read(query)?;
    if !server.snapshot {
        let message = "[privacy] snapshot = false forbids pictures on this device";
        return Err(Refused(StatusCode::FORBIDDEN, message.into()));
    }
    let mut watching = Watching::begin(&server.feed);
    let scene = tokio::time::timeout(FRAME_PATIENCE, watching.next()).await.ok().flatten();
    let scene = scene.ok_or_else(|| Refused::busy("no frame came: the camera gives none"))?;
    server.log_picture();
    let view = preview_message(Some(&scene), &server.health, wanted.names);
    let encoded =
        run_on_thread("picture", move || jpeg(scene.pixels.full().ok()?).ok()).await.flatten();
    let jpeg = encoded.ok_or_else(|| Refused::busy("the frame cannot be shown"))?;
    let (kind, body) = if wanted.view {
        let boundary = format!("rollcall-{}", Uuid::now_v7().simple());
        let json = serde_json::to_vec(&view).expect("a view has string keys only");
        let body = form_data(&boundary, &json, &jpeg);
        (format!("multipart/form-data; boundary={boundary}"), body)
    } else {
        (JPEG.to_owned(), jpeg)
    };
    let headers = [(header::CONTENT_TYPE, kind), (header::CACHE_CONTROL, "no-store".to_owned())];
    Ok((headers, body).into_response())
}

/// Returns a body of two parts (RFC 7578), `view` and `picture`.
fn form_data(boundary: &str, view: &[u8], jpeg: &[u8]) -> Vec<u8> {
    let head =
        |rest: &str| format!("--{boundary}\r\nContent-Disposition: form-data; {rest}\r\n\r\n");
    [
        head("name=\"view\"\r\nContent-Type: application/json").as_bytes(),
        view,
        b"\r\n",
        head(&format!("name=\"picture\"; filename=\"picture.jpg\"\r\nContent-Type: {JPEG}"))
            .as_bytes(),
        jpeg,
        format!("\r\n--{boundary}--\r\n").as_bytes(),
    ]
    .concat()
}

fn jpeg(picture: &Picture) -> image::ImageResult<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    let width = picture.width() as u32;
    let height = picture.height() as u32;
    JpegEncoder::new_with_quality(&mut out, QUALITY).encode(
        picture.rgb(),
        width,
        height,
        ExtendedColorType::Rgb8,
    )?;
    Ok(out.into_inner())
}

impl HttpServer {
    fn log_picture(&self) {
        let mut log = self.picture_log.lock().unwrap_or_else(PoisonError::into_inner);
        if log.is_due(&self.clock.now()) {
            tracing::warn!("an HTTP client is shown the camera's picture");
        }
    }
}

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

use super::{HttpServer, Refused, Shared, json_only, new_request_id};
use crate::app::commands::reply_to::WrittenReply;
use crate::app::http::events::Watching;
use crate::app::supervise::run_on_thread;
use crate::recognise::picture::Picture;
use crate::wire::command;
use crate::wire::command::{ErrorCode, Received};

/// A frame is waited for this long.
const FRAME_PATIENCE: Duration = Duration::from_secs(5);
/// Of the JPEG that is shown.
const QUALITY: u8 = 80;

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

/// The newest frame, as the camera gave it. It is made for who asks, and kept nowhere.
pub(super) async fn picture(State(server): Shared) -> Result<Response, Refused> {
    if !server.snapshot {
        let message = "[privacy] snapshot = false forbids pictures on this device";
        return Err(Refused(StatusCode::FORBIDDEN, message.into()));
    }
    let mut watching = Watching::begin(&server.feed);
    let scene = tokio::time::timeout(FRAME_PATIENCE, watching.next()).await.ok().flatten();
    let scene = scene.ok_or_else(|| Refused::busy("no frame came: the camera gives none"))?;
    server.log_picture();
    let encoded =
        run_on_thread("picture", move || jpeg(scene.pixels.full().ok()?).ok()).await.flatten();
    let jpeg = encoded.ok_or_else(|| Refused::busy("the frame cannot be shown"))?;
    Ok(([(header::CONTENT_TYPE, "image/jpeg"), (header::CACHE_CONTROL, "no-store")], jpeg)
        .into_response())
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

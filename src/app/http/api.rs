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
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::feed::Watching;
use super::{HttpServer, Refused, Shared, json_only, new_request_id};
use crate::app::supervise::aside;
use crate::clock::Stopwatch;
use crate::recognise::picture::Picture;
use crate::record::command::{self, answer};

/// A frame is waited for this long.
const FRAME_PATIENCE: Duration = Duration::from_secs(5);
/// Of the JPEG that is shown.
const QUALITY: u8 = 80;
/// Pictures within this time are one in the log.
const TOLD_EVERY: Duration = Duration::from_mins(1);

/// The commands of MQTT with the same bodies and answers (`docs/wire.md`); a request id is made where none is given.
pub(super) async fn command(
    State(server): Shared,
    Path(verb): Path<String>,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    json_only(&headers)?;
    let payload = with_request_id(&body);
    let payload = payload.as_deref().unwrap_or(&body);
    let answer =
        match command::parse(&verb, false, payload, &server.limits, server.clock.now().wall_ms) {
            Ok(command) => {
                drop(body);
                server.ask(command).await?
            }
            Err(refusal) => {
                server.health.refused(refusal.code.as_str());
                let known = if command::is_verb(&verb) { verb.as_str() } else { "" };
                answer::refused(known, &refusal)
            }
        };
    Ok((status_in(&answer), [(header::CONTENT_TYPE, "application/json")], answer).into_response())
}

/// The body with a request id put in front, where it has none.
fn with_request_id(body: &[u8]) -> Option<Vec<u8>> {
    #[derive(Deserialize)]
    struct Head {
        request_id: Option<IgnoredAny>,
    }
    let has_one = serde_json::from_slice::<Head>(body).ok()?.request_id.is_some();
    let rest = body.trim_ascii_start().strip_prefix(b"{").filter(|_| !has_one)?;
    let comma = if rest.trim_ascii_start().starts_with(b"}") { "" } else { "," };
    let mut whole = format!("{{\"request_id\":\"{}\"{comma}", new_request_id()).into_bytes();
    whole.extend_from_slice(rest);
    Some(whole)
}

fn status_in(answer: &str) -> StatusCode {
    #[derive(Deserialize)]
    struct Outcome {
        error: Option<Fault>,
    }
    #[derive(Deserialize)]
    struct Fault {
        code: String,
    }
    match serde_json::from_str::<Outcome>(answer) {
        Ok(Outcome { error: Some(fault) }) => status_of(&fault.code),
        _ => StatusCode::OK,
    }
}

/// What HTTP says for the code of a refusal.
pub(super) fn status_of(code: &str) -> StatusCode {
    match code {
        "too_large" => StatusCode::PAYLOAD_TOO_LARGE,
        "rate_limited" => StatusCode::TOO_MANY_REQUESTS,
        "unknown_subject" | "unknown_venue" | "unknown_verb" => StatusCode::NOT_FOUND,
        "duplicate_subject" => StatusCode::CONFLICT,
        "busy" | "not_ready" | "timed_out" | "storage_full" | "internal" => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        _ => StatusCode::BAD_REQUEST,
    }
}

/// The message of the topic `health`, as it would be sent now.
pub(super) async fn health(State(server): Shared) -> Result<Response, Refused> {
    Ok(([(header::CONTENT_TYPE, "application/json")], server.vitals.now().await?).into_response())
}

/// The newest frame, as the camera gave it. It is made for who asks, and kept nowhere.
pub(super) async fn picture(State(server): Shared) -> Result<Response, Refused> {
    if !server.snapshot {
        let message = "[privacy] snapshot = false forbids pictures on this device";
        return Err(Refused(StatusCode::FORBIDDEN, message.into()));
    }
    let mut watching = Watching::begin(&server.scenes);
    let scene = tokio::time::timeout(FRAME_PATIENCE, watching.next()).await.ok().flatten();
    let scene = scene.ok_or_else(|| Refused::busy("no frame came: the camera gives none"))?;
    server.tell_shown();
    let encoded = aside("picture", move || jpeg(scene.pixels.full().ok()?).ok()).await.flatten();
    let jpeg = encoded.ok_or_else(|| Refused::busy("the frame cannot be shown"))?;
    Ok(([(header::CONTENT_TYPE, "image/jpeg"), (header::CACHE_CONTROL, "no-store")], jpeg)
        .into_response())
}

fn jpeg(picture: &Picture) -> image::ImageResult<Vec<u8>> {
    let mut out = Cursor::new(Vec::new());
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    JpegEncoder::new_with_quality(&mut out, QUALITY).encode(
        picture.rgb(),
        width,
        height,
        ExtendedColorType::Rgb8,
    )?;
    Ok(out.into_inner())
}

impl HttpServer {
    fn tell_shown(&self) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if shown.as_ref().is_none_or(|it| it.elapsed() >= TOLD_EVERY) {
            tracing::warn!("somebody is shown the camera's picture by http");
            *shown = Some(Stopwatch::start());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn a_request_id_is_made_where_there_is_none() {
        let made = |body: &str| {
            let whole = with_request_id(body.as_bytes())?;
            let value: Value = serde_json::from_slice(&whole).unwrap();
            assert!(value["request_id"].as_str().unwrap().starts_with("http-"), "{body}");
            Some(value)
        };
        assert_eq!(made(r#"{"venue":"main"}"#).unwrap()["venue"], "main");
        assert!(made(" { } ").is_some());
        for has_one_or_is_none in
            [r#"{"request_id":"r-1"}"#, r#"{"request_id":7}"#, "[]", "{", "", "7"]
        {
            assert!(made(has_one_or_is_none).is_none(), "{has_one_or_is_none}");
        }
    }
}

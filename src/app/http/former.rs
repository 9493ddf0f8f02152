//! The three routes of the former service, with its shapes.

use std::borrow::Cow;

use axum::Json;
use axum::body::Bytes;
use axum::extract::multipart::MultipartError;
use axum::extract::{FromRequest as _, Multipart, Request, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::api::status_of;
use super::{HttpServer, Refused, Shared, content_type, json_only, new_request_id};
use crate::recognise::face::Name;
use crate::record::command::{
    Attend, Command, EncodedImage, Enrol, ErrorCode, Recognise, Refusal, Verb,
};
use crate::record::ids;

// Fields that these do not know are passed over, as the former service did.

#[derive(Deserialize)]
struct ToRecognise<'a> {
    #[serde(borrow)]
    image: Cow<'a, str>,
}

#[derive(Deserialize)]
struct ToAttend<'a> {
    #[serde(borrow)]
    venue_id: Cow<'a, str>,
    #[serde(borrow)]
    image: Cow<'a, str>,
}

pub(super) async fn recognize_faces(
    State(server): Shared,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    json_only(&headers)?;
    let image = server.image(&read::<ToRecognise<'_>>(&body)?.image)?;
    drop(body);
    let answer = server.former(Verb::Recognise(Recognise { image })).await?;
    Ok(Json(json!({"names": answer["names"]})).into_response())
}

pub(super) async fn get_attendance(
    State(server): Shared,
    headers: HeaderMap,
    body: Bytes,
) -> Result<Response, Refused> {
    json_only(&headers)?;
    let wanted = read::<ToAttend<'_>>(&body)?;
    let venue = server.venues.find(&wanted.venue_id);
    let venue = venue.ok_or_else(|| Refused(StatusCode::NOT_FOUND, "Venue not found".into()))?.id;
    let image = server.image(&wanted.image)?;
    drop(wanted);
    drop(body);
    let answer = server
        .former(Verb::Attend(Attend { venue: venue.clone(), image, direction: None }))
        .await?;
    let of = venue.clone();
    let attendance = server.store.write_async(move |tx| tx.names_recorded(&of)).await?;
    let message = "Attendance recorded successfully";
    let recognised = &answer["recognised"];
    let body = json!({"message": message, "venue_id": venue, "attendance": attendance, "recognized_names": recognised});
    Ok(Json(body).into_response())
}

/// Another photograph of a name that is known becomes another reference of theirs.
pub(super) async fn add_face(State(server): Shared, request: Request) -> Result<Response, Refused> {
    if content_type(request.headers()) != "multipart/form-data" {
        return Err(Refused(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the Content-Type must be multipart/form-data".into(),
        ));
    }
    let form = Multipart::from_request(request, &())
        .await
        .map_err(|_| Refused::bad("the multipart has no boundary"))?;
    let (name, image) = server.new_face(form).await?;
    let subject_id = ids::from_name(name.as_str());
    let id = subject_id.clone();
    let known = server.store.write_async(move |tx| tx.subject(&id)).await?;
    if known.is_some_and(|it| ids::composed(it.name.as_str()) != ids::composed(name.as_str())) {
        let message = "somebody with another name has the id that is made of this one; enrol by MQTT with an id of your own";
        return Err(Refused(StatusCode::CONFLICT, message.into()));
    }
    let enrol =
        Enrol { subject_id, name, images: vec![image], replace: false, allow_duplicate: false };
    server.former(Verb::Enrol(enrol)).await?;
    Ok(Json(json!({"success": true})).into_response())
}

impl HttpServer {
    /// The answer of the command, if it was carried out.
    async fn former(&self, verb: Verb) -> Result<Value, Refused> {
        let command = Command { request_id: new_request_id(), expires_ms: None, verb };
        let answer = self.ask(command).await?;
        let answer: Value = serde_json::from_str(&answer)
            .map_err(|_| Refused::busy("the answer is not understood"))?;
        if answer["ok"] == true {
            return Ok(answer);
        }
        let text = |key: &str| answer["error"][key].as_str().unwrap_or_default();
        Err(Refused(status_of(text("code")), text("message").to_owned()))
    }

    fn image(&self, text: &str) -> Result<EncodedImage, Refused> {
        EncodedImage::from_text("image", text, &self.limits).map_err(refused)
    }

    async fn new_face(&self, mut form: Multipart) -> Result<(Name, EncodedImage), Refused> {
        let broken = |_: MultipartError| Refused::bad("the multipart body is broken");
        let (mut name, mut image) = (None, None);
        while let Some(field) = form.next_field().await.map_err(broken)? {
            match field.name() {
                Some("name") => {
                    let text = field.text().await.map_err(broken)?;
                    name = Some(
                        Name::new(text.trim())
                            .map_err(|error| Refused::bad(format!("name: {error}")))?,
                    );
                }
                Some("image") => image = Some(field.bytes().await.map_err(broken)?),
                _ => {}
            }
        }
        let (Some(name), Some(image)) = (name, image) else {
            return Err(Refused::bad("image and name are needed"));
        };
        let image =
            EncodedImage::from_bytes("image", image.to_vec(), &self.limits).map_err(refused)?;
        Ok((name, image))
    }
}

fn refused(refusal: Refusal) -> Refused {
    let status = if refusal.code == ErrorCode::TooLarge {
        StatusCode::PAYLOAD_TOO_LARGE
    } else {
        StatusCode::BAD_REQUEST
    };
    Refused(status, refusal.message)
}

/// A JSON body, read in place: an image in it is not copied.
fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refused> {
    // The library's own words may quote the body.
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            Refused::bad("a field is missing, or has the wrong type")
        }
        _ => Refused::bad("the body is not JSON"),
    })
}

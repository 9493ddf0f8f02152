//! Reading JSON that may be hostile, field by field: what is taken is checked, and what is left
//! over is rejected.

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::attend::venue::DirectionMode;
use crate::ids::{Name, SubjectId, check_id};
use crate::wire::command::image::EncodedImage;
use crate::wire::command::limits::{Limits, PAGE_DEFAULT, PAGE_MAX};
use crate::wire::command::rejection::{ErrorCode, Rejection};
use crate::wire::consent::{Consent, ConsentError};
use crate::wire::event::Direction;

/// How many values a command may have. The largest honest one has about twenty; 8 MiB of `[0,0,…`
/// would take 250 MB.
const VALUES_MAX: usize = 1_000;

/// How much of a field's name is repeated to the sender.
const NAME_QUOTED_MAX: usize = 64;

/// The members of one JSON object, taken out one by one.
pub(super) struct Fields {
    members: Map<String, Value>,
    /// Where this object stands, as a prefix of its fields' names: empty, `subject.` or
    /// `sessions[2].`.
    path: String,
}

/// Returns the request id for the rejection of a whole payload, if it can be read without trusting
/// the rest: it stands there once, it is an id, and nothing is built from the other fields. A payload
/// without one has `generated`.
pub(super) fn salvage_request_id(
    payload: &[u8],
    limits: &Limits,
    generated: Option<&str>,
) -> Option<String> {
    if payload.len() > limits.payload_bytes {
        return None;
    }
    let Salvage(found) = serde_json::from_slice(payload).ok()?;
    found.or_else(|| generated.map(str::to_owned)).filter(|it| check_id(it).is_ok())
}

struct Salvage(Option<String>);

impl<'de> Deserialize<'de> for Salvage {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneField;
        impl<'de> Visitor<'de> for OneField {
            type Value = Salvage;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Salvage, A::Error> {
                let mut found = None;
                while let Some(key) = access.next_key::<std::borrow::Cow<'de, str>>()? {
                    if key != "request_id" {
                        access.next_value::<IgnoredAny>()?;
                    } else if found.replace(access.next_value()?).is_some() {
                        return Err(A::Error::custom("duplicate field"));
                    }
                }
                Ok(Salvage(found))
            }
        }
        deserializer.deserialize_map(OneField)
    }
}

/// Reads the members of one JSON object from bytes that may be hostile.
pub(super) fn read(payload: &[u8], limits: &Limits) -> Result<Fields, Rejection> {
    scan(payload, limits)?;
    let Members(members) = serde_json::from_slice(payload).map_err(|error| {
        // The category and place only: the library's text may quote the payload.
        let line = error.line();
        let column = error.column();
        let message = match error.classify() {
            serde_json::error::Category::Eof => "the JSON ends too early".to_owned(),
            serde_json::error::Category::Data => {
                "a command is one JSON object without duplicate fields".to_owned()
            }
            _ => format!("not JSON at line {line}, column {column}"),
        };
        Rejection::new(None, ErrorCode::BadJson, message)
    })?;
    Ok(Fields::new(members))
}

/// Depth and number of values, by counting brackets and commas outside strings: no memory, one
/// pass, before any parser sees it.
fn scan(payload: &[u8], limits: &Limits) -> Result<(), Rejection> {
    let mut depth = 0_usize;
    let mut values = 1_usize;
    let mut in_string = false;
    let mut escaped = false;
    for byte in payload {
        if in_string {
            match (escaped, byte) {
                (true, _) => escaped = false,
                (false, b'\\') => escaped = true,
                (false, b'"') => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => {
                depth += 1;
                values += 1;
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => values += 1,
            _ => {}
        }
        if depth > limits.json_depth {
            let message = format!("JSON nested deeper than {}", limits.json_depth);
            return Err(Rejection::new(None, ErrorCode::TooDeep, message));
        }
        if values > VALUES_MAX {
            let message = format!("more than {VALUES_MAX} JSON values");
            return Err(Rejection::new(None, ErrorCode::TooMany, message));
        }
    }
    Ok(())
}

/// A JSON object whose keys are all different: with two `subject_id`s, which one is meant?
struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Unique;
        impl<'de> Visitor<'de> for Unique {
            type Value = Members;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Members, A::Error> {
                let mut members = Map::new();
                while let Some((key, value)) = access.next_entry::<String, Value>()? {
                    if members.insert(key, value).is_some() {
                        return Err(A::Error::custom("duplicate field"));
                    }
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Unique)
    }
}

impl Fields {
    pub(super) fn new(members: Map<String, Value>) -> Self {
        Self { members, path: String::new() }
    }

    pub(super) fn reject(
        &self,
        code: ErrorCode,
        key: &str,
        what: impl std::fmt::Display,
    ) -> Rejection {
        Rejection::of_field(code, &format!("{}{key}", self.path), what)
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &Value) -> Rejection {
        let found = match found {
            Value::Null => "null",
            Value::Bool(_) => "true or false",
            Value::Number(_) => "a number",
            Value::String(_) => "a string",
            Value::Array(_) => "a list",
            Value::Object(_) => "an object",
        };
        let what = format!("must be {expected}, not {found}");
        self.reject(ErrorCode::WrongType, key, what)
    }

    fn take(&mut self, key: &str) -> Result<Value, Rejection> {
        self.members
            .remove(key)
            .ok_or_else(|| self.reject(ErrorCode::MissingField, key, "is missing"))
    }

    /// Null is as good as absent.
    pub(super) fn optional<T>(
        &mut self,
        key: &str,
        read: impl FnOnce(&mut Self, &str) -> Result<T, Rejection>,
    ) -> Result<Option<T>, Rejection> {
        if self.members.get(key).is_none_or(Value::is_null) {
            self.members.remove(key);
            return Ok(None);
        }
        read(self, key).map(Some)
    }

    pub(super) fn text(&mut self, key: &str) -> Result<String, Rejection> {
        match self.take(key)? {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(key, "a string", &other)),
        }
    }

    pub(super) fn flag(&mut self, key: &str) -> Result<bool, Rejection> {
        match self.take(key)? {
            Value::Bool(flag) => Ok(flag),
            other => Err(self.wrong_type(key, "true or false", &other)),
        }
    }

    pub(super) fn whole(&mut self, key: &str) -> Result<i64, Rejection> {
        let value = self.take(key)?;
        value.as_i64().ok_or_else(|| self.wrong_type(key, "a whole number", &value))
    }

    pub(super) fn object(&mut self, key: &'static str) -> Result<Fields, Rejection> {
        let value = self.take(key)?;
        self.nested(key, value)
    }

    fn nested(&self, key: &str, value: Value) -> Result<Fields, Rejection> {
        match value {
            Value::Object(members) => Ok(Fields { members, path: format!("{}{key}.", self.path) }),
            other => Err(self.wrong_type(key, "an object", &other)),
        }
    }

    fn list(&mut self, key: &str, most: usize) -> Result<Vec<Value>, Rejection> {
        match self.take(key)? {
            Value::Array(list) if list.len() > most => Err(self.reject(
                ErrorCode::TooMany,
                key,
                format!("has {} values; at most {most}", list.len()),
            )),
            Value::Array(list) => Ok(list),
            other => Err(self.wrong_type(key, "a list", &other)),
        }
    }

    /// A list of objects, each read by `read`.
    pub(super) fn objects<T>(
        &mut self,
        key: &str,
        most: usize,
        mut read: impl FnMut(&mut Self) -> Result<T, Rejection>,
    ) -> Result<Vec<T>, Rejection> {
        let list = self.list(key, most)?;
        let one = |(at, value)| {
            let mut fields = self.nested(&format!("{key}[{at}]"), value)?;
            let it = read(&mut fields)?;
            fields.finish()?;
            Ok(it)
        };
        list.into_iter().enumerate().map(one).collect()
    }

    pub(super) fn texts(&mut self, key: &str, most: usize) -> Result<Vec<String>, Rejection> {
        let list = self.list(key, most)?;
        let text = |(at, value)| match value {
            Value::String(text) => Ok(text),
            other => Err(self.wrong_type(&format!("{key}[{at}]"), "a string", &other)),
        };
        list.into_iter().enumerate().map(text).collect()
    }

    pub(super) fn milliseconds(&mut self, key: &str) -> Result<u64, Rejection> {
        let ms = self.whole(key)?;
        u64::try_from(ms).map_err(|_| self.reject(ErrorCode::BadValue, key, "must not be negative"))
    }

    pub(super) fn direction_mode(&mut self, key: &str) -> Result<DirectionMode, Rejection> {
        self.text(key)?.parse().map_err(|_| {
            self.reject(ErrorCode::BadValue, key, "must be `in`, `out` or `alternate`")
        })
    }

    pub(super) fn id(&mut self, key: &str) -> Result<String, Rejection> {
        let id = self.text(key)?;
        match check_id(&id) {
            Ok(()) => Ok(id),
            Err(error) => Err(self.reject(ErrorCode::BadValue, key, format!("is no id: {error}"))),
        }
    }

    pub(super) fn subject_id(&mut self, key: &str) -> Result<SubjectId, Rejection> {
        let id = self.text(key)?;
        SubjectId::new(&id)
            .map_err(|error| self.reject(ErrorCode::BadValue, key, format!("is no id: {error}")))
    }

    pub(super) fn name(&mut self, key: &str) -> Result<Name, Rejection> {
        let name = self.text(key)?;
        Name::new(&name)
            .map_err(|error| self.reject(ErrorCode::BadValue, key, format!("is no name: {error}")))
    }

    /// RFC 3339 with an offset, as milliseconds since 1970.
    pub(super) fn time(&mut self, key: &str) -> Result<i64, Rejection> {
        let text = self.text(key)?;
        match text.parse::<jiff::Timestamp>() {
            Ok(time) if text.len() <= 64 => Ok(time.as_millisecond()),
            _ => Err(self.reject(ErrorCode::BadValue, key, "is no RFC 3339 time with an offset")),
        }
    }

    /// With its own fields, each rejected by its name.
    pub(super) fn consent(&mut self, key: &str) -> Result<Consent, Rejection> {
        let value = self.take(key)?;
        let mut fields = self.nested(key, value)?;
        let given_ms = fields.time("given_at")?;
        let text_version = fields.id("text_version")?;
        let valid_until_ms = fields.optional("valid_until", Self::time)?;
        let recorded_by = fields.name("recorded_by")?;
        fields.finish()?;
        Consent::new(given_ms, &text_version, valid_until_ms, recorded_by).map_err(|error| {
            let (field, what) = match error {
                ConsentError::Order => ("valid_until", "must be after `given_at`"),
                _ => ("given_at", "must not be before 1970"),
            };
            fields.reject(ErrorCode::BadValue, field, what)
        })
    }

    pub(super) fn direction(&mut self, key: &str) -> Result<Direction, Rejection> {
        let direction = self.text(key)?.parse();
        direction.map_err(|_| self.reject(ErrorCode::BadValue, key, "must be `in` or `out`"))
    }

    pub(super) fn page(&mut self) -> Result<u32, Rejection> {
        let limit = self.optional("limit", Self::whole)?.unwrap_or(i64::from(PAGE_DEFAULT));
        match u32::try_from(limit) {
            Ok(limit @ 1..=PAGE_MAX) => Ok(limit),
            _ => Err(self.reject(ErrorCode::BadValue, "limit", format!("must be 1 to {PAGE_MAX}"))),
        }
    }

    pub(super) fn image(&mut self, key: &str, limits: &Limits) -> Result<EncodedImage, Rejection> {
        let value = self.take(key)?;
        self.decode_image(key, &value, limits)
    }

    pub(super) fn images(
        &mut self,
        key: &str,
        limits: &Limits,
    ) -> Result<Vec<EncodedImage>, Rejection> {
        let list = match self.take(key)? {
            Value::Array(list) => list,
            other => return Err(self.wrong_type(key, "a list of images", &other)),
        };
        if list.is_empty() {
            return Err(self.reject(ErrorCode::BadValue, key, "is empty"));
        }
        if list.len() > limits.images {
            let what = format!("has {} images; at most {}", list.len(), limits.images);
            return Err(self.reject(ErrorCode::TooMany, key, what));
        }
        // By value, so that the text of an image is freed once it has been decoded.
        list.into_iter()
            .enumerate()
            .map(|(at, value)| self.decode_image(&format!("{key}[{at}]"), &value, limits))
            .collect()
    }

    fn decode_image(
        &self,
        key: &str,
        value: &Value,
        limits: &Limits,
    ) -> Result<EncodedImage, Rejection> {
        match value {
            Value::String(text) => {
                EncodedImage::from_text(&format!("{}{key}", self.path), text, limits)
            }
            other => Err(self.wrong_type(key, "a base64 string", other)),
        }
    }

    /// Nothing may be left: a field that is not known is a typo, or a wish that would be ignored.
    pub(super) fn finish(&mut self) -> Result<(), Rejection> {
        let Some(key) = self.members.keys().next() else {
            return Ok(());
        };
        let quoted: String =
            key.chars().filter(|c| !c.is_control()).take(NAME_QUOTED_MAX).collect();
        Err(self.reject(ErrorCode::UnknownField, &quoted, "is not known here"))
    }
}

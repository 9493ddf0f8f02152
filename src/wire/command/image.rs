//! An image as it arrives in a command: bytes, or text as programs write it.

use std::borrow::Cow;
use std::fmt;

use base64::Engine as _;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::wire::command::limits::{Limits, over};
use crate::wire::command::rejection::{ErrorCode, Rejection};

/// An image as it was sent: supposedly JPEG, PNG or WebP. Only its size has been checked.
#[derive(Clone, PartialEq, Eq)]
pub struct EncodedImage(Vec<u8>);

impl EncodedImage {
    /// Decodes base64, bare or as a data URL. The size is checked before memory is taken for it.
    /// `field` stands in the rejection.
    pub fn from_text(field: &str, text: &str, limits: &Limits) -> Result<Self, Rejection> {
        let bad = |what: &str| Rejection::of_field(ErrorCode::BadImage, field, what);
        let encoded = EncodedText::read(text).map_err(bad)?;
        check_size(field, encoded.decoded_bytes(), limits)?;
        encoded.decode().map_err(bad)
    }

    /// Takes the bytes of an upload.
    pub fn from_bytes(field: &str, bytes: Vec<u8>, limits: &Limits) -> Result<Self, Rejection> {
        if bytes.is_empty() {
            return Err(Rejection::of_field(ErrorCode::BadImage, field, "is empty"));
        }
        check_size(field, bytes.len(), limits)?;
        Ok(Self(bytes))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

fn check_size(field: &str, bytes: usize, limits: &Limits) -> Result<(), Rejection> {
    if bytes > limits.image_bytes {
        let why = over(bytes, limits.image_bytes);
        return Err(Rejection::of_field(ErrorCode::TooLarge, field, why));
    }
    Ok(())
}

impl fmt::Debug for EncodedImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EncodedImage({} bytes)", self.0.len())
    }
}

/// Base64 text, alone or in a data URL (RFC 2397).
///
/// Whatever has one meaning only is accepted: any image type or none in any case, parameters, white
/// space and line ends (RFC 2045), the alphabet for URLs (RFC 4648, 5), padding or none, and the
/// characters that a URL escapes. What kind of image it is shows in the bytes.
pub(super) struct EncodedText<'a> {
    text: &'a str,
    /// Whether it is in a URL, where characters may be escaped.
    is_url: bool,
    /// Characters that stand for bits.
    characters: usize,
}

/// Types that name no kind of image but are written for one.
const OPAQUE_TYPES: [&str; 3] = ["", "application/octet-stream", "binary/octet-stream"];

const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::RequireNone)
        .with_decode_allow_trailing_bits(true),
);

impl<'a> EncodedText<'a> {
    /// The error completes "{field} …".
    pub(super) fn read(text: &'a str) -> Result<Self, &'static str> {
        let text = text.trim_start_matches('\u{feff}').trim();
        let is_url = text.get(..5).is_some_and(|scheme| scheme.eq_ignore_ascii_case("data:"));
        let text = if is_url { read_url(&text[5..])? } else { text };
        let characters = text.bytes().filter(|byte| !is_blank(*byte) && *byte != b'=').count();
        let escapes = if is_url { text.bytes().filter(|byte| *byte == b'%').count() } else { 0 };
        Ok(Self { text, is_url, characters: characters.saturating_sub(2 * escapes) })
    }

    /// How many bytes it stands for, at most.
    pub(super) fn decoded_bytes(&self) -> usize {
        self.characters / 4 * 3 + (self.characters % 4) * 3 / 4
    }

    pub(super) fn decode(&self) -> Result<EncodedImage, &'static str> {
        let bare = self.text.trim_end_matches('=');
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
        let plain = if bare.bytes().all(is_plain) {
            Cow::Borrowed(bare.as_bytes())
        } else {
            Cow::Owned(self.make_plain()?)
        };
        match BASE64.decode(plain) {
            Ok(bytes) if bytes.is_empty() => Err("is empty"),
            Ok(bytes) => Ok(EncodedImage(bytes)),
            Err(_) => Err("is not base64"),
        }
    }

    /// The same in the usual alphabet, without anything else.
    fn make_plain(&self) -> Result<Vec<u8>, &'static str> {
        let mut plain = Vec::with_capacity(self.characters);
        let mut bytes = self.text.bytes();
        let mut is_padded = false;
        while let Some(byte) = bytes.next() {
            let byte = if byte == b'%' && self.is_url {
                let digits = [bytes.next(), bytes.next()]
                    .map(|digit| digit.and_then(|digit| char::from(digit).to_digit(16)));
                let [Some(high), Some(low)] = digits else { return Err("is not base64") };
                (high * 16 + low) as u8
            } else {
                byte
            };
            match byte {
                b'=' => is_padded = true,
                byte if is_blank(byte) => {}
                _ if is_padded => return Err("is not base64"),
                b'-' => plain.push(b'+'),
                b'_' => plain.push(b'/'),
                byte => plain.push(byte),
            }
        }
        Ok(plain)
    }
}

fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace()
}

/// What a data URL has behind its comma.
fn read_url(url: &str) -> Result<&str, &'static str> {
    let (header, data) = url.split_once(',').ok_or("is a data URL without data")?;
    let mut parts = header.split(';').map(str::trim);
    let media_type = parts.next().unwrap_or_default().to_ascii_lowercase();
    if !media_type.starts_with("image/") && !OPAQUE_TYPES.contains(&media_type.as_str()) {
        return Err("is a data URL, but not of an image");
    }
    if !parts.any(|parameter| parameter.eq_ignore_ascii_case("base64")) {
        return Err("is a data URL, but not in base64");
    }
    Ok(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(text: &str) -> Result<Vec<u8>, &'static str> {
        EncodedText::read(text)?.decode().map(|image| image.0)
    }

    #[test]
    fn base64_of_every_writer_is_decoded() {
        // Bytes whose text has every special character: ++//vv0= and its likes.
        let bytes = [0xFB, 0xEF, 0xFF, 0xFE, 0xFD];
        for text in [
            "++///v0=",
            "++///v0",
            "--___v0=",
            "--___v0",
            "+-/_/v0",
            "++//\r\n/v0=\r\n",
            " ++// /v0 =\t",
            "\u{feff}++///v0=",
            "++///v1=",
            "data:image/jpeg;base64,++///v0=",
            "data:image/jpg;base64,++///v0=",
            "data:image/pjpeg;base64,++///v0",
            "data:image/heic;base64,++///v0=",
            "DATA:IMAGE/PNG;BASE64,++///v0=",
            "data:;base64,++///v0=",
            "data:application/octet-stream;base64,++///v0=",
            "data:image/jpeg;charset=utf-8;base64,++///v0=",
            "data:image/jpeg;name=a.jpg; base64 , ++//\n/v0=",
            "data:image/png;base64,--___v0",
            "data:image/png;base64,%2B%2b%2F//v0%3D",
            "data:image/png;base64,++//%0D%0A/v0%3D",
        ] {
            let encoded = EncodedText::read(text).unwrap();
            assert_eq!(decoded(text).as_deref(), Ok(&bytes[..]), "{text:?}");
            // Escapes of padding and line ends are counted too.
            assert!((5..=7).contains(&encoded.decoded_bytes()), "{text:?}");
        }
    }

    #[test]
    fn text_that_is_no_image_is_named() {
        for (text, expected) in [
            ("", "is empty"),
            (" \n", "is empty"),
            ("====", "is empty"),
            ("data:image/png;base64,", "is empty"),
            ("A", "is not base64"),
            ("AAA=AAAA", "is not base64"),
            ("AA*A", "is not base64"),
            ("Zoë0", "is not base64"),
            ("AA%2B", "is not base64"),
            ("data:image/png;base64,AA%2", "is not base64"),
            ("data:image/png;base64", "is a data URL without data"),
            ("data:image/png,hello", "is a data URL, but not in base64"),
            ("data:text/html;base64,aGk=", "is a data URL, but not of an image"),
            ("http://example.net/a.jpg", "is not base64"),
        ] {
            assert_eq!(decoded(text), Err(expected), "{text:?}");
        }
    }
}

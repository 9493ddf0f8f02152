//! The answer of a camera: its head, and its body out of the transfer coding.
//!
//! Invariants: a head of more than [`HEAD_BYTES_MAX`] or [`HEADERS_MAX`] headers is rejected; a
//! redirection is rejected, so that nobody but the configuration decides what is connected to; no
//! memory is taken for the body.

use httparse::{EMPTY_HEADER, Response, Status};

use crate::camera::fault::{CameraFault, FaultKind};

pub const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// A chunk's head: its length in hexadecimal, and extensions that nobody uses.
const CHUNK_HEAD_BYTES_MAX: usize = 256;

/// How the body is transferred.
#[derive(Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// To the end of the connection, or for so many bytes.
    Plain {
        left: Option<u64>,
    },
    Chunked(Chunks),
}

/// Reads a head; `None` while it is not complete. Returns its length and the body that follows.
pub fn read_head(bytes: &[u8]) -> Result<Option<(usize, ResponseBody)>, CameraFault> {
    let mut headers = [EMPTY_HEADER; HEADERS_MAX];
    let mut response = Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Ok(None),
        Ok(Status::Partial) => return Err(no_stream("the head of its answer has no end")),
        Err(error) => return Err(no_stream(format!("its answer is not HTTP ({error})"))),
    };
    check_status(&response)?;
    check_content(&response)?;
    let is_chunked = header(&response, "transfer-encoding")
        .is_some_and(|it| it.to_ascii_lowercase().contains("chunked"));
    let body = if is_chunked {
        ResponseBody::Chunked(Chunks::default())
    } else {
        ResponseBody::Plain {
            left: header(&response, "content-length").and_then(|it| it.trim().parse().ok()),
        }
    };
    Ok(Some((length, body)))
}

fn check_status(response: &Response<'_, '_>) -> Result<(), CameraFault> {
    let unauthorised = |reason: &str| Err(CameraFault::new(FaultKind::Unauthorised, reason));
    match response.code.unwrap_or_default() {
        200 => Ok(()),
        401 => {
            let scheme = header(response, "www-authenticate").unwrap_or_default();
            if scheme.to_ascii_lowercase().starts_with("digest") {
                return unauthorised(
                    "the camera wants digest authentication, and only basic authentication is supported: change that in the \
                     camera, or read it with preset = \"rtsp\"",
                );
            }
            unauthorised("the camera rejects user or password")
        }
        403 => unauthorised("the camera denies access"),
        status @ 300..=399 => {
            Err(no_stream(format!("the camera redirects to another URL (status {status})")))
        }
        status => Err(no_stream(format!("the camera answers with status {status}"))),
    }
}

fn check_content(response: &Response<'_, '_>) -> Result<(), CameraFault> {
    let content = header(response, "content-type").unwrap_or_default().to_ascii_lowercase();
    let essence = content.split(';').next().unwrap_or_default().trim();
    match essence.split('/').next().unwrap_or_default() {
        _ if essence == "image/jpeg" || essence == "image/jpg" => {
            Err(no_stream("the URL is that of a single picture, not of a stream"))
        }
        "text" => Err(no_stream(format!("the camera answers with a page ({essence})"))),
        _ => match header(response, "content-encoding").unwrap_or("identity") {
            "identity" => Ok(()),
            _ => Err(no_stream("the camera compresses its answer")),
        },
    }
}

fn header<'a>(response: &Response<'_, 'a>, name: &str) -> Option<&'a str> {
    let header = response.headers.iter().find(|it| it.name.eq_ignore_ascii_case(name))?;
    std::str::from_utf8(header.value).ok()
}

fn no_stream(reason: impl AsRef<str>) -> CameraFault {
    CameraFault::new(FaultKind::NoStream, reason)
}

impl ResponseBody {
    /// Passes the content of what was read to `take`. Returns whether more will come.
    pub fn read(&mut self, bytes: &[u8], mut take: impl FnMut(&[u8])) -> Result<bool, CameraFault> {
        match self {
            Self::Plain { left: None } => {
                take(bytes);
                Ok(true)
            }
            Self::Plain { left: Some(left) } => {
                let length = usize::try_from(*left).map_or(bytes.len(), |it| it.min(bytes.len()));
                take(&bytes[..length]);
                *left -= length as u64;
                Ok(*left > 0)
            }
            Self::Chunked(chunks) => chunks.read(bytes, take),
        }
    }
}

/// The chunked transfer coding.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chunks {
    state: ChunkState,
    /// Bytes of the present head.
    head_bytes: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// The length of a chunk; `None` before its first digit.
    Length(Option<u64>),
    /// The rest of the line with the length.
    Extension(u64),
    Content(u64),
    /// The line's end behind the content.
    End,
}

impl Default for ChunkState {
    fn default() -> Self {
        Self::Length(None)
    }
}

impl Chunks {
    fn read(&mut self, mut bytes: &[u8], mut take: impl FnMut(&[u8])) -> Result<bool, CameraFault> {
        while let Some((&byte, rest)) = bytes.split_first() {
            if let ChunkState::Content(left) = self.state {
                let length = usize::try_from(left).map_or(bytes.len(), |it| it.min(bytes.len()));
                take(&bytes[..length]);
                bytes = &bytes[length..];
                let left = left - length as u64;
                self.state = if left == 0 { ChunkState::End } else { ChunkState::Content(left) };
                continue;
            }
            bytes = rest;
            self.head_bytes += 1;
            if self.head_bytes > CHUNK_HEAD_BYTES_MAX {
                return Err(no_stream("a chunk of its answer has no length"));
            }
            self.state = match (self.state, byte) {
                (ChunkState::End, b'\r') => ChunkState::End,
                (ChunkState::End, b'\n') => {
                    self.head_bytes = 0;
                    ChunkState::Length(None)
                }
                (ChunkState::Length(Some(length)) | ChunkState::Extension(length), b'\n') => {
                    self.head_bytes = 0;
                    // What follows the last chunk is of no interest.
                    if length == 0 {
                        return Ok(false);
                    }
                    ChunkState::Content(length)
                }
                (ChunkState::Length(Some(length)), b'\r' | b';' | b' ' | b'\t')
                | (ChunkState::Extension(length), _) => ChunkState::Extension(length),
                (ChunkState::Length(length), digit) => {
                    let digit = char::from(digit).to_digit(16);
                    let longer = digit.and_then(|digit| {
                        length.unwrap_or_default().checked_mul(16)?.checked_add(u64::from(digit))
                    });
                    match longer {
                        Some(length) => ChunkState::Length(Some(length)),
                        None => return Err(no_stream("a chunk of its answer is broken")),
                    }
                }
                _ => return Err(no_stream("a chunk of its answer is broken")),
            };
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(text: &str) -> Result<Option<(usize, ResponseBody)>, CameraFault> {
        read_head(text.replace('\n', "\r\n").as_bytes())
    }

    #[test]
    fn head_of_a_stream_is_accepted() {
        for kind in [
            "Content-Type: multipart/x-mixed-replace;boundary=--frame\n",
            "content-type: multipart/x-mixed-replace; boundary=\"a b\"\nServer: x\n",
            "Content-Type: video/x-motion-jpeg\n",
            "",
        ] {
            let (_, body) = head(&format!("HTTP/1.0 200 OK\n{kind}\n")).unwrap().unwrap();
            assert_eq!(body, ResponseBody::Plain { left: None }, "{kind}");
        }
        let chunked = head("HTTP/1.1 200 OK\nTransfer-Encoding: Chunked\n\n").unwrap().unwrap();
        assert!(matches!(chunked.1, ResponseBody::Chunked(_)));
        assert_eq!(head("HTTP/1.1 200 OK\nContent-Ty").unwrap(), None);
    }

    #[test]
    fn other_answers_are_faults_of_their_kind() {
        use FaultKind::{NoStream, Unauthorised};
        for (text, kind, part) in [
            ("HTTP/1.1 401 No\nWWW-Authenticate: Basic realm=x\n\n", Unauthorised, "password"),
            ("HTTP/1.1 401 No\nWWW-Authenticate: Digest realm=x\n\n", Unauthorised, "digest"),
            ("HTTP/1.1 403 No\n\n", Unauthorised, "denies"),
            ("HTTP/1.1 302 Found\nLocation: http://elsewhere/\n\n", NoStream, "redirects"),
            ("HTTP/1.1 404 Not Found\n\n", NoStream, "404"),
            ("HTTP/1.1 200 OK\nContent-Type: text/html\n\n", NoStream, "page"),
            ("HTTP/1.1 200 OK\nContent-Type: image/jpeg\n\n", NoStream, "single picture"),
            ("HTTP/1.1 200 OK\nContent-Encoding: gzip\n\n", NoStream, "compresses"),
            ("SSH-2.0-OpenSSH\n", NoStream, "not HTTP"),
        ] {
            let fault = head(text).unwrap_err();
            assert!(fault.kind == kind && fault.reason().contains(part), "{text}: {fault}");
        }
    }

    #[test]
    fn endless_head_is_rejected() {
        let long = format!("HTTP/1.1 200 OK\nX: {}", "x".repeat(HEAD_BYTES_MAX));
        assert_eq!(head(&long).unwrap_err().kind, FaultKind::NoStream);
        let many = format!("HTTP/1.1 200 OK\n{}\n", "X: y\n".repeat(HEADERS_MAX + 1));
        assert_eq!(head(&many).unwrap_err().kind, FaultKind::NoStream);
    }

    fn dechunk(bytes: &[u8], portion: usize) -> Result<(Vec<u8>, bool), CameraFault> {
        let mut body = ResponseBody::Chunked(Chunks::default());
        let mut content = Vec::new();
        for part in bytes.chunks(portion) {
            if !body.read(part, |bytes| content.extend_from_slice(bytes))? {
                return Ok((content, false));
            }
        }
        Ok((content, true))
    }

    #[test]
    fn chunks_are_joined_at_any_portion() {
        let coded = b"4\r\nabcd\r\n00A;name=value\r\n0123456789\r\n1\nx\n";
        for portion in [1, 2, 5, 100] {
            assert_eq!(dechunk(coded, portion), Ok((b"abcd0123456789x".to_vec(), true)));
        }
        assert_eq!(dechunk(b"1\r\na\r\n0\r\n\r\nmore", 3), Ok((b"a".to_vec(), false)));
    }

    #[test]
    fn broken_chunks_are_rejected() {
        let endless = [b'0'; CHUNK_HEAD_BYTES_MAX + 1];
        for coded in [&b"xyz\r\n"[..], b"\r\n", b"1\r\nab", b"fffffffffffffffff\r\n", &endless] {
            assert!(dechunk(coded, 100).is_err(), "{coded:?}");
        }
    }

    #[test]
    fn body_ends_at_its_stated_length() {
        let mut body = ResponseBody::Plain { left: Some(5) };
        let mut content = Vec::new();
        let mut take = |bytes: &[u8]| content.extend_from_slice(bytes);
        assert_eq!(body.read(b"abc", &mut take), Ok(true));
        assert_eq!(body.read(b"defg", &mut take), Ok(false));
        assert_eq!(content, b"abcde");
    }
}

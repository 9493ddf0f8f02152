//! MQTT over WebSocket (RFC 6455), the server's side, without a socket.
//!
//! MQTT is a stream within binary frames, whose boundaries mean nothing (section 6 of the
//! standard). So nothing is assembled here: the payload is unmasked and passed on as it arrives.
//!
//! Invariants: no input panics; besides the head of the request nothing is kept but the beginning
//! of a frame.
//!
//! Not here: a library. tungstenite brings nine crates and collects whole messages, which have no
//! use here.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};

/// The head of a browser's request has about 600 bytes.
pub const HEAD_BYTES_MAX: usize = 8 << 10;
const HEADERS_MAX: usize = 64;
/// Appended to a client's key before it is hashed (section 1.3 of the RFC).
const KEY_SUFFIX: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
const SUBPROTOCOL: &str = "mqtt";
/// A frame's header: two bytes, eight of length, four of the mask.
const HEADER_BYTES_MAX: usize = 14;
const CONTROL_BYTES_MAX: u64 = 125;

/// What a request for a WebSocket gets.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The response, and how many bytes the request had.
    Accepted {
        response: Vec<u8>,
        request_bytes: usize,
    },
    Refused {
        response: &'static str,
    },
    /// The request is not complete.
    Incomplete,
}

const BAD_REQUEST: &str =
    "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
const UPGRADE_REQUIRED: &str = "HTTP/1.1 426 Upgrade Required\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Version: 13\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// Answers the request with which a WebSocket begins.
pub fn answer(bytes: &[u8]) -> Answer {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let request_bytes = match request.parse(bytes) {
        Ok(httparse::Status::Complete(count)) => count,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES_MAX => return Answer::Incomplete,
        _ => return Answer::Refused { response: BAD_REQUEST },
    };
    let values = |name: &'static str| {
        let of_name = request.headers.iter().filter(move |it| it.name.eq_ignore_ascii_case(name));
        of_name.filter_map(|it| str::from_utf8(it.value).ok()).flat_map(|it| it.split(','))
    };
    let has = |name, wanted: &str| values(name).any(|it| it.trim().eq_ignore_ascii_case(wanted));
    let is_upgrade = request.method == Some("GET")
        && request.version == Some(1)
        && has("upgrade", "websocket")
        && has("connection", "upgrade");
    if !is_upgrade || !has("sec-websocket-version", "13") {
        return Answer::Refused { response: UPGRADE_REQUIRED };
    }
    let key = values("sec-websocket-key").next().map(str::trim).unwrap_or_default();
    let is_key = BASE64.decode(key).is_ok_and(|nonce| nonce.len() == 16);
    let offers_any = values("sec-websocket-protocol").next().is_some();
    let offers_mqtt = has("sec-websocket-protocol", SUBPROTOCOL);
    if !is_key || (offers_any && !offers_mqtt) {
        return Answer::Refused { response: BAD_REQUEST };
    }
    Answer::Accepted { response: acceptance(key, offers_mqtt), request_bytes }
}

fn acceptance(key: &str, with_protocol: bool) -> Vec<u8> {
    let hash = digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{KEY_SUFFIX}").as_bytes());
    let accept = BASE64.encode(hash);
    let mut response = format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {accept}\r\n"
    );
    if with_protocol {
        response.push_str("Sec-WebSocket-Protocol: ");
        response.push_str(SUBPROTOCOL);
        response.push_str("\r\n");
    }
    response += "\r\n";
    response.into_bytes()
}

/// The header of a binary frame of the server, which is not masked.
pub fn binary_header(bytes: usize) -> Vec<u8> {
    header(Opcode::Binary, bytes)
}

fn header(opcode: Opcode, bytes: usize) -> Vec<u8> {
    let mut header = vec![0x80 | opcode as u8];
    match bytes {
        0..=125 => header.push(bytes as u8),
        126..=0xffff => {
            header.push(126);
            header.extend((bytes as u16).to_be_bytes());
        }
        _ => {
            header.push(127);
            header.extend((bytes as u64).to_be_bytes());
        }
    }
    header
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Opcode {
    Continuation = 0x0,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
}

/// Why the WebSocket ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    ClosedByClient,
    /// A frame breaks the RFC.
    ProtocolError,
    /// A text frame: MQTT is binary (section 6 of the standard).
    NotBinary,
}

impl Ending {
    /// The frame that ends it.
    pub fn close_frame(self) -> Vec<u8> {
        let code: u16 = match self {
            Self::ClosedByClient => 1000,
            Self::ProtocolError => 1002,
            Self::NotBinary => 1003,
        };
        let mut frame = header(Opcode::Close, 2);
        frame.extend(code.to_be_bytes());
        frame
    }
}

/// The frame that arrives at present.
struct WebSocketFrame {
    opcode: Opcode,
    remaining: u64,
    mask: [u8; 4],
    mask_at: usize,
}

/// Takes frames apart.
#[derive(Default)]
pub struct Decoder {
    header: Vec<u8>,
    frame: Option<WebSocketFrame>,
    /// The payload of a control frame, which is answered when it is complete.
    control: Vec<u8>,
    /// A message has begun, and continuation frames follow.
    is_continued: bool,
}

impl Decoder {
    /// Takes bytes of the socket. Appends the payload of binary frames to `payload`, and to
    /// `replies` what is to be sent back.
    pub fn feed(
        &mut self,
        mut bytes: &[u8],
        payload: &mut Vec<u8>,
        replies: &mut Vec<u8>,
    ) -> Result<(), Ending> {
        while !bytes.is_empty() {
            let Some(frame) = &mut self.frame else {
                let (byte, rest) = (bytes[0], &bytes[1..]);
                bytes = rest;
                self.header.push(byte);
                self.begin_frame()?;
                self.end_frame(replies)?;
                continue;
            };
            let count = bytes.len().min(usize::try_from(frame.remaining).unwrap_or(usize::MAX));
            let (now, rest) = bytes.split_at(count);
            bytes = rest;
            frame.remaining -= count as u64;
            let is_data = matches!(frame.opcode, Opcode::Binary | Opcode::Continuation);
            let target = if is_data { &mut *payload } else { &mut self.control };
            for byte in now {
                target.push(byte ^ frame.mask[frame.mask_at]);
                frame.mask_at = (frame.mask_at + 1) % 4;
            }
            self.end_frame(replies)?;
        }
        Ok(())
    }

    /// Reads the header when it is complete.
    fn begin_frame(&mut self) -> Result<(), Ending> {
        let [first, second, rest @ ..] = self.header.as_slice() else {
            return Ok(());
        };
        let is_final = first & 0x80 != 0;
        let opcode = match first & 0x0f {
            0x0 => Opcode::Continuation,
            0x1 => return Err(Ending::NotBinary),
            0x2 => Opcode::Binary,
            0x8 => Opcode::Close,
            0x9 => Opcode::Ping,
            0xa => Opcode::Pong,
            _ => return Err(Ending::ProtocolError),
        };
        let is_masked = second & 0x80 != 0;
        if first & 0x70 != 0 || !is_masked {
            return Err(Ending::ProtocolError);
        }
        let length_bytes = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        debug_assert!(self.header.len() <= HEADER_BYTES_MAX);
        let Some((length, rest)) = rest.split_at_checked(length_bytes) else {
            return Ok(());
        };
        let Some(mask) = rest.first_chunk::<4>() else {
            return Ok(());
        };
        let extended = length.iter().fold(0, |all, byte| all << 8 | u64::from(*byte));
        let remaining = if length_bytes == 0 { u64::from(second & 0x7f) } else { extended };
        let is_control = opcode as u8 & 0x8 != 0;
        let is_in_order = match opcode {
            Opcode::Continuation => self.is_continued,
            Opcode::Binary => !self.is_continued,
            _ => is_final && remaining <= CONTROL_BYTES_MAX,
        };
        if !is_in_order {
            return Err(Ending::ProtocolError);
        }
        if !is_control {
            self.is_continued = !is_final;
        }
        self.frame = Some(WebSocketFrame { opcode, remaining, mask: *mask, mask_at: 0 });
        self.header.clear();
        Ok(())
    }

    /// Answers a control frame when it is complete.
    fn end_frame(&mut self, replies: &mut Vec<u8>) -> Result<(), Ending> {
        let Some(frame) = self.frame.take_if(|it| it.remaining == 0) else {
            return Ok(());
        };
        let control = std::mem::take(&mut self.control);
        match frame.opcode {
            Opcode::Close => return Err(Ending::ClosedByClient),
            Opcode::Ping => {
                replies.extend(header(Opcode::Pong, control.len()));
                replies.extend(control);
            }
            Opcode::Pong | Opcode::Binary | Opcode::Continuation => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0x37, 0xfa, 0x21, 0x3d];
        let mut frame = vec![first];
        match payload.len() {
            0..=125 => frame.push(0x80 | payload.len() as u8),
            126..=0xffff => {
                frame.push(0xFE); // masked, with a length of 16 bits
                frame.extend((payload.len() as u16).to_be_bytes());
            }
            _ => {
                frame.push(0xFF); // masked, with a length of 64 bits
                frame.extend((payload.len() as u64).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn decoded(bytes: &[u8], piece: usize) -> (Vec<u8>, Vec<u8>, Result<(), Ending>) {
        let mut decoder = Decoder::default();
        let (mut payload, mut replies) = (Vec::new(), Vec::new());
        for bytes in bytes.chunks(piece) {
            if let Err(ending) = decoder.feed(bytes, &mut payload, &mut replies) {
                return (payload, replies, Err(ending));
            }
        }
        (payload, replies, Ok(()))
    }

    #[test]
    fn example_of_the_rfc_is_unmasked() {
        let frame = [0x82, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
        assert_eq!(decoded(&frame, 11).0, b"Hello");
    }

    #[test]
    fn stream_is_the_same_at_any_split() {
        let long = vec![5; 70_000];
        let mut bytes = masked(0x02, b"one"); // its first fragment
        bytes.extend(masked(0x89, b"ping"));
        bytes.extend(masked(0x00, &[1; 200]));
        bytes.extend(masked(0x80, b""));
        bytes.extend(masked(0x82, &long));
        let expected = [b"one".as_slice(), &[1; 200], &long].concat();
        for piece in [1, 2, 7, 4096, bytes.len()] {
            let (payload, replies, outcome) = decoded(&bytes, piece);
            assert_eq!(outcome, Ok(()));
            assert!(payload == expected, "in pieces of {piece}");
            assert_eq!(replies, b"\x8a\x04ping");
        }
    }

    #[test]
    fn invalid_frames_end_the_connection() {
        let unmasked = vec![0x82, 1, 0];
        let long_ping = masked(0x89, &[0; 126]);
        let mut interleaved = masked(0x02, b"a");
        interleaved.extend(masked(0x82, b"b"));
        for (bytes, ending) in [
            (masked(0x81, b"text"), Ending::NotBinary),
            (masked(0x88, &[0x03, 0xe8]), Ending::ClosedByClient),
            (unmasked, Ending::ProtocolError),
            (long_ping, Ending::ProtocolError),
            (masked(0x09, b"fragmented ping"), Ending::ProtocolError),
            (masked(0x80, b"continues nothing"), Ending::ProtocolError),
            (masked(0xc2, b"reserved bit"), Ending::ProtocolError),
            (masked(0x83, b"unknown opcode"), Ending::ProtocolError),
            (interleaved, Ending::ProtocolError),
        ] {
            assert_eq!(decoded(&bytes, 3).2, Err(ending), "{bytes:?}");
        }
    }

    const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n\
        Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqttv3.1, mqtt\r\n\r\n";

    #[test]
    fn handshake_follows_the_rfc() {
        let Answer::Accepted { response, request_bytes } = answer(REQUEST.as_bytes()) else {
            panic!("refused");
        };
        assert_eq!(request_bytes, REQUEST.len());
        let response = String::from_utf8(response).unwrap();
        assert!(response.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"));
        assert!(response.contains("Sec-WebSocket-Protocol: mqtt\r\n"));
        let plain = REQUEST.replace("Sec-WebSocket-Protocol: mqttv3.1, mqtt\r\n", "");
        let Answer::Accepted { response, .. } = answer(plain.as_bytes()) else {
            panic!("refused");
        };
        assert!(!String::from_utf8(response).unwrap().contains("Sec-WebSocket-Protocol"));
        for end in 0..REQUEST.len() {
            assert_eq!(answer(&REQUEST.as_bytes()[..end]), Answer::Incomplete, "{end}");
        }
    }

    #[test]
    fn other_requests_are_refused() {
        for (from, to, expected) in [
            ("GET ", "POST ", UPGRADE_REQUIRED),
            ("HTTP/1.1", "HTTP/1.0", UPGRADE_REQUIRED),
            ("Upgrade: websocket", "Upgrade: h2c", UPGRADE_REQUIRED),
            ("keep-alive, Upgrade", "keep-alive", UPGRADE_REQUIRED),
            ("Version: 13", "Version: 8", UPGRADE_REQUIRED),
            ("dGhlIHNhbXBsZSBub25jZQ==", "short", BAD_REQUEST),
            ("mqttv3.1, mqtt", "chat", BAD_REQUEST),
            ("Host: x", "Host x", BAD_REQUEST),
        ] {
            let request = REQUEST.replace(from, to);
            assert_eq!(answer(request.as_bytes()), Answer::Refused { response: expected }, "{to}");
        }
        let endless = format!("GET / HTTP/1.1\r\nX: {}", "a".repeat(HEAD_BYTES_MAX));
        assert_eq!(answer(endless.as_bytes()), Answer::Refused { response: BAD_REQUEST });
    }
}

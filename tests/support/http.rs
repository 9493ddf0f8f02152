//! A plain HTTP client for the daemon: what it sends, it sends byte by byte as the test has it.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use rollcall::clock::Stopwatch;
use serde_json::Value;

use crate::support::daemon::{Home, PATIENCE, until};

/// Where the daemon of this home says that it listens, since its last start.
pub fn address(home: &Home) -> SocketAddr {
    until("http listens", || {
        let log = home.log();
        let (_, rest) = log.rsplit_once("http listening address=")?;
        rest.split_whitespace().next()?.parse().ok()
    })
}

#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().filter_map(|line| line.split_once(':'));
        headers.find(|it| it.0.eq_ignore_ascii_case(name)).map(|it| it.1.trim())
    }
}

pub fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// What comes until the other side closes, as an answer; `None` when nothing came.
pub fn answer(mut stream: TcpStream) -> Option<Answer> {
    let mut all = Vec::new();
    // A server that has answered and closed, while we still sent, may reset the connection: what
    // came has come.
    let mut part = [0; 4096];
    while let Ok(count) = stream.read(&mut part) {
        if count == 0 {
            break;
        }
        all.extend_from_slice(&part[..count]);
    }
    let end = all.windows(4).position(|it| it == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&all[..end]).into_owned();
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    let mut body = all.split_off(end + 4);
    if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        body = unchunked(&body);
    }
    Some(Answer { status, head, body })
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    while let Some(end) = rest.windows(2).position(|it| it == b"\r\n") {
        let size =
            usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap().trim(), 16).unwrap();
        let from = end + 2;
        if size == 0 || rest.len() < from + size {
            break;
        }
        whole.extend_from_slice(&rest[from..from + size]);
        rest = &rest[(from + size + 2).min(rest.len())..];
    }
    whole
}

pub fn send(
    to: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = connect(to);
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !headers.iter().any(|it| it.0.eq_ignore_ascii_case("host")) {
        write!(head, "host: {to}\r\n").unwrap();
    }
    for (name, value) in headers {
        write!(head, "{name}: {value}\r\n").unwrap();
    }
    write!(head, "content-length: {}\r\n\r\n", body.len()).unwrap();
    // The answer may come, and the connection end, before all is sent.
    stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).ok();
    answer(stream).unwrap_or_else(|| panic!("no answer to {method} {path}"))
}

pub fn get(to: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Answer {
    send(to, "GET", path, headers, b"")
}

pub fn post_json(to: SocketAddr, path: &str, headers: &[(&str, &str)], body: &Value) -> Answer {
    let headers: Vec<_> =
        [("content-type", "application/json")].iter().chain(headers).copied().collect();
    send(to, "POST", path, &headers, body.to_string().as_bytes())
}

const BOUNDARY: &str = "----somewhere-in-between";

/// A form as browsers and `curl -F` send it.
pub fn form(name: &str, image: &[u8]) -> (String, Vec<u8>) {
    let mut body = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"name\"\r\n\r\n{name}\r\n\
         --{BOUNDARY}\r\nContent-Disposition: form-data; name=\"image\"; filename=\"face.jpg\"\r\n\
         Content-Type: image/jpeg\r\n\r\n"
    )
    .into_bytes();
    body.extend_from_slice(image);
    body.extend_from_slice(format!("\r\n--{BOUNDARY}--\r\n").as_bytes());
    (format!("multipart/form-data; boundary={BOUNDARY}"), body)
}

pub fn add_face(to: SocketAddr, headers: &[(&str, &str)], name: &str, image: &[u8]) -> Answer {
    let (kind, body) = form(name, image);
    let headers: Vec<_> =
        [("content-type", kind.as_str())].iter().chain(headers).copied().collect();
    send(to, "POST", "/add_face", &headers, &body)
}

/// Server-sent events, one after the other.
pub struct Feed {
    stream: TcpStream,
    text: String,
}

impl Feed {
    pub fn open(to: SocketAddr, path: &str) -> Self {
        let mut stream = connect(to);
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: {to}\r\naccept: text/event-stream\r\n\r\n")
            .unwrap();
        Self::on(stream)
    }

    /// On a connection that has asked already.
    pub fn on(stream: TcpStream) -> Self {
        Self { stream, text: String::new() }
    }

    /// The data of the next event of a kind.
    pub fn next(&mut self, kind: &str) -> Value {
        let wanted = format!("event: {kind}\n");
        let watch = Stopwatch::start();
        loop {
            assert!(watch.elapsed() < PATIENCE, "no {kind} in time");
            while let Some((message, rest)) = self.text.split_once("\n\n") {
                let message = message.to_owned() + "\n";
                let rest = rest.to_owned();
                self.text = rest;
                if let Some((_, data)) = message.split_once(&wanted) {
                    let data = data.strip_prefix("data: ").unwrap();
                    return serde_json::from_str(data.lines().next().unwrap()).unwrap();
                }
            }
            let mut part = [0; 16 << 10];
            let count = self.stream.read(&mut part).unwrap();
            assert!(count > 0, "the feed has ended");
            self.text.push_str(&String::from_utf8_lossy(&part[..count]));
        }
    }
}

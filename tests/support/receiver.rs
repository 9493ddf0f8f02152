//! The receiver of a webhook: a real HTTP server on loopback that does what a script says.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crate::support::openssl::openssl;
use rollcall::clock::Stopwatch;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    pub target: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Since the receiver started.
    pub at_ms: f64,
}

impl Received {
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter().filter(|it| it.0.eq_ignore_ascii_case(name));
        headers.next().map(|it| it.1.as_str())
    }

    pub fn key(&self) -> String {
        self.header("idempotency-key").unwrap_or_default().to_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

/// What the receiver does with a request.
#[derive(Clone, Debug)]
pub enum Action {
    Answer {
        status: u16,
        headers: Vec<(&'static str, String)>,
        body: String,
    },
    /// Says nothing until the other side gives up.
    Hang,
    /// Closes the connection without a word.
    Cut,
    /// These bytes, and then the end of the connection.
    Raw(Vec<u8>),
}

pub fn answer(status: u16, body: &str) -> Action {
    Action::Answer { status, headers: Vec::new(), body: body.to_owned() }
}

type Script = Box<dyn FnMut(&Received) -> Action + Send>;

pub struct Receiver {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

struct State {
    script: Script,
    received: Vec<Received>,
    since: Stopwatch,
    open: usize,
    /// Requests that were there at the same time.
    most_open: usize,
}

impl Receiver {
    pub fn start(script: impl FnMut(&Received) -> Action + Send + 'static) -> Self {
        Self::start_with(None, script)
    }

    /// With TLS, by a certificate for 127.0.0.1 of the authority `ca.pem`, which is put into the
    /// folder.
    pub fn start_with_tls(
        dir: &Path,
        script: impl FnMut(&Received) -> Action + Send + 'static,
    ) -> Self {
        Self::start_with(Some(server_config(dir)), script)
    }

    fn start_with(
        tls: Option<Arc<ServerConfig>>,
        script: impl FnMut(&Received) -> Action + Send + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = State {
            script: Box::new(script),
            received: Vec::new(),
            since: Stopwatch::start(),
            open: 0,
            most_open: 0,
        };
        let state = Arc::new(Mutex::new(state));
        let is_over = Arc::new(AtomicBool::new(false));
        let (shared, over) = (Arc::clone(&state), Arc::clone(&is_over));
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let shared = Arc::clone(&shared);
                let tls = tls.clone();
                std::thread::spawn(move || match tls {
                    None => serve(stream, &shared),
                    Some(config) => {
                        let connection = ServerConnection::new(config).unwrap();
                        serve(StreamOwned::new(connection, stream), &shared);
                    }
                });
            }
        });
        Self { address, state, is_over, thread: Some(thread) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn received(&self) -> Vec<Received> {
        self.state.lock().unwrap().received.clone()
    }

    pub fn count(&self) -> usize {
        self.state.lock().unwrap().received.len()
    }

    pub fn most_open(&self) -> usize {
        self.state.lock().unwrap().most_open
    }

    pub fn set_script(&self, script: impl FnMut(&Received) -> Action + Send + 'static) {
        self.state.lock().unwrap().script = Box::new(script);
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        // So that it looks.
        drop(TcpStream::connect(self.address));
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

fn serve(mut stream: impl Read + Write, state: &Mutex<State>) {
    let mut rest = Vec::new();
    while let Some(mut received) = read_request(&mut stream, &mut rest) {
        let action = {
            let mut state = state.lock().unwrap();
            state.open += 1;
            state.most_open = state.most_open.max(state.open);
            received.at_ms = state.since.elapsed_ms();
            state.received.push(received.clone());
            (state.script)(&received)
        };
        let goes_on = act(&mut stream, action);
        state.lock().unwrap().open -= 1;
        if !goes_on {
            return;
        }
    }
}

/// Returns whether the connection stays.
fn act(stream: &mut (impl Read + Write), action: Action) -> bool {
    match action {
        Action::Cut => false,
        Action::Hang => {
            // Until the other side closes.
            while stream.read(&mut [0; 64]).is_ok_and(|it| it > 0) {}
            false
        }
        Action::Raw(bytes) => {
            stream.write_all(&bytes).ok();
            false
        }
        Action::Answer { status, headers, body } => {
            let mut head = format!("HTTP/1.1 {status} Words\r\n");
            for (name, value) in &headers {
                write!(head, "{name}: {value}\r\n").unwrap();
            }
            if status != 204 {
                write!(head, "content-length: {}\r\n", body.len()).unwrap();
            }
            let text = if status == 204 { String::new() } else { body };
            stream.write_all(format!("{head}\r\n{text}").as_bytes()).is_ok()
        }
    }
}

fn read_request(stream: &mut impl Read, rest: &mut Vec<u8>) -> Option<Received> {
    let mut part = [0; 16 << 10];
    loop {
        if let Some((received, length)) = parse(rest) {
            rest.drain(..length);
            return Some(received);
        }
        match stream.read(&mut part) {
            Ok(count) if count > 0 => rest.extend_from_slice(&part[..count]),
            _ => return None,
        }
    }
}

/// A whole request, and how long it is.
fn parse(bytes: &[u8]) -> Option<(Received, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    let httparse::Status::Complete(head) = request.parse(bytes).unwrap() else { return None };
    let headers: Vec<(String, String)> = request
        .headers
        .iter()
        .map(|it| (it.name.to_owned(), String::from_utf8_lossy(it.value).into_owned()))
        .collect();
    let length = headers
        .iter()
        .find(|it| it.0.eq_ignore_ascii_case("content-length"))
        .map_or(0, |it| it.1.parse::<usize>().unwrap());
    let body = bytes.get(head..head + length)?.to_vec();
    let received = Received {
        method: request.method.unwrap().to_owned(),
        target: request.path.unwrap().to_owned(),
        headers,
        body,
        at_ms: 0.0,
    };
    Some((received, head + length))
}

fn server_config(dir: &Path) -> Arc<ServerConfig> {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    std::fs::write(dir.join("san"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    for (name, subject) in [("ca", "authority"), ("other", "another")] {
        let subject = format!("-subj /CN={subject} -days 2");
        openssl(dir, &format!("req -x509 {key} -keyout {name}.key -out {name}.pem {subject}"));
    }
    openssl(dir, &format!("req {key} -keyout server.key -out server.csr -subj /CN=server"));
    let by = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile san";
    openssl(dir, &format!("x509 -req -in server.csr {by} -out server.crt"));
    let certificate = CertificateDer::from_pem_file(dir.join("server.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    Arc::new(config)
}

use std::io::BufRead as _;
use std::net::TcpListener;
use std::thread::JoinHandle;

use super::*;
use crate::backoff::Backoff;
use crate::camera::encoded::Coding;
use crate::camera::jpegs::Spec;
use crate::camera::stream::Timing;
use crate::camera::view::View;

/// Longer than anything here takes on a busy machine.
const PATIENCE: Duration = Duration::from_mins(1);

/// A camera that answers each connection with the next of its scripts, and then with nothing more.
struct Server {
    port: u16,
    thread: JoinHandle<Vec<String>>,
}

/// What is sent, and whether the connection is held open afterwards until the client closes it.
type Script = (Vec<u8>, bool);

impl Server {
    fn start(scripts: Vec<Script>) -> Self {
        Self::portioned(scripts, usize::MAX)
    }

    /// Sends in portions of so many bytes.
    fn portioned(scripts: Vec<Script>, portion: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serve = move || scripts.into_iter().map(|it| answer(&listener, it, portion)).collect();
        Self { port, thread: std::thread::spawn(serve) }
    }

    fn camera(&self) -> HttpCamera {
        self.camera_at("http://127.0.0.1", Duration::from_secs(20))
    }

    fn camera_at(&self, host: &str, stall_after: Duration) -> HttpCamera {
        let url = CameraUrl::parse(&format!("{host}:{}/stream", self.port)).unwrap();
        let stream = StreamSettings {
            coding: Coding::Jpeg,
            fps: 240.0,
            stall_after,
            view: View::default(),
            timing: Timing::Arrival,
        };
        let short = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        HttpCamera::retrying(HttpSettings { url, stream }, Retry::within(short))
    }

    /// The heads of the requests that came.
    fn requests(self) -> Vec<String> {
        self.thread.join().unwrap()
    }
}

fn answer(listener: &TcpListener, (bytes, is_held): Script, portion: usize) -> String {
    let (mut socket, _) = listener.accept().unwrap();
    socket.set_nodelay(true).unwrap();
    let mut request = String::new();
    let mut lines = io::BufReader::new(socket.try_clone().unwrap());
    while !request.ends_with("\r\n\r\n") {
        assert!(lines.read_line(&mut request).unwrap() > 0);
    }
    for part in bytes.chunks(portion.min(bytes.len().max(1))) {
        // The client may have closed it already.
        if socket.write_all(part).is_err() {
            return request;
        }
    }
    if is_held {
        lines.read_line(&mut String::new()).ok();
    }
    request
}

fn picture() -> Vec<u8> {
    Spec::flat(16, 8, &[(1, 1)]).bytes()
}

fn next(camera: &mut HttpCamera) -> Result<(), CameraFault> {
    let watch = Stopwatch::start();
    loop {
        assert!(watch.elapsed() < PATIENCE, "nothing comes");
        match camera.next() {
            Ok(Next::Frame(frame)) => {
                assert_eq!(frame.pixels.size(), (16, 8));
                return Ok(());
            }
            Ok(Next::Nothing) | Err(CameraError::Damaged { .. }) => {}
            Err(CameraError::Lost(fault)) => return Err(fault),
            other => panic!("{other:?}"),
        }
    }
}

const HEAD: &str =
    "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=frame\r\n\r\n";

/// A body of two pictures in the way of one kind of camera.
fn body(boundary: &str, part_head: &str) -> Vec<u8> {
    let mut body = Vec::new();
    for _ in 0..2 {
        body.extend_from_slice(format!("{boundary}\r\n{part_head}\r\n").as_bytes());
        body.extend_from_slice(&picture());
        body.extend_from_slice(b"\r\n");
    }
    body
}

fn chunked(body: &[u8]) -> Vec<u8> {
    let mut coded = Vec::new();
    for part in body.chunks(37) {
        coded.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
        coded.extend_from_slice(part);
        coded.extend_from_slice(b"\r\n");
    }
    coded
}

#[test]
fn every_kind_of_stream_gives_its_pictures() {
    let length = picture().len();
    let usual = format!("Content-Type: image/jpeg\r\nContent-Length: {length}\r\n");
    let streams = [
        body("--frame", &usual),
        body("frame", "Content-Type: image/jpeg\r\n"),
        body("----other than announced", "Content-Length: 3\r\n"),
        body("", ""),
        picture().repeat(2),
    ];
    for portion in [1, 100, usize::MAX] {
        let plain = streams.iter().map(|it| ([HEAD.as_bytes(), it].concat(), true));
        let coded = HEAD.replace("\r\n\r\n", "\r\nTransfer-Encoding: chunked\r\n\r\n");
        let coded = streams.iter().map(|it| ([coded.as_bytes(), &chunked(it)].concat(), true));
        for script in plain.chain(coded) {
            let server = Server::portioned(vec![script.clone()], portion);
            let mut camera = server.camera();
            assert_eq!([next(&mut camera), next(&mut camera)], [Ok(()), Ok(())], "{script:?}");
            drop(camera);
            server.requests();
        }
    }
}

#[test]
fn credentials_are_sent_and_never_shown() {
    let server = Server::start(vec![(b"HTTP/1.1 401 No\r\n\r\n".to_vec(), false)]);
    let mut camera = server.camera_at("http://admin:hunter2@127.0.0.1", PATIENCE);
    let fault = next(&mut camera).unwrap_err();
    assert_eq!(fault.kind, FaultKind::Unauthorised);
    let shown = format!("{fault:?} {} {:?}", camera.describe(), camera.settings);
    assert!(!shown.contains("hunter2") && !shown.contains("YWRtaW46aHVudGVyMg"), "{shown}");
    drop(camera);
    let request = server.requests().remove(0);
    assert!(request.contains("\r\nAuthorization: Basic YWRtaW46aHVudGVyMg==\r\n"), "{request}");
    assert!(request.starts_with("GET /stream HTTP/1.1\r\n"), "{request}");
}

#[test]
fn cut_connection_is_lost_and_made_again() {
    let picture = picture();
    let half = [HEAD.as_bytes(), &picture, &picture[..picture.len() / 2]].concat();
    let whole = [HEAD.as_bytes(), &picture].concat();
    let server = Server::start(vec![(half, false), (b"HTTP/1.1".to_vec(), false), (whole, true)]);
    let mut camera = server.camera();
    assert_eq!(next(&mut camera), Ok(()));
    let fault = next(&mut camera).unwrap_err();
    assert!(fault.reason().contains("within a picture"), "{fault}");
    let fault = next(&mut camera).unwrap_err();
    assert!(fault.kind == FaultKind::NoStream && fault.reason().contains("without"), "{fault}");
    assert_eq!(next(&mut camera), Ok(()));
    drop(camera);
    assert_eq!(server.requests().len(), 3);
}

#[test]
fn silent_camera_is_stalled() {
    let short = Duration::from_millis(300);
    for (sent, kind) in [
        (&b""[..], FaultKind::Stalled),
        (b"HTTP/1.1 200 OK\r\n", FaultKind::Stalled),
        (HEAD.as_bytes(), FaultKind::Stalled),
        (&[HEAD.as_bytes(), b"--frame\r\nnothing"].concat(), FaultKind::NotPictures),
    ] {
        let server = Server::start(vec![(sent.to_vec(), true)]);
        let fault = next(&mut server.camera_at("http://127.0.0.1", short)).unwrap_err();
        assert_eq!(fault.kind, kind, "{fault}");
        server.requests();
    }
}

#[test]
fn unreachable_camera_is_its_own_fault() {
    // Nobody listens at a port that was given back.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let server = Server { port, thread: std::thread::spawn(Vec::new) };
    for host in ["http://127.0.0.1", "http://no-such-camera.invalid"] {
        let fault = next(&mut server.camera_at(host, PATIENCE)).unwrap_err();
        assert_eq!(fault.kind, FaultKind::Unreachable, "{fault}");
    }
    server.requests();
}

#[test]
fn hostile_answers_are_bounded() {
    let endless_head = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 1 << 20]].concat();
    let endless_chunk =
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec(), vec![b'0'; 1 << 20]];
    let redirect = b"HTTP/1.1 301 Moved\r\nLocation: http://127.0.0.1:1/\r\n\r\n".to_vec();
    for script in [endless_head, endless_chunk.concat(), redirect] {
        let server = Server::start(vec![(script, false)]);
        let mut camera = server.camera();
        assert_eq!(next(&mut camera).unwrap_err().kind, FaultKind::NoStream);
        drop(camera);
        server.requests();
    }
}

#[test]
fn two_hundred_connections_leave_nothing() {
    let script = ([HEAD.as_bytes(), &picture()].concat(), false);
    let server = Server::start(vec![script; 200]);
    let mut camera = server.camera();
    let sockets = || {
        let own = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        own.filter(|it| {
            std::fs::read_link(it.path())
                .is_ok_and(|it| it.to_string_lossy().starts_with("socket:"))
        })
        .count()
    };
    let before = sockets();
    for _ in 0..200 {
        assert_eq!(next(&mut camera), Ok(()));
        assert_eq!(next(&mut camera).unwrap_err().kind, FaultKind::Unreachable);
    }
    drop(camera);
    assert_eq!(server.requests().len(), 200);
    // Other tests of this process may have some at this moment.
    assert!(sockets() < before + 50);
}

//! A webcam in user space: `vhci_hcd` gets a socket that speaks USB/IP, so the kernel's real
//! `uvcvideo` binds to it and makes a real /dev/videoN. It shows one picture until it is told to
//! show another. Needs root, vhci-hcd and uvcvideo.
//!
//! ```text
//! webcam CONTROL PRODUCT SERIAL JPEG YUYV
//! ```
//!
//! CONTROL is a named pipe with one command a line: `show JPEG` · `unplug` · `plug` · `stall` (it
//! stays plugged in and sends nothing) · `resume` · `freeze` (it does not answer at all, so that the
//! driver hangs; `unplug` ends it) · `truncate N`, `garbage N`, `error N` (the next N frames are cut
//! short, are noise, bear the error bit; 0 ends it)

mod usbip;
mod uvc;

use std::collections::VecDeque;
use std::error::Error;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead as _, BufReader};
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread;
use std::time::{Duration, Instant};

use usbip::{Cable, Request};
use uvc::{Camera, FRAME_INTERVAL, Format, Sending};

type Outcome<T> = Result<T, Box<dyn Error>>;

enum Event {
    Command(String),
    /// What the host asked for while the cable was in for the nth time.
    Request(u64, Request),
}

/// A transfer of video that the host waits for.
struct Waiting {
    sequence: u32,
    length: usize,
}

/// How many of the next frames are damaged in each way.
#[derive(Default)]
struct Damage {
    truncated: u64,
    garbage: u64,
    error: u64,
}

struct Webcam {
    camera: Camera,
    jpeg: Vec<u8>,
    yuyv: Vec<u8>,
    cable: Option<Cable>,
    /// How often the cable was plugged in.
    plugged: u64,
    waiting: VecDeque<Waiting>,
    sending: Option<Sending>,
    frames: u64,
    due: Instant,
    is_stalled: bool,
    is_frozen: bool,
    damage: Damage,
    events: Sender<Event>,
}

/// Takes one off, if there is one.
fn take(count: &mut u64) -> bool {
    let is_left = *count > 0;
    *count = count.saturating_sub(1);
    is_left
}

impl Webcam {
    fn plug(&mut self) -> Outcome<()> {
        if self.cable.is_some() {
            return Ok(());
        }
        let cable = Cable::plug()?;
        let mut reader = cable.try_clone()?;
        self.cable = Some(cable);
        self.plugged += 1;
        (self.is_stalled, self.is_frozen, self.due) = (false, false, Instant::now());
        let events = self.events.clone();
        let plugged = self.plugged;
        thread::spawn(move || {
            while let Ok(request) = reader.request() {
                if events.send(Event::Request(plugged, request)).is_err() {
                    return;
                }
            }
        });
        Ok(())
    }

    fn unplug(&mut self) {
        if let Some(cable) = self.cable.take() {
            cable.unplug().ok();
        }
        self.waiting.clear();
        self.sending = None;
    }

    fn command(&mut self, line: &str) -> Outcome<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "show" => self.jpeg = fs::read(rest)?,
            "plug" => self.plug()?,
            "unplug" => self.unplug(),
            "stall" => self.is_stalled = true,
            "resume" => self.is_stalled = false,
            "freeze" => self.is_frozen = true,
            "truncate" => self.damage.truncated = rest.parse()?,
            "garbage" => self.damage.garbage = rest.parse()?,
            "error" => self.damage.error = rest.parse()?,
            _ => return Err(format!("unknown command {line:?}").into()),
        }
        Ok(())
    }

    fn request(&mut self, request: Request) -> io::Result<()> {
        let Some(cable) = &mut self.cable else { return Ok(()) };
        if self.is_frozen {
            return Ok(());
        }
        match request {
            Request::Control { sequence, setup, data } => match self.camera.control(setup, &data) {
                Some(answer) if data.is_empty() => cable.answer(sequence, &answer),
                Some(_) => cable.confirm(sequence, data.len()),
                None => cable.reject(sequence),
            },
            Request::Video { sequence, length } => {
                self.waiting.push_back(Waiting { sequence, length });
                Ok(())
            }
            Request::Unlink { sequence, unlinked } => {
                let before = self.waiting.len();
                self.waiting.retain(|it| it.sequence != unlinked);
                // The stream ends: the rest of this frame is not wanted when it starts again.
                self.sending = None;
                cable.unlinked(sequence, self.waiting.len() < before)
            }
        }
    }

    /// The next frame, damaged if that was asked for.
    fn next_frame(&mut self) -> Sending {
        self.frames += 1;
        let whole = if self.camera.format() == Format::Mjpg { &self.jpeg } else { &self.yuyv };
        let mut data = whole.clone();
        if take(&mut self.damage.truncated) {
            data.truncate(data.len() / 3);
        }
        if take(&mut self.damage.garbage) {
            // No picture of any kind begins like that, and no two bytes beside one another are the
            // same.
            (0..).zip(&mut data).for_each(|(at, byte)| *byte = (at * 7 % 251) as u8);
        }
        Sending::new(data, self.frames, take(&mut self.damage.error))
    }

    /// Sends what is due, as far as the host has room for it.
    fn send(&mut self) -> io::Result<()> {
        while !self.is_stalled && !self.is_frozen && !self.waiting.is_empty() {
            if self.sending.is_none() {
                let now = Instant::now();
                if now < self.due {
                    return Ok(());
                }
                self.due = now + interval();
                self.sending = Some(self.next_frame());
            }
            let (Some(cable), Some(sending), Some(waiting)) =
                (&mut self.cable, &mut self.sending, self.waiting.pop_front())
            else {
                return Ok(());
            };
            cable.answer(waiting.sequence, &sending.payload(waiting.length))?;
            if sending.is_complete() {
                self.sending = None;
            }
        }
        Ok(())
    }
}

fn interval() -> Duration {
    Duration::from_nanos(u64::from(FRAME_INTERVAL) * 100)
}

fn main() -> Outcome<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [control, product, serial, jpeg, yuyv] = args.as_slice() else {
        return Err("usage: webcam CONTROL PRODUCT SERIAL JPEG YUYV".into());
    };
    let (events, arriving) = mpsc::channel();
    // Opened for writing too, so that it does not end when a writer has gone.
    let control = BufReader::new(OpenOptions::new().read(true).write(true).open(control)?);
    let commands = events.clone();
    thread::spawn(move || {
        for line in control.lines().map_while(Result::ok) {
            if commands.send(Event::Command(line)).is_err() {
                return;
            }
        }
    });
    let mut webcam = Webcam {
        camera: Camera::new(product, serial),
        jpeg: fs::read(jpeg)?,
        yuyv: fs::read(yuyv)?,
        cable: None,
        plugged: 0,
        waiting: VecDeque::new(),
        sending: None,
        frames: 0,
        due: Instant::now(),
        is_stalled: false,
        is_frozen: false,
        damage: Damage::default(),
        events,
    };
    webcam.plug()?;
    loop {
        let handled = match arriving.recv_timeout(interval() / 10) {
            Ok(Event::Command(line)) => {
                if let Err(error) = webcam.command(&line) {
                    eprintln!("webcam: {line}: {error}");
                }
                Ok(())
            }
            Ok(Event::Request(plugged, request)) if plugged == webcam.plugged => webcam.request(request),
            Ok(Event::Request(..)) | Err(RecvTimeoutError::Timeout) => Ok(()),
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        if let Err(error) = handled.and_then(|()| webcam.send()) {
            eprintln!("webcam: the host has gone: {error}");
            webcam.unplug();
        }
    }
}

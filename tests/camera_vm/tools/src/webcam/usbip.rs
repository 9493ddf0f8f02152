//! The device's end of USB/IP, as the kernel's `vhci_hcd` speaks it over a socket (the kernel's
//! Documentation/usb/usbip_protocol.rst): every message has a head of 48 bytes, numbers big-endian.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

const HEAD: usize = 48;
const SUBMIT: u32 = 1;
const UNLINK: u32 = 2;
const SUBMITTED: u32 = 3;
const UNLINKED: u32 = 4;

/// Offsets in the head.
const SEQUENCE: usize = 4;
const DIRECTION: usize = 12;
const ENDPOINT: usize = 16;
const STATUS: usize = 20;
const LENGTH: usize = 24;
const SETUP: usize = 40;

/// Linux's error numbers, as the other end expects them.
const EPIPE: i32 = -32;
const ECONNRESET: i32 = -104;

const HUB: &str = "/sys/devices/platform/vhci_hcd.0";
/// The first port of the hub for high speed.
const PORT: u32 = 0;
const HIGH_SPEED: u32 = 3;
/// Bus and device number on the exporting side, which there is none of here.
const DEVICE_ID: u32 = 0x0001_0002;
/// How long a port may take to become free after the cable was pulled.
const PLUG_PATIENCE: Duration = Duration::from_secs(10);

/// What the host asks of the device.
pub enum Request {
    /// On endpoint 0: the setup packet, and what the host sends with it.
    Control { sequence: u32, setup: [u8; 8], data: Vec<u8> },
    /// Up to so many bytes are wanted from the endpoint of the video.
    Video { sequence: u32, length: usize },
    /// The host wants no answer to an earlier request any more.
    Unlink { sequence: u32, unlinked: u32 },
}

pub struct Cable {
    socket: UnixStream,
}

impl Cable {
    /// Plugs the device in. A port that has just lost its device is free only a moment later.
    pub fn plug() -> io::Result<Self> {
        let begun = Instant::now();
        loop {
            let (ours, kernels) = UnixStream::pair()?;
            let line = format!("{PORT} {} {DEVICE_ID} {HIGH_SPEED}", kernels.as_raw_fd());
            match fs::write(format!("{HUB}/attach"), line) {
                Ok(()) => return Ok(Self { socket: ours }),
                Err(error) if begun.elapsed() > PLUG_PATIENCE => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { socket: self.socket.try_clone()? })
    }

    /// Pulls the cable: the host notices that the socket is closed.
    pub fn unplug(self) -> io::Result<()> {
        self.socket.shutdown(std::net::Shutdown::Both)
    }

    /// Waits for the next request; fails when the cable is pulled.
    pub fn request(&mut self) -> io::Result<Request> {
        let mut head = [0; HEAD];
        self.socket.read_exact(&mut head)?;
        let sequence = number(&head, SEQUENCE);
        match number(&head, 0) {
            UNLINK => Ok(Request::Unlink { sequence, unlinked: number(&head, STATUS) }),
            SUBMIT if number(&head, ENDPOINT) == 0 => {
                let is_from_host = number(&head, DIRECTION) == 0;
                let mut data = vec![0; if is_from_host { number(&head, LENGTH) as usize } else { 0 }];
                self.socket.read_exact(&mut data)?;
                let mut setup = [0; 8];
                setup.copy_from_slice(&head[SETUP..]);
                Ok(Request::Control { sequence, setup, data })
            }
            SUBMIT => Ok(Request::Video { sequence, length: number(&head, LENGTH) as usize }),
            other => Err(io::Error::other(format!("the kernel sent a message of the unknown kind {other}"))),
        }
    }

    /// Answers with data for the host.
    pub fn answer(&mut self, sequence: u32, data: &[u8]) -> io::Result<()> {
        self.send(SUBMITTED, sequence, 0, data.len(), data)
    }

    /// Confirms data that came from the host.
    pub fn confirm(&mut self, sequence: u32, length: usize) -> io::Result<()> {
        self.send(SUBMITTED, sequence, 0, length, &[])
    }

    /// Rejects a request that the device does not know.
    pub fn reject(&mut self, sequence: u32) -> io::Result<()> {
        self.send(SUBMITTED, sequence, EPIPE, 0, &[])
    }

    /// Answers an `Unlink`: whether the request was still waiting.
    pub fn unlinked(&mut self, sequence: u32, was_waiting: bool) -> io::Result<()> {
        self.send(UNLINKED, sequence, if was_waiting { ECONNRESET } else { 0 }, 0, &[])
    }

    fn send(&mut self, kind: u32, sequence: u32, status: i32, length: usize, data: &[u8]) -> io::Result<()> {
        let mut message = vec![0; HEAD];
        for (at, value) in [(0, kind), (SEQUENCE, sequence), (STATUS, status as u32), (LENGTH, length as u32)] {
            message[at..at + 4].copy_from_slice(&value.to_be_bytes());
        }
        message.extend_from_slice(data);
        self.socket.write_all(&message)
    }
}

fn number(head: &[u8; HEAD], at: usize) -> u32 {
    u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]])
}

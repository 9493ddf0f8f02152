//! A TCP proxy that can stop forwarding while every connection stays open: a network that swallows
//! everything.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

pub struct Proxy {
    port: u16,
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl Proxy {
    pub fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let own = listener.local_addr().unwrap().port();
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let shared = Arc::clone(&gate);
        // Ends with the process.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(near), Ok(far)) = (stream, TcpStream::connect(("127.0.0.1", port))) else {
                    continue;
                };
                let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
                let there = Arc::clone(&shared);
                let here = Arc::clone(&shared);
                std::thread::spawn(move || forward(near, far, &there));
                std::thread::spawn(move || forward(back.0, back.1, &here));
            }
        });
        Self { port: own, gate }
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn stall(&self, stalled: bool) {
        *self.gate.0.lock().unwrap() = stalled;
        self.gate.1.notify_all();
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream, gate: &(Mutex<bool>, Condvar)) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        drop(gate.1.wait_while(gate.0.lock().unwrap(), |stalled| *stalled).unwrap());
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    to.shutdown(std::net::Shutdown::Both).ok();
}

//! A terminal of our own, and a program that believes somebody sits at it.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use crate::support::daemon::until;

pub struct Terminal {
    child: Child,
    keyboard: File,
    /// The program's end, by which it is seen whether it shows what is typed.
    end: File,
    screen: Arc<Mutex<String>>,
    /// How much of the screen was waited for already.
    read: usize,
}

impl Terminal {
    pub fn run(mut command: Command) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap().into_string().unwrap();
        let end = OpenOptions::new().read(true).write(true).open(name).unwrap();
        let share = || end.try_clone().unwrap();
        let child = command.stdin(share()).stdout(share()).stderr(share()).spawn().unwrap();
        let keyboard = File::from(ours);
        let mut shown = keyboard.try_clone().unwrap();
        let screen = Arc::new(Mutex::new(String::new()));
        let keep = Arc::clone(&screen);
        // Ends with the process.
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = shown.read(&mut bytes) {
                keep.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { child, keyboard, end, screen, read: 0 }
    }

    pub fn screen(&self) -> String {
        self.screen.lock().unwrap().clone()
    }

    /// Waits for a question, and gives what was shown since the one before.
    pub fn wait_for(&mut self, question: &str) -> String {
        let screen = &self.screen;
        let from = self.read;
        let shown = until(question, || {
            let shown = screen.lock().unwrap()[from..].to_owned();
            let at = shown.find(question).map(|at| at + question.len());
            at.map(|at| shown[..at].to_owned())
        });
        self.read += shown.len();
        shown
    }

    pub fn answer(&mut self, question: &str, line: &str) -> String {
        let shown = self.wait_for(question);
        self.keyboard.write_all(format!("{line}\n").as_bytes()).unwrap();
        shown
    }

    /// Waits until what is typed is not shown, and types.
    pub fn answer_hidden(&mut self, question: &str, line: &str) {
        self.wait_for(question);
        until("the terminal shows nothing", || (!self.echoes()).then_some(()));
        self.keyboard.write_all(format!("{line}\n").as_bytes()).unwrap();
    }

    pub fn echoes(&self) -> bool {
        tcgetattr(&self.end).unwrap().local_modes.contains(LocalModes::ECHO)
    }

    pub fn type_bytes(&mut self, bytes: &[u8]) {
        self.keyboard.write_all(bytes).unwrap();
    }

    /// What Ctrl-C does at a terminal that has us as its own.
    pub fn interrupt(&mut self) {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        let child = &mut self.child;
        until("it ends", || child.try_wait().unwrap())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Gone already, most of the time.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

//! A real mosquitto for one test: own port, own directory, own configuration, killed by its id at
//! the end.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::fs;
use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const BROKER: &str = "/usr/sbin/mosquitto";
const HINT: &str = "these tests need a real broker: apt-get install -y mosquitto mosquitto-clients";

pub struct Mosquitto {
    child: Option<Child>,
    dir: tempfile::TempDir,
    port: u16,
}

fn set_password(file: &Path, user: &str, password: &str) {
    let made = Command::new("mosquitto_passwd").arg("-b").arg(file).args([user, password]).output();
    let made = made.expect(HINT);
    assert!(made.status.success(), "{made:?}");
}

/// A port that was free a moment ago; mosquitto cannot choose one itself.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

impl Mosquitto {
    pub fn start() -> Self {
        Self::start_with(|_| "allow_anonymous true\n".to_owned())
    }

    /// `options` gets the directory for its files and returns what is written after the `listener`
    /// line.
    pub fn start_with(options: impl FnOnce(&Path) -> String) -> Self {
        assert!(Path::new(BROKER).exists(), "{BROKER} is missing; {HINT}");
        let dir = tempfile::tempdir().unwrap();
        let port = free_port();
        let at = dir.path();
        let config = format!(
            "user root\npersistence true\npersistence_location {}/\nautosave_interval 1\nautosave_on_changes true\n\
             log_dest file {}\nlog_type all\nmax_inflight_messages 0\nmax_queued_messages 10000\n\
             listener {port} 127.0.0.1\n{}",
            at.display(),
            at.join("log").display(),
            options(at)
        );
        fs::write(at.join("conf"), config).unwrap();
        let mut broker = Self { child: None, dir, port };
        broker.run();
        broker
    }

    /// With access rules, and these users, whose password is `secret`.
    pub fn with_rules(rules: &str, users: &[&str]) -> Self {
        Self::start_with(|dir| {
            let acl = dir.join("acl");
            let passwords = dir.join("passwords");
            fs::write(&acl, rules).unwrap();
            fs::write(&passwords, "").unwrap();
            for user in users {
                set_password(&passwords, user, "secret");
            }
            let passwords = passwords.display();
            let acl = acl.display();
            format!("allow_anonymous false\npassword_file {passwords}\nacl_file {acl}\n")
        })
    }

    /// Starts it (again) and waits until it accepts connections.
    pub fn run(&mut self) {
        let config = self.path("conf");
        let child = Command::new(BROKER)
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        self.child = Some(child.expect(HINT));
        for _ in 0..500 {
            if TcpStream::connect(("127.0.0.1", self.port)).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("mosquitto does not start:\n{}", self.log());
    }

    /// SIGKILL: what it had not written to disk is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGTERM: what it has acknowledged and not yet passed on is on its disk. Killed, it may lose
    /// that, and no door could help it.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            rustix::process::kill_process(
                rustix::process::Pid::from_child(&child),
                rustix::process::Signal::TERM,
            )
            .unwrap();
            child.wait().unwrap();
        }
    }

    /// SIGHUP: reads its passwords and access rules again. Returns when it has.
    pub fn reload(&self) {
        let before = self.log().matches("Reloading config").count();
        let pid = rustix::process::Pid::from_child(self.child.as_ref().unwrap());
        rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
        for _ in 0..1000 {
            if self.log().matches("Reloading config").count() > before {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("mosquitto does not reload:\n{}", self.log());
    }

    /// Of a broker with rules.
    pub fn change_password(&self, user: &str, password: &str) {
        set_password(&self.path("passwords"), user, password);
        self.reload();
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// mosquitto_pub to this broker, QoS 1 unless the arguments say otherwise (a later -q wins).
    pub fn publish(&self, args: &[&str]) {
        let port = self.port.to_string();
        let all = [&["-h", "127.0.0.1", "-p", &port, "-q", "1"], args].concat();
        let output = Command::new("mosquitto_pub").args(all).output().expect(HINT);
        assert!(output.status.success(), "mosquitto_pub: {output:?}");
    }

    /// mosquitto_pub, with a payload too large for an argument.
    pub fn publish_payload(&self, topic: &str, payload: &[u8], more: &[&str]) {
        let port = self.port.to_string();
        let all = [&["-h", "127.0.0.1", "-p", &port, "-q", "1", "-t", topic, "-s"], more].concat();
        let mut child =
            Command::new("mosquitto_pub").args(all).stdin(Stdio::piped()).spawn().expect(HINT);
        child.stdin.take().unwrap().write_all(payload).unwrap();
        assert!(child.wait().unwrap().success(), "mosquitto_pub to {topic}");
    }

    /// mosquitto_sub to this broker; returns when it got as many messages as `-C` in the arguments
    /// says.
    pub fn subscribe(&self, args: &[&str]) -> Output {
        let port = self.port.to_string();
        let all = [&["-h", "127.0.0.1", "-p", &port, "-q", "1", "-W", "10"], args].concat();
        Command::new("mosquitto_sub").args(all).output().expect(HINT)
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.kill();
    }
}

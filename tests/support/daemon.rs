//! The built daemon in a folder of its own: started, waited for, killed or asked to stop, and never
//! left behind.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use rollcall::clock::Stopwatch;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

pub const SITE: &str = "hq";
pub const DEVICE: &str = "door-1";
pub const BASE: &str = "rollcall/hq/door-1";

/// Longer than anything here takes on a busy machine: reaching it is a failure, not a pause.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// A number that a run by hand may raise: the suite stays quick, and the same test does the whole
/// of it.
pub fn scaled(variable: &str, usual: usize) -> usize {
    std::env::var(variable).map_or(usual, |text| text.parse().unwrap())
}

/// Asks until there is an answer.
pub fn until<T>(what: &str, ask: impl FnMut() -> Option<T>) -> T {
    until_for(PATIENCE, what, ask)
}

pub fn until_for<T>(patience: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let watch = Stopwatch::start();
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(watch.elapsed() < patience, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Where a daemon lives: configuration, state and log, all below one folder that goes with the
/// test.
pub struct Home {
    dir: tempfile::TempDir,
    /// What the program finds in its environment besides.
    pub environment: Vec<(String, String)>,
}

impl Home {
    /// With a broker at `port`; `more` are further sections, or keys of `[mqtt]` before the first
    /// of them.
    pub fn new(port: u16, more: &str) -> Self {
        let home = Self { dir: tempfile::tempdir().unwrap(), environment: Vec::new() };
        fs::create_dir(home.path("tmp")).unwrap();
        home.configure(port, more);
        home
    }

    pub fn configure(&self, port: u16, more: &str) {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        let mut text = format!(
            "[device]\nsite = \"{SITE}\"\nname = \"{DEVICE}\"\n[clock]\ntrust = \"always\"\n"
        );
        if !more.contains("[recognition]") {
            writeln!(text, "[recognition]\nmodels = \"{}\"", models.display()).unwrap();
        }
        let mut mqtt = String::new();
        if let Ok(version) = std::env::var("ROLLCALL_TEST_MQTT")
            && !more.contains("version =")
        {
            mqtt = format!("version = \"{version}\"\n");
        }
        write!(
            text,
            "[mqtt]\nhost = \"127.0.0.1\"\nport = {port}\nhealth_every = \"1s\"\n{mqtt}{more}"
        )
        .unwrap();
        fs::write(self.path("config.toml"), text).unwrap();
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn state(&self) -> PathBuf {
        self.path("state")
    }

    /// Everything that daemons wrote to standard error here.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// The program, with this home's configuration; nothing of the test's own environment
    /// configures it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_")) {
            command.env_remove(name);
        }
        command
            .arg("--config")
            .arg(self.path("config.toml"))
            .args(args)
            .env("TMPDIR", self.path("tmp"));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        // What it writes behind our back, it writes where a test can find it.
        command
            .env("HOME", self.path("tmp"))
            .env_remove("XDG_CACHE_HOME")
            .env_remove("ORT_DISABLE_TELEMETRY");
        command
    }

    /// A command that ends by itself; one that does not is a failure and not a test that hangs.
    pub fn output(&self, args: &[&str]) -> Output {
        self.finish(&mut self.command(args))
    }

    pub fn finish(&self, command: &mut Command) -> Output {
        // Files and not pipes: a pipe that nobody reads while we wait for the end holds up whoever
        // writes much.
        let [out, err] = ["command.out", "command.err"].map(|name| self.path(name));
        let files = [&out, &err].map(|path| File::create(path).unwrap());
        let [to_out, to_err] = files;
        let child = command.stdin(Stdio::null()).stdout(to_out).stderr(to_err).spawn().unwrap();
        let mut child = Daemon { child, log: err.clone(), ready_before: 0 };
        let status = child.wait();
        Output { status, stdout: fs::read(out).unwrap(), stderr: fs::read(err).unwrap() }
    }

    /// A command that prints JSON, and succeeds.
    pub fn json(&self, args: &[&str]) -> Value {
        let output = self.output(args);
        assert!(output.status.success(), "{args:?}: {output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Every event in the database: `seq`, `event_id` and kind.
    pub fn events(&self) -> Vec<(u64, String, String)> {
        let database = rusqlite::Connection::open(self.state().join("rollcall.db")).unwrap();
        let mut query =
            database.prepare("select seq, event_id, kind from event order by seq").unwrap();
        let event = |row: &rusqlite::Row<'_>| {
            let id: [u8; 16] = row.get(1)?;
            Ok((row.get::<_, i64>(0)? as u64, uuid::Uuid::from_bytes(id).to_string(), row.get(2)?))
        };
        query.query_map([], event).unwrap().map(Result::unwrap).collect()
    }

    /// Starts the daemon without waiting for it.
    pub fn spawn(&self, args: &[&str]) -> Daemon {
        let log = OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let ready_before = self.readies();
        let child = self
            .command(args)
            .stdin(Stdio::null())
            .stdout(File::create(self.path("out")).unwrap())
            .stderr(log)
            .spawn();
        Daemon { child: child.unwrap(), log: self.path("log"), ready_before }
    }

    /// Starts the daemon and waits until it says that it is ready.
    pub fn start(&self) -> Daemon {
        let mut daemon = self.spawn(&["run"]);
        daemon.until_ready();
        daemon
    }

    fn readies(&self) -> usize {
        self.log().matches(READY).count()
    }
}

const READY: &str = " ready ";

pub struct Daemon {
    child: Child,
    log: PathBuf,
    ready_before: usize,
}

impl Daemon {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn until_ready(&mut self) {
        until("the daemon is ready", || {
            let log = fs::read_to_string(&self.log).unwrap_or_default();
            if let Some(status) = self.child.try_wait().unwrap() {
                panic!("the daemon ended with {status}:\n{log}");
            }
            (log.matches(READY).count() > self.ready_before).then_some(())
        });
    }

    pub fn is_alive(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// SIGKILL: nothing of it runs a moment longer.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM, and the end that follows it.
    pub fn terminate(mut self) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        self.wait()
    }

    /// The end that comes by itself.
    pub fn wait(&mut self) -> ExitStatus {
        until("the daemon has ended", || self.child.try_wait().unwrap())
    }

    /// A line of `/proc/PID/status` in bytes: `VmRSS`, or `VmHWM` for the most there ever was.
    pub fn memory_bytes(&self, field: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line =
            status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':')).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Gone already, most of the time.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

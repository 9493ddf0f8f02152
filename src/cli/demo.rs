//! `rollcall demo`: an end-to-end demo. It runs a real daemon with its embedded broker and a replay
//! camera, enrols two people by MQTT, lets visitors pass, and shows and checks what was recorded and
//! published.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use indicatif::{ProgressBar, ProgressStyle};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use serde_json::{Value, json};

use crate::cli::console::{Console, with_console};
use crate::cli::scratch::Scratch;
use crate::cli::table;
use crate::clock::{Stopwatch, time_zone};
use crate::config;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall demo --keep")]
pub struct Args {
    /// The photographs that `models/fetch.sh photos` fetched
    #[arg(long, default_value = ".cache/photos")]
    photos: PathBuf,
    /// Folder of the model files
    #[arg(long, default_value = "models")]
    models: PathBuf,
    /// Keep the daemon running afterwards, to try it out
    #[arg(long)]
    keep: bool,
}

/// The people who are enrolled: id, name and photograph.
const ENROLLED: [(&str, &str, &str); 2] =
    [("barack", "Barack Obama", "obama.jpg"), ("joe", "Joe Biden", "biden.jpg")];

/// The visitors: one person in another photograph, the other in the same (the package holds only
/// one), a stranger, and the first person again, who must not be recorded twice.
const VISITORS: [(&str, &str); 5] = [
    ("obama2.jpg", "Barack Obama (another photograph)"),
    ("biden.jpg", "Joe Biden (the same photograph: there is only one)"),
    ("astronaut.png", "a stranger"),
    ("obama3.jpg", "Barack Obama again (a third photograph)"),
    ("-", "nobody"),
];

const PATIENCE: Duration = Duration::from_secs(30);
/// The daemon may take so long to stop; more than its own grace. A guess.
const STOP_PATIENCE: Duration = Duration::from_secs(15);
const PAGE_PORT: u16 = 8080;
const SHOW_MS: u32 = 1500;
const GAP_MS: u32 = 1000;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let photos = args.photos.canonicalize().with_context(|| {
        format!(
            "{} is missing: `make demo` fetches the photographs (models/fetch.sh photos)",
            args.photos.display()
        )
    })?;
    let models = args
        .models
        .canonicalize()
        .with_context(|| format!("{} is missing", args.models.display()))?;
    let started = end_on_signals()?;
    let scratch = started.make_folder()?;
    let folder = scratch.path();
    let ports = free_ports()?;
    let path = folder.join("config.toml");
    fs::write(&path, configuration(&models, &ports))?;
    set_scene(folder, "file,show_ms,gap_ms\n-,500,0\n")?;
    let settings = config::load::load(Some(&path), &std::collections::BTreeMap::new())?;

    println!(
        "rollcall demo: a daemon with an embedded broker and a replay camera, in {}\n",
        folder.display()
    );
    let mut daemon = started.start_daemon(&path, &folder.join("daemon.log"))?;
    daemon.wait_until_listening(ports.mqtt)?;
    let topics = ["reply/+", "event/+", "status", "health"];
    let outcome = with_console(&settings, &topics, async |console| {
        let report = play(console, folder, &photos).await?;
        if args.keep {
            print_what_to_try(folder, &path, &ports);
            // Until a signal ends the process.
            std::future::pending::<()>().await;
        }
        Ok(report)
    });
    let report = outcome.with_context(|| daemon.last_log_lines())?;
    daemon.stop()?;
    report.check()?;
    print_next_steps(&ports);
    Ok(())
}

/// What the demo received.
struct DemoReport {
    attendance: Vec<Value>,
    unknown: usize,
    pending: u64,
}

impl DemoReport {
    fn check(&self) -> anyhow::Result<()> {
        let mut who: Vec<_> =
            self.attendance.iter().filter_map(|event| event["subject"]["id"].as_str()).collect();
        who.sort_unstable();
        ensure!(
            who == ["barack", "joe"],
            "expected one attendance of each enrolled person, found {who:?}"
        );
        ensure!(self.unknown >= 1, "the stranger was not noticed");
        ensure!(self.pending == 0, "{} messages were not acknowledged by the broker", self.pending);
        println!(
            "\nEverything was as expected: each enrolled person once, the stranger as unknown."
        );
        Ok(())
    }
}

async fn play(console: &mut Console, folder: &Path, photos: &Path) -> anyhow::Result<DemoReport> {
    console
        .next(PATIENCE, |part, payload| part == "status" && payload == b"online")
        .await
        .context("the daemon is not online")?;
    enrol(console, photos).await?;
    let line = |(file, _): (&str, &str)| {
        let file =
            if file == "-" { file.to_owned() } else { photos.join(file).display().to_string() };
        format!("{file},{SHOW_MS},{GAP_MS}")
    };
    set_scene(folder, &VISITORS.map(line).join("\n"))?;
    let (attendance, unknown) = watch_visitors(console).await?;
    show_attendance(&attendance);
    let pending = show_delivery(console, attendance.len() + unknown).await?;
    Ok(DemoReport { attendance, unknown, pending })
}

async fn enrol(console: &mut Console, photos: &Path) -> anyhow::Result<()> {
    println!("Enrolling by publishing to rollcall/demo/door-1/command/enrol:");
    for (id, name, file) in ENROLLED {
        let photograph =
            fs::read(photos.join(file)).with_context(|| format!("cannot read {file}"))?;
        let image = base64::engine::general_purpose::STANDARD.encode(photograph);
        let watch = Stopwatch::start();
        let body = json!({"subject": {"id": id, "name": name}, "images": [image]});
        let reply = console.request("enrol", body, PATIENCE).await?;
        ensure!(reply["ok"] == true, "{name} was rejected: {}", reply["error"]["message"]);
        println!(
            "  {name:14} from {file:10} → {} reference, reply after {:.0} ms",
            reply["references"],
            watch.elapsed_ms()
        );
    }
    Ok(())
}

/// Waits until both people were recorded and the stranger was noticed, or for two rounds.
async fn watch_visitors(console: &mut Console) -> anyhow::Result<(Vec<Value>, usize)> {
    println!("\nVisitors pass the camera:");
    for (_, who) in VISITORS {
        println!("  · {who}");
    }
    let round = Duration::from_millis(u64::from(SHOW_MS + GAP_MS) * VISITORS.len() as u64);
    let bar = ProgressBar::new(round.as_millis() as u64);
    bar.set_style(ProgressStyle::with_template("  {bar:40} {elapsed}").expect("a valid template"));
    let watch = Stopwatch::start();
    let mut attendance = Vec::new();
    let mut unknown = 0;
    // At least one whole round: the first person passes twice and must be recorded once.
    while watch.elapsed() < round
        || (attendance.len() < 2 || unknown == 0) && watch.elapsed() < round * 2
    {
        bar.set_position((watch.elapsed().as_millis() as u64).min(round.as_millis() as u64));
        let event =
            console.next(Duration::from_millis(100), |part, _| part.starts_with("event/")).await;
        let Ok((part, payload)) = event else { continue };
        match part.as_str() {
            "event/attendance" => attendance.push(serde_json::from_slice(&payload)?),
            "event/unknown" => unknown += 1,
            _ => {}
        }
    }
    bar.finish_and_clear();
    Ok((attendance, unknown))
}

fn show_attendance(attendance: &[Value]) {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let row = |event: &Value| {
        vec![
            text(&event["occurred_at"]),
            text(&event["subject"]["name"]),
            text(&event["venue"]),
            text(&event["direction"]),
            text(&event["status"]),
            format!("{:.3}", event["score"].as_f64().unwrap_or_default()),
            format!("{:.3}", event["threshold"].as_f64().unwrap_or_default()),
            format!("{} ms", event["latency_ms"]),
        ]
    };
    let rows: Vec<_> = attendance.iter().map(row).collect();
    let heading =
        ["occurred at", "name", "venue", "direction", "status", "score", "threshold", "latency"];
    println!("\nAttendance, as published on rollcall/demo/door-1/event/attendance:");
    for line in table::render(&heading, &rows).lines() {
        println!("  {line}");
    }
}

async fn show_delivery(console: &mut Console, seen: usize) -> anyhow::Result<u64> {
    let watch = Stopwatch::start();
    let mut pending = u64::MAX;
    // The last acknowledgement may still be on its way.
    while pending > 0 && watch.elapsed() < PATIENCE {
        let reply = console.request("sync", json!({}), PATIENCE).await?;
        pending = reply["owed"][0]["rows"].as_u64().unwrap_or(u64::MAX);
    }
    println!(
        "\nEvents received here: {seen} (and {} enrolments); still pending for the broker: {pending}",
        ENROLLED.len()
    );
    let of_venue = console.request("attendance", json!({"venue": "main"}), PATIENCE).await?;
    let count = of_venue["attendance"].as_array().map_or(0, Vec::len);
    println!("The device's own record, by the MQTT command `attendance`: {count} entries");
    Ok(pending)
}

/// What was started and is ended with this process. It is locked while something is added, so that a
/// signal finds all of it.
#[derive(Clone, Default)]
struct Started(Arc<Mutex<StartedParts>>);

#[derive(Default)]
struct StartedParts {
    folder: Option<PathBuf>,
    daemon: Option<Pid>,
}

impl Started {
    fn lock(&self) -> MutexGuard<'_, StartedParts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make_folder(&self) -> anyhow::Result<Scratch> {
        let mut parts = self.lock();
        let scratch = Scratch::new_in(&std::env::temp_dir(), "demo")?;
        parts.folder = Some(scratch.path().to_owned());
        Ok(scratch)
    }

    fn start_daemon(&self, config: &Path, log: &Path) -> anyhow::Result<DaemonProcess> {
        let mut parts = self.lock();
        let daemon = DaemonProcess::start(config, log)?;
        parts.daemon = Some(Pid::from_child(&daemon.child));
        Ok(daemon)
    }

    fn end(&self) {
        let parts = self.lock();
        if let Some(pid) = parts.daemon {
            // Ctrl-C has reached it too; a second signal ends it at once.
            rustix::process::kill_process(pid, Signal::TERM).ok();
            let watch = Stopwatch::start();
            // An error: it is gone, and was waited for elsewhere.
            while let Ok(None) = waitpid(Some(pid), WaitOptions::NOHANG) {
                if watch.elapsed() > STOP_PATIENCE {
                    rustix::process::kill_process(pid, Signal::KILL).ok();
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if let Some(folder) = &parts.folder {
            fs::remove_dir_all(folder).ok();
        }
    }
}

/// Ends what was started when a signal ends this process. One that cannot be seen (SIGKILL) ends the
/// daemon too, because the daemon asked for it, but leaves the folder.
fn end_on_signals() -> anyhow::Result<Started> {
    use tokio::signal::unix::{SignalKind, signal};
    let started = Started::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut signals = {
        let _entered = runtime.enter();
        let kinds = [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::quit(),
            SignalKind::terminate(),
            SignalKind::alarm(),
            SignalKind::user_defined1(),
            SignalKind::user_defined2(),
        ];
        kinds.into_iter().map(signal).collect::<Result<Vec<_>, _>>()?
    };
    let to_end = started.clone();
    let wait = move || {
        runtime.block_on(std::future::poll_fn(|context| {
            let came = signals.iter_mut().any(|it| it.poll_recv(context).is_ready());
            if came { Poll::Ready(()) } else { Poll::Pending }
        }));
        to_end.end();
        std::process::exit(130);
    };
    std::thread::Builder::new().name("signals".into()).spawn(wait)?;
    Ok(started)
}

fn print_what_to_try(folder: &Path, config: &Path, ports: &Ports) {
    let Ports { mqtt: mqtt_port, websocket: websocket_port, http: http_port } = ports;
    let path = config.display();
    println!("\nThe daemon keeps running. In another terminal:");
    println!("  mosquitto_sub -p {mqtt_port} -v -t 'rollcall/+/+/event/+'   # what it publishes");
    println!(
        "  mosquitto_pub -p {mqtt_port} -t rollcall/demo/door-1/command/subjects -m '{{\"request_id\":\"r1\"}}'"
    );
    let program = std::env::current_exe()
        .map_or_else(|_| "rollcall".into(), |program| program.display().to_string());
    println!("  {program} --config {path} attendance");
    println!("  {program} --config {path} enrol --id me --name 'My Name' PHOTO.jpg   # enrols you");
    println!("  MQTT over WebSocket: ws://127.0.0.1:{websocket_port}");
    println!("  log file: {}", folder.join("daemon.log").display());
    println!("Ctrl-C stops it and removes its folder.");
    println!(
        "On its page, *People* enrols you from a photo of yours, and *Today* shows who passed."
    );
    println!("Open it in a browser:  http://127.0.0.1:{http_port}/");
}

fn print_next_steps(ports: &Ports) {
    println!("\nNext steps:");
    println!("  rollcall --help         all commands; `rollcall doctor` checks this machine");
    println!(
        "  config.toml             every setting with its meaning; docs/wire.md every message"
    );
    println!(
        "  make demo KEEP=1        keeps the daemon running, to enrol yourself: http://127.0.0.1:{}/",
        ports.http
    );
}

fn configuration(models: &Path, ports: &Ports) -> String {
    let Ports { mqtt, websocket, http } = ports;
    let models = toml::Value::from(models.display().to_string());
    let zone = jiff::tz::TimeZone::system();
    let zone = zone.iana_name().filter(|it| time_zone(it).is_some()).unwrap_or("UTC");
    format!(
        "[device]\nsite = \"demo\"\nname = \"door-1\"\n\
         [camera]\nsource = \"replay\"\npath = \"scene.csv\"\nrepeat = true\n\
         [recognition]\nmodels = {models}\n\
         [http]\nlisten = \"127.0.0.1:{http}\"\n\
         [broker]\nenabled = true\nlisten = \"127.0.0.1:{mqtt}\"\nwebsocket = \"127.0.0.1:{websocket}\"\n\
         [[venue]]\nid = \"main\"\nname = \"Demo\"\ntime_zone = \"{zone}\"\n"
    )
}

/// Where the daemon listens on this machine.
struct Ports {
    mqtt: u16,
    websocket: u16,
    http: u16,
}

/// Returns ports that are free at this moment; for the page the one that the documents name, if it
/// is.
fn free_ports() -> anyhow::Result<Ports> {
    let bind = |port: u16| TcpListener::bind(("127.0.0.1", port));
    let held = [bind(0), bind(0), bind(PAGE_PORT).or_else(|_| bind(0))];
    let [mqtt, websocket, http] = held.each_ref().map(|it| match it {
        Ok(listener) => listener.local_addr().map(|it| it.port()),
        Err(error) => Err(error.kind().into()),
    });
    Ok(Ports { mqtt: mqtt?, websocket: websocket?, http: http? })
}

/// Sets what the camera shows from the next round on. Replaces the file in one step, as the daemon
/// may be reading it.
fn set_scene(folder: &Path, list: &str) -> anyhow::Result<()> {
    fs::write(folder.join("scene.new"), list)?;
    Ok(fs::rename(folder.join("scene.new"), folder.join("scene.csv"))?)
}

/// The daemon as a process of its own, started as a user starts it.
struct DaemonProcess {
    child: Child,
    log: PathBuf,
}

impl DaemonProcess {
    fn start(config: &Path, log: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let log_file = fs::File::create(log)?;
        let child = Command::new(program)
            .args(["--config".as_ref(), config.as_os_str(), "run".as_ref()])
            .arg("--end-with-parent")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log_file)
            .spawn()
            .context("cannot start the daemon")?;
        Ok(Self { child, log: log.to_owned() })
    }

    fn wait_until_listening(&mut self, port: u16) -> anyhow::Result<()> {
        let watch = Stopwatch::start();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            if self.child.try_wait()?.is_some() || watch.elapsed() > PATIENCE {
                bail!("the daemon did not start: {}", self.last_log_lines());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn last_log_lines(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        format!(
            "the daemon's last log lines: {}",
            lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
        )
    }

    fn stop(mut self) -> anyhow::Result<()> {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, Signal::TERM)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon ended with {status}: {}", self.last_log_lines());
        Ok(())
    }
}

impl Drop for DaemonProcess {
    fn drop(&mut self) {
        // Already gone after a clean stop.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

//! `rollcall demo`: the main job before one's eyes. A real daemon with its embedded broker and a replay camera; two people
//! are enrolled by MQTT, visitors pass, and what was recorded and published is shown and checked.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::cli::console::{Console, with_console};
use crate::cli::scratch::Scratch;
use crate::cli::table;
use crate::clock::Stopwatch;
use crate::config;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// The photographs that `models/fetch.sh photos` fetched
    #[arg(long, default_value = ".cache/photos")]
    photos: PathBuf,
    /// Folder of the networks
    #[arg(long, default_value = "models")]
    models: PathBuf,
    /// Keep the daemon running afterwards, to play with
    #[arg(long)]
    keep: bool,
}

/// Who is enrolled, and from which photograph.
const ENROLLED: [(&str, &str, &str); 2] =
    [("barack", "Barack Obama", "obama.jpg"), ("joe", "Joe Biden", "biden.jpg")];

/// Who passes: other photographs of one, the same photograph of the other (the package holds only one), a stranger, and
/// the first once more, who must not be recorded again.
const VISITORS: [(&str, &str); 5] = [
    ("obama2.jpg", "Barack Obama (another photograph)"),
    ("biden.jpg", "Joe Biden (the same photograph: there is only one)"),
    ("astronaut.png", "a stranger"),
    ("obama3.jpg", "Barack Obama again (a third photograph)"),
    ("-", "nobody"),
];

const PATIENCE: Duration = Duration::from_secs(30);
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
    let scratch = Scratch::new_in(&std::env::temp_dir(), "demo")?;
    let folder = scratch.path();
    let [mqtt_port, websocket_port] = free_ports()?;
    let path = folder.join("config.toml");
    fs::write(&path, configuration(&models, mqtt_port, websocket_port))?;
    set_scene(folder, "file,show_ms,gap_ms\n-,500,0\n")?;
    let settings = config::load(Some(&path), &std::collections::BTreeMap::new())?;

    println!(
        "rollcall demo: a daemon with its own broker and a replay camera, in {}\n",
        folder.display()
    );
    let mut daemon = Daemon::start(&path, &folder.join("daemon.log"))?;
    daemon.wait_until_listening(mqtt_port)?;
    let topics = ["reply/+", "event/+", "status", "health"];
    let outcome = with_console(&settings, &topics, async |console| {
        let report = play(console, folder, &photos).await?;
        if args.keep {
            keep(folder, &path, mqtt_port, websocket_port).await;
        }
        Ok(report)
    });
    let report = outcome.with_context(|| daemon.last_words())?;
    daemon.stop(args.keep)?;
    report.check()?;
    if !args.keep {
        look_further();
    }
    Ok(())
}

/// What the demo saw.
struct Report {
    attendance: Vec<Value>,
    unknown: usize,
    owed: u64,
}

impl Report {
    fn check(&self) -> anyhow::Result<()> {
        let mut who: Vec<_> =
            self.attendance.iter().filter_map(|event| event["subject"]["id"].as_str()).collect();
        who.sort_unstable();
        ensure!(
            who == ["barack", "joe"],
            "expected one attendance of each enrolled person, found {who:?}"
        );
        ensure!(self.unknown >= 1, "the stranger was not noticed");
        ensure!(self.owed == 0, "{} messages were not acknowledged by the broker", self.owed);
        println!(
            "\nEverything was as expected: each enrolled person once, the stranger as nobody."
        );
        Ok(())
    }
}

async fn play(console: &mut Console, folder: &Path, photos: &Path) -> anyhow::Result<Report> {
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
    let owed = show_delivery(console, attendance.len() + unknown).await?;
    Ok(Report { attendance, unknown, owed })
}

async fn enrol(console: &mut Console, photos: &Path) -> anyhow::Result<()> {
    println!("Enrolling by publishing to rollcall/demo/door-1/command/enrol:");
    for (id, name, file) in ENROLLED {
        let photograph =
            fs::read(photos.join(file)).with_context(|| format!("cannot read {file}"))?;
        let image = base64::engine::general_purpose::STANDARD.encode(photograph);
        let watch = Stopwatch::start();
        let body = json!({"subject": {"id": id, "name": name}, "images": [image]});
        let answer = console.request("enrol", body, PATIENCE).await?;
        ensure!(answer["ok"] == true, "{name} was refused: {}", answer["error"]["message"]);
        println!(
            "  {name:14} from {file:10} → {} reference, answered in {:.0} ms",
            answer["references"],
            watch.elapsed_ms()
        );
    }
    Ok(())
}

/// Until both were recorded and the stranger was noticed, or the scene has been played twice.
async fn watch_visitors(console: &mut Console) -> anyhow::Result<(Vec<Value>, usize)> {
    println!("\nVisitors pass the camera:");
    for (_, who) in VISITORS {
        println!("  · {who}");
    }
    let round = Duration::from_millis(u64::from(SHOW_MS + GAP_MS) * VISITORS.len() as u64);
    let bar = ProgressBar::new(round.as_millis() as u64);
    bar.set_style(ProgressStyle::with_template("  {bar:40} {elapsed}").expect("a valid template"));
    let watch = Stopwatch::start();
    let (mut attendance, mut unknown) = (Vec::new(), 0);
    // One whole round even when everybody was seen early: the second passing of the first must bring nothing.
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
    let mut owed = u64::MAX;
    // The last acknowledgement may still be on its way.
    while owed > 0 && watch.elapsed() < PATIENCE {
        let answer = console.request("sync", json!({}), PATIENCE).await?;
        owed = answer["owed"][0]["rows"].as_u64().unwrap_or(u64::MAX);
    }
    println!(
        "\nEvents received here: {seen} (and {} enrolments); still owed to the broker: {owed}",
        ENROLLED.len()
    );
    let of_venue = console.request("attendance", json!({"venue": "main"}), PATIENCE).await?;
    let count = of_venue["attendance"].as_array().map_or(0, Vec::len);
    println!("The device's own record, asked by the MQTT command `attendance`: {count} entries");
    Ok(owed)
}

async fn keep(folder: &Path, config: &Path, mqtt_port: u16, websocket_port: u16) {
    let path = config.display();
    println!("\nThe daemon goes on. In another terminal:");
    println!("  mosquitto_sub -p {mqtt_port} -v -t 'rollcall/#'          # everything it says");
    println!(
        "  mosquitto_pub -p {mqtt_port} -t rollcall/demo/door-1/command/subjects -m '{{\"request_id\":\"r1\"}}'"
    );
    let program = std::env::current_exe()
        .map_or_else(|_| "rollcall".into(), |program| program.display().to_string());
    println!("  {program} --config {path} attendance");
    println!("  {program} --config {path} enrol --id me --name 'My Name' PHOTO.jpg");
    println!("  MQTT over WebSocket: ws://127.0.0.1:{websocket_port}");
    println!("  its log: {}", folder.join("daemon.log").display());
    println!("Ctrl-C ends it.");
    let interrupt = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt());
    if let Ok(mut interrupt) = interrupt {
        interrupt.recv().await;
    }
}

fn look_further() {
    println!("\nTo look further:");
    println!("  make demo KEEP=1        keeps the daemon running, to publish and subscribe to");
    println!(
        "  rollcall --help         all commands; `rollcall doctor` says what this machine lacks"
    );
    println!(
        "  config.toml             every setting with its meaning; docs/wire.md every message"
    );
}

fn configuration(models: &Path, mqtt_port: u16, websocket_port: u16) -> String {
    let models = toml::Value::from(models.display().to_string());
    format!(
        "[device]\nsite = \"demo\"\nname = \"door-1\"\n\
         [camera]\nsource = \"replay\"\npath = \"scene.csv\"\nrepeat = true\n\
         [recognition]\nmodels = {models}\n\
         [broker]\nenabled = true\nlisten = \"127.0.0.1:{mqtt_port}\"\nwebsocket = \"127.0.0.1:{websocket_port}\"\n"
    )
}

/// Two ports that nobody listens on at this moment.
fn free_ports() -> anyhow::Result<[u16; 2]> {
    let (one, two) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
    Ok([one.local_addr()?.port(), two.local_addr()?.port()])
}

/// What the camera sees from the next round on. Replaced in one step, as the daemon may be reading it.
fn set_scene(folder: &Path, list: &str) -> anyhow::Result<()> {
    fs::write(folder.join("scene.new"), list)?;
    Ok(fs::rename(folder.join("scene.new"), folder.join("scene.csv"))?)
}

/// The daemon, as its own process, exactly as a user starts it.
struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    fn start(config: &Path, log: &Path) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let log_file = fs::File::create(log)?;
        let child = Command::new(program)
            .args(["--config".as_ref(), config.as_os_str(), "run".as_ref()])
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
                bail!("the daemon did not start: {}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(5).collect();
        format!(
            "the daemon's last words: {}",
            lines.into_iter().rev().collect::<Vec<_>>().join(" | ")
        )
    }

    /// Ctrl-C has reached the daemon too (`asked`); a second signal would end it at once.
    fn stop(mut self, asked: bool) -> anyhow::Result<()> {
        if !asked {
            let pid = rustix::process::Pid::from_child(&self.child);
            rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "the daemon ended with {status}: {}", self.last_words());
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already gone after a clean stop.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

//! `rollcall doctor`: looks at everything the daemon needs, and says what is wrong and what to do. Changes nothing.

use std::net::ToSocketAddrs;
use std::path::Path;
use std::time::Duration;

use crate::app;
use crate::camera::replay::Replay;
use crate::clock::{Clock, SystemClock};
use crate::config::{CameraSettings, Settings};
use crate::health;
use crate::mongo::{self, Examined};
use crate::record::store::{DATABASE, SinkName, Store, StoreError};
use crate::vision::{self, Vision, runtime};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// One JSON object
    #[arg(long)]
    json: bool,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Good,
    /// The daemon runs, but not as well as it could.
    Warning,
    /// The daemon does not start, or does not do its job.
    Fault,
}

#[derive(Debug, serde::Serialize)]
struct Finding {
    part: &'static str,
    state: State,
    /// What was found, and if it is not good, what to do.
    words: String,
}

/// Less than this is a warning: a year of visits is about 100 MB, a database written anew after an erasure needs twice its size.
const FREE_BYTES_MIN: u64 = 500 << 20;

/// Less than this is full: what the daemon has kept back for that is about to be used up, or is.
const FULL_BYTES: u64 = 1 << 20;

pub fn run(args: &Args, path: Option<&Path>) -> anyhow::Result<()> {
    let mut findings = Vec::new();
    match super::load(path) {
        Ok(settings) => {
            let which = path.map_or("built-in defaults; make a config.toml from the shipped one".into(), |p| {
                p.display().to_string()
            });
            let state = if path.is_some() { State::Good } else { State::Warning };
            findings.push(Finding { part: "configuration", state, words: which });
            findings.extend(look(&settings));
        }
        Err(error) => {
            findings.push(Finding { part: "configuration", state: State::Fault, words: format!("{error:#}") });
        }
    }
    let faults = findings.iter().filter(|finding| finding.state == State::Fault).count();
    if args.json {
        println!("{}", serde_json::json!({"good": faults == 0, "findings": findings}));
    } else {
        for Finding { part, state, words } in &findings {
            let mark = match state {
                State::Good => "good   ",
                State::Warning => "warning",
                State::Fault => "FAULT  ",
            };
            println!("{mark}  {part:14}  {words}");
        }
    }
    anyhow::ensure!(faults == 0, "{faults} of {} checks found a fault", findings.len());
    Ok(())
}

fn look(settings: &Settings) -> Vec<Finding> {
    type Check = fn(&Settings) -> (State, String);
    let checks: [(&'static str, Check); 11] = [
        ("networks", networks),
        ("library", library),
        ("camera", camera),
        ("storage", storage),
        ("people", people),
        ("disk", disk),
        ("broker", broker),
        ("mongodb", mongodb),
        ("fleet", fleet),
        ("clock", clock),
        ("processor", processor),
    ];
    checks
        .into_iter()
        .map(|(part, check)| {
            let (state, words) = check(settings);
            Finding { part, state, words }
        })
        .collect()
}

fn networks(settings: &Settings) -> (State, String) {
    match vision::verify(&settings.vision.models) {
        Ok(files) => (State::Good, format!("{} files are as the manifest describes", files.len())),
        Err(error) => (State::Fault, format!("{:#}", anyhow::Error::new(error))),
    }
}

fn library(settings: &Settings) -> (State, String) {
    match Vision::load(&settings.vision) {
        Ok(_) => {
            let vision = &settings.vision;
            let pinned = runtime::is_pinned(vision.runtime_library.as_deref(), &vision.models) == Some(true);
            let version = runtime::PINNED_VERSION;
            let words = format!("ONNX Runtime {version} loads; one inference uses {} of the cores", vision.threads);
            let other = format!(
                "another ONNX Runtime than {version} loads; nothing was measured with it: `make setup` fetches the right one"
            );
            if pinned { (State::Good, words) } else { (State::Warning, other) }
        }
        Err(error) => (State::Fault, format!("{:#}", anyhow::Error::new(error))),
    }
}

fn camera(settings: &Settings) -> (State, String) {
    match &settings.camera {
        CameraSettings::None => (State::Warning, "none configured: only commands bring faces ([camera] source)".into()),
        CameraSettings::Replay { replay, .. } => match Replay::open(replay.clone()) {
            Ok(_) => (State::Warning, "a replay stands in for a camera ([camera] source)".into()),
            Err(error) => (State::Fault, format!("{:#}", anyhow::Error::new(error))),
        },
        CameraSettings::V4l2(camera) => match camera.examine() {
            Ok(node) => (State::Good, format!("{} can be used; `rollcall cameras` tells what it can", node.display())),
            Err(reason) => (State::Warning, format!("{reason}; the daemon waits for it ([camera] device)")),
        },
    }
}

fn storage(settings: &Settings) -> (State, String) {
    let dir = &settings.state_dir;
    if !dir.join(DATABASE).is_file() {
        return (State::Good, format!("{} has no database yet; the first start makes one", dir.display()));
    }
    let read = || -> Result<(usize, u64), StoreError> {
        let reader = Store::open_read_only(dir, app::credentials_dir().as_deref())?;
        reader.check_key(dir)?;
        let subjects = reader.subjects(None, 500)?.len();
        Ok((subjects, reader.buried(500)?.len() as u64))
    };
    match read() {
        Ok((subjects, 0)) => {
            (State::Good, format!("{subjects}{} subjects enrolled", if subjects == 500 { " or more" } else { "" }))
        }
        Ok((_, buried)) => (State::Warning, format!("{buried} messages could not be delivered and were set aside")),
        Err(error) => (State::Fault, format!("{:#}", anyhow::Error::new(error))),
    }
}

/// After a change of the network everybody is photographed again, one by one: how far that is.
fn people(settings: &Settings) -> (State, String) {
    let dir = &settings.state_dir;
    if !dir.join(DATABASE).is_file() {
        return (State::Good, "nobody is enrolled yet".into());
    }
    let embedder = match vision::embedder_digest(&settings.vision) {
        Ok(embedder) => embedder,
        Err(error) => return (State::Fault, format!("{:#}", anyhow::Error::new(error))),
    };
    let migration =
        Store::open_read_only(dir, app::credentials_dir().as_deref()).and_then(|it| it.migration(&embedder));
    match migration {
        Ok(it) if it.outdated == 0 => (State::Good, format!("all {} who are enrolled can be recognised", it.subjects)),
        Ok(it) => {
            let words = format!(
                "{} of {} who are enrolled have no reference of the network in use ({}) and are not recognised: publish \
                 their photographs again (`rollcall subjects --outdated`)",
                it.outdated, it.subjects, settings.vision.embedder
            );
            (State::Warning, words)
        }
        Err(error) => (State::Fault, format!("{:#}", anyhow::Error::new(error))),
    }
}

fn disk(settings: &Settings) -> (State, String) {
    // The state directory may not be there yet: then the nearest folder above it tells.
    let place = settings.state_dir.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("."));
    match health::free_bytes(place) {
        Some(free) if free < FULL_BYTES => {
            let words = "full: people are recognised, but soon nobody is recorded. Make room; the daemon goes on by itself, and \
                         [storage] keep_days keeps it small";
            (State::Fault, words.into())
        }
        Some(free) if free < FREE_BYTES_MIN => {
            (State::Warning, format!("only {} MB free: make room, or set [storage] keep_days", free >> 20))
        }
        Some(free) => (State::Good, format!("{} MB free", free >> 20)),
        None => (State::Warning, "the free space cannot be told".into()),
    }
}

fn broker(settings: &Settings) -> (State, String) {
    let Some(mqtt) = &settings.mqtt else {
        return (
            State::Warning,
            "none configured: nothing is published and nobody can be enrolled remotely ([mqtt] host)".into(),
        );
    };
    if settings.broker.is_some() {
        return (State::Good, format!("embedded, on port {}", mqtt.port));
    }
    let name = format!("{}:{}", mqtt.host, mqtt.port);
    let Some(address) = (mqtt.host.as_str(), mqtt.port).to_socket_addrs().ok().and_then(|mut found| found.next())
    else {
        return (State::Fault, format!("{name} has no address: check [mqtt] host and the name server"));
    };
    match std::net::TcpStream::connect_timeout(&address, Duration::from_secs(3)) {
        Ok(_) => (State::Good, format!("{name} answers")),
        Err(error) => (State::Warning, format!("{name} does not answer ({error}); events wait on disk until it does")),
    }
}

fn mongodb(settings: &Settings) -> (State, String) {
    let Some(mongo) = &settings.mongo else {
        return (State::Good, "none configured: the record is kept here ([mongo] uri)".into());
    };
    if let Some(warning) = settings.warnings.iter().find(|it| it.starts_with("[mongo]")) {
        return (State::Warning, warning.clone());
    }
    let now_ms = SystemClock::new(settings.trust).now().wall_ms;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return (State::Fault, format!("cannot start the runtime: {error}")),
    };
    let examined = runtime.block_on(mongo::examine(mongo, now_ms));
    runtime.shutdown_background();
    match examined {
        Examined::Good(words) => (State::Good, words),
        Examined::Warning(words) => (State::Warning, words),
        Examined::Fault(words) => (State::Fault, words),
    }
}

fn fleet(settings: &Settings) -> (State, String) {
    if let Some(warning) = settings.warnings.iter().find(|it| it.starts_with("[fleet]")) {
        return (State::Warning, warning.clone());
    }
    let Some(fleet) = &settings.fleet else {
        return (State::Good, "the gallery is this door's own ([fleet] key_file shares it with the site)".into());
    };
    let print = fleet.key.fingerprint();
    let owed = Store::open_read_only(&settings.state_dir, app::credentials_dir().as_deref())
        .and_then(|reader| reader.outbox_depth(SinkName::GALLERY));
    match owed {
        Ok(depth) if depth.rows > 0 => {
            let words = "not told the site yet; if that lasts, see gallery.sharing in health";
            (
                State::Warning,
                format!("shared, site key {print} (the same at every door); {} subjects {words}", depth.rows),
            )
        }
        // Where there is no database yet, `storage` says so.
        _ => (State::Good, format!("the gallery is shared, site key {print} (the same at every door)")),
    }
}

fn clock(settings: &Settings) -> (State, String) {
    if SystemClock::new(settings.trust).now().trusted {
        return (State::Good, "kept right".into());
    }
    let words = "nothing keeps the time right (no NTP): events are marked unsynced. Enable systemd-timesyncd, or set [clock] trust \
                 if the device has a battery-backed clock";
    (State::Warning, words.into())
}

fn processor(_: &Settings) -> (State, String) {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    match health::cpu_celsius() {
        Some(celsius) if celsius >= 80.0 => {
            (State::Warning, format!("{cores} cores at {celsius:.0} °C: it slows down; give it air"))
        }
        Some(celsius) => (State::Good, format!("{cores} cores at {celsius:.0} °C")),
        None => (State::Good, format!("{cores} cores; no temperature sensor")),
    }
}

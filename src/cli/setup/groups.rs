//! What is asked, part by part, each checked before the next.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::anyhow;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom as _, SystemRandom};

use crate::camera::pipe::presets::Preset;
use crate::camera::v4l2::find::{self, CameraChoice as Camera, Described};
use crate::cli::doctor::finding::{CheckResult, CheckState};
use crate::cli::doctor::{Installation, camera, links, machine};
use crate::cli::setup::ask::{Asker, Question, Retry, usage_error};
use crate::cli::setup::draft::{
    CAMERA_URL, Draft, MONGO_CA, MQTT_CA, PASSWORD, SITE_KEY, TOKEN, URI,
};
use crate::cli::setup::{Answers, print_check, read_first_line};
use crate::clock;
use crate::config::Settings;
use crate::config::camera::CameraSettings;
use crate::config::raw::RawConfig;
use crate::ids::check_id;
use crate::mqtt::topics;

pub fn ask_all(asker: &Asker, answers: &Answers, draft: &mut Draft) -> anyhow::Result<()> {
    place(asker, answers, draft)?;
    venue(asker, answers, draft)?;
    // What else a provisioning file has is wrong for good.
    draft.settings().map_err(usage_error)?;
    until_good(asker, draft, |asker, draft, again| ask_camera(asker, answers, draft, again))?;
    until_good(asker, draft, |asker, draft, again| ask_broker(asker, answers, draft, again))?;
    until_good(asker, draft, |asker, draft, again| ask_mongo(asker, answers, draft, again))?;
    until_good(asker, draft, |asker, draft, again| ask_http(asker, answers, draft, again))?;
    if let Some(file) = &answers.site_key_file {
        draft.keep_file(&SITE_KEY, file)?;
    }
    let settings = draft.settings().map_err(usage_error)?;
    print_check("clock", &machine::check_clock(&settings));
    Ok(())
}

/// Asks until the check is good, or whoever answers keeps it as it is.
fn until_good(
    asker: &Asker,
    draft: &mut Draft,
    ask: impl Fn(&Asker, &mut Draft, bool) -> anyhow::Result<Option<(&'static str, CheckResult)>>,
) -> anyhow::Result<()> {
    let mut again = false;
    loop {
        let outcome = ask(asker, draft, again);
        let what = match outcome {
            Ok(None) => return Ok(()),
            Ok(Some((part, verdict))) => {
                print_check(part, &verdict);
                if verdict.is_good() {
                    return Ok(());
                }
                format!("{part}: {}", verdict.words)
            }
            // What is wrong in the answers themselves can only be answered anew.
            Err(error) if asker.is_interactive() && error.is::<Unfit>() => {
                println!("  {error:#}");
                again = true;
                continue;
            }
            Err(error) if error.is::<Unfit>() => return Err(usage_error(error)),
            Err(error) => return Err(error),
        };
        if asker.ask_whether_to_keep(&what)? == Retry::Keep {
            return Ok(());
        }
        again = true;
    }
}

/// Answers that do not make a configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Unfit(String);

fn settings_of(draft: &Draft) -> anyhow::Result<Settings> {
    draft.settings().map_err(|error| Unfit(format!("{error:#}")).into())
}

/// A question about one key. Once it was answered wrongly, a flag is no answer any more.
struct Ask<'a> {
    asker: &'a Asker,
    draft: &'a mut Draft,
    again: bool,
}

impl Ask<'_> {
    /// Whether provisioning file or flags answer anything of this part: then the rest of it is
    /// as it is.
    fn text<T>(
        &mut self,
        (section, key): (&str, &str),
        question: Question<'_>,
        check: impl Fn(&str) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        let known = self.draft.is_answered(section, key) && question.given.is_none();
        let given = question.given.filter(|_| !self.again);
        if known && !self.again {
            let usual = question.usual.clone().unwrap_or_default();
            return check(&usual)
                .map_err(|why| usage_error(anyhow!("[{section}] {key} = {usual:?} {why}")));
        }
        self.asker.ask(&Question { given, ..question }, check)
    }
}

fn place(asker: &Asker, answers: &Answers, draft: &mut Draft) -> anyhow::Result<()> {
    let id = |text: &str| {
        check_id(text).map(|()| text.to_owned()).map_err(|error| format!("cannot be used: {error}"))
    };
    let mut ask = Ask { asker, draft, again: false };
    let shipped = RawConfig::default().device.site;
    let now = ask.draft.text("device", "site").filter(|site| *site != shipped);
    let settled = now.is_some();
    let words = "Site (where the device belongs; first part of its topics)";
    let question = Question {
        flag: "--site SITE",
        words,
        given: answers.site.as_deref(),
        usual: now,
        settled,
    };
    let site = ask.text(("device", "site"), question, id)?;
    let now = ask.draft.text("device", "name");
    let settled = now.is_some();
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let usual = now.or_else(|| check_id(&host).is_ok().then_some(host));
    let words = "Device (its own name at the site)";
    let question =
        Question { flag: "--device NAME", words, given: answers.device.as_deref(), usual, settled };
    let device = ask.text(("device", "name"), question, |text| {
        if topics::RESERVED.contains(&text) {
            Err("stands for the whole site in topics".into())
        } else {
            id(text)
        }
    })?;
    draft.set("device", "site", site);
    draft.set("device", "name", device);
    Ok(())
}

fn venue(asker: &Asker, answers: &Answers, draft: &mut Draft) -> anyhow::Result<()> {
    let id = |text: &str| {
        check_id(text).map(|()| text.to_owned()).map_err(|error| format!("cannot be used: {error}"))
    };
    let shipped = RawConfig::default().attendance.venue;
    let mut ask = Ask { asker, draft, again: false };
    let now = ask.draft.text("attendance", "venue").unwrap_or_else(|| shipped.clone());
    let settled = now != shipped || ask.draft.zone_of(&now).is_some();
    let words = "Venue (the room or door at which attendance is recorded)";
    let question = Question {
        flag: "--venue ID",
        words,
        given: answers.venue.as_deref(),
        usual: Some(now),
        settled,
    };
    let venue = ask.text(("attendance", "venue"), question, id)?;
    let known = ask.draft.zone_of(&venue);
    let settled = known.is_some();
    let system = || {
        jiff::tz::TimeZone::system()
            .iana_name()
            .filter(|it| clock::time_zone(it).is_some())
            .map(str::to_owned)
    };
    let usual = known.or_else(system).or_else(|| Some("UTC".into()));
    let words = "Time zone of the venue";
    let given = answers.time_zone.as_deref();
    let question = Question { flag: "--time-zone ZONE", words, given, usual, settled };
    let zone = if ask.draft.is_answered("venue", "time_zone") && settled && given.is_none() {
        question.usual.unwrap_or_default()
    } else {
        ask.text(("venue", "time_zone"), question, zone)?
    };
    draft.set("attendance", "venue", venue.as_str());
    draft.set_zone(&venue, &zone);
    Ok(())
}

/// A zone of the database, and if it is none, those that may have been meant.
fn zone(text: &str) -> Result<String, String> {
    // In the words of the database: it takes any case.
    if let Some(name) = clock::time_zone(text).and_then(|it| it.iana_name().map(str::to_owned)) {
        return Ok(name);
    }
    let wanted = text.trim().replace(' ', "_").to_lowercase();
    let near: Vec<String> = jiff::tz::db()
        .available()
        .map(|it| it.to_string())
        .filter(|it| {
            wanted.len() >= 3
                && it.to_lowercase().contains(&wanted)
                && !it.contains("posix")
                && !it.contains("right")
        })
        .take(4)
        .collect();
    let hint = if near.is_empty() {
        "write it like Europe/Berlin".into()
    } else {
        format!("is it {}?", near.join(", "))
    };
    Err(format!("is no time zone; {hint}"))
}

type Checked = anyhow::Result<Option<(&'static str, CheckResult)>>;

fn ask_camera(asker: &Asker, answers: &Answers, draft: &mut Draft, again: bool) -> Checked {
    let before = draft.settings().map(|it| it.camera).ok();
    let found = find::describe_all();
    let given = answers.camera.as_deref().filter(|_| !again);
    let is_answered =
        ["source", "device", "preset"].iter().any(|key| draft.is_answered("camera", key))
            && given.is_none();
    if !is_answered || again {
        let source = draft.text("camera", "source").unwrap_or_else(|| "none".into());
        let settled = source != "none";
        if asker.is_interactive() && given.is_none() {
            list(&found);
        }
        let usual = Some(usual_camera(draft, &source, &found));
        let words = "Camera (number, name, path, auto, rpicam, gstreamer, rtsp, http, none)";
        let question = Question { flag: "--camera CAMERA", words, given, usual, settled };
        let answer = asker.ask(&question, |text| camera_of(text, &found))?;
        set_camera(asker, answers, draft, &answer, again)?;
    }
    let settings = settings_of(draft)?;
    let same = before.as_ref().is_some_and(|it| is_same(it, &settings.camera));
    Ok(match &settings.camera {
        CameraSettings::None => None,
        // What a provisioning file names is not opened by root.
        CameraSettings::Replay { .. } if draft.is_answered("camera", "path") => {
            print_check("camera", &camera::replay_configured());
            None
        }
        // Whoever sets a replay up knows it.
        camera @ CameraSettings::Replay { .. } => {
            let verdict = camera::try_camera(camera);
            if verdict.state == CheckState::Fault {
                return Ok(Some(("camera", verdict)));
            }
            print_check("camera", &verdict);
            None
        }
        // A running daemon holds its own camera, and can report on that one.
        _ if same && !draft.is_new() => {
            Some(("camera", camera::check_camera(&Installation::new(settings))))
        }
        camera => Some(("camera", camera::try_camera(camera))),
    })
}

/// What the configuration has; where it has nothing, what is connected.
fn usual_camera(draft: &Draft, source: &str, found: &[Described]) -> String {
    match source {
        "v4l2" => draft.text("camera", "device").unwrap_or_else(|| "auto".into()),
        "pipe" => draft.text("camera", "preset").unwrap_or_else(|| "pipe".into()),
        "replay" | "http" => source.to_owned(),
        // A device for a door has one, or gets one.
        _ => {
            let has_direct = found.iter().any(|it| it.unusable.is_none());
            let preset = found.iter().find_map(|it| it.preset).filter(|_| !has_direct);
            preset.map_or("auto", Preset::name).to_owned()
        }
    }
}

fn set_camera(
    asker: &Asker,
    answers: &Answers,
    draft: &mut Draft,
    answer: &str,
    again: bool,
) -> anyhow::Result<()> {
    let is_preset = Preset::ALL.iter().any(|it| it.name() == answer);
    match answer {
        "replay" | "pipe" => return Ok(()),
        "none" | "http" => draft.set("camera", "source", answer),
        preset if is_preset => {
            draft.set("camera", "source", "pipe");
            draft.set("camera", "preset", preset);
        }
        device => {
            draft.set("camera", "source", "v4l2");
            draft.set("camera", "device", device);
        }
    }
    if !is_preset && draft.text("camera", "preset").is_some() {
        draft.set("camera", "preset", "");
    }
    if !matches!(answer, "rtsp" | "http") {
        draft.drop_kept(&CAMERA_URL);
        return Ok(());
    }
    ask_camera_url(asker, answers, draft, again)
}

fn ask_camera_url(
    asker: &Asker,
    answers: &Answers,
    draft: &mut Draft,
    again: bool,
) -> anyhow::Result<()> {
    if let (Some(file), false) = (&answers.camera_url_file, again) {
        return draft.keep(&CAMERA_URL, read_first_line(file)?.into_bytes());
    }
    let has = draft.has_kept(&CAMERA_URL) || draft.text("camera", "url").is_some();
    if !asker.is_interactive() {
        if has {
            return Ok(());
        }
        return Err(usage_error(anyhow!("--camera-url-file FILE is missing")));
    }
    let words = if has {
        "URL of the camera (not shown; empty: as it is)"
    } else {
        "URL of the camera, rtsp://USER:PASSWORD@HOST/PATH (not shown)"
    };
    match asker.ask_secret(words)? {
        Some(url) => draft.keep(&CAMERA_URL, url.trim().into()),
        None => Ok(()),
    }
}

fn is_same(a: &CameraSettings, b: &CameraSettings) -> bool {
    match (a, b) {
        (CameraSettings::V4l2(a), CameraSettings::V4l2(b)) => a == b,
        (CameraSettings::Pipe(a), CameraSettings::Pipe(b)) => a == b,
        (CameraSettings::Http(a), CameraSettings::Http(b)) => a == b,
        _ => false,
    }
}

fn list(found: &[Described]) {
    if found.is_empty() {
        println!("  no camera is connected");
    }
    for (at, camera) in found.iter().enumerate() {
        let name = if camera.card.is_empty() { "(unknown)" } else { &camera.card };
        let why = camera
            .unusable
            .as_ref()
            .map_or_else(String::new, |why| format!(", cannot be used: {why}"));
        println!("  {}  {name} ({}){why}", at + 1, camera.node.display());
        if let Some(preset) = camera.preset {
            println!("     it is used as {}", preset.name());
        }
    }
}

fn camera_of(text: &str, found: &[Described]) -> Result<String, String> {
    if let Ok(number) = text.parse::<usize>() {
        let camera =
            number.checked_sub(1).and_then(|at| found.get(at)).ok_or("is not in the list")?;
        if let Some(preset) = camera.preset {
            return Ok(preset.name().to_owned());
        }
        // The stable name: a number may change when a camera is plugged in again.
        return Ok(camera.stable.clone().unwrap_or_else(|| camera.node.display().to_string()));
    }
    if Camera::parse(text).is_none() {
        Err("is no path and no name".into())
    } else {
        Ok(text.to_owned())
    }
}

fn ask_broker(asker: &Asker, answers: &Answers, draft: &mut Draft, again: bool) -> Checked {
    let mut ask = Ask { asker, draft, again };
    let known = ask.draft.text("mqtt", "host");
    let embedded = ask.draft.is_on("broker", "enabled");
    let provisioned =
        ask.draft.is_answered("mqtt", "host") || ask.draft.is_answered("broker", "enabled");
    let settled = known.is_some() || embedded || provisioned;
    let usual = known.unwrap_or_else(|| if embedded { "embedded".into() } else { "none".into() });
    let words = "MQTT broker (name or address; embedded; none)";
    let given = answers.mqtt_host.as_deref();
    // All other flags are about this broker.
    let is_given = given.is_some() || provisioned;
    let question = Question { flag: "--mqtt-host HOST", words, given, usual: Some(usual), settled };
    let host = if provisioned && given.is_none() && !again {
        question.usual.unwrap_or_default()
    } else {
        ask.text(("mqtt", "host"), question, host)?
    };
    match host.as_str() {
        "none" | "embedded" => {
            without_broker(draft);
            draft.set("broker", "enabled", host == "embedded");
            settings_of(draft)?;
            return Ok(None);
        }
        host => {
            draft.set("broker", "enabled", false);
            draft.set("mqtt", "host", host);
        }
    }
    ask_security(asker, answers, draft, again, is_given)?;
    Ok(Some(("broker", links::check_broker(&settings_of(draft)?))))
}

fn host(text: &str) -> Result<String, String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
    let good = !text.is_empty() && text.len() <= 253 && text.chars().all(plain);
    if good { Ok(text.to_owned()) } else { Err("is neither a name nor an address".into()) }
}

fn without_broker(draft: &mut Draft) {
    draft.drop_kept(&PASSWORD);
    draft.drop_kept(&MQTT_CA);
    for key in ["host", "user", "client_cert_file", "client_key_file"] {
        if draft.text("mqtt", key).is_some() {
            draft.set("mqtt", key, "");
        }
    }
    if draft.is_on("mqtt", "tls") {
        draft.set("mqtt", "tls", false);
    }
    if draft.number("mqtt", "port").is_some_and(|port| port != 0) {
        draft.set("mqtt", "port", 0);
    }
}

/// TLS, port, authority, user and password of a broker. `is_given`: by flags or a file, and
/// what they leave out is as it is.
fn ask_security(
    asker: &Asker,
    answers: &Answers,
    draft: &mut Draft,
    again: bool,
    is_given: bool,
) -> anyhow::Result<()> {
    let mut ask = Ask { asker, draft, again };
    let settled = is_given || !asker.is_interactive();
    let port = ask.draft.number("mqtt", "port").filter(|port| *port != 0);
    let usual = if ask.draft.is_on("mqtt", "tls") || port == Some(8883) { "yes" } else { "no" };
    let given =
        answers.mqtt_tls.as_deref().or_else(|| answers.mqtt_ca_file.as_ref().map(|_| "yes"));
    let tls = Question {
        flag: "--mqtt-tls YES|NO",
        words: "TLS (yes, no)",
        given,
        usual: Some(usual.into()),
        settled,
    };
    let tls = ask.quiet_or(("mqtt", "tls"), is_given, tls, yes_or_no)?;
    let given = answers.mqtt_port.as_deref();
    // 0 is the usual one, and stays so when TLS is switched.
    let shown = port
        .map_or_else(|| if tls { "8883".into() } else { "1883".into() }, |port| port.to_string());
    let question =
        Question { flag: "--mqtt-port PORT", words: "Port", given, usual: Some(shown), settled };
    let number = |text: &str| match text.parse::<u16>() {
        Ok(port) if port > 0 => Ok(port),
        _ => Err("is no port (1 to 65535)".to_owned()),
    };
    let port = ask.quiet_or(("mqtt", "port"), is_given, question, number)?;
    let usual_port = if tls { 8883 } else { 1883 };
    let port = if port == usual_port { 0 } else { i64::from(port) };
    ask.draft.set("mqtt", "tls", tls);
    ask.draft.set("mqtt", "port", port);
    if tls {
        let now = ask.draft.text("mqtt", "ca_file").unwrap_or_else(|| "system".into());
        let words = "Authority that signed the broker's certificate (file, or system)";
        let given = answers.mqtt_ca_file.as_deref();
        let question = Question {
            flag: "--mqtt-ca-file FILE",
            words,
            given,
            usual: Some(now.clone()),
            settled,
        };
        let file =
            ask.quiet_or(("mqtt", "ca_file"), is_given, question, |text| Ok(text.to_owned()))?;
        if file == "system" {
            ask.draft.drop_kept(&MQTT_CA);
        } else if file != now {
            ask.draft
                .keep_file(&MQTT_CA, Path::new(&file))
                .map_err(|error| Unfit(format!("{error:#}")))?;
        }
    } else {
        ask.draft.drop_kept(&MQTT_CA);
    }
    ask_credentials(asker, answers, draft, again, is_given)
}

fn ask_credentials(
    asker: &Asker,
    answers: &Answers,
    draft: &mut Draft,
    again: bool,
    is_given: bool,
) -> anyhow::Result<()> {
    let mut ask = Ask { asker, draft, again };
    let now = ask.draft.text("mqtt", "user").unwrap_or_else(|| "none".into());
    let given = answers.mqtt_user.as_deref();
    let settled = is_given || !asker.is_interactive();
    let question = Question {
        flag: "--mqtt-user USER",
        words: "User (or none)",
        given,
        usual: Some(now),
        settled,
    };
    let user = ask.quiet_or(("mqtt", "user"), is_given, question, |text| Ok(text.to_owned()))?;
    if user == "none" {
        draft.drop_kept(&PASSWORD);
        draft.set("mqtt", "user", "");
        return Ok(());
    }
    draft.set("mqtt", "user", user.as_str());
    if let (Some(file), false) = (&answers.mqtt_password_file, again) {
        let password = read_first_line(file)?;
        return draft.keep(&PASSWORD, password.into_bytes());
    }
    let has = draft.has_kept(&PASSWORD);
    if asker.is_interactive() && (again || !is_given || !has) {
        let words = if has {
            "Password (not shown; empty: as it is)"
        } else {
            "Password (not shown; empty: none)"
        };
        if let Some(password) = asker.ask_secret(words)? {
            draft.keep(&PASSWORD, password.as_bytes().to_vec())?;
        }
    }
    Ok(())
}

impl Ask<'_> {
    /// Where the part is given already, the rest of it stays as it is, and nobody is asked.
    fn quiet_or<T>(
        &mut self,
        key: (&str, &str),
        is_given: bool,
        question: Question<'_>,
        check: impl Fn(&str) -> Result<T, String>,
    ) -> anyhow::Result<T> {
        if is_given && question.given.is_none() && !self.again {
            let usual = question.usual.unwrap_or_default();
            return check(&usual)
                .map_err(|why| usage_error(anyhow!("{}: {usual:?} {why}", question.flag)));
        }
        self.text(key, question, check)
    }
}

fn ask_mongo(asker: &Asker, answers: &Answers, draft: &mut Draft, again: bool) -> Checked {
    let given = answers.mongo_uri_file.as_deref().filter(|_| !again);
    let has = draft.has_kept(&URI) || draft.text("mongo", "uri").is_some();
    let provisioned = ["uri", "uri_file"].iter().any(|key| draft.is_answered("mongo", key));
    match given {
        Some(file) if file == Path::new("none") => without_mongo(draft),
        Some(file) => {
            let uri = read_first_line(file)?;
            draft.keep(&URI, uri.into_bytes())?;
        }
        None if provisioned && !again => {}
        None if asker.is_interactive() => {
            let words = if has {
                "MongoDB URI (not shown; empty: as it is; none)"
            } else {
                "MongoDB URI, mongodb://USER:PASSWORD@HOST/?replicaSet=NAME (not shown; empty: none)"
            };
            match asker.ask_secret(words)? {
                Some(uri) if uri.trim() == "none" => without_mongo(draft),
                Some(uri) => draft.keep(&URI, uri.trim().into())?,
                None => {}
            }
        }
        None => {
            let usual = Some(if has { "kept" } else { "none" }.to_owned());
            let words = "MongoDB URI";
            let question = Question {
                flag: "--mongo-uri-file FILE|none",
                words,
                given: None,
                usual,
                settled: has,
            };
            asker.ask(&question, |_| Ok(()))?;
        }
    }
    if let (Some(file), false) = (&answers.mongo_ca_file, again) {
        draft.keep_file(&MONGO_CA, file)?;
    }
    let settings = settings_of(draft)?;
    Ok(settings.mongo.is_some().then(|| ("mongodb", links::try_mongodb(&settings))))
}

fn without_mongo(draft: &mut Draft) {
    draft.drop_kept(&URI);
    draft.drop_kept(&MONGO_CA);
    if draft.is_on("mongo", "tls") {
        draft.set("mongo", "tls", false);
    }
}

fn ask_http(asker: &Asker, answers: &Answers, draft: &mut Draft, again: bool) -> Checked {
    let before = draft.settings().ok().and_then(|it| it.http).map(|it| it.listen);
    let mut ask = Ask { asker, draft, again };
    let now = ask.draft.text("http", "listen");
    let settled = now.is_some();
    let words = "HTTP: page, metrics, routes (address like 0.0.0.0:8080; none)";
    let given = answers.http_listen.as_deref();
    let usual = Some(now.unwrap_or_else(|| "none".into()));
    let question = Question { flag: "--http-listen ADDRESS", words, given, usual, settled };
    let listen = ask.text(("http", "listen"), question, |text| match text {
        "none" | "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| "is no address like 127.0.0.1:8080".to_owned()),
    })?;
    let Some(listen): Option<SocketAddr> = listen else {
        draft.drop_kept(&TOKEN);
        if draft.text("http", "listen").is_some() {
            draft.set("http", "listen", "");
        }
        return settings_of(draft).map(|_| None);
    };
    draft.set("http", "listen", listen.to_string());
    if let (Some(file), false) = (&answers.http_token_file, again) {
        draft.keep(&TOKEN, read_first_line(file)?.into_bytes())?;
    } else if !listen.ip().is_loopback() && !draft.has_kept(&TOKEN) {
        draft.keep(&TOKEN, make_token()?.into_bytes())?;
        println!("  a token was made for HTTP clients; the file it is written to is named below");
    }
    let settings = settings_of(draft)?;
    let served = before == Some(listen) && Installation::new(settings.clone()).is_running;
    Ok(Some(("http", links::check_http(&settings, served))))
}

/// 192 bits, in letters that survive being typed into a header.
fn make_token() -> anyhow::Result<String> {
    let mut bytes = [0; 24];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| anyhow!("the system gives no random numbers"))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

pub fn yes_or_no(text: &str) -> Result<bool, String> {
    match text.to_lowercase().as_str() {
        "yes" | "y" => Ok(true),
        "no" | "n" => Ok(false),
        _ => Err("is neither yes nor no".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_zone_suggests_similar_one() {
        assert_eq!(zone("Europe/Berlin").unwrap(), "Europe/Berlin");
        assert!(zone("berlin").unwrap_err().contains("Europe/Berlin"));
        assert!(zone("new york").unwrap_err().contains("America/New_York"));
        assert!(zone("x").unwrap_err().contains("like"));
    }

    #[test]
    fn host_is_name_or_address() {
        for good in ["broker.example.net", "192.0.2.1", "fd00::1", "none"] {
            assert!(host(good).is_ok(), "{good}");
        }
        for bad in ["", "a b", "mqtt://b", "b/x", "b\u{1b}[2J"] {
            assert!(host(bad).is_err(), "{bad:?}");
        }
    }
}

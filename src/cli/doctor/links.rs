//! Who the daemon talks to: broker, MongoDB, the site's other doors.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;

use crate::app;
use crate::app::serve::link_settings;
use crate::cli::doctor::Place;
use crate::cli::doctor::finding::Verdict;
use crate::clock::{Clock, SystemClock};
use crate::config::{MqttSettings, Settings};
use crate::mongo::{self, Examined};
use crate::mqtt::link::{self, LinkEvent};
use crate::mqtt::topics::Topics;
use crate::record::store::{SinkName, Store};

const UNPUBLISHED: &str = "who passes is recorded here; what the broker is owed waits on this device's disk and is delivered later";

pub fn broker(place: &Place) -> Verdict {
    broker_of(&place.settings)
}

/// Also what `rollcall setup` says.
pub fn broker_of(settings: &Settings) -> Verdict {
    let Some(mqtt) = &settings.mqtt else {
        return Verdict::warning(
            "none configured",
            "nothing is published, and nobody can be enrolled from elsewhere; the record is kept here",
            "[mqtt] host in config.toml, or `rollcall setup`",
        );
    };
    if settings.broker.is_some() {
        return Verdict::good(format!("embedded, on port {}", mqtt.port));
    }
    let name = format!("{}:{}", mqtt.host, mqtt.port);
    match greet(settings, mqtt) {
        Ok(None) => {
            let user = mqtt
                .credentials
                .as_ref()
                .map_or("without a user".into(), |it| format!("as {:?}", it.user));
            let tls = if mqtt.tls.is_some() { ", over TLS" } else { "" };
            Verdict::good(format!("{name} takes us {user}{tls}"))
        }
        Ok(Some(filter)) => Verdict::fault(
            format!("{name} does not let us hear {filter}"),
            "no command arrives: nobody can be enrolled from elsewhere; attendance is published all the same",
            "give the user of this door the access rules of docs/mosquitto/rollcall.acl",
        ),
        Err(why) => {
            let trusted = SystemClock::new(settings.trust).now().trusted;
            refused(&name, &why, mqtt.tls.is_some(), trusted)
        }
    }
}

/// The longest that the broker is waited for.
const PATIENCE: Duration = Duration::from_secs(8);

/// Connects as the daemon does, but under another name, so that a running daemon is not pushed off. Gives the
/// subscription that was refused, if one was.
fn greet(settings: &Settings, mqtt: &MqttSettings) -> Result<Option<String>, String> {
    let words = |error: anyhow::Error| format!("{error:#}");
    let topics =
        Topics::new(&settings.site, &settings.device).map_err(|error| words(error.into()))?;
    let mut wanted = link_settings(mqtt, &topics);
    wanted.client_id = format!("rollcall-doctor-{}", Uuid::now_v7().simple());
    wanted.persistent = false;
    wanted.status_topic = topics.below(&format!("console/{}", wanted.client_id));
    // Nobody sends such a command: what is asked is whether commands may be heard.
    wanted.subscriptions = vec![topics.below("command/doctor")];
    let (_link, driver, mut events) = link::open(wanted).map_err(|error| words(error.into()))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| e.to_string())?;
    runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let answer = async {
            let answer = tokio::time::timeout(PATIENCE, async {
                while let Some(event) = events.recv().await {
                    match event {
                        LinkEvent::Subscribed { .. } => return Ok(None),
                        LinkEvent::SubscriptionRefused { filter } => return Ok(Some(filter)),
                        LinkEvent::Unreachable { why } | LinkEvent::Lost { why } => {
                            return Err(why);
                        }
                        _ => {}
                    }
                }
                Err("the link ended".to_owned())
            });
            let answer = answer
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs())));
            stop.send_replace(true);
            answer
        };
        // How the goodbye goes does not matter any more.
        tokio::join!(answer, driver.drive(stopped)).0
    })
}

/// In a caretaker's words, by what the link says.
fn refused(name: &str, why: &str, tls: bool, clock_trusted: bool) -> Verdict {
    let has = |parts: &[&str]| parts.iter().any(|part| why.contains(part));
    let fault = |words: &str, remedy: &str| {
        Verdict::fault(format!("{name} {words} ({why})"), UNPUBLISHED, remedy)
    };
    let away = |words: &str, remedy: &str| {
        Verdict::warning(format!("{name} {words} ({why})"), UNPUBLISHED, remedy)
    };
    if has(&["user name or password"]) {
        return fault(
            "refuses our user or password",
            "ask whoever runs the broker for user and password, then `sudo rollcall setup`",
        );
    }
    if has(&["authorise"]) {
        return fault(
            "does not let us in",
            "has this door a user on the broker (docs/mosquitto)? `sudo rollcall setup` takes user and password",
        );
    }
    if let Some((words, remedy)) = certificate(why, clock_trusted) {
        return fault(words, remedy);
    }
    if tls
        && has(&[
            "InvalidContentType",
            "corrupt message",
            "closed",
            "reset",
            "Broken pipe",
            "unexpected end of file",
            "eof",
        ])
    {
        return fault(
            "does not speak TLS",
            "check [mqtt] port: with TLS it is mostly 8883, without 1883",
        );
    }
    if has(&["closed", "reset by peer", "aborted", "not an MQTT broker", "corrupt"]) {
        return fault(
            "does not answer as a broker",
            "check [mqtt] host and port; where the broker wants TLS (mostly port 8883), [mqtt] tls = true",
        );
    }
    if has(&[
        "lookup address",
        "Name or service not known",
        "name resolution",
        "No address associated",
    ]) {
        return fault(
            "has no address",
            "check [mqtt] host for a typing mistake, the network cable, and the name server (`getent hosts`)",
        );
    }
    if has(&["Connection refused"]) {
        return away(
            "is there, but no broker answers at this port",
            "start the broker there, or correct [mqtt] port",
        );
    }
    if has(&["unreachable", "No route"]) {
        return away("cannot be reached", "is the network cable in, is the Wi-Fi on (`ip route`)?");
    }
    away(
        "does not answer",
        "is the broker running, is the network up, does a firewall stand between?",
    )
}

/// What is wrong with a certificate, theirs or ours, and what to do; none where it is something else.
fn certificate(why: &str, clock_trusted: bool) -> Option<(&'static str, &'static str)> {
    let has = |parts: &[&str]| parts.iter().any(|part| why.contains(part));
    if has(&["Expired", "expired", "NotValidYet", "not valid yet"]) {
        let remedy = if clock_trusted {
            "whoever runs the broker must renew its certificate (or its clock or ours is wrong: `date`)"
        } else {
            "the time is not known here, so no certificate can be judged: see \"clock\"; if the date is right, the broker's \
             certificate must be renewed"
        };
        return Some(("shows a certificate that is not valid at this time", remedy));
    }
    if has(&["NotValidForName", "not valid for name"]) {
        return Some((
            "shows a certificate for another name",
            "[mqtt] host must be the name that stands in the broker's certificate, not its address or another name of it",
        ));
    }
    if has(&["UnknownIssuer", "BadSignature", "unknown issuer", "CaUsedAsEndEntity"]) {
        return Some((
            "shows a certificate of an authority that we do not know",
            "[mqtt] ca_file must be the certificate of the authority that signed the broker's: ask whoever runs it",
        ));
    }
    if has(&[
        "CertificateRequired",
        "HandshakeFailure",
        "BadCertificate",
        "UnknownCA",
        "CertificateUnknown",
    ]) {
        return Some((
            "does not take our certificate",
            "[mqtt] client_cert_file and client_key_file must be a certificate that the broker's authority signed",
        ));
    }
    why.contains("certificate").then_some((
        "shows a certificate that cannot be used",
        "ask whoever runs the broker to look at its certificate",
    ))
}

const UNDELIVERED: &str = "who passes is recorded here and published; what MongoDB is owed waits on this device's disk and is delivered later";

pub fn mongodb(place: &Place) -> Verdict {
    if let Some(warning) = place.settings.warnings.iter().find(|it| it.starts_with("[mongo]")) {
        return Verdict::warning(
            warning.clone(),
            "whoever logs in here can read the password",
            "chmod 600 the file, or `sudo rollcall setup`, which keeps it in a file of its own",
        );
    }
    mongodb_of(&place.settings)
}

/// Also what `rollcall setup` says.
pub fn mongodb_of(settings: &Settings) -> Verdict {
    let Some(mongo) = &settings.mongo else {
        return Verdict::good("none configured: the record is kept here ([mongo] uri_file)");
    };
    let now_ms = SystemClock::new(settings.trust).now().wall_ms;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return Verdict::fault(
                format!("cannot start the runtime: {error}"),
                UNDELIVERED,
                "restart the device",
            );
        }
    };
    let examined = runtime.block_on(mongo::examine(mongo, now_ms));
    runtime.shutdown_background();
    match examined {
        Examined::Good(words) => Verdict::good(words),
        Examined::Warning(words) => {
            let remedy = if words.contains("certificate") {
                "[mongo] ca_file must be the authority that signed the server's certificate, and the name in the URI the one that \
                 stands in it; a certificate that expired must be renewed there"
            } else if words.contains("replica set") && !words.contains("reached") {
                "docs/operations.md, MongoDB in four steps: the server's keeper makes it a replica set"
            } else if words.contains("clock") {
                "set the clock that is wrong; NTP keeps both right"
            } else {
                "is the server running, is the address in the URI right, does a firewall stand between, does it speak TLS if we do?"
            };
            Verdict::warning(words, UNDELIVERED, remedy)
        }
        Examined::Fault(words) => Verdict::fault(
            words,
            UNDELIVERED,
            "the URI with the right user and password in [mongo] uri_file (`sudo rollcall setup`), and the role of \
             docs/operations.md for that user",
        ),
    }
}

pub fn http(place: &Place) -> Verdict {
    http_of(&place.settings, place.answers)
}

/// Also what `rollcall setup` says. `served`: by a daemon that runs here now.
pub fn http_of(settings: &Settings, served: bool) -> Verdict {
    const STOPPED: &str = "the daemon does not start: nobody is recorded";
    let Some(http) = &settings.http else {
        return Verdict::good("off ([http] listen)");
    };
    let listen = http.listen;
    if served {
        return match TcpStream::connect_timeout(&listen, Duration::from_secs(3)) {
            Ok(_) => Verdict::good(format!("the daemon answers at {listen}")),
            Err(error) => Verdict::fault(
                format!("a daemon runs, but does not answer at {listen} ({error})"),
                "page, metrics and HTTP routes are not served; attendance is recorded all the same",
                "sudo systemctl restart rollcall, so that it takes what config.toml says now",
            ),
        };
    }
    match TcpListener::bind(listen).map_err(|error| (error.kind(), error)) {
        Ok(_) => Verdict::good(format!("{listen} is free for the daemon")),
        Err((ErrorKind::AddrInUse, _)) => Verdict::fault(
            format!("another program uses {listen}"),
            STOPPED,
            format!(
                "end it (`sudo ss -ltnp` names it), or take another port in [http] listen than {}",
                listen.port()
            ),
        ),
        Err((ErrorKind::AddrNotAvailable, _)) => Verdict::fault(
            format!("{listen} is no address of this device"),
            STOPPED,
            "[http] listen = \"0.0.0.0:PORT\" is every address, \"127.0.0.1:PORT\" this device alone",
        ),
        Err((ErrorKind::PermissionDenied, _)) => Verdict::fault(
            format!("{listen} is reserved for root"),
            STOPPED,
            "take a port from 1024 on in [http] listen, 8080 for example",
        ),
        Err((_, error)) => Verdict::fault(
            format!("{listen} cannot be used ({error})"),
            STOPPED,
            "check [http] listen",
        ),
    }
}

pub fn fleet(place: &Place) -> Verdict {
    const ALONE: &str =
        "who is enrolled at another door is not known here, and the other way round";
    let settings = &place.settings;
    if let Some(warning) = settings.warnings.iter().find(|it| it.starts_with("[fleet]")) {
        return Verdict::warning(
            warning.clone(),
            ALONE,
            "`sudo rollcall setup` with a broker, or [fleet] share = \"off\"",
        );
    }
    let Some(fleet) = &settings.fleet else {
        return Verdict::good(
            "the gallery is this door's own ([fleet] key_file shares it with the site)",
        );
    };
    let print = fleet.key.fingerprint();
    match place.told("/gallery/sharing/state").and_then(|it| it.as_str()) {
        Some("wrong_key") => {
            return Verdict::fault(
                format!("the site's gallery does not open with our key ({print})"),
                ALONE,
                "copy the site's key from a door that shares (`rollcall doctor` there shows the same eight characters when it is the \
                 right one) into [fleet] key_file, mode 0600; restart",
            );
        }
        Some("away") => {
            return Verdict::warning(
                format!("where the gallery is shared cannot be reached (site key {print})"),
                ALONE,
                "see \"broker\" or \"mongodb\"",
            );
        }
        _ => {}
    }
    let owed = Store::open_read_only(&settings.state_dir, app::credentials_dir().as_deref())
        .and_then(|reader| reader.outbox_depth(SinkName::GALLERY));
    match owed {
        Ok(depth) if depth.rows > 0 => Verdict::warning(
            format!(
                "shared, site key {print} (the same at every door); {} subjects are not told the site yet",
                depth.rows
            ),
            "other doors do not know them yet",
            "if that lasts, see \"broker\" or \"mongodb\"",
        ),
        // Where there is no database yet, `storage` says so.
        _ => Verdict::good(format!(
            "the gallery is shared, site key {print} (the same at every door)"
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::State;

    #[test]
    fn what_the_broker_says_is_told_in_words() {
        let fault = State::Fault;
        let away = State::Warning;
        for (why, tls, state, part) in [
            ("the broker refuses our user name or password", false, fault, "setup"),
            (
                "the broker does not authorise us: check user, password and access rules",
                false,
                fault,
                "mosquitto",
            ),
            ("TLS: I/O: invalid peer certificate: Expired", true, fault, "renew"),
            ("TLS: I/O: invalid peer certificate: NotValidForName", true, fault, "name"),
            ("TLS: I/O: invalid peer certificate: UnknownIssuer", true, fault, "ca_file"),
            (
                "TLS: I/O: received fatal alert: CertificateRequired",
                true,
                fault,
                "client_cert_file",
            ),
            ("TLS: I/O: received corrupt message of type InvalidContentType", true, fault, "8883"),
            ("the broker closed the connection", false, fault, "tls = true"),
            (
                "I/O: failed to lookup address information: Name or service not known",
                false,
                fault,
                "typing",
            ),
            ("I/O: Connection refused (os error 111)", false, away, "start the broker"),
            ("I/O: Network is unreachable (os error 101)", false, away, "cable"),
            ("no answer within 8 s", false, away, "firewall"),
        ] {
            let verdict = refused("broker:1883", why, tls, true);
            assert!(verdict.state == state && verdict.remedy.contains(part), "{why}: {verdict:?}");
        }
        assert!(
            refused("b", "invalid peer certificate: NotValidYet", true, false)
                .remedy
                .contains("clock")
        );
    }
}

//! What the daemon is connected to: the broker, MongoDB, the page's port, the site's other doors.

use std::io::ErrorKind;
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::watch;
use uuid::Uuid;

use crate::app::links::link_settings;
use crate::cli::doctor::Installation;
use crate::cli::doctor::finding::CheckResult;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::config::mqtt::MqttSettings;
use crate::keys::secret_file::credentials_dir;
use crate::mongo::{self, Examined, MongoFlaw};
use crate::mqtt::event::LinkEvent;
use crate::mqtt::fault::{ConnectRefusal, DisconnectReason, LinkFault, TlsFault};
use crate::mqtt::link::{self, Link};
use crate::mqtt::message::{Message, NotAcknowledged};
use crate::mqtt::refusal::{PublishRefusal, RefusedTopic};
use crate::mqtt::settings::Version;
use crate::mqtt::topics::Topics;
use crate::store::{SinkName, Store};

const UNPUBLISHED: &str = "attendance is recorded here; what is pending for the broker waits on this device's disk and is \
                           delivered later";

/// Reports what the daemon found out on the topics that it needs. If it found nothing, connects to
/// the broker as the daemon would.
pub fn check_link(installation: &Installation) -> CheckResult {
    let settings = &installation.settings;
    let reason = installation.health_value("/mqtt/reason").and_then(Value::as_str);
    let is_refused = installation.health_value("/mqtt/refused_topic").is_some_and(Value::is_string);
    match (reason, &settings.mqtt) {
        (Some(reason), Some(mqtt)) if is_refused => {
            publish_refused(&format!("{}:{}", mqtt.host, mqtt.port), reason)
        }
        _ => check_broker(settings),
    }
}

fn publish_refused(name: &str, reason: &str) -> CheckResult {
    CheckResult::fault(
        format!("{name}: {reason}"),
        "nothing is delivered, and what is pending waits on this device's disk",
        "give the user of this door the access rules of docs/mosquitto/rollcall.acl",
    )
}

/// Connects to the broker as the daemon would.
pub fn check_broker(settings: &Settings) -> CheckResult {
    let Some(mqtt) = &settings.mqtt else {
        return CheckResult::warning(
            "none configured",
            "nothing is published, and nobody can be enrolled from elsewhere; attendance is recorded here",
            "[mqtt] host in config.toml, or `rollcall setup`",
        );
    };
    if settings.broker.is_some() {
        return CheckResult::good(format!("embedded, on port {}", mqtt.port));
    }
    let name = format!("{}:{}", mqtt.host, mqtt.port);
    match try_broker(settings, mqtt) {
        Ok(BrokerAnswer::Accepted) => {
            let user = mqtt
                .credentials
                .as_ref()
                .map_or("without a user".into(), |it| format!("as {:?}", it.user));
            let tls = if mqtt.tls.is_some() { ", over TLS" } else { "" };
            CheckResult::good(format!("{name} accepts this device {user}{tls}"))
        }
        Ok(BrokerAnswer::SubscriptionRejected(filter)) => CheckResult::fault(
            format!("{name} does not allow this device to subscribe to {filter}"),
            "no command arrives: nobody can be enrolled from elsewhere; attendance is still published",
            "give the user of this door the access rules of docs/mosquitto/rollcall.acl",
        ),
        Ok(BrokerAnswer::PublishRefused(refused)) => publish_refused(&name, &refused),
        Ok(BrokerAnswer::Fault(fault)) => {
            let clock_trusted = SystemClock::new(settings.trust).now().trusted;
            explain_fault(&name, &fault, mqtt.tls.is_some(), clock_trusted)
        }
        Err(error) => CheckResult::fault(
            format!("{name} cannot be tried ({error:#})"),
            UNPUBLISHED,
            "correct [mqtt] in config.toml, or `rollcall setup`",
        ),
    }
}

/// The longest wait for the broker.
const BROKER_TIMEOUT: Duration = Duration::from_secs(8);

enum BrokerAnswer {
    Accepted,
    SubscriptionRejected(String),
    PublishRefused(String),
    Fault(LinkFault),
}

/// Connects as the daemon does, but under another client id, so that a running daemon is not
/// disconnected.
fn try_broker(settings: &Settings, mqtt: &MqttSettings) -> anyhow::Result<BrokerAnswer> {
    let topics = Topics::new(&settings.site, &settings.device)?;
    let mut wanted = link_settings(mqtt, &topics);
    wanted.client_id = format!("rollcall-doctor-{}", Uuid::now_v7().simple());
    wanted.persistent = false;
    wanted.status_topic = topics.below(&format!("console/{}", wanted.client_id));
    // No such command exists: the question is whether commands may be received.
    wanted.subscriptions = vec![topics.below("command/doctor")];
    let (link, driver, mut events) = link::open(wanted)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(async {
        let (stop, stopped) = watch::channel(false);
        let answer = async {
            let answer = tokio::time::timeout(BROKER_TIMEOUT, async {
                while let Some(event) = events.recv().await {
                    match event {
                        LinkEvent::Subscribed { .. } => return try_publish(&link, &topics).await,
                        LinkEvent::SubscriptionRefused { filter } => {
                            return BrokerAnswer::SubscriptionRejected(filter);
                        }
                        LinkEvent::Unreachable { fault } | LinkEvent::Lost { fault } => {
                            return BrokerAnswer::Fault(fault);
                        }
                        _ => {}
                    }
                }
                BrokerAnswer::Fault(LinkFault::Closed)
            });
            let answer = answer.await.unwrap_or_else(|_elapsed| match link.version() {
                // The probe did not come back; that is the only thing that takes so long.
                Some(Version::V311) => BrokerAnswer::PublishRefused(
                    RefusedTopic { topic: topics.probe(), refusal: PublishRefusal::NoEcho }
                        .to_string(),
                ),
                _ => BrokerAnswer::Fault(LinkFault::Timeout(BROKER_TIMEOUT)),
            });
            stop.send_replace(true);
            answer
        };
        // How the disconnection goes does not matter any more.
        tokio::join!(answer, driver.drive(stopped)).0
    }))
}

/// Publishes what nobody acts upon. MQTT 5 replies whether it was passed on; with 3.1.1, the echo of
/// a probe shows it.
async fn try_publish(link: &Link, topics: &Topics) -> BrokerAnswer {
    let topic = topics.below("console/doctor");
    let message = Message { topic: topic.clone(), payload: Vec::new(), retain: false };
    let refused = match link.deliver_batch(vec![message]).await.pop() {
        Some(Err(error @ NotAcknowledged::Refused(_))) => {
            link.refused_topic().map_or_else(|| error.to_string(), |it| it.to_string())
        }
        // At the first publish: a broker that answers a forbidden one so does it each time.
        Some(Err(NotAcknowledged::Lost)) => {
            RefusedTopic { topic, refusal: PublishRefusal::Closed }.to_string()
        }
        Some(Err(error)) => return BrokerAnswer::PublishRefused(error.to_string()),
        Some(Ok(())) | None => return BrokerAnswer::Accepted,
    };
    BrokerAnswer::PublishRefused(refused)
}

/// Returns what a fault of the connection means to a caretaker, and what to do.
fn explain_fault(name: &str, fault: &LinkFault, tls: bool, clock_trusted: bool) -> CheckResult {
    let is_broken = |words: &str, remedy: &str| {
        CheckResult::fault(format!("{name} {words} ({fault})"), UNPUBLISHED, remedy)
    };
    let is_away = |words: &str, remedy: &str| {
        CheckResult::warning(format!("{name} {words} ({fault})"), UNPUBLISHED, remedy)
    };
    match fault {
        LinkFault::Refused(ConnectRefusal::Credentials) => is_broken(
            "rejects the user or password",
            "ask whoever runs the broker for user and password, then `sudo rollcall setup`",
        ),
        LinkFault::Refused(ConnectRefusal::NotAuthorised) => is_broken(
            "does not let this device in",
            "has this door a user on the broker (docs/mosquitto)? `sudo rollcall setup` takes user and password",
        ),
        LinkFault::Tls { fault, .. } => {
            let (words, remedy) = explain_tls(*fault, clock_trusted);
            is_broken(words, remedy)
        }
        LinkFault::Disconnected(DisconnectReason::NotAuthorised) => is_broken(
            "lets this device in and ends the connection",
            "give the user of this door the access rules of docs/mosquitto/rollcall.acl",
        ),
        LinkFault::Closed if tls => {
            let (words, remedy) = explain_tls(TlsFault::NotTls, clock_trusted);
            is_broken(words, remedy)
        }
        LinkFault::Closed | LinkFault::NotMqtt => is_broken(
            "does not answer as a broker",
            "check [mqtt] host and port; where the broker requires TLS (usually port 8883), set [mqtt] tls = true",
        ),
        LinkFault::Dns(_) => is_broken(
            "has no address",
            "check [mqtt] host for a typing mistake, the network cable, and the name server (`getent hosts`)",
        ),
        LinkFault::Tcp { kind: ErrorKind::ConnectionRefused, .. } => is_away(
            "is there, but no broker answers at this port",
            "start the broker there, or correct [mqtt] port",
        ),
        LinkFault::Tcp {
            kind: ErrorKind::NetworkUnreachable | ErrorKind::HostUnreachable, ..
        } => is_away(
            "cannot be reached",
            "is the network cable plugged in, is the Wi-Fi on (`ip route`)?",
        ),
        _ => is_away(
            "does not answer",
            "is the broker running, is the network up, is a firewall in between?",
        ),
    }
}

/// Returns what failed in the TLS handshake, and what to do.
fn explain_tls(fault: TlsFault, clock_trusted: bool) -> (&'static str, &'static str) {
    match fault {
        TlsFault::NotValidNow if clock_trusted => (
            "has a certificate that is not valid at this time",
            "whoever runs the broker must renew its certificate (or a clock is wrong there or here: `date`)",
        ),
        TlsFault::NotValidNow => (
            "has a certificate that is not valid at this time",
            "the time is not known here, so no certificate can be checked: see \"clock\"; if the date is right, the broker's \
             certificate must be renewed",
        ),
        TlsFault::WrongName => (
            "has a certificate for another name",
            "[mqtt] host must be the name in the broker's certificate, not its address or another name of it",
        ),
        TlsFault::UnknownAuthority => (
            "has a certificate of an unknown authority",
            "[mqtt] ca_file must be the certificate of the authority that signed the broker's: ask whoever runs it",
        ),
        TlsFault::UnusableCertificate => (
            "has a certificate that cannot be used",
            "ask whoever runs the broker to check its certificate (that of an authority cannot be a server's as well)",
        ),
        TlsFault::ClientCertificate => (
            "does not accept the certificate of this device",
            "[mqtt] client_cert_file and client_key_file must be a certificate that the broker's authority signed",
        ),
        TlsFault::NotTls | TlsFault::Other => {
            ("does not use TLS", "check [mqtt] port: with TLS it is usually 8883, without it 1883")
        }
    }
}

const UNDELIVERED: &str = "attendance is recorded here and published; what is pending for MongoDB waits on this device's disk \
                           and is delivered later";

pub fn check_mongodb(settings: &Settings) -> CheckResult {
    if let Some(warning) = settings.warnings.iter().find(|it| it.starts_with("[mongo]")) {
        return CheckResult::warning(
            warning.clone(),
            "everybody who logs in here can read the password",
            "chmod 600 the file, or `sudo rollcall setup`, which keeps the password in a file of its own",
        );
    }
    try_mongodb(settings)
}

/// Connects to MongoDB as the daemon would.
pub fn try_mongodb(settings: &Settings) -> CheckResult {
    let Some(mongo) = &settings.mongo else {
        return CheckResult::good("none configured: attendance is kept here ([mongo] uri_file)");
    };
    let now_ms = SystemClock::new(settings.trust).now().wall_ms;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            return CheckResult::fault(
                format!("cannot start the runtime: {error}"),
                UNDELIVERED,
                "restart the device",
            );
        }
    };
    let examined = runtime.block_on(mongo::examine(mongo, now_ms));
    runtime.shutdown_background();
    match examined {
        Examined::Good(words) => CheckResult::good(words),
        Examined::Warning(flaw, words) => {
            CheckResult::warning(words, UNDELIVERED, mongodb_remedy(flaw))
        }
        Examined::Fault(words) => CheckResult::fault(
            words,
            UNDELIVERED,
            "put the URI with the right user and password into [mongo] uri_file (`sudo rollcall setup`), and give that user the \
             role of docs/operations.md",
        ),
    }
}

fn mongodb_remedy(flaw: MongoFlaw) -> &'static str {
    match flaw {
        MongoFlaw::Certificate => {
            "[mongo] ca_file must be the authority that signed the server's certificate, and the name in the URI must be the \
             one in the certificate; an expired certificate must be renewed there"
        }
        MongoFlaw::SingleServer => {
            "docs/operations.md, MongoDB in four steps: whoever runs the server makes it a replica set"
        }
        MongoFlaw::FormerService => "set the two keys, to go on with those venues",
        MongoFlaw::Clock => "set the clock that is wrong; NTP keeps both right",
        MongoFlaw::Unreachable => {
            "is the server running, is the address in the URI right, is a firewall in between, do both sides use TLS or \
             neither?"
        }
    }
}

/// Checks the listener. `is_served`: by a daemon that runs here now.
pub fn check_http(settings: &Settings, is_served: bool) -> CheckResult {
    const STOPPED: &str = "page, metrics and HTTP routes are not served, and the daemon tries again; attendance is recorded";
    let Some(http) = &settings.http else {
        return CheckResult::good("off ([http] listen)");
    };
    let listen = http.listen;
    if is_served {
        return match TcpStream::connect_timeout(&listen, Duration::from_secs(3)) {
            Ok(_) => CheckResult::good(format!("the daemon answers at {listen}")),
            Err(error) => CheckResult::fault(
                format!("a daemon runs, but does not answer at {listen} ({error})"),
                "page, metrics and HTTP routes are not served; attendance is still recorded",
                "sudo systemctl restart rollcall, so that it reads the present config.toml",
            ),
        };
    }
    match TcpListener::bind(listen).map_err(|error| (error.kind(), error)) {
        Ok(_) => CheckResult::good(format!("{listen} is free for the daemon")),
        Err((ErrorKind::AddrInUse, _)) => CheckResult::fault(
            format!("another program uses {listen}"),
            STOPPED,
            format!(
                "end it (`sudo ss -ltnp` names it), or set another port in [http] listen than {}",
                listen.port()
            ),
        ),
        Err((ErrorKind::AddrNotAvailable, _)) => CheckResult::fault(
            format!("{listen} is no address of this device"),
            STOPPED,
            "[http] listen = \"0.0.0.0:PORT\" is every address, \"127.0.0.1:PORT\" this device alone",
        ),
        Err((ErrorKind::PermissionDenied, _)) => CheckResult::fault(
            format!("{listen} is reserved for root"),
            STOPPED,
            "set a port from 1024 on in [http] listen, for example 8080",
        ),
        Err((_, error)) => CheckResult::fault(
            format!("{listen} cannot be used ({error})"),
            STOPPED,
            "check [http] listen",
        ),
    }
}

pub fn check_fleet(installation: &Installation) -> CheckResult {
    const ALONE: &str =
        "people enrolled at another door are not known here, and the other way round";
    const WRITE_RULES: &str = "docs/operations.md, \"One gallery for all doors\"";
    let settings = &installation.settings;
    if let Some(warning) = settings.warnings.iter().find(|it| it.starts_with("[fleet]")) {
        return CheckResult::warning(
            warning.clone(),
            ALONE,
            "`sudo rollcall setup` with a broker, or [fleet] share = \"off\"",
        );
    }
    let Some(fleet) = &settings.fleet else {
        return CheckResult::good(
            "the gallery is this door's own ([fleet] key_file shares it with the site)",
        );
    };
    let print = fleet.key.fingerprint();
    let health = |name: &str| installation.health_value(name);
    let count = |name: &str| health(name).and_then(serde_json::Value::as_u64).unwrap_or(0);
    let unsealed = count("/gallery/sharing/unsealed");
    match health("/gallery/sharing/state").and_then(|it| it.as_str()) {
        Some("wrong_key") => {
            return CheckResult::fault(
                format!("this door's key does not open the site's gallery ({print})"),
                ALONE,
                "copy the site's key from a door that shares (`rollcall doctor` there shows the same eight characters when it is \
                 the right one) into [fleet] key_file, mode 0600; restart",
            );
        }
        Some("blocked") => {
            let pending = count("/gallery/sharing/pending");
            return CheckResult::fault(
                format!(
                    "the site's gallery is disturbed: {unsealed} parts are not sealed with the site's key ({print}); {pending} \
                     people are not at the site as they are here"
                ),
                "somebody without the key writes it: doors that are off now may not receive withdrawals and enrolments",
                format!(
                    "allow only doors to write it ({WRITE_RULES}); it then repairs itself within minutes. A door with a former \
                     key causes the same"
                ),
            );
        }
        Some("away") => {
            return CheckResult::warning(
                format!("the shared gallery cannot be reached (site key {print})"),
                ALONE,
                "see \"broker\" or \"mongodb\"",
            );
        }
        _ => {}
    }
    let shared = format!("the gallery is shared, site key {print} (the same at every door)");
    let pending = Store::open_read_only(&settings.state_dir, credentials_dir().as_deref())
        .and_then(|reader| reader.outbox_depth(SinkName::GALLERY));
    match pending {
        Ok(depth) if depth.rows > 0 => CheckResult::warning(
            format!("{shared}; {} people are still pending for the site", depth.rows),
            "other doors do not know them yet",
            "if that lasts, see \"broker\" or \"mongodb\"",
        ),
        _ if unsealed > 0 => CheckResult::warning(
            format!("{shared}; {unsealed} parts were not sealed with it"),
            "they are ignored, but somebody without the key can write the site's gallery",
            format!("allow only doors to write it ({WRITE_RULES}), and delete them"),
        ),
        // Without a database the check `storage` reports it.
        _ => CheckResult::good(shared),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::finding::CheckState;

    #[test]
    fn mongodb_flaws_have_their_remedies() {
        for (flaw, part) in [
            (MongoFlaw::Certificate, "ca_file"),
            (MongoFlaw::SingleServer, "replica set"),
            (MongoFlaw::FormerService, "two keys"),
            (MongoFlaw::Clock, "NTP"),
            (MongoFlaw::Unreachable, "firewall"),
        ] {
            assert!(mongodb_remedy(flaw).contains(part), "{flaw:?}");
        }
    }

    #[test]
    fn broker_faults_have_their_remedies() {
        let tcp = |kind| LinkFault::Tcp { kind, detail: String::new() };
        let tls = |fault| LinkFault::Tls { fault, detail: String::new() };
        for (fault, tls, state, part) in [
            (LinkFault::Refused(ConnectRefusal::Credentials), false, CheckState::Fault, "setup"),
            (
                LinkFault::Refused(ConnectRefusal::NotAuthorised),
                false,
                CheckState::Fault,
                "mosquitto",
            ),
            (tls(TlsFault::NotValidNow), true, CheckState::Fault, "renew"),
            (tls(TlsFault::WrongName), true, CheckState::Fault, "name"),
            (tls(TlsFault::UnknownAuthority), true, CheckState::Fault, "ca_file"),
            (tls(TlsFault::ClientCertificate), true, CheckState::Fault, "client_cert_file"),
            (tls(TlsFault::NotTls), true, CheckState::Fault, "8883"),
            (LinkFault::Closed, true, CheckState::Fault, "8883"),
            (LinkFault::Closed, false, CheckState::Fault, "tls = true"),
            (LinkFault::Dns(String::new()), false, CheckState::Fault, "typing"),
            (tcp(ErrorKind::ConnectionRefused), false, CheckState::Warning, "start the broker"),
            (tcp(ErrorKind::NetworkUnreachable), false, CheckState::Warning, "cable"),
            (LinkFault::Timeout(BROKER_TIMEOUT), false, CheckState::Warning, "firewall"),
        ] {
            let result = explain_fault("broker:1883", &fault, tls, true);
            assert!(result.state == state && result.remedy.contains(part), "{fault:?}: {result:?}");
        }
        let result = explain_fault("b", &tls(TlsFault::NotValidNow), true, false);
        assert!(result.remedy.contains("clock"));
    }
}

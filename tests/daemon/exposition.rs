//! What `/metrics` says is in order, says nothing of anybody, and has every name that the dashboard
//! and the alerts ask for.
//!
//! By hand, with the original besides: `PROMTOOL=/usr/bin/promtool cargo nextest run --test daemon
//! exposition::`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use crate::support::exposition::Exposed;
use rollcall::app::monitor::metrics::Metrics;
use rollcall::app::state::counted::{LatestCounts, PeopleCounts};
use rollcall::app::state::gallery::GalleryCell;
use rollcall::clock::{Clock, SimulatedClock};
use rollcall::health::{CameraHealth, Health, MongoState, Sharing, SharingState};
use rollcall::ids::{Name, Origin, SubjectId};
use rollcall::recognise::face::Template;
use rollcall::recognise::gallery::{Gallery, Subject};
use rollcall::store::{SinkName, Store, StoreOptions};
use rollcall::wire::command::ErrorCode;
use rollcall::wire::event::{Body, Camera, CameraState, NewEvent};
use serde_json::Value;
use strum::VariantArray as _;

struct Door {
    metrics: Metrics,
    clock: Arc<SimulatedClock>,
    _dir: tempfile::TempDir,
}

impl Door {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(1_795_420_683_412));
        let shared: Arc<dyn Clock> = clock.clone();
        let options = StoreOptions::new(vec![SinkName::MQTT, SinkName::MONGO], Arc::clone(&shared));
        let metrics = Metrics {
            health: Arc::new(Health::default()),
            store: Store::open(dir.path(), options).unwrap().store,
            gallery: Arc::new(GalleryCell::new(Gallery::new(2))),
            clock: shared,
            counted: Arc::new(LatestCounts::default()),
            link: None,
            started: clock.now(),
            origin: Origin { site: "hq".into(), device: "door-1".into() },
            embedder: "fr_feature".into(),
            precision: "int8".into(),
        };
        Self { metrics, clock, _dir: dir }
    }

    fn read(&self) -> Exposed {
        Exposed::read(&self.metrics.to_text())
    }

    fn health(&self) -> &Health {
        &self.metrics.health
    }

    /// As the watermark does every three seconds.
    fn count_owed(&self) {
        let standing = self.metrics.store.write(|tx| tx.delivery_status()).unwrap();
        self.metrics.counted.set_delivery_status(&standing);
    }
}

#[test]
fn idle_device_omits_unknown_metrics() {
    let exposed = Door::new().read();
    let build =
        [("version", env!("CARGO_PKG_VERSION")), ("embedder", "fr_feature"), ("precision", "int8")];
    assert!(exposed.value("rollcall_build_info", &build) > 0.0);
    assert!(exposed.value("rollcall_camera_state", &[("state", "absent")]) > 0.0);
    // Nothing is claimed that is not known.
    for name in [
        "rollcall_mqtt_connected",
        "rollcall_complete_through_timestamp_seconds",
        "rollcall_erasures_pending",
    ] {
        assert_eq!(exposed.find(name, &[]), None, "{name}");
        assert!(exposed.has_name(name));
    }
    assert_eq!(exposed.find("rollcall_outbox_rows", &[("sink", "mqtt")]), None);
    assert_eq!(exposed.find("rollcall_mongo_state", &[("state", "connected")]), None);
}

#[test]
fn metrics_show_recorded_values() {
    let door = Door::new();
    let health = door.health();
    health.set_camera_state(CameraHealth::Lost);
    health.set_mongo(MongoState::Refused, 0);
    health.set_sharing(Sharing {
        state: SharingState::WrongKey,
        behind: 3,
        refused: 4,
        pending: 6,
        unsealed: 7,
    });
    health.count_rejection("rate_limited");
    health.count_rejection("rate_limited");
    health.count_http_response("/metrics", 200);
    health.count_http_response("/metrics", 200);
    health.count_http_response("other", 404);
    health.recorded.add(7);
    health.recognition.pace_step.set(2);
    for ms in [1, 3, 3, 400, 20_000] {
        health.times.detect.observe(Duration::from_millis(ms));
    }
    health.to_mongo.dead_lettered.add(2);
    let people = PeopleCounts { outdated: 5, partial: 3, erasures_pending: 6, consents_ending: 8 };
    door.metrics.counted.set_people(people);
    health.consents_ended.add(9);
    door.clock.advance(Duration::from_mins(2));
    let exposed = door.read();
    for (name, labels, expected) in [
        ("rollcall_camera_state", &[("state", "lost")][..], 1.0),
        ("rollcall_camera_state", &[("state", "streaming")], 0.0),
        ("rollcall_mongo_state", &[("state", "refused")], 1.0),
        ("rollcall_sharing_state", &[("state", "wrong_key")], 1.0),
        ("rollcall_sharing_behind_subjects", &[], 3.0),
        ("rollcall_sharing_refused_total", &[], 4.0),
        ("rollcall_sharing_pending_subjects", &[], 6.0),
        ("rollcall_sharing_unsealed", &[], 7.0),
        ("rollcall_commands_refused_total", &[("reason", "rate_limited")], 2.0),
        ("rollcall_commands_refused_total", &[("reason", "replayed")], 0.0),
        ("rollcall_attendances_recorded_total", &[], 7.0),
        ("rollcall_http_requests_total", &[("route", "/metrics"), ("status", "200")], 2.0),
        ("rollcall_http_requests_total", &[("route", "other"), ("status", "404")], 1.0),
        ("rollcall_pace_step", &[], 2.0),
        ("rollcall_stage_duration_seconds_count", &[("stage", "detect")], 5.0),
        ("rollcall_stage_duration_seconds_sum", &[("stage", "detect")], 20.407),
        ("rollcall_deliveries_total", &[("sink", "mongo"), ("outcome", "buried")], 2.0),
        ("rollcall_gallery_outdated_subjects", &[], 5.0),
        ("rollcall_gallery_partial_subjects", &[], 3.0),
        ("rollcall_erasures_pending", &[], 6.0),
        ("rollcall_consents_ending", &[], 8.0),
        ("rollcall_consents_ended_total", &[], 9.0),
        ("rollcall_uptime_seconds", &[], 120.0),
        ("rollcall_clock_trusted", &[], 1.0),
    ] {
        let said = exposed.value(name, labels);
        assert!((said - expected).abs() < 1e-9, "{name}{labels:?} is {said}, not {expected}");
    }
}

#[test]
fn outbox_metrics_show_rows_and_age() {
    let door = Door::new();
    let lost = Camera { state: CameraState::Lost, reason: None, lost_ms: None };
    let event = NewEvent::new(door.clock.now(), Body::Camera(lost));
    let commits = || door.metrics.store.commits().read().count();
    let before = commits();
    door.metrics.store.write(move |tx| tx.append_event(&event)).unwrap();
    assert_eq!(commits(), before + 1);
    door.count_owed();
    assert_eq!(commits(), before + 1, "reading waits for no disk");
    door.clock.advance(Duration::from_secs(90));
    let pending = "rollcall_outbox_rows";
    let age = "rollcall_outbox_oldest_age_seconds";
    for sink in ["mqtt", "mongo"] {
        let exposed = door.read();
        let pending = exposed.value(pending, &[("sink", sink)]);
        let age = exposed.value(age, &[("sink", sink)]);
        assert!(
            (pending - 1.0).abs() < 1e-9 && (age - 90.0).abs() < 1e-9,
            "{sink}: {pending}, {age}"
        );
    }
    // A scrape asks the store nothing: it answers when the store is gone.
    door.metrics.store.close().unwrap();
    door.read();
}

#[test]
fn metrics_contain_no_personal_data() {
    let door = Door::new();
    let subject = Subject {
        id: SubjectId::new("ada-1815").unwrap(),
        name: Name::new("Ada Lovelace").unwrap(),
    };
    let id = subject.id.clone();
    let name = subject.name.clone();
    door.metrics.store.write(move |tx| tx.put_subject(&id, &name)).unwrap();
    let template = Template::normalised(vec![1.0, 0.5]).unwrap();
    door.metrics
        .gallery
        .update(|gallery| gallery.with(subject.clone(), std::slice::from_ref(&template)));
    door.count_owed();
    let text = door.metrics.to_text().to_lowercase();
    assert!(!text.contains("ada-1815") && !text.contains("lovelace"), "{text}");
    let exposed = door.read();
    assert!(exposed.value("rollcall_gallery_subjects", &[]) > 0.0);
    // Labels are words of ours, the device's two names and versions: all short.
    assert!(exposed.label_values().into_iter().all(|value| value.len() <= 64));
}

#[test]
fn device_name_is_escaped_in_metrics() {
    let mut door = Door::new();
    door.metrics.origin.device = "a\"} 1\nrollcall_clock_trusted 0\n#".into();
    let text = door.metrics.to_text();
    assert_eq!(text.lines().filter(|line| line.starts_with("rollcall_clock_trusted ")).count(), 1);
    assert!(text.contains("device=\"a\\\"} 1\\nrollcall_clock_trusted 0\\n#\""), "{text}");
}

fn document(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/metrics").join(name)
}

/// The names of metrics in a text.
fn names_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words
        .filter(|word| word.starts_with("rollcall_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// Every query of a dashboard: those of its panels, and of its variables.
fn queries(dashboard: &Value) -> Vec<String> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|it| it["targets"].as_array()).flatten();
    let mut queries: Vec<String> =
        targets.map(|it| it["expr"].as_str().unwrap().to_owned()).collect();
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    queries
        .extend(variables.iter().filter_map(|it| it["query"]["query"].as_str()).map(str::to_owned));
    queries
}

#[test]
fn dashboard_queries_only_existing_metrics() {
    let dashboard = std::fs::read_to_string(document("rollcall-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    let exposed = Door::new().read();
    let asked: BTreeSet<String> = queries(&dashboard).iter().flat_map(|it| names_in(it)).collect();
    let missing: Vec<_> = asked.iter().filter(|name| !exposed.has_name(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // And for nearly all of it: what nobody looks at need not be counted.
    let unseen =
        ["rollcall_build_info", "rollcall_engine_errors_total", "rollcall_storage_reserve_held"];
    let shown = |name: &str| {
        asked
            .iter()
            .any(|it| it == name || it.strip_prefix(name).is_some_and(|it| it.starts_with('_')))
    };
    let alerts = names_in(&std::fs::read_to_string(document("alerts.yml")).unwrap());
    let unused: Vec<_> =
        exposed.kinds.keys().filter(|name| !shown(name) && !alerts.contains(*name)).collect();
    assert!(unused.iter().all(|name| unseen.contains(&name.as_str())), "{unused:?}");
}

#[test]
fn dashboard_is_valid_for_grafana() {
    let dashboard = std::fs::read_to_string(document("rollcall-dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&dashboard).unwrap();
    assert!(dashboard["id"].is_null(), "an id belongs to one server");
    assert!((8..=40).contains(&dashboard["uid"].as_str().unwrap().len()));
    assert!(!dashboard["title"].as_str().unwrap().is_empty());
    // 38 is that of Grafana 10.0; newer ones carry older ones over.
    assert_eq!(dashboard["schemaVersion"], 38);
    for key in ["time", "timepicker", "templating", "annotations"] {
        assert!(dashboard[key].is_object(), "{key}");
    }
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert_eq!(
        (&variables[0]["name"], &variables[0]["type"]),
        (&"datasource".into(), &"datasource".into())
    );
    let mut ids = BTreeSet::new();
    let mut places = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = &panel["title"];
        let place = &panel["gridPos"];
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{title}: its id stands there twice");
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| place[key].as_u64().unwrap());
        assert!(w > 0 && h > 0 && x + w <= 24, "{title}: {place}");
        let apart = |&(left, top, width, height): &(u64, u64, u64, u64)| {
            x + w <= left || left + width <= x || y + h <= top || top + height <= y
        };
        assert!(places.iter().all(apart), "{title} lies on another");
        places.push((x, y, w, h));
        if panel["type"] == "row" {
            continue;
        }
        assert!(
            ["stat", "timeseries", "state-timeline"].contains(&panel["type"].as_str().unwrap()),
            "{title}"
        );
        assert_eq!(
            panel["datasource"]["uid"], "${datasource}",
            "{title}: a data source of one server"
        );
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{title}");
        let refs: BTreeSet<_> = targets.iter().map(|it| it["refId"].as_str().unwrap()).collect();
        assert_eq!(refs.len(), targets.len(), "{title}");
    }
}

#[test]
fn alerts_query_only_existing_metrics() {
    let alerts = std::fs::read_to_string(document("alerts.yml")).unwrap();
    let exposed = Door::new().read();
    let missing: Vec<_> =
        names_in(&alerts).into_iter().filter(|name| !exposed.has_name(name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
    // What a label is asked for must be among its values, or the alert never comes.
    let values = exposed_values(&alerts, "state");
    assert!(!values.is_empty());
    for value in values {
        let known = CameraHealth::VARIANTS.iter().any(|it| it.as_str() == value)
            || MongoState::VARIANTS.iter().any(|it| it.as_str() == value)
            || SharingState::VARIANTS.iter().any(|it| it.as_str() == value);
        assert!(known, "there is no state {value}");
    }
    let known: Vec<_> = ErrorCode::VARIANTS.iter().map(|it| it.as_str()).collect();
    let reasons = exposed_values(&alerts, "reason");
    assert!(
        !reasons.is_empty() && reasons.iter().all(|it| known.contains(&it.as_str())),
        "{reasons:?}"
    );
    let names: Vec<_> =
        alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len(), "two alerts of one name");
    for part in ["expr: ", "severity: ", "summary: ", "description: "] {
        let count =
            alerts.lines().filter(|line| !line.starts_with('#') && line.contains(part)).count();
        assert_eq!(count, names.len(), "each alert has one `{part}`");
    }
    if let Ok(promtool) = std::env::var("PROMTOOL") {
        for (args, file) in
            [(["check", "rules"], "alerts.yml"), (["test", "rules"], "alerts_test.yml")]
        {
            let output = Command::new(&promtool).args(args).arg(document(file)).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        }
    }
}

/// What queries ask of a label, by `=` or `=~` with words between bars.
fn exposed_values(text: &str, label: &str) -> BTreeSet<String> {
    let wanted = format!("{label}=");
    let asked = text.split(&wanted).skip(1).filter_map(|rest| {
        let rest = rest.strip_prefix('~').unwrap_or(rest).strip_prefix('"')?;
        rest.split_once('"').map(|it| it.0.to_owned())
    });
    asked.flat_map(|values| values.split('|').map(str::to_owned).collect::<Vec<_>>()).collect()
}

//! The message that announces a device to Home Assistant: the payload of device-based discovery
//! (docs/home-assistant.md). Computes only.
//!
//! Invariants:
//! - The entities read topics that exist anyway; this message is the only one that is published for
//!   Home Assistant.
//! - Nothing historical triggers: the `event` and presence entities accept only events with
//!   `"historical": false`, and none without the field. The sensors are a record, and accept all.
//! - The message is retained, so it contains no person's name.
//! - `cmps` has every entity that ever existed. One that this device does not have is there with its
//!   platform only, which makes Home Assistant remove it.
//!
//! Field names and abbreviations are those of Home Assistant 2026.2; device-based discovery needs
//! 2024.11 or later.

use serde_json::{Map, Value, json};

use std::sync::Arc;

use tokio::sync::Notify;

use crate::mqtt::event::Inbound;
use crate::mqtt::topics;
use crate::mqtt::topics::{TopicError, Topics};

/// What an entity needs to be of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    Camera,
    AttackDetection,
    /// The configuration permits subjects to be shown.
    People,
    Thermometer,
    Mongo,
    /// Commands are executed without a signature.
    PlainCommands,
}

/// The device as it is announced.
pub struct Described<'a> {
    pub topics: &'a Topics,
    /// Free text.
    pub name: &'a str,
    pub has: &'a [Has],
}

/// Presence ends this long after the last event: the age at which an event counts as historical.
const OFF_DELAY_S: u32 = 30;

/// True for an event that has just happened. A missing field is not false.
const LIVE: &str = "value_json.historical == false";

impl Described<'_> {
    pub fn payload(&self) -> Vec<u8> {
        let base = self.topics.base();
        let version = env!("CARGO_PKG_VERSION");
        let message = json!({
            "dev": {"ids": [base], "name": self.name, "mdl": "rollcall attendance terminal", "sw": version},
            "o": {"name": "rollcall", "sw": version},
            "avty_t": self.topics.status(),
            "cmps": self.components(),
        });
        serde_json::to_vec(&message).expect("plain numbers and strings")
    }

    fn components(&self) -> Map<String, Value> {
        let mut all = Map::new();
        self.people(&mut all);
        self.events(&mut all);
        self.counts(&mut all);
        self.diagnostics(&mut all);
        all
    }

    /// The entities of the last person.
    fn people(&self, all: &mut Map<String, Value>) {
        let attendance = self.topics.below("event/attendance");
        let name = "{{ value_json.subject.name if value_json.subject else 'None' }}";
        self.put(
            all,
            "sensor",
            "last_person",
            "Last person",
            &[Has::People],
            json!({
                "ic": "mdi:account-check", "stat_t": attendance, "val_tpl": name, "qos": 1,
            }),
        );
        let moment = "{{ value_json.occurred_at if value_json.clock != 'unsynced' else 'None' }}";
        self.put(
            all,
            "sensor",
            "last_attendance",
            "Last attendance",
            &[],
            json!({
                "dev_cla": "timestamp", "stat_t": attendance, "val_tpl": moment, "qos": 1,
            }),
        );
    }

    /// The entities of live events.
    fn events(&self, all: &mut Map<String, Value>) {
        let person = if self.has(Has::People) {
            "'person': (value_json.subject or {}).name | default(none), \
             'subject_id': (value_json.subject or {}).id | default(none), "
        } else {
            ""
        };
        let template = |event_type: &str, fields: &str| {
            format!(
                "{{% if {LIVE} and value_json.event_id != this.attributes.event_id | default('') %}}\
                 {{{{ {{'event_type': {event_type}, 'event_id': value_json.event_id, \
                 'occurred_at': value_json.occurred_at, 'expires_at': value_json.expires_at, \
                 'venue': value_json.venue, {fields}}} | to_json }}}}{{% endif %}}"
            )
        };
        let attendance = format!(
            "{person}'status': value_json.status, 'session': value_json.session, 'score': value_json.score"
        );
        self.put(
            all,
            "event",
            "attendance",
            "Attendance",
            &[],
            json!({
                "ic": "mdi:account-check", "evt_typ": ["in", "out"], "stat_t": self.topics.below("event/attendance"),
                "val_tpl": template("value_json.direction", &attendance), "qos": 1,
            }),
        );
        self.put(
            all,
            "event",
            "unknown",
            "Unknown face",
            &[Has::Camera],
            json!({
                "ic": "mdi:account-question", "evt_typ": ["unknown"], "stat_t": self.topics.below("event/unknown"),
                "val_tpl": template("'unknown'", "'score': value_json.score"), "qos": 1,
            }),
        );
        let attack =
            format!("{person}'scores': value_json.scores, 'enforced': value_json.enforced");
        self.put(
            all,
            "event",
            "attack",
            "Presentation attack",
            &[Has::Camera, Has::AttackDetection],
            json!({
                "ic": "mdi:shield-alert", "evt_typ": ["attack"], "stat_t": self.topics.below("event/attack"),
                "val_tpl": template("'attack'", &attack), "qos": 1,
            }),
        );
        let somebody = format!(
            "{{{{ 'ON' if value_json.kind in ('attendance', 'unknown', 'attack') and {LIVE} else '' }}}}"
        );
        self.put(
            all,
            "binary_sensor",
            "presence",
            "Presence",
            &[Has::Camera],
            json!({
                "dev_cla": "occupancy", "off_dly": OFF_DELAY_S, "stat_t": self.topics.below("event/+"),
                "val_tpl": somebody, "qos": 1,
            }),
        );
    }

    /// Counters since the start of the daemon: Home Assistant's statistics make days of them.
    fn counts(&self, all: &mut Map<String, Value>) {
        let count = |icon: &str, field: &str| {
            json!({"ic": icon, "stat_cla": "total_increasing", "stat_t": self.topics.health(),
                   "val_tpl": format!("{{{{ value_json.{field} }}}}")})
        };
        self.put(all, "sensor", "recorded", "Recorded", &[], count("mdi:counter", "recorded"));
        let unknown = count("mdi:account-question", "recognition.unknown");
        self.put(all, "sensor", "unknown_count", "Unknown faces", &[Has::Camera], unknown);
        let attacks = count("mdi:shield-alert", "recognition.attacks");
        self.put(
            all,
            "sensor",
            "attack_count",
            "Presentation attacks",
            &[Has::Camera, Has::AttackDetection],
            attacks,
        );
    }

    /// The entities of the device's health.
    fn diagnostics(&self, all: &mut Map<String, Value>) {
        let health = self.topics.health();
        self.put(
            all,
            "binary_sensor",
            "camera",
            "Camera",
            &[Has::Camera],
            json!({
                "dev_cla": "problem", "ent_cat": "diagnostic", "stat_t": health,
                "val_tpl": "{{ 'ON' if value_json.camera.state == 'lost' else 'OFF' }}",
            }),
        );
        let figure = |icon: &str, template: &str| json!({"ic": icon, "ent_cat": "diagnostic", "stat_cla": "measurement", "stat_t": health, "val_tpl": template});
        let subjects = figure("mdi:account-group", "{{ value_json.gallery.subjects }}");
        self.put(all, "sensor", "subjects", "Enrolled", &[], subjects);
        for (sink, name, needs) in
            [("mqtt", "Owed to MQTT", &[][..]), ("mongo", "Owed to MongoDB", &[Has::Mongo][..])]
        {
            let rows = format!(
                "{{{{ value_json.outbox | selectattr('sink', 'eq', '{sink}') | map(attribute='rows') | first \
                 | default('None') }}}}"
            );
            self.put(
                all,
                "sensor",
                &format!("owed_{sink}"),
                name,
                needs,
                figure("mdi:tray-full", &rows),
            );
        }
        self.put(
            all,
            "sensor",
            "temperature",
            "Processor temperature",
            &[Has::Thermometer],
            json!({
                "dev_cla": "temperature", "ent_cat": "diagnostic", "stat_cla": "measurement", "unit_of_meas": "°C",
                "sug_dsp_prc": 0, "stat_t": health, "val_tpl": "{{ value_json.cpu_celsius }}",
            }),
        );
        // A new request id for each press: a repeated one would only return the old reply.
        let press = "{\"request_id\": \"home-assistant-{{ (now().timestamp() * 1000) | int }}\"}";
        self.put(
            all,
            "button",
            "sync",
            "Deliver now",
            &[Has::PlainCommands],
            json!({
                "ic": "mdi:sync", "ent_cat": "diagnostic", "cmd_t": self.topics.below("command/sync"), "cmd_tpl": press,
                "qos": 1,
            }),
        );
    }

    fn has(&self, what: Has) -> bool {
        self.has.contains(&what)
    }

    fn put(
        &self,
        all: &mut Map<String, Value>,
        platform: &str,
        key: &str,
        name: &str,
        needs: &[Has],
        fields: Value,
    ) {
        let mut entity = if needs.iter().all(|it| self.has(*it)) { fields } else { json!({}) };
        if entity != json!({}) {
            entity["name"] = name.into();
            entity["uniq_id"] = self.topics.below(key).into();
        }
        entity["p"] = platform.into();
        all.insert(key.to_owned(), entity);
    }
}

/// Watches for Home Assistant's birth message, which it publishes when it has started.
#[derive(Clone)]
pub struct Birth {
    pub topic: String,
    received: Arc<Notify>,
}

impl Birth {
    pub fn new(prefix: &str) -> Result<Self, TopicError> {
        let topic = topics::home_assistant_status(prefix)?;
        Ok(Self { topic, received: Arc::new(Notify::new()) })
    }

    /// Waits until Home Assistant has started again.
    pub async fn wait(&self) {
        self.received.notified().await;
    }

    /// Checks an inbound message that is no command. A retained `online` is old: the announcement
    /// after connecting has covered it.
    pub fn check(&self, inbound: &Inbound) {
        if inbound.topic == self.topic && inbound.payload == b"online" && !inbound.retained {
            self.received.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const ALL: [Has; 6] = [
        Has::Camera,
        Has::AttackDetection,
        Has::People,
        Has::Thermometer,
        Has::Mongo,
        Has::PlainCommands,
    ];

    fn described(name: &str, has: &[Has]) -> Value {
        let topics = Topics::new("hq", "door-1").unwrap();
        serde_json::from_slice(&Described { topics: &topics, name, has }.payload()).unwrap()
    }

    fn keys(value: &Value) -> BTreeSet<&str> {
        value.as_object().unwrap().keys().map(String::as_str).collect()
    }

    /// The fields of each platform and what they must have, from the schemas of Home Assistant
    /// 2026.2.3 (`homeassistant/components/mqtt/{schemas,sensor,binary_sensor,event,button}.py`)
    /// and the pages of the same name of its documentation, by the abbreviations of
    /// `abbreviations.py`.
    const ENTITY: &[&str] = &[
        "p",
        "name",
        "uniq_id",
        "avty",
        "avty_mode",
        "avty_t",
        "avty_tpl",
        "pl_avail",
        "pl_not_avail",
        "dev",
        "o",
        "en",
        "ent_cat",
        "ent_pic",
        "ic",
        "json_attr_t",
        "json_attr_tpl",
        "def_ent_id",
        "qos",
        "e",
    ];
    const PLATFORMS: [(&str, &[&str], &[&str]); 4] = [
        (
            "sensor",
            &[
                "stat_t",
                "val_tpl",
                "dev_cla",
                "exp_aft",
                "frc_upd",
                "lrst_val_tpl",
                "ops",
                "sug_dsp_prc",
                "stat_cla",
                "unit_of_meas",
            ],
            &["stat_t"],
        ),
        (
            "binary_sensor",
            &["stat_t", "val_tpl", "dev_cla", "exp_aft", "frc_upd", "off_dly", "pl_off", "pl_on"],
            &["stat_t"],
        ),
        ("event", &["stat_t", "val_tpl", "dev_cla", "evt_typ"], &["stat_t", "evt_typ"]),
        ("button", &["cmd_t", "cmd_tpl", "dev_cla", "pl_prs", "ret"], &["cmd_t"]),
    ];
    const DEVICE: &[&str] =
        &["cns", "cu", "ids", "name", "mf", "mdl", "mdl_id", "hw", "sw", "sa", "sn", "via_device"];
    const ORIGIN: &[&str] = &["name", "sw", "url"];
    const MESSAGE: &[&str] = &[
        "dev",
        "o",
        "cmps",
        "avty",
        "avty_mode",
        "avty_t",
        "avty_tpl",
        "pl_avail",
        "pl_not_avail",
        "stat_t",
        "cmd_t",
        "qos",
        "e",
    ];
    /// The closed sets that values are from.
    const VALUES: &[(&str, &[&str])] = &[
        ("dev_cla", &["timestamp", "temperature", "occupancy", "problem"]),
        ("ent_cat", &["diagnostic", "config"]),
        ("stat_cla", &["measurement", "measurement_angle", "total", "total_increasing"]),
    ];

    fn check(message: &Value) {
        let only = |value: &Value, known: &[&[&str]]| {
            let known: BTreeSet<&str> = known.iter().flat_map(|it| it.iter().copied()).collect();
            assert!(keys(value).is_subset(&known), "unknown fields in {value}");
        };
        only(message, &[MESSAGE]);
        only(&message["dev"], &[DEVICE]);
        only(&message["o"], &[ORIGIN]);
        assert!(message["o"]["name"].is_string(), "the origin's name is required");
        assert_eq!(message["dev"]["ids"].as_array().unwrap().len(), 1);
        let mut ids = BTreeSet::new();
        for (key, entity) in message["cmps"].as_object().unwrap() {
            let platform = entity["p"].as_str().unwrap();
            let (_, fields, required) = PLATFORMS.iter().find(|it| it.0 == platform).unwrap();
            only(entity, &[ENTITY, fields]);
            if keys(entity).len() == 1 {
                continue; // To be removed.
            }
            for field in required.iter().chain(&["uniq_id", "name"]) {
                assert!(!entity[field].is_null(), "{key} has no {field}");
            }
            assert!(ids.insert(entity["uniq_id"].as_str().unwrap()), "{key}: its unique id is not");
            for (field, values) in VALUES {
                assert!(
                    entity.get(field).is_none_or(|it| values.contains(&it.as_str().unwrap())),
                    "{key}: {field}"
                );
            }
            for template in ["val_tpl", "cmd_tpl"].iter().filter_map(|it| entity[it].as_str()) {
                let count = |part: &str| template.matches(part).count();
                assert_eq!(
                    (count("{{"), count("{%")),
                    (count("}}"), count("%}")),
                    "{key}: {template}"
                );
            }
        }
    }

    #[test]
    fn discovery_uses_only_documented_fields() {
        check(&described("door-1", &ALL));
        check(&described("door-1", &[]));
        for without in ALL {
            let has: Vec<Has> = ALL.into_iter().filter(|it| *it != without).collect();
            check(&described("door-1", &has));
        }
    }

    #[test]
    fn discovery_check_finds_invalid_fields() {
        for spoil in [
            |message: &mut Value| message["cmps"]["sync"]["stat_t"] = "a".into(),
            |message: &mut Value| message["cmps"]["recorded"]["val_templ"] = "a".into(),
            |message: &mut Value| {
                message["cmps"]["recorded"]["uniq_id"] =
                    message["cmps"]["attack"]["uniq_id"].take();
            },
            |message: &mut Value| message["cmps"]["recorded"]["stat_cla"] = "sum".into(),
            |message: &mut Value| message["dev"]["manufacturer_name"] = "a".into(),
            |message: &mut Value| message["o"] = json!({"sw": "1"}),
        ] {
            let mut message = described("door-1", &ALL);
            spoil(&mut message);
            assert!(std::panic::catch_unwind(|| check(&message)).is_err(), "{message}");
        }
    }

    #[test]
    fn absent_features_are_removed_by_platform() {
        let all = described("door-1", &ALL);
        let count = |message: &Value| {
            message["cmps"].as_object().unwrap().values().filter(|it| keys(it).len() > 1).count()
        };
        assert_eq!(count(&all), all["cmps"].as_object().unwrap().len());
        let least = described("door-1", &[]);
        assert_eq!(keys(&least["cmps"]), keys(&all["cmps"]), "every one stands there, always");
        for (key, entity) in least["cmps"].as_object().unwrap() {
            assert_eq!(entity["p"], all["cmps"][key]["p"]);
        }
        assert_eq!(count(&least), 5, "{least}");
        for (without, gone) in [
            (
                Has::Camera,
                &["unknown", "attack", "presence", "unknown_count", "attack_count", "camera"][..],
            ),
            (Has::AttackDetection, &["attack", "attack_count"]),
            (Has::People, &["last_person"]),
            (Has::Thermometer, &["temperature"]),
            (Has::Mongo, &["owed_mongo"]),
            (Has::PlainCommands, &["sync"]),
        ] {
            let has: Vec<Has> = ALL.into_iter().filter(|it| *it != without).collect();
            let message = described("door-1", &has);
            let removed: BTreeSet<&str> = message["cmps"]
                .as_object()
                .unwrap()
                .iter()
                .filter(|it| keys(it.1).len() == 1)
                .map(|it| it.0.as_str())
                .collect();
            assert_eq!(removed, gone.iter().copied().collect(), "{without:?}");
        }
    }

    #[test]
    fn people_are_named_only_where_allowed() {
        let has: Vec<Has> = ALL.into_iter().filter(|it| *it != Has::People).collect();
        let text = described("door-1", &has).to_string();
        assert!(!text.contains("value_json.subject") && !text.contains("'person'"), "{text}");
        assert!(described("door-1", &ALL).to_string().contains("value_json.subject"));
    }

    #[test]
    fn historical_events_do_not_trigger() {
        let message = described("door-1", &ALL);
        for key in ["attendance", "unknown", "attack", "presence"] {
            let template = message["cmps"][key]["val_tpl"].as_str().unwrap();
            assert!(template.contains("value_json.historical == false"), "{key}: {template}");
        }
    }

    #[test]
    fn device_name_may_be_any_text() {
        let name = "Tür \"Süd\" – 正門 {{ 7 }}";
        assert_eq!(described(name, &ALL)["dev"]["name"], name);
    }

    /// The whole message without the version, so that every change fails here.
    #[test]
    fn discovery_message_matches_golden_file() {
        let mut message = described("door-1", &ALL);
        for part in ["dev", "o"] {
            assert_eq!(message[part]["sw"].take(), env!("CARGO_PKG_VERSION"));
        }
        let expected: Value = serde_json::from_str(include_str!("discovery.json")).unwrap();
        assert_eq!(message, expected, "{message:#}");
    }
}

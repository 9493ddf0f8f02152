//! What Home Assistant is told of a device: the payload of device-based discovery (docs/home-assistant.md). Computes only.
//!
//! What must hold:
//! - The entities read the topics that are there anyway; nothing is published for Home Assistant but this message.
//! - Nothing historical triggers: the `event` and presence entities take events that say `"historical": false`, and no
//!   other, not even one that does not say. The sensors are a record, and take all.
//! - No person's name is in it: the message is retained.
//! - Each entity there ever was is in `cmps`. One that this device has not got stands there with its platform only, which
//!   is how Home Assistant is told to remove it.
//!
//! Field names and abbreviations are those of Home Assistant 2026.2; device-based discovery needs 2024.11 or later.

use serde_json::{Map, Value, json};

use super::topics::Topics;

/// What entities are of no use without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    Camera,
    AttackDetection,
    /// It may be told who passed.
    People,
    Thermometer,
    Mongo,
    /// A plain command is carried out, without a signature.
    PlainCommands,
}

/// One device.
pub struct Described<'a> {
    pub topics: &'a Topics,
    /// Free text.
    pub name: &'a str,
    pub has: &'a [Has],
}

/// Presence ends so long after the last event, unless another comes: when that event counts as history too.
const OFF_DELAY_S: u32 = 30;

/// True for what has just happened. A field that is not there is not false.
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

    /// Who was last here.
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

    /// What has just happened.
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
        let attendance =
            format!("{person}'status': value_json.status, 'session': value_json.session, 'score': value_json.score");
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
        let attack = format!("{person}'scores': value_json.scores, 'enforced': value_json.enforced");
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
        let somebody =
            format!("{{{{ 'ON' if value_json.kind in ('attendance', 'unknown', 'attack') and {LIVE} else '' }}}}");
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

    /// Since the start of the device: Home Assistant's statistics make days of them.
    fn counts(&self, all: &mut Map<String, Value>) {
        let count = |icon: &str, field: &str| {
            json!({"ic": icon, "stat_cla": "total_increasing", "stat_t": self.topics.health(),
                   "val_tpl": format!("{{{{ value_json.{field} }}}}")})
        };
        self.put(all, "sensor", "recorded", "Recorded", &[], count("mdi:counter", "recorded"));
        let unknown = count("mdi:account-question", "recognition.unknown");
        self.put(all, "sensor", "unknown_count", "Unknown faces", &[Has::Camera], unknown);
        let attacks = count("mdi:shield-alert", "recognition.attacks");
        self.put(all, "sensor", "attack_count", "Presentation attacks", &[Has::Camera, Has::AttackDetection], attacks);
    }

    /// How the device is.
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
        for (sink, name, needs) in [("mqtt", "Owed to MQTT", &[][..]), ("mongo", "Owed to MongoDB", &[Has::Mongo][..])]
        {
            let rows = format!(
                "{{{{ value_json.outbox | selectattr('sink', 'eq', '{sink}') | map(attribute='rows') | first \
                 | default('None') }}}}"
            );
            self.put(all, "sensor", &format!("owed_{sink}"), name, needs, figure("mdi:tray-full", &rows));
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
        // A request id of its own for each press: the same one again would only bring the old answer.
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

    fn put(&self, all: &mut Map<String, Value>, platform: &str, key: &str, name: &str, needs: &[Has], fields: Value) {
        let mut entity = if needs.iter().all(|it| self.has(*it)) { fields } else { json!({}) };
        if entity != json!({}) {
            entity["name"] = name.into();
            entity["uniq_id"] = self.topics.below(key).into();
        }
        entity["p"] = platform.into();
        all.insert(key.to_owned(), entity);
    }
}

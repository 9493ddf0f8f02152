//! Presets: what a kind of receiver is sent for an attendance, as a list of requests, and how its
//! answers are sorted (`answer`).
//!
//! `plain` receives every event as it is on MQTT. An HR system receives attendances of known time
//! and a known person only; everything else counts as delivered, because it is not for it.

use std::fmt::Write as _;

use http::HeaderValue;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::clock::BootId;
use crate::webhook::answer::{self, AnswerTable};
use crate::wire::event::{Attendance, Body, ClockState, Direction, StoredEvent};

/// Of the receiver.
#[derive(Clone, Debug)]
pub enum Preset {
    /// Whatever takes JSON: n8n, Node-RED, Apps Script, a program of one's own.
    Plain,
    /// Frappe HR and ERPNext: check-ins of employees.
    Frappe {
        /// That of the site: its times have none.
        zone: TimeZone,
        /// Shift types of which this device is the only door.
        shifts: Vec<String>,
    },
    /// Odoo 19: attendances, by the id of the employee.
    Odoo {
        /// Where one server has several.
        database: Option<HeaderValue>,
    },
}

/// What is to be done about an event.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Plan {
    /// Not for this receiver.
    Nothing,
    /// Its time may become known.
    Hold,
    Never(&'static str),
    Steps(Vec<PresetRequest>),
}

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct PresetRequest {
    pub(super) method: &'static str,
    /// Behind the path of the URL.
    pub(super) path: String,
    pub(super) body: Value,
    pub(super) then: Then,
}

/// What follows from a successful answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Then {
    /// It is delivered.
    Delivered,
    /// The answer is a list of ids: with one, the attendance is there already; without, the next
    /// step follows.
    ThereIfFound,
    /// The answer is a list of ids, which become `ids` of the next step; without one the attendance
    /// is never taken, for this reason.
    IdsOfNext(&'static str),
}

const CHECKIN: &str =
    "/api/method/hrms.hr.doctype.employee_checkin.employee_checkin.add_log_based_on_employee_field";

impl Preset {
    pub(super) fn answers(&self) -> &'static AnswerTable {
        match self {
            Self::Plain => &answer::PLAIN,
            Self::Frappe { .. } => &answer::FRAPPE,
            Self::Odoo { .. } => &answer::ODOO,
        }
    }

    /// The requests for an event of this device. `boot_id`: the present one.
    pub(super) fn plan(&self, event: &StoredEvent, device: &str, boot_id: &BootId) -> Plan {
        // What is superseded is evidence and not in the record.
        let Body::Attendance(body) = &event.body else { return Plan::Nothing };
        let Some(subject) = body.subject.as_ref().filter(|_| event.superseded_by.is_none()) else {
            return Plan::Nothing;
        };
        if event.clock == ClockState::Unsynced {
            return if event.boot_id == *boot_id { Plan::Hold } else { Plan::Never(UNDATED) };
        }
        let Ok(at) = Timestamp::from_millisecond(event.occurred_ms) else {
            return Plan::Never(UNDATED);
        };
        match self {
            Self::Plain => Plan::Nothing,
            Self::Frappe { zone, .. } => {
                Plan::Steps(vec![checkin(body, subject.id.as_str(), device, &local(at, zone))])
            }
            Self::Odoo { .. } => odoo(body, subject.id.as_str(), &local(at, &TimeZone::UTC)),
        }
    }

    /// Whether it is stated there up to when the record is complete.
    pub fn states_completeness(&self) -> bool {
        matches!(self, Self::Frappe { shifts, .. } if !shifts.is_empty())
    }

    /// The requests that state up to when the record is complete here.
    pub(super) fn completeness(&self, complete_through_ms: i64) -> Vec<PresetRequest> {
        let Self::Frappe { zone, shifts } = self else { return Vec::new() };
        let Ok(at) = Timestamp::from_millisecond(complete_through_ms) else { return Vec::new() };
        let time = local(at, zone);
        let step = |shift: &String| PresetRequest {
            method: "PUT",
            path: format!("/api/resource/Shift%20Type/{}", encode(shift)),
            body: json!({"last_sync_of_checkin": time}),
            then: Then::Delivered,
        };
        shifts.iter().map(step).collect()
    }
}

const UNDATED: &str = "the time of this attendance is not known: the clock was not synchronised then, and the device was \
                       restarted before it was";
const NOT_OPEN: &str = "the employee has no open attendance in Odoo that this departure could end";
const NO_EMPLOYEE: &str =
    "the person's id is no id of an employee of Odoo, which is a whole number";

/// Whole seconds by the clocks of a place.
fn local(at: Timestamp, zone: &TimeZone) -> String {
    zone.to_datetime(at).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

fn checkin(body: &Attendance, subject_id: &str, device: &str, time: &str) -> PresetRequest {
    let log_type = match body.direction {
        Direction::In => "IN",
        Direction::Out => "OUT",
    };
    PresetRequest {
        method: "POST",
        path: CHECKIN.to_owned(),
        body: json!({
            "employee_field_value": subject_id,
            "timestamp": format!("{time}.000000"),
            "device_id": device,
            "log_type": log_type,
            "skip_auto_attendance": 0,
            "employee_fieldname": "attendance_device_id",
            "latitude": null,
            "longitude": null,
        }),
        then: Then::Delivered,
    }
}

/// Odoo has no keys against repetition, so that each write follows a search that shows whether it
/// was done before.
fn odoo(body: &Attendance, subject_id: &str, time: &str) -> Plan {
    let Some(employee) = subject_id.parse::<u32>().ok().filter(|it| *it > 0) else {
        return Plan::Never(NO_EMPLOYEE);
    };
    let step = |method: &str, body: Value, then: Then| PresetRequest {
        method: "POST",
        path: format!("/json/2/hr.attendance/{method}"),
        body,
        then,
    };
    let of_employee = json!(["employee_id", "=", employee]);
    Plan::Steps(match body.direction {
        Direction::In => {
            let domain = json!([of_employee, ["check_in", "=", time]]);
            let new = json!([{"employee_id": employee, "check_in": time}]);
            vec![
                step("search", json!({"domain": domain, "limit": 1}), Then::ThereIfFound),
                step("create", json!({"vals_list": new}), Then::Delivered),
            ]
        }
        Direction::Out => {
            let open = json!(["check_out", "=", false]);
            let ended = json!(["check_out", "=", time]);
            let begun = json!(["check_in", "<=", time]);
            let domain = json!([of_employee, begun, "|", open, ended]);
            let search = json!({"domain": domain, "limit": 1, "order": "check_in desc"});
            vec![
                step("search", search, Then::IdsOfNext(NOT_OPEN)),
                step("write", json!({"ids": [], "vals": {"check_out": time}}), Then::Delivered),
            ]
        }
    })
}

/// Encodes a segment of a path.
fn encode(segment: &str) -> String {
    let mut encoded = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            encoded.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            write!(encoded, "%{byte:02X}").ok();
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Name, SubjectId};
    use crate::wire::event::{Camera, CameraState, Status, SubjectRef};
    use uuid::Uuid;

    /// 2026-11-23T07:01:07.412Z
    const AT_MS: i64 = 1_795_417_267_412;

    fn event(subject_id: &str, direction: Direction) -> StoredEvent {
        let subject =
            SubjectRef { id: SubjectId::new(subject_id).unwrap(), name: Name::new("Ada").unwrap() };
        let body = Attendance {
            venue: "main".into(),
            session: None,
            subject: Some(subject),
            direction,
            status: Status::Present,
            score: 0.7,
            threshold: 0.4,
            frames: 4,
            track_ms: 610,
            latency_ms: 84,
        };
        StoredEvent {
            seq: 1,
            event_id: Uuid::nil(),
            occurred_ms: AT_MS,
            boot_id: BootId::new("now"),
            boottime_ms: 1,
            clock: ClockState::Synced,
            superseded_by: None,
            chain: None,
            body: Body::Attendance(body),
        }
    }

    fn frappe() -> Preset {
        let zone = jiff::tz::db().get("Europe/Berlin").unwrap();
        Preset::Frappe { zone, shifts: vec!["Day / 1".into()] }
    }

    fn plan(preset: &Preset, event: &StoredEvent) -> Plan {
        preset.plan(event, "door-1", &BootId::new("now"))
    }

    /// What Frappe's own example of a terminal sends (`frappe/biometric-attendance-sync-tool`).
    #[test]
    fn frappe_receives_golden_request() {
        let Plan::Steps(steps) = plan(&frappe(), &event("17", Direction::In)) else { panic!() };
        assert_eq!(
            steps[0].path,
            "/api/method/hrms.hr.doctype.employee_checkin.employee_checkin.add_log_based_on_employee_field"
        );
        let golden = r#"{"employee_field_value":"17","timestamp":"2026-11-23 08:01:07.000000","device_id":"door-1",
            "log_type":"IN","skip_auto_attendance":0,"employee_fieldname":"attendance_device_id","latitude":null,
            "longitude":null}"#;
        assert_eq!(steps[0].body, serde_json::from_str::<Value>(golden).unwrap());
        assert_eq!((steps.len(), steps[0].method), (1, "POST"));
        let Plan::Steps(steps) = plan(&frappe(), &event("17", Direction::Out)) else { panic!() };
        assert_eq!(steps[0].body["log_type"], "OUT");
        let steps = frappe().completeness(AT_MS);
        assert_eq!(steps[0].path, "/api/resource/Shift%20Type/Day%20%2F%201");
        assert_eq!(
            (steps[0].method, steps[0].body.to_string().as_str()),
            ("PUT", r#"{"last_sync_of_checkin":"2026-11-23 08:01:07"}"#)
        );
    }

    #[test]
    fn odoo_receives_golden_requests() {
        let odoo = Preset::Odoo { database: None };
        let golden = |direction| {
            let Plan::Steps(steps) = plan(&odoo, &event("7", direction)) else { panic!() };
            steps.iter().map(|it| format!("{} {}", it.path, it.body)).collect::<Vec<_>>()
        };
        assert_eq!(
            golden(Direction::In),
            [
                r#"/json/2/hr.attendance/search {"domain":[["employee_id","=",7],["check_in","=","2026-11-23 07:01:07"]],"limit":1}"#,
                r#"/json/2/hr.attendance/create {"vals_list":[{"check_in":"2026-11-23 07:01:07","employee_id":7}]}"#,
            ]
        );
        assert_eq!(
            golden(Direction::Out),
            [
                r#"/json/2/hr.attendance/search {"domain":[["employee_id","=",7],["check_in","<=","2026-11-23 07:01:07"],"|",["check_out","=",false],["check_out","=","2026-11-23 07:01:07"]],"limit":1,"order":"check_in desc"}"#,
                r#"/json/2/hr.attendance/write {"ids":[],"vals":{"check_out":"2026-11-23 07:01:07"}}"#,
            ]
        );
        for id in ["p-7", "0", "99999999999"] {
            assert_eq!(plan(&odoo, &event(id, Direction::In)), Plan::Never(NO_EMPLOYEE), "{id}");
        }
        assert!(odoo.completeness(AT_MS).is_empty());
    }

    #[test]
    fn only_dated_records_go_to_presets() {
        let mut it = event("17", Direction::In);
        it.superseded_by = Some(Uuid::nil());
        assert_eq!(plan(&frappe(), &it), Plan::Nothing);
        let mut it = event("17", Direction::In);
        it.body.erase_subject();
        assert_eq!(plan(&frappe(), &it), Plan::Nothing);
        let mut it = event("17", Direction::In);
        it.body = Body::Camera(Camera { state: CameraState::Lost, reason: None, lost_ms: None });
        assert_eq!(plan(&frappe(), &it), Plan::Nothing);
        let mut it = event("17", Direction::In);
        it.clock = ClockState::Unsynced;
        assert_eq!(plan(&frappe(), &it), Plan::Hold);
        it.boot_id = BootId::new("before");
        assert_eq!(plan(&frappe(), &it), Plan::Never(UNDATED));
        it.clock = ClockState::Corrected;
        assert!(matches!(plan(&frappe(), &it), Plan::Steps(_)));
    }
}

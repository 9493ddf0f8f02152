//! The presets of webhooks, with stubs that answer as the real applications do: Frappe HR's function
//! for check-ins, and Odoo 19's JSON-2 interface to `hr.attendance`. Both lose the connection now and
//! then after they have written: no attendance is there twice.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use rollcall::clock::Clock as _;
use rollcall::health::WebhookState;
use rollcall::webhook::Preset;
use rollcall::wire::event::{Body, Camera, CameraState, Direction, NewEvent};
use serde_json::{Value, json};

use crate::support::daemon::until;
use crate::support::door::visit;
use crate::support::receiver::{Action, Received, Receiver, answer};
use crate::webhook::{WebhookDoor, settings};

fn append(door: &WebhookDoor, person: &str, direction: Direction) {
    let mut event = visit(&door.clock, "main", person);
    if let Body::Attendance(body) = &mut event.body {
        body.direction = direction;
    }
    door.store.write(move |tx| tx.append_event(&event)).unwrap();
}

/// Frappe HR with people 1 to 18; 20 has left. `hrms/hr/doctype/employee_checkin/employee_checkin.py`
/// of version 15.
#[derive(Default)]
struct Frappe {
    /// Employee, time, log type.
    logs: Vec<(String, String, String)>,
    last_sync: Option<String>,
    has_geolocation: bool,
}

fn thrown(text: &str) -> Action {
    let body = json!({
        "exception": format!("frappe.exceptions.ValidationError: {text}"),
        "exc_type": "ValidationError",
        "_server_messages": json!([json!({"message": text}).to_string()]).to_string(),
    });
    answer(417, &body.to_string())
}

impl Frappe {
    fn serve(&mut self, received: &Received) -> Action {
        if received.header("authorization") != Some("token abc:def") {
            return answer(401, "{\"exc_type\":\"AuthenticationError\"}");
        }
        let body = received.json();
        let text = |key: &str| body[key].as_str().unwrap().to_owned();
        match (received.method.as_str(), received.target.as_str()) {
            ("PUT", "/hr/api/resource/Shift%20Type/Day") => {
                self.last_sync = Some(text("last_sync_of_checkin"));
                return answer(200, "{\"data\":{}}");
            }
            (
                "POST",
                "/hr/api/method/hrms.hr.doctype.employee_checkin.employee_checkin.add_log_based_on_employee_field",
            ) => {}
            _ => return answer(404, "<html>Not Found</html>"),
        }
        assert_eq!(body["employee_fieldname"], "attendance_device_id");
        let employee = text("employee_field_value");
        match employee.parse::<u32>() {
            Ok(1..=18) => {}
            Ok(20) => {
                return thrown(
                    "Transactions cannot be created for an Inactive Employee HR-EMP-00020.",
                );
            }
            _ => {
                return thrown(&format!(
                    "No Employee found for the given employee field value. 'attendance_device_id': {employee}"
                ));
            }
        }
        if self.has_geolocation && body["latitude"].is_null() {
            return thrown("Latitude and longitude values are required for checking in.");
        }
        let log_type = body["log_type"].as_str().unwrap_or_default().to_owned();
        if log_type.is_empty() {
            return thrown("Log Type is required for check-ins falling in the shift: Day.");
        }
        // Stored without microseconds.
        let time = text("timestamp").split('.').next().unwrap().to_owned();
        if self.logs.contains(&(employee.clone(), time.clone(), log_type.clone())) {
            return thrown(
                "This employee already has a log with the same timestamp.<br>EMP-CKIN-11-2026-000001",
            );
        }
        self.logs.push((employee, time, log_type));
        let name = format!("EMP-CKIN-11-2026-{:06}", self.logs.len());
        answer(200, &json!({"message": {"name": name}}).to_string())
    }
}

/// Serves, and loses each `cut`th answer after the work was done.
fn served<A: Send + 'static>(
    application: &Arc<Mutex<A>>,
    serve: impl Fn(&mut A, &Received) -> Action + Send + 'static,
    cut: usize,
) -> Receiver {
    let application = Arc::clone(application);
    let mut count = 0_usize;
    Receiver::start(move |received| {
        let action = serve(&mut application.lock().unwrap(), received);
        count += 1;
        if usize::is_multiple_of(count, cut) { Action::Cut } else { action }
    })
}

fn berlin() -> Preset {
    let zone = rollcall::clock::time_zone("Europe/Berlin").unwrap();
    Preset::Frappe { zone, shifts: vec!["Day".into()] }
}

#[test]
fn frappe_receives_each_attendance_once() {
    let frappe = Arc::new(Mutex::new(Frappe::default()));
    let receiver = served(&frappe, Frappe::serve, 7);
    let door = WebhookDoor::new(settings(&receiver.url("/hr"), berlin()));
    let lost = Camera { state: CameraState::Lost, reason: None, lost_ms: None };
    let event = NewEvent::new(door.clock.now(), Body::Camera(lost));
    door.store.write(move |tx| tx.append_event(&event)).unwrap();
    for number in 0..100 {
        door.clock.advance(Duration::from_secs(90));
        let direction = if number < 50 { Direction::In } else { Direction::Out };
        append(&door, &(number % 20 + 1).to_string(), direction);
    }
    let running = door.start();
    door.until_drained();
    drop(running);
    let dead = door.dead_letters();
    assert_eq!(dead.len(), 10, "{dead:?}");
    for (seq, reason) in &dead {
        // Of the hundred visits behind the first event.
        let expected = match (seq - 2) % 20 + 1 {
            19 => "Frappe has no employee with this attendance device ID (status 417, ",
            20 => "the employee is not active in Frappe (status 417, ",
            other => panic!("{other}: {reason}"),
        };
        assert!(reason.starts_with(expected), "{reason}");
    }
    let logs = frappe.lock().unwrap().logs.clone();
    assert_eq!(logs.len(), 90);
    // 07:58:03 in UTC, and 90 s later, by the clocks of the site.
    assert_eq!(logs[0], ("1".into(), "2026-11-23 08:59:33".into(), "IN".into()));
    assert_eq!(logs[89].2, "OUT");
    assert!(receiver.received().iter().all(|it| it.method == "POST"), "nothing for the camera");
    assert_eq!(door.status().state, WebhookState::Connected);
}

#[test]
fn frappe_receives_completeness_and_settings_are_reported() {
    let frappe = Arc::new(Mutex::new(Frappe { has_geolocation: true, ..Frappe::default() }));
    let receiver = served(&frappe, Frappe::serve, usize::MAX);
    let door = WebhookDoor::new(settings(&receiver.url("/hr"), berlin()));
    append(&door, "1", Direction::In);
    let running = door.start();
    until("the setting is named", || {
        let reason = door.status().reason?;
        reason.contains("switch off geolocation tracking").then_some(())
    });
    assert_eq!((door.pending(), door.dead_letters().len()), (1, 0));
    frappe.lock().unwrap().has_geolocation = false;
    door.until_drained();
    drop(running);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let through_ms = door.clock.now().wall_ms;
    assert_eq!(runtime.block_on(door.link().put_completeness(through_ms)), Ok(true));
    assert_eq!(frappe.lock().unwrap().last_sync.as_deref(), Some("2026-11-23 08:58:03"));
}

#[derive(Clone, Debug, PartialEq)]
struct OdooAttendance {
    employee: u64,
    check_in: String,
    check_out: Option<String>,
}

/// Odoo 19 with employees 1 to 18.
#[derive(Default)]
struct Odoo {
    attendances: Vec<OdooAttendance>,
}

fn raised(status: u16, name: &str, message: &str) -> Action {
    let error = json!({"name": name, "message": message, "arguments": [message], "context": {}, "debug": "Traceback"});
    answer(status, &error.to_string())
}

fn overlap(employee: u64) -> Action {
    raised(
        422,
        "odoo.exceptions.ValidationError",
        &format!(
            "Cannot create new attendance record for $name of {employee}, the employee was already checked in on 1"
        ),
    )
}

impl Odoo {
    fn serve(&mut self, received: &Received) -> Action {
        if received.header("x-odoo-database") != Some("firm") {
            return answer(404, "<html>Not Found</html>");
        }
        let body = received.json();
        match received.target.as_str() {
            "/json/2/hr.attendance/search" => answer(200, &self.search(&body).to_string()),
            "/json/2/hr.attendance/create" => self.create(&body["vals_list"][0]),
            "/json/2/hr.attendance/write" => {
                let at = body["ids"][0].as_u64().unwrap() as usize - 1;
                let time = body["vals"]["check_out"].as_str().unwrap().to_owned();
                let ended = &self.attendances[at];
                let is_between = |it: &OdooAttendance| {
                    it.employee == ended.employee
                        && it.check_in > ended.check_in
                        && it.check_in < time
                };
                if self.attendances.iter().any(is_between) {
                    return overlap(ended.employee);
                }
                self.attendances[at].check_out = Some(time);
                answer(200, "true")
            }
            _ => answer(404, "<html>Not Found</html>"),
        }
    }

    fn search(&self, body: &Value) -> Value {
        let mut found: Vec<(usize, &OdooAttendance)> = self
            .attendances
            .iter()
            .enumerate()
            .filter(|(_, it)| holds(body["domain"].as_array().unwrap(), it))
            .collect();
        if body["order"] == "check_in desc" {
            found.sort_by(|a, b| b.1.check_in.cmp(&a.1.check_in));
        }
        found.iter().take(1).map(|(at, _)| Value::from(at + 1)).collect()
    }

    fn create(&mut self, new: &Value) -> Action {
        let employee = new["employee_id"].as_u64().unwrap();
        if !(1..=18).contains(&employee) {
            return raised(
                404,
                "odoo.exceptions.MissingError",
                "Record does not exist or has been deleted.\n(Record: hr.employee(19,), User: 2)",
            );
        }
        let open =
            self.attendances.iter().any(|it| it.employee == employee && it.check_out.is_none());
        if open {
            return raised(
                422,
                "odoo.exceptions.ValidationError",
                &format!(
                    "Cannot create new attendance record for $name of {employee}, the employee hasn't checked out since 1"
                ),
            );
        }
        let check_in = new["check_in"].as_str().unwrap().to_owned();
        let is_within = |it: &OdooAttendance| {
            let is_before_end = it.check_out.as_ref().is_some_and(|end| *end > check_in);
            it.employee == employee && it.check_in <= check_in && is_before_end
        };
        if self.attendances.iter().any(is_within) {
            return overlap(employee);
        }
        self.attendances.push(OdooAttendance { employee, check_in, check_out: None });
        answer(200, &json!([self.attendances.len()]).to_string())
    }
}

/// A domain in Polish notation: conditions are joined by "and" unless "|" stands before two.
fn holds(domain: &[Value], it: &OdooAttendance) -> bool {
    let mut rest = domain.iter();
    let mut all = true;
    while let Some(term) = rest.next() {
        all &= if term == "|" {
            let [first, second] = [rest.next().unwrap(), rest.next().unwrap()];
            condition(first, it) || condition(second, it)
        } else {
            condition(term, it)
        };
    }
    all
}

fn condition(term: &Value, it: &OdooAttendance) -> bool {
    let value = &term[2];
    let text = value.as_str().unwrap_or_default();
    match (term[0].as_str().unwrap(), term[1].as_str().unwrap()) {
        ("employee_id", "=") => *value == it.employee,
        ("check_in", "=") => it.check_in == text,
        ("check_in", "<=") => it.check_in.as_str() <= text,
        ("check_out", "=") if *value == false => it.check_out.is_none(),
        ("check_out", "=") => it.check_out.as_deref() == Some(text),
        other => panic!("{other:?}"),
    }
}

#[test]
fn odoo_receives_each_attendance_once() {
    let odoo = Arc::new(Mutex::new(Odoo::default()));
    let receiver = served(&odoo, Odoo::serve, 5);
    let preset = Preset::Odoo { database: Some("firm".parse().unwrap()) };
    let door = WebhookDoor::new(settings(&receiver.url("/"), preset));
    let mut expected = Vec::new();
    for person in 1..=18_u64 {
        for hour in 0..3 {
            for direction in [Direction::In, Direction::Out] {
                door.clock.advance(Duration::from_mins(10));
                append(&door, &person.to_string(), direction);
            }
            expected.push((person, hour));
        }
    }
    // Somebody whom Odoo does not know, an id that is no number, one who is in already, one who leaves
    // without having come.
    for (person, direction) in [
        ("19", Direction::In),
        ("ada", Direction::In),
        ("1", Direction::In),
        ("1", Direction::In),
        ("2", Direction::Out),
    ] {
        door.clock.advance(Duration::from_mins(10));
        append(&door, person, direction);
    }
    let running = door.start();
    door.until_drained();
    drop(running);
    let attendances = odoo.lock().unwrap().attendances.clone();
    assert_eq!(attendances.len(), expected.len() + 1);
    let first = &attendances[0];
    assert_eq!((first.employee, first.check_in.as_str()), (1, "2026-11-23 08:08:03"));
    assert_eq!(first.check_out.as_deref(), Some("2026-11-23 08:18:03"));
    let ended = attendances.iter().filter(|it| it.check_out.is_some()).count();
    assert_eq!(ended, expected.len());
    let reasons: Vec<String> = door.dead_letters().into_iter().map(|it| it.1).collect();
    for (reason, part) in reasons.iter().zip([
        "Odoo has no employee with this id (status 404, ",
        "the person's id is no id of an employee of Odoo",
        "the employee has an open attendance in Odoo (status 422, ",
        "no open attendance in Odoo",
    ]) {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!(reasons.len(), 4, "{reasons:?}");
}

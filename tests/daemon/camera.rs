//! The daemon and a camera that is not there: a state, not a reason to stop. With a real camera:
//! `make test-camera`.

use crate::support::daemon::{Home, until};

/// A port that nobody serves: no broker is needed.
const NO_BROKER: u16 = 9;
const ABSENT: &str = "[camera]\nsource = \"v4l2\"\ndevice = \"usb-nothing-of-that-name\"\n[log]\nlevel = \"debug\"\n";

#[test]
fn absent_camera_is_retried_and_reported_once() {
    let home = Home::new(NO_BROKER, ABSENT);
    let mut daemon = home.start();
    until("it was tried again and again", || {
        (home.log().matches("not back yet").count() >= 3).then_some(())
    });
    let kinds: Vec<String> = home.events().into_iter().map(|(_, _, kind)| kind).collect();
    assert_eq!(kinds, ["camera"]);
    assert!(daemon.is_alive());
    let status = daemon.terminate();
    assert!(status.success(), "{status}: {}", home.log());
    assert_eq!(home.log().matches("camera lost").count(), 1, "{}", home.log());
}

#[test]
fn camera_list_may_be_empty() {
    let home = Home::new(NO_BROKER, ABSENT);
    let listed = home.json(&["cameras", "--json"]);
    assert!(listed["cameras"].is_array(), "{listed}");
    let text = String::from_utf8(home.output(&["cameras"]).stdout).unwrap();
    assert!(text.contains("No camera") || text.contains("/dev/video"), "{text}");
}

#[test]
fn doctor_explains_unusable_camera() {
    let reported = |device: &str| {
        let home =
            Home::new(NO_BROKER, &format!("[camera]\nsource = \"v4l2\"\ndevice = \"{device}\"\n"));
        let reported: serde_json::Value =
            serde_json::from_slice(&home.output(&["doctor", "--json"]).stdout).unwrap();
        let findings = reported["findings"].as_array().unwrap();
        findings.iter().find(|finding| finding["part"] == "camera").unwrap().clone()
    };
    let home = Home::new(NO_BROKER, "");
    let locked = home.path("locked");
    std::fs::create_dir(&locked).unwrap();
    for (device, why) in [
        ("/dev/null", "no camera"),
        ("/nowhere/video0", "no camera of that name"),
        (locked.to_str().unwrap(), "cannot be used"),
    ] {
        let finding = reported(device);
        assert_eq!(finding["state"], "fault", "{device}: {finding}");
        assert!(finding["words"].as_str().unwrap().contains(why), "{device}: {finding}");
    }
}

//! The camera: whether it delivers a picture, and whether faces could be recognised in it.

use std::io::BufRead as _;
use std::time::Duration;

use crate::app::preview_socket::PreviewRequest;
use crate::camera::fault::{CameraFault, FaultKind};
use crate::camera::http_stream::HttpCamera;
use crate::camera::pipe::presets::Preset;
use crate::camera::pipe::{PipeCamera, PipeSettings};
use crate::camera::replay::{Replay, ReplaySettings};
use crate::camera::v4l2::V4l2Camera;
use crate::camera::v4l2::find;
use crate::camera::{CameraError, FrameSource, Next, unreadable_fault};
use crate::cli::doctor::Installation;
use crate::cli::doctor::finding::CheckResult;
use crate::cli::watch;
use crate::clock::Stopwatch;
use crate::config::Settings;
use crate::config::camera::CameraSettings;
use crate::error_chain::error_chain;
use crate::recognise::exposure::{Exposure, ExposureFlaw};

const NOBODY: &str = "nobody is recorded at this door until there is a picture; people who pass now are missing from the \
                      attendance";

pub fn check_camera(installation: &Installation) -> CheckResult {
    // Only one program can use the camera, so a running daemon has to report on it.
    let state = installation.health_value("/camera/state").and_then(|it| it.as_str());
    match state {
        Some(state) => explain_state(installation, state),
        None => try_camera(&installation.settings.camera),
    }
}

/// Opens the camera as the daemon would.
pub fn try_camera(camera: &CameraSettings) -> CheckResult {
    match camera {
        CameraSettings::None => CheckResult::warning(
            "none configured",
            "nobody is recorded at this door; only photographs sent by command are recognised",
            match find::sensor_preset() {
                Some(preset) => preset.advice(),
                None => "[camera] source = \"v4l2\" in config.toml, or `rollcall setup`".to_owned(),
            },
        ),
        CameraSettings::Replay { replay, .. } => check_replay(replay),
        CameraSettings::Pipe(settings) => try_command(settings),
        CameraSettings::Http(settings) => {
            match measure_exposure(&mut HttpCamera::new(settings.clone())) {
                Ok(exposure) => explain_exposure(&exposure).unwrap_or_else(|| {
                    let host = &settings.url.host;
                    CheckResult::good(format!("{host} delivers pictures with enough light"))
                }),
                Err(fault) => explain_fault(&fault),
            }
        }
        CameraSettings::V4l2(settings) => {
            let node = match settings.examine() {
                Ok(node) => node,
                Err(fault) => return explain_fault(&fault),
            };
            match measure_exposure(&mut V4l2Camera::new(settings.clone())) {
                Ok(exposure) => explain_exposure(&exposure).unwrap_or_else(|| {
                    CheckResult::good(format!(
                        "{} delivers pictures with enough light; `rollcall cameras` lists its formats",
                        node.display()
                    ))
                }),
                Err(fault) => explain_fault(&fault),
            }
        }
    }
}

/// Runs the command as the daemon would.
fn try_command(settings: &PipeSettings) -> CheckResult {
    match measure_exposure(&mut PipeCamera::new(settings.clone())) {
        Ok(exposure) => explain_exposure(&exposure).unwrap_or_else(|| {
            let program = settings.command.first().map_or("", String::as_str);
            CheckResult::good(format!("{program} delivers pictures with enough light"))
        }),
        Err(fault) => explain_command_fault(settings, &fault),
    }
}

fn explain_command_fault(settings: &PipeSettings, fault: &CameraFault) -> CheckResult {
    match (fault.kind, settings.preset) {
        (FaultKind::ProgramMissing, Some(preset)) => CheckResult::fault(
            fault.reason(),
            NOBODY,
            format!("sudo apt install {}", preset.packages()),
        ),
        _ => explain_fault(fault),
    }
}

fn check_replay(settings: &ReplaySettings) -> CheckResult {
    const REMEDY: &str = "check [camera] path in config.toml";
    let mut replay = match Replay::open(settings.clone()) {
        Ok(replay) => replay,
        Err(error) => {
            let means = "the daemon does not start: nobody is recorded";
            return CheckResult::fault(error_chain(&error), means, REMEDY);
        }
    };
    match measure_exposure(&mut replay) {
        Ok(exposure) => explain_exposure(&exposure).unwrap_or_else(replay_configured),
        Err(fault) => CheckResult::fault(fault.to_string(), NOBODY, REMEDY),
    }
}

pub fn replay_configured() -> CheckResult {
    CheckResult::warning(
        "a replay is configured instead of a camera",
        "attendance comes from the replay, not from the door",
        "[camera] source = \"v4l2\" in config.toml where there is a camera",
    )
}

fn explain_state(installation: &Installation, state: &str) -> CheckResult {
    let settings = &installation.settings;
    let reported = reported_fault(installation);
    match (state, &settings.camera) {
        ("streaming", _) => match request_exposure(settings) {
            Some(exposure) => explain_exposure(&exposure).unwrap_or_else(|| {
                CheckResult::good(
                    "the daemon receives pictures with enough light (`rollcall watch`)",
                )
            }),
            None => CheckResult::good("the daemon receives pictures (`rollcall watch`)"),
        },
        ("lost", CameraSettings::V4l2(camera)) => match camera.examine() {
            Ok(_) => explain_fault(&reported),
            Err(fault) => explain_fault(&fault),
        },
        ("lost", CameraSettings::Pipe(settings)) => explain_command_fault(settings, &reported),
        ("lost", _) => explain_fault(&reported),
        (_, CameraSettings::Replay { .. }) => CheckResult::warning(
            "the replay has ended",
            "nobody is recorded until the daemon is restarted",
            "[camera] source = \"v4l2\" where there is a camera",
        ),
        (_, camera) => try_camera(camera),
    }
}

/// Requests the exposure of the running daemon's camera, without the picture.
fn request_exposure(settings: &Settings) -> Option<Exposure> {
    let mut answer = watch::ask_daemon(settings, &PreviewRequest::Exposure).ok()?;
    answer.get_ref().set_read_timeout(Some(PICTURE_TIMEOUT)).ok()?;
    let mut line = String::new();
    answer.read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

/// Returns the fault that the running daemon reports.
fn reported_fault(installation: &Installation) -> CameraFault {
    let text = |key| installation.health_value(key).and_then(|it| it.as_str());
    let kind = text("/camera/fault").and_then(|it| it.parse().ok()).unwrap_or(FaultKind::Stalled);
    CameraFault::new(kind, text("/camera/reason").unwrap_or("it delivers no picture"))
}

fn explain_fault(fault: &CameraFault) -> CheckResult {
    explain_with(fault, find::sensor_preset())
}

/// `sensor`: what reads a sensor on a ribbon cable, where there is one.
fn explain_with(fault: &CameraFault, sensor: Option<Preset>) -> CheckResult {
    let is_direct = matches!(
        fault.kind,
        FaultKind::Absent | FaultKind::Missing | FaultKind::Format | FaultKind::NotCamera
    );
    let remedy = match sensor.filter(|_| is_direct) {
        Some(preset) => format!("the camera on the ribbon cable is used by {}", preset.advice()),
        None => remedy(fault.kind).to_owned(),
    };
    CheckResult::fault(fault.reason(), NOBODY, remedy)
}

/// Returns what to do about a fault.
fn remedy(kind: FaultKind) -> &'static str {
    match kind {
        FaultKind::Denied => {
            "sudo usermod -aG video rollcall, then sudo systemctl restart rollcall (or run doctor with sudo)"
        }
        FaultKind::Busy => {
            "end the other program that shows the camera (a browser, a video call, a second rollcall); `sudo fuser -v \
             /dev/video*` names it"
        }
        FaultKind::Missing => {
            "plug the camera in; if it is, `rollcall cameras` lists what is connected, and [camera] device in config.toml names \
             one of them"
        }
        FaultKind::Absent | FaultKind::Unplugged => {
            "plug the camera in, try its cable and another USB port; `rollcall cameras` lists what is connected. The daemon \
             uses it again by itself"
        }
        FaultKind::Bandwidth => {
            "set a smaller [camera] width and height, or format = \"mjpg\", or use a USB port of its own"
        }
        FaultKind::Format | FaultKind::NotCamera => {
            "name another camera in [camera] device (`rollcall cameras` lists them), or set [camera] format = \"auto\""
        }
        FaultKind::Damaged => {
            "change the cable or the USB port: the pictures are damaged on their way, or in a form that cannot be read"
        }
        FaultKind::Stalled | FaultKind::Failing => {
            "unplug the camera (or its power) and plug it in again; try another cable, another USB port, another camera"
        }
        FaultKind::ProgramMissing => {
            "install the program (docs/camera.md names its package), or correct [camera] command"
        }
        FaultKind::ProgramDenied => {
            "[camera] command must begin with a program that the user rollcall may run"
        }
        FaultKind::CommandEnded => {
            "the line after the exit status is the program's own: run the command by hand as the user rollcall; under systemd it \
             may need the drop-in of docs/camera.md"
        }
        FaultKind::CommandStuck => {
            "the program does not end, which is a fault of a driver: restart the device"
        }
        FaultKind::NotPictures => {
            "the output must be motion JPEG, or raw pictures of [camera] format, width, height and stride"
        }
        FaultKind::Unreachable => {
            "is the camera switched on and in the network, is the address in the URL right (`ping`, a browser)?"
        }
        FaultKind::Unauthorised => {
            "put the URL with the right user and password into [camera] url_file"
        }
        FaultKind::NoStream => {
            "the URL must be that of the camera's motion JPEG stream: docs/camera.md lists usual ones"
        }
    }
}

/// Returns what is wrong with the light or the lens, if anything.
fn explain_exposure(exposure: &Exposure) -> Option<CheckResult> {
    const FEWER: &str = "faces are missed: people who pass may not be recorded";
    let (words, remedy) = match exposure.unfit()? {
        ExposureFlaw::Dark => (
            format!("the picture is dark (brightness {:.0} of 255)", exposure.luma),
            "switch a light on, remove any cover from the lens, point it away from windows; docs/camera.md explains exposure",
        ),
        ExposureFlaw::Bright => (
            format!("the picture is too bright (brightness {:.0} of 255)", exposure.luma),
            "point the camera away from lamp, window or sun; [camera] auto_exposure = \"on\"",
        ),
        ExposureFlaw::Blank => (
            "the picture shows nothing".to_owned(),
            "is there a cover, a film or a sticker on the lens, or a bare wall before it? `rollcall snapshot` shows the picture",
        ),
        ExposureFlaw::Blurred => (
            format!("the picture is blurred (sharpness {:.2}; 0.5 is usual)", exposure.sharpness),
            "wipe the lens with a soft cloth, remove any film, turn the focus ring; `rollcall snapshot` shows the picture",
        ),
    };
    Some(CheckResult::warning(words, FEWER, remedy))
}

/// Frames and time that a camera needs to find the right exposure (a guess).
const SETTLED_FRAMES: usize = 10;
const SETTLED_AFTER: Duration = Duration::from_millis(1500);
/// The longest wait for a picture.
const PICTURE_TIMEOUT: Duration = Duration::from_secs(8);

fn measure_exposure(camera: &mut dyn FrameSource) -> Result<Exposure, CameraFault> {
    let watch = Stopwatch::start();
    let mut frames = 0;
    let mut latest = None;
    let mut damage = None;
    while watch.elapsed() < PICTURE_TIMEOUT {
        match camera.next() {
            Ok(Next::Frame(frame)) => {
                frames += 1;
                // A replay has its exposure already, and its first picture is as good as any.
                let settled = frames >= SETTLED_FRAMES && watch.elapsed() >= SETTLED_AFTER;
                if settled || matches!(frame.when, crate::camera::FrameTime::Media(_)) {
                    match frame.pixels.full() {
                        Ok(picture) => return Ok(Exposure::of(picture)),
                        Err(error) => damage = Some(error.to_string()),
                    }
                } else {
                    latest = Some(frame);
                }
            }
            Ok(Next::Nothing) => {}
            Ok(Next::End) => {
                return Err(CameraFault::new(FaultKind::Damaged, "the replay has no picture"));
            }
            Err(CameraError::Damaged { why }) => damage = Some(why),
            Err(CameraError::Lost(fault)) => return Err(fault),
            Err(other) => return Err(CameraFault::new(FaultKind::Damaged, error_chain(&other))),
        }
    }
    // A slow camera's only frame is better than none.
    let exposure = latest.and_then(|frame| frame.pixels.full().ok().map(Exposure::of));
    if let Some(exposure) = exposure {
        return Ok(exposure);
    }
    if let Some(why) = damage {
        return Err(unreadable_fault(PICTURE_TIMEOUT, &why));
    }
    let reason = format!("stalled: no picture in {} s", PICTURE_TIMEOUT.as_secs());
    Err(CameraFault::new(FaultKind::Stalled, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_camera_fault_has_its_remedy() {
        for (kind, part) in [
            (FaultKind::Denied, "usermod"),
            (FaultKind::Busy, "fuser"),
            (FaultKind::Missing, "rollcall cameras"),
            (FaultKind::Absent, "plug the camera in"),
            (FaultKind::Unplugged, "cable"),
            (FaultKind::Format, "[camera] format"),
            (FaultKind::NotCamera, "[camera] device"),
            (FaultKind::Damaged, "cable"),
            (FaultKind::Bandwidth, "width"),
            (FaultKind::Stalled, "another camera"),
            (FaultKind::ProgramMissing, "install"),
            (FaultKind::ProgramDenied, "may run"),
            (FaultKind::CommandEnded, "drop-in"),
            (FaultKind::CommandStuck, "restart the device"),
            (FaultKind::NotPictures, "motion JPEG"),
            (FaultKind::Unreachable, "ping"),
            (FaultKind::Unauthorised, "url_file"),
            (FaultKind::NoStream, "URL"),
        ] {
            let result = explain_with(&CameraFault::new(kind, "why"), None);
            assert!(result.remedy.contains(part), "{kind:?}: {}", result.remedy);
            assert_eq!(result.words, "why");
        }
        let absent = CameraFault::new(FaultKind::Absent, "there is no camera");
        let result = explain_with(&absent, Some(Preset::Rpicam));
        assert!(result.remedy.contains("preset = \"rpicam\""), "{}", result.remedy);
    }
}

//! The camera: whether it gives a picture, and whether faces could be recognised in it.

use std::io::BufRead as _;
use std::time::Duration;

use crate::app::watch::Question;
use crate::camera::replay::Replay;
use crate::camera::v4l2::V4l2Camera;
use crate::camera::{CameraError, FrameSource, Next};
use crate::cli::doctor::Place;
use crate::cli::doctor::finding::Verdict;
use crate::cli::watch;
use crate::clock::Stopwatch;
use crate::config::{CameraSettings, Settings};
use crate::recognise::exposure::{Exposure, Unfit};

const NOBODY: &str = "nobody is recorded at this door until there is a picture; people who pass now are missing from the record";

pub fn check(place: &Place) -> Verdict {
    let settings = &place.settings;
    // The daemon has the camera to itself: what it sees, only it can say.
    if let Some(state) = place.told("/camera/state").and_then(|it| it.as_str()) {
        return of_daemon(place, state);
    }
    verdict(&settings.camera)
}

/// Without a daemon: the camera itself is asked. Also what `rollcall setup` says.
pub fn verdict(camera: &CameraSettings) -> Verdict {
    match camera {
        CameraSettings::None => Verdict::warning(
            "none configured",
            "nobody is recorded at this door; only photographs sent by command are recognised",
            "[camera] source = \"v4l2\" in config.toml, or `rollcall setup`",
        ),
        CameraSettings::Replay { replay, .. } => {
            let seen = Replay::open(replay.clone())
                .map_err(words)
                .and_then(|mut it| first_picture(&mut it));
            match seen {
                Ok(exposure) => exposed(&exposure).unwrap_or_else(|| {
                    Verdict::warning(
                        "a replay stands in for a camera",
                        "what is recorded is the recording, not the door",
                        "[camera] source = \"v4l2\" in config.toml where there is a camera",
                    )
                }),
                Err(why) => Verdict::fault(why, NOBODY, "check [camera] path in config.toml"),
            }
        }
        CameraSettings::V4l2(settings) => {
            let node = match settings.examine() {
                Ok(node) => node,
                Err(reason) => return lost(&reason),
            };
            match first_picture(&mut V4l2Camera::new(settings.clone())) {
                Ok(exposure) => exposed(&exposure).unwrap_or_else(|| {
                    Verdict::good(format!(
                        "{} gives pictures of fitting light; `rollcall cameras` tells what it can",
                        node.display()
                    ))
                }),
                Err(reason) => lost(&reason),
            }
        }
    }
}

fn of_daemon(place: &Place, state: &str) -> Verdict {
    match (state, &place.settings.camera) {
        ("streaming", _) => match place_exposure(&place.settings) {
            Some(exposure) => exposed(&exposure).unwrap_or_else(|| {
                Verdict::good("the daemon gets pictures of fitting light (`rollcall watch`)")
            }),
            None => Verdict::good("the daemon gets pictures (`rollcall watch`)"),
        },
        ("lost", CameraSettings::V4l2(camera)) => match camera.examine() {
            Ok(_) => lost("it is there, but gives no usable picture"),
            Err(reason) => lost(&reason),
        },
        ("lost", _) => lost("it gives no picture"),
        (_, CameraSettings::Replay { .. }) => Verdict::warning(
            "the replay has ended",
            "nobody is recorded until the daemon is started again",
            "[camera] source = \"v4l2\" where there is a camera",
        ),
        (_, camera) => verdict(camera),
    }
}

/// What the running daemon's camera sees, without the picture.
fn place_exposure(settings: &Settings) -> Option<Exposure> {
    let mut answer = watch::ask(settings, Question::Exposure).ok()?;
    answer.get_ref().set_read_timeout(Some(PATIENCE)).ok()?;
    let mut line = String::new();
    answer.read_line(&mut line).ok()?;
    serde_json::from_str(&line).ok()
}

/// In a caretaker's words, by the reason that the camera module gives.
fn lost(reason: &str) -> Verdict {
    let has = |part: &str| reason.contains(part);
    let remedy = if has("permission denied") {
        "sudo usermod -aG video rollcall, then sudo systemctl restart rollcall (or run doctor with sudo)"
    } else if has("another program") || has("Device or resource busy") {
        "end the other program that shows the camera (a browser, a video call, a second rollcall); `sudo fuser -v /dev/video*` \
         names it"
    } else if has("no camera of that name") {
        "plug the camera in; if it is, `rollcall cameras` lists what is connected, and [camera] device in config.toml names one of them"
    } else if has("there is no camera") || has("unplugged") {
        "plug the camera in, try its cable and another USB port; `rollcall cameras` lists what is connected. The daemon takes it \
         back by itself"
    } else if has("no room for this format") {
        "set a smaller [camera] width and height, or format = \"mjpg\", or use a USB port of its own"
    } else if has("format refused") || has("several planes") || has("is no camera") {
        "name another camera in [camera] device (`rollcall cameras` lists them), or set [camera] format = \"auto\""
    } else if has("damaged") {
        "change the cable or the USB port: the pictures are damaged on their way"
    } else {
        "unplug the camera and plug it in again; try another cable, another USB port, another camera"
    };
    Verdict::fault(reason, NOBODY, remedy)
}

/// What is wrong with the light or the lens; none when nothing is.
fn exposed(exposure: &Exposure) -> Option<Verdict> {
    const FEWER: &str = "faces are missed: whoever passes may not be recorded";
    let (words, remedy) = match exposure.unfit()? {
        Unfit::Dark => (
            format!("the picture is dark (brightness {:.0} of 255)", exposure.luma),
            "switch a light on, take a cover off the lens, point it away from windows; docs/camera.md has the exposure",
        ),
        Unfit::Bright => (
            format!("the picture is too bright (brightness {:.0} of 255)", exposure.luma),
            "point the camera away from lamp, window or sun; [camera] auto_exposure = \"on\"",
        ),
        Unfit::Blank => (
            "nothing can be told apart in the picture".to_owned(),
            "is there a cover, a film or a sticker on the lens, or does it look at a bare wall? `rollcall snapshot` shows it",
        ),
        Unfit::Blurred => (
            format!("the picture is blurred (sharpness {:.2}; 0.5 is usual)", exposure.sharpness),
            "wipe the lens with a soft cloth, take the film off, turn the focus ring; `rollcall snapshot` shows the picture",
        ),
    };
    Some(Verdict::warning(words, FEWER, remedy))
}

/// A camera needs some pictures until it has found the right exposure.
const SETTLED: usize = 10;
const SETTLED_AFTER: Duration = Duration::from_millis(1500);
/// The longest that a picture is waited for.
const PATIENCE: Duration = Duration::from_secs(8);

fn first_picture(camera: &mut dyn FrameSource) -> Result<Exposure, String> {
    let watch = Stopwatch::start();
    let (mut frames, mut seen, mut damage) = (0, None, None);
    while watch.elapsed() < PATIENCE {
        match camera.next() {
            Ok(Next::Frame(frame)) => {
                frames += 1;
                // A replay has its exposure already, and its first picture is as good as any.
                let settled = frames >= SETTLED && watch.elapsed() >= SETTLED_AFTER;
                if settled || matches!(frame.when, crate::camera::When::At(_)) {
                    match frame.pixels.full() {
                        Ok(picture) => return Ok(Exposure::of(picture)),
                        Err(error) => damage = Some(error.to_string()),
                    }
                } else {
                    seen = Some(frame);
                }
            }
            Ok(Next::Nothing) => {}
            Ok(Next::End) => return Err("the replay has no picture".into()),
            Err(CameraError::Damaged { why }) => damage = Some(why),
            Err(CameraError::Lost { reason }) => return Err(reason),
            Err(other) => return Err(words(other)),
        }
    }
    // A slow camera's only picture is better than none.
    let exposure = seen.and_then(|frame| frame.pixels.full().ok().map(Exposure::of));
    exposure.ok_or_else(|| match damage {
        Some(why) => format!("nothing but damaged pictures in {} s: {why}", PATIENCE.as_secs()),
        None => format!("stalled: no picture in {} s", PATIENCE.as_secs()),
    })
}

fn words(error: CameraError) -> String {
    format!("{:#}", anyhow::Error::new(error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_has_its_remedy() {
        for (reason, remedy) in [
            (
                "permission denied: the daemon must be in the group video (Permission denied)",
                "usermod",
            ),
            ("another program uses the camera (Device or resource busy (os error 16))", "fuser"),
            ("there is no camera of that name", "rollcall cameras"),
            ("there is no camera", "plug the camera in"),
            ("unplugged (No such device (os error 19))", "cable"),
            ("format refused: the camera has H264, wanted is MJPG", "[camera] format"),
            ("nothing but damaged pictures for 4000 ms, the last: x", "cable"),
            ("the USB port has no room for this format: choose a smaller size", "width"),
            ("stalled: no picture for 4000 ms", "another camera"),
        ] {
            let verdict = lost(reason);
            assert!(verdict.remedy.contains(remedy), "{reason}: {}", verdict.remedy);
            assert!(!verdict.means.is_empty());
        }
    }
}

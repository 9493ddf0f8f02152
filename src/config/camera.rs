//! The section `[camera]`.

use std::path::Path;
use std::time::Duration;

use crate::camera::http_stream::HttpSettings;
use crate::camera::pipe::PipeSettings;
use crate::camera::replay::ReplaySettings;
use crate::camera::v4l2::V4l2Settings;
use crate::camera::v4l2::controls::{ControlSettings, PowerLine};
use crate::camera::v4l2::find::CameraChoice;
use crate::camera::view::{Area, Turn, View};
use crate::config::camera_stream::{check_http_stream, check_pipe};
use crate::config::checks::{ConfigError, at_least_a_second, invalid, resolve_path, within};
use crate::config::raw::{RawCamera, RawFormat, RawPace, RawSource};

#[derive(Clone, Debug)]
pub enum CameraSettings {
    None,
    Replay { replay: ReplaySettings, pace: RawPace },
    V4l2(V4l2Settings),
    Pipe(PipeSettings),
    Http(HttpSettings),
}

pub(super) fn check_camera(raw: &RawCamera, folder: &Path) -> Result<CameraSettings, ConfigError> {
    let fps = within("[camera] fps", raw.fps, 0.1, 240.0)?;
    // Checked whatever the source is: a mistake in the mask must not wait for the day when the
    // camera is connected.
    let view = check_view(raw)?;
    let v4l2 = check_v4l2(raw)?;
    match raw.source {
        RawSource::None => Ok(CameraSettings::None),
        RawSource::Replay => {
            let path = resolve_path(folder, &raw.path).ok_or_else(|| {
                invalid("[camera] path", "is empty; source = \"replay\" needs something to play")
            })?;
            let RawCamera { show, gap, repeat, pace, .. } = *raw;
            Ok(CameraSettings::Replay {
                replay: ReplaySettings { path, fps, show, gap, repeat, view },
                pace,
            })
        }
        RawSource::V4l2 => {
            check_stall(raw)?;
            Ok(CameraSettings::V4l2(V4l2Settings { view, ..v4l2 }))
        }
        RawSource::Pipe => {
            check_stall(raw)?;
            Ok(CameraSettings::Pipe(check_pipe(raw, folder, &view)?))
        }
        RawSource::Http => {
            check_stall(raw)?;
            Ok(CameraSettings::Http(check_http_stream(raw, folder, view)?))
        }
    }
}

/// Otherwise a working camera would count as lost between two frames.
fn check_stall(raw: &RawCamera) -> Result<(), ConfigError> {
    let least = Duration::from_secs_f32(2.0 / raw.fps);
    if raw.stall_after < least {
        let why =
            format!("= {:?} is less than the time of two frames ({least:?})", raw.stall_after);
        return Err(invalid("[camera] stall_after", why));
    }
    Ok(())
}

fn check_view(raw: &RawCamera) -> Result<View, ConfigError> {
    let turn = match raw.rotate {
        0 => Turn::None,
        90 => Turn::Quarter,
        180 => Turn::Half,
        270 => Turn::ThreeQuarters,
        other => {
            return Err(invalid(
                "[camera] rotate",
                format!("= {other} is none of 0, 90, 180, 270"),
            ));
        }
    };
    let area = |key, edges: &[f32; 4]| {
        let why = "is not [left, top, right, bottom] in fractions of the picture, 0 to 1";
        Area::new(*edges).ok_or_else(|| invalid(key, format!("= {edges:?} {why}")))
    };
    within("[camera] mask", raw.mask.len(), 0, MASK_MAX)?;
    let mask =
        raw.mask.iter().map(|edges| area("[camera] mask", edges)).collect::<Result<_, _>>()?;
    Ok(View { turn, mirror: raw.mirror, mask, region: area("[camera] region", &raw.region)? })
}

/// Every sample of every frame is compared with each.
const MASK_MAX: usize = 32;

fn check_v4l2(raw: &RawCamera) -> Result<V4l2Settings, ConfigError> {
    let device = CameraChoice::parse(&raw.device).ok_or_else(|| {
        invalid("[camera] device", format!("= {:?} is no path and no name", raw.device))
    })?;
    let format = match raw.format {
        RawFormat::Auto => None,
        RawFormat::Mjpg => Some(*b"MJPG"),
        RawFormat::Yuyv => Some(*b"YUYV"),
        RawFormat::Nv12 => Some(*b"NV12"),
        RawFormat::I420 => Some(*b"YU12"),
        RawFormat::Grey => Some(*b"GREY"),
        RawFormat::Y8i => Some(*b"Y8I "),
        RawFormat::Y10 => Some(*b"Y10 "),
        RawFormat::Y12 => Some(*b"Y12 "),
    };
    Ok(V4l2Settings {
        device,
        format,
        width: within("[camera] width", raw.width, 64, 8192)?,
        height: within("[camera] height", raw.height, 64, 8192)?,
        fps: raw.fps,
        stall_after: at_least_a_second("[camera] stall_after", raw.stall_after)?,
        controls: check_controls(raw)?,
        view: View::default(),
    })
}

fn check_controls(raw: &RawCamera) -> Result<ControlSettings, ConfigError> {
    let number = |key, text: &str| match text {
        "" => Ok(None),
        text => text
            .parse()
            .map(Some)
            .map_err(|_| invalid(key, format!("= {text:?} is no whole number"))),
    };
    let auto_exposure = match raw.auto_exposure.as_str() {
        "" => None,
        "on" => Some(true),
        "off" => Some(false),
        other => {
            return Err(invalid(
                "[camera] auto_exposure",
                format!("= {other:?} is neither \"on\" nor \"off\""),
            ));
        }
    };
    let power_line = match raw.power_line.as_str() {
        "" => None,
        "off" => Some(PowerLine::Off),
        "50hz" => Some(PowerLine::Hz50),
        "60hz" => Some(PowerLine::Hz60),
        "auto" => Some(PowerLine::Auto),
        other => {
            let why = format!("= {other:?} is none of \"off\", \"50hz\", \"60hz\", \"auto\"");
            return Err(invalid("[camera] power_line", why));
        }
    };
    let exposure = check_exposure(&raw.exposure)?;
    if exposure.is_some() && auto_exposure != Some(false) {
        return Err(invalid("[camera] exposure", "has no effect unless auto_exposure = \"off\""));
    }
    let gain = number("[camera] gain", &raw.gain)?;
    let brightness = number("[camera] brightness", &raw.brightness)?;
    Ok(ControlSettings { auto_exposure, exposure, gain, brightness, power_line })
}

fn check_exposure(text: &str) -> Result<Option<Duration>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong =
        || invalid("[camera] exposure", format!("= {text:?} is no time from \"100us\" to \"10s\""));
    let time: humantime_serde::Serde<Duration> =
        toml::Value::from(text).try_into().map_err(|_: toml::de::Error| wrong())?;
    let time = time.into_inner();
    if (Duration::from_micros(100)..=Duration::from_secs(10)).contains(&time) {
        Ok(Some(time))
    } else {
        Err(wrong())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(keys: &str) -> Result<CameraSettings, ConfigError> {
        let raw: RawCamera = toml::from_str(keys).expect("keys of [camera]");
        check_camera(&raw, Path::new("/etc/rollcall"))
    }

    #[test]
    fn v4l2_camera_reads_all_keys() {
        let all = "source = \"v4l2\"\ndevice = \"usb-Maker-index0\"\nformat = \"yuyv\"\nwidth = 1280\nheight = 720\nfps = 7.5\n\
            stall_after = \"2s\"\nauto_exposure = \"off\"\nexposure = \"10ms\"\ngain = \"-3\"\npower_line = \"50hz\"\n\
            rotate = 180\nmirror = true\nmask = [[0.0, 0.0, 0.5, 1.0]]\nregion = [0.0, 0.25, 1.0, 1.0]";
        let CameraSettings::V4l2(camera) = set(all).unwrap() else { panic!("it is a camera") };
        let expected = V4l2Settings {
            device: CameraChoice::Stable("usb-Maker-index0".into()),
            format: Some(*b"YUYV"),
            width: 1280,
            height: 720,
            fps: 7.5,
            stall_after: Duration::from_secs(2),
            controls: ControlSettings {
                auto_exposure: Some(false),
                exposure: Some(Duration::from_millis(10)),
                gain: Some(-3),
                brightness: None,
                power_line: Some(PowerLine::Hz50),
            },
            view: View {
                turn: Turn::Half,
                mirror: true,
                mask: vec![Area::new([0.0, 0.0, 0.5, 1.0]).unwrap()],
                region: Area::new([0.0, 0.25, 1.0, 1.0]).unwrap(),
            },
        };
        assert_eq!(camera, expected);
    }

    #[test]
    fn stall_limit_exceeds_frame_interval() {
        let v4l2 = |keys: &str| set(&format!("source = \"v4l2\"\n{keys}"));
        for slow in ["fps = 0.25", "fps = 0.1", "fps = 1.0\nstall_after = \"1s\""] {
            let message = v4l2(slow).expect_err(slow).to_string();
            assert!(message.contains("[camera] stall_after"), "{slow}: {message}");
        }
        for good in
            ["fps = 0.5", "fps = 0.1\nstall_after = \"20s\"", "fps = 240.0\nstall_after = \"1s\""]
        {
            assert!(v4l2(good).is_ok(), "{good}");
        }
        assert!(set("fps = 0.1").is_ok(), "the pace of a replay has no stall");
        let message = set("source = \"pipe\"\nfps = 0.1").unwrap_err().to_string();
        assert!(message.contains("[camera] stall_after"), "{message}");
    }

    #[test]
    fn invalid_camera_key_is_rejected_by_name() {
        for (keys, named) in [
            ("rotate = 45", "[camera] rotate"),
            ("mask = [[0.5, 0.0, 0.2, 1.0]]", "[camera] mask"),
            ("region = [0.0, 0.0, 1.0, 1.5]", "[camera] region"),
            ("region = [0.0, 0.0, nan, 1.0]", "[camera] region"),
            ("device = \"../video0\"", "[camera] device"),
            ("width = 9000", "[camera] width"),
            ("stall_after = \"1ms\"", "[camera] stall_after"),
            ("gain = \"much\"", "[camera] gain"),
            ("auto_exposure = \"maybe\"", "[camera] auto_exposure"),
            ("exposure = \"10ms\"", "[camera] exposure"),
            ("auto_exposure = \"off\"\nexposure = \"1h\"", "[camera] exposure"),
            ("auto_exposure = \"off\"\nexposure = \"soon\"", "[camera] exposure"),
            ("power_line = \"55hz\"", "[camera] power_line"),
        ] {
            let message = set(keys).expect_err(keys).to_string();
            assert!(message.contains(named), "{keys}: {message}");
        }
    }
}

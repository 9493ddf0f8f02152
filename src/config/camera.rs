//! `[camera]`, checked.

use std::path::Path;
use std::time::Duration;

use crate::camera::replay::ReplaySettings;
use crate::camera::v4l2::V4l2Settings;
use crate::camera::v4l2::controls::{ControlSettings, PowerLine};
use crate::camera::v4l2::find::Choice;
use crate::camera::view::{Area, Turn, View};
use crate::config::raw::{RawCamera, RawFormat, RawSource};
use crate::config::{CameraSettings, ConfigError, at_least_a_second, count, path, value, within};

pub(super) fn camera(raw: &RawCamera, folder: &Path) -> Result<CameraSettings, ConfigError> {
    let fps = within("[camera] fps", raw.fps, 0.1, 240.0)?;
    // Checked whatever the source is: a mistake in the mask must not wait for the day when the camera is connected.
    let (view, v4l2) = (view(raw)?, v4l2(raw)?);
    match raw.source {
        RawSource::None => Ok(CameraSettings::None),
        RawSource::Replay => {
            let path = path(folder, &raw.path)
                .ok_or_else(|| value("[camera] path", "is empty; source = \"replay\" needs something to play"))?;
            let RawCamera { show, gap, repeat, pace, .. } = *raw;
            Ok(CameraSettings::Replay { replay: ReplaySettings { path, fps, show, gap, repeat, view }, pace })
        }
        RawSource::V4l2 => Ok(CameraSettings::V4l2(V4l2Settings { view, ..v4l2 })),
    }
}

fn view(raw: &RawCamera) -> Result<View, ConfigError> {
    let turn = match raw.rotate {
        0 => Turn::None,
        90 => Turn::Quarter,
        180 => Turn::Half,
        270 => Turn::ThreeQuarters,
        other => return Err(value("[camera] rotate", format!("= {other} is none of 0, 90, 180, 270"))),
    };
    let area = |key, edges: &[f32; 4]| {
        let why = "is not [left, top, right, bottom] in fractions of the picture, 0 to 1";
        Area::new(*edges).ok_or_else(|| value(key, format!("= {edges:?} {why}")))
    };
    count("[camera] mask", raw.mask.len(), 0, MASK_MAX)?;
    let mask = raw.mask.iter().map(|edges| area("[camera] mask", edges)).collect::<Result<_, _>>()?;
    Ok(View { turn, mirror: raw.mirror, mask, region: area("[camera] region", &raw.region)? })
}

/// Each is looked through for each sample of each frame.
const MASK_MAX: usize = 32;

fn v4l2(raw: &RawCamera) -> Result<V4l2Settings, ConfigError> {
    let device = Choice::parse(&raw.device)
        .ok_or_else(|| value("[camera] device", format!("= {:?} is no path and no name", raw.device)))?;
    let format = match raw.format {
        RawFormat::Auto => None,
        RawFormat::Mjpg => Some(*b"MJPG"),
        RawFormat::Yuyv => Some(*b"YUYV"),
        RawFormat::Nv12 => Some(*b"NV12"),
        RawFormat::Grey => Some(*b"GREY"),
    };
    Ok(V4l2Settings {
        device,
        format,
        width: count("[camera] width", raw.width, 64, 8192)?,
        height: count("[camera] height", raw.height, 64, 8192)?,
        fps: raw.fps,
        stall_after: at_least_a_second("[camera] stall_after", raw.stall_after)?,
        controls: controls(raw)?,
        view: View::default(),
    })
}

fn controls(raw: &RawCamera) -> Result<ControlSettings, ConfigError> {
    let number = |key, text: &str| match text {
        "" => Ok(None),
        text => text.parse().map(Some).map_err(|_| value(key, format!("= {text:?} is no whole number"))),
    };
    let auto_exposure = match raw.auto_exposure.as_str() {
        "" => None,
        "on" => Some(true),
        "off" => Some(false),
        other => return Err(value("[camera] auto_exposure", format!("= {other:?} is neither \"on\" nor \"off\""))),
    };
    let power_line = match raw.power_line.as_str() {
        "" => None,
        "off" => Some(PowerLine::Off),
        "50hz" => Some(PowerLine::Hz50),
        "60hz" => Some(PowerLine::Hz60),
        "auto" => Some(PowerLine::Auto),
        other => {
            let why = format!("= {other:?} is none of \"off\", \"50hz\", \"60hz\", \"auto\"");
            return Err(value("[camera] power_line", why));
        }
    };
    let exposure = exposure(&raw.exposure)?;
    if exposure.is_some() && auto_exposure != Some(false) {
        return Err(value("[camera] exposure", "has no effect unless auto_exposure = \"off\""));
    }
    let (gain, brightness) = (number("[camera] gain", &raw.gain)?, number("[camera] brightness", &raw.brightness)?);
    Ok(ControlSettings { auto_exposure, exposure, gain, brightness, power_line })
}

fn exposure(text: &str) -> Result<Option<Duration>, ConfigError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || value("[camera] exposure", format!("= {text:?} is no time from \"100us\" to \"10s\""));
    let time: humantime_serde::Serde<Duration> =
        toml::Value::from(text).try_into().map_err(|_: toml::de::Error| wrong())?;
    let time = time.into_inner();
    if (Duration::from_micros(100)..=Duration::from_secs(10)).contains(&time) { Ok(Some(time)) } else { Err(wrong()) }
}

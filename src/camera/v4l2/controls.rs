//! The controls of a camera that concern light: exposure, gain, brightness, and the frequency of the
//! lamps.
//!
//! A control that the camera lacks, or a value outside its range, is a warning that names the
//! range: a door with a picture that is a little dark is better than a door with none.

use std::time::Duration;

use moq_v4l::sys;

use crate::camera::v4l2::device::{Control, Device};

/// `None` leaves what the camera has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ControlSettings {
    pub auto_exposure: Option<bool>,
    pub exposure: Option<Duration>,
    pub gain: Option<i32>,
    pub brightness: Option<i32>,
    pub power_line: Option<PowerLine>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerLine {
    Off,
    Hz50,
    Hz60,
    Auto,
}

/// Of the menu `EXPOSURE_AUTO`.
const EXPOSURE_AUTO: i32 = 0;
const EXPOSURE_MANUAL: i32 = 1;
/// What webcams call automatic: the lens has one aperture, and the time follows the light.
const EXPOSURE_APERTURE_PRIORITY: i32 = 3;

/// Sets what is set; what could not be is returned in words.
pub fn apply(device: &Device, settings: &ControlSettings) -> Vec<String> {
    let mut faults = Vec::new();
    let mut set = |name: &str, id: u32, values: &[i32]| {
        let mut failed = None;
        for value in values {
            match set_one(device, id, *value) {
                Ok(()) => return,
                Err(why) => failed = Some(why),
            }
        }
        faults.extend(failed.map(|why| format!("{name}: {why}")));
    };
    if let Some(on) = settings.auto_exposure {
        let values: &[i32] =
            if on { &[EXPOSURE_APERTURE_PRIORITY, EXPOSURE_AUTO] } else { &[EXPOSURE_MANUAL] };
        set("auto_exposure", sys::V4L2_CID_EXPOSURE_AUTO, values);
    }
    if let Some(time) = settings.exposure {
        // In units of 100 microseconds.
        let units = i32::try_from(time.as_micros() / 100).unwrap_or(i32::MAX);
        set("exposure", sys::V4L2_CID_EXPOSURE_ABSOLUTE, &[units]);
    }
    if let Some(gain) = settings.gain {
        // Where the camera sets the gain by itself, it has to let go of it first.
        if device.control(sys::V4L2_CID_AUTOGAIN).is_some() {
            set("gain", sys::V4L2_CID_AUTOGAIN, &[0]);
        }
        set("gain", sys::V4L2_CID_GAIN, &[gain]);
    }
    if let Some(brightness) = settings.brightness {
        set("brightness", sys::V4L2_CID_BRIGHTNESS, &[brightness]);
    }
    if let Some(power_line) = settings.power_line {
        set("power_line", sys::V4L2_CID_POWER_LINE_FREQUENCY, &[power_line as i32]);
    }
    faults
}

fn set_one(device: &Device, id: u32, value: i32) -> Result<(), String> {
    let Some(control) = device.control(id) else {
        return Err("the camera has no such control".into());
    };
    check(&control, value)?;
    device.set_control(id, value).map_err(|error| format!("the camera refuses {value}: {error}"))
}

fn check(control: &Control, value: i32) -> Result<(), String> {
    let Control { least, most, barred, .. } = control;
    if let Some(why) = barred {
        return Err(format!("cannot be set now: {why}"));
    }
    if !(*least..=*most).contains(&value) {
        return Err(format!("{value} is not within {least} to {most}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn out_of_range_value_names_range() {
        let control = Control {
            id: 1,
            name: "Gain".into(),
            least: 0,
            most: 100,
            step: 1,
            usual: 50,
            value: Some(50),
            barred: None,
        };
        assert_eq!(check(&control, 100), Ok(()));
        assert_eq!(check(&control, 101).unwrap_err(), "101 is not within 0 to 100");
        let barred = Control { barred: Some("another control sets it"), ..control };
        assert_eq!(check(&barred, 1).unwrap_err(), "cannot be set now: another control sets it");
    }

    #[test]
    fn power_line_values_match_kernel() {
        assert_eq!(
            [PowerLine::Off, PowerLine::Hz50, PowerLine::Hz60, PowerLine::Auto].map(|it| it as i32),
            [0, 1, 2, 3]
        );
    }
}

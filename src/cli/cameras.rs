//! `rollcall cameras`: lists the connected cameras and what they can do. Changes nothing.

use std::fmt::Write as _;

use serde_json::json;

use crate::camera::pipe::presets::Preset;
use crate::camera::v4l2::device::{Control, FrameSizes};
use crate::camera::v4l2::find::{self, CameraChoice, Described, Mode};
use crate::cli::table;
use crate::config::Settings;
use crate::config::camera::CameraSettings;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall cameras --json")]
pub struct Args {
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let cameras = find::describe_all();
    // Without a configured camera, the one that "auto" would choose is marked.
    let choice = match &settings.camera {
        CameraSettings::V4l2(camera) => camera.device.clone(),
        _ => CameraChoice::First,
    };
    let chosen = choice.resolve().ok().and_then(|path| path.canonicalize().ok());
    let is_chosen = |camera: &Described| chosen.as_ref() == Some(&camera.node);
    if args.json {
        let list: Vec<_> =
            cameras.iter().map(|camera| json_of(camera, is_chosen(camera))).collect();
        println!("{}", json!({ "cameras": list }));
        return Ok(());
    }
    for camera in &cameras {
        print!("{}", text_of(camera, is_chosen(camera)));
    }
    if cameras.is_empty() {
        println!("No camera is connected (/sys/class/video4linux has no capture device).");
        if let Some(preset) = find::sensor_preset() {
            println!("There is a sensor on a ribbon cable: {}", preset.advice());
        }
    } else if let (CameraSettings::V4l2(_), None) = (&settings.camera, &chosen) {
        println!("[camera] device names none of these cameras.");
    }
    Ok(())
}

fn text_of(camera: &Described, chosen: bool) -> String {
    let mut text = String::new();
    let mark = if chosen { "  ◀ [camera] device" } else { "" };
    let name = if camera.card.is_empty() { "(unknown)" } else { &camera.card };
    // Writing to a string cannot fail.
    writeln!(text, "{}  {name}{mark}", camera.node.display()).ok();
    if !camera.bus.is_empty() {
        writeln!(text, "  {} at {}", camera.driver, camera.bus).ok();
    }
    if let Some(stable) = &camera.stable {
        writeln!(text, "  device = \"{stable}\"").ok();
    }
    if let Some(why) = &camera.unusable {
        writeln!(text, "  cannot be used directly: {why}").ok();
    }
    if let Some(preset) = camera.preset {
        writeln!(text, "  used by {}", preset.advice()).ok();
    }
    let modes: Vec<Vec<String>> = camera.modes.iter().flat_map(mode_rows).collect();
    if !modes.is_empty() {
        text.push_str(&indent_lines(&table::render(
            &["format", "size", "frames per second"],
            &modes,
        )));
    }
    let controls: Vec<Vec<String>> = camera.controls.iter().map(control_row).collect();
    if !controls.is_empty() {
        text.push_str(&indent_lines(&table::render(
            &["control", "now", "range", "usual", ""],
            &controls,
        )));
    }
    text.push('\n');
    text
}

fn indent_lines(text: &str) -> String {
    text.lines().flat_map(|line| ["  ", line, "\n"]).collect()
}

fn mode_rows(mode: &Mode) -> Vec<Vec<String>> {
    let format =
        if mode.known { mode.format.clone() } else { format!("{} (not supported)", mode.format) };
    let rates = |rates: &[f32]| {
        rates
            .iter()
            .map(|fps| format!("{fps:.4}").trim_end_matches(['0']).trim_end_matches('.').to_owned())
            .collect::<Vec<_>>()
            .join(" ")
    };
    mode.sizes
        .iter()
        .map(|(size, fps)| vec![format.clone(), format_size(*size), rates(fps)])
        .collect()
}

fn format_size(size: FrameSizes) -> String {
    match size {
        FrameSizes::Listed(width, height) => format!("{width}x{height}"),
        FrameSizes::Range { least, most } => {
            format!("{}x{} to {}x{}", least.0, least.1, most.0, most.1)
        }
    }
}

fn control_row(control: &Control) -> Vec<String> {
    let step = if control.step > 1 { format!(" by {}", control.step) } else { String::new() };
    vec![
        control.name.clone(),
        control.value.map_or_else(String::new, |value| value.to_string()),
        format!("{} to {}{step}", control.least, control.most),
        control.usual.to_string(),
        control.barred.unwrap_or_default().to_owned(),
    ]
}

fn json_of(camera: &Described, chosen: bool) -> serde_json::Value {
    let sizes = |(size, fps): &(FrameSizes, Vec<f32>)| match size {
        FrameSizes::Listed(width, height) => json!({"width": width, "height": height, "fps": fps}),
        FrameSizes::Range { least, most } => {
            json!({"least": [least.0, least.1], "most": [most.0, most.1], "fps": fps})
        }
    };
    let modes: Vec<_> = camera
        .modes
        .iter()
        .map(|mode| {
            let sizes: Vec<_> = mode.sizes.iter().map(sizes).collect();
            json!({"format": mode.format, "known": mode.known, "sizes": sizes})
        })
        .collect();
    let controls: Vec<_> = camera
        .controls
        .iter()
        .map(|it| {
            json!({"name": it.name, "value": it.value, "least": it.least, "most": it.most, "step": it.step,
                "usual": it.usual, "barred": it.barred})
        })
        .collect();
    json!({
        "node": camera.node, "stable": camera.stable, "card": camera.card, "driver": camera.driver, "bus": camera.bus,
        "chosen": chosen, "unusable": camera.unusable, "modes": modes, "controls": controls,
        "preset": camera.preset.map(Preset::name), "preset_installed": camera.preset.map(Preset::is_installed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn camera_listing_has_text_and_json() {
        let control = Control {
            id: 1,
            name: "Gain".into(),
            least: 0,
            most: 100,
            step: 5,
            usual: 50,
            value: Some(45),
            barred: Some("another control sets it"),
        };
        let camera = Described {
            node: "/dev/video2".into(),
            stable: Some("usb-Maker_Cam-video-index0".into()),
            card: "Maker Cam".into(),
            driver: "uvcvideo".into(),
            bus: "usb-1".into(),
            unusable: None,
            preset: None,
            modes: vec![
                Mode {
                    format: "MJPG".into(),
                    known: true,
                    sizes: vec![(FrameSizes::Listed(640, 480), vec![30.0, 7.5])],
                },
                Mode {
                    format: "H264".into(),
                    known: false,
                    sizes: vec![(FrameSizes::Range { least: (32, 32), most: (64, 48) }, vec![])],
                },
            ],
            controls: vec![control],
        };
        let text = text_of(&camera, true);
        for part in [
            "/dev/video2  Maker Cam  ◀ [camera] device",
            "device = \"usb-Maker_Cam-video-index0\"",
            "MJPG                  640x480         30 7.5",
            "H264 (not supported)  32x32 to 64x48",
            "Gain     45   0 to 100 by 5  50     another control sets it",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("preset"), "{text}");
        let sensor = Described { preset: Some(Preset::Rpicam), ..camera.clone() };
        let text = text_of(&sensor, false);
        assert!(text.contains("preset = \"rpicam\""), "{text}");
        assert_eq!(json_of(&sensor, false)["preset"], "rpicam");
        let json = json_of(&camera, false);
        assert_eq!((&json["node"], &json["chosen"]), (&json!("/dev/video2"), &json!(false)));
        assert_eq!(
            json["modes"][0]["sizes"][0],
            json!({"width": 640, "height": 480, "fps": [30.0, 7.5]})
        );
    }
}

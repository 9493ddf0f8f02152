//! Which camera: by path, by its stable name, or the first that can be used; and what each can do,
//! for the setup.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::camera::fault::{CameraFault, FaultKind};
use crate::camera::pipe::presets::Preset;
use crate::camera::v4l2::device::{Control, Device, FourCc, FrameSizes, fourcc_name};

/// How the configuration names a camera.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CameraChoice {
    /// The first that captures in a format we read.
    First,
    /// A device node or a link to one.
    Path(PathBuf),
    /// A name below `/dev/v4l/by-id` or `by-path`, which udev makes and which stays the same
    /// wherever the camera comes up.
    Stable(String),
}

/// Formats that we read, the best first: motion JPEG fits through a USB port at any size, YUYV has
/// colours in every pixel pair, the formats from GREY on have none.
pub const FORMATS: [FourCc; 10] = [
    *b"MJPG", *b"YUYV", *b"NV12", *b"YU12", *b"GREY", *b"Y8I ", *b"Y10P", *b"Y12P", *b"Y10 ",
    *b"Y12 ",
];

/// The formats that we read, for messages.
pub fn format_names() -> String {
    FORMATS.map(fourcc_name).join(", ")
}

const SYSFS: &str = "/sys/class/video4linux";
const STABLE: [&str; 2] = ["/dev/v4l/by-id", "/dev/v4l/by-path"];

impl CameraChoice {
    /// `None` when a name would lead out of its folder.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "auto" => Some(Self::First),
            path if path.starts_with('/') => {
                (!path.contains('\0')).then(|| Self::Path(path.into()))
            }
            name => (!name.contains(['/', '\0'])).then(|| Self::Stable(name.to_owned())),
        }
    }

    /// The number of a plain node changes when the camera comes back while somebody still holds the
    /// old one.
    pub fn may_change_number(&self) -> bool {
        matches!(self, Self::Path(path) if path.parent() == Some(Path::new("/dev")))
    }

    /// The node to open now.
    pub fn resolve(&self) -> Result<PathBuf, NotFound> {
        match self {
            Self::Path(path) if path.exists() => Ok(path.clone()),
            Self::Path(_) => Err(NotFound::Missing),
            Self::Stable(name) => {
                let found = STABLE
                    .iter()
                    .map(|folder| Path::new(folder).join(name))
                    .find(|path| path.exists());
                found.ok_or(NotFound::Missing)
            }
            Self::First => first(),
        }
    }
}

/// Why no camera can be opened. The texts are reasons in events: no path, which may bear a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    #[error("there is no camera of that name")]
    Missing,
    #[error("there is no camera")]
    None,
    #[error("permission denied: the daemon must be in the group video")]
    Denied,
}

impl From<NotFound> for CameraFault {
    fn from(error: NotFound) -> Self {
        let kind = match error {
            NotFound::Missing => FaultKind::Missing,
            NotFound::None => FaultKind::Absent,
            NotFound::Denied => FaultKind::Denied,
        };
        Self::new(kind, error.to_string())
    }
}

fn first() -> Result<PathBuf, NotFound> {
    let mut denied = false;
    for node in capture_nodes() {
        match Device::open(&node) {
            Ok(device) => {
                let captures = device
                    .capability()
                    .is_ok_and(|it| it.captures() && !it.needs_media_controller());
                if captures && device.formats().iter().any(|format| FORMATS.contains(format)) {
                    return Ok(node);
                }
            }
            Err(error) => denied |= error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
    Err(if denied { NotFound::Denied } else { NotFound::None })
}

/// The first node of each device, in the order of their numbers: a UVC camera has a second one for
/// metadata.
fn capture_nodes() -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(SYSFS) else {
        return Vec::new();
    };
    let mut numbers: Vec<u32> = entries
        .flatten()
        .filter(|entry| {
            fs::read_to_string(entry.path().join("index")).is_ok_and(|index| index.trim() == "0")
        })
        .filter_map(|entry| entry.file_name().to_str()?.strip_prefix("video")?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers.into_iter().map(|number| PathBuf::from(format!("/dev/video{number}"))).collect()
}

/// A camera as `rollcall cameras` shows it.
#[derive(Clone, Debug)]
pub struct Described {
    pub node: PathBuf,
    /// Its stable name, where udev made one.
    pub stable: Option<String>,
    pub card: String,
    pub driver: String,
    pub bus: String,
    /// Why it cannot be used, if so.
    pub unusable: Option<String>,
    /// The ready command that reads it instead.
    pub preset: Option<Preset>,
    pub modes: Vec<Mode>,
    pub controls: Vec<Control>,
}

#[derive(Clone, Debug)]
pub struct Mode {
    pub format: String,
    /// Whether we read the format.
    pub known: bool,
    pub sizes: Vec<(FrameSizes, Vec<f32>)>,
}

/// Every device that captures, and those that would if we might open them.
pub fn describe_all() -> Vec<Described> {
    capture_nodes().into_iter().filter_map(describe).collect()
}

/// The ready command for a sensor that is connected by a ribbon cable and needs libcamera, if there
/// is one. The kernel makes the node when it has found the sensor. Needs no right to open it.
pub fn sensor_preset() -> Option<Preset> {
    sensor_preset_below(Path::new(SYSFS))
}

fn sensor_preset_below(sysfs: &Path) -> Option<Preset> {
    let nodes = fs::read_dir(sysfs).ok()?.flatten();
    let presets = nodes.filter_map(|node| preset_of_node(&node.path()));
    // That of a Raspberry Pi needs less on the way.
    presets.min_by_key(|preset| *preset != Preset::Rpicam)
}

/// Of a node's folder below sysfs.
fn preset_of_node(folder: &Path) -> Option<Preset> {
    let name = fs::read_to_string(folder.join("name")).ok()?;
    let begins = |names: &[&str]| names.iter().any(|it| name.starts_with(it));
    if begins(&RASPBERRY_PI_RECEIVERS) {
        Some(Preset::Rpicam)
    } else if begins(&OTHER_RECEIVERS) {
        Some(Preset::Gstreamer)
    } else {
        None
    }
}

/// How the kernel's drivers name the nodes of receivers on a Raspberry Pi: 1 to 4, and 5.
const RASPBERRY_PI_RECEIVERS: [&str; 2] = ["unicam", "rp1-cfe"];
/// Of other machines that libcamera supports (its `src/libcamera/pipeline`).
const OTHER_RECEIVERS: [&str; 6] =
    ["rkisp1", "Intel IPU", "ipu3-cio2", "mxc_isi", "msm_vfe", "sun6i-csi"];

fn describe(node: PathBuf) -> Option<Described> {
    let stable = stable_name(&node);
    let preset = node.file_name().and_then(|it| preset_of_node(&Path::new(SYSFS).join(it)));
    let bare = |unusable: String| Described {
        node: node.clone(),
        stable: stable.clone(),
        card: String::new(),
        driver: String::new(),
        bus: String::new(),
        unusable: Some(unusable),
        preset,
        modes: Vec::new(),
        controls: Vec::new(),
    };
    let device = match Device::open(&node) {
        Ok(device) => device,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            return Some(bare(NotFound::Denied.to_string()));
        }
        Err(error) => return Some(bare(format!("it cannot be opened: {error}"))),
    };
    let capability = device.capability().ok()?;
    let modes: Vec<Mode> =
        device.formats().into_iter().map(|format| mode(&device, format)).collect();
    let needs_controller = capability.needs_media_controller();
    let preset = preset.or_else(|| needs_controller.then_some(Preset::Gstreamer));
    let unusable = if preset.is_some() {
        Some("it is a sensor behind an image processor, which libcamera sets up".to_owned())
    } else if !capability.captures() {
        return None; // An output, a radio, metadata: no camera.
    } else if modes.iter().any(|mode| mode.known) {
        None
    } else {
        Some(format!("it has none of the formats {}", format_names()))
    };
    let controls = device.controls();
    let card = capability.card;
    let driver = capability.driver;
    let bus = capability.bus;
    Some(Described { node, stable, card, driver, bus, unusable, preset, modes, controls })
}

fn mode(device: &Device, format: FourCc) -> Mode {
    let rates = |sizes: FrameSizes| {
        let (FrameSizes::Listed(width, height) | FrameSizes::Range { most: (width, height), .. }) =
            sizes;
        (sizes, device.rates(format, width, height))
    };
    let sizes = device.sizes(format).into_iter().map(rates).collect();
    Mode { format: fourcc_name(format), known: FORMATS.contains(&format), sizes }
}

/// The link below `/dev/v4l/by-id` that leads to the node.
fn stable_name(node: &Path) -> Option<String> {
    let links = fs::read_dir(STABLE[0]).ok()?.flatten();
    let leads_here =
        |link: &fs::DirEntry| fs::canonicalize(link.path()).is_ok_and(|target| target == node);
    links.into_iter().find(leads_here)?.file_name().into_string().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn camera_choice_has_three_forms() {
        assert_eq!(CameraChoice::parse("auto"), Some(CameraChoice::First));
        assert_eq!(CameraChoice::parse(""), Some(CameraChoice::First));
        assert_eq!(
            CameraChoice::parse("/dev/video2"),
            Some(CameraChoice::Path("/dev/video2".into()))
        );
        assert_eq!(
            CameraChoice::parse("usb-Maker_Cam-index0"),
            Some(CameraChoice::Stable("usb-Maker_Cam-index0".into()))
        );
        for wrong in ["../video0", "video0/..", "/dev/video\0", "a\0"] {
            assert_eq!(CameraChoice::parse(wrong), None, "{wrong:?}");
        }
        assert!(CameraChoice::parse("/dev/video2").unwrap().may_change_number());
        assert!(!CameraChoice::parse("/dev/v4l/by-id/x").unwrap().may_change_number());
    }

    #[test]
    fn sensor_of_ribbon_cable_has_preset() {
        let preset = |names: &[&str]| {
            let dir = tempfile::tempdir().unwrap();
            for (number, name) in names.iter().enumerate() {
                let node = dir.path().join(format!("video{number}"));
                fs::create_dir(&node).unwrap();
                fs::write(node.join("name"), format!("{name}\n")).unwrap();
            }
            sensor_preset_below(dir.path())
        };
        assert_eq!(preset(&["unicam-image", "unicam-embedded"]), Some(Preset::Rpicam));
        assert_eq!(preset(&["bcm2835-isp-output0", "rp1-cfe-csi2_ch0"]), Some(Preset::Rpicam));
        assert_eq!(preset(&["rkisp1_mainpath"]), Some(Preset::Gstreamer));
        assert_eq!(preset(&["rkisp1_mainpath", "unicam-image"]), Some(Preset::Rpicam));
        assert_eq!(preset(&["bcm2835-codec-decode", "HD Webcam"]), None);
        assert_eq!(sensor_preset_below(Path::new("/nowhere")), None);
    }

    #[test]
    fn absent_camera_resolves_to_missing() {
        assert_eq!(CameraChoice::Path("/nowhere/video0".into()).resolve(), Err(NotFound::Missing));
        assert_eq!(
            CameraChoice::Stable("usb-nothing-of-that-name".into()).resolve(),
            Err(NotFound::Missing)
        );
    }
}

//! Which camera: by path, by its stable name, or the first that can be used; and what each can do, for whoever sets it up.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::camera::v4l2::device::{Control, Device, FourCc, FrameSizes, fourcc_name};

/// How the configuration names a camera.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The first that captures in a format we read.
    First,
    /// A device node or a link to one.
    Path(PathBuf),
    /// A name below `/dev/v4l/by-id` or `by-path`, which udev makes and which stays the same wherever the camera comes
    /// up.
    Stable(String),
}

/// Formats that we read, the best first: motion JPEG fits through a USB port at any size, YUYV has colours in every
/// pixel pair, GREY has none.
pub const FORMATS: [FourCc; 4] = [*b"MJPG", *b"YUYV", *b"NV12", *b"GREY"];

const SYSFS: &str = "/sys/class/video4linux";
const STABLE: [&str; 2] = ["/dev/v4l/by-id", "/dev/v4l/by-path"];

impl Choice {
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

    /// The number of a plain node changes when the camera comes back while somebody still holds the old one.
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

fn first() -> Result<PathBuf, NotFound> {
    let mut denied = false;
    for node in capture_nodes() {
        match Device::open(&node) {
            Ok(device) => {
                let captures = device.capability().is_ok_and(|capability| capability.captures());
                if captures && device.formats().iter().any(|format| FORMATS.contains(format)) {
                    return Ok(node);
                }
            }
            Err(error) => denied |= error.kind() == io::ErrorKind::PermissionDenied,
        }
    }
    Err(if denied { NotFound::Denied } else { NotFound::None })
}

/// The first node of each device, in the order of their numbers: a UVC camera has a second one for metadata.
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

fn describe(node: PathBuf) -> Option<Described> {
    let stable = stable_name(&node);
    let bare = |unusable: String| Described {
        node: node.clone(),
        stable: stable.clone(),
        card: String::new(),
        driver: String::new(),
        bus: String::new(),
        unusable: Some(unusable),
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
    let unusable = if capability.only_multi_planar() {
        Some("it hands out pictures in several planes, which is not supported".to_owned())
    } else if !capability.captures() {
        return None; // An output, a radio, metadata: no camera.
    } else if modes.iter().any(|mode| mode.known) {
        None
    } else {
        Some("it has none of the formats MJPG, YUYV, NV12, GREY".to_owned())
    };
    let controls = device.controls();
    let (card, driver, bus) = (capability.card, capability.driver, capability.bus);
    Some(Described { node, stable, card, driver, bus, unusable, modes, controls })
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
    fn a_camera_is_named_in_three_ways() {
        assert_eq!(Choice::parse("auto"), Some(Choice::First));
        assert_eq!(Choice::parse(""), Some(Choice::First));
        assert_eq!(Choice::parse("/dev/video2"), Some(Choice::Path("/dev/video2".into())));
        assert_eq!(
            Choice::parse("usb-Maker_Cam-index0"),
            Some(Choice::Stable("usb-Maker_Cam-index0".into()))
        );
        for wrong in ["../video0", "video0/..", "/dev/video\0", "a\0"] {
            assert_eq!(Choice::parse(wrong), None, "{wrong:?}");
        }
        assert!(Choice::parse("/dev/video2").unwrap().may_change_number());
        assert!(!Choice::parse("/dev/v4l/by-id/x").unwrap().may_change_number());
    }

    #[test]
    fn a_camera_that_is_not_there_is_missing() {
        assert_eq!(Choice::Path("/nowhere/video0".into()).resolve(), Err(NotFound::Missing));
        assert_eq!(
            Choice::Stable("usb-nothing-of-that-name".into()).resolve(),
            Err(NotFound::Missing)
        );
    }
}

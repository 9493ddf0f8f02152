//! Of the section `[camera]`: the sources that are a stream of bytes.

use std::path::Path;

use crate::camera::encoded::{Coding, Infrared, Kind, Packing, Raster};
use crate::camera::http_stream::HttpSettings;
use crate::camera::http_stream::url::CameraUrl;
use crate::camera::pipe::PipeSettings;
use crate::camera::pipe::presets::{Preset, RPICAM_ROW_BYTES, WantedPicture};
use crate::camera::secret::Secret;
use crate::camera::stream::{StreamSettings, Timing};
use crate::camera::view::View;
use crate::config::checks::{
    ConfigError, find_credential, invalid, read_credential, read_secret, resolve_path,
};
use crate::config::raw::{RawCamera, RawFormat, RawPace, RawPreset};

/// Name of the systemd credential with the URL, used if neither key is set.
const URL_CREDENTIAL: &str = "camera_url";
/// Longer than any camera's; the URL must fit into a pipe that nobody reads yet.
const URL_BYTES_MAX: usize = 2048;
const ARGUMENTS_MAX: usize = 128;
const ARGUMENT_BYTES_MAX: usize = 4096;

pub(super) fn check_pipe(
    raw: &RawCamera,
    folder: &Path,
    view: &View,
) -> Result<PipeSettings, ConfigError> {
    let url = read_url(raw, folder)?;
    let preset = match raw.preset {
        RawPreset::None => None,
        RawPreset::Rpicam => Some(Preset::Rpicam),
        RawPreset::Rtsp => Some(Preset::Rtsp),
        RawPreset::Gstreamer => Some(Preset::Gstreamer),
    };
    let timing = match raw.pace {
        RawPace::Real => Timing::Arrival,
        RawPace::Networks => Timing::Recording,
    };
    let stream = |coding| StreamSettings {
        coding,
        fps: raw.fps,
        stall_after: raw.stall_after,
        view: view.clone(),
        timing,
    };
    let Some(preset) = preset else {
        check_command(&raw.command)?;
        let input = url.map(|url| Secret::new(format!("{}\n", url.expose())));
        let stream = stream(coding_of(raw, raw.format)?);
        return Ok(PipeSettings { command: raw.command.clone(), input, preset: None, stream });
    };
    if !raw.command.is_empty() {
        return Err(invalid("[camera] command", "and preset exclude each other"));
    }
    if !matches!(raw.format, RawFormat::Auto | RawFormat::I420) {
        return Err(invalid("[camera] format", "is \"auto\" or \"i420\" with a preset"));
    }
    let input = match (preset.needs_url(), url) {
        (true, None) => {
            let why =
                "is empty; preset = \"rtsp\" needs the camera's URL (url, if it has no password)";
            return Err(invalid("[camera] url_file", why));
        }
        (true, Some(url)) => preset.input(&url),
        (false, Some(_)) => {
            return Err(invalid("[camera] url", "has no effect with this preset"));
        }
        (false, None) => None,
    };
    if preset == Preset::Rpicam && raw.stride == 0 && !raw.width.is_multiple_of(RPICAM_ROW_BYTES) {
        let why = format!(
            "= {} is no multiple of {RPICAM_ROW_BYTES}, as preset = \"rpicam\" needs (640, 1280)",
            raw.width
        );
        return Err(invalid("[camera] width", why));
    }
    let decoder = raw.decoder.clone();
    if !decoder.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
        return Err(invalid("[camera] decoder", format!("= {decoder:?} is no decoder of ffmpeg")));
    }
    let wanted = WantedPicture { width: raw.width, height: raw.height, fps: raw.fps, decoder };
    Ok(PipeSettings {
        command: preset.command(&wanted),
        input,
        preset: Some(preset),
        stream: stream(coding_of(raw, RawFormat::I420)?),
    })
}

pub(super) fn check_http_stream(
    raw: &RawCamera,
    folder: &Path,
    view: View,
) -> Result<HttpSettings, ConfigError> {
    if !matches!(raw.format, RawFormat::Auto | RawFormat::Mjpg) {
        return Err(invalid("[camera] format", "is \"auto\" or \"mjpg\" with source = \"http\""));
    }
    let Some(url) = read_url(raw, folder)? else {
        let why = "is empty; source = \"http\" needs the camera's URL (url, if it has no password)";
        return Err(invalid("[camera] url_file", why));
    };
    let url = CameraUrl::parse(url.expose())
        .map_err(|error| invalid("[camera] url", error.to_string()))?;
    let stream = StreamSettings {
        coding: Coding::Jpeg,
        fps: raw.fps,
        stall_after: raw.stall_after,
        view,
        timing: Timing::Arrival,
    };
    Ok(HttpSettings { url, stream })
}

fn check_command(command: &[String]) -> Result<(), ConfigError> {
    let wrong = |why: String| Err(invalid("[camera] command", why));
    match command.first() {
        None => return wrong("is empty; source = \"pipe\" needs a command or a preset".into()),
        Some(program) if program.is_empty() => return wrong("begins with an empty text".into()),
        Some(_) => {}
    }
    if command.len() > ARGUMENTS_MAX {
        return wrong(format!("has more than {ARGUMENTS_MAX} parts"));
    }
    if command.iter().any(|it| it.len() > ARGUMENT_BYTES_MAX || it.contains('\0')) {
        return wrong(format!("has a part of more than {ARGUMENT_BYTES_MAX} bytes, or with a NUL"));
    }
    // Every user of the machine can read a command line.
    if command.iter().any(|it| has_credentials(it)) {
        return wrong(
            "has a URL with user and password, which every user of the machine could read: put it into url_file; the \
             command reads it from its standard input"
                .into(),
        );
    }
    Ok(())
}

fn has_credentials(text: &str) -> bool {
    text.split_once("://").is_some_and(|(_, rest)| rest.contains('@'))
}

/// What a command writes: motion JPEG, or raw pictures of the stated size.
fn coding_of(raw: &RawCamera, format: RawFormat) -> Result<Coding, ConfigError> {
    let (width, height) = (raw.width, raw.height);
    let stride = |row: usize| if raw.stride == 0 { row } else { raw.stride };
    let raster = |kind, row| {
        let raster = Raster { kind, width, height, stride: stride(row), full_range: false };
        (Coding::Raster(raster), row)
    };
    let infrared = |packing| {
        let row = width * 2;
        (Coding::Infrared(Infrared { packing, width, height, stride: stride(row) }), row)
    };
    let (coding, row) = match format {
        RawFormat::Auto | RawFormat::Mjpg => return Ok(Coding::Jpeg),
        RawFormat::Yuyv => raster(Kind::Yuyv, width * 2),
        RawFormat::Nv12 => raster(Kind::Nv12, width),
        RawFormat::I420 => raster(Kind::I420, width),
        RawFormat::Grey => raster(Kind::Grey, width),
        RawFormat::Y8i => infrared(Packing::Y8i),
        RawFormat::Y10 => infrared(Packing::Y10),
        RawFormat::Y12 => infrared(Packing::Y12),
    };
    let stride = stride(row);
    if !(row..=row + STRIDE_MORE_MAX).contains(&stride) {
        let most = row + STRIDE_MORE_MAX;
        let why = format!("= {stride} is not within {row} to {most}, the bytes of a row");
        return Err(invalid("[camera] stride", why));
    }
    if coding.frame_bytes().is_none() {
        let why = format!("= {width} x {height} is no size of this format: both must be even");
        return Err(invalid("[camera] width", why));
    }
    Ok(coding)
}

/// Rows are rounded up to a page at most.
const STRIDE_MORE_MAX: usize = 4096;

/// The camera's URL: from a file that only the daemon can read, or, without a password, from the
/// configuration.
fn read_url(raw: &RawCamera, folder: &Path) -> Result<Option<Secret>, ConfigError> {
    let file = resolve_path(folder, &raw.url_file);
    let (key, url) = match (raw.url.is_empty(), file) {
        (false, Some(_)) => return Err(invalid("[camera] url", "and url_file exclude each other")),
        (false, None) => {
            if has_credentials(&raw.url) {
                return Err(invalid("[camera] url", "holds a password: put it into url_file"));
            }
            ("[camera] url", raw.url.clone())
        }
        (true, Some(file)) => ("[camera] url_file", read_secret("[camera] url_file", &file)?),
        (true, None) => match find_credential(URL_CREDENTIAL) {
            Some(file) => {
                ("the credential camera_url", read_credential("[camera] url_file", &file)?)
            }
            None => return Ok(None),
        },
    };
    let url = url.trim();
    let is_url = url.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty() && scheme.chars().all(|c| c.is_ascii_alphanumeric()) && !rest.is_empty()
    });
    // Never quoted: it may hold a password.
    if !is_url
        || url.len() > URL_BYTES_MAX
        || url.chars().any(|c| c.is_whitespace() || c.is_control())
    {
        return Err(invalid(key, "is no URL like rtsp://USER:PASSWORD@HOST/PATH on one line"));
    }
    Ok(Some(Secret::new(url.to_owned())))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn pipe(keys: &str) -> Result<PipeSettings, ConfigError> {
        pipe_in(Path::new("/etc/rollcall"), keys)
    }

    fn pipe_in(folder: &Path, keys: &str) -> Result<PipeSettings, ConfigError> {
        let raw: RawCamera = toml::from_str(keys).expect("keys of [camera]");
        check_pipe(&raw, folder, &View::default())
    }

    #[test]
    fn command_states_its_output() {
        let settings = pipe("command = [\"cam\", \"-x\"]").unwrap();
        assert_eq!((settings.command.len(), settings.stream.coding), (2, Coding::Jpeg));
        assert_eq!(settings.stream.timing, Timing::Arrival);
        let keys = "command = [\"cam\"]\nformat = \"i420\"\nstride = 704\npace = \"networks\"";
        let settings = pipe(keys).unwrap();
        let raster =
            Raster { kind: Kind::I420, width: 640, height: 480, stride: 704, full_range: false };
        assert_eq!(settings.stream.coding, Coding::Raster(raster));
        assert_eq!(settings.stream.timing, Timing::Recording);
    }

    #[test]
    fn presets_write_raw_pictures() {
        for (keys, program) in [
            ("preset = \"rtsp\"\nurl = \"rtsp://192.0.2.4/s\"", "ffmpeg"),
            ("preset = \"gstreamer\"", "gst-launch-1.0"),
        ] {
            let settings = pipe(keys).unwrap();
            assert_eq!(settings.command[0], program);
            assert!(matches!(settings.stream.coding, Coding::Raster(_)));
        }
        let settings = pipe("preset = \"rpicam\"\nwidth = 1280\nheight = 720").unwrap();
        assert!(settings.command[0].ends_with("-vid"), "{:?}", settings.command);
    }

    #[test]
    fn url_with_password_needs_private_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("url");
        fs::write(&file, "rtsp://admin:hunter2@192.0.2.4/s\n").unwrap();
        let set = |mode| {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            pipe_in(dir.path(), "preset = \"rtsp\"\nurl_file = \"url\"")
        };
        let message = set(0o644).unwrap_err().to_string();
        assert!(
            message.contains("[camera] url_file") && message.contains("chmod 600"),
            "{message}"
        );
        let settings = set(0o600).unwrap();
        assert!(!settings.command.join(" ").contains("hunter2"));
        assert!(settings.input.as_ref().is_some_and(|it| it.expose().contains("hunter2")));
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn http_camera_needs_http_url() {
        let http = |keys: &str| {
            let raw: RawCamera = toml::from_str(keys).expect("keys of [camera]");
            check_http_stream(&raw, Path::new("/etc/rollcall"), View::default())
        };
        let settings = http("url = \"http://192.0.2.4:81/stream\"").unwrap();
        assert_eq!(settings.url.address(), ("192.0.2.4".into(), 81));
        for (keys, named) in [
            ("", "[camera] url_file"),
            ("url = \"https://h/\"", "https"),
            ("url = \"rtsp://h/\"", "[camera] url"),
            ("url = \"http://h/\"\nformat = \"nv12\"", "[camera] format"),
        ] {
            let message = http(keys).expect_err(keys).to_string();
            assert!(message.contains(named), "{keys}: {message}");
        }
    }

    #[test]
    fn invalid_stream_key_is_rejected_by_name() {
        for (keys, named) in [
            ("", "[camera] command"),
            ("command = [\"\"]", "[camera] command"),
            ("command = [\"ffmpeg\", \"-i\", \"rtsp://a:b@h/\"]", "url_file"),
            ("command = [\"a\"]\npreset = \"rpicam\"", "[camera] command"),
            ("command = [\"a\"]\nformat = \"grey\"\nstride = 639", "[camera] stride"),
            ("command = [\"a\"]\nformat = \"grey\"\nstride = 99999", "[camera] stride"),
            ("command = [\"a\"]\nformat = \"nv12\"\nwidth = 641", "[camera] width"),
            ("preset = \"rpicam\"\nwidth = 600", "[camera] width"),
            ("preset = \"rpicam\"\nformat = \"mjpg\"", "[camera] format"),
            ("preset = \"rpicam\"\nurl = \"rtsp://h/\"", "[camera] url"),
            ("preset = \"rtsp\"", "[camera] url_file"),
            ("preset = \"rtsp\"\nurl = \"rtsp://a:b@h/\"", "url_file"),
            ("preset = \"rtsp\"\nurl = \"192.0.2.4\"", "[camera] url"),
            ("preset = \"rtsp\"\nurl = \"rtsp://h/a b\"", "[camera] url"),
            ("preset = \"rtsp\"\nurl = \"rtsp://h\"\ndecoder = \"a;b\"", "[camera] decoder"),
        ] {
            let message = pipe(keys).expect_err(keys).to_string();
            assert!(message.contains(named), "{keys}: {message}");
            assert!(!message.contains("a:b"), "{message}");
        }
    }
}

//! Ready commands for cameras that people have: what the program is called, how it is started, and
//! what it writes.
//!
//! All write raw YUV 4:2:0: encoding motion JPEG and decoding it again would cost more than the
//! models. None has a secret among its arguments, because every user of the machine can read them.

use std::path::PathBuf;

use crate::camera::secret::Secret;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// A Raspberry Pi camera module, by rpicam-apps.
    Rpicam,
    /// A camera in the network, by ffmpeg.
    Rtsp,
    /// Any camera of libcamera, by GStreamer.
    Gstreamer,
}

/// What is asked for.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedPicture {
    pub width: usize,
    pub height: usize,
    pub fps: f32,
    /// The decoder of ffmpeg; empty: its own choice.
    pub decoder: String,
}

/// libcamera's rows of pictures on a Raspberry Pi are a multiple of so many bytes, and the program
/// writes them as they are.
pub const RPICAM_ROW_BYTES: usize = 64;

/// What a camera's stream may be made of; not `file`, so that no camera names one of this device.
const FFMPEG_PROTOCOLS: &str =
    "pipe,fd,rtsp,rtsps,rtp,srtp,tcp,udp,tls,http,https,httpproxy,crypto";

impl Preset {
    pub const ALL: [Self; 3] = [Self::Rpicam, Self::Rtsp, Self::Gstreamer];

    pub fn name(self) -> &'static str {
        match self {
            Self::Rpicam => "rpicam",
            Self::Rtsp => "rtsp",
            Self::Gstreamer => "gstreamer",
        }
    }

    /// The program, in the order of preference: rpicam-apps had another name until 2024.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::Rpicam => &["rpicam-vid", "libcamera-vid"],
            Self::Rtsp => &["ffmpeg"],
            Self::Gstreamer => &["gst-launch-1.0"],
        }
    }

    /// The Debian packages that have the program and what it needs.
    pub fn packages(self) -> &'static str {
        match self {
            Self::Rpicam => "rpicam-apps-lite",
            Self::Rtsp => "ffmpeg",
            Self::Gstreamer => {
                "gstreamer1.0-tools gstreamer1.0-plugins-base gstreamer1.0-libcamera"
            }
        }
    }

    /// The program that is installed; the first if none is.
    pub fn program(self) -> &'static str {
        let programs = self.programs();
        programs.iter().find(|it| find_program(it).is_some()).unwrap_or(&programs[0])
    }

    pub fn is_installed(self) -> bool {
        self.programs().iter().any(|it| find_program(it).is_some())
    }

    /// How to switch it on, for operators.
    pub fn advice(self) -> String {
        let install = if self.is_installed() {
            format!("{} is installed", self.program())
        } else {
            format!("sudo apt install {}", self.packages())
        };
        format!(
            "[camera] source = \"pipe\", preset = \"{}\" (sudo rollcall setup); {install}",
            self.name()
        )
    }

    pub fn needs_url(self) -> bool {
        self == Self::Rtsp
    }

    pub fn command(self, wanted: &WantedPicture) -> Vec<String> {
        let WantedPicture { width, height, fps, decoder } = wanted;
        let decoder = if decoder.is_empty() { String::new() } else { format!("-c:v {decoder}") };
        let arguments = match self {
            Self::Rpicam => format!(
                "--timeout 0 --nopreview --codec yuv420 --width {width} --height {height} \
                 --framerate {fps} --denoise cdn_off --flush --output -"
            ),
            // The URL comes over standard input, as a list of one file (`input`). The picture keeps
            // its shape, with black edges if need be.
            Self::Rtsp => {
                let scale = format!(
                    "scale={width}:{height}:force_original_aspect_ratio=decrease\
                     :out_color_matrix=bt601:out_range=tv"
                );
                format!(
                    "-nostdin -hide_banner -nostats -loglevel error {decoder} -f concat -safe 0 \
                     -protocol_whitelist {FFMPEG_PROTOCOLS} -i pipe:0 -an -sn -dn \
                     -vf fps={fps},{scale},pad={width}:{height}:-1:-1 -pix_fmt yuv420p \
                     -fps_mode passthrough -flush_packets 1 -f rawvideo pipe:1"
                )
            }
            Self::Gstreamer => {
                let fraction = (fps * 1000.0).round() as u32;
                format!(
                    "--quiet libcamerasrc ! queue leaky=downstream max-size-buffers=1 \
                     ! videorate drop-only=true ! videoscale add-borders=true ! videoconvert \
                     ! video/x-raw,format=I420,width={width},height={height},\
                     framerate=[0/1,{fraction}/1000] ! fdsink fd=1 sync=false"
                )
            }
        };
        let program = std::iter::once(self.program().to_owned());
        program.chain(arguments.split_whitespace().map(str::to_owned)).collect()
    }

    /// What the command reads from standard input.
    pub fn input(self, url: &Secret) -> Option<Secret> {
        if self != Self::Rtsp {
            return None;
        }
        // ffmpeg's list of files, in which a quote is closed, escaped and opened again.
        let quoted = url.expose().replace('\'', "'\\''");
        let mut list = format!("ffconcat version 1.0\nfile '{quoted}'\n");
        if url.expose().starts_with("rtsp") {
            // By UDP lost packets become torn pictures.
            list.push_str("option rtsp_transport tcp\n");
        }
        list.push_str("option fflags nobuffer\n");
        Some(Secret::new(list))
    }
}

/// A program by its name in `PATH`, or by its path.
pub fn find_program(name: &str) -> Option<PathBuf> {
    let is_program = |path: &PathBuf| {
        path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(is_program);
    }
    let folders = std::env::var_os("PATH")?;
    std::env::split_paths(&folders).map(|folder| folder.join(name)).find(is_program)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted() -> WantedPicture {
        WantedPicture { width: 640, height: 480, fps: 7.5, decoder: String::new() }
    }

    #[test]
    fn presets_state_size_and_rate() {
        for preset in Preset::ALL {
            let command = preset.command(&wanted());
            assert_eq!(command[0], preset.program());
            let line = command.join(" ");
            for part in ["640", "480", "75"] {
                assert!(line.replace("7.5", "75").contains(part), "{part}: {line}");
            }
        }
    }

    #[test]
    fn decoder_precedes_the_input() {
        let wanted = WantedPicture { decoder: "h264_v4l2m2m".into(), ..wanted() };
        let command = Preset::Rtsp.command(&wanted);
        let place = |word: &str| command.iter().position(|it| it == word).unwrap();
        assert!(place("h264_v4l2m2m") == place("-c:v") + 1 && place("-c:v") < place("-i"));
    }

    #[test]
    fn url_is_input_and_no_argument() {
        let url = Secret::new("rtsp://a:it's@h/x".into());
        let input = Preset::Rtsp.input(&url).unwrap();
        assert!(input.expose().contains(r"file 'rtsp://a:it'\''s@h/x'"), "{}", input.expose());
        assert!(input.expose().contains("rtsp_transport tcp"));
        assert!(!Preset::Rtsp.command(&wanted()).join(" ").contains("@h"));
        assert_eq!(Preset::Rpicam.input(&url), None);
    }

    #[test]
    fn program_is_found_by_name_and_path() {
        assert!(find_program("sh").is_some());
        assert_eq!(find_program("/bin/sh"), Some("/bin/sh".into()));
        assert!(find_program("no-program-of-this-name").is_none());
        assert!(find_program("/etc/passwd").is_none());
    }
}

//! Pictures that come through a command lead to the same decisions as those of a replay.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use image::codecs::jpeg::JpegEncoder;
use image::imageops;
use rollcall::camera::FrameSource;
use rollcall::camera::encoded::{Coding, Kind, Raster};
use rollcall::camera::pipe::{PipeCamera, PipeSettings};
use rollcall::camera::stream::{StreamSettings, Timing};
use rollcall::camera::view::View;
use rollcall::cli::measure::evaluate::clips::{ClipReport, open_clip, watch};
use rollcall::config;
use rollcall::ids::{Name, SubjectId};
use rollcall::recognise::engine::FaceEngine as _;
use rollcall::recognise::gallery::{Gallery, Subject};
use rollcall::recognise::live::LiveSettings;
use rollcall::recognise::picture::{Picture, PictureLimits};
use rollcall::recognise::still;
use rollcall::vision::Vision;

use crate::support::faces;

const FPS: f32 = 10.0;

/// The models and the live settings of the shipped configuration.
fn load_models() -> (Vision, LiveSettings) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let settings = config::load::load(Some(&root.join("config.toml")), &BTreeMap::new()).unwrap();
    let vision = Vision::load(&settings.vision).unwrap();
    let live = settings.recognition.live(&vision.template_spec());
    (vision, live)
}

fn command(command: &[&str], coding: Coding) -> Box<dyn FrameSource> {
    let stream = StreamSettings {
        coding,
        fps: FPS,
        stall_after: Duration::from_mins(1),
        view: View::default(),
        timing: Timing::Recording,
    };
    let command = command.iter().map(|it| (*it).to_owned()).collect();
    Box::new(PipeCamera::new(PipeSettings { command, input: None, preset: None, stream }))
}

/// Everything that was decided, and when; without the name of the clip.
fn outcome(report: &ClipReport) -> (Vec<String>, usize, Option<u64>, usize, usize) {
    let ClipReport { decided, looks, decision_ms, frames, unreadable, .. } = report;
    (decided.clone(), *looks, *decision_ms, *frames, *unreadable)
}

fn gallery_of(vision: &mut Vision, people: &[(&str, &str)]) -> Gallery {
    let mut gallery = Gallery::new(vision.dimension());
    for (id, photograph) in people {
        let bytes = fs::read(faces::demo(photograph)).unwrap();
        let picture = Picture::decode(&bytes, PictureLimits::default()).unwrap();
        let face = still::main_face(vision, &picture).unwrap().unwrap();
        let template = still::template(vision, &face.sample).unwrap().unwrap();
        let subject = Subject { id: SubjectId::new(id).unwrap(), name: Name::new(id).unwrap() };
        gallery = gallery.with(subject, &[template]);
    }
    gallery
}

/// A photograph in the middle of an empty scene, as JPEG.
fn scene(photograph: Option<&str>) -> Vec<u8> {
    let mut scene = image::RgbImage::from_pixel(640, 480, image::Rgb([118; 3]));
    if let Some(name) = photograph {
        let picture = image::open(faces::demo(name)).unwrap();
        let picture = picture.resize(440, 440, imageops::FilterType::Triangle).to_rgb8();
        imageops::overlay(&mut scene, &picture, 100, 20);
    }
    let mut bytes = Vec::new();
    JpegEncoder::new_with_quality(&mut bytes, 90).encode_image(&scene).unwrap();
    bytes
}

#[test]
fn piped_pictures_decide_as_replayed_ones() {
    let (mut vision, live) = load_models();
    let people = [("first", "obama.jpg"), ("second", "biden.jpg")];
    let gallery = gallery_of(&mut vision, &people);
    let mut clip = Vec::new();
    for photograph in ["obama2.jpg", "biden.jpg", "astronaut.png"] {
        for _ in 0..8 {
            clip.extend(scene(Some(photograph)));
        }
        for _ in 0..12 {
            clip.extend(scene(None));
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("clip.mjpeg");
    fs::write(&path, clip).unwrap();
    let replayed = watch(&mut vision, &gallery, live, open_clip(&path, FPS).unwrap()).unwrap();
    assert_eq!(replayed.decided, ["first", "second"], "{replayed:?}");
    assert_eq!((replayed.frames, replayed.unreadable), (60, 0));
    let piped = command(&["cat", path.to_str().unwrap()], Coding::Jpeg);
    let piped = watch(&mut vision, &gallery, live, piped).unwrap();
    assert_eq!(outcome(&piped), outcome(&replayed));
}

mod needs_clips {
    use super::*;
    use rollcall::cli::measure::evaluate::protocol::{self, ClipEntry};
    use std::process::Command;

    const WIDTH: usize = 640;
    const HEIGHT: usize = 480;

    fn clips_dir() -> std::path::PathBuf {
        let named = std::env::var_os("VIDEO_OPEN").unwrap_or_else(|| "../shared/video-open".into());
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(named);
        assert!(
            dir.join("index.csv").is_file(),
            "this test needs the clips of video-open: set VIDEO_OPEN to their folder, or run `make test`, which skips it"
        );
        dir
    }

    /// Reads the clip as ffmpeg made it, once by a replay and twice by a command.
    #[test]
    fn ffmpeg_children_decide_as_the_replay() {
        let (mut vision, live) = load_models();
        let dir = clips_dir();
        let work = tempfile::tempdir().unwrap();
        let entries: Vec<ClipEntry> = protocol::read(&dir.join("index.csv")).unwrap();
        let mut gallery = Gallery::new(vision.dimension());
        let mut decided = 0;
        for person in ["asl-A", "asl-B", "asl-C"] {
            let clips: Vec<_> = entries.iter().filter(|it| it.person == person).collect();
            for (number, entry) in clips.iter().enumerate() {
                let clip = work.path().join("clip.mjpeg");
                let scale = format!("scale={WIDTH}:{HEIGHT}");
                let status = Command::new("ffmpeg")
                    .args(["-nostdin", "-loglevel", "error", "-y", "-i"])
                    .arg(dir.join(&entry.file))
                    .args(["-r", "10", "-vf", &scale, "-q:v", "4", "-f", "mjpeg"])
                    .arg(&clip)
                    .status()
                    .expect("this test needs ffmpeg (`make test` skips it without)");
                assert!(status.success());
                let path = clip.to_str().unwrap();
                if number == 0 {
                    gallery = enrol_from(&mut vision, gallery, person, &clip);
                    continue;
                }
                let replay = open_clip(&clip, FPS).unwrap();
                let replayed = watch(&mut vision, &gallery, live, replay).unwrap();
                let input = ["ffmpeg", "-nostdin", "-loglevel", "error", "-i", path];
                let copy = [&input[..], &["-c:v", "copy", "-f", "mjpeg", "-"]].concat();
                let piped = command(&copy, Coding::Jpeg);
                let piped = watch(&mut vision, &gallery, live, piped).unwrap();
                assert_eq!(outcome(&piped), outcome(&replayed), "{}", entry.file);
                // The same pictures in the other range of brightness.
                let raw = ["-pix_fmt", "yuv420p", "-f", "rawvideo", "-"];
                let raster = Raster {
                    kind: Kind::I420,
                    width: WIDTH,
                    height: HEIGHT,
                    stride: WIDTH,
                    full_range: false,
                };
                let raw = command(&[&input[..], &raw].concat(), Coding::Raster(raster));
                let raw = watch(&mut vision, &gallery, live, raw).unwrap();
                assert_eq!(
                    (raw.frames, &raw.decided),
                    (replayed.frames, &replayed.decided),
                    "{}",
                    entry.file
                );
                decided += replayed.decided.len();
            }
        }
        assert!(decided >= 10, "{decided}");
    }

    fn enrol_from(vision: &mut Vision, gallery: Gallery, person: &str, clip: &Path) -> Gallery {
        let mut source = open_clip(clip, FPS).unwrap();
        let mut templates = Vec::new();
        while let Ok(rollcall::camera::Next::Frame(frame)) = source.next() {
            let face = still::main_face(vision, frame.pixels.full().unwrap()).unwrap();
            templates.extend(face.and_then(|it| still::template(vision, &it.sample).unwrap()));
        }
        let subject =
            Subject { id: SubjectId::new(person).unwrap(), name: Name::new(person).unwrap() };
        gallery.with(subject, &templates[..templates.len().min(3)])
    }
}

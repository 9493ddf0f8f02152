//! Photographs and clips played as a camera: for the demo, for tests, and for trying settings on
//! one's own recordings.
//!
//! What can be played: a folder of photographs (in the order of their names), a single photograph,
//! a clip of motion JPEG (`.mjpeg`, `.mjpg`: frames one after another), or a list (`.csv`:
//! `file,show_ms,gap_ms`, the times optional; the file `-` is an empty scene). Each photograph
//! stands before the camera for a while and is followed by an empty scene; a clip is played as it
//! is. A replay that repeats reads folder or list anew each time.
//!
//! A picture that cannot be read is reported and left out; it never ends the replay.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::bounded_file::{self, TEXT_BYTES_MAX};
use crate::camera::encoded::{Buffers, Coding, Encoded};
use crate::camera::view::View;
use crate::camera::{CameraError, FrameSource, FrameTime, Next, SourceFrame};
use crate::recognise::frame::Pixels;
use crate::recognise::jpeg;
use crate::recognise::picture::{Picture, PictureLimits};

#[derive(Clone, Debug, PartialEq)]
pub struct ReplaySettings {
    pub path: PathBuf,
    pub fps: f32,
    /// How long each photograph is shown.
    pub show: Duration,
    /// How long the scene is empty after it.
    pub gap: Duration,
    /// Begin again at the end.
    pub repeat: bool,
    pub view: View,
}

/// One thing to play.
#[derive(Clone, Debug, PartialEq)]
struct Item {
    path: PathBuf,
    show: Duration,
    gap: Duration,
}

pub struct Replay {
    settings: ReplaySettings,
    items: Vec<Item>,
    /// The item that is played next.
    next_item: usize,
    /// Frames of the item being played that are still to come, last first.
    pending: Vec<Pending>,
    /// Memory of a clip's frames.
    buffers: Arc<Buffers>,
    frames: u64,
}

enum Pending {
    Picture(Arc<Picture>, u64),
    Encoded(Vec<u8>),
}

/// A clip is read whole; this much is a quarter of an hour at 640x480.
const CLIP_BYTES_MAX: u64 = 512 << 20;
const PICTURE_LIMITS: PictureLimits = PictureLimits { bytes: 32 << 20, pixels: 25_000_000 };
/// Stands in a list for an empty scene.
const NOBODY: &str = "-";
/// The colour of an empty scene: a grey wall.
const EMPTY: [u8; 3] = [118, 118, 118];

impl Replay {
    pub fn open(settings: ReplaySettings) -> Result<Self, CameraError> {
        let items = list_items(&settings)?;
        if items.is_empty() {
            let why = "there is no photograph or clip in it".to_owned();
            return Err(CameraError::Unusable { what: settings.path.display().to_string(), why });
        }
        Ok(Self {
            settings,
            items,
            next_item: 0,
            pending: Vec::new(),
            buffers: Arc::default(),
            frames: 0,
        })
    }

    /// What is being played, for logs: a file's name may be a person's.
    fn item_label(&self) -> String {
        format!("item {} of the replay", self.next_item)
    }

    fn frames_in(&self, time: Duration) -> u64 {
        ((time.as_secs_f32() * self.settings.fps).round() as u64).max(1)
    }

    /// Puts the frames of the next item into `pending`; `false` at the end.
    fn load_next(&mut self) -> Result<bool, CameraError> {
        if self.next_item == self.items.len() {
            if !self.settings.repeat {
                return Ok(false);
            }
            self.items = list_items(&self.settings)?;
            self.next_item = 0;
        }
        let Some(item) = self.items.get(self.next_item).cloned() else {
            return Ok(false);
        };
        self.next_item += 1;
        if is_clip(&item.path) {
            let clip = read(&item.path, &self.item_label(), CLIP_BYTES_MAX)?;
            self.pending =
                jpeg::split_clip(&clip).map(|frame| Pending::Encoded(frame.to_vec())).collect();
            if self.pending.is_empty() {
                let why = "it has no JPEG picture in it".to_owned();
                return Err(CameraError::Unusable { what: self.item_label(), why });
            }
            self.pending.reverse();
            return Ok(true);
        }
        if item.path.as_os_str() == NOBODY {
            let scene = self.settings.view.apply(Picture::plain(640, 480, EMPTY));
            self.pending.push(Pending::Picture(Arc::new(scene), self.frames_in(item.show)));
            return Ok(true);
        }
        let label = self.item_label();
        let picture = decode(&read(&item.path, &label, PICTURE_LIMITS.bytes as u64)?, &label)?;
        let view = &self.settings.view;
        let empty = view.apply(Picture::plain(picture.width(), picture.height(), EMPTY));
        let picture = view.apply(picture);
        if !item.gap.is_zero() {
            self.pending.push(Pending::Picture(Arc::new(empty), self.frames_in(item.gap)));
        }
        self.pending.push(Pending::Picture(Arc::new(picture), self.frames_in(item.show)));
        Ok(true)
    }

    fn take_pending(&mut self) -> Option<Result<Arc<dyn Pixels>, CameraError>> {
        match self.pending.pop()? {
            Pending::Picture(picture, times) => {
                if times > 1 {
                    self.pending.push(Pending::Picture(Arc::clone(&picture), times - 1));
                }
                Some(Ok(picture))
            }
            // As from a camera: decoded when it is used.
            Pending::Encoded(bytes) => {
                let frame = Encoded::new(&bytes, Coding::Jpeg, &self.settings.view, &self.buffers);
                Some(match frame {
                    Ok(frame) => Ok(Arc::new(frame)),
                    Err(error) => Err(CameraError::Unusable {
                        what: self.item_label(),
                        why: error.to_string(),
                    }),
                })
            }
        }
    }
}

impl FrameSource for Replay {
    fn next(&mut self) -> Result<Next, CameraError> {
        loop {
            if let Some(pixels) = self.take_pending() {
                let at = Duration::from_secs_f64(self.frames as f64 / f64::from(self.settings.fps));
                self.frames += 1;
                return Ok(Next::Frame(SourceFrame {
                    pixels: pixels?,
                    when: FrameTime::Media(at),
                    missed: 0,
                }));
            }
            if !self.load_next()? {
                return Ok(Next::End);
            }
        }
    }

    fn describe(&self) -> String {
        format!("replay of {} items at {} frames per second", self.items.len(), self.settings.fps)
    }
}

fn list_items(settings: &ReplaySettings) -> Result<Vec<Item>, CameraError> {
    let path = &settings.path;
    let item = |path: PathBuf| Item { path, show: settings.show, gap: settings.gap };
    let failed = |source| CameraError::Read { what: path.display().to_string(), source };
    if path.is_dir() {
        let mut files = Vec::new();
        for entry in fs::read_dir(path).map_err(failed)? {
            let file = entry.map_err(failed)?.path();
            if is_clip(&file) || has_extension(&file, &["jpg", "jpeg", "png", "webp"]) {
                files.push(file);
            }
        }
        files.sort();
        return Ok(files.into_iter().map(item).collect());
    }
    if has_extension(path, &["csv"]) {
        return parse_list(
            &bounded_file::read_text(path, TEXT_BYTES_MAX).map_err(failed)?,
            settings,
        );
    }
    if has_extension(path, &["mp4", "avi", "mkv", "mov", "webm"]) {
        let why =
            "only motion JPEG is played: ffmpeg -i CLIP -c:v mjpeg -q:v 3 CLIP.mjpeg".to_owned();
        return Err(CameraError::Unusable { what: path.display().to_string(), why });
    }
    fs::metadata(path).map_err(failed)?;
    Ok(vec![item(path.clone())])
}

/// `file,show_ms,gap_ms` a line; paths are relative to the list; `#` begins a comment; a heading is
/// allowed.
fn parse_list(text: &str, settings: &ReplaySettings) -> Result<Vec<Item>, CameraError> {
    let folder = settings.path.parent().unwrap_or(Path::new(""));
    let mut items = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty()
            || line.starts_with('#')
            || (number == 0 && (line == "file" || line.starts_with("file,")))
        {
            continue;
        }
        let mut fields = line.split(',').map(str::trim);
        let file = fields.next().unwrap_or_default();
        let mut time = |default| match fields.next() {
            None | Some("") => Ok(default),
            Some(ms) => ms.parse().map(Duration::from_millis).map_err(|_| {
                let why = format!("line {}: {ms:?} is no number of milliseconds", number + 1);
                CameraError::Unusable { what: settings.path.display().to_string(), why }
            }),
        };
        let show = time(settings.show)?;
        let gap = time(settings.gap)?;
        let path = if file == NOBODY { file.into() } else { folder.join(file) };
        items.push(Item { path, show, gap });
    }
    Ok(items)
}

fn has_extension(path: &Path, wanted: &[&str]) -> bool {
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    wanted.iter().any(|it| extension == *it)
}

fn is_clip(path: &Path) -> bool {
    has_extension(path, &["mjpeg", "mjpg"])
}

fn read(path: &Path, label: &str, bytes_max: u64) -> Result<Vec<u8>, CameraError> {
    let failed = |source| CameraError::Read { what: label.to_owned(), source };
    bounded_file::read(path, bytes_max).map_err(failed)
}

fn decode(bytes: &[u8], label: &str) -> Result<Picture, CameraError> {
    let unusable = |why: String| CameraError::Unusable { what: label.to_owned(), why };
    Picture::decode(bytes, PICTURE_LIMITS).map_err(|e| unusable(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::view::{Area, Turn};

    use crate::camera::jpegs::{Data, Scan, Spec};

    fn write_picture(path: &Path, shade: u8) {
        image::RgbImage::from_pixel(16, 8, image::Rgb([shade; 3])).save(path).unwrap();
    }

    fn settings(path: &Path) -> ReplaySettings {
        let show = Duration::from_millis(200);
        let gap = Duration::from_millis(100);
        ReplaySettings {
            path: path.to_owned(),
            fps: 10.0,
            show,
            gap,
            repeat: false,
            view: View::default(),
        }
    }

    /// The first byte of each frame until the end; `None` for a frame that failed.
    fn play(replay: &mut Replay, frames_max: usize) -> Vec<Option<u8>> {
        let mut seen = Vec::new();
        while seen.len() < frames_max {
            match replay.next() {
                Ok(Next::Frame(frame)) => seen.push(Some(frame.pixels.full().unwrap().rgb()[0])),
                Ok(Next::End) => break,
                Ok(Next::Nothing) => panic!("a replay always has something"),
                Err(_) => seen.push(None),
            }
        }
        seen
    }

    #[test]
    fn replay_plays_folder_in_order() {
        let dir = tempfile::tempdir().unwrap();
        write_picture(&dir.path().join("b.png"), 200);
        write_picture(&dir.path().join("a.png"), 30);
        fs::write(dir.path().join("c.jpg"), b"no picture").unwrap();
        fs::write(dir.path().join("notes.txt"), b"left alone").unwrap();
        let mut replay = Replay::open(settings(dir.path())).unwrap();
        let seen = play(&mut replay, 100);
        assert_eq!(seen, [Some(30), Some(30), Some(118), Some(200), Some(200), Some(118), None]);
    }

    #[test]
    fn replay_list_sets_its_own_timings() {
        let dir = tempfile::tempdir().unwrap();
        write_picture(&dir.path().join("a.png"), 30);
        let list = dir.path().join("list.csv");
        fs::write(&list, "file,show_ms,gap_ms\na.png,100,0\n# comment\na.png\n").unwrap();
        let mut replay = Replay::open(ReplaySettings { repeat: true, ..settings(&list) }).unwrap();
        let seen: Vec<_> = play(&mut replay, 8).into_iter().flatten().collect();
        assert_eq!(seen, [30, 30, 30, 118, 30, 30, 30, 118]);
        fs::write(&list, "a.png,soon").unwrap();
        let message = Replay::open(settings(&list)).err().unwrap().to_string();
        assert!(message.contains("line 1") && message.contains("soon"), "{message}");
    }

    #[test]
    fn clip_is_split_at_jpeg_markers() {
        let dir = tempfile::tempdir().unwrap();
        let mut clip = Vec::new();
        for shade in [30u8, 200] {
            let picture = dir.path().join("one.jpg");
            write_picture(&picture, shade);
            clip.extend_from_slice(b"junk");
            clip.extend(fs::read(&picture).unwrap());
        }
        let path = dir.path().join("clip.mjpeg");
        fs::write(&path, clip).unwrap();
        let mut replay = Replay::open(settings(&path)).unwrap();
        assert_eq!(play(&mut replay, 9), [Some(30), Some(200)]);
    }

    /// A clip with thumbnails in its frames, and between good frames such as decoders panic on, cut
    /// ones and junk.
    #[test]
    fn a_clip_plays_past_hostile_frames() {
        let dir = tempfile::tempdir().unwrap();
        let luma_420 = [(2, 2), (1, 1), (1, 1)];
        let thumbnail = Spec::flat(8, 8, &[(1, 1)]).bytes();
        let good = Spec {
            application: [b"Exif\0\0", &thumbnail[..]].concat(),
            ..Spec::flat(64, 48, &luma_420)
        }
        .bytes();
        let mut hostile = Spec::flat(160, 120, &[(1, 1), (1, 1), (2, 1)]);
        hostile.scans =
            vec![Scan { data: Data::Bytes(vec![0x55; 900]), ..Scan::sequential(vec![0]) }];
        let cut = &good[..good.len() - 9];
        let clip = [&good[..], &hostile.bytes(), &good, cut, &good, b"junk", &good].concat();
        let path = dir.path().join("clip.mjpeg");
        fs::write(&path, clip).unwrap();
        let seen = play(&mut Replay::open(settings(&path)).unwrap(), 20);
        assert_eq!(seen, [Some(128), None, Some(128), None, Some(128), Some(128)]);
    }

    #[test]
    fn replay_applies_camera_view() {
        let dir = tempfile::tempdir().unwrap();
        let photo = dir.path().join("a.jpg");
        write_picture(&photo, 200);
        fs::copy(&photo, dir.path().join("b.mjpeg")).unwrap();
        let mask = vec![Area::new([0.0, 0.0, 1.0, 0.5]).unwrap()];
        let view = View { turn: Turn::Quarter, mask, ..View::default() };
        let mut replay = Replay::open(ReplaySettings { view, ..settings(dir.path()) }).unwrap();
        let mut shades = Vec::new();
        while let Next::Frame(frame) = replay.next().unwrap() {
            let full = frame.pixels.full().unwrap();
            assert_eq!((full.width(), full.height()), (8, 16));
            shades.push((full.row(0)[0], full.row(15)[0]));
        }
        assert_eq!(shades, [(0, 200), (0, 200), (0, 118), (0, 200)]);
    }

    #[test]
    fn unplayable_path_error_names_cause() {
        let dir = tempfile::tempdir().unwrap();
        for (path, expected) in [
            (dir.path().to_owned(), "no photograph"),
            (dir.path().join("clip.mp4"), "ffmpeg"),
            (dir.path().join("missing"), "missing"),
        ] {
            let message = Replay::open(settings(&path)).err().unwrap().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}

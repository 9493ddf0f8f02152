use super::*;
use crate::camera::view::{Area, Turn};
use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;
use proptest::prelude::*;

/// A picture with something in it: soft colours and edges.
fn scene(width: usize, height: usize) -> Picture {
    let pixel = |at: usize| {
        let (x, y) = (at % width, at / width);
        let edge = if (x / 16 + y / 16) % 2 == 0 { 40 } else { 0 };
        [
            (40 + x * 150 / width + edge) as u8,
            (60 + y * 120 / height + edge) as u8,
            (90 + edge) as u8,
        ]
    };
    Picture::from_rgb(width, height, (0..width * height).flat_map(pixel).collect()).unwrap()
}

fn jpeg(picture: &Picture) -> Vec<u8> {
    let mut out = Vec::new();
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    let encoder = JpegEncoder::new_with_quality(&mut out, 90);
    encoder.write_image(picture.rgb(), width, height, image::ExtendedColorType::Rgb8).unwrap();
    out
}

/// BT.601, limited range, as a webcam does it: in floating point, independent of the code above.
fn yuv(pixel: &[u8]) -> [f32; 3] {
    let [r, g, b] = [0, 1, 2].map(|at| f32::from(pixel[at]) / 255.0);
    let y = 0.299 * r + 0.587 * g + 0.114 * b;
    [16.0 + 219.0 * y, 128.0 + 224.0 * (b - y) / 1.772, 128.0 + 224.0 * (r - y) / 1.402]
}

/// The frame of `picture` with `padding` bytes after each row.
fn raster(kind: Kind, picture: &Picture, padding: usize) -> (Raster, Vec<u8>) {
    let (width, height) = (picture.width(), picture.height());
    let row = if kind == Kind::Yuyv { width * 2 } else { width };
    let raster = Raster { kind, width, height, stride: row + padding, full_range: false };
    let mut bytes = vec![0xEE; raster.bytes().unwrap()];
    for y in 0..height {
        for x in 0..width {
            let pixel = &picture.row(y)[x * 3..x * 3 + 3];
            let [luma, u, v] = yuv(pixel).map(|value| value.round() as u8);
            match kind {
                Kind::Yuyv => {
                    bytes[y * raster.stride + x * 2] = luma;
                    bytes[y * raster.stride + x * 2 + 1] = if x % 2 == 0 { u } else { v };
                }
                Kind::Nv12 => {
                    bytes[y * raster.stride + x] = luma;
                    let pair = (height + y / 2) * raster.stride + x / 2 * 2;
                    bytes[pair..pair + 2].copy_from_slice(&[u, v]);
                }
                Kind::Grey => {
                    let grey = 0.299 * f32::from(pixel[0])
                        + 0.587 * f32::from(pixel[1])
                        + 0.114 * f32::from(pixel[2]);
                    bytes[y * raster.stride + x] = grey.round() as u8;
                }
            }
        }
    }
    (raster, bytes)
}

fn frame(bytes: &[u8], coding: Coding, view: &View) -> Result<Encoded, DecodeError> {
    Encoded::new(bytes, coding, view, &Arc::default())
}

/// The mean difference of a colour value.
fn difference(a: &Picture, b: &Picture) -> f32 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let sum: u32 = a.rgb().iter().zip(b.rgb()).map(|(a, b)| u32::from(a.abs_diff(*b))).sum();
    sum as f32 / a.rgb().len() as f32
}

#[test]
fn the_same_scene_looks_the_same_in_every_format() {
    let picture = scene(128, 96);
    let mut frames = vec![(Coding::Jpeg, jpeg(&picture))];
    for kind in [Kind::Yuyv, Kind::Nv12] {
        let (raster, bytes) = raster(kind, &picture, 12);
        frames.push((Coding::Raster(raster), bytes));
    }
    for (coding, bytes) in frames {
        let seen = frame(&bytes, coding, &View::default()).unwrap();
        assert_eq!(seen.size(), (128, 96));
        let away = difference(seen.full().unwrap(), &picture);
        assert!(away < 2.5, "{coding:?}: {away}");
    }
    let (raster, bytes) = raster(Kind::Grey, &picture, 3);
    let grey = frame(&bytes, Coding::Raster(raster), &View::default()).unwrap();
    let apart = |(a, b): (&u8, &u8)| a.abs_diff(*b);
    let farthest = Luma::of(grey.full().unwrap())
        .values()
        .iter()
        .zip(Luma::of(&picture).values())
        .map(apart)
        .max();
    assert!(farthest.unwrap() <= 1, "{farthest:?}");
}

#[test]
fn pure_colours_come_out_pure() {
    for (pixel, [y, u, v]) in
        [([255, 0, 0], [81, 90, 240]), ([0, 255, 0], [145, 54, 34]), ([0, 0, 255], [41, 240, 110])]
    {
        let seen = STUDIO_RANGE.rgb_of([y, u, v]);
        assert!(
            seen.iter().zip(pixel).all(|(a, b): (&u8, u8)| a.abs_diff(b) <= 3),
            "{seen:?} for {pixel:?}"
        );
    }
    assert_eq!([16, 235].map(|luma| STUDIO_RANGE.rgb_of([luma, 128, 128])), [[0; 3], [255; 3]]);
    assert_eq!([0, 255].map(|luma| FULL_RANGE.rgb_of([luma, 128, 128])), [[0; 3], [255; 3]]);
}

#[test]
fn every_look_at_a_frame_agrees() {
    let picture = scene(320, 240);
    let mask = vec![Area::new([0.0, 0.0, 0.25, 0.5]).unwrap()];
    let view = View {
        turn: Turn::Quarter,
        mirror: true,
        mask,
        region: Area::new([0.0, 0.0, 1.0, 0.75]).unwrap(),
    };
    let expected = view.apply(picture.clone());
    let (raster, raw) = raster(Kind::Yuyv, &picture, 0);
    for (bytes, coding) in [(jpeg(&picture), Coding::Jpeg), (raw, Coding::Raster(raster))] {
        let seen = frame(&bytes, coding, &view).unwrap();
        assert_eq!(seen.size(), (240, 240));
        let grid = seen.luma().unwrap();
        let reduced = seen.reduced(80).unwrap();
        let (small, full) = (reduced.width(), seen.full().unwrap());
        assert!(small >= 80);
        assert!(difference(full, &expected) < 2.5, "{coding:?}");
        assert!(full.row(0)[..60 * 3].iter().all(|value| *value == 0), "the mask is blank");
        // Studio brightness ends at 16 and 235: up to 20 apart, and never where something changes.
        let apart =
            grid.values().iter().zip(Luma::of(full).values()).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(apart.unwrap() <= 20, "{coding:?}: {apart:?}");
        assert_eq!(grid.values()[0], 0, "the mask is blank in the grid too");
    }
}

#[test]
fn a_reduced_frame_is_the_mean_of_its_pixels() {
    let picture = scene(320, 240);
    let (raster, bytes) = raster(Kind::Nv12, &picture, 0);
    let seen = frame(&bytes, Coding::Raster(raster), &View::default()).unwrap();
    let reduced = seen.reduced(80).unwrap().into_owned();
    assert_eq!((reduced.width(), reduced.height()), (80, 60));
    let full = seen.full().unwrap();
    let mean = |x: usize, y: usize| {
        let sum: u32 =
            (0..16).map(|at| u32::from(full.row(y * 4 + at / 4)[(x * 4 + at % 4) * 3])).sum();
        (sum + 8) / 16
    };
    // The mean is taken before the colours are made of it, so rounding differs.
    assert!(
        (0..60)
            .all(|y| (0..80).all(|x| u32::from(reduced.row(y)[x * 3]).abs_diff(mean(x, y)) <= 2))
    );
}

#[test]
fn a_cut_frame_is_damaged_wherever_it_is_cut() {
    let picture = scene(160, 120);
    let whole = jpeg(&picture);
    let decodes = |bytes: &[u8]| {
        frame(bytes, Coding::Jpeg, &View::default())
            .is_ok_and(|it| it.full().is_ok() || it.luma().is_ok())
    };
    assert!(decodes(&whole));
    let mut padded = whole.clone();
    padded.extend([0; 700]);
    assert!(decodes(&padded), "cameras fill up with zeroes");
    for length in (0..whole.len() - 2).step_by(17) {
        assert!(!decodes(&whole[..length]), "cut at {length}");
        // A camera that lost its data in the middle still ends its frame properly. The last bytes may be within what the
        // decoder has read ahead.
        let with_end = [&whole[..length.min(whole.len() - 24)], &[0xFF, 0xD9]].concat();
        assert!(!decodes(&with_end), "cut at {length}, with an end marker");
    }
    for kind in [Kind::Yuyv, Kind::Nv12, Kind::Grey] {
        let (raster, bytes) = raster(kind, &picture, 0);
        assert!(
            frame(&bytes[..bytes.len() - 1], Coding::Raster(raster), &View::default()).is_err(),
            "{kind:?}"
        );
    }
}

#[test]
fn a_hole_in_the_data_is_found() {
    let whole = jpeg(&scene(320, 240));
    let scan = whole.windows(2).position(|marker| marker == [0xFF, 0xDA]).unwrap() + 14;
    for at in (scan..whole.len() - 600).step_by(101) {
        let holed = [&whole[..at], &whole[at + 512..]].concat();
        let seen = frame(&holed, Coding::Jpeg, &View::default()).unwrap();
        assert!(seen.full().is_err() && seen.luma().is_err(), "512 bytes lost at {at}");
    }
}

#[test]
fn cameras_leave_out_the_usual_huffman_tables() {
    let picture = scene(160, 120);
    let mut bytes = jpeg(&picture);
    while let Some(at) = bytes.windows(2).position(|marker| marker == [0xFF, 0xC4]) {
        let length = usize::from(u16::from_be_bytes([bytes[at + 2], bytes[at + 3]]));
        bytes.drain(at..at + 2 + length);
    }
    let seen = frame(&bytes, Coding::Jpeg, &View::default()).unwrap();
    assert!(difference(seen.full().unwrap(), &picture) < 2.5);
}

#[test]
fn a_camera_without_colours_may_send_jpeg_too() {
    let mut bytes = Vec::new();
    let grey: Vec<u8> = (0..64 * 48).map(|at| (at % 64 * 4) as u8).collect();
    JpegEncoder::new(&mut bytes).write_image(&grey, 64, 48, image::ExtendedColorType::L8).unwrap();
    let seen = frame(&bytes, Coding::Jpeg, &View::default()).unwrap();
    let full = seen.full().unwrap();
    assert!(
        full.row(9)
            .as_chunks::<3>()
            .0
            .iter()
            .enumerate()
            .all(|(x, [r, g, b])| { r == g && g == b && r.abs_diff((x * 4) as u8) < 12 })
    );
    assert!(seen.luma().is_ok());
}

#[test]
fn impossible_sizes_are_refused_before_memory_is_taken() {
    for (width, height, stride, kind) in [
        (641, 480, 1282, Kind::Yuyv),
        (640, 481, 640, Kind::Nv12),
        (640, 480, 639, Kind::Grey),
        (0, 480, 640, Kind::Grey),
        (2, usize::MAX, 1 << 40, Kind::Grey),
        (40_000, 40_000, 40_000, Kind::Grey),
    ] {
        assert_eq!(
            Raster { kind, width, height, stride, full_range: false }.bytes(),
            None,
            "{width} x {height}"
        );
    }
    let mut lie = jpeg(&scene(160, 120));
    let at = lie.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
    lie[at + 5..at + 9].fill(0xFF);
    assert!(matches!(
        frame(&lie, Coding::Jpeg, &View::default()),
        Err(DecodeError::TooManyPixels { .. })
    ));
}

#[test]
fn a_dropped_frames_memory_is_used_again() {
    let (raster, bytes) = raster(Kind::Grey, &scene(64, 64), 0);
    let buffers = Arc::new(Buffers::default());
    let make = || Encoded::new(&bytes, Coding::Raster(raster), &View::default(), &buffers).unwrap();
    let first = make();
    let place = first.bytes.as_ptr();
    drop(first);
    assert_eq!(make().bytes.as_ptr(), place);
    let many: Vec<_> = (0..10).map(|_| make()).collect();
    drop(many);
    assert_eq!(buffers.free.lock().unwrap().len(), BUFFERS_MAX);
}

proptest! {
    #[test]
    fn whatever_a_camera_sends_nothing_panics(
        cut in 0usize..9000, at in 0usize..9000, noise in proptest::collection::vec(any::<u8>(), 0..64), markers: bool,
    ) {
        let mut bytes = jpeg(&scene(96, 64));
        let at = at % bytes.len();
        let end = (at + noise.len()).min(bytes.len());
        bytes[at..end].copy_from_slice(&noise[..end - at]);
        bytes.truncate(cut);
        if markers {
            bytes.extend([0xFF, 0xD9]);
        }
        if let Ok(seen) = frame(&bytes, Coding::Jpeg, &View { turn: Turn::Half, ..View::default() }) {
            let (width, height) = seen.size();
            if width * height < 1 << 20 {
                drop(seen.luma());
                drop(seen.full().map(|full| assert_eq!((full.width(), full.height()), (width, height))));
            }
        }
    }
}

use super::*;
use crate::camera::view::{Area, Turn};
use image::ImageEncoder;
use image::codecs::jpeg::JpegEncoder;
use proptest::prelude::*;

use crate::camera::jpegs;
use crate::camera::jpegs::{Data, Scan, Spec};

/// A picture with something in it: soft colours and edges.
fn scene(width: usize, height: usize) -> Picture {
    let pixel = |at: usize| {
        let x = at % width;
        let y = at / width;
        let edge = if (x / 16 + y / 16).is_multiple_of(2) { 40 } else { 0 };
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
    let width = picture.width() as u32;
    let height = picture.height() as u32;
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
    let width = picture.width();
    let height = picture.height();
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
                Kind::I420 => {
                    bytes[y * raster.stride + x] = luma;
                    let chroma = y / 2 * (raster.stride / 2) + x / 2;
                    let plane = height * raster.stride;
                    bytes[plane + chroma] = u;
                    bytes[plane + plane / 4 + chroma] = v;
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
fn all_formats_decode_to_same_picture() {
    let picture = scene(128, 96);
    let mut frames = vec![(Coding::Jpeg, jpeg(&picture))];
    for kind in [Kind::Yuyv, Kind::Nv12, Kind::I420] {
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
fn primary_colours_are_converted_correctly() {
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
fn luma_reduced_and_full_frames_agree() {
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
        let small = reduced.width();
        let full = seen.full().unwrap();
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
fn reduced_frame_averages_its_pixels() {
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
fn frame_truncated_anywhere_is_damaged() {
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
        // A camera that lost its data in the middle still ends its frame properly. The last bytes
        // may be within what the decoder has read ahead.
        let with_end = [&whole[..length.min(whole.len() - 24)], &[0xFF, 0xD9]].concat();
        assert!(!decodes(&with_end), "cut at {length}, with an end marker");
    }
    for kind in [Kind::Yuyv, Kind::Nv12, Kind::I420, Kind::Grey] {
        let (raster, bytes) = raster(kind, &picture, 0);
        assert!(
            frame(&bytes[..bytes.len() - 1], Coding::Raster(raster), &View::default()).is_err(),
            "{kind:?}"
        );
    }
}

#[test]
fn frame_with_missing_bytes_is_rejected() {
    let whole = jpeg(&scene(320, 240));
    let scan = whole.windows(2).position(|marker| marker == [0xFF, 0xDA]).unwrap() + 14;
    for at in (scan..whole.len() - 600).step_by(101) {
        let holed = [&whole[..at], &whole[at + 512..]].concat();
        let seen = frame(&holed, Coding::Jpeg, &View::default()).unwrap();
        assert!(seen.full().is_err() && seen.luma().is_err(), "512 bytes lost at {at}");
    }
}

#[test]
fn jpeg_without_huffman_tables_is_decoded() {
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
fn greyscale_jpeg_frame_is_decoded() {
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
fn impossible_sizes_are_rejected_before_allocation() {
    for (width, height, stride, kind) in [
        (641, 480, 1282, Kind::Yuyv),
        (640, 481, 640, Kind::Nv12),
        (640, 480, 641, Kind::I420),
        (640, 481, 640, Kind::I420),
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
fn dropped_frame_buffers_are_reused() {
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

fn opened(bytes: &[u8]) -> Result<Encoded, DecodeError> {
    frame(bytes, Coding::Jpeg, &View::default())
}

/// The luma and the full picture agree that a frame is plain grey.
fn assert_grey(bytes: &[u8], what: &str) {
    let seen = opened(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
    // The luma first: a frame that is decoded already is not decoded again.
    let luma = seen.luma().unwrap_or_else(|error| panic!("{what}, luma: {error}"));
    assert!(luma.values().iter().all(|value| value.abs_diff(128) <= 1), "{what}");
    let full = seen.full().unwrap_or_else(|error| panic!("{what}, all: {error}"));
    assert!(full.rgb().iter().all(|value| value.abs_diff(128) <= 1), "{what}");
}

#[test]
fn usual_jpeg_samplings_are_decoded() {
    let samplings: [&[(u8, u8)]; 7] = [
        &[(1, 1)],
        &[(1, 1); 3],
        &[(2, 1), (1, 1), (1, 1)],
        &[(1, 2), (1, 1), (1, 1)],
        &[(2, 2), (1, 1), (1, 1)],
        &[(4, 1), (1, 1), (1, 1)],
        &[(2, 2), (2, 1), (2, 1)],
    ];
    for sampling in samplings {
        // Plain rows are so short that the decoder reads past them before the last one begins.
        for (width, height) in [(640, 480), (8, 480), (16, 16), (33, 47)] {
            for restart_interval in [0, 4] {
                let spec = Spec { restart_interval, ..Spec::flat(width, height, sampling) };
                assert_grey(&spec.bytes(), &format!("{spec:?}"));
                assert_grey(&spec.clone().progressive().bytes(), &format!("progressive {spec:?}"));
                let padded = Spec { trailer: vec![0; 5000], ..spec.clone() };
                assert_grey(&padded.bytes(), &format!("padded {spec:?}"));
                let endless = Spec { has_end_marker: false, ..spec };
                assert_grey(&endless.bytes(), &format!("{endless:?}"));
            }
        }
    }
    let red_green_blue = Spec { adobe: Some(0), ..Spec::flat(64, 48, &[(1, 1); 3]) };
    assert_grey(&red_green_blue.bytes(), "RGB");
}

#[test]
fn frames_that_panic_decoder_are_rejected() {
    for colour in [(2, 1), (1, 2), (2, 2), (4, 1)] {
        for components in [vec![0], vec![1], vec![0, 1], vec![0, 1, 2]] {
            let mut spec = Spec::flat(160, 120, &[(1, 1), (1, 1), colour]);
            spec.scans =
                vec![Scan { data: Data::Bytes(vec![0x55; 900]), ..Scan::sequential(components) }];
            let refused = opened(&spec.bytes()).unwrap_err();
            assert!(matches!(refused, DecodeError::Unsupported { .. }), "{refused}: {spec:?}");
        }
    }
}

#[test]
fn frame_with_huge_side_is_rejected() {
    for (width, height) in [(65_535, 8), (65_529, 8), (8, 65_535)] {
        let rejected = opened(&Spec::flat(width, height, &[(1, 1)]).bytes()).unwrap_err();
        assert!(matches!(rejected, DecodeError::TooManyPixels { .. }), "{rejected}");
    }
}

#[test]
fn data_after_frame_end_is_ignored() {
    let old_frame = jpeg(&scene(160, 120));
    let picture = scene(64, 48);
    let thumbnail = Spec::flat(8, 8, &[(1, 1)]).bytes();
    let mut bytes = jpeg(&picture);
    let application =
        [&[0xFF, 0xE1], &(thumbnail.len() as u16 + 2).to_be_bytes()[..], &thumbnail].concat();
    bytes.splice(2..2, application);
    bytes.extend(&old_frame[900..]);
    let seen = opened(&bytes).unwrap();
    assert_eq!(seen.size(), (64, 48));
    assert!(difference(seen.full().unwrap(), &picture) < 2.5);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever a camera sends is refused or seen; the walk lets nothing through that makes the
    /// decoder panic.
    #[test]
    fn generated_jpeg_frames_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let Ok(seen) = opened(&jpegs::made_of(&bytes)) else { return Ok(()) };
        let (width, height) = seen.size();
        if width * height <= 1 << 20 {
            let errors = [seen.luma().err(), seen.full().err()];
            for error in errors.into_iter().flatten() {
                prop_assert!(!error.to_string().contains("the decoder failed"), "{error}");
            }
        }
    }
}

#[test]
fn turned_frame_counts_both_pictures() {
    let bytes = Spec::flat(8000, 4000, &[(1, 1)]).bytes();
    let turned = |turn| frame(&bytes, Coding::Jpeg, &View { turn, ..View::default() });
    assert_eq!(turned(Turn::None).unwrap().size(), (8000, 4000));
    assert!(matches!(turned(Turn::Quarter), Err(DecodeError::TooMuchMemory { .. })));
    let region = Area::new([0.0, 0.0, 0.1, 0.1]).unwrap();
    let cut = frame(&bytes, Coding::Jpeg, &View { region, ..View::default() });
    assert_eq!(cut.unwrap().size(), (800, 400));
    let region = Area::new([0.0, 0.0, 0.5, 0.5]).unwrap();
    let cut = frame(&bytes, Coding::Jpeg, &View { region, ..View::default() });
    assert!(matches!(cut, Err(DecodeError::TooMuchMemory { .. })), "96 and 24 MB");
}

#[test]
fn large_buffer_is_not_kept_for_small_frames() {
    let buffers = Buffers::default();
    let mut large = Vec::with_capacity(8 << 20);
    large.extend([0; 100]);
    buffers.give_back(large);
    assert!(buffers.filled(&[1, 2]).capacity() < 1 << 16);
    buffers.give_back(vec![0; 1 << 20]);
    assert!(buffers.filled(&[1, 2]).capacity() >= 1 << 20, "one that fits is used again");
}

proptest! {
    #[test]
    fn damaged_jpeg_frames_never_panic(
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
        let whole = |fault: &DecodeError| !fault.to_string().contains("the decoder failed");
        match frame(&bytes, Coding::Jpeg, &View { turn: Turn::Half, ..View::default() }) {
            Err(fault) => prop_assert!(whole(&fault), "{fault}"),
            Ok(seen) => {
                let (width, height) = seen.size();
                if width * height < 1 << 20 {
                    let luma = seen.luma();
                    prop_assert!(luma.as_ref().err().is_none_or(whole), "{luma:?}");
                    match seen.full() {
                        Ok(full) => prop_assert_eq!((full.width(), full.height()), (width, height)),
                        Err(fault) => prop_assert!(whole(&fault), "{fault}"),
                    }
                }
            }
        }
    }
}

#[test]
fn infrared_pictures_keep_their_high_bits() {
    let (width, height) = (8, 2);
    let shade = |x: usize, y: usize| (x * 30 + y * 7) as u8;
    let row = |packing: Packing, y: usize| -> Vec<u8> {
        let shades: Vec<u8> = (0..width).map(|x| shade(x, y)).collect();
        match packing {
            Packing::Y8i => shades.iter().flat_map(|it| [*it, 0xEE]).collect(),
            Packing::Y10 => {
                shades.iter().flat_map(|it| (u16::from(*it) << 2 | 3).to_le_bytes()).collect()
            }
            Packing::Y12 => {
                shades.iter().flat_map(|it| (u16::from(*it) << 4 | 9).to_le_bytes()).collect()
            }
            Packing::Y10p => shades.chunks(4).flat_map(|it| [it, &[0xE4]].concat()).collect(),
            Packing::Y12p => shades.chunks(2).flat_map(|it| [it, &[0x5A]].concat()).collect(),
        }
    };
    for packing in [Packing::Y8i, Packing::Y10, Packing::Y12, Packing::Y10p, Packing::Y12p] {
        let stride = packing.row_bytes(width).unwrap() + 3;
        let infrared = Infrared { packing, width, height, stride };
        let rows = (0..height).flat_map(|y| [row(packing, y), vec![0xDD; 3]].concat());
        let bytes: Vec<u8> = rows.collect();
        assert_eq!(infrared.bytes(), Some(bytes.len()));
        let seen = frame(&bytes, Coding::Infrared(infrared), &View::default()).unwrap();
        for y in 0..height {
            let expected: Vec<u8> = (0..width).flat_map(|x| [shade(x, y); 3]).collect();
            assert_eq!(seen.full().unwrap().row(y), expected, "{packing:?}");
        }
        assert!(frame(&bytes[1..], Coding::Infrared(infrared), &View::default()).is_err());
    }
    let bright = Infrared { packing: Packing::Y10, width: 1, height: 1, stride: 2 };
    let seen = frame(&[0xFF, 0xFF], Coding::Infrared(bright), &View::default()).unwrap();
    assert_eq!(seen.full().unwrap().rgb(), [255; 3]);
}

#[test]
fn impossible_infrared_sizes_are_rejected() {
    for (packing, width, height, stride) in [
        (Packing::Y10p, 6, 2, 100),
        (Packing::Y12p, 5, 2, 100),
        (Packing::Y8i, 8, 2, 15),
        (Packing::Y10, 0, 2, 15),
        (Packing::Y12, 40_000, 40_000, 80_000),
        (Packing::Y12, 2, 2, usize::MAX),
    ] {
        assert_eq!(Infrared { packing, width, height, stride }.bytes(), None, "{packing:?}");
    }
}

#[test]
fn grey_jpeg_has_no_colour() {
    let mut bytes = Vec::new();
    let grey: Vec<u8> = (0..64 * 48).map(|at| (at % 64 * 4) as u8).collect();
    let encoder = JpegEncoder::new_with_quality(&mut bytes, 90);
    encoder.write_image(&grey, 64, 48, image::ExtendedColorType::L8).unwrap();
    let seen = frame(&bytes, Coding::Jpeg, &View::default()).unwrap();
    let pixels = seen.full().unwrap().rgb().as_chunks::<3>().0;
    assert!(pixels.iter().all(|[r, g, b]| r == g && g == b));
    assert!(pixels.iter().zip(&grey).all(|(pixel, grey)| pixel[0].abs_diff(*grey) < 12));
    let again = frame(&bytes, Coding::Jpeg, &View::default()).unwrap();
    assert_eq!(again.luma().unwrap(), Luma::of(seen.full().unwrap()));
}

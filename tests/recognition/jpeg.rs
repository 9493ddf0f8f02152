//! JPEGs of every kind, made and found: decoded right, or refused by name, and none makes the
//! decoder panic.

#![expect(
    clippy::unwrap_used,
    reason = "a helper of these tests: a failure there is a failed test"
)]

use crate::support::jpegs;
use crate::support::jpegs::{Data, Scan, Spec};
use proptest::prelude::*;
use rollcall::recognise::jpeg::outline::Outline;
use rollcall::recognise::jpeg::{extent, split_clip};
use rollcall::recognise::picture::{DecodeError, Picture, PictureLimits};

const LUMA_420: [(u8, u8); 3] = [(2, 2), (1, 1), (1, 1)];

fn decode(bytes: &[u8]) -> Result<Picture, DecodeError> {
    Picture::decode(bytes, PictureLimits::default())
}

fn refusal(spec: &Spec) -> String {
    decode(&spec.bytes()).unwrap_err().to_string()
}

/// A picture whose components are in these scans.
fn in_parts(sampling: &[(u8, u8)], scans: &[&[usize]]) -> Spec {
    let scans = scans.iter().map(|scan| Scan::sequential(scan.to_vec())).collect();
    Spec { scans, ..Spec::flat(100, 75, sampling) }
}

/// Each component in a scan of its own, or some together: the values are those of one scan.
#[test]
fn components_in_several_scans_are_decoded() {
    let choices: Vec<u8> = (0..20_000u32).map(|at| ((at * at) >> 3) as u8).collect();
    for sampling in [
        &[(1, 1); 3][..],
        &LUMA_420,
        &[(2, 1), (1, 1), (1, 1)],
        &[(1, 2), (1, 1), (1, 1)],
        &[(4, 1), (1, 1), (2, 1)],
    ] {
        for scans in
            [&[&[0][..], &[1], &[2]][..], &[&[0], &[1, 2]], &[&[0, 1], &[2]], &[&[2], &[0], &[1]]]
        {
            for restart_interval in [0, 3] {
                let mut spec = Spec { restart_interval, ..in_parts(sampling, scans) };
                let flat = decode(&spec.bytes()).unwrap();
                assert!(flat.rgb().iter().all(|value| (127..=129).contains(value)), "{spec:?}");
                spec.scans.iter_mut().for_each(|scan| scan.data = Data::Blocks(choices.clone()));
                let whole = spec.bytes();
                let picture = decode(&whole).unwrap();
                assert_eq!((picture.width(), picture.height()), (100, 75));
                for cut in [whole.len() - 3, whole.len() / 2, whole.len() - 40] {
                    assert!(decode(&[&whole[..cut], &[0xFF, 0xD9]].concat()).is_err(), "{cut}");
                }
            }
        }
    }
    let mut missing = in_parts(&LUMA_420, &[&[0], &[1]]);
    assert!(refusal(&missing).contains("ends too early"));
    missing.scans.push(Scan::sequential(vec![1, 2]));
    assert!(refusal(&missing).contains("scan too many"));
}

/// Pixels are those of another decoder, and at a smaller size the means of them, on a picture with all
/// frequencies.
#[test]
fn decoding_agrees_with_another_decoder_at_every_size() {
    let scene = image::RgbImage::from_fn(203, 157, |x, y| {
        let wave = |a: f32, b: f32| (127.5 + 90.0 * (x as f32 * a + y as f32 * b).sin()) as u8;
        image::Rgb([wave(0.05, 0.03), wave(0.02, 0.09), wave(0.11, 0.04)])
    });
    for quality in [60, 95] {
        let mut bytes = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality)
            .encode_image(&scene)
            .unwrap();
        let full = decode(&bytes).unwrap();
        let another = image::load_from_memory(&bytes).unwrap().into_rgb8();
        let apart = full.rgb().iter().zip(another.as_raw()).map(|(a, b)| a.abs_diff(*b));
        assert!(apart.clone().max() < Some(5), "{:?}", apart.max());
        let outline = Outline::read(&bytes).unwrap();
        for halvings in 0..4 {
            let shrunk = outline.decode(&bytes, halvings).unwrap();
            let wanted = full.clone().shrunk(1 << halvings);
            assert_eq!((shrunk.width, shrunk.height), (wanted.width(), wanted.height()));
            let apart =
                shrunk.bytes.iter().zip(wanted.rgb()).map(|(a, b)| f64::from(a.abs_diff(*b)));
            let mean = apart.sum::<f64>() / shrunk.bytes.len() as f64;
            assert!(mean < 3.0, "halved {halvings} times: {mean}");
        }
    }
}

/// Photographs one after another with what phones append: each photograph once, whole.
#[test]
fn clip_of_photographs_is_split_between_them() {
    let thumbnail = Spec::flat(8, 8, &[(1, 1)]).bytes();
    let plain = Spec::flat(64, 48, &LUMA_420);
    let with_thumbnail =
        Spec { application: [b"Exif\0\0", &thumbnail[..]].concat(), ..plain.clone() };
    let film = [
        &b"\0\0\0\x18ftypmp42"[..],
        &[0xFF, 0xD8, 0xFF, 0x17, 0xFF, 0xD8, 0xFF, 0xE0, 0, 9, 1, 2, 3],
    ]
    .concat();
    let motion = Spec { trailer: film.repeat(50), ..plain.clone() };
    let endless = Spec { has_end_marker: false, ..plain.clone() };
    // It says that a second picture belongs to it.
    let index = b"MPF\0MM\0\x2a\0\0\0\x08\0\x02\xb0\0\0\x07\0\0\0\x040100\xb0\x01\0\x04\0\0\0\x01\0\0\0\x02";
    let segment = [&[0xFF, 0xE2][..], &(index.len() as u16 + 2).to_be_bytes(), index].concat();
    let mut double = plain.bytes();
    double.splice(2..2, segment);
    double.extend(Spec::flat(16, 16, &[(1, 1)]).bytes());
    let photographs =
        [with_thumbnail.bytes(), motion.bytes(), endless.bytes(), double, plain.bytes(), thumbnail];
    let sizes: Vec<_> = split_clip(&photographs.concat())
        .map(|it| decode(it).map(|it| (it.width(), it.height())).unwrap())
        .collect();
    assert_eq!(sizes, [(64, 48), (64, 48), (64, 48), (64, 48), (64, 48), (8, 8)]);
    let broken = [&[0xFF, 0xD8, 0xFF, 0xE0, 0, 1][..], &plain.bytes()].concat();
    assert_eq!(split_clip(&broken).count(), 1, "what is no picture is passed over");
    assert_eq!(split_clip(b"").count(), 0);
}

/// Every picture that the walk lets through is decoded to the grey that was written.
#[test]
fn usual_samplings_are_decoded() {
    let samplings: [&[(u8, u8)]; 13] = [
        &[(1, 1)],
        &[(2, 2)],
        &[(1, 1); 3],
        &[(2, 1); 3],
        &LUMA_420,
        &[(2, 1), (1, 1), (1, 1)],
        &[(1, 2), (1, 1), (1, 1)],
        &[(4, 1), (1, 1), (1, 1)],
        &[(4, 2), (1, 1), (1, 1)],
        &[(2, 2), (2, 1), (2, 1)],
        &[(2, 2), (1, 2), (1, 2)],
        &[(1, 1); 4],
        &[(2, 2), (1, 1), (1, 1), (2, 2)],
    ];
    for sampling in samplings {
        for (width, height) in [(1, 1), (8, 8), (17, 33), (100, 75), (256, 31)] {
            for restart_interval in [0, 1, 7] {
                let spec = Spec { restart_interval, ..Spec::flat(width, height, sampling) };
                for spec in [spec.clone().progressive(), spec] {
                    let bytes = spec.bytes();
                    let picture =
                        decode(&bytes).unwrap_or_else(|error| panic!("{error}: {spec:?}"));
                    assert_eq!((picture.width(), picture.height()), (width.into(), height.into()));
                    // Four components are cyan, magenta, yellow and black: half of everything is
                    // darker.
                    let grey = if sampling.len() == 4 { 60..=70 } else { 127..=129 };
                    assert!(picture.rgb().iter().all(|value| grey.contains(value)), "{spec:?}");
                }
            }
        }
    }
}

#[test]
fn colours_sampled_finer_than_luma_are_rejected() {
    for luma in [(1, 1), (2, 1), (1, 2), (2, 2)] {
        for colour in [(2, 1), (1, 2), (2, 2), (4, 1), (1, 4), (4, 4)] {
            if colour.0 <= luma.0 && colour.1 <= luma.1 {
                continue;
            }
            for sampling in [[luma, (1, 1), colour], [luma, colour, (1, 1)], [luma, colour, colour]]
            {
                for components in [vec![0], vec![1], vec![2], vec![0, 1], vec![0, 1, 2]] {
                    let mut spec = Spec::flat(64, 67, &sampling);
                    spec.scans = vec![Scan {
                        data: Data::Bytes(vec![0x55; 400]),
                        ..Scan::sequential(components)
                    }];
                    assert!(refusal(&spec).contains("finer"), "{spec:?}");
                }
            }
        }
    }
}

#[test]
fn unsupported_jpeg_kinds_are_named() {
    let usual = || Spec::flat(32, 32, &LUMA_420);
    for (spec, expected) in [
        (Spec { process: 0xC9, ..usual() }, "arithmetic"),
        (Spec { process: 0xCA, ..usual() }, "arithmetic"),
        (Spec { process: 0xC3, ..usual() }, "lossless"),
        (Spec { process: 0xC5, ..usual() }, "hierarchical"),
        (Spec { process: 0xF7, ..usual() }, "JPEG-LS"),
        (Spec { precision: 12, process: 0xC1, ..usual() }, "8 bits"),
        (Spec { height: 0, ..usual() }, "height"),
        (in_parts(&[(1, 1); 4], &[&[0], &[1, 2], &[3]]), "four colours"),
        (Spec::flat(32, 32, &[(1, 1); 2]), "two colour components"),
        (Spec::flat(32, 32, &[(3, 1), (1, 1), (1, 1)]), "threes"),
    ] {
        let message = refusal(&spec);
        assert!(
            message.contains("not supported") && message.contains(expected),
            "{message}: {spec:?}"
        );
    }
}

#[test]
fn impossible_headers_are_refused_as_damaged() {
    let usual = || Spec::flat(32, 32, &LUMA_420);
    let twice =
        |components: Vec<usize>| Spec { scans: vec![Scan::sequential(components)], ..usual() };
    let mut two_frames = usual().bytes();
    let again = two_frames.clone();
    let frame = again.windows(2).position(|marker| marker == [0xFF, 0xC0]).unwrap();
    two_frames.splice(frame..frame, again[frame..frame + 19].iter().copied());
    for (bytes, expected) in [
        (Spec::flat(32, 32, &[(0, 1), (1, 1), (1, 1)]).bytes(), "component is impossible"),
        (Spec::flat(32, 32, &[(5, 1), (1, 1), (1, 1)]).bytes(), "component is impossible"),
        (Spec::flat(32, 32, &[(4, 4), (1, 1), (1, 1)]).bytes(), "too many samples"),
        (Spec::flat(32, 32, &[(1, 1); 5]).bytes(), "number of components"),
        (Spec { width: 0, ..usual() }.bytes(), "no size"),
        (
            Spec { components: vec![(1, 2, 2), (2, 1, 1), (2, 1, 1)], ..usual() }.bytes(),
            "same number",
        ),
        (twice(vec![0, 1, 1]).bytes(), "not there, or twice"),
        (twice(vec![0, 1, 7]).bytes(), "not there, or twice"),
        (twice(vec![2, 1, 0]).bytes(), "not there, or twice"),
        (twice(vec![]).bytes(), "wrong length"),
        (Spec { scans: vec![], ..usual() }.bytes(), "ends too early"),
        (
            Spec { scans: vec![Scan::sequential(vec![0, 1, 2]); 2], ..usual() }.bytes(),
            "scan too many",
        ),
        (two_frames, "two frame headers"),
    ] {
        let message = decode(&bytes).unwrap_err().to_string();
        assert!(
            message.contains("damaged") && message.contains(expected),
            "{message}, not {expected}"
        );
    }
}

#[test]
fn too_many_scans_are_refused_before_decoding() {
    let refining = |count: usize, width: u16, height: u16| {
        let mut spec = Spec::flat(width, height, &LUMA_420).progressive();
        let scan =
            Scan { components: vec![1], from: 1, to: 63, bits: 0, data: Data::Bytes(vec![0]) };
        spec.scans.extend(vec![scan; count]);
        spec
    };
    assert!(refusal(&refining(100, 32, 32)).contains("so many scans"));
    assert!(refusal(&refining(30, 5000, 5000)).contains("so many scans"));
    // The usual number at the largest size passes the walk.
    assert!(Outline::read(&refining(16, 5000, 5000).bytes()).is_ok());
}

#[test]
fn progressive_scans_out_of_order_are_rejected() {
    let usual = Spec::flat(32, 32, &LUMA_420).progressive();
    let mut details_first = usual.clone();
    details_first.scans.swap(0, 1);
    assert!(refusal(&details_first).contains("before its mean values"));
    let mut both = usual.clone();
    both.scans[1].from = 0;
    assert!(refusal(&both).contains("impossible"));
    let mut colour_missing = usual;
    colour_missing.scans = vec![Scan { components: vec![0, 1], ..colour_missing.scans[0].clone() }];
    assert!(refusal(&colour_missing).contains("ends too early"));
}

#[test]
fn first_end_marker_outside_segments_counts() {
    let thumbnail = Spec::flat(8, 8, &[(1, 1)]).bytes();
    let application = [b"Exif\0\0", &thumbnail[..]].concat();
    let spec = Spec { application, ..Spec::flat(64, 48, &LUMA_420) };
    let whole = spec.bytes();
    let outline = Outline::read(&whole).unwrap();
    assert_eq!((outline.picture(&whole).len(), outline.width), (whole.len(), 64));
    for trailer in
        [vec![0; 1 << 20], whole.clone(), vec![0xFF; 300_000], b"....ftypmp42".repeat(9000)]
    {
        let longer = [&whole[..], &trailer].concat();
        assert_eq!(Outline::read(&longer).unwrap(), outline);
        assert_eq!(decode(&longer).unwrap().width(), 64);
        assert_eq!(extent(&longer), Some(whole.len()));
    }
    // The last byte before the end marker is filling.
    for cut in 3..whole.len() - 3 {
        let message = decode(&whole[..cut]).unwrap_err().to_string();
        assert!(message.contains("ends too early"), "{cut}: {message}");
    }
}

#[test]
fn missing_end_marker_alone_is_accepted() {
    let bare = Spec { has_end_marker: false, ..Spec::flat(64, 48, &LUMA_420) };
    let trailer = [b"\0\0\x01\x0a\x0e\0\0\0Image_UTC_Data", &[0u8; 60][..], b"SEFT"].concat();
    let seft = Spec { trailer: trailer.clone(), ..bare.clone() };
    assert_eq!(decode(&bare.bytes()).unwrap().height(), 48);
    assert_eq!(decode(&seft.bytes()).unwrap().height(), 48);
    // The same trailer behind a cut picture is read as its last blocks, and does not end where they
    // do.
    let whole = bare.bytes();
    for cut in 1..10 {
        let bytes = [&whole[..whole.len() - cut], &trailer].concat();
        assert!(decode(&bytes).is_err(), "{cut}");
    }
    let zeroes = [&whole[..whole.len() - 5], &[0; 400]].concat();
    assert!(decode(&zeroes).is_err(), "a buffer's zeroes are no data");
    assert!(decode(&Spec { has_end_marker: false, ..bare.progressive() }.bytes()).is_err());
}

#[test]
fn lost_data_before_end_is_detected() {
    let choices: Vec<u8> = (0..20_000u32).map(|at| ((at * at) >> 3) as u8).collect();
    for restart_interval in [0, 4] {
        let mut spec = Spec { restart_interval, ..Spec::flat(160, 120, &LUMA_420) };
        spec.scans[0].data = Data::Blocks(choices.clone());
        let whole = spec.bytes();
        assert!(decode(&whole).is_ok());
        let scan = whole.windows(2).position(|marker| marker == [0xFF, 0xDA]).unwrap() + 14;
        for at in (scan..whole.len() - 300).step_by(37) {
            let holed = [&whole[..at], &whole[at + 200..]].concat();
            assert!(decode(&holed).is_err(), "200 bytes lost at {at}, restarts {restart_interval}");
        }
    }
}

mod needs_field_cases {
    use std::sync::Arc;

    use rollcall::camera::encoded::{Coding, Encoded};
    use rollcall::camera::view::View;

    use super::*;
    use crate::support::faces::field_case;

    #[test]
    fn shared_attacks_and_field_cases_are_judged() {
        for (file, expected) in [
            ("../attack/crash1.jpg", Err("finer")),
            ("../attack/idct246.jpg", Err("finer")),
            ("../attack/idct247.jpg", Err("finer")),
            ("../attack/upsampler184.jpg", Err("finer")),
            ("../attack/upsampler184b.jpg", Err("finer")),
            ("motion_photo_like.jpg", Ok(())),
            ("samsung_no_eoi.jpg", Ok(())),
            ("face.jpg", Ok(())),
            ("cut_60_with_exif_thumbnail.jpg", Err("too early")),
            ("cut_60_without_thumbnail.jpg", Err("too early")),
            ("1000_bytes_missing.jpg", Err("too early")),
            ("arithmetic.jpg", Err("arithmetic")),
            ("noninterleaved_420.jpg", Ok(())),
        ] {
            let bytes = std::fs::read(field_case(file)).unwrap();
            let message = decode(&bytes).map(|_| ()).map_err(|error| error.to_string());
            let right = message.as_ref().map_or_else(
                |message| expected.is_err_and(|it| message.contains(it)),
                |()| expected.is_ok(),
            );
            assert!(right, "{file}: {message:?}");
            // As a camera's frame, an attack is refused before it is decoded.
            if file.starts_with("../attack") {
                let frame = Encoded::new(&bytes, Coding::Jpeg, &View::default(), &Arc::default());
                assert!(matches!(frame, Err(DecodeError::Unsupported { .. })), "{file}");
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    /// Whatever is made is refused or decoded; the walk lets nothing through that makes the decoder
    /// panic.
    #[test]
    fn generated_jpegs_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let made = jpegs::made_of(&bytes);
        if let Err(error) = Picture::decode(&made, PictureLimits { pixels: 1 << 20, ..Default::default() }) {
            prop_assert!(!error.to_string().contains("the decoder failed"), "{error}");
        }
        if let Some(length) = extent(&made) {
            prop_assert!(length <= made.len());
        }
        let clip = [&made[..], &bytes, &made].concat();
        prop_assert!(split_clip(&clip).map(<[u8]>::len).sum::<usize>() <= clip.len());
    }

    #[test]
    fn walking_arbitrary_bytes_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let bytes = [&[0xFF, 0xD8, 0xFF], &bytes[..]].concat();
        if let Ok(outline) = Outline::read(&bytes) {
            prop_assert!(outline.picture(&bytes).len() <= bytes.len());
            outline.check_whole(&bytes).ok();
        }
    }
}

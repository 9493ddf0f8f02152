//! Photographs judged for enrolment by the real models: good ones are taken, and each reason for
//! refusing one is met by a real photograph, or by one made from a real one.
//!
//! By hand, all of the data set: `E2E_PEOPLE=144 cargo nextest run --test recognition enrolment::
//! --no-capture`

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use crate::support::faces::{Faces, Person};
use image::{DynamicImage, ImageFormat, RgbImage, imageops};
use rollcall::config;
use rollcall::enrol::{self, EnrolSettings, Judged, Judgement, Reason};
use rollcall::ids::{Name, SubjectId};
use rollcall::recognise::engine::FaceEngine as _;
use rollcall::recognise::gallery::{Gallery, Subject};
use rollcall::recognise::quality::Flaw;
use rollcall::vision::Vision;

/// The models and the rules of the shipped configuration.
pub fn load_models() -> (Vision, EnrolSettings) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let settings = config::load::load(Some(&root.join("config.toml")), &BTreeMap::new()).unwrap();
    let vision = Vision::load(&settings.vision).unwrap();
    let rules = settings.recognition.enrol(&vision.template_spec());
    (vision, rules)
}

fn people() -> Vec<Person> {
    let wanted = std::env::var("E2E_PEOPLE").map_or(20, |text| text.parse().unwrap());
    Faces::find().people.into_iter().take(wanted).collect()
}

fn open(path: &Path) -> RgbImage {
    image::load_from_memory(&fs::read(path).unwrap()).unwrap().to_rgb8()
}

pub fn png(picture: RgbImage) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    DynamicImage::ImageRgb8(picture).write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn lit(picture: &RgbImage, gain: f32, more: f32) -> RgbImage {
    let mut changed = picture.clone();
    changed.pixels_mut().flat_map(|pixel| pixel.0.iter_mut()).for_each(|value| {
        *value = (f32::from(*value) * gain + more).clamp(0.0, 255.0) as u8;
    });
    changed
}

/// In the middle of a plain picture, so that a face of a few pixels still has surroundings.
fn shrunk(picture: &RgbImage, side: u32) -> RgbImage {
    let scale = f64::from(side) / f64::from(picture.width().max(picture.height()));
    let small = |length: u32| ((f64::from(length) * scale) as u32).max(1);
    let tiny = imageops::resize(
        picture,
        small(picture.width()),
        small(picture.height()),
        imageops::FilterType::Triangle,
    );
    let mut canvas = RgbImage::from_pixel(320, 240, image::Rgb([120, 120, 120]));
    imageops::overlay(&mut canvas, &tiny, 160 - i64::from(side / 2), 120 - i64::from(side / 2));
    canvas
}

fn beside(left: &RgbImage, right: &RgbImage) -> RgbImage {
    let right =
        imageops::resize(right, left.width(), left.height(), imageops::FilterType::Triangle);
    let mut both = RgbImage::new(left.width() * 2, left.height());
    imageops::overlay(&mut both, left, 0, 0);
    imageops::overlay(&mut both, &right, i64::from(left.width()), 0);
    both
}

fn judge(vision: &mut Vision, rules: &EnrolSettings, photographs: &[Vec<u8>]) -> Judgement {
    let gallery = Gallery::new(vision.dimension());
    let id = SubjectId::new("somebody").unwrap();
    enrol::judge(vision, &gallery, &id, false, photographs.iter().map(Vec::as_slice), rules)
        .unwrap()
}

pub fn reason(vision: &mut Vision, rules: &EnrolSettings, photograph: Vec<u8>) -> Option<Reason> {
    match judge(vision, rules, &[photograph]).photographs.remove(0) {
        Judged::Accepted { .. } => None,
        Judged::Rejected(reason) => Some(reason),
    }
}

#[test]
fn good_photographs_are_accepted() {
    let (mut vision, rules) = load_models();
    let photographs: Vec<PathBuf> = people().into_iter().flat_map(|it| it.enrol).collect();
    let mut refused = Vec::new();
    for path in &photographs {
        if let Some(reason) = reason(&mut vision, &rules, fs::read(path).unwrap()) {
            refused.push((path.clone(), reason));
        }
    }
    println!("{} photographs, refused: {refused:?}", photographs.len());
    assert!(
        refused.len() * 100 <= photographs.len() * 2,
        "more than two in a hundred: {refused:?}"
    );
}

/// How a picture is spoiled, and how much.
type Spoil = fn(&RgbImage, f32) -> RgbImage;

/// Factors of the usual amount. Which of them is too much for a reference and leaves a face depends
/// on the size of the face in its picture.
const AMOUNTS: [f32; 5] = [1.0, 0.5, 1.5, 2.0, 3.0];

fn long_side(picture: &RgbImage) -> u32 {
    picture.width().max(picture.height())
}

/// As large as a webcam's picture at most.
fn reduced(picture: RgbImage) -> RgbImage {
    const SIDE_MAX: u32 = 640;
    let side = long_side(&picture);
    if side <= SIDE_MAX {
        return picture;
    }
    let of = |length: u32| length * SIDE_MAX / side;
    imageops::thumbnail(&picture, of(picture.width()), of(picture.height()))
}

#[test]
fn spoilt_photographs_name_their_flaw() {
    let (mut vision, rules) = load_models();
    let people = people();
    // Portraits with enough pixels to take some away.
    let portraits = people.iter().map(|it| reduced(open(&it.enrol[0])));
    let portraits: Vec<RgbImage> =
        portraits.filter(|it| it.width().min(it.height()) >= 150).take(8).collect();
    assert!(!portraits.is_empty());
    let cases: [(Flaw, Spoil); 4] = [
        (Flaw::Blurred, |it, amount| imageops::blur(it, 0.02 * amount * long_side(it) as f32)),
        (Flaw::Dark, |it, amount| lit(it, 0.12 / amount, 0.0)),
        (Flaw::Overexposed, |it, amount| lit(it, 1.2, 140.0 * amount)),
        (Flaw::TooSmall, |it, amount| shrunk(it, (30.0 * amount) as u32)),
    ];
    for (flaw, spoil) in cases {
        let mut found = Vec::new();
        for portrait in &portraits {
            let mut reasons = AMOUNTS
                .iter()
                .map(|amount| reason(&mut vision, &rules, png(spoil(portrait, *amount))));
            found.push(reasons.any(|it| it == Some(Reason::Flaw(flaw))));
        }
        println!("{flaw:?}: {found:?}");
        let named = found.iter().filter(|it| **it).count();
        assert!(named * 2 >= found.len(), "{flaw:?}: named in {named} of {}", found.len());
    }
}

#[test]
fn photograph_without_single_face_is_rejected() {
    let (mut vision, rules) = load_models();
    let faces = Faces::find();
    let people: Vec<&Person> =
        faces.people.iter().filter(|it| it.enrol.len() + it.probes.len() >= 2).collect();
    let ann = people[0];
    let bob = people[1];
    let two = beside(&open(&ann.enrol[0]), &open(&bob.enrol[0]));
    assert_eq!(reason(&mut vision, &rules, png(two)), Some(Reason::SeveralFaces));
    if let Some(empty) = faces.empty_scenes.first() {
        assert_eq!(reason(&mut vision, &rules, fs::read(empty).unwrap()), Some(Reason::NoFace));
    }
    let plain = RgbImage::from_pixel(200, 200, image::Rgb([90, 120, 90]));
    assert_eq!(reason(&mut vision, &rules, png(plain)), Some(Reason::NoFace));
    // Somebody else's among one's own.
    let own = ann.enrol.iter().chain(&ann.probes).take(2);
    let mut mixed: Vec<Vec<u8>> = own.map(|path| fs::read(path).unwrap()).collect();
    mixed.push(fs::read(&bob.enrol[0]).unwrap());
    let judgement = judge(&mut vision, &rules, &mixed);
    assert!(
        matches!(judgement.photographs[2], Judged::Rejected(Reason::OtherPerson)),
        "{:?}",
        judgement.photographs
    );
    assert_eq!(judgement.accepted().count(), 2);
    // Cut off, no picture at all, and the format that telephones have.
    let whole = fs::read(&ann.enrol[0]).unwrap();
    let cut = reason(&mut vision, &rules, whole[..whole.len() / 3].to_vec());
    assert!(matches!(cut, Some(Reason::DecodeError(_))), "{cut:?}");
    let heic = [&b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"[..], &[0; 64]].concat();
    let found = reason(&mut vision, &rules, heic);
    assert!(
        matches!(&found, Some(Reason::DecodeError(why)) if why.contains("HEIC") && why.contains("JPEG")),
        "{found:?}"
    );
}

/// A JPEG whose EXIF says how it was held.
fn held(picture: &RgbImage, orientation: u8) -> Vec<u8> {
    let mut jpeg = Cursor::new(Vec::new());
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 95)
        .encode_image(picture)
        .unwrap();
    let jpeg = jpeg.into_inner();
    let mut tiff = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01".to_vec();
    tiff.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0, 0, 0, 0, 0]);
    let length = (tiff.len() + 2) as u16;
    [&jpeg[..2], &[0xff, 0xe1], &length.to_be_bytes(), &tiff, &jpeg[2..]].concat()
}

#[test]
fn exif_orientation_is_applied() {
    let (mut vision, rules) = load_models();
    let people = people();
    let portrait = open(&people[0].enrol[0]);
    let template =
        |judgement: &Judgement| judgement.accepted().next().map(|(template, _)| template.clone());
    let upright = template(&judge(&mut vision, &rules, &[held(&portrait, 1)])).unwrap();
    // How the pixels lie in the file for each value, so that turning them as it says gives the
    // portrait.
    let lying: [(u8, RgbImage); 7] = [
        (2, imageops::flip_horizontal(&portrait)),
        (3, imageops::rotate180(&portrait)),
        (4, imageops::flip_vertical(&portrait)),
        (5, imageops::flip_horizontal(&imageops::rotate90(&portrait))),
        (6, imageops::rotate270(&portrait)),
        (7, imageops::flip_horizontal(&imageops::rotate270(&portrait))),
        (8, imageops::rotate90(&portrait)),
    ];
    for (orientation, picture) in lying {
        let found = template(&judge(&mut vision, &rules, &[held(&picture, orientation)]));
        let score = found.map(|it| it.compare(&upright));
        assert!(score.is_some_and(|it| it > 0.97), "orientation {orientation}: {score:?}");
    }
}

#[test]
fn duplicates_and_look_alikes_are_reported() {
    let (mut vision, rules) = load_models();
    let people = Faces::find().people;
    let person = people.iter().find(|it| it.enrol.len() >= 2).unwrap();
    let one = fs::read(&person.enrol[0]).unwrap();
    let two = fs::read(&person.enrol[1]).unwrap();
    let id = |text: &str| SubjectId::new(text).unwrap();
    let judged = enrol::judge(
        &mut vision,
        &Gallery::new(512),
        &id("first"),
        false,
        [one.as_slice()],
        &rules,
    )
    .unwrap();
    let template = judged.accepted().next().unwrap().0.clone();
    let subject = Subject { id: id("first"), name: Name::new("First").unwrap() };
    let gallery = Gallery::new(template.dimension()).with(subject, &[template]);
    let again = enrol::judge(
        &mut vision,
        &gallery,
        &id("second"),
        false,
        [one.as_slice(), two.as_slice()],
        &rules,
    )
    .unwrap();
    assert_eq!(again.duplicate_of, Some(id("first")));
    assert_eq!(again.look_alikes[0].0, id("first"));
    // One's own references are no duplicate.
    let own =
        enrol::judge(&mut vision, &gallery, &id("first"), false, [two.as_slice()], &rules).unwrap();
    assert!(own.duplicate_of.is_none() && own.look_alikes.is_empty(), "{own:?}");
    // Somebody else's photograph is not added to them; it may take their place.
    let stranger = people.iter().find(|it| it.id != person.id).unwrap();
    let other = fs::read(&stranger.enrol[0]).unwrap();
    let mixed = [two.as_slice(), other.as_slice()];
    let added = enrol::judge(&mut vision, &gallery, &id("first"), false, mixed, &rules).unwrap();
    assert!(matches!(added.photographs[0], Judged::Accepted { .. }), "{added:?}");
    assert!(matches!(added.photographs[1], Judged::Rejected(Reason::OtherPerson)), "{added:?}");
    let alone =
        enrol::judge(&mut vision, &gallery, &id("first"), false, [other.as_slice()], &rules)
            .unwrap();
    assert_eq!(alone.accepted().count(), 0);
    let instead =
        enrol::judge(&mut vision, &gallery, &id("first"), true, [other.as_slice()], &rules)
            .unwrap();
    assert_eq!(instead.accepted().count(), 1);
    // Too near, but not near enough to be called the same: told, and taken.
    let lenient = EnrolSettings { duplicate_margin: 1.0, ..rules };
    let near =
        enrol::judge(&mut vision, &gallery, &id("second"), false, [one.as_slice()], &lenient)
            .unwrap();
    assert!(near.duplicate_of.is_none() && near.look_alikes[0].0 == id("first"), "{near:?}");
}

/// A face that is turned so far cannot be made of one that is not.
mod needs_photographs {
    use super::{Faces, Flaw, PathBuf, Reason, fs, load_models, reason};

    #[test]
    fn a_turned_face_is_rejected() {
        let (mut vision, rules) = load_models();
        let faces = Faces::required();
        let probes = faces.people.iter().flat_map(|it| it.enrol.iter().chain(&it.probes));
        let all: Vec<PathBuf> = probes.chain(&faces.impostors).cloned().collect();
        // Those known to be turned first, so that the search is short.
        let known = ["George_Clooney/2.jpg", "celeba_07269/5.jpg", "Patrik_Kristiansson/1.jpg"];
        let (first, others): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|path| known.iter().any(|it| path.ends_with(it)));
        let turned = first.into_iter().chain(others).find(|path| {
            reason(&mut vision, &rules, fs::read(path).unwrap()) == Some(Reason::Flaw(Flaw::Turned))
        });
        println!("turned: {turned:?}");
        assert!(turned.is_some());
    }
}

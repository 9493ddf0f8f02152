//! Inputs of people's bug reports: each stands for a class, and is used, or refused with the right
//! words.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

mod needs_field_cases {
    use std::collections::BTreeMap;
    use std::fs;

    use image::{RgbImage, imageops};
    use rollcall::enrol::{self, Judged, Reason};
    use rollcall::ids::{Name, SubjectId};
    use rollcall::recognise::engine::FaceEngine as _;
    use rollcall::recognise::gallery::{Gallery, Subject};
    use rollcall::recognise::jpeg::split_clip;
    use rollcall::recognise::picture::{Picture, PictureLimits};
    use rollcall::recognise::quality::Flaw;
    use rollcall::recognise::stance::Stance;
    use rollcall::recognise::still;

    use crate::enrolment::{load_models, png, reason};
    use crate::support::faces::field_case;

    fn bytes(name: &str) -> Vec<u8> {
        fs::read(field_case(name)).unwrap()
    }

    #[test]
    fn photographs_are_used_or_named() {
        let (mut vision, rules) = load_models();
        for (file, expected) in [
            ("face.jpg", None),
            ("motion_photo_like.jpg", None),
            ("samsung_no_eoi.jpg", None),
            ("noninterleaved_420.jpg", None),
            ("orientation6_exif_prefix.webp", None),
            ("orientation6_plain.webp", None),
            ("cut_60_with_exif_thumbnail.jpg", Some("is damaged: it ends too early")),
            ("cut_60_without_thumbnail.jpg", Some("is damaged: it ends too early")),
            ("1000_bytes_missing.jpg", Some("is damaged")),
            ("arithmetic.jpg", Some("not supported (arithmetic coding): save it anew as")),
        ] {
            let found = reason(&mut vision, &rules, bytes(file));
            let right = match (&found, expected) {
                (None, None) => true,
                (Some(Reason::DecodeError(why)), Some(expected)) => why.contains(expected),
                _ => false,
            };
            assert!(right, "{file}: {found:?}");
        }
    }

    #[test]
    fn webp_orientation_is_applied_in_both_forms() {
        let decode = |name| Picture::decode(&bytes(name), PictureLimits::default()).unwrap();
        let plain = decode("orientation6_plain.webp");
        let prefixed = decode("orientation6_exif_prefix.webp");
        assert_eq!((plain.width(), plain.height()), (prefixed.width(), prefixed.height()));
        let (mut vision, _) = load_models();
        for picture in [plain, prefixed] {
            let faces = still::faces(&mut vision, &picture).unwrap();
            assert!(faces[0].stance >= Stance::SURE && faces[0].quarters == 0);
        }
    }

    #[test]
    fn small_png_of_many_pixels_is_reduced() {
        let large = Picture::decode(&bytes("rgba16_24mp.png"), PictureLimits::default()).unwrap();
        assert_eq!(large.reduction(), 2);
    }

    #[test]
    fn clips_are_split_into_their_frames() {
        for file in ["mjpeg_422.mjpeg", "mjpeg_440.mjpeg", "mjpeg_exif_thumbnails.mjpeg"] {
            let clip = bytes(file);
            let frames: Vec<&[u8]> = split_clip(&clip).collect();
            assert!(frames.len() > 1, "{file}");
            for frame in frames {
                let picture = Picture::decode(frame, PictureLimits::default());
                assert!(picture.is_ok_and(|it| it.width() >= 160), "{file}");
            }
        }
    }

    fn turned(picture: &RgbImage, quarters: usize) -> RgbImage {
        match quarters {
            0 => picture.clone(),
            1 => imageops::rotate90(picture),
            2 => imageops::rotate180(picture),
            _ => imageops::rotate270(picture),
        }
    }

    fn people(folder: &str) -> BTreeMap<String, Vec<u8>> {
        let files = fs::read_dir(field_case(folder)).unwrap().map(|it| it.unwrap().path());
        let entry = |path: std::path::PathBuf| {
            (path.file_stem().unwrap().to_str().unwrap().to_owned(), fs::read(path).unwrap())
        };
        files.map(entry).collect()
    }

    /// Enrolled from a photograph on its side or upside down, a person is found in the upright one,
    /// and is nobody else.
    #[test]
    fn turned_photographs_are_enrolled_the_right_way_up() {
        let (mut vision, rules) = load_models();
        let upright = people("upright");
        let sideways = people("sideways");
        assert_eq!(upright.len(), 13);
        for quarters in 0..4 {
            let mut gallery = Gallery::new(vision.dimension());
            let mut refused = Vec::new();
            for (person, photograph) in &upright {
                let decoded = image::load_from_memory(photograph).unwrap().to_rgb8();
                let photograph = if quarters == 0 {
                    sideways[person].clone()
                } else {
                    png(turned(&decoded, quarters))
                };
                let id = SubjectId::new(person).unwrap();
                let name = Name::new(person).unwrap();
                let judgement = enrol::judge(
                    &mut vision,
                    &gallery,
                    &id,
                    false,
                    [photograph.as_slice()],
                    &rules,
                )
                .unwrap();
                assert_eq!(judgement.duplicate_of, None, "{person}, {quarters} quarters");
                match &judgement.photographs[0] {
                    Judged::Accepted { template, .. } => {
                        gallery =
                            gallery.with(Subject { id, name }, std::slice::from_ref(template));
                    }
                    Judged::Rejected(Reason::Flaw(Flaw::Turned)) => refused.push(person.clone()),
                    Judged::Rejected(other) => panic!("{person}, {quarters} quarters: {other:?}"),
                }
            }
            assert!(refused.len() <= 1, "{quarters} quarters: {refused:?}");
            for (person, photograph) in &upright {
                let picture = Picture::decode(photograph, PictureLimits::default()).unwrap();
                let faces = still::faces(&mut vision, &picture).unwrap();
                assert_eq!(faces[0].quarters, 0, "{person} stands upright");
                let template = still::template(&mut vision, &faces[0].sample).unwrap().unwrap();
                let (best, score) = gallery
                    .alike(&template, -1.0, 0.0, &SubjectId::new("nobody").unwrap())
                    .into_iter()
                    .map(|it| (it.subject.id.as_str().to_owned(), it.score))
                    .max_by(|a, b| a.1.total_cmp(&b.1))
                    .unwrap();
                let wanted = if refused.contains(person) { best.clone() } else { person.clone() };
                assert_eq!(best, wanted, "{quarters} quarters");
                let found = refused.contains(person) || score > 0.5;
                assert!(found, "{person}, {quarters} quarters: {score}");
            }
        }
    }
}

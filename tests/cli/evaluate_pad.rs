//! `rollcall evaluate pad` end to end: real prints, live people, and a clip.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]

use std::path::{Path, PathBuf};

use clap::Parser as _;
use rollcall::cli::measure::evaluate::pad::{PadReport, evaluate};
use rollcall::cli::measure::evaluate::{Args, Test};
use rollcall::recognise::pad::{PadMode, PadSettings};
use rollcall::vision::VisionSettings;
use rollcall::vision::manifest::Precision;

use crate::support::faces;

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn measure(live: &Path, attack: &Path, mode: PadMode) -> PadReport {
    let words = ["evaluate", "pad", "--live", live.to_str().unwrap()];
    let words = words.into_iter().chain(["--attack", attack.to_str().unwrap()]);
    let Test::Pad(args) = Cli::parse_from(words).args.test else {
        panic!("these are arguments of pad")
    };
    let vision = VisionSettings {
        models: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models"),
        runtime_library: None,
        embedder: "fr_feature".into(),
        precision: Precision::Int8,
        threads: 1,
        pad: true,
    };
    let threshold = mode.default_threshold();
    let pad = PadSettings { mode, threshold, samples: 2, eye_distance_px_min: 6.0 };
    evaluate(&args, &vision, pad).unwrap()
}

#[test]
fn clip_is_judged_by_its_own_frames() {
    let dir = tempfile::tempdir().unwrap();
    let [live, attack] = ["live", "blank"].map(|name| dir.path().join(name));
    std::fs::create_dir(&live).unwrap();
    std::fs::create_dir(&attack).unwrap();
    let frame = std::fs::read(faces::demo("obama.jpg")).unwrap();
    std::fs::write(live.join("clip.mjpeg"), frame.repeat(3)).unwrap();
    image::RgbImage::new(64, 64).save(attack.join("nobody.png")).unwrap();
    let report = measure(&live, &attack, PadMode::Flag);
    let [blank, clips] = &report.species[..] else { panic!("{:?}", report.species) };
    assert_eq!((blank.name.as_str(), blank.live, blank.unjudged), ("blank", false, 1));
    assert_eq!((clips.name.as_str(), clips.live, clips.unjudged), ("clips", true, 0));
    assert_eq!((clips.frame.counted, clips.frame.of, clips.track.of), (0, 3, 1));
}

mod needs_photographs {
    use rollcall::recognise::pad::PadMode;

    use super::{faces, measure};

    #[test]
    fn prints_fail_and_live_people_pass() {
        let faces = faces::required_dir();
        for mode in [PadMode::Flag, PadMode::Enforce] {
            let report = measure(&faces.join("nuaa_0001"), &faces.join("spoof"), mode);
            let prints = report.species.iter().find(|it| it.name == "print").unwrap();
            let counts = (prints.presentations, prints.frame.counted, prints.track.counted);
            assert_eq!(counts, (60, 0, 0), "{mode:?}");
            let live = report.species.iter().find(|it| it.live).unwrap();
            assert_eq!(live.track.counted, 0, "{mode:?}");
        }
    }
}

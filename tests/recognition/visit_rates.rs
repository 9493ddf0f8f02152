//! `[recognition] fpir` is the rate of whole visits: strangers and enrolled people made of random
//! numbers pass by, and the daemon's evidence decides.
//!
//! A stranger's look is a direction at random. The looks of a visit resemble each other as those of
//! filmed people do: a slow change and noise. The threshold of one look is counted on the same
//! distribution, so what the test measures is the rule alone.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "figures, for a run by hand")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use fastrand::Rng;
use rollcall::cli::measure::evaluate::{Common, VisitsArgs, visits};
use rollcall::config;
use rollcall::ids::{Name, SubjectId};
use rollcall::recognise::decision::{Decision, DecisionSettings, Evidence, ThresholdRule};
use rollcall::recognise::face::Template;
use rollcall::recognise::gallery::{Gallery, Subject};
use rollcall::vision::manifest::TemplateSpec;

use crate::support::faces;

const DIMENSION: usize = 48;
const SUBJECTS: usize = 40;
/// Frames a second.
const FPS: usize = 10;
/// Standard deviations of what changes slowly and of what changes with each frame, of unit vectors:
/// two looks a second apart agree by .85.
const DRIFT: f32 = 0.4;
const NOISE: f32 = 0.28;
/// What is left of a drift after a frame.
const MEMORY: f32 = 0.9;

/// The sum of four even distributions, of mean 0 and standard deviation 1.
fn normal(rng: &mut Rng) -> f32 {
    3.0_f32.sqrt() * ((0..4).map(|_| rng.f32()).sum::<f32>() - 2.0)
}

/// A vector of unit length on average.
fn vector(rng: &mut Rng) -> [f32; DIMENSION] {
    let scale = (DIMENSION as f32).sqrt().recip();
    std::array::from_fn(|_| normal(rng) * scale)
}

fn gallery(people: &[[f32; DIMENSION]]) -> Gallery {
    people.iter().enumerate().fold(Gallery::new(DIMENSION), |gallery, (n, person)| {
        let id = SubjectId::new(&format!("s{n}")).unwrap();
        let reference = Template::normalised(person.to_vec()).unwrap();
        gallery.with(Subject { id, name: Name::new("S").unwrap() }, &[reference])
    })
}

/// The looks of a visit of this person.
fn looks(person: &[f32; DIMENSION], seconds: usize, rng: &mut Rng) -> Vec<Template> {
    let mut drift = vector(rng);
    let look = |_| {
        let change = vector(rng);
        let noise = vector(rng);
        let rest = (1.0 - MEMORY * MEMORY).sqrt();
        let raw = (0..DIMENSION).map(|n| {
            drift[n] = MEMORY * drift[n] + rest * change[n];
            person[n] + DRIFT * drift[n] + NOISE * noise[n]
        });
        Template::normalised(raw.collect()).unwrap()
    };
    (0..seconds * FPS).map(look).collect()
}

/// The score that this share of strangers' looks reaches.
fn score_at(share: f64, gallery: &Gallery, rng: &mut Rng) -> f32 {
    let best = |_| {
        let look = Template::normalised(vector(rng).to_vec()).unwrap();
        gallery.search(&look).best.unwrap().score
    };
    let mut scores: Vec<f32> = (0..40_000).map(best).collect();
    scores.sort_by(f32::total_cmp);
    scores[((1.0 - share) * scores.len() as f64) as usize]
}

/// The shipped rule for this target, with a threshold counted on single looks.
fn settings(fpir: f64, gallery: &Gallery, rng: &mut Rng) -> DecisionSettings {
    let threshold = score_at(fpir, gallery, rng);
    let per_decade = score_at(fpir / 10.0, gallery, rng) - threshold;
    // The rule's own target is .01: there it takes the threshold as it is.
    let subjects = gallery.subjects() as f32;
    let rule = ThresholdRule { threshold, subjects, per_decade, fpir: 0.01, fixed: None };
    DecisionSettings {
        threshold: rule,
        early_exit: None,
        samples_min: 3,
        early_margin: 0.1,
        margin_min: 0.03,
        unknown_samples: 5,
        length_min: 0.0,
    }
}

/// Who is identified in a visit: every look is a sample until somebody is unknown, then two in a
/// second are.
fn identified(
    looks: &[Template],
    gallery: &Gallery,
    settings: &DecisionSettings,
) -> Option<String> {
    let mut evidence = Evidence::default();
    let mut is_unknown = false;
    for (n, look) in looks.iter().enumerate() {
        if is_unknown && n % (FPS / 2) != 0 {
            continue;
        }
        evidence.add(look.clone());
        let first = evidence.look_first(gallery, settings).unwrap();
        match evidence.decide(first, gallery, settings) {
            Decision::Identified(found) => return Some(found.subject.id.to_string()),
            Decision::Unknown { .. } => is_unknown = true,
            Decision::Undecided => {}
        }
    }
    None
}

#[test]
fn strangers_visits_keep_to_the_target() {
    let mut rng = Rng::with_seed(15);
    let people: Vec<_> = (0..SUBJECTS).map(|_| vector(&mut rng)).collect();
    let gallery = gallery(&people);
    for (fpir, seconds) in [(0.1, 3), (0.03, 3), (0.1, 10), (0.1, 30)] {
        let settings = settings(fpir, &gallery, &mut rng);
        let visits = if seconds > 3 { 600 } else { (150.0 / fpir) as usize };
        let mut mistaken = 0;
        for _ in 0..visits {
            let stranger = vector(&mut rng);
            let looks = looks(&stranger, seconds, &mut rng);
            mistaken += usize::from(identified(&looks, &gallery, &settings).is_some());
        }
        // Three standard deviations of a count of 150.
        let rate = mistaken as f64 / visits as f64;
        println!(
            "{fpir}, {seconds} s: {mistaken} of {visits} visits, {:.2} times the target",
            rate / fpir
        );
        assert!(rate <= 1.25 * fpir, "{mistaken} of {visits} visits of {seconds} s at {fpir}");
    }
}

#[test]
fn enrolled_people_are_identified_within_a_visit() {
    let mut rng = Rng::with_seed(16);
    let people: Vec<_> = (0..SUBJECTS).map(|_| vector(&mut rng)).collect();
    let gallery = gallery(&people);
    let settings = settings(0.01, &gallery, &mut rng);
    for visit in 0..400 {
        let looks = looks(&people[visit % SUBJECTS], 3, &mut rng);
        let found = identified(&looks, &gallery, &settings);
        assert_eq!(found, Some(format!("s{}", visit % SUBJECTS)));
    }
}

/// The command itself, on the demo's photographs.
#[test]
fn photographs_become_visits() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let settings = config::load::load(Some(&root.join("config.toml")), &BTreeMap::new()).unwrap();
    let work = tempfile::tempdir().unwrap();
    let protocol = work.path().join("protocol.csv");
    let list = "file,identity,role\nobama.jpg,obama,enrol\nbiden.jpg,biden,enrol\n\
                obama2.jpg,obama,probe\nastronaut.png,collins,impostor\n";
    fs::write(&protocol, list).unwrap();
    let images = faces::demo("obama.jpg").parent().unwrap().to_owned();
    let common = Common { images, json: false, precision: None, embedder: None, workers: Some(2) };
    let args = VisitsArgs { protocol, visits: 1, seconds: 1.5, fps: 10.0, common };
    let live = |spec: &TemplateSpec| settings.recognition.live(spec);
    let report = visits::evaluate(&args, &settings.vision, live).unwrap();
    assert_eq!((report.enrolled_visits, report.stranger_visits), (1, 2));
    let configured = &report.targets[0];
    assert_eq!((configured.visit_fnir.counted, configured.visit_fpir.counted), (0, 0));
    assert_eq!(configured.mistaken, 0);
    assert!(configured.looks <= 4.0 && configured.decision_ms <= 400.0, "{report:?}");
    assert!(report.table().contains("FPIR of a visit"));
}

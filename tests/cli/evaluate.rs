//! The arithmetic of `rollcall evaluate` against figures worked out by hand, and one small
//! measurement end to end.
#![expect(clippy::unwrap_used, reason = "a test helper that fails is a failed test")]
#![expect(clippy::float_cmp, reason = "thresholds are neighbours of scores, to the bit")]

use crate::support::faces;
use std::path::{Path, PathBuf};

use clap::Parser as _;
use rollcall::cli::measure::evaluate::metrics::{NO_SCORE, OpenSet, Search, Verification};
use rollcall::cli::measure::evaluate::{Args, Test, identify, pairs};
use rollcall::recognise::decision::{DecisionSettings, ThresholdRule};
use rollcall::vision::VisionSettings;
use rollcall::vision::manifest::{Precision, TemplateSpec};

fn close(found: f64, expected: f64) {
    assert!((found - expected).abs() < 1e-9, "{found} is not {expected}");
}

#[test]
fn verification_rates_match_hand_calculation() {
    // At a threshold in (0.4, 0.5]: one of four mated below it, one of four non-mated at or above
    // it.
    let scores = Verification::new(vec![0.9, 0.8, 0.5, 0.4], vec![0.1, 0.2, 0.3, 0.6]);
    close(scores.eer(), 0.25);
    close(scores.fmr(0.5), 0.25);
    close(scores.fnmr(0.5), 0.25);
    // Equality counts as a match.
    close(scores.fmr(0.6), 0.25);
    close(scores.fmr(0.6f32.next_up()), 0.0);
    // Without a false match only 0.9 and 0.8 are left; with one in four, all but nothing: 0.4 is
    // above 0.3.
    close(scores.tmr_at_fmr(0.01), 0.5);
    close(scores.tmr_at_fmr(0.25), 1.0);
    // At 0.4: all four mated and three of four non-mated right.
    let (threshold, accuracy) = scores.best_accuracy();
    close(accuracy, 7.0 / 8.0);
    close(scores.accuracy(threshold), accuracy);
    close(scores.accuracy(0.7), 6.0 / 8.0);
}

#[test]
fn well_separated_scores_have_no_errors() {
    let scores = Verification::new(vec![0.7, 0.8], vec![0.1, 0.2]);
    close(scores.eer(), 0.0);
    close(scores.tmr_at_fmr(0.001), 1.0);
    close(scores.best_accuracy().1, 1.0);
}

#[test]
fn failure_to_acquire_is_always_error() {
    let scores = Verification::new(vec![NO_SCORE, 0.8], vec![NO_SCORE, 0.1]);
    close(scores.fnmr(-0.99), 0.5);
    close(scores.tmr_at_fmr(1.0), 0.5);
    close(scores.fmr(-0.99), 0.5);
    let open = OpenSet::new(&[None, Some(Search { score: 0.8, own: true })], &[None, Some(0.1)]);
    close(open.fnir(-0.99), 0.5);
    close(open.rank1(), 0.5);
    close(open.fpir(-0.99), 0.5);
}

#[test]
fn open_set_rates_match_hand_calculation() {
    let own = |score| Some(Search { score, own: true });
    // Of five searches by enrolled people one finds somebody else, however sure.
    let mated = [own(0.9), own(0.7), own(0.5), own(0.3), Some(Search { score: 0.95, own: false })];
    let strangers: Vec<_> = [0.6, 0.4, 0.2, 0.1, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0].map(Some).to_vec();
    let open = OpenSet::new(&mated, &strangers);
    close(open.rank1(), 0.8);
    // No stranger may pass (10 % of ten is one, 1 % is none): the threshold lies just above 0.6.
    assert_eq!(open.threshold_at_fpir(0.01), 0.6f32.next_up());
    close(open.fnir(open.threshold_at_fpir(0.01)), 3.0 / 5.0);
    // One may: just above 0.4.
    assert_eq!(open.threshold_at_fpir(0.1), 0.4f32.next_up());
    close(open.fpir(open.threshold_at_fpir(0.1)), 0.1);
    close(open.fnir(open.threshold_at_fpir(0.1)), 2.0 / 5.0);
    let det = open.det();
    assert!(det.windows(2).all(|pair| pair[0].0 >= pair[1].0 && pair[0].1 <= pair[1].1), "{det:?}");
}

#[derive(clap::Parser)]
struct Cli {
    #[command(flatten)]
    args: Args,
}

fn args(words: &[&str]) -> Test {
    Cli::parse_from(std::iter::once("evaluate").chain(words.iter().copied())).args.test
}

fn vision() -> VisionSettings {
    VisionSettings {
        models: PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models"),
        runtime_library: None,
        embedder: "fr_feature".into(),
        precision: Precision::Int8,
        threads: 1,
        pad: false,
    }
}

fn decision(spec: &TemplateSpec) -> DecisionSettings {
    let threshold = ThresholdRule {
        threshold: spec.threshold,
        subjects: spec.threshold_subjects,
        per_decade: spec.threshold_per_decade,
        fpir: 0.01,
        fixed: None,
    };
    DecisionSettings {
        threshold,
        early_exit: None,
        samples_min: 3,
        early_margin: 0.1,
        margin_min: 0.03,
        unknown_samples: 5,
        length_min: 0.0,
    }
}

/// Rows of the real list that concern few enough photographs for a test.
fn slice(list: &Path, to: &Path, keep: impl Fn(&str) -> bool) {
    let text = std::fs::read_to_string(list).unwrap();
    let rows: Vec<&str> = text
        .lines()
        .enumerate()
        .filter(|(at, row)| *at == 0 || keep(row))
        .map(|(_, row)| row)
        .collect();
    std::fs::write(to, rows.join("\n") + "\n").unwrap();
}

#[test]
fn invalid_evaluation_list_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let list = dir.path().join("list.csv");
    for (text, expected) in [
        ("file,identity,role\na.jpg,a,enrol\n", "nobody in the role probe"),
        (
            "file,identity,role\na.jpg,a,enrol\nb.jpg,a,probe\nc.jpg,a,impostor\n",
            "an impostor as well",
        ),
        ("file,identity,role\na.jpg,a,enrol\nb.jpg,b,probe\nc.jpg,c,impostor\n", "never enrolled"),
        ("file,who\na.jpg,a\n", "not the list that is wanted"),
        ("", "has no rows"),
    ] {
        std::fs::write(&list, text).unwrap();
        let Test::Identify(args) =
            args(&["identify", "--protocol", list.to_str().unwrap(), "--images", "."])
        else {
            panic!("these are arguments of identify")
        };
        let refused = identify::evaluate(&args, &vision(), decision).unwrap_err();
        assert!(format!("{refused:#}").contains(expected), "{refused:#}");
    }
}

fn pairs_of(images: &Path, list: &Path, workers: &str) -> pairs::PairsReport {
    let list = list.to_str().unwrap();
    let images = images.to_str().unwrap();
    let words = ["pairs", "--pairs", list, "--images", images, "--workers", workers];
    let Test::Pairs(args) = args(&words) else { panic!("these are arguments of pairs") };
    pairs::evaluate(&args, &vision()).unwrap()
}

/// The same figures, all there, whatever the number of workers.
fn check_pairs(images: &Path, list: &Path) -> pairs::PairsReport {
    let report = pairs_of(images, list, "1");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json, serde_json::to_value(pairs_of(images, list, "2")).unwrap());
    for key in [
        "pairs",
        "failure_to_acquire",
        "eer",
        "accuracy_best",
        "accuracy_shipped",
        "tmr_at_fmr_1e-2",
        "tmr_at_fmr_1e-3",
        "threshold_shipped",
    ] {
        assert!(json[key].is_number(), "{key}: {json}");
    }
    report
}

#[test]
fn group_rates_count_people_and_looks() {
    let dir = tempfile::tempdir().unwrap();
    let photographs = faces::demo("obama.jpg");
    let images = photographs.parent().unwrap().to_str().unwrap();
    let list = dir.path().join("list.csv");
    let rows = FETCHED_PROTOCOL.lines().enumerate().map(|(at, line)| match at {
        0 => format!("{line},house\n"),
        _ if line.contains("obama") => format!("{line},north\n"),
        _ => format!("{line},south\n"),
    });
    std::fs::write(&list, rows.collect::<String>()).unwrap();
    let list = list.to_str().unwrap();
    let words = ["identify", "--protocol", list, "--images", images, "--group", "house"];
    let Test::Identify(args) = args(&words) else { panic!("these are arguments of identify") };
    let report = identify::evaluate(&args, &vision(), decision).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    let groups = json["groups"].as_array().unwrap();
    assert_eq!(groups.iter().map(|it| &it["group"]).collect::<Vec<_>>(), ["north", "south"]);
    let [north, south] = [&groups[0], &groups[1]];
    assert_eq!((&north["enrolled_people"], &south["stranger_people"]), (&1.into(), &1.into()));
    let missed = &north["fnir_at_fpir_1e-2"];
    assert_eq!((&missed["counted"], &missed["of"]), (&0.into(), &2.into()));
    // Two looks at one person say as little as one.
    assert!(missed["high"].as_f64().unwrap() > 0.7, "{missed}");
    assert_eq!(south["fnir_shipped"]["of"], 0);
}

fn check_identify(images: &Path, list: &Path) -> identify::IdentificationReport {
    let list = list.to_str().unwrap();
    let images = images.to_str().unwrap();
    let words = ["identify", "--protocol", list, "--images", images];
    let Test::Identify(args) = args(&words) else { panic!("these are arguments of identify") };
    let report = identify::evaluate(&args, &vision(), decision).unwrap();
    let json = serde_json::to_value(&report).unwrap();
    for key in [
        "gallery_subjects",
        "references",
        "probes",
        "impostors",
        "rank1",
        "fnir_at_fpir_1e-2",
        "fnir_at_fpir_1e-3",
    ] {
        assert!(json[key].is_number(), "{key}: {json}");
    }
    assert!(
        json["thresholds"]["shipped"].is_number() && json["thresholds"]["fpir_1e-2"].is_number()
    );
    report
}

/// Of the photographs that `make setup` fetches: three pairs of one person, four of two.
const FETCHED_PAIRS: &str = "file1,file2,same\nobama.jpg,obama2.jpg,1\nobama.jpg,obama3.jpg,1\nobama2.jpg,obama3.jpg,1\n\
                             obama.jpg,biden.jpg,0\nobama2.jpg,biden.jpg,0\nobama3.jpg,astronaut.png,0\n\
                             biden.jpg,astronaut.png,0\n";
const FETCHED_PROTOCOL: &str = "file,identity,role\nobama.jpg,obama,enrol\nbiden.jpg,biden,enrol\n\
                                obama2.jpg,obama,probe\nobama3.jpg,obama,probe\nastronaut.png,astronaut,impostor\n";

#[test]
fn people_in_fetched_photographs_are_distinguished() {
    let dir = tempfile::tempdir().unwrap();
    let photographs = faces::demo("obama.jpg");
    let images = photographs.parent().unwrap();
    let list = dir.path().join("list.csv");
    std::fs::write(&list, FETCHED_PAIRS).unwrap();
    let report = check_pairs(images, &list);
    assert!(
        report.pairs == 7 && report.failure_to_acquire == 0.0 && report.eer == 0.0,
        "{report:?}"
    );
    std::fs::write(&list, FETCHED_PROTOCOL).unwrap();
    let report = check_identify(images, &list);
    assert!(
        report.gallery_subjects == 2 && report.impostors == 1 && report.rank1 == 1.0,
        "{report:?}"
    );
}

mod needs_photographs {
    use super::{check_identify, check_pairs, faces, slice};

    #[test]
    fn sample_of_many_people_is_distinguished() {
        let dir = tempfile::tempdir().unwrap();
        let images = faces::required_dir();
        let list = dir.path().join("pairs.csv");
        slice(&images.join("pairs.csv"), &list, |row| row.matches("az_").count() == 2);
        let report = check_pairs(&images, &list);
        assert!(
            report.pairs >= 10 && report.failure_to_acquire == 0.0 && report.eer < 0.1,
            "{report:?}"
        );

        let list = dir.path().join("identify.csv");
        slice(&images.join("identify.csv"), &list, |row| {
            row.starts_with("az_")
                || (row.starts_with("Aa") && row.contains(",impostor,"))
                || row.starts_with("AJ_")
        });
        let report = check_identify(&images, &list);
        assert!(
            report.gallery_subjects >= 5 && report.impostors >= 2 && report.rank1 > 0.8,
            "{report:?}"
        );
    }
}

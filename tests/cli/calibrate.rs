//! `rollcall calibrate` on a gallery whose truth is known: the figures are right, the double and
//! the look-alikes are found, and the report has nothing in it that it should not have.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use crate::support::daemon::Home;
use rollcall::clock::SimulatedClock;
use rollcall::ids::{Name, SubjectId};
use rollcall::recognise::engine::FaceEngine as _;
use rollcall::recognise::face::{Embedder, Template};
use rollcall::store::{NewReference, SinkName, Store, StoreOptions};
use rollcall::{app, cli};
use serde_json::Value;

const DIMENSION: usize = 512;

/// Always the same noise.
struct Noise(u64);

impl Noise {
    fn direction(&mut self) -> Vec<f32> {
        let mut one = || {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as f32 / (1_u64 << 31) as f32 - 0.5
        };
        // Sums of uniform numbers are as good as normal ones here.
        let raw = (0..DIMENSION).map(|_| (0..4).map(|_| one()).sum()).collect();
        Template::normalised(raw).unwrap().as_slice().to_vec()
    }

    /// A template whose score with `base` is about `score`.
    fn near(&mut self, base: &[f32], score: f32) -> Template {
        let other = self.direction();
        let rest = (1.0 - score * score).sqrt();
        Template::normalised(base.iter().zip(&other).map(|(a, b)| score * a + rest * b).collect())
            .unwrap()
    }
}

fn embedder(home: &Home) -> Embedder {
    let settings = cli::settings::load(Some(&home.path("config.toml"))).unwrap();
    app::open::load_vision(&settings).unwrap().embedder()
}

/// `count` subjects, every other one with two references; `p0001` is `p0000` again, `p0003` looks
/// like `p0002`.
fn enrol(home: &Home, count: usize) {
    let embedder = embedder(home);
    let clock = Arc::new(SimulatedClock::at(1_795_420_683_412));
    let store =
        Store::open(&home.state(), StoreOptions::new(vec![SinkName::MQTT], clock)).unwrap().store;
    let mut noise = Noise(7);
    let mut bases: Vec<Vec<f32>> = Vec::new();
    let mut all = Vec::new();
    for number in 0..count {
        let base = match number {
            1 => bases[0].clone(),
            3 => noise.near(&bases[2], 0.56).as_slice().to_vec(),
            _ => noise.direction(),
        };
        let id = SubjectId::new(&format!("p{number:04}")).unwrap();
        let exact = Template::normalised(base.clone()).unwrap();
        let mut templates = vec![if number == 1 { noise.near(&base, 0.95) } else { exact }];
        if number % 2 == 0 {
            templates.push(noise.near(&base, 0.8));
        }
        bases.push(base);
        all.push((id, templates));
    }
    let write = move |tx: &mut rollcall::store::Tx<'_>| {
        for (id, templates) in &all {
            tx.put_subject(id, &Name::new("Secret Name").unwrap())?;
            let reference = |template: &Template| NewReference {
                subject_id: id.clone(),
                embedder,
                template: template.clone(),
                quality: 0.5,
            };
            tx.add_references(&templates.iter().map(reference).collect::<Vec<_>>())?;
        }
        Ok(())
    };
    store.write(write).unwrap();
    store.close().unwrap();
}

#[test]
fn calibration_report_matches_the_gallery() {
    let home = Home::new(1, "");
    enrol(&home, 240);
    let html = home.path("report.html");
    let report = home.json(&["calibrate", "--json", "--html", html.to_str().unwrap()]);
    assert_eq!(
        (&report["subjects"], &report["references"]),
        (&Value::from(240), &Value::from(360))
    );
    assert_eq!(
        (&report["single_reference"], &report["genuine"]["pairs"]),
        (&Value::from(120), &Value::from(120))
    );
    let median = report["genuine"]["median"].as_f64().unwrap();
    assert!((median - 0.8).abs() < 0.03, "{median}");
    assert_eq!(report["genuine"]["fnmr"]["counted"], 0);
    // Each reference with every one of another subject, once.
    assert_eq!(report["impostor"]["comparisons"], (360 * 360 - 120 * 4 - 120) / 2);
    let alike = &report["look_alikes"];
    let pair = |at: usize| (alike[at]["subjects"].clone(), alike[at]["what"].clone());
    assert_eq!(pair(0), (serde_json::json!(["p0000", "p0001"]), "double".into()));
    assert_eq!(pair(1).0, serde_json::json!(["p0002", "p0003"]));
    assert_eq!((report["doubles"].clone(), alike.as_array().unwrap().len()), (1.into(), 2));
    // Nearly orthogonal people: far less than people look alike, and said so.
    let suggested = &report["suggested"];
    assert!(
        suggested["threshold"].as_f64().unwrap() < report["threshold"].as_f64().unwrap(),
        "{report}"
    );
    assert_eq!(suggested["method"], "tail");

    // Another target changes what is suggested, not what is in force; a threshold set by hand is
    // told as one.
    let loose = home.json(&["calibrate", "--json", "--fpir", "0.2"]);
    assert_eq!(loose["threshold"], report["threshold"]);
    assert!(
        loose["suggested"]["threshold"].as_f64().unwrap()
            < suggested["threshold"].as_f64().unwrap()
    );
    assert!(report["suggested_fpir"].is_null() || !report["threshold_fixed"].as_bool().unwrap());

    let text = fs::read_to_string(&html).unwrap();
    assert_eq!(fs::metadata(&html).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(text.contains("p0003") && text.contains("<svg") && text.ends_with("</html>\n"));
    for absent in ["Secret Name", "<script", "<img", "<link", "url(", "@import", "src=", "href="] {
        assert!(!text.contains(absent), "the report has {absent}");
    }
    let addresses = text.matches("://").count();
    assert_eq!(
        addresses,
        text.matches("http://www.w3.org/2000/svg").count(),
        "only the name of SVG"
    );

    // The same whatever the workers, and for people.
    let again = home.json(&["calibrate", "--json", "--workers", "3"]);
    assert_eq!((&again["look_alikes"], &again["suggested"]), (alike, suggested));
    let output = home.output(&["calibrate"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && said.contains("◀ threshold") && said.contains("Look-alikes:"),
        "{said}"
    );
    assert!(!said.contains("Secret Name"));
    assert!(
        home.json(&["calibrate", "--json", "--comparisons", "20000"])["impostor"]["sampled"]
            == true
    );
}

#[test]
fn small_gallery_gives_no_suggestion() {
    let home = Home::new(1, "");
    enrol(&home, 12);
    let report = home.json(&["calibrate", "--json"]);
    assert_eq!(report["suggested"], Value::Null);
    let output = home.output(&["calibrate"]);
    assert!(String::from_utf8(output.stdout).unwrap().contains("subjects are needed"));
}

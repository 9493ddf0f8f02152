//! Two hundred requests at once, each with a picture of two megabytes, while somebody stands before
//! the camera: memory stays within its bound, who is too many is told so, and the camera goes on
//! being looked at.
//!
//! For figures: `E2E_BURSTS=10 cargo nextest run --release --test daemon http_load:: --no-capture`
//! on an idle machine.

#![expect(clippy::print_stdout, reason = "the figures are what one wants to know of it")]
#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use crate::support::faces;
use crate::support::http;
use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Barrier;

use crate::support::daemon::{Home, scaled, until};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::imageops::FilterType;
use serde_json::json;

/// Of all requests together: four bodies in base64 and their images, one of them decoded, and what
/// the allocator keeps of it.
const GROWTH_MAX: u64 = 100 << 20;

/// A photograph of about `bytes`.
fn photograph(bytes: usize) -> Vec<u8> {
    let small = image::open(faces::demo("obama.jpg")).unwrap();
    let encoded = |side: u32| {
        let large = small.resize(side, side, FilterType::Triangle).into_rgb8();
        let mut out = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 98)
            .encode_image(&large)
            .unwrap();
        out
    };
    (10..40).map(|step| encoded(step * 200)).find(|it| it.len() >= bytes).unwrap()
}

/// Frames by how long they took at most, for each part of the way, as the daemon counts them.
fn stages(to: SocketAddr) -> BTreeMap<(String, String), u64> {
    let text = String::from_utf8(http::get(to, "/metrics", &[]).body).unwrap();
    let of_stage = |line: &str| {
        let rest = line.strip_prefix("rollcall_stage_duration_seconds_bucket{stage=\"")?;
        let (stage, rest) = rest.split_once("\",le=\"")?;
        let (most, count) = rest.split_once("\"} ")?;
        Some(((stage.to_owned(), most.to_owned()), count.parse().unwrap()))
    };
    text.lines().filter_map(of_stage).collect()
}

/// The bounds below which 50 and 95 of 100 frames of a phase stayed.
fn percentiles(
    begin: &BTreeMap<(String, String), u64>,
    end: &BTreeMap<(String, String), u64>,
) -> String {
    let of_stage = |stage: &str| {
        let seconds =
            |most: &str| if most == "+Inf" { f64::INFINITY } else { most.parse::<f64>().unwrap() };
        let mut buckets: Vec<(f64, u64)> = end
            .iter()
            .filter(|it| it.0.0 == stage)
            .map(|(key, count)| (seconds(&key.1), count - begin.get(key).unwrap_or(&0)))
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all = buckets.last().map_or(0, |it| it.1);
        let below = |share: u64| {
            buckets.iter().find(|it| it.1 * 100 >= all * share).map_or(0.0, |it| it.0 * 1e3)
        };
        format!("{stage} p50 <= {} ms, p95 <= {} ms ({all} frames)", below(50), below(95))
    };
    format!("{}; {}", of_stage("wait"), of_stage("frame"))
}

#[test]
fn request_burst_does_not_starve_camera() {
    let home = Home::new(1, "");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let text = format!(
        "[device]\nsite = \"hq\"\nname = \"door-1\"\n[clock]\ntrust = \"always\"\n[recognition]\nmodels = \"{}\"\n\
         [camera]\nsource = \"replay\"\npath = \"list.csv\"\nrepeat = true\n[http]\nlisten = \"127.0.0.1:0\"\nper_minute_max = 100000\n",
        models.display()
    );
    fs::write(home.path("config.toml"), text).unwrap();
    fs::write(home.path("list.csv"), format!("{},4000,100\n", faces::demo("biden.jpg").display()))
        .unwrap();
    let mut daemon = home.start();
    let to = http::address(&home);
    let image = photograph(2_000_000);
    assert!(image.len() < 3_000_000, "{}", image.len());
    let body = json!({"image": STANDARD.encode(image)}).to_string();
    let ask = || {
        http::send(
            to,
            "POST",
            "/recognize_faces",
            &[("content-type", "application/json")],
            body.as_bytes(),
        )
        .status
    };
    // What one of them takes is taken before.
    assert_eq!(ask(), 200);
    let analysed =
        || http::get(to, "/api/health", &[]).json()["camera"]["frames_analysed"].as_u64().unwrap();
    until("frames are looked at", || (analysed() > 10).then_some(()));

    let count = scaled("E2E_REQUESTS", 200);
    let bursts = scaled("E2E_BURSTS", 1);
    let begin = stages(to);
    let until_looked = analysed() + 80;
    until("frames are looked at with nobody asking", || (analysed() >= until_looked).then_some(()));
    let quiet = stages(to);
    let before = daemon.memory_bytes("VmRSS");
    let frames_before = analysed();
    let together = Barrier::new(count);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let one = || {
            let burst = |_| {
                together.wait();
                ask()
            };
            (0..bursts).map(burst).collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
        threads.into_iter().flat_map(|it| it.join().unwrap()).collect()
    });
    let growth = daemon.memory_bytes("VmHWM").saturating_sub(before);
    let mut counted = BTreeMap::new();
    for status in statuses {
        *counted.entry(status).or_insert(0) += 1;
    }
    let frames = analysed() - frames_before;
    println!(
        "{bursts} times {count} requests: {counted:?}; memory grew by {} MB at most",
        growth >> 20
    );
    println!("before:    {}", percentiles(&begin, &quiet));
    println!("meanwhile: {}", percentiles(&quiet, &stages(to)));
    assert!(counted.keys().all(|it| [200, 429, 503].contains(it)), "{counted:?}");
    assert!(counted[&200] > 0 && counted[&503] > 0, "{counted:?}");
    assert!(growth < GROWTH_MAX, "{growth}");
    // Somebody stood there all the time, and was seen.
    assert!(frames > 0);
    // Afterwards everything is as before.
    assert_eq!(ask(), 200);
    assert!(daemon.is_alive());
    assert!(daemon.terminate().success());
}

//! Two hundred requests at once, each with a picture of two megabytes, while somebody stands before the camera: memory stays
//! within its bound, who is too many is told so, and the camera goes on being looked at.

#![expect(clippy::print_stdout, reason = "the figures are what one wants to know of it")]
#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

#[path = "support/daemon.rs"]
mod daemon;
#[path = "support/faces.rs"]
mod faces;
#[path = "support/http.rs"]
mod http;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Barrier;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use daemon::{Home, scaled, until};
use image::imageops::FilterType;
use serde_json::json;

/// Of all requests together: four bodies in base64 and their images, one of them decoded, and what the allocator keeps of it.
const GROWTH_MAX: u64 = 100 << 20;

/// A photograph of about `bytes`.
fn photograph(bytes: usize) -> Vec<u8> {
    let small = image::open(faces::demo("obama.jpg")).unwrap();
    let encoded = |side: u32| {
        let large = small.resize(side, side, FilterType::Triangle).into_rgb8();
        let mut out = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 98).encode_image(&large).unwrap();
        out
    };
    (10..40).map(|step| encoded(step * 200)).find(|it| it.len() >= bytes).unwrap()
}

#[test]
fn two_hundred_requests_at_once_cost_neither_memory_nor_the_camera_its_turn() {
    let home = Home::new(1, "");
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let text = format!(
        "[device]\nsite = \"hq\"\nname = \"door-1\"\n[clock]\ntrust = \"always\"\n[recognition]\nmodels = \"{}\"\n\
         [camera]\nsource = \"replay\"\npath = \"list.csv\"\nrepeat = true\n[http]\nlisten = \"127.0.0.1:0\"\n",
        models.display()
    );
    fs::write(home.path("config.toml"), text).unwrap();
    fs::write(home.path("list.csv"), format!("{},4000,100\n", faces::demo("biden.jpg").display())).unwrap();
    let mut daemon = home.start();
    let to = http::address(&home);
    let image = photograph(2_000_000);
    assert!(image.len() < 3_000_000, "{}", image.len());
    let body = json!({"image": STANDARD.encode(image)}).to_string();
    let ask =
        || http::send(to, "POST", "/recognize_faces", &[("content-type", "application/json")], body.as_bytes()).status;
    // What one of them takes is taken before.
    assert_eq!(ask(), 200);
    let analysed = || http::get(to, "/api/health", &[]).json()["camera"]["frames_analysed"].as_u64().unwrap();
    until("frames are looked at", || (analysed() > 10).then_some(()));

    let (count, before, frames_before) = (scaled("E2E_REQUESTS", 200), daemon.memory_bytes("VmRSS"), analysed());
    let together = Barrier::new(count);
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let one = || {
            together.wait();
            ask()
        };
        let threads: Vec<_> = (0..count).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|it| it.join().unwrap()).collect()
    });
    let growth = daemon.memory_bytes("VmHWM").saturating_sub(before);
    let mut counted = BTreeMap::new();
    for status in statuses {
        *counted.entry(status).or_insert(0) += 1;
    }
    let frames = analysed() - frames_before;
    println!("{count} requests: {counted:?}; memory grew by {} MB at most; {frames} frames meanwhile", growth >> 20);
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

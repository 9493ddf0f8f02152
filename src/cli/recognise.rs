//! `rollcall recognise`: identifies the people in photographs. Records nothing, and works beside the
//! daemon.

use std::path::PathBuf;

use crate::app::exit;
use crate::app::open;
use crate::cli::photograph::{self, FILE_LIMITS};
use crate::config::Settings;
use crate::recognise::decision::Decision;
use crate::recognise::engine::FaceEngine;
use crate::recognise::gallery::Gallery;
use crate::recognise::picture::Picture;
use crate::recognise::still;
use crate::store::DATABASE;
use crate::vision::Vision;

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall recognise visitors/*.jpg")]
pub struct Args {
    /// Photographs: JPEG, PNG or WebP
    #[arg(required = true)]
    images: Vec<PathBuf>,
    /// Print one JSON object per photograph
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let mut vision = open::load_vision(settings)?;
    let gallery = open_gallery(settings, &vision)?;
    let mut unreadable = 0;
    for path in &args.images {
        let file = path.display().to_string();
        match recognise_faces(&mut vision, &gallery, settings, path) {
            Ok(faces) if args.json => {
                println!("{}", serde_json::json!({"file": file, "faces": faces}));
            }
            Ok(faces) if faces.is_empty() => println!("{file}: no face"),
            Ok(faces) => faces.iter().for_each(|face| println!("{file}: {}", describe_face(face))),
            Err(error) => {
                unreadable += 1;
                eprintln!("{file}: {error:#}");
            }
        }
    }
    anyhow::ensure!(
        unreadable == 0,
        "{unreadable} of {} images could not be used",
        args.images.len()
    );
    Ok(())
}

/// Returns the gallery, which is empty where there is no database yet.
fn open_gallery(settings: &Settings, vision: &Vision) -> anyhow::Result<Gallery> {
    if !settings.state_dir.join(DATABASE).is_file() {
        return Ok(Gallery::of(&vision.embedder()));
    }
    let reader = open::open_reader(settings)?;
    open::read_gallery(&reader, &vision.embedder()).map_err(exit::storage)
}

fn recognise_faces(
    vision: &mut Vision,
    gallery: &Gallery,
    settings: &Settings,
    path: &std::path::Path,
) -> anyhow::Result<Vec<serde_json::Value>> {
    let photograph = photograph::read_file(path).map_err(anyhow::Error::msg)?;
    let picture = Picture::decode(&photograph, FILE_LIMITS)?;
    drop(photograph);
    let rules = settings.recognition.decision(&vision.template_spec());
    let mut faces = Vec::new();
    for found in still::faces(vision, &picture)? {
        let decision = still::identify(vision, &found.sample, gallery, &rules)?;
        let outline = found.detection.bounding_box.scaled(picture.reduction() as f32);
        let shape = [outline.left, outline.top, outline.right, outline.bottom].map(f32::round);
        faces.push(match decision {
            Some(Decision::Identified(it)) => serde_json::json!({
                "box": shape, "subject": {"id": it.subject.id, "name": it.subject.name},
                "score": it.score, "threshold": it.threshold,
            }),
            Some(Decision::Unknown { best_score, threshold, .. }) => serde_json::json!({
                "box": shape, "subject": null, "score": best_score, "threshold": threshold,
            }),
            Some(Decision::Undecided) | None => continue,
        });
    }
    Ok(faces)
}

fn describe_face(face: &serde_json::Value) -> String {
    let score =
        face["score"].as_f64().map_or("no score".into(), |score| format!("score {score:.3}"));
    let threshold = face["threshold"].as_f64().unwrap_or_default();
    let place = format!("at {}", face["box"]);
    match face["subject"]["name"].as_str() {
        Some(name) => format!(
            "{name} ({}), {score}, threshold {threshold:.3}, {place}",
            face["subject"]["id"].as_str().unwrap_or_default()
        ),
        None => format!("nobody enrolled ({score}, threshold {threshold:.3}), {place}"),
    }
}

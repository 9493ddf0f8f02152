//! `rollcall snapshot`: one annotated picture from the running daemon, for setting up the camera.
//!
//! The only way in which a picture leaves the daemon, so it asks first, the daemon logs it, `[privacy] snapshot = false`
//! forbids it, and the file is for its owner only.

use std::fs::OpenOptions;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};

use crate::app::scene::{FaceView, View};
use crate::app::watch::{Question, SnapshotHead};
use crate::cli::canvas::{Canvas, Colour};
use crate::cli::watch::{ask, describe, read_line};
use crate::config::Settings;
use crate::recognise::picture::Picture;

/// One picture with boxes, landmarks and decisions drawn in, for setting up the camera; asks first
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where to write it (JPEG)
    #[arg(long, value_name = "JPG")]
    annotated: PathBuf,
    /// Write who was recognised into the picture, not only that somebody was
    #[arg(long)]
    names: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
}

/// Larger than any camera's picture.
const BYTES_MAX: usize = 256 << 20;

const GREEN: Colour = [60, 220, 90];
const RED: Colour = [240, 70, 60];
const AMBER: Colour = [250, 190, 40];
const BLUE: Colour = [90, 170, 255];

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let path = &args.annotated;
    ensure!(
        args.force || !path.exists(),
        "{} is there already; --force writes over it",
        path.display()
    );
    if !args.yes {
        confirm()?;
    }
    let mut answer = ask(settings, Question::Snapshot { names: args.names })?;
    let Some(head) = read_line::<SnapshotHead>(&mut answer)? else {
        bail!("the daemon has stopped");
    };
    let (width, height) = (head.view.width, head.view.height);
    ensure!(head.bytes <= BYTES_MAX, "the daemon announces {} bytes", head.bytes);
    let mut rgb = vec![0; head.bytes];
    answer.read_exact(&mut rgb).context("the daemon hung up before the picture was whole")?;
    let picture = Picture::from_rgb(width, height, rgb)
        .context("the daemon sent another picture than it announced")?;
    let annotated = annotate(picture, &head.view);
    write(args, &encode(&annotated)?)?;
    println!("{}: {width} x {height}, {} faces", path.display(), head.view.faces.len());
    for face in &head.view.faces {
        println!("  {}", describe(face));
    }
    Ok(())
}

fn confirm() -> anyhow::Result<()> {
    ensure!(
        io::stdin().is_terminal(),
        "a snapshot is a picture of whoever stands there: confirm with --yes"
    );
    print!(
        "A picture of whoever stands before the camera will be written to a file, and the daemon logs that. Go on? [y/N] "
    );
    io::stdout().flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    ensure!(["y", "yes"].contains(&line.trim().to_lowercase().as_str()), "nothing was taken");
    Ok(())
}

fn annotate(picture: Picture, view: &View) -> Picture {
    let mut canvas = Canvas::new(picture);
    for face in &view.faces {
        let colour = colour(face);
        let [left, top, right, bottom] = face.outline.map(|value| value as i32);
        canvas.outline(left, top, right, bottom, colour);
        for [x, y] in face.landmarks {
            canvas.dot(x as i32, y as i32, BLUE);
        }
        let who = face.subject_id.as_deref().unwrap_or(&face.decision);
        let score = face.score.map_or(String::new(), |score| format!(" {score:.2}"));
        canvas.text(left, bottom + 3, &format!("{} {who}{score}", face.track), colour);
        let more =
            [face.flaw.as_deref(), (face.presentation != "unjudged").then_some(&face.presentation)];
        let more: Vec<&str> = more.into_iter().flatten().collect();
        canvas.text(left, bottom + 13, &more.join(" "), colour);
    }
    let (at, look) = (view.at.as_deref().unwrap_or(""), &view.attention);
    canvas.text(4, 4, &format!("{at} {look}"), AMBER);
    canvas.into_picture()
}

fn colour(face: &FaceView) -> Colour {
    match (face.presentation.as_str(), face.decision.as_str()) {
        ("attack", _) => RED,
        (_, "identified") => GREEN,
        (_, "unknown") => BLUE,
        _ => AMBER,
    }
}

fn encode(picture: &Picture) -> anyhow::Result<Vec<u8>> {
    let mut out = io::Cursor::new(Vec::new());
    let (width, height) = (picture.width() as u32, picture.height() as u32);
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut out, 90);
    image::ImageEncoder::write_image(
        encoder,
        picture.rgb(),
        width,
        height,
        image::ExtendedColorType::Rgb8,
    )?;
    Ok(out.into_inner())
}

/// For the owner only, from the first byte on.
fn write(args: &Args, bytes: &[u8]) -> anyhow::Result<()> {
    let path = &args.annotated;
    let failed = || format!("cannot write {}", path.display());
    if args.force && path.exists() {
        // A file of ours with another mode, or a link to somewhere else, must not take the picture.
        std::fs::remove_file(path).with_context(failed)?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(failed)?;
    file.write_all(bytes).with_context(failed)
}

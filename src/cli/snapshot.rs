//! `rollcall snapshot`: writes one picture from the running daemon, with boxes around the faces,
//! to set up the camera.
//!
//! This is the only command with which a picture leaves the daemon. So it asks for confirmation,
//! the daemon logs it, `[privacy] snapshot = false` forbids it, and only the owner can read the
//! file.

use std::fs::{self, OpenOptions};
use std::io::{self, Cursor, IsTerminal as _, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, bail, ensure};
use image::codecs::jpeg::JpegEncoder;
use image::{Rgb, RgbImage};

use crate::app::preview_socket::{PreviewRequest, SnapshotHeader};
use crate::app::state::preview::PreviewFace;
use crate::cli::watch::{ask_daemon, describe_face, read_line};
use crate::config::Settings;

/// Writes one picture with boxes around the faces, to set up the camera; asks first
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sudo -u rollcall rollcall snapshot --annotated /tmp/door.jpg")]
pub struct Args {
    /// Where to write the picture (JPEG)
    #[arg(long, value_name = "JPG")]
    annotated: PathBuf,
    /// Print who was recognised, not only that somebody was
    #[arg(long)]
    names: bool,
    /// Do not ask for confirmation
    #[arg(long)]
    yes: bool,
    /// Overwrite an existing file
    #[arg(long)]
    force: bool,
}

/// Larger than the picture of any camera.
const BYTES_MAX: usize = 256 << 20;

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let path = &args.annotated;
    ensure!(
        args.force || !path.exists(),
        "{} exists already; --force overwrites it",
        path.display()
    );
    if !args.yes {
        confirm()?;
    }
    let mut reply = ask_daemon(settings, &PreviewRequest::Snapshot { names: args.names })?;
    let Some(head) = read_line::<SnapshotHeader>(&mut reply)? else {
        bail!("the daemon has stopped");
    };
    ensure!(head.bytes <= BYTES_MAX, "the daemon announces a picture of {} bytes", head.bytes);
    let mut rgb = vec![0; head.bytes];
    reply.read_exact(&mut rgb).context("the daemon disconnected before the picture's end")?;
    let view = head.view;
    let mut picture = RgbImage::from_raw(view.width as u32, view.height as u32, rgb)
        .context("the daemon sent fewer pixels than it announced")?;
    for face in &view.faces {
        draw_box(&mut picture, face.outline.map(|it| it as i32), box_colour(face).1);
    }
    let mut jpeg = Cursor::new(Vec::new());
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut jpeg, 90))?;
    write_for_owner(args, jpeg.get_ref())?;
    println!("{}: {} x {}, {} faces", path.display(), view.width, view.height, view.faces.len());
    for face in &view.faces {
        println!("  {} box: {}", box_colour(face).0, describe_face(face));
    }
    Ok(())
}

fn confirm() -> anyhow::Result<()> {
    ensure!(
        io::stdin().is_terminal(),
        "a snapshot shows the people before the camera: confirm with --yes"
    );
    print!(
        "A picture of the people before the camera will be written to a file, and the daemon logs \
         this. Continue? [y/N] "
    );
    io::stdout().flush()?;
    let mut line = String::new();
    io::stdin().read_line(&mut line)?;
    ensure!(["y", "yes"].contains(&line.trim().to_lowercase().as_str()), "no picture was taken");
    Ok(())
}

/// Draws an outline two pixels thick; what lies outside the picture is left out.
fn draw_box(picture: &mut RgbImage, outline: [i32; 4], colour: Rgb<u8>) {
    let [left, top, right, bottom] = outline;
    let edges = [
        (left, top, right, top.saturating_add(1)),
        (left, bottom.saturating_sub(1), right, bottom),
        (left, top, left.saturating_add(1), bottom),
        (right.saturating_sub(1), top, right, bottom),
    ];
    let width = picture.width() as i32;
    let height = picture.height() as i32;
    for (left, top, right, bottom) in edges {
        for y in top.max(0)..=bottom.min(height - 1) {
            for x in left.max(0)..=right.min(width - 1) {
                picture.put_pixel(x as u32, y as u32, colour);
            }
        }
    }
}

fn box_colour(face: &PreviewFace) -> (&'static str, Rgb<u8>) {
    match (face.presentation.as_str(), face.decision.as_str()) {
        ("attack", _) => ("red", Rgb([240, 70, 60])),
        (_, "identified") => ("green", Rgb([60, 220, 90])),
        (_, "unknown") => ("blue", Rgb([90, 170, 255])),
        _ => ("amber", Rgb([250, 190, 40])),
    }
}

/// Writes the file so that only its owner can read it, from the first byte on.
fn write_for_owner(args: &Args, bytes: &[u8]) -> anyhow::Result<()> {
    let path = &args.annotated;
    let failed = || format!("cannot write {}", path.display());
    if args.force && path.exists() {
        // An existing file may have another mode, or be a link to somewhere else.
        fs::remove_file(path).with_context(failed)?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(failed)?;
    file.write_all(bytes).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn box_beyond_the_picture_is_cut() {
        let mut picture = RgbImage::new(8, 8);
        draw_box(&mut picture, [-1000, 3, 5, i32::MAX], Rgb([255; 3]));
        let drawn = picture.pixels().filter(|it| it.0 == [255; 3]).count();
        // The upper edge is six wide and two high, the right one two wide down to the border.
        assert_eq!(drawn, 6 * 2 + 2 * 3);
    }
}

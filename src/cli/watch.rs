//! `rollcall watch`: shows live in a terminal what the running daemon detects and decides, without a
//! picture.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::app::preview_socket::{PreviewRejection, PreviewRequest, SOCKET};
use crate::app::state::preview::{PreviewFace, PreviewMessage};
use crate::config::Settings;

/// Shows live what the running daemon detects and decides; stores and sends no picture
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sudo -u rollcall rollcall watch --names")]
pub struct Args {
    /// Show who was recognised, not only that somebody was
    #[arg(long)]
    names: bool,
    /// Print one line of JSON for each frame
    #[arg(long)]
    json: bool,
    /// Stop after this many frames
    #[arg(long, value_name = "N")]
    frames: Option<u64>,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let mut reply = ask_daemon(settings, &PreviewRequest::Watch { names: args.names })?;
    let terminal = io::stdout().is_terminal();
    let mut shown = 0;
    while args.frames.is_none_or(|most| shown < most) {
        let Some(view) = read_line::<PreviewMessage>(&mut reply)? else {
            bail!("the daemon has stopped");
        };
        let text = if args.json {
            serde_json::to_string(&view)? + "\n"
        } else {
            let home = if terminal { "\x1b[H\x1b[J" } else { "" };
            format!("{home}{}", render_screen(&view))
        };
        let written = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
        match written {
            // `rollcall watch --json | head` is no error.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.context("cannot write")?,
        }
        shown += u64::from(view.frame.is_some());
    }
    Ok(())
}

/// A daemon that hangs must not hang whoever asks it.
const HEALTH_TIMEOUT: Duration = Duration::from_secs(5);

/// Returns the daemon's newest health message (docs/wire.md); `None` where no daemon answers.
pub fn request_health(settings: &Settings) -> Option<Value> {
    let mut answer = ask_daemon(settings, &PreviewRequest::Health).ok()?;
    answer.get_ref().set_read_timeout(Some(HEALTH_TIMEOUT)).ok()?;
    let mut line = String::new();
    answer.read_line(&mut line).ok()?;
    // An older daemon that does not know the question is at least known to run.
    Some(serde_json::from_str(&line).unwrap_or(Value::Null))
}

/// Sends a request to the running daemon.
pub fn ask_daemon(
    settings: &Settings,
    request: &PreviewRequest,
) -> anyhow::Result<BufReader<UnixStream>> {
    let path = settings.state_dir.join(SOCKET);
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            bail!("no daemon runs here ({} does not answer): start `rollcall run`", path.display());
        }
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "cannot connect to the daemon at {} (only its own user and root may)",
                    path.display()
                )
            });
        }
    };
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    stream.write_all(&line).context("the daemon does not accept the request")?;
    Ok(BufReader::new(stream))
}

/// Returns the next message, or `None` when the daemon has disconnected. A rejection is an error.
pub fn read_line<T: DeserializeOwned>(
    reply: &mut BufReader<UnixStream>,
) -> anyhow::Result<Option<T>> {
    let mut line = String::new();
    if reply.read_line(&mut line).context("the daemon has disconnected")? == 0 {
        return Ok(None);
    }
    if let Ok(refused) = serde_json::from_str::<PreviewRejection>(&line) {
        bail!("{}", refused.error);
    }
    let message = serde_json::from_str(&line);
    message.map(Some).context(
        "the message of the daemon is not known here: do daemon and program have the same version?",
    )
}

/// The width of the drawing. A character is about twice as high as wide.
const COLUMNS: usize = 64;

fn render_screen(view: &PreviewMessage) -> String {
    let counts = &view.counts;
    let mut text = format!(
        "camera {}  {}x{}  frame {}  {}\n",
        view.camera,
        view.width,
        view.height,
        view.frame.map_or("-".into(), |frame| frame.to_string()),
        view.at.as_deref().unwrap_or("-"),
    );
    let pace = if view.pace_step == 0 {
        "full speed".into()
    } else {
        format!("slowed, step {}", view.pace_step)
    };
    let celsius =
        view.cpu_celsius.map_or("no temperature".into(), |celsius| format!("{celsius:.0} °C"));
    put(&mut text, format_args!("attention: {}  {pace}  {celsius}", view.attention));
    put(
        &mut text,
        format_args!(
            "frames {} (replaced {}, analysed {}, with detector {})  templates {}",
            counts.captured, counts.replaced, counts.analysed, counts.detected, counts.templates
        ),
    );
    put(
        &mut text,
        format_args!(
            "identified {}  recorded {}  unknown {}  attacks {}  too far {}",
            counts.identified, counts.recorded, counts.unknown, counts.attacks, counts.too_far
        ),
    );
    text.push_str(&draw_faces(view));
    for (index, face) in view.faces.iter().enumerate() {
        put(&mut text, format_args!("{} {}", face_letter(index), describe_face(face)));
    }
    text
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string cannot fail");
}

/// Returns the letter of a face: A to Z, then `#`.
fn face_letter(index: usize) -> char {
    u8::try_from(index)
        .ok()
        .filter(|index| *index < 26)
        .map_or('#', |index| char::from(b'A' + index))
}

/// Draws the box of each face with its letter.
fn draw_faces(view: &PreviewMessage) -> String {
    if view.width == 0 || view.height == 0 {
        return String::new();
    }
    let rows = (COLUMNS * view.height / view.width / 2).clamp(4, 60);
    let mut cells = vec![vec![' '; COLUMNS]; rows];
    let place = |value: f32, size: usize, cells: usize| {
        ((value / size as f32 * cells as f32).max(0.0) as usize).min(cells - 1)
    };
    for (index, face) in view.faces.iter().enumerate() {
        let [left, top, right, bottom] = face.outline;
        let left = place(left, view.width, COLUMNS);
        let right = place(right, view.width, COLUMNS);
        let top = place(top, view.height, rows);
        let bottom = place(bottom, view.height, rows);
        for (y, row) in cells.iter_mut().enumerate().take(bottom + 1).skip(top) {
            for (x, cell) in row.iter_mut().enumerate().take(right + 1).skip(left) {
                if y == top || y == bottom || x == left || x == right {
                    *cell = face_letter(index);
                }
            }
        }
    }
    let edge = format!("+{}+\n", "-".repeat(COLUMNS));
    let lines = cells.into_iter().map(|row| format!("|{}|\n", row.into_iter().collect::<String>()));
    edge.clone() + &lines.collect::<String>() + &edge
}

/// Describes a face in one line; also for the legend of a snapshot.
pub fn describe_face(face: &PreviewFace) -> String {
    let name = face.name.as_deref().filter(|name| Some(*name) != face.subject_id.as_deref());
    let who = match (&face.subject_id, name) {
        (Some(id), Some(name)) => format!(" {id} ({name})"),
        (Some(id), None) => format!(" {id}"),
        _ => String::new(),
    };
    let mut parts = vec![format!("track {}: {}{who}", face.track, face.decision)];
    if let (Some(score), Some(threshold)) = (face.score, face.threshold) {
        parts.push(format!("score {score:.2} of {threshold:.2}"));
    }
    parts.push(format!("{} samples", face.samples));
    parts.push(format!("detected {:.2}", face.confidence));
    parts.extend(face.flaw.clone());
    parts.extend(face.liveness.map(|liveness| format!("{} ({liveness:.2})", face.presentation)));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> PreviewMessage {
        let face = PreviewFace {
            track: 7,
            outline: [-20.0, 120.0, 320.0, 900.0],
            landmarks: [[0.0; 2]; 5],
            confidence: 0.91,
            decision: "identified".into(),
            subject_id: Some("joe".into()),
            name: Some("Joe".into()),
            score: Some(0.613),
            threshold: Some(0.5),
            samples: 2,
            flaw: Some("blurred".into()),
            liveness: Some(0.97),
            presentation: "live".into(),
        };
        PreviewMessage {
            frame: Some(41),
            at: Some("2026-11-23T07:58:03.412Z".into()),
            width: 640,
            height: 480,
            attention: "full".into(),
            faces: vec![face],
            wanted_view: None,
            camera: "streaming".into(),
            pace_step: 0,
            cpu_celsius: None,
            counts: crate::app::state::preview::PreviewCounts::default(),
        }
    }

    #[test]
    fn watch_screen_shows_faces_and_boxes() {
        let text = render_screen(&view());
        assert!(
            text.contains(
                "A track 7: identified joe (Joe), score 0.61 of 0.50, 2 samples, detected 0.91, blurred, live (0.97)"
            ),
            "{text}"
        );
        let raster: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!((raster.len(), raster[5].trim_matches('|').trim()), (24, ""));
        // The box reaches beyond the picture on the left and below, and is drawn to its edge.
        assert!(
            raster[6].starts_with("|AAAAAAAA")
                && raster[23].starts_with("|AAAA")
                && raster[10].starts_with("|A  ")
        );
    }

    #[test]
    fn without_frames_the_state_is_shown() {
        let text = render_screen(&PreviewMessage {
            frame: None,
            at: None,
            width: 0,
            height: 0,
            faces: Vec::new(),
            ..view()
        });
        assert!(text.starts_with("camera streaming  0x0  frame -"), "{text}");
    }
}

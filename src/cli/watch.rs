//! `rollcall watch`: what the running daemon sees and decides, live in a terminal, without a picture.

use std::fmt::Write as _;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::os::unix::net::UnixStream;

use anyhow::{Context as _, bail};
use serde::de::DeserializeOwned;

use crate::app::scene::{FaceView, View};
use crate::app::watch::{Question, Refused, SOCKET};
use crate::config::Settings;

/// Live in the terminal: what the running daemon sees and decides; stores and sends no picture
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Show who was recognised, not only that somebody was
    #[arg(long)]
    names: bool,
    /// One line of JSON for each frame
    #[arg(long)]
    json: bool,
    /// Stop after so many frames
    #[arg(long, value_name = "N")]
    frames: Option<u64>,
}

pub fn run(args: &Args, settings: &Settings) -> anyhow::Result<()> {
    let mut answer = ask(settings, Question::Watch { names: args.names })?;
    let terminal = io::stdout().is_terminal();
    let mut shown = 0;
    while args.frames.is_none_or(|most| shown < most) {
        let Some(view) = read_line::<View>(&mut answer)? else {
            bail!("the daemon has stopped");
        };
        let text = if args.json {
            serde_json::to_string(&view)? + "\n"
        } else {
            let home = if terminal { "\x1b[H\x1b[J" } else { "" };
            format!("{home}{}", screen(&view))
        };
        let written = io::stdout().write_all(text.as_bytes()).and_then(|()| io::stdout().flush());
        match written {
            // `rollcall watch --json | head` is no mistake.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            other => other.context("cannot write")?,
        }
        shown += u64::from(view.frame.is_some());
    }
    Ok(())
}

/// Asks the running daemon.
pub fn ask(settings: &Settings, question: Question) -> anyhow::Result<BufReader<UnixStream>> {
    let path = settings.state_dir.join(SOCKET);
    let mut stream = match UnixStream::connect(&path) {
        Ok(stream) => stream,
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            bail!(
                "no daemon runs here (nobody answers at {}): start `rollcall run`",
                path.display()
            );
        }
        Err(error) => {
            return Err(error).with_context(|| {
                format!(
                    "cannot ask the daemon at {} (only its own user and root may)",
                    path.display()
                )
            });
        }
    };
    let mut line = serde_json::to_vec(&question)?;
    line.push(b'\n');
    stream.write_all(&line).context("the daemon does not listen")?;
    Ok(BufReader::new(stream))
}

/// The next message; `None` when the daemon has hung up. A refusal is an error.
pub fn read_line<T: DeserializeOwned>(
    answer: &mut BufReader<UnixStream>,
) -> anyhow::Result<Option<T>> {
    let mut line = String::new();
    if answer.read_line(&mut line).context("the daemon has gone")? == 0 {
        return Ok(None);
    }
    if let Ok(refused) = serde_json::from_str::<Refused>(&line) {
        bail!("{}", refused.error);
    }
    let message = serde_json::from_str(&line);
    message.map(Some).context(
        "the daemon says something that this program does not know: are they of one version?",
    )
}

/// Columns of the raster; a character is about twice as high as wide.
const COLUMNS: usize = 64;

fn screen(view: &View) -> String {
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
        "full pace".into()
    } else {
        format!("slowed, step {}", view.pace_step)
    };
    let celsius =
        view.cpu_celsius.map_or("no temperature".into(), |celsius| format!("{celsius:.0} °C"));
    put(&mut text, format_args!("looking: {}  {pace}  {celsius}", view.attention));
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
    text.push_str(&raster(view));
    for (index, face) in view.faces.iter().enumerate() {
        put(&mut text, format_args!("{} {}", mark(index), describe(face)));
    }
    text
}

fn put(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string cannot fail");
}

/// Each face's letter: A to Z, then `#`.
fn mark(index: usize) -> char {
    u8::try_from(index)
        .ok()
        .filter(|index| *index < 26)
        .map_or('#', |index| char::from(b'A' + index))
}

/// Boxes where the faces are, drawn with their letters in a frame.
fn raster(view: &View) -> String {
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
        let (left, right) = (place(left, view.width, COLUMNS), place(right, view.width, COLUMNS));
        let (top, bottom) = (place(top, view.height, rows), place(bottom, view.height, rows));
        for (y, row) in cells.iter_mut().enumerate().take(bottom + 1).skip(top) {
            for (x, cell) in row.iter_mut().enumerate().take(right + 1).skip(left) {
                if y == top || y == bottom || x == left || x == right {
                    *cell = mark(index);
                }
            }
        }
    }
    let edge = format!("+{}+\n", "-".repeat(COLUMNS));
    let lines = cells.into_iter().map(|row| format!("|{}|\n", row.into_iter().collect::<String>()));
    edge.clone() + &lines.collect::<String>() + &edge
}

/// One face in a line; also the legend of a snapshot.
pub fn describe(face: &FaceView) -> String {
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

    fn view() -> View {
        let face = FaceView {
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
        View {
            frame: Some(41),
            at: Some("2026-11-23T07:58:03.412Z".into()),
            width: 640,
            height: 480,
            attention: "full".into(),
            faces: vec![face],
            camera: "streaming".into(),
            pace_step: 0,
            cpu_celsius: None,
            counts: crate::app::scene::Counts::default(),
        }
    }

    #[test]
    fn a_screen_shows_where_and_what() {
        let text = screen(&view());
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
        let text = screen(&View {
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

//! Photographs of more people than there are: real ones, each a little cut, brightened and mirrored, for measuring what a
//! large gallery takes. They are nobody: the same face comes again under other names, so accuracy is not measured on them.

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use image::codecs::jpeg::JpegEncoder;
use image::imageops;

/// Makes a folder of people for `import --photos`, from the photographs of another
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Real photographs, in folders below this one
    #[arg(long, value_name = "DIR")]
    from: PathBuf,
    /// The folder to make
    #[arg(long, value_name = "DIR")]
    to: PathBuf,
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    count: usize,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut photographs = Vec::new();
    collect(&args.from, &mut photographs)?;
    photographs.sort();
    ensure!(!photographs.is_empty(), "{} has no photographs", args.from.display());
    fs::create_dir_all(&args.to).with_context(|| format!("cannot make {}", args.to.display()))?;
    for number in 0..args.count {
        let path = &photographs[number % photographs.len()];
        let bytes = jittered(path, number / photographs.len())?;
        let to = args.to.join(format!("Person {number:06}.jpg"));
        fs::write(&to, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    }
    println!("{} photographs made from {}", args.count, photographs.len());
    Ok(())
}

fn collect(dir: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|it| it == "jpg") {
            found.push(path);
        }
    }
    Ok(())
}

/// Another one for each round, the first as it is but for the cut.
fn jittered(path: &Path, round: usize) -> anyhow::Result<Vec<u8>> {
    let failed = || format!("cannot use {}", path.display());
    let picture = image::load_from_memory(&fs::read(path).with_context(failed)?)
        .with_context(failed)?
        .into_rgb8();
    let (width, height) = picture.dimensions();
    let cut = |side: u32, step: usize| side * (step % 5) as u32 / 100;
    let (left, top) = (cut(width, round), cut(height, round / 5));
    let cropped =
        imageops::crop_imm(&picture, left, top, (width - left).max(1), (height - top).max(1))
            .to_image();
    let mut changed = imageops::brighten(&cropped, (round % 7) as i32 * 6 - 18);
    if round % 2 == 1 {
        imageops::flip_horizontal_in_place(&mut changed);
    }
    let mut out = Cursor::new(Vec::new());
    changed.write_with_encoder(JpegEncoder::new_with_quality(&mut out, 90)).with_context(failed)?;
    Ok(out.into_inner())
}

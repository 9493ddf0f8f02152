//! Makes the pictures that the camera of the test shows: `pictures FOLDER NAME=PHOTO…` writes for
//! each photograph, and for an `empty` scene, NAME.jpg and NAME.yuyv at 640x480, both from the same
//! pixels.

use std::error::Error;
use std::fs;
use std::path::Path;

use image::codecs::jpeg::JpegEncoder;
use image::imageops::{FilterType, overlay};
use image::{ExtendedColorType, ImageEncoder, Rgb, RgbImage};

const SIZE: (u32, u32) = (640, 480);
const WALL: Rgb<u8> = Rgb([118; 3]);

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let folder = args.next().ok_or("usage: pictures FOLDER NAME=PHOTO…")?;
    write(Path::new(&folder), "empty", &RgbImage::from_pixel(SIZE.0, SIZE.1, WALL))?;
    for arg in args {
        let (name, photo) = arg.split_once('=').ok_or("a picture is NAME=PHOTO")?;
        let photo = image::open(photo).map_err(|error| format!("{photo}: {error}"))?;
        let fitted = photo.resize(SIZE.0, SIZE.1, FilterType::Triangle).into_rgb8();
        let mut scene = RgbImage::from_pixel(SIZE.0, SIZE.1, WALL);
        let x = (SIZE.0 - fitted.width()) / 2;
        let y = (SIZE.1 - fitted.height()) / 2;
        overlay(&mut scene, &fitted, x.into(), y.into());
        write(Path::new(&folder), name, &scene)?;
    }
    Ok(())
}

fn write(folder: &Path, name: &str, scene: &RgbImage) -> Result<(), Box<dyn Error>> {
    let mut jpeg = Vec::new();
    JpegEncoder::new_with_quality(&mut jpeg, 90).write_image(scene, SIZE.0, SIZE.1, ExtendedColorType::Rgb8)?;
    fs::write(folder.join(format!("{name}.jpg")), jpeg)?;
    fs::write(folder.join(format!("{name}.yuyv")), yuyv(scene))?;
    Ok(())
}

/// BT.601, brightness 16 to 235, the colour of a pair that of its mean: what a webcam sends.
fn yuyv(scene: &RgbImage) -> Vec<u8> {
    let mut bytes = Vec::with_capacity((SIZE.0 * SIZE.1 * 2) as usize);
    for pair in scene.as_raw().chunks_exact(6) {
        let channel = |at: usize| f32::from(pair[at]) / 255.0;
        let luma = |at: usize| 0.299 * channel(at) + 0.587 * channel(at + 1) + 0.114 * channel(at + 2);
        let mean = |at: usize| f32::midpoint(channel(at), channel(at + 3));
        let y = f32::midpoint(luma(0), luma(3));
        let u = 128.0 + 224.0 * (mean(2) - y) / 1.772;
        let v = 128.0 + 224.0 * (mean(0) - y) / 1.402;
        let code = |luma: f32| (16.0 + 219.0 * luma).round() as u8;
        bytes.extend([code(luma(0)), u.round() as u8, code(luma(3)), v.round() as u8]);
    }
    bytes
}

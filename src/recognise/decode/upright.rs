//! Turns a picture upright by its EXIF orientation.

use image::DynamicImage;
use image::metadata::Orientation;

use crate::recognise::picture::Picture;

/// Some writers put this before the data, as it is in a JPEG.
const PREFIX: &[u8] = b"Exif\0\0";

/// The orientation that EXIF data names. Data that cannot be read names none.
pub(super) fn orientation(exif: Option<&[u8]>) -> Orientation {
    let bare = exif.map(|exif| exif.strip_prefix(PREFIX).unwrap_or(exif));
    bare.and_then(Orientation::from_exif_chunk).unwrap_or(Orientation::NoTransforms)
}

pub(super) fn turn(picture: Picture, orientation: Orientation) -> Picture {
    if orientation == Orientation::NoTransforms {
        return picture;
    }
    let reduction = picture.reduction();
    let width = picture.width() as u32;
    let height = picture.height() as u32;
    let buffer = image::RgbImage::from_raw(width, height, picture.into_rgb())
        .expect("a picture has three bytes a pixel");
    let mut image = DynamicImage::ImageRgb8(buffer);
    image.apply_orientation(orientation);
    let turned = image.into_rgb8();
    let width = turned.width() as usize;
    let height = turned.height() as usize;
    Picture::from_rgb(width, height, turned.into_raw())
        .expect("turning keeps the number of pixels")
        .reduced_by(reduction)
}

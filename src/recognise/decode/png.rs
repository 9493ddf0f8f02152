//! PNG, row by row: its pixels may take eight bytes each, and a small file may have many.

use std::io::Cursor;

use image::metadata::Orientation;
use png::{ColorType, Decoder, DecodingError, Limits, Reader, Transformations};

use crate::recognise::decode::kept::{Reducer, check_memory, reduce};
use crate::recognise::decode::upright;
use crate::recognise::picture::{DecodeError, Picture, PictureLimits};

/// For what the decoder stores beside the pixels: palette, EXIF data, a row.
const BESIDE_BYTES_MAX: usize = 4 << 20;

pub(super) fn decode(
    bytes: &[u8],
    limits: PictureLimits,
) -> Result<(Picture, Orientation), DecodeError> {
    let mut decoder = open(bytes);
    // Eight bits for each of grey, or red, green and blue, with or without transparency.
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let (width, height) = header_size(&mut decoder)?;
    limits.check_pixels(width, height)?;
    let mut reader = decoder.read_info().map_err(|error| fault(&error))?;
    let picture = if reader.info().interlaced {
        check_memory("interlaced PNG", (width, height), 8)?;
        read_interlaced(&mut reader, width, height)?
    } else {
        read_rows(&mut reader, width, height)?
    };
    // EXIF data may also follow the pixels; damage behind them is nobody's loss.
    reader.finish().ok();
    let orientation = upright::orientation(reader.info().exif_metadata.as_deref());
    let picture = picture.ok_or_else(|| damaged("it has too few pixels"))?;
    Ok((picture, orientation))
}

pub(super) fn size(bytes: &[u8]) -> Result<(usize, usize), DecodeError> {
    header_size(&mut open(bytes))
}

fn open(bytes: &[u8]) -> Decoder<Cursor<&[u8]>> {
    Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: BESIDE_BYTES_MAX })
}

fn header_size(decoder: &mut Decoder<Cursor<&[u8]>>) -> Result<(usize, usize), DecodeError> {
    let (width, height) = decoder.read_header_info().map_err(|error| fault(&error))?.size();
    Ok((width as usize, height as usize))
}

type Source<'a> = Reader<Cursor<&'a [u8]>>;

fn read_rows(
    reader: &mut Source<'_>,
    width: usize,
    height: usize,
) -> Result<Option<Picture>, DecodeError> {
    let channels = channels(reader);
    let mut rows = Reducer::new(width, height);
    while let Some(row) = reader.next_row().map_err(|error| fault(&error))? {
        rows.take_row(row.data().chunks_exact(channels).map(colour));
    }
    Ok(rows.finish())
}

/// All rows at once, which come in seven passes.
fn read_interlaced(
    reader: &mut Source<'_>,
    width: usize,
    height: usize,
) -> Result<Option<Picture>, DecodeError> {
    let channels = channels(reader);
    let size = reader.output_buffer_size().unwrap_or(usize::MAX);
    if size != width * height * channels {
        return Err(damaged("it has two sizes"));
    }
    let mut pixels = vec![0; size];
    reader.next_frame(&mut pixels).map_err(|error| fault(&error))?;
    if channels < 3 {
        let rgb = pixels.chunks_exact(channels).flat_map(colour).collect();
        return Ok(reduce(width, height, rgb));
    }
    // In place: without transparency it only becomes shorter.
    for at in 0..width * height {
        let pixel = colour(&pixels[at * channels..][..channels]);
        pixels[at * 3..][..3].copy_from_slice(&pixel);
    }
    pixels.truncate(width * height * 3);
    pixels.shrink_to_fit();
    Ok(reduce(width, height, pixels))
}

fn channels(reader: &Source<'_>) -> usize {
    match reader.output_color_type().0 {
        ColorType::Grayscale | ColorType::Indexed => 1,
        ColorType::GrayscaleAlpha => 2,
        ColorType::Rgb => 3,
        ColorType::Rgba => 4,
    }
}

/// Red, green and blue of a pixel, without its transparency.
fn colour(pixel: &[u8]) -> [u8; 3] {
    match *pixel {
        [grey] | [grey, _] => [grey; 3],
        [red, green, blue, ..] => [red, green, blue],
        [] => [0; 3],
    }
}

/// The decoder's own words are for its developers.
fn fault(error: &DecodingError) -> DecodeError {
    match error {
        DecodingError::LimitsExceeded => {
            DecodeError::Unsupported { format: "PNG", why: "so much beside the pixels" }
        }
        DecodingError::IoError(_) => damaged("it ends too early"),
        _ => damaged("its data is broken"),
    }
}

fn damaged(why: &str) -> DecodeError {
    DecodeError::Damaged { format: "PNG", why: why.to_owned() }
}

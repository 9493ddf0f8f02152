//! PNG and WebP of every kind, and pictures that are attacks on memory.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::io::{Cursor, Write as _};

use image::{ImageFormat, Rgb, RgbImage};
use png::{BitDepth, ColorType};
use rollcall::recognise::picture::{DecodeError, Picture, PictureLimits};

fn decode(bytes: &[u8]) -> Result<Picture, DecodeError> {
    Picture::decode(bytes, PictureLimits::default())
}

/// Red in the upper left corner of black.
fn corner() -> RgbImage {
    RgbImage::from_fn(30, 20, |x, y| if x < 10 && y < 10 { Rgb([250, 0, 0]) } else { Rgb([0; 3]) })
}

fn encoded(format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    corner().write_to(&mut out, format).unwrap();
    out.into_inner()
}

/// TIFF data with this orientation.
fn tiff(orientation: u8) -> Vec<u8> {
    let mut tiff = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0".to_vec();
    tiff.extend([orientation, 0, 0, 0, 0, 0, 0]);
    tiff
}

fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 * (crc & 1)))
    })
}

fn png_chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let named = [&kind[..], data].concat();
    [&(data.len() as u32).to_be_bytes()[..], &named, &crc(&named).to_be_bytes()].concat()
}

fn riff_chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut chunk = [&kind[..], &(data.len() as u32).to_le_bytes(), data].concat();
    chunk.extend(vec![0; data.len() % 2]);
    chunk
}

fn riff(chunks: &[Vec<u8>]) -> Vec<u8> {
    let body = [b"WEBP".to_vec(), chunks.concat()].concat();
    riff_chunk(*b"RIFF", &body)
}

/// A WebP with these flags and more chunks behind the picture.
fn extended_webp(flags: u8, more: &[Vec<u8>]) -> Vec<u8> {
    let simple = encoded(ImageFormat::WebP);
    let header = [flags, 0, 0, 0, 29, 0, 0, 19, 0, 0];
    riff(&[vec![riff_chunk(*b"VP8X", &header), simple[12..].to_vec()], more.to_vec()].concat())
}

/// Turned as orientation 6 says, the red corner is at the upper right.
fn assert_turned(bytes: &[u8], what: &str) {
    let picture = decode(bytes).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((picture.width(), picture.height()), (20, 30), "{what}");
    assert_eq!((picture.clamped(19, 0), picture.clamped(0, 0)), ([250, 0, 0], [0; 3]), "{what}");
}

#[test]
fn png_orientation_is_read_before_and_behind_pixels() {
    let png = encoded(ImageFormat::Png);
    for data in [tiff(6), [b"Exif\0\0".to_vec(), tiff(6)].concat()] {
        let exif = png_chunk(*b"eXIf", &data);
        let behind_header = 33;
        let before_end = png.len() - 12;
        for at in [behind_header, before_end] {
            assert_turned(&[&png[..at], &exif, &png[at..]].concat(), "eXIf");
        }
    }
}

#[test]
fn webp_orientation_is_read_with_and_without_prefix() {
    for data in [tiff(6), [b"Exif\0\0".to_vec(), tiff(6)].concat()] {
        assert_turned(&extended_webp(0x08, &[riff_chunk(*b"EXIF", &data)]), "EXIF");
    }
    assert_eq!(decode(&extended_webp(0x08, &[riff_chunk(*b"EXIF", b"junk")])).unwrap().width(), 30);
}

/// A PNG of plain colour in this type.
fn plain_png(colour: ColorType, depth: BitDepth, pixel: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, 8, 3);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    if colour == ColorType::Indexed {
        encoder.set_palette(vec![9, 9, 9, 10, 120, 230]);
        encoder.set_trns(vec![0, 128]);
    }
    let mut writer = encoder.write_header().unwrap();
    let bits = 8 * colour.samples() * depth as usize;
    let row: Vec<u8> = pixel.iter().copied().cycle().take(bits / 8).collect();
    writer.write_image_data(&row.repeat(3)).unwrap();
    writer.finish().unwrap();
    out
}

#[test]
fn png_of_every_colour_type_is_decoded() {
    for (colour, depth, pixel, expected) in [
        (ColorType::Grayscale, BitDepth::One, &[0xFF][..], [255; 3]),
        (ColorType::Grayscale, BitDepth::Eight, &[77], [77; 3]),
        (ColorType::Grayscale, BitDepth::Sixteen, &[77, 200], [77; 3]),
        (ColorType::GrayscaleAlpha, BitDepth::Eight, &[77, 0], [77; 3]),
        (ColorType::Indexed, BitDepth::Four, &[0x11], [10, 120, 230]),
        (ColorType::Rgb, BitDepth::Eight, &[1, 2, 3], [1, 2, 3]),
        (ColorType::Rgb, BitDepth::Sixteen, &[1, 0, 2, 0, 3, 0], [1, 2, 3]),
        (ColorType::Rgba, BitDepth::Eight, &[1, 2, 3, 0], [1, 2, 3]),
        (ColorType::Rgba, BitDepth::Sixteen, &[1, 0, 2, 0, 3, 0, 4, 0], [1, 2, 3]),
    ] {
        let png = plain_png(colour, depth, pixel);
        let picture = decode(&png).unwrap();
        assert!(
            picture.rgb().as_chunks::<3>().0.iter().all(|it| *it == expected),
            "{colour:?} {depth:?}: {:?}",
            picture.clamped(0, 0)
        );
        for cut in [20, png.len() / 2, png.len() - 20] {
            let refused = decode(&png[..cut]).unwrap_err().to_string();
            assert!(refused.contains("the PNG is damaged"), "{refused}");
        }
    }
}

/// An interlaced PNG of zeroes in four channels of eight bits, its data not compressed.
fn interlaced_png(width: u32, height: u32) -> Vec<u8> {
    const PASSES: [(u32, u32, u32, u32); 7] = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ];
    let size = |(x, y, across, down): (u32, u32, u32, u32)| {
        let columns = width.saturating_sub(x).div_ceil(across);
        let rows = height.saturating_sub(y).div_ceil(down);
        if columns == 0 { 0 } else { (1 + columns as usize * 4) * rows as usize }
    };
    let total: usize = PASSES.into_iter().map(size).sum();
    let mut data = vec![0x78, 0x01];
    let mut left = total;
    while left > 0 {
        let length = left.min(65_535);
        left -= length;
        data.push(u8::from(left == 0));
        data.extend((length as u16).to_le_bytes());
        data.extend((!(length as u16)).to_le_bytes());
        data.resize(data.len() + length, 0);
    }
    data.extend(((total as u32 % 65_521) << 16 | 1).to_be_bytes());
    let header = [&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 6, 0, 0, 1]].concat();
    let chunks =
        [png_chunk(*b"IHDR", &header), png_chunk(*b"IDAT", &data), png_chunk(*b"IEND", &[])]
            .concat();
    [b"\x89PNG\r\n\x1a\n".to_vec(), chunks].concat()
}

#[test]
fn interlaced_png_is_decoded_within_memory() {
    for (width, height) in [(1, 1), (33, 17), (3, 100)] {
        let picture = decode(&interlaced_png(width, height)).unwrap();
        assert_eq!((picture.width(), picture.height()), (width as usize, height as usize));
    }
    let limits = PictureLimits { bytes: 1 << 30, ..PictureLimits::default() };
    let refused = Picture::decode(&interlaced_png(4600, 4600), limits).unwrap_err();
    assert!(matches!(refused, DecodeError::TooMuchMemory { .. }), "{refused}");
}

/// Bits, the lowest of each byte first.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    count: usize,
}

impl Bits {
    fn put(&mut self, value: usize, width: usize) {
        for bit in 0..width {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            *self.bytes.last_mut().unwrap() |= ((value >> bit & 1) as u8) << (self.count % 8);
            self.count += 1;
        }
    }

    /// A code of eight bits, its highest bit first.
    fn put_code(&mut self, symbol: usize) {
        (0..8).rev().for_each(|bit| self.put(symbol >> bit & 1, 1));
    }

    /// Declares a code with the one symbol 0.
    fn declare_single(&mut self) {
        for bit in [1, 0, 0, 0] {
            self.put(bit, 1);
        }
    }

    /// Declares a code by its symbols' lengths, which are written with four bits each.
    fn declare(&mut self, lengths: impl Iterator<Item = usize>) {
        self.put(0, 1);
        // All nineteen; those of 0 to 15 have four bits.
        self.put(15, 4);
        (0..19).for_each(|place| self.put(if matches!(place, 0 | 1 | 8) { 0 } else { 4 }, 3));
        self.put(0, 1);
        // Whose code is their value: the code lengths 0 to 15, all as long.
        lengths.for_each(|length| (0..4).rev().for_each(|bit| self.put(length >> bit & 1, 1)));
    }
}

/// A lossless WebP of 1024 x 1024 with so many groups of codes, each with tables of ten bits.
fn webp_with_groups(groups: usize) -> Vec<u8> {
    let mut bits = Bits::default();
    bits.put(0x2F, 8);
    bits.put(1023, 14);
    bits.put(1023, 14);
    bits.put(0, 4);
    // No transform, no cache; which group is used where follows, for squares of four.
    bits.put(0, 1);
    bits.put(0, 1);
    bits.put(1, 1);
    bits.put(0, 3);
    bits.put(0, 1);
    // Green and red have all values, eight bits each.
    bits.declare((0..280).map(|symbol| if symbol < 256 { 8 } else { 0 }));
    bits.declare((0..256).map(|_| 8));
    (0..3).for_each(|_| bits.declare_single());
    for at in 0..65_536 {
        let group = at % groups;
        bits.put_code(group & 0xFF);
        bits.put_code(group >> 8);
    }
    // Lengths 1 to 9, and 10 twice.
    let lengths =
        |size: usize| (0..size).map(|symbol| if symbol < 11 { (symbol + 1).min(10) } else { 0 });
    for _ in 0..groups {
        for size in [280, 256, 256, 256, 40] {
            bits.declare(lengths(size));
        }
    }
    // The pixels: the first symbol everywhere, one bit for each channel.
    bits.bytes.extend(vec![0; 1024 * 1024 / 2 + 64]);
    riff(&[riff_chunk(*b"VP8L", &bits.bytes)])
}

#[test]
fn webp_that_is_all_tables_is_refused() {
    let limits = PictureLimits { bytes: 64 << 20, ..PictureLimits::default() };
    let honest = Picture::decode(&webp_with_groups(100), limits).unwrap();
    assert_eq!(honest.width(), 1024);
    let refused = Picture::decode(&webp_with_groups(5000), limits).unwrap_err();
    assert!(matches!(refused, DecodeError::TooMuchMemory { .. }), "{refused}");
}

#[test]
fn contradictory_webp_is_refused() {
    let simple = encoded(ImageFormat::WebP);
    let picture = simple[12..].to_vec();
    for (bytes, expected) in [
        (riff(&[picture.clone(), picture.clone()]), "two pictures"),
        (extended_webp(0x02, &[]), "an animation"),
        (riff(&[riff_chunk(*b"VP8X", &[0; 10])]), "ends too early"),
        // The canvas is small, the picture is not.
        (
            riff(&[
                riff_chunk(*b"VP8X", &[0; 10]),
                riff_chunk(*b"VP8 ", b"\x10\0\0\x9d\x01\x2a\xff\x3f\xff\x3f"),
            ]),
            "16383 x 16383 pixels",
        ),
        (simple[..simple.len() - 9].to_vec(), "is damaged"),
    ] {
        let refused = decode(&bytes).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}, not {expected}");
    }
    let mut trailing = simple.clone();
    trailing.write_all(&picture).unwrap();
    assert_eq!(decode(&trailing).unwrap().width(), 30, "what follows the file is not part of it");
}

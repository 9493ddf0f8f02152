//! What decoding takes: the largest accepted picture of each kind stays below the bound, and the
//! daemon below a hundred megabytes.

#![expect(
    unsafe_code,
    clippy::unwrap_used,
    reason = "an allocator that counts is unsafe by its trait; a failure of a helper is a failed test"
)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Cursor;

use crate::support::jpegs::{Scan, Spec};
use rollcall::recognise::picture::{DecodeError, Picture, PictureLimits};

thread_local! {
    /// Bytes of this thread in use, and the most so far.
    static IN_USE: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

/// Counts what each thread takes. Decoding uses one thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(bytes: isize) {
    // A thread that ends has no counters any more.
    IN_USE.try_with(|it| it.set(it.get() + bytes)).ok();
    MOST.try_with(|most| most.set(most.get().max(IN_USE.get()))).ok();
}

// SAFETY: everything is done by the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { System.dealloc(place, layout) }
    }
    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { System.realloc(place, layout, size) }
    }
}

/// What a command accepts.
const ACCEPTED: PictureLimits = PictureLimits { bytes: 256 << 20, pixels: 25_000_000 };

/// The bound of `recognise::decode`, and a little for tables and rows.
const BYTES_MAX: isize = 82_000_000;

/// Decodes, and returns the most that was in use beside the picture's bytes.
fn measure(bytes: &[u8], limits: PictureLimits) -> (Result<Picture, DecodeError>, isize) {
    let before = IN_USE.get();
    MOST.set(before);
    let decoded = Picture::decode(bytes, limits);
    (decoded, MOST.get() - before)
}

/// EXIF data that says that the camera was held on its side.
const SIDEWAYS: &[u8] =
    b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";

fn sideways(spec: Spec) -> Spec {
    Spec { application: SIDEWAYS.to_vec(), ..spec }
}

/// A PNG without content, of this colour type and depth.
fn png(width: u32, height: u32, colour: png::ColorType, depth: png::BitDepth) -> Vec<u8> {
    let mut out = Vec::new();
    let mut encoder = png::Encoder::new(&mut out, width, height);
    encoder.set_color(colour);
    encoder.set_depth(depth);
    encoder.set_compression(png::Compression::Fastest);
    let mut writer = encoder.write_header().unwrap();
    let mut rows = writer.stream_writer().unwrap();
    let row = vec![0x55; width as usize * colour.samples() * depth as usize / 8];
    for _ in 0..height {
        std::io::Write::write_all(&mut rows, &row).unwrap();
    }
    rows.finish().unwrap();
    writer.finish().unwrap();
    out
}

fn lossless_webp(width: u32, height: u32) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    let picture = image::RgbImage::from_pixel(width, height, image::Rgb([9, 99, 199]));
    picture.write_to(&mut out, image::ImageFormat::WebP).unwrap();
    out.into_inner()
}

const LUMA_420: [(u8, u8); 3] = [(2, 2), (1, 1), (1, 1)];

#[test]
fn largest_pictures_stay_below_memory_bound() {
    let parts = Spec {
        scans: (0..3).map(|at| Scan::sequential(vec![at])).collect(),
        ..Spec::flat(5000, 5000, &[(1, 1); 3])
    };
    let cases: Vec<(&str, Vec<u8>, usize)> = vec![
        ("12.5 megapixels", sideways(Spec::flat(4080, 3072, &LUMA_420)).whole_bytes(), 1),
        ("25 megapixels", sideways(Spec::flat(5000, 5000, &LUMA_420)).whole_bytes(), 2),
        ("components apart", sideways(parts).whole_bytes(), 2),
        ("for printing", sideways(Spec::flat(5000, 5000, &[(1, 1); 4])).whole_bytes(), 2),
        ("progressive", sideways(Spec::flat(4080, 3072, &LUMA_420).progressive()).whole_bytes(), 1),
        ("PNG", png(5000, 5000, png::ColorType::Rgba, png::BitDepth::Sixteen), 2),
        ("PNG kept", png(4080, 3072, png::ColorType::Rgba, png::BitDepth::Sixteen), 1),
        ("PNG with few colours", png(5000, 5000, png::ColorType::Grayscale, png::BitDepth::One), 2),
        ("lossless WebP", lossless_webp(3100, 3100), 1),
    ];
    for (what, bytes, reduction) in cases {
        let (decoded, most) = measure(&bytes, ACCEPTED);
        let picture = decoded.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(picture.reduction(), reduction, "{what}");
        assert!(most <= BYTES_MAX, "{what}: {most} bytes");
    }
}

#[test]
fn photographs_of_phones_stay_below_memory_bound() {
    let limits = PictureLimits { bytes: 256 << 20, pixels: 220_000_000 };
    for (width, height, reduction) in [(8000, 6000, 2), (12_000, 9000, 4)] {
        let bytes = sideways(Spec::flat(width, height, &LUMA_420)).whole_bytes();
        let (decoded, most) = measure(&bytes, limits);
        let picture = decoded.unwrap();
        assert_eq!(picture.height(), usize::from(width) / reduction, "it was turned");
        assert!(most <= BYTES_MAX, "{width} x {height}: {most} bytes");
    }
}

#[test]
fn costly_pictures_are_refused_before_allocation() {
    for bytes in [
        Spec::flat(5000, 5000, &[(1, 1); 3]).progressive().whole_bytes(),
        lossless_webp(3300, 3300),
    ] {
        let (decoded, most) = measure(&bytes, ACCEPTED);
        let refused = decoded.unwrap_err();
        assert!(matches!(refused, DecodeError::TooMuchMemory { .. }), "{refused}");
        assert!(refused.to_string().contains("save it anew as an ordinary JPEG"), "{refused}");
        assert!(most < 1 << 20, "{most} bytes");
    }
}

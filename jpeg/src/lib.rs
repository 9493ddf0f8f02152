//! JPEG (ITU-T T.81): what a file declares about itself, where it ends, and its pixels.
//!
//! Every JPEG from outside passes here. First a walk goes from the start marker over all segments
//! and the entropy-coded data to the end marker (`Outline`). It takes no memory, reads each byte
//! once, and rejects by name whatever cannot be decoded, and what would cost minutes. Then the
//! scans are read (`scan`), block by block (`block`, `huffman`). The blocks of a sequential picture
//! become pixels at once (`transform`, `plane`, `colour`, `pixels`); those of a progressive one
//! when the last scan has been read (`progression`).
//!
//! The end of a JPEG is where the walk ends, never the last end marker among the bytes: an end
//! marker may stand in a thumbnail inside a segment, in a film behind the picture, or in what a
//! camera's buffer held before.
//!
//! Not here: how many pixels and how much memory are too many (the caller's limits).

use crate::huffman::Rest;
use crate::outline::{COMPONENTS_MAX, Colours, Component, Outline, Process};
use crate::pixels::{Decoded, Output, Pixels};
use crate::progression::Progression;
use crate::scan::{BlockSink, Dropped, Sequential, read_scans};
use crate::segments::{
    APPLICATION_0, APPLICATION_1, APPLICATION_2, END, HUFFMAN_TABLES, JpegFault,
    QUANTISATION_TABLES, RESTART_INTERVAL, START, START_OF_SCAN, Segment, Segments,
};
use crate::transform::Group;

mod block;
mod colour;
mod huffman;
pub mod outline;
pub mod pixels;
mod plane;
mod progression;
mod scan;
pub mod segments;
mod standard_tables;
mod transform;

/// ITU-T T.81, B.2.2: sampling factors are 1 to 4.
const SAMPLING_MAX: u8 = 4;
/// ITU-T T.81, B.2.3: blocks in a minimum coded unit.
const BLOCKS_PER_UNIT_MAX: usize = 10;
/// Usual progressive scripts have 10 scans, optimised ones up to 20; every scan visits every block.
const SCANS_MAX: usize = 64;
/// Pixels times scans: the largest photograph that is taken (25 megapixels) in 20 scans.
const SCANNED_PIXELS_MAX: u64 = 500_000_000;

const ENDS_TOO_EARLY: JpegFault = JpegFault::Damaged("it ends too early");

impl Outline {
    /// Walks over all of `bytes`' picture. What follows its end marker is ignored. Rejects what the
    /// decoder cannot take.
    pub fn read(bytes: &[u8]) -> Result<Self, JpegFault> {
        let mut walk = Walk::default();
        for segment in Segments::of(bytes)? {
            match segment.marker {
                END => return walk.make_outline(segment.at, true),
                // Another picture begins: this one's end marker is missing.
                START if walk.scans > 0 => return walk.make_outline(segment.at, false),
                _ => walk.take_segment(&segment)?,
            }
        }
        walk.make_outline(bytes.len(), false)
    }

    /// Checks that all coded data is there, as far as can be found out without decoding. A
    /// sequential picture's blocks are counted, so that data lost anywhere is found; a missing end
    /// marker alone is then no fault. A progressive picture must have its end marker.
    pub fn check_whole(&self, bytes: &[u8]) -> Result<(), JpegFault> {
        match self.process {
            Process::Sequential => self.read_sequential(bytes, &mut Dropped(Group::EMPTY)),
            Process::Progressive => self.check_end_marker(),
        }
    }

    /// Decodes to `1 / 2^halvings` of the width and height, rounded up: red, green and blue.
    /// Refuses pictures that are not whole, as `check_whole` does, and all in which a code is
    /// impossible.
    ///
    /// Takes three bytes for each pixel of the result; with components in several scans one more
    /// for each of its samples; of a progressive picture 17 bits more for each sample that is
    /// stored.
    pub fn decode(&self, bytes: &[u8], halvings: u32) -> Result<Decoded, JpegFault> {
        self.decode_to(bytes, Pixels::new(self, halvings, Output::Rgb))
    }

    /// Decodes the brightness alone, of grey pictures and those in YCbCr.
    pub fn decode_luma(&self, bytes: &[u8]) -> Result<Decoded, JpegFault> {
        self.decode_to(bytes, Pixels::new(self, 0, Output::Luma))
    }

    fn decode_to(&self, bytes: &[u8], mut pixels: Pixels) -> Result<Decoded, JpegFault> {
        if self.is_in_parts() && matches!(self.colours, Colours::Cmyk | Colours::Ycck) {
            return Err(JpegFault::Unsupported(
                "four colours (for printing), each in its own scan",
            ));
        }
        match self.process {
            Process::Sequential => self.read_sequential(bytes, &mut pixels)?,
            Process::Progressive => {
                self.check_end_marker()?;
                let mut progression = Progression::new(self);
                read_scans(self, bytes, &mut progression)?;
                progression.finish(&mut pixels);
            }
        }
        Ok(pixels.finish())
    }

    fn read_sequential<S: BlockSink>(&self, bytes: &[u8], sink: &mut S) -> Result<(), JpegFault> {
        let mut reader = Sequential { sink, means: [0; COMPONENTS_MAX] };
        let rest = read_scans(self, bytes, &mut reader)?;
        self.check_end(rest, bytes)
    }

    fn check_end_marker(&self) -> Result<(), JpegFault> {
        if self.has_end_marker { Ok(()) } else { Err(ENDS_TOO_EARLY) }
    }

    fn check_end(&self, rest: Rest, bytes: &[u8]) -> Result<(), JpegFault> {
        let is_whole = self.has_end_marker || rest.is_end_of_picture(bytes);
        if is_whole { Ok(()) } else { Err(ENDS_TOO_EARLY) }
    }
}

/// The EXIF data of the JPEG at the beginning of `bytes`, if it has some.
pub fn exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut segments = Segments::of(bytes).ok()?.take_while(|it| it.marker != START_OF_SCAN);
    segments.find_map(|segment| {
        let exif = segment.payload?.strip_prefix(b"Exif\0\0")?;
        (segment.marker == APPLICATION_1).then_some(exif)
    })
}

/// Cuts a clip into its pictures, in their order. What lies between them is skipped: films and
/// other data that phones append, and the further pictures that a photograph says it has (its
/// depth, its brightness), which show nothing else.
///
/// A picture ends where the walk over its segments does. One that cannot be walked over ends where
/// the next one begins, and is a damaged picture.
pub fn split_clip(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut at = 0;
    let mut parts_to_skip = 0;
    std::iter::from_fn(move || {
        loop {
            let start = at + find_start(bytes.get(at..)?)?;
            let rest = &bytes[start..];
            let length = extent(rest)
                .unwrap_or_else(|| 2 + find_start(&rest[2..]).unwrap_or(rest.len() - 2));
            at = start + length;
            let picture = &rest[..length];
            if parts_to_skip > 0 {
                parts_to_skip -= 1;
                continue;
            }
            parts_to_skip = further_pictures(picture);
            return Some(picture);
        }
    })
}

/// The length of the JPEG at the beginning of `bytes`, to behind its end marker or to where another
/// one begins. Does not check the picture.
pub fn extent(bytes: &[u8]) -> Option<usize> {
    for segment in Segments::of(bytes).ok()? {
        match segment.marker {
            END => return Some(segment.at + 2),
            START => return Some(segment.at),
            _ if segment.payload.is_none() => return None,
            _ => {}
        }
    }
    Some(bytes.len())
}

/// Where the next picture begins: a start marker and a first segment that is followed by another
/// one. In other data, the start marker alone comes by chance once in 16 MB.
fn find_start(bytes: &[u8]) -> Option<usize> {
    let is_start = |at: &usize| {
        let [0xFF, START, 0xFF, marker, high, low, ..] = bytes[*at..] else { return false };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let opens = matches!(
            marker,
            HUFFMAN_TABLES | QUANTISATION_TABLES | RESTART_INTERVAL | 0xC0..=0xC2 | 0xE0..=0xEF | 0xFE
        );
        // Cut off there, it is still a picture, though a damaged one.
        opens && length >= 2 && bytes.get(*at + 4 + length).is_none_or(|next| *next == 0xFF)
    };
    (0..bytes.len().saturating_sub(5)).find(is_start)
}

/// How many pictures follow that belong to this one (CIPA DC-007, multi-picture format).
fn further_pictures(picture: &[u8]) -> usize {
    const NUMBER_OF_IMAGES: u16 = 0xB001;
    /// One maker's bursts have 100.
    const PICTURES_MAX: u32 = 256;
    let count = || -> Option<u32> {
        let segments = Segments::of(picture).ok()?.take_while(|it| it.marker != START_OF_SCAN);
        let tiff = segments
            .filter(|it| it.marker == APPLICATION_2)
            .find_map(|segment| segment.payload?.strip_prefix(b"MPF\0"))?;
        let is_little = tiff.starts_with(b"II");
        let number = |at: usize, length: usize| -> Option<u32> {
            let digits = tiff.get(at..at.checked_add(length)?)?.iter();
            let join = |number: u32, digit: &u8| number << 8 | u32::from(*digit);
            Some(if is_little { digits.rev().fold(0, join) } else { digits.fold(0, join) })
        };
        let directory = number(4, 4)? as usize;
        let entries = number(directory, 2)?;
        let entry = (0..entries as usize)
            .map(|entry| directory.saturating_add(2 + entry * 12))
            .find(|at| number(*at, 2) == Some(u32::from(NUMBER_OF_IMAGES)))?;
        number(entry + 8, 4)
    };
    count()
        .filter(|count| *count <= PICTURES_MAX)
        .map_or(0, |count| count.saturating_sub(1) as usize)
}

/// What has been read so far.
#[derive(Default)]
struct Walk {
    frame: Option<FrameHeader>,
    is_jfif: bool,
    adobe_transform: Option<u8>,
    has_tables: bool,
    scans: usize,
    /// Whether each component's mean values have come.
    begun: [bool; COMPONENTS_MAX],
    /// Down to which bit each coefficient of a progressive picture has come.
    coded: Coded,
}

struct Coded([[Option<u8>; 64]; COMPONENTS_MAX]);

impl Default for Coded {
    fn default() -> Self {
        Self([[None; 64]; COMPONENTS_MAX])
    }
}

#[derive(Clone, Copy)]
struct FrameHeader {
    process: Process,
    width: usize,
    height: usize,
    components: [Component; COMPONENTS_MAX],
    count: usize,
}

impl Walk {
    fn take_segment(&mut self, segment: &Segment<'_>) -> Result<(), JpegFault> {
        let payload = segment.payload.ok_or(ENDS_TOO_EARLY)?;
        match segment.marker {
            HUFFMAN_TABLES => self.has_tables |= self.scans == 0,
            0xC0 | 0xC1 => self.take_frame(Process::Sequential, payload)?,
            0xC2 => self.take_frame(Process::Progressive, payload)?,
            START_OF_SCAN => self.take_scan(payload)?,
            APPLICATION_0 if payload.starts_with(b"JFIF\0") => self.is_jfif = true,
            0xEE if payload.starts_with(b"Adobe") => {
                self.adobe_transform = payload.get(11).copied();
            }
            // Application data and comments.
            QUANTISATION_TABLES | RESTART_INTERVAL | 0xE0..=0xEF | 0xFE => {}
            marker => return Err(refused_marker(marker)),
        }
        Ok(())
    }

    fn take_frame(&mut self, process: Process, payload: &[u8]) -> Result<(), JpegFault> {
        if self.frame.is_some() {
            return Err(JpegFault::Damaged("it has two frame headers"));
        }
        let Some(([precision, h1, h0, w1, w0, count], rest)) = payload.split_first_chunk::<6>()
        else {
            return Err(JpegFault::Damaged("its frame header is too short"));
        };
        if *precision != 8 {
            return Err(JpegFault::Unsupported("more or fewer than 8 bits a colour"));
        }
        let width = usize::from(u16::from_be_bytes([*w1, *w0]));
        let height = usize::from(u16::from_be_bytes([*h1, *h0]));
        if height == 0 && width > 0 {
            return Err(JpegFault::Unsupported("its height stands behind the data"));
        }
        if width == 0 || height == 0 {
            return Err(JpegFault::Damaged("it has no size"));
        }
        let count = usize::from(*count);
        if count == 2 {
            return Err(JpegFault::Unsupported("two colour components"));
        }
        if !matches!(count, 1 | 3 | 4) || rest.len() != count * 3 {
            return Err(JpegFault::Damaged("its frame header has a wrong number of components"));
        }
        let mut components = read_components(rest)?;
        if count == 1 {
            // Its blocks stand one after another, whatever it declares (T.81, A.2.2).
            components[0].horizontal = 1;
            components[0].vertical = 1;
        }
        self.frame = Some(FrameHeader { process, width, height, components, count });
        Ok(())
    }

    fn take_scan(&mut self, payload: &[u8]) -> Result<(), JpegFault> {
        let frame =
            self.frame.ok_or(JpegFault::Damaged("its data begins before its frame header"))?;
        let count = usize::from(payload.first().copied().unwrap_or_default());
        if !(1..=frame.count).contains(&count) || payload.len() != 4 + 2 * count {
            return Err(JpegFault::Damaged("a scan header has a wrong length"));
        }
        self.scans += 1;
        let pixels = frame.width as u64 * frame.height as u64;
        if self.scans > SCANS_MAX
            || (self.scans > 1 && pixels * (self.scans as u64 - 1) > SCANNED_PIXELS_MAX)
        {
            return Err(JpegFault::Unsupported("so many scans of so large a picture"));
        }
        let named = scan_components(&frame, &payload[1..=2 * count])?;
        match frame.process {
            Process::Sequential => self.take_part(named),
            Process::Progressive => self.take_progression(named, count, &payload[1 + 2 * count..]),
        }
    }

    /// A scan of a sequential picture has all there is of its components.
    fn take_part(&mut self, named: [bool; COMPONENTS_MAX]) -> Result<(), JpegFault> {
        for (begun, named) in self.begun.iter_mut().zip(named) {
            if *begun && named {
                return Err(JpegFault::Damaged("it has a scan too many"));
            }
            *begun |= named;
        }
        Ok(())
    }

    /// Coefficients `from` to `to`, at which bit they stand and stood before (ITU-T T.81, G.1.1.1).
    fn take_progression(
        &mut self,
        named: [bool; COMPONENTS_MAX],
        count: usize,
        parameters: &[u8],
    ) -> Result<(), JpegFault> {
        let [from, to, bits] = *parameters else {
            return Err(JpegFault::Damaged("a scan header has a wrong length"));
        };
        let before = bits >> 4;
        let now = bits & 0xF;
        let mean_values = from == 0 && to == 0;
        let details = (1..=63).contains(&from) && (from..=63).contains(&to) && count == 1;
        let refined = before == 0 || before == now + 1;
        if !(mean_values || details) || !refined || now > 13 {
            return Err(JpegFault::Damaged("a scan header is impossible"));
        }
        for (at, _) in named.iter().enumerate().filter(|(_, named)| **named) {
            if !self.begun[at] && (details || before > 0) {
                return Err(JpegFault::Damaged("details of a colour come before its mean values"));
            }
            self.begun[at] = true;
            for bit in &mut self.coded.0[at][from.into()..=to.into()] {
                if bit.unwrap_or(0) != before {
                    return Err(JpegFault::Damaged("a scan is missing"));
                }
                *bit = Some(now);
            }
        }
        Ok(())
    }

    fn make_outline(&self, end: usize, has_end_marker: bool) -> Result<Outline, JpegFault> {
        let frame = self.frame.ok_or(if has_end_marker {
            JpegFault::Damaged("it has no size")
        } else {
            ENDS_TOO_EARLY
        })?;
        if self.scans == 0 {
            return Err(ENDS_TOO_EARLY);
        }
        if !self.begun[..frame.count].iter().all(|begun| *begun) {
            return Err(ENDS_TOO_EARLY);
        }
        let ids = frame.components.map(|component| component.id);
        // Where they contradict each other, as libjpeg decides: JFIF, then Adobe, then the names.
        let colours = match (frame.count, self.adobe_transform) {
            (1, _) => Colours::Grey,
            (3, _) if self.is_jfif => Colours::YCbCr,
            (3, Some(0)) => Colours::Rgb,
            (3, None) if ids.starts_with(b"RGB") => Colours::Rgb,
            (3, _) => Colours::YCbCr,
            (_, None | Some(0)) => Colours::Cmyk,
            _ => Colours::Ycck,
        };
        Ok(Outline {
            width: frame.width,
            height: frame.height,
            process: frame.process,
            colours,
            has_tables: self.has_tables,
            scans: self.scans,
            components: frame.components,
            component_count: frame.count,
            end,
            has_end_marker,
        })
    }
}

/// Three bytes each: the name, both sampling factors, the quantisation table.
fn read_components(declared: &[u8]) -> Result<[Component; COMPONENTS_MAX], JpegFault> {
    let mut components = [Component::default(); COMPONENTS_MAX];
    for (at, [id, factors, table]) in declared.as_chunks::<3>().0.iter().enumerate() {
        let horizontal = factors >> 4;
        let vertical = factors & 0xF;
        let possible = 1..=SAMPLING_MAX;
        if !possible.contains(&horizontal) || !possible.contains(&vertical) || *table > 3 {
            return Err(JpegFault::Damaged("a colour component is impossible"));
        }
        if components[..at].iter().any(|other| other.id == *id) {
            return Err(JpegFault::Damaged("two colour components have the same number"));
        }
        // Only powers of two are decoded. Of a component that is alone, the factors mean nothing.
        if declared.len() > 3 && (horizontal == 3 || vertical == 3) {
            return Err(JpegFault::Unsupported("a colour component sampled in threes"));
        }
        // The first component has the most samples: the size of a minimum coded unit is taken from
        // it.
        if at > 0 && (horizontal > components[0].horizontal || vertical > components[0].vertical) {
            return Err(JpegFault::Unsupported("a colour sampled finer than the brightness"));
        }
        components[at] = Component { id: *id, horizontal, vertical, table: *table };
    }
    Ok(components)
}

/// Which of the frame's components a scan names, two bytes each. They stand in the frame's order
/// (T.81, B.2.3).
fn scan_components(
    frame: &FrameHeader,
    declared: &[u8],
) -> Result<[bool; COMPONENTS_MAX], JpegFault> {
    let mut named = [false; COMPONENTS_MAX];
    let mut next = 0;
    let mut blocks = 0;
    for [id, _] in declared.as_chunks::<2>().0 {
        let found = (next..frame.count).find(|at| frame.components[*at].id == *id);
        let at = found
            .ok_or(JpegFault::Damaged("a scan names a component that is not there, or twice"))?;
        named[at] = true;
        next = at + 1;
        blocks += usize::from(frame.components[at].horizontal)
            * usize::from(frame.components[at].vertical);
    }
    if declared.len() > 2 && blocks > BLOCKS_PER_UNIT_MAX {
        return Err(JpegFault::Damaged("a scan has too many samples at once"));
    }
    Ok(named)
}

fn refused_marker(marker: u8) -> JpegFault {
    match marker {
        0xC3 => JpegFault::Unsupported("lossless coding"),
        0xC5..=0xC7 | 0xDE | 0xDF => JpegFault::Unsupported("hierarchical coding"),
        0xC9..=0xCF => JpegFault::Unsupported("arithmetic coding"),
        0xDC => JpegFault::Unsupported("its height stands behind the data"),
        0xF7 => JpegFault::Unsupported("JPEG-LS"),
        _ => JpegFault::Damaged("it has an unknown marker"),
    }
}

#[cfg(test)]
mod tests;

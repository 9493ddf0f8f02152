//! Cuts a stream of bytes into pictures, as the bytes come.
//!
//! Motion JPEG is cut by the structure of its pictures: from the start marker over all segments and
//! the coded data to the end marker, so that markers inside a thumbnail or between two pictures do
//! not count. What stands between pictures is skipped: the heads of multipart messages, padding,
//! garbage. A picture whose end marker is missing ends where the next one begins. Raw pictures have
//! all the same size, and nothing shows where one begins: a stream that lost a byte stays shifted.
//!
//! Invariants: on average every byte is read at most [`READS`] times, and at most
//! [`JPEG_BYTES_MAX`] or one raw picture is held. Whether a picture is whole is for `camera::encoded` to find out.

/// Larger than any camera's JPEG: 33 megapixels at half a byte each.
pub const JPEG_BYTES_MAX: usize = 16 << 20;

/// What was cut off the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    Picture(&'a [u8]),
    /// Something that began as a picture and is none.
    Broken(&'static str),
}

#[derive(Debug)]
pub struct Splitter {
    kind: Splitting,
    /// Bytes that came and are not cut off yet.
    held: Vec<u8>,
    /// Where the part of `held` that is of use begins.
    start: usize,
    /// Bytes that may still be read again.
    again: usize,
}

#[derive(Debug)]
enum Splitting {
    Raw { picture_bytes: usize },
    Jpeg(JpegWalk),
}

/// Where in a picture the walk is; positions are relative to the start marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JpegWalk {
    /// Before a start marker.
    Outside,
    /// A marker is expected at this place, after so many segments.
    Marker { at: usize, segments: usize },
    /// Coded data; everything before this place was read.
    Coded { at: usize, segments: usize },
}

/// Cameras' pictures have a dozen, progressive ones some more for each scan. Bounds what a broken
/// picture costs.
const SEGMENTS_MAX: usize = 64;

/// How often the bytes of broken pictures are read, on average. Made to order, each place of a
/// segment could begin another one that ends megabytes later.
const READS: usize = 5;
/// Bytes that may be read again at first, and at most at once.
const AGAIN_MIN: usize = 1 << 16;
const AGAIN_MAX: usize = 4 * JPEG_BYTES_MAX;

/// Markers without a segment: restart markers and TEM.
fn stands_alone(marker: u8) -> bool {
    matches!(marker, 0x01 | 0xD0..=0xD7)
}

const START: u8 = 0xD8;
const END: u8 = 0xD9;
const START_OF_SCAN: u8 = 0xDA;

/// What the walk found.
enum WalkResult {
    More,
    /// A picture up to this place.
    Picture(usize),
    /// Another picture begins at this place, where a segment should.
    CutOff(usize),
    /// No picture; everything before this place was read.
    Broken(usize),
}

impl Splitter {
    pub fn jpeg() -> Self {
        Self::new(Splitting::Jpeg(JpegWalk::Outside))
    }

    pub fn raw(picture_bytes: usize) -> Self {
        let picture_bytes = picture_bytes.max(1);
        Self::new(Splitting::Raw { picture_bytes })
    }

    fn new(kind: Splitting) -> Self {
        Self { kind, held: Vec::new(), start: 0, again: AGAIN_MIN }
    }

    /// Takes what was read. `next_piece` must have returned `None` before.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 {
            self.held.drain(..self.start);
            self.start = 0;
        }
        self.held.extend_from_slice(bytes);
        self.again = (self.again + bytes.len() * (READS - 1)).min(AGAIN_MAX);
    }

    /// Whether a picture has begun and not ended.
    pub fn is_within_picture(&self) -> bool {
        match self.kind {
            Splitting::Raw { .. } => self.held.len() > self.start,
            Splitting::Jpeg(walk) => walk != JpegWalk::Outside,
        }
    }

    pub fn next_piece(&mut self) -> Option<Piece<'_>> {
        let rest = &self.held[self.start..];
        match &mut self.kind {
            Splitting::Raw { picture_bytes } => {
                let length = *picture_bytes;
                let picture = rest.get(..length)?;
                self.start += length;
                Some(Piece::Picture(picture))
            }
            Splitting::Jpeg(walk) => {
                if *walk == JpegWalk::Outside {
                    let begin = find_start(rest);
                    self.start +=
                        begin.unwrap_or_else(|| rest.len() - usize::from(ends_in_ff(rest)));
                    begin?;
                    *walk = JpegWalk::Marker { at: 2, segments: 0 };
                }
                let rest = &self.held[self.start..];
                match walk.go_on(rest) {
                    WalkResult::More if rest.len() > JPEG_BYTES_MAX => {
                        *walk = JpegWalk::Outside;
                        self.start = self.held.len();
                        Some(Piece::Broken("a picture without an end"))
                    }
                    WalkResult::More => None,
                    WalkResult::Picture(length) => {
                        *walk = JpegWalk::Outside;
                        self.start += length;
                        Some(Piece::Picture(&rest[..length]))
                    }
                    WalkResult::CutOff(length) => {
                        *walk = JpegWalk::Outside;
                        self.start += length;
                        Some(Piece::Broken("a picture was cut off"))
                    }
                    // One that was cut off within a segment takes the next one for its content: the
                    // search goes on behind its start marker, but not without end.
                    WalkResult::Broken(read) => {
                        *walk = JpegWalk::Outside;
                        let left = self.again.checked_sub(read);
                        self.start += if left.is_some() { 2 } else { read.clamp(2, rest.len()) };
                        self.again = left.unwrap_or(self.again);
                        Some(Piece::Broken("a broken picture"))
                    }
                }
            }
        }
    }
}

fn find_start(bytes: &[u8]) -> Option<usize> {
    bytes.windows(3).position(|three| three == [0xFF, START, 0xFF])
}

/// How many bytes at the end may belong to a start marker that is still coming.
fn ends_in_ff(bytes: &[u8]) -> u8 {
    if bytes.ends_with(&[0xFF, START]) { 2 } else { u8::from(bytes.ends_with(&[0xFF])) }
}

impl JpegWalk {
    fn go_on(&mut self, bytes: &[u8]) -> WalkResult {
        loop {
            match *self {
                Self::Outside => return WalkResult::More,
                Self::Marker { at, segments } => match take_segment(bytes, at) {
                    _ if segments > SEGMENTS_MAX => return WalkResult::Broken(at),
                    MarkerSegment::Incomplete => return WalkResult::More,
                    MarkerSegment::None { next } => *self = Self::Marker { at: next, segments },
                    MarkerSegment::Data { next } => {
                        *self = Self::Marker { at: next, segments: segments + 1 };
                    }
                    MarkerSegment::Scan { next } => {
                        *self = Self::Coded { at: next, segments: segments + 1 };
                    }
                    MarkerSegment::End { next } => return WalkResult::Picture(next),
                    MarkerSegment::Start => return WalkResult::CutOff(at),
                    MarkerSegment::Invalid => return WalkResult::Broken(at),
                },
                Self::Coded { at, segments } => {
                    let rest = bytes.get(at..).unwrap_or_default();
                    let Some(marker) = find_marker(rest) else {
                        let read = rest.len() - usize::from(rest.ends_with(&[0xFF]));
                        *self = Self::Coded { at: at + read, segments };
                        return WalkResult::More;
                    };
                    let at = at + marker;
                    // The picture before lacks its end marker: it may still be whole.
                    if bytes[at + 1] == START {
                        return WalkResult::Picture(at);
                    }
                    *self = Self::Marker { at, segments };
                }
            }
        }
    }
}

/// What stands at a place where a marker is expected.
enum MarkerSegment {
    Incomplete,
    /// No segment, but a marker may follow: fill bytes, markers that stand alone.
    None {
        next: usize,
    },
    Data {
        next: usize,
    },
    /// The header of coded data, which follows.
    Scan {
        next: usize,
    },
    End {
        next: usize,
    },
    /// Another picture begins.
    Start,
    Invalid,
}

fn take_segment(bytes: &[u8], at: usize) -> MarkerSegment {
    let Some([first, marker]) = bytes.get(at..).and_then(|it| it.first_chunk()) else {
        return MarkerSegment::Incomplete;
    };
    if *first != 0xFF {
        return MarkerSegment::Invalid;
    }
    match *marker {
        0xFF => MarkerSegment::None { next: at + 1 },
        marker if stands_alone(marker) => MarkerSegment::None { next: at + 2 },
        START => MarkerSegment::Start,
        END => MarkerSegment::End { next: at + 2 },
        0x00..0xC0 => MarkerSegment::Invalid,
        marker => match bytes.get(at + 2..).and_then(|it| it.first_chunk()) {
            None => MarkerSegment::Incomplete,
            Some(length) => match usize::from(u16::from_be_bytes(*length)) {
                0 | 1 => MarkerSegment::Invalid,
                length if marker == START_OF_SCAN => MarkerSegment::Scan { next: at + 2 + length },
                length => MarkerSegment::Data { next: at + 2 + length },
            },
        },
    }
}

/// The first marker in coded data; stuffed bytes and restart markers belong to the data.
fn find_marker(bytes: &[u8]) -> Option<usize> {
    bytes.windows(2).position(|two| two[0] == 0xFF && !matches!(two[1], 0x00 | 0xFF | 0xD0..=0xD7))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Start, a segment with a thumbnail's markers in it, a scan with stuffed bytes and a restart
    /// marker, end.
    const PICTURE: &[u8] = b"\xFF\xD8\xFF\xE1\0\x08\xFF\xD8\xFF\xD9xx\xFF\xDA\0\x03z\
        data\xFF\0more\xFF\xD0rest\xFF\xFF\xD9";

    /// What comes out when the bytes come in portions of one length.
    fn cut(
        splitter: &mut Splitter,
        bytes: &[u8],
        portion: usize,
    ) -> Vec<Result<Vec<u8>, &'static str>> {
        let mut pieces = Vec::new();
        for part in bytes.chunks(portion) {
            splitter.push(part);
            while let Some(piece) = splitter.next_piece() {
                pieces.push(match piece {
                    Piece::Picture(bytes) => Ok(bytes.to_vec()),
                    Piece::Broken(why) => Err(why),
                });
            }
        }
        pieces
    }

    #[test]
    fn pictures_are_cut_at_any_portion() {
        let head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 99\r\n\r\n";
        let stream = [head, PICTURE, b"\r\n", head, PICTURE, PICTURE, b"\0\0\xFF\xFF\xD8"].concat();
        for portion in [1, 2, 3, 7, 64, 4096] {
            let pieces = cut(&mut Splitter::jpeg(), &stream, portion);
            assert_eq!(pieces, vec![Ok(PICTURE.to_vec()); 3], "{portion}");
        }
    }

    #[test]
    fn picture_without_end_ends_at_next() {
        let open = &PICTURE[..PICTURE.len() - 3];
        let pieces = cut(&mut Splitter::jpeg(), &[open, PICTURE].concat(), 5);
        assert_eq!(pieces, [Ok(open.to_vec()), Ok(PICTURE.to_vec())]);
    }

    #[test]
    fn broken_picture_costs_no_other() {
        let cut_off: &[u8] = b"\xFF\xD8\xFF\xE0\0\x04ab";
        let no_marker: &[u8] = b"\xFF\xD8\xFF\xE0\0\x04abgarbage";
        let no_length: &[u8] = b"\xFF\xD8\xFF\xE0\0\x01abc";
        // Takes the whole next picture for the content of its segment.
        let long: &[u8] = b"\xFF\xD8\xFF\xDB\0\x38abc";
        for broken in [cut_off, no_marker, no_length, long] {
            let stream = [broken, PICTURE, PICTURE].concat();
            let pieces = cut(&mut Splitter::jpeg(), &stream, 4);
            assert!(pieces[0].is_err(), "{pieces:?}");
            assert_eq!(pieces[1..], vec![Ok(PICTURE.to_vec()); 2], "{broken:?}");
        }
    }

    #[test]
    fn broken_pictures_within_another_are_not_all_tried() {
        // Starts in a segment, each with a segment that ends where that one does; then a scan that
        // ends in an impossible marker.
        let places = 5_000;
        let mut inner = Vec::new();
        for place in 0..places {
            let length = (places - place) * 6 - 4;
            inner.extend([0xFF, START, 0xFF, 0xE0, (length >> 8) as u8, length as u8]);
        }
        let length = inner.len() as u16 + 2;
        let head = [&[0xFF, START, 0xFF, 0xE0][..], &length.to_be_bytes()].concat();
        let scan = [&[0xFF, START_OF_SCAN, 0, 2][..], &vec![0; 100_000][..], &[0xFF, 2]].concat();
        let stream = [&head[..], &inner, &scan, PICTURE].concat();
        for portion in [4096, stream.len()] {
            let pieces = cut(&mut Splitter::jpeg(), &stream, portion);
            assert!(pieces.len() <= READS + 3, "{}", pieces.len());
            assert_eq!(pieces.last(), Some(&Ok(PICTURE.to_vec())));
        }
        // The same with pictures that are cut off between them.
        let units = [0xFF, START, 0xFF, START, 0xFF, START_OF_SCAN, 0xFF, 0xFF].repeat(5_000);
        let stream = [&units, &vec![0; 200_000][..], &[0xFF, 2], PICTURE].concat();
        let pieces = cut(&mut Splitter::jpeg(), &stream, 4096);
        let broken = pieces.iter().filter(|it| **it == Err("a broken picture")).count();
        assert!(broken <= 2 * READS, "{broken}");
        assert_eq!(pieces.last(), Some(&Ok(PICTURE.to_vec())));
    }

    #[test]
    fn garbage_is_not_held() {
        let mut splitter = Splitter::jpeg();
        for byte in [0x00, b'x', 0xFF, 0xD8] {
            assert_eq!(cut(&mut splitter, &vec![byte; 200_000], 9999), [], "{byte:x}");
            assert!(splitter.held.len() - splitter.start <= 2 && !splitter.is_within_picture());
        }
    }

    #[test]
    fn endless_picture_is_bounded() {
        let mut splitter = Splitter::jpeg();
        let mut pieces = cut(&mut splitter, &PICTURE[..20], 20);
        let mut held_max = 0;
        for _ in 0..JPEG_BYTES_MAX / 65_536 + 2 {
            pieces.extend(cut(&mut splitter, &vec![7; 65_536], 65_536));
            held_max = held_max.max(splitter.held.len());
        }
        assert_eq!(pieces, [Err("a picture without an end")]);
        assert!(held_max <= JPEG_BYTES_MAX + 2 * 65_536, "{held_max}");
        assert_eq!(cut(&mut splitter, PICTURE, 8), [Ok(PICTURE.to_vec())]);
    }

    #[test]
    fn raw_pictures_have_one_size() {
        let mut splitter = Splitter::raw(6);
        let pieces = cut(&mut splitter, b"aaaaaabbbbbbcccc", 4);
        assert_eq!(pieces, [Ok(b"aaaaaa".to_vec()), Ok(b"bbbbbb".to_vec())]);
        assert!(splitter.is_within_picture());
        assert_eq!(cut(&mut splitter, b"cc", 2), [Ok(b"cccccc".to_vec())]);
        assert!(!splitter.is_within_picture());
    }
}

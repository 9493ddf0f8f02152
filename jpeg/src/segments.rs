//! The segments of a JPEG, one after another, and why one is rejected.

use memchr::memchr;

/// Why a JPEG is rejected. The texts complete "the JPEG is damaged:" and "this kind of JPEG is not
/// supported".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JpegFault {
    Damaged(&'static str),
    Unsupported(&'static str),
}

pub(super) const START: u8 = 0xD8;
pub(super) const END: u8 = 0xD9;
pub(super) const START_OF_SCAN: u8 = 0xDA;
pub(super) const HUFFMAN_TABLES: u8 = 0xC4;
pub(super) const QUANTISATION_TABLES: u8 = 0xDB;
pub(super) const RESTART_INTERVAL: u8 = 0xDD;
pub(super) const APPLICATION_0: u8 = 0xE0;
pub(super) const APPLICATION_1: u8 = 0xE1;
pub(super) const APPLICATION_2: u8 = 0xE2;

/// A marker with what it carries.
pub(super) struct Segment<'a> {
    pub(super) marker: u8,
    /// Where its 0xFF stands.
    pub(super) at: usize,
    /// `None` when it is cut off or its length is impossible. Empty for markers that carry nothing.
    pub(super) payload: Option<&'a [u8]>,
}

/// The markers of a JPEG behind its start marker, entropy-coded data passed over.
pub(super) struct Segments<'a> {
    bytes: &'a [u8],
    pub(super) at: usize,
    in_scan: bool,
}

impl<'a> Segments<'a> {
    pub(super) fn of(bytes: &'a [u8]) -> Result<Self, JpegFault> {
        if bytes.starts_with(&[0xFF, START, 0xFF]) {
            Ok(Self { bytes, at: 2, in_scan: false })
        } else {
            Err(JpegFault::Damaged("it does not begin as one"))
        }
    }
}

impl<'a> Iterator for Segments<'a> {
    type Item = Segment<'a>;

    fn next(&mut self) -> Option<Segment<'a>> {
        let (at, marker) = loop {
            let at = self.at + memchr(0xFF, self.bytes.get(self.at..)?)?;
            match *self.bytes.get(at + 1)? {
                // 0xFF before a marker is allowed as filling.
                0xFF => self.at = at + 1,
                // In coded data: 0xFF itself, and restart markers. Elsewhere they are markers out
                // of place.
                0x00 | 0xD0..=0xD7 if self.in_scan => self.at = at + 2,
                marker => break (at, marker),
            }
        };
        self.in_scan = marker == START_OF_SCAN;
        if matches!(marker, START | END) {
            self.at = at + 2;
            return Some(Segment { marker, at, payload: Some(&[]) });
        }
        let length = self.bytes.get(at + 2..).and_then(|rest| rest.first_chunk::<2>());
        let length = length.map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
        let payload = if length < 2 { None } else { self.bytes.get(at + 4..at + 2 + length) };
        self.at = at + 2 + length.max(2);
        Some(Segment { marker, at, payload })
    }
}

//! Cuts a stream of bytes into packets.
//!
//! Invariants: memory grows with the bytes that arrived, never with the length that a packet
//! claims; a packet above its limit is refused when its length has been read.

use crate::broker::packet::Reason;

/// A fixed header has a type and a length of at most four bytes.
const LENGTH_BYTES_MAX: u32 = 4;
/// What the first growth of a buffer reserves.
const FIRST_BYTES: usize = 512;

/// A packet: its first byte (type and flags), and what follows the length.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame {
    pub first: u8,
    pub body: Vec<u8>,
}

/// The packet that arrives at present.
#[derive(Debug, Default)]
pub struct Assembler {
    first: Option<u8>,
    length: usize,
    length_bytes: u32,
    length_known: bool,
    body: Vec<u8>,
}

impl Assembler {
    /// Takes bytes off the front of `bytes` and returns the packet that they complete. `None`: they
    /// are used up. `bytes_max` returns the limit of a packet by its first byte, or refuses it.
    pub fn next(
        &mut self,
        bytes: &mut &[u8],
        bytes_max: impl Fn(u8) -> Result<usize, Reason>,
    ) -> Result<Option<Frame>, Reason> {
        while !self.length_known {
            let Some((byte, rest)) = bytes.split_first() else {
                return Ok(None);
            };
            *bytes = rest;
            self.header_byte(*byte, &bytes_max)?;
        }
        let missing = self.length - self.body.len();
        let (now, rest) = bytes.split_at(missing.min(bytes.len()));
        *bytes = rest;
        self.grow(now.len());
        self.body.extend_from_slice(now);
        if self.body.len() < self.length {
            return Ok(None);
        }
        let whole = std::mem::take(self);
        Ok(whole.first.map(|first| Frame { first, body: whole.body }))
    }

    /// Whether a packet has begun.
    pub fn is_partial(&self) -> bool {
        self.first.is_some()
    }

    /// The bytes that it occupies in memory.
    pub fn bytes(&self) -> usize {
        self.body.capacity()
    }

    fn header_byte(
        &mut self,
        byte: u8,
        bytes_max: impl Fn(u8) -> Result<usize, Reason>,
    ) -> Result<(), Reason> {
        let Some(first) = self.first else {
            bytes_max(byte)?;
            self.first = Some(byte);
            return Ok(());
        };
        self.length |= usize::from(byte & 0x7f) << (7 * self.length_bytes);
        self.length_bytes += 1;
        self.length_known = byte & 0x80 == 0;
        if !self.length_known && self.length_bytes == LENGTH_BYTES_MAX {
            return Err(Reason::Malformed);
        }
        if self.length > bytes_max(first)? {
            return Err(Reason::PacketTooLarge);
        }
        Ok(())
    }

    /// Doubles the buffer, but never beyond the packet's length.
    fn grow(&mut self, more: usize) {
        let needed = self.body.len() + more;
        if needed > self.body.capacity() {
            let doubled = (self.body.capacity() * 2).max(FIRST_BYTES).max(needed);
            self.body.reserve_exact(doubled.min(self.length) - self.body.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(bytes: usize) -> impl Fn(u8) -> Result<usize, Reason> {
        move |_| Ok(bytes)
    }

    #[test]
    fn packets_are_cut_at_any_split() {
        let mut stream = vec![0xc0, 0];
        stream.extend([0x30, 0xc8, 0x01]);
        stream.extend([7; 200]);
        stream.extend([0xe0, 0]);
        for piece in [1, 2, 3, 100, stream.len()] {
            let mut assembler = Assembler::default();
            let mut found = Vec::new();
            for mut bytes in stream.chunks(piece) {
                while let Some(frame) = assembler.next(&mut bytes, limit(200)).unwrap() {
                    found.push((frame.first, frame.body.len()));
                }
                assert!(bytes.is_empty());
            }
            assert_eq!(found, [(0xc0, 0), (0x30, 200), (0xe0, 0)]);
            assert!(!assembler.is_partial());
        }
    }

    #[test]
    fn claimed_length_allocates_nothing() {
        let mut assembler = Assembler::default();
        let mut bytes: &[u8] = &[0x30, 0xff, 0xff, 0xff, 0x7f, 1, 2, 3];
        assert_eq!(assembler.next(&mut bytes, limit(usize::MAX)), Ok(None));
        assert!(assembler.bytes() <= FIRST_BYTES, "{}", assembler.bytes());
    }

    #[test]
    fn packet_above_its_limit_is_refused() {
        let next = |mut bytes: &[u8], max| Assembler::default().next(&mut bytes, limit(max));
        assert_eq!(next(&[0x30, 0x80, 0x01], 127), Err(Reason::PacketTooLarge));
        assert_eq!(next(&[0x30, 0x80, 0x01], 128), Ok(None));
        assert_eq!(next(&[0x30, 0x80, 0x80, 0x80, 0x80], 128), Err(Reason::Malformed));
    }

    #[test]
    fn buffer_never_exceeds_the_packet() {
        let mut assembler = Assembler::default();
        let mut head: &[u8] = &[0x30, 0xe9, 0x07]; // 1001 bytes
        assert_eq!(assembler.next(&mut head, limit(1001)), Ok(None));
        for _ in 0..1000 {
            assert_eq!(assembler.next(&mut [0; 1].as_slice(), limit(1001)), Ok(None));
            assert!(assembler.bytes() <= 1001);
        }
    }
}

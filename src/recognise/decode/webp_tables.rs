//! What the code tables of a lossless WebP take in the decoder (RFC 9649, 4 and 5).
//!
//! A picture may bring 65,536 groups of five Huffman codes, each of which the decoder makes a table
//! of up to four kilobytes: a file of four megabytes would take more than a gigabyte, however few
//! pixels it has. How many there are is known only from coded data, so that is read here, as far as
//! the tables. Takes four bytes for sixteen pixels.

/// Bits, the lowest of each byte first.
struct Bits<'a> {
    data: &'a [u8],
    at: usize,
}

impl Bits<'_> {
    fn read(&mut self, count: usize) -> Option<usize> {
        let mut value = 0;
        for bit in 0..count {
            let byte = self.data.get(self.at / 8)?;
            value |= usize::from(byte >> (self.at % 8) & 1) << bit;
            self.at += 1;
        }
        Some(value)
    }
}

const LENGTH_MAX: usize = 15;
/// The decoder finds codes up to this length in a table, longer ones in a tree.
const TABLE_BITS: usize = 10;
/// In the decoder: an entry of a table, a node of a tree, and a group of five without either.
const ENTRY_BYTES: usize = 4;
const NODE_BYTES: usize = 16;
const GROUP_BYTES: usize = 5 * 56;

/// A canonical Huffman code.
struct Code {
    /// By length: how many codes there are.
    counts: [usize; LENGTH_MAX + 1],
    /// In the order of their codes.
    symbols: Vec<u16>,
}

/// The order in which the lengths of the code for lengths are written.
const ORDER: [usize; 19] = [17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];

impl Code {
    fn of_lengths(lengths: &[u8]) -> Self {
        let mut counts = [0; LENGTH_MAX + 1];
        for length in lengths {
            counts[usize::from(*length)] += 1;
        }
        counts[0] = 0;
        let mut symbols = Vec::with_capacity(counts.iter().sum());
        for wanted in 1..=LENGTH_MAX as u8 {
            let of_length = lengths.iter().enumerate().filter(|(_, length)| **length == wanted);
            symbols.extend(of_length.map(|(symbol, _)| symbol as u16));
        }
        Self { counts, symbols }
    }

    /// Reads one of the picture's codes. `alphabet` is how many symbols it may have.
    fn read(bits: &mut Bits<'_>, alphabet: usize) -> Option<Self> {
        let mut lengths = vec![0u8; alphabet];
        if bits.read(1)? == 1 {
            let has_two = bits.read(1)? == 1;
            let width = if bits.read(1)? == 1 { 8 } else { 1 };
            *lengths.get_mut(bits.read(width)?)? = 1;
            if has_two {
                *lengths.get_mut(bits.read(8)?)? = 1;
            }
            return Some(Self::of_lengths(&lengths));
        }
        let mut own = [0u8; 19];
        let count = bits.read(4)? + 4;
        for place in ORDER.iter().take(count) {
            own[*place] = bits.read(3)? as u8;
        }
        let own = Self::of_lengths(&own);
        let mut left = alphabet;
        if bits.read(1)? == 1 {
            let width = bits.read(3)? * 2 + 2;
            left = bits.read(width)? + 2;
        }
        let mut last = 8;
        let mut at = 0;
        while at < alphabet && left > 0 {
            left -= 1;
            let (length, times) = match own.decode(bits)? {
                16 => (last, bits.read(2)? + 3),
                17 => (0, bits.read(3)? + 3),
                18 => (0, bits.read(7)? + 11),
                length => (length as u8, 1),
            };
            if length > 0 {
                last = length;
            }
            lengths.get_mut(at..at + times)?.fill(length);
            at += times;
        }
        Some(Self::of_lengths(&lengths))
    }

    /// Reads a symbol, bit by bit. A code of one symbol takes no bits.
    fn decode(&self, bits: &mut Bits<'_>) -> Option<usize> {
        if let [only] = self.symbols[..] {
            return Some(usize::from(only));
        }
        let mut code = 0;
        let mut first = 0;
        let mut index = 0;
        for count in &self.counts[1..] {
            code |= bits.read(1)?;
            if code < first + count {
                return self
                    .symbols
                    .get(index + code.checked_sub(first)?)
                    .map(|it| usize::from(*it));
            }
            index += count;
            first = (first + count) * 2;
            code *= 2;
        }
        None
    }

    fn decoder_bytes(&self) -> usize {
        if self.symbols.len() < 2 {
            return 0;
        }
        let longest = (1..=LENGTH_MAX).rev().find(|length| self.counts[*length] > 0).unwrap_or(0);
        let deep: usize = self.counts[TABLE_BITS + 1..].iter().sum();
        (ENTRY_BYTES << longest.min(TABLE_BITS)) + 2 * deep.max(2) * NODE_BYTES
    }
}

/// The codes for green and lengths, red, blue, alpha, and distances.
struct Group {
    codes: [Code; 5],
}

impl Group {
    fn read(bits: &mut Bits<'_>, cache_size: usize) -> Option<Self> {
        let green = Code::read(bits, 256 + 24 + cache_size)?;
        let [red, blue, alpha] = [256; 3].map(|size| Code::read(bits, size));
        let codes = [green, red?, blue?, alpha?, Code::read(bits, 40)?];
        Some(Self { codes })
    }
}

#[expect(clippy::option_option, reason = "damaged, no cache, or a cache of this width")]
fn read_cache_bits(bits: &mut Bits<'_>) -> Option<Option<usize>> {
    let has_cache = bits.read(1)? == 1;
    if !has_cache {
        return Some(None);
    }
    let width = bits.read(4)?;
    (1..=11).contains(&width).then_some(Some(width))
}

/// A number given by a prefix code: the lengths and distances of copies.
fn read_number(bits: &mut Bits<'_>, prefix: usize) -> Option<usize> {
    if prefix < 4 {
        return Some(prefix + 1);
    }
    let extra = (prefix - 2) / 2;
    Some(((2 + prefix % 2) << extra) + bits.read(extra)? + 1)
}

/// How far back the near pixels are, by their number: columns to the left and rows up, packed as in
/// RFC 9649, 4.2.2.
#[rustfmt::skip]
const NEAR: [(i8, i8); 120] = [
    (0, 1), (1, 0), (1, 1), (-1, 1), (0, 2), (2, 0), (1, 2), (-1, 2), (2, 1), (-2, 1), (2, 2), (-2, 2),
    (0, 3), (3, 0), (1, 3), (-1, 3), (3, 1), (-3, 1), (2, 3), (-2, 3), (3, 2), (-3, 2), (0, 4), (4, 0),
    (1, 4), (-1, 4), (4, 1), (-4, 1), (3, 3), (-3, 3), (2, 4), (-2, 4), (4, 2), (-4, 2), (0, 5), (3, 4),
    (-3, 4), (4, 3), (-4, 3), (5, 0), (1, 5), (-1, 5), (5, 1), (-5, 1), (2, 5), (-2, 5), (5, 2), (-5, 2),
    (4, 4), (-4, 4), (3, 5), (-3, 5), (5, 3), (-5, 3), (0, 6), (6, 0), (1, 6), (-1, 6), (6, 1), (-6, 1),
    (2, 6), (-2, 6), (6, 2), (-6, 2), (4, 5), (-4, 5), (5, 4), (-5, 4), (3, 6), (-3, 6), (6, 3), (-6, 3),
    (0, 7), (7, 0), (1, 7), (-1, 7), (5, 5), (-5, 5), (7, 1), (-7, 1), (4, 6), (-4, 6), (6, 4), (-6, 4),
    (2, 7), (-2, 7), (7, 2), (-7, 2), (3, 7), (-3, 7), (7, 3), (-7, 3), (5, 6), (-5, 6), (6, 5), (-6, 5),
    (8, 0), (4, 7), (-4, 7), (7, 4), (-7, 4), (8, 1), (8, 2), (6, 6), (-6, 6), (8, 3), (5, 7), (-5, 7),
    (7, 5), (-7, 5), (8, 4), (6, 7), (-6, 7), (7, 6), (-7, 6), (8, 5), (7, 7), (-7, 7), (8, 6), (8, 7),
];

/// Reads a picture inside the picture, which has one group of codes: what transforms and groups are
/// used where.
fn read_inner(bits: &mut Bits<'_>, width: usize, height: usize) -> Option<Vec<u32>> {
    let cache_bits = read_cache_bits(bits)?;
    let cache_size = cache_bits.map_or(0, |width| 1 << width);
    let Group { codes: [green, red, blue, alpha, distance] } = Group::read(bits, cache_size)?;
    let mut inner = Inner {
        pixels: Vec::with_capacity(width * height),
        cache: vec![0; cache_size],
        cache_bits: cache_bits.unwrap_or(0),
    };
    let count = width * height;
    while inner.pixels.len() < count {
        match green.decode(bits)? {
            symbol @ 0..256 => {
                let [red, blue, alpha] =
                    [red.decode(bits)?, blue.decode(bits)?, alpha.decode(bits)?];
                inner.push((alpha << 24 | red << 16 | symbol << 8 | blue) as u32);
            }
            symbol @ 256..280 => {
                let length = read_number(bits, symbol - 256)?;
                let number = distance.decode(bits)?;
                let number = read_number(bits, number)?;
                let back = match NEAR.get(number - 1) {
                    Some((left, up)) => {
                        let back = isize::from(*left) + isize::from(*up) * width as isize;
                        back.max(1) as usize
                    }
                    None => number - NEAR.len(),
                };
                for _ in 0..length.min(count - inner.pixels.len()) {
                    let from = inner.pixels.len().checked_sub(back)?;
                    inner.push(*inner.pixels.get(from)?);
                }
            }
            symbol => inner.push(*inner.cache.get(symbol - 280)?),
        }
    }
    Some(inner.pixels)
}

/// An inner picture so far, with the colours that it used last.
struct Inner {
    pixels: Vec<u32>,
    cache: Vec<u32>,
    cache_bits: usize,
}

impl Inner {
    fn push(&mut self, pixel: u32) {
        if self.cache_bits > 0 {
            let slot = pixel.wrapping_mul(0x1E35_A7BD) >> (32 - self.cache_bits);
            self.cache[slot as usize] = pixel;
        }
        self.pixels.push(pixel);
    }
}

/// Bytes that the code tables of a picture of this size take in the decoder, or a number above `most`.
/// `data` begins behind the header. `None` when it is broken.
pub(super) fn decoder_bytes(
    data: &[u8],
    mut width: usize,
    height: usize,
    most: usize,
) -> Option<usize> {
    let mut bits = Bits { data, at: 0 };
    let mut seen = [false; 4];
    while bits.read(1)? == 1 {
        let kind = bits.read(2)?;
        if std::mem::replace(seen.get_mut(kind)?, true) {
            return None;
        }
        match kind {
            // Predictor and colour.
            0 | 1 => {
                let side = 4 << bits.read(3)?;
                read_inner(&mut bits, width.div_ceil(side), height.div_ceil(side))?;
            }
            // Palette: several pixels may be packed in one.
            3 => {
                let colours = bits.read(8)? + 1;
                read_inner(&mut bits, colours, 1)?;
                let packed = match colours {
                    ..=2 => 8,
                    3..=4 => 4,
                    5..=16 => 2,
                    _ => 1,
                };
                width = width.div_ceil(packed);
            }
            _ => {}
        }
    }
    let cache_size = read_cache_bits(&mut bits)?.map_or(0, |width| 1 << width);
    let mut groups = 1;
    if bits.read(1)? == 1 {
        let side = 4 << bits.read(3)?;
        let chosen = read_inner(&mut bits, width.div_ceil(side), height.div_ceil(side))?;
        let last = chosen.iter().map(|pixel| (pixel >> 8 & 0xFFFF) as usize).max()?;
        groups = last + 1;
    }
    let mut bytes = groups * GROUP_BYTES;
    for _ in 0..groups {
        let group = Group::read(&mut bits, cache_size)?;
        bytes += group.codes.iter().map(Code::decoder_bytes).sum::<usize>();
        if bytes > most {
            break;
        }
    }
    Some(bytes)
}

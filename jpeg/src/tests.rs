//! A small picture of waves, coded by another encoder in both processes from the same coefficients:
//! 21 x 19 pixels, colours halved both ways, every kind of progressive scan.

use super::*;

const SEQUENTIAL: &str = "\
    ffd8ffe000104a46494600010100000100010000ffdb004300080606070605080707070909080a0c140d0c0b0b0c\
    1912130f141d1a1f1e1d1a1c1c20242e2720222c231c1c2837292c30313434341f27393d38323c2e333432ffdb00\
    43010909090c0b0c180d0d1832211c21323232323232323232323232323232323232323232323232323232323232\
    3232323232323232323232323232323232323232ffc00011080013001503012200021101031101ffc40019000100\
    0301010000000000000000000000000304050607ffc4002610000104000504020300000000000000000200010304\
    0506111421121331332332415261ffc4001a010001050100000000000000000000000004000102030506ffc40028\
    11000201020405040300000000000000000102030004112131410513225161425271b181a1f0ffda000c03010002\
    110311003f00a335dcc1971d9e4129eecbc08f9e965a387e6a8e01db59818ef4dec91dbeaca0a79bdc25d711afdc\
    bf378676fa32d1b31e077836754837f37b24fd5232ab335f5dc590c970fed07ee9a5503a6e2220f75d463f6edbfb\
    4545258cbe66e3563194dbda5fd455db27b52f870c3ef37990f5d757443a7086b91ce694e2d9e673a88bbb78fa16\
    f1900d82e2078c77f27bd6a961d50ebdeb455c1e7167d0f4e5979d136d69d8b103b84c45c9b3f2888a8493040a74\
    c572ab781c8ed1824fa1cfe71d7e6ba6c0f11b95f0987b560c7ab92fcea888b5ef1579ed96f5d0451a08d400341f\
    55ffd9";

const PROGRESSIVE: &str = "\
    ffd8ffe000104a46494600010100000100010000ffdb004300080606070605080707070909080a0c140d0c0b0b0c\
    1912130f141d1a1f1e1d1a1c1c20242e2720222c231c1c2837292c30313434341f27393d38323c2e333432ffdb00\
    43010909090c0b0c180d0d1832211c21323232323232323232323232323232323232323232323232323232323232\
    3232323232323232323232323232323232323232ffc20011080013001503012200021101031101ffc40019000100\
    0301010000000000000000000000000203040506ffc4001901000203010000000000000000000000000103000204\
    05ffda000c03010002100310000001a344344115658d5e746dfa635f43ffc4001d10000104020300000000000000\
    0000000002000103041213142132ffda000801010001050273b15d4769993957416fb2680d70f05ac71f21048631\
    7fffc400211100020102060300000000000000000000010200038104121321314191a1f0ffda0008010301013f01\
    61d545f1f727d4d5a6bb0ac45a605895b18aa3289fffc4001d110001040203000000000000000000000001000203\
    120471223132ffda0008010201013f01b024cf2b748621939977699e1834a602e57fffc4001f1000020104020300\
    000000000000000000010200111221312251032332ffda0008010100063f02ce5ccb58733b3388af73d8b5732c5f\
    b3b329e3cf71dadcc661b828d3ffc4001e100100020201050000000000000000000001001131412151618191d1ff\
    da0008010100013f21c49c43a41793e3221a25b4a7e0701b4f59367de8aac5771d45b996185e67ffda000c030100\
    02000300000010541802ffc4001e1101000006030100000000000000000000010011213141516171b181ffda0008\
    010301013f1022a477713f736905244c130713cf2ee022b9fecefdc1400b1e47ffc4001b11000203000300000000\
    00000000000000012100113141a1f0ffda0008010201013f102a0c2a7b07706d9b665c224ecb4982e67fffc4001b\
    10010003010101010000000000000000000100113121411091ffda0008010100013f1054783e94942fb0311181fe\
    d16ff24267e44600cb6db76c5c126abd20b0bd82f67a853d5cffd9";

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |digit: &u8| (*digit as char).to_digit(16).unwrap() as u8;
    hex.as_bytes().as_chunks::<2>().0.iter().map(|[a, b]| digit(a) << 4 | digit(b)).collect()
}

#[test]
fn progressive_picture_equals_that_of_one_scan() {
    let sequential = bytes(SEQUENTIAL);
    let progressive = bytes(PROGRESSIVE);
    let outlines = [&sequential, &progressive].map(|it| Outline::read(it).unwrap());
    assert_eq!(outlines.map(|it| it.process), [Process::Sequential, Process::Progressive]);
    for halvings in 0..4 {
        let [one, other] = [
            outlines[0].decode(&sequential, halvings).unwrap(),
            outlines[1].decode(&progressive, halvings).unwrap(),
        ];
        assert_eq!(
            (one.width, one.height),
            (21usize.div_ceil(1 << halvings), 19usize.div_ceil(1 << halvings))
        );
        assert_eq!(one.bytes, other.bytes, "halved {halvings} times");
    }
    let luma = outlines[0].decode_luma(&sequential).unwrap().bytes;
    assert_eq!(luma, outlines[1].decode_luma(&progressive).unwrap().bytes);
    // Brightness is what it was converted from.
    let rgb = outlines[0].decode(&sequential, 0).unwrap().bytes;
    for (luma, [red, green, blue]) in luma.iter().zip(rgb.as_chunks::<3>().0) {
        let sum = 299 * u32::from(*red) + 587 * u32::from(*green) + 114 * u32::from(*blue);
        let is_clamped = [red, green, blue].iter().any(|it| matches!(it, 0 | 255));
        assert!(is_clamped || (sum / 1000).abs_diff(u32::from(*luma)) <= 2);
    }
}

/// Samples of the picture as libjpeg-turbo decodes it.
#[test]
fn decoded_pixels_are_those_of_the_reference_implementation() {
    let sequential = bytes(SEQUENTIAL);
    let outline = Outline::read(&sequential).unwrap();
    let decoded = outline.decode(&sequential, 0).unwrap().bytes;
    let pixels = decoded.as_chunks::<3>().0;
    let expected = [
        (0, 0, [202, 126, 191]),
        (20, 18, [179, 94, 161]),
        (7, 8, [207, 160, 114]),
        (8, 7, [184, 90, 117]),
        (15, 3, [70, 190, 181]),
        (16, 16, [86, 97, 153]),
        (1, 17, [115, 167, 66]),
        (20, 0, [156, 82, 71]),
    ];
    for (x, y, pixel) in expected {
        assert_eq!(pixels[y * 21 + x], pixel, "{x}, {y}");
    }
}

/// Adler-32 (RFC 1950).
fn checksum(bytes: &[u8]) -> u32 {
    let (a, b) = bytes.iter().fold((1u32, 0u32), |(a, b), byte| {
        let a = (a + u32::from(*byte)) % 65_521;
        (a, (b + a) % 65_521)
    });
    b << 16 | a
}

#[test]
fn every_kind_is_decoded_as_by_libjpeg() {
    let lines: Vec<_> =
        include_str!("waves.txt").lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(lines.len(), 12);
    for line in lines {
        let [name, picture, sum] = *line.split(' ').collect::<Vec<_>>() else { panic!("{line}") };
        let picture = bytes(picture);
        let outline = Outline::read(&picture).unwrap();
        let decoded = outline.decode(&picture, 0).unwrap().bytes;
        let grey = name == "grey";
        let pixels = if grey { decoded.iter().step_by(3).copied().collect() } else { decoded };
        assert_eq!(format!("{:08x}", checksum(&pixels)), sum, "{name}");
    }
}

/// A picture of 8 x 8 in which each component, of these names, has one value; `segments` stand before
/// its header.
fn plain(values: &[u8], names: &[u8], segments: &[u8]) -> Vec<u8> {
    let count = values.len() as u8;
    let mut picture = [&[0xFF, 0xD8], segments, &[0xFF, 0xDB, 0, 67, 0]].concat();
    // The mean value is a sample's, less 128.
    picture.extend([8; 64]);
    picture.extend([0xFF, 0xC0, 0, 8 + 3 * count, 8, 0, 8, 0, 8, count]);
    picture.extend(names.iter().flat_map(|name| [*name, 0x11, 0]));
    // One code of one bit each: a difference of seven bits, and the end of the block.
    for (class, symbol) in [(0, 7), (0x10, 0)] {
        picture.extend([0xFF, 0xC4, 0, 20, class, 1]);
        picture.extend([0; 15]);
        picture.push(symbol);
    }
    picture.extend([0xFF, 0xDA, 0, 6 + 2 * count, count]);
    picture.extend(names.iter().flat_map(|name| [*name, 0]));
    picture.extend([0, 63, 0]);
    let mut bits = Vec::new();
    for value in values {
        let apart = i16::from(*value) - 128;
        assert!((64..128).contains(&apart.abs()), "{value} has not seven bits");
        let code = if apart < 0 { apart + 127 } else { apart };
        bits.push(0);
        bits.extend((0..7).rev().map(|bit| code >> bit & 1));
        bits.push(0);
    }
    bits.resize(bits.len().next_multiple_of(8), 1);
    for byte in bits.chunks(8) {
        let byte = byte.iter().fold(0, |byte, bit| byte << 1 | bit) as u8;
        assert_ne!(byte, 0xFF, "it would have to be stuffed");
        picture.push(byte);
    }
    picture.extend([0xFF, 0xD9]);
    picture
}

#[test]
fn colours_are_what_the_markers_say() {
    const JFIF: &[u8] = b"\xFF\xE0\0\x10JFIF\0\x01\x01\0\0\x01\0\x01\0\0";
    let adobe = |transform: u8| [&b"\xFF\xEE\0\x0EAdobe\0\x64\0\0\0\0"[..], &[transform]].concat();
    let both = |transform: u8| [JFIF, &adobe(transform)].concat();
    let converted = [255, 143, 79];
    let as_coded = [192, 64, 228];
    for (segments, names, expected) in [
        (vec![], &b"\x01\x02\x03"[..], converted),
        (JFIF.to_vec(), b"\x01\x02\x03", converted),
        (adobe(1), b"\x01\x02\x03", converted),
        (adobe(0), b"\x01\x02\x03", as_coded),
        (vec![], b"RGB", as_coded),
        (adobe(0), b"RGB", as_coded),
        (adobe(1), b"RGB", converted),
        (JFIF.to_vec(), b"RGB", converted),
        (both(0), b"\x01\x02\x03", converted),
        // Inks with black, stored inverted; then those converted from YCbCr.
        (vec![], b"\x01\x02\x03\x04", [172, 58, 204]),
        (adobe(0), b"\x01\x02\x03\x04", [172, 58, 204]),
        (adobe(2), b"\x01\x02\x03\x04", [1, 101, 158]),
    ] {
        let values = &[192, 64, 228, 228][..names.len()];
        let picture = plain(values, names, &segments);
        let decoded = Outline::read(&picture).unwrap().decode(&picture, 0).unwrap().bytes;
        for pixel in decoded.as_chunks::<3>().0 {
            let apart = pixel.iter().zip(expected).map(|(a, b)| a.abs_diff(b)).max();
            assert!(apart <= Some(1), "{segments:?} {names:?}: {pixel:?}");
        }
    }
}

#[test]
fn progressive_picture_that_lacks_a_scan_is_refused() {
    let whole = bytes(PROGRESSIVE);
    let segments: Vec<_> = Segments::of(&whole).unwrap().collect();
    let mut refused = 0;
    for (scan, next) in segments.iter().zip(&segments[1..]) {
        let Some([.., from, to, bits]) = scan.payload.filter(|_| scan.marker == START_OF_SCAN)
        else {
            continue;
        };
        let without = [&whole[..scan.at], &whole[next.at..]].concat();
        let outcome = Outline::read(&without).and_then(|it| it.decode(&without, 0));
        // The last refinement of a band may be missing: the picture is coarser.
        let is_last = bits % 16 == 0;
        assert_eq!(outcome.is_ok(), is_last, "{from} to {to}, bits {bits:#x}");
        refused += usize::from(!is_last);
    }
    assert!(refused >= 3, "{refused}");
}

#[test]
fn surplus_before_a_restart_marker_is_refused() {
    let grey =
        include_str!("waves.txt").lines().find_map(|line| line.strip_prefix("grey ")).unwrap();
    let whole = bytes(grey.split(' ').next().unwrap());
    let at = whole.windows(2).position(|two| two == [0xFF, 0xD0]).unwrap();
    for surplus in 1..12 {
        let longer = [&whole[..at], &vec![0; surplus], &whole[at..]].concat();
        let fault = Outline::read(&longer).unwrap().decode(&longer, 0).err();
        assert_eq!(fault, Some(JpegFault::Damaged("its coded data is broken")), "{surplus}");
    }
}

#[test]
fn hole_of_zeroes_before_a_trailer_is_refused() {
    let whole = plain(&[192], &[1], &[]);
    let mut holed = whole.clone();
    // Eight blocks, of which the others are nine zero bits each: they end with a byte.
    let at = holed.windows(2).position(|it| it == [0xFF, 0xC0]).unwrap();
    holed[at + 8] = 64;
    holed.truncate(holed.len() - 2);
    let last = holed.len() - 1;
    holed[last] = 0;
    let with = |more: &[u8]| {
        let picture = [&holed[..], more, b"SEFT"].concat();
        Outline::read(&picture).and_then(|it| it.decode(&picture, 0)).is_ok()
    };
    for zeroes in 0..40 {
        assert!(!with(&vec![0; zeroes]), "{zeroes}");
    }
}

#[test]
fn tables_of_impossible_numbers_are_refused() {
    let whole = plain(&[192], &[1], &[]);
    let place = |marker: u8| whole.windows(2).position(|it| it == [0xFF, marker]).unwrap();
    for (at, value) in [
        (place(0xC4) + 4, 0x20), // a class of codes
        (place(0xC4) + 4, 0x04), // a table of codes
        (place(0xDA) + 6, 0x40), // a scan's table
    ] {
        let mut altered = whole.clone();
        altered[at] = value;
        let fault = Outline::read(&altered).and_then(|it| it.decode(&altered, 0)).err();
        assert!(matches!(fault, Some(JpegFault::Damaged(_))), "{at} {value:#x}: {fault:?}");
    }
}

#[test]
fn factors_of_a_lone_component_mean_nothing() {
    let mut picture = plain(&[192], &[1], &[]);
    let at = picture.windows(2).position(|it| it == [0xFF, 0xC0]).unwrap();
    picture[at + 11] = 0x33;
    let decoded = Outline::read(&picture).unwrap().decode(&picture, 0).unwrap().bytes;
    assert_eq!(decoded, [192; 64 * 3]);
}

#[test]
fn progressive_picture_with_lost_data_is_refused() {
    let whole = bytes(PROGRESSIVE);
    let segments: Vec<_> = Segments::of(&whole).unwrap().collect();
    let scans = segments.windows(2).filter(|pair| pair[0].marker == START_OF_SCAN);
    assert_eq!(scans.clone().count(), 10);
    for pair in scans {
        let [scan, next] = pair else { unreachable!() };
        let from = scan.at + 4 + scan.payload.unwrap().len();
        let length = next.at - from;
        // The last byte may have but filling bits.
        for lost in 1..length.saturating_sub(1) {
            let holed = [&whole[..next.at - 1 - lost], &whole[next.at..]].concat();
            let refused = Outline::read(&holed).and_then(|it| it.decode(&holed, 0)).err();
            assert!(matches!(refused, Some(JpegFault::Damaged(_))), "{lost} bytes before {from}");
        }
    }
    let endless = &whole[..whole.len() - 2];
    assert!(Outline::read(endless).unwrap().decode(endless, 0).is_err());
}

#[test]
fn picture_without_its_quantisation_table_is_refused() {
    for picture in [SEQUENTIAL, PROGRESSIVE] {
        let mut altered = bytes(picture);
        let is_table = |at: &[u8]| at == [0xFF, QUANTISATION_TABLES];
        let at = altered.windows(2).position(is_table).unwrap();
        // Table 0 becomes table 2.
        altered[at + 4] = 2;
        let outline = Outline::read(&altered).unwrap();
        let fault = outline.decode(&altered, 0).err();
        assert_eq!(fault, Some(JpegFault::Damaged("a table is missing")));
    }
}

/// A progressive picture of a single grey block, whose coefficients one code skips: `symbol` says
/// of how many blocks, and the bits 01 follow it.
fn skipped_blocks(symbol: u8) -> Vec<u8> {
    let table = |class: u8, symbol: u8| {
        // One code, of one bit.
        let mut table = vec![0xFF, 0xC4, 0, 20, class << 4, 1];
        table.extend([0; 15]);
        table.push(symbol);
        table
    };
    let scan = |from: u8, to: u8, data: u8| [0xFF, 0xDA, 0, 8, 1, 1, 0, from, to, 0, data];
    let mut picture = vec![0xFF, 0xD8, 0xFF, 0xDB, 0, 67, 0];
    picture.extend([1; 64]);
    picture.extend([0xFF, 0xC2, 0, 11, 8, 0, 8, 0, 8, 1, 1, 0x11, 0]);
    picture.extend(table(0, 0));
    picture.extend(scan(0, 0, 0b0111_1111));
    picture.extend(table(1, symbol));
    picture.extend(scan(1, 63, 0b0011_1111));
    picture.extend([0xFF, 0xD9]);
    picture
}

#[test]
fn run_of_empty_blocks_ends_within_its_scan() {
    let decoded = |symbol: u8| {
        let picture = skipped_blocks(symbol);
        Outline::read(&picture).unwrap().decode(&picture, 0)
    };
    assert_eq!(decoded(0x00).unwrap().bytes, [128; 64 * 3], "one block");
    for symbol in [0x10, 0x20] {
        let fault = decoded(symbol).err();
        assert_eq!(fault, Some(JpegFault::Damaged("its coded data is broken")), "{symbol:#x}");
    }
}

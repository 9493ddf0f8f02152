//! JPEGs made to order: whole ones of any kind, and such as no encoder would write. Used by tests,
//! and by the fuzz targets, which make them of the fuzzer's bytes.

/// What is written. The fields may contradict each other.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The frame header's marker: 0xC0 baseline, 0xC2 progressive.
    pub process: u8,
    pub precision: u8,
    pub width: u16,
    pub height: u16,
    /// Number, horizontal and vertical sampling factor.
    pub components: Vec<(u8, u8, u8)>,
    pub restart_interval: u16,
    pub has_tables: bool,
    /// The colour transform of an Adobe segment.
    pub adobe: Option<u8>,
    /// Application data before the frame header.
    pub application: Vec<u8>,
    pub scans: Vec<Scan>,
    pub has_end_marker: bool,
    pub trailer: Vec<u8>,
}

#[derive(Clone, Debug)]
pub struct Scan {
    /// Places in `Spec::components`.
    pub components: Vec<usize>,
    pub from: u8,
    pub to: u8,
    pub bits: u8,
    pub data: Data,
}

#[derive(Clone, Debug)]
pub enum Data {
    /// All blocks that there should be, made of these choices.
    Blocks(Vec<u8>),
    /// Whatever it is, 0xFF stuffed.
    Bytes(Vec<u8>),
}

const DC_LENGTHS: [u8; 16] = [0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0];
/// A short table of our own: the end of a block, the run of 16, and small values after short runs.
const AC_SYMBOLS: [u8; 12] =
    [0x00, 0x01, 0x02, 0x11, 0x03, 0x21, 0x04, 0x31, 0x41, 0xF0, 0x05, 0x51];
const AC_LENGTHS: [u8; 16] = [0, 1, 2, 2, 2, 2, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0];

impl Spec {
    /// A whole picture, everything in one scan, in plain grey.
    pub fn flat(width: u16, height: u16, sampling: &[(u8, u8)]) -> Self {
        let components =
            (1..).zip(sampling).map(|(id, (across, down))| (id, *across, *down)).collect();
        let everything = (0..sampling.len()).collect();
        Self {
            process: 0xC0,
            precision: 8,
            width,
            height,
            components,
            restart_interval: 0,
            has_tables: true,
            adobe: None,
            application: Vec::new(),
            scans: vec![Scan::sequential(everything)],
            has_end_marker: true,
            trailer: Vec::new(),
        }
    }

    /// The same as a progressive picture: mean values of everything, then the details of each
    /// component.
    pub fn progressive(mut self) -> Self {
        let count = self.components.len();
        let scan = |components, from, to| Scan {
            components,
            from,
            to,
            bits: 0,
            data: Data::Blocks(Vec::new()),
        };
        self.process = 0xC2;
        self.scans = vec![scan((0..count).collect(), 0, 0)];
        self.scans.extend((0..count).map(|at| scan(vec![at], 1, 63)));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes_of_units(UNITS_MAX)
    }

    /// The same with all blocks, however many there are.
    pub fn whole_bytes(&self) -> Vec<u8> {
        self.bytes_of_units(usize::MAX)
    }

    fn bytes_of_units(&self, units_max: usize) -> Vec<u8> {
        let mut out = vec![0xFF, 0xD8];
        if !self.application.is_empty() {
            segment(&mut out, 0xE1, &self.application);
        }
        if let Some(transform) = self.adobe {
            segment(&mut out, 0xEE, &[b"Adobe\0\x64\0\0\0\0".as_slice(), &[transform]].concat());
        }
        segment(&mut out, 0xDB, &[&[0u8][..], &[3; 64]].concat());
        if self.has_tables {
            let symbols: Vec<u8> = (0..=11).collect();
            segment(&mut out, 0xC4, &[&[0x00][..], &DC_LENGTHS, &symbols].concat());
            segment(&mut out, 0xC4, &[&[0x10][..], &AC_LENGTHS, &AC_SYMBOLS].concat());
        }
        if self.restart_interval > 0 {
            segment(&mut out, 0xDD, &self.restart_interval.to_be_bytes());
        }
        let [h1, h0] = self.height.to_be_bytes();
        let [w1, w0] = self.width.to_be_bytes();
        let mut frame = vec![self.precision, h1, h0, w1, w0, self.components.len() as u8];
        for (id, across, down) in &self.components {
            frame.extend([*id, (across << 4) | (down & 0xF), 0]);
        }
        segment(&mut out, self.process, &frame);
        for scan in &self.scans {
            self.write_scan(&mut out, scan, units_max);
        }
        if self.has_end_marker {
            out.extend([0xFF, 0xD9]);
        }
        out.extend(&self.trailer);
        out
    }

    fn write_scan(&self, out: &mut Vec<u8>, scan: &Scan, units_max: usize) {
        let mut header = vec![scan.components.len() as u8];
        for at in &scan.components {
            header.extend([self.components.get(*at).map_or(99, |component| component.0), 0]);
        }
        header.extend([scan.from, scan.to, scan.bits]);
        segment(out, 0xDA, &header);
        match &scan.data {
            Data::Bytes(bytes) => bytes.iter().for_each(|byte| stuffed(out, *byte)),
            Data::Blocks(choices) => {
                self.write_blocks(out, scan, &mut Choices::of(choices), units_max);
            }
        }
    }

    /// Every block that the frame header asks for; the sizes of a test's pictures are small.
    fn write_blocks(
        &self,
        out: &mut Vec<u8>,
        scan: &Scan,
        choices: &mut Choices<'_>,
        units_max: usize,
    ) {
        let most = |factor: fn(&(u8, u8, u8)) -> u8| {
            self.components
                .iter()
                .map(|component| usize::from(factor(component)))
                .max()
                .unwrap_or(1)
                .max(1)
        };
        let across_max = most(|it| it.1);
        let down_max = most(|it| it.2);
        let width = usize::from(self.width);
        let height = usize::from(self.height);
        let chosen: Vec<_> =
            scan.components.iter().filter_map(|at| self.components.get(*at)).collect();
        let (units, blocks) = if let [(_, across, down)] = chosen[..] {
            let along = |pixels: usize, factor: u8, most: usize| {
                (pixels * usize::from(factor)).div_ceil(8 * most)
            };
            (along(width, *across, across_max) * along(height, *down, down_max), 1)
        } else {
            let units = width.div_ceil(8 * across_max) * height.div_ceil(8 * down_max);
            (
                units,
                chosen
                    .iter()
                    .map(|(_, across, down)| usize::from(*across) * usize::from(*down))
                    .sum(),
            )
        };
        let mut writer = Writer { out, bits: 0, count: 0 };
        let mut restarts = 0;
        for unit in 0..units.min(units_max) {
            let interval = usize::from(self.restart_interval);
            if interval > 0 && unit > 0 && unit % interval == 0 {
                writer.finish();
                writer.out.extend([0xFF, 0xD0 + restarts]);
                restarts = (restarts + 1) % 8;
            }
            for _ in 0..blocks {
                writer.block(self.process == 0xC2, scan, choices);
            }
        }
        writer.finish();
    }
}

/// A picture that claims more than this is not written out: the decoder is to refuse it.
const UNITS_MAX: usize = 20_000;

impl Scan {
    pub fn sequential(components: Vec<usize>) -> Self {
        Self { components, from: 0, to: 63, bits: 0, data: Data::Blocks(Vec::new()) }
    }
}

fn segment(out: &mut Vec<u8>, marker: u8, payload: &[u8]) {
    out.extend([0xFF, marker]);
    out.extend((payload.len() as u16 + 2).to_be_bytes());
    out.extend(payload);
}

fn stuffed(out: &mut Vec<u8>, byte: u8) {
    out.push(byte);
    if byte == 0xFF {
        out.push(0);
    }
}

struct Writer<'a> {
    out: &'a mut Vec<u8>,
    bits: u32,
    count: u32,
}

impl Writer<'_> {
    fn put(&mut self, value: u32, count: u32) {
        for at in (0..count).rev() {
            self.bits = (self.bits << 1) | (value >> at & 1);
            self.count += 1;
            if self.count == 8 {
                stuffed(self.out, self.bits as u8);
                self.bits = 0;
                self.count = 0;
            }
        }
    }

    fn finish(&mut self) {
        while self.count != 0 {
            self.put(1, 1);
        }
    }

    fn symbol(&mut self, lengths: &[u8; 16], place: usize) {
        let mut code = 0u32;
        let mut first = 0usize;
        for (length, count) in (1u32..).zip(lengths) {
            if place < first + usize::from(*count) {
                return self.put(code + (place - first) as u32, length);
            }
            code = (code + u32::from(*count)) << 1;
            first += usize::from(*count);
        }
    }

    fn block(&mut self, progressive: bool, scan: &Scan, choices: &mut Choices<'_>) {
        if progressive && scan.bits >> 4 > 0 && scan.from == 0 {
            return self.put(u32::from(choices.byte()) & 1, 1);
        }
        if !progressive || scan.from == 0 {
            let category = u32::from(choices.byte() % 7);
            self.symbol(&DC_LENGTHS, category as usize);
            self.put(u32::from(choices.byte()), category);
        }
        if progressive && scan.from == 0 {
            return;
        }
        // The end of the block when the choices have run out.
        for _ in 0..4 {
            let place = usize::from(choices.byte()) % AC_SYMBOLS.len();
            // A run of 16 could pass the block's end.
            if place == 0 || AC_SYMBOLS[place] == 0xF0 {
                break;
            }
            self.symbol(&AC_LENGTHS, place);
            self.put(u32::from(choices.byte()), u32::from(AC_SYMBOLS[place] & 0xF));
        }
        self.symbol(&AC_LENGTHS, 0);
    }
}

/// Numbers out of bytes; zeroes when they have run out.
pub struct Choices<'a> {
    bytes: &'a [u8],
}

impl<'a> Choices<'a> {
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn byte(&mut self) -> u8 {
        self.bytes.split_off_first().copied().unwrap_or_default()
    }

    fn below(&mut self, count: u8) -> usize {
        usize::from(self.byte() % count)
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len() as u8)]
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let count = count.min(self.bytes.len());
        self.bytes.split_off(..count).unwrap_or_default().to_vec()
    }

    /// One time in `of`.
    fn seldom(&mut self, of: u8) -> bool {
        self.byte() % of == of - 1
    }
}

/// A JPEG of whatever kind the bytes say: mostly such as a decoder begins to decode.
pub fn made_of(bytes: &[u8]) -> Vec<u8> {
    let choices = &mut Choices::of(bytes);
    let count = choices.one_of(&[3, 3, 3, 1, 3, 4, 3, 2]);
    let sampling: Vec<_> = (0..count).map(|at| sampling(choices, at)).collect();
    let size = |choices: &mut Choices<'_>| {
        let usual = u16::from(choices.byte()) + 1;
        if choices.seldom(40) { choices.one_of(&[0, 1000, 4000, 65_535]) } else { usual }
    };
    let width = size(choices);
    let height = size(choices);
    let mut spec = Spec::flat(width, height, &sampling);
    spec.process = choices.one_of(&[0xC0, 0xC2, 0xC0, 0xC2, 0xC1, 0xC0]);
    if choices.seldom(40) {
        spec.process = 0xC0 | (choices.byte() & 0xF);
    }
    spec.precision = if choices.seldom(60) { choices.byte() } else { 8 };
    spec.restart_interval = if choices.seldom(4) { u16::from(choices.byte()) } else { 0 };
    spec.has_tables = !choices.seldom(20);
    spec.adobe = choices.seldom(8).then(|| choices.byte() % 4);
    if choices.seldom(8) {
        // As an EXIF segment with a thumbnail has it.
        let inside = [b"Exif\0\0".to_vec(), vec![0xFF, 0xD8], choices.take(40), vec![0xFF, 0xD9]];
        spec.application = inside.concat();
    }
    if choices.seldom(60) {
        let other = choices.below(4);
        spec.components.iter_mut().take(other).for_each(|component| component.0 = 1);
    }
    spec.scans = scans(choices, &spec);
    spec.has_end_marker = !choices.seldom(10);
    spec.trailer = if choices.seldom(8) { choices.take(30) } else { Vec::new() };
    let mut made = spec.bytes();
    for _ in 0..if choices.seldom(4) { choices.below(4) } else { 0 } {
        let at = usize::from(u16::from_be_bytes([choices.byte(), choices.byte()])) % made.len();
        made[at] = choices.byte();
    }
    if choices.seldom(12) {
        let length = usize::from(u16::from_be_bytes([choices.byte(), choices.byte()])) % made.len();
        made.truncate(length);
    }
    made
}

fn sampling(choices: &mut Choices<'_>, at: usize) -> (u8, u8) {
    if choices.seldom(30) {
        return (choices.byte() & 0xF, choices.byte() & 0xF);
    }
    let usual =
        if at == 0 { [(1, 1), (2, 1), (1, 2), (2, 2)] } else { [(1, 1), (1, 1), (1, 1), (2, 1)] };
    if choices.seldom(4) {
        (choices.one_of(&[1, 2, 3, 4]), choices.one_of(&[1, 2, 3, 4]))
    } else {
        choices.one_of(&usual)
    }
}

fn scans(choices: &mut Choices<'_>, spec: &Spec) -> Vec<Scan> {
    let count = spec.components.len();
    let usual =
        if spec.process == 0xC2 { spec.clone().progressive().scans } else { spec.scans.clone() };
    let mut scans = match choices.below(4) {
        // One scan a component.
        0 if choices.seldom(2) => (0..count).map(|at| Scan::sequential(vec![at])).collect(),
        1 if choices.seldom(2) => (0..choices.below(6)).map(|_| any_scan(choices, count)).collect(),
        _ => usual,
    };
    if choices.seldom(6) {
        let more = any_scan(choices, count);
        scans.push(more);
    }
    for scan in &mut scans {
        let length = usize::from(choices.byte());
        let bytes = choices.take(length);
        scan.data = if choices.seldom(6) { Data::Bytes(bytes) } else { Data::Blocks(bytes) };
    }
    scans
}

fn any_scan(choices: &mut Choices<'_>, count: usize) -> Scan {
    let which = choices.byte();
    let mut components: Vec<_> = (0..count).filter(|at| which >> at & 1 == 1).collect();
    if choices.seldom(10) {
        components.push(choices.below(6));
    }
    let (from, to) = choices.one_of(&[(0, 63), (0, 0), (1, 63), (1, 5), (6, 63), (0, 5), (63, 63)]);
    let bits = choices.one_of(&[0, 0, 0x01, 0x10, 0x21, 0x02, 0x33, 0xFF]);
    Scan { components, from, to, bits, data: Data::Blocks(Vec::new()) }
}

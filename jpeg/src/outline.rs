//! What a JPEG declares about itself.

/// A component as the frame header declares it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Component {
    pub(super) id: u8,
    pub(super) horizontal: u8,
    pub(super) vertical: u8,
    /// The number of its quantisation table.
    pub(super) table: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    /// Baseline and extended: each component is in one scan.
    Sequential,
    Progressive,
}

/// How the components make a colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colours {
    Grey,
    YCbCr,
    Rgb,
    /// Cyan, magenta, yellow and black, inverted as Adobe writes them.
    Cmyk,
    /// The same, with the first three as YCbCr.
    Ycck,
}

/// What a JPEG declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    pub width: usize,
    pub height: usize,
    pub process: Process,
    pub colours: Colours,
    /// Cameras leave the usual Huffman tables out.
    pub(super) has_tables: bool,
    pub scans: usize,
    pub(super) components: [Component; COMPONENTS_MAX],
    pub(super) component_count: usize,
    /// Where the end marker stands, or would stand.
    pub(super) end: usize,
    pub(super) has_end_marker: bool,
}

pub(super) const COMPONENTS_MAX: usize = 4;

impl Outline {
    /// The picture without what follows its end marker. Where that is missing, what follows may tell
    /// whether the picture is whole.
    pub fn picture<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        if self.has_end_marker { &bytes[..self.end + 2] } else { bytes }
    }

    /// Whether the components are in several scans that are each final.
    pub fn is_in_parts(&self) -> bool {
        self.process == Process::Sequential && self.scans > 1
    }

    /// Samples of all components together, as they are stored.
    pub fn samples(&self) -> u64 {
        let finest = self.components[0];
        let cells = |it: &Component| u64::from(it.horizontal) * u64::from(it.vertical);
        let all: u64 = self.components().iter().map(cells).sum();
        (self.width as u64 * self.height as u64 * all).div_ceil(cells(&finest))
    }

    /// Bytes that decoding to `1 / 2^halvings` of the width and height takes: the pixels; of a
    /// progressive picture all coefficients in 17 bits; of one in parts no more than a
    /// sample for each of the pixels' bytes.
    pub fn decoding_bytes(&self, halvings: u32) -> u64 {
        let along = |side: usize| side.div_ceil(1 << halvings) as u64;
        let pixels = 3 * along(self.width) * along(self.height);
        match self.process {
            Process::Progressive => pixels + self.samples() * 17 / 8,
            Process::Sequential if self.is_in_parts() => pixels + pixels.min(self.samples()),
            Process::Sequential => pixels,
        }
    }

    pub fn has_end_marker(&self) -> bool {
        self.has_end_marker
    }

    /// Whether one component is the brightness (`decode_luma`).
    pub fn has_luma(&self) -> bool {
        matches!(self.colours, Colours::Grey | Colours::YCbCr)
    }

    pub(super) fn components(&self) -> &[Component] {
        &self.components[..self.component_count]
    }

    /// Columns and rows of minimum coded units where components are interleaved.
    pub(super) fn units(&self) -> (usize, usize) {
        let finest = self.components[0];
        let along = |pixels: usize, most: u8| pixels.div_ceil(8 * usize::from(most));
        (along(self.width, finest.horizontal), along(self.height, finest.vertical))
    }

    /// Columns and rows of a component's blocks in a scan of its own, which has none beyond the
    /// component's edge (T.81, A.2.2).
    pub(super) fn blocks_alone(&self, component: usize) -> (usize, usize) {
        let finest = self.components[0];
        let own = self.components[component];
        let along = |pixels: usize, own: u8, most: u8| {
            (pixels * usize::from(own)).div_ceil(usize::from(most)).div_ceil(8)
        };
        (
            along(self.width, own.horizontal, finest.horizontal),
            along(self.height, own.vertical, finest.vertical),
        )
    }
}

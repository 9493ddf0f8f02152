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
    /// CMYK and YCCK.
    Four,
}

/// What a JPEG declares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outline {
    pub width: usize,
    pub height: usize,
    pub process: Process,
    pub colours: Colours,
    /// Cameras leave the usual Huffman tables out.
    pub has_tables: bool,
    pub scans: usize,
    pub(super) components: [Component; COMPONENTS_MAX],
    pub(super) component_count: usize,
    /// Where the end marker stands, or would stand.
    pub(super) end: usize,
    pub(super) has_end_marker: bool,
}

pub(super) const COMPONENTS_MAX: usize = 4;

impl Outline {
    /// Where the coded data ends: the end marker, or where it would stand.
    pub fn end(&self) -> usize {
        self.end
    }

    /// Whether the components are in several scans that are each final. Only `pixels` decodes them.
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

    pub fn has_end_marker(&self) -> bool {
        self.has_end_marker
    }

    /// Whether the decoder can decode the brightness by itself. For one sampling it reads twice the
    /// rows that there are, and it does not compute brightness from red, green and blue.
    pub fn has_luma_alone(&self) -> bool {
        let halved_rows = self.components[0].horizontal == 1 && self.components[0].vertical == 2;
        match self.colours {
            Colours::Grey => true,
            Colours::YCbCr => !halved_rows,
            Colours::Rgb | Colours::Four => false,
        }
    }

    pub(super) fn components(&self) -> &[Component] {
        &self.components[..self.component_count]
    }
}

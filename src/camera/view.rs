//! How the camera is mounted, and which part of its picture is used: turned, mirrored, cut to the
//! region of interest, and blank where the privacy mask lies.
//!
//! Everything downstream sees only what comes out of here. The mask and the region are fractions of
//! the upright picture, so that they stay right at another size and can be read off a snapshot. The
//! region is cut out, not painted around: the detector then spends all its pixels on it and sees
//! faces farther away.

use crate::recognise::frame::Luma;
use crate::recognise::picture::Picture;

#[derive(Clone, Debug, PartialEq)]
pub struct View {
    pub turn: Turn,
    /// Left and right swapped, after turning.
    pub mirror: bool,
    /// Painted blank.
    pub mask: Vec<Area>,
    /// The part that is used.
    pub region: Area,
}

impl Default for View {
    fn default() -> Self {
        Self { turn: Turn::None, mirror: false, mask: Vec::new(), region: Area::ALL }
    }
}

/// Clockwise, to make the picture upright.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    None,
    Quarter,
    Half,
    ThreeQuarters,
}

/// A rectangle in fractions of the picture. Invariant: `0 <= left < right <= 1`, the same from top
/// to bottom.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Area {
    left: f32,
    top: f32,
    right: f32,
    bottom: f32,
}

impl Area {
    pub const ALL: Self = Self { left: 0.0, top: 0.0, right: 1.0, bottom: 1.0 };

    /// `None` when it is no rectangle within the picture.
    pub fn new([left, top, right, bottom]: [f32; 4]) -> Option<Self> {
        let ordered = |from: f32, to: f32| (0.0..=1.0).contains(&from) && from < to && to <= 1.0;
        (ordered(left, right) && ordered(top, bottom)).then_some(Self { left, top, right, bottom })
    }

    /// Every pixel that it touches.
    fn pixels(&self, width: usize, height: usize) -> Pixels {
        let along = |from: f32, to: f32, all: usize| {
            let from = ((from * all as f32).floor() as usize).min(all.saturating_sub(1));
            (from, ((to * all as f32).ceil() as usize).clamp(from + 1, all.max(from + 1)))
        };
        let (left, right) = along(self.left, self.right, width);
        let (top, bottom) = along(self.top, self.bottom, height);
        Pixels { left, top, right, bottom }
    }
}

/// A rectangle in pixels, the far edges outside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pixels {
    left: usize,
    top: usize,
    right: usize,
    bottom: usize,
}

/// What stands in the place of what must not be seen.
const BLANK: [u8; 3] = [0; 3];

/// A view of pictures of one size. Knows where in the camera's picture each pixel of the upright
/// one comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    raw: (usize, usize),
    region: Pixels,
    /// In pixels of the region.
    mask: Vec<Pixels>,
    /// Of the region's first pixel in the raw picture, and one step right and down from there.
    origin: (isize, isize),
    right: (isize, isize),
    down: (isize, isize),
}

impl View {
    /// The view of pictures `width` x `height` as the camera gives them.
    pub fn layout(&self, width: usize, height: usize) -> Layout {
        let w = width as isize;
        let h = height as isize;
        // Where the upright picture's first pixel comes from, and where one step right and down
        // lead.
        let (origin, mut right, down) = match self.turn {
            Turn::None => ((0, 0), (1, 0), (0, 1)),
            Turn::Quarter => ((0, h - 1), (0, -1), (1, 0)),
            Turn::Half => ((w - 1, h - 1), (-1, 0), (0, -1)),
            Turn::ThreeQuarters => ((w - 1, 0), (0, 1), (-1, 0)),
        };
        let (upright_width, upright_height) =
            if matches!(self.turn, Turn::Quarter | Turn::ThreeQuarters) {
                (height, width)
            } else {
                (width, height)
            };
        let mut origin = origin;
        if self.mirror {
            origin = step_from(origin, right, upright_width as isize - 1);
            right = (-right.0, -right.1);
        }
        let region = self.region.pixels(upright_width, upright_height);
        origin =
            step_from(step_from(origin, right, region.left as isize), down, region.top as isize);
        let mask = self
            .mask
            .iter()
            .filter_map(|area| clip_area(area.pixels(upright_width, upright_height), region));
        Layout { raw: (width, height), region, mask: mask.collect(), origin, right, down }
    }

    /// A picture as the camera gave it, made into what may be seen.
    pub fn apply(&self, picture: Picture) -> Picture {
        self.layout(picture.width(), picture.height()).apply(picture)
    }
}

impl Layout {
    /// Width and height of what comes out.
    pub fn size(&self) -> (usize, usize) {
        (self.region.right - self.region.left, self.region.bottom - self.region.top)
    }

    /// Width and height of what goes in.
    pub fn raw_size(&self) -> (usize, usize) {
        self.raw
    }

    /// A whole picture as the camera gave it, of the size that this layout is for, made into what
    /// may be seen.
    pub fn apply(&self, picture: Picture) -> Picture {
        let upright = if self.is_straight() { picture } else { self.turn_picture(&picture) };
        self.apply_mask(upright, 1)
    }

    /// Nothing turned, mirrored or cut: the usual camera.
    fn is_straight(&self) -> bool {
        self.size() == self.raw && self.origin == (0, 0) && self.right == (1, 0)
    }

    /// The bytes of both pictures while `apply` makes one out of the other.
    pub fn turning_bytes(&self) -> u64 {
        let bytes = |(width, height): (usize, usize)| 3 * width as u64 * height as u64;
        if self.is_straight() { 0 } else { bytes(self.raw) + bytes(self.size()) }
    }

    fn turn_picture(&self, picture: &Picture) -> Picture {
        let pixels = picture.rgb().as_chunks::<3>().0;
        let pitch = picture.width() as isize;
        let place = |(x, y): (isize, isize)| y * pitch + x;
        let (width, height) = self.size();
        let mut turned: Vec<[u8; 3]> = Vec::with_capacity(width * height);
        for y in 0..height as isize {
            let first = place(self.origin) + y * place(self.down);
            turned.extend(
                (0..width as isize).map(|x| pixels[(first + x * place(self.right)) as usize]),
            );
        }
        Picture::from_rgb(width, height, turned.into_flattened())
            .expect("three bytes were written for each pixel")
    }

    /// The largest step at which a picture thinned by it still has a longer side of `side_px`.
    pub fn step_for(&self, side_px: usize) -> usize {
        let (width, height) = self.size();
        (width.max(height) / side_px.max(1)).max(1)
    }

    /// The upright, masked picture thinned by `step`: each pixel the mean of `step` by `step` of
    /// the source, which are given in the camera's own coordinates and in whatever `colour` makes
    /// into red, green and blue. A region thinner than `step` is thinned less: beside it there is
    /// nothing to take the mean of.
    pub fn reduced(
        &self,
        step: usize,
        source: impl Fn(usize, usize) -> [u8; 3],
        colour: impl Fn([u8; 3]) -> [u8; 3],
    ) -> Picture {
        let (width, height) = self.size();
        let step = step.clamp(1, width.min(height));
        let width = width / step;
        let height = height / step;
        let mut rgb = Vec::with_capacity(width * height);
        for y in 0..height {
            let row = step_from(self.origin, self.down, (y * step) as isize);
            for x in 0..width {
                rgb.push(colour(self.mean_colour(
                    step_from(row, self.right, (x * step) as isize),
                    step,
                    &source,
                )));
            }
        }
        let picture = Picture::from_rgb(width, height, rgb.into_flattened());
        self.apply_mask(picture.expect("three bytes were written for each pixel"), step)
    }

    fn mean_colour(
        &self,
        corner: (isize, isize),
        step: usize,
        source: &impl Fn(usize, usize) -> [u8; 3],
    ) -> [u8; 3] {
        let mut sums = [0u32; 3];
        for dy in 0..step {
            let mut at = step_from(corner, self.down, dy as isize);
            for _ in 0..step {
                let [a, b, c] = source(at.0 as usize, at.1 as usize);
                sums = [sums[0] + u32::from(a), sums[1] + u32::from(b), sums[2] + u32::from(c)];
                at = step_from(at, self.right, 1);
            }
        }
        let count = (step * step) as u32;
        sums.map(|sum| ((sum + count / 2) / count) as u8)
    }

    /// Paints the mask on an upright picture thinned by `step`.
    fn apply_mask(&self, picture: Picture, step: usize) -> Picture {
        if self.mask.is_empty() {
            return picture;
        }
        let width = picture.width();
        let height = picture.height();
        let mut rgb = picture.into_rgb();
        for area in &self.mask {
            let left = (area.left / step).min(width);
            let right = area.right.div_ceil(step).min(width);
            for y in area.top / step..area.bottom.div_ceil(step).min(height) {
                let row = &mut rgb[(y * width + left) * 3..(y * width + right) * 3];
                row.as_chunks_mut::<3>().0.fill(BLANK);
            }
        }
        Picture::from_rgb(width, height, rgb).expect("painting changes no size")
    }

    /// Brightness on the coarse grid, from a source of brightness in the camera's own coordinates.
    pub fn luma(&self, brightness: impl Fn(usize, usize) -> u8) -> Luma {
        let (width, height) = self.size();
        let cell = width.max(height).div_ceil(Luma::SIDE).max(1);
        let step = cell.div_ceil(4);
        let columns = width.div_ceil(cell);
        let rows = height.div_ceil(cell);
        let mut values = Vec::with_capacity(columns * rows);
        for row in 0..rows {
            let ys = row * cell..((row + 1) * cell).min(height);
            for column in 0..columns {
                let mut sum = 0u32;
                let mut count = 0u32;
                for y in ys.clone().step_by(step) {
                    for x in (column * cell..((column + 1) * cell).min(width)).step_by(step) {
                        let hidden = self.mask.iter().any(|area| area.holds(x, y));
                        let at = step_from(
                            step_from(self.origin, self.down, y as isize),
                            self.right,
                            x as isize,
                        );
                        sum += if hidden {
                            0
                        } else {
                            u32::from(brightness(at.0 as usize, at.1 as usize))
                        };
                        count += 1;
                    }
                }
                values.push((sum / count.max(1)) as u8);
            }
        }
        Luma::from_rows(columns, values).expect("whole rows were written")
    }
}

impl Pixels {
    fn holds(&self, x: usize, y: usize) -> bool {
        (self.left..self.right).contains(&x) && (self.top..self.bottom).contains(&y)
    }
}

/// The part of `area` inside `region`, in the region's own pixels.
fn clip_area(area: Pixels, region: Pixels) -> Option<Pixels> {
    let left = area.left.max(region.left);
    let right = area.right.min(region.right);
    let top = area.top.max(region.top);
    let bottom = area.bottom.min(region.bottom);
    let moved = |at: usize, by: usize| at.saturating_sub(by);
    (left < right && top < bottom).then(|| Pixels {
        left: moved(left, region.left),
        top: moved(top, region.top),
        right: moved(right, region.left),
        bottom: moved(bottom, region.top),
    })
}

fn step_from(from: (isize, isize), step: (isize, isize), times: isize) -> (isize, isize) {
    (from.0 + step.0 * times, from.1 + step.1 * times)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three by two: the red part counts the columns, the green part the rows.
    fn numbered() -> Picture {
        let pixel = |at: usize| [(at % 3) as u8, (at / 3) as u8, 9];
        Picture::from_rgb(3, 2, (0..6).flat_map(pixel).collect()).unwrap()
    }

    /// Column and row of each pixel in the original.
    fn seen(view: &View) -> (usize, usize, Vec<(u8, u8)>) {
        let picture = view.apply(numbered());
        let pairs =
            picture.rgb().as_chunks::<3>().0.iter().map(|pixel| (pixel[0], pixel[1])).collect();
        (picture.width(), picture.height(), pairs)
    }

    #[test]
    fn rotation_and_mirror_give_upright_picture() {
        let view = |turn, mirror| seen(&View { turn, mirror, ..View::default() });
        assert_eq!(view(Turn::None, false).2, [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]);
        assert_eq!(view(Turn::None, true).2, [(2, 0), (1, 0), (0, 0), (2, 1), (1, 1), (0, 1)]);
        assert_eq!(view(Turn::Half, false).2, [(2, 1), (1, 1), (0, 1), (2, 0), (1, 0), (0, 0)]);
        assert_eq!(
            view(Turn::Quarter, false),
            (2, 3, vec![(0, 1), (0, 0), (1, 1), (1, 0), (2, 1), (2, 0)])
        );
        assert_eq!(
            view(Turn::ThreeQuarters, false),
            (2, 3, vec![(2, 0), (2, 1), (1, 0), (1, 1), (0, 0), (0, 1)])
        );
        assert_eq!(
            view(Turn::Quarter, true),
            (2, 3, vec![(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)])
        );
    }

    #[test]
    fn mask_covers_same_area_at_every_rotation() {
        let bright = Picture::plain(640, 480, [200; 3]);
        let mask = vec![Area::new([0.5, 0.0, 1.0, 0.25]).unwrap()];
        for turn in [Turn::None, Turn::Quarter, Turn::Half, Turn::ThreeQuarters] {
            for mirror in [false, true] {
                let view = View { turn, mirror, mask: mask.clone(), region: Area::ALL };
                let layout = view.layout(640, 480);
                let full = view.apply(bright.clone());
                let small = layout.reduced(2, |_, _| [200; 3], |colour| colour);
                for picture in [&full, &small] {
                    let at = |x: f32, y: f32| {
                        let x = picture.width() as f32 * x;
                        let y = picture.height() as f32 * y;
                        picture.row(y as usize)[x as usize * 3]
                    };
                    let corners = [
                        at(0.49, 0.1),
                        at(0.51, 0.01),
                        at(0.99, 0.24),
                        at(0.99, 0.27),
                        at(0.1, 0.9),
                    ];
                    assert_eq!(corners, [200, 0, 0, 200, 200], "{turn:?} {mirror}");
                }
                let luma = layout.luma(|_, _| 200);
                assert_eq!(luma, Luma::of(&full), "{turn:?} {mirror}");
            }
        }
    }

    #[test]
    fn cropped_region_keeps_mask_in_place() {
        let region = Area::new([0.34, 0.0, 1.0, 1.0]).unwrap();
        let mask = vec![Area::new([0.0, 0.5, 0.5, 1.0]).unwrap()];
        let view = View { mask, region, ..View::default() };
        assert_eq!(seen(&view), (2, 2, vec![(1, 0), (2, 0), (0, 0), (2, 1)]));
        assert_eq!(view.layout(640, 480).size(), (423, 480));
        let nothing = View { mask: vec![Area::ALL], ..View::default() };
        assert_eq!(nothing.apply(Picture::plain(9, 9, [7; 3])), Picture::plain(9, 9, [0; 3]));
    }

    #[test]
    fn thin_region_is_sampled_within_bounds() {
        for (edges, turn) in
            [([0.0, 0.997, 1.0, 1.0], Turn::None), ([0.999, 0.0, 1.0, 1.0], Turn::Quarter)]
        {
            let view = View { turn, region: Area::new(edges).unwrap(), ..View::default() };
            let layout = view.layout(1280, 720);
            let step = layout.step_for(320);
            assert!(step > 2, "{step}");
            let inside = |x, y| {
                assert!(x < 1280 && y < 720, "{x} {y}");
                [7; 3]
            };
            let small = layout.reduced(step, inside, |colour| colour);
            assert!(small.width() > 0 && small.height() > 0);
        }
    }

    #[test]
    fn invalid_area_is_rejected() {
        for wrong in [
            [0.5, 0.0, 0.5, 1.0],
            [0.6, 0.0, 0.5, 1.0],
            [-0.1, 0.0, 1.0, 1.0],
            [0.0, 0.0, 1.1, 1.0],
        ] {
            assert_eq!(Area::new(wrong), None, "{wrong:?}");
        }
        assert_eq!(Area::new([f32::NAN, 0.0, 1.0, 1.0]), None);
        let sliver = Area::new([0.999, 0.999, 1.0, 1.0]).unwrap();
        assert_eq!(View { region: sliver, ..View::default() }.layout(4, 3).size(), (1, 1));
    }
}

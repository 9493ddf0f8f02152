//! Rows of components as rows of pixels: red, green and blue.
//!
//! So many pixels are converted at once that the compiler uses vectors, in functions of their own
//! where it would otherwise take the values out of them one by one.

use crate::outline::{COMPONENTS_MAX, Colours};

/// Pixels at once. Rows of components are filled up to a multiple of it.
pub(super) const LANES: usize = 16;

/// A value of each.
type Lane = [u8; LANES];

/// Room for a row of pixels' red, green and blue.
pub(super) struct Row([Vec<u8>; 3]);

impl Row {
    pub(super) fn of(width: usize) -> Self {
        Self(std::array::from_fn(|_| vec![0; width.next_multiple_of(LANES)]))
    }

    /// Converts rows of components to pixels, three bytes each.
    pub(super) fn convert(
        &mut self,
        colours: Colours,
        [first, second, third, fourth]: [&[u8]; COMPONENTS_MAX],
        pixels: &mut [u8],
    ) {
        match colours {
            Colours::Grey => return interleave(first, first, first, pixels),
            Colours::Rgb => return interleave(first, second, third, pixels),
            Colours::YCbCr | Colours::Ycck => self.convert_luma(first, second, third),
            Colours::Cmyk => {
                for (own, row) in self.0.iter_mut().zip([first, second, third]) {
                    own.iter_mut().zip(row).for_each(|(own, value)| *own = *value);
                }
            }
        }
        if colours == Colours::Ycck {
            self.0.iter_mut().flatten().for_each(|value| *value = 255 - *value);
        }
        if colours != Colours::YCbCr {
            for row in &mut self.0 {
                row.iter_mut().zip(fourth).for_each(|(ink, black)| *ink = darkened(*ink, *black));
            }
        }
        let [red, green, blue] = &self.0;
        interleave(red, green, blue, pixels);
    }

    #[inline(never)]
    fn convert_luma(&mut self, y: &[u8], cb: &[u8], cr: &[u8]) {
        let [red, green, blue] = self.0.each_mut().map(|row| row.as_chunks_mut().0.iter_mut());
        let components = lanes(y).zip(lanes(cb)).zip(lanes(cr));
        for (((red, green), blue), ((y, cb), cr)) in red.zip(green).zip(blue).zip(components) {
            [*red, *green, *blue] = rgb(y, cb, cr);
        }
    }
}

fn lanes(row: &[u8]) -> impl Iterator<Item = &Lane> {
    row.as_chunks().0.iter()
}

/// JFIF's YCbCr as red, green and blue, in 16-bit fixed point.
#[inline]
fn rgb(y: &Lane, cb: &Lane, cr: &Lane) -> [Lane; 3] {
    let mut rgb = [[0; LANES]; 3];
    for at in 0..LANES {
        let y = i16::from(y[at]);
        let cb = i16::from(cb[at]) - 128;
        let cr = i16::from(cr[at]) - 128;
        // 1.402, -0.34414 and -0.71414, 1.772: whole parts are left out of the factors, so that
        // they have 16 bits.
        let red = y + cr + rounded(cr, 26_345);
        let green = product(cb, -22_554) + product(cr, 18_734) + (1 << 15);
        let green = y - cr + (green >> 16) as i16;
        let blue = y + 2 * cb + rounded(cb, -14_942);
        rgb[0][at] = red.clamp(0, 255) as u8;
        rgb[1][at] = green.clamp(0, 255) as u8;
        rgb[2][at] = blue.clamp(0, 255) as u8;
    }
    rgb
}

/// A 65536th of the product. Halved after the shift, it is computed in 16 bits.
#[inline]
fn rounded(value: i16, factor: i16) -> i16 {
    ((product(2 * value, factor) >> 16) as i16 + 1) >> 1
}

#[inline]
fn product(value: i16, factor: i16) -> i32 {
    i32::from(value) * i32::from(factor)
}

/// An ink's brightness with black above it: the product of two parts of 255.
#[inline]
fn darkened(ink: u8, black: u8) -> u8 {
    let product = u16::from(ink) * u16::from(black) + 128;
    ((product + (product >> 8)) >> 8) as u8
}

#[inline(never)]
fn interleave(red: &[u8], green: &[u8], blue: &[u8], pixels: &mut [u8]) {
    let (whole, rest) = pixels.as_chunks_mut::<{ 3 * LANES }>();
    let done = whole.len() * LANES;
    let colours = lanes(red).zip(lanes(green)).zip(lanes(blue));
    for (pixels, ((red, green), blue)) in whole.iter_mut().zip(colours) {
        for at in 0..LANES {
            pixels[3 * at] = red[at];
            pixels[3 * at + 1] = green[at];
            pixels[3 * at + 2] = blue[at];
        }
    }
    let colours = red[done..].iter().zip(&green[done..]).zip(&blue[done..]);
    for (pixel, ((red, green), blue)) in rest.as_chunks_mut::<3>().0.iter_mut().zip(colours) {
        *pixel = [*red, *green, *blue];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sixteen-bit arithmetic gives what 32 bits give, for every pair of colour differences.
    #[test]
    fn conversion_agrees_with_its_formula() {
        for cb in 0..=255u8 {
            for cr in 0..=255u8 {
                for y in [0, 1, 100, 254, 255] {
                    let [red, green, blue] = rgb(&[y; LANES], &[cb; LANES], &[cr; LANES]);
                    let u = i32::from(cb) - 128;
                    let v = i32::from(cr) - 128;
                    let part =
                        |sum: i32| (i32::from(y) + ((sum + (1 << 15)) >> 16)).clamp(0, 255) as u8;
                    let expected =
                        [part(91_881 * v), part(-22_554 * u - 46_802 * v), part(116_130 * u)];
                    assert_eq!([red[3], green[7], blue[15]], expected, "{y} {cb} {cr}");
                }
            }
        }
    }

    #[test]
    fn rows_of_any_width_are_interleaved() {
        for width in [1, 15, 16, 17, 50] {
            let row: Vec<u8> = (0..64).collect();
            let mut pixels = vec![0; width * 3];
            interleave(&row, &row, &row, &mut pixels);
            assert!(pixels.iter().enumerate().all(|(at, value)| usize::from(*value) == at / 3));
        }
    }
}

//! Drawing on a picture: boxes, dots and small text, in whole pixels; what lies outside is left out.

use crate::recognise::picture::Picture;

pub type Colour = [u8; 3];

pub struct Canvas {
    width: i32,
    height: i32,
    rgb: Vec<u8>,
}

impl Canvas {
    pub fn new(picture: Picture) -> Self {
        let (width, height) = (picture.width() as i32, picture.height() as i32);
        Self { width, height, rgb: picture.into_rgb() }
    }

    pub fn into_picture(self) -> Picture {
        Picture::from_rgb(self.width as usize, self.height as usize, self.rgb)
            .expect("as many pixels as before")
    }

    fn set(&mut self, x: i32, y: i32, colour: Colour) {
        if (0..self.width).contains(&x) && (0..self.height).contains(&y) {
            let at = (y * self.width + x) as usize * 3;
            self.rgb[at..at + 3].copy_from_slice(&colour);
        }
    }

    /// A box two pixels thick.
    pub fn outline(&mut self, left: i32, top: i32, right: i32, bottom: i32, colour: Colour) {
        // What lies far outside is not walked through.
        let (left, right) = (left.clamp(-2, self.width + 2), right.clamp(-2, self.width + 2));
        let (top, bottom) = (top.clamp(-2, self.height + 2), bottom.clamp(-2, self.height + 2));
        for thick in 0..2 {
            for x in left..=right {
                self.set(x, top + thick, colour);
                self.set(x, bottom - thick, colour);
            }
            for y in top..=bottom {
                self.set(left + thick, y, colour);
                self.set(right - thick, y, colour);
            }
        }
    }

    pub fn dot(&mut self, x: i32, y: i32, colour: Colour) {
        for (dx, dy) in [(0, 0), (1, 0), (0, 1), (1, 1)] {
            self.set(x.saturating_add(dx), y.saturating_add(dy), colour);
        }
    }

    /// Five by seven pixels a character on black; kept inside the picture where it fits.
    pub fn text(&mut self, x: i32, y: i32, text: &str, colour: Colour) {
        if text.is_empty() {
            return;
        }
        let wide = text.chars().count() as i32 * 6 + 1;
        let x = x.min(self.width - wide).max(0);
        let y = y.min(self.height - 9).max(0);
        for row in 0..9 {
            for column in 0..wide {
                self.set(x + column, y + row, [0; 3]);
            }
        }
        for (index, character) in text.chars().enumerate() {
            for (row, bits) in glyph(character).into_iter().enumerate() {
                for column in 0..5 {
                    if bits >> (4 - column) & 1 == 1 {
                        self.set(x + 1 + index as i32 * 6 + column, y + 1 + row as i32, colour);
                    }
                }
            }
        }
    }
}

/// Seven rows of five pixels, the leftmost the highest bit; letters in one size, anything else a box.
fn glyph(character: char) -> [u8; 7] {
    match character.to_ascii_uppercase() {
        ' ' => [0; 7],
        'A' => [14, 17, 17, 31, 17, 17, 17],
        'B' => [30, 17, 17, 30, 17, 17, 30],
        'C' => [14, 17, 16, 16, 16, 17, 14],
        'D' => [30, 17, 17, 17, 17, 17, 30],
        'E' => [31, 16, 16, 30, 16, 16, 31],
        'F' => [31, 16, 16, 30, 16, 16, 16],
        'G' => [14, 17, 16, 23, 17, 17, 15],
        'H' => [17, 17, 17, 31, 17, 17, 17],
        'I' => [14, 4, 4, 4, 4, 4, 14],
        'J' => [7, 2, 2, 2, 2, 18, 12],
        'K' => [17, 18, 20, 24, 20, 18, 17],
        'L' => [16, 16, 16, 16, 16, 16, 31],
        'M' => [17, 27, 21, 21, 17, 17, 17],
        'N' => [17, 25, 21, 19, 17, 17, 17],
        'O' => [14, 17, 17, 17, 17, 17, 14],
        'P' => [30, 17, 17, 30, 16, 16, 16],
        'Q' => [14, 17, 17, 17, 21, 18, 13],
        'R' => [30, 17, 17, 30, 20, 18, 17],
        'S' => [15, 16, 16, 14, 1, 1, 30],
        'T' => [31, 4, 4, 4, 4, 4, 4],
        'U' => [17, 17, 17, 17, 17, 17, 14],
        'V' => [17, 17, 17, 17, 17, 10, 4],
        'W' => [17, 17, 17, 21, 21, 27, 17],
        'X' => [17, 17, 10, 4, 10, 17, 17],
        'Y' => [17, 17, 10, 4, 4, 4, 4],
        'Z' => [31, 1, 2, 4, 8, 16, 31],
        '0' => [14, 17, 19, 21, 25, 17, 14],
        '1' => [4, 12, 4, 4, 4, 4, 14],
        '2' => [14, 17, 1, 6, 8, 16, 31],
        '3' => [30, 1, 1, 14, 1, 1, 30],
        '4' => [2, 6, 10, 18, 31, 2, 2],
        '5' => [31, 16, 30, 1, 1, 17, 14],
        '6' => [14, 16, 30, 17, 17, 17, 14],
        '7' => [31, 1, 2, 4, 8, 8, 8],
        '8' => [14, 17, 17, 14, 17, 17, 14],
        '9' => [14, 17, 17, 15, 1, 1, 14],
        '.' => [0, 0, 0, 0, 0, 12, 12],
        ':' => [0, 12, 12, 0, 12, 12, 0],
        '-' => [0, 0, 0, 31, 0, 0, 0],
        '_' => [0, 0, 0, 0, 0, 0, 31],
        _ => [31, 17, 17, 17, 17, 17, 31],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_is_left_out() {
        let mut canvas = Canvas::new(Picture::plain(20, 10, [9; 3]));
        canvas.outline(-1000, 3, i32::MAX, 5, [255; 3]);
        canvas.dot(i32::MAX, i32::MAX, [255; 3]);
        canvas.text(-5, 100, "A very long text", [255; 3]);
        let picture = canvas.into_picture();
        assert_eq!((picture.width(), picture.height()), (20, 10));
        assert_eq!(picture.clamped(10, 0), [9; 3]);
    }

    #[test]
    fn a_letter_is_drawn_on_black() {
        let mut canvas = Canvas::new(Picture::plain(8, 9, [9; 3]));
        canvas.text(0, 0, "I", [255; 3]);
        let picture = canvas.into_picture();
        let lit = picture.rgb().chunks_exact(3).filter(|pixel| pixel[0] == 255).count();
        assert_eq!((lit, picture.clamped(0, 0), picture.clamped(7, 0)), (11, [0; 3], [9; 3]));
    }
}

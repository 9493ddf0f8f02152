//! Scaling a picture for a model, with the weights of the reference pipeline (OpenCV's area and
//! linear modes), because the models' accuracy was measured with those.
//!
//! Separable: first down the columns, whose inner loop runs along whole rows and vectorises, then
//! along the rows.

use crate::recognise::picture::Picture;

/// How the new pixels are weighed from the old.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each new pixel is the mean of the area it covers: for making smaller.
    Area,
    /// Between the nearest two, centre to centre: for making larger.
    Linear,
    /// OpenCV's `INTER_AREA` when it makes larger: like the nearest pixel, with the seam between
    /// two interpolated.
    AreaEnlarging,
}

/// For each new pixel, where its old pixels begin and how they are weighed.
struct Taps {
    starts: Vec<usize>,
    weights: Vec<f32>,
    each: usize,
}

impl Taps {
    fn new(from: usize, to: usize, mode: Mode) -> Self {
        let scale = from as f64 / to as f64;
        let each = if mode == Mode::Area { scale.ceil() as usize + 1 } else { 2 }.min(from);
        let mut taps = Self { starts: Vec::with_capacity(to), weights: vec![0.0; to * each], each };
        for index in 0..to {
            let spread = match mode {
                Mode::Area => area(index, scale, from),
                Mode::Linear => pair((index as f64 + 0.5) * scale - 0.5, from),
                Mode::AreaEnlarging => {
                    let base = (index as f64 * scale).floor();
                    let beyond = (index + 1) as f64 - (base + 1.0) / scale;
                    pair(base + if beyond <= 0.0 { 0.0 } else { beyond.fract() }, from)
                }
            };
            let start = spread.0.min(from - each);
            taps.starts.push(start);
            for (offset, weight) in spread.1.into_iter().enumerate() {
                // Weights that fall beyond the last pixel belong to it.
                let place = (spread.0 + offset).min(from - 1) - start;
                taps.weights[index * each + place] += weight;
            }
        }
        taps
    }

    fn of(&self, index: usize) -> (usize, &[f32]) {
        (self.starts[index], &self.weights[index * self.each..(index + 1) * self.each])
    }
}

fn area(index: usize, scale: f64, from: usize) -> (usize, Vec<f32>) {
    let begin = index as f64 * scale;
    let end = ((index + 1) as f64 * scale).min(from as f64);
    let first = begin.floor() as usize;
    let last = ((end - 1e-9).ceil() as usize).max(first + 1);
    let width = end - begin;
    let share = |pixel: usize| ((pixel + 1) as f64).min(end) - (pixel as f64).max(begin);
    (first, (first..last).map(|pixel| (share(pixel).max(0.0) / width) as f32).collect())
}

fn pair(at: f64, from: usize) -> (usize, Vec<f32>) {
    let at = at.clamp(0.0, (from - 1) as f64);
    let first = at.floor();
    (first as usize, vec![(1.0 - (at - first)) as f32, (at - first) as f32])
}

/// The picture at another size, as floats in 0..=255 rounded to whole numbers, interleaved RGB.
pub fn resample(picture: &Picture, width: usize, height: usize, mode: Mode) -> Vec<f32> {
    let columns = Taps::new(picture.width(), width, mode);
    let rows = Taps::new(picture.height(), height, mode);
    let mut out = vec![0.0f32; width * height * 3];
    let mut mixed = vec![0.0f32; picture.width() * 3];
    for (y, line) in out.chunks_exact_mut(width * 3).enumerate() {
        let (first, weights) = rows.of(y);
        mix_rows(picture, first, weights, &mut mixed);
        mix_columns(&mixed, &columns, line);
    }
    out
}

/// The weighted sum of some of the picture's rows.
fn mix_rows(picture: &Picture, first: usize, weights: &[f32], mixed: &mut [f32]) {
    let mut started = false;
    for (offset, weight) in weights.iter().enumerate().filter(|(_, weight)| **weight != 0.0) {
        let row = picture.row(first + offset);
        if started {
            mixed
                .iter_mut()
                .zip(row)
                .for_each(|(total, value)| *total += weight * f32::from(*value));
        } else {
            mixed
                .iter_mut()
                .zip(row)
                .for_each(|(total, value)| *total = weight * f32::from(*value));
            started = true;
        }
    }
}

/// Each new pixel of a line from the old ones it covers, rounded.
fn mix_columns(mixed: &[f32], columns: &Taps, line: &mut [f32]) {
    let each = columns.each;
    let taps = columns.starts.iter().zip(columns.weights.chunks_exact(each));
    for (pixel, (first, weights)) in line.chunks_exact_mut(3).zip(taps) {
        let old = &mixed[first * 3..(first + each) * 3];
        let mut sum = [0.5f32; 3];
        for (old, weight) in old.chunks_exact(3).zip(weights) {
            sum[0] += weight * old[0];
            sum[1] += weight * old[1];
            sum[2] += weight * old[2];
        }
        // What is here lies in 0.5..=255.5, where the cast cuts as `trunc` does, and is one
        // instruction instead of a call.
        pixel.copy_from_slice(&sum.map(|value| f32::from(value as u8)));
    }
}

/// The part of a picture between whole pixels; outside the picture its edge is repeated.
pub fn crop(picture: &Picture, left: isize, top: isize, width: usize, height: usize) -> Picture {
    let width = width.max(1);
    let height = height.max(1);
    let mut rgb = Vec::with_capacity(width * height * 3);
    for y in top..top + height as isize {
        let inside = left >= 0
            && left as usize + width <= picture.width()
            && (0..picture.height() as isize).contains(&y);
        if inside {
            let from = left as usize * 3;
            rgb.extend_from_slice(&picture.row(y as usize)[from..from + width * 3]);
        } else {
            (left..left + width as isize).for_each(|x| rgb.extend(picture.clamped(x, y)));
        }
    }
    Picture::from_rgb(width, height, rgb).expect("one pixel was pushed for each place")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(width: usize, height: usize) -> Picture {
        let rgb = (0..width * height)
            .flat_map(|n| [(n % width * 10) as u8, (n / width * 10) as u8, 7])
            .collect();
        Picture::from_rgb(width, height, rgb).unwrap()
    }

    /// The red channel of the first row.
    fn row(values: &[f32], width: usize) -> Vec<f32> {
        values.chunks_exact(3).take(width).map(|pixel| pixel[0]).collect()
    }

    #[test]
    fn resampling_matches_opencv() {
        // Expected values: OpenCV 4 resize() of the same ramps.
        assert_eq!(row(&resample(&ramp(6, 2), 3, 1, Mode::Area), 3), [5.0, 25.0, 45.0]);
        assert_eq!(row(&resample(&ramp(5, 5), 2, 2, Mode::Area), 2), [8.0, 32.0]);
        assert_eq!(
            row(&resample(&ramp(4, 4), 8, 8, Mode::Linear), 8),
            [0.0, 3.0, 8.0, 13.0, 18.0, 23.0, 28.0, 30.0]
        );
        assert_eq!(
            row(&resample(&ramp(4, 4), 6, 6, Mode::AreaEnlarging), 6),
            [0.0, 5.0, 10.0, 20.0, 25.0, 30.0]
        );
    }

    #[test]
    fn resampling_to_same_size_changes_nothing() {
        let picture = ramp(7, 5);
        let expected: Vec<f32> = picture.rgb().iter().map(|v| f32::from(*v)).collect();
        for mode in [Mode::Area, Mode::Linear, Mode::AreaEnlarging] {
            assert_eq!(resample(&picture, 7, 5, mode), expected, "{mode:?}");
        }
    }

    #[test]
    fn odd_sizes_stay_in_bounds() {
        for (w, h, to_w, to_h) in
            [(1, 1, 64, 64), (1, 9, 3, 2), (640, 3, 320, 2), (17, 1000, 64, 64)]
        {
            for mode in [Mode::Area, Mode::Linear, Mode::AreaEnlarging] {
                assert_eq!(
                    resample(&Picture::plain(w, h, [9; 3]), to_w, to_h, mode),
                    vec![9.0; to_w * to_h * 3]
                );
            }
        }
    }

    #[test]
    fn crop_beyond_edge_repeats_pixels() {
        let part = crop(&ramp(4, 4), -1, 3, 3, 2);
        assert_eq!(part.rgb()[..9], [0, 30, 7, 0, 30, 7, 10, 30, 7]);
        assert_eq!(part.row(1), part.row(0));
    }
}

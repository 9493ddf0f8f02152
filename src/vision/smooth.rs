//! Grain taken out of a face before it is judged live or not: a bilateral filter, which evens out
//! what differs little and leaves edges as they are.
//!
//! The attack model was trained on clean photographs and takes a sensor's grain for a print's: at
//! its own threshold it refuses 25 in 100 live photographs to which grain of two brightness steps
//! is added, and 5 when the crop is smoothed first, while prints stay as easy to detect
//! (`docs/performance.md`).

/// Five by five pixels.
const REACH: isize = 2;
/// Standard deviation in pixels, and in brightness steps summed over the channels.
const IN_SPACE: f32 = 2.0;
const IN_COLOUR: f32 = 12.0;

/// Evens out an interleaved RGB picture, 0..=255; at the edge only with what lies inside.
pub(crate) fn smoothed(rgb: &[f32], width: usize, height: usize) -> Vec<f32> {
    debug_assert_eq!(rgb.len(), width * height * 3);
    // Beyond four deviations nothing weighs anything.
    let by_colour: Vec<f32> =
        (0..=(4.0 * IN_COLOUR) as usize).map(|step| bell(step as f32, IN_COLOUR)).collect();
    let neighbours: Vec<(isize, isize, f32)> = (-REACH..=REACH)
        .flat_map(|dy| (-REACH..=REACH).map(move |dx| (dx, dy)))
        .map(|(dx, dy)| (dx, dy, bell((dx as f32).hypot(dy as f32), IN_SPACE)))
        .filter(|(dx, dy, _)| dx * dx + dy * dy <= REACH * REACH)
        .collect();
    let mut out = Vec::with_capacity(rgb.len());
    for y in 0..height as isize {
        for x in 0..width as isize {
            let here = pixel(rgb, width, x, y);
            let mut sum = [0.0f32; 3];
            let mut weights = 0.0f32;
            for (dx, dy, in_space) in &neighbours {
                let x = x + dx;
                let y = y + dy;
                if !(0..width as isize).contains(&x) || !(0..height as isize).contains(&y) {
                    continue;
                }
                let there = pixel(rgb, width, x, y);
                let apart = (there[0] - here[0]).abs()
                    + (there[1] - here[1]).abs()
                    + (there[2] - here[2]).abs();
                let Some(in_colour) = by_colour.get(apart as usize) else { continue };
                let weight = in_space * in_colour;
                weights += weight;
                sum.iter_mut().zip(there).for_each(|(sum, value)| *sum += weight * value);
            }
            out.extend(sum.map(|sum| sum / weights));
        }
    }
    out
}

fn pixel(rgb: &[f32], width: usize, x: isize, y: isize) -> [f32; 3] {
    let at = (y as usize * width + x as usize) * 3;
    [rgb[at], rgb[at + 1], rgb[at + 2]]
}

fn bell(distance: f32, deviation: f32) -> f32 {
    (-0.5 * (distance / deviation).powi(2)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn smoothing_removes_grain_and_keeps_edges() {
        let width = 32;
        let height = 16;
        let grain = |n: usize| (n * 7919 % 5) as f32 - 2.0;
        let scene = |n: usize| if n % width < 16 { 80.0 } else { 160.0 };
        let rgb: Vec<f32> = (0..width * height)
            .flat_map(|n| [0, 1, 2].map(|c| scene(n) + grain(n * 3 + c)))
            .collect();
        let smooth = smoothed(&rgb, width, height);
        let rough = |rgb: &[f32]| {
            let apart =
                rgb.chunks_exact(3).enumerate().map(|(n, pixel)| (pixel[0] - scene(n)).abs());
            apart.sum::<f32>() / (width * height) as f32
        };
        assert!(rough(&smooth) < 0.5 * rough(&rgb), "{} of {}", rough(&smooth), rough(&rgb));
        let edge = |x: usize| smooth[(8 * width + x) * 3];
        assert!(edge(16) - edge(15) > 78.0);
    }

    #[test]
    fn smoothing_leaves_even_picture_unchanged() {
        let smooth = smoothed(&[17.0; 5 * 3 * 3], 5, 3);
        assert!(smooth.iter().all(|value| (value - 17.0).abs() < 1e-4));
    }
}

//! Which references a subject keeps when there are more than it may have: good ones that differ
//! from one another.
//!
//! Two photographs of one second are worth no more than one; what a reference adds is light, pose and
//! years that the others lack.

use crate::recognise::face::Template;

/// Even the poorest sample that passed the gates counts for something when it is unlike all others.
const QUALITY_MIN: f32 = 0.05;

/// The places of those to keep, at most `most`, in their order: the best of all first, then again
/// and again the one with the largest product of quality (0.0..=1.0) and distance (one less the
/// cosine) to the nearest of those kept.
pub fn choose(candidates: &[(&Template, f32)], most: usize) -> Vec<usize> {
    if candidates.len() <= most {
        return (0..candidates.len()).collect();
    }
    let mut kept: Vec<usize> = Vec::with_capacity(most);
    // Two is farther than any template can be from another: at first quality alone decides.
    let mut nearest = vec![2.0f32; candidates.len()];
    while kept.len() < most {
        let worth = |at: usize| nearest[at] * candidates[at].1.max(QUALITY_MIN);
        let left = (0..candidates.len()).filter(|at| !kept.contains(at));
        // The first of equals: what is there already stays.
        let Some(next) = left.rev().max_by(|a, b| worth(*a).total_cmp(&worth(*b))) else {
            break;
        };
        kept.push(next);
        for (at, distance) in nearest.iter_mut().enumerate() {
            *distance = distance.min(1.0 - candidates[at].0.compare(candidates[next].0));
        }
    }
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(candidates: &[([f32; 3], f32)], most: usize, expected: &[usize]) {
        let templates: Vec<Template> =
            candidates.iter().map(|(raw, _)| Template::normalised(raw.to_vec()).unwrap()).collect();
        let pairs: Vec<(&Template, f32)> =
            templates.iter().zip(candidates).map(|(t, (_, q))| (t, *q)).collect();
        assert_eq!(choose(&pairs, most), expected);
    }

    #[test]
    fn best_and_most_different_references_are_kept() {
        let front = [1.0, 0.0, 0.0];
        let nearly = [1.0, 0.05, 0.0];
        let left = [0.8, 0.6, 0.0];
        let right = [0.8, 0.0, 0.6];
        check(&[(front, 0.5), (nearly, 0.9)], 2, &[0, 1]);
        check(&[(front, 0.5), (nearly, 0.9), (left, 0.4)], 2, &[1, 2]);
        check(&[(front, 0.9), (nearly, 0.9), (left, 0.4), (right, 0.4)], 3, &[0, 2, 3]);
        // Of two that are the same the one that was there first.
        check(&[(left, 0.4), (front, 0.9), (left, 0.4)], 2, &[0, 1]);
        check(&[(front, 0.0), (front, 0.0), (front, 0.0)], 1, &[0]);
        check(&[], 3, &[]);
        check(&[(front, 1.0)], 0, &[]);
    }
}

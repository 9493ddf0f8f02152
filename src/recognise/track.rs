//! One face over consecutive frames, so that a person is decided upon once and not thirty times a
//! second.
//!
//! Faces are carried from frame to frame by overlap; whether the face in the same place is still
//! the same *person* is asked of the templates (`live`). A track ends when its face was not seen
//! for a while although the detector ran.

use std::time::Duration;

use crate::clock::Stamp;
use crate::recognise::decision::{Decision, Evidence};
use crate::recognise::face::{BoundingBox, Detection, Landmarks};
use crate::recognise::pad::Liveness;
use crate::recognise::quality::Flaw;

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrackSettings {
    /// A face not seen for this long has left, provided that the detector ran meanwhile.
    pub lost_after: Duration,
    /// Least overlap (intersection over union) of a face's boxes in consecutive frames.
    pub overlap_min: f32,
}

/// Detections that must have missed a face before it counts as gone: where frames are further apart than
/// `lost_after`, because the camera or the processor is slow, a face in each of them is one track
/// all the same.
const MISSED_MIN: usize = 2;
/// The boxes of two detections of a face overlap by more than this while it stands still.
const STEADY_MIN: f32 = 0.7;
/// After so much longer than `lost_after` a face counts as gone without a detection: the camera was
/// away. Longer than the slowest camera's frames are apart.
const NO_DETECTION_MAX: Duration = Duration::from_secs(30);

/// A face being followed.
#[derive(Debug)]
pub struct Track {
    pub id: u64,
    pub first_seen: Stamp,
    pub last_seen: Stamp,
    /// Detections since then that did not find it.
    pub missed: usize,
    /// The face jumped, or a detection missed it, since the last template: it may be another
    /// person's.
    pub doubtful: bool,
    /// When such a doubt about a decided face was last found to be for nothing.
    pub doubt_cleared: Option<Stamp>,
    pub bounding_box: BoundingBox,
    pub landmarks: Landmarks,
    /// As the detector found them, not refined.
    pub detected: Landmarks,
    pub confidence: f32,
    pub evidence: Evidence,
    /// Templates made for it, more than `evidence` keeps.
    pub templates: usize,
    pub decision: Decision,
    /// The decision is not reported yet: it waits until the face is found live.
    pub unreported: bool,
    /// When the last template was made. A decided track is compared again now and then.
    pub last_template: Option<Stamp>,
    /// Rank of the best sample that became a template (`quality::rank`).
    pub best_rank: f32,
    /// What was wrong with the last sample.
    pub flaw: Option<Flaw>,
    pub liveness: Liveness,
    /// An attack is reported once.
    pub attack_reported: bool,
}

#[derive(Debug)]
pub struct Tracker {
    settings: TrackSettings,
    tracks: Vec<Track>,
    next_id: u64,
}

impl Tracker {
    pub fn new(settings: TrackSettings) -> Self {
        Self { settings, tracks: Vec::new(), next_id: 1 }
    }

    pub fn tracks(&self) -> &[Track] {
        &self.tracks
    }

    /// Ends the tracks that were not seen for too long and hands them over.
    pub fn end_lost(&mut self, now: &Stamp) -> Vec<Track> {
        let lost_after = self.settings.lost_after;
        let is_lost = |track: &mut Track| {
            let unseen = now.since(&track.last_seen);
            unseen >= lost_after
                && (track.missed >= MISSED_MIN || unseen >= lost_after + NO_DETECTION_MAX)
        };
        self.tracks.extract_if(.., is_lost).collect()
    }

    /// Finds for each detection its track, greedily by overlap, and begins tracks for those
    /// without. The answer has one index into [`Self::tracks`] for each detection, in their order.
    pub fn follow(&mut self, detections: &[Detection], now: &Stamp) -> Vec<usize> {
        let mut pairs: Vec<(f32, usize, usize)> = Vec::new();
        for (d, detection) in detections.iter().enumerate() {
            for (t, track) in self.tracks.iter().enumerate() {
                let overlap = track.bounding_box.overlap(&detection.bounding_box);
                if overlap >= self.settings.overlap_min {
                    pairs.push((overlap, d, t));
                }
            }
        }
        pairs.sort_by(|a, b| b.0.total_cmp(&a.0));
        let mut of_detection = vec![None; detections.len()];
        let mut taken = vec![false; self.tracks.len()];
        for (overlap, d, t) in pairs {
            if of_detection[d].is_none() && !taken[t] {
                of_detection[d] = Some(t);
                taken[t] = true;
                let track = &mut self.tracks[t];
                track.doubtful |= track.missed > 0 || overlap < STEADY_MIN;
            }
        }
        for (track, taken) in self.tracks.iter_mut().zip(taken) {
            track.missed = if taken { 0 } else { track.missed + 1 };
        }
        let mut indices = Vec::with_capacity(detections.len());
        for (detection, found) in detections.iter().zip(of_detection) {
            let index = found.unwrap_or_else(|| self.begin(now));
            let track = &mut self.tracks[index];
            track.bounding_box = detection.bounding_box;
            track.landmarks = detection.landmarks;
            track.detected = detection.landmarks;
            track.confidence = detection.confidence;
            track.last_seen = *now;
            indices.push(index);
        }
        indices
    }

    pub fn track_mut(&mut self, index: usize) -> &mut Track {
        &mut self.tracks[index]
    }

    /// The face in this place has become another person's: hands over the old track and begins a
    /// new one in its stead.
    pub fn restart(&mut self, index: usize, now: &Stamp) -> Track {
        let bounding_box = self.tracks[index].bounding_box;
        let begun = self.begin(now);
        self.tracks[begun].bounding_box = bounding_box;
        self.tracks.swap_remove(index)
    }

    fn begin(&mut self, now: &Stamp) -> usize {
        self.tracks.push(Track {
            id: self.next_id,
            first_seen: *now,
            last_seen: *now,
            missed: 0,
            doubtful: false,
            doubt_cleared: None,
            bounding_box: BoundingBox::default(),
            landmarks: Landmarks::default(),
            detected: Landmarks::default(),
            confidence: 0.0,
            evidence: Evidence::default(),
            templates: 0,
            decision: Decision::Undecided,
            unreported: false,
            last_template: None,
            best_rank: 0.0,
            flaw: None,
            liveness: Liveness::default(),
            attack_reported: false,
        });
        self.next_id += 1;
        self.tracks.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognise::face::Landmarks;

    fn face(left: f32) -> Detection {
        let bounding_box = BoundingBox { left, top: 0.0, right: left + 100.0, bottom: 100.0 };
        Detection { bounding_box, confidence: 0.9, landmarks: Landmarks::default() }
    }

    fn at(ms: u64) -> Stamp {
        Stamp { wall_ms: 0, boottime_ms: ms, trusted: true }
    }

    fn tracker() -> Tracker {
        Tracker::new(TrackSettings { lost_after: Duration::from_millis(500), overlap_min: 0.3 })
    }

    #[test]
    fn moving_face_keeps_its_track() {
        let mut tracker = tracker();
        for step in 0..10u64 {
            let faces = [face(step as f32 * 20.0), face(600.0 - step as f32 * 20.0)];
            let indices = tracker.follow(&faces, &at(step * 40));
            assert_eq!(indices.iter().map(|i| tracker.tracks()[*i].id).collect::<Vec<_>>(), [1, 2]);
        }
    }

    #[test]
    fn distant_or_returned_face_gets_new_track() {
        let mut tracker = tracker();
        tracker.follow(&[face(0.0)], &at(0));
        tracker.follow(&[face(300.0)], &at(40));
        tracker.follow(&[face(300.0)], &at(80));
        assert_eq!(tracker.end_lost(&at(499)).len(), 0);
        let lost = tracker.end_lost(&at(500));
        assert_eq!(lost.iter().map(|track| track.id).collect::<Vec<_>>(), [1]);
        assert_eq!(tracker.follow(&[face(0.0)], &at(520)), [1]);
        assert_eq!(tracker.tracks()[1].id, 3);
    }

    #[test]
    fn track_survives_low_frame_rate() {
        let mut tracker = tracker();
        for second in 0..5 {
            assert_eq!(tracker.end_lost(&at(second * 1000)).len(), 0);
            let indices = tracker.follow(&[face(0.0)], &at(second * 1000));
            assert_eq!(tracker.tracks()[indices[0]].id, 1);
        }
        tracker.follow(&[], &at(5000));
        assert_eq!(tracker.end_lost(&at(6000)).len(), 0, "one detection may miss a face");
        tracker.follow(&[], &at(6000));
        assert_eq!(tracker.end_lost(&at(6500)).len(), 1);
    }

    #[test]
    fn track_ends_after_long_camera_outage() {
        let mut tracker = tracker();
        tracker.follow(&[face(0.0)], &at(0));
        assert_eq!(tracker.end_lost(&at(30_499)).len(), 0);
        assert_eq!(tracker.end_lost(&at(30_500)).len(), 1);
    }

    #[test]
    fn restarted_track_gets_new_id() {
        let mut tracker = tracker();
        tracker.follow(&[face(0.0), face(300.0)], &at(0));
        let old = tracker.restart(0, &at(40));
        assert_eq!(old.id, 1);
        let ids: Vec<_> = tracker
            .follow(&[face(0.0), face(300.0)], &at(80))
            .iter()
            .map(|i| tracker.tracks()[*i].id)
            .collect();
        assert_eq!(ids, [3, 2]);
    }
}

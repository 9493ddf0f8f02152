//! The sections `[recognition]`, `[quality]`, `[enrolment]` and `[power]`.

use std::path::Path;
use std::time::Duration;

use crate::config::checks::{ConfigError, resolve_path, time_within, within};
use crate::config::raw::{RawConfig, RawPad, RawReach};
use crate::enrol::EnrolSettings;
use crate::recognise::attention::PaceSettings;
use crate::recognise::decision::{DecisionSettings, EarlyExit, ThresholdRule};
use crate::recognise::engine::DetectorInput;
use crate::recognise::face::Threshold;
use crate::recognise::live::LiveSettings;
use crate::recognise::pad::{PadMode, PadSettings};
use crate::recognise::picture::PictureLimits;
use crate::recognise::quality::QualityBounds;
use crate::recognise::track::TrackSettings;
use crate::vision::VisionSettings;
use crate::vision::manifest::{FirstPartSpec, TemplateSpec};

/// Least score between samples of one face in consecutive frames: different people stay below it
/// (the 99.9th percentile of impostor scores is about .35), the same face in the same place far
/// above.
const SAME_TRACK_MIN: f32 = 0.30;

/// Least overlap of a face's boxes in consecutive frames.
const TRACK_OVERLAP_MIN: f32 = 0.25;

/// All that recognition needs but the embedder's threshold, which the manifest holds.
#[derive(Clone, Copy, Debug)]
pub struct RecognitionSettings {
    fixed_threshold: Option<Threshold>,
    fpir: f32,
    samples_min: usize,
    early_margin: f32,
    margin_min: f32,
    unknown_samples: usize,
    confidence_min: f32,
    detector_input: DetectorInput,
    track: TrackSettings,
    recheck_after: Duration,
    pad: PadSettings,
    pace: PaceSettings,
    probe: QualityBounds,
    reference: QualityBounds,
    same_person_min: f32,
    duplicate_margin: f32,
    look_alike_margin: f32,
    references_max: usize,
    learn: bool,
    picture: PictureLimits,
}

impl RecognitionSettings {
    pub fn threshold(&self, spec: &TemplateSpec) -> ThresholdRule {
        ThresholdRule {
            threshold: spec.threshold,
            subjects: spec.threshold_subjects,
            per_decade: spec.threshold_per_decade,
            fpir: self.fpir,
            fixed: self.fixed_threshold,
        }
    }

    /// When the first part of a composite embedder decides alone. A threshold that is set by hand
    /// is that of both parts.
    fn early_exit(&self, spec: &TemplateSpec) -> Option<EarlyExit> {
        let first = spec.first_part?;
        let rule = ThresholdRule {
            threshold: first.threshold,
            subjects: first.threshold_subjects,
            per_decade: first.threshold_per_decade,
            fpir: self.fpir,
            fixed: self.fixed_threshold,
        };
        let FirstPartSpec { above_decades, below, .. } = first;
        Some(EarlyExit { rule, above_decades, below })
    }

    pub fn decision(&self, spec: &TemplateSpec) -> DecisionSettings {
        DecisionSettings {
            threshold: self.threshold(spec),
            early_exit: self.early_exit(spec),
            samples_min: self.samples_min,
            early_margin: self.early_margin,
            margin_min: self.margin_min,
            unknown_samples: self.unknown_samples,
            length_min: spec.length_min,
        }
    }

    pub fn live(&self, spec: &TemplateSpec) -> LiveSettings {
        LiveSettings {
            detector_input: self.detector_input,
            track: self.track,
            decision: self.decision(spec),
            probe: self.probe,
            confidence_min: self.confidence_min,
            recheck_after: self.recheck_after,
            same_person_min: SAME_TRACK_MIN,
            pad: self.pad,
            pace: self.pace,
        }
    }

    pub fn enrol(&self, spec: &TemplateSpec) -> EnrolSettings {
        EnrolSettings {
            reference: self.reference,
            same_person_min: self.same_person_min,
            duplicate_margin: self.duplicate_margin,
            look_alike_margin: self.look_alike_margin,
            references_max: self.references_max,
            length_weak: spec.length_weak,
            decision: self.decision(spec),
            picture: self.picture,
        }
    }

    /// How many references a subject keeps at most when the door learns from its camera; `None`
    /// when it does not.
    pub fn learned_references_max(&self) -> Option<usize> {
        self.learn.then_some(self.references_max)
    }

    pub fn pad(&self) -> PadSettings {
        self.pad
    }

    pub fn picture(&self) -> PictureLimits {
        self.picture
    }
}

pub(super) fn check_vision(raw: &RawConfig, folder: &Path) -> Result<VisionSettings, ConfigError> {
    let recognition = &raw.recognition;
    let threads = match within("[recognition] threads", recognition.threads, 0, 64)? {
        // One core is left to everything else; beyond three, these small models gain nothing.
        0 => std::thread::available_parallelism()
            .map_or(1, |cores| cores.get().saturating_sub(1).clamp(1, 3)),
        threads => threads,
    };
    Ok(VisionSettings {
        models: folder.join(&recognition.models),
        runtime_library: resolve_path(folder, &recognition.runtime_library),
        embedder: recognition.embedder.clone(),
        precision: recognition.precision,
        threads,
        pad: recognition.pad != RawPad::Off,
    })
}

pub(super) fn check_recognition(raw: &RawConfig) -> Result<RecognitionSettings, ConfigError> {
    let it = &raw.recognition;
    let threshold = within("[recognition] threshold", it.threshold, 0.0, 1.0)?;
    let probe = &raw.quality;
    let reference = &raw.enrolment;
    Ok(RecognitionSettings {
        // 0 means the rule.
        fixed_threshold: (threshold > 0.0).then(|| Threshold::new(threshold)).flatten(),
        fpir: within("[recognition] fpir", it.fpir, 1e-6, 0.5)?,
        samples_min: within("[recognition] samples_min", it.samples_min, 1, 8)?,
        early_margin: within("[recognition] early_margin", it.early_margin, 0.0, 1.0)?,
        margin_min: within("[recognition] margin_min", it.margin_min, 0.0, 0.5)?,
        unknown_samples: within("[recognition] unknown_samples", it.unknown_samples, 1, 8)?,
        confidence_min: within("[recognition] confidence_min", it.confidence_min, 0.5, 0.99)?,
        detector_input: match it.reach {
            RawReach::Near => DetectorInput::Small,
            RawReach::Far => DetectorInput::Large,
        },
        track: TrackSettings { lost_after: check_lost_after(raw)?, overlap_min: TRACK_OVERLAP_MIN },
        recheck_after: check_recheck_after(raw)?,
        pad: check_pad(raw)?,
        pace: check_pace(raw)?,
        probe: check_quality([
            ("[quality] eye_distance_px_min", probe.eye_distance_px_min),
            ("[quality] luma_min", probe.luma_min),
            ("[quality] luma_max", probe.luma_max),
            ("[quality] sharpness_min", probe.sharpness_min),
            ("[quality] yaw_max", probe.yaw_max),
            ("[quality] pitch_max", probe.pitch_max),
        ])?,
        reference: check_quality([
            ("[enrolment] eye_distance_px_min", reference.eye_distance_px_min),
            ("[enrolment] luma_min", reference.luma_min),
            ("[enrolment] luma_max", reference.luma_max),
            ("[enrolment] sharpness_min", reference.sharpness_min),
            ("[enrolment] yaw_max", reference.yaw_max),
            ("[enrolment] pitch_max", reference.pitch_max),
        ])?,
        same_person_min: within(
            "[enrolment] same_person_min",
            reference.same_person_min,
            -1.0,
            1.0,
        )?,
        duplicate_margin: within(
            "[enrolment] duplicate_margin",
            reference.duplicate_margin,
            -1.0,
            1.0,
        )?,
        look_alike_margin: within(
            "[enrolment] look_alike_margin",
            reference.look_alike_margin,
            0.0,
            1.0,
        )?,
        references_max: within("[enrolment] references_max", reference.references_max, 1, 20)?,
        learn: reference.learn,
        picture: PictureLimits {
            bytes: within(
                "[commands] image_bytes_max",
                raw.commands.image_bytes_max,
                1 << 10,
                32 << 20,
            )?,
            pixels: within(
                "[commands] image_pixels_max",
                raw.commands.image_pixels_max,
                1 << 10,
                100_000_000,
            )?,
        },
    })
}

/// Each key with its value, in the order of the fields.
fn check_quality(keys: [(&'static str, f32); 6]) -> Result<QualityBounds, ConfigError> {
    let [eye_distance_px, luma_min, luma_max, sharpness, yaw, pitch] = keys;
    let check = |(key, number), most| within(key, number, 0.0, most);
    Ok(QualityBounds {
        eye_distance_px_min: check(eye_distance_px, 1000.0)?,
        luma_min: check(luma_min, 255.0)?,
        luma_max: check(luma_max, 255.0)?,
        sharpness_min: check(sharpness, 10.0)?,
        yaw_max: check(yaw, 10.0)?,
        pitch_max: check(pitch, 10.0)?,
    })
}

/// Too short: one missed detection starts a new visit. Too long: tracks never end.
fn check_lost_after(raw: &RawConfig) -> Result<Duration, ConfigError> {
    let least = Duration::from_millis(100);
    let most = Duration::from_mins(1);
    time_within("[recognition] lost_after", raw.recognition.lost_after, least, most)
}

/// Too short: every frame of a decided face costs a template. Too long: nobody notices that another
/// person took the place.
fn check_recheck_after(raw: &RawConfig) -> Result<Duration, ConfigError> {
    let least = Duration::from_millis(100);
    let most = Duration::from_mins(1);
    time_within("[recognition] recheck_after", raw.recognition.recheck_after, least, most)
}

fn check_pad(raw: &RawConfig) -> Result<PadSettings, ConfigError> {
    let configured =
        within("[recognition] pad_threshold", raw.recognition.pad_threshold, 0.0, 1.0)?;
    let mode = match raw.recognition.pad {
        RawPad::Off => PadMode::Off,
        RawPad::Flag => PadMode::Flag,
        RawPad::Enforce => PadMode::Enforce,
    };
    let threshold = if configured == 0.0 { mode.default_threshold() } else { configured };
    let samples = within("[recognition] pad_samples", raw.recognition.pad_samples, 1, 8)?;
    let smallest = raw.recognition.pad_eye_distance_px_min;
    let eye_distance_px_min =
        within("[recognition] pad_eye_distance_px_min", smallest, 0.0, 1000.0)?;
    Ok(PadSettings { mode, threshold, samples, eye_distance_px_min })
}

/// 0 means never.
pub(super) fn check_celsius_max(raw: &RawConfig) -> Result<Option<f32>, ConfigError> {
    let celsius = within("[power] celsius_max", raw.power.celsius_max, 0.0, 120.0)?;
    Ok((celsius > 0.0).then_some(celsius))
}

fn check_pace(raw: &RawConfig) -> Result<PaceSettings, ConfigError> {
    let idle_fps = within("[power] idle_fps", raw.power.idle_fps, 0.5, 240.0)?;
    let lost_after = check_lost_after(raw)?;
    Ok(PaceSettings { idle_every: Duration::from_secs_f32(idle_fps.recip()), lost_after })
}

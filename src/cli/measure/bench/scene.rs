//! The scenes of `rollcall bench --camera`: a wall with a sensor's grain, and real faces pasted
//! onto it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::ensure;
use image::RgbImage;
use image::imageops::{self, FilterType};

use crate::cli::measure::bench::{Noise, drawn_picture, encoded};
use crate::cli::measure::evaluate::measure;
use crate::ids::{Name, SubjectId};
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::gallery::{Gallery, Subject};
use crate::recognise::picture::Picture;
use crate::recognise::still;
use crate::vision::Vision;

/// A face smaller than this in its photograph would be made larger and blurred.
const EYE_DISTANCE_PX_MIN: f32 = 25.0;
/// How high the cut-out stands in the picture, and how high the face is in the cut-out.
const HEIGHT_SHARE: f32 = 0.45;
const AROUND_FACE: f32 = 1.8;

/// Head and shoulders of somebody, cut from a photograph.
pub(super) struct Portrait(RgbImage);

/// Different people, all enrolled.
pub(super) struct People {
    portraits: Vec<Portrait>,
    pub gallery: Gallery,
}

impl People {
    /// The first so many with a face that is large enough, one photograph of each folder; of a
    /// single folder, all.
    pub(super) fn find(
        engine: &mut Vision,
        files: &[PathBuf],
        wanted: usize,
    ) -> anyhow::Result<Self> {
        let folders: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
        let mut seen = BTreeSet::new();
        let mut people = Self { portraits: Vec::new(), gallery: Gallery::of(&engine.embedder()) };
        for file in files {
            let new = file.parent().is_none_or(|folder| folders.len() < 5 || seen.insert(folder));
            if people.len() == wanted || !new {
                continue;
            }
            people.take(engine, file)?;
        }
        ensure!(
            people.len() >= 5,
            "this needs photographs of at least five people (--photos DIR, a folder for each); {} were found",
            people.len()
        );
        Ok(people)
    }

    fn take(&mut self, engine: &mut Vision, file: &Path) -> anyhow::Result<()> {
        let Some(picture) = measure::picture(file)? else { return Ok(()) };
        let Some(found) = still::main_face(engine, &picture)? else { return Ok(()) };
        if found.sample.eye_distance_px < EYE_DISTANCE_PX_MIN {
            return Ok(());
        }
        let Some(template) = still::template(engine, &found.sample)? else { return Ok(()) };
        let outline = found.detection.bounding_box;
        let centre = outline.centre();
        let side = outline.height() * AROUND_FACE;
        let left = (centre.x - side / 2.0).max(0.0) as u32;
        let top = (centre.y - side / 2.0).max(0.0) as u32;
        let width = picture.width() as u32;
        let height = picture.height() as u32;
        let side = (side as u32).min(width - left.min(width - 1)).min(height - top.min(height - 1));
        let Some(whole) = RgbImage::from_raw(width, height, picture.into_rgb()) else {
            return Ok(());
        };
        let cut = imageops::crop_imm(&whole, left, top, side.max(1), side.max(1)).to_image();
        let id = format!("person-{}", self.len());
        let subject = Subject { id: SubjectId::new(&id)?, name: Name::new(&id)? };
        self.gallery = std::mem::take(&mut self.gallery).with(subject, &[template]);
        self.portraits.push(Portrait(cut));
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.portraits.len()
    }

    /// Goes round, so that as many as wanted may be asked for.
    pub(super) fn portrait(&self, index: usize) -> &Portrait {
        &self.portraits[index % self.portraits.len()]
    }
}

/// Makes frames as JPEG.
pub(super) struct Scenery {
    wall: RgbImage,
    noise: Noise,
    /// The empty frames made so far.
    empty: Vec<Vec<u8>>,
}

impl Scenery {
    pub(super) fn new(width: usize, height: usize) -> Self {
        let wall = RgbImage::from_raw(
            width as u32,
            height as u32,
            drawn_picture(width, height).into_rgb(),
        );
        Self { wall: wall.unwrap_or_default(), noise: Noise::new(7), empty: Vec::new() }
    }

    /// Another frame of the empty wall.
    pub(super) fn empty(&mut self) -> anyhow::Result<Vec<u8>> {
        let frame = self.frame(self.wall.clone())?;
        self.empty.push(frame.clone());
        Ok(frame)
    }

    /// One of the empty frames made before: making them takes longer than measuring.
    pub(super) fn seen(&self, index: usize) -> Vec<u8> {
        self.empty[index % self.empty.len()].clone()
    }

    /// The people side by side, each a little further on with each step.
    pub(super) fn with(&mut self, people: &[&Portrait], step: usize) -> anyhow::Result<Vec<u8>> {
        let mut scene = self.wall.clone();
        let (width, height) = scene.dimensions();
        let slot = width / people.len() as u32;
        let side = ((height as f32 * HEIGHT_SHARE) as u32).min(slot);
        for (index, portrait) in people.iter().enumerate() {
            let scaled = imageops::resize(&portrait.0, side, side, FilterType::Triangle);
            let left = index as u32 * slot + (slot - side) / 2;
            imageops::replace(
                &mut scene,
                &scaled,
                i64::from(left) + step as i64,
                i64::from(height / 4) + step as i64 / 2,
            );
        }
        self.frame(scene)
    }

    /// With a sensor's grain, encoded.
    fn frame(&mut self, mut scene: RgbImage) -> anyhow::Result<Vec<u8>> {
        for value in scene.iter_mut() {
            let grain = (self.noise.next() + self.noise.next() - 1.0) * 5.0;
            *value = (f32::from(*value) + grain).clamp(0.0, 255.0) as u8;
        }
        let width = scene.width() as usize;
        let height = scene.height() as usize;
        let picture = Picture::from_rgb(width, height, scene.into_raw());
        encoded(&picture.unwrap_or_else(|| Picture::plain(width, height, [0; 3])))
    }
}

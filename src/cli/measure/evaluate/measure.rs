//! From a list of photographs to a template of each, by several workers with networks of their own.
//!
//! Invariant: what comes out depends on the photographs only, not on the number of workers or on
//! who takes which: each worker is a complete pipeline without memory of the photograph before.

use std::collections::HashMap;
use std::io::IsTerminal as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};

use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::{Embedder, Template};
use crate::recognise::picture::{Picture, PictureLimits};
use crate::recognise::still;
use crate::vision::manifest::TemplateSpec;
use crate::vision::{Vision, VisionSettings};

/// The template of each photograph's main face, by file name; `None` is a failure to acquire.
pub type Templates = HashMap<String, Option<Template>>;

/// Loaded networks, one set for each worker.
pub struct Workers(Vec<Vision>);

impl Workers {
    pub fn load(settings: &VisionSettings, count: usize) -> anyhow::Result<Self> {
        let load = |_| Vision::load(settings).context("cannot start recognition");
        Ok(Self((0..count.max(1)).map(load).collect::<anyhow::Result<_>>()?))
    }

    /// The manifest's entry for the embedder.
    pub fn template_spec(&self) -> TemplateSpec {
        self.0[0].template_spec()
    }

    /// What makes the templates.
    pub fn embedder(&self) -> Embedder {
        self.0[0].embedder()
    }

    /// The first of them alone.
    pub fn into_first(self) -> Option<Vision> {
        self.0.into_iter().next()
    }

    /// All of them, for work of one's own.
    pub fn each(&mut self) -> impl Iterator<Item = &mut Vision> {
        self.0.iter_mut()
    }

    /// Any one of them.
    pub fn first(&mut self) -> &mut Vision {
        &mut self.0[0]
    }

    /// One face a photograph. A file that is not there is the list's fault and ends the
    /// measurement; one that cannot be decoded is a failure to acquire.
    pub fn templates<'a>(
        &mut self,
        dir: &Path,
        files: impl Iterator<Item = &'a str>,
    ) -> anyhow::Result<Templates> {
        let mut files: Vec<&str> = files.collect();
        files.sort_unstable();
        files.dedup();
        let made = self.map(&files, |vision, file| template(vision, &dir.join(file)))?;
        Ok(files.into_iter().map(str::to_owned).zip(made).collect())
    }

    /// What the workers make of each item, in the order of the items.
    pub fn map<T: Sync, R: Send>(
        &mut self,
        items: &[T],
        make: impl Fn(&mut Vision, &T) -> anyhow::Result<R> + Sync,
    ) -> anyhow::Result<Vec<R>> {
        let bar = progress(items.len());
        let next = AtomicUsize::new(0);
        let work = |vision: &mut Vision| -> anyhow::Result<Vec<(usize, R)>> {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(item) = items.get(index) else { return Ok(done) };
                done.push((index, make(vision, item)?));
                bar.inc(1);
            }
        };
        let mut all = Vec::with_capacity(items.len());
        std::thread::scope(|scope| {
            let running: Vec<_> =
                self.0.iter_mut().map(|vision| scope.spawn(|| work(vision))).collect();
            for worker in running {
                all.extend(worker.join().expect("a worker does not panic")?);
            }
            anyhow::Ok(())
        })?;
        bar.finish_and_clear();
        all.sort_by_key(|(index, _)| *index);
        Ok(all.into_iter().map(|(_, made)| made).collect())
    }
}

/// The picture, or why it is none; a file that cannot be read is an error.
pub fn picture(path: &Path) -> anyhow::Result<Option<Picture>> {
    let bytes = std::fs::read(path)
        .with_context(|| format!("cannot read the photograph {}", path.display()))?;
    // The operator's own files: larger than what a command may carry, the same bound on pixels.
    let limits = PictureLimits { bytes: 64 << 20, ..PictureLimits::default() };
    Ok(Picture::decode(&bytes, limits).ok())
}

fn template(vision: &mut Vision, path: &Path) -> anyhow::Result<Option<Template>> {
    let Some(picture) = picture(path)? else {
        return Ok(None);
    };
    let Some(face) = still::main_face(vision, &picture)? else {
        return Ok(None);
    };
    Ok(still::template(vision, &face.sample)?)
}

/// Shown on a terminal only, and on standard error, so that JSON stays clean.
pub(crate) fn progress(length: usize) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} photographs, {eta} left");
    ProgressBar::new(length as u64).with_style(style.expect("the template is a constant and valid"))
}

//! `rollcall evaluate groups`: several people in one photograph.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Serialize;

use crate::cli::measure::evaluate::measure;
use crate::cli::measure::evaluate::measure::Workers;
use crate::cli::measure::evaluate::protocol;
use crate::cli::measure::evaluate::protocol::{Group, ProtocolRow, of_role};
use crate::cli::measure::evaluate::{GroupsArgs, identify};
use crate::recognise::decision::{self, DecisionSettings};
use crate::recognise::face::Template;
use crate::recognise::gallery::Gallery;
use crate::recognise::still;
use crate::vision::manifest::TemplateSpec;
use crate::vision::{Vision, VisionSettings};

#[derive(Debug, Serialize)]
pub struct GroupsReport {
    pub gallery_subjects: usize,
    pub threshold: f32,
    /// People expected in all photographs together, and how many of them were identified.
    pub expected: usize,
    pub found: usize,
    /// Faces identified as somebody who is not expected in the photograph.
    pub false_names: usize,
    pub photographs: Vec<GroupPhotograph>,
}

#[derive(Debug, Serialize)]
pub struct GroupPhotograph {
    pub file: String,
    pub faces: usize,
    pub faces_expected: Option<usize>,
    pub found: Vec<String>,
    pub missed: Vec<Miss>,
    pub false_names: Vec<FalseName>,
}

/// Someone expected and not identified, with the face that looks most like them.
#[derive(Debug, Serialize)]
pub struct Miss {
    pub name: String,
    pub score: f32,
    pub eye_distance_px: f32,
}

#[derive(Debug, Serialize)]
pub struct FalseName {
    pub name: String,
    pub score: f32,
    pub eye_distance_px: f32,
}

struct Face {
    template: Template,
    eye_distance_px: f32,
}

pub fn evaluate(
    args: &GroupsArgs,
    vision: &VisionSettings,
    decision: impl Fn(&TemplateSpec) -> DecisionSettings,
) -> anyhow::Result<GroupsReport> {
    let groups: Vec<Group> = protocol::read(&args.groups)?;
    let entries: Vec<ProtocolRow> = protocol::read(&args.protocol)?;
    let beside = args.protocol.parent().unwrap_or(Path::new(".")).to_owned();
    let enrol_dir = args.enrol_images.clone().unwrap_or(beside);
    let enrolled = whom_to_enrol(&entries, &groups, &enrol_dir)?;
    let mut workers = Workers::load(vision, args.common.workers())?;
    let templates =
        workers.templates(&enrol_dir, enrolled.iter().map(|entry| entry.file.as_str()))?;
    let spec = workers.template_spec();
    let gallery = identify::enrol(Gallery::of(&workers.embedder()), enrolled.iter(), &templates)?;
    let mut references: HashMap<&str, Vec<&Template>> = HashMap::new();
    for entry in &enrolled {
        references.entry(&entry.identity).or_default().extend(templates[&entry.file].as_ref());
    }
    let settings = decision(&spec);
    let threshold = settings.threshold.at(gallery.subjects());
    let mut photographs = Vec::new();
    for group in &groups {
        let faces = faces(workers.first(), &args.common.images.join(&group.file))?;
        photographs.push(judge(group, &faces, &gallery, &references, &settings));
    }
    Ok(GroupsReport {
        gallery_subjects: gallery.subjects(),
        threshold: threshold.value(),
        expected: groups.iter().map(|group| group.expected().len()).sum(),
        found: photographs.iter().map(|it| it.found.len()).sum(),
        false_names: photographs.iter().map(|it| it.false_names.len()).sum(),
        photographs,
    })
}

/// The protocol's, and for anyone expected whom it does not enrol the photographs of their own
/// folder but the last.
fn whom_to_enrol(
    entries: &[ProtocolRow],
    groups: &[Group],
    dir: &Path,
) -> anyhow::Result<Vec<ProtocolRow>> {
    let mut all: Vec<ProtocolRow> = of_role(entries, "enrol").cloned().collect();
    let known: BTreeSet<String> = all.iter().map(|entry| entry.identity.clone()).collect();
    let expected: BTreeSet<String> = groups.iter().flat_map(Group::expected).collect();
    for identity in expected.difference(&known) {
        let photographs = protocol::photographs(&dir.join(identity)).with_context(|| {
            format!("{identity} is expected, and there is nothing to enrol them from")
        })?;
        let kept = (photographs.len() - 1).max(1).min(photographs.len());
        for path in &photographs[..kept] {
            let file: PathBuf = path.strip_prefix(dir).unwrap_or(path).to_owned();
            let file = file.to_string_lossy().into_owned();
            all.push(ProtocolRow { file, identity: identity.clone(), role: "enrol".into() });
        }
    }
    Ok(all)
}

fn faces(vision: &mut Vision, path: &Path) -> anyhow::Result<Vec<Face>> {
    let picture =
        measure::picture(path)?.with_context(|| format!("cannot decode {}", path.display()))?;
    let mut faces = Vec::new();
    for found in still::faces(vision, &picture)? {
        if let Some(template) = still::template(vision, &found.sample)? {
            faces.push(Face { template, eye_distance_px: found.sample.eye_distance_px });
        }
    }
    Ok(faces)
}

fn judge(
    group: &Group,
    faces: &[Face],
    gallery: &Gallery,
    references: &HashMap<&str, Vec<&Template>>,
    settings: &DecisionSettings,
) -> GroupPhotograph {
    let threshold = settings.threshold.at(gallery.subjects());
    let expected = group.expected();
    let mut named: BTreeMap<String, f32> = BTreeMap::new();
    let mut false_names = Vec::new();
    for face in faces {
        let (best, _) = decision::best_candidate(&face.template, gallery, settings);
        let Some(best) = best.filter(|best| threshold.matches(best.score)) else { continue };
        let name = best.subject.id.as_str().to_owned();
        if expected.contains(&name) {
            named.insert(name, best.score);
        } else {
            false_names.push(FalseName {
                name,
                score: best.score,
                eye_distance_px: face.eye_distance_px,
            });
        }
    }
    let miss = |name: &String| {
        let own = references.get(name.as_str()).map(Vec::as_slice).unwrap_or_default();
        let score =
            |face: &Face| own.iter().map(|it| it.compare(&face.template)).fold(-1.0f32, f32::max);
        let nearest = faces
            .iter()
            .map(|face| (score(face), face.eye_distance_px))
            .max_by(|a, b| a.0.total_cmp(&b.0));
        let (score, eye_distance_px) = nearest.unwrap_or((-1.0, 0.0));
        Miss { name: name.clone(), score, eye_distance_px }
    };
    GroupPhotograph {
        file: group.file.clone(),
        faces: faces.len(),
        faces_expected: group.n_faces,
        missed: expected.iter().filter(|name| !named.contains_key(*name)).map(miss).collect(),
        found: named.into_keys().collect(),
        false_names,
    }
}

impl GroupsReport {
    pub(crate) fn table(&self) -> String {
        let mut lines = vec![format!(
            "Group photographs: {} of {} expected people found, {} false names ({} subjects, threshold {:.3})\n",
            self.found, self.expected, self.false_names, self.gallery_subjects, self.threshold
        )];
        for photograph in &self.photographs {
            let of =
                photograph.faces_expected.map_or(String::new(), |count| format!(" of {count}"));
            let file = &photograph.file;
            let faces = photograph.faces;
            let found = photograph.found.len();
            let people = found + photograph.missed.len();
            lines.push(format!("  {file}: {faces}{of} faces; found {found} of {people}\n"));
            lines.extend(photograph.missed.iter().map(|miss| {
                let Miss { name, score, eye_distance_px } = miss;
                format!("    missed {name}: the face most like it scores {score:.3}, {eye_distance_px:.0} px between the eyes\n")
            }));
            lines.extend(photograph.false_names.iter().map(|wrong| {
                let FalseName { name, score, eye_distance_px } = wrong;
                format!("    false  {name}: scores {score:.3}, {eye_distance_px:.0} px between the eyes\n")
            }));
        }
        lines.concat()
    }
}

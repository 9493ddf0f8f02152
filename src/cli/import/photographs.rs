//! People enrolled from their photographs: here, by all processors, or through the daemon where it runs.
//!
//! Invariants: each person is one transaction; what is in already (by id and by the photograph's digest) is not looked
//! at again; so an import that was cut off at any instant is simply begun again. People are taken in the order of their
//! names, whatever the number of workers, so that of two with one face always the same is the duplicate.

use std::collections::HashSet;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};

use crate::app;
use crate::app::commander::carry_out::{NewEnrolment, reason_text, unfit};
use crate::cli::import::people::Person;
use crate::cli::import::report::{Outcome, Report, Told, Verdict};
use crate::clock::Clock;
use crate::config::Settings;
use crate::enrol::{self, EnrolSettings, Judged};
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::{ModelDigest, Name};
use crate::recognise::gallery::{Gallery, Subject};
use crate::record::store::{PhotographDigest, Reader, Store};
use crate::vision::Vision;

/// The operator's own files may be larger than what a command may carry; the bound on pixels is the same.
const FILE_BYTES_MAX: u64 = 64 << 20;

/// People looked at together: enough that workers seldom wait for one another, few enough to be held in memory.
const TOGETHER: usize = 64;

/// What the operator allows.
#[derive(Clone, Copy, Debug)]
pub struct Allowed {
    pub duplicate: bool,
    /// People who were enrolled here and withdrawn.
    pub withdrawn: bool,
}

/// A photograph to be looked at. Only one at a time is held in memory: a folder may be full of large ones.
pub struct Photograph {
    /// Of the person's photographs.
    pub at: usize,
    pub digest: PhotographDigest,
    pub bytes: u64,
}

/// What is to be done for a person.
pub enum Standing {
    /// Nothing: this is what is told.
    Settled(Told),
    /// These are to be looked at; of the others the verdicts are known.
    Fresh { name: Name, is_new: bool, photographs: Vec<Photograph>, verdicts: Vec<Verdict> },
}

/// What the record says of a person and their photographs.
pub fn standing(
    reader: &Reader,
    embedder: &ModelDigest,
    person: &Person,
    allowed: Allowed,
) -> anyhow::Result<Standing> {
    let subject = reader.subject(&person.id)?;
    let known = reader.photographs(&person.id)?;
    let (mut photographs, mut verdicts, mut digests) = (Vec::new(), Vec::new(), HashSet::new());
    for (at, path) in person.photographs.iter().enumerate() {
        verdicts.push(match read(path) {
            Err(why) => Verdict::Refused(why),
            Ok(bytes) => {
                let digest = Sha256::digest(&bytes).into();
                let bytes = bytes.len() as u64;
                if digests.insert(digest) && !known.contains(&(*embedder, digest)) {
                    photographs.push(Photograph { at, digest, bytes });
                    Verdict::NotUsed
                } else {
                    Verdict::Known
                }
            }
        });
    }
    let is_same = known.iter().any(|(_, digest)| digests.contains(digest));
    let settled = |outcome, verdicts| Ok(Standing::Settled(Told { outcome, verdicts }));
    let refused = |why: String, verdicts| settled(Outcome::Refused(why), verdicts);
    let name = match &subject {
        // Renamed since: it is the same person.
        Some(subject) if is_same => subject.name.clone(),
        Some(subject) if !person.chosen && subject.name != person.name => {
            let why = format!(
                "same_id ({} is enrolled here with another name; name ids with --map)",
                person.id
            );
            return refused(why, verdicts);
        }
        None if reader.was_withdrawn(&person.id)? && !allowed.withdrawn => {
            let why =
                "withdrawn (from this device; --also-withdrawn enrols all the same)".to_owned();
            return refused(why, verdicts);
        }
        _ => person.name.clone(),
    };
    if !photographs.is_empty() {
        return Ok(Standing::Fresh { name, is_new: subject.is_none(), photographs, verdicts });
    }
    if subject.is_some() {
        return settled(Outcome::Already, verdicts);
    }
    let why = verdicts
        .iter()
        .find_map(|it| if let Verdict::Refused(why) = it { Some(why.clone()) } else { None });
    refused(why.unwrap_or_else(|| "no_photograph".into()), verdicts)
}

/// The file's bytes, or why not.
pub fn read(path: &Path) -> Result<Vec<u8>, String> {
    let unreadable = |error: std::io::Error| format!("unreadable ({error})");
    // Before it is opened: opening a FIFO waits for whoever writes into it.
    let kind = std::fs::metadata(path).map_err(unreadable)?;
    if !kind.is_file() {
        return Err("unreadable (it is not a file)".into());
    }
    let file = File::open(path).map_err(unreadable)?;
    let mut bytes = Vec::with_capacity(kind.len().min(FILE_BYTES_MAX) as usize);
    // One byte more tells a file that is too long.
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!("too_large (at most {} MiB)", FILE_BYTES_MAX >> 20));
    }
    Ok(bytes)
}

/// Someone looked at, to be settled in their turn.
enum Looked {
    Settled(Told),
    Judged {
        name: Name,
        is_new: bool,
        judged: Vec<(usize, PhotographDigest, Judged)>,
        verdicts: Vec<Verdict>,
    },
}

/// The import where no daemon runs.
pub struct Here<'a> {
    pub settings: &'a Settings,
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub allowed: Allowed,
    pub workers: usize,
}

impl Here<'_> {
    pub fn run(
        &self,
        people: &[Person],
        report: &mut Report,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let mut workers = (0..self.workers.max(1))
            .map(|_| Ok((app::load_vision(self.settings)?, app::open_reader(self.settings)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let (first, _) = &workers[0];
        let mut rules = self.settings.recognition.enrol(&first.template_spec());
        rules.picture.bytes = FILE_BYTES_MAX as usize;
        let mut settling = Settling {
            here: self,
            embedder: first.embedder(),
            gallery: app::load_gallery(&self.store, first)?,
            rules: &rules,
            report,
            bar,
        };
        // While some are settled, the next are looked at.
        let mut before: (&[Person], Vec<Looked>) = (&[], Vec::new());
        for chunk in people.chunks(TOGETHER).chain([&people[..0]]) {
            let next = AtomicUsize::new(0);
            let (settled, looked) = std::thread::scope(|scope| {
                let (next, rules) = (&next, &rules);
                let start = |worker| scope.spawn(move || self.look_at(worker, chunk, next, rules));
                let running: Vec<_> = workers.iter_mut().map(start).collect();
                let (people, looked) = std::mem::take(&mut before);
                let settled = people
                    .iter()
                    .zip(looked)
                    .try_for_each(|(person, it)| settling.settle(person, it));
                let joined =
                    running.into_iter().map(|it| it.join().expect("a worker does not panic"));
                (settled, joined.collect::<anyhow::Result<Vec<_>>>())
            });
            settled?;
            let mut looked: Vec<(usize, Looked)> = looked?.into_iter().flatten().collect();
            looked.sort_by_key(|(at, _)| *at);
            before = (chunk, looked.into_iter().map(|(_, it)| it).collect());
        }
        Ok(())
    }

    /// Takes one person after the other, as long as there are some.
    fn look_at(
        &self,
        (vision, reader): &mut (Vision, Reader),
        people: &[Person],
        next: &AtomicUsize,
        rules: &EnrolSettings,
    ) -> anyhow::Result<Vec<(usize, Looked)>> {
        let mut looked = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(person) = people.get(at) else {
                return Ok(looked);
            };
            looked.push((at, self.look(vision, reader, person, rules)?));
        }
    }

    fn look(
        &self,
        vision: &mut Vision,
        reader: &Reader,
        person: &Person,
        rules: &EnrolSettings,
    ) -> anyhow::Result<Looked> {
        let (name, is_new, photographs, mut verdicts) =
            match standing(reader, &vision.embedder(), person, self.allowed)? {
                Standing::Settled(told) => return Ok(Looked::Settled(told)),
                Standing::Fresh { name, is_new, photographs, verdicts } => {
                    (name, is_new, photographs, verdicts)
                }
            };
        let mut judged = Vec::with_capacity(photographs.len());
        for Photograph { at, digest, .. } in photographs {
            match read(&person.photographs[at]) {
                Ok(bytes) => {
                    judged.push((at, digest, enrol::judge_photograph(vision, &bytes, rules)?))
                }
                Err(why) => verdicts[at] = Verdict::Refused(why),
            }
        }
        Ok(Looked::Judged { name, is_new, judged, verdicts })
    }
}

/// Where people come one after the other, in their order.
struct Settling<'a> {
    here: &'a Here<'a>,
    embedder: ModelDigest,
    gallery: Gallery,
    rules: &'a EnrolSettings,
    report: &'a mut Report,
    bar: &'a ProgressBar,
}

impl Settling<'_> {
    fn settle(&mut self, person: &Person, looked: Looked) -> anyhow::Result<()> {
        let told = match looked {
            Looked::Settled(told) => told,
            Looked::Judged { name, is_new, judged, verdicts } => {
                self.enrol(person, name, is_new, judged, verdicts)?
            }
        };
        self.report.tell(person, &told)?;
        self.bar.inc(1);
        Ok(())
    }

    fn enrol(
        &mut self,
        person: &Person,
        name: Name,
        is_new: bool,
        judged: Vec<(usize, PhotographDigest, Judged)>,
        mut verdicts: Vec<Verdict>,
    ) -> anyhow::Result<Told> {
        let (mut places, mut digests, mut each) = (Vec::new(), Vec::new(), Vec::new());
        for (at, digest, judged) in judged {
            places.push(at);
            digests.push(digest);
            each.push(judged);
        }
        let judgement = enrol::conclude(each, &self.gallery, &person.id, false, self.rules);
        for (at, judged) in places.iter().zip(&judgement.photographs) {
            verdicts[*at] = match judged {
                Judged::Accepted { .. } => Verdict::Accepted,
                Judged::Refused(_) => Verdict::Refused(reason_text(judged)),
            };
        }
        if let Some((code, why)) = unfit(&judgement, self.here.allowed.duplicate) {
            // The photographs are good, and still not used.
            verdicts
                .iter_mut()
                .filter(|it| **it == Verdict::Accepted)
                .for_each(|it| *it = Verdict::NotUsed);
            let why = format!("{} ({why})", code.as_str());
            return Ok(Told { outcome: Outcome::Refused(why), verdicts });
        }
        let at = self.here.clock.now();
        let enrolment = NewEnrolment::new(
            person.id.clone(),
            name.clone(),
            false,
            &judgement,
            self.embedder,
            at,
        )
        .with_photographs(digests);
        let stored = self
            .here
            .store
            .write(move |tx| enrolment.store(tx, None))
            .context("the import stopped here")?;
        let subject = Subject { id: person.id.clone(), name };
        self.gallery = std::mem::take(&mut self.gallery).replaced(subject, &stored.templates);
        Ok(Told { outcome: if is_new { Outcome::Enrolled } else { Outcome::Added }, verdicts })
    }
}

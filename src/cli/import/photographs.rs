//! Imports people from photographs where no daemon runs, with all processors.
//!
//! Invariants: each person is one transaction. What is enrolled already (by id and digest of the
//! photograph) is not processed again, so an interrupted import is simply repeated. People are enrolled
//! in the order of their names, whatever the number of workers, so that of two people with one face
//! always the same one is the duplicate.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::Context as _;
use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};

use crate::app::commands::consent::record_consent;
use crate::app::commands::enrolment::{NewEnrolment, reason_text, unfit};
use crate::app::open;
use crate::cli::import::people::{Person, Photograph};
use crate::cli::import::report::{ImportReport, PersonOutcome, PersonResult, PhotographOutcome};
use crate::cli::photograph;
use crate::clock::Clock;
use crate::config::Settings;
use crate::enrol::{self, EnrolSettings, Judged};
use crate::ids::Name;
use crate::recognise::engine::FaceEngine as _;
use crate::recognise::face::Embedder;
use crate::recognise::gallery::{Gallery, Subject};
use crate::recognise::picture::PictureLimits;
use crate::store::{PhotographDigest, Reader, Store, Tx};
use crate::vision::Vision;
use crate::wire::consent::Consent;
use crate::wire::event::SubjectRef;

/// People processed together: enough that workers seldom wait for one another, few enough for the
/// memory.
const CHUNK: usize = 64;

/// What the operator permits.
#[derive(Clone, Copy, Debug)]
pub struct Permissions {
    pub duplicate: bool,
    /// Enrolling people who were withdrawn here.
    pub withdrawn: bool,
    /// Enrolling people without a consent.
    pub without_consent: bool,
    /// A consent that ends until then has ended; none if the clock is not trusted.
    pub ended_ms: Option<i64>,
}

/// A photograph to process. Only one at a time is in memory, because a folder may hold many large
/// ones.
pub struct NewPhotograph {
    /// Its index among the photographs of the person.
    pub at: usize,
    pub digest: PhotographDigest,
    pub bytes: u64,
}

/// What an import does for a person.
pub enum PersonPlan {
    /// Nothing: this is the result.
    Done(PersonResult),
    /// Only record the consent: the photographs are known.
    Consent { consent: Consent, verdicts: Vec<PhotographOutcome> },
    /// Process these photographs; the outcomes of the others are known.
    Process {
        name: Name,
        is_new: bool,
        photographs: Vec<NewPhotograph>,
        verdicts: Vec<PhotographOutcome>,
    },
}

/// Plans the import of a person from what the database has of them and their photographs.
pub fn plan_person(
    reader: &Reader,
    embedder: &Embedder,
    person: &Person,
    allowed: Permissions,
    limits: PictureLimits,
) -> anyhow::Result<PersonPlan> {
    let subject = reader.subject(&person.id)?;
    let known = reader.photographs(&person.id)?;
    let mut photographs = Vec::new();
    let mut verdicts = Vec::new();
    let mut digests = HashSet::new();
    for (at, photograph) in person.photographs.iter().enumerate() {
        verdicts.push(match prepared(photograph, limits) {
            Err(why) => PhotographOutcome::Rejected(why),
            Ok(Prepared { digest, original, bytes }) => {
                let bytes = bytes.len() as u64;
                let is_known = [digest, original].map(|it| known.contains(&(embedder.digest, it)));
                let is_first = digests.insert(digest);
                digests.insert(original);
                if is_first && is_known == [false; 2] {
                    photographs.push(NewPhotograph { at, digest, bytes });
                    PhotographOutcome::NotUsed
                } else {
                    PhotographOutcome::Known
                }
            }
        });
    }
    let is_same = known.iter().any(|(_, digest)| digests.contains(digest));
    let done = |outcome, verdicts| Ok(PersonPlan::Done(PersonResult { outcome, verdicts }));
    let rejected = |why: String, verdicts| done(PersonOutcome::Rejected(why), verdicts);
    let name = match &subject {
        // The person was renamed since.
        Some(subject) if is_same => subject.name.clone(),
        Some(subject) if !person.chosen && subject.name != person.name => {
            let why = format!(
                "same_id ({} is enrolled here with another name; name ids with --map)",
                person.id
            );
            return rejected(why, verdicts);
        }
        None if reader.was_withdrawn(&person.id)? && !allowed.withdrawn => {
            let why =
                "withdrawn (from this device; --also-withdrawn enrols them anyway)".to_owned();
            return rejected(why, verdicts);
        }
        _ => person.name.clone(),
    };
    let consent = subject.as_ref().and_then(|it| it.consent.as_ref());
    if !allowed.without_consent && person.consent.is_none() && consent.is_none() {
        let why = "consent_required (a column or --consent-version states it)".to_owned();
        return rejected(why, verdicts);
    }
    let has_ended = |it: &Consent| allowed.ended_ms.is_some_and(|now_ms| it.has_ended(now_ms));
    if person.consent.as_ref().is_some_and(has_ended) {
        return rejected("consent_ended (its end has passed)".to_owned(), verdicts);
    }
    if !photographs.is_empty() {
        return Ok(PersonPlan::Process { name, is_new: subject.is_none(), photographs, verdicts });
    }
    if let (Some(_), Some(stated)) = (&subject, &person.consent)
        && consent.is_none_or(|it| it.given_ms() < stated.given_ms())
    {
        return Ok(PersonPlan::Consent { consent: stated.clone(), verdicts });
    }
    if subject.is_some() {
        return done(PersonOutcome::Unchanged, verdicts);
    }
    let why = verdicts.iter().find_map(|it| {
        if let PhotographOutcome::Rejected(why) = it { Some(why.clone()) } else { None }
    });
    rejected(why.unwrap_or_else(|| "no_photograph".into()), verdicts)
}

/// A photograph as it is judged: as it is, or made smaller.
pub fn prepared(photograph: &Photograph, limits: PictureLimits) -> Result<Prepared, String> {
    let bytes = photograph.read()?;
    let original = Sha256::digest(&bytes).into();
    let prepared = match photograph::prepare(&bytes, limits) {
        Ok(Cow::Borrowed(_)) => None,
        Ok(Cow::Owned(smaller)) => Some(smaller),
        Err(error) => return Err(format!("decode_error ({error})")),
    };
    let bytes = prepared.unwrap_or(bytes);
    Ok(Prepared { digest: Sha256::digest(&bytes).into(), original, bytes })
}

/// What is judged of a photograph.
pub struct Prepared {
    pub bytes: Vec<u8>,
    pub digest: PhotographDigest,
    /// Of the file: large ones were once judged as they are.
    pub original: PhotographDigest,
}

/// A processed person, to be stored in their turn.
enum ProcessedPerson {
    Done(PersonResult),
    Consent(Consent, Vec<PhotographOutcome>),
    Judged {
        name: Name,
        is_new: bool,
        judged: Vec<(usize, PhotographDigest, Judged)>,
        verdicts: Vec<PhotographOutcome>,
    },
}

/// The import where no daemon runs.
pub struct LocalImport<'a> {
    pub settings: &'a Settings,
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub allowed: Permissions,
    pub workers: usize,
}

impl LocalImport<'_> {
    pub fn run(
        &self,
        people: &[Person],
        report: &mut ImportReport,
        bar: &ProgressBar,
    ) -> anyhow::Result<()> {
        let mut workers = (0..self.workers.max(1))
            .map(|_| Ok((open::load_vision(self.settings)?, open::open_reader(self.settings)?)))
            .collect::<anyhow::Result<Vec<_>>>()?;
        let (first, _) = &workers[0];
        let rules = self.settings.recognition.enrol(&first.template_spec());
        let mut storing = Storing {
            import: self,
            embedder: first.embedder(),
            gallery: open::load_gallery(&self.store, first)?,
            rules: &rules,
            report,
            bar,
        };
        // While one chunk is stored, the next is processed.
        let mut previous: (&[Person], Vec<ProcessedPerson>) = (&[], Vec::new());
        for chunk in people.chunks(CHUNK).chain([&people[..0]]) {
            let next = AtomicUsize::new(0);
            let (stored, processed) = std::thread::scope(|scope| {
                let next = &next;
                let rules = &rules;
                let start =
                    |worker| scope.spawn(move || self.process_people(worker, chunk, next, rules));
                let running: Vec<_> = workers.iter_mut().map(start).collect();
                let (people, processed) = std::mem::take(&mut previous);
                let stored = people
                    .iter()
                    .zip(processed)
                    .try_for_each(|(person, it)| storing.store_person(person, it));
                let joined =
                    running.into_iter().map(|it| it.join().expect("a worker does not panic"));
                (stored, joined.collect::<anyhow::Result<Vec<_>>>())
            });
            stored?;
            let mut processed: Vec<(usize, ProcessedPerson)> =
                processed?.into_iter().flatten().collect();
            processed.sort_by_key(|(at, _)| *at);
            previous = (chunk, processed.into_iter().map(|(_, it)| it).collect());
        }
        Ok(())
    }

    /// Processes one person after the other until none is left.
    fn process_people(
        &self,
        (vision, reader): &mut (Vision, Reader),
        people: &[Person],
        next: &AtomicUsize,
        rules: &EnrolSettings,
    ) -> anyhow::Result<Vec<(usize, ProcessedPerson)>> {
        let mut processed = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(person) = people.get(at) else {
                return Ok(processed);
            };
            processed.push((at, self.process_person(vision, reader, person, rules)?));
        }
    }

    fn process_person(
        &self,
        vision: &mut Vision,
        reader: &Reader,
        person: &Person,
        rules: &EnrolSettings,
    ) -> anyhow::Result<ProcessedPerson> {
        let limits = photograph::command_limits(self.settings);
        let (name, is_new, photographs, mut verdicts) =
            match plan_person(reader, &vision.embedder(), person, self.allowed, limits)? {
                PersonPlan::Done(result) => return Ok(ProcessedPerson::Done(result)),
                PersonPlan::Consent { consent, verdicts } => {
                    return Ok(ProcessedPerson::Consent(consent, verdicts));
                }
                PersonPlan::Process { name, is_new, photographs, verdicts } => {
                    (name, is_new, photographs, verdicts)
                }
            };
        let mut judged = Vec::with_capacity(photographs.len());
        for NewPhotograph { at, digest, .. } in photographs {
            match prepared(&person.photographs[at], limits) {
                Ok(Prepared { bytes, .. }) => {
                    judged.push((at, digest, enrol::judge_photograph(vision, &bytes, rules)?));
                }
                Err(why) => verdicts[at] = PhotographOutcome::Rejected(why),
            }
        }
        Ok(ProcessedPerson::Judged { name, is_new, judged, verdicts })
    }
}

/// Stores people one after the other, in their order.
struct Storing<'a> {
    import: &'a LocalImport<'a>,
    embedder: Embedder,
    gallery: Gallery,
    rules: &'a EnrolSettings,
    report: &'a mut ImportReport,
    bar: &'a ProgressBar,
}

impl Storing<'_> {
    fn store_person(&mut self, person: &Person, processed: ProcessedPerson) -> anyhow::Result<()> {
        let result = match processed {
            ProcessedPerson::Done(result) => result,
            ProcessedPerson::Consent(consent, verdicts) => {
                let id = person.id.clone();
                let at = self.import.clock.now();
                let write = move |tx: &mut Tx<'_>| record_consent(tx, &id, &consent, at, None);
                self.import.store.write(write).context("the import stopped here")?;
                PersonResult { outcome: PersonOutcome::Unchanged, verdicts }
            }
            ProcessedPerson::Judged { name, is_new, judged, verdicts } => {
                self.enrol(person, name, is_new, judged, verdicts)?
            }
        };
        self.report.add_person(person, &result)?;
        self.bar.inc(1);
        Ok(())
    }

    fn enrol(
        &mut self,
        person: &Person,
        name: Name,
        is_new: bool,
        judged: Vec<(usize, PhotographDigest, Judged)>,
        mut verdicts: Vec<PhotographOutcome>,
    ) -> anyhow::Result<PersonResult> {
        let mut places = Vec::new();
        let mut digests = Vec::new();
        let mut each = Vec::new();
        for (at, digest, judged) in judged {
            places.push(at);
            digests.push(digest);
            each.push(judged);
        }
        let judgement = enrol::conclude(each, &self.gallery, &person.id, false, self.rules);
        for (at, judged) in places.iter().zip(&judgement.photographs) {
            verdicts[*at] = match judged {
                Judged::Accepted { .. } => PhotographOutcome::Accepted,
                Judged::Rejected(_) => PhotographOutcome::Rejected(reason_text(judged)),
            };
        }
        if let Some((code, why)) = unfit(&judgement, self.import.allowed.duplicate) {
            // The photographs are good, but not used.
            verdicts
                .iter_mut()
                .filter(|it| **it == PhotographOutcome::Accepted)
                .for_each(|it| *it = PhotographOutcome::NotUsed);
            let why = format!("{} ({why})", code.as_str());
            return Ok(PersonResult { outcome: PersonOutcome::Rejected(why), verdicts });
        }
        let at = self.import.clock.now();
        let subject = SubjectRef { id: person.id.clone(), name: name.clone() };
        let enrolment = NewEnrolment::new(subject, false, &judgement, self.embedder, at)
            .with_photographs(digests)
            .with_consent(person.consent.clone());
        let enrolled = self
            .import
            .store
            .write(move |tx| enrolment.store(tx, None))
            .context("the import stopped here")?;
        let subject = Subject { id: person.id.clone(), name };
        self.gallery = std::mem::take(&mut self.gallery).replaced(subject, &enrolled.templates);
        Ok(PersonResult {
            outcome: if is_new { PersonOutcome::Enrolled } else { PersonOutcome::Added },
            verdicts,
        })
    }
}

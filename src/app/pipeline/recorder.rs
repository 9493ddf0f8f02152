//! Outcomes of tracks become events in the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::app::venues::VenueBook;
use crate::attend::judge::{Moment, judge};
use crate::attend::venue::Venue;
use crate::clock::{Clock, Stamp, Stopwatch};
use crate::health::Health;
use crate::recognise::decision::{Decision, Identification};
use crate::recognise::face::SubjectId;
use crate::recognise::live::{Attack, Outcome};
use crate::record::event::{self, Attendance, Body, Direction, NewEvent, SubjectRef, Unknown};
use crate::record::store::{Store, StoreError, Tx};

pub struct Recorder {
    store: Store,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    venues: Arc<VenueBook>,
    /// At most one event for an unknown face in this time, and one for an attack with the same face, or with nobody's.
    unknown_every: Duration,
    last_unknown: Option<Stamp>,
    /// The attacks told within that time, by whose face was shown.
    last_attacks: HashMap<Option<SubjectId>, Stamp>,
}

impl Recorder {
    pub fn new(
        store: Store,
        clock: Arc<dyn Clock>,
        health: Arc<Health>,
        venues: Arc<VenueBook>,
        unknown_every: Duration,
    ) -> Self {
        Self {
            store,
            clock,
            health,
            venues,
            unknown_every,
            last_unknown: None,
            last_attacks: HashMap::new(),
        }
    }

    /// A full disk is said, counted and survived; an error after which the store is of no use is returned.
    pub fn record(&mut self, outcome: &Outcome) -> Result<(), StoreError> {
        let done = match &outcome.decision {
            Decision::Identified(identification) => self.identified(outcome, identification),
            Decision::Unknown { best_score, threshold, samples } => {
                self.unknown(outcome, *best_score, *threshold, *samples)
            }
            Decision::Undecided => return Ok(()),
        };
        self.health.times.decision.observe(outcome.track_age);
        self.survive(done)
    }

    /// An attack becomes an event, once a track and not too often; the attendance that it was meant for is recorded or not by `record`.
    pub fn attack(&mut self, attack: &Attack) -> Result<(), StoreError> {
        self.health.attacks.add(1);
        let done = self.attacked(attack);
        self.survive(done)
    }

    /// How long it takes until something is on the disk is what a worn card shows first.
    fn write<T, F>(&self, f: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnMut(&mut Tx<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        let watch = Stopwatch::start();
        let written = self.store.write(f)?;
        self.health.times.record.observe(watch.elapsed());
        Ok(written)
    }

    fn survive(&self, done: Result<(), StoreError>) -> Result<(), StoreError> {
        match done {
            Err(error) if !error.is_fatal() => {
                self.health.store_errors.add(1);
                tracing::error!(
                    error = format!("{:#}", anyhow::Error::new(error)),
                    "a sighting could not be stored"
                );
                Ok(())
            }
            other => other,
        }
    }

    fn identified(&mut self, outcome: &Outcome, found: &Identification) -> Result<(), StoreError> {
        self.health.identified.add(1);
        let subject = SubjectRef { id: found.subject.id.clone(), name: found.subject.name.clone() };
        let visit = Visit {
            subject,
            direction: None,
            score: found.score,
            threshold: found.threshold,
            frames: found.samples as u32,
            track_ms: outcome.track_age.as_millis() as u64,
            latency_ms: self.clock.now().since(&outcome.decided_at).as_millis() as u64,
        };
        let (venue, at, clock) = (self.venues.door(), outcome.decided_at, Arc::clone(&self.clock));
        let recorded =
            self.write(move |tx| record_visit(tx, &venue, &visit, at, clock.as_ref()))?;
        if let Some(event) = recorded {
            self.health.recorded.add(1);
            self.health.times.attendance.observe(self.clock.now().since(&outcome.decided_at));
            tracing::info!(track_id = outcome.track_id, score = found.score, event_id = %event.event_id, "attendance recorded");
        }
        Ok(())
    }

    fn attacked(&mut self, attack: &Attack) -> Result<(), StoreError> {
        let at = attack.seen_at;
        let subject = match &attack.decision {
            Decision::Identified(found) => {
                Some(SubjectRef { id: found.subject.id.clone(), name: found.subject.name.clone() })
            }
            _ => None,
        };
        // A poster on the wall is one attack, however often its track is lost and found.
        self.last_attacks.retain(|_, last| at.since(last) < self.unknown_every);
        let shown = subject.as_ref().map(|it| it.id.clone());
        if self.last_attacks.contains_key(&shown) {
            return Ok(());
        }
        let body = event::Attack {
            venue: Some(self.venues.door_id().to_owned()),
            subject,
            scores: attack.scores.clone(),
            threshold: attack.threshold,
            enforced: attack.enforced,
        };
        let event_id = self.write(move |tx| {
            // The networks compared with a snapshot: whoever was withdrawn meanwhile must not come back by name.
            let mut body = body.clone();
            if let Some(shown) = &body.subject
                && tx.subject(&shown.id)?.is_none()
            {
                body.subject = None;
            }
            let event = NewEvent::new(at, Body::Attack(body));
            tx.append_event(&event)?;
            Ok(event.event_id)
        })?;
        self.last_attacks.insert(shown, at);
        tracing::warn!(track_id = attack.track_id, enforced = attack.enforced, %event_id, "somebody seems to show a picture");
        Ok(())
    }

    fn unknown(
        &mut self,
        outcome: &Outcome,
        score: Option<f32>,
        threshold: f32,
        samples: usize,
    ) -> Result<(), StoreError> {
        self.health.unknown.add(1);
        let at = outcome.decided_at;
        if self.last_unknown.is_some_and(|last| at.since(&last) < self.unknown_every) {
            return Ok(());
        }
        let track_ms = outcome.track_age.as_millis() as u64;
        let venue = Some(self.venues.door().id.clone());
        let body =
            Body::Unknown(Unknown { venue, score, threshold, frames: samples as u32, track_ms });
        let event = NewEvent::new(at, body);
        self.write(move |tx| tx.append_event(&event))?;
        self.last_unknown = Some(at);
        Ok(())
    }
}

/// A subject before the camera or in a command's image.
#[derive(Clone, Debug)]
pub struct Visit {
    pub subject: SubjectRef,
    /// None: as the venue has it.
    pub direction: Option<Direction>,
    pub score: f32,
    pub threshold: f32,
    pub frames: u32,
    pub track_ms: u64,
    pub latency_ms: u64,
}

/// Records the visit unless it is recorded already. The question and the record are one transaction.
pub fn record_visit(
    tx: &mut Tx<'_>,
    venue: &Venue,
    visit: &Visit,
    at: Stamp,
    clock: &dyn Clock,
) -> Result<Option<NewEvent>, StoreError> {
    // The networks compared with a snapshot: whoever was withdrawn meanwhile must not come back by name.
    let Some(known) = tx.subject(&visit.subject.id)? else {
        return Ok(None);
    };
    let recent = tx.records_for(venue, &known.id, &at)?;
    let Some(entry) = judge(venue, &Moment::new(&at, clock.boot_id()), visit.direction, &recent)
    else {
        return Ok(None);
    };
    let body = Body::Attendance(Attendance {
        venue: venue.id.clone(),
        session: entry.session,
        subject: Some(SubjectRef { id: known.id, name: known.name }),
        direction: entry.direction,
        status: entry.status,
        score: visit.score,
        threshold: visit.threshold,
        frames: visit.frames,
        track_ms: visit.track_ms,
        latency_ms: visit.latency_ms,
    });
    let event = NewEvent::new(at, body);
    tx.append_attendance(venue, &event)?;
    Ok(Some(event))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attend::venue::Door;
    use crate::clock::SimulatedClock;
    use crate::recognise::face::Name;
    use crate::recognise::gallery::Subject;
    use crate::record::store::StoreOptions;

    #[test]
    fn a_photograph_on_the_wall_does_not_fill_the_disk_whoever_is_on_it() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(0));
        let shared: Arc<dyn Clock> = clock.clone();
        let store = Store::open(dir.path(), StoreOptions::new(Vec::new(), Arc::clone(&shared)))
            .unwrap()
            .store;
        let venues = Arc::new(VenueBook::new(
            Vec::new(),
            Door { venue: "main".into(), direction: None, has_camera: false },
            &[],
        ));
        let every = Duration::from_secs(10);
        let mut recorder = Recorder::new(store.clone(), shared, Arc::default(), venues, every);
        let whose = [Some("ada"), Some("bob"), None];
        for id in whose.into_iter().flatten() {
            let (id, name) = (SubjectId::new(id).unwrap(), Name::new(id).unwrap());
            store.write(move |tx| tx.put_subject(&id, &name)).unwrap();
        }
        // A minute in which each of them is lost and found twice a second.
        for _ in 0..120 {
            for id in whose {
                recorder.attack(&attack(id, clock.now())).unwrap();
            }
            clock.advance(Duration::from_millis(500));
        }
        let event = |seq| store.write(move |tx| tx.event(seq)).unwrap();
        let told: Vec<_> = (1..).map_while(event).map(|event| event.body).collect();
        for id in whose {
            let of = |body: &&Body| matches!(body, Body::Attack(it) if it.subject.as_ref().map(|it| it.id.as_str()) == id);
            assert_eq!(told.iter().filter(of).count(), 6, "{id:?}");
        }
        assert_eq!(told.len(), 18);
        clock.advance(every);
        recorder.attack(&attack(None, clock.now())).unwrap();
        assert_eq!(recorder.last_attacks.len(), 1, "nobody is remembered for longer than it takes");
    }

    fn attack(id: Option<&str>, seen_at: Stamp) -> Attack {
        let unknown = Decision::Unknown { best_score: None, threshold: 0.5, samples: 5 };
        let decision = id.map_or(unknown, |id| {
            let subject = Subject { id: SubjectId::new(id).unwrap(), name: Name::new(id).unwrap() };
            Decision::Identified(Identification {
                subject: Arc::new(subject),
                score: 0.9,
                second_score: None,
                threshold: 0.5,
                samples: 2,
            })
        });
        Attack {
            track_id: 1,
            decision,
            seen_at,
            scores: vec![0.1, 0.1],
            threshold: 0.4,
            enforced: true,
        }
    }
}

//! Records the outcomes of tracks as events in the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use crate::app::context::Context;
use crate::app::state::repeats::{RepeatFeed, RepeatedVisit};
use crate::app::state::venues::VenueRegistry;
use crate::attend::judge::{JudgedSighting, Moment, Recorded, judge};
use crate::attend::venue::Venue;
use crate::clock::{Clock, Stamp, Stopwatch, rfc3339};
use crate::health::Health;
use crate::ids::SubjectId;
use crate::recognise::decision::{Decision, Identification};
use crate::recognise::live::{Attack, TrackOutcome};
use crate::store::{Store, StoreError, Tx};
use crate::wire::event;
use crate::wire::event::{Attendance, Body, Direction, NewEvent, SubjectRef, Unknown};

pub struct Recorder {
    store: Store,
    clock: Arc<dyn Clock>,
    health: Arc<Health>,
    venues: Arc<VenueRegistry>,
    repeats: RepeatFeed,
    /// At most one event in this time for unknown faces, and one for attacks with the same face or
    /// with unknown faces.
    unknown_every: Duration,
    last_unknown: Option<Stamp>,
    /// The attacks recorded within that time, by the subject whose face was shown.
    last_attacks: HashMap<Option<SubjectId>, Stamp>,
}

impl Recorder {
    pub fn new(ctx: Context) -> Self {
        let Context { store, clock, health, venues, repeats, settings, .. } = ctx;
        Self {
            store,
            clock,
            health,
            venues,
            repeats,
            unknown_every: settings.unknown_every,
            last_unknown: None,
            last_attacks: HashMap::new(),
        }
    }

    /// Records an outcome. Errors that can pass, such as a full disk, are counted and logged; a fatal
    /// error is returned.
    pub fn record_outcome(&mut self, outcome: &TrackOutcome) -> Result<(), StoreError> {
        let done = match &outcome.decision {
            Decision::Identified(identification) => self.record_identified(outcome, identification),
            Decision::Unknown { best_score, threshold, samples } => {
                self.record_unknown(outcome, *best_score, *threshold, *samples)
            }
            Decision::Undecided => return Ok(()),
        };
        self.health.times.decision.observe(outcome.track_age);
        self.log_unless_fatal(done)
    }

    /// Records an attack, once for each track and at a limited rate. `record_outcome` decides about
    /// the attendance itself.
    pub fn record_attack(&mut self, attack: &Attack) -> Result<(), StoreError> {
        self.health.recognition.attacks.add(1);
        let done = self.append_attack(attack);
        self.log_unless_fatal(done)
    }

    /// Writes and times the write. A worn SD card shows first in this duration.
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

    fn log_unless_fatal(&self, written: Result<(), StoreError>) -> Result<(), StoreError> {
        written.or_else(|error| {
            self.health.store_errors.add(1);
            error.log_unless_fatal("a sighting could not be stored")
        })
    }

    fn record_identified(
        &mut self,
        outcome: &TrackOutcome,
        found: &Identification,
    ) -> Result<(), StoreError> {
        self.health.recognition.identified.add(1);
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
        let venue = self.venues.door();
        let at = outcome.decided_at;
        let clock = Arc::clone(&self.clock);
        let venue_id = venue.id.clone();
        let done = self.write(move |tx| record_visit(tx, &venue, &visit, at, clock.as_ref()))?;
        match done {
            VisitOutcome::Recorded { event, .. } => {
                self.health.recorded.add(1);
                self.health.times.attendance.observe(self.clock.now().since(&outcome.decided_at));
                tracing::info!(track_id = outcome.track_id, score = found.score, event_id = %event.event_id, "attendance recorded");
            }
            VisitOutcome::Repeated { subject, recorded } => {
                // Without clients nobody receives it.
                let visit = RepeatedVisit {
                    occurred_at: rfc3339(at.wall_ms),
                    track: outcome.track_id,
                    venue: venue_id,
                    subject,
                    direction: recorded.direction,
                    recorded_at: recorded_at(&recorded),
                    session: recorded.session,
                };
                self.repeats.send(Arc::new(visit)).ok();
            }
            VisitOutcome::NotEnrolled => {}
        }
        Ok(())
    }

    fn append_attack(&mut self, attack: &Attack) -> Result<(), StoreError> {
        let at = attack.seen_at;
        let subject = match &attack.decision {
            Decision::Identified(found) => {
                Some(SubjectRef { id: found.subject.id.clone(), name: found.subject.name.clone() })
            }
            _ => None,
        };
        // A poster on the wall is one attack, although its track ends and begins again.
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
            // The gallery snapshot may be older than a withdrawal or a new name: what was must not
            // come back.
            let mut body = body.clone();
            if let Some(shown) = &body.subject {
                body.subject = tx.enrolled_now(&shown.id)?;
            }
            let event = NewEvent::new(at, Body::Attack(body));
            tx.append_event(&event)?;
            Ok(event.event_id)
        })?;
        self.last_attacks.insert(shown, at);
        tracing::warn!(track_id = attack.track_id, enforced = attack.enforced, %event_id, "presentation attack detected");
        Ok(())
    }

    fn record_unknown(
        &mut self,
        outcome: &TrackOutcome,
        score: Option<f32>,
        threshold: f32,
        samples: usize,
    ) -> Result<(), StoreError> {
        self.health.recognition.unknown.add(1);
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

/// What became of a visit.
#[derive(Clone, Debug)]
pub enum VisitOutcome {
    Recorded {
        subject: SubjectRef,
        event: NewEvent,
    },
    /// It is in the record already.
    Repeated {
        subject: SubjectRef,
        recorded: Recorded,
    },
    /// The subject was withdrawn meanwhile.
    NotEnrolled,
}

impl VisitOutcome {
    /// Returns the event of a visit that was recorded now.
    pub fn recorded(self) -> Option<NewEvent> {
        match self {
            Self::Recorded { event, .. } => Some(event),
            Self::Repeated { .. } | Self::NotEnrolled => None,
        }
    }
}

/// Returns the time of a record, if it is known.
pub fn recorded_at(recorded: &Recorded) -> Option<String> {
    recorded.at.is_known.then(|| rfc3339(recorded.at.wall_ms))
}

/// Records a visit unless it is recorded already. The check and the record are one transaction.
pub fn record_visit(
    tx: &mut Tx<'_>,
    venue: &Venue,
    visit: &Visit,
    at: Stamp,
    clock: &dyn Clock,
) -> Result<VisitOutcome, StoreError> {
    // The gallery snapshot may be older than a withdrawal: the name must not come back.
    let Some(subject) = tx.enrolled_now(&visit.subject.id)? else {
        return Ok(VisitOutcome::NotEnrolled);
    };
    let recent = tx.records_for(venue, &subject.id, &at)?;
    let moment = Moment::new(&at, clock.boot_id());
    let entry = match judge(venue, &moment, visit.direction, &recent) {
        JudgedSighting::New(entry) => entry,
        JudgedSighting::Repeated(recorded) => {
            return Ok(VisitOutcome::Repeated { subject, recorded });
        }
    };
    let body = Body::Attendance(Attendance {
        venue: venue.id.clone(),
        session: entry.session,
        subject: Some(subject.clone()),
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
    Ok(VisitOutcome::Recorded { subject, event })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::app::state::repeats;
    use crate::attend::venue::Door;
    use crate::clock::SimulatedClock;
    use crate::ids::Name;
    use crate::recognise::gallery::Subject;
    use crate::store::StoreOptions;

    #[test]
    fn repeated_attacks_are_throttled_per_subject() {
        let dir = tempfile::tempdir().unwrap();
        let clock = Arc::new(SimulatedClock::at(0));
        let shared: Arc<dyn Clock> = clock.clone();
        let store = Store::open(dir.path(), StoreOptions::new(Vec::new(), Arc::clone(&shared)))
            .unwrap()
            .store;
        let venues = Arc::new(VenueRegistry::new(
            Vec::new(),
            Door { venue: "main".into(), direction: None, has_camera: false },
            &[],
        ));
        let every = Duration::from_secs(10);
        let mut recorder = Recorder {
            store: store.clone(),
            clock: shared,
            health: Arc::default(),
            venues,
            repeats: repeats::new_feed(),
            unknown_every: every,
            last_unknown: None,
            last_attacks: HashMap::new(),
        };
        let whose = [Some("ada"), Some("bob"), None];
        for id in whose.into_iter().flatten() {
            let (id, name) = (SubjectId::new(id).unwrap(), Name::new(id).unwrap());
            store.write(move |tx| tx.put_subject(&id, &name)).unwrap();
        }
        // A minute in which each of them is lost and found twice a second.
        for _ in 0..120 {
            for id in whose {
                recorder.record_attack(&attack(id, clock.now())).unwrap();
            }
            clock.advance(Duration::from_millis(500));
        }
        let event = |seq| store.write(move |tx| tx.event(seq)).unwrap();
        let bodies: Vec<_> = (1..).map_while(event).map(|event| event.body).collect();
        for id in whose {
            let of = |body: &&Body| matches!(body, Body::Attack(it) if it.subject.as_ref().map(|it| it.id.as_str()) == id);
            assert_eq!(bodies.iter().filter(of).count(), 6, "{id:?}");
        }
        assert_eq!(bodies.len(), 18);
        clock.advance(every);
        recorder.record_attack(&attack(None, clock.now())).unwrap();
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

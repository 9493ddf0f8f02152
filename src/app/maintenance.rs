//! Periodic maintenance: corrects times once the clock is trusted, deletes old events that are
//! delivered (retention) and old replies, and withdraws subjects whose consent has ended.
//!
//! When a trusted clock is set, recorded times do not change, because it is unknown which of the two
//! times was right. The step is logged. Sessions and days follow the clock as it is, and the
//! re-entry gap follows the time since boot. Retention and the end of consents pause for an hour,
//! which is the time to notice a mistake before anything is deleted.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::app::context::Context;
use crate::app::state::gallery::GalleryCell;
use crate::app::state::venues::VenueRegistry;
use crate::app::supervise::StageResult;
use crate::attend::venue::Venue;
use crate::clock::{Clock, Stamp};
use crate::health::{Health, SharingState};
use crate::recognise::gallery::Gallery;
use crate::store::{Store, StoreError, Tx};

pub struct Maintenance {
    pub store: Store,
    pub clock: Arc<dyn Clock>,
    pub venues: Arc<VenueRegistry>,
    /// How many days delivered events are kept; `None` keeps them for ever.
    pub keep_days: Option<u32>,
    pub gallery: Arc<GalleryCell>,
    pub health: Arc<Health>,
    /// Notified when the health message is to be published at once.
    pub changed: Arc<Notify>,
}

/// When what was done last.
#[derive(Default)]
struct Rounds {
    last: Option<Stamp>,
    corrected_at: Option<Stamp>,
    retention_at: Option<Stamp>,
    paused_at: Option<Stamp>,
    consents_at: Option<Stamp>,
    /// Whether the clock was accepted since the last pause began.
    is_clock_accepted: bool,
}

/// How often the clock is checked.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// An event that was being recorded when the clock became trusted is corrected with the next round.
const CORRECTION_INTERVAL: Duration = Duration::from_mins(1);
/// Retention counts in days.
const RETENTION_INTERVAL: Duration = Duration::from_hours(1);
/// A consent ends to the second, and the question costs one look into an index.
const CONSENT_INTERVAL: Duration = Duration::from_secs(10);
/// Withdrawn in one transaction: some 10 ms.
const CONSENTS_AT_ONCE: u32 = 100;
/// How long retention pauses after the clock was set or became trusted, or has advanced by more than a
/// day since the last check.
const RETENTION_PAUSE: Duration = Duration::from_hours(1);
const UNCHECKED_MAX_MS: i64 = 86_400_000;
/// How long a withdrawal for the end of a consent waits for the site's gallery.
const SITE_PATIENCE_MS: i64 = 7 * 86_400_000;
/// People whose consent has ended and who wait for that, at most.
const SUSPENDED_MAX: u32 = 10_000;
/// The key in `meta` of the trusted wall time of the last round in which retention was not paused.
const CLOCK_SEEN: &str = "clock_seen";

impl Rounds {
    fn pause(&mut self, now: Stamp) {
        self.paused_at = Some(now);
        self.is_clock_accepted = false;
    }
}

impl Maintenance {
    pub fn new(ctx: Context) -> Self {
        let Context { store, clock, venues, settings, gallery, health, changed, .. } = ctx;
        Self { store, clock, venues, keep_days: settings.keep_days, gallery, health, changed }
    }

    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        let mut rounds = Rounds::default();
        loop {
            self.round(&mut rounds, self.clock.now()).await?;
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    /// Does what is due now.
    async fn round(&self, rounds: &mut Rounds, now: Stamp) -> Result<(), StoreError> {
        let last = rounds.last.replace(now);
        let was_trusted = last.is_some_and(|it| it.trusted);
        if last.is_some() && now.trusted && !was_trusted {
            // What was stored before has a time that may be years off.
            rounds.pause(now);
        }
        if let Some(step_ms) =
            last.filter(|it| it.trusted && now.trusted).and_then(|it| now.step_since(&it))
        {
            tracing::warn!(step_ms, "trusted clock was set; recorded times do not change");
            rounds.pause(now);
            // A restart within the pause finds an advance of more than a day, and pauses anew.
            self.store_clock_seen(0).await?;
        }
        if now.trusted && (!was_trusted || is_due(rounds.corrected_at, &now, CORRECTION_INTERVAL)) {
            self.correct_times(now).await?;
            rounds.corrected_at = Some(now);
        }
        if now.trusted && is_due(rounds.retention_at, &now, RETENTION_INTERVAL) {
            if rounds.paused_at.is_none() && self.has_clock_advanced(now).await? {
                rounds.pause(now);
            }
            if is_due(rounds.paused_at, &now, RETENTION_PAUSE) {
                // Only now: a restart within the pause begins it anew.
                self.store_clock_seen(now.wall_ms).await?;
                rounds.is_clock_accepted = true;
                #[expect(
                    clippy::redundant_closure_for_method_calls,
                    reason = "the method is not general enough in the transaction's lifetime"
                )]
                {
                    self.repeat(|tx| tx.delete_old_replies()).await?;
                    self.repeat(|tx| tx.forget_removed_webhooks()).await?;
                }
                if let Some(days) = self.keep_days {
                    self.repeat(move |tx| tx.retention(days)).await?;
                }
            }
            rounds.retention_at = Some(now);
        }
        let may_end = now.trusted && rounds.is_clock_accepted;
        if may_end && is_due(rounds.consents_at, &now, CONSENT_INTERVAL) {
            self.end_consents(now).await?;
            rounds.consents_at = Some(now);
        }
        Ok(())
    }

    /// Withdraws the subjects whose consent has ended: they are not recognised any more, and a receipt
    /// follows for each.
    ///
    /// A device that does not know what its site has may have missed a renewal, and its withdrawal
    /// would count everywhere: for a week it only stops recognising them.
    async fn end_consents(&self, now: Stamp) -> Result<(), StoreError> {
        let is_current = self.health.sharing().is_none_or(|it| it.state == SharingState::Shared);
        let ended_ms = if is_current { now.wall_ms } else { now.wall_ms - SITE_PATIENCE_MS };
        if !is_current {
            self.stop_recognising_ended(now).await?;
        }
        loop {
            let ended = self.store.read(move |tx| tx.ended_consents(ended_ms, 1)).await;
            match ended {
                Ok(ended) if ended.is_empty() => return Ok(()),
                Ok(_) => {}
                Err(error) => {
                    return error.log_unless_fatal("maintenance failed and will be retried");
                }
            }
            let _turn = self.gallery.lock_for_change().await;
            let end =
                move |tx: &mut Tx<'_>| tx.end_expired_consents(now, ended_ms, CONSENTS_AT_ONCE);
            let ended = match self.store.write_async(end).await {
                Ok(ended) => ended,
                Err(error) => {
                    return error.log_unless_fatal("maintenance failed and will be retried");
                }
            };
            self.gallery.update(|gallery| ended.iter().fold(gallery, Gallery::without));
            self.health.consents_ended.add(ended.len() as u64);
            tracing::info!(
                people = ended.len(),
                "consents have ended: these people are withdrawn, and receipts follow"
            );
            self.changed.notify_one();
        }
    }

    async fn stop_recognising_ended(&self, now: Stamp) -> Result<(), StoreError> {
        let read = move |tx: &Tx<'_>| tx.ended_consents(now.wall_ms, SUSPENDED_MAX);
        let ended = match self.store.read(read).await {
            Ok(ended) => ended,
            Err(error) => return error.log_unless_fatal("maintenance failed and will be retried"),
        };
        if !ended.is_empty() {
            let _turn = self.gallery.lock_for_change().await;
            self.gallery.update(|gallery| ended.iter().fold(gallery, Gallery::without));
        }
        Ok(())
    }

    async fn correct_times(&self, now: Stamp) -> Result<(), StoreError> {
        let venues: Arc<Vec<Venue>> =
            Arc::new(self.venues.all().iter().map(|it| it.venue.clone()).collect());
        let corrected = self.repeat(move |tx| tx.correct_times(&now, &venues)).await?;
        if corrected > 0 {
            tracing::info!(
                events = corrected,
                "clock is trusted now; times of earlier events were corrected"
            );
        }
        Ok(())
    }

    /// Returns whether the clock has advanced so far since it was accepted that the device was off for
    /// long, or that the clock is wrong.
    async fn has_clock_advanced(&self, now: Stamp) -> Result<bool, StoreError> {
        let check = move |tx: &mut Tx<'_>| {
            let seen =
                tx.meta(CLOCK_SEEN)?.and_then(|it| String::from_utf8(it).ok()?.parse::<i64>().ok());
            Ok(seen.is_some_and(|seen| now.wall_ms.saturating_sub(seen) > UNCHECKED_MAX_MS))
        };
        match self.store.write_async(check).await {
            Err(error) if error.is_fatal() => Err(error),
            other => Ok(other.unwrap_or(true)),
        }
    }

    async fn store_clock_seen(&self, wall_ms: i64) -> Result<(), StoreError> {
        let put = move |tx: &mut Tx<'_>| tx.put_meta(CLOCK_SEEN, wall_ms.to_string().as_bytes());
        match self.store.write_async(put).await {
            Err(error) => error.log_unless_fatal("maintenance failed and will be retried"),
            Ok(()) => Ok(()),
        }
    }

    /// Repeats a step, each time in a transaction of its own, until it has nothing left to do. Returns
    /// the total.
    async fn repeat(
        &self,
        step: impl Fn(&mut Tx<'_>) -> Result<usize, StoreError> + Clone + Send + 'static,
    ) -> Result<usize, StoreError> {
        let mut total = 0;
        loop {
            let step = step.clone();
            match self.store.write_async(move |tx| step(tx)).await {
                Ok(0) => return Ok(total),
                Ok(count) => total += count,
                Err(error) => {
                    error.log_unless_fatal("maintenance failed and will be retried")?;
                    return Ok(total);
                }
            }
        }
    }
}

fn is_due(last: Option<Stamp>, now: &Stamp, interval: Duration) -> bool {
    last.is_none_or(|last| now.since(&last) >= interval)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attend::venue::Door;
    use crate::clock::SimulatedClock;
    use crate::ids::{Name, SubjectId};
    use crate::recognise::face::{Embedder, ModelDigest, Template};
    use crate::recognise::gallery;
    use crate::store::{NewReference, SinkName, StoreOptions};
    use crate::wire::consent::Consent;
    use crate::wire::event::{Body, EndReason, EnrolmentAction};

    const NOW_MS: i64 = 1_795_420_683_412;
    const DAY: Duration = Duration::from_hours(24);

    /// A device whose maintenance a test moves on, one round after the other.
    struct MaintenanceBench {
        maintenance: Maintenance,
        clock: Arc<SimulatedClock>,
        rounds: Rounds,
        _dir: tempfile::TempDir,
    }

    impl MaintenanceBench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let clock = Arc::new(SimulatedClock::at(NOW_MS));
            let shared = Arc::clone(&clock) as Arc<dyn Clock>;
            let options = StoreOptions::new(vec![SinkName::MQTT], Arc::clone(&shared));
            let store = Store::open(dir.path(), options).unwrap().store;
            let door = Door { venue: "main".into(), direction: None, has_camera: false };
            let venues = Arc::new(VenueRegistry::new(Vec::new(), door, &[]));
            let maintenance = Maintenance {
                store,
                clock: shared,
                venues,
                keep_days: None,
                gallery: Arc::new(GalleryCell::new(Gallery::new(4))),
                health: Arc::default(),
                changed: Arc::default(),
            };
            Self { maintenance, clock, rounds: Rounds::default(), _dir: dir }
        }

        fn round(&mut self) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let round = self.maintenance.round(&mut self.rounds, self.clock.now());
            runtime.block_on(round).unwrap();
        }

        /// Another start of the daemon.
        fn restart(&mut self) {
            self.rounds = Rounds::default();
            self.round();
        }

        /// As many hours, each with the round that is due then.
        fn pass(&mut self, hours: u64) {
            for _ in 0..hours {
                self.clock.advance(Duration::from_hours(1));
                self.round();
            }
        }

        fn answer(&self, request_id: &'static str) {
            let put = move |tx: &mut Tx<'_>| tx.store_reply(request_id, "sync", "reply/x", "{}");
            assert!(self.maintenance.store.write(put).unwrap());
        }

        fn knows(&self, request_id: &'static str) -> bool {
            self.maintenance.store.write(move |tx| tx.stored_reply(request_id)).unwrap().is_some()
        }
    }

    #[test]
    fn replies_are_forgotten_after_a_week() {
        let mut bench = MaintenanceBench::new();
        bench.round();
        bench.answer("r-1");
        bench.pass(6 * 24);
        bench.answer("r-2");
        assert!(bench.knows("r-1"));
        bench.pass(2 * 24);
        assert!(!bench.knows("r-1") && bench.knows("r-2"));
    }

    /// Otherwise a command that is sent again is carried out again.
    #[test]
    fn clock_jump_does_not_forget_replies() {
        let mut bench = MaintenanceBench::new();
        bench.round();
        bench.answer("r-1");
        bench.clock.set_wall(NOW_MS + 400 * DAY.as_millis() as i64, true);
        for request in ["r-2", "r-3"] {
            bench.round();
            bench.answer(request);
        }
        bench.clock.set_wall(NOW_MS, true);
        bench.round();
        bench.pass(2);
        assert!(["r-1", "r-2", "r-3"].into_iter().all(|it| bench.knows(it)));
    }

    #[test]
    fn restarts_do_not_end_the_pause() {
        let mut bench = MaintenanceBench::new();
        bench.round();
        bench.answer("r-1");
        bench.clock.set_wall(NOW_MS + 400 * DAY.as_millis() as i64, true);
        bench.round();
        for _ in 0..3 {
            bench.restart();
        }
        assert!(bench.knows("r-1"));
        bench.pass(2);
        assert!(!bench.knows("r-1"), "nobody has set it right");
    }

    #[test]
    fn replies_of_unknown_time_outlast_restarts() {
        let mut bench = MaintenanceBench::new();
        bench.round();
        bench.clock.set_wall(5_000, false);
        bench.round();
        bench.answer("r-1");
        bench.clock.set_wall(NOW_MS, true);
        bench.restart();
        bench.pass(8 * 24);
        assert!(bench.knows("r-1"));
    }

    impl MaintenanceBench {
        /// A person with a reference, in store and gallery.
        fn enrol(&self, id: &str, valid_until_ms: Option<i64>) {
            let name = Name::new("Jane Doe").unwrap();
            let consent =
                Consent::new(NOW_MS - 1, "v1", valid_until_ms, Name::new("desk").unwrap()).unwrap();
            let template = Template::normalised(vec![1.0, 0.5, 0.0, 1.0]).unwrap();
            let subject = gallery::Subject { id: SubjectId::new(id).unwrap(), name: name.clone() };
            let reference = NewReference {
                subject_id: subject.id.clone(),
                embedder: Embedder::single(ModelDigest([7; 32]), 4),
                template: template.clone(),
                quality: 0.5,
            };
            let put = move |tx: &mut Tx<'_>| {
                tx.put_subject(&reference.subject_id, &name)?;
                tx.put_consent(&reference.subject_id, &consent)?;
                tx.add_references(std::slice::from_ref(&reference))
            };
            self.maintenance.store.write(put).unwrap();
            self.maintenance.gallery.update(|it| it.with(subject, &[template]));
        }

        /// Who is enrolled, and how many the gallery has.
        fn enrolled(&self) -> (Vec<String>, usize) {
            let list = |tx: &mut Tx<'_>| tx.subjects(None, 10);
            let found = self.maintenance.store.write(list).unwrap();
            let ids = found.iter().map(|it| it.id.as_str().to_owned()).collect();
            (ids, self.maintenance.gallery.snapshot().subjects())
        }
    }

    #[test]
    fn ended_consent_withdraws_subject_with_receipt() {
        let mut bench = MaintenanceBench::new();
        bench.round();
        bench.enrol("stays", None);
        bench.enrol("ends", Some(NOW_MS + 3_600_000));
        bench.clock.advance(Duration::from_secs(3_599));
        bench.round();
        assert_eq!(bench.enrolled(), (vec!["ends".to_owned(), "stays".into()], 2));
        bench.clock.advance(CONSENT_INTERVAL);
        bench.round();
        assert_eq!(bench.enrolled(), (vec!["stays".to_owned()], 1));
        assert_eq!(bench.maintenance.health.consents_ended.get(), 1);
        let store = &bench.maintenance.store;
        let references = |tx: &mut Tx<'_>| tx.embedders();
        assert_eq!(store.write(references).unwrap(), [ModelDigest([7; 32])], "of the other");
        let erasures = store.write(|tx| tx.erasures(i64::MAX, 10)).unwrap();
        let [erasure] = erasures.as_slice() else { panic!("{erasures:?}") };
        assert_eq!(erasure.subject_id.as_str(), "ends");
        assert_eq!(erasure.reason, Some(EndReason::ConsentExpired));
        assert!(erasure.events_kept && erasure.references == 1 && erasure.request_id.is_none());
        let event = store.write(|tx| tx.event(1)).unwrap().unwrap();
        let Body::Enrolment(body) = event.body else { panic!("{event:?}") };
        assert_eq!(body.action, EnrolmentAction::Withdrawn);
        assert_eq!(body.reason, Some(EndReason::ConsentExpired));
        assert_eq!(body.consent.unwrap().valid_until_ms(), Some(NOW_MS + 3_600_000));
    }

    #[test]
    fn clock_jump_does_not_end_consents() {
        let mut bench = MaintenanceBench::new();
        bench.round();
        bench.enrol("jane", Some(NOW_MS + DAY.as_millis() as i64));
        let year_ms = 365 * DAY.as_millis() as i64;
        bench.clock.set_wall(NOW_MS + year_ms, false);
        bench.round();
        bench.clock.advance(DAY);
        bench.round();
        assert_eq!(bench.enrolled().1, 1, "the clock is not trusted");
        bench.clock.set_wall(NOW_MS + year_ms, true);
        for _ in 0..3 {
            bench.restart();
            bench.clock.advance(CONSENT_INTERVAL);
            bench.round();
        }
        assert_eq!(bench.enrolled().1, 1, "the pause is not over");
        bench.clock.set_wall(NOW_MS, true);
        bench.round();
        bench.pass(3);
        assert_eq!(bench.enrolled().1, 1, "the clock was set right");
        bench.pass(24);
        assert_eq!(bench.enrolled(), (Vec::new(), 0));
    }
}

//! What a frame and a delivery take, measured at the ports: decoding, networks and sinks are wrapped where they are used, and
//! neither they nor recognition, which asks no clock, know of it.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::health::{Deliveries, Health, Times};
use crate::histogram::Histogram;
use crate::recognise::align::Sample;
use crate::recognise::engine::{EngineError, FaceEngine, Reach};
use crate::recognise::face::{Detection, ModelDigest, Template};
use crate::recognise::frame::{Luma, Pixels};
use crate::recognise::picture::{DecodeError, Picture};
use crate::record::outbox::{Delivery, Sink};
use crate::record::store::{OutboxRow, SinkName};

/// The networks, for one frame.
pub struct TimedEngine<'a> {
    engine: &'a mut dyn FaceEngine,
    times: &'a Times,
    /// In all of them together.
    pub spent: Duration,
}

impl<'a> TimedEngine<'a> {
    pub fn new(engine: &'a mut dyn FaceEngine, times: &'a Times) -> Self {
        Self { engine, times, spent: Duration::ZERO }
    }

    fn timed<T>(&mut self, into: &Histogram, run: impl FnOnce(&mut dyn FaceEngine) -> T) -> T {
        let watch = Stopwatch::start();
        let outcome = run(self.engine);
        let took = watch.elapsed();
        into.observe(took);
        self.spent += took;
        outcome
    }
}

impl FaceEngine for TimedEngine<'_> {
    fn detect(&mut self, picture: &Picture, reach: Reach) -> Result<Vec<Detection>, EngineError> {
        self.timed(&self.times.detect, |engine| engine.detect(picture, reach))
    }

    fn refine(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Detection, EngineError> {
        self.timed(&self.times.refine, |engine| engine.refine(picture, detection))
    }

    fn template(&mut self, sample: &Sample) -> Result<Option<Template>, EngineError> {
        self.timed(&self.times.template, |engine| engine.template(sample))
    }

    fn liveness(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Option<f32>, EngineError> {
        self.timed(&self.times.liveness, |engine| engine.liveness(picture, detection))
    }

    fn embedder(&self) -> ModelDigest {
        self.engine.embedder()
    }

    fn dimension(&self) -> usize {
        self.engine.dimension()
    }
}

/// The pixels of one frame. Of each view the first asking is counted: that is the one that decodes.
pub struct TimedPixels {
    pixels: Arc<dyn Pixels>,
    health: Arc<Health>,
    glanced: AtomicBool,
    decoded: AtomicBool,
    spent_ns: AtomicU64,
}

impl TimedPixels {
    pub fn new(pixels: Arc<dyn Pixels>, health: Arc<Health>) -> Self {
        let (glanced, decoded) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { pixels, health, glanced, decoded, spent_ns: AtomicU64::new(0) }
    }

    /// In decoding, of all views together.
    pub fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent_ns.load(Ordering::Relaxed))
    }

    fn timed<T>(&self, asked: &AtomicBool, into: &Histogram, ask: impl FnOnce() -> T) -> T {
        let watch = Stopwatch::start();
        let outcome = ask();
        let took = watch.elapsed();
        if !asked.swap(true, Ordering::Relaxed) {
            into.observe(took);
        }
        self.spent_ns.fetch_add(took.as_nanos() as u64, Ordering::Relaxed);
        outcome
    }
}

impl Pixels for TimedPixels {
    fn size(&self) -> (usize, usize) {
        self.pixels.size()
    }

    fn luma(&self) -> Result<Luma, DecodeError> {
        self.timed(&self.glanced, &self.health.times.glance, || self.pixels.luma())
    }

    fn reduced(&self, side_px: usize) -> Result<Cow<'_, Picture>, DecodeError> {
        self.timed(&self.decoded, &self.health.times.decode, || self.pixels.reduced(side_px))
    }

    fn full(&self) -> Result<&Picture, DecodeError> {
        self.timed(&self.decoded, &self.health.times.decode, || self.pixels.full())
    }
}

impl fmt::Debug for TimedPixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pixels.fmt(f)
    }
}

/// A sink, with where its figures stand.
pub struct TimedSink<S> {
    sink: S,
    health: Arc<Health>,
    figures: fn(&Health) -> &Deliveries,
}

impl<S> TimedSink<S> {
    pub fn new(sink: S, health: &Arc<Health>, figures: fn(&Health) -> &Deliveries) -> Self {
        Self { sink, health: Arc::clone(health), figures }
    }
}

impl<S: Sink> Sink for TimedSink<S> {
    fn name(&self) -> SinkName {
        self.sink.name()
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        let watch = Stopwatch::start();
        let deliveries = self.sink.deliver(batch).await;
        let took = watch.elapsed();
        let figures = (self.figures)(&self.health);
        let mut acknowledged = 0;
        for delivery in &deliveries {
            match delivery {
                Delivery::Acknowledged => acknowledged += 1,
                Delivery::Retry(_) | Delivery::Doubtful(_) | Delivery::Refused(_) => {
                    figures.failed.add(1)
                }
                Delivery::Poison(_) => figures.buried.add(1),
            }
        }
        figures.acknowledged.add(acknowledged);
        if acknowledged > 0 {
            figures.times.observe(took);
        }
        deliveries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_counted_as_decoded_once_however_often_it_is_looked_at() {
        let health = Arc::new(Health::default());
        let pixels =
            TimedPixels::new(Arc::new(Picture::plain(32, 24, [9; 3])), Arc::clone(&health));
        let counts = || (health.times.glance.read().count(), health.times.decode.read().count());
        assert_eq!(counts(), (0, 0));
        pixels.luma().unwrap();
        pixels.luma().unwrap();
        assert_eq!(counts(), (1, 0));
        pixels.reduced(320).unwrap();
        pixels.full().unwrap();
        pixels.full().unwrap();
        assert_eq!(counts(), (1, 1));
        assert!(pixels.spent() >= health.times.glance.read().sum + health.times.decode.read().sum);
    }

    struct Script(Vec<Delivery>);

    impl Sink for Script {
        fn name(&self) -> SinkName {
            SinkName::MQTT
        }
        async fn deliver(&mut self, _: &[OutboxRow]) -> Vec<Delivery> {
            self.0.clone()
        }
    }

    #[tokio::test]
    async fn only_what_somebody_acknowledged_is_timed() {
        let health = Arc::new(Health::default());
        let [retry, refused, poison] =
            [Delivery::Retry, Delivery::Refused, Delivery::Poison].map(|it| it("why".to_owned()));
        let all = vec![
            Delivery::Acknowledged,
            retry.clone(),
            refused.clone(),
            poison.clone(),
            Delivery::Acknowledged,
        ];
        for outcome in [all, vec![retry, refused], vec![poison]] {
            let mut sink = TimedSink::new(Script(outcome.clone()), &health, |it| &it.to_mqtt);
            assert_eq!(sink.deliver(&[]).await, outcome);
        }
        let figures = &health.to_mqtt;
        assert_eq!(
            (figures.acknowledged.get(), figures.failed.get(), figures.buried.get()),
            (2, 4, 2)
        );
        assert_eq!((figures.times.read().count(), health.to_mongo.acknowledged.get()), (1, 0));
    }
}

//! Measures frames and deliveries at the ports. Models, decoding and sinks are wrapped where they are
//! used, so neither they nor recognition, which uses no clock, contain any measuring.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::Stopwatch;
use crate::health::{Deliveries, Health, Times};
use crate::histogram::Histogram;
use crate::recognise::align::Sample;
use crate::recognise::engine::{DetectorInput, EngineError, FaceEngine};
use crate::recognise::face::{Detection, Embedder, Template};
use crate::recognise::frame::{Luma, Pixels};
use crate::recognise::picture::{DecodeError, Picture};
use crate::store::relay::{Delivery, Sink};
use crate::store::{OutboxRow, SinkName};

/// Times the models for one frame.
pub struct TimedEngine<'a> {
    engine: &'a mut dyn FaceEngine,
    times: &'a Times,
    /// The time in all models together.
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
    fn detect(
        &mut self,
        picture: &Picture,
        input: DetectorInput,
    ) -> Result<Vec<Detection>, EngineError> {
        self.timed(&self.times.detect, |engine| engine.detect(picture, input))
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

    fn complete(&mut self, sample: &Sample, template: Template) -> Result<Template, EngineError> {
        self.timed(&self.times.second_part, |engine| engine.complete(sample, template))
    }

    fn liveness(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Option<f32>, EngineError> {
        self.timed(&self.times.liveness, |engine| engine.liveness(picture, detection))
    }

    fn embedder(&self) -> Embedder {
        self.engine.embedder()
    }
}

/// Times the decoding of one frame. Only the first access to each form decodes, so only it is
/// observed.
pub struct TimedPixels {
    pixels: Arc<dyn Pixels>,
    health: Arc<Health>,
    has_luma: AtomicBool,
    is_decoded: AtomicBool,
    spent_ns: AtomicU64,
}

impl TimedPixels {
    pub fn new(pixels: Arc<dyn Pixels>, health: Arc<Health>) -> Self {
        Self {
            pixels,
            health,
            has_luma: AtomicBool::new(false),
            is_decoded: AtomicBool::new(false),
            spent_ns: AtomicU64::new(0),
        }
    }

    /// Returns the time spent in decoding.
    pub fn spent(&self) -> Duration {
        Duration::from_nanos(self.spent_ns.load(Ordering::Relaxed))
    }

    fn timed<T>(&self, is_done: &AtomicBool, into: &Histogram, run: impl FnOnce() -> T) -> T {
        let watch = Stopwatch::start();
        let outcome = run();
        let took = watch.elapsed();
        if !is_done.swap(true, Ordering::Relaxed) {
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
        self.timed(&self.has_luma, &self.health.times.glance, || self.pixels.luma())
    }

    fn reduced(&self, side_px: usize) -> Result<Cow<'_, Picture>, DecodeError> {
        self.timed(&self.is_decoded, &self.health.times.decode, || self.pixels.reduced(side_px))
    }

    fn full(&self) -> Result<&Picture, DecodeError> {
        self.timed(&self.is_decoded, &self.health.times.decode, || self.pixels.full())
    }
}

impl fmt::Debug for TimedPixels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pixels.fmt(f)
    }
}

/// Counts and times the deliveries of a sink.
pub struct TimedSink<S, F> {
    sink: S,
    health: Arc<Health>,
    /// Where they are counted.
    deliveries: F,
}

impl<S, F: Fn(&Health) -> &Deliveries> TimedSink<S, F> {
    pub fn new(sink: S, health: &Arc<Health>, deliveries: F) -> Self {
        Self { sink, health: Arc::clone(health), deliveries }
    }
}

impl<S: Sink, F: Fn(&Health) -> &Deliveries + Send> Sink for TimedSink<S, F> {
    fn name(&self) -> SinkName {
        self.sink.name()
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        let watch = Stopwatch::start();
        let outcomes = self.sink.deliver(batch).await;
        let took = watch.elapsed();
        let counters = (self.deliveries)(&self.health);
        let mut acknowledged = 0;
        for outcome in &outcomes {
            match outcome {
                Delivery::Acknowledged => acknowledged += 1,
                Delivery::Retry(_) | Delivery::Doubtful(_) | Delivery::Rejected(_) => {
                    counters.failed.add(1);
                }
                Delivery::Poison(_) => counters.dead_lettered.add(1),
                Delivery::Held => {}
            }
        }
        counters.acknowledged.add(acknowledged);
        if acknowledged > 0 {
            counters.times.observe(took);
        }
        outcomes
    }
}

/// Counts each output of a model as progress of the inference thread: one picture with a hundred
/// faces takes a slow processor longer than the watchdog waits.
pub struct ProgressEngine<E> {
    pub engine: E,
    pub health: Arc<Health>,
}

impl<E> ProgressEngine<E> {
    fn counted<T>(&mut self, run: impl FnOnce(&mut E) -> T) -> T {
        let output = run(&mut self.engine);
        self.health.inference_progress.add(1);
        output
    }
}

impl<E: FaceEngine> FaceEngine for ProgressEngine<E> {
    fn detect(
        &mut self,
        picture: &Picture,
        input: DetectorInput,
    ) -> Result<Vec<Detection>, EngineError> {
        self.counted(|it| it.detect(picture, input))
    }

    fn refine(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Detection, EngineError> {
        self.counted(|it| it.refine(picture, detection))
    }

    fn template(&mut self, sample: &Sample) -> Result<Option<Template>, EngineError> {
        self.counted(|it| it.template(sample))
    }

    fn complete(&mut self, sample: &Sample, template: Template) -> Result<Template, EngineError> {
        self.counted(|it| it.complete(sample, template))
    }

    fn liveness(
        &mut self,
        picture: &Picture,
        detection: &Detection,
    ) -> Result<Option<f32>, EngineError> {
        self.counted(|it| it.liveness(picture, detection))
    }

    fn embedder(&self) -> Embedder {
        self.engine.embedder()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recognise::face::ModelDigest;

    #[test]
    fn frame_decode_is_counted_once() {
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
    async fn only_acknowledged_deliveries_are_timed() {
        let health = Arc::new(Health::default());
        let [retry, refused, poison] =
            [Delivery::Retry, Delivery::Rejected, Delivery::Poison].map(|it| it("why".to_owned()));
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
            (figures.acknowledged.get(), figures.failed.get(), figures.dead_lettered.get()),
            (2, 4, 2)
        );
        assert_eq!((figures.times.read().count(), health.to_mongo.acknowledged.get()), (1, 0));
    }

    #[test]
    fn each_inference_counts_as_turn() {
        struct Silent;
        impl FaceEngine for Silent {
            fn detect(
                &mut self,
                _: &Picture,
                _: DetectorInput,
            ) -> Result<Vec<Detection>, EngineError> {
                Ok(Vec::new())
            }
            fn refine(
                &mut self,
                _: &Picture,
                detection: &Detection,
            ) -> Result<Detection, EngineError> {
                Ok(*detection)
            }
            fn template(&mut self, _: &Sample) -> Result<Option<Template>, EngineError> {
                Ok(None)
            }
            fn liveness(&mut self, _: &Picture, _: &Detection) -> Result<Option<f32>, EngineError> {
                Ok(None)
            }
            fn complete(&mut self, _: &Sample, it: Template) -> Result<Template, EngineError> {
                Ok(it)
            }
            fn embedder(&self) -> Embedder {
                Embedder::single(ModelDigest([0; 32]), 2)
            }
        }
        let health = Arc::new(Health::default());
        let mut engine = ProgressEngine { engine: Silent, health: Arc::clone(&health) };
        let picture = Picture::plain(8, 8, [0; 3]);
        for turns in 1..=3 {
            engine.detect(&picture, DetectorInput::Small).unwrap();
            assert_eq!(health.inference_progress.get(), turns);
        }
    }
}

//! The processor's temperature lowers the pace of recognition before the processor lowers its own.
//!
//! Read every few seconds, off the way of the frames, which only see the step that it has come to.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::app::supervise::StageResult;
use crate::health::{self, Health};

const READ_EVERY: Duration = Duration::from_secs(5);
/// The pace is raised again this far below the limit, so that it does not swing.
const HYSTERESIS_CELSIUS: f32 = 5.0;
/// Least time between two frames that are looked at, by step; the first step is full pace.
const PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];

/// The least time between two frames at this step.
pub fn pause_of(step: u64) -> Duration {
    PAUSES[(step as usize).min(PAUSES.len() - 1)]
}

pub struct Power {
    celsius_max: f32,
    health: Arc<Health>,
    changed: Arc<Notify>,
}

impl Power {
    pub fn new(celsius_max: f32, health: Arc<Health>, changed: Arc<Notify>) -> Self {
        Self { celsius_max, health, changed }
    }

    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        loop {
            self.heed(health::cpu_celsius());
            tokio::select! {
                () = tokio::time::sleep(READ_EVERY) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    /// One reading. Where there is no sensor the pace stays as it is: full.
    fn heed(&self, celsius: Option<f32>) {
        let Some(celsius) = celsius else { return };
        let before = self.health.pace_step.get();
        let step = step_after(before, celsius, self.celsius_max);
        if step == before {
            return;
        }
        self.health.pace_step.set(step);
        let limit = self.celsius_max;
        match (before, step) {
            (0, _) => {
                tracing::warn!(
                    celsius,
                    limit,
                    "the processor is hot: recognition goes slower until it has cooled"
                );
            }
            (_, 0) => tracing::info!(
                celsius,
                limit,
                "the processor has cooled: recognition goes at full pace again"
            ),
            _ => {}
        }
        self.changed.notify_one();
    }
}

/// One step slower while it is too hot, one faster when it has clearly cooled.
fn step_after(step: u64, celsius: f32, celsius_max: f32) -> u64 {
    if celsius > celsius_max {
        (step + 1).min(PAUSES.len() as u64 - 1)
    } else if celsius < celsius_max - HYSTERESIS_CELSIUS {
        step.saturating_sub(1)
    } else {
        step
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_follows_the_temperature_step_by_step() {
        let power = Power::new(80.0, Arc::default(), Arc::default());
        let mut steps = Vec::new();
        for celsius in [70.0, 81.0, 82.0, 78.0, 85.0, 85.0, 76.0, 74.0, 74.0, 74.0, 74.0, f32::NAN]
        {
            power.heed(Some(celsius));
            steps.push(power.health.pace_step.get());
        }
        assert_eq!(steps, [0, 1, 2, 2, 3, 3, 3, 2, 1, 0, 0, 0]);
        power.heed(None);
        assert_eq!(power.health.pace_step.get(), 0);
        assert_eq!(pause_of(99), Duration::from_millis(400));
    }
}

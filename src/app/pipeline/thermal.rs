//! The thermal slow-down: recognition slows down before the hot processor throttles itself.
//!
//! The temperature is read every few seconds by a task of its own. Inference only reads the step.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};

use crate::app::context::Context;
use crate::app::supervise::StageResult;
use crate::health::{self, Health};

const READ_INTERVAL: Duration = Duration::from_secs(5);
/// Recognition speeds up again this far below the limit, so that it does not oscillate.
const HYSTERESIS_CELSIUS: f32 = 5.0;
/// The least time between two processed frames at each step. Step 0 is full speed.
const FRAME_PAUSES: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(200),
    Duration::from_millis(400),
];

/// Returns the least time between two processed frames at this step.
pub fn frame_pause(step: u64) -> Duration {
    FRAME_PAUSES[(step as usize).min(FRAME_PAUSES.len() - 1)]
}

pub struct ThermalControl {
    celsius_max: f32,
    health: Arc<Health>,
    changed: Arc<Notify>,
}

impl ThermalControl {
    pub fn new(ctx: Context, celsius_max: f32) -> Self {
        Self { celsius_max, health: ctx.health, changed: ctx.changed }
    }

    pub async fn run(self, mut stop: watch::Receiver<bool>) -> StageResult {
        loop {
            self.update_step(health::cpu_celsius());
            tokio::select! {
                () = tokio::time::sleep(READ_INTERVAL) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    /// Sets the step after a reading. Without a sensor it stays 0.
    fn update_step(&self, celsius: Option<f32>) {
        let Some(celsius) = celsius else { return };
        let before = self.health.recognition.pace_step.get();
        let step = step_after(before, celsius, self.celsius_max);
        if step == before {
            return;
        }
        self.health.recognition.pace_step.set(step);
        let limit = self.celsius_max;
        match (before, step) {
            (0, _) => {
                tracing::warn!(celsius, limit, "the processor is hot; recognition is slowed down");
            }
            (_, 0) => tracing::info!(
                celsius,
                limit,
                "the processor has cooled; recognition runs at full speed again"
            ),
            _ => {}
        }
        self.changed.notify_one();
    }
}

/// Returns the next step: one slower above the limit, one faster clearly below it.
fn step_after(step: u64, celsius: f32, celsius_max: f32) -> u64 {
    if celsius > celsius_max {
        (step + 1).min(FRAME_PAUSES.len() as u64 - 1)
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
    fn slow_down_follows_temperature_in_steps() {
        let control =
            ThermalControl { celsius_max: 80.0, health: Arc::default(), changed: Arc::default() };
        let mut steps = Vec::new();
        for celsius in [70.0, 81.0, 82.0, 78.0, 85.0, 85.0, 76.0, 74.0, 74.0, 74.0, 74.0, f32::NAN]
        {
            control.update_step(Some(celsius));
            steps.push(control.health.recognition.pace_step.get());
        }
        assert_eq!(steps, [0, 1, 2, 2, 3, 3, 3, 2, 1, 0, 0, 0]);
        control.update_step(None);
        assert_eq!(control.health.recognition.pace_step.get(), 0);
        assert_eq!(frame_pause(99), Duration::from_millis(400));
    }
}

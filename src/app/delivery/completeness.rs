//! States at webhooks that use it up to when the record is complete there: a shift of Frappe marks
//! people absent up to that moment, so it moves by the watermark of that webhook alone.
//!
//! Not here: the watermark itself, which `watermark` reads every three seconds.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::app::context::Context;
use crate::app::state::counted::LatestCounts;
use crate::app::supervise::StageResult;
use crate::clock::{Clock, Stamp};
use crate::webhook::WebhookLink;

pub struct Completeness {
    webhooks: Vec<StatedWebhook>,
    counted: Arc<LatestCounts>,
    clock: Arc<dyn Clock>,
}

struct StatedWebhook {
    link: WebhookLink,
    stated_ms: Option<i64>,
    tried_at: Option<Stamp>,
    is_refusal_logged: bool,
}

const CHECK_INTERVAL: Duration = Duration::from_secs(3);
/// Frappe looks every hour.
const STATE_INTERVAL: Duration = Duration::from_mins(1);

impl Completeness {
    /// Returns `None` if no webhook uses it.
    pub fn new(ctx: &Context, links: Vec<WebhookLink>) -> Option<Self> {
        let webhooks: Vec<_> = links
            .into_iter()
            .filter(|link| link.settings().preset.states_completeness())
            .map(|link| StatedWebhook {
                link,
                stated_ms: None,
                tried_at: None,
                is_refusal_logged: false,
            })
            .collect();
        let counted = Arc::clone(&ctx.counted);
        let clock = Arc::clone(&ctx.clock);
        (!webhooks.is_empty()).then_some(Self { webhooks, counted, clock })
    }

    pub async fn run(mut self, mut stop: watch::Receiver<bool>) -> StageResult {
        loop {
            tokio::select! {
                () = self.state_all() => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
            tokio::select! {
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                _ = stop.wait_for(|it| *it) => return Ok(()),
            }
        }
    }

    async fn state_all(&mut self) {
        let Some(status) = self.counted.get().status else { return };
        let now = self.clock.now();
        for webhook in &mut self.webhooks {
            let sink = webhook.link.settings().sink();
            let Some(through_ms) = status.complete_through_ms(Some(sink)) else { continue };
            let has_moved = webhook.stated_ms.is_none_or(|it| through_ms > it);
            let is_due = webhook.tried_at.is_none_or(|it| now.since(&it) >= STATE_INTERVAL);
            if !has_moved || !is_due {
                continue;
            }
            webhook.tried_at = Some(now);
            match webhook.link.put_completeness(through_ms).await {
                Ok(true) => {
                    webhook.stated_ms = Some(through_ms);
                    webhook.is_refusal_logged = false;
                }
                Ok(false) => {}
                Err(reason) => {
                    if !std::mem::replace(&mut webhook.is_refusal_logged, true) {
                        tracing::error!(
                            webhook = webhook.link.settings().name,
                            reason,
                            "the receiver does not take up to when the record is complete: check [[webhook]] shifts"
                        );
                    }
                }
            }
        }
    }
}

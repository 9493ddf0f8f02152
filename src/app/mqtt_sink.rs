//! The MQTT sink: rows of the outbox become messages on their topics.

use std::sync::Arc;

use crate::clock::Clock;
use crate::health::Health;
use crate::mqtt::link::{Link, Message};
use crate::mqtt::topics::Topics;
use crate::record::event;
use crate::record::outbox::{Delivery, Sink};
use crate::record::store::{OutboxRow, SinkName};

pub struct MqttSink {
    pub link: Link,
    pub topics: Topics,
    pub site: String,
    pub device: String,
    pub clock: Arc<dyn Clock>,
    pub health: Arc<Health>,
}

impl MqttSink {
    /// Whether an event is history depends on the moment of sending, so the message is made now and not before.
    fn message(&self, row: &OutboxRow) -> Message {
        let (part, payload) = match (&row.event, &row.reply) {
            (Some(stored), _) => {
                let payload = event::wire(
                    stored,
                    &self.site,
                    &self.device,
                    &self.clock.now(),
                    &self.clock.boot_id(),
                );
                (event::topic_part(stored.body.kind()).to_owned(), payload)
            }
            (None, Some((topic, payload))) => (topic.clone(), payload.clone()),
            (None, None) => (String::new(), Vec::new()),
        };
        Message { topic: self.topics.below(&part), payload, retain: false }
    }
}

impl Sink for MqttSink {
    fn name(&self) -> SinkName {
        SinkName::MQTT
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        let messages = batch.iter().map(|row| self.message(row)).collect();
        let results = self.link.publish_batch(messages).await;
        let mut deliveries = Vec::with_capacity(results.len());
        for (row, result) in batch.iter().zip(results) {
            deliveries.push(match result {
                Ok(()) => {
                    self.health.events_published.add(u64::from(row.event.is_some()));
                    Delivery::Acknowledged
                }
                Err(why) if why.is_poison() => Delivery::Poison(why.to_string()),
                Err(why) => Delivery::Retry(why.to_string()),
            });
        }
        deliveries
    }
}

//! The MQTT sink: rows of the outbox become messages on their topics.

use std::sync::Arc;

use crate::app::context::Context;
use crate::clock::Clock;
use crate::health::Health;
use crate::ids::Origin;
use crate::mqtt::link::Link;
use crate::mqtt::message::{DescribedMessage, Message, MessageProperties, NotAcknowledged};
use crate::mqtt::topics::Topics;
use crate::store::relay::{Delivery, Sink};
use crate::store::{OutboxPayload, OutboxRow, SinkName};
use crate::wire::{event, reply};

pub struct MqttSink {
    pub link: Link,
    pub topics: Topics,
    pub origin: Origin,
    pub clock: Arc<dyn Clock>,
    pub health: Arc<Health>,
}

impl MqttSink {
    pub fn new(ctx: Context, link: Link) -> Self {
        let Context { topics, origin, clock, health, .. } = ctx;
        Self { link, topics, origin, clock, health }
    }

    /// Makes the message at the moment of sending, because that decides whether an event is
    /// historical.
    fn message(&self, row: &OutboxRow) -> DescribedMessage {
        let (part, payload) = match &row.payload {
            OutboxPayload::Event { event, .. } => {
                let now = self.clock.now();
                let payload = event::wire(event, &self.origin, &now, &self.clock.boot_id());
                (event::topic_part(event.body.kind()), payload)
            }
            OutboxPayload::Message { topic, bytes } => (topic.clone(), bytes.clone()),
        };
        let properties = self.properties(row, &part);
        let message = Message { topic: self.topics.below(&part), payload, retain: false };
        DescribedMessage { message, properties }
    }

    /// Returns what a subscriber with MQTT 5 can sort messages by without reading them.
    fn properties(&self, row: &OutboxRow, part: &str) -> MessageProperties {
        let mut user = vec![
            ("schema", event::SCHEMA.to_string()),
            ("site", self.origin.site.clone()),
            ("device", self.origin.device.clone()),
        ];
        if let Some(event) = row.event() {
            user.push(("kind", event.body.kind().as_str().to_owned()));
            user.push(("event_id", event.event_id.to_string()));
        }
        let request_id =
            part.strip_prefix("reply/").filter(|_| part != reply::UNREADABLE).map(str::to_owned);
        // A receipt is a JWS.
        let is_json = row.event().is_some() || part.starts_with("reply/");
        let content_type = is_json.then_some("application/json");
        MessageProperties { content_type, correlation_data: request_id, user }
    }
}

impl Sink for MqttSink {
    fn name(&self) -> SinkName {
        SinkName::MQTT
    }

    async fn deliver(&mut self, batch: &[OutboxRow]) -> Vec<Delivery> {
        let messages = batch.iter().map(|row| self.message(row)).collect();
        let results = self.link.deliver_batch(messages).await;
        let mut deliveries = Vec::with_capacity(results.len());
        for (row, result) in batch.iter().zip(results) {
            deliveries.push(match result {
                Ok(()) => {
                    self.health.events_published.add(u64::from(row.event().is_some()));
                    Delivery::Acknowledged
                }
                // A reply is stored, and its sender can ask for less of it.
                Err(error @ NotAcknowledged::TooLargeForBroker { .. }) if row.event().is_none() => {
                    Delivery::Poison(error.to_string())
                }
                Err(error) if error.is_poison() => Delivery::Poison(error.to_string()),
                Err(error) if error.needs_correction() => Delivery::Rejected(error.to_string()),
                Err(error) => Delivery::Retry(error.to_string()),
            });
        }
        deliveries
    }
}

//! An outgoing message, and why it does not count as delivered.

use std::fmt;

use crate::mqtt::refusal::PublishRefusal;

/// A message to be published at QoS 1.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub topic: String,
    pub payload: Vec<u8>,
    pub retain: bool,
}

impl fmt::Debug for Message {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Message({}, {} bytes, retain {})", self.topic, self.payload.len(), self.retain)
    }
}

/// What MQTT 5 carries beside the payload. 3.1.1 does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessageProperties {
    pub content_type: Option<&'static str>,
    /// Of a reply: the `request_id`.
    pub correlation_data: Option<String>,
    pub user: Vec<(&'static str, String)>,
}

impl MessageProperties {
    /// Bytes that they take in a packet, at most.
    fn bytes(&self) -> usize {
        let user: usize = self.user.iter().map(|(key, value)| 5 + key.len() + value.len()).sum();
        let content_type = self.content_type.map_or(0, |it| 3 + it.len());
        // The last: their length, of which one byte counts with every packet.
        user + content_type + self.correlation_data.as_ref().map_or(0, |it| 3 + it.len()) + 3
    }
}

/// A message with its properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedMessage {
    pub message: Message,
    pub properties: MessageProperties,
}

impl From<Message> for DescribedMessage {
    fn from(message: Message) -> Self {
        Self { message, properties: MessageProperties::default() }
    }
}

impl DescribedMessage {
    pub(super) fn packet_bytes(&self) -> usize {
        packet_bytes(&self.message.topic, &self.message.payload) + self.properties.bytes()
    }
}

/// Why a message does not count as delivered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAcknowledged {
    /// Retry when the link is up.
    #[error("the link is down")]
    Offline,
    /// Retry: it may or may not have reached the broker.
    #[error("the link was lost before the broker acknowledged")]
    Lost,
    /// The broker received it and does not pass it on. `refusal` states what may help.
    #[error("the broker refuses our messages: {0}")]
    Refused(PublishRefusal),
    /// Retry, once the broker's limit is raised.
    #[error("it has {bytes} bytes as a packet; the broker takes at most {bytes_max}")]
    TooLargeForBroker { bytes: usize, bytes_max: usize },
    /// Dead-letter: it will never fit.
    #[error("it has {bytes} bytes as a packet; at most {bytes_max} are sent")]
    TooLarge { bytes: usize, bytes_max: usize },
    /// Dead-letter: no broker would accept it.
    #[error("its topic is empty, too long or has a wildcard")]
    BadTopic,
}

impl NotAcknowledged {
    /// Returns whether sending the same message again can never help.
    pub fn is_poison(&self) -> bool {
        matches!(
            self,
            Self::TooLarge { .. } | Self::BadTopic | Self::Refused(PublishRefusal::Payload)
        )
    }

    /// Returns whether sending again helps only after somebody has corrected something.
    pub fn needs_correction(&self) -> bool {
        match self {
            Self::Refused(refusal) => refusal.needs_correction(),
            Self::TooLargeForBroker { .. } => true,
            _ => false,
        }
    }
}

/// Bytes that a QoS 1 publish takes on the wire, at most.
pub(super) fn packet_bytes(topic: &str, payload: &[u8]) -> usize {
    // Packet type, four bytes of length, two of topic length, two of packet id, one of properties.
    1 + 4 + 2 + topic.len() + 2 + 1 + payload.len()
}

//! The daemon as an MQTT client: the link to a broker, and the names of the topics.
//!
//! - `link` is what the rest of the daemon uses: it publishes and waits for the acknowledgement,
//!   receives and acknowledges after the commit. Behind it are `driver` (the one loop that polls),
//!   `recovery` (what it remembers from one connection to the next), `client` (rumqttc's two
//!   clients, of MQTT 5 and 3.1.1, as one), `in_flight` (what is in flight), `echo` (the probe of
//!   3.1.1), `refusal` (why a publish is refused), `drain` (removes a message that is too large for
//!   us), `fault` (why a connection failed) and `tls`. Together they are the sole owner of rumqttc.
//! - `topics` is the only place that composes or parses a topic.
//! - `discovery` makes the message that announces a device to Home Assistant.
//!
//! Not here: what a payload means. `wire` makes and reads payloads; both meet in `app`. Nor the
//! embedded broker, which is `broker`.

pub mod client;
pub mod discovery;
mod drain;
pub mod driver;
mod echo;
pub mod event;
pub mod fault;
pub mod in_flight;
pub mod link;
pub mod message;
mod recovery;
pub mod refusal;
pub mod settings;
pub mod tls;
pub mod topics;

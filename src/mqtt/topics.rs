//! The names of the topics (docs/wire.md, section 1): the only place that composes or parses one.
//!
//! Invariant: every part of a topic has passed `check_id`, so no name, wildcard or slash can be in
//! it.

use crate::ids::{IdError, SubjectId, check_id};

/// Published by a device when its link is up, and by the broker for it when it is gone.
pub const ONLINE: &str = "online";
pub const OFFLINE: &str = "offline";

/// Addresses every device of a site in a command topic, so no device has this name.
const ALL: &str = "all";
/// The shared gallery of a site, in the place of a device's name, and its parts.
const GALLERY: &str = "gallery";
const GALLERY_INDEX: &str = "gallery-index";

/// Levels below which each topic has an id.
const WITH_ID: [&str; 6] = ["reply", "receipt", GALLERY, GALLERY_INDEX, "command", "console"];

/// Names that no device may have.
pub const RESERVED: [&str; 3] = [ALL, GALLERY, GALLERY_INDEX];

/// The topics of one device of one site.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topics {
    site: Box<str>,
    device: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    #[error("the {part} cannot stand in a topic")]
    Part {
        part: &'static str,
        #[source]
        source: IdError,
    },
    #[error(
        "a device may not be called \"all\", \"gallery\" or \"gallery-index\": in topics these stand for the whole site"
    )]
    Reserved,
}

/// A parsed topic of the shared gallery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GalleryTopic {
    Subject(SubjectId),
    /// A page of the index.
    Page(u8),
}

/// The addressee of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addressee {
    Device,
    Site,
}

/// A parsed command topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommandTopic<'a> {
    pub addressee: Addressee,
    pub verb: &'a str,
}

impl Topics {
    pub fn new(site: &str, device: &str) -> Result<Self, TopicError> {
        part("site", site)?;
        part("device", device)?;
        if RESERVED.contains(&device) {
            return Err(TopicError::Reserved);
        }
        Ok(Self { site: site.into(), device: device.into() })
    }

    pub fn base(&self) -> String {
        format!("rollcall/{}/{}", self.site, self.device)
    }

    /// Returns a topic of this device by its part below the base.
    pub fn below(&self, part: &str) -> String {
        format!("{}/{part}", self.base())
    }

    /// Returns the topic of the status: retained, and the last will.
    pub fn status(&self) -> String {
        self.below("status")
    }

    /// Retained.
    pub fn health(&self) -> String {
        self.below("health")
    }

    /// Never retained.
    pub fn event(&self, kind: &str) -> Result<String, TopicError> {
        part("kind of event", kind)?;
        Ok(self.below(&format!("event/{kind}")))
    }

    /// Retained.
    pub fn watermark(&self) -> String {
        self.below("watermark")
    }

    /// Never retained.
    pub fn reply(&self, request_id: &str) -> Result<String, TopicError> {
        part("request_id", request_id)?;
        Ok(self.below(&format!("reply/{request_id}")))
    }

    /// Returns the topic on which a device publishes to itself, to learn whether the broker passes
    /// on what it publishes. It has as many levels as the topics of events, replies and receipts.
    pub fn probe(&self) -> String {
        self.below("probe/echo")
    }

    /// Returns the topic of Home Assistant's device-based discovery. Retained. It contains the site,
    /// because two sites may share a broker, and both have a `door-1`.
    pub fn discovery(&self, prefix: &str) -> Result<String, TopicError> {
        check_prefix(prefix)?;
        Ok(format!(
            "{prefix}/device/rollcall-{}/{}/config",
            without_dots(&self.site),
            without_dots(&self.device)
        ))
    }

    /// One subject of the site's gallery. Retained.
    pub fn gallery(&self, id: &SubjectId) -> String {
        format!("rollcall/{}/{GALLERY}/{id}", self.site)
    }

    /// Returns the topic of an index page. Retained.
    pub fn gallery_page(&self, page: u8) -> String {
        format!("rollcall/{}/{GALLERY_INDEX}/{page:02x}", self.site)
    }

    /// Returns the status topic of the device's gallery connection.
    pub fn gallery_status(&self) -> String {
        self.below("gallery")
    }

    pub fn all_gallery(&self) -> String {
        format!("rollcall/{}/{GALLERY}/+", self.site)
    }

    pub fn all_gallery_pages(&self) -> String {
        format!("rollcall/{}/{GALLERY_INDEX}/+", self.site)
    }

    /// Parses an inbound topic of the gallery.
    pub fn gallery_part(&self, topic: &str) -> Option<GalleryTopic> {
        let rest = topic.strip_prefix("rollcall/")?.strip_prefix(&*self.site)?.strip_prefix('/')?;
        match rest.split_once('/')? {
            (GALLERY, id) => SubjectId::new(id).ok().map(GalleryTopic::Subject),
            (GALLERY_INDEX, page) if page.len() == 2 => {
                u8::from_str_radix(page, 16).ok().map(GalleryTopic::Page)
            }
            _ => None,
        }
    }

    /// Returns the subscriptions: commands to this device and to every device of its site.
    pub fn command_subscriptions(&self) -> Vec<String> {
        vec![self.below("command/+"), format!("rollcall/{}/{ALL}/command/+", self.site)]
    }

    /// Returns the audiences of signed commands: this device, and every device of its site.
    pub fn audiences(&self) -> [String; 2] {
        [format!("{}/{}", self.site, self.device), format!("{}/{ALL}", self.site)]
    }

    /// Parses an inbound topic; `None` if it is no command to this device.
    pub fn command<'a>(&self, topic: &'a str) -> Option<CommandTopic<'a>> {
        let rest = topic.strip_prefix("rollcall/")?.strip_prefix(&*self.site)?.strip_prefix('/')?;
        let (addressee, rest) = rest.split_once("/command/")?;
        let addressee = match addressee {
            ALL => Addressee::Site,
            device if device == &*self.device => Addressee::Device,
            _ => return None,
        };
        check_id(rest).ok()?;
        Some(CommandTopic { addressee, verb: rest })
    }
}

/// Returns the topic of Home Assistant's birth message.
pub fn home_assistant_status(prefix: &str) -> Result<String, TopicError> {
    check_prefix(prefix)?;
    Ok(format!("{prefix}/status"))
}

/// Returns the topic as an access rule has it: an id of a subject or request, which may be one of
/// very many, is `+`.
pub(super) fn rule_of(topic: &str) -> String {
    match topic.rsplit_once('/') {
        Some((parent, _)) if WITH_ID.contains(&parent.rsplit('/').next().unwrap_or_default()) => {
            format!("{parent}/+")
        }
        _ => topic.to_owned(),
    }
}

/// Returns whether a topic is one of a device: not Home Assistant's, which is a convenience.
pub(super) fn is_own(topic: &str) -> bool {
    topic.starts_with("rollcall/")
}

fn check_prefix(prefix: &str) -> Result<(), TopicError> {
    prefix.split('/').try_for_each(|level| part("discovery prefix", level))
}

/// Home Assistant accepts `[A-Za-z0-9_-]` here, and no dot. Different ids stay different.
fn without_dots(id: &str) -> String {
    id.replace('_', "__").replace('.', "_-")
}

fn part(part: &'static str, id: &str) -> Result<(), TopicError> {
    check_id(id).map_err(|source| TopicError::Part { part, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics() -> Topics {
        Topics::new("hq", "door-1").unwrap()
    }

    #[test]
    fn topics_match_the_contract() {
        let topics = topics();
        assert_eq!(topics.base(), "rollcall/hq/door-1");
        assert_eq!(topics.status(), "rollcall/hq/door-1/status");
        assert_eq!(topics.health(), "rollcall/hq/door-1/health");
        assert_eq!(topics.event("attendance").unwrap(), "rollcall/hq/door-1/event/attendance");
        assert_eq!(topics.watermark(), "rollcall/hq/door-1/watermark");
        assert_eq!(topics.reply("r-1").unwrap(), "rollcall/hq/door-1/reply/r-1");
        assert_eq!(topics.probe(), "rollcall/hq/door-1/probe/echo");
        assert_eq!(
            topics.discovery("homeassistant").unwrap(),
            "homeassistant/device/rollcall-hq/door-1/config"
        );
        assert_eq!(home_assistant_status("homeassistant").unwrap(), "homeassistant/status");
        assert_eq!(
            topics.command_subscriptions(),
            ["rollcall/hq/door-1/command/+", "rollcall/hq/all/command/+"]
        );
    }

    #[test]
    fn invalid_topic_levels_are_rejected() {
        for bad in ["", "a/b", "+", "#", "Jane Doe", "ä"] {
            assert!(Topics::new(bad, "door-1").is_err(), "{bad:?}");
            assert!(Topics::new("hq", bad).is_err(), "{bad:?}");
            assert!(topics().event(bad).is_err(), "{bad:?}");
            assert!(topics().reply(bad).is_err(), "{bad:?}");
        }
        assert!(topics().discovery("a/b").is_ok());
        assert!(topics().discovery("a/#").is_err());
        assert!(home_assistant_status("a/#").is_err());
        for reserved in RESERVED {
            assert_eq!(Topics::new("hq", reserved), Err(TopicError::Reserved));
        }
    }

    #[test]
    fn gallery_topic_is_parsed() {
        let topics = topics();
        let jane = SubjectId::new("jane").unwrap();
        assert_eq!(topics.gallery(&jane), "rollcall/hq/gallery/jane");
        assert_eq!(topics.gallery_page(10), "rollcall/hq/gallery-index/0a");
        for (topic, expected) in [
            ("rollcall/hq/gallery/jane", Some(GalleryTopic::Subject(jane))),
            ("rollcall/hq/gallery-index/0a", Some(GalleryTopic::Page(10))),
            ("rollcall/hq/gallery-index/0aa", None),
            ("rollcall/hq/gallery-index/zz", None),
            ("rollcall/hq/gallery/a/b", None),
            ("rollcall/hq/gallery/", None),
            ("rollcall/hq2/gallery/jane", None),
            ("rollcall/hq/door-1/health", None),
        ] {
            assert_eq!(topics.gallery_part(topic), expected, "{topic}");
        }
    }

    #[test]
    fn no_two_devices_share_a_discovery_topic() {
        let ids = ["a", "a.b", "a_b", "a__b", "a_-b", "a_.b", "a._b", "a-b", "a-.b"];
        let mut seen = std::collections::BTreeSet::new();
        for (site, device) in
            ids.iter().flat_map(|site| ids.iter().map(move |device| (site, device)))
        {
            let topic = Topics::new(site, device).unwrap().discovery("homeassistant").unwrap();
            let level = |it: char| it.is_ascii_alphanumeric() || "_-/".contains(it);
            assert!(topic.chars().all(level) && topic.matches('/').count() == 4, "{topic}");
            assert!(seen.insert(topic), "{site} {device}");
        }
    }

    #[test]
    fn command_topic_is_parsed() {
        let of = |addressee, verb| Some(CommandTopic { addressee, verb });
        for (topic, expected) in [
            ("rollcall/hq/door-1/command/enrol", of(Addressee::Device, "enrol")),
            ("rollcall/hq/all/command/sync", of(Addressee::Site, "sync")),
            ("rollcall/hq/door-2/command/enrol", None),
            ("rollcall/hq2/door-1/command/enrol", None),
            ("rollcall/h/door-1/command/enrol", None),
            ("rollcall/hq/door-1/command/", None),
            ("rollcall/hq/door-1/command/a/b", None),
            ("rollcall/hq/door-1/event/attendance", None),
            ("other/hq/door-1/command/enrol", None),
        ] {
            assert_eq!(topics().command(topic), expected, "{topic}");
        }
    }
}

//! The venues that this device records for: those of the configuration, and those put by command. Whoever records takes
//! a snapshot; a change is in force with the next one.

use std::sync::{Arc, Mutex, PoisonError};

use crate::attend::venue::{DirectionMode, Door, VENUES_MAX, Venue, VenueError, VenueSpec};
use crate::clock;
use crate::record::command::answer::VenueSource;
use crate::record::store::StoredVenue;

pub struct VenueBook {
    configured: Vec<Venue>,
    door: Door,
    /// As they are in force.
    current: Mutex<Arc<Vec<Listed>>>,
}

/// A venue, and who said so.
#[derive(Clone, Debug, PartialEq)]
pub struct Listed {
    /// As this device has it: a door may fix the direction.
    pub venue: Venue,
    /// As the venue itself has it, at all of its doors.
    pub direction: DirectionMode,
    pub source: VenueSource,
}

/// Why a venue cannot be changed by command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VenueRefusal {
    #[error("stands in this device's config.toml, where it is to be changed")]
    Configured,
    #[error("this device does not know the venue")]
    Unknown,
    #[error("there are {VENUES_MAX} venues already")]
    TooMany,
}

impl VenueBook {
    /// A stored venue that cannot be used (any more) is left out, and said.
    pub fn new(configured: Vec<Venue>, door: Door, stored: &[StoredVenue]) -> Self {
        let book = Self { configured, door, current: Mutex::default() };
        book.restore(stored);
        book
    }

    /// Takes the stored venues as they are now.
    pub fn restore(&self, stored: &[StoredVenue]) {
        let mut listed: Vec<Listed> = Vec::new();
        let listing = |venue: &Venue, source| Listed {
            venue: self.at_the_door(venue.clone()),
            direction: venue.direction,
            source,
        };
        listed.extend(self.configured.iter().map(|venue| listing(venue, VenueSource::Config)));
        for StoredVenue { id, body, .. } in stored {
            match read(body) {
                Ok(venue) if self.is_configured(id) => {
                    tracing::warn!(
                        venue = venue.id,
                        "a venue put by command stands in config.toml too, which counts"
                    );
                }
                Ok(venue) => listed.push(listing(&venue, VenueSource::Command)),
                Err(error) => {
                    tracing::error!(venue = id, %error, "a venue put by command cannot be used: put it again");
                }
            }
        }
        if listed.iter().all(|it| it.venue.id != self.door.venue) {
            listed.push(listing(&Venue::plain(&self.door.venue), VenueSource::Default));
        }
        listed.sort_by(|a, b| a.venue.id.cmp(&b.venue.id));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(listed);
    }

    pub fn all(&self) -> Arc<Vec<Listed>> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn find(&self, id: &str) -> Option<Venue> {
        self.all().iter().find(|it| it.venue.id == id).map(|it| it.venue.clone())
    }

    /// The venue at which this device's camera records.
    pub fn door(&self) -> Venue {
        self.find(&self.door.venue)
            .unwrap_or_else(|| self.at_the_door(Venue::plain(&self.door.venue)))
    }

    /// See [`Door::watches`].
    pub fn is_watched(&self, id: &str) -> bool {
        self.door.watches(id)
    }

    pub fn door_id(&self) -> &str {
        &self.door.venue
    }

    /// Whether a venue stands in the configuration, which no command changes.
    pub fn is_configured(&self, id: &str) -> bool {
        self.configured.iter().any(|it| it.id == id)
    }

    fn at_the_door(&self, venue: Venue) -> Venue {
        match self.door.direction {
            Some(direction) if venue.id == self.door.venue => Venue { direction, ..venue },
            _ => venue,
        }
    }
}

/// A venue as it was stored or sent, with its time zone looked up.
pub fn resolve(spec: &VenueSpec) -> Result<Venue, VenueError> {
    VenueSpec::check_zone_name(&spec.time_zone)?;
    let zone = clock::time_zone(&spec.time_zone);
    let zone =
        zone.ok_or_else(|| VenueError::new("time_zone", "is not in the time zone database"))?;
    Venue::new(spec, zone)
}

fn read(body: &str) -> Result<Venue, VenueError> {
    let spec: VenueSpec =
        serde_json::from_str(body).map_err(|error| VenueError::new("venue", error.to_string()))?;
    resolve(&spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(id: &str, zone: &str) -> StoredVenue {
        let spec = VenueSpec { time_zone: zone.into(), ..VenueSpec::plain(id) };
        StoredVenue { id: id.into(), body: serde_json::to_string(&spec).unwrap(), changed_ms: 0 }
    }

    fn book(stored: &[StoredVenue]) -> VenueBook {
        let door =
            Door { venue: "main".into(), direction: Some(DirectionMode::Out), has_camera: true };
        VenueBook::new(vec![Venue::plain("configured")], door, stored)
    }

    fn listed(book: &VenueBook) -> Vec<(String, VenueSource)> {
        book.all().iter().map(|it| (it.venue.id.clone(), it.source)).collect()
    }

    #[test]
    fn the_configuration_counts_and_the_door_has_a_venue() {
        let bad = StoredVenue { body: "{}".into(), ..stored("bad", "UTC") };
        let it =
            book(&[stored("configured", "Europe/Berlin"), stored("room", "Europe/Berlin"), bad]);
        let expected = [
            ("configured", VenueSource::Config),
            ("main", VenueSource::Default),
            ("room", VenueSource::Command),
        ];
        assert_eq!(listed(&it), expected.map(|(id, source)| (id.to_owned(), source)));
        assert_eq!(it.find("configured").unwrap().zone_name(), "UTC");
        assert_eq!(it.find("room").unwrap().zone_name(), "Europe/Berlin");
        assert_eq!(it.door().direction, DirectionMode::Out, "as the door has it");
        assert_eq!(it.find("room").unwrap().direction, DirectionMode::In);
        it.restore(&[stored("main", "Asia/Tokyo")]);
        assert_eq!(
            (it.door().zone_name(), it.door().direction),
            ("Asia/Tokyo", DirectionMode::Out)
        );
        assert!(it.is_configured("configured") && !it.is_configured("main"));
    }

    #[test]
    fn a_zone_must_exist() {
        let spec = |zone: &str| VenueSpec { time_zone: zone.into(), ..VenueSpec::plain("x") };
        assert_eq!(resolve(&spec("Europe/Atlantis")).unwrap_err().field, "time_zone");
        assert_eq!(resolve(&spec("../../etc/passwd")).unwrap_err().field, "time_zone");
        assert_eq!(
            resolve(&spec("Australia/Lord_Howe")).unwrap().zone_name(),
            "Australia/Lord_Howe"
        );
    }
}

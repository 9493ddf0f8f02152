//! The venues that this device records for: those of the configuration, and those put by command.
//! Readers take a snapshot; a change is in force from the next snapshot on.

use std::sync::{Arc, Mutex, PoisonError};

use crate::attend::venue::{
    DirectionMode, Door, VENUES_BYTES_MAX, VENUES_MAX, Venue, VenueError, VenueSpec,
};
use crate::clock;
use crate::store::StoredVenue;
use crate::wire::reply::VenueSource;

pub struct VenueRegistry {
    configured: Vec<Venue>,
    door: Door,
    /// The venues in force.
    current: Mutex<Arc<Vec<KnownVenue>>>,
}

/// A venue in force, with its source.
#[derive(Clone, Debug, PartialEq)]
pub struct KnownVenue {
    /// With the direction of this device, where the configuration fixes it.
    pub venue: Venue,
    /// The venue's own direction, which is the same at all of its devices.
    pub direction: DirectionMode,
    pub source: VenueSource,
}

/// The reason why a venue cannot be changed by command.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum VenueChangeError {
    #[error("is defined in this device's config.toml: change it there")]
    Configured,
    #[error("this device does not know the venue")]
    Unknown,
    #[error("there are {VENUES_MAX} venues, or {} MiB of them, already: delete some", VENUES_BYTES_MAX >> 20)]
    TooMany,
}

impl VenueRegistry {
    /// A stored venue that cannot be used is left out and logged.
    pub fn new(configured: Vec<Venue>, door: Door, stored: &[StoredVenue]) -> Self {
        let book = Self { configured, door, current: Mutex::default() };
        book.restore(stored);
        book
    }

    /// Replaces the venues put by command by those that are stored now.
    pub fn restore(&self, stored: &[StoredVenue]) {
        let mut entries: Vec<KnownVenue> = Vec::new();
        let entry_of = |venue: &Venue, source| KnownVenue {
            venue: self.with_fixed_direction(venue.clone()),
            direction: venue.direction,
            source,
        };
        entries.extend(self.configured.iter().map(|venue| entry_of(venue, VenueSource::Config)));
        for StoredVenue { id, body, .. } in stored {
            match parse_venue(body) {
                Ok(venue) if self.is_configured(id) => {
                    tracing::warn!(
                        venue = venue.id,
                        "a venue put by command is ignored: config.toml defines it too"
                    );
                }
                Ok(venue) => entries.push(entry_of(&venue, VenueSource::Command)),
                Err(error) => {
                    tracing::error!(venue = id, %error, "a stored venue cannot be used and is ignored: put it again");
                }
            }
        }
        if entries.iter().all(|it| it.venue.id != self.door.venue) {
            entries.push(entry_of(&Venue::plain(&self.door.venue), VenueSource::Default));
        }
        entries.sort_by(|a, b| a.venue.id.cmp(&b.venue.id));
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(entries);
    }

    pub fn all(&self) -> Arc<Vec<KnownVenue>> {
        Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub fn find(&self, id: &str) -> Option<Venue> {
        self.all().iter().find(|it| it.venue.id == id).map(|it| it.venue.clone())
    }

    /// Returns the venue that this device's camera records for.
    pub fn door(&self) -> Venue {
        self.find(&self.door.venue)
            .unwrap_or_else(|| self.with_fixed_direction(Venue::plain(&self.door.venue)))
    }

    /// See [`Door::watches`].
    pub fn is_watched(&self, id: &str) -> bool {
        self.door.watches(id)
    }

    pub fn door_id(&self) -> &str {
        &self.door.venue
    }

    /// Returns whether the configuration defines the venue. No command changes such a venue.
    pub fn is_configured(&self, id: &str) -> bool {
        self.configured.iter().any(|it| it.id == id)
    }

    fn with_fixed_direction(&self, venue: Venue) -> Venue {
        match self.door.direction {
            Some(direction) if venue.id == self.door.venue => Venue { direction, ..venue },
            _ => venue,
        }
    }
}

/// Makes a venue from its stored or received form, with its time zone looked up.
pub fn resolve(spec: &VenueSpec) -> Result<Venue, VenueError> {
    VenueSpec::check_zone_name(&spec.time_zone)?;
    let zone = clock::time_zone(&spec.time_zone);
    let zone =
        zone.ok_or_else(|| VenueError::new("time_zone", "is not in the time zone database"))?;
    Venue::new(spec, zone)
}

fn parse_venue(body: &str) -> Result<Venue, VenueError> {
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

    fn book(stored: &[StoredVenue]) -> VenueRegistry {
        let door =
            Door { venue: "main".into(), direction: Some(DirectionMode::Out), has_camera: true };
        VenueRegistry::new(vec![Venue::plain("configured")], door, stored)
    }

    fn listed(book: &VenueRegistry) -> Vec<(String, VenueSource)> {
        book.all().iter().map(|it| (it.venue.id.clone(), it.source)).collect()
    }

    #[test]
    fn configured_venue_overrides_stored_one() {
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
    fn unknown_time_zone_is_rejected() {
        let spec = |zone: &str| VenueSpec { time_zone: zone.into(), ..VenueSpec::plain("x") };
        assert_eq!(resolve(&spec("Europe/Atlantis")).unwrap_err().field, "time_zone");
        assert_eq!(resolve(&spec("../../etc/passwd")).unwrap_err().field, "time_zone");
        assert_eq!(
            resolve(&spec("Australia/Lord_Howe")).unwrap().zone_name(),
            "Australia/Lord_Howe"
        );
    }
}

//! Compares the local version of a subject with what the transport shows. Only computes.
//!
//! Invariant: only content that opened with the site key counts as a record. Anybody who may write
//! to the broker or the collection can put other content there.

use crate::store::VersionRecord;

/// What the transport shows for a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// A record that opened with the site key.
    Sealed(VersionRecord),
    /// Listed in a sealed index page; the record itself was not received.
    Listed(VersionRecord),
    /// The version that a document claims; it was not opened.
    Claimed(VersionRecord),
    Absent,
    /// It did not open: another key, altered, copied from another subject, or never a record.
    Unsealed,
    /// It opened, but this version cannot read it: another device of the site may be newer.
    Unreadable,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    InSync,
    /// The site has a newer version.
    Receive,
    /// The site lacks the subject or has an older version.
    Publish,
    /// Content that is not sealed stands in the place of the record.
    Repair,
    /// Nothing that this device could do better.
    Hold,
}

impl Action {
    /// Whether the local version is still to be brought to the site.
    pub fn is_pending(self) -> bool {
        matches!(self, Self::Publish | Self::Repair)
    }
}

impl Observed {
    pub fn version(&self) -> Option<&VersionRecord> {
        match self {
            Self::Sealed(version) | Self::Listed(version) | Self::Claimed(version) => Some(version),
            Self::Absent | Self::Unsealed | Self::Unreadable => None,
        }
    }

    /// Whether a sealed record at least as new as this version was received.
    pub fn confirms(&self, local: &VersionRecord) -> bool {
        matches!(self, Self::Sealed(remote) if !local.is_newer_than(remote))
    }
}

/// Decides what to do about a subject; `local` is `None` if it is unknown here.
pub fn compare(local: Option<&VersionRecord>, observed: &Observed) -> Action {
    match (observed, observed.version(), local) {
        (Observed::Unsealed, _, Some(_)) => Action::Repair,
        (Observed::Unsealed | Observed::Unreadable, ..) => Action::Hold,
        (_, Some(_), None) => Action::Receive,
        (_, Some(remote), Some(local)) if remote.is_newer_than(local) => Action::Receive,
        (_, Some(remote), Some(local)) if !local.is_newer_than(remote) => Action::InSync,
        (_, _, Some(_)) => Action::Publish,
        (_, None, None) => Action::InSync,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::subject::Version;

    fn version(changes: u32) -> VersionRecord {
        let version = Version { withdrawals: 0, changes, device: "door-1".into() };
        VersionRecord { version, withdrawn: false, erased: false }
    }

    #[test]
    fn each_observation_has_one_action() {
        use Action::{Hold, InSync, Publish, Receive, Repair};
        // observed, with local version 3, without a local version
        for (observed, known, unknown) in [
            (Observed::Sealed(version(2)), Publish, Receive),
            (Observed::Sealed(version(3)), InSync, Receive),
            (Observed::Listed(version(3)), InSync, Receive),
            (Observed::Claimed(version(4)), Receive, Receive),
            (Observed::Absent, Publish, InSync),
            (Observed::Unsealed, Repair, Hold),
            (Observed::Unreadable, Hold, Hold),
        ] {
            assert_eq!(compare(Some(&version(3)), &observed), known, "{observed:?}");
            assert_eq!(compare(None, &observed), unknown, "{observed:?}");
        }
        assert!(Observed::Sealed(version(3)).confirms(&version(3)));
        assert!(!Observed::Sealed(version(2)).confirms(&version(3)));
        assert!(!Observed::Listed(version(3)).confirms(&version(3)));
        assert!(!Observed::Claimed(version(3)).confirms(&version(3)));
    }
}

//! One subject of the gallery.

use crate::ids::{Name, SubjectId};

/// A subject that a search can return.
#[derive(Clone, Debug)]
pub struct Subject {
    pub id: SubjectId,
    pub name: Name,
}

//! The section `[fleet]`.

use std::path::Path;
use std::sync::Arc;

use crate::config::checks::{ConfigError, find_credential, invalid, resolve_path};
use crate::config::raw::{RawConfig, RawShare};
use crate::keys::seal::SharedKey;

#[derive(Clone, Debug)]
pub struct FleetSettings {
    /// The site key, the same on every device.
    pub key: Arc<SharedKey>,
    pub transport: GalleryTransport,
}

/// How the site's devices exchange the gallery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GalleryTransport {
    Mqtt,
    Mongo,
}

/// Name of the systemd credential with the site key.
const SITE_KEY_CREDENTIAL: &str = "rollcall-site.key";

/// Without a key nothing is shared.
pub(super) fn check_fleet(
    raw: &RawConfig,
    has_mqtt: bool,
    has_mongo: bool,
    folder: &Path,
    warnings: &mut Vec<String>,
) -> Result<Option<FleetSettings>, ConfigError> {
    let transport = match raw.fleet.share {
        RawShare::Off => return Ok(None),
        RawShare::Mqtt => GalleryTransport::Mqtt,
        RawShare::Mongo if !cfg!(feature = "mongo") => {
            let why =
                "= \"mongo\", but this program was built without MongoDB (cargo feature `mongo`)";
            return Err(invalid("[fleet] share", why));
        }
        RawShare::Mongo if !has_mongo => {
            return Err(invalid(
                "[fleet] share",
                "= \"mongo\", but no MongoDB is configured ([mongo] uri or uri_file)",
            ));
        }
        RawShare::Mongo => GalleryTransport::Mongo,
    };
    let file = resolve_path(folder, &raw.fleet.key_file).map(|it| (it, false));
    let found = file.or_else(|| find_credential(SITE_KEY_CREDENTIAL).map(|it| (it, true)));
    let Some((file, is_credential)) = found else {
        if transport == GalleryTransport::Mongo {
            warnings.push(
                "[fleet] share = \"mongo\", but nothing is shared without a key ([fleet] key_file)"
                    .into(),
            );
        }
        return Ok(None);
    };
    let key = SharedKey::load(&file, is_credential)
        .map_err(|error| invalid("[fleet] key_file", format!("{error}")))?;
    if transport == GalleryTransport::Mqtt && !has_mqtt {
        warnings.push(
            "[fleet] there is a key, but no broker to share the gallery through ([mqtt] host)"
                .into(),
        );
        return Ok(None);
    }
    Ok(Some(FleetSettings { key: Arc::new(key), transport }))
}

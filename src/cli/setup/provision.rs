//! A provisioning file: some keys of config.toml, written by whoever prepares the card, taken over by `rollcall setup --from`.
//!
//! It is hostile until checked: the boot partition has no owners, and anybody may have written there. It may say what a
//! site says of a door, and not where the program keeps and finds its own things; files it names are taken from beside it
//! only, so that nobody has root copy another's secrets.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use toml_edit::{DocumentMut, Item};

use crate::cli::setup::draft::{ALL_KEPT, Draft, Kept, URI};
use crate::config::raw::RawConfig;

const BYTES_MAX: u64 = 64 << 10;

/// The package's business.
const NOT_HERE: [(&str, &str); 3] =
    [("storage", "directory"), ("recognition", "models"), ("recognition", "runtime_library")];

/// Puts what the file says into the draft. Gives the files that hold secrets and should be deleted now.
pub fn apply(draft: &mut Draft, path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let text = read(path)?;
    let what = || format!("{} cannot be used", path.display());
    // Names and types, by the words of the configuration; never the line itself, which may hold a password.
    if let Err(error) = toml::from_str::<RawConfig>(&text) {
        let line = error
            .span()
            .map_or(1, |span| text[..span.start.min(text.len())].lines().count().max(1));
        bail!("{}, line {line}: {}", what(), error.message());
    }
    let document: DocumentMut =
        text.parse().map_err(|_| anyhow::anyhow!("{}: it is no TOML", what()))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut secrets = BTreeSet::new();
    for (section, item) in document.iter() {
        if let Some(venues) = item.as_array_of_tables() {
            venues.iter().for_each(|venue| draft.put_venue(venue, true));
            draft.answer("venue", "time_zone");
            continue;
        }
        let Some(table) = item.as_table_like() else {
            bail!("{}: write [[venue]] for each venue", what());
        };
        for (key, value) in table.iter() {
            ensure!(
                !NOT_HERE.contains(&(section, key)),
                "{}: [{section}] {key} is the package's own",
                what()
            );
            draft.answer(section, key);
            if let Some(kept) =
                ALL_KEPT.into_iter().find(|it| (it.section, it.key) == (section, key))
            {
                let named = value.as_str().unwrap_or_default();
                let file = take_file(draft, kept, folder, named).with_context(what)?;
                secrets.extend(file.filter(|_| kept.secret));
            } else if let Some(kept) = in_clear(section, key, value) {
                draft.keep(kept, value.as_str().unwrap_or_default().into())?;
                secrets.insert(path.to_owned());
            } else if let Item::Value(value) = value {
                // One without a password takes the place of a file with one.
                if let Some(kept) =
                    ALL_KEPT.into_iter().find(|it| it.section == section && it.clear == Some(key))
                {
                    draft.drop_kept(kept);
                }
                let mut value = value.clone();
                value.decor_mut().clear();
                draft.set(section, key, value);
            }
        }
    }
    Ok(secrets.into_iter().collect())
}

/// A secret that stands in the file itself.
fn in_clear(section: &str, key: &str, value: &Item) -> Option<&'static Kept> {
    let kept = ALL_KEPT.into_iter().find(|it| it.section == section && it.clear == Some(key))?;
    let text = value.as_str().filter(|text| !text.is_empty())?;
    (kept != &URI || text.contains('@')).then_some(kept)
}

/// The file that was taken, to be deleted if it is a secret.
fn take_file(
    draft: &mut Draft,
    kept: &'static Kept,
    folder: &Path,
    named: &str,
) -> anyhow::Result<Option<PathBuf>> {
    if named.is_empty() {
        draft.drop_kept(kept);
        return Ok(None);
    }
    if named.starts_with('/') {
        // Read by the daemon, with the daemon's rights.
        draft.drop_kept(kept);
        draft.set(kept.section, kept.key, named);
        return Ok(None);
    }
    let plain = !named.contains('/') && named != ".." && named != ".";
    ensure!(
        plain,
        "[{}] {} = {named:?} must lie beside the file, or be an absolute path",
        kept.section,
        kept.key
    );
    let path = folder.join(named);
    ensure!(!path.is_symlink(), "{} is a link", path.display());
    draft.keep_file(kept, &path)?;
    Ok(Some(path))
}

fn read(path: &Path) -> anyhow::Result<String> {
    let what = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(what)?;
    ensure!(file.metadata().with_context(what)?.is_file(), "{} is no file", path.display());
    let mut text = String::new();
    file.take(BYTES_MAX + 1).read_to_string(&mut text).with_context(what)?;
    ensure!(
        text.len() as u64 <= BYTES_MAX,
        "{} is larger than {} KiB",
        path.display(),
        BYTES_MAX >> 10
    );
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn with(text: &str) -> (tempfile::TempDir, anyhow::Result<(Draft, Vec<PathBuf>)>) {
        let dir = tempfile::tempdir().unwrap();
        let card = dir.path().join("card");
        fs::create_dir(&card).unwrap();
        fs::write(card.join("rollcall.toml"), text).unwrap();
        fs::write(card.join("pw"), "s3cret\n").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", card.join("link")).unwrap();
        let mut draft = Draft::load(&dir.path().join("config.toml")).unwrap();
        let applied = apply(&mut draft, &card.join("rollcall.toml"));
        (dir, applied.map(|secrets| (draft, secrets)))
    }

    #[test]
    fn keys_venues_and_secrets_are_taken_over() {
        let text = "[device]\nsite = \"hq\"\n[mqtt]\nhost = \"b\"\nuser = \"u\"\npassword_file = \"pw\"\n\
            [mongo]\nuri = \"mongodb://u:p@h\"\n[[venue]]\nid = \"main\"\ntime_zone = \"Europe/Berlin\"\n\
            [[venue.session]]\nid = \"am\"\nweekdays = [\"mon\"]\nstart = \"08:00\"\nend = \"12:00\"\n";
        let (dir, applied) = with(text);
        let (draft, secrets) = applied.unwrap();
        let settings = draft.settings().unwrap();
        assert_eq!((settings.site.as_str(), settings.venues[0].sessions.len()), ("hq", 1));
        assert_eq!(settings.mqtt.unwrap().credentials.unwrap().password, "s3cret");
        assert!(settings.mongo.is_some() || cfg!(not(feature = "mongo")));
        let card = dir.path().join("card");
        assert_eq!(secrets, [card.join("pw"), card.join("rollcall.toml")]);
        draft.commit(None).unwrap();
        let written = fs::read_to_string(dir.path().join("config.toml")).unwrap();
        assert!(!written.contains("s3cret") && !written.contains("u:p@"), "{written}");
    }

    #[test]
    fn what_it_may_not_say_is_refused_by_name_and_without_its_secrets() {
        for (text, part) in [
            ("[storage]\ndirectory = \"/tmp\"", "[storage] directory"),
            ("[recognition]\nruntime_library = \"/boot/x.so\"", "runtime_library"),
            ("[device]\nsight = \"hq\"", "sight"),
            ("[mqtt]\npassword_file = \"../shadow\"", "beside"),
            ("[mqtt]\npassword_file = \"link\"", "link"),
            ("[mqtt]\npassword_file = \"missing\"", "missing"),
            ("[mqtt]\nhost = \"b\"\npassword = s3cret", "line 3"),
            ("[mqtt]\nport = \"many\"", "line 2"),
            ("venue = [{ id = \"x\" }]", "[[venue]]"),
        ] {
            let (_dir, applied) = with(text);
            let said = format!("{:#}", applied.err().expect(text));
            assert!(said.contains(part) && !said.contains("s3cret"), "{text}: {said}");
        }
        let (_dir, applied) = with(&format!("# {}", "x".repeat(70_000)));
        assert!(applied.err().unwrap().to_string().contains("larger"));
    }
}

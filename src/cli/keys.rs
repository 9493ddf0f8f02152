//! `rollcall keys`: makes, shows and changes keys.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::ensure;

use crate::app;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::record::seal::SharedKey;
use crate::record::signer::SigningKey;
use crate::record::store::Store;

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a site key, with which doors seal what they tell one another; copy it to each of them
    Site { file: PathBuf },
    /// Make a key pair for whoever commands; prints the line for [commands] trusted_keys
    Signer { file: PathBuf },
    /// Print the public half of a signer's key
    Show { file: PathBuf },
    /// Print this device's public key, which checks its receipts
    Device,
    /// Seal all templates anew with a new key; the old one is destroyed. The daemon must not run
    Rotate {
        /// Write the new key here, to be made the systemd credential in place of the old one
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// The key is lost for good: delete who is enrolled, whose templates nobody can open, so that they can be enrolled again
    Forget {
        /// Really: the record and what is owed stay, nobody stays enrolled
        #[arg(long)]
        yes: bool,
    },
}

pub fn run(
    command: &Command,
    settings: impl FnOnce() -> anyhow::Result<Settings>,
) -> anyhow::Result<()> {
    match command {
        Command::Site { file } => {
            SharedKey::create(file)?;
            println!(
                "{}: a new site key. Every door of the site needs a copy; who has it can read the gallery",
                file.display()
            );
        }
        Command::Signer { file } => {
            println!("{}", SigningKey::create(file)?.public());
            eprintln!(
                "the private half is {}: keep it where the commands come from, not at the doors",
                file.display()
            );
        }
        Command::Show { file } => println!("{}", SigningKey::load(file)?.public()),
        Command::Device => println!("{}", SigningKey::device_public(&settings()?.state_dir)?),
        Command::Rotate { to } => {
            let settings = settings()?;
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
            let options = app::store_options(&settings, &clock);
            let rotated = Store::rotate_key(&settings.state_dir, options, to.as_deref())
                .map_err(app::storage)?;
            println!(
                "{} templates are sealed with the new key {}",
                rotated.resealed,
                rotated.path.display()
            );
            if rotated.unreadable > 0 {
                println!("{} did not open before and still do not", rotated.unreadable);
            }
            if to.is_some() {
                println!(
                    "make it the credential rollcall.key before the daemon is started, and destroy the old one"
                );
            } else {
                println!("copies of the old key open nothing any more: make a copy of the new one");
            }
        }
        Command::Forget { yes } => {
            let settings = settings()?;
            ensure!(
                *yes,
                "this deletes everybody who is enrolled in {} (`rollcall subjects` lists whom): add --yes",
                settings.state_dir.display()
            );
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
            let options = app::store_options(&settings, &clock);
            let deleted =
                Store::forget_templates(&settings.state_dir, options).map_err(app::storage)?;
            println!(
                "{deleted} templates were deleted, and those whose they were; enrol them again, or let the site's gallery do it"
            );
        }
    }
    Ok(())
}

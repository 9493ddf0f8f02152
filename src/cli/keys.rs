//! `rollcall keys`: makes, shows and changes keys.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::ensure;

use crate::app::exit;
use crate::app::open;
use crate::clock::{Clock, SystemClock};
use crate::config::Settings;
use crate::keys::seal::SharedKey;
use crate::keys::signer::SigningKey;
use crate::store::Store;

#[derive(Debug, clap::Subcommand)]
pub enum KeysCommand {
    /// Make a site key, which seals the gallery that the doors share; copy it to each door
    #[command(after_help = "Example:\n  rollcall keys site /etc/rollcall/site.key")]
    Site { file: PathBuf },
    /// Make a key pair for signed commands; prints the line for [commands] trusted_keys
    #[command(after_help = "Example:\n  rollcall keys signer office.pem")]
    Signer { file: PathBuf },
    /// Print the public half of a signer's key
    #[command(after_help = "Example:\n  rollcall keys show office.pem")]
    Show { file: PathBuf },
    /// Print this device's public key, with which its receipts are checked
    #[command(after_help = "Example:\n  rollcall keys device")]
    Device,
    /// Seal all templates with a new key and destroy the old one. The daemon must not run
    #[command(
        after_help = "Example:\n  systemctl stop rollcall && sudo -u rollcall rollcall keys rotate"
    )]
    Rotate {
        /// Write the new key to this file, which then replaces the systemd credential
        #[arg(long, value_name = "FILE")]
        to: Option<PathBuf>,
    },
    /// After losing the key: delete everybody's references (face samples), which nobody can decrypt,
    /// so that people can be enrolled again
    #[command(after_help = "Example:\n  sudo -u rollcall rollcall keys forget --yes")]
    Forget {
        /// Confirm: attendance and pending messages stay, nobody stays enrolled
        #[arg(long)]
        yes: bool,
    },
}

pub fn run(
    command: &KeysCommand,
    settings: impl FnOnce() -> anyhow::Result<Settings>,
) -> anyhow::Result<()> {
    match command {
        KeysCommand::Site { file } => {
            SharedKey::create(file)?;
            println!(
                "{}: a new site key. Every door of the site needs a copy. Anybody who has it can read the \
                 gallery",
                file.display()
            );
        }
        KeysCommand::Signer { file } => {
            println!("{}", SigningKey::create(file)?.public());
            eprintln!(
                "the private half is {}: keep it where the commands come from, not at the doors",
                file.display()
            );
        }
        KeysCommand::Show { file } => println!("{}", SigningKey::load(file)?.public()),
        KeysCommand::Device => println!("{}", SigningKey::device_public(&settings()?.state_dir)?),
        KeysCommand::Rotate { to } => {
            let settings = settings()?;
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
            let options = open::store_options(&settings, &clock);
            let rotated = Store::rotate_key(&settings.state_dir, options, to.as_deref())
                .map_err(exit::storage)?;
            println!(
                "{} templates are sealed with the new key {}",
                rotated.resealed,
                rotated.path.display()
            );
            if rotated.unreadable > 0 {
                println!("{} could not be decrypted before and still cannot", rotated.unreadable);
            }
            if to.is_some() {
                println!(
                    "make it the credential rollcall.key before you start the daemon, and destroy the old one"
                );
            } else {
                println!("copies of the old key are useless now: make a copy of the new one");
            }
        }
        KeysCommand::Forget { yes } => {
            let settings = settings()?;
            ensure!(
                *yes,
                "this deletes everybody who is enrolled in {} (`rollcall subjects` lists them): confirm with \
                 --yes",
                settings.state_dir.display()
            );
            let clock: Arc<dyn Clock> = Arc::new(SystemClock::new(settings.trust));
            let options = open::store_options(&settings, &clock);
            let deleted =
                Store::forget_templates(&settings.state_dir, options).map_err(exit::storage)?;
            println!(
                "{deleted} templates were deleted, with the people they belonged to: enrol them again, or let \
                 the site's gallery do it"
            );
        }
    }
    Ok(())
}

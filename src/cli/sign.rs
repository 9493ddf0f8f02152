//! `rollcall sign`: prints a signed command for scripts, which any MQTT client can publish.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use base64::Engine as _;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::clock::{Clock as _, SystemClock, Trust};
use crate::config::Settings;
use crate::ids::check_id;
use crate::keys::jws::{COMMAND, Claims, LIFETIME_MAX_S};
use crate::keys::signer::SigningKey;
use crate::wire::command;
use crate::wire::command::{Limits, Received};

#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  rollcall sign --key office.pem --aud hq/door-1 sync | \
                  mosquitto_pub -s -t rollcall/hq/door-1/command/sync")]
pub struct Args {
    /// The private key, as `rollcall keys signer FILE` makes it
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The audience: SITE/DEVICE, or SITE/all for every device of a site
    #[arg(long, value_name = "SITE/DEVICE")]
    aud: String,
    /// How long it is valid, at most a day
    #[arg(long, default_value = "5m", value_parser = humantime_serde::re::humantime::parse_duration)]
    lifetime: Duration,
    /// Add a photograph: to `images` of enrol, as `image` of recognise and attend
    #[arg(long, value_name = "PHOTO")]
    image: Vec<PathBuf>,
    /// The command: enrol, withdraw, sync, …
    verb: String,
    /// Its fields as a JSON object: a file, or - for standard input [default: none]
    body: Option<PathBuf>,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let key = SigningKey::load(&args.key)?;
    let mut body = match &args.body {
        None => json!({}),
        Some(path) => serde_json::from_slice(&read(path)?).context("the body is not JSON")?,
    };
    ensure!(body.is_object(), "the body must be a JSON object");
    for path in &args.image {
        let photograph =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        add_image(
            &mut body,
            &args.verb,
            base64::engine::general_purpose::STANDARD.encode(photograph),
        )?;
    }
    if body["request_id"].is_null() {
        body["request_id"] = Uuid::now_v7().simple().to_string().into();
        eprintln!("request_id {}", body["request_id"].as_str().unwrap_or_default());
    }
    let token = sign_command(&key, &args.aud, &args.verb, body, args.lifetime)?;
    println!("{token}");
    Ok(())
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin().lock().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

fn add_image(body: &mut Value, verb: &str, image: String) -> anyhow::Result<()> {
    match verb {
        "enrol" => {
            let images = &mut body["images"];
            if images.is_null() {
                *images = json!([]);
            }
            images.as_array_mut().context("`images` must be a list")?.push(image.into());
        }
        "recognise" | "attend" if body["image"].is_null() => body["image"] = image.into(),
        "recognise" | "attend" => bail!("{verb} takes one image"),
        _ => bail!("{verb} takes no image"),
    }
    Ok(())
}

/// Returns a command as a compact JWS. Checks it first, so that no device rejects it later.
pub fn sign_command(
    key: &SigningKey,
    aud: &str,
    verb: &str,
    mut body: Value,
    lifetime: Duration,
) -> anyhow::Result<String> {
    let seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
    ensure!((1..=LIFETIME_MAX_S).contains(&seconds), "the lifetime must be 1s to 24h");
    let is_audience = aud
        .split_once('/')
        .is_some_and(|(site, device)| check_id(site).and(check_id(device)).is_ok());
    ensure!(is_audience, "--aud must be SITE/DEVICE or SITE/all, as in hq/door-1");
    body["verb"] = verb.into();
    let now_ms = SystemClock::new(Trust::Always).now().wall_ms;
    let text = serde_json::to_string(&body)?;
    let limits = Limits {
        payload_bytes: usize::MAX,
        images: usize::MAX,
        image_bytes: usize::MAX,
        ..Limits::default()
    };
    let received = Received::by_mqtt(verb, text.as_bytes(), false).signed();
    if let Err(rejection) = command::parse(received, &limits, now_ms) {
        bail!("every device would reject this command: {}", rejection.message);
    }
    let iat = now_ms.div_euclid(1000);
    let jti = Uuid::now_v7().simple().to_string();
    let cmd = serde_json::value::RawValue::from_string(text)?;
    let claims = Claims { iat, exp: iat + seconds, jti, aud: aud.to_owned(), cmd: &cmd };
    Ok(key.sign(COMMAND, &serde_json::to_vec(&claims)?))
}

/// Returns the key with which the command line signs, where the device requires signed commands.
pub fn load_signer(settings: &Settings) -> anyhow::Result<Option<SigningKey>> {
    let commands = &settings.commands;
    let Some(path) = &commands.signing_key else {
        ensure!(
            commands.trusted_keys.is_empty(),
            "this device accepts signed commands only, and there is no key to sign with: set [commands] \
             signing_key_file, or use `rollcall sign`"
        );
        return Ok(None);
    };
    let key = SigningKey::load(path)?;
    let trusted = commands.trusted_keys.is_empty() || commands.trusted_keys.contains(key.public());
    ensure!(
        trusted,
        "the key {} is not among [commands] trusted_keys: add {}",
        path.display(),
        key.public()
    );
    Ok(Some(key))
}

use std::collections::BTreeMap;
use std::fs;

use super::*;
use crate::config::load::{load, parse};

fn shipped() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config.toml")).unwrap()
}

fn set(text: &str) -> Result<Settings, ConfigError> {
    check(&parse(text, &BTreeMap::new())?, Path::new("/etc/rollcall"))
}

fn overridden(name: &str, value: &str) -> Result<RawConfig, ConfigError> {
    parse("", &BTreeMap::from([(name.into(), value.into())]))
}

#[test]
fn shipped_file_equals_defaults() {
    let raw = parse(&shipped(), &BTreeMap::new()).unwrap();
    assert_eq!(raw, RawConfig::default());
}

#[test]
fn shipped_file_shows_every_key() {
    let written: toml::Table = toml::from_str(&shipped()).unwrap();
    let known = toml::Table::try_from(RawConfig::default()).unwrap();
    for (section, keys) in &known {
        let Some(keys) = keys.as_table() else { continue };
        for key in keys.keys() {
            assert!(written[section].get(key).is_some(), "[{section}] {key} is not in config.toml");
        }
    }
}

#[test]
fn enforced_pad_has_stricter_default_threshold() {
    let threshold = |text: &str| set(text).unwrap().recognition.pad().threshold;
    let flag = threshold("");
    assert!(threshold("[recognition]\npad = \"enforce\"") > flag);
    assert!(threshold("[recognition]\npad = \"enforce\"\npad_threshold = 0.25") < flag);
}

#[test]
fn invalid_key_or_value_is_named() {
    for (text, named) in [
        ("[recognition]\nthresold = 0.4", "thresold"),
        ("[recogniton]", "recogniton"),
        ("[recognition]\nthreshold = 4.0", "[recognition] threshold"),
        ("[recognition]\nfpir = nan", "[recognition] fpir"),
        ("[recognition]\nsamples_min = 0", "[recognition] samples_min"),
        ("[recognition]\nlost_after = \"0s\"", "[recognition] lost_after"),
        ("[recognition]\nlost_after = \"1h\"", "[recognition] lost_after"),
        ("[recognition]\nrecheck_after = \"0s\"", "[recognition] recheck_after"),
        ("[recognition]\nrecheck_after = \"1h\"", "[recognition] recheck_after"),
        ("[recognition]\nprecision = \"int4\"", "int4"),
        ("[camera]\nfps = 0", "[camera] fps"),
        ("[camera]\nshow = \"soon\"", "(show): invalid value"),
        ("[camera]\nsource = \"replay\"", "[camera] path"),
        ("[device]\nsite = \"a/b\"", "[device] site"),
        ("[device]\nname = \"a#\"", "[device] name"),
        ("[device]\nname = \"all\"", "[device] name"),
        ("[device]\nname = \"gallery\"", "[device] name"),
        ("[fleet]\nkey_file = \"nowhere.key\"", "[fleet] key_file"),
        ("[fleet]\nshare = \"smoke\"", "smoke"),
        ("[fleet]\nshare = \"mongo\"", "[fleet] share"),
        ("[mqtt]\nhealth_every = \"10ms\"", "[mqtt] health_every"),
        ("[commands]\nper_minute_max = 0", "[commands] per_minute_max"),
        ("[commands]\ntrusted_keys = [\"ed25519:AAAA\"]", "[commands] trusted_keys"),
        ("[commands]\ntrusted_keys = [\"-----BEGIN PRIVATE KEY-----\"]", "[commands] trusted_keys"),
        ("[attendance]\nvenue = \"x\"\n[[venue]]\nid = \"y\"", "[attendance] venue"),
        ("[[venue]]\nid = \"main\"\n[[venue]]\nid = \"main\"", "[[venue]] id"),
        ("[[venue]]\nid = \"main\"\ntime_zone = \"Europe/Atlantis\"", "\"main\": time_zone"),
        ("[[venue]]\nid = \"main\"\ntime_zone = \"/etc/localtime\"", "\"main\": time_zone"),
        ("[[venue]]\nid = \"main\"\nre_entry_gap = \"25h\"", "\"main\": re_entry_gap is longer"),
        ("[[venue]]\nid = \"main\"\ndirection = \"up\"", "up"),
        (
            "[[venue]]\nid = \"main\"\n[[venue.session]]\nid = \"am\"\nstart = \"08:00\"\nend = \"09:00\"",
            "session[0].weekdays",
        ),
        (
            "[[venue]]\nid = \"main\"\n[[venue.session]]\nid = \"am\"\nstart = \"08:00\"\nend = \"09:00\"\nlate = \"5m\"",
            "late",
        ),
        ("[attendance]\ndirection = \"up\"", "[attendance] direction"),
        ("[mqtt]\nhost = \"h\"\nca_file = \"ca.pem\"", "[mqtt] tls"),
        ("[mqtt]\ntls = true", "[mqtt] tls"),
        ("[mqtt]\nhost = \"h\"\npassword = \"p\"", "[mqtt] user"),
        ("[mqtt]\nhost = \"h\"\n[broker]\nenabled = true", "[mqtt] host"),
        ("[broker]\nenabled = true\nlisten = \"0.0.0.0:1883\"", "[broker] listen"),
        ("[home_assistant]\ndiscovery_prefix = \"a/#\"", "[home_assistant] discovery_prefix"),
        ("[home_assistant]\ndiscovery_prefix = \"\"", "[home_assistant] discovery_prefix"),
        ("[home_assistant]\nname = \"a\\u0007\"", "[home_assistant] name"),
        ("[mongo]\nuri = \"localhost\"", "[mongo] uri"),
        ("[mongo]\nuri = \"mongodb://a/?w=0\"", "[mongo] uri"),
        ("[mongo]\nca_file = \"ca.pem\"", "[mongo]"),
        ("[mongo]\nuri = \"mongodb://a\"\nuri_file = \"b\"", "[mongo] uri"),
        ("[http]\nlisten = \"here\"", "[http] listen"),
        ("[http]\nlisten = \"0.0.0.0:8080\"", "takes a token_file"),
        ("[http]\ncors_origins = [\"https://a.example\"]", "[http] listen"),
        ("[http]\nlisten = \"127.0.0.1:0\"\ncors_origins = [\"*\"]", "[http] cors_origins"),
        (
            "[http]\nlisten = \"127.0.0.1:0\"\ncors_origins = [\"https://a.example/page\"]",
            "[http] cors_origins",
        ),
        ("[http]\nlisten = \"127.0.0.1:0\"\nrequests_max = 0", "[http] requests_max"),
        ("[commands]\nimage_bytes_max = 1", "[commands] image_bytes_max"),
    ] {
        let message = set(text).expect_err(text).to_string();
        assert!(message.contains(named), "{text}: {message}");
    }
}

#[test]
fn venue_table_reads_sessions_and_zone() {
    let text = |late: &str, zone: &str| {
        format!(
            "[[venue]]\nid = \"main\"\n{zone}direction = \"alternate\"\n[[venue.session]]\nid = \"night\"\n\
             weekdays = [\"mon\"]\nstart = \"23:55\"\nend = \"06:00\"\nlate_after = \"{late}\"\nearly = \"1h\"\n"
        )
    };
    let zone = "time_zone = \"Europe/Berlin\"\n";
    for (late, minutes) in [("10m", 10), ("00:05", 10), ("23:55", 0)] {
        let settings = set(&text(late, zone)).unwrap();
        let session = settings.venues[0].spec().sessions.remove(0);
        assert_eq!(
            (session.late_after_ms, session.early_ms),
            (Some(minutes * 60_000), Some(3_600_000)),
            "{late}"
        );
        assert_eq!(settings.venues[0].zone_name(), "Europe/Berlin");
        assert!(settings.warnings.is_empty());
    }
    assert!(set(&text("06:05", zone)).unwrap_err().to_string().contains("session[0].late_after"));
    assert!(set(&text("soon", zone)).unwrap_err().to_string().contains("session[0].late_after"));
    assert!(set(&text("10m", "")).unwrap().warnings[0].contains("no time_zone"));
}

#[test]
fn shipped_venue_example_is_valid() {
    let shipped = shipped();
    let example = shipped
        .lines()
        .skip_while(|line| !line.starts_with("# [[venue]]"))
        .take_while(|line| !line.is_empty());
    let example: Vec<_> = example.map(|line| line.trim_start_matches("# ")).collect();
    let settings = set(&example.join("\n")).unwrap();
    assert_eq!(settings.venues[0].sessions[0].id, "mon-am");
}

#[test]
fn environment_overrides_configuration_keys() {
    assert_eq!(overridden("ROLLCALL_MQTT_HOST", "broker").unwrap().mqtt.host, "broker");
    assert_eq!(overridden("ROLLCALL_MQTT_PORT", "1999").unwrap().mqtt.port, 1999);
    assert_eq!(
        overridden("ROLLCALL_CAMERA_SHOW", "2s").unwrap().camera.show,
        Duration::from_secs(2)
    );
    assert!(overridden("ROLLCALL_BROKER_ENABLED", "true").unwrap().broker.enabled);
    for (name, value) in [
        ("ROLLCALL_MQTT_HOSTS", "x"),
        ("ROLLCALL_MQTT_PORT", "many"),
        ("ROLLCALL_CAMERA_SHOW", "soon"),
    ] {
        assert!(overridden(name, value).unwrap_err().to_string().contains(name));
    }
}

#[test]
fn paths_are_relative_to_the_file() {
    let settings = set("[recognition]\nruntime_library = \"/opt/libonnxruntime.so\"").unwrap();
    assert_eq!(settings.state_dir, Path::new("/etc/rollcall/state"));
    assert_eq!(settings.vision.runtime_library.unwrap(), Path::new("/opt/libonnxruntime.so"));
}

#[test]
fn link_uses_embedded_broker_port() {
    let settings = set("[broker]\nenabled = true\nlisten = \"127.0.0.1:2883\"").unwrap();
    assert_eq!(settings.mqtt.unwrap().port, 2883);
    assert!(set("").unwrap().mqtt.is_none());
}

#[cfg(feature = "mongo")]
#[test]
fn mongo_uri_secret_must_be_private() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, mode| {
        fs::write(dir.path().join(name), text).unwrap();
        fs::set_permissions(dir.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    let load = || load(Some(&dir.path().join("config.toml")), &BTreeMap::new());
    write("config.toml", "[mongo]\nuri = \"mongodb://door:s3cret@host/?replicaSet=rs0\"\n", 0o644);
    assert!(load().unwrap().warnings[0].contains("[mongo] uri"));
    write("config.toml", "[mongo]\nuri = \"mongodb://host\"\n", 0o644);
    assert!(load().unwrap().warnings.is_empty());
    write("config.toml", "[mongo]\nuri_file = \"uri\"\n", 0o644);
    write("uri", "mongodb://door:s3cret@host/?replicaSet=rs0\n", 0o640);
    assert!(load().unwrap_err().to_string().contains("chmod 600"));
    write("uri", " \n", 0o600);
    assert!(load().unwrap_err().to_string().contains("[mongo] uri_file"));
    write("uri", "mongodb://door:s3cret@host/?replicaSet=rs0\n", 0o600);
    let settings = load().unwrap();
    assert!(settings.warnings.is_empty());
    assert!(!format!("{settings:?}").contains("s3cret"));
}

#[test]
fn packaged_configuration_is_valid() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("cross/debian/config.toml");
    let settings = load(Some(&file), &BTreeMap::new()).unwrap();
    assert_eq!(settings.state_dir, Path::new("/var/lib/rollcall"));
    assert_eq!(settings.vision.models, Path::new("/usr/share/rollcall/models"));
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
}

#[test]
fn errors_do_not_show_values() {
    const SECRET: &str = "hunter2-s3cret";
    for text in [
        "[mqtt]\npassword = hunter2-s3cret\n",
        "[mqtt]\npassword = \"hunter2-s3cret\n",
        "[mqtt]\npassword = 'hunter2-s3cret\n",
        "[mqtt]\npassword = \"hunter2-s3cret\" x\n",
        "[mqtt]\npassword = \"hunter2-s3cret\\q\"\n",
        "[mqtt]\npassword \"hunter2-s3cret\"\n",
        "[mqtt]\npassword: hunter2-s3cret\n",
        "[mqtt]\npassword = [\"hunter2-s3cret\"]\n",
        "[mqtt]\npassword = { a = \"hunter2-s3cret\" }\n",
        "[mqtt]\nport = \"hunter2-s3cret\"\n",
        "[mqtt]\ntls = \"hunter2-s3cret, expected a\"\n",
        "[mqtt]\nkeep_alive = \"hunter2-s3cret\"\n",
        "[camera]\nformat = \"hunter2-s3cret\"\n",
        "[mqtt]\npassword = \"a\"\npassword = \"hunter2-s3cret\"\n",
        "[mongo]\nuri = \"mongodb://u:hunter2-s3cret@h\n",
        "[mongo]\nuris = \"mongodb://u:hunter2-s3cret@h\"\n",
        "hunter2-s3cret\n",
    ] {
        let error = parse(text, &BTreeMap::new()).unwrap_err();
        let said = crate::error_chain::error_chain(&error);
        assert!(!said.contains("hunter2") && !said.contains(SECRET), "{text}: {said}");
        assert!(said.contains("line "), "{text}: {said}");
    }
    let error = parse("[mqtt]\npassword = 12345678\n", &BTreeMap::new());
    let said = error.unwrap_err().to_string();
    let expected = "line 2, column 12 (password): invalid type: integer, expected a string";
    assert!(said.ends_with(expected), "{said}");
    // An unknown key is named.
    let error = parse("[mqtt]\nhots = \"b\"\n", &BTreeMap::new()).unwrap_err();
    assert!(error.to_string().contains("hots"), "{error}");
}

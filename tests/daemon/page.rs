//! The local page in a real browser before the real daemon with a replay camera: signing in,
//! enrolling, who passes, who is withdrawn; what it looks like on a phone and on a desk, by day and
//! by night; what it may load, and how it is used without eyes or a mouse. The pictures are in
//! `target/page`.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]
#![expect(clippy::print_stdout, reason = "where the pictures are")]

use crate::support::faces;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use crate::support::browser::Browser;
use crate::support::daemon::{Daemon, Home, until};
use serde_json::json;

pub const TOKEN: &str = "a-token-of-this-test-0123456789abcdef";
/// A name that would be markup, were it not text.
const NAME: &str = "<img src=x onerror=alert(1)> Ann";
pub const SECTIONS: [&str; 5] = ["door", "today", "people", "venues", "health"];
pub const SCREENS: [(&str, u32, u32); 2] = [("phone", 390, 844), ("desktop", 1280, 800)];

pub struct Door {
    pub home: Home,
    pub url: String,
    pub daemon: Daemon,
}

impl Door {
    /// A daemon without a broker, before whose camera nobody stands.
    fn new(with_token: bool, more: &str) -> Self {
        Self::with(with_token, more, |_| ())
    }

    /// `prepare` is done before the daemon starts.
    pub fn with(with_token: bool, more: &str, prepare: impl Fn(&Home)) -> Self {
        let home = Home::new(1, "");
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let token = home.path("token");
        fs::write(&token, TOKEN).unwrap();
        fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
        let token = if with_token {
            format!("token_file = \"{}\"\n", token.display())
        } else {
            String::new()
        };
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
        let text = format!(
            "[device]\nsite = \"hq\"\nname = \"door-1\"\n[clock]\ntrust = \"always\"\n[recognition]\nmodels = \"{}\"\n\
             [camera]\nsource = \"replay\"\npath = \"list.csv\"\nrepeat = true\n\
             [http]\nlisten = \"127.0.0.1:{port}\"\n{token}{more}",
            models.display()
        );
        fs::write(home.path("config.toml"), text).unwrap();
        stand_before(&home, None);
        prepare(&home);
        let daemon = home.start();
        Self { home, url: format!("http://127.0.0.1:{port}/"), daemon }
    }

    fn browser(&self) -> Browser {
        let mut browser = Browser::start();
        browser.screen(1280, 800, "light");
        browser.open(&self.url);
        browser
    }

    pub fn signed_in(&self) -> Browser {
        let mut browser = self.browser();
        browser.write("#token", TOKEN);
        browser.press("Enter");
        browser.until_shown("#link", "Live");
        browser
    }
}

/// Who is before the camera from its next round on; gone between two rounds for long enough that
/// each is another visit.
pub fn stand_before(home: &Home, photograph: Option<&Path>) {
    let line =
        photograph.map_or("-,300,0\n".to_owned(), |path| format!("{},4000,1500\n", path.display()));
    play(home, &line);
}

/// What the camera shows from its next round on: a list of the replay camera.
fn play(home: &Home, list: &str) {
    fs::write(home.path("list.new"), list).unwrap();
    fs::rename(home.path("list.new"), home.path("list.csv")).unwrap();
}

pub fn go(browser: &mut Browser, section: &str) {
    browser.click(&format!("#nav a[href='#{section}']"));
    browser.until_true(section, &format!("!document.getElementById('section-{section}').hidden"));
}

fn enrol(browser: &mut Browser, photographs: &[PathBuf]) {
    go(browser, "people");
    browser.write("#enrol-name", NAME);
    browser.write("#enrol-id", "ann");
    browser.choose_files("#photos", photographs);
    browser.click("#enrol-go");
}

/// Nothing on the console, nothing from elsewhere; `but` is what was provoked.
pub fn assert_clean(browser: &Browser, url: &str, but: &str) {
    let mut complaints = browser.complaints();
    complaints.retain(|it| but.is_empty() || !it.contains(but));
    assert!(complaints.is_empty(), "{complaints:#?}");
    let requested = browser.requested();
    // The browser's own signs in fields are data.
    let local = |it: &&String| {
        [url, &format!("blob:{url}"), "data:"].iter().any(|from| it.starts_with(from))
    };
    assert!(requested.iter().all(|it| local(&it)), "{requested:#?}");
    assert!(requested.len() > 10, "what it asked for was heard: {requested:#?}");
}

#[test]
fn page_shows_enrolment_attendance_and_withdrawal() {
    let door = Door::new(true, "");
    let mut browser = door.browser();
    browser.until_shown("#section-sign-in", "Token");
    assert_eq!(browser.faults(), Vec::<String>::new());
    assert_eq!(browser.complaints(), Vec::<String>::new());
    browser.write("#token", "not-the-token");
    browser.press("Enter");
    browser.until_shown("#token-says", "not the token");
    assert_eq!(browser.value("document.getElementById('nav').hidden"), true);
    browser.write("#token", TOKEN);
    browser.press("Enter");
    browser.until_shown("#link", "Live");
    assert_eq!(
        browser.complaints().len(),
        1,
        "the wrong token, and nothing else: {:?}",
        browser.complaints()
    );

    enrol(&mut browser, &[faces::demo("obama.jpg")]);
    browser.until_shown("#enrol-says", &format!("{NAME} is enrolled with 1 reference"));
    browser.until_shown("#subjects", NAME);
    forgets_the_last_person(&mut browser);

    // They pass, and the row comes by itself.
    go(&mut browser, "today");
    browser.until_shown("#passages", "Nobody yet");
    browser.value("window.sameDocument = true");
    stand_before(&door.home, Some(&faces::demo("obama2.jpg")));
    browser.until_shown("#passages", NAME);
    assert_eq!(
        browser.text("#arrivals"),
        format!("{NAME}, in, present"),
        "those who do not see it hear it"
    );
    browser.until_shown("#persons", NAME);
    assert_eq!(browser.value("window.sameDocument"), true, "it was not loaded again");
    assert_eq!(browser.value("document.querySelectorAll('.rows img').length"), 0, "a name is text");
    says_why_nothing_is_recorded(&mut browser);

    looks_at_the_door(&mut browser);
    // Withdrawn; not by mistake.
    go(&mut browser, "people");
    let withdraw = format!("#subjects [aria-label={}]", json!(format!("Remove {NAME}")));
    browser.click(&withdraw);
    browser.until_shown("#dialog", "What was recorded stays");
    assert_eq!(browser.faults(), Vec::<String>::new());
    browser.click("#dialog-no");
    browser.until_true("the dialog is closed", "!document.getElementById('dialog').open");
    assert!(browser.text("#subjects").contains(NAME));
    browser.click(&withdraw);
    browser.click("#dialog-yes");
    browser.until_shown("#people-says", "was removed");
    browser.until_shown("#subjects", "Nobody yet");
    assert_eq!(door.home.json(&["subjects", "--json"]), json!([]));
    go(&mut browser, "door");
    browser.until_shown("#faces", "unknown");
    assert_clean(&browser, &door.url, "401");
    assert!(!door.home.log().contains("Ann"), "no name in the log");
    assert!(door.daemon.terminate().success());
}

/// Nothing of a person who was enrolled is left in the form.
fn forgets_the_last_person(browser: &mut Browser) {
    let fields = "({ name: document.getElementById('enrol-name').value, files: document.getElementById('photos').files.length, \
                  isFresh: document.getElementById('enrol-id').value.startsWith('p-') })";
    browser.until_true("the form is empty", &format!("{fields}.name === ''"));
    assert_eq!(browser.value(fields), json!({"name": "", "files": 0, "isFresh": true}));
    // With the first letter of the next one, what was said goes too, and the file's name with it.
    assert!(browser.text("#photo-results").contains("obama.jpg"));
    browser.write("#enrol-name", "B");
    assert_eq!(
        (browser.text("#enrol-says"), browser.text("#photo-results")),
        (String::new(), String::new())
    );
    browser.click("#enrol-go");
    browser.until_shown("#enrol-says", "Choose at least one photograph");
}

/// They come again, and are in the record already.
fn says_why_nothing_is_recorded(browser: &mut Browser) {
    let time = browser.text("#passages time");
    go(browser, "door");
    browser.until_shown("#last", &format!("{NAME}: already recorded at {time}"));
    browser.until_shown("#faces", &format!("already recorded at {time}"));
    assert_eq!(browser.text("#arrivals"), format!("{NAME}: already recorded at {time}"));
    go(browser, "today");
    assert_eq!(browser.text("#passage-count"), "1");
}

/// Boxes and decisions; names and the picture only when they are asked for.
fn looks_at_the_door(browser: &mut Browser) {
    go(browser, "door");
    browser.until_shown("#faces", "recognised");
    assert!(!browser.text("#faces").contains(NAME) && !browser.text("#boxes").contains(NAME));
    browser.until_true(
        "a box",
        "document.querySelectorAll('#boxes [data-state=good] rect').length === 1",
    );
    browser.click("#names");
    browser.until_shown("#faces", NAME);
    assert_eq!(browser.value("document.getElementById('picture').hidden"), true);
    browser.click("#picture-on");
    browser.until_true(
        "the picture",
        "(() => { const it = document.getElementById('picture'); return !it.hidden && it.naturalWidth > 100; })()",
    );
    browser.click("#picture-on");
    browser.until_true("no picture", "document.getElementById('picture').hidden");
    // Whoever goes away takes it from the screen.
    browser.click("#picture-on");
    browser.until_true("the picture again", "!document.getElementById('picture').hidden");
    go(browser, "health");
    assert_eq!(browser.value("document.getElementById('picture').hidden"), true);
    browser.until_shown("#checks", "pixels between the eyes");
}

#[test]
fn page_fits_screens_themes_and_keyboard() {
    let door = Door::new(true, "");
    let mut browser = door.signed_in();
    enrol(&mut browser, &[faces::demo("obama.jpg")]);
    browser.until_shown("#enrol-says", "is enrolled");
    stand_before(&door.home, Some(&faces::demo("obama2.jpg")));
    go(&mut browser, "today");
    browser.until_shown("#passages", NAME);
    go(&mut browser, "venues");
    browser.click("#session-add");
    let mut faults = Vec::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page");
    for (name, width, height) in SCREENS {
        for scheme in ["light", "dark"] {
            browser.screen(width, height, scheme);
            for section in SECTIONS {
                go(&mut browser, section);
                if section == "door" {
                    browser.until_shown("#faces", "recognised");
                }
                let found = browser.faults();
                faults
                    .extend(found.into_iter().map(|it| format!("{name} {scheme} {section}: {it}")));
                let path = folder.join(format!("{name}-{scheme}-{section}.png"));
                browser.screenshot(&path);
                println!("{}", path.display());
            }
        }
    }
    browser.screen(360, 640, "light");
    for section in SECTIONS {
        go(&mut browser, section);
        faults.extend(browser.faults().into_iter().map(|it| format!("360 px {section}: {it}")));
        faults.extend(
            not_reached(&mut browser)
                .into_iter()
                .map(|it| format!("{section}: Tab does not reach {it}")),
        );
    }
    assert!(faults.is_empty(), "{faults:#?}");
    assert_clean(&browser, &door.url, "");
}

/// The controls that are shown and that the key Tab does not come to.
pub fn not_reached(browser: &mut Browser) -> Vec<String> {
    browser.value(
        "window.toReach = new Set([...document.querySelectorAll('a[href], button, input, select, summary, [tabindex=\"0\"]')].filter((it) => \
         it.checkVisibility() && !it.disabled && !(it.type === 'radio' && !it.checked))); document.activeElement.blur()",
    );
    let all = browser.value("toReach.size").as_u64().unwrap();
    assert!(all >= 6, "there are controls");
    // A field for a time has a stop for each of its parts.
    for _ in 0..all * 4 {
        browser.press("Tab");
        if browser.value("toReach.delete(document.activeElement); toReach.size === 0") == true {
            return Vec::new();
        }
    }
    let left = browser.value("[...toReach].map((it) => it.outerHTML)");
    left.as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
}

/// Two people in pictures of different size take turns: what is drawn over a picture was found in it.
#[test]
fn boxes_list_and_picture_are_of_one_frame() {
    let door = Door::new(false, "");
    let mut browser = door.browser();
    browser.until_shown("#link", "Live");
    let files = ["obama.jpg", "biden.jpg"].map(faces::demo);
    let shown = files.each_ref().map(|it| format!("{},700,0\n", it.display()));
    play(&door.home, &shown.concat());
    browser.click("#picture-on");
    browser.until_true("a picture", "document.getElementById('picture').naturalWidth > 100");
    // After each drawing, as the eye sees it.
    let watch = "new Promise((resolve) => { const seen = []; const look = () => {
        const [picture, boxes, faces] = ['picture', 'boxes', 'faces'].map((id) => document.getElementById(id));
        const rects = [...boxes.querySelectorAll('rect')].map((it) => ['x', 'y', 'width', 'height'].map((name) => Number(it.getAttribute(name))));
        if (!picture.hidden && seen.at(-1)?.frame !== picture.dataset.frame) seen.push({
          frame: picture.dataset.frame, frames: [boxes.dataset.frame, faces.dataset.frame],
          size: [picture.naturalWidth, picture.naturalHeight], view: boxes.getAttribute('viewBox'), rects, rows: faces.querySelectorAll('li:not(.none)').length });
        if (seen.length < 16) requestAnimationFrame(look); else resolve(seen);
      }; look(); })";
    let seen = browser.value(watch);
    let sizes = files.each_ref().map(|it| image::image_dimensions(it).unwrap());
    let mut boxed = [0; 2];
    let mut first: [Option<Vec<f64>>; 2] = [None, None];
    for it in seen.as_array().unwrap() {
        assert_eq!(it["frames"], json!([it["frame"], it["frame"]]), "{it}");
        let (width, height) = (it["size"][0].as_u64().unwrap(), it["size"][1].as_u64().unwrap());
        assert_eq!(it["view"], format!("0 0 {width} {height}"), "{it}");
        assert_eq!(it["rects"].as_array().unwrap().len() as u64, it["rows"], "{it}");
        // The first in the new one's place may not be found yet; a box of the other must not be there.
        let Some(rect) = it["rects"][0].as_array() else { continue };
        let rect: Vec<f64> = rect.iter().map(|it| it.as_f64().unwrap()).collect();
        let of = |size: &(u32, u32)| u64::from(size.0) == width && u64::from(size.1) == height;
        let who = sizes.iter().position(of).unwrap();
        boxed[who] += 1;
        let first = first[who].get_or_insert_with(|| rect.clone());
        let moved = first.iter().zip(&rect).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(moved < rect[2] / 4.0, "the same face is in the same place: {first:?} {rect:?}");
    }
    assert!(boxed.iter().all(|it| *it > 0), "both were seen: {boxed:?}");
    assert!(door.daemon.terminate().success());
}

#[test]
fn row_actions_are_quiet_and_reachable() {
    let door = Door::new(false, "");
    let mut browser = door.browser();
    browser.until_shown("#link", "Live");
    enrol(&mut browser, &[faces::demo("obama.jpg")]);
    browser.until_shown("#subjects", NAME);
    let opacity = "getComputedStyle(document.querySelector('#subjects .do')).opacity";
    browser.point_at(None);
    assert_eq!(browser.value(opacity), "0", "nobody is near");
    browser.point_at(Some("#subjects li"));
    browser.until_true("the mouse shows them", &format!("{opacity} === '1'"));
    browser.point_at(None);
    browser.until_true("they go with it", &format!("{opacity} === '0'"));
    // By the keyboard, in their order.
    browser.value("document.getElementById('search').focus()");
    for name in ["Add photographs of", "Rename", "Remove"] {
        browser.press("Tab");
        let label = browser.value("document.activeElement.getAttribute('aria-label')");
        assert_eq!(label, format!("{name} {NAME}"));
        assert_eq!(browser.value(opacity), "1", "{name}");
    }
    // With fingers they are always there.
    browser.screen(390, 844, "light");
    browser.value("document.activeElement.blur()");
    assert_eq!(browser.value("matchMedia('(any-pointer: coarse)').matches"), true);
    assert_eq!(browser.value(opacity), "1");
    assert!(door.daemon.terminate().success());
}

/// Far from UTC and from the browser's own zone: every time is that of the venue.
#[test]
fn every_time_is_that_of_the_venue() {
    // The session that runs began on the same day.
    let hour_in = |zone: &str| {
        jiff::Timestamp::now().to_zoned(rollcall::clock::time_zone(zone).unwrap()).hour()
    };
    let far = ["Pacific/Kiritimati", "Asia/Kathmandu"];
    let zone = far.into_iter().find(|zone| (2..=20).contains(&hour_in(zone))).unwrap();
    let day = "weekdays = [\"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\", \"sun\"]";
    let session = |id: &str, from: i64, to: i64| {
        let time = |hours: i64| {
            let at = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours);
            at.to_zoned(rollcall::clock::time_zone(zone).unwrap()).strftime("%H:%M").to_string()
        };
        (
            format!(
                "[[venue.session]]\nid = \"{id}\"\n{day}\nstart = \"{}\"\nend = \"{}\"\nlate_after = \"10m\"\n",
                time(from),
                time(to)
            ),
            time(from),
        )
    };
    // One runs for an hour, in the other nobody is yet. Which day that is depends on the hour.
    let (running, start) = session("running", -1, 2);
    let (ahead, _) = session("ahead", 3, 4);
    let venue = format!("[[venue]]\nid = \"main\"\ntime_zone = \"{zone}\"\n{running}{ahead}");
    let door = Door::new(false, &venue);
    let mut browser = door.browser();
    browser.until_shown("#link", "Live");
    enrol(&mut browser, &[faces::demo("obama.jpg")]);
    browser.until_shown("#enrol-says", "is enrolled");
    stand_before(&door.home, Some(&faces::demo("obama2.jpg")));
    go(&mut browser, "today");
    browser.until_shown("#passages", NAME);
    let local = |browser: &mut Browser, moment: &str| {
        let time = format!(
            "new Intl.DateTimeFormat('en-GB', {{ timeZone: '{zone}', hour: '2-digit', minute: '2-digit' }}).format(new Date({moment}))"
        );
        browser.value(&time).as_str().unwrap().to_owned()
    };
    let recorded = local(&mut browser, "document.querySelector('#passages time').dateTime");
    assert_eq!(browser.text("#passages time"), recorded);
    browser.until_shown("#passages", "late by 6");
    browser.until_shown("#persons", &format!("running {start} · came {recorded}"));
    browser.until_shown("#persons", "late by 6");
    browser.until_shown("#today-session", &format!("running {start} · is running"));
    // Who is absent is not known yet, and why; in the words of that.
    browser.click("#absent");
    browser.until_shown("#not-known", &format!("Session running {start} is running"));
    go(&mut browser, "door");
    browser.until_shown("#last", NAME);
    assert!(
        browser.text("#last").contains(&recorded) && browser.text("#last").contains("late by 6")
    );
    go(&mut browser, "health");
    let page = browser.value("document.body.innerText");
    assert!(!page.as_str().unwrap().contains("UTC"), "{page}");
    assert_clean(&browser, &door.url, "");
    assert!(door.daemon.terminate().success());
}

#[test]
fn content_policy_blocks_foreign_code() {
    let door = Door::new(true, "");
    let mut browser = door.browser();
    let headers = browser.headers(&door.url);
    let header = |name: &str| {
        let found =
            headers.as_object().unwrap().iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found
            .unwrap_or_else(|| panic!("{name} is not there: {headers}"))
            .1
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(
        header("content-security-policy"),
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    assert_eq!(header("x-content-type-options"), "nosniff");
    assert_eq!(header("referrer-policy"), "no-referrer");
    let refused = |browser: &mut Browser, act: &str| {
        let expression = format!(
            "new Promise((resolve) => {{ document.addEventListener('securitypolicyviolation', (it) => \
             resolve(it.effectiveDirective), {{ once: true }}); {act} }})"
        );
        browser.value(&expression).as_str().unwrap().to_owned()
    };
    let script = "const it = document.createElement('script'); it.textContent = 'window.injected = 1'; document.head.append(it);";
    assert_eq!(refused(&mut browser, script), "script-src-elem");
    let handler = "const it = document.createElement('img'); it.setAttribute('onerror', 'window.injected = 1'); document.body.append(it);";
    assert_eq!(refused(&mut browser, handler), "script-src-attr");
    let style = "const it = document.createElement('style'); it.textContent = 'body { color: red }'; document.head.append(it);";
    assert_eq!(refused(&mut browser, style), "style-src-elem");
    let other = "fetch('http://127.0.0.1:9/').catch(() => {});";
    assert_eq!(refused(&mut browser, other), "connect-src");
    let image = "const it = new Image(); it.src = 'http://127.0.0.1:9/x.png';";
    assert_eq!(refused(&mut browser, image), "img-src");
    assert_eq!(browser.value("typeof window.injected"), "undefined");
}

#[test]
fn local_page_enrols_renames_and_edits_venue() {
    let door = Door::new(false, "");
    let mut browser = door.browser();
    // Loopback without a token: nothing is asked.
    browser.until_shown("#link", "Live");
    stand_before(&door.home, Some(&faces::demo("obama.jpg")));
    go(&mut browser, "people");
    browser.write("#enrol-name", "Bob");
    browser.click("[name=how][value=camera]");
    browser.click("#consent summary");
    browser.write("#consent-version", "2026-1");
    browser.click("#enrol-go");
    browser.until_shown("#enrol-says", "Who recorded the consent?");
    browser.write("#recorded-by", "Front desk");
    browser.click("#enrol-go");
    browser.until_shown("#countdown-says", "Alone before the camera");
    browser.until_shown("#enrol-says", "Bob is enrolled with 4 references");
    browser.until_shown("#subjects", "consent 2026-1");
    // Recorded under the name of that time.
    go(&mut browser, "today");
    browser.until_shown("#passages", "Bob");
    go(&mut browser, "people");
    browser.click("#subjects [aria-label='Rename Bob']");
    browser.write("#new-name", "Robert");
    browser.click("#dialog-yes");
    browser.until_shown("#subjects", "Robert");

    go(&mut browser, "venues");
    browser.write("#venue-id", "room-a");
    browser.write("#venue-name", "Room A");
    browser.write("#zone", "Europe/Berlin");
    browser.click("#session-add");
    for day in ["mon", "tue", "wed", "thu", "fri", "sat", "sun"] {
        browser.click(&format!("[data-day={day}]"));
    }
    browser.write("[data-field=late]", "10");
    browser.click("#venue-form button:not([type])");
    browser.until_shown("#venue-says", "Next session");
    browser.until_shown("#venue-rows", "Room A");
    let venues = door.home.json(&["venues", "--json"]);
    let put = venues.as_array().unwrap().iter().find(|it| it["venue"] == "room-a").unwrap().clone();
    assert_eq!(
        (
            &put["time_zone"],
            &put["sessions"][0]["late_after_ms"],
            &put["sessions"][0]["weekdays"][6]
        ),
        (&json!("Europe/Berlin"), &json!(600_000), &json!("sun"))
    );

    go(&mut browser, "health");
    browser.click("#sync");
    browser.until_shown("#sync-says", "pending");
    saves_a_table(&mut browser, &door);
    assert_clean(&browser, &door.url, "");
    assert!(door.daemon.terminate().success());
}

fn saves_a_table(browser: &mut Browser, door: &Door) {
    let folder = door.home.path("saved");
    fs::create_dir(&folder).unwrap();
    browser.call("Page.setDownloadBehavior", json!({"behavior": "allow", "downloadPath": folder}));
    go(browser, "today");
    browser.until_shown("#passages", "Bob");
    let mut saved = |ending: &str| {
        browser.click(&format!("#{ending}"));
        until("the file is saved", || {
            let file = fs::read_dir(&folder)
                .unwrap()
                .map(|it| it.unwrap().path())
                .find(|it| it.extension().is_some_and(|it| it == ending))?;
            // The browser makes an empty file, and moves the complete one over it.
            Some(fs::read(file).unwrap()).filter(|bytes| !bytes.is_empty())
        })
    };
    let table = String::from_utf8(saved("csv")).unwrap();
    assert!(table.starts_with("\u{feff}seq,") && table.contains("Bob"), "{table}");
    let workbook = zip::ZipArchive::new(std::io::Cursor::new(saved("xlsx"))).unwrap();
    assert!(workbook.file_names().any(|it| it == "xl/worksheets/sheet1.xml"));
}

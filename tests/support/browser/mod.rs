//! A headless Chromium, driven over its debugging pipe: no port, no driver, no other program. What
//! a person does is done by mouse and keys; what the page does besides (complaints on the console,
//! requests) is kept for the end of the test.

#![expect(clippy::unwrap_used, reason = "a test helper: a failure here is a failed test")]

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};

use base64::Engine as _;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::{Value, json};

use crate::support::daemon::{PATIENCE, until};

/// Looks at the page as a reader of screens and an eye would: a list of faults. `audit()` is what
/// it defines.
const AUDIT: &str = include_str!("audit.js");

pub struct Browser {
    child: Child,
    _dir: tempfile::TempDir,
    to: File,
    received: Arc<(Mutex<ReceivedMessage>, Condvar)>,
    session: Option<String>,
    calls: u64,
}

#[derive(Default)]
struct ReceivedMessage {
    answers: HashMap<u64, Value>,
    events: Vec<Value>,
    ended: bool,
}

impl Browser {
    pub fn start() -> Self {
        let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
        let found = Command::new(&program).arg("--version").output();
        assert!(
            found.is_ok_and(|it| it.status.success()),
            "the page's test needs `{program}`: apt install chromium (or name another in CHROMIUM)"
        );
        let dir = tempfile::tempdir().unwrap();
        let [to, from] = ["to", "from"].map(|name| dir.path().join(name));
        for path in [&to, &from] {
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        }
        // It listens on its descriptors 3 and 4, which the shell opens.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$0\" \"$@\" 3<\"$CDP_TO\" 4>\"$CDP_FROM\"", &program]);
        command.env("CDP_TO", &to).env("CDP_FROM", &from).env("HOME", dir.path());
        command.arg(format!("--user-data-dir={}", dir.path().join("profile").display()));
        command.args([
            "--headless=new",
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--disable-dev-shm-usage",
        ]);
        command.args([
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
        ]);
        command.args(["--hide-scrollbars", "--lang=en-GB"]);
        // With a mouse (hover 2, fine pointer 4): without a screen it believes that it has none.
        command.arg("--blink-settings=primaryHoverType=2,availableHoverTypes=2,primaryPointerType=4,availablePointerTypes=4");
        if rustix::process::getuid().is_root() {
            command.arg("--no-sandbox");
        }
        let log = File::create(dir.path().join("log")).unwrap();
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let to = OpenOptions::new().write(true).open(to).unwrap();
        let from = File::open(from).unwrap();
        let received = Arc::new((Mutex::new(ReceivedMessage::default()), Condvar::new()));
        let ears = Arc::clone(&received);
        std::thread::spawn(move || listen(from, &ears));
        let mut browser = Self { child, _dir: dir, to, received, session: None, calls: 0 };
        browser.open_tab();
        browser
    }

    fn open_tab(&mut self) {
        let target =
            self.call("Target.createTarget", json!({"url": "about:blank"}))["targetId"].clone();
        let attached =
            self.call("Target.attachToTarget", json!({"targetId": target, "flatten": true}));
        self.session = Some(attached["sessionId"].as_str().unwrap().to_owned());
        for domain in ["Page", "Runtime", "Log", "Network", "DOM"] {
            self.call(&format!("{domain}.enable"), json!({}));
        }
    }

    /// One call of the debugging protocol, and its result.
    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let id = self.calls;
        let mut message = json!({"id": id, "method": method});
        message["params"] = params;
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        self.to.write_all(&bytes).unwrap();
        let (received, news) = &*self.received;
        let waiting =
            |received: &mut ReceivedMessage| !received.answers.contains_key(&id) && !received.ended;
        let (mut received, late) =
            news.wait_timeout_while(received.lock().unwrap(), PATIENCE, waiting).unwrap();
        assert!(!late.timed_out(), "not in time: {method}");
        let answer = received
            .answers
            .remove(&id)
            .unwrap_or_else(|| panic!("the browser ended during {method}"));
        assert!(answer.get("error").is_none(), "{method}: {answer}");
        answer["result"].clone()
    }

    pub fn open(&mut self, url: &str) {
        self.call("Page.navigate", json!({"url": url}));
        self.until_true(
            "the page is loaded",
            "document.readyState === 'complete' && location.href !== 'about:blank'",
        );
    }

    /// What an expression comes to in the page; a promise is awaited.
    pub fn value(&mut self, expression: &str) -> Value {
        let params = json!({"expression": expression, "awaitPromise": true, "returnByValue": true});
        let result = self.call("Runtime.evaluate", params);
        assert!(result.get("exceptionDetails").is_none(), "{expression}: {result}");
        result["result"]["value"].clone()
    }

    pub fn until_true(&mut self, what: &str, expression: &str) {
        until(what, || (self.value(expression) == true).then_some(()));
    }

    /// Waits for a text in an element that is shown.
    pub fn until_shown(&mut self, selector: &str, text: &str) {
        let expression = format!(
            "[...document.querySelectorAll({})].some((it) => it.checkVisibility() && it.textContent.includes({}))",
            json!(selector),
            json!(text)
        );
        self.until_true(&format!("{selector} shows {text:?}"), &expression);
    }

    pub fn text(&mut self, selector: &str) -> String {
        let text =
            self.value(&format!("document.querySelector({})?.textContent ?? ''", json!(selector)));
        text.as_str().unwrap().to_owned()
    }

    /// A click by the mouse, where the element is on the screen.
    pub fn click(&mut self, selector: &str) {
        let find = format!(
            "(() => {{ const it = document.querySelector({0}); if (!it?.checkVisibility({{ visibilityProperty: true }}) || it.disabled) return null;
              it.scrollIntoView({{ block: 'center', behavior: 'instant' }}); const box = it.getBoundingClientRect();
              const at = [box.x + box.width / 2, box.y + box.height / 2]; const hit = document.elementFromPoint(...at);
              return it.contains(hit) || hit?.contains(it) ? at : null; }})()",
            json!(selector)
        );
        let at = until(&format!("{selector} can be clicked"), || {
            let at = self.value(&find);
            at.is_array().then_some(at)
        });
        for kind in ["mousePressed", "mouseReleased"] {
            let params =
                json!({"type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1});
            self.call("Input.dispatchMouseEvent", params);
        }
    }

    /// Moves the mouse to the middle of an element, or to the corner of the page.
    pub fn point_at(&mut self, selector: Option<&str>) {
        let at = selector.map_or(json!([1, 1]), |selector| {
            self.value(&format!(
                "(() => {{ const box = document.querySelector({}).getBoundingClientRect(); \
                 return [box.x + box.width / 2, box.y + box.height / 2]; }})()",
                json!(selector)
            ))
        });
        let params = json!({"type": "mouseMoved", "x": at[0], "y": at[1]});
        self.call("Input.dispatchMouseEvent", params);
    }

    /// Writes into a field in the place of what stands there.
    pub fn write(&mut self, selector: &str, text: &str) {
        self.click(selector);
        self.value(&format!("document.querySelector({}).select()", json!(selector)));
        self.call("Input.insertText", json!({"text": text}));
    }

    pub fn press(&mut self, key: &str) {
        let (code, character) = match key {
            "Tab" => (9, ""),
            "Enter" => (13, "\r"),
            _ => panic!("no such key here: {key}"),
        };
        for kind in ["keyDown", "keyUp"] {
            let params = json!({"type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": if kind == "keyDown" { character } else { "" }});
            self.call("Input.dispatchKeyEvent", params);
        }
    }

    pub fn choose_files(&mut self, selector: &str, files: &[PathBuf]) {
        let document = self.call("DOM.getDocument", json!({}))["root"]["nodeId"].clone();
        let found =
            self.call("DOM.querySelector", json!({"nodeId": document, "selector": selector}));
        self.call("DOM.setFileInputFiles", json!({"nodeId": found["nodeId"], "files": files}));
    }

    /// A narrow screen is that of a phone, with fingers and without a mouse.
    pub fn screen(&mut self, width: u32, height: u32, scheme: &str) {
        let is_phone = width < 600;
        let metrics =
            json!({"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone});
        self.call("Emulation.setDeviceMetricsOverride", metrics);
        self.call("Emulation.setTouchEmulationEnabled", json!({"enabled": is_phone}));
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        self.call("Emulation.setEmulatedMedia", json!({"features": features}));
    }

    pub fn screenshot(&mut self, path: &Path) {
        let shot = self.call("Page.captureScreenshot", json!({"format": "png"}));
        let bytes = base64::engine::general_purpose::STANDARD
            .decode(shot["data"].as_str().unwrap())
            .unwrap();
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    /// What is wrong for those who see badly, use a phone or have no mouse: labels, contrast, size,
    /// width.
    pub fn faults(&mut self) -> Vec<String> {
        let found = self.value(&format!("{AUDIT}; audit()"));
        found.as_array().unwrap().iter().map(|it| it.as_str().unwrap().to_owned()).collect()
    }

    fn events(&self, method: &str) -> Vec<Value> {
        let received = self.received.0.lock().unwrap();
        received
            .events
            .iter()
            .filter(|it| it["method"] == method)
            .map(|it| it["params"].clone())
            .collect()
    }

    /// Errors and warnings on the console, and what was thrown and not caught.
    pub fn complaints(&self) -> Vec<String> {
        let logged = self.events("Log.entryAdded").into_iter().filter_map(|it| {
            let entry = &it["entry"];
            ["error", "warning"]
                .iter()
                .any(|level| entry["level"] == *level)
                .then(|| entry.to_string())
        });
        let said = self.events("Runtime.consoleAPICalled").into_iter().filter_map(|it| {
            ["error", "warning", "assert"]
                .iter()
                .any(|kind| it["type"] == *kind)
                .then(|| it["args"].to_string())
        });
        let thrown = self
            .events("Runtime.exceptionThrown")
            .into_iter()
            .map(|it| it["exceptionDetails"].to_string());
        logged.chain(said).chain(thrown).collect()
    }

    /// Where everything was asked for.
    pub fn requested(&self) -> Vec<String> {
        let url = |it: &Value| it["request"]["url"].as_str().unwrap().to_owned();
        self.events("Network.requestWillBeSent").iter().map(url).collect()
    }

    /// The headers of an answer.
    pub fn headers(&self, url: &str) -> Value {
        let answers = self.events("Network.responseReceived");
        let answer = answers.iter().rfind(|it| it["response"]["url"] == url);
        answer.unwrap_or_else(|| panic!("{url} was not asked for"))["response"]["headers"].clone()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its own children go with it.
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// Messages end with a zero byte.
fn listen(from: File, received: &(Mutex<ReceivedMessage>, Condvar)) {
    let mut from = BufReader::new(from);
    let mut bytes = Vec::new();
    while from.read_until(0, &mut bytes).is_ok_and(|read| read > 0) {
        bytes.pop_if(|last| *last == 0);
        let message: Value = serde_json::from_slice(&bytes).unwrap();
        bytes.clear();
        let mut received_now = received.0.lock().unwrap();
        match message["id"].as_u64() {
            Some(id) => drop(received_now.answers.insert(id, message)),
            None => received_now.events.push(message),
        }
        received.1.notify_all();
    }
    received.0.lock().unwrap().ended = true;
    received.1.notify_all();
}

//! The commands of README.md and docs/mqtt-quickstart.md, pasted into a shell as they stand.
//!
//! Only what a machine has once is given to the test's own: the port of the broker and of the page.

#![expect(clippy::unwrap_used, reason = "helpers of these tests: a failure there is a failed test")]

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::daemon::until;
use crate::support::mosquitto::Mosquitto;

/// The blocks of a language in a document, from the heading on.
fn blocks(document: &str, heading: &str, language: &str) -> Vec<String> {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(document)).unwrap();
    let (_, text) = text.split_once(heading).unwrap();
    let fence = format!("```{language}\n");
    text.split(&fence)
        .skip(1)
        .map(|it| it.split_once("```").expect("a block that ends").0.to_owned())
        .collect()
}

/// A folder like the project's, with what `make build` and `make setup` make.
struct Project {
    dir: tempfile::TempDir,
    broker: Mosquitto,
    children: Vec<Child>,
}

impl Project {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        fs::create_dir_all(dir.path().join("target/release")).unwrap();
        for name in ["models", ".cache"] {
            symlink(root.join(name), dir.path().join(name)).unwrap();
        }
        let program = dir.path().join("target/release/rollcall");
        symlink(env!("CARGO_BIN_EXE_rollcall"), program).unwrap();
        for (at, name) in ["obama.jpg", "obama2.jpg"].iter().enumerate() {
            let photograph = root.join(".cache/photos").join(name);
            symlink(photograph, dir.path().join(format!("jane-{}.jpg", at + 1))).unwrap();
        }
        let broker = Mosquitto::start();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        for name in ["mosquitto_pub", "mosquitto_sub"] {
            let text = format!("#!/bin/sh\nexec /usr/bin/{name} -p {} \"$@\"\n", broker.port());
            fs::write(bin.join(name), text).unwrap();
            fs::set_permissions(bin.join(name), fs::Permissions::from_mode(0o755)).unwrap();
        }
        Self { dir, broker, children: Vec::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Everything that commands printed here.
    fn output(&self) -> String {
        fs::read_to_string(self.path("output")).unwrap_or_default()
    }

    fn shell(&self, script: &str) -> Command {
        let mut command = Command::new("bash");
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_")) {
            command.env_remove(name);
        }
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        let output = fs::File::options().create(true).append(true).open(self.path("output"));
        let output = output.unwrap();
        command
            .args(["-euc", script])
            .current_dir(self.dir.path())
            .env("PATH", path)
            .env("ROLLCALL_MQTT_PORT", self.broker.port().to_string())
            .env("ROLLCALL_HTTP_LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        command
    }

    /// Runs what does not end by itself in the background, as in another terminal.
    fn background(&mut self, line: &str) {
        self.children.push(self.shell(&format!("exec {line}")).spawn().unwrap());
    }

    fn run(&self, script: &str) {
        let status = self.shell(script).status().unwrap();
        assert!(status.success(), "{script}\n{}", self.output());
    }

    fn until_printed(&self, words: &str) {
        until(words, || self.output().contains(words).then_some(()));
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        for child in &mut self.children {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

#[test]
fn readme_blocks_run_as_pasted() {
    let mut project = Project::new();
    let [file] = blocks("README.md", "## Set up a door", "toml").try_into().unwrap();
    // This machine has no camera that everybody has.
    let file = file.replace("source = \"v4l2\"", "source = \"none\"");
    fs::write(project.path("door.toml"), file).unwrap();
    let block = blocks("README.md", "## Set up a door", "sh").pop().unwrap();
    for line in block.lines() {
        if line.contains(" run ") {
            project.background(line);
            project.until_printed(" ready ");
        } else if line.contains(" doctor") {
            // Without the service that a package installs, it has something to say.
            project.shell(line).status().unwrap();
        } else {
            project.run(line);
        }
    }
    let output = project.output();
    assert!(output.contains("jdoe has 2 references"), "{output}");
    assert!(!output.contains("FAULT    configuration"), "{output}");
}

#[test]
fn mqtt_quickstart_runs_as_pasted() {
    let mut project = Project::new();
    let document = "docs/mqtt-quickstart.md";
    let [file] = blocks(document, "# MQTT", "toml").try_into().unwrap();
    fs::write(project.path("quickstart.toml"), file).unwrap();
    let [start, commands, sessions] = blocks(document, "# MQTT", "sh").try_into().unwrap();
    project.background(start.trim());
    project.until_printed(" ready ");
    let (subscribe, rest): (Vec<&str>, Vec<&str>) =
        commands.lines().partition(|it| it.starts_with("mosquitto_sub"));
    project.background(subscribe[0]);
    project.until_printed("status online");
    project.run(&rest.join("\n"));
    project.run(&sessions);
    let sent = [commands.as_str(), &sessions].concat().matches("/command/").count();
    until("every command is answered", || {
        let output = project.output();
        (output.matches("\"ok\":true").count() == sent).then_some(())
    });
    let output = project.output();
    assert!(!output.contains("\"ok\":false"), "{output}");
    assert!(output.contains("\"recognised\":[\"Joe Biden\"]"), "{output}");
}

//! The commands of README.md and docs/, pasted into a shell as they stand. `tests/cli/examples.rs` parses
//! those that are not run here, because they need a service, a package or another machine.
//!
//! Only what a machine has once is given to the test's own: the port of the broker and of the page,
//! folders, and what root does.

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
        fs::create_dir(dir.path().join("bin")).unwrap();
        let project = Self { dir, broker, children: Vec::new() };
        for name in ["mosquitto_pub", "mosquitto_sub"] {
            project.program(
                name,
                &format!("exec /usr/bin/{name} -p {} \"$@\"", project.broker.port()),
            );
        }
        project
    }

    /// Puts a script in the way of a program.
    fn program(&self, name: &str, script: &str) {
        let path = self.path("bin").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// README's configuration; this machine has no camera that everybody has.
    fn configure(&self) {
        let [file] = blocks("README.md", "## Set up a door", "toml").try_into().unwrap();
        let file = file.replace("source = \"v4l2\"", "source = \"none\"");
        fs::write(self.path("door.toml"), file).unwrap();
    }

    /// The folder and the table that docs/enrolment.md imports.
    fn photographs_of_a_list(&self) {
        let table = blocks("docs/enrolment.md", "# ", "text");
        let table = table.iter().find(|it| it.contains("file,id,name")).unwrap();
        let lines: Vec<&str> = table.lines().map(str::trim).collect();
        fs::write(self.path("people.csv"), lines.join("\n")).unwrap();
        fs::create_dir(self.path("photos")).unwrap();
        for (name, photograph) in [("doe.jpg", "jane-1.jpg"), ("doe-2.jpg", "jane-2.jpg")] {
            fs::copy(self.path(photograph), self.path("photos").join(name)).unwrap();
        }
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

impl Project {
    fn stop_all(&mut self) {
        for mut child in self.children.drain(..) {
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Drop for Project {
    fn drop(&mut self) {
        self.stop_all();
    }
}

#[test]
fn readme_blocks_run_as_pasted() {
    let mut project = Project::new();
    project.configure();
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

/// What an operator pastes on a device, where `rollcall` is installed and root is asked by `sudo`.
#[test]
fn operators_blocks_run_as_pasted() {
    let mut project = Project::new();
    project.configure();
    let folder = project.dir.path().display().to_string();
    project.program("sudo", "if [ \"$1\" = -u ]; then shift 2; fi; exec \"$@\"");
    project.program(
        "rollcall",
        &format!("exec {folder}/target/release/rollcall --config {folder}/door.toml \"$@\""),
    );
    for name in ["apt", "systemctl", "journalctl"] {
        project.program(name, "exit 0");
    }
    let here = |text: &str| {
        text.replace("/tmp", &folder).replace("/mnt/stick", &folder).replace("PHOTO…", "jane-1.jpg")
    };
    let run = |project: &Project, document: &str, blocks_max: usize| {
        for block in blocks(document, "# ", "sh").into_iter().take(blocks_max) {
            let block = here(&block);
            // It shows what happens until somebody ends it; and what lasts is no fault of a command.
            let lines = block.lines().filter(|it| !it.contains(" watch "));
            let lines = lines.map(|it| it.replace(" doctor", " doctor || true"));
            project.run(&lines.collect::<Vec<_>>().join("\n"));
        }
    };
    project.photographs_of_a_list();
    project.background("rollcall run");
    project.until_printed(" ready ");
    // Whoever is enrolled next is compared with somebody.
    project.run("rollcall enrol --id joe --name 'Joe Biden' .cache/photos/biden.jpg");
    run(&project, "docs/enrolment.md", usize::MAX);
    // The way back to an earlier version needs one.
    run(&project, "docs/updating.md", 1);
    run(&project, "docs/troubleshooting.md", usize::MAX);
    project.stop_all();
    run(&project, "docs/second-door.md", usize::MAX);
    let output = project.output();
    assert!(output.contains("4711 has 2 references"), "{output}");
    assert!(project.path("door-1-before").is_dir() && project.path("all.rollcall").is_file());
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

"""What the scripts of this folder share: mosquitto and the daemon in one temporary folder and on free ports of loopback, ended
with the script by their ids."""

import pathlib
import signal
import socket
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
PHOTOS = ROOT / ".cache/photos"
BASE = "rollcall/hq/door-1"
PERSON = "Zoë Müller-李"
PATIENCE_S = 300


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what, ask, patience_s=PATIENCE_S):
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        answer = ask()
        if answer not in (None, False, "", [], {}):
            return answer
        time.sleep(0.2)
    raise SystemExit(f"not in time: {what}")


def say(text):
    print(text, flush=True)


def check(what, holds):
    say(f"  {'holds' if holds else 'DOES NOT HOLD'}: {what}")
    if not holds:
        raise SystemExit(1)


class Bench:
    """A folder with a broker, and programs that were started here."""

    def __init__(self, program):
        self.kept = tempfile.TemporaryDirectory(prefix="rollcall-try-")
        self.folder, self.program, self.running = pathlib.Path(self.kept.name), program, []
        self.mqtt = free_port()

    def __enter__(self):
        (self.folder / "mosquitto.conf").write_text(f"listener {self.mqtt} 127.0.0.1\nallow_anonymous true\n")
        self.start("mosquitto", ["/usr/sbin/mosquitto", "-c", self.folder / "mosquitto.conf"])
        until("mosquitto listens", lambda: self.publish("settled", "-"), 10)
        return self

    def __exit__(self, kind, *_):
        if kind:
            for log in sorted(self.folder.glob("*.log")):
                say(f"--- {log.name}\n" + log.read_text(errors="replace")[-3000:])
        for program in reversed(list(self.running)):
            self.stop(program)
        self.kept.cleanup()

    def start(self, name, command, **more):
        with open(self.folder / f"{name}.log", "ab") as log:
            program = subprocess.Popen(command, stdout=log, stderr=log, **more)
        self.running.append(program)
        return program

    def stop(self, program):
        program.send_signal(signal.SIGTERM)
        try:
            program.wait(60)
        except subprocess.TimeoutExpired:
            program.kill()
            program.wait()
        self.running.remove(program)

    def log(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def publish(self, topic, message, *more):
        command = ["mosquitto_pub", "-p", str(self.mqtt), "-q", "1", "-t", topic, "-m", message, *more]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def retained(self, topic):
        command = ["mosquitto_sub", "-p", str(self.mqtt), "-t", topic, "-C", "1", "-W", "2"]
        return subprocess.run(command, capture_output=True, check=False).stdout.decode().strip()

    def configure(self, more=""):
        """Before the camera: somebody, and a stranger, again and again."""
        pictures = [PHOTOS / name for name in ("obama2.jpg", "astronaut.png")]
        (self.folder / "list.csv").write_text("".join(f"{path},3000,1000\n" for path in pictures))
        (self.folder / "config.toml").write_text(
            f'[device]\nsite = "hq"\nname = "door-1"\n[clock]\ntrust = "always"\n[recognition]\nmodels = "{ROOT}/models"\n'
            f'[camera]\nsource = "replay"\npath = "list.csv"\nrepeat = true\n'
            f'[[venue]]\nid = "main"\nre_entry_gap = "5s"\n'
            f'[mqtt]\nhost = "127.0.0.1"\nport = {self.mqtt}\nhealth_every = "1s"\n{more}')

    def rollcall(self, *command):
        return [self.program, "--config", self.folder / "config.toml", *command]

    def daemon(self):
        return self.start("rollcall", self.rollcall("run"))

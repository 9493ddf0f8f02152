"""The programs of a recording: mosquitto, mongod and the daemons.

They run below one folder and on free ports of loopback, and are ended by their process ids.
"""

import os
import pathlib
import platform
import signal
import socket
import struct
import subprocess
import time
import zlib

from clients import PATIENCE_S, Mongo, Mqtt

ROOT = pathlib.Path(__file__).resolve().parents[2]
PHOTOS = ROOT / ".cache/photos"
MONGOD = pathlib.Path(os.environ.get("MONGOD", ROOT / ".cache/mongod/mongod"))
MOSQUITTO = "/usr/sbin/mosquitto"
RUNTIME = ROOT / f".cache/onnxruntime/{platform.machine()}/libonnxruntime.so"
TOKEN = "contract-token-0123456789"
EMPTY_SCENE = [("-", 500, 0)]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def until(what, ask, patience_s=PATIENCE_S):
    end = time.monotonic() + patience_s
    while not (answer := ask()):
        if time.monotonic() > end:
            raise TimeoutError(f"not within {patience_s} s: {what}")
        time.sleep(0.05)
    return answer


def photo(name):
    return (PHOTOS / name).read_bytes()


def grey_png(width=320, height=240):
    """Returns a picture without a face, made here because no photograph of a wall is at hand."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + bytes([90 + (at * 7) % 60]) * width for at in range(height))
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class Bench:
    """Programs and files of one recording; `folder` is kept."""

    def __init__(self, program, folder):
        self.program, self.folder = pathlib.Path(program).resolve(), pathlib.Path(folder).resolve()
        self.folder.mkdir(parents=True)
        self.running, self.replacements = [], {str(self.folder): "<folder>", str(ROOT): "<root>"}
        self.replacements[self.program.name] = "rollcall"
        self.replacements[platform.node()] = "<host>"
        # A folder of models, instead of this tree's.
        self.models = None

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        for program in reversed(list(self.running)):
            self.stop(program)
        if kind:
            for log in sorted(self.folder.glob("**/log")):
                print(f"--- {log}\n" + log.read_text(errors="replace")[-3000:])

    def port(self, name):
        port = free_port()
        self.replacements[str(port)] = f"<{name}>"
        return port

    def start(self, command, log, **more):
        with open(log, "ab") as to:
            program = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=to, stderr=to, **more
            )
        self.running.append(program)
        return program

    def stop(self, program):
        program.send_signal(signal.SIGTERM)
        try:
            code = program.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            program.kill()
            code = program.wait()
        self.running.remove(program)
        return code

    def start_mosquitto(self):
        port, folder = self.port("mqtt-port"), self.folder / "mosquitto"
        folder.mkdir()
        text = f"user root\nlistener {port} 127.0.0.1\nallow_anonymous true\n"
        text += "max_queued_messages 10000\n"
        (folder / "conf").write_text(text)
        self.start([MOSQUITTO, "-c", folder / "conf"], folder / "log")
        until("mosquitto listens", lambda: connects(port))
        return port

    def start_mongod(self):
        """A replica set of one server, with little memory and disk."""
        port, folder = self.port("mongod-port"), self.folder / "mongod"
        folder.mkdir()
        self.start(
            [
                MONGOD,
                "--dbpath",
                folder,
                "--port",
                str(port),
                "--bind_ip",
                "127.0.0.1",
                "--nounixsocket",
                "--replSet",
                "rs0",
                "--oplogSize",
                "16",
                "--wiredTigerCacheSizeGB",
                "0.25",
                "--setParameter",
                "diagnosticDataCollectionEnabled=false",
            ],
            folder / "log",
        )
        until("mongod listens", lambda: connects(port))
        client = Mongo(port)
        members = [{"_id": 0, "host": f"127.0.0.1:{port}"}]
        client.command({"replSetInitiate": {"_id": "rs0", "members": members}})
        until("mongod takes writes", lambda: client.command({"hello": 1}).get("isWritablePrimary"))
        return port, client


class Home:
    """A daemon's folder: configuration, scene, state and log."""

    def __init__(self, bench, name, configuration):
        self.bench, self.folder = bench, bench.folder / name
        self.folder.mkdir()
        (self.folder / "tmp").mkdir()
        self.set_scene(EMPTY_SCENE)
        self.configure(configuration)
        self.write_secret("token", TOKEN)

    def configure(self, configuration):
        text = configuration.replace(
            "[recognition]",
            f'[recognition]\nmodels = "{ROOT}/models"\n' f'runtime_library = "{RUNTIME}"',
        )
        (self.folder / "config.toml").write_text(text)

    def write_secret(self, name, text):
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o600)

    def set_scene(self, items):
        """Replaces the list that the replay camera plays, in one step."""
        path = {"-": "-"}
        lines = [
            f"{path.get(name, PHOTOS / name)},{show_ms},{gap_ms}\n"
            for name, show_ms, gap_ms in items
        ]
        (self.folder / "scene.new").write_text("".join(lines))
        (self.folder / "scene.new").rename(self.folder / "scene.csv")

    def environment(self):
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith("ROLLCALL_")
        }
        if self.bench.models:
            kept["ROLLCALL_RECOGNITION_MODELS"] = str(self.bench.models.resolve())
        return {
            **kept,
            "TMPDIR": str(self.folder / "tmp"),
            "HOME": str(self.folder / "tmp"),
            "COLUMNS": "100",
        }

    def start(self):
        ready = self.log().count(" ready ")
        command = [self.bench.program, "--config", self.folder / "config.toml", "run"]
        daemon = self.bench.start(
            command, self.folder / "log", cwd=self.folder, env=self.environment()
        )

        def is_ready():
            if daemon.poll() is not None:
                raise RuntimeError(
                    f"the daemon ended with {daemon.returncode}: {self.log()[-2000:]}"
                )
            return self.log().count(" ready ") > ready

        until("the daemon is ready", is_ready)
        return daemon

    def log(self):
        path = self.folder / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def run(self, *arguments, config="config.toml", stdin=b"", environment=None):
        """Runs a command to its end; returns exit code, standard output and standard error."""
        command = [self.bench.program, "--config", self.folder / config, *arguments]
        everything = {**self.environment(), **(environment or {})}
        done = subprocess.run(
            command,
            input=stdin,
            capture_output=True,
            timeout=PATIENCE_S * 2,
            check=False,
            cwd=self.folder,
            env=everything,
        )
        return done.returncode, done.stdout, done.stderr

    def open_mqtt(self, port, client_id="recorder"):
        return Mqtt(port, client_id, ["rollcall/#", "homeassistant/#", "ha/#"])


def connects(port):
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False

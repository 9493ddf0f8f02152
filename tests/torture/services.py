"""The programs of a run: the daemon, mosquitto, mongod; and the small disk that the daemon has.

Each has a port of loopback of its own and is ended by its process id, however the run ends.
"""

import contextlib
import os
import pathlib
import platform
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
sys.path.append(str(ROOT / "tests" / "contract"))

from clients import Mongo  # noqa: E402

PHOTOS = ROOT / ".cache/photos"
MONGOD = pathlib.Path(os.environ.get("MONGOD", ROOT / ".cache/mongod/mongod"))
RUNTIME = ROOT / f".cache/onnxruntime/{platform.machine()}/libonnxruntime.so"
PATIENCE_S = 90
BASE = "rollcall/hq/door-1"
DISK_MIB = 64

CONFIG = """[device]
site = "hq"
name = "door-1"
[storage]
directory = "{state}"
keep_days = {keep_days}
[clock]
trust = "always"
[camera]
source = "{camera}"
path = "{folder}/scene.csv"
fps = 5
show = "600ms"
gap = "800ms"
repeat = true
[recognition]
models = "{root}/models"
runtime_library = "{runtime}"
pad = "off"
[[venue]]
id = "main"
re_entry_gap = "0s"
[[venue]]
id = "desk"
re_entry_gap = "0s"
[mqtt]
host = "{host}"
port = {mqtt}
health_every = "1s"
keep_alive = "5s"
[mongo]
uri = "{mongo}"
timeout = "3s"
"""


class Failed(Exception):
    """What the device promises does not hold."""


def insist(holds, what):
    if not holds:
        raise Failed(what)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def connects(port):
    with contextlib.suppress(OSError):
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    return False


def until(what, ask, patience_s=PATIENCE_S):
    end = time.monotonic() + patience_s
    while not (answer := ask()):
        insist(time.monotonic() < end, f"not within {patience_s} s: {what}")
        time.sleep(0.05)
    return answer


class Program:
    """A process that is started again and again, and what it writes to its log."""

    def __init__(self, folder, name):
        self.folder, self.name, self.process = folder / name, name, None
        self.folder.mkdir(exist_ok=True)
        self.log_path = self.folder / "log"

    def spawn(self, command, environment=None):
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env=environment,
            )

    def log(self):
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def runs(self):
        return self.process is not None and self.process.poll() is None

    def kill(self):
        """SIGKILL: nothing of it runs a moment longer."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def stop(self):
        """SIGTERM, and the exit code that follows it."""
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired as late:
            raise Failed(f"{self.name} does not end:\n{self.log()[-2000:]}") from late
        finally:
            self.kill()
        return code


class Mosquitto(Program):
    def __init__(self, folder):
        super().__init__(folder, "mosquitto")
        self.port = free_port()
        text = f"user root\nlistener {self.port} 127.0.0.1\nallow_anonymous true\n"
        text += f"persistence true\npersistence_location {self.folder}/\nautosave_interval 1\n"
        text += "autosave_on_changes true\nmax_inflight_messages 0\nmax_queued_messages 100000\n"
        (self.folder / "conf").write_text(text)

    def start(self):
        self.spawn([shutil.which("mosquitto", path="/usr/sbin:/usr/bin"), "-c", "conf"])
        until("mosquitto listens", lambda: connects(self.port))


class Mongod(Program):
    """A replica set of one server, with little memory and disk."""

    def __init__(self, folder):
        super().__init__(folder, "mongod")
        self.port = free_port()
        self.is_new = True

    def start(self):
        command = [MONGOD, "--dbpath", self.folder, "--port", str(self.port)]
        command += ["--bind_ip", "127.0.0.1", "--nounixsocket", "--replSet", "rs0"]
        command += ["--oplogSize", "16", "--wiredTigerCacheSizeGB", "0.25"]
        command += ["--setParameter", "diagnosticDataCollectionEnabled=false"]
        self.spawn(command)
        until("mongod listens", lambda: connects(self.port))
        if self.is_new:
            members = [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]
            Mongo(self.port).command({"replSetInitiate": {"_id": "rs0", "members": members}})
            self.is_new = False

    def until_primary(self):
        def is_primary():
            with contextlib.suppress(OSError, struct.error, IndexError):
                return Mongo(self.port).command({"hello": 1}).get("isWritablePrimary")

        until("mongod takes writes", is_primary)

    def attendance(self):
        """Returns all documents of the collection by their ids."""
        client, found, last = Mongo(self.port), {}, ""
        while True:
            find = {"find": "attendance", "filter": {"_id": {"$gt": last}}, "sort": {"_id": 1}}
            find |= {"limit": 5000, "batchSize": 5000, "singleBatch": True}
            page = client.command(find, "rollcall")["cursor"]["firstBatch"]
            if not page:
                return found
            found |= {it["_id"]: it for it in page}
            last = page[-1]["_id"]


class Clock:
    """What is added to the daemon's clocks (clock.c)."""

    def __init__(self, folder):
        self.library, self.path = folder / "clock.so", folder / "clock"
        build = ["cc", "-shared", "-fPIC", "-O1", "-o", self.library, HERE / "clock.c"]
        subprocess.run(build, check=True)
        self.path.write_bytes(bytes(16))

    def move(self, wall_ms, boottime_ms=0):
        with open(self.path, "r+b") as to:
            to.write(struct.pack("<qq", wall_ms, boottime_ms))

    def environment(self):
        return {"LD_PRELOAD": str(self.library), "TORTURE_CLOCK": str(self.path)}


class Disk:
    """A small ext4 on a loop device below the daemon's state, as root; else an ordinary folder."""

    def __init__(self, folder, is_small):
        self.path, self.is_small = folder / "disk", is_small
        self.path.mkdir()
        self.state = self.path / "state"
        if is_small:
            image = folder / "disk.image"
            with open(image, "wb") as it:
                it.truncate(DISK_MIB << 20)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True)
            subprocess.run(["mount", "-o", "loop,noatime", image, self.path], check=True)

    def fill(self):
        with contextlib.suppress(OSError), open(self.path / "filler", "ab", buffering=0) as it:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while it.write(bytes(size)) == size:
                        pass
            os.fsync(it.fileno())

    def empty(self):
        (self.path / "filler").unlink(missing_ok=True)

    def close(self):
        if self.is_small:
            subprocess.run(["umount", "--lazy", self.path], check=False)


class Daemon(Program):
    """rollcall itself, with the highest memory that any of its processes has used."""

    def __init__(self, folder, program, state, clock=None):
        super().__init__(folder, "daemon")
        self.program, self.state, self.clock = program.resolve(), state, clock
        self.peak_kib, self.expected = 0, 0
        self.scene([])
        (self.folder / "tmp").mkdir(exist_ok=True)

    def configure(self, mqtt=0, mongo=0, camera="replay", keep_days=0):
        uri = f"mongodb://127.0.0.1:{mongo}/?directConnection=true" if mongo else ""
        host = "127.0.0.1" if mqtt else ""
        paths = {"state": self.state, "folder": self.folder, "root": ROOT, "runtime": RUNTIME}
        values = {"camera": camera, "host": host, "mqtt": mqtt, "mongo": uri}
        text = CONFIG.format(keep_days=keep_days, **paths, **values)
        (self.folder / "config.toml").write_text(text)

    def scene(self, photographs):
        """Replaces the list that the replay camera plays, in one step."""
        lines = "".join(f"{path}\n" for path in photographs) or "-,100,0\n"
        (self.folder / "scene.new").write_text(lines)
        (self.folder / "scene.new").rename(self.folder / "scene.csv")

    def environment(self):
        kept = {name: it for name, it in os.environ.items() if not name.startswith("ROLLCALL_")}
        folder = str(self.folder / "tmp")
        moved = self.clock.environment() if self.clock else {}
        return {**kept, **moved, "TMPDIR": folder, "HOME": folder}

    def start(self):
        self.expected = self.log().count(" ready ") + 1
        command = [self.program, "--config", self.folder / "config.toml", "run"]
        self.spawn(command, self.environment())

    def until_ready(self):
        def is_ready():
            insist(self.runs(), f"the daemon ended by itself:\n{self.log()[-3000:]}")
            return self.log().count(" ready ") >= self.expected

        until("the daemon is ready", is_ready)

    def run(self, *arguments):
        """Runs a command to its end; returns exit code and standard output."""
        command = [self.program, "--config", self.folder / "config.toml", *arguments]
        done = subprocess.run(
            command,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            cwd=self.folder,
            env=self.environment(),
            timeout=PATIENCE_S,
            check=False,
        )
        return done.returncode, done.stdout

    def measure(self):
        """Returns resident bytes, descriptors and threads of the process that runs."""
        with contextlib.suppress(OSError, AttributeError):
            at = pathlib.Path(f"/proc/{self.process.pid}")
            lines = (it.split(":") for it in (at / "status").read_text().splitlines())
            fields = {name: value.split()[0] for name, value in lines if value.strip()}
            self.peak_kib = max(self.peak_kib, int(fields["VmHWM"]))
            return int(fields["VmRSS"]) << 10, len(os.listdir(at / "fd")), int(fields["Threads"])
        return None

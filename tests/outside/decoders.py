#!/usr/bin/env python3
"""Sends every picture of some folders to a running daemon, and compares what it takes with Pillow.

    decoders.py [--program FILE] [--list FILE] FOLDER...

For the test pictures of decoders: thousands of valid, odd and damaged files. Prints how often both agree on "this picture
is whole", each file on which they differ (--list: all of them, as CSV), the longest reply, and by how much the daemon's
peak memory rose above what it had after an ordinary photograph. The exit code is 1 if the daemon ended, did not reply, or
took more than 100 MB.

Needs Pillow, mosquitto and `make setup`. Everything listens on loopback only.
"""

import argparse
import base64
import collections
import csv
import http.client
import io
import json
import os
import pathlib
import time
import warnings

import common
from PIL import Image, ImageFile

KINDS = {"JPEG", "MPO", "PNG", "WEBP"}
BYTES_MAX = 4_000_000
ABOVE_IDLE_MAX = 100_000_000


def reference(data):
    """What Pillow says: whole, damaged, or another kind of file."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(data)) as picture:
            if picture.format not in KINDS:
                return "other"
            if picture.width * picture.height > 150_000_000:
                return "large"
            picture.load()
            return "whole"
    except Exception:  # Its exceptions have no common class.
        kinds = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF")
        return "damaged" if data.startswith(kinds) else "other"


def ours(answer):
    if answer["ok"]:
        return "whole", ""
    message = answer["error"]["message"]
    for word in ("damaged", "not supported", "not a picture", "empty"):
        if word in message:
            return word, message
    return answer["error"]["code"], message


def peak_bytes(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    line = next(it for it in status.splitlines() if it.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


class Daemon:
    def __init__(self, bench, program):
        self.port = common.free_port()
        env = dict(
            os.environ,
            ROLLCALL_STORAGE_DIRECTORY=str(bench.folder / "state"),
            ROLLCALL_MQTT_HOST="127.0.0.1",
            ROLLCALL_MQTT_PORT=str(bench.mqtt),
            ROLLCALL_HTTP_LISTEN=f"127.0.0.1:{self.port}",
            ROLLCALL_HTTP_PER_MINUTE_MAX="100000",
            ROLLCALL_COMMANDS_PER_MINUTE_MAX="100000",
            ROLLCALL_CLOCK_TRUST="always",
        )
        self.process = bench.start("rollcall", [program, "run"], cwd=common.ROOT, env=env)
        common.until("the daemon answers", self.is_ready)

    def is_ready(self):
        try:
            return self.request("GET", "/healthz", None)[0] == 200
        except OSError:
            return False

    def request(self, method, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        connection.request(method, path, body, {"Content-Type": "application/json"})
        reply = connection.getresponse()
        answer = reply.status, reply.read()
        connection.close()
        return answer

    def recognise(self, data):
        body = json.dumps({"image": base64.b64encode(data).decode()})
        return json.loads(self.request("POST", "/api/command/recognise", body)[1])


def main():
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--program", type=pathlib.Path, default=common.ROOT / "target/release/rollcall")
    options.add_argument("--list", type=pathlib.Path)
    options.add_argument("folders", nargs="+", type=pathlib.Path, metavar="FOLDER")
    options = options.parse_args()
    warnings.simplefilter("ignore")  # Pillow's, about each odd tag.
    files = sorted(it for folder in options.folders for it in folder.rglob("*") if it.is_file())
    counts, rows, slowest = collections.Counter(), [], (0, None)
    with common.Bench(options.program) as bench:
        daemon = Daemon(bench, options.program.resolve())
        # The networks take their memory when they are used first.
        daemon.recognise((common.PHOTOS / "biden.jpg").read_bytes())
        idle = peak_bytes(daemon.process.pid)
        for file in files:
            data = file.read_bytes()
            if not 0 < len(data) <= BYTES_MAX:
                counts["passed over for their size"] += 1
                continue
            began = time.monotonic()
            verdict, message = ours(daemon.recognise(data))
            slowest = max(slowest, (time.monotonic() - began, str(file)))
            expected = reference(data)
            counts[f"Pillow: {expected}, rollcall: {verdict}"] += 1
            rows.append((file, expected, verdict, message))
            if daemon.process.poll() is not None:
                raise SystemExit(f"the daemon ended with {daemon.process.returncode} at {file}")
        above = peak_bytes(daemon.process.pid) - idle
    for what, count in sorted(counts.items()):
        common.say(f"{count:6} {what}")
    for file, expected, verdict, message in rows:
        if (expected == "whole") != (verdict == "whole"):
            common.say(f"  {file}: Pillow {expected}, rollcall {verdict} {message}")
    if options.list:
        with options.list.open("w", newline="") as out:
            csv.writer(out).writerows([("file", "Pillow", "rollcall", "message"), *rows])
    common.say(f"{len(rows)} files; the longest reply took {slowest[0]:.2f} s ({slowest[1]})")
    common.say(f"peak memory {above / 1e6:.0f} MB above {idle / 1e6:.0f} MB")
    raise SystemExit(1 if above > ABOVE_IDLE_MAX else 0)


if __name__ == "__main__":
    main()
